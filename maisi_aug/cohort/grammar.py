"""Label requests: what a user requests in one line of text, read, checked and dealt out to the cases of a cohort.

Grammar: ``NAME[:SIZE][@SHARE]``. SIZE is a percentile (``0.3``, ``0.1-0.6``), an equivalent diameter (``8mm``,
``8-20mm``, ``1cm``) or a volume (``4mL``, ``1-3mL``, ``5cc``, ``2cm3``), each with an optional count (``x3``). ``+``
joins what one case holds; SHARE (``@0.4``, ``@40%``, ``@2/5``) comes last and belongs to all of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maisi_aug.errors import MaisiAugError, RequestError
from maisi_aug.vocabulary.labels import Label, Vocabulary
from maisi_aug.vocabulary.sizes import SIZE_UNITS, SizeDistribution, reference_distribution, volume_ml

DEFAULT_PERCENTILES = (0.05, 0.95)
MAX_COUNT = 50
# Far above the largest measured lesion (2.6 L, 170 mm); beyond it a unit was mistyped.
MAX_SIZE = {"mm": 400.0, "ml": 30_000.0}
_SHARE_TOLERANCE = 1e-9

_NUMBER = r"\d+\.?\d*|\.\d+"
# The longest first: 2cm3 is a volume, and three lesions of two centimetres are 2cmx3.
_UNIT = "|".join(sorted(map(re.escape, SIZE_UNITS), key=len, reverse=True))
_SIZE = re.compile(
    rf"(?:(?P<low>{_NUMBER})(?P<low_unit>{_UNIT})?(?:-(?P<high>{_NUMBER}))?(?P<unit>{_UNIT})?)?"
    r"(?:x(?P<count>\d{1,6}))?"
)
_SHARE = re.compile(rf"(?P<number>{_NUMBER})(?:(?P<percent>%)|/(?P<divisor>[1-9]\d*))?")
_SIZE_EXAMPLES = "a size such as 0.3, 0.1-0.6, 8mm, 1-2cm, 4mL, 5cc or 10-30mmx3"


@dataclass(frozen=True, slots=True)
class SizeRange:
    """Range of lesion volumes that a label request allows.

    Attributes:
        low_ml: Smallest volume in mL.
        high_ml: Largest volume in mL; equal to ``low_ml`` for a single size.
        low_percentile: Percentile in [0, 1] of the smallest volume; None if mm or mL were requested.
        high_percentile: Percentile in [0, 1] of the largest volume; None if mm or mL were requested.
        text: The size as it was written.
        distribution: Size distribution that the percentiles refer to; None if mm or mL were requested.
    """

    low_ml: float
    high_ml: float
    low_percentile: float | None
    high_percentile: float | None
    text: str
    distribution: SizeDistribution | None = None

    def at(self, u: float) -> float:
        """Return the volume in mL at position ``u`` in [0, 1] of the range.

        A range of percentiles is interpolated in percentiles, so that a uniform ``u`` draws sizes as they are
        distributed over patients. A range of mm or mL is interpolated in the logarithm of the volume, so that small
        sizes are not rare.
        """
        if self.distribution is not None and self.low_percentile is not None and self.high_percentile is not None:
            return self.distribution.volume_ml(self.low_percentile + u * (self.high_percentile - self.low_percentile))
        if self.low_ml == self.high_ml:
            return self.low_ml
        volume = float(self.low_ml ** (1.0 - u) * self.high_ml**u)
        return min(self.high_ml, max(self.low_ml, volume))


@dataclass(frozen=True, slots=True)
class LesionRequest:
    """One label of a case: an organ that must be present, or lesions of a size.

    Attributes:
        label_id: Vocabulary id of the label.
        label_name: Name in the vocabulary, whichever alias was requested.
        size: Sizes to draw from, or None for an organ of any size.
        count: Number of lesions; 1 for an organ.
        hosts: Vocabulary ids of the organs that the lesions may replace.
    """

    label_id: int
    label_name: str
    size: SizeRange | None
    count: int = 1
    hosts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CaseRequest:
    """Labels requested together in one case, and the share of such cases in the cohort.

    Attributes:
        lesions: The labels requested together, in the order written.
        share: Fraction in (0, 1] of the cohort; None for an equal part of the rest.
        text: The request as it was written.
    """

    lesions: tuple[LesionRequest, ...]
    share: float | None
    text: str


@dataclass(frozen=True, slots=True)
class WrittenRequest:
    """A label request split into its parts, before names and sizes are looked up.

    Attributes:
        text: The request as the user wrote it.
        parts: Name and size of each label joined by ``+``; the size is None if there is no colon.
        share: Text of the share after ``@``; None if there is none.
    """

    text: str
    parts: tuple[tuple[str, str | None], ...]
    share: str | None

    @classmethod
    def read(cls, text: str) -> WrittenRequest:
        """Split a label request such as ``liver+hepatic tumor:15mm@25%`` into its parts.

        Raises:
            RequestError: The request has two shares.
        """
        body, at, share = text.rpartition("@") if "@" in text else (text, "", "")
        if "@" in body:
            raise RequestError(
                f"Label request '{text}': only one share is allowed, at the end, found {body.count('@') + 1}. It "
                "applies to everything joined by '+'."
            )
        pieces = (part.partition(":") for part in body.split("+"))
        parts = tuple((name.strip(), size.strip() if colon else None) for name, colon, size in pieces)
        return cls(text, parts, share.strip() if at else None)

    @staticmethod
    def is_name(text: str) -> bool:
        """Whether a label request is a single name, without size and share."""
        return not any(mark in text for mark in ":@+")

    def __str__(self) -> str:
        body = "+".join(name if size is None else f"{name}:{size}" for name, size in self.parts)
        return body if self.share is None else f"{body}@{self.share}"


def parse_requests(
    texts: Sequence[str],
    *,
    vocabulary: Vocabulary,
    distributions: Mapping[str, SizeDistribution] | None = None,
) -> tuple[CaseRequest, ...]:
    """Parse label requests.

    Args:
        texts: One request per entry, in the grammar of this module.
        vocabulary: The labels that may be requested.
        distributions: Label name -> size distribution that percentiles refer to, instead of the package's own.

    Raises:
        VocabularyError: If a label is unknown; the message offers the closest names.
        RequestError: If a request cannot be read, or the shares do not add up.
    """
    if not texts:
        raise RequestError("At least one label request is required, such as 'hepatic tumor:0.3'.")
    own = {vocabulary.id_of(name): distribution for name, distribution in (distributions or {}).items()}
    requests = tuple(_parse_case(WrittenRequest.read(text), vocabulary, own) for text in texts)
    _require_shares(requests)
    return requests


def label_names(texts: Sequence[str]) -> list[str]:
    """Return the label names in label requests, without looking up names or sizes."""
    return [name for text in texts for name, _ in WrittenRequest.read(text).parts]


def find_problems(texts: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    """Return the problems of label requests, each with its position; the sum of shares is not checked.

    Args:
        texts: Label requests, such as ``lung nodule:8-20mm``.
        vocabulary: The labels that may be requested.

    Returns:
        One sentence per request that cannot be read; an empty list if all can.
    """
    problems = []
    for place, text in enumerate(texts):
        try:
            _parse_case(WrittenRequest.read(text), vocabulary, {})
        except MaisiAugError as error:
            problems.append(f"labels[{place}]: {error}")
    return problems


def allot_cases(requests: Sequence[CaseRequest], num_cases: int) -> list[int]:
    """Return the number of cases for each request: by share, rounded by largest remainder, and at least one.

    Args:
        requests: Parsed label requests with their shares.
        num_cases: Number of cases of the cohort.

    Returns:
        One number per request, in the same order; together ``num_cases``.

    Raises:
        RequestError: There are fewer cases than requests.
    """
    if num_cases < max(1, len(requests)):
        raise RequestError(
            f"Number of cases: expected at least {max(1, len(requests))}, one per label request, found {num_cases}. "
            "Raise -n or request fewer labels."
        )
    shares = _shares(requests)
    # 0.3 x 10 is 3.0000000000000004 or 2.9999...: rounding keeps exact shares exact.
    quotas = [round(share * num_cases, 9) for share in shares]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(counts)), key=lambda place: (counts[place] - quotas[place], place))
    for place in by_remainder[: num_cases - sum(counts)]:
        counts[place] += 1
    while 0 in counts:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return counts


def allot_more(requests: Sequence[CaseRequest], counts: Sequence[int], num_cases: int) -> list[int]:
    """Distribute the additional cases of a growing cohort, each to the request that is furthest behind its share.

    Args:
        requests: Label requests with their shares.
        counts: Current number of cases of each request; never reduced.
        num_cases: Number of cases of the grown cohort.

    Returns:
        The number of additional cases of each request; their sum is ``num_cases`` minus the existing ones.
    """
    quotas = [share * num_cases for share in _shares(requests)]
    grown = list(counts)
    for _ in range(num_cases - sum(counts)):
        grown[max(range(len(grown)), key=lambda place: (round(quotas[place] - grown[place], 9), -place))] += 1
    return [after - before for after, before in zip(grown, counts, strict=True)]


def _shares(requests: Sequence[CaseRequest]) -> list[float]:
    """The share of every request; those that state none have equal parts of what is left."""
    open_share = 1.0 - sum(request.share for request in requests if request.share is not None)
    num_open = sum(request.share is None for request in requests)
    return [open_share / num_open if request.share is None else request.share for request in requests]


def _parse_case(written: WrittenRequest, vocabulary: Vocabulary, own: Mapping[int, SizeDistribution]) -> CaseRequest:
    share = None if written.share is None else _parse_share(written.share, written.text)
    lesions = tuple(_parse_lesion(name, size, written.text, vocabulary, own) for name, size in written.parts)
    return CaseRequest(lesions, share, written.text.strip())


def _parse_share(share_text: str, text: str) -> float:
    match = _SHARE.fullmatch(share_text)
    if match is None:
        raise RequestError(
            f"Label request '{text}': expected a share such as @0.4, @40% or @2/5 at the end, found "
            f"'@{share_text}'. Write the share last."
        )
    number = float(match["number"])
    share = number / (100.0 if match["percent"] else float(match["divisor"] or 1))
    if not 0.0 < share <= 1.0:
        is_percentage = match["divisor"] is None and 1.0 < number <= 100.0
        hint = f"Did you mean @{number:g}%?" if is_percentage else "Choose another share or leave it out."
        raise RequestError(
            f"Label request '{text}': expected a share above 0 and at most 1, found '@{share_text}'. {hint}"
        )
    return share


def _parse_lesion(
    name: str, size_text: str | None, text: str, vocabulary: Vocabulary, own: Mapping[int, SizeDistribution]
) -> LesionRequest:
    if not name:
        found = "" if size_text is None else f":{size_text}"
        raise RequestError(f"Label request '{text}': expected a label name, found '{found}'. Name a label.")
    label = vocabulary.label(name)
    if label.kind in ("background", "body", "slot"):
        meaning = "a placeholder slot without a meaning in this bundle" if label.kind == "slot" else f"'{label.name}'"
        raise RequestError(
            f"Label request '{text}': '{name}' is {meaning}; only organs and tumours can be requested. List the "
            "labels with 'maisi-aug labels'."
        )
    if size_text == "":
        raise RequestError(f"Label request '{text}': the size after ':' is missing. Add {_SIZE_EXAMPLES}.")
    if label.kind == "organ" and size_text is None:
        return LesionRequest(label.id, label.name, None)
    size_text = size_text or ""
    if label.kind == "organ" and not (label.hosts and label.id in own):
        raise RequestError(_organ_with_size_message(label, size_text, text, vocabulary))
    size, count = _parse_size(size_text, label, text, own.get(label.id))
    if label.kind == "organ" and count != 1:
        raise RequestError(
            f"Label request '{text}': '{label.name}' is an organ and cannot have a count, found x{count}. Leave the "
            "count out."
        )
    return LesionRequest(label.id, label.name, size, count, vocabulary.hosts_of(label.id))


def _organ_with_size_message(label: Label, size_text: str, text: str, vocabulary: Vocabulary) -> str:
    tumors = [vocabulary.name_of(tumor) for tumor in vocabulary.tumor_ids if label.id in vocabulary.hosts_of(tumor)]
    hint = f"Did you mean '{tumors[0]}:{size_text}'?" if tumors else "Leave the size out."
    return (
        f"Label request '{text}': '{label.name}' cannot have a size, found '{size_text}'; only lesions, and organs "
        f"whose sizes the bundle knows, have one. {hint}"
    )


def _parse_size(size_text: str, label: Label, text: str, own: SizeDistribution | None) -> tuple[SizeRange, int]:
    compact = re.sub(r"\s+", "", size_text).lower().replace("–", "-").replace("×", "x")
    match = _SIZE.fullmatch(compact)
    if match is None:
        raise RequestError(_unreadable_size_message(compact, size_text, text))
    count = _parse_count(match["count"], text)
    if match["low"] is None:
        return _percentile_range(*DEFAULT_PERCENTILES, label, text, own, size_text), count
    low_unit, unit = match["low_unit"], match["unit"] or match["low_unit"]
    if low_unit is not None and SIZE_UNITS[low_unit][0] != SIZE_UNITS[unit][0]:
        raise RequestError(
            f"Label request '{text}': both ends of a range must be diameters, or both volumes, found '{low_unit}' "
            f"and '{unit}'. Use one unit."
        )
    low = float(match["low"])
    high = float(match["high"]) if match["high"] is not None else low
    if unit is None:
        _require_rising(low, high, "", text, size_text)
        return _percentile_range(low, high, label, text, own, size_text), count
    kind, factor = SIZE_UNITS[unit]
    low, high = low * SIZE_UNITS[low_unit or unit][1], high * factor
    _require_rising(low, high, _spell_unit(kind), text, size_text)
    return _absolute_range(low, high, kind, text, size_text), count


def _require_rising(low: float, high: float, unit: str, text: str, size_text: str) -> None:
    if low > high:
        raise RequestError(
            f"Label request '{text}': expected the smaller size first, found '{size_text}'. "
            f"Did you mean {high:g}-{low:g}{unit}?"
        )


def _unreadable_size_message(compact: str, size_text: str, text: str) -> str:
    hint = "Correct the size."
    percents = re.fullmatch(rf"({_NUMBER})%?(?:-({_NUMBER}))?%", compact)
    if percents:
        hint = f"Did you mean {'-'.join(f'{float(end) / 100:g}' for end in percents.groups() if end)}?"
    elif "," in compact:
        hint = "Write decimals with a point, and repeat --labels or join with '+' for several labels."
    elif compact.startswith("-"):
        hint = "A size cannot be negative."
    return f"Label request '{text}': expected {_SIZE_EXAMPLES}, found '{size_text}'. {hint}"


def _parse_count(count_text: str | None, text: str) -> int:
    count = 1 if count_text is None else int(count_text)
    if not 1 <= count <= MAX_COUNT:
        raise RequestError(
            f"Label request '{text}': expected a count from x1 to x{MAX_COUNT}, found 'x{count}'. Choose another count."
        )
    return count


def _percentile_range(
    low: float, high: float, label: Label, text: str, own: SizeDistribution | None, size_text: str
) -> SizeRange:
    if high > 1.0:
        wrong = high if low <= 1.0 else low
        span = f"{low:g}" if low == high else f"{low:g}-{high:g}"
        raise RequestError(
            f"Size {wrong:g} in '{text}': expected a percentile in [0, 1] or a size with a unit, found {span}. "
            f"Did you mean {span}mm or {span}mL?"
        )
    distribution = own or reference_distribution(label.name)
    return SizeRange(distribution.volume_ml(low), distribution.volume_ml(high), low, high, size_text, distribution)


def _absolute_range(low: float, high: float, unit: str, text: str, size_text: str) -> SizeRange:
    if low <= 0.0 or high > MAX_SIZE[unit]:
        raise RequestError(
            f"Label request '{text}': expected a size above 0 and at most {MAX_SIZE[unit]:g} {_spell_unit(unit)}, "
            f"found '{size_text}'. Choose another size."
        )
    low_ml, high_ml = (volume_ml(low), volume_ml(high)) if unit == "mm" else (low, high)
    return SizeRange(low_ml, high_ml, None, None, size_text)


def _spell_unit(unit: str) -> str:
    return {"mm": "mm", "ml": "mL"}[unit]


def _require_shares(requests: Sequence[CaseRequest]) -> None:
    """Raise unless the shares leave something for every request and nothing for none."""
    given = [request.share for request in requests if request.share is not None]
    total = sum(given)
    if total > 1.0 + _SHARE_TOLERANCE:
        raise RequestError(
            f"Shares: the sum must be at most 1, found {total:g} over {len(given)} requests. Lower one of them."
        )
    if len(given) == len(requests) and total < 1.0 - _SHARE_TOLERANCE:
        raise RequestError(
            f"Shares: if every request has a share, the sum must be 1, found {total:g}. Raise one, or leave one out."
        )
    without = [request for request in requests if request.share is None]
    if without and total > 1.0 - _SHARE_TOLERANCE:
        raise RequestError(
            f"Shares: nothing is left for '{without[0].text}'. Lower another share, or give this request one too."
        )
