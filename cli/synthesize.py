"""`maisi-aug synthesize`: a label-balanced cohort of CT images and label maps."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from maisi_aug.api.balancing import BalanceOptions
from maisi_aug.api.bars import show_loading
from maisi_aug.api.engines import EngineOptions, Where
from maisi_aug.cli.shared.balance import LesionMapOption, balance_config
from maisi_aug.cli.shared.completion import complete_recipes
from maisi_aug.cli.shared.dry_run import show_plan, view_plan
from maisi_aug.cli.shared.from_models import Given, with_options
from maisi_aug.cli.shared.label_map import LabelRules
from maisi_aug.cli.shared.run_options import (
    RUN,
    AsJson,
    Device,
    Devices,
    JsonLines,
    Quiet,
    RedrawRejected,
    ShardOption,
    Verify,
)
from maisi_aug.cohort.request import NO_MAP, CohortRequest, build_request, load_recipe, override
from maisi_aug.cohort.review import num_rejected_in_review
from maisi_aug.system.printed_text import spell_count

if TYPE_CHECKING:
    from maisi_aug.generate.run import CohortSummary

CompilerName = Literal["none", "inductor", "trt"]


def register(app: typer.Typer) -> None:
    """Add the command ``synthesize`` to the application."""
    app.command("synthesize")(with_options(synthesize, without=("view",)))


def synthesize(
    flags: Annotated[Given, CohortRequest],
    balance_options: BalanceOptions,
    engine: EngineOptions,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the cohort; an unfinished one is continued.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            autocompletion=complete_recipes,
            help="Recipe name or YAML file; options override it.",
            rich_help_panel="What to make",
        ),
    ] = None,
    lesion_map: LesionMapOption = None,
    device: Device = "auto",
    devices: Devices = None,
    shard: ShardOption = None,
    compile_with: Annotated[
        CompilerName,
        typer.Option(
            "--compile",
            help="Compile the networks first; worthwhile for large grids and many cases. trt needs the extra 'trt'.",
            rich_help_panel=RUN,
        ),
    ] = "none",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan without making anything.", rich_help_panel=RUN)
    ] = False,
    resume: Annotated[
        bool, typer.Option(help="Continue an existing cohort that has the same configuration.", rich_help_panel=RUN)
    ] = True,
    verify: Verify = False,
    redraw_rejected: RedrawRejected = False,
    view: Annotated[
        bool,
        typer.Option(
            "--view",
            help="Show the label maps with their lesions in the browser, without loading any network. Needs the "
            "extra 'view'.",
            rich_help_panel=RUN,
        ),
    ] = False,
    as_json: AsJson = False,
    json_lines: JsonLines = False,
    quiet: Quiet = False,
) -> None:
    """Generate a label-balanced cohort of CT images and label maps, checked and resumable.

    Example: maisi-aug synthesize --labels "hepatic tumor:0.3" -n 4 --out cohort
    """
    where = Where.read(device, devices, shard, engine)
    rules = LabelRules.read(
        lesion_map or [], balance_options.against, flags.get("size_reference"), flags.get("mask_bank") or recipe
    )
    flags = rules.add_to(flags)
    config = load_recipe(recipe, flags) if recipe else build_request(override({}, flags), source="synthesize")
    config, balance = balance_config(config, balance_options, rules.lesions, is_quiet=quiet, needs_weights=not dry_run)
    if view:
        view_plan(config, is_quiet=quiet)
        return
    if dry_run:
        show_plan(config, balance, out, may_resume=resume, as_json=as_json, is_quiet=quiet)
        return
    out = _require_out(out)
    summary = _run(
        config,
        out,
        balance=balance,
        where=where,
        compiler=compile_with,
        may_resume=resume,
        verify=verify,
        redraw_rejected=redraw_rejected,
        is_quiet=quiet or json_lines,
        as_lines=json_lines,
    )
    typer.echo(json.dumps(summary.to_json(), indent=1) if as_json else describe_summary(summary))
    if not summary.is_complete:
        raise typer.Exit(1)


def _require_out(out: Path | None) -> Path:
    if out is None:
        raise typer.BadParameter("--out: required. Give a folder for the cohort, or add --dry-run.")
    return out


def _run(config: CohortRequest, out: Path, *, is_quiet: bool, as_lines: bool, **how: Any) -> CohortSummary:
    with show_loading(is_quiet=is_quiet):
        from maisi_aug.api.progress import follow_run
        from maisi_aug.api.synthesis import make_cohort

    with follow_run(is_quiet=is_quiet, as_lines=as_lines) as progress:
        return make_cohort(config, out, listener=progress, **how)


def describe_summary(summary: CohortSummary) -> str:
    """Describe the end of a run in a few lines: accepted cases, rejected ones with reasons, and the next command."""
    facts = summary.to_json()
    lines = [f"{summary.folder}: {facts['num_accepted']} of {spell_count(facts['num_cases'], 'case')} accepted."]
    if facts["first_attempt_rate"] is not None:
        share = f"{facts['first_attempt_rate']:.0%} of the cases at the first attempt"
        lines.append(
            f"Accepted {share}; {spell_count(facts['num_attempts'], 'attempt')} in all; {summary.seconds:.0f} s."
        )
    lines += [f"Rejected {row['case_id']}: {row['reason']}" for row in facts["rejected"]]
    if any(record.attempt + 1 >= record.max_attempts for record in summary.manifest.rejected):
        lines.append("To try again: run the same command with a larger --max-attempts.")
    if reviewed := num_rejected_in_review(summary.folder, summary.manifest):
        lines.append(f"Rejected in review and left out of exports: {reviewed}. Use --redraw-rejected to replace them.")
    if summary.skipped:
        lines.append(f"Skipped {spell_count(len(summary.skipped), 'file')} of the mask bank:")
        lines += [f"  {name}: {reason}" for name, reason in summary.skipped]
    if summary.unfit_cts:
        lines.append(f"No lesion could be inserted into {spell_count(len(summary.unfit_cts), 'CT')}; others were used:")
        lines += [f"  {name}: {reason}" for name, reason in summary.unfit_cts]
    if summary.shard is not None:
        lines.append(f"Shard {summary.shard}. When all shards have ended: {shlex.join(merge_command(summary.folder))}")
    elif facts["num_accepted"]:
        lines.append(f"Pictures: {summary.folder / 'contact_sheet.png'}")
        if any(record.mask_origin.get("source") != NO_MAP for record in summary.manifest.accepted):
            lines.append(f"Next: {_export_command(summary.folder)}")
    return "\n".join(lines)


def merge_command(folder: Path) -> list[str]:
    """Return the command that merges the shards of a cohort, as words."""
    return ["maisi-aug", "cohort", "merge", str(folder)]


def _export_command(folder: Path) -> str:
    """The command that hands a cohort to nnU-Net, ready to be pasted."""
    from maisi_aug.banks.raw_datasets import RAW_VARIABLE

    words = ["maisi-aug", "export", "nnunet", str(folder), "--dataset-id", "501", "--name", "MyCohort"]
    return shlex.join(words if os.environ.get(RAW_VARIABLE) else [*words, "--out", RAW_VARIABLE])
