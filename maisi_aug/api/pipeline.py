"""Networks that stay loaded: a CT image from a label map at every call, judged, and in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from maisi_aug.api.displays import Progress, listen_to_run
from maisi_aug.api.keywords import require_known, takes_fields_of
from maisi_aug.api.results import Case, SavedCase
from maisi_aug.api.synthesis import read_request
from maisi_aug.banks.label_ids import MAISI_IDS
from maisi_aug.bundle_spec.bundle import Bundle, load_bundle
from maisi_aug.cohort.folder import CohortFolder, open_scratch
from maisi_aug.cohort.manifest import MANIFEST_NAME, ManifestWriter, load_manifest
from maisi_aug.cohort.plan import number_case
from maisi_aug.cohort.request import COHORT_NAME, GIVEN, NO_MAP, CohortRequest
from maisi_aug.cohort.resolve import CohortRun, resolve
from maisi_aug.errors import BankError, CohortError, LesionError
from maisi_aug.volumes.grid import Grid

if TYPE_CHECKING:
    from maisi_aug.bundle_spec.decoding import PrecisionName
    from maisi_aug.generate.attempts import Attempt, AttemptMaker
    from maisi_aug.generate.driver import Listener
    from maisi_aug.networks.acceleration import Compiler
    from maisi_aug.networks.pipeline import Pipeline as ImagePipeline

LABEL_MAP_NAME, CT_NAME, PAIR_NAME = "label_map.nii.gz", "ct.nii.gz", "pair.json"
# What the arguments of a call, or the pipeline itself, decide.
_DECIDED = (
    *("labels", "num_cases", "grown_from", "twins", "anatomy", "bundle", "precision", "keep_rejected", "mask_source"),
    *("plant", "mask_bank", "mask_steps", "size_of", "size_reference", "size_label"),
)


class Pipeline:
    """Networks of a bundle on a device: loaded once, then called for one case after the other.

    >>> import maisi_aug as ma
    >>> pipe = ma.Pipeline.from_bundle("phantom-ct", device="cpu")
    >>> case = pipe(plant="hepatic tumor:30mm", seed=3)
    >>> case.image.dtype, case.spacing_mm, case.is_accepted
    (dtype('int16'), (3.0, 3.0, 3.0), True)
    >>> another = pipe(case.label_map, case.affine, plant="hepatic tumor:20mm", seed=8)
    >>> round(another.lesions[0].diameter_mm)
    20

    Open one with :meth:`from_bundle`, and call it: :meth:`__call__`.

    Attributes:
        bundle: Bundle of the networks.
        networks: The networks themselves; ``networks.synthesize_image`` draws one image from one label map without
            gates.
    """

    def __init__(self, networks: ImagePipeline) -> None:
        self.bundle: Bundle = networks.bundle
        self.networks = networks

    @classmethod
    def from_bundle(
        cls,
        bundle: str | Path,
        *,
        device: str = "auto",
        precision: PrecisionName = "auto",
        compile_with: Compiler = "none",
    ) -> Self:
        """Load the networks of a bundle onto a device.

        Args:
            bundle: ``phantom-ct``, the name of one that ``maisi-aug bundles pull`` has fetched, or a folder.
            device: ``auto`` (CUDA if available, else the CPU), ``cpu``, ``cuda``, ``cuda:N``, ``mps`` or ``xpu``.
            precision: Floating-point type of the networks: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for
                float16 on CUDA and float32 elsewhere.
            compile_with: Compiler of the networks: ``none``, ``inductor`` (torch.compile) or ``trt`` (TensorRT).

        Returns:
            The pipeline, with the weights on the device.

        Raises:
            BundleError: There is no such bundle or device, or its files are missing or altered.
            RecipeError: The device does not compute in this precision.
            MissingExtraError: The compiler is not installed.
        """
        from maisi_aug.networks.pipeline import Pipeline as ImagePipeline

        return cls(ImagePipeline.load(load_bundle(bundle), device, compiler=compile_with, precision=precision))

    @takes_fields_of(CohortRequest, but=_DECIDED)
    def __call__(
        self,
        label_map: Any = None,
        affine: Any = None,
        *,
        ct: Any = None,
        plant: str | Sequence[str] = (),
        seed: int = 0,
        progress: Progress = True,
        **fields: Any,
    ) -> DrawnCase:
        """Draw the CT image of a label map, and judge both.

        The result has the map's own grid where the networks take that, in RAS+ whatever the orientation of the map; it
        is cropped, padded or resampled where they do not, with a warning, or where ``shape`` or ``spacing_mm`` request
        another. Without ``plant`` the image is the one that ``synthesize(mask_source="given", mask_bank=...)`` makes of
        the same file and seed; without a label map, the one that ``synthesize(plant, num_cases=1)`` makes.

        Args:
            label_map: A file, an nnU-Net case or a folder of masks such as TotalSegmentator's; or integers
                ``(I, J, K)``, with ``affine``; or an image of nibabel, SimpleITK or MONAI. The ids in memory are
                those of the vocabulary (:func:`labels`) unless ``mask_labels`` gives them another meaning; for a file,
                names next to it or in it count as well. When not given, the
                bundle's own anatomy is used for ``plant``; without ``plant`` the image is drawn without a label map.
            affine: ``(4, 4)`` matrix from voxel index to RAS+ millimetres, required for an array and only used with
                one; ``label_map`` and ``ct`` as arrays share it.
            ct: The CT that the map belongs to, of the same kinds; the body is found in it where the map lacks it.
            plant: Lesions of exact size to put into the map, such as ``"hepatic tumor:15mm"``; several as a list or
                joined with ``+``. The map's own tumours become healthy organ then. Nothing is deformed.
            seed: Seed from 0 of everything random; the same seed gives the same case.
            progress: True for a bar on a terminal or in a notebook, False for none, or a function that is called with
                ``(stage, done, total)``.
            **fields: The keywords listed below, which are fields of a recipe.

        Returns:
            The last attempt, with ``image`` (``(I, J, K)`` int16 HU), ``label_map`` (uint8 ids), ``affine``,
            ``lesions``, ``verdicts``. Where the gates refused all attempts, its ``is_accepted`` is False and ``reason``
            says why. Nothing is written; see :meth:`DrawnCase.save`.

        Raises:
            LesionError: A lesion finds no room; the message names the largest that does.
            BankError: ``label_map`` is several maps or not readable as one, or ``ct`` is given without it.
            RecipeError: A keyword is unknown, or a field is invalid.
            MaisiAugError: The request is invalid otherwise; the message is the one that the command prints.
        """
        require_known(Pipeline.__call__, fields)
        wanted = ["+".join([plant] if isinstance(plant, str) else plant)] if plant else []
        fields = {"seed": seed, "bundle": self.bundle.path, "precision": self.networks.precision, **fields}
        with listen_to_run(progress) as listener, _as_file(label_map, affine, ct) as path:
            if path is not None:
                fields |= {"mask_source": GIVEN, "mask_bank": path, "plant": wanted, "keep_rejected": True}
                if not isinstance(label_map, str | Path):  # no file that could name its ids
                    fields = {"mask_labels": MAISI_IDS, **fields}
            else:
                fields |= {"mask_source": None if wanted else NO_MAP, "num_cases": 1}
            request = read_request(wanted if path is None else (), None, fields, source="Pipeline")
            return self._draw(self._open(resolve(request), listener))

    def _open(self, run: CohortRun, listener: Listener) -> AttemptMaker:
        from maisi_aug.generate.attempts import AttemptMaker
        from maisi_aug.sources.opening import open_source

        num_maps = len(run.bank.entries)
        if run.request.mask_source == GIVEN and num_maps != 1:
            raise BankError(
                f"{run.request.mask_bank}: expected one label map, found {num_maps}. Name one, or use synthesize "
                "with mask_source='given' for all of them."
            )
        return AttemptMaker(run, open_source(run, self.networks.networks.device), self.networks, listener.steps)

    def _draw(self, maker: AttemptMaker) -> DrawnCase:
        from maisi_aug.generate.attempts import judge_drawn_image

        run = maker.run
        for number in range(run.request.max_attempts):
            attempt = maker.draw_map(maker.begin(run.plan.cases[0], number))
            if attempt.error is not None:
                raise attempt.error
            attempt = judge_drawn_image(run, maker.draw_image(attempt))
            if not attempt.reason or attempt.is_final:
                break
        if attempt.image_hu is None:
            raise LesionError(f"{attempt.case.request}: {attempt.reason}")
        return DrawnCase(attempt, run, self.networks)


class DrawnCase(Case):
    """A case in memory, with the attributes of :class:`Case`, which a call of :class:`Pipeline` returns.

    Nothing of it is on disk until :meth:`save` is called.
    """

    def __init__(self, attempt: Attempt, run: CohortRun, networks: ImagePipeline) -> None:
        case = attempt.case
        super().__init__(case.case_id, case.request, attempt.seed, case.lesions, attempt.verdicts, attempt.reason)
        self._attempt, self._run, self._networks = attempt, run, networks

    @property
    def image(self) -> NDArray[np.int16]:
        """``(I, J, K)`` int16 image in HU."""
        assert self._attempt.image_hu is not None
        return self._attempt.image_hu

    @property
    def label_map(self) -> NDArray[np.uint8] | None:
        """``(I, J, K)`` uint8 vocabulary ids of organs, lesions and body (200); None for an image without one."""
        assert self._attempt.drawn is not None
        return self._attempt.drawn.label_map

    @property
    def grid(self) -> Grid:
        """Shape and voxel-to-RAS+ affine that image and label map share."""
        assert self._attempt.drawn is not None
        return self._attempt.drawn.grid

    def save(self, folder: str | Path) -> SavedCase:
        """Save the case into a folder laid out like a cohort, next to cases that were saved there before.

        The folder can be opened with :func:`load_cohort` and exported. Cases are numbered in the order in which they
        are saved. A case that the gates refused goes to its ``rejected/`` and is exported nowhere.

        >>> import maisi_aug as ma
        >>> case = ma.Pipeline.from_bundle("phantom-ct", device="cpu")(plant="hepatic tumor:30mm", seed=3)
        >>> case.save("saved").files["image"].as_posix()
        'saved/images/case_0001.nii.gz'
        >>> ma.load_cohort("saved")
        Cohort('saved', 1 of 1 cases accepted)

        Args:
            folder: Folder for saved cases: new, empty, or one with cases that were saved before.

        Returns:
            The case on disk, with the paths of its ``image``, ``label``, ``anatomy`` and ``preview`` in ``files``.

        Raises:
            CohortError: ``synthesize`` or ``insert`` made the folder, another process writes to it, or the disk is
                full.
        """
        from maisi_aug.generate.driver import Recorder
        from maisi_aug.generate.writer import open_writer

        folder = Path(folder)
        if (folder / COHORT_NAME).exists():
            raise CohortError(
                f"{folder}: cannot be used for saved cases, because it holds a cohort of synthesize or insert. "
                "Choose another folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
        with ManifestWriter(folder / MANIFEST_NAME) as manifest, open_scratch(folder) as scratch:
            indices = [record.case_index for record in load_manifest(folder, gates=()).records]
            writer = open_writer(
                self._run,
                CohortFolder(scratch),
                home=folder,
                device=self._networks.networks.device.partition(":")[0],
                compiler=self._networks.compiler,
                precision=self._networks.precision,
                num_threads=self._networks.num_threads,
            )
            case = number_case(self._attempt.case, max(indices, default=-1) + 1)
            judged = replace(self._attempt, case=case, is_final=True)
            record = replace(writer, judge=lambda attempt: attempt).finish(judged)
            Recorder(CohortFolder(folder), manifest).record(record, scratch)
            return SavedCase(record, folder)


@contextmanager
def _as_file(label_map: Any, affine: Any, ct: Any) -> Iterator[Path | None]:
    """The label map as a mask bank; what is in memory is written for as long as it is needed, and judged like files."""
    if label_map is None:
        if ct is not None:
            raise BankError("ct: requires label_map=, the label map that belongs to it.")
        yield None
        return
    if isinstance(label_map, str | Path) and ct is None:
        yield Path(label_map)
        return
    from maisi_aug.volumes.image_files import save_image, save_label_map, take_image, take_label_map

    with TemporaryDirectory(prefix="maisi-aug-") as scratch:
        folder = Path(scratch)
        if isinstance(label_map, str | Path):
            path = Path(label_map).resolve()
        else:
            path = folder / LABEL_MAP_NAME
            volume = take_label_map(label_map, affine, subject="label_map")
            save_label_map(path, volume.array, volume.grid)
        if ct is None:
            yield path
            return
        if isinstance(ct, str | Path):
            image = Path(ct).resolve()
        else:
            image = folder / CT_NAME
            taken = take_image(ct, affine, subject="ct")
            save_image(image, taken.array, taken.grid)
        pair = folder / PAIR_NAME
        pair.write_text(json.dumps({"training": [{"image": str(image), "label": str(path)}]}), encoding="utf-8")
        yield pair
