"""Cases as the light engine trains on them: one spacing, one range of HU, planned on the real training cases alone."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.banks.case_reader import load_ct, place_labels
from maisi_aug.errors import BenchmarkError, VolumeError
from maisi_aug.evaluation.benchmark.cases import CaseFiles, LabelIds
from maisi_aug.evaluation.benchmark.config import Preset
from maisi_aug.system.whole_files import write_whole
from maisi_aug.volumes.grid import Grid, Spacing
from maisi_aug.volumes.image_files import load_label_map
from maisi_aug.volumes.resampling import centre_grid_on, resample_image, resample_label_map

AIR_HU: Final = -1000.0
_PERCENTILES: Final = (0.5, 99.5)  # as nnU-Net clips CT
_MAX_VOXELS_COUNTED: Final = 20_000


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Preprocessing of cases for the light engine's network, the same in all arms.

    Attributes:
        spacing_mm: Voxel sides along I, J, K in mm.
        patch_shape: Voxels of a training patch along I, J, K.
        clip_hu: Range to which HU are clipped: percentiles 0.5 and 99.5 of labelled voxels.
        mean_hu: Mean HU of labelled voxels.
        deviation_hu: Standard deviation of the HU of labelled voxels.
    """

    spacing_mm: Spacing
    patch_shape: tuple[int, int, int]
    clip_hu: tuple[float, float]
    mean_hu: float
    deviation_hu: float

    def normalise(self, image_hu: NDArray[Any]) -> NDArray[np.float32]:
        """Normalise HU for the network: clipped, with zero mean and unit deviation in labelled voxels."""
        clipped = np.clip(image_hu.astype(np.float32), *self.clip_hu)
        scaled: NDArray[np.float32] = (clipped - np.float32(self.mean_hu)) / np.float32(self.deviation_hu)
        return scaled

    def grid_for(self, grid: Grid) -> Grid:
        """Return the grid of a case at the planned spacing, with the same field of view and axes."""
        i, j, k = (max(1, round(side / step)) for side, step in zip(grid.extent_mm, self.spacing_mm, strict=True))
        centre = grid.affine[:3, :3] @ ((np.asarray(grid.shape) - 1) / 2) + grid.affine[:3, 3]
        return centre_grid_on(centre.tolist(), shape=(i, j, k), spacing_mm=self.spacing_mm, like=grid)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON-able dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TrainingPlan:
        """Restore a plan from the result of :meth:`to_json`."""
        i, j, k = content["patch_shape"]
        x, y, z = content["spacing_mm"]
        low, high = content["clip_hu"]
        return cls((x, y, z), (i, j, k), (low, high), content["mean_hu"], content["deviation_hu"])


@dataclass(frozen=True, eq=False)
class LoadedCase:
    """Image and classes of a case on one grid.

    Attributes:
        image_hu: ``(I, J, K)`` int16 image in HU.
        classes: ``(I, J, K)`` uint8; class ``n`` is label ``n - 1`` of the benchmark, 0 the background.
        grid: Shape and affine of both.
    """

    image_hu: NDArray[np.int16]
    classes: NDArray[np.uint8]
    grid: Grid


def load_case(case: CaseFiles, label_ids: LabelIds) -> LoadedCase:
    """Read a case of a benchmark on its own grid.

    Args:
        case: Files of the case.
        label_ids: Label name -> ids in the label map; the order of the names numbers the classes.

    Raises:
        VolumeError: A file cannot be read, or has values that are not finite.
        BenchmarkError: Image and label map have different grids.
    """
    try:
        image = load_ct(case.image)
        label = place_labels(load_label_map(case.label, image=case.image), image.grid, subject=case.label.name)
    except VolumeError as error:
        raise BenchmarkError(f"Case {case.case_id}: {error}") from error
    image_hu = np.clip(np.rint(image.array), -32768, 32767).astype(np.int16)
    return LoadedCase(image_hu, to_classes(label.array, label_ids), image.grid)


def to_classes(label_map: NDArray[Any], label_ids: LabelIds) -> NDArray[np.uint8]:
    """Convert label ids to classes 1, 2, ... in the order of the label names; other ids become 0.

    Args:
        label_map: Integer label ids, of any shape.
        label_ids: Label name -> ids that together are the label.

    Returns:
        Classes of the label map's shape.
    """
    table = np.zeros(max(int(label_map.max()), *(n for ids in label_ids.values() for n in ids)) + 1, dtype=np.uint8)
    for number, ids in enumerate(label_ids.values(), start=1):
        table[list(ids)] = number
    classes: NDArray[np.uint8] = table[label_map]
    return classes


