"""Lesions that a cohort needs to balance a real dataset: by label, by lesions per case, and by size.

The rule. Every planned case takes the number of lesions per case that the fewest cases have; each of its lesions goes
to the size that the fewest lesions of such cases have. Real and planned ones count alike, so that the largest deficit
is always filled first. Ties go to fewer lesions and to the smaller size. Nothing is random: the same dataset and the
same number of cases give the same plan.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from maisi_aug.cohort.grammar import MAX_COUNT, MAX_SIZE, CaseRequest, WrittenRequest, allot_cases, parse_requests
from maisi_aug.errors import RequestError
from maisi_aug.vocabulary.labels import Vocabulary
from maisi_aug.vocabulary.sizes import diameter_mm, volume_ml

DEFAULT_EDGES_MM = (5.0, 10.0, 20.0, 30.0, 50.0, 100.0)
DEFAULT_MAX_LESIONS = 3
_SAME_MM = 1e-6
MAX_FULLNESS = 1.5
"""Volume of a case's lesions, each in the middle of its bin, as a multiple of the largest size that is planned: three
lesions of that size would seldom find room in one organ."""


@dataclass(frozen=True, slots=True)
class SizeBins:
    """Bins of lesion sizes by equivalent diameter, with an open bin at either end.

    Attributes:
        edges_mm: Ascending edges in mm, at least two; smaller and larger lesions are counted in the open bins.
    """

    edges_mm: tuple[float, ...] = DEFAULT_EDGES_MM

    def __post_init__(self) -> None:
        rises = all(low + _SAME_MM < high for low, high in pairwise(self.edges_mm))
        if len(self.edges_mm) < 2 or not rises or self.edges_mm[0] <= 0 or self.edges_mm[-1] > MAX_SIZE["mm"]:
            raise RequestError(
                f"Size bins: expected at least two rising diameters above 0 and at most {MAX_SIZE['mm']:g} mm, found "
                f"{', '.join(f'{edge:g}' for edge in self.edges_mm)}. Write them as 5,10,20,30,50."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all bins for tables, including the open bins at both ends."""
        low, high = self.edges_mm[0], self.edges_mm[-1]
        inner = (f"{a:g}-{b:g} mm" for a, b in pairwise(self.edges_mm))
        return (f"under {low:g} mm", *inner, f"{high:g} mm and more")

    def place_of(self, volume: float) -> int:
        """Return the index of the bin that a volume in mL falls into; 0 is the open bin below the first edge."""
        wide = diameter_mm(volume) + _SAME_MM  # a sphere of an edge belongs above it, whatever its volume rounds to
        return sum(edge <= wide for edge in self.edges_mm)


@dataclass(frozen=True, slots=True)
class LesionCensus:
    """Volumes of all lesions of one label in a real dataset, case by case.

    Attributes:
        label: Name of the lesion in the vocabulary.
        source: Name of the lesion in the dataset, shown for the user to check.
        volumes_ml: For each case, the volumes of its lesions in mL; empty for a case without lesions.
    """

    label: str
    source: str
    volumes_ml: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class BalanceTarget:
    """A lesion whose sizes and counts are to be balanced, with the sizes that may be planned.

    Attributes:
        label_id: Vocabulary id of the lesion.
        label: Name of the lesion in the vocabulary.
        low_mm: Smallest equivalent diameter in mm that may be planned.
        high_mm: Largest equivalent diameter in mm that may be planned.
        organs: Names of organs that every case must contain.
        request: The label request, with its share.
        has_size: Whether the user set the limits; otherwise no lesion larger than the dataset's largest is planned.
    """

    label_id: int
    label: str
    low_mm: float
    high_mm: float
    organs: tuple[str, ...]
    request: CaseRequest
    has_size: bool = False


