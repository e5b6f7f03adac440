"""2.5D FID and KID between synthetic and real CT volumes, and between halves of the real ones for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.cohort.case_sets import CaseSet, describe_skipped
from maisi_aug.evaluation.fid.feature_store import CaseFeatures, FeatureSet, collect_features
from maisi_aug.evaluation.fid.frechet import (
    Moments,
    bootstrap_interval,
    case_influence,
    extrapolate_distance,
    frechet_distance,
    kernel_distance,
    measure_halves,
    measure_moments,
    reduce_to_span,
)
from maisi_aug.evaluation.fid.slices import PLANES, PlaneName, SliceProtocol
from maisi_aug.evaluation.output.charts import DotRow, draw_dot_chart
from maisi_aug.evaluation.output.files import to_markdown
from maisi_aug.system.engine.work import Engine
from maisi_aug.system.printed_text import from_clean_document, spell_count
from maisi_aug.system.progress import ReportStage, report_nothing
from maisi_aug.system.seeds import numpy_generator

if TYPE_CHECKING:  # brings torch, and a report that shows figures needs none
    from maisi_aug.evaluation.fid.extractors import ExtractorFile

REPORT_NAME: Final = "fid"
NUM_SPLITS: Final = 3
MIN_FLOOR_CASES: Final = 4
SPACING_TOLERANCE: Final = 0.1
MEAN: Final = "mean"


def measure_fid(
    real: CaseSet,
    synthetic: CaseSet,
    extractor: ExtractorFile,
    protocol: SliceProtocol,
    *,
    cache: Path | None,
    engine: Engine,
    seed: int = 0,
    notify: ReportStage = report_nothing,
) -> dict[str, Any]:
    """Measure FID and KID per plane and their mean, with intervals, and the floor that halves of the real cases set.

    Args:
        real: Real cases.
        synthetic: Synthetic cases.
        extractor: Network whose features are compared.
        protocol: Protocol that turns volumes into slices.
        cache: Folder of cached features; None for no cache.
        engine: Engine that runs the workers, which read the volumes.
        seed: Seed of the halves of the real cases, of the bootstrap and of the kernel's subsets.
        notify: Progress callback, called with (stage, steps done, steps in all).

    Returns:
        Figures as a JSON-able dict.

    Raises:
        EvaluationError: A set has no readable case, or too few slices.
    """
    features = collect_features(
        (real, synthetic), extractor, protocol, cache=cache, engine=engine, notify=partial(notify, "volumes")
    )
    planes, influences = {}, []
    for number, plane in enumerate(PLANES):
        notify("distances", number, len(PLANES))
        planes[plane], moved = _measure_plane(plane, features[0], features[1], seed=seed)
        influences.append(moved)
    notify("distances", len(PLANES), len(PLANES))
    overall = _average(list(planes.values()), influences, seed=seed)
    return {
        "measurement": REPORT_NAME,
        "extractor": {"name": extractor.spec.name, "source": extractor.source, "sha256": extractor.sha256},
        "protocol": protocol.to_dict(),
        "protocol_in_words": protocol.describe(),
        "seed": seed,
        "num_features": features[0].cases[0].planes["xy"].shape[1],
        **{
            name: {
                "path": str(case_set.path),
                "kind": case_set.kind,
                "num_cases": len(found.cases),
                "num_cached": found.num_cached,
                "skipped": describe_skipped(found.skipped),
            }
            for name, case_set, found in zip(("real", "synthetic"), (real, synthetic), features, strict=True)
        },
        "planes": {**planes, MEAN: overall},
        "notes": _build_notes(features[0], features[1], protocol),
    }


def _measure_plane(
    plane: PlaneName, real: FeatureSet, synthetic: FeatureSet, *, seed: int
) -> tuple[dict[str, Any], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Figures of a plane, and how much each real and each synthetic case moves its FID."""
    sides = real.of_plane(plane), synthetic.of_plane(plane)
    for cases, name in zip(sides, ("real", "synthetic"), strict=True):
        if sum(map(len, cases)) < 2:
            raise EvaluationError(
                f"Plane {plane}: at least two slices of {name} cases are needed, found one. Raise --centre-share or "
                "add cases."
            )
    spanned = reduce_to_span(*sides)
    moments = measure_moments(spanned[0]), measure_moments(spanned[1])
    fid = frechet_distance(*moments)
    influences = case_influence(spanned[0], *moments), case_influence(spanned[1], moments[1], moments[0])
    limit = extrapolate_distance(*spanned, moments, fid, numpy_generator(seed, f"halves {plane}"))
    subsets = numpy_generator(seed, f"kernel subsets {plane}")
    figures = {
        "fid": fid,
        "interval": bootstrap_interval(fid, influences, numpy_generator(seed, "bootstrap")),
        "extrapolated": limit,
        "extrapolated_interval": _shift(limit, influences, seed),
        "kid": kernel_distance(*sides, subsets),
        "floor": _measure_floor(spanned[0], moments[0], seed),
        "num_real_slices": moments[0].num,
        "num_synthetic_slices": moments[1].num,
    }
    return figures, influences


