"""The data of `maisi-aug finetune-controlnet`: a prepared folder, or one that is prepared first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from maisi_aug.errors import PreparationError

if TYPE_CHECKING:
    from maisi_aug.bundle import Bundle
    from maisi_aug.preparation.collecting import Sources
    from maisi_aug.training.prepared import PreparedStore

PREPARED_FOLDER = "prepared"
MAX_FOLDS = 5


def open_data(
    text: str,
    base: Bundle,
    out: Path,
    *,
    labels: Sequence[str],
    rules: Sequence[str],
    organs: Sequence[Path],
    is_main: bool = True,
) -> PreparedStore:
    """The cases to train on.

    An nnU-Net dataset, by folder, name or number, and a folder of images and label maps are prepared into
    ``OUT/prepared`` as by ``maisi-aug prepare`` with its defaults; cases that are there already are kept.

    Args:
        text: What ``--data`` says.
        base: Its grid and its names for slots are those of the prepared cases.
        out: Folder of the run.
        labels: What is to be taught; labels of these names in the data need no rule.
        rules: Of ``--map``.
        organs: Folders of organ labels.
        is_main: Whether this process prepares what is not prepared yet; others read it afterwards.

    Raises:
        PreparationError: For data that cannot be prepared, and for rules where there is nothing to prepare.
        TrainingError: For a folder of something else, before anything is prepared into it.
    """
    from maisi_aug.preparation.writing import STATE_FOLDER
    from maisi_aug.prepared import SPEC_NAME
    from maisi_aug.training.finetune_checks import require_free_folder
    from maisi_aug.training.prepared import PreparedStore

    require_free_folder(out)
    if (Path(text) / SPEC_NAME).is_file():
        if rules or organs:
            option = "--map" if rules else "--organs"
            raise PreparationError(
                f"{option}: expected none for {text}, which is prepared already, found one. Leave it out, or prepare "
                "the data again."
            )
        return PreparedStore.from_folder(text)
    if (Path(text) / STATE_FOLDER).is_dir():
        return PreparedStore.from_folder(text)  # which tells that its preparation was stopped
    if not is_main:  # the main process has prepared them: two at once would take each other's description away
        return PreparedStore.from_folder(out / PREPARED_FOLDER)
    try:
        _prepare(_find_sources(text, tuple(organs)), base, out / PREPARED_FOLDER, labels, rules)
    except PreparationError as error:
        message = re.sub(r"--(nnunet|images|labels)\b", "--data", str(error))
        if set(re.findall(r"--[a-z-]+", message)) - {"--data", "--map", "--organs", "--out"}:
            message += " That is an option of 'maisi-aug prepare': use it first, then give its folder as --data."
        raise PreparationError(message) from error
    return PreparedStore.from_folder(out / PREPARED_FOLDER)


def _find_sources(text: str, organs: tuple[Path, ...]) -> Sources:
    from maisi_aug.preparation.collecting import Sources

    folder = Path(text)
    if not folder.is_dir() or (folder / "dataset.json").is_file():
        return Sources(None, None, text, organs)
    subfolders = [folder / "images", folder / "labels"]
    images, labels = subfolders if all(part.is_dir() for part in subfolders) else (folder, folder)
    return Sources(images, labels, None, organs)


def _prepare(sources: Sources, base: Bundle, folder: Path, labels: Sequence[str], rules: Sequence[str]) -> None:
    from maisi_aug.cli.progress import count_stages
    from maisi_aug.preparation.collecting import collect_cases
    from maisi_aug.preparation.mapping import name_new_labels, parse_rule
    from maisi_aug.preparation.run import PrepareRequest, claim_folder, plan_preparation, run_preparation

    cases, notes = collect_cases(sources)
    own_rules = tuple(map(parse_rule, rules))
    request = PrepareRequest(
        cases=cases,
        vocabulary=base.vocabulary,
        shape=base.grid.shape,
        spacing_mm=base.spec.grid.spacing_mm,
        name=folder.resolve().parent.name,
        rules=(*own_rules, *name_new_labels(labels, cases, own_rules, base.vocabulary)),
        num_folds=max(2, min(MAX_FOLDS, len(cases))),
    )
    typer.echo(
        "Note: every case counts as a patient of its own. Where patients have several, prepare the data with "
        "'maisi-aug prepare --patients' first, or scans of one patient are trained on and validated on.",
        err=True,
    )
    with count_stages(is_quiet=False) as report:
        plan = plan_preparation(request, report=report)
        for note in (*notes, *plan.notes):
            typer.echo(f"Note: {note}", err=True)
        claim_folder(plan, folder)
        result = run_preparation(plan, folder, report=report)
    for case_id, problem in result.problems.items():
        typer.echo(f"Not prepared: {case_id}: {problem}", err=True)