def read_targets(
    texts: Sequence[str], *, vocabulary: Vocabulary, bins: SizeBins, least_ml: float = 0.0
) -> tuple[BalanceTarget, ...]:
    """Parse label requests as targets of a balance, where a size limits the sizes that may be planned.

    Args:
        texts: Requests, one lesion each, with organs and a share if wanted.
        vocabulary: The labels that may be requested.
        bins: Size bins, whose outer edges are the limits for requests without a size.
        least_ml: Smallest lesion volume in mL that the output grid can show.

    Raises:
        VocabularyError: A label is unknown.
        RequestError: A request has no lesion, several lesions or a count, or its sizes lie outside all bins.
    """
    requests = parse_requests([_with_size(text, vocabulary, bins) for text in texts], vocabulary=vocabulary)
    targets = [_to_target(*pair, bins, least_ml) for pair in zip(texts, requests, strict=True)]
    twice = [label for label, count in Counter(target.label for target in targets).items() if count > 1]
    if twice:
        raise RequestError(
            f"Label requests: '{twice[0]}' is requested more than once, which balancing does not allow. Join the "
            "requests."
        )
    return tuple(targets)


def _with_size(text: str, vocabulary: Vocabulary, bins: SizeBins) -> str:
    """The request with the range of the bins where its lesion has no size."""
    written, whole = WrittenRequest.read(text), f"{bins.edges_mm[0]:g}-{bins.edges_mm[-1]:g}mm"
    parts = tuple(
        (name, whole if size is None and name and vocabulary.label(name).kind == "tumor" else size)
        for name, size in written.parts
    )
    return str(replace(written, parts=parts))


def _to_target(text: str, request: CaseRequest, bins: SizeBins, least_ml: float) -> BalanceTarget:
    lesions = [part for part in request.lesions if part.size is not None]
    if len(lesions) != 1 or lesions[0].count > 1:
        found = "none" if not lesions else " and ".join(f"'{part.label_name}' x{part.count}" for part in lesions)
        raise RequestError(
            f"Label request '{text}': balancing needs one lesion without a count, found {found}. The balance chooses "
            "the number of lesions in a case; limit it with --max-lesions."
        )
    lesion = lesions[0]
    assert lesion.size is not None
    low = max(diameter_mm(lesion.size.low_ml), bins.edges_mm[0], diameter_mm(least_ml))
    high = min(diameter_mm(lesion.size.high_ml), bins.edges_mm[-1])
    if high <= low + _SAME_MM:
        raise RequestError(
            f"Label request '{text}': no size lies both within the bins ({bins.edges_mm[0]:g}-{bins.edges_mm[-1]:g} "
            f"mm) and above a voxel of the grid ({diameter_mm(least_ml):.1f} mm). Change the size or --size-bins."
        )
    organs = tuple(part.label_name for part in request.lesions if part.size is None)
    return BalanceTarget(lesion.label_id, lesion.label_name, low, high, organs, request, has_size=":" in text)


