"""Do fewer sampling steps draw the same images? Two cohorts of the same maps and noise, case by case.

What the quality gates note in a manifest is compared: how many cases pass them, contrast and texture of lesions, and HU
of organs. An arm of fewer steps is proven where every quantity is equal within its margin, by two one-sided tests.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from maisi_aug.bundle_spec.schema import ProvenEquivalence
from maisi_aug.bundle_spec.solvers import MIN_PROOF_MAPS, Sampling
from maisi_aug.cohort.manifest import AttemptRecord, VerdictRecord
from maisi_aug.evaluation.output.files import to_markdown
from maisi_aug.evaluation.scores.equivalence import MIN_CASES, can_compare
from maisi_aug.evaluation.scores.paired import PairedDifference, compare_means, compare_shares, compare_spreads

REPORT_NAME: Final = "prove_steps"
SHARE_MARGIN: Final = 0.10
"""Of the cases that pass all gates."""
CONTRAST_MARGIN: Final = 0.10
"""Of a lesion's contrast, as a share of the mean at the full number of steps."""
SPREAD_MARGIN: Final = math.log(1.25)
"""Of the standard deviation of the contrast over cases, either way."""
TEXTURE_MARGIN: Final = math.log(1.10)
"""Of the noise around a lesion, or inside of an inserted one, either way."""
ORGAN_MARGIN_HU: Final = 5.0
"""Of an organ's median, or the next where that is more. Scanners are accepted with 5 HU of error in water (American
College of Radiology, "CT quality control manual", 2017: 0 +- 5 HU).
"""
ORGAN_MARGIN_SHARE: Final = 0.02
"""Of an organ's own HU: 17 HU in lungs of -850."""
MIN_ORGAN_MAPS: Final = 10
"""An organ that is judged in fewer maps is left out."""

Kind = Literal["contrast", "texture", "organ"]


@dataclass(frozen=True)
class CaseFigures:
    """Figures of one case.

    Attributes:
        is_accepted: Whether all gates passed.
        figures: (kind, label) -> mean over the lesions of the label, or the median HU of the organ.
    """

    is_accepted: bool
    figures: Mapping[tuple[Kind, str], float]


@dataclass(frozen=True)
class ArmResult:
    """Cases drawn with fewer steps, against the same ones at the full number.

    Attributes:
        sampling: Steps and solver.
        num_maps: Cases that both have an image of.
        equivalences: Every quantity that was compared.
        image_seconds: Median wall-clock time of an image in the full arm and in this one.
    """

    sampling: Sampling
    num_maps: int
    equivalences: tuple[ProvenEquivalence, ...]
    image_seconds: tuple[float, float]

    @property
    def failed(self) -> tuple[ProvenEquivalence, ...]:
        """Quantities that may differ by their margin or more."""
        return tuple(one for one in self.equivalences if not one.is_shown)

    @property
    def is_proven(self) -> bool:
        """Whether enough maps were drawn and all quantities are equivalent, HU or contrast among them."""
        has_images = any(one.unit == "HU" for one in self.equivalences)
        return self.num_maps >= MIN_PROOF_MAPS and has_images and not self.failed

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {
            "num_inference_steps": self.sampling.num_steps,
            "solver": self.sampling.solver,
            "num_maps": self.num_maps,
            "is_proven": self.is_proven,
            "image_seconds_full": self.image_seconds[0],
            "image_seconds": self.image_seconds[1],
            "equivalences": [{**one.model_dump(mode="json"), "is_shown": one.is_shown} for one in self.equivalences],
        }


