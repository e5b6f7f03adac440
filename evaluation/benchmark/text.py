"""The figures of a benchmark in words: Markdown for a file, sentences for a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from maisi_aug.evaluation.benchmark.config import BenchmarkConfig
from maisi_aug.evaluation.benchmark.replacement import to_replacement_text
from maisi_aug.evaluation.output.files import Cell, to_markdown
from maisi_aug.system.printed_text import from_clean_document, spell_count

if TYPE_CHECKING:
    from maisi_aug.evaluation.benchmark.run import ArmState

METHOD: Final = (
    "Differences are means over patients and trainings, with 95% intervals of a two-level bootstrap that draws both, "
    "using the same patients in both arms. p is from Wilcoxon's signed-rank test over patients, exact, with Holm's "
    "correction over the labels. 'gain' needs the whole interval and the test above zero and the mean above the "
    "margin; 'no gain' means that a gain above the margin is excluded; everything else is undecided, as are labels "
    "with too few test patients, arms trained once, and labels that neither arm finds. The smallest gain is the one "
    "that this test set would detect four times in five. Verdicts concern Dice; NSD and lesions are shown for "
    "information, without correction."
)


def arm_command(folder: Path, arm: str, seed: int) -> str:
    """Return the command line that runs one training of a benchmark.

    Args:
        folder: Folder of the benchmark.
        arm: Name of the arm.
        seed: Number of the training, from 0.
    """
    return shlex.join(["maisi-aug", "benchmark", "arm", str(folder), "--arm", arm, "--seed", str(seed)])


def list_commands(folder: Path, config: BenchmarkConfig) -> list[str]:
    """Return the command lines that run all trainings of a benchmark, one each.

    Args:
        folder: Folder of the benchmark.
        config: Configuration with arms and number of trainings.
    """
    return [arm_command(folder, arm.name, seed) for seed in range(config.num_seeds) for arm in config.parsed_arms]


def spell_state(state: ArmState) -> str:
    """Describe the state of a training in a sentence."""
    said = {
        "begun": "started; run again to continue",
        "failed": f"failed: {state.reason}",
        "busy": "running elsewhere; run this command again when it has finished",
    }
    return f"{state.arm}, seed {state.seed}: {said.get(state.status, state.status)}"


def spell_verdict(row: Mapping[str, Any]) -> str:
    """Describe the verdict of a comparison, with the reason if it is undecided; a loss counts as no gain."""
    if row["is_loss"]:
        return "no gain (a loss)"
    if row["verdict"] != "undecided":
        return str(row["verdict"])
    return f"undecided: {row['obstacle']}" if row["obstacle"] else "undecided at this size"


def spell_interval(row: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """Format a mean difference with its interval, if there is one.

    Args:
        row: ``mean``, ``low`` and ``high`` of the difference; None for none.
        signed: Whether positive numbers get a plus sign.
    """
    if row is None:
        return "none"
    form = "+z.3f" if signed else "z.3f"  # z: no minus before zero
    if row["low"] is None:
        return f"{row['mean']:{form}} (one patient)"
    return f"{row['mean']:{form}} ({row['low']:{form}} to {row['high']:{form}})"


def spell_p(value: float | None) -> str:
    """Format a p-value."""
    return "none" if value is None else "<0.001" if value < 0.0005 else f"{value:.3f}"


def spell_smallest_gain(row: Mapping[str, Any]) -> str:
    """Format the smallest gain that a comparison could have detected."""
    return "none" if row["smallest_gain"] is None else f"{row['smallest_gain']:.3f}"


def spell_trainings(row: Mapping[str, Any]) -> str:
    """Format the number of finished trainings of both arms of a comparison."""
    arm, other = row["num_seeds"]
    return str(arm) if arm == other else f"{arm} and {other}"


def summarise_verdicts(document: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each arm against the baseline, by Dice."""
    sentences = []
    for arm, baseline in _list_pairs(document):
        rows = [r for r in document["comparisons"] if (r["arm"], r["baseline"], r["metric"]) == (arm, baseline, "dice")]
        groups: dict[str, list[str]] = {}
        for row in rows:
            groups.setdefault(spell_verdict(row), []).append(row["label"])
        said = "; ".join(_join_labels(*group) for group in groups.items())
        sentences.append(f"{arm} against {baseline}: {said}.")
    return sentences


def _join_labels(verdict: str, labels: Sequence[str]) -> str:
    said, _, reason = verdict.partition(": ")
    return f"{said} for {', '.join(labels)}{f' ({reason})' if reason else ''}"