@dataclass(frozen=True)
class LabelBalance:
    """Existing and planned cases of one label, counted by lesions per case and by lesion size.

    Cases are counted by their number of lesions 0, 1, ..., where the last count means "and more". Lesions are counted
    by lesions per case (from 1) and size bin. Lesions below the first bin do not count for lesions per case, because
    many are specks.

    Attributes:
        target: The lesion and its limits.
        source: Name of the lesion in the dataset.
        bins: Bins of the sizes.
        real_cases: Number of cases of the dataset, by lesions per case.
        real_lesions: Number of lesions of the dataset, by lesions per case and size bin.
        planned_cases: Number of cases that the plan adds, by lesions per case.
        planned_lesions: Number of lesions that the plan adds, by lesions per case and size bin.
        combinations: Number of planned cases of every kind, by the size bins of their lesions.
    """

    target: BalanceTarget
    source: str
    bins: SizeBins
    real_cases: tuple[int, ...]
    real_lesions: tuple[tuple[int, ...], ...]
    planned_cases: tuple[int, ...] = ()
    planned_lesions: tuple[tuple[int, ...], ...] = ()
    combinations: Mapping[tuple[int, ...], int] = field(default_factory=dict)

    @cached_property
    def open_bins(self) -> tuple[int, ...]:
        """Indices of the size bins that the plan may fill: those within the limits of the target."""
        return tuple(place for place in range(1, len(self.bins.edges_mm)) if self._part_mm(place) is not None)

    @property
    def num_planned(self) -> int:
        """Number of cases that the plan adds."""
        return sum(self.planned_cases)

    def _part_mm(self, place: int) -> tuple[float, float] | None:
        """Return the part of a bin within the limits of the target."""
        low = max(self.bins.edges_mm[place - 1], self.target.low_mm)
        high = min(self.bins.edges_mm[place], self.target.high_mm)
        return (low, high) if high > low + _SAME_MM else None

    def range_mm(self, place: int) -> tuple[float, float]:
        """Return the least and largest diameter in mm that are planned in a size bin, within the target's limits."""
        part = self._part_mm(place)
        assert part is not None
        return part

    def lacking(self, *, planned: bool) -> list[list[int]]:
        """Return, by lesions per case and bin, how many lesions are missing to reach the fullest bin of the row.

        Bins that may not be filled have 0.

        Args:
            planned: Whether to count planned lesions, too.
        """
        rows = _add(self.real_lesions, self.planned_lesions) if planned else self.real_lesions
        result = []
        for row in rows:
            fullest = max(row[place] for place in self.open_bins)
            result.append([fullest - count if place in self.open_bins else 0 for place, count in enumerate(row)])
        return result

    def evenness(self, *, planned: bool) -> float:
        """Return how evenly lesions are spread over the cells that may be filled: 0 if one has all, 1 if all are equal.

        The measure is Pielou's J (Pielou, "The measurement of diversity in different types of biological collections",
        1966).

        Args:
            planned: Whether to count planned lesions, too.
        """
        rows = _add(self.real_lesions, self.planned_lesions) if planned else self.real_lesions
        counts = [row[place] for row in rows for place in self.open_bins]
        total = sum(counts)
        if not total or len(counts) < 2:
            return 0.0
        shares = [count / total for count in counts if count]
        return -sum(share * math.log(share) for share in shares) / math.log(len(counts)) + 0.0

    def to_json(self) -> dict[str, Any]:
        """Return target, bins and counts as a JSON-able dict."""
        after = _add(self.real_lesions, self.planned_lesions)
        return {
            "label": self.target.label,
            "label_id": self.target.label_id,
            "source": self.source,
            "size_bins": list(self.bins.names),
            "planned_bins": [self.bins.names[place] for place in self.open_bins],
            "lesions_per_case": [*map(str, range(len(self.real_cases) - 1)), f"{len(self.real_cases) - 1} and more"],
            "real_cases": list(self.real_cases),
            "planned_cases": list(self.planned_cases),
            "real_lesions": [list(row) for row in self.real_lesions],
            "planned_lesions": [list(row) for row in self.planned_lesions],
            "lesions_after": [list(row) for row in after],
            "lacking_before": self.lacking(planned=False),
            "lacking_after": self.lacking(planned=True),
            "evenness_before": round(self.evenness(planned=False), 4),
            "evenness_after": round(self.evenness(planned=True), 4),
        }


def count_lesions(
    census: LesionCensus, target: BalanceTarget, *, bins: SizeBins, max_lesions: int = DEFAULT_MAX_LESIONS
) -> LabelBalance:
    """Count the cases and lesions of a dataset by lesions per case and size bin; nothing is planned yet.

    Args:
        census: Volumes of the lesions of the dataset.
        target: The lesion and its limits.
        bins: Bins of the sizes.
        max_lesions: Cases with more lesions count as having this many.

    Raises:
        RequestError: ``max_lesions`` cannot be requested for a case, or all lesions of the dataset are smaller than the
            smallest that can be planned and the request has no size.
    """
    if not 1 <= max_lesions <= MAX_COUNT:
        raise RequestError(
            f"Lesions per case: expected 1 to {MAX_COUNT}, found {max_lesions}. Choose another --max-lesions."
        )
    largest = max((diameter_mm(volume) for volumes in census.volumes_ml for volume in volumes), default=0.0)
    if not target.has_size and largest > 0:
        if largest <= target.low_mm + _SAME_MM:
            raise RequestError(
                f"Label '{target.label}': no lesion of the dataset is above {target.low_mm:.3g} mm, the smallest "
                f"size that is planted; the largest has {largest:.3g} mm. Lower the first of --size-bins if the grid "
                "can show it, or request larger lesions explicitly with "
                f"'{target.label}:{target.low_mm:.3g}-{target.high_mm:.3g}mm'."
            )
        # Just above it, so that the bin of the largest one stays open where it begins with it.
        target = replace(target, high_mm=min(target.high_mm, math.ceil(largest + _SAME_MM)))
    cases = [0] * (max_lesions + 1)
    lesions = [[0] * len(bins.names) for _ in range(max_lesions)]
    for volumes in census.volumes_ml:
        places = [bins.place_of(volume) for volume in volumes]
        number = min(sum(place > 0 for place in places), max_lesions)
        cases[number] += 1
        for place in places:
            # A case with nothing but specks has no row of its own; its specks stand with those of single lesions.
            lesions[max(number, 1) - 1][place] += 1
    rows = tuple(map(tuple, lesions))
    nothing = tuple((0,) * len(bins.names) for _ in range(max_lesions))
    return LabelBalance(target, census.source, bins, tuple(cases), rows, (0,) * len(cases), nothing)


