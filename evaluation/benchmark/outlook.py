"""Outlook on a benchmark, before anything is written: what it would do, and how long it would take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from maisi_aug.evaluation.benchmark.config import PRESETS, BenchmarkConfig
from maisi_aug.evaluation.benchmark.plan import plan_benchmark
from maisi_aug.evaluation.benchmark.text import list_commands
from maisi_aug.evaluation.output.files import to_markdown
from maisi_aug.system.printed_text import from_clean_document, spell_count
from maisi_aug.system.progress import ReportStage

FORWARD_SHARE: Final = 0.35  # of a training step that a window of a prediction takes


def look_ahead(config: BenchmarkConfig, folder: Path, *, device: str, notify: ReportStage) -> dict[str, Any]:
    """Plan a benchmark without opening synthetic cases, and time a training step on noise.

    Args:
        config: Request of the benchmark.
        folder: Folder of the benchmark, whose existing trainings count as done.
        device: Device on which the step is timed.
        notify: Progress callback, called with (stage, done, total).

    Returns:
        Arms, cases, steps and minutes as a JSON-able dict.

    Raises:
        BenchmarkError: As :func:`maisi_aug.evaluation.benchmark.plan.plan_benchmark`.
    """
    plan = plan_benchmark(config, reads_synthetic=False, notify=notify)
    num_trainings = len(config.parsed_arms) * config.num_seeds
    outlook: dict[str, Any] = {
        "labels": list(plan.labels),
        "lesion_labels": list(plan.lesion_labels),
        "train_cases": list(plan.split.train),
        "test_cases": list(plan.split.test),
        "arms": [
            {"name": name, "num_cases": len(refs), "num_real": sum(source == "real" for source, _ in refs)}
            for name, refs in plan.arms.items()
        ],
        "num_steps": config.steps,
        "num_trainings": num_trainings,
        "training": plan.training.to_json(),
        "warnings": list(plan.warnings),
        "commands": list_commands(folder, config),
    }
    if config.engine == "monai":
        from maisi_aug.evaluation.benchmark.data import load_case
        from maisi_aug.evaluation.benchmark.unet import count_windows, measure_step_seconds

        preset = PRESETS[config.preset]
        seconds = measure_step_seconds(
            plan.training, preset, len(plan.labels) + 1, device=device, augmentation=config.augmentation
        )
        first = plan.find_case(("real", plan.split.test[0]))
        shape = plan.training.grid_for(load_case(first, plan.sources["real"].label_ids).grid).shape
        windows = count_windows(shape, plan.training) * len(plan.split.test)
        total = config.steps * seconds + windows * seconds * FORWARD_SHARE / preset.batch_count
        outlook |= {"seconds_per_step": seconds, "minutes": num_trainings * total / 60, "device": device}
    return outlook


@from_clean_document
def to_outlook_text(outlook: Mapping[str, Any]) -> str:
    """Format the outlook of a benchmark as Markdown."""
    arms = ([arm["name"], arm["num_cases"], arm["num_real"], outlook["num_steps"]] for arm in outlook["arms"])
    spacing = "x".join(f"{side:g}" for side in outlook["training"]["spacing_mm"])
    patch = "x".join(map(str, outlook["training"]["patch_shape"]))
    lines = [
        f"Labels: {', '.join(outlook['labels'])}; lesions: {', '.join(outlook['lesion_labels']) or 'none'}.",
        f"Train on {', '.join(outlook['train_cases'])}.",
        f"Test on {', '.join(outlook['test_cases'])}.",
        f"Spacing {spacing} mm, patches of {patch} voxels.",
        "",
        to_markdown(["arm", "training cases", "of them real", "steps"], arms),
    ]
    if "minutes" in outlook:
        lines.append(
            f"{spell_count(outlook['num_trainings'], 'training')}, about {outlook['minutes']:.0f} minutes "
            "one after another on "
            f"{outlook['device']} ({outlook['seconds_per_step']:.2f} s a step, measured on noise)."
        )
    lines += [f"Note: {warning}" for warning in outlook["warnings"]]
    return "\n".join(
        [*lines, "", "Run each training separately, once --plan-only has written the plan:", *outlook["commands"]]
    )
