"""Twins: cases of the same patient, place and seed in which one thing differs, such as the size of the lesion.

Each case of the plan becomes a group, with one case for each value of the factor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

from maisi_aug.cohort.grammar import parse_requests
from maisi_aug.cohort.manifest import AttemptRecord
from maisi_aug.cohort.plan import CasePlan, CohortPlan, FindRule, plan_cohort
from maisi_aug.errors import RequestError, did_you_mean
from maisi_aug.lesions.lesion import growth_rule_of
from maisi_aug.vocabulary.labels import Vocabulary
from maisi_aug.vocabulary.sizes import SizeDistribution

Factor = Literal["size", "texture", "place", "contrast"]
FACTORS: Final[tuple[Factor, ...]] = get_args(Factor)
MAP_FACTORS: Final[tuple[Factor, ...]] = ("size", "place")
"""Factors that can differ between label maps in which lesions are planted."""
ORIGIN_KEY: Final = "twins"
"""Key in the origin of a case for its group, the factor and the value."""
MOST_CONTRAST_HU: Final = 2000.0


@dataclass(frozen=True, slots=True)
class Twins:
    """Property of a lesion that differs between the cases of a group of twins, which otherwise show the same patient.

    Attributes:
        factor: Name of the property, such as ``size``.
        values: One value for each case of a group: sizes as in a label request, names, or contrasts in HU.
    """

    factor: Factor
    values: tuple[str, ...]

    def group_of(self, case_index: int) -> int:
        """Return the number of the group that a case belongs to, from 0."""
        return case_index // len(self.values)

    def value_of(self, case_index: int) -> str:
        """Return the value of the property in a case, given by its index."""
        return self.values[case_index % len(self.values)]

    def groups(self, plan: CohortPlan) -> list[tuple[CasePlan, ...]]:
        """Return the cases of a plan by groups of twins."""
        step = len(self.values)
        return [plan.cases[start : start + step] for start in range(0, len(plan.cases), step)]

    def to_origin(self, case_index: int) -> dict[str, Any]:
        """Return the entry about twins in the ``mask_origin`` of a case, given by its index."""
        return {"group": self.group_of(case_index), "factor": self.factor, "value": self.value_of(case_index)}


def parse_twins(text: str) -> Twins:
    """Parse ``FACTOR=VALUE,VALUE,...``, such as ``size=6mm,10mm,20mm``.

    Raises:
        RequestError: The factor is unknown, there are fewer than two values, or a value is given twice.
    """
    name, _, listed = (part.strip() for part in text.partition("="))
    factor = next((known for known in FACTORS if known == name), None)
    if factor is None:
        hint = did_you_mean(name, FACTORS) or f" Use one of {', '.join(FACTORS)}, such as size=6mm,10mm,20mm."
        raise RequestError(f"--twins '{text}': unknown factor '{name}'.{hint}")
    values = tuple(value.strip() for value in listed.split(","))
    if len(values) < 2 or not all(values) or len(set(values)) < len(values):
        raise RequestError(f"--twins '{text}': needs two or more different values, found '{listed}'.")
    if factor == "contrast":
        for value in values:
            _require_contrast(text, value)
    return Twins(factor, values)


def _require_contrast(text: str, value: str) -> None:
    if not re.fullmatch(r"-?\d+(\.\d+)?", value) or not 0 < abs(float(value)) <= MOST_CONTRAST_HU:
        raise RequestError(
            f"--twins '{text}': expected contrasts in HU to the host, up to {MOST_CONTRAST_HU:g}, found '{value}'. "
            "Write them as contrast=100,300,600."
        )


def plan_twins(
    texts: Sequence[str],
    twins: Twins,
    *,
    vocabulary: Vocabulary,
    num_groups: int,
    seed: int,
    distributions: Mapping[str, SizeDistribution] | None = None,
    grown_from: Sequence[int] = (),
    rule_of: FindRule = growth_rule_of,
) -> CohortPlan:
    """Plan a cohort of twins, in which the cases of a group follow each other.

    Args:
        texts: Label requests, without sizes if the twins differ in size.
        twins: The factor that differs, and its values.
        vocabulary: The labels that may be requested.
        num_groups: Number of groups in the cohort.
        seed: Cohort seed.
        distributions: Label name -> size distribution that percentiles refer to, instead of the package's own.
        grown_from: Earlier numbers of groups of a cohort that has grown, ascending.
        rule_of: Function that returns the growth rule of a label's lesions.

    Raises:
        VocabularyError: A label is unknown.
        RequestError: A request cannot be read, there are fewer groups than requests, or sizes are given twice.
    """
    rows = [
        [with_size(text, value) for text in texts] if twins.factor == "size" else list(texts) for value in twins.values
    ]
    plans = [
        plan_cohort(
            parse_requests(row, vocabulary=vocabulary, distributions=distributions),
            num_cases=num_groups,
            seed=seed,
            grown_from=grown_from,
            rule_of=rule_of,
        )
        for row in rows
    ]
    cases = [
        replace(
            plan.cases[group],
            case_id=f"{plan.cases[group].case_id}_{value.replace(' ', '-')}",
            index=group * len(plans) + place,
        )
        for group in range(num_groups)
        for place, (plan, value) in enumerate(zip(plans, twins.values, strict=True))
    ]
    return CohortPlan(tuple(cases), plans[0].requested_ids)


def plan_twin_maps(plan: CohortPlan, twins: Twins, vocabulary: Vocabulary) -> CohortPlan:
    """Return the plan of twins whose lesions are planted in label maps, where places are host organs.

    Args:
        plan: Plan made by :func:`plan_twins`.
        twins: The factor that differs, and its values.
        vocabulary: Vocabulary of the bundle.

    Raises:
        RequestError: Label maps cannot show the factor, a case does not have exactly one lesion, or a place is not a
            host of the lesion.
        VocabularyError: A place is not a label.
    """
    if twins.factor not in MAP_FACTORS:
        raise RequestError(
            f"--twins {twins.factor}=...: '{twins.factor}' cannot be varied in cases that are drawn whole; only size "
            "and place can. Use 'maisi-aug insert' instead."
        )
    many = next((case for case in plan.cases if len(case.lesions) != 1), None)
    if many is not None:
        raise RequestError(f"--labels '{many.request}': --twins needs exactly one lesion, found {len(many.lesions)}.")
    if twins.factor == "size":
        return plan
    places = {value: vocabulary.id_of(value) for value in twins.values}
    for case in plan.cases:
        if lost := set(places.values()).difference(case.lesions[0].hosts):
            hosts = ", ".join(vocabulary.name_of(host) for host in case.lesions[0].hosts)
            raise RequestError(
                f"--twins place=...: {vocabulary.name_of(min(lost))} cannot contain {case.lesions[0].label}; its "
                f"host organs are {hosts}."
            )
    cases = (
        replace(case, lesions=(replace(case.lesions[0], hosts=(places[twins.value_of(case.index)],)),))
        for case in plan.cases
    )
    return replace(plan, cases=tuple(cases))


def with_size(text: str, value: str) -> str:
    """Return a label request with a size added to its lesion.

    Args:
        text: Label request without a size.
        value: Size, such as ``10mm``.

    Raises:
        RequestError: The request has a size already, or several lesions.
    """
    body, at, share = text.partition("@")
    if ":" in body or "+" in body:
        raise RequestError(
            f"--labels '{text}': needs one lesion without a size, because --twins sets it, found '{body}'. Write "
            "--labels 'lung nodule'."
        )
    return f"{body}:{value}{at}{share}"


def twin_of(record: AttemptRecord) -> tuple[int, str, str] | None:
    """Return to which group of twins a recorded case belongs; twins show the same patient but for one factor.

    Args:
        record: Line of a manifest, whose ``mask_origin`` has the entry ``twins`` if the case is one of twins.

    Returns:
        Number of the group from 0, name of the factor (``size``, ``texture``, ``place`` or ``contrast``), and the
        case's value of it as text, such as ``10mm``. None for other cases, and for an entry of another form, because a
        manifest may come from an untrusted source.
    """
    entry = record.mask_origin.get(ORIGIN_KEY)
    if not isinstance(entry, dict):
        return None
    group, factor, value = entry.get("group"), entry.get("factor"), entry.get("value")
    if isinstance(group, int) and isinstance(factor, str) and isinstance(value, str):
        return group, factor, value
    return None
