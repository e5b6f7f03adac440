"""The quality gates of one attempt: every verdict, and the lesions as they were asked for and as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.bundle_spec.references import contrast_sign_of, hu_ranges_of
from maisi_aug.cohort.manifest import LesionRecord, VerdictRecord
from maisi_aug.cohort.plan import CasePlan, PlannedLesion
from maisi_aug.cohort.recipe import GateConfig
from maisi_aug.gates.checks import (
    Verdict,
    check_geometry,
    check_hu_bias,
    check_lesion_place,
    check_lesion_size,
    check_organ_hu,
    check_presence,
)
from maisi_aug.gates.patient import check_patient
from maisi_aug.gates.visibility import check_label_visibility
from maisi_aug.lesions.growth_rules import GrowthRule, growth_rule_of
from maisi_aug.lesions.planting import PlantedLesion, measure_lesions
from maisi_aug.vocabulary.hu import HuRange, expected_contrast_sign, reference_hu_ranges
from maisi_aug.vocabulary.labels import Vocabulary
from maisi_aug.vocabulary.sizes import diameter_mm
from maisi_aug.volumes.grid import Grid


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the gates said.

    Attributes:
        verdicts: In the order in which the gates ran.
        lesions: The case's lesions, requested against realised.
    """

    verdicts: tuple[VerdictRecord, ...]
    lesions: tuple[LesionRecord, ...]

    @property
    def reason(self) -> str:
        """The message of the first gate that failed; empty when all passed."""
        return next((verdict.message for verdict in self.verdicts if not verdict.passed), "")


def judge_label_map(
    case: CasePlan,
    label_map: NDArray[np.uint8],
    planted: Sequence[PlantedLesion],
    grid: Grid,
    *,
    vocabulary: Vocabulary,
    gates: GateConfig,
) -> Judgement:
    """Run the gates that need no image: presence of every label and size of every lesion.

    Args:
        case: What was asked for.
        label_map: ``(I, J, K)`` on the output grid.
        planted: What the mask source says it drew; lends centre and host to the records.
        grid: Of the label map.
        vocabulary: Names for messages.
        gates: Tolerances.
    """
    wanted_ids = sorted({lesion.label_id for lesion in case.lesions})
    verdicts = []
    if gates.presence:
        verdicts.append(check_presence(label_map, [*case.required_ids, *wanted_ids], vocabulary=vocabulary))
    records: list[LesionRecord] = []
    for label_id in wanted_ids:
        requested = sorted((part for part in case.lesions if part.label_id == label_id), key=_volume, reverse=True)
        realised_ml = measure_lesions(label_map, label_id, grid.voxel_ml)
        if vocabulary.label(label_id).kind == "organ" and realised_ml:  # one, whatever parts it is in
            realised_ml = [sum(realised_ml)]
        volumes = [lesion.volume_ml for lesion in requested]
        name = vocabulary.name_of(label_id)
        if gates.lesion_size:
            verdict = check_lesion_size(volumes, realised_ml, grid.voxel_ml, gates.size_tolerance)
            verdicts.append(_named(verdict, name))
        origins = sorted((part for part in planted if part.label_id == label_id), key=_volume, reverse=True)
        if gates.lesion_place and origins and label_id in vocabulary.tumor_ids:
            is_planted = all(lesion.share_outside is not None for lesion in origins)
            verdict = check_lesion_place(origins, usual_growth(name, gates), is_judged=is_planted)
            verdicts.append(_named(verdict, name))
        records += [
            _record(lesion, _item(realised_ml, number), _item(origins, number))
            for number, lesion in enumerate(requested)
        ]
    return Judgement(tuple(map(_to_record, verdicts)), tuple(records))


def usual_growth(label_name: str, gates: GateConfig) -> GrowthRule:
    """How lesions of a label grow, with the thresholds of the gates where they set any."""
    rule = growth_rule_of(label_name)
    return replace(
        rule,
        max_share_outside=rule.max_share_outside if gates.max_share_outside is None else gates.max_share_outside,
        max_spread=rule.max_spread if gates.max_spread is None else gates.max_spread,
    )


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
    """Run the gates that need the image: geometry, HU of the organs, visibility of every lesion.

    Args:
        case: What was asked for.
        image_hu: ``(I, J, K)`` in HU.
        label_map: ``(I, J, K)`` of the same grid.
        grid: Of both.
        expected: The grid that was asked for; shape and spacing count, not the place, which a map from a bank keeps.
        vocabulary: Names and host organs.
        gates: Which gates count, and their tolerances.
        bundle: Knows what the labels that it was taught look like; None for the published figures alone.
        own_ranges: HU of labels in the user's own CTs; they stand above all others.
    """
    verdicts = [check_geometry(image_hu, label_map, grid, _placed_like(expected, grid))]
    if gates.organ_hu:
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
            expected_sign=contrast_sign_of(label_id, bundle) if bundle else expected_contrast_sign(name),
            spacing_mm=grid.spacing_mm,
            minimum_cnr=gates.minimum_cnr,
        )
        verdicts += [_named(verdict, name) for verdict in found]
    return tuple(map(_to_record, verdicts))


