"""The plan of a cohort: which case holds which lesions of which size. Cheap, and decided before anything is drawn.

A plan depends on the requests, the number of cases and the cohort seed alone. Sizes are stratified: the range of a
request is cut into as many equal parts as it has cases, each case gets one part, in random order. The requests take
turns, so that a cohort that is stopped early is balanced too. A cohort that grows keeps its cases: the further ones are
planned by themselves in the same way, their sizes stratified among each other, and dealt to the requests so that all
cases together have the shares that were asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from maisi_aug.cohort.requests import CaseRequest, LesionRequest, SizeRange, allot_cases, allot_more, parse_requests
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.vocabulary.labels import Vocabulary
from maisi_aug.vocabulary.sizes import SizeDistribution, diameter_mm


@dataclass(frozen=True, slots=True)
class PlannedLesion:
    """A lesion that a case shall hold.

    Attributes:
        label_id: Vocabulary id.
        label: Name in the vocabulary.
        volume_ml: Wanted volume.
        diameter_mm: Of the sphere of that volume.
        percentile: The volume as a fraction of the size reference, where the request was one.
        size_source: What the percentile refers to; says so where that is a stand-in.
    """

    label_id: int
    label: str
    volume_ml: float
    diameter_mm: float
    percentile: float | None
    size_source: str | None = None


@dataclass(frozen=True, slots=True)
class CasePlan:
    """What one case shall hold.

    Attributes:
        case_id: Name of the case and stem of its files, ``case_0001`` for the first.
        index: Position in the cohort, from 0.
        request: The request it serves, as the user typed it.
        lesions: Its lesions.
        required_ids: Organs that the request or the user's ``anatomy`` names.
        map_index: Place of the given label map in its bank that the case is drawn from as it is; None otherwise.
    """

    case_id: str
    index: int
    request: str
    lesions: tuple[PlannedLesion, ...]
    required_ids: tuple[int, ...]
    map_index: int | None = None

    @property
    def label_ids(self) -> tuple[int, ...]:
        """Lesions and organs that the case shall hold, ascending."""
        return tuple(sorted({*self.required_ids, *(lesion.label_id for lesion in self.lesions)}))

    @property
    def asked(self) -> str:
        """What the case shall hold, as the seed knows it: lesions with their volumes, and organs.

        The words of the request do not matter, unless the case asks for neither: a given map has its name.
        """
        lesions = [f"{lesion.label_id}:{lesion.volume_ml:.6g}" for lesion in self.lesions]
        organs = [str(label_id) for label_id in sorted(self.required_ids)]
        return "+".join([*lesions, *organs]) or self.request


@dataclass(frozen=True, slots=True)
class CohortPlan:
    """All cases of a cohort.

    Attributes:
        cases: In the order in which they are made.
        requested_ids: Labels that any request names, or those of the user's ``anatomy``, ascending; they make up the
            files in ``labels/``. Given label maps without a request keep all but the body there.
    """

    cases: tuple[CasePlan, ...]
    requested_ids: tuple[int, ...]

    @property
    def size_sources(self) -> dict[str, str]:
        """What the percentiles of every label refer to; a label that is asked for in mm or mL has none."""
        lesions = (lesion for case in self.cases for lesion in case.lesions)
        return {lesion.label: lesion.size_source for lesion in lesions if lesion.size_source is not None}

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON types."""
        return asdict(self)


def plan_cohort(
    requests: Sequence[CaseRequest],
    *,
    num_cases: int,
    seed: int,
    grown_from: Sequence[int] = (),
) -> CohortPlan:
    """Deal the cases out to the requests and draw the size of every lesion.

    Args:
        requests: What the user asked for.
        num_cases: Cases of the cohort.
        seed: Cohort seed.
        grown_from: Numbers of cases that the cohort had before it grew, ascending; their cases stay as they were.

    Raises:
        RequestError: When there are fewer cases than requests.
    """
    first, *steps = (*grown_from, num_cases)
    counts = allot_cases(requests, first)
    cases = _plan_batch(requests, counts, stream="plan", seed=seed, begin=0, first=first)
    for number, bound in enumerate(steps, start=1):
        added = allot_more(requests, counts, bound)
        cases += _plan_batch(requests, added, stream=f"plan {number}", seed=seed, begin=len(cases), first=first)
        counts = [before + more for before, more in zip(counts, added, strict=True)]
    requested = {part.label_id for request in requests for part in request.lesions}
    return CohortPlan(tuple(cases), tuple(sorted(requested)))