@from_clean_document
def to_report_text(document: Mapping[str, Any]) -> str:
    """Format the results of a benchmark as Markdown."""
    parts = [
        "# Benchmark\n",
        (
            f"{spell_count(document['num_train_cases'], 'real case')} to train on, "
            f"{spell_count(document['num_test_patients'], 'patient')} to test "
            f"on, {spell_count(document['num_steps'], 'step')} and "
            f"{spell_count(document['config']['num_seeds'], 'training')} per arm, engine "
            f"{document['config']['engine']}.\n"
        ),
        "## Verdicts\n",
        *(f"- {sentence}" for sentence in summarise_verdicts(document) or ["No two arms are finished yet."]),
        "",
    ]
    if document.get("replacement"):
        parts.append(to_replacement_text(document["replacement"]))
    if document["failures"]:
        parts += ["## Not finished\n", *(f"- {_spell_failure(row)}" for row in document["failures"]), ""]
    if document["warnings"]:
        parts += ["## Beware\n", *(f"- {warning}" for warning in document["warnings"]), ""]
    header = ["arm", "training cases", "of them real", "different", "trainings done"]
    keys = ("name", "num_cases", "num_real", "num_different", "num_seeds_done")
    parts += ["## Arms\n", to_markdown(header, ([arm[key] for key in keys] for arm in document["arms"]))]
    for metric, title in (("dice", "Dice"), ("nsd", f"NSD at {document['config']['tolerance_mm']:g} mm")):
        parts += [f"## {title}\n", _score_table(document, metric), _comparison_table(document, metric)]
    if document["detection"]:
        parts += ["## Lesions found, by size\n", _detection_table(document), _detection_comparison_table(document)]
    if document["false_alarms"]:
        rows = ([r["arm"], r["label"], f"{r['num_alarms']} of {r['num_clean']}"] for r in document["false_alarms"])
        parts += ["## Found in cases without the label\n", to_markdown(["arm", "label", "predictions"], rows)]
    return "\n".join([*parts, METHOD, ""])


def _list_pairs(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["arm"], row["baseline"]) for row in document["comparisons"]))


def _spell_failure(row: Mapping[str, Any]) -> str:
    reason = f": {row['reason']}" if row["reason"] else ""
    return f"{row['arm']}, seed {row['seed']}, {row['status']}{reason}"


def _score_table(document: Mapping[str, Any], metric: str) -> str:
    arms = [arm["name"] for arm in document["arms"] if arm["num_seeds_done"]]
    cells = {(r["label"], r["arm"]): spell_interval(r) for r in document["scores"] if r["metric"] == metric}
    return to_markdown(
        ["label", *arms], ([label, *(cells.get((label, arm)) for arm in arms)] for label in document["labels"])
    )


def _comparison_table(document: Mapping[str, Any], metric: str) -> str:
    header = ["arm", "against", "label", "patients", "trainings", "difference", "p", "p, Holm"]
    has_verdicts = metric == "dice"  # for which the margin is meant
    header += ["smallest gain", "verdict"] if has_verdicts else []
    rows: list[Sequence[Cell]] = [
        [
            row["arm"],
            row["baseline"],
            row["label"],
            row["num_patients"],
            spell_trainings(row),
            spell_interval(row["difference"], signed=True),
            spell_p(row["p_value"]),
            spell_p(row["p_holm"]),
            *([spell_smallest_gain(row), spell_verdict(row)] if has_verdicts else []),
        ]
        for row in document["comparisons"]
        if row["metric"] == metric
    ]
    return to_markdown(header, rows) if rows else ""


def _detection_table(document: Mapping[str, Any]) -> str:
    header = ["arm", "label", "size", "lesions", "trainings", "found", "made up", "sensitivity", "F1"]
    rows = [
        [
            row["arm"],
            row["label"],
            row["name"],
            (row["num_found"] + row["num_missed"]) // row["num_trainings"],
            row["num_trainings"],
            row["num_found"],
            row["num_made_up"],
            None if row["sensitivity_interval"] is None else spell_interval(row["sensitivity_interval"]),
            None if row["f1_interval"] is None else spell_interval(row["f1_interval"]),
        ]
        for row in document["detection"]
    ]
    return "Found lesions and false positives are counted over all trainings together.\n\n" + to_markdown(header, rows)


def _detection_comparison_table(document: Mapping[str, Any]) -> str:
    rows = [
        [
            row["arm"],
            row["baseline"],
            row["label"],
            row["name"],
            spell_interval(row["sensitivity"], signed=True),
            spell_interval(row["f1"], signed=True),
        ]
        for row in document["detection_comparisons"]
        if row["sensitivity"] or row["f1"]
    ]
    return to_markdown(["arm", "against", "label", "size", "sensitivity", "F1"], rows) if rows else ""
