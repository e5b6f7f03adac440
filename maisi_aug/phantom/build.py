"""Whole phantoms: anatomy, planted lesions and the image that obeys both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import LesionError
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.lesions.planting import plant_lesions
from maisi_aug.phantom import ids
from maisi_aug.phantom.anatomy import Region, build_label_map
from maisi_aug.phantom.habitus import Variety
from maisi_aug.phantom.intensity import Phase, draw_phase
from maisi_aug.phantom.rendering import draw_case
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.vocabulary.labels import FULL_VOCABULARY
from maisi_aug.volumes.grid import Grid

DIAMETER_RANGE_MM: Final = (7.0, 50.0)
MIN_LESION_VOXELS: Final = 3
MAX_ATTEMPTS: Final = 6
# Largest share of its (largest) host that a drawn lesion may take, and how often a kind is chosen.
_HOST_SHARE: Final[dict[int, float]] = {
    ids.HEPATIC_TUMOR: 0.10,
    ids.LUNG_TUMOR: 0.10,
    ids.PANCREATIC_TUMOR: 0.45,
    ids.COLON_TUMOR: 0.10,
    ids.BONE_LESION: 0.30,
    ids.KIDNEY_TUMOR: 0.35,
}
_KIND_WEIGHT: Final[dict[int, float]] = {
    ids.HEPATIC_TUMOR: 1.0,
    ids.LUNG_TUMOR: 1.0,
    ids.PANCREATIC_TUMOR: 1.0,
    ids.COLON_TUMOR: 0.9,
    ids.BONE_LESION: 0.7,
    ids.KIDNEY_TUMOR: 1.0,
}
_MIN_HOST_ML: Final = 8.0


@dataclass(frozen=True)
class Phantom:
    """One procedural CT with its exact label map.

    Attributes:
        image_hu: ``(I, J, K)`` int16 HU, -1000 outside the body.
        label_map: ``(I, J, K)`` uint8 vocabulary ids.
        tissue: ``(I, J, K)`` uint8 tissue under label 200 (``ids.TISSUES``).
        detail: ``(I, J, K)`` uint8 detail map, from which the image was rendered (see ``detail``).
        grid: Shape and affine of image and label map.
        region: Body region that is mostly shown.
        phase: Contrast phase.
        seed: Seed of the phantom.
        lesions: The planted lesions with their realised volumes.
    """

    image_hu: NDArray[np.int16]
    label_map: NDArray[np.uint8]
    tissue: NDArray[np.uint8]
    detail: NDArray[np.uint8]
    grid: Grid
    region: Region
    phase: Phase
    seed: int
    lesions: tuple[Lesion, ...]

    @property
    def modality(self) -> str:
        """Name of the modality that the networks are conditioned on, from the contrast phase."""
        return "ct_wo_contrast" if self.phase == "non-contrast" else "ct_contrast"


def build_phantom(
    *,
    seed: int,
    grid: Grid,
    region: Region | Literal["any"] = "any",
    lesions: bool | Sequence[Lesion] = True,
    variety: Variety = "fitting",
) -> Phantom:
    """Build a procedural CT phantom with its exact label map; the same seed gives the same phantom.

    Args:
        seed: Seed of everything random.
        grid: Grid of any shape and spacing; the patient fits into a field of view of about 400 x 300 mm.
        region: Body region in the centre of the grid; ``any`` draws a position along the trunk.
        lesions: True plants 1 to 4 lesions of 1 to 3 kinds in organs that are in view; False plants none; a sequence
            plants exactly these.
        variety: ``fitting``: usual adults in the middle of the grid; ``any``: slight to obese patients, off the middle.

    Raises:
        LesionError: A requested lesion does not fit into its host.
        GridError: The region or the variety has an unknown name.
    """
    anatomy = build_label_map(seed=seed, grid=grid, region=region, variety=variety)
    label_map, planted = anatomy.label_map, tuple[Lesion, ...]()
    rng = numpy_generator(seed, "lesions")
    if lesions is True:
        label_map, planted = plant_drawn_lesions(label_map, grid=grid, rng=rng)
    elif lesions:
        label_map, planted = plant_lesions(label_map, list(lesions), spacing_mm=grid.spacing_mm, rng=rng)
    phase = draw_phase(seed)
    detail, image = draw_case(label_map, anatomy.tissue, seed=seed, grid=grid, phase=phase)
    return Phantom(image, label_map, anatomy.tissue, detail, grid, anatomy.region, phase, seed, planted)


def plant_drawn_lesions(
    label_map: NDArray[np.uint8], *, grid: Grid, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], tuple[Lesion, ...]]:
    """Plant 1 to 4 lesions of 1 to 3 kinds with log-uniform volumes; lesions that do not fit are skipped.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids; not modified.
        grid: Grid of the label map.
        rng: Source of all randomness.

    Returns:
        A new label map (or the given one if nothing could be planted), and the lesions.
    """
    limits_ml = lesion_limits_ml(label_map, grid)
    if not limits_ml:
        return label_map, ()
    kinds = _draw_kinds(limits_ml, rng)
    wanted = int(rng.choice([1, 2, 3, 4], p=[0.25, 0.35, 0.25, 0.15]))
    queue = [*kinds, *rng.choice(kinds, size=MAX_ATTEMPTS)][: max(wanted, len(kinds)) + 2]
    planted: list[Lesion] = []
    for kind in queue:
        if len(planted) >= max(wanted, len(kinds)):
            break
        low, high = limits_ml[int(kind)]
        volume_ml = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        wish = Lesion(int(kind), FULL_VOCABULARY.name_of(int(kind)), volume_ml, hosts=ids.TUMOR_HOSTS[int(kind)])
        try:
            label_map, done = plant_lesions(
                label_map, [wish], spacing_mm=grid.spacing_mm, rng=rng, other_lesion_ids=ids.TUMORS
            )
        except LesionError:
            continue
        planted.extend(done)
    return label_map, tuple(planted)


def lesion_limits_ml(label_map: NDArray[np.uint8], grid: Grid) -> dict[int, tuple[float, float]]:
    """Return tumour id -> smallest and largest volume in mL to draw, for tumours whose host organ is in view.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids.
        grid: Grid of the label map.
    """
    volumes_ml = np.bincount(label_map.ravel(), minlength=256) * grid.voxel_ml
    smallest = max(_sphere_ml(DIAMETER_RANGE_MM[0]), MIN_LESION_VOXELS * grid.voxel_ml)
    limits = {}
    for tumor, hosts in ids.TUMOR_HOSTS.items():
        host_ml = float(volumes_ml[list(hosts)].max())
        largest = min(_sphere_ml(DIAMETER_RANGE_MM[1]), _HOST_SHARE[tumor] * host_ml)
        if host_ml >= _MIN_HOST_ML and largest > smallest:
            limits[tumor] = (smallest, largest)
    return limits


def _draw_kinds(limits_ml: dict[int, tuple[float, float]], rng: np.random.Generator) -> list[int]:
    present = list(limits_ml)
    weights = np.array([_KIND_WEIGHT[kind] for kind in present])
    count = min(len(present), int(rng.choice([1, 2, 3], p=[0.45, 0.35, 0.20])))
    drawn = rng.choice(present, size=count, replace=False, p=weights / weights.sum())
    return [int(kind) for kind in drawn]


def _sphere_ml(diameter_mm: float) -> float:
    return float(np.pi / 6 * diameter_mm**3 / 1000)


_CHEST_IDS: Final = (
    *ids.LUNG_LOBES, ids.LUNG_TUMOR, ids.HEART, ids.TRACHEA, ids.AIRWAY, ids.ESOPHAGUS, ids.SUPERIOR_VENA_CAVA,
    ids.LEFT_ATRIAL_APPENDAGE, ids.PULMONARY_VEIN, ids.THYROID, ids.STERNUM, ids.COSTAL_CARTILAGE,
    *range(ids.BRACHIOCEPHALIC_TRUNK, ids.RIGHT_COMMON_CAROTID + 1), ids.LEFT_SUBCLAVIAN_ARTERY,
    ids.RIGHT_SUBCLAVIAN_ARTERY, *range(ids.LEFT_HUMERUS, ids.RIGHT_CLAVICULA + 1), *range(ids.VERTEBRA_T12 + 3, 57),
    *(first + number for first in (ids.LEFT_RIB_1, ids.RIGHT_RIB_1) for number in range(9)),
)  # fmt: skip
_PELVIS_IDS: Final = (
    ids.BLADDER, ids.PROSTATE, *range(ids.LEFT_ILIAC_ARTERY, ids.RIGHT_ILIAC_VEIN + 1),
    *range(ids.LEFT_FEMUR, ids.RIGHT_GLUTEUS_MINIMUS + 1), ids.VERTEBRA_S1, ids.VERTEBRA_L5, ids.VERTEBRA_L5 + 1,
    ids.LEFT_ILIOPSOAS, ids.RIGHT_ILIOPSOAS,
)  # fmt: skip


def region_for(label_id: int) -> Region:
    """Return the body region in which a label, or a tumour's host organ, is shown best."""
    if label_id in _CHEST_IDS:
        return "chest"
    if label_id in _PELVIS_IDS:
        return "pelvis"
    return "abdomen"
