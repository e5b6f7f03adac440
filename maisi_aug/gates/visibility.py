"""The gate for lesions: whether each can be seen against the host around it.

Arrays have axes ``I J K``; intensities are Hounsfield units. Like every gate, it never raises on a bad case.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.gates.checks import Verdict, shape_verdict
from maisi_aug.volumes.components import TOUCHING, Mask, bounding_box, connected_parts, is_any_of
from maisi_aug.volumes.grid import voxel_volume_ml

MIN_SHELL_VOXELS = 12
SMALL_LESION_MM = 10.0
"""Lesions of a smaller equivalent diameter are judged on the sign of their contrast alone: most of their voxels are
partly host, so that their contrast says more about the voxel than about the lesion."""
SHELL_VOXELS = 3
NOISE_FLOOR_HU = 1.0
"""CT numbers are integers; a noise below their step is not measurable."""


def check_lesion_visibility(
    image_hu: NDArray[Any],
    label_map: NDArray[Any],
    lesion: Mask,
    *,
    host_ids: Sequence[int],
    tumor_ids: Sequence[int],
    expected_sign: int,
    spacing_mm: Sequence[float],
    minimum_cnr: float = 1.0,
) -> Verdict:
    """A lesion differs from the host around it, in the right direction and by more than the noise.

    Contrast is the median of the lesion's core (its voxels that touch no other, where there are enough) minus the
    median of its host within three voxels, without the voxels next to the lesion where enough are left. Noise is the
    robust standard deviation (1.4826 x median absolute deviation) of that host after a linear trend is removed. Where
    there is too little host, all nearby body voxels without tumor stand in for it, and either direction is right.
    Lesions under 10 mm of equivalent diameter are judged on the sign alone.

    Args:
        image_hu: ``(I, J, K)`` intensities.
        label_map: ``(I, J, K)`` label ids.
        lesion: ``(I, J, K)`` mask of one lesion.
        host_ids: Ids that the lesion may have grown in.
        tumor_ids: Ids of all tumors, those of bound slots included; they are no surroundings to compare with.
        expected_sign: 1 for brighter than the host, -1 for darker, 0 for either.
        spacing_mm: Voxel sides along I, J, K in millimetres.
        minimum_cnr: How many times the noise the contrast has to be.
    """
    gate = "lesion visibility"
    if not image_hu.shape == label_map.shape == lesion.shape:
        return shape_verdict(gate, image_hu, label_map)
    if not lesion.any():
        return Verdict(gate, False, {"num_voxels": 0}, "Lesion visibility: expected a lesion, found an empty mask.")
    box = bounding_box(lesion, margin=SHELL_VOXELS + 1)
    values, mask = image_hu[box].astype(np.float64), lesion[box]
    shell, surroundings = _find_shell(label_map[box], mask, host_ids, tumor_ids)
    if not shell.any() or not np.isfinite(values[shell | mask]).all():
        figures = {"num_voxels": int(mask.sum()), "num_surrounding_voxels": int(shell.sum())}
        message = "Lesion visibility: expected finite HU in the lesion and in body around it, found none."
        return Verdict(gate, False, figures, message)
    measured = _measure_contrast(values, mask, shell, spacing_mm)
    contrast_hu, noise_hu = measured["contrast_hu"], measured["noise_hu"]
    # The sign is that against the host: a dark tumour that has left little of its kidney is bright beside fat.
    sign = expected_sign if surroundings == "host" else 0
    right_sign = contrast_hu * sign > 0 if sign else contrast_hu != 0
    on_sign_alone = measured["diameter_mm"] < SMALL_LESION_MM
    passed = right_sign and (on_sign_alone or abs(contrast_hu) >= minimum_cnr * noise_hu)
    wanted = {1: "brighter", -1: "darker", 0: "brighter or darker"}[sign]
    message = (
        f"Lesion visibility: expected a lesion {wanted} than its {surroundings} by {minimum_cnr:g} x {noise_hu:.0f} HU "
        f"of noise, found {contrast_hu:+.0f} HU at {measured['diameter_mm']:.1f} mm."
    )
    figures = measured | {
        "surroundings": surroundings,
        "minimum_cnr": minimum_cnr,
        "expected_sign": sign,
        "right_sign": right_sign,
        "judged_on_sign_alone": on_sign_alone,
    }
    return Verdict(gate, passed, figures, message)


def check_label_visibility(
    image_hu: NDArray[Any],
    label_map: NDArray[Any],
    label_id: int,
    *,
    host_ids: Sequence[int],
    tumor_ids: Sequence[int],
    expected_sign: int,
    spacing_mm: Sequence[float],
    minimum_cnr: float = 1.0,
) -> tuple[Verdict, ...]:
    """``check_lesion_visibility`` for each connected lesion of a label, in scan order; empty if there is none."""
    verdicts = []
    for part, lesion in connected_parts(label_map == label_id):
        margins = [(min(SHELL_VOXELS + 1, side.start), SHELL_VOXELS + 1) for side in part]
        box = tuple(slice(side.start - low, side.stop + high) for side, (low, high) in zip(part, margins, strict=True))
        near = np.zeros(label_map[box].shape, dtype=bool)
        near[tuple(slice(low, low + side) for (low, _), side in zip(margins, lesion.shape, strict=True))] = lesion
        verdicts.append(
            check_lesion_visibility(
                image_hu[box],
                label_map[box],
                near,
                host_ids=host_ids,
                tumor_ids=tumor_ids,
                expected_sign=expected_sign,
                spacing_mm=spacing_mm,
                minimum_cnr=minimum_cnr,
            )
        )
    return tuple(verdicts)


def _measure_contrast(
    values: NDArray[np.float64], lesion: Mask, shell: Mask, spacing_mm: Sequence[float]
) -> dict[str, Any]:
    lesion_hu, host_hu = float(np.median(values[_core(lesion)])), float(np.median(values[shell]))
    noise_hu = max(_noise_hu(values, shell), NOISE_FLOOR_HU)
    num_voxels = int(lesion.sum())
    return {
        "num_voxels": num_voxels,
        "num_surrounding_voxels": int(shell.sum()),
        "diameter_mm": (6000.0 * num_voxels * voxel_volume_ml(spacing_mm) / math.pi) ** (1.0 / 3.0),
        "lesion_hu": lesion_hu,
        "host_hu": host_hu,
        "contrast_hu": lesion_hu - host_hu,
        "noise_hu": noise_hu,
        "cnr": abs(lesion_hu - host_hu) / noise_hu,
    }


def _core(lesion: Mask) -> Mask:
    """The lesion without its rim, which shares voxels with the host; the whole lesion if little would be left."""
    core = ndimage.binary_erosion(lesion)
    return core if np.count_nonzero(core) >= max(8, 0.1 * np.count_nonzero(lesion)) else lesion


def _find_shell(
    label_map: NDArray[Any], lesion: Mask, host_ids: Sequence[int], tumor_ids: Sequence[int]
) -> tuple[Mask, str]:
    """What the lesion is compared with, and whether that is its host or any body."""
    near = ndimage.binary_dilation(lesion, TOUCHING, iterations=SHELL_VOXELS) & ~lesion
    apart = near & ~ndimage.binary_dilation(lesion, TOUCHING)
    host = is_any_of(label_map, host_ids)
    body = (label_map != 0) & ~lesion & ~is_any_of(label_map, tumor_ids)
    for tissue, name in ((host, "host"), (body, "body")):
        for ring in (apart, near):
            if np.count_nonzero(tissue & ring) >= MIN_SHELL_VOXELS:
                return tissue & ring, name
    return near & body, "body"


def _noise_hu(values: NDArray[np.float64], shell: Mask) -> float:
    """Robust standard deviation about a linear trend that is fitted without outliers."""
    found = values[shell]
    residual = found - np.median(found)
    if found.size >= MIN_SHELL_VOXELS:
        design = np.column_stack([np.ones(found.size), np.argwhere(shell)])
        for _ in range(2):
            usual = np.abs(residual - np.median(residual)) <= 3.0 * _robust_deviation(residual) + 1e-6
            weights, *_ = np.linalg.lstsq(design[usual], found[usual], rcond=None)
            residual = found - design @ weights
    return _robust_deviation(residual)


def _robust_deviation(values: NDArray[np.float64]) -> float:
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))
