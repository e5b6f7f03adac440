"""`maisi-aug synthesize`: a label-balanced cohort of CT images and label maps."""

from __future__ import annotations

import json
import os
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maisi_aug.api.bars import show_loading
from maisi_aug.cli.shared.balance import (
    BalanceAgainst,
    BalanceFlags,
    BalancePicture,
    LesionMapOption,
    MaxLesionsOption,
    SizeBinsOption,
    balance_config,
)
from maisi_aug.cli.shared.completion import (
    complete_anatomy,
    complete_bundles,
    complete_labels,
    complete_presets,
    complete_recipes,
)
from maisi_aug.cli.shared.dry_run import show_plan
from maisi_aug.cli.shared.label_map import LabelRules
from maisi_aug.cli.shared.parsing import (
    parse_decode_window,
    parse_gates,
    parse_num_splits,
    parse_organ_sizes,
    parse_shape,
    parse_size_labels,
    parse_spacing,
    parse_words,
)
from maisi_aug.cohort.source_rules import NO_MAP

if TYPE_CHECKING:
    from maisi_aug.cohort.recipe import CohortConfig
    from maisi_aug.generate.run import CohortSummary

_WHAT, _MASKS, _IMAGES, _GATES, _RUN = "What to make", "Label maps", "Images", "Quality gates", "Run"


class MaskSourceName(StrEnum):
    """What `--mask-source` takes."""

    plant = "plant"
    bank = "bank"
    diffusion = "diffusion"
    given = "given"
    none = "none"


class ModalityName(StrEnum):
    """What `--modality` takes."""

    ct = "ct"
    ct_contrast = "ct_contrast"
    ct_wo_contrast = "ct_wo_contrast"


