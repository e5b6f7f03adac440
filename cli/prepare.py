"""`maisi-aug prepare`: a lab's own CTs and label maps as training cases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from maisi_aug.cli.shared.completion import complete_bundles
from maisi_aug.cli.shared.parsing import parse_shape, parse_spacing

if TYPE_CHECKING:
    from maisi_aug.bundle_spec.bundle import Bundle
    from maisi_aug.preparation.run import PreparePlan, PrepareResult
    from maisi_aug.preparation.sources import SourceCase
    from maisi_aug.system.workers import Report
    from maisi_aug.volumes.grid import Shape, Spacing

DEFAULT_BUNDLE = "phantom-ct"
ORGANS_FOLDER = "organs"


class OrganLabels(StrEnum):
    """What `--organ-labels` takes."""

    auto = "auto"
    totalsegmentator_v2 = "totalsegmentator-v2"
    totalsegmentator_v3 = "totalsegmentator-v3"
    totalsegmentator_v1 = "totalsegmentator-v1"
    maisi = "maisi"


class Modality(StrEnum):
    """What `--modality` takes."""

    unknown = "unknown"
    ct = "ct"
    ct_wo_contrast = "ct_wo_contrast"
    ct_contrast = "ct_contrast"


class OrganMaker(NamedTuple):
    """How TotalSegmentator is run: where, and whether with its 3 mm model."""

    device: str
    is_fast: bool


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("prepare")(prepare)


def prepare(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the prepared cases, new or begun.")],
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of CTs: NIfTI, NRRD, MHA, DICOM; or a folder per case with a DICOM series or ct.nii.gz."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Folder of label maps named after the images (ID.nii.gz, ID_oar.nii.gz; several per case are laid "
            "over each other), or a folder per case with masks, a label map, a DICOM SEG or an RT structure set. May "
            "be the images' folder."
        ),
    ] = None,
    nnunet: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|NAME|ID", help="An nnU-Net raw dataset instead of --images and --labels."),
    ] = None,
    map_rules: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="LABEL=NAME[@HOSTS]",
            help="What a label means; repeat. LABEL: id, name, name with *, or FILE/LABEL for one kind of label file. "
            "NAME: a name or id of the vocabulary, a new name (with the organs that it grows in: '3=left "
            "parotid@body'), or '-' to drop it. Names that the vocabulary knows need no rule.",
        ),
    ] = None,
    organs: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of organ labels as TotalSegmentator writes them: ID.nii.gz, or a folder ID of masks; repeat, "
            "the last one wins. Your own labels win over organs."
        ),
    ] = None,
    organ_labels: Annotated[
        OrganLabels, typer.Option(help="What the ids in --organs mean; auto reads labels.json or masks' names.")
    ] = OrganLabels.auto,
    run_totalsegmentator: Annotated[
        bool,
        typer.Option(
            "--run-totalsegmentator",
            help="Make organ labels now; needs maisi-aug\\[totalsegmentator], which fetches its weights at first use.",
        ),
    ] = False,
    fast_organs: Annotated[
        bool, typer.Option("--fast-organs", help="TotalSegmentator's 3 mm model, for computers without a GPU.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where TotalSegmentator runs: auto, cpu, cuda or cuda:N.")] = "auto",
    tissue: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LOW:HIGH",
            help="Label of body voxels that no label claims and whose HU lies between LOW and HIGH, such as "
            "'skull=150:3000' or 'airway=-1024:-300'; repeat. For data without organ labels; organ labels are better, "
            "since HU do not tell a jaw from a vertebra.",
        ),
    ] = None,
    bundle: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER",
            autocompletion=complete_bundles,
            help="The bundle that is to be trained on: its grid and its names for slots. Name the --base of "
            f"finetune-controlnet. Default: {DEFAULT_BUNDLE}.",
        ),
    ] = None,
    shape: Annotated[str | None, typer.Option(metavar="IxJxK", help="Voxels, instead of the bundle's.")] = None,
    spacing: Annotated[
        str | None, typer.Option(metavar="MM or IxJxK", help="Voxel sides in mm, instead of the bundle's.")
    ] = None,
    patients: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX|CSV",
            help="How a case's name tells its patient ('^[^_]+_[0-9]+'), or a CSV file with the columns id and "
            "patient. Without it every case is its own patient.",
        ),
    ] = None,
    folds: Annotated[int, typer.Option(min=1, help="Patients are dealt out into so many folds.")] = 5,
    image_pattern: Annotated[
        str | None, typer.Option(metavar="PATH", help="How images are named, without suffix: '{id}_ct', '{id}/ct'.")
    ] = None,
    label_pattern: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="How label files are named, without suffix: '{id}_oar', '{id}/segmentations/{label}'; repeat, the "
            "last one wins.",
        ),
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(metavar="ID", help="A case to leave out; repeat.")] = None,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Keep cases that hold none of the labels, such as healthy ones.")
    ] = False,
    keep_surroundings: Annotated[
        bool,
        typer.Option("--keep-surroundings", help="Leave table and air as they are; else they become -1000 HU."),
    ] = False,
    modality: Annotated[Modality, typer.Option(help="What the networks are told of the images.")] = Modality.ct,
    name: Annotated[str | None, typer.Option(help="Name of the data set; that of --out when not given.")] = None,
    update: Annotated[
        bool,
        typer.Option("--update", help="Bring a folder to other options, and remove its cases that are left out."),
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one per core when not given.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show what labels become, stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Prepare your own CTs and label maps for training: one grid, one vocabulary, body, folds, pictures.

    Labels win over each other in this order, the last one on top: body, --tissue, --organs, your labels, lesions.
    A scan larger than the grid is cropped around the new labels; a smaller one is filled up with air.
    The same command goes on where it was stopped, and prepares only what is new.

    Example: maisi-aug prepare --images ct --labels masks --map "1=kidney tumor" --organs totalseg --out prepared
    """
    from maisi_aug.api.progress import count_stages
    from maisi_aug.preparation.collecting import Sources, collect_cases
    from maisi_aug.preparation.mapping import parse_rule
    from maisi_aug.preparation.run import PrepareRequest, plan_preparation
    from maisi_aug.preparation.tissues import parse_tissue

    base = _load_bundle(bundle)
    grid_shape, spacing_mm = _choose_grid(base, parse_shape(shape), parse_spacing(spacing), is_named=bundle is not None)
    rules = tuple(map(parse_rule, map_rules or ()))
    tissues = tuple(parse_tissue(text, base.vocabulary) for text in tissue or ())
    patterns, excluded = tuple(label_pattern or ()), tuple(exclude or ())
    sources = Sources(images, labels, nnunet, tuple(organs or ()), image_pattern, patterns, excluded)
    cases, notes = collect_cases(sources)
    _require_something_to_learn(cases, bool(tissues) or run_totalsegmentator)
    request = PrepareRequest(
        cases=cases,
        vocabulary=base.vocabulary,
        shape=grid_shape,
        spacing_mm=spacing_mm,
        name=name or out.resolve().name,
        rules=rules,
        tissues=tissues,
        organ_labels=organ_labels.value,
        patients=patients,
        num_folds=folds,
        modality=modality.value,
        keeps_surroundings=keep_surroundings,
        allow_empty=allow_empty,
        runs_totalsegmentator=run_totalsegmentator,
    )
    with count_stages(is_quiet=quiet) as report:
        plan = plan_preparation(request, report=report, num_workers=workers)
        _tell((*notes, *plan.notes))
        if dry_run:
            _show_plan(plan, as_json=as_json)
            return
        result = _run(plan, out, OrganMaker(device, fast_organs), update=update, report=report, num_workers=workers)
    _show_result(result, as_json=as_json)
    if result.problems:
        raise typer.Exit(1)