def _measure_floor(cases: Sequence[NDArray[Any]], whole: Moments, seed: int) -> list[float] | None:
    """FID of random halves of the real cases against each other; None with fewer than four cases."""
    if len(cases) < MIN_FLOOR_CASES:
        return None
    generator = numpy_generator(seed, "real halves")
    return [frechet_distance(*measure_halves(cases, whole, generator)) for _ in range(NUM_SPLITS)]


def _average(
    planes: Sequence[Mapping[str, Any]],
    influences: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
    *,
    seed: int,
) -> dict[str, Any]:
    """The mean over planes; a case that is drawn is drawn in all three."""
    fid = float(np.mean([plane["fid"] for plane in planes]))
    moved = [np.mean(side, axis=0) for side in zip(*influences, strict=True)]
    floors, limits = ([plane[key] for plane in planes] for key in ("floor", "extrapolated"))
    limit = None if None in limits else float(np.mean(limits))
    return {
        "fid": fid,
        "interval": bootstrap_interval(fid, moved, numpy_generator(seed, "bootstrap")),
        "extrapolated": limit,
        "extrapolated_interval": _shift(limit, moved, seed),
        "kid": float(np.mean([plane["kid"] for plane in planes])),
        "floor": None if None in floors else np.mean(floors, axis=0).tolist(),
        "num_real_slices": sum(plane["num_real_slices"] for plane in planes),
        "num_synthetic_slices": sum(plane["num_synthetic_slices"] for plane in planes),
    }


def _shift(limit: float | None, influences: Sequence[NDArray[np.float64]], seed: int) -> tuple[float, float] | None:
    """The interval about an extrapolated distance, from the same draws as that about the distance."""
    return None if limit is None else bootstrap_interval(limit, influences, numpy_generator(seed, "bootstrap"))


def _build_notes(real: FeatureSet, synthetic: FeatureSet, protocol: SliceProtocol) -> list[str]:
    """Return notes for readers of the figures, a sentence each."""
    notes = []
    for name, found in (("real", real), ("synthetic", synthetic)):
        if found.skipped:
            listed = ", ".join(case.case_id for case in found.skipped[:5])
            notes.append(f"{len(found.skipped)} {name} cases could not be read and are left out: {listed}.")
        if len(found.cases) == 1:
            notes.append(f"There is only one {name} case: no interval can be given.")
    num_features = real.cases[0].planes["xy"].shape[1]
    fewest = min(sum(map(len, found.of_plane(plane))) for found in (real, synthetic) for plane in PLANES)
    if fewest <= num_features:
        notes.append(
            f"A plane has {fewest} slices for {num_features} features: covariances are singular and FID is far too "
            "high; compare it only with the floor of real halves, or use KID."
        )
    elif fewest < 10 * num_features:
        notes.append(
            f"A plane has {fewest} slices for {num_features} features, fewer than ten each: FID is too high by an "
            "amount that depends on the number of slices. Compare only equal numbers of slices."
        )
    if len(real.cases) < MIN_FLOOR_CASES:
        notes.append(f"With fewer than {MIN_FLOOR_CASES} real cases there is no floor of real halves.")
    return notes + _compare_grids(real.cases, synthetic.cases, protocol)


