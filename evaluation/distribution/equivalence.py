"""Whether lesions and organs of a cohort have the sizes, places, HU, texture and shape that real ones have.

One value of each case, the mean over its lesions of a label, so that a patient with many counts once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.cohort.case_sets import CaseSet
from maisi_aug.evaluation.distribution.distances import (
    DEFAULT_SPACING_MM,
    collect_regions,
    describe_sets,
    spell_left_out,
)
from maisi_aug.evaluation.distribution.features import BODY, CaseRegions, Region
from maisi_aug.evaluation.output.charts import DotRow, draw_dot_chart
from maisi_aug.evaluation.output.files import to_markdown
from maisi_aug.evaluation.scores.equivalence import DEFAULT_MARGIN, MIN_CASES, can_compare, compare_sets
from maisi_aug.system.printed_text import from_clean_document, spell_count
from maisi_aug.system.progress import ReportStage
from maisi_aug.system.seeds import numpy_generator

REPORT_NAME: Final = "equivalence"
NUM_SPLITS: Final = 50
MAX_NAMED = 5
"""Largest number of labels that an error names."""
VERDICTS: Final = ("equivalent", "different", "cannot tell")


class Quantity(NamedTuple):
    """A quantity of a region that is compared between real and synthetic sets.

    Attributes:
        name: Name with its unit, as text.
        feature: Name of the region's feature; empty for a position.
        axis: Axis of a position.
    """

    name: str
    feature: str = ""
    axis: int = 0

    def of(self, region: Region) -> float:
        """Return the value of the quantity for a region."""
        return region.of(self.feature) if self.feature else region.place[self.axis]


QUANTITIES: Final = (
    Quantity("size, log mL", "log_volume"),
    Quantity("place right-left, share of host", axis=0),
    Quantity("place back-front, share of host", axis=1),
    Quantity("place feet-head, share of host", axis=2),
    Quantity("median HU", "median"),
    Quantity("deviation of HU", "deviation"),
    Quantity("texture, joint entropy", "joint_entropy"),
    Quantity("texture, correlation", "correlation"),
    Quantity("shape, sphericity", "sphericity"),
    Quantity("shape, elongation", "elongation"),
)


def measure_equivalence(
    real: CaseSet,
    synthetic: CaseSet,
    *,
    margin: float = DEFAULT_MARGIN,
    spacing_mm: float = DEFAULT_SPACING_MM,
    seed: int = 0,
    notify: ReportStage,
    num_workers: int | None = 1,
) -> dict[str, Any]:
    """Test every quantity of every common label for equivalence between real and synthetic cases.

    Args:
        real: Labelled real cases.
        synthetic: Labelled synthetic cases.
        margin: Equivalence margin of the difference of means, in standard deviations of the real set.
        spacing_mm: Isotropic voxel side in mm on which texture and shape are measured.
        seed: Seed of the halves of the real cases.
        notify: Progress callback, called with (stage, steps done, steps in all).
        num_workers: Number of processes that read cases; None for one per core.

    Raises:
        EvaluationError: No label occurs in six cases of both sets.
    """
    case_sets = real, synthetic
    found, left_out = collect_regions(case_sets, spacing_mm, notify, num_workers=num_workers)
    names = {region.name: None for case in found[0] for region in case.regions if region.name != BODY}
    values: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
    short = []
    for name in names:
        owners = [[case for case in cases if any(r.name == name for r in case.regions)] for cases in found]
        if min(map(len, owners)) < MIN_CASES:
            short.append(f"{name} ({len(owners[0])} and {len(owners[1])})")
            continue
        for quantity in QUANTITIES:
            values[name, quantity.name] = [_values_of(cases, name, quantity) for cases in owners]
    if not values:
        rest = f" and {len(short) - MAX_NAMED} more" if len(short) > MAX_NAMED else ""
        said = f": {', '.join(short[:MAX_NAMED])}{rest}" if short else ""
        raise EvaluationError(
            f"{synthetic.path} and {real.path}: no label occurs in at least {MIN_CASES} cases of each{said}. Add "
            "cases, or check the names of the labels."
        )
    document: dict[str, Any] = {"measurement": REPORT_NAME, "spacing_mm": spacing_mm, "seed": seed, "margin": margin}
    document |= describe_sets(case_sets, found, left_out)
    if short:
        document["notes"].append(
            f"Not compared, with fewer than {MIN_CASES} real or synthetic cases: {', '.join(short)}."
        )
    return {**document, "rows": _compare(values, margin, seed)}


def _compare(
    values: Mapping[tuple[str, str], Sequence[NDArray[np.float64]]], margin: float, seed: int
) -> list[dict[str, Any]]:
    keys = {"/".join(key): key for key in values}
    pairs = {text: (values[key][0], values[key][1]) for text, key in keys.items() if can_compare(*values[key])}
    compared = compare_sets(pairs, margin=margin) if pairs else {}
    rows = []
    for text, key in keys.items():
        real, synthetic = values[key]
        row: dict[str, Any] = {
            "label": key[0],
            "quantity": key[1],
            "num_real": len(real),
            "num_synthetic": len(synthetic),
            "real_mean": float(real.mean()),
            "real_deviation": float(real.std(ddof=1)),
            "synthetic_mean": float(synthetic.mean()),
            "synthetic_deviation": float(synthetic.std(ddof=1)),
            "wasserstein": float(stats.wasserstein_distance(real, synthetic)),
            "wasserstein_floor": _measure_floor(real, numpy_generator(seed, f"halves {text}")),
        }
        if text in compared:
            row |= compared[text].to_json()
        else:
            row |= {
                "verdict": "cannot tell",
                "difference": None,
                "obstacle": "the cases hardly differ from each other",
            }
        rows.append(row)
    return rows


def _measure_floor(real: NDArray[np.float64], rng: np.random.Generator) -> float:
    """Median distance of random halves of the real values."""
    distances = []
    for _ in range(NUM_SPLITS):
        first, second = np.array_split(rng.permutation(real), 2)
        distances.append(stats.wasserstein_distance(first, second))
    return float(np.median(distances))


def _values_of(cases: Sequence[CaseRegions], name: str, quantity: Quantity) -> NDArray[np.float64]:
    return np.array([np.mean([quantity.of(r) for r in case.regions if r.name == name]) for case in cases])


def count_verdicts(document: Mapping[str, Any]) -> dict[str, int]:
    """Return verdict -> number of quantities with it."""
    return {verdict: sum(row["verdict"] == verdict for row in document["rows"]) for verdict in VERDICTS}


@from_clean_document
def to_report(document: Mapping[str, Any]) -> str:
    """Format the figures of equivalence tests as Markdown."""
    real, synthetic = document["real"], document["synthetic"]
    counts = ", ".join(f"{verdict} {count}" for verdict, count in count_verdicts(document).items())
    needed = max((row["num_needed"] for row in document["rows"] if row["difference"] is not None), default=None)
    parts = [
        f"# Are {spell_count(synthetic['num_cases'], 'synthetic case')} like {real['num_cases']} real ones? {counts}\n",
        f"Margins: {document['margin']:g} standard deviations of the real set for the mean, a factor of 2 for the "
        "standard deviation. Equivalent: both 90% intervals lie within (two one-sided tests of 5%, "
        "whose errors are at most 5% each). Different: significant at 5% over the whole table (Holm). One value "
        f"per case; texture and shape are measured on voxels of {document['spacing_mm']:g} mm."
        + ("\n" if needed is None else f" To show equivalence, about {needed} cases of each set are needed.\n"),
    ]
    for label in dict.fromkeys(row["label"] for row in document["rows"]):
        own = [row for row in document["rows"] if row["label"] == label]
        parts += [
            f"## {label}, {own[0]['num_real']} real and {spell_count(own[0]['num_synthetic'], 'synthetic case')}\n",
            to_markdown(
                [
                    "",
                    "verdict",
                    "real",
                    "synthetic",
                    "difference",
                    "90% interval",
                    "margin",
                    "spread",
                    "Wasserstein",
                    "floor",
                ],
                (_spell_row(row) for row in own),
            ),
        ]
    parts.append(
        "Real and synthetic: mean (standard deviation). Spread: ratio of standard deviations (90% interval). Floor: "
        "Wasserstein distance of random halves of the real set, of half the cases.\n"
    )
    parts += [f"- {note}\n" for note in document["notes"]]
    return "\n".join([*parts, *spell_left_out(document)])


def _spell_row(row: Mapping[str, Any]) -> list[str]:
    means = [f"{row[f'{side}_mean']:.2f} ({row[f'{side}_deviation']:.2f})" for side in ("real", "synthetic")]
    distances = [f"{row[key]:.3f}" for key in ("wasserstein", "wasserstein_floor")]
    if row["difference"] is None:
        return [row["quantity"], f"{row['verdict']}: {row['obstacle']}", *means, "-", "-", "-", "-", *distances]
    low, high = row["difference_interval"]
    least, most = row["spread_ratio_interval"]
    return [
        *(row["quantity"], row["verdict"], *means, f"{row['difference']:+.2f}", f"{low:+.2f} to {high:+.2f}"),
        *(f"{row['margin']:.2f}", f"{row['spread_ratio']:.2f} ({least:.2f} to {most:.2f})", *distances),
    ]


def draw_chart(document: Mapping[str, Any]) -> str:
    """Draw differences with their 90% intervals over the margins as an SVG chart."""
    rows = []
    for row in document["rows"]:
        name = f"{row['label']}: {row['quantity'].partition(',')[0]}"
        if row["quantity"].startswith(("place", "texture", "shape")):
            name = f"{row['label']}: {row['quantity']}".replace(", share of host", "")
        if row["difference"] is None:
            rows.append(DotRow(name, note=row["verdict"]))
            continue
        unit = row["margin"] / document["margin"]
        low, high = (end / unit for end in row["difference_interval"])
        rows.append(
            DotRow(
                name,
                centre=row["difference"] / unit,
                interval=(low, high),
                band=(-document["margin"], document["margin"]),
                is_marked=row["verdict"] == "different",
                note=row["verdict"],
            )
        )
    subtitle = (
        f"{document['synthetic']['num_cases']} synthetic, "
        f"{spell_count(document['real']['num_cases'], 'real case')}; grey: margin"
    )
    return draw_dot_chart("Synthetic minus real", rows, axis="standard deviations of the real set", subtitle=subtitle)