def _run(
    plan: PreparePlan, out: Path, maker: OrganMaker, *, update: bool, report: Report, num_workers: int | None
) -> PrepareResult:
    from maisi_aug.preparation.run import claim_folder, run_preparation

    if plan.request.runs_totalsegmentator:
        from maisi_aug.integrations.totalsegmentator import require_totalsegmentator
        from maisi_aug.networks.pipeline import resolve_device

        require_totalsegmentator()  # before anything is written
        resolve_device(maker.device)
    claim_folder(plan, out, update=update)
    if plan.request.runs_totalsegmentator:
        plan = _make_organs(plan, out / ORGANS_FOLDER, maker, report)
    return run_preparation(plan, out, report=report, num_workers=num_workers)


def _load_bundle(name: str | None) -> Bundle:
    from maisi_aug.bundle_spec.bundle import load_outline

    return load_outline(name or DEFAULT_BUNDLE)


def _choose_grid(
    bundle: Bundle, shape: Shape | None, spacing_mm: Spacing | None, *, is_named: bool
) -> tuple[Shape, Spacing]:
    """The grid asked for, or the bundle's; one that a bundle which the user names cannot be trained on is refused."""
    from maisi_aug.cohort.grid_preflight import check_grid
    from maisi_aug.volumes.grid import Grid

    grid = Grid.from_spacing(shape or bundle.grid.shape, spacing_mm or bundle.spec.grid.spacing_mm)
    grid.require_multiple_of(bundle.grid_factor, subject="--shape")
    if is_named:
        _tell(check_grid(grid, bundle, remedy=", or leave --bundle out if it is not to be trained on"))
    return grid.shape, spacing_mm or bundle.spec.grid.spacing_mm


