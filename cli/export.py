"""`maisi-aug export`: hand a cohort on to a training framework."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maisi_aug.api.bars import show_stages
from maisi_aug.cli.shared.label_map import add_old_rules
from maisi_aug.cli.shared.streams import tell

if TYPE_CHECKING:
    from maisi_aug.integrations.nnunet.dataset import ExportReport

Cohorts = Annotated[list[Path], typer.Argument(help="Folder that synthesize wrote, or several.")]
NewFolder = Annotated[Path, typer.Option("--out", "-o", help="New or empty folder.")]
Labels = Annotated[
    list[str] | None,
    typer.Option(help="Label to export, by name or id; may repeat. Without it: those the cohort was asked for."),
]
IncludeAnatomy = Annotated[bool, typer.Option("--include-anatomy", help="Export every organ label as well.")]
EarlierMap = Annotated[list[str] | None, typer.Option(metavar="NAME=LABEL", hidden=True)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


def dicom(
    cohort: Cohorts,
    out: NewFolder,
    labels: Labels = None,
    include_anatomy: IncludeAnatomy = False,
    as_json: AsJson = False,
) -> None:
    """Write a DICOM CT series and a DICOM segmentation per case, marked as synthetic, of a made-up patient.

    Needs the extra `dicom`. The same cohort exported again has the same UIDs.

    Example: maisi-aug export dicom cohort --out dicom
    """
    from maisi_aug.api.exporting import export_dicom

    with show_stages("reading the cohort") as notify:
        report = export_dicom(cohort, out, labels=labels or (), include_anatomy=include_anatomy, progress=notify)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        typer.echo(
            f"{report.path}: {report.num_cases} CT series ({report.num_slices} slices), {report.num_segmentations} "
            f"segmentations of {', '.join(report.segments) or 'nothing'}."
        )
    for note in report.notes:
        tell(f"Note: {note}")


def monai(
    cohort: Cohorts,
    out: NewFolder,
    like: Annotated[
        Path | None,
        typer.Option(help="nnU-Net raw dataset of real cases: they make up the folds, and its labels the numbers."),
    ] = None,
    rules: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="LABEL=NAME",
            help="A label of the real dataset, or 'background', and its name in the cohort; may repeat, and several "
            "names are joined by '+'.",
        ),
    ] = None,
    label: EarlierMap = None,
    absent: Annotated[
        list[str] | None,
        typer.Option(help="A label of the real dataset that no synthetic case truly holds; may repeat."),
    ] = None,
    labels: Labels = None,
    include_anatomy: IncludeAnatomy = False,
    as_json: AsJson = False,
) -> None:
    """Write images, label maps, a MONAI data list with folds, and a task file that Auto3DSeg runs on.

    With --like the synthetic cases are trained on in every fold and validated on in none.

    Example: maisi-aug export monai cohort --like nnUNet_raw/Dataset003_Liver --map "cancer=hepatic tumor" --out monai
    """
    from maisi_aug.api.exporting import export_monai
    from maisi_aug.integrations.monai_data_list import TASK_NAME

    with show_stages("reading the cohort") as notify:
        report = export_monai(
            cohort,
            out,
            like=like,
            map=add_old_rules(rules, label, "--label"),
            absent=absent or (),
            labels=labels or (),
            include_anatomy=include_anatomy,
            progress=notify,
        )
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        cases = f"{report.num_synthetic} synthetic and {report.num_real} real cases"
        typer.echo(f"{report.path}: {cases}, {report.num_folds} folds ({report.folds_source}).")
        typer.echo("\n".join(f"  {number:>3}  {name}" for name, number in report.labels.items()))
        task = report.path / TASK_NAME
        typer.echo(f"Next, with pip install fire: python -m monai.apps.auto3dseg AutoRunner run --input='{task}'")
    for note in report.notes:
        tell(f"Note: {note}")


ALONE = "Without --like"
LIKE = "With --like"


class LinkMode(StrEnum):
    """What `--link` takes."""

    none = "none"
    symlink = "symlink"
    hard = "hard"


def nnunet(
    cohort: Cohorts,
    dataset_id: Annotated[int, typer.Option(min=1, max=999, help="Number of the dataset, not in use.")],
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the dataset: letters, digits, '_' and '-'. With --like: the real one's and 'Synthetic'."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for raw datasets; the environment variable nnUNet_raw when not given.")
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            help="Label to export, by name or id; may repeat. Without it: those that the cohort was asked for.",
            rich_help_panel=ALONE,
        ),
    ] = None,
    include_anatomy: Annotated[
        bool, typer.Option("--include-anatomy", help="Export every organ label as well.", rich_help_panel=ALONE)
    ] = False,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the images instead of hard-linking them.", rich_help_panel=ALONE)
    ] = False,
    like: Annotated[
        Path | None,
        typer.Option(
            help="Real raw dataset to add to: nnUNet_raw/DatasetXXX_Name, its number or its name.", rich_help_panel=LIKE
        ),
    ] = None,
    rules: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="LABEL=NAME",
            help="A label of the real dataset, or 'background', and its name in the cohort; may repeat, and several "
            "names are joined by '+'. Labels whose names mean the same find each other.",
            rich_help_panel=LIKE,
        ),
    ] = None,
    label: EarlierMap = None,
    absent: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL",
            help="Label of the real dataset that no synthetic body holds; may repeat.",
            rich_help_panel=LIKE,
        ),
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Synthetic cases per real case; all without it.", rich_help_panel=LIKE)
    ] = None,
    max_per_label: Annotated[
        int | None, typer.Option(help="Most synthetic cases per requested label.", rich_help_panel=LIKE)
    ] = None,
    plans: Annotated[
        str | None,
        typer.Option(
            help="Plans of the real dataset to move; nnUNetPlans, or the only ones, without it.", rich_help_panel=LIKE
        ),
    ] = None,
    preprocessed: Annotated[
        Path | None,
        typer.Option(
            help="Folder for preprocessed datasets; the environment variable nnUNet_preprocessed when not given.",
            rich_help_panel=LIKE,
        ),
    ] = None,
    link: Annotated[
        LinkMode,
        typer.Option(
            help="Name existing files in dataset.json where they are (none), or link them into the dataset.",
            rich_help_panel=LIKE,
        ),
    ] = LinkMode.none,
    insert: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL=LESION:SIZE[@SHARE]",
            help="Lesion of the lung that nnUNetTrainerSynthetic... draws into real cases as it reads them, half of "
            "the times without a share: nodule=lung nodule:6-20mm.",
            rich_help_panel=LIKE,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check everything, real cases included, and write nothing.", rich_help_panel=LIKE
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the accepted cases as an nnU-Net v2 dataset that passes nnU-Net's own integrity check.

    With --like they are added to a real dataset: its labels, its validation folds, plans made on its cases alone, and
    synthetic cases in training only. Without it they are a dataset of their own, labels numbered in the order of their
    ids. The mapping of labels is saved in the dataset's folder.

    Examples:
    maisi-aug export nnunet cohort --like nnUNet_raw/Dataset003_Liver --dataset-id 503 --map "tumor=hepatic tumor"

    maisi-aug export nnunet cohort --dataset-id 501 --name SynLiver --out nnUNet_raw
    """
    from maisi_aug.api.exporting import export_nnunet
    from maisi_aug.integrations.nnunet.dataset import ExportReport

    with show_stages("reading the cohort") as notify:
        report = export_nnunet(
            cohort,
            dataset_id=dataset_id,
            name=name,
            out=out,
            labels=labels,
            include_anatomy=include_anatomy,
            copy=copy,
            like=like,
            map=add_old_rules(rules, label, "--label") or None,
            absent=absent,
            ratio=ratio,
            max_per_label=max_per_label,
            plans=plans,
            preprocessed=preprocessed,
            link=link.value,
            insert=insert,
            dry_run=dry_run,
            progress=notify,
        )
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        typer.echo(_describe(report) if isinstance(report, ExportReport) else report.to_markdown().rstrip())
    for note in report.notes if isinstance(report, ExportReport) else ():
        tell(f"Note: {note}")
    if dry_run:
        tell("Nothing was written.")


def _describe(report: ExportReport) -> str:
    lines = [f"{report.path}: {report.num_cases} cases, accepted by nnU-Net's integrity check."]
    lines += [
        f"  {number:>3}  {name}" + (f" (vocabulary id {report.vocabulary_ids[name]})" if number else "")
        for name, number in report.labels.items()
    ]
    return "\n".join(lines)


export_app = typer.Typer(no_args_is_help=True, help="Hand a cohort on to a training framework.")


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.add_typer(export_app, name="export")


@export_app.callback()
def export() -> None:
    """Hand a cohort on to a training framework."""


export_app.command("nnunet")(nnunet)
export_app.command("dicom")(dicom)
export_app.command("monai")(monai)