def compare_arm(full: Sequence[AttemptRecord], fewer: Sequence[AttemptRecord], sampling: Sampling) -> ArmResult:
    """Compare the cases of two manifests that both have an image.

    Args:
        full: First attempts at the full number of steps.
        fewer: First attempts at the same cases with fewer steps.
        sampling: Steps and solver of the second.
    """
    before, after = ({one.case_index: one for one in records if "image" in one.seconds} for records in (full, fewer))
    indices = sorted(before.keys() & after.keys())
    pairs = [(read_figures(before[index]), read_figures(after[index])) for index in indices]
    seconds = tuple(
        float(np.median([records[index].seconds["image"] for index in indices])) if indices else 0.0
        for records in (before, after)
    )
    equivalences = tuple(_compare(pairs)) if len(pairs) >= MIN_CASES else ()
    return ArmResult(sampling, len(indices), equivalences, (seconds[0], seconds[1]))


def read_figures(record: AttemptRecord) -> CaseFigures:
    """Return what the gates noted of a case."""
    found: dict[tuple[Kind, str], list[float]] = defaultdict(list)
    for verdict in record.verdicts:
        for key, value in _read_verdict(verdict):
            if math.isfinite(value):
                found[key].append(value)
    passed = all(verdict.passed for verdict in record.verdicts)
    return CaseFigures(passed, {key: float(np.mean(values)) for key, values in found.items()})


def _read_verdict(verdict: VerdictRecord) -> Iterable[tuple[tuple[Kind, str], float]]:
    figures: Mapping[str, Any] = verdict.figures
    label = str(figures.get("label"))
    match verdict.gate:
        case "organ HU":
            for row in figures.get("organs", ()):
                if row["judged"]:
                    yield ("organ", str(row["organ"])), float(row["median_hu"])
        case "lesion visibility" if "contrast_hu" in figures:
            yield ("contrast", label), _number(figures["contrast_hu"])
            yield ("texture", label), _log(figures["noise_hu"])
        case "lesion contrast":
            yield ("contrast", label), _number(figures["contrast_hu"])
        case "noise texture":
            yield ("texture", label), _log(figures["lesion_to_host"])


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)  # what is not finite is null in a manifest


def _log(value: float | None) -> float:
    return math.log(value) if value is not None and 0 < value < math.inf else math.nan


def _compare(pairs: Sequence[tuple[CaseFigures, CaseFigures]]) -> Iterable[ProvenEquivalence]:
    passed = [np.array([pair[side].is_accepted for pair in pairs]) for side in (0, 1)]
    yield _to_entry(
        "cases that pass the gates", "share", len(pairs), float(passed[0].mean()), compare_shares(*passed), SHARE_MARGIN
    )
    keys = sorted({key for pair in pairs for key in pair[0].figures})
    for kind, label in keys:
        values = [
            (before.figures[kind, label], after.figures[kind, label])
            for before, after in pairs
            if (kind, label) in before.figures and (kind, label) in after.figures
        ]
        if len(values) >= (MIN_ORGAN_MAPS if kind == "organ" else MIN_CASES):
            yield from _compare_figure(kind, label, np.array(values))


def _compare_figure(kind: Kind, label: str, values: np.typing.NDArray[np.float64]) -> Iterable[ProvenEquivalence]:
    """Equivalences of one figure, of ``(N, 2)`` values at full and fewer steps."""
    num, mean = len(values), float(values[:, 0].mean())
    difference = compare_means(values[:, 1] - values[:, 0])
    if kind == "organ":
        margin = max(ORGAN_MARGIN_HU, ORGAN_MARGIN_SHARE * abs(mean))
        yield _to_entry(f"HU of {label}", "HU", num, mean, difference, margin)
    elif kind == "texture":
        yield _to_entry(f"texture at {label}", "log ratio", num, mean, difference, TEXTURE_MARGIN)
    else:
        margin = max(1.0, CONTRAST_MARGIN * float(np.abs(values[:, 0]).mean()))
        yield _to_entry(f"contrast of {label}", "HU", num, mean, difference, margin)
        if can_compare(values[:, 0], values[:, 1]):
            spread = compare_spreads(values[:, 0], values[:, 1])
            deviation = float(np.log(values[:, 0].std(ddof=1)))
            yield _to_entry(f"spread of contrast of {label}", "log ratio", num, deviation, spread, SPREAD_MARGIN)


