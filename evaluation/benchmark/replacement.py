"""Worth of synthetic cases in real ones: the learning curve of a benchmark with several numbers of real cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.evaluation.output.charts import CurveSeries, draw_curve_chart
from maisi_aug.evaluation.output.files import to_markdown
from maisi_aug.evaluation.scores.replacement import Worth, find_worth, fit_curve
from maisi_aug.evaluation.scores.statistics import find_interval
from maisi_aug.system.printed_text import spell_count
from maisi_aug.system.seeds import numpy_generator

if TYPE_CHECKING:  # these bring torch, and a report that shows figures needs none
    from maisi_aug.evaluation.benchmark.arm_scores import ArmScores
    from maisi_aug.evaluation.benchmark.run import Benchmark

NUM_CURVE_POINTS: Final = 60
METHOD: Final = (
    "Read from a learning curve a - b n^(-c) of real cases alone, at the score of the arm. The 95% interval is over "
    "draws of training patients and over test patients; it is open-ended beyond the numbers trained on. All arms "
    "take the same number of steps. Published figures of this kind are based on private data and cannot be compared."
)

Array = NDArray[np.float64]


def measure_replacement(benchmark: Benchmark, scores: Sequence[ArmScores]) -> list[dict[str, Any]]:
    """Return, by label and arm with synthetic cases, how many real cases alone would give the same score.

    Args:
        benchmark: A benchmark with several numbers of real cases.
        scores: Scores of the arms; draws that are not finished in every arm are left out.
    """
    finished = set.intersection(*(set(arm.runs) for arm in scores)) if scores else set()
    arms = {arm.arm.name: arm.choose(sorted(finished)) for arm in scores}
    rows = []
    for label in benchmark.plan.labels:
        real = [arm for arm in arms.values() if arm.arm.kind == "real"]
        counts = [_count_real(benchmark, arm) for arm in real]
        stacked = np.stack([arm.collect(label, "dice")[1] for arm in real]) if real and finished else None
        for arm in arms.values():
            if arm.arm.ratio:
                rows.append({"label": label, **_describe(benchmark, arm, label, counts, stacked)})
    return rows


def _describe(
    benchmark: Benchmark, arm: ArmScores, label: str, counts: Sequence[int], real: Array | None
) -> dict[str, Any]:
    worth = Worth(None, None, None, "no draw is finished in every arm")
    curve: list[list[float]] = []
    points: list[list[float]] = []
    score = None
    intervals: dict[str, Any] = {"score_interval": None, "point_intervals": []}
    if real is not None and real.shape[2]:
        mixed = arm.collect(label, "dice")[1]
        score = float(mixed.mean())
        worth = find_worth(counts, real, mixed)
        means = real.mean((1, 2))
        intervals = {"score_interval": _interval(mixed), "point_intervals": [_interval(values) for values in real]}
        points = [[float(n), float(mean)] for n, mean in zip(counts, means, strict=True)]
        if len(counts) > 1:
            fitted = fit_curve(np.asarray(counts, dtype=np.float64), means)
            places = np.geomspace(counts[0], counts[-1], NUM_CURVE_POINTS)
            curve = [[float(n), float(value)] for n, value in zip(places, fitted(places), strict=True)]
    return {
        "arm": arm.arm.name,
        "source": arm.arm.source,
        "ratio": arm.arm.ratio,
        "num_real": _count_real(benchmark, arm),
        "largest": max(counts, default=0),
        "smallest": min(counts, default=0),
        "score": score,
        **worth.to_json(),
        "curve": curve,
        "points": points,
        **intervals,
    }


def _interval(values: Array) -> list[float] | None:
    """Ends of the 95% interval of a mean over draws and patients, from 0 to 1."""
    found = find_interval(values, rng=numpy_generator(0, "interval")).cut(0.0, 1.0)
    return None if found.low is None or found.high is None else [found.low, found.high]


def _count_real(benchmark: Benchmark, arm: ArmScores) -> int:
    """Real patients of an arm's draws."""
    patient_of = benchmark.plan.config.patient_of
    return len({patient_of(case) for source, case in benchmark.plan.arms[arm.arm.name] if source == "real"})


