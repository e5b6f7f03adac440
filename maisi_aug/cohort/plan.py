"""The plan of a cohort: which case holds which lesions of which size. Cheap, and decided before anything is drawn.

A plan depends on the requests, the number of cases and the cohort seed alone. Sizes are stratified: the range of a
request is cut into as many equal parts as it has cases, each case gets one part, in random order. The requests take
turns, so that a cohort that is stopped early is balanced too. A cohort that grows keeps its cases: the further ones are
planned by themselves in the same way, their sizes stratified among each other, and dealt to the requests so that all
cases together have the shares that were requested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from maisi_aug.cohort.grammar import CaseRequest, LesionRequest, SizeRange, allot_cases, allot_more, parse_requests
from maisi_aug.errors import RequestError
from maisi_aug.lesions.lesion import GrowthRule, Lesion, growth_rule_of
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.vocabulary.labels import Label, Vocabulary
from maisi_aug.vocabulary.sizes import SizeDistribution, diameter_mm
from maisi_aug.volumes.grid import Grid

MAX_NAMES = 6
"""Number of labels to name before only counting the rest."""
FindRule = Callable[[str], GrowthRule]


@dataclass(frozen=True, slots=True)
class CasePlan:
    """One planned case: its lesions, organs and label map.

    Attributes:
        case_id: Name of the case and stem of its files, ``case_0001`` for the first.
        index: Position in the cohort, from 0.
        request: The label request that the case serves, as the user typed it.
        lesions: Lesions as requested and, once a label map is drawn, as realised in it.
        required_ids: Vocabulary ids of organs that the request or the user's ``anatomy`` names, or that a given map
            contains.
        map_index: Index in its bank of the given label map that the case uses unchanged; None for other mask sources.
    """

    case_id: str
    index: int
    request: str
    lesions: tuple[Lesion, ...]
    required_ids: tuple[int, ...]
    map_index: int | None = None

    @property
    def label_ids(self) -> tuple[int, ...]:
        """Vocabulary ids of the lesions and organs that the case must contain, ascending."""
        return tuple(sorted({*self.required_ids, *(lesion.label_id for lesion in self.lesions)}))

    @property
    def asked(self) -> str:
        """Text of the requested content from which the seed derives: lesions with their volumes, and organs.

        The words of the request do not matter, unless it names neither lesions nor organs: a given map contributes its
        name.
        """
        lesions = [f"{lesion.label_id}:{lesion.requested_ml:.6g}" for lesion in self.lesions]
        organs = [str(label_id) for label_id in sorted(self.required_ids)]
        return "+".join([*lesions, *organs]) or self.request

    def needed_ids(self, vocabulary: Vocabulary) -> set[int]:
        """Return the ids of organs that the case needs: those requested, and hosts that a lesion depends on."""
        hosts = [vocabulary.hosts_of(lesion.label_id) for lesion in self.lesions]
        return {*self.required_ids, *(only for only, *others in hosts if not others)}

    def asks_for_all_of(self, other: CasePlan) -> bool:
        """Whether the case has all organs of another, and for each of its lesions one of the same label, no smaller."""
        if not set(self.required_ids).issuperset(other.required_ids):
            return False
        left = [(lesion.label_id, lesion.requested_ml) for lesion in self.lesions]
        for lesion in sorted(other.lesions, key=lambda lesion: -lesion.requested_ml):
            match = next((item for item in left if item[0] == lesion.label_id and item[1] >= lesion.requested_ml), None)
            if match is None:
                return False
            left.remove(match)
        return True

    def to_json(self) -> dict[str, Any]:
        """Return the case as a JSON-able dict."""
        return {
            "case_id": self.case_id,
            "index": self.index,
            "request": self.request,
            "lesions": tuple(lesion.to_plan() for lesion in self.lesions),
            "required_ids": self.required_ids,
            "map_index": self.map_index,
        }


@dataclass(frozen=True, slots=True)
class CohortPlan:
    """Plan of a cohort: all of its cases.

    Attributes:
        cases: Cases in the order in which they are made.
        requested_ids: Vocabulary ids, ascending, that the files in ``labels/`` contain: labels of any request, or those
            of the user's ``anatomy``. If empty (given maps without a request), they contain everything but the body.
    """

    cases: tuple[CasePlan, ...]
    requested_ids: tuple[int, ...]

    @property
    def size_sources(self) -> dict[str, str]:
        """Label -> source of the sizes that its percentiles refer to; without labels that are requested in mm or mL."""
        lesions = (lesion for case in self.cases for lesion in case.lesions)
        return {lesion.label: lesion.size_source for lesion in lesions if lesion.size_source is not None}

    def with_lesions_of(self, asked: CohortPlan) -> CohortPlan:
        """Return the plan of given label maps, with the lesions of another, equally long plan to be planted in them."""
        cases = (
            replace(case, request=other.request, lesions=other.lesions, required_ids=other.required_ids)
            for case, other in zip(self.cases, asked.cases, strict=True)
        )
        kept = self.requested_ids and tuple(sorted({*self.requested_ids, *asked.requested_ids}))
        return CohortPlan(tuple(cases), kept)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON-able dict."""
        return {"cases": tuple(case.to_json() for case in self.cases), "requested_ids": self.requested_ids}

    def keep_anatomy(self, names: Sequence[str], vocabulary: Vocabulary) -> CohortPlan:
        """Return the plan with label files that contain exactly the named labels.

        The named organs must then be present in every case, the named lesions in the cases whose requests name them.

        Args:
            names: Names, aliases or ids.
            vocabulary: Vocabulary of the bundle.

        Raises:
            VocabularyError: A name is unknown; the message offers the closest ones.
            RequestError: A requested label is not named, a named lesion is not requested, or a name is neither an organ
                nor a lesion.
        """
        labels = {label.id: label for label in (_find_kept(name, vocabulary) for name in names)}
        missing = [vocabulary.name_of(label_id) for label_id in self.requested_ids if label_id not in labels]
        if missing:
            raise RequestError(
                f"anatomy: every requested label must be listed; {', '.join(missing)} is missing. Add it to "
                "--anatomy, or take it out of --labels."
            )
        unasked = [row.name for row in labels.values() if row.kind == "tumor" and row.id not in self.requested_ids]
        if unasked:
            raise RequestError(
                f"anatomy: {', '.join(unasked)} is not requested, so that no label map would contain it. Request it "
                "with --labels, or take it out of --anatomy."
            )
        organ_ids = sorted(label.id for label in labels.values() if label.kind == "organ")
        cases = (
            replace(case, required_ids=(*case.required_ids, *(i for i in organ_ids if i not in case.required_ids)))
            for case in self.cases
        )
        return CohortPlan(tuple(cases), tuple(sorted(labels)))

    def require_drawable(self, grid: Grid) -> None:
        """Raise unless every lesion of the plan fills at least half a voxel of a grid, so that a voxel can show it.

        Raises:
            RequestError: The message names the smallest lesion and its case.
        """
        half_ml = grid.voxel_ml / 2
        lost = [(lesion, case) for case in self.cases for lesion in case.lesions if lesion.requested_ml <= half_ml]
        if lost:
            lesion, case = min(lost, key=lambda pair: pair[0].requested_ml)
            raise RequestError(
                f"Label request '{case.request}': {lesion.label} of {lesion.requested_ml:.2g} mL "
                f"({lesion.requested_mm:.1f} mm) in {case.case_id} is smaller than half a voxel of the grid, "
                f"{half_ml:.2g} mL ({diameter_mm(half_ml):.1f} mm). Request larger lesions or a smaller --spacing."
            )