def judge_organ_hu(
    image_hu: NDArray[np.int16],
    label_map: NDArray[np.uint8],
    *,
    bundle: Bundle | None,
    gates: GateConfig,
    own_ranges: Sequence[HuRange] = (),
) -> list[Verdict]:
    """HU of every organ by itself, and of all of them together.

    Args:
        image_hu: ``(I, J, K)`` in HU.
        label_map: ``(I, J, K)`` of the same grid.
        bundle: Knows what is usual for its images; None for the published figures alone.
        gates: Whether the bias counts, and its limits.
        own_ranges: HU of labels in the user's own CTs.
    """
    ranges = overlay_ranges(reference_hu_ranges() if bundle is None else hu_ranges_of(bundle), own_ranges)
    organs = check_organ_hu(image_hu, label_map, ranges)
    if not gates.hu_bias:
        return [organs]
    return [organs, check_hu_bias(organs, ranges, max_dark_hu=gates.max_dark_hu, max_bright_hu=gates.max_bright_hu)]


def overlay_ranges(ranges: Sequence[HuRange], own: Sequence[HuRange]) -> tuple[HuRange, ...]:
    """Ranges of which those of labels that a user has measured give way to the user's."""
    taken = {label_id for row in own for label_id in row.label_ids}
    kept = (replace(row, label_ids=tuple(i for i in row.label_ids if i not in taken)) for row in ranges)
    return (*(row for row in kept if row.label_ids), *own)


def judge_bare_image(
    image_hu: NDArray[np.int16], grid: Grid, expected: Grid, *, gates: GateConfig, is_known_poor: bool
) -> tuple[VerdictRecord, ...]:
    """Run the gates on an image that was drawn without a label map: geometry, and whether it shows a patient.

    Args:
        image_hu: ``(I, J, K)`` in HU.
        grid: Of the image.
        expected: The grid that was asked for.
        gates: Which gates count; ``organ_hu`` stands for all that judges tissue.
        is_known_poor: Whether the bundle says of itself that it draws poorly without a label map.
    """
    verdicts = [check_geometry(image_hu, None, grid, expected)]
    if gates.organ_hu:
        verdicts.append(check_patient(image_hu, grid.spacing_mm, is_judged=not is_known_poor))
    return tuple(map(_to_record, verdicts))


def _placed_like(expected: Grid, grid: Grid) -> Grid:
    """The expected shape and spacing with the directions and the origin of a grid."""
    affine = grid.affine.copy()
    affine[:3, :3] *= np.asarray(expected.spacing_mm) / np.asarray(grid.spacing_mm)
    return Grid(expected.shape, affine)


def unrealised_lesions(case: CasePlan) -> tuple[LesionRecord, ...]:
    """The records of a case before anything is drawn."""
    return tuple(_record(lesion, None, None) for lesion in case.lesions)


def _named(verdict: Verdict, label: str) -> Verdict:
    return Verdict(verdict.gate, verdict.passed, {"label": label, **verdict.figures}, f"{label}: {verdict.message}")


def _to_record(verdict: Verdict) -> VerdictRecord:
    plain = verdict.to_dict()
    return VerdictRecord(plain["gate"], plain["passed"], plain["figures"], plain["message"])


def _record(lesion: PlannedLesion, realised_ml: float | None, origin: PlantedLesion | None) -> LesionRecord:
    return LesionRecord(
        label_id=lesion.label_id,
        label=lesion.label,
        requested_ml=lesion.volume_ml,
        percentile=lesion.percentile,
        size_source=lesion.size_source,
        realised_ml=realised_ml,
        diameter_mm=None if realised_ml is None else diameter_mm(realised_ml),
        centre_ijk=None if origin is None else origin.centre_ijk,
        host_id=None if origin is None else origin.host_id,
    )


def _volume(lesion: PlannedLesion | PlantedLesion) -> float:
    return lesion.volume_ml


def _item(items: Sequence[Any], number: int) -> Any:
    return items[number] if number < len(items) else None