def spell_worth(row: Mapping[str, Any]) -> str:
    """Describe a row of :func:`measure_replacement` as a sentence."""
    kind = "synthetic case" if row["source"] == "synthetic" else f"case of {row['source']}"
    added = f"{row['ratio']:g} {kind if row['ratio'] == 1 else kind.replace('case', 'cases')}"
    what = f"{row['label']}: {spell_count(row['num_real'], 'real case')} with {added} each"
    if row["obstacle"]:
        return f"{what}: their worth cannot be estimated: {row['obstacle']}."
    least, most = row["smallest"], row["largest"]
    if row["low"] == most:
        return f"{what} do better than {most} real ones, the largest number trained on."
    if row["high"] == least:
        return f"{what} do worse than {least} real ones, the smallest number trained on."
    low = f"fewer than {least}" if row["low"] is None else f"{row['low']:.0f}"
    high = f"more than {most}" if row["high"] is None else f"{row['high']:.0f}"
    if row["estimate"] is None:
        return f"{what} do as well as {low} to {high} real ones."
    gained = row["estimate"] - row["num_real"]
    ends = [None if row[end] is None else row[end] - row["num_real"] for end in ("low", "high")]
    low_gain, high_gain = ("unknown" if end is None else f"{end:z.0f}" for end in ends)
    return (
        f"{what} do as well as {row['estimate']:.0f} real ones ({low} to {high}): the synthetic ones are worth "
        f"{spell_count(round(gained), 'real case')} ({low_gain} to {high_gain})."
    )


def to_replacement_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the results of :func:`measure_replacement` as a section of a report in Markdown."""
    cells = (
        [
            row["label"],
            row["num_real"],
            f"{row['ratio']:g} x {row['source']}",
            None if row["score"] is None else f"{row['score']:.3f}",
            None if row["estimate"] is None else f"{row['estimate']:.0f}",
            None if row["low"] is None else f"{row['low']:.0f}",
            None if row["high"] is None else f"{row['high']:.0f}",
        ]
        for row in rows
    )
    header = ["label", "real cases", "synthetic", "Dice", "worth real cases", "from", "to"]
    lines = [f"- {spell_worth(row)}" for row in rows]
    title = "## How many real cases are the synthetic ones worth?\n"
    return "\n".join([title, *lines, "", to_markdown(header, cells), METHOD, ""])


def draw_replacement_charts(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return one SVG chart per label: the curve of real cases alone, and the finished arms with synthetic cases."""
    charts = {}
    for label in dict.fromkeys(row["label"] for row in rows):
        own = [row for row in rows if row["label"] == label and row["score"] is not None]
        if not own:
            continue
        points, curve = ([(n, y) for n, y in own[0][key]] for key in ("points", "curve"))
        ends = [_to_ends(interval) for interval in own[0].get("point_intervals", ())]
        series = [CurveSeries("real cases alone", points, curve, ends)]
        for source, ratio in dict.fromkeys((row["source"], row["ratio"]) for row in own):
            mixed = [row for row in own if (row["source"], row["ratio"]) == (source, ratio)]
            points = [(row["num_real"], row["score"]) for row in mixed]
            intervals = [_to_ends(row.get("score_interval")) for row in mixed]
            series.append(CurveSeries(f"with {ratio:g} x {source}", points, intervals=intervals))
        charts[label] = draw_curve_chart(
            f"{label}: Dice by number of real cases", series, axes=("real cases to train on", "Dice")
        )
    return charts


def _to_ends(interval: Sequence[float] | None) -> tuple[float, float] | None:
    return None if interval is None else (interval[0], interval[1])