def _find_kept(name: str, vocabulary: Vocabulary) -> Label:
    label = vocabulary.label(name)
    if label.kind not in ("organ", "tumor"):
        meaning = "a placeholder slot without a meaning in this bundle" if label.kind == "slot" else f"the {label.kind}"
        raise RequestError(
            f"anatomy: '{name}' is {meaning}; only organs and lesions can be kept. List the labels with 'maisi-aug "
            "labels'."
        )
    return label


def spell_labels(label_ids: Sequence[int], vocabulary: Vocabulary) -> str:
    """Return the names of labels; of many, lesions first and then the number of labels left out.

    Args:
        label_ids: Vocabulary ids, in the order in which to name them.
        vocabulary: Names of the ids.
    """
    if len(label_ids) > MAX_NAMES:
        label_ids = sorted(label_ids, key=lambda label_id: (label_id not in vocabulary.tumor_ids, label_id))
    names = [vocabulary.name_of(label_id) for label_id in label_ids[:MAX_NAMES]]
    left = len(label_ids) - len(names)
    return ", ".join(names) + (f" and {left} more" if left else "")


def plan_cohort(
    requests: Sequence[CaseRequest],
    *,
    num_cases: int,
    seed: int,
    grown_from: Sequence[int] = (),
    rule_of: FindRule = growth_rule_of,
) -> CohortPlan:
    """Distribute the cases of a cohort over label requests, and draw the size of every lesion.

    Args:
        requests: Label requests with their shares.
        num_cases: Number of cases of the cohort.
        seed: Cohort seed.
        grown_from: Earlier numbers of cases of a cohort that has grown, ascending; these cases stay unchanged.
        rule_of: Function that returns the growth rule of a label's lesions.

    Raises:
        RequestError: There are fewer cases than requests.
    """
    first, *steps = (*grown_from, num_cases)
    counts = allot_cases(requests, first)
    cases = _plan_batch(requests, counts, stream="plan", seed=seed, begin=0, first=first, rule_of=rule_of)
    for number, bound in enumerate(steps, start=1):
        added = allot_more(requests, counts, bound)
        stream = f"plan {number}"
        cases += _plan_batch(requests, added, stream=stream, seed=seed, begin=len(cases), first=first, rule_of=rule_of)
        counts = [before + more for before, more in zip(counts, added, strict=True)]
    requested = {part.label_id for request in requests for part in request.lesions}
    return CohortPlan(tuple(cases), tuple(sorted(requested)))


