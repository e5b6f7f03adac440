"""The quality gates of one attempt: every verdict, and the lesions as they were requested and as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.cohort.manifest import VerdictRecord
from maisi_aug.cohort.plan import CasePlan
from maisi_aug.cohort.request import GateConfig
from maisi_aug.gates.checks import (
    Verdict,
    check_anatomy,
    check_geometry,
    check_hu_bias,
    check_label_visibility,
    check_lesion_place,
    check_lesion_size,
    check_organ_hu,
    check_patient,
    check_presence,
)
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.vocabulary.hu import HuRange, expected_contrast_sign, reference_hu_ranges
from maisi_aug.vocabulary.labels import Vocabulary
from maisi_aug.volumes.components import Box, bounding_box, label_parts
from maisi_aug.volumes.grid import Grid


@dataclass(frozen=True, slots=True)
class Judgement:
    """Verdicts of the quality gates on an attempt, and its lesions as measured.

    Attributes:
        verdicts: Verdicts in the order in which the gates ran.
        lesions: Lesions of the case with requested and realised sizes.
    """

    verdicts: tuple[VerdictRecord, ...]
    lesions: tuple[Lesion, ...]

    @property
    def reason(self) -> str:
        """Message of the first gate that failed; empty if all passed."""
        return next((verdict.message for verdict in self.verdicts if not verdict.passed), "")


def judge_label_map(
    case: CasePlan, label_map: NDArray[np.uint8], grid: Grid, *, vocabulary: Vocabulary, gates: GateConfig
) -> Judgement:
    """Run the quality gates that need no image: presence of every label, size and place of every lesion.

    Args:
        case: Requested case, with its lesions as the mask source reports them.
        label_map: ``(I, J, K)`` vocabulary ids on the output grid.
        grid: Grid of the label map.
        vocabulary: Vocabulary of the ids.
        gates: Gates to run, and their tolerances.

    Returns:
        The verdicts, and the lesions as they are measured in the label map: by label, the largest requested first.
    """
    wanted_ids = sorted({lesion.label_id for lesion in case.lesions})
    verdicts = []
    if gates.presence:
        verdicts.append(check_presence(label_map, [*case.required_ids, *wanted_ids], vocabulary=vocabulary))
    measured: list[Lesion] = []
    for label_id in wanted_ids:
        own = [lesion for lesion in case.lesions if lesion.label_id == label_id]
        own.sort(key=lambda lesion: -lesion.requested_ml)
        name, is_organ = own[0].label, vocabulary.label(label_id).kind == "organ"
        sizes_ml, found = _measure(label_map == label_id, own, grid.voxel_ml, is_one=is_organ)
        if gates.lesion_size:
            asked_ml = [lesion.requested_ml for lesion in own]
            verdicts.append(
                name_verdict(check_lesion_size(asked_ml, sizes_ml, grid.voxel_ml, gates.size_tolerance), name)
            )
        drawn = [lesion for lesion in own if lesion.centre_ijk is not None]
        if gates.lesion_place and drawn and label_id in vocabulary.tumor_ids:
            drawn.sort(key=lambda lesion: -(lesion.realised_ml or 0.0))
            is_planted = all(lesion.share_outside is not None for lesion in drawn)
            verdicts.append(name_verdict(check_lesion_place(drawn, gates.rule_of(name), is_judged=is_planted), name))
        measured += found
    return Judgement(tuple(map(to_record, verdicts)), tuple(measured))


def _measure(
    mask: NDArray[np.bool_], lesions: Sequence[Lesion], voxel_ml: float, *, is_one: bool
) -> tuple[list[float], list[Lesion]]:
    """Volumes of the connected parts of a label in mL, and each lesion with that of the part that it lies in.

    Args:
        mask: ``(I, J, K)`` voxels of the label.
        lesions: Lesions with their voxels.
        voxel_ml: Volume of a voxel.
        is_one: Whether all parts are one, as those of an organ are.
    """
    box = bounding_box(mask)
    parts, _ = label_parts(mask[box])
    sizes = [float(size * voxel_ml) for size in np.bincount(parts.ravel(), minlength=1)]
    sizes_ml = sorted(sizes[1:], reverse=True)
    if is_one and sizes_ml:
        sizes_ml = [sum(sizes_ml)]
        return sizes_ml, [lesion.measured(sizes_ml[0]) for lesion in lesions]
    found = []
    for lesion in lesions:
        inside = None if lesion.centre_ijk is None else _shift(lesion.centre_ijk, box, parts.shape)
        number = 0 if inside is None else int(parts[inside])
        found.append(lesion.measured(sizes[number]) if number else replace(lesion, realised_ml=None, diameter_mm=None))
    return sizes_ml, found


def _shift(voxel: Sequence[int], box: Box, shape: Sequence[int]) -> tuple[int, ...] | None:
    """A voxel as it is counted in a box; None outside."""
    inside = tuple(place - side.start for place, side in zip(voxel, box, strict=True))
    return inside if all(0 <= place < side for place, side in zip(inside, shape, strict=True)) else None


def judge_image(
    case: CasePlan,
    image_hu: NDArray[np.int16],
    label_map: NDArray[np.uint8],
    grid: Grid,
    expected: Grid,
    *,
    vocabulary: Vocabulary,
    gates: GateConfig,
    bundle: Bundle | None = None,
    own_ranges: Sequence[HuRange] = (),
) -> tuple[VerdictRecord, ...]:
    """Run the gates that need the image: geometry, HU of organs (for MR, anatomy), visibility of every lesion.

    Args:
        case: Requested case.
        image_hu: ``(I, J, K)`` in HU.
        label_map: ``(I, J, K)`` vocabulary ids on the same grid.
        grid: Grid of image and label map.
        expected: Requested grid; its position is ignored, because maps from a bank keep theirs.
        vocabulary: Vocabulary of the ids, with host organs.
        gates: Which gates count, and their tolerances.
        bundle: Bundle that states the HU of labels that it was taught; None for published ranges only.
        own_ranges: HU ranges measured on the user's own CTs, which override all others.
    """
    is_mr = bundle is not None and bundle.is_mr
    verdicts = [check_geometry(image_hu, label_map, grid, _placed_like(expected, grid), is_mr=is_mr)]
    if gates.organ_hu and is_mr:
        verdicts.append(check_anatomy(image_hu))
    elif gates.organ_hu:
        verdicts += judge_organ_hu(image_hu, label_map, bundle=bundle, gates=gates, own_ranges=own_ranges)
    lesion_ids = {lesion.label_id for lesion in case.lesions}.intersection(vocabulary.tumor_ids)
    for label_id in sorted(lesion_ids) if gates.visibility else ():
        name = vocabulary.name_of(label_id)
        found = check_label_visibility(
            image_hu,
            label_map,
            label_id,
            host_ids=vocabulary.hosts_of(label_id),
            tumor_ids=vocabulary.tumor_ids,
            expected_sign=bundle.contrast_sign_of(label_id) if bundle else expected_contrast_sign(name),
            spacing_mm=grid.spacing_mm,
            minimum_cnr=gates.minimum_cnr,
        )
        verdicts += [name_verdict(verdict, name) for verdict in found]
    return tuple(map(to_record, verdicts))


def judge_organ_hu(
    image_hu: NDArray[np.int16],
    label_map: NDArray[np.uint8],
    *,
    bundle: Bundle | None,
    gates: GateConfig,
    own_ranges: Sequence[HuRange] = (),
) -> list[Verdict]:
    """Return the verdicts on the HU of each organ, and on those of all organs together.

    Args:
        image_hu: ``(I, J, K)`` in HU.
        label_map: ``(I, J, K)`` vocabulary ids on the same grid.
        bundle: Bundle that states the usual HU of its images; None for published ranges only.
        gates: Whether the bias counts, and its limits.
        own_ranges: HU ranges measured on the user's own CTs, which override all others.
    """
    ranges = overlay_ranges(reference_hu_ranges() if bundle is None else bundle.hu_ranges, own_ranges)
    organs = check_organ_hu(image_hu, label_map, ranges)
    if not gates.hu_bias:
        return [organs]
    return [organs, check_hu_bias(organs, ranges, max_dark_hu=gates.max_dark_hu, max_bright_hu=gates.max_bright_hu)]


def overlay_ranges(ranges: Sequence[HuRange], own: Sequence[HuRange]) -> tuple[HuRange, ...]:
    """Return HU ranges in which those of labels that a user has measured are replaced by the user's.

    Args:
        ranges: HU ranges of organs, each for one or several label ids.
        own: Ranges that the user has measured, which come last in the result.

    Returns:
        Ranges in which every label id occurs once at most; groups lose the ids that the user has measured.
    """
    taken = {label_id for row in own for label_id in row.label_ids}
    kept = (replace(row, label_ids=tuple(i for i in row.label_ids if i not in taken)) for row in ranges)
    return (*(row for row in kept if row.label_ids), *own)


def judge_bare_image(
    image_hu: NDArray[np.int16],
    grid: Grid,
    expected: Grid,
    *,
    gates: GateConfig,
    is_known_poor: bool,
    is_mr: bool = False,
) -> tuple[VerdictRecord, ...]:
    """Run the gates on an image that was drawn without a label map: geometry, and whether it shows a patient.

    Args:
        image_hu: ``(I, J, K)`` in HU, or MR intensities.
        grid: Grid of the image.
        expected: Requested grid.
        gates: Which gates count; ``organ_hu`` stands for all gates that judge tissue.
        is_known_poor: Whether the bundle states that its images without a label map are poor.
        is_mr: Whether intensities are those of MR and no HU.
    """
    verdicts = [check_geometry(image_hu, None, grid, expected, is_mr=is_mr)]
    if gates.organ_hu and is_mr:
        verdicts.append(check_anatomy(image_hu, is_judged=not is_known_poor))
    elif gates.organ_hu:
        verdicts.append(check_patient(image_hu, grid.spacing_mm, is_judged=not is_known_poor))
    return tuple(map(to_record, verdicts))


def _placed_like(expected: Grid, grid: Grid) -> Grid:
    """The expected shape and spacing with the directions and the origin of a grid."""
    affine = grid.affine.copy()
    affine[:3, :3] *= np.asarray(expected.spacing_mm) / np.asarray(grid.spacing_mm)
    return Grid(expected.shape, affine)


def name_verdict(verdict: Verdict, label: str) -> Verdict:
    """Return a verdict whose message and figures name the label that it is about.

    Args:
        verdict: Verdict of a gate; not modified.
        label: Name of the label, which becomes the figure ``label`` and begins the message.
    """
    return Verdict(verdict.gate, verdict.passed, {"label": label, **verdict.figures}, f"{label}: {verdict.message}")


def to_record(verdict: Verdict) -> VerdictRecord:
    """Convert a verdict to the form in which the manifest stores it."""
    plain = verdict.to_dict()
    return VerdictRecord(plain["gate"], plain["passed"], plain["figures"], plain["message"])