def plan_training(cases: Sequence[LoadedCase], preset: Preset) -> TrainingPlan:
    """Plan the preprocessing on real training cases: median spacing and shape, and HU of labelled voxels.

    Args:
        cases: Real training cases.
        preset: Size of the network, which limits the number of voxels.

    Raises:
        BenchmarkError: No voxel is labelled in any case.
    """
    spacings = np.array([case.grid.spacing_mm for case in cases])
    extents = np.array([case.grid.extent_mm for case in cases])
    spacing = np.median(spacings, axis=0)
    num_voxels = float(np.prod(np.median(extents, axis=0) / spacing))
    spacing = np.maximum(spacing, spacing * (num_voxels / preset.max_voxels) ** (1 / 3)).round(4)
    shape = np.median(extents, axis=0) / spacing
    multiple = 2 ** (len(preset.widths) - 1)
    patch = [int(min(preset.patch_side, -(-side // multiple) * multiple)) for side in shape]
    labelled = np.concatenate([_draw_labelled_hu(case) for case in cases])
    if not labelled.size:
        raise BenchmarkError("Real training cases: no voxel is labelled. Check --label.")
    low, high = (float(value) for value in np.percentile(labelled, _PERCENTILES))
    clipped = np.clip(labelled, low, high)
    return TrainingPlan(
        (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        (patch[0], patch[1], patch[2]),
        (low, max(high, low + 1.0)),
        float(clipped.mean()),
        max(1.0, float(clipped.std())),
    )


def _draw_labelled_hu(case: LoadedCase) -> NDArray[np.float64]:
    """HU of labelled voxels, evenly spread over the case where there are many."""
    values = case.image_hu[case.classes > 0].astype(np.float64)
    return values[:: max(1, len(values) // _MAX_VOXELS_COUNTED)]


class PreparedCases:
    """Cases resampled to the planned spacing, once, and kept in a folder."""

    def __init__(self, folder: Path, plan: TrainingPlan, lesion_classes: Sequence[int]) -> None:
        self.folder = folder
        self.plan = plan
        self.lesion_classes = tuple(lesion_classes)

    def load(self, source: str, case: CaseFiles, label_ids: LabelIds) -> LoadedCase:
        """Return a case of a source at the planned spacing.

        Args:
            source: Name of the source.
            case: Files of the case.
            label_ids: Label name -> ids in the label map.

        Raises:
            VolumeError: The files cannot be read.
            BenchmarkError: Image and label map have different grids.
        """
        path = self._path_of(source, case, label_ids)
        if path.is_file():
            try:
                with np.load(path, allow_pickle=False) as stored:
                    i, j, k = stored["image_hu"].shape
                    return LoadedCase(stored["image_hu"], stored["classes"], Grid((i, j, k), stored["affine"]))
            except (OSError, ValueError, KeyError):
                path.unlink()  # damaged from outside; made anew below
        prepared = self._resample(load_case(case, label_ids))
        buffer = io.BytesIO()
        np.savez(buffer, image_hu=prepared.image_hu, classes=prepared.classes, affine=prepared.grid.affine)
        write_whole(path, buffer.getvalue())
        return prepared

    def _path_of(self, source: str, case: CaseFiles, label_ids: LabelIds) -> Path:
        stamps = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in _files_of(case)]
        facts = [self.plan.spacing_mm, self.lesion_classes, label_ids, stamps]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
        return self.folder / source / f"{case.case_id}-{key}.npz"

    def _resample(self, case: LoadedCase) -> LoadedCase:
        target = self.plan.grid_for(case.grid)
        image_hu = resample_image(case.image_hu, case.grid, target, fill=AIR_HU)
        classes = resample_label_map(case.classes, case.grid, target, keep_ids=self.lesion_classes)
        return LoadedCase(image_hu, classes, target)


def _files_of(case: CaseFiles) -> tuple[Path, Path]:
    for file in (case.image, case.label):
        if not file.exists():
            raise VolumeError(f"Case {case.case_id}: {file} is missing. Restore the file.")
    return case.image, case.label
