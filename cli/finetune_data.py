"""The data of `maisi-aug finetune-controlnet`: a prepared folder, or one that is prepared first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from maisi_aug.errors import PreparationError, VocabularyError, did_you_mean

if TYPE_CHECKING:
    from maisi_aug.bundle import Bundle
    from maisi_aug.preparation.collecting import Sources
    from maisi_aug.preparation.run import PreparePlan
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
    from maisi_aug.training.finetune_checks import SETTINGS_NAME

    cases, notes = collect_cases(sources)
    if len(cases) < 2:
        raise PreparationError(
            f"--data: expected at least two cases, one of them to validate on, found {cases[0].id} alone. Add cases of "
            "more patients."
        )
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
        _require_labels(labels, plan)
        # Until a run has begun, nothing depends on what was prepared: a first try must not hold the options fast.
        claim_folder(plan, folder, update=not (folder.parent / SETTINGS_NAME).is_file())
        result = run_preparation(plan, folder, report=report)
    for case_id, problem in result.problems.items():
        typer.echo(f"Not prepared: {case_id}: {problem}", err=True)


def _require_labels(labels: Sequence[str], plan: PreparePlan) -> None:
    """Raise before any case is prepared, if the data will not hold what is to be taught.

    Raises:
        PreparationError: Naming the label and those that the data will hold.
    """
    from maisi_aug.labels import BACKGROUND_ID, BODY_ID

    vocabulary = plan.settings.vocabulary
    ids = {label_id for task in plan.tasks for table in task.tables for label_id in table.values()}
    ids |= {label_id for task in plan.tasks for each in task.organ_translations for label_id in each.ids.values()}
    ids -= {BACKGROUND_ID, BODY_ID}
    names = [vocabulary.name_of(label_id) for label_id in sorted(ids)]
    for name in labels:
        try:
            is_there = vocabulary.id_of(name) in ids
        except VocabularyError:
            is_there = False
        if not is_there:
            hint = did_you_mean(name, names) or f" They hold {', '.join(names[:12]) or 'none'}."
            raise PreparationError(
                f"--label '{name}': expected a label that the data will hold, found none of that name.{hint} Name one "
                "of those, or add a --map."
            )
