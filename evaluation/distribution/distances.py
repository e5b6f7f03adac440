"""Distance of a synthetic set from a real one in radiomic features, by region, against the variation of real cases.

The Fréchet distance of radiomic features is that of Konz et al., "Fréchet Radiomic Distance (FRD): A Versatile Metric
for Comparing Medical Imaging Datasets", 2024: features are scaled by the real set's mean and standard deviation. Theirs
are others and more, and version 1 gives the distance's logarithm: figures can be compared with each other, not with
those of another program. A distance on features of a network in three dimensions is not given: none with weights that
can be had was trained on CT of the whole body.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.cohort.case_sets import CaseSet, SkippedCase, describe_skipped, measure_each
from maisi_aug.evaluation.distribution.features import FEATURE_NAMES, CaseRegions, measure_regions
from maisi_aug.evaluation.distribution.neighbours import (
    NAMES,
    choose_nearest,
    find_neighbour_intervals,
    measure_neighbours,
)
from maisi_aug.evaluation.fid.frechet import (
    bootstrap_interval,
    case_influence,
    extrapolate_distance,
    frechet_distance,
    measure_moments,
)
from maisi_aug.evaluation.output.charts import DotRow, draw_dot_chart
from maisi_aug.evaluation.output.files import to_markdown
from maisi_aug.system.printed_text import from_clean_document, spell_count
from maisi_aug.system.progress import ReportStage
from maisi_aug.system.seeds import numpy_generator

REPORT_NAME: Final = "distribution"
MIN_CASES: Final = 10
"""Smallest number of cases in each set; halves of fewer do not have three neighbours."""
NUM_SPLITS: Final = 10
NUM_SHUFFLES: Final = 200
DEFAULT_SPACING_MM: Final = 3.0
SPACING_TOLERANCE: Final = 0.1
TINY: Final = 1e-9

Matrix = NDArray[np.float64]
Side = Sequence[Matrix]
"""Features of each case, ``(number of regions, D)``."""


def collect_regions(
    case_sets: Sequence[CaseSet], spacing_mm: float, notify: ReportStage, *, num_workers: int | None = 1
) -> tuple[list[list[CaseRegions]], list[list[SkippedCase]]]:
    """Measure radiomic features of all regions in the cases of a real and a synthetic set.

    Args:
        case_sets: The real and the synthetic set.
        spacing_mm: Isotropic voxel side in mm on which features are measured.
        notify: Progress callback, called with (stage, cases done, cases in all).
        num_workers: Number of processes; None for one per core.

    Returns:
        For each set, the measured cases, and the skipped ones.

    Raises:
        EvaluationError: A set has no readable case.
    """
    found, left_out = [], []
    for name, case_set in zip(("real", "synthetic"), case_sets, strict=True):
        cases, skipped = measure_each(
            case_set.cases,
            lambda case: case.case_id,
            partial(measure_regions, case_set, spacing_mm),
            partial(notify, f"{name} cases"),
            num_workers=num_workers,
        )
        found.append(cases)
        left_out.append([*case_set.skipped, *skipped])
    return found, left_out


def describe_sets(
    case_sets: Sequence[CaseSet], found: Sequence[Sequence[CaseRegions]], left_out: Sequence[Sequence[SkippedCase]]
) -> dict[str, Any]:
    """Describe a real and a synthetic set for a report.

    All arguments have two entries, the real set first.

    Args:
        case_sets: The sets.
        found: Measured cases of each set, at least one, as :func:`collect_regions` returns them.
        left_out: Skipped cases of each set, as :func:`collect_regions` returns them.

    Returns:
        JSON-able dict with ``real`` and ``synthetic``, each with ``path``, ``kind``, ``num_cases`` (measured ones) and
        ``skipped`` (rows of ``case`` and ``reason``); and ``notes``, a list of sentences, which has one if the median
        voxel sizes of the sets differ.
    """
    spacings = [np.median([case.spacing_mm for case in cases], axis=0) for cases in found]
    notes = []
    if np.abs(spacings[0] / spacings[1] - 1).max() > SPACING_TOLERANCE:
        spelled = [" x ".join(f"{side:.2f}" for side in spacing) for spacing in spacings]
        notes.append(
            f"Voxel sizes differ: {spelled[0]} mm in the real and {spelled[1]} mm in the synthetic set (medians). "
            "Coarser voxels have smoother texture, which counts as a difference here."
        )
    return {
        **{
            name: {
                "path": str(case_set.path),
                "kind": case_set.kind,
                "num_cases": len(cases),
                "skipped": describe_skipped(skipped),
            }
            for name, case_set, cases, skipped in zip(("real", "synthetic"), case_sets, found, left_out, strict=True)
        },
        "notes": notes,
    }


def measure_distribution(
    real: CaseSet,
    synthetic: CaseSet,
    *,
    spacing_mm: float = DEFAULT_SPACING_MM,
    seed: int = 0,
    notify: ReportStage,
    num_workers: int | None = 1,
) -> dict[str, Any]:
    """Compare radiomic features of the body and of every common label between real and synthetic cases.

    The figures are Fréchet radiomics distance, precision, recall, density and coverage.

    Args:
        real: Real cases, ten or more.
        synthetic: Synthetic cases, ten or more.
        spacing_mm: Isotropic voxel side in mm on which features are measured.
        seed: Seed of intervals and halves.
        notify: Progress callback, called with (stage, steps done, steps in all).
        num_workers: Number of processes that read cases; None for one per core.

    Raises:
        EvaluationError: A set has too few readable cases.
    """
    case_sets = real, synthetic
    found, left_out = collect_regions(case_sets, spacing_mm, notify, num_workers=num_workers)
    for case_set, cases, skipped in zip(case_sets, found, left_out, strict=True):
        if len(cases) < MIN_CASES:
            first = f" The first unreadable one: {skipped[0].reason.rstrip('.')}." if skipped else ""
            raise EvaluationError(
                f"{case_set.path}: needs at least {MIN_CASES} measurable cases, found {len(cases)}. Fewer say nothing "
                f"about a distribution; add cases.{first}"
            )
    document: dict[str, Any] = {
        "measurement": REPORT_NAME,
        "spacing_mm": spacing_mm,
        "seed": seed,
        "features": list(FEATURE_NAMES),
    }
    document |= describe_sets(case_sets, found, left_out)
    names = {name: None for cases in found for case in cases for name in _names_of(case)}
    regions, short = [], []
    for number, name in enumerate(names):
        notify("distances", number, len(names))
        sides = [_blocks_of(cases, name) for cases in found]
        if min(map(len, sides)) < MIN_CASES:
            short.append(f"{name} ({len(sides[0])} and {len(sides[1])})")
        else:
            regions.append({"region": name, **measure_region(sides[0], sides[1], seed=seed)})
    if short:
        document["notes"].append(
            f"Not compared, with fewer than {MIN_CASES} real or synthetic cases: {', '.join(short)}."
        )
    if len(regions) == 1:
        document["notes"].append("No label is in enough cases of both sets: the body alone is compared.")
    return {**document, "regions": regions}


def measure_region(real: Side, synthetic: Side, *, seed: int) -> dict[str, Any]:
    """Compare the features of one region between real and synthetic cases.

    Args:
        real: Features of the region in each real case.
        synthetic: Features of the region in each synthetic case.
        seed: Seed of intervals, halves and shuffles.
    """
    rows = np.concatenate(list(real))  # (rows of all cases, D)
    deviation = rows.std(axis=0, ddof=1)  # (D,)
    used = deviation > TINY
    # one (regions of the case, D used) array per case and side, in units of the real set's deviation
    scaled = [
        [(case[:, used] - rows.mean(axis=0)[used]) / deviation[used] for case in side] for side in (real, synthetic)
    ]
    moments = measure_moments(scaled[0]), measure_moments(scaled[1])
    distance = frechet_distance(*moments)
    influences = case_influence(scaled[0], *moments), case_influence(scaled[1], moments[1], moments[0])
    # (cases, D used) of each side: the mean over a case's regions
    points = [np.stack([case.mean(axis=0) for case in side]) for side in scaled]
    nearest = choose_nearest(len(real), len(synthetic))
    figures = measure_neighbours(points[0], points[1], nearest)
    intervals = find_neighbour_intervals(points[0], points[1], nearest, numpy_generator(seed, "neighbours"))
    floors = _measure_floors(scaled[0], points[0], nearest, numpy_generator(seed, "real halves"))
    num_features = int(used.sum())
    return {
        "num_real": len(real),
        "num_synthetic": len(synthetic),
        "num_features": num_features,
        "is_singular": min(moment.num for moment in moments) <= num_features,
        "frd": distance,
        "frd_interval": bootstrap_interval(distance, influences, numpy_generator(seed, "bootstrap")),
        "frd_extrapolated": extrapolate_distance(
            scaled[0], scaled[1], moments, distance, numpy_generator(seed, "halves")
        ),
        "frd_p": _find_p(scaled, distance, numpy_generator(seed, "shuffles")),
        "nearest": nearest,
        **{name: {"value": figures[name], "interval": list(intervals[name])} for name in NAMES},
        "floors": floors,
    }


def _find_p(scaled: Sequence[Side], distance: float, rng: np.random.Generator) -> float:
    """Return the p value of a permutation test, which is valid with few cases too."""
    pooled, num_real = [*scaled[0], *scaled[1]], len(scaled[0])
    larger = 0
    for _ in range(NUM_SHUFFLES):
        order = rng.permutation(len(pooled))
        # a random split of all cases into two sets of the original sizes
        parts = [measure_moments([pooled[i] for i in part]) for part in (order[:num_real], order[num_real:])]
        larger += frechet_distance(*parts) >= distance
    return (1 + larger) / (1 + NUM_SHUFFLES)


def _measure_floors(cases: Side, points: Matrix, nearest: int, rng: np.random.Generator) -> dict[str, list[float]]:
    """The same figures of random halves of the real cases against each other."""
    floors: dict[str, list[float]] = {name: [] for name in ("frd", *NAMES)}
    for _ in range(NUM_SPLITS):
        parts = np.array_split(rng.permutation(len(cases)), 2)
        floors["frd"].append(frechet_distance(*(measure_moments([cases[i] for i in part]) for part in parts)))
        halves = [points[part] for part in parts]
        few = min(nearest, *(len(half) - 1 for half in halves))
        for name, value in measure_neighbours(halves[0], halves[1], few).items():
            floors[name].append(value)
    return floors


def _names_of(case: CaseRegions) -> list[str]:
    return [region.name for region in case.regions]


def _blocks_of(cases: Sequence[CaseRegions], name: str) -> list[Matrix]:
    found = ([region.features for region in case.regions if region.name == name] for case in cases)
    return [np.stack(rows) for rows in found if rows]


@from_clean_document
def to_report(document: Mapping[str, Any]) -> str:
    """Format the figures of distances between distributions as Markdown."""
    real, synthetic = document["real"], document["synthetic"]
    parts = [
        (
            f"# Radiomic features of {synthetic['num_cases']} synthetic against "
            f"{spell_count(real['num_cases'], 'real case')}\n"
        ),
        f"{spell_count(len(document['features']), 'feature')} of HU, texture and shape by region, on voxels of "
        f"{document['spacing_mm']:g} mm, scaled by the real set's mean and standard deviation. Seed "
        f"{document['seed']}.\n",
        "## Fréchet radiomics distance, lower is closer\n",
        to_markdown(
            ["region", "real", "synthetic", "distance", "95% interval", "extrapolated", "real halves", "p"],
            ([r["region"], r["num_real"], r["num_synthetic"], *_spell_distance(r)] for r in document["regions"]),
        ),
        (
            "The interval is over which cases were drawn; few cases make the distance itself too large, which "
            "extrapolation from halves corrects approximately. p: how often the same cases, reassigned at random to "
            "two sets of these sizes, are as far apart. Real halves: of half the cases, so larger than whole real "
            "sets would be.\n"
        ),
        "## Neighbours, by case, higher is better\n",
        to_markdown(["region", *NAMES], ([r["region"], *(_spell(r, n) for n in NAMES)] for r in document["regions"])),
        "Value (95% interval), and the mean of real halves against each other. Precision and density: are synthetic "
        "cases among real ones? Recall and coverage: are there synthetic cases near all real ones? Density may "
        "exceed 1.\n",
    ]
    singular = [row["region"] for row in document["regions"] if row["is_singular"]]
    if singular:
        parts.append(
            "- Fewer rows than features, so that distances are far too large and only p can be trusted: "
            f"{', '.join(singular)}. Use at least "
            f"{spell_count(2 * len(document['features']), 'case')} of each set.\n"
        )
    parts += [f"- {note}\n" for note in document["notes"]]
    parts += spell_left_out(document)
    return "\n".join(parts)


def spell_left_out(document: Mapping[str, Any]) -> list[str]:
    """Return the paragraph of a report about cases of either set that could not be measured."""
    skipped = [(name, case) for name in ("real", "synthetic") for case in document[name]["skipped"]]
    return (
        ["## Left out\n", *(f"- {name} {row['case']}: {row['reason']}\n" for name, row in skipped)] if skipped else []
    )


def _spell_distance(row: Mapping[str, Any]) -> list[str]:
    interval, limit = row["frd_interval"], row["frd_extrapolated"]
    return [
        f"{row['frd']:.2f}",
        "-" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}",
        "-" if limit is None else f"{limit:.2f}",
        f"{np.mean(row['floors']['frd']):.2f}",
        f"{row['frd_p']:.3f}",
    ]


def _spell(row: Mapping[str, Any], name: str) -> str:
    low, high = row[name]["interval"]
    return f"{row[name]['value']:.2f} ({low:.2f} to {high:.2f}); {np.mean(row['floors'][name]):.2f}"


def draw_chart(document: Mapping[str, Any]) -> str:
    """Draw the distance by region with its interval, above that of the real halves, as an SVG chart."""
    rows = []
    for row in document["regions"]:
        is_far = row["frd_p"] < 0.05
        interval = None if row["frd_interval"] is None else tuple(row["frd_interval"])
        rows.append(
            DotRow(row["region"], centre=row["frd"], interval=interval, is_marked=is_far, note=f"p {row['frd_p']:.3f}")
        )
        rows.append(DotRow(f"{row['region']}, real halves", dots=row["floors"]["frd"]))
    counts = (
        f"{document['synthetic']['num_cases']} synthetic, {spell_count(document['real']['num_cases'], 'real case')}"
    )
    return draw_dot_chart(
        "Fréchet radiomics distance by region",
        rows,
        axis="distance, lower is closer",
        subtitle=f"{counts}; orange: farther apart than the same cases reassigned at random",
    )
