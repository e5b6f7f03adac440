"""Results of the functions: cohorts on the disk, and their cases."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.cohort.folder import CONTACT_SHEET_NAME
from maisi_aug.cohort.manifest import AttemptRecord, Manifest, VerdictRecord
from maisi_aug.cohort.review import load_reviewed_manifest
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.volumes.grid import Grid, Shape, Spacing

if TYPE_CHECKING:
    from maisi_aug.generate.run import CohortSummary
    from maisi_aug.integrations.dicom.export import DicomReport
    from maisi_aug.integrations.monai_data_list import MonaiReport
    from maisi_aug.integrations.nnunet.dataset import ExportReport
    from maisi_aug.integrations.nnunet.report import LikeReport


class Case:
    """A CT image with its label map, lesions and quality verdicts: what saved and drawn cases have in common.

    Cases come from :attr:`Cohort.cases` (:class:`SavedCase`) or from calling a :class:`Pipeline` (:class:`DrawnCase`);
    they are not constructed by hand. Arrays have axes ``I J K`` along right, anterior, superior (RAS+); image and label
    map have the same grid.

    >>> import maisi_aug as ma
    >>> case = ma.load_cohort("cohort").cases[0]
    >>> case.image.dtype, case.label_map.dtype, case.spacing_mm
    (dtype('int16'), dtype('uint8'), (3.0, 3.0, 3.0))

    Attributes:
        id: Name of the case.
        request: Label request that it was made for, such as ``hepatic tumor:0.3``.
        seed: Seed of everything random in the case.
        lesions: Lesions, each with ``label``, ``label_id``, requested size (volume ``requested_ml``, equivalent
            diameter ``requested_mm``) and realised size (``realised_ml``, ``diameter_mm``), ``centre_ijk`` (voxel) and
            ``host_id`` (label id of the organ that contains it).
        verdicts: Verdict of each quality gate that was run: ``gate`` (its name), ``passed``, ``figures`` (what it
            measured) and ``message`` (a sentence about it).
        reason: Why a quality gate refused the case, a sentence; empty if it was accepted.
    """

    def __init__(
        self,
        case_id: str,
        request: str,
        seed: int,
        lesions: Sequence[Lesion],
        verdicts: Sequence[VerdictRecord],
        reason: str,
    ) -> None:
        self.id = case_id
        self.request = request
        self.seed = seed
        self.lesions = tuple(lesions)
        self.verdicts = tuple(verdicts)
        self.reason = reason

    @property
    def is_accepted(self) -> bool:
        """Whether the case passed every quality gate."""
        return not self.reason

    @property
    def image(self) -> NDArray[np.int16]:
        """``(I, J, K)`` int16 image in HU."""
        raise NotImplementedError

    @property
    def label_map(self) -> NDArray[np.uint8] | None:
        """``(I, J, K)`` uint8 vocabulary ids of organs, lesions and body (200); None for an image without one."""
        raise NotImplementedError

    @property
    def grid(self) -> Grid:
        """Shape and voxel-to-RAS+ affine that image and label map share."""
        raise NotImplementedError

    @property
    def affine(self) -> NDArray[np.float64]:
        """``(4, 4)`` float64 matrix from voxel indices (I, J, K) to RAS+ millimetres."""
        return self.grid.affine

    @property
    def shape(self) -> Shape:
        """Number of voxels along I, J, K."""
        return self.grid.shape

    @property
    def spacing_mm(self) -> Spacing:
        """Voxel side lengths along I, J, K in mm."""
        return self.grid.spacing_mm

    def __repr__(self) -> str:
        sides = "x".join(map(str, self.shape))
        status = "accepted" if self.is_accepted else f"rejected: {self.reason}"
        return f"{type(self).__name__}({self.id!r}, {self.request!r}, {sides}, {status})"


class SavedCase(Case):
    """A case of a cohort on disk, with the attributes of :class:`Case`; arrays are read once, when first used.

    :attr:`Cohort.cases` and :attr:`Cohort.rejected` contain them. Reading an array raises ``VolumeError`` if its file
    is missing or damaged.

    Attributes:
        record: The case's line of the manifest: request, seed, sizes, verdicts, origin of the label map, bundle and
            licence.
        files: Paths by kind: ``image`` (CT), ``label`` (label map of the requested labels alone), ``anatomy`` (label
            map of everything, as ``label_map`` returns it) and ``preview`` (PNG). An image that was drawn without a
            label map has neither ``label`` nor ``anatomy``.
    """

    def __init__(self, record: AttemptRecord, folder: Path) -> None:
        super().__init__(record.case_id, record.request, record.seed, record.lesions, record.verdicts, record.reason)
        self.record = record
        self.files = {role: folder / file.path for role, file in record.files.items()}

    @cached_property
    def image(self) -> NDArray[np.int16]:
        """``(I, J, K)`` int16 image in HU, read from disk."""
        from maisi_aug.volumes.image_files import load_image

        return load_image(self.files["image"]).array

    @cached_property
    def label_map(self) -> NDArray[np.uint8] | None:
        """``(I, J, K)`` uint8 vocabulary ids of the full label map, read from disk; None for an image without one."""
        from maisi_aug.volumes.image_files import load_label_map

        return load_label_map(self.files["anatomy"]).array if "anatomy" in self.files else None

    @cached_property
    def grid(self) -> Grid:
        """Shape and voxel-to-RAS+ affine that image and label map share, from the header of the image."""
        from maisi_aug.volumes.image_files import load_grid

        return load_grid(self.files["image"])


class Cohort:
    """A cohort on disk, made by :func:`synthesize`, :func:`insert` or :meth:`DrawnCase.save`.

    >>> import maisi_aug as ma
    >>> cohort = ma.load_cohort("cohort")
    >>> len(cohort.cases), cohort.summary.is_complete
    (1, True)
    >>> case = cohort.cases[0]
    >>> case.image.shape == case.label_map.shape == case.shape
    True

    Args:
        folder: Folder of the cohort; :func:`load_cohort` opens one as well.
        summary: Summary of the run that has just made it; None to read it from the manifest.

    Raises:
        CohortError: The folder is not a cohort, or its manifest is damaged.

    Attributes:
        folder: Folder of the cohort.
        summary: Figures of the whole cohort: ``num_cases`` (planned), ``manifest`` (all attempts), ``is_complete``
            (whether every case was accepted), and of the run that made it ``num_new`` (cases that it made) and
            ``seconds`` (its wall time); ``to_json()`` returns them as a dict.
    """

    def __init__(self, folder: str | Path, summary: CohortSummary | None = None) -> None:
        self.folder = Path(folder)
        self._manifest: Manifest | None = None
        if summary is None:
            summary = self._summarise()
        self.summary: CohortSummary = summary

    @cached_property
    def cases(self) -> tuple[SavedCase, ...]:
        """The accepted cases that no reviewer has rejected, in the order of the plan."""
        return tuple(SavedCase(record, self.folder) for record in self._load().accepted)

    @cached_property
    def rejected(self) -> tuple[AttemptRecord, ...]:
        """The last attempt at every case that was rejected, by the gates or a reviewer, with its ``reason``."""
        return self._load().rejected

    @property
    def contact_sheet(self) -> Path:
        """Path of the contact sheet, a PNG of all accepted cases; missing if there is none, or shards are unmerged."""
        return self.folder / CONTACT_SHEET_NAME

    def export_nnunet(self, dataset_id: int, **options: Any) -> ExportReport | LikeReport:
        """Write the accepted cases as an nnU-Net v2 dataset, or add them to a real one.

        >>> import maisi_aug as ma
        >>> ma.load_cohort("cohort").export_nnunet(dataset_id=501, name="SynLiver", out="nnUNet_raw").labels
        {'background': 0, 'hepatic tumor': 1}

        Args:
            dataset_id: Number of the dataset, 1 to 999, not in use.
            **options: Keywords of :func:`maisi_aug.export_nnunet`, such as ``name``, ``out`` and ``like``.

        Returns:
            The report of :func:`maisi_aug.export_nnunet`: ``path``, ``labels`` (name -> number) and others.

        Raises:
            MaisiAugError: As :func:`maisi_aug.export_nnunet`, such as for an unfinished cohort or a number in use.
        """
        from maisi_aug.api.exporting import export_nnunet

        return export_nnunet(self, dataset_id=dataset_id, **options)

    def export_monai(self, out: str | Path, **options: Any) -> MonaiReport:
        """Write the accepted cases with a MONAI data list and a task file for Auto3DSeg.

        Args:
            out: New or empty folder.
            **options: Keywords of :func:`maisi_aug.export_monai`, such as ``labels`` and ``like``.

        Returns:
            The report of :func:`maisi_aug.export_monai`: ``path``, ``labels`` (name -> number), ``num_folds`` etc.

        Raises:
            MaisiAugError: As :func:`maisi_aug.export_monai`, such as for an unfinished cohort or a folder in use.
        """
        from maisi_aug.api.exporting import export_monai

        return export_monai(self, out, **options)

    def export_dicom(self, out: str | Path, **options: Any) -> DicomReport:
        """Write the accepted cases as DICOM CT series and segmentations; needs the extra ``dicom``.

        Args:
            out: New or empty folder.
            **options: Keywords of :func:`maisi_aug.export_dicom`: ``labels``, ``include_anatomy`` and ``progress``.

        Returns:
            The report of :func:`maisi_aug.export_dicom`: ``path``, ``num_cases``, ``num_segmentations`` and others.

        Raises:
            MaisiAugError: As :func:`maisi_aug.export_dicom`, such as for an unfinished cohort or a folder in use.
        """
        from maisi_aug.api.exporting import export_dicom

        return export_dicom(self, out, **options)

    def __len__(self) -> int:
        return len(self.cases)

    def __repr__(self) -> str:
        accepted = len(self.summary.manifest.accepted)
        return f"Cohort({str(self.folder)!r}, {accepted} of {self.summary.num_cases} cases accepted)"

    def _load(self) -> Manifest:
        if self._manifest is None:
            self._manifest = load_reviewed_manifest(self.folder)
        return self._manifest

    def _summarise(self) -> CohortSummary:
        """Summarise an existing cohort, like a run with nothing left to do."""
        from maisi_aug.generate.run import CohortSummary
        from maisi_aug.integrations.reading.cohort_source import find_num_planned

        manifest = self._load()
        num_cases = find_num_planned(self.folder) or len({record.case_index for record in manifest.records})
        return CohortSummary(self.folder, num_cases, manifest, seconds=0.0, num_new=0)


def load_cohort(folder: str | Path) -> Cohort:
    """Open a cohort on disk; finished or not, nothing is changed, and volumes are read when they are first used.

    Args:
        folder: Folder that ``synthesize``, ``insert`` or :meth:`DrawnCase.save` has written.

    Returns:
        The cohort with its accepted cases, see :class:`Cohort` for an example.

    Raises:
        CohortError: The folder is not a cohort, or its manifest is damaged.
    """
    return Cohort(folder)