def _require_something_to_learn(cases: Sequence[SourceCase], has_tissues: bool) -> None:
    from maisi_aug.errors import PreparationError

    if not has_tissues and not any(case.labels or case.organs for case in cases):
        raise PreparationError(
            "Labels: expected --labels, --organs, --run-totalsegmentator or --tissue, found none. Give at least one."
        )


def _make_organs(plan: PreparePlan, folder: Path, maker: OrganMaker, report: Report) -> PreparePlan:
    """Run TotalSegmentator on every image, and lay its labels under the others."""
    from maisi_aug.integrations.totalsegmentator import VERSION, segment_organs
    from maisi_aug.networks.pipeline import resolve_device
    from maisi_aug.preparation.run import with_organs

    images = {task.case.id: task.case.image for task in plan.tasks}
    segment_organs(
        images,
        folder,
        device=resolve_device(maker.device).replace("cuda", "gpu"),
        fast=maker.is_fast,
        report=lambda done, total: report("TotalSegmentator", done, total),
    )
    return with_organs(plan, folder, VERSION)


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        typer.echo(f"Note: {note}", err=True)


def _show_plan(plan: PreparePlan, *, as_json: bool) -> None:
    """What every label becomes, and on which grid."""
    from maisi_aug.volumes.grid import spell_grid

    settings, vocabulary = plan.settings, plan.meanings.vocabulary
    rows = [
        {"label": str(label), "id": label_id, "name": vocabulary.name_of(label_id) if label_id else "dropped"}
        for label, label_id in plan.meanings.ids.items()
    ]
    if as_json:
        grid = {"shape": settings.shape, "spacing_mm": settings.spacing_mm}
        typer.echo(json.dumps({"num_cases": len(plan.tasks), "grid": grid, "labels": rows}, indent=1))
        return
    num_patients = len(set(plan.patients.values()))
    typer.echo(
        f"{len(plan.tasks)} cases of {num_patients} patients on {spell_grid(settings.shape, settings.spacing_mm)}."
    )
    for row in rows:
        is_new = " (new)" if row["name"] in plan.meanings.new_labels else ""
        typer.echo(f"  {row['label']} -> {row['name']}{is_new}" + (f", id {row['id']}" if row["id"] else ""))


def _show_result(result: PrepareResult, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result.summary, indent=1, ensure_ascii=False))
    else:
        typer.echo("\n".join(_describe(result)))
    for case_id, problem in result.problems.items():
        typer.echo(f"Not prepared: {case_id}: {problem}", err=True)


def _describe(result: PrepareResult) -> list[str]:
    summary, folder = result.summary, result.dataset.path
    sizes = ", ".join(str(row["cases"]) for row in summary["folds"])
    cases, patients = _count(summary["num_cases"], "case"), _count(summary["num_patients"], "patient")
    lines = [f"{folder}: {cases} of {patients}, {sizes} in the folds."]
    for row in summary["labels"]:
        is_new = " (new)" if row["is_new"] else ""
        volumes = f"{row['ml_min']:g}-{row['ml_max']:g} mL, median {row['ml_median']:g} mL"
        volumes = volumes if row["cases"] > 1 else f"{row['ml_median']:g} mL"
        lines.append(f"  {row['id']:>3}  {row['name']}{is_new}: {_count(row['cases'], 'case')}, {volumes}")
    num_noted = len(summary["notes"])
    if num_noted:
        lines.append(f"Notes: {_count(num_noted, 'case')}, see {folder / 'summary.md'}.")
    return [*lines, f"Pictures: {folder / 'contact_sheet.png'}"]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
