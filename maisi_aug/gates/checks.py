"""Quality gates: each compares a case with what was requested and returns a verdict with its figures.

A gate never raises on a bad image or label map: whatever is wrong is a verdict that did not pass, so that one bad case
never stops a cohort. Arrays have axes ``I J K``; intensities are Hounsfield units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import VolumeError
from maisi_aug.lesions.lesion import GrowthRule, Lesion
from maisi_aug.vocabulary.hu import MIN_ORGAN_VOXELS, HuRange, _reference, reference_hu_ranges
from maisi_aug.vocabulary.labels import MAISI, Vocabulary
from maisi_aug.volumes.body import find_body
from maisi_aug.volumes.components import TOUCHING, Mask, bounding_box, connected_parts, is_any_of
from maisi_aug.volumes.grid import Grid, Spacing, voxel_volume_ml

MIN_BIAS_ORGANS = 2
PLAUSIBLE_HU = (-1100.0, 4000.0)
PLAUSIBLE_MR = (0.0, 10_000.0)
"""Ten times the intensity that the networks represent as 1: no real image is as bright."""
MIN_SHAPE_VOXELS = 30
"""Lesions with fewer voxels have no meaningful shape."""
MIN_SHELL_VOXELS = 12
SMALL_LESION_MM = 10.0
"""Lesions of a smaller equivalent diameter are judged on the sign of their contrast alone: most of their voxels are
partly host, so that their contrast says more about the voxel than about the lesion."""
SHELL_VOXELS = 3
NOISE_FLOOR_HU = 1.0
"""CT numbers are integers; a noise below their step is not measurable."""
TISSUE_HU = (-200.0, 200.0)
"""HU of fat, muscle and parenchyma: everything except air, lung and bone."""
BODY_SHARE = (0.01, 0.98)
"""Range of the body's share of the field of view: from a neck in a wide one (0.03 among the planning CTs of OpenKBP) to
a trunk that leaves air in the corners only.
"""
MIN_TISSUE_SHARE = 0.2
"""Smallest share of soft tissue in the body; in a chest with large lungs it is about half."""
ANATOMY_SHARE = (0.02, 0.9)
"""Range of the share of the field of view that is brighter than Otsu's threshold."""
MAX_EDGE_SHARE = 0.35
"""Largest share of neighbouring voxels that lie on either side of that threshold: 0.5 in white noise, 0.14 in nibabel's
example of a T1 image, a crop at 2 mm.
"""
MAX_STEP_HU = 80.0
"""Median difference of neighbours in soft tissue. It is 13 to 28 HU in CTs of TotalSegmentator and OpenKBP at 3 to
5 mm, and more in thin slices; values drawn at random between the two bounds above differ by 117 HU."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of one quality gate on an attempt.

    Attributes:
        gate: Name of the gate: "geometry", "presence", "lesion size", "lesion place", "organ HU", "HU bias", "lesion
            visibility", "patient" or "anatomy".
        passed: Whether the case may be kept as far as this gate is concerned.
        figures: Measured and expected figures.
        message: One sentence for people.
    """

    gate: str
    passed: bool
    figures: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as a JSON-able dict; figures that are not finite become None."""
        plain: dict[str, Any] = _to_plain(
            {"gate": self.gate, "passed": self.passed, "figures": self.figures, "message": self.message}
        )
        return plain


def check_geometry(
    image_hu: NDArray[Any], label_map: NDArray[Any] | None, grid: Grid, expected: Grid, *, is_mr: bool = False
) -> Verdict:
    """Check that image and label map have the expected grid, and that intensities are finite, varying and plausible.

    Args:
        image_hu: ``(I, J, K)`` intensities.
        label_map: ``(I, J, K)`` label ids; None for an image without one.
        grid: Grid of image and label map.
        expected: Requested grid.
        is_mr: Whether intensities are those of MR and not HU.
    """
    finite = np.isfinite(image_hu)
    low, high = (float(image_hu[finite].min()), float(image_hu[finite].max())) if finite.any() else (math.nan, math.nan)
    figures = {
        "image_shape": list(image_hu.shape),
        "label_map_shape": None if label_map is None else list(label_map.shape),
        "expected_shape": list(expected.shape),
        "spacing_mm": list(grid.spacing_mm),
        "expected_spacing_mm": list(expected.spacing_mm),
        "num_not_finite": int(finite.size - np.count_nonzero(finite)),
        **({"lowest": low, "highest": high} if is_mr else {"lowest_hu": low, "highest_hu": high}),
    }
    problems = []
    if image_hu.shape != expected.shape or (label_map is not None and label_map.shape != expected.shape):
        problems.append("shapes that are not the expected one")
    if not grid.is_close(expected):
        problems.append("another grid than expected")
    if not finite.all():
        problems.append(f"{figures['num_not_finite']} values that are not finite")
    if not low < high:
        problems.append("an image without any structure")
    lowest, highest = PLAUSIBLE_MR if is_mr else PLAUSIBLE_HU
    if low < lowest or high > highest:
        problems.append(f"intensities from {low:.0f} to {high:.0f}{'' if is_mr else ' HU'}")
    return _verdict("geometry", figures, problems, "Geometry: the grid is the expected one.")


def check_presence(label_map: NDArray[Any], required_ids: Sequence[int], *, vocabulary: Vocabulary = MAISI) -> Verdict:
    """Check that every required label is present.

    Args:
        label_map: ``(I, J, K)`` label ids.
        required_ids: Ids that must be present.
        vocabulary: Vocabulary of the ids, for the message.
    """
    # Slice by slice, and all ids at once: a user's map may have a hundred of them.
    num_ids = 1 + max(int(label_map.max()), *required_ids, 0)
    found = np.sum([np.bincount(plane.ravel(), minlength=num_ids) for plane in label_map], axis=0)
    counts = {label_id: int(found[label_id]) for label_id in required_ids}
    missing = [label_id for label_id, count in counts.items() if not count]
    figures = {"num_voxels": {str(label_id): count for label_id, count in counts.items()}, "missing_ids": missing}
    problems = [f"{counts[label_id]} voxels of {_name_of(label_id, vocabulary)}" for label_id in missing]
    return _verdict("presence", figures, problems, f"Presence: all {len(counts)} required labels are present.")


def check_lesion_size(
    requested_ml: float | Sequence[float],
    realised_ml: float | Sequence[float],
    voxel_ml: float,
    tolerance: float = 0.10,
) -> Verdict:
    """Check that there are as many lesions as requested, each within the tolerance or two voxels of its size.

    Args:
        requested_ml: Requested volume in mL, or the volumes of all lesions of a label.
        realised_ml: Volumes in mL on the output grid, in any order; the largest is compared with the largest requested.
        voxel_ml: Volume of a voxel in millilitres.
        tolerance: Largest deviation, as a fraction of the requested volume.
    """
    requested = sorted(np.atleast_1d(requested_ml).tolist(), reverse=True)
    realised = sorted(np.atleast_1d(realised_ml).tolist(), reverse=True)
    errors_ml = [found - wanted for wanted, found in zip(requested, realised, strict=False)]
    figures = {
        "requested_ml": requested,
        "realised_ml": realised,
        "errors_ml": errors_ml,
        "voxel_ml": voxel_ml,
        "tolerance": tolerance,
    }
    problems = []
    if len(requested) != len(realised):
        problems.append(f"{len(realised)} lesions where {len(requested)} were requested")
    for wanted, found, error in zip(requested, realised, errors_ml, strict=False):
        # The hair's breadth keeps "exactly two voxels" inside, whatever the division rounds to.
        if not abs(error) <= max(tolerance * wanted, 2.0 * voxel_ml) * (1 + 1e-9):
            problems.append(f"{found:.2f} mL where {wanted:.2f} mL were requested")
    return _verdict(
        "lesion size", figures, problems, f"Lesion size: {len(requested)} of {len(requested)} as requested."
    )


def check_lesion_place(lesions: Sequence[Lesion], rule: GrowthRule, *, is_judged: bool = True) -> Verdict:
    """Check that lesions of a label lie in their host organ to the usual extent, and are compact enough.

    Args:
        lesions: Lesions that a mask source added to the map; earlier ones have no share outside.
        rule: Growth that is usual for the label.
        is_judged: Whether lesions must pass; otherwise the figures are only recorded.
    """
    rows, problems = [], []
    for lesion in lesions:
        volume_ml, outside, spread = lesion.realised_ml or 0.0, lesion.share_outside, lesion.spread
        rows.append({"volume_ml": volume_ml, "share_outside": outside, "spread": spread})
        if outside is not None and outside > rule.max_share_outside + 1e-3:
            problems.append(
                f"{outside:.0%} of {volume_ml:.1f} mL outside the host, at most {rule.max_share_outside:.0%} expected"
            )
        if spread is not None and lesion.num_voxels >= MIN_SHAPE_VOXELS and spread > rule.max_spread + 1e-3:
            problems.append(
                f"{volume_ml:.1f} mL spread {spread:.2f} times as wide as a ball, at most {rule.max_spread:g} expected"
            )
    figures = {
        "lesions": rows,
        "max_share_outside": rule.max_share_outside,
        "max_spread": rule.max_spread,
        "is_judged": is_judged,
    }
    good = f"Lesion place: {len(rows)} of {len(rows)} in their host and compact."
    if problems and not is_judged:
        return Verdict(
            "lesion place",
            True,
            figures,
            f"Lesion place: found {'; '.join(problems)}. Not judged, because the lesions were in the map before.",
        )
    return _verdict("lesion place", figures, problems, good)


def check_organ_hu(image_hu: NDArray[Any], label_map: NDArray[Any], ranges: Sequence[HuRange] | None = None) -> Verdict:
    """Check that the median HU of every organ present lies inside its range.

    Args:
        image_hu: ``(I, J, K)`` image in HU.
        label_map: ``(I, J, K)`` label ids.
        ranges: Bounds per organ; the published ones by default. Append your own for tumors and bound slots.
    """
    if image_hu.shape != label_map.shape:
        return shape_verdict("organ HU", image_hu, label_map)
    rows, problems = [], []
    for bounds in reference_hu_ranges() if ranges is None else ranges:
        values = image_hu[is_any_of(label_map, bounds.label_ids)]
        if values.size == 0:
            continue
        median = float(np.median(values))
        inside, judged = bounds.low_hu <= median <= bounds.high_hu, values.size >= MIN_ORGAN_VOXELS
        usual = bounds.median_hu
        rows.append(
            {
                "organ": bounds.name,
                "median_hu": median,
                "low_hu": bounds.low_hu,
                "high_hu": bounds.high_hu,
                "num_voxels": int(values.size),
                "usual_hu": usual,
                "deviation_hu": None if usual is None else median - usual,
                "inside": inside,
                "judged": judged,
            }
        )
        if judged and not inside:
            problems.append(f"{bounds.name} at {median:.0f} HU outside {bounds.low_hu:.0f} to {bounds.high_hu:.0f}")
    num_judged = sum(bool(row["judged"]) for row in rows)
    figures = {"organs": rows, "num_judged": num_judged, "num_outside": len(problems)}
    return _verdict(
        "organ HU", figures, problems, f"Organ HU: {num_judged} of {num_judged} medians within their range."
    )


def check_hu_bias(organ_hu: Verdict, ranges: Sequence[HuRange], *, max_dark_hu: float, max_bright_hu: float) -> Verdict:
    """Check that the organs of a case, taken together, are about as bright as usual.

    The bias is the median, over the organs, of the deviation of their median HU from the usual one. Bones count as one
    organ, and so do muscles and the lobes of the lungs, however many of them a map names. Contrast medium makes organs
    brighter and nothing makes all of them darker, hence two limits.

    Args:
        organ_hu: Verdict of :func:`check_organ_hu` on the case.
        ranges: The ranges of HU that it was compared with.
        max_dark_hu: Largest accepted bias in HU if organs are too dark.
        max_bright_hu: Largest accepted bias in HU if organs are too bright.
    """
    rows = organ_hu.figures.get("organs", ())
    ids_of = {bounds.name: bounds.label_ids for bounds in ranges}
    groups: dict[str, list[float]] = {}
    for row in rows:
        if row["judged"] and row["deviation_hu"] is not None:
            groups.setdefault(_group_of(row["organ"], ids_of[row["organ"]]), []).append(row["deviation_hu"])
    deviations = {name: float(np.median(values)) for name, values in groups.items()}
    bias = float(np.median(list(deviations.values()))) if deviations else None
    is_judged = len(deviations) >= MIN_BIAS_ORGANS
    figures = {
        "bias_hu": bias,
        "deviations_hu": deviations,
        "num_organs": len(deviations),
        "max_dark_hu": max_dark_hu,
        "max_bright_hu": max_bright_hu,
        "is_judged": is_judged,
    }
    if bias is None or not is_judged:
        good = (
            f"HU bias: not judged, because only {len(deviations)} organs have a usual HU and {MIN_BIAS_ORGANS} are "
            "needed."
        )
        return Verdict("HU bias", True, figures, good)
    problems = []
    if not -max_dark_hu <= bias <= max_bright_hu:
        side, limit = ("darker", max_dark_hu) if bias < 0 else ("brighter", max_bright_hu)
        problems.append(
            f"organs {abs(bias):.0f} HU {side} than usual, over {len(deviations)} of them, at most {limit:g} expected"
        )
    return _verdict("HU bias", figures, problems, f"HU bias: {bias:+.0f} HU over {len(deviations)} organs.")


def _group_of(name: str, label_ids: Sequence[int]) -> str:
    """The group that an organ counts with, or the organ itself."""
    for group, ids in _bias_groups().items():
        if set(label_ids) <= ids:
            return group
    return name


@cache
def _bias_groups() -> dict[str, frozenset[int]]:
    published = {row["name"]: frozenset(row["label_ids"]) for row in _reference()["organs"]}
    return {"bone": published["bone"], "lung": published["lung"], "muscles": frozenset(range(98, 108))}


def _verdict(gate: str, figures: Mapping[str, Any], problems: Sequence[str], good: str) -> Verdict:
    subject = gate[0].upper() + gate[1:]
    return Verdict(gate, not problems, figures, f"{subject}: found {'; '.join(problems)}." if problems else good)


def shape_verdict(gate: str, image_hu: NDArray[Any], label_map: NDArray[Any]) -> Verdict:
    """Return the failed verdict of a gate for an image and a label map of different shapes.

    Args:
        gate: Name of the gate.
        image_hu: Image.
        label_map: Label map.
    """
    figures = {"image_shape": list(image_hu.shape), "label_map_shape": list(label_map.shape)}
    return _verdict(gate, figures, ["an image and a label map of different shapes"], "")


def _name_of(label_id: int, vocabulary: Vocabulary) -> str:
    return vocabulary.name_of(label_id) if vocabulary.contains(label_id) else f"label {label_id}"


def _to_plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
    """Check that a lesion differs from the host around it, in the right direction and by more than the noise.

    Contrast is the median of the lesion's core (its voxels that touch no other, where there are enough) minus the
    median of its host within three voxels, without the voxels next to the lesion where enough are left. Noise is the
    robust standard deviation (1.4826 x median absolute deviation) of that host after a linear trend is removed. Where
    there is too little host, all nearby body voxels without tumor stand in for it, and either direction is right.
    Lesions under 10 mm of equivalent diameter are judged on the sign alone.

    Args:
        image_hu: ``(I, J, K)`` image in HU.
        label_map: ``(I, J, K)`` label ids.
        lesion: ``(I, J, K)`` mask of one lesion.
        host_ids: Ids that the lesion may have grown in.
        tumor_ids: Ids of all tumors, those of bound slots included; they are not surroundings to compare with.
        expected_sign: 1 for brighter than the host, -1 for darker, 0 for either.
        spacing_mm: Voxel sides along I, J, K in millimetres.
        minimum_cnr: Smallest contrast, as a multiple of the noise.
    """
    gate = "lesion visibility"
    if not image_hu.shape == label_map.shape == lesion.shape:
        return shape_verdict(gate, image_hu, label_map)
    if not lesion.any():
        return Verdict(gate, False, {"num_voxels": 0}, "Lesion visibility: the mask of the lesion is empty.")
    box = bounding_box(lesion, margin=SHELL_VOXELS + 1)
    values, mask = image_hu[box].astype(np.float64), lesion[box]
    shell, surroundings = _find_shell(label_map[box], mask, host_ids, tumor_ids)
    if not shell.any() or not np.isfinite(values[shell | mask]).all():
        figures = {"num_voxels": int(mask.sum()), "num_surrounding_voxels": int(shell.sum())}
        message = "Lesion visibility: no finite HU in the lesion or in the body around it."
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
        f"Lesion visibility: expected a lesion {wanted} than its {surroundings} by {minimum_cnr:g} x {noise_hu:.0f} "
        f"HU of noise, found {contrast_hu:+.0f} HU at {measured['diameter_mm']:.1f} mm."
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
    """Run :func:`check_lesion_visibility` on each connected lesion of a label, in scan order.

    Args:
        image_hu: ``(I, J, K)`` image in HU.
        label_map: ``(I, J, K)`` label ids.
        label_id: Id of the lesions.
        host_ids: Ids that the lesions may have grown in.
        tumor_ids: Ids of all tumours, which are not surroundings to compare with.
        expected_sign: 1 for brighter than the host, -1 for darker, 0 for either.
        spacing_mm: Voxel sides along I, J, K in millimetres.
        minimum_cnr: Smallest contrast, as a multiple of the noise.
    """
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
    """Find the surroundings to compare the lesion with, and whether they are its host or any body."""
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


def check_patient(image_hu: NDArray[Any], spacing_mm: Spacing, *, is_judged: bool = True) -> Verdict:
    """Check that an image shows a body surrounded by air, with enough soft tissue that is not noise.

    This gate is for images that are drawn without a label map: without knowing where organs lie, nothing finer can be
    judged.

    Args:
        image_hu: ``(I, J, K)`` image in HU.
        spacing_mm: Voxel sides along I, J, K in mm.
        is_judged: Whether the image must pass; otherwise the figures are only recorded.
    """
    figures: dict[str, Any] = {"is_judged": is_judged, **measure_patient(image_hu, spacing_mm)}
    low, high = BODY_SHARE
    problems = []
    if not low <= figures["body_share"] <= high:
        problems.append(f"a body that fills {figures['body_share']:.0%} of the image")
    elif figures["tissue_share"] < MIN_TISSUE_SHARE:
        problems.append(f"a body of which {figures['tissue_share']:.0%} is soft tissue")
    elif figures["median_step_hu"] > MAX_STEP_HU:
        problems.append(
            f"soft tissue in which neighbouring voxels differ by {figures['median_step_hu']:.0f} HU, which "
            "indicates noise"
        )
    if not problems:
        return Verdict("patient", True, figures, "Patient: shown, with air around and soft tissue inside.")
    note = "" if is_judged else " Not judged, because this bundle is known to draw poorly without a label map."
    return Verdict(
        "patient", not is_judged, figures, f"Patient: not shown with air around it: found {problems[0]}.{note}"
    )


def measure_patient(image_hu: NDArray[Any], spacing_mm: Spacing) -> dict[str, float]:
    """Measure the fractions of body and soft tissue, and the difference between neighbouring voxels of soft tissue.

    Args:
        image_hu: ``(I, J, K)`` image in HU.
        spacing_mm: Voxel sides along I, J, K in mm.

    Returns:
        ``body_share`` of the image, ``tissue_share`` of the body, and ``median_step_hu`` along I.
    """
    try:
        body = find_body(image_hu, spacing_mm)
    except VolumeError:  # nothing as thick as a limb
        return {"body_share": 0.0, "tissue_share": 0.0, "median_step_hu": 0.0}
    tissue = body & (image_hu > TISSUE_HU[0]) & (image_hu < TISSUE_HU[1])
    pairs = tissue[1:] & tissue[:-1]
    steps = np.abs(image_hu[1:][pairs].astype(np.float32) - image_hu[:-1][pairs])
    return {
        "body_share": float(body.mean()),
        "tissue_share": float(tissue.sum()) / max(1.0, float(body.sum())),
        "median_step_hu": float(np.median(steps)) if steps.size else 0.0,
    }


def check_anatomy(image: NDArray[Any], *, is_judged: bool = True) -> Verdict:
    """Check that an MR image shows an object in front of a dark background, and not only noise.

    MR intensities have no unit, and what is bright differs from sequence to sequence, so that nothing finer can be
    judged. Bright means above Otsu's threshold (Otsu, "A threshold selection method from gray-level histograms", 1979).

    Args:
        image: ``(I, J, K)`` intensities.
        is_judged: Whether the image must pass; otherwise the figures are only recorded.
    """
    from skimage.filters import threshold_otsu

    constant = image.min() == image.max()
    is_bright = np.zeros(image.shape, dtype=bool) if constant else image > threshold_otsu(image)
    # Per axis, the pairs of neighbours of which one is bright and the other is not.
    edges = [np.diff(is_bright, axis=axis) for axis in range(3)]
    bright_share, edge_share = float(is_bright.mean()), float(np.mean([edge.mean() for edge in edges]))
    figures = {"is_judged": is_judged, "bright_share": bright_share, "edge_share": edge_share}
    low, high = ANATOMY_SHARE
    found = ""
    if not low <= bright_share <= high:
        found = f"bright voxels in {bright_share:.0%} of the image"
    elif edge_share > MAX_EDGE_SHARE:
        found = f"noise: {edge_share:.0%} of neighbouring voxels lie on different sides of the threshold"
    if not found:
        return Verdict("anatomy", True, figures, "Anatomy: there is bright anatomy in front of a dark background.")
    note = "" if is_judged else " Not judged, because this bundle is known to draw poorly without a label map."
    message = f"Anatomy: expected bright anatomy in front of a dark background, found {found}.{note}"
    return Verdict("anatomy", not is_judged, figures, message)
