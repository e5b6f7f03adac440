"""The report's sections on a benchmark: verdicts, scores by arm, lesions by size, slices, how it was done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maisi_aug.errors import BenchmarkError, MaisiAugError
from maisi_aug.evaluation.benchmark.data import LoadedCase, load_case
from maisi_aug.evaluation.benchmark.replacement import METHOD as REPLACEMENT_METHOD
from maisi_aug.evaluation.benchmark.replacement import draw_replacement_charts, spell_worth
from maisi_aug.evaluation.benchmark.run import Benchmark
from maisi_aug.evaluation.benchmark.text import (
    METHOD,
    list_commands,
    spell_interval,
    spell_p,
    spell_smallest_gain,
    spell_trainings,
    spell_verdict,
    summarise_verdicts,
)
from maisi_aug.evaluation.report import page
from maisi_aug.evaluation.report.page import IntervalRow, Section
from maisi_aug.pictures.slices import LESION_COLOURS, SOFT_TISSUE, Plane, Rgb, draw_contours, draw_slice
from maisi_aug.system.printed_text import clean_html, spell_count
from maisi_aug.volumes.image_files import load_label_map

NUM_SLICE_CASES: Final = 3
SLICE_PX: Final = 300
LABEL_COLOURS: Final[tuple[Rgb, ...]] = (  # dark enough for bone, bright enough for soft tissue
    (40, 150, 255),
    (40, 200, 90),
    (235, 50, 200),
    (255, 150, 0),
    (0, 195, 205),
)


def build_benchmark_sections(benchmark: Benchmark, document: Mapping[str, Any]) -> list[Section]:
    """Return the sections of a benchmark's report page, in order.

    Args:
        benchmark: Benchmark with its finished trainings.
        document: Figures of the benchmark.
    """
    return [
        Section("Summary", _build_summary(document)),
        Section("Worth in real cases", _build_replacement(document)),
        Section("Verdicts", _build_verdicts(document)),
        Section("Dice by arm", _build_scores(document)),
        Section("Lesions by size", _build_detection(document)),
        Section("Slices", _build_slices(benchmark, document)),
        Section("Method", _build_method(benchmark, document)),
    ]


def _build_summary(document: Mapping[str, Any]) -> str:
    config = document["config"]
    shown = page.facts(
        {
            "real cases to train on": document["num_train_cases"],
            "test patients": document["num_test_patients"],
            "trainings of every arm": config["num_seeds"],
            "steps each": document["num_steps"],
            "engine": config["engine"],
        }
    )
    failures = [
        page.warn(
            f"{row['arm']}, seed {row['seed']}: {row['status']}{': ' + row['reason'] if row['reason'] else ''}",
            is_failure=True,
        )
        for row in document["failures"]
    ]
    arms = page.table(
        ["arm", "training cases", "real", "different", "trainings done"],
        (
            [
                page.break_after_plus(str(arm[key]))
                for key in ("name", "num_cases", "num_real", "num_different", "num_seeds_done")
            ]
            for arm in document["arms"]
        ),
        caption="Arms",
    )
    said = page.bullets(summarise_verdicts(document))
    return "\n".join([said, shown, *failures, *(page.warn(text) for text in document["warnings"]), arms])


def _build_verdicts(document: Mapping[str, Any]) -> str:
    rows = [row for row in document["comparisons"] if row["metric"] == "dice"]
    if not rows:
        return page.paragraph("No two arms are finished yet, so there is nothing to compare.")
    ends = [abs(value) for row in rows for value in (row["difference"] or {}).values() if value is not None]
    reach = float(max(0.05, np.ceil(max(ends, default=0.0) * 20) / 20))
    parts = []
    for arm, baseline in dict.fromkeys((row["arm"], row["baseline"]) for row in rows):
        chosen = [row for row in rows if (row["arm"], row["baseline"]) == (arm, baseline)]
        parts.append(page.heading(f"{arm} against {baseline}"))
        lines = [_difference(row) for row in chosen]
        parts.append(page.intervals(lines, low=-reach, high=reach, unit="difference of Dice", has_zero=True))
        parts.append(_build_verdict_table(chosen, f"{arm} against {baseline}"))
    note = (
        "A gain needs the whole interval and the test above zero and a mean above the margin. No gain: more than "
        f"{document['config']['margin']:g} Dice is excluded. Everything else is undecided, including what cannot be "
        "decided: too few test patients, arms trained once, labels that neither arm finds. The smallest gain is the "
        "one that this test set would detect four times in five; a true gain below it may well be missed."
    )
    return "\n".join([page.paragraph(note, kind="note"), *parts])


def _difference(row: Mapping[str, Any]) -> IntervalRow:
    found = row["difference"]
    if found is None:
        return IntervalRow(row["label"], None)
    text = page.number(found["mean"], signed=True)
    return IntervalRow(row["label"], found["mean"], found["low"], found["high"], text=text)


def _build_verdict_table(rows: Sequence[Mapping[str, Any]], caption: str) -> str:
    return page.table(
        ["label", "verdict", "difference, 95% interval", "p, Holm", "smallest gain", "patients", "trainings"],
        (
            [
                clean_html(row["label"]),
                page.verdict(spell_verdict(row)),
                page.figures(spell_interval(row["difference"], signed=True)),
                clean_html(spell_p(row["p_holm"])),
                spell_smallest_gain(row),
                str(row["num_patients"]),
                spell_trainings(row),
            ]
            for row in rows
        ),
        caption=f"Verdicts, {caption}",
        words=(1,),
    )


def _build_replacement(document: Mapping[str, Any]) -> str:
    rows = document.get("replacement")
    if not rows:
        return ""
    charts = [
        page.chart(svg, caption=f"{label}: learning curve") for label, svg in draw_replacement_charts(rows).items()
    ]
    return "\n".join([page.bullets(map(spell_worth, rows)), *charts, page.paragraph(REPLACEMENT_METHOD, kind="note")])


def _build_scores(document: Mapping[str, Any]) -> str:
    parts = []
    for label in document["labels"]:
        found = {row["arm"]: row for row in document["scores"] if (row["label"], row["metric"]) == (label, "dice")}
        rows = [
            IntervalRow(arm["name"], row["mean"], row["low"], row["high"], row["by_seed"])
            if (row := found.get(arm["name"])) is not None
            else IntervalRow(arm["name"], None)
            for arm in document["arms"]
        ]
        num = max((row["num_patients"] for row in found.values()), default=0)
        parts.append(page.heading(f"{label}, {spell_count(num, 'patient')}"))
        parts.append(page.intervals(rows, low=0.0, high=1.0, unit="Dice"))
    note = (
        "Dot: mean over patients and trainings. Bar: 95% interval; over patients only if an arm was trained once. "
        "Small marks: single trainings."
    )
    return "\n".join([*parts, page.paragraph(note, kind="note"), _build_score_table(document)])


def _build_score_table(document: Mapping[str, Any]) -> str:
    arms = [arm["name"] for arm in document["arms"] if arm["num_seeds_done"]]
    rows = []
    for metric, name in (("dice", "Dice"), ("nsd", f"NSD at {document['config']['tolerance_mm']:g} mm")):
        cells = {(r["label"], r["arm"]): spell_interval(r) for r in document["scores"] if r["metric"] == metric}
        rows += [
            [clean_html(f"{label}, {name}"), *(cells.get((label, arm), "none") for arm in arms)]
            for label in document["labels"]
        ]
    return page.table(["label and metric", *arms], rows, caption="Scores of all arms")


def _build_detection(document: Mapping[str, Any]) -> str:
    if not document["detection"]:
        return ""
    parts = []
    for label in document["lesion_labels"]:
        own = [row for row in document["detection"] if row["label"] == label]
        for name in dict.fromkeys(row["name"] for row in own):
            chosen = [row for row in own if row["name"] == name]
            num = max(row["num_found"] + row["num_missed"] for row in chosen)
            if num:
                parts.append(page.heading(f"{label}, {name}"))
                parts.append(page.intervals([_sensitivity(row) for row in chosen], low=0, high=1, unit="found"))
        parts.append(page.fold(f"All counts of {label}", _build_detection_table(label, own)))
        between = [row for row in document["detection_comparisons"] if row["label"] == label and row["f1"]]
        if between:
            parts.append(page.fold(f"Differences between arms, {label}", _build_detection_differences(label, between)))
    note = (
        "A lesion is found when a predicted one overlaps it with an intersection over union of 0.1 or more; found "
        "and made-up lesions are counted over all trainings, and intervals are over patients and trainings. "
        "Predicted lesions that match none count in the bin of their own size."
    )
    alarms = [
        (
            f"{row['arm']}: {row['label']} was predicted in {row['num_alarms']} of "
            f"{spell_count(row['num_clean'], 'case')} without it."
        )
        for row in document["false_alarms"]
    ]
    return "\n".join([*parts, page.paragraph(note, kind="note"), page.bullets(alarms) if alarms else ""])


def _sensitivity(row: Mapping[str, Any]) -> IntervalRow:
    found = row["sensitivity_interval"]
    if found is None:
        return IntervalRow(row["arm"], None)
    text = f"{row['num_found']}/{row['num_found'] + row['num_missed']}"
    return IntervalRow(row["arm"], found["mean"], found["low"], found["high"], text=text)


def _build_detection_table(label: str, rows: Sequence[Mapping[str, Any]]) -> str:
    return page.table(
        ["arm", "size", "lesions", "trainings", "found", "made up", "sensitivity", "F1"],
        (
            [
                clean_html(row["arm"]),
                clean_html(row["name"]),
                str((row["num_found"] + row["num_missed"]) // row["num_trainings"]),
                str(row["num_trainings"]),
                str(row["num_found"]),
                str(row["num_made_up"]),
                spell_interval(row["sensitivity_interval"]),
                spell_interval(row["f1_interval"]),
            ]
            for row in rows
        ),
        caption=f"Lesions of {label} by size",
        words=(1,),
    )


def _build_detection_differences(label: str, rows: Sequence[Mapping[str, Any]]) -> str:
    return page.table(
        ["arm", "against", "size", "sensitivity", "F1"],
        (
            [
                clean_html(row["arm"]),
                clean_html(row["baseline"]),
                clean_html(row["name"]),
                page.figures(spell_interval(row["sensitivity"], signed=True)),
                page.figures(spell_interval(row["f1"], signed=True)),
            ]
            for row in rows
        ),
        caption=f"Lesions of {label}: how much more one arm finds than the other",
        words=(1, 2),
    )


def _build_slices(benchmark: Benchmark, document: Mapping[str, Any]) -> str:
    arms = [arm["name"] for arm in document["arms"] if arm["num_seeds_done"]]
    colours = _colours(document)
    parts = []
    for case_id in _choose_cases(benchmark, arms):
        try:
            case = load_case(benchmark.plan.find_case(("real", case_id)), benchmark.plan.sources["real"].label_ids)
        except MaisiAugError as error:
            parts.append(page.warn(str(error)))
            continue
        plane = Plane("axial", _widest_slice(case, document))
        figures = [_draw(case, case.classes, plane, colours, document, f"{case_id}: reference")]
        damaged = []
        for arm in arms:
            path = benchmark.folder_of(arm, _first_seed(benchmark, arm)) / "predictions" / f"{case_id}.nii.gz"
            try:
                found = _load_prediction(path, case) if path.is_file() else None
            except MaisiAugError as error:
                damaged.append(page.warn(f"{case_id}, {arm}: {error}"))
                continue
            if found is not None:
                figures.append(_draw(case, found, plane, colours, document, f"{case_id}: {arm}"))
        parts += [page.heading(case_id), page.gallery(figures), *damaged]
    names = "".join(
        f'<li><span style="background:rgb{colours[number]}"></span>{clean_html(label)}</li>'
        for number, label in enumerate(document["labels"], start=1)
    )
    note = "Test cases with the worst, the median and the best Dice of the first arm; axial slices, soft-tissue window."
    return "\n".join([f'<ul class="keys">{names}</ul>', page.paragraph(note, kind="note"), *parts]) if parts else ""


def _load_prediction(path: Path, case: LoadedCase) -> NDArray[Any]:
    found = load_label_map(path).array
    if found.shape != case.classes.shape:
        raise BenchmarkError(
            f"{path}: the prediction has {'x'.join(map(str, found.shape))} voxels, its case "
            f"{'x'.join(map(str, case.classes.shape))}. Remove it and the arm's scores.json, and run the arm again."
        )
    return found


def _choose_cases(benchmark: Benchmark, arms: Sequence[str]) -> list[str]:
    """Worst, median and best test case of the first arm that is there."""
    if not arms:
        return []
    scores: dict[str, float] = {}
    for case in benchmark.load_scores(arms[0], _first_seed(benchmark, arms[0]))["cases"]:
        known = [label["dice"] for label in case["labels"].values() if label["dice"] is not None]
        if known:
            scores[case["case_id"]] = float(np.mean(known))
    ordered = sorted(scores, key=lambda case: scores[case])
    places = sorted({0, len(ordered) // 2, len(ordered) - 1}) if ordered else []
    return [ordered[place] for place in places][:NUM_SLICE_CASES]


def _first_seed(benchmark: Benchmark, arm: str) -> int:
    """The first training whose scores can be read; an arm that is shown has one."""
    return next(seed for seed in range(benchmark.plan.config.num_seeds) if _has_scores(benchmark, arm, seed))


def _has_scores(benchmark: Benchmark, arm: str, seed: int) -> bool:
    try:
        benchmark.load_scores(arm, seed)
    except BenchmarkError:
        return False
    return True


def _widest_slice(case: LoadedCase, document: Mapping[str, Any]) -> int:
    """The axial slice with most of a lesion, or with most labelled voxels."""
    lesions = [document["labels"].index(name) + 1 for name in document["lesion_labels"]]
    mask = np.isin(case.classes, lesions)
    mask = mask if mask.any() else case.classes > 0
    return int(mask.sum(axis=(0, 1)).argmax())


def _colours(document: Mapping[str, Any]) -> dict[int, Rgb]:
    organs = iter(LABEL_COLOURS * 20)
    lesions = iter(LESION_COLOURS * 20)
    return {
        number: next(lesions) if label in document["lesion_labels"] else next(organs)
        for number, label in enumerate(document["labels"], start=1)
    }


def _draw(
    case: LoadedCase, classes: Any, plane: Plane, colours: Mapping[int, Rgb], document: Mapping[str, Any], caption: str
) -> str:
    scale = SLICE_PX / max(case.grid.extent_mm[:2])
    drawn: Image.Image = draw_slice(case.image_hu, plane, plane.size_px(case.grid, scale), SOFT_TISSUE)
    bold = frozenset(document["labels"].index(name) + 1 for name in document["lesion_labels"])
    drawn = draw_contours(drawn, classes.astype(np.uint8), plane, colours, bold)
    return page.picture(drawn, alt=f"Axial slice with outlines, {caption}", caption=caption)


def _build_method(benchmark: Benchmark, document: Mapping[str, Any]) -> str:
    training = document["training"]
    sources = [("real", document["config"]["real"]), *document["config"]["synthetic"].items()]
    plan = (
        f"Planned on the real training cases only: voxels of {'x'.join(f'{s:g}' for s in training['spacing_mm'])} "
        f"mm, patches of {'x'.join(map(str, training['patch_shape']))} voxels, HU clipped to "
        f"{training['clip_hu'][0]:.0f} to {training['clip_hu'][1]:.0f}. Every arm has the same number of steps and "
        "begins with the same weights."
    )
    return "\n".join(
        [
            page.paragraph(METHOD),
            page.paragraph(plan),
            page.table(
                ["source", "folder"],
                ([clean_html(a), clean_html(b)] for a, b in sources),
                caption="Sources",
                words=(1,),
            ),
            page.fold(
                "Every training's command", page.code("\n".join(list_commands(benchmark.folder, benchmark.plan.config)))
            ),
            page.fold("Configuration", page.code(json.dumps(document["config"], indent=1))),
        ]
    )
