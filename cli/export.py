"""`maisi-aug export`: hand a cohort on to a training framework."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maisi_aug.api.bars import show_stages
from maisi_aug.cli.shared.from_models import with_options
from maisi_aug.cli.shared.label_map import add_old_rules
from maisi_aug.cli.shared.streams import tell
from maisi_aug.integrations.request import DicomExport, MonaiExport, NnunetExport
from maisi_aug.system.printed_text import spell_count

if TYPE_CHECKING:
    from maisi_aug.integrations.nnunet.dataset import ExportReport

Cohorts = Annotated[list[Path], typer.Argument(metavar="COHORT", help="Folder of a cohort, or several.")]
NewFolder = Annotated[Path, typer.Option("--out", "-o", help="New or empty folder.")]
EarlierMap = Annotated[list[str] | None, typer.Option(metavar="NAME=LABEL", hidden=True)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


def dicom(cohort: Cohorts, out: NewFolder, request: DicomExport, as_json: AsJson = False) -> None:
    """Write a DICOM CT series and a DICOM segmentation per case, marked as synthetic, of a made-up patient.

    Needs the extra `dicom`. The same cohort exported again has the same UIDs.

    Example: maisi-aug export dicom cohort --out dicom
    """
    from maisi_aug.api.exporting import export_dicom

    with show_stages("reading the cohort") as notify:
        report = export_dicom(cohort, out, progress=notify, **dict(request))
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        typer.echo(
            f"{report.path}: {report.num_cases} CT series ({spell_count(report.num_slices, 'slice')}), "
            f"{report.num_segmentations} "
            f"segmentations of {', '.join(report.segments) or 'nothing'}."
        )
    for note in report.notes:
        tell(f"Note: {note}")


def monai(
    cohort: Cohorts, out: NewFolder, request: MonaiExport, label: EarlierMap = None, as_json: AsJson = False
) -> None:
    """Write images, label maps, a MONAI data list with folds, and a task file that Auto3DSeg runs on.

    With --like, synthetic cases are in the training set of every fold and in no validation set.

    Example: maisi-aug export monai cohort --like nnUNet_raw/Dataset003_Liver --map "cancer=hepatic tumor" --out monai
    """
    from maisi_aug.api.exporting import export_monai
    from maisi_aug.integrations.monai_data_list import TASK_NAME

    with show_stages("reading the cohort") as notify:
        report = export_monai(cohort, out, progress=notify, **_fields_of(request, label))
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        cases = f"{report.num_synthetic} synthetic and {spell_count(report.num_real, 'real case')}"
        typer.echo(f"{report.path}: {cases}, {spell_count(report.num_folds, 'fold')} ({report.folds_source}).")
        typer.echo("\n".join(f"  {number:>3}  {name}" for name, number in report.labels.items()))
        task = report.path / TASK_NAME
        typer.echo(f"Next, with pip install fire: python -m monai.apps.auto3dseg AutoRunner run --input='{task}'")
    for note in report.notes:
        tell(f"Note: {note}")


def nnunet(cohort: Cohorts, request: NnunetExport, label: EarlierMap = None, as_json: AsJson = False) -> None:
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
        report = export_nnunet(cohort, progress=notify, **_fields_of(request, label))
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        typer.echo(_describe(report) if isinstance(report, ExportReport) else report.to_markdown().rstrip())
    for note in report.notes if isinstance(report, ExportReport) else ():
        tell(f"Note: {note}")
    if request.dry_run:
        tell("Nothing was written.")


def _fields_of(request: MonaiExport | NnunetExport, earlier: list[str] | None) -> dict[str, Any]:
    """Return the given fields, including rules in the earlier spelling."""
    given = {name: getattr(request, name) for name in request.model_fields_set}
    if isinstance(request, NnunetExport):
        given["copy"] = given.pop("copy_images", False)
    return given | ({"map": add_old_rules(request.map, earlier, "--label")} if earlier else {})


def _describe(report: ExportReport) -> str:
    lines = [f"{report.path}: {spell_count(report.num_cases, 'case')}, accepted by nnU-Net's integrity check."]
    lines += [
        f"  {number:>3}  {name}" + (f" (vocabulary id {report.vocabulary_ids[name]})" if number else "")
        for name, number in report.labels.items()
    ]
    return "\n".join(lines)


export_app = typer.Typer(no_args_is_help=True, help="Export a cohort to a training framework.")


def register(app: typer.Typer) -> None:
    """Add the group of commands ``export`` to the application."""
    app.add_typer(export_app, name="export")


@export_app.callback()
def export() -> None:
    """Export a cohort to a training framework."""


export_app.command("nnunet")(with_options(nnunet))
export_app.command("dicom")(with_options(dicom))
export_app.command("monai")(with_options(monai))