def fill_deficits(balances: Sequence[LabelBalance], *, num_cases: int) -> tuple[LabelBalance, ...]:
    """Plan cases that fill the gaps in the sizes and counts of lesions, by the rule that this module describes.

    Labels with a share get it; without shares, every case goes to the label that occurs in the fewest cases.

    Args:
        balances: Existing cases of each label.
        num_cases: Number of cases to plan.

    Raises:
        RequestError: There are fewer cases than labels with shares.
    """
    if any(balance.target.request.share is not None for balance in balances):
        counts = allot_cases([balance.target.request for balance in balances], num_cases)
    else:
        counts = _level([sum(balance.real_cases[1:]) for balance in balances], num_cases)
    return tuple(_fill(balance, count) for balance, count in zip(balances, counts, strict=True))


def _level(held: Sequence[int], num_more: int) -> list[int]:
    """Return how many new items each gets if every item goes to the one with the fewest."""
    levels = list(held)
    for _ in range(num_more):
        levels[levels.index(min(levels))] += 1
    return [level - had for level, had in zip(levels, held, strict=True)]


def _fill(balance: LabelBalance, num_cases: int) -> LabelBalance:
    per_case = _level(balance.real_cases[1:], num_cases)
    planned = [[0] * len(balance.bins.names) for _ in per_case]
    combinations: Counter[tuple[int, ...]] = Counter()
    for row, count in enumerate(per_case):
        for _ in range(count):
            chosen = _choose_bins(balance, row, planned[row])
            for place in chosen:
                planned[row][place] += 1
            combinations[tuple(sorted(chosen))] += 1
    lesions = tuple(map(tuple, planned))
    return replace(
        balance,
        planned_cases=(0, *per_case),
        planned_lesions=lesions,
        combinations={bins: combinations[bins] for bins in sorted(combinations)},
    )


def _choose_bins(balance: LabelBalance, row: int, planned: Sequence[int]) -> list[int]:
    """The size bins of one case with ``row + 1`` lesions: the emptiest that still find room beside the others."""
    level = {place: balance.real_lesions[row][place] + planned[place] for place in balance.open_bins}
    middle = {place: volume_ml(math.sqrt(math.prod(balance.range_mm(place)))) for place in level}
    smallest = min(level)
    left = volume_ml(balance.range_mm(max(level))[1]) * MAX_FULLNESS
    chosen: list[int] = []
    for number in range(row, -1, -1):
        # What the lesions still to come need at least.
        room = left - number * middle[smallest]
        fitting = [place for place in level if middle[place] <= room] or [smallest]
        place = min(fitting, key=lambda place: (level[place], place))
        level[place] += 1
        left -= middle[place]
        chosen.append(place)
    return chosen


def to_requests(balances: Sequence[LabelBalance]) -> tuple[str, ...]:
    """Return the planned cases as label requests, from which the same cohort can be made without the dataset."""
    total = sum(balance.num_planned for balance in balances)
    return tuple(
        f"{_spell_case(balance, places)}@{count}/{total}"
        for balance in balances
        for places, count in balance.combinations.items()
    )


def _spell_case(balance: LabelBalance, places: Sequence[int]) -> str:
    parts = []
    for place, count in sorted(Counter(places).items()):
        low, high = balance.range_mm(place)
        parts.append(f"{balance.target.label}:{low:.6g}-{high:.6g}mm" + (f"x{count}" if count > 1 else ""))
    return "+".join((*parts, *balance.target.organs))


def _add(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(a + b for a, b in zip(row, more, strict=True)) for row, more in zip(first, second, strict=True))
