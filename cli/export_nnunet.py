"""`maisi-aug export nnunet`: a cohort as an nnU-Net dataset of its own, or added to a real one."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maisi_aug.cli.bars import show_stages

if TYPE_CHECKING:
    from maisi_aug.integrations.nnunet import ExportReport

ALONE = "Without --like"
LIKE = "With --like"


class LinkMode(StrEnum):
    """What `--link` takes."""

    none = "none"
    symlink = "symlink"
    hard = "hard"


def nnunet(
    cohort: Annotated[Path, typer.Argument(help="Folder that synthesize wrote.")],
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
        typer.Option(help="Real raw dataset, nnUNet_raw/DatasetXXX_Name, to add to.", rich_help_panel=LIKE),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=LABEL",
            help="A label of the cohort and what the real dataset calls it, or 'background'; may repeat. Labels of the "
            "same name find each other.",
            rich_help_panel=LIKE,
        ),
    ] = None,
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
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check everything, real cases included, and write nothing.", rich_help_panel=LIKE
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write the accepted cases as an nnU-Net v2 dataset that passes nnU-Net's own integrity check.

    With --like they are added to a real dataset: its labels, its validation folds, plans made on its cases alone, and
    synthetic cases in training only. Without it they are a dataset of their own, labels numbered in the order of their
    ids. The mapping of labels is saved in the dataset's folder.

    Examples:
    maisi-aug export nnunet cohort --like nnUNet_raw/Dataset003_Liver --dataset-id 503 --label "hepatic tumor=tumor"

    maisi-aug export nnunet cohort --dataset-id 501 --name SynLiver --out nnUNet_raw
    """
    alone: dict[str, Any] = {"labels": labels, "include_anatomy": include_anatomy, "copy": copy}
    beside: dict[str, Any] = {
        "label": label,
        "absent": absent,
        "ratio": ratio,
        "max_per_label": max_per_label,
        "plans": plans,
        "preprocessed": preprocessed,
        "link": link if link != LinkMode.none else None,
        "dry_run": dry_run,
    }
    _require_none(alone if like else beside, "without --like" if like else "with --like")
    if like is None:
        _export_alone(cohort, dataset_id, name, out, alone, as_json=as_json)
        return
    from maisi_aug.integrations.nnunet_like import export_like
    from maisi_aug.integrations.nnunet_request import LikeRequest

    request = LikeRequest(
        cohort_dir=cohort,
        like=like,
        dataset_id=dataset_id,
        name=name,
        out=out,
        preprocessed=preprocessed,
        labels=label or (),
        absent=absent or (),
        ratio=ratio,
        max_per_label=max_per_label,
        plans=plans,
        link=link.value,
    )
    with show_stages("reading the cohort") as notify:
        report = export_like(request, dry_run=dry_run, notify=notify)
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else report.to_markdown().rstrip())
    if dry_run:
        typer.echo("Nothing was written.", err=True)


def _require_none(given: dict[str, Any], place: str) -> None:
    """Raise a usage error for an option that has no meaning here."""
    for option, value in given.items():
        if value is not None and value is not False:
            flag = "--" + option.replace("_", "-")
            raise typer.BadParameter(
                f"expected {place} only, found it in the other case. Leave it out.", param_hint=flag
            )


def _export_alone(
    cohort: Path, dataset_id: int, name: str | None, out: Path | None, settings: dict[str, Any], *, as_json: bool
) -> None:
    from maisi_aug.integrations.nnunet import export_nnunet

    if name is None:
        raise typer.BadParameter(
            "expected a name, or --like for a name that follows the real dataset's, found neither. Give --name NAME.",
            param_hint="--name",
        )
    with show_stages("reading the cohort") as notify:
        report = export_nnunet(
            cohort,
            dataset_id=dataset_id,
            name=name,
            out=out,
            labels=settings["labels"] or (),
            include_anatomy=settings["include_anatomy"],
            copy=settings["copy"],
            notify=notify,
        )
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else _describe(report))
    for note in report.notes:
        typer.echo(f"Note: {note}", err=True)


def _describe(report: ExportReport) -> str:
    lines = [f"{report.path}: {report.num_cases} cases, accepted by nnU-Net's integrity check."]
    lines += [
        f"  {number:>3}  {name}" + (f" (vocabulary id {report.vocabulary_ids[name]})" if number else "")
        for name, number in report.labels.items()
    ]
    return "\n".join(lines)
