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
_MUSCLE: Final[Row] = (51, 55, 60, 60, 6)
_LUNG: Final[Row] = (-862, -860, -858, -858, 20)
_BONE: Final[Row] = (150, 153, 160, 160, 38)  # marrow with its trabeculae; the cortex has an id of its own
_FATTY_BONE: Final[Row] = (105, 107, 112, 112, 28)
_GUT: Final[Row] = (36, 62, 78, 68, 6)  # wall
_RENAL_CORTEX: Final[Row] = (34, 168, 182, 160, 9)
_HU: Final[dict[int, Row]] = {
    ids.LIVER: (57, 66, 107, 92, 7),
    ids.SPLEEN: (48, 112, 122, 98, 6),
    ids.PANCREAS: (42, 95, 96, 80, 6),
    ids.RIGHT_KIDNEY: _RENAL_CORTEX,
    ids.LEFT_KIDNEY: _RENAL_CORTEX,
    ids.KIDNEY_MEDULLA: (32, 85, 152, 158, 8),
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
    ids.HEART: (41, 105, 118, 104, 7),  # myocardium
    ids.LEFT_BLOOD_POOL: (40, 295, 148, 112, 13),
    ids.RIGHT_BLOOD_POOL: (40, 235, 146, 112, 24),
    ids.LEFT_KIDNEY_CYST: (6, 7, 8, 8, 3),
    ids.RIGHT_KIDNEY_CYST: (6, 7, 8, 8, 3),
    ids.PROSTATE: (40, 58, 72, 74, 6),
    ids.PULMONARY_VEIN: (40, 280, 148, 112, 12),
    ids.SPINAL_CORD: (32, 34, 36, 36, 4),
    ids.SUPERIOR_VENA_CAVA: (40, 240, 145, 112, 18),
    ids.THYROID: (96, 160, 140, 125, 12),
    **dict.fromkeys(ids.LUNG_LOBES, _LUNG),
    **dict.fromkeys(ids.BONES, _BONE),
    **dict.fromkeys(range(ids.LEFT_HUMERUS, ids.SACRUM + 1), _FATTY_BONE),
    **dict.fromkeys(ids.MUSCLES, _MUSCLE),
    **dict.fromkeys((ids.LEFT_ILIAC_ARTERY, ids.RIGHT_ILIAC_ARTERY), (41, 285, 148, 112, 14)),
    **dict.fromkeys((ids.LEFT_ILIAC_VEIN, ids.RIGHT_ILIAC_VEIN), (40, 50, 112, 112, 8)),
    **dict.fromkeys(
        (ids.BRACHIOCEPHALIC_TRUNK, ids.LEFT_COMMON_CAROTID, ids.RIGHT_COMMON_CAROTID, ids.LEFT_SUBCLAVIAN_ARTERY,
         ids.RIGHT_SUBCLAVIAN_ARTERY), _ARTERY),
    **dict.fromkeys((ids.LEFT_BRACHIOCEPHALIC_VEIN, ids.RIGHT_BRACHIOCEPHALIC_VEIN), (40, 190, 140, 112, 22)),
    ids.VISCERAL_FAT: (-104, -104, -103, -103, 4),
    ids.SUBCUTANEOUS_FAT: (-107, -107, -107, -107, 4),
    ids.UNLABELLED_MUSCLE: _MUSCLE,
    ids.SOFT_TISSUE: (40, 62, 82, 84, 7),
    ids.DISC: (82, 82, 84, 84, 6),
    ids.UNLABELLED_VESSEL: (40, 120, 140, 105, 12),
    ids.SKIN: (-8, -8, -6, -6, 14),
    ids.CORTICAL_BONE: (540, 540, 540, 540, 60),
    ids.THIN_CORTEX: (400, 400, 400, 400, 45),
    ids.THICK_CORTEX: (920, 920, 920, 920, 100),
    ids.STOOL_GAS: (-150, -150, -150, -150, 30),
    ids.DENSE_STOOL: (48, 48, 48, 48, 18),
    ids.FAT_STRAND: (-78, -78, -76, -76, 5),
    ids.MUSCLE_STREAK: (32, 36, 41, 41, 5),
    ids.GUT_GAS: (-965, -965, -965, -965, 12),
    ids.GUT_FLUID: (18, 18, 18, 18, 8),
    ids.STOOL: (12, 12, 12, 12, 18),
    ids.ORAL_CONTRAST: (190, 190, 190, 190, 55),
    ids.FASCIA: (-40, -40, -37, -37, 20),  # thinner than a voxel
    ids.LUNG_VESSEL: (-40, 30, 10, -10, 25),
    ids.LUNG_LINE: (-690, -680, -680, -682, 25),  # thinner than a voxel
}  # fmt: skip
_FALLBACK: Final[Row] = (42, 56, 72, 68, 5)  # other soft tissue of the vocabulary
_ENHANCEMENT_SPREAD: Final = 0.13  # dose of contrast per weight, and how fast the heart moves it
# Standard deviation of the slow texture inside an organ, HU.
_TEXTURE_HU: Final[dict[int, float]] = {
    **dict.fromkeys(range(256), 4.0),
    ids.LIVER: 4.0, ids.SPLEEN: 4.0, ids.PANCREAS: 11.0, ids.GALLBLADDER: 1.5, ids.BLADDER: 1.5, ids.HEART: 4.0,
    **dict.fromkeys(ids.LUNG_LOBES, 16.0), **dict.fromkeys(ids.BONES, 42.0), **dict.fromkeys(ids.MUSCLES, 5.0),
    ids.TRACHEA: 0.0, ids.AIRWAY: 0.0, ids.COSTAL_CARTILAGE: 12.0, ids.BACKGROUND: 0.0,
    ids.LEFT_BLOOD_POOL: 2.0, ids.RIGHT_BLOOD_POOL: 5.0, **dict.fromkeys(ids.CORTICES, 0.0), ids.GUT_GAS: 0.0,
    ids.LUNG_VESSEL: 40.0, ids.LUNG_LINE: 40.0, ids.ORAL_CONTRAST: 18.0, ids.STOOL: 12.0,
}  # fmt: skip