def _plan_batch(
    requests: Sequence[CaseRequest],
    counts: Sequence[int],
    *,
    stream: str,
    seed: int,
    begin: int,
    first: int,
    rule_of: FindRule,
) -> list[CasePlan]:
    """Cases that are planned together, as many of every request as the counts say.

    Args:
        requests: The user's requests.
        counts: Cases of every request.
        stream: Stream of the random numbers.
        seed: Cohort seed.
        begin: Index of the first of them in the cohort.
        first: Cases that the cohort was begun with, which decides how its names are written.
        rule_of: Function that returns the growth rule of a label's lesions.
    """
    turns = sorted(((turn + 0.5) / count, place, turn) for place, count in enumerate(counts) for turn in range(count))
    lesions = [
        _draw_lesions(request, f"{stream}/{place}", count, seed, rule_of)
        for place, (request, count) in enumerate(zip(requests, counts, strict=True))
    ]
    return [
        CasePlan(
            case_id=_case_id(index, first),
            index=index,
            request=requests[place].text,
            lesions=lesions[place][turn],
            required_ids=tuple(part.label_id for part in requests[place].lesions if part.size is None),
        )
        for index, (_, place, turn) in enumerate(turns, start=begin)
    ]


def plan_from_texts(
    texts: Sequence[str],
    *,
    vocabulary: Vocabulary,
    num_cases: int,
    seed: int,
    distributions: Mapping[str, SizeDistribution] | None = None,
    grown_from: Sequence[int] = (),
) -> CohortPlan:
    """Parse label requests, and plan a cohort from them.

    Args:
        texts: One request per entry.
        vocabulary: The labels that may be requested.
        num_cases: Number of cases of the cohort.
        seed: Cohort seed.
        distributions: Label name -> size distribution that percentiles refer to, instead of the package's own.
        grown_from: Earlier numbers of cases of a cohort that has grown, ascending.

    Raises:
        VocabularyError: A label is unknown.
        RequestError: A request cannot be read, or there are fewer cases than requests.
    """
    requests = parse_requests(texts, vocabulary=vocabulary, distributions=distributions)
    return plan_cohort(requests, num_cases=num_cases, seed=seed, grown_from=grown_from)


def plan_given_maps(
    names: Sequence[str], *, num_cases: int, label_ids: Sequence[int] = (), first: int | None = None
) -> CohortPlan:
    """Plan one case for each given label map; if there are more cases than maps, maps are used repeatedly.

    Args:
        names: Names of the label maps, in the order of their bank.
        num_cases: Number of cases of the cohort.
        label_ids: Vocabulary ids to keep in the label files; if empty, every label but the body.
        first: Number of cases that the cohort was begun with, if it has grown since.
    """
    cases = (
        CasePlan(
            _case_id(index, first or num_cases), index, names[index % len(names)], (), (), map_index=index % len(names)
        )
        for index in range(num_cases)
    )
    return CohortPlan(tuple(cases), tuple(sorted(set(label_ids))))


def plan_bare_images(num_cases: int, *, first: int | None = None) -> CohortPlan:
    """Plan images that are drawn without a label map.

    Args:
        num_cases: Number of cases of the cohort.
        first: Number of cases that the cohort was begun with, if it has grown since.
    """
    cases = (CasePlan(_case_id(index, first or num_cases), index, "image only", (), ()) for index in range(num_cases))
    return CohortPlan(tuple(cases), ())


def number_case(case: CasePlan, index: int) -> CasePlan:
    """Return a planned case with another index, and the name that belongs to it.

    Args:
        case: Planned case, not modified.
        index: Position in the cohort, from 0; the name becomes ``case_0001`` for 0, and so on.
    """
    return replace(case, case_id=_case_id(index, 1), index=index)


def _case_id(index: int, num_cases: int) -> str:
    return f"case_{index + 1:0{max(4, len(str(num_cases)))}d}"


def _draw_lesions(
    request: CaseRequest, stream: str, count: int, seed: int, rule_of: FindRule
) -> list[tuple[Lesion, ...]]:
    """The lesions of every case of a request, in the order of its turns."""
    wanted = [(part, part.size) for part in request.lesions for _ in range(part.count) if part.size is not None]
    columns = []
    for index, (part, size) in enumerate(wanted):
        rng = numpy_generator(seed, f"{stream}/{index}")
        strata = rng.permutation(count)
        places = [(int(stratum) + float(rng.random())) / count for stratum in strata]
        columns.append([_place_lesion(index, part, size, place, rule_of(part.label_name)) for place in places])
    return [tuple(column[turn] for column in columns) for turn in range(count)]


def _place_lesion(index: int, part: LesionRequest, size: SizeRange, position: float, rule: GrowthRule) -> Lesion:
    """The lesion at a position in [0, 1] of a size range."""
    percentile = None
    if size.low_percentile is not None and size.high_percentile is not None:
        percentile = size.low_percentile + position * (size.high_percentile - size.low_percentile)
    return Lesion(
        part.label_id,
        part.label_name,
        size.at(position),
        percentile,
        size_source=None if size.distribution is None else size.distribution.source,
        index=index,
        hosts=part.hosts,
        rule=rule,
    )
