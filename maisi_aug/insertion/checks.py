"""The gates of an inserted lesion: against the real surroundings, voxel by voxel where nothing may have changed.

Their bounds were set on the real nodules of LIDC-IDRI's train patients, so that nearly all of those pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.gates.checks import Verdict
from maisi_aug.insertion.painting import Texture, find_fine_structure, measure_noise, robust_deviation
from maisi_aug.volumes.components import Mask
from maisi_aug.volumes.grid import Spacing

RING_MM = (2.0, 8.0)
"""Distance from the lesion of the lung that it is compared with."""
RIM_MM = 1.5
THIN_RANGE_HU = 200.0
"""Lung that is denser than the median by more is taken for vessels."""
LEAST_VOXELS = 12
LEAST_CONTRAST_HU: Mapping[Texture, float] = {"solid": 350.0, "part-solid": 200.0, "ground-glass": 100.0, "soft": 10.0}
CONTRAST_TOLERANCE = 0.25
LEAST_EDGE = 0.2
"""Share of the contrast by which the rim inside differs from that outside."""
NOISE_RATIOS = (0.75, 2.2)
LEAST_INNER_NOISE: Mapping[Texture, float] = {"solid": 0.9, "part-solid": 0.9, "ground-glass": 0.9, "soft": 0.5}
LEAST_CNR = 3.0
"""An edge is not judged where the contrast is a smaller multiple of the noise."""
MOST_SEAM = 1.35


@dataclass(frozen=True, slots=True)
class LesionLook:
    """Measurements of a lesion's appearance in a CT, relative to its surroundings.

    Attributes:
        contrast_hu: Median HU of the lesion without its rim, minus that of the lung around it.
        edge: Difference between inner and outer rim as a share of the contrast; 1 for a step.
        noise_hu: Standard deviation in HU of the fine structure in the surrounding lung.
        noise_ratio: Noise of the lung in the zone relative to that outside; nan if the zone has no lung.
        inner_noise_ratio: Noise of the lesion relative to that of the surrounding lung.
        seam: HU steps across the border of the zone, relative to steps beside it.
    """

    contrast_hu: float
    edge: float
    noise_hu: float
    noise_ratio: float
    inner_noise_ratio: float
    seam: float


def measure_look(
    image_hu: NDArray[Any],
    lesion: Mask,
    lung: Mask,
    zone: Mask,
    spacing_mm: Spacing,
    *,
    before_hu: NDArray[Any] | None = None,
) -> LesionLook:
    """Measure a lesion's contrast, edge, noise and seam in a crop of a CT.

    Args:
        image_hu: ``(I, J, K)`` crop in HU.
        lesion: ``(I, J, K)`` mask of the lesion.
        lung: ``(I, J, K)`` mask of the host organ (the lung for nodules) without lesions, vessels included.
        zone: ``(I, J, K)`` mask of voxels that were drawn.
        spacing_mm: Voxel sides along I, J, K in mm.
        before_hu: ``(I, J, K)`` crop before the insertion, whose own steps are not a seam; None for a real lesion.
    """
    image = image_hu.astype(np.float32)
    outside_mm = ndimage.distance_transform_edt(~lesion, sampling=spacing_mm)
    inside_mm = ndimage.distance_transform_edt(lesion, sampling=spacing_mm)
    ring = lung & (outside_mm >= RING_MM[0]) & (outside_mm <= RING_MM[1])
    core = inside_mm > min(RIM_MM, 0.6 * float(inside_mm.max()))
    lung_hu = _median(image, ring)
    contrast_hu = _median(image, core) - lung_hu
    rim_mm = max(RIM_MM, 1.01 * min(spacing_mm))
    rims = lesion & (inside_mm <= rim_mm), lung & (outside_mm > 0) & (outside_mm <= rim_mm)
    edge = (_mean(image, rims[0]) - _mean(image, rims[1])) / contrast_hu if contrast_hu else 0.0
    thin = lung & (image < lung_hu + THIN_RANGE_HU) & (outside_mm > rim_mm)
    fine = find_fine_structure(image, thin, spacing_mm)
    noise_hu, zone_hu = robust_deviation(fine[thin & ~zone]), robust_deviation(fine[thin & zone])
    has_zone = noise_hu > 0 and int((thin & zone).sum()) >= LEAST_VOXELS
    inner_hu = measure_noise(image, lesion, spacing_mm)
    return LesionLook(
        contrast_hu,
        edge,
        noise_hu,
        zone_hu / noise_hu if has_zone else float("nan"),
        inner_hu / noise_hu if noise_hu else float("inf"),
        _measure_seam(image, lung, zone, None if before_hu is None else before_hu.astype(np.float32)),
    )


def judge_look(
    look: LesionLook, texture: Texture, *, sign: int = 1, wanted_hu: float | None = None
) -> tuple[Verdict, ...]:
    """Return the verdicts of the gates on contrast, edge, noise and seam of an inserted lesion.

    Args:
        look: Measurements of the lesion.
        texture: Requested texture.
        sign: Whether the lesion is to be brighter (1) or darker (-1) than its host, or either (0).
        wanted_hu: Requested contrast in HU; None if none was requested.
    """
    return (
        _judge_contrast(look, texture, sign) if wanted_hu is None else _judge_wanted_contrast(look, wanted_hu),
        Verdict(
            "lesion edge",
            bool(look.edge >= LEAST_EDGE or abs(look.contrast_hu) < LEAST_CNR * look.noise_hu),
            {"edge": look.edge, "least": LEAST_EDGE},
            f"Lesion edge: expected a step of at least {LEAST_EDGE:.0%} of the contrast over {2 * RIM_MM:g} mm, "
            f"found {look.edge:.0%}.",
        ),
        _judge_noise(look, texture),
        Verdict(
            "seam",
            bool(np.isnan(look.seam) or look.seam <= MOST_SEAM),
            {"ratio": look.seam, "most": MOST_SEAM},
            f"Seam: steps at the border of the edited zone must be at most {MOST_SEAM:g} times those next to it, "
            f"found {look.seam:.2f}.",
        ),
    )


def _judge_contrast(look: LesionLook, texture: Texture, sign: int) -> Verdict:
    least = LEAST_CONTRAST_HU[texture]
    contrast_hu = look.contrast_hu * sign if sign else abs(look.contrast_hu)
    return Verdict(
        "lesion contrast",
        bool(contrast_hu >= least),
        {"contrast_hu": look.contrast_hu, "least_hu": least},
        f"Lesion contrast: expected at least {least * (sign or 1):+g} HU to the {_host(texture)} around, found "
        f"{look.contrast_hu:+.0f} HU.",
    )


def _judge_wanted_contrast(look: LesionLook, wanted_hu: float) -> Verdict:
    """The surroundings of a lesion are not even: what the noise and a quarter of the contrast hide is not an error."""
    most_hu = max(CONTRAST_TOLERANCE * abs(wanted_hu), look.noise_hu)
    return Verdict(
        "lesion contrast",
        bool(abs(look.contrast_hu - wanted_hu) <= most_hu),
        {"contrast_hu": look.contrast_hu, "wanted_hu": wanted_hu},
        f"Lesion contrast: expected {wanted_hu:+g} HU to the host around it, within {most_hu:.0f} HU, found "
        f"{look.contrast_hu:+.0f} HU.",
    )


def _judge_noise(look: LesionLook, texture: Texture) -> Verdict:
    (low, high), least_inner = NOISE_RATIOS, LEAST_INNER_NOISE[texture]
    is_alike = np.isnan(look.noise_ratio) or low <= look.noise_ratio <= high
    return Verdict(
        "noise texture",
        bool(is_alike and look.inner_noise_ratio >= least_inner),
        {"noise_hu": look.noise_hu, "zone_to_host": look.noise_ratio, "lesion_to_host": look.inner_noise_ratio},
        f"Noise texture: expected {low:g} to {high:g} times the noise of the surrounding {_host(texture)} "
        f"({look.noise_hu:.0f} HU) in the zone and at least {least_inner:g} in the lesion, found "
        f"{look.noise_ratio:.2f} and {look.inner_noise_ratio:.2f}.",
    )


def _host(texture: Texture) -> str:
    return "host" if texture == "soft" else "lung"


def check_untouched(before: NDArray[Any], after: NDArray[Any], zone: Mask) -> Verdict:
    """Check that no voxel outside the drawn zone has changed.

    Args:
        before: ``(I, J, K)`` CT before the insertion.
        after: ``(I, J, K)`` CT after the insertion.
        zone: ``(I, J, K)`` mask of voxels that may change.
    """
    num_changed = int(np.count_nonzero((before != after) & ~zone))
    message = f"Untouched: expected no change outside the zone, found {num_changed} changed voxels."
    return Verdict("untouched", num_changed == 0, {"num_changed": num_changed}, message)


def _measure_seam(image: NDArray[np.float32], lung: Mask, zone: Mask, before: NDArray[np.float32] | None) -> float:
    """Median step between neighbours in a slice across the zone's border, to that next to it or, if larger, before."""
    near = ndimage.binary_dilation(zone, iterations=4) & ~zone
    across, beside, earlier = [], [], []
    for axis in (0, 1):
        first = tuple(slice(None, -1) if other == axis else slice(None) for other in range(3))
        second = tuple(slice(1, None) if other == axis else slice(None) for other in range(3))
        both = lung[first] & lung[second]
        border, plain = both & (zone[first] != zone[second]), both & near[first] & near[second]
        step = np.abs(np.diff(image, axis=axis))
        across.append(step[border])
        beside.append(step[plain])
        earlier.append(step[border] if before is None else np.abs(np.diff(before, axis=axis))[border])
    crossing, usual, own = (np.concatenate(steps) for steps in (across, beside, earlier))
    if len(crossing) < LEAST_VOXELS or len(usual) < LEAST_VOXELS:
        return float("nan")
    expected = float(np.median(usual)) if before is None else max(float(np.median(usual)), float(np.median(own)))
    return float(np.median(crossing)) / max(expected, 1.0)


def _median(image: NDArray[np.float32], where: Mask) -> float:
    return float(np.median(image[where])) if where.any() else float("nan")


def _mean(image: NDArray[np.float32], where: Mask) -> float:
    return float(image[where].mean()) if where.any() else float("nan")