@dataclass(frozen=True)
class Appearance:
    """Appearance of one scan: HU of organs and tissues, kernel and noise.

    Attributes:
        phase: Contrast phase.
        hu: ``(256,)`` float32 mean HU by id of the detail map.
        texture_hu: ``(256,)`` float32 standard deviation of the slow texture by id of the detail map.
        sharpness: Reconstruction kernel, from 0 (soft) to 1 (sharp).
        slice_mm: Thickness of the slices that the scanner reconstructed.
        noise_hu: Standard deviation of the noise in slices of 0.75 mm pixels.
    """

    phase: Phase
    hu: NDArray[np.float32]
    texture_hu: NDArray[np.float32]
    sharpness: float
    slice_mm: float
    noise_hu: float


def draw_phase(seed: int) -> Phase:
    """Draw the contrast phase of a phantom from its seed."""
    return PHASES[int(numpy_generator(seed, "phase").choice(len(PHASES), p=_PHASE_WEIGHTS))]


def mean_hu(phase: Phase) -> NDArray[np.float32]:
    """Return the mean HU over patients of every id of a detail map in a contrast phase, ``(256,)``."""
    column = PHASES.index(phase)
    return np.array([_HU.get(number, _FALLBACK)[column] for number in range(256)], dtype=np.float32)


def draw_appearance(seed: int, phase: Phase) -> Appearance:
    """Draw the HU of organs, the reconstruction kernel and the noise of one scan.

    Left and right partners share their draw, and one dose of contrast scales the enhancement of all organs, so that a
    patient is consistent.

    Args:
        seed: Seed of the patient.
        phase: Contrast phase of the scan.
    """
    rng = numpy_generator(seed, "appearance")
    column = PHASES.index(phase)
    dose = 1 + _ENHANCEMENT_SPREAD * float(np.clip(rng.standard_normal(), -1.8, 1.8))
    draws: dict[Row, float] = {}

    def draw(row: Row) -> float:
        if row not in draws:
            own = row[4] * float(np.clip(rng.standard_normal(), -1.8, 1.8))
            draws[row] = row[0] + dose * (row[column] - row[0]) + own
        return draws[row]

    hu = np.array([draw(_HU.get(number, _FALLBACK)) for number in range(256)], dtype=np.float32)
    hu[ids.BACKGROUND] = -1000.0
    sharpness = float(rng.beta(1.1, 1.6))
    return Appearance(
        phase=phase,
        hu=hu,
        texture_hu=np.array([_TEXTURE_HU[number] for number in range(256)], dtype=np.float32),
        sharpness=sharpness,
        slice_mm=float(rng.choice((1.0, 1.5, 2.0, 2.5, 3.0, 5.0))),
        noise_hu=float(np.clip(11.0 + 16.0 * sharpness + rng.normal(0, 3.0), 7.0, 34.0)),
    )
