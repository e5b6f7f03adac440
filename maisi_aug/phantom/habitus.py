"""Habitus of a patient: size, fat, sex and organ sizes, drawn once per seed and independent of the window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np

from maisi_aug.system.seeds import numpy_generator

Variety = Literal["fitting", "any"]
VARIETIES: Final[tuple[Variety, ...]] = get_args(Variety)
WIDTH_LIMIT_MM: Final = 372.0
DEPTH_LIMIT_MM: Final = 272.0
FASCIA_WIDTH_MM: Final = 318.0  # widest muscle surface of the canonical body, at the hips
FASCIA_DEPTH_MM: Final = 216.0


@dataclass(frozen=True)
class Habitus:
    """Body build of one patient: size, fat, muscles, sex and breathing position.

    Attributes:
        scale: Stretch of the canonical body along R, A, S.
        subcutaneous_mm: Mean thickness of the fat under the skin.
        visceral_fat: 0 (organs packed closely) to 1 (much mesenteric and retroperitoneal fat).
        belly_mm: How far the abdominal wall bulges forwards beyond the standard one, in mm.
        is_female: Breasts and uterus, or a prostate.
        inspiration_mm: Height of the diaphragm relative to the canonical one, positive = expired (higher domes).
        muscle: Thickness factor of the muscles.
    """

    scale: tuple[float, float, float]
    subcutaneous_mm: float
    visceral_fat: float
    belly_mm: float
    is_female: bool
    inspiration_mm: float
    muscle: float


def draw_habitus(seed: int, *, variety: Variety = "fitting") -> Habitus:
    """Draw a body build.

    Args:
        seed: Seed of the patient.
        variety: ``fitting``: usual adults whose outline fits into 410 x 307 mm; ``any``: from slight to obese, about
            270 to 480 mm wide.
    """
    rng = numpy_generator(seed, "habitus")
    is_female = bool(rng.random() < 0.5)
    size = rng.normal(0.955 if is_female else 0.99, 0.03)
    scale_x, scale_y, scale_z = np.clip(size + rng.normal(0, (0.025, 0.035, 0.025)), 0.87, 1.09)
    visceral = float(rng.beta(1.6, 1.8))
    subcutaneous = 6.0 + 32.0 * float(rng.beta(1.5, 2.1)) * (1.15 if is_female else 0.9)
    belly = float(np.clip(22.0 * visceral - 8.0 + rng.normal(0, 4.0), -12.0, 22.0))
    room_x = 0.5 * (WIDTH_LIMIT_MM - FASCIA_WIDTH_MM * scale_x)
    room_y = 0.5 * (DEPTH_LIMIT_MM - FASCIA_DEPTH_MM * scale_y - max(belly, 0.0))
    thickest = max(5.0, min(room_x / 1.12, room_y / 1.35))
    if variety == "any":
        more = numpy_generator(seed, "habitus, any")
        factor, stockiness = float(more.uniform(0.79, 1.15)), float(more.uniform(0.95, 1.06))
        scale_x, scale_y, scale_z = factor * stockiness * scale_x, factor * stockiness * scale_y, factor * scale_z
        thickest = 60.0
        subcutaneous = 3.0 + 57.0 * float(more.beta(0.8, 2.0))
    return Habitus(
        scale=(float(scale_x), float(scale_y), float(scale_z)),
        subcutaneous_mm=float(np.clip(subcutaneous, 4.0, thickest)),
        visceral_fat=visceral,
        belly_mm=belly,
        is_female=is_female,
        inspiration_mm=float(np.clip(rng.normal(2.0, 9.0), -16.0, 22.0)),
        muscle=float(np.clip(rng.normal(0.95 if is_female else 1.05, 0.08), 0.75, 1.25)),
    )


def jitter(seed: int, organ: str, *, shift_mm: float = 4.0, spread: float = 0.06) -> tuple[np.ndarray, float]:
    """Return a random shift ``(3,)`` in mm and a size factor for an organ, from the organ's own stream.

    Args:
        seed: Seed of the patient.
        organ: Name of the organ, which has random numbers of its own.
        shift_mm: Largest shift along every axis, in mm.
        spread: Standard deviation of the logarithm of the size factor.
    """
    rng = numpy_generator(seed, f"organ {organ}")
    shift = np.clip(rng.normal(0, shift_mm / 2, 3), -shift_mm, shift_mm)
    return shift, float(np.exp(np.clip(rng.normal(0, spread), -2.2 * spread, 2.2 * spread)))
