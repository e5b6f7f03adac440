"""Appearance of a scan: contrast phase, HU of every organ, kernel and noise. Everything is drawn first, then applied.

Means are textbook attenuation values of unenhanced, arterial, portal venous and delayed body CT (for instance Lamba et
al., "CT Hounsfield numbers of soft tissues on unenhanced abdominal CT scans", 2014, and usual enhancement curves), set
so that the medians of every organ lie well inside the published MAISI reference ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from maisi_aug.phantom import ids
from maisi_aug.system.seeds import numpy_generator

Phase = Literal["non-contrast", "arterial", "portal", "delayed"]
PHASES: Final[tuple[Phase, ...]] = get_args(Phase)
_PHASE_WEIGHTS: Final = (0.22, 0.20, 0.43, 0.15)
Row = tuple[float, float, float, float, float]  # HU per phase, standard deviation between patients

_VEIN: Final[Row] = (40, 70, 145, 112, 10)
_ARTERY: Final[Row] = (41, 300, 150, 112, 14)
_MUSCLE: Final[Row] = (50, 54, 60, 60, 5)
_LUNG: Final[Row] = (-862, -860, -858, -858, 20)
_BONE: Final[Row] = (190, 195, 205, 205, 30)  # trabecular; the cortex is added by the renderer
_GUT: Final[Row] = (36, 62, 78, 68, 6)  # wall; the content is added by the renderer
_ORGAN_HU: Final[dict[int, Row]] = {
    ids.LIVER: (57, 66, 107, 92, 7),
    ids.SPLEEN: (48, 108, 122, 98, 6),
    ids.PANCREAS: (42, 92, 96, 80, 6),
    ids.RIGHT_KIDNEY: (34, 128, 168, 158, 8),
    ids.LEFT_KIDNEY: (34, 128, 168, 158, 8),
    ids.AORTA: _ARTERY,
    ids.INFERIOR_VENA_CAVA: (40, 80, 135, 110, 10),
    ids.RIGHT_ADRENAL: (25, 62, 70, 55, 6),
    ids.LEFT_ADRENAL: (25, 62, 70, 55, 6),
    ids.GALLBLADDER: (8, 8, 9, 10, 4),
    ids.ESOPHAGUS: (38, 52, 62, 58, 5),
    ids.STOMACH: _GUT,
    ids.DUODENUM: _GUT,
    ids.BLADDER: (6, 7, 8, 22, 4),
    ids.PORTAL_AND_SPLENIC_VEIN: (40, 105, 168, 118, 9),
    ids.SMALL_BOWEL: _GUT,
    ids.HEPATIC_VESSEL: (41, 84, 162, 116, 8),
    ids.TRACHEA: (-990, -990, -990, -990, 3),
    ids.AIRWAY: (-975, -975, -975, -975, 5),
    ids.COLON: _GUT,
    ids.LEFT_ATRIAL_APPENDAGE: (40, 270, 148, 112, 12),
    ids.COSTAL_CARTILAGE: (98, 98, 102, 102, 10),
    ids.HEART: (41, 130, 128, 106, 8),  # myocardium; blood pools are added by the renderer
    ids.LEFT_KIDNEY_CYST: (6, 7, 8, 8, 3),
    ids.RIGHT_KIDNEY_CYST: (6, 7, 8, 8, 3),
    ids.PROSTATE: (40, 58, 72, 74, 6),
    ids.PULMONARY_VEIN: (40, 280, 148, 112, 12),
    ids.SPINAL_CORD: (32, 34, 36, 36, 4),
    ids.SUPERIOR_VENA_CAVA: (40, 240, 145, 112, 18),
    ids.THYROID: (96, 160, 140, 125, 12),
    **dict.fromkeys(ids.LUNG_LOBES, _LUNG),
    **dict.fromkeys(ids.BONES, _BONE),
    **dict.fromkeys(ids.MUSCLES, _MUSCLE),
    **dict.fromkeys((ids.LEFT_ILIAC_ARTERY, ids.RIGHT_ILIAC_ARTERY), (41, 285, 148, 112, 14)),
    **dict.fromkeys((ids.LEFT_ILIAC_VEIN, ids.RIGHT_ILIAC_VEIN), (40, 50, 112, 112, 8)),
    **dict.fromkeys(
        (ids.BRACHIOCEPHALIC_TRUNK, ids.LEFT_COMMON_CAROTID, ids.RIGHT_COMMON_CAROTID, ids.LEFT_SUBCLAVIAN_ARTERY,
         ids.RIGHT_SUBCLAVIAN_ARTERY), _ARTERY),
    **dict.fromkeys((ids.LEFT_BRACHIOCEPHALIC_VEIN, ids.RIGHT_BRACHIOCEPHALIC_VEIN), (40, 190, 140, 112, 22)),
}  # fmt: skip
_TISSUE_HU: Final[dict[int, Row]] = {
    ids.TISSUE_FAT: (-102, -102, -101, -101, 4),
    ids.TISSUE_SUBCUTANEOUS: (-106, -106, -106, -106, 4),
    ids.TISSUE_MUSCLE: _MUSCLE,
    ids.TISSUE_SOFT: (40, 62, 82, 84, 7),
    ids.TISSUE_DISC: (82, 82, 84, 84, 6),
    ids.TISSUE_VESSEL: _VEIN,
}
_FALLBACK: Final[Row] = (40, 60, 80, 75, 5)  # labels the phantoms never paint (brain, free slots): soft tissue
# Standard deviation of the slow texture inside an organ, HU.
_TEXTURE_HU: Final[dict[int, float]] = {
    **dict.fromkeys(range(256), 4.0),
    ids.LIVER: 4.5, ids.SPLEEN: 5.0, ids.PANCREAS: 11.0, ids.GALLBLADDER: 1.5, ids.BLADDER: 1.5, ids.HEART: 4.0,
    **dict.fromkeys(ids.LUNG_LOBES, 16.0), **dict.fromkeys(ids.BONES, 42.0), **dict.fromkeys(ids.MUSCLES, 7.0),
    ids.TRACHEA: 0.0, ids.AIRWAY: 0.0, ids.COSTAL_CARTILAGE: 12.0, ids.BODY: 6.0, ids.BACKGROUND: 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Appearance:
    """Appearance of one scan: HU of organs and tissues, kernel and noise.

    Attributes:
        phase: Contrast phase.
        organ_hu: ``(256,)`` float32 mean HU by label id; label 200 is looked up in ``tissue_hu``.
        tissue_hu: ``(8,)`` float32 mean HU by tissue id.
        texture_hu: ``(256,)`` float32 standard deviation of the slow texture by label id.
        blood_hu: HU of the left and the right blood pool.
        cortex_hu: HU of compact bone, as averaged by a voxel of about 3 mm.
        kernel_voxels: Standard deviation of the reconstruction kernel in voxels.
        noise_hu: Standard deviation of the noise after the kernel.
        noise_grain_voxels: Correlation length of the noise.
    """

    phase: Phase
    organ_hu: NDArray[np.float32]
    tissue_hu: NDArray[np.float32]
    texture_hu: NDArray[np.float32]
    blood_hu: tuple[float, float]
    cortex_hu: float
    kernel_voxels: float
    noise_hu: float
    noise_grain_voxels: float


def draw_phase(seed: int) -> Phase:
    """Draw the contrast phase of a phantom from its seed."""
    return PHASES[int(numpy_generator(seed, "phase").choice(len(PHASES), p=_PHASE_WEIGHTS))]


def draw_appearance(seed: int, phase: Phase) -> Appearance:
    """Draw the HU of organs, the reconstruction kernel and the noise of one scan.

    Left and right partners share their draw, so that a patient is consistent.

    Args:
        seed: Seed of the patient.
        phase: Contrast phase of the scan.
    """
    rng = numpy_generator(seed, "appearance")
    column = PHASES.index(phase)
    draws: dict[Row, float] = {}

    def draw(row: Row) -> float:
        if row not in draws:
            draws[row] = row[column] + row[4] * float(np.clip(rng.standard_normal(), -1.8, 1.8))
        return draws[row]

    organ = np.array([draw(_ORGAN_HU.get(label, _FALLBACK)) for label in range(256)], dtype=np.float32)
    tissue = np.array([draw(_TISSUE_HU.get(number, _FALLBACK)) for number in range(8)], dtype=np.float32)
    organ[ids.BACKGROUND] = -1000.0
    artery = float(organ[ids.AORTA])
    right_shift = {"non-contrast": 0.0, "arterial": -60.0, "portal": -2.0, "delayed": 0.0}[phase]
    sharpness = float(rng.random())
    return Appearance(
        phase=phase,
        organ_hu=organ,
        tissue_hu=tissue,
        texture_hu=np.array([_TEXTURE_HU[label] for label in range(256)], dtype=np.float32),
        blood_hu=(artery - 4.0, artery + right_shift * float(rng.uniform(0.3, 1.7))),
        cortex_hu=float(rng.uniform(440, 640)),
        kernel_voxels=0.80 - 0.33 * sharpness,
        noise_hu=float(np.clip(7.0 + 8.0 * sharpness + rng.normal(0, 2.0), 6.0, 18.0)),
        noise_grain_voxels=0.95 - 0.40 * sharpness,
    )