def _plan_batch(
    requests: Sequence[CaseRequest], counts: Sequence[int], *, stream: str, seed: int, begin: int, first: int
) -> list[CasePlan]:
    """Cases that are planned together, as many of every request as the counts say.

    Args:
        requests: What the user asked for.
        counts: Cases of every request.
        stream: Of the random numbers.
        seed: Cohort seed.
        begin: Index of the first of them in the cohort.
        first: Cases that the cohort was begun with, which decides how its names are written.
    """
    turns = sorted(((turn + 0.5) / count, place, turn) for place, count in enumerate(counts) for turn in range(count))
    lesions = [
        _draw_lesions(request, f"{stream}/{place}", count, seed)
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
    """Read label requests and plan a cohort.

    Args:
        texts: One request per entry.
        vocabulary: The labels that may be asked for.
        num_cases: Cases of the cohort.
        seed: Cohort seed.
        distributions: Label name -> the sizes that percentiles refer to, instead of the package's own.
        grown_from: Numbers of cases that the cohort had before it grew.

    Raises:
        VocabularyError: When a label is unknown.
        RequestError: When a request cannot be read or the cases do not suffice.
    """
    requests = parse_requests(texts, vocabulary=vocabulary, distributions=distributions)
    return plan_cohort(requests, num_cases=num_cases, seed=seed, grown_from=grown_from)


def plan_given_maps(
    names: Sequence[str], *, num_cases: int, label_ids: Sequence[int] = (), first: int | None = None
) -> CohortPlan:
    """Plan one case for each label map, going round again where more are wanted.

    Args:
        names: Of the label maps, in the order of their bank.
        num_cases: Cases of the cohort.
        label_ids: Labels to keep in the label files; every label but the body when there are none.
        first: Cases that the cohort was begun with, where it has grown.
    """
    cases = (
        CasePlan(
            _case_id(index, first or num_cases), index, names[index % len(names)], (), (), map_index=index % len(names)
        )
        for index in range(num_cases)
    )
    return CohortPlan(tuple(cases), tuple(sorted(set(label_ids))))


def plan_bare_images(num_cases: int, *, first: int | None = None) -> CohortPlan:
    """Plan images that are drawn without a label map; a cohort that has grown was begun with the first of them."""
    cases = (CasePlan(_case_id(index, first or num_cases), index, "image only", (), ()) for index in range(num_cases))
    return CohortPlan(tuple(cases), ())


def number_case(case: CasePlan, index: int) -> CasePlan:
    """The same case at another place."""
    return replace(case, case_id=_case_id(index, 1), index=index)


def _case_id(index: int, num_cases: int) -> str:
    return f"case_{index + 1:0{max(4, len(str(num_cases)))}d}"


def _draw_lesions(request: CaseRequest, stream: str, count: int, seed: int) -> list[tuple[PlannedLesion, ...]]:
    """The lesions of every case of a request, in the order of its turns."""
    wanted = [(part, part.size) for part in request.lesions for _ in range(part.count) if part.size is not None]
    columns = []
    for number, (part, size) in enumerate(wanted):
        rng = numpy_generator(seed, f"{stream}/{number}")
        strata = rng.permutation(count)
        columns.append([_place_lesion(part, size, (int(stratum) + float(rng.random())) / count) for stratum in strata])
    return [tuple(column[turn] for column in columns) for turn in range(count)]


def _place_lesion(part: LesionRequest, size: SizeRange, position: float) -> PlannedLesion:
    """The lesion at a position in [0, 1] of a size range."""
    volume_ml = size.at(position)
    percentile = None
    if size.low_percentile is not None and size.high_percentile is not None:
        percentile = size.low_percentile + position * (size.high_percentile - size.low_percentile)
    source = None if size.distribution is None else size.distribution.source
    return PlannedLesion(part.label_id, part.label_name, volume_ml, diameter_mm(volume_ml), percentile, source)