def _to_entry(
    name: str, unit: str, num_maps: int, full: float, found: PairedDifference, margin: float
) -> ProvenEquivalence:
    numbers = {"full": full, "difference": found.value, "low": found.low, "high": found.high, "margin": margin}
    return ProvenEquivalence(
        name=name, unit=unit, num_maps=num_maps, **{key: round(value, 5) for key, value in numbers.items()}
    )


@dataclass(frozen=True)
class StepsReport:
    """The result of a proof.

    Attributes:
        header: Bundle, maps and full number of steps, as JSON types.
        arms: Arms in the order in which they were drawn: fewer and fewer steps, until one was not equal.
    """

    header: Mapping[str, Any]
    arms: tuple[ArmResult, ...] = field(default=())

    @property
    def proven(self) -> ArmResult | None:
        """The arm with the fewest steps that is proven, as all before it are; None without one."""
        found = None
        for arm in self.arms:
            if not arm.is_proven:
                break
            found = arm
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``prove_steps.json``."""
        proven = self.proven
        return {
            "measurement": REPORT_NAME,
            **self.header,
            "proven": None
            if proven is None
            else {"num_inference_steps": proven.sampling.num_steps, "solver": proven.sampling.solver},
            "arms": [arm.to_json() for arm in self.arms],
        }

    def to_markdown(self) -> str:
        """Return the report."""
        head = self.header
        lines = [
            f"# Fewer steps: {head['bundle']}\n",
            f"{self.spell_result()}\n",
            f"Same maps and noise at {head['full_steps']} steps (euler) and at fewer, `{head['command']}`: "
            f"{head['drawn']}. Equal: the 90% interval of the paired difference lies within the margin (two one-sided "
            "tests of 5%), for every quantity. Fewer and fewer steps are tried until one is not equal.\n",
        ]
        for arm in self.arms:
            verdict = "equal" if arm.is_proven else "not shown to be equal"
            before, after = arm.image_seconds
            lines += [
                f"## {arm.sampling.num_steps} steps, {arm.sampling.solver}: {verdict}\n",
                f"{arm.num_maps} maps; median image {after:.2f} s in place of {before:.2f} s.\n",
                to_markdown(
                    ("quantity", "unit", "maps", "full", "difference", "90% interval", "margin", "equal"),
                    [_spell_row(one) for one in arm.equivalences],
                ),
            ]
        return "\n".join(lines)

    def spell_result(self) -> str:
        """Return the result in one sentence."""
        proven, full = self.proven, self.header["full_steps"]
        if proven is not None:
            sampling = proven.sampling
            times = full / sampling.num_steps
            return (
                f"{self.header['bundle']}: {sampling.num_steps} steps of {sampling.solver} draw the same as {full}, in "
                f"{proven.num_maps} maps, with {times:.1f} times fewer evaluations of the networks."
            )
        if not self.arms:
            return f"{self.header['bundle']}: nothing was compared."
        arm = self.arms[0]
        if arm.num_maps < MIN_PROOF_MAPS:
            return (
                f"{self.header['bundle']}: no proof: {arm.num_maps} maps have an image, and {MIN_PROOF_MAPS} are "
                "needed. Use a larger --num-maps."
            )
        names = ", ".join(one.name for one in arm.failed[:3]) or "no HU to compare"
        return (
            f"{self.header['bundle']}: {arm.sampling.num_steps} steps of {arm.sampling.solver} are not shown to draw "
            f"the same as {full}: {names}."
        )


def _spell_row(one: ProvenEquivalence) -> tuple[str | float | int, ...]:
    interval = f"{one.low:+.3g} to {one.high:+.3g}"
    return (
        *(one.name, one.unit, one.num_maps, one.full, one.difference, interval),
        *(one.margin, "yes" if one.is_shown else "no"),
    )