class PrecisionChoice(StrEnum):
    """What `--precision` takes."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class CompilerName(StrEnum):
    """What `--compile` takes."""

    none = "none"
    inductor = "inductor"
    trt = "trt"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("synthesize")(synthesize)


def synthesize(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the cohort; one that was begun is gone on with.")
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:SIZE][@SHARE]",
            autocompletion=complete_labels,
            help="Lesion or organ, with a size: 0.3 (percentile), 0.1-0.6, 8-20mm, 4mL, 10-30mmx3; may repeat; join "
            "with + for one case.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    anatomy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME]",
            autocompletion=complete_anatomy,
            help="Labels that labels/ID.nii.gz keeps, all that --labels names among them; its organs need no request "
            "and are in every case (default: what --labels names).",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    num_cases: Annotated[
        int | None,
        typer.Option(
            "--num-cases", "-n", min=1, help="Cases to make (default: 4, or one per given map).", rich_help_panel=_WHAT
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Cohort seed (default: 0); another one shows other patients, in a test cohort for instance.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            autocompletion=complete_recipes,
            help="Recipe; flags stand above it.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    size_reference: Annotated[
        Path | None,
        typer.Option(
            help="nnU-Net dataset (path, number or name) or folder of label maps for percentiles.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    size_label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID", help="The lesion's id in the size reference; of several, see --map.", rich_help_panel=_WHAT
        ),
    ] = None,
    balance_against: BalanceAgainst = None,
    lesion_map: LesionMapOption = None,
    size_bins: SizeBinsOption = None,
    max_lesions: MaxLesionsOption = None,
    balance_picture: BalancePicture = None,
    mask_source: Annotated[
        MaskSourceName | None,
        typer.Option(
            metavar="SOURCE",
            help="plant lesions in tumour-free maps (default); take a bank's own; diffusion: generate maps; draw given "
            "maps as they are; none: images alone.",
            rich_help_panel=_MASKS,
        ),
    ] = None,
    mask_bank: Annotated[
        str | None,
        typer.Option(
            metavar="phantom|PATH",
            help="File, folder or data list of label maps, or NVIDIA's mask database (zip or folder, its list beside "
            "it).",
            rich_help_panel=_MASKS,
        ),
    ] = None,
    mask_labels: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="The bank's label ids: auto, maisi, totalsegmentator-v1, -v2 or -v3, or a JSON file.",
            rich_help_panel=_MASKS,
        ),
    ] = None,
    mask_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Sampling steps of a generated map (default: the bundle's; 1000 is NVIDIA's DDPM).",
            rich_help_panel=_MASKS,
        ),
    ] = None,
    size_of: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORGAN:SIZE",
            help="Size percentile of gallbladder, liver, stomach, pancreas or colon in generated maps, 0-1, or -1 for "
            "absent; may repeat.",
            rich_help_panel=_MASKS,
        ),
    ] = None,
    bundle: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER",
            autocompletion=complete_bundles,
            help="Weights (default: phantom-ct).",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampling steps (default: the bundle's).", rich_help_panel=_IMAGES)
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Above 0 enforces lesions, at twice the time (default: 0).", rich_help_panel=_IMAGES
        ),
    ] = None,
    modality: Annotated[
        ModalityName | None,
        typer.Option(help="With or without contrast medium; ct leaves it open (default: ct).", rich_help_panel=_IMAGES),
    ] = None,
    body_region: Annotated[
        str | None,
        typer.Option(
            metavar="REGION[,REGION]",
            help="Uppermost and lowest of head, thorax, abdomen and pelvis, for ddpm-ct and to choose maps of NVIDIA's "
            "mask database (default: what the map shows).",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=complete_presets,
            help="Grid and decode windows by GPU memory or body region, such as 16g-256x256x256 or chest; listed by: "
            "maisi-aug bundles presets.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="IxJxK",
            help="Voxels (default: the preset's, bundle's or given map's).",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(metavar="IxJxK", help="Voxel sides in mm (default likewise).", rich_help_panel=_IMAGES),
    ] = None,
    allow_unseen_grid: Annotated[
        bool | None,
        typer.Option(
            "--allow-unseen-grid",
            help="Warn of a grid that the bundle's networks cannot work with, instead of refusing it.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    decode_window: Annotated[
        str | None,
        typer.Option(
            metavar="IxJxK|whole",
            help="Latent voxels decoded at once, multiples of 16; smaller ones take less memory (default: the "
            "bundle's).",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    decode_overlap: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Share of a window that neighbours share (default: the preset's, or 0.4).",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    num_splits: Annotated[
        str | None,
        typer.Option(
            metavar="1|2|4|8|16",
            help="Parts in which the decoder's convolutions are computed (default: what the memory asks for).",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    hu_reference: Annotated[
        Path | None,
        typer.Option(
            help="CTs with label maps of your own, or a file of evaluate hu, that HU of organs are held against "
            "(default: what is usual for the bundle).",
            rich_help_panel=_GATES,
        ),
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=off|NUMBER",
            help="Switch a quality gate off or set its threshold; may repeat: presence, lesion-size, size-tolerance, "
            "lesion-place, max-share-outside, max-spread, organ-hu, hu-bias, max-dark-hu, max-bright-hu, visibility, "
            "minimum-cnr.",
            rich_help_panel=_GATES,
        ),
    ] = None,
    keep_rejected: Annotated[
        bool | None,
        typer.Option(
            "--keep-rejected",
            help="Keep the image and label maps of rejected cases, in OUT/rejected.",
            rich_help_panel=_GATES,
        ),
    ] = None,
    allow_few_organs: Annotated[
        bool | None,
        typer.Option(
            "--allow-few-organs",
            help="Warn of label maps without the organs around the lesions, instead of refusing them.",
            rich_help_panel=_MASKS,
        ),
    ] = None,
    precision: Annotated[
        PrecisionChoice | None,
        typer.Option(
            help="What the networks compute in (default: auto, float16 on CUDA devices, float32 elsewhere); bfloat16 "
            "is fast on a CPU and moves organs by several HU.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    max_attempts: Annotated[
        int | None,
        typer.Option(min=1, help="Attempts per case (default: 5); may be raised later.", rich_help_panel=_RUN),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=_RUN)] = "auto",
    compile_with: Annotated[
        CompilerName,
        typer.Option(
            "--compile",
            help="Compile the networks first: pays for large grids and many cases. trt needs the extra of that name.",
            rich_help_panel=_RUN,
        ),
    ] = CompilerName.none,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and make nothing.", rich_help_panel=_RUN)
    ] = False,
    resume: Annotated[
        bool, typer.Option(help="Go on with a cohort of the same configuration.", rich_help_panel=_RUN)
    ] = True,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Compare the bytes of finished cases with the manifest, and draw altered ones again; missing ones "
            "always are.",
            rich_help_panel=_RUN,
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the plan or the summary as JSON.", rich_help_panel=_RUN)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=_RUN)] = False,
) -> None:
    """Generate a label-balanced cohort of CT images and label maps, checked and resumable.

    Example: maisi-aug synthesize --labels "hepatic tumor:0.3" -n 4 --out cohort
    """
    rules = LabelRules.read(lesion_map or [], balance_against, size_reference, mask_bank or recipe)
    config = _read_config(
        recipe,
        {
            "labels": labels or None,
            "anatomy": parse_words(anatomy),
            "num_cases": num_cases,
            "seed": seed,
            **rules.to_size_fields(size_reference, parse_size_labels(size_label or [])),
            "mask_source": None if mask_source is None else mask_source.value,
            "mask_bank": mask_bank,
            "mask_labels": rules.require_alone(mask_labels),
            "mask_steps": mask_steps,
            "size_of": parse_organ_sizes(size_of or []),
            "bundle": bundle,
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
            "modality": None if modality is None else modality.value,
            "body_region": parse_words(body_region),
            "preset": preset,
            **_volumes(shape, spacing, decode_window, decode_overlap, num_splits),
            "precision": None if precision is None else precision.value,
            "max_attempts": max_attempts,
            **_strictness(hu_reference, gate, allow_unseen_grid, allow_few_organs, keep_rejected),
        },
    )
    balanced = BalanceFlags(balance_against, rules.lesions, size_bins, max_lesions, balance_picture)
    config, balance = balance_config(config, balanced, is_quiet=quiet, needs_weights=not dry_run)
    if dry_run:
        show_plan(config, balance, out, may_resume=resume, as_json=as_json, is_quiet=quiet)
        return
    out = _require_out(out)
    summary = _run(
        config,
        out,
        balance=balance,
        device=device,
        compiler=compile_with.value,
        may_resume=resume,
        verify=verify,
        is_quiet=quiet,
    )
    typer.echo(json.dumps(summary.to_json(), indent=1) if as_json else describe_summary(summary))
    if not summary.is_complete:
        raise typer.Exit(1)


def _volumes(
    shape: str | None,
    spacing: str | None,
    decode_window: str | None,
    decode_overlap: float | None,
    num_splits: str | None,
) -> dict[str, Any]:
    """The fields of the grid, and of how an image is decoded onto it."""
    return {
        "shape": parse_shape(shape),
        "spacing_mm": parse_spacing(spacing),
        "decoding.window": parse_decode_window(decode_window),
        "decoding.overlap": decode_overlap,
        "decoding.num_splits": parse_num_splits(num_splits),
    }


def _strictness(
    hu_reference: Path | None,
    gate: list[str] | None,
    allow_unseen_grid: bool | None,
    allow_few_organs: bool | None,
    keep_rejected: bool | None,
) -> dict[str, Any]:
    """The fields that decide what is refused, rejected and kept all the same."""
    return {
        "hu_reference": None if hu_reference is None else str(hu_reference),
        "allow_unseen_grid": allow_unseen_grid,
        "allow_few_organs": allow_few_organs,
        "keep_rejected": keep_rejected,
        **parse_gates(gate or []),
    }


def _require_out(out: Path | None) -> Path:
    if out is None:
        raise typer.BadParameter("--out: expected a folder for the cohort, found none. Name one, or add --dry-run.")
    return out


def _read_config(recipe: str | None, flags: dict[str, Any]) -> CohortConfig:
    from maisi_aug.cohort.recipe import build_config, load_recipe, override

    return load_recipe(recipe, flags) if recipe is not None else build_config(override({}, flags), source="synthesize")


def _run(config: CohortConfig, out: Path, *, is_quiet: bool, **how: Any) -> CohortSummary:
    with show_loading(is_quiet=is_quiet):
        from maisi_aug.api.progress import CohortProgress
        from maisi_aug.api.synthesis import make_cohort

    with CohortProgress(is_quiet=is_quiet) as progress:
        return make_cohort(config, out, listener=progress, **how)


def describe_summary(summary: CohortSummary) -> str:
    """The end of a run in a few lines: how many cases were accepted, which were rejected and why, what comes next."""
    facts = summary.to_json()
    lines = [f"{summary.folder}: {facts['num_accepted']} of {facts['num_cases']} cases accepted."]
    if facts["first_attempt_rate"] is not None:
        share = f"{facts['first_attempt_rate']:.0%} of the cases at the first attempt"
        lines.append(f"Accepted {share}; {facts['num_attempts']} attempts in all; {summary.seconds:.0f} s.")
    lines += [f"Rejected {row['case_id']}: {row['reason']}" for row in facts["rejected"]]
    if facts["rejected"]:
        lines.append("Further attempts: the same command with a larger --max-attempts.")
    if summary.skipped:
        lines.append(f"Skipped {len(summary.skipped)} files of the mask bank:")
        lines += [f"  {name}: {reason}" for name, reason in summary.skipped]
    if facts["num_accepted"]:
        lines.append(f"Pictures: {summary.folder / 'contact_sheet.png'}")
        if any(record.mask_origin.get("source") != NO_MAP for record in summary.manifest.accepted):
            lines.append(f"Next: {_export_command(summary.folder)}")
    return "\n".join(lines)


def _export_command(folder: Path) -> str:
    """The command that hands a cohort to nnU-Net, ready to be pasted."""
    from maisi_aug.integrations.nnunet.folders import RAW_VARIABLE

    words = ["maisi-aug", "export", "nnunet", str(folder), "--dataset-id", "501", "--name", "MyCohort"]
    return shlex.join(words if os.environ.get(RAW_VARIABLE) else [*words, "--out", RAW_VARIABLE])