def _compare_grids(
    real: Sequence[CaseFeatures], synthetic: Sequence[CaseFeatures], protocol: SliceProtocol
) -> list[str]:
    notes = []
    if protocol.spacing_mm is None:
        spacings = [np.median([case.spacing_mm for case in cases], axis=0) for cases in (real, synthetic)]
        if np.abs(spacings[0] / spacings[1] - 1).max() > SPACING_TOLERANCE:
            spelled = [" x ".join(f"{side:.2f}" for side in spacing) for spacing in spacings]
            notes.append(
                f"Voxel sizes differ: {spelled[0]} mm in the real and {spelled[1]} mm in the synthetic set "
                "(medians). FID then also measures the grid; pass --spacing."
            )
    if protocol.shape is None and len({case.shape for case in (*real, *synthetic)}) > 1:
        notes.append("Volumes differ in shape, and larger ones weigh more; pass --shape to make them alike.")
    return notes


@from_clean_document
def to_report(document: Mapping[str, Any]) -> str:
    """Format the figures of FID and KID as Markdown."""
    real, synthetic, extractor = document["real"], document["synthetic"], document["extractor"]
    rows = [
        [
            name,
            figures["fid"],
            _spell_interval(figures["interval"]),
            figures["extrapolated"],
            _spell_interval(figures["extrapolated_interval"]),
            _spell_floor(figures["floor"]),
            f"{figures['kid']:.4f}",
            figures["num_real_slices"],
            figures["num_synthetic_slices"],
        ]
        for name, figures in document["planes"].items()
    ]
    header = ["plane", "FID", "95% interval", "extrapolated", "95% interval", "real halves", "KID"]
    header += ["real slices", "synthetic slices"]
    parts = [
        f"# 2.5D FID: {synthetic['num_cases']} synthetic against {spell_count(real['num_cases'], 'real case')}\n",
        f"Extractor {extractor['name']}: {extractor['source']}, sha256 {extractor['sha256'][:12]}, "
        f"{spell_count(document['num_features'], 'feature')}. Slices: {document['protocol_in_words']}. Seed "
        f"{document['seed']}.\n",
        to_markdown(header, rows),
        (
            "Planes: xy axial, yz sagittal, zx coronal. Intervals are over the choice of patients, with all slices "
            "of a patient together. FID of few cases is too high, which its interval does not reflect. Extrapolated: "
            "estimate for very many cases, from halves of both sets; still too high with fewer cases than features. "
            "Real halves: FID of random halves of the real cases against each other, the lowest value that sets of "
            "half the size can be expected to reach.\n"
        ),
    ]
    parts += [f"- {note}\n" for note in document["notes"]]
    skipped = [(name, case) for name in ("real", "synthetic") for case in document[name]["skipped"]]
    if skipped:
        parts += ["## Left out\n", *(f"- {name} {case['case']}: {case['reason']}\n" for name, case in skipped)]
    return "\n".join(parts)


def draw_chart(document: Mapping[str, Any]) -> str:
    """Draw FID by plane with intervals, above that of the real halves, as an SVG chart."""
    rows = []
    for name, figures in document["planes"].items():
        rows.append(
            DotRow(
                f"{name}, synthetic", centre=figures["fid"], interval=figures["interval"], note=f"{figures['fid']:.2f}"
            )
        )
        if figures["extrapolated"] is not None:
            limit = figures["extrapolated"]
            interval = figures["extrapolated_interval"]
            rows.append(DotRow(f"{name}, extrapolated", centre=limit, interval=interval, note=f"{limit:.2f}"))
        if figures["floor"] is not None:
            mean = float(np.mean(figures["floor"]))
            rows.append(DotRow(f"{name}, real halves", dots=figures["floor"], note=f"{mean:.2f}"))
    counts = (
        f"{document['synthetic']['num_cases']} synthetic, {spell_count(document['real']['num_cases'], 'real case')}"
    )
    subtitle = f"{document['extractor']['name']}; {document['protocol_in_words']}; {counts}; 95% intervals over cases"
    return draw_dot_chart("2.5D FID by plane", rows, axis="FID, lower is closer", subtitle=subtitle)


def _spell_interval(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def _spell_floor(floor: Sequence[float] | None) -> str:
    return "-" if floor is None else f"{np.mean(floor):.2f} ({min(floor):.2f} to {max(floor):.2f})"
