"""`maisi-aug finetune-controlnet`: teach a ControlNet labels that it does not know."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maisi_aug.cli.shared.bars import add_phase, add_training, open_bars, show_loading
from maisi_aug.cli.shared.from_models import with_options
from maisi_aug.cli.shared.run_options import RUN, AsJson, MaxMinutes, NewRun, Tensorboard, TrainingDevice
from maisi_aug.errors import PreparationError, VocabularyError, did_you_mean
from maisi_aug.training.finetune.settings import FinetuneRequest

if TYPE_CHECKING:
    from maisi_aug.bundle_spec.bundle import Bundle
    from maisi_aug.preparation.request import Sources
    from maisi_aug.preparation.run import PreparePlan
    from maisi_aug.training.cases.prepared import PreparedStore
    from maisi_aug.training.finetune.run import FinetuneResult
    from maisi_aug.training.finetune.settings import FinetuneConfig

PREPARED_FOLDER = "prepared"
MAX_FOLDS = 5


def open_data(request: FinetuneRequest, base: Bundle, out: Path, *, is_main: bool = True) -> PreparedStore:
    """The cases to train on.

    An nnU-Net dataset, by folder, name or number, and a folder of images and label maps are prepared into
    ``OUT/prepared`` as by ``maisi-aug prepare`` with its defaults; cases that are there already are kept. Labels in the
    data that are called like those to be taught need no rule.

    Args:
        request: Names the data, the labels to teach, the rules and the folders of organ labels.
        base: Its grid and its names for slots are those of the prepared cases.
        out: Folder of the run.
        is_main: Whether this process prepares what is not prepared yet; others read it afterwards.

    Raises:
        PreparationError: For data that cannot be prepared, and for rules where there is nothing to prepare.
        TrainingError: For a folder of something else, before anything is prepared into it.
    """
    from maisi_aug.preparation.prepared import SPEC_NAME
    from maisi_aug.preparation.writing import STATE_FOLDER
    from maisi_aug.training.cases.prepared import PreparedStore
    from maisi_aug.training.finetune.checks import require_free_folder

    text, rules, organs = request.data, request.map, request.organs
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
        _prepare(_find_sources(text, tuple(map(Path, organs))), base, out / PREPARED_FOLDER, request)
    except PreparationError as error:
        message = re.sub(r"--(nnunet|images|labels)\b", "--data", str(error))
        if set(re.findall(r"--[a-z-]+", message)) - {"--data", "--map", "--organs", "--out"}:
            message += " That is an option of 'maisi-aug prepare': use it first, then give its folder as --data."
        raise PreparationError(message) from error
    return PreparedStore.from_folder(out / PREPARED_FOLDER)


def _find_sources(text: str, organs: tuple[Path, ...]) -> Sources:
    from maisi_aug.banks.case_files import IMAGE_FOLDERS, LABEL_FOLDERS, find_folders
    from maisi_aug.preparation.request import Sources

    folder = Path(text)
    if not folder.is_dir() or (folder / "dataset.json").is_file():
        return Sources(nnunet=text, organs=organs)
    own_labels = [name for name in LABEL_FOLDERS if name != "anatomy"]  # of a cohort: what was asked for
    image_folders, label_folders = find_folders(folder, IMAGE_FOLDERS), find_folders(folder, own_labels)
    if image_folders and label_folders:
        return Sources(images=image_folders[0], labels=label_folders[0], organs=organs)
    return Sources(images=folder, labels=folder, organs=organs)


def _prepare(sources: Sources, base: Bundle, folder: Path, wanted: FinetuneRequest) -> None:
    from maisi_aug.cli.shared.progress import count_stages
    from maisi_aug.preparation.collecting import collect_cases
    from maisi_aug.preparation.mapping import name_new_labels, parse_rule
    from maisi_aug.preparation.run import PrepareRequest, claim_folder, plan_preparation, run_preparation
    from maisi_aug.training.finetune.checks import SETTINGS_NAME

    cases, notes = collect_cases(sources)
    if len(cases) < 2:
        raise PreparationError(
            f"--data: expected at least two cases, one of them to validate on, found {cases[0].id} alone. Add cases of "
            "more patients."
        )
    own_rules = tuple(map(parse_rule, wanted.map))
    request = PrepareRequest(
        cases=cases,
        vocabulary=base.vocabulary,
        shape=base.grid.shape,
        spacing_mm=base.spec.grid.spacing_mm,
        name=folder.resolve().parent.name,
        rules=(*own_rules, *name_new_labels(wanted.labels, cases, own_rules, base.vocabulary)),
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
        _require_labels(wanted.labels, plan)
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
    from maisi_aug.vocabulary.labels import BACKGROUND_ID, BODY_ID

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


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("finetune-controlnet")(with_options(finetune_controlnet))


def finetune_controlnet(
    request: FinetuneRequest,
    out: NewRun,
    max_minutes: MaxMinutes = None,
    device: TrainingDevice = "auto",
    tensorboard: Tensorboard = False,
    self_contained: Annotated[
        bool,
        typer.Option(
            "--self-contained", help="Copy the base's weights and the label maps into the bundle.", rich_help_panel=RUN
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Teach a ControlNet new labels from 10 to 200 labelled CTs; the result is a bundle for 'maisi-aug synthesize'.

    The U-Net stays frozen. Held-out patients decide which weights are kept, and show what was learnt in OUT/pictures.

    Example: maisi-aug finetune-controlnet --data prepared --label "left parotid" --base rflow-ct --out runs/parotid
    """
    with show_loading():
        from maisi_aug.bundle_spec.bundle import load_bundle
        from maisi_aug.networks.pipeline import resolve_device
        from maisi_aug.training.finetune.checks import require_trainable, resolve_finetuning

    base = load_bundle(request.base)
    require_trainable(base)
    device = resolve_device(device)
    result = _run(
        lambda is_main: open_data(request, base, out, is_main=is_main),
        resolve_finetuning(request, base, device),
        base=base,
        out=out,
        device=device,
        max_minutes=max_minutes,
        with_tensorboard=tensorboard,
        self_contained=self_contained,
    )
    if result is not None:
        _tell(result, as_json=as_json)


def _run(
    open_store: Callable[[bool], PreparedStore],
    config: FinetuneConfig,
    *,
    base: Bundle,
    out: Path,
    device: str,
    max_minutes: float | None,
    **how: Any,
) -> FinetuneResult | None:
    """Train with a progress bar on stderr; under ``torchrun`` all processes together, and None in all but the first."""
    from maisi_aug.training.loop.stopping import TimeIsUp, TimeLimit

    limit = TimeLimit(max_minutes)
    with show_loading():
        from maisi_aug.training.finetune.run import Finetuning
        from maisi_aug.training.loop.processes import Processes

    processes = Processes.connect(device)
    with processes.main_first():
        store = open_store(processes.is_main)
    with open_bars(is_shown=processes.is_main, is_telling=processes.is_main) as bars:

        def say(sentence: str) -> None:
            if processes.is_main:
                bars.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

        run = Finetuning(
            base,
            store,
            config,
            out,
            device=processes.device_of(device),
            processes=processes,
            report_phase=limit.limit(partial(add_phase, bars), uninterrupted=("Looking",)),
            say=say,
        )
        report_step = add_training(bars, "Training", config.loop.num_steps)
        result: FinetuneResult | None
        try:
            result = run.train(report_step=report_step, max_minutes=limit.minutes_left, **how)
        except TimeIsUp as stop:
            say(f"The time was up while {stop.phase.lower()}, {stop.done} of {stop.total}; run again to go on.")
            result = None
    processes.leave()
    return result if processes.is_main else None


def _tell(result: FinetuneResult, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=1, ensure_ascii=False))
        return
    if not result.loop.is_complete:
        done = f"{result.loop.num_steps_done} of {result.num_steps} steps"
        typer.echo(f"{done}; run the same command again to go on.", err=True)
    request = result.taught[0].name
    if result.loop.best_step is not None:
        typer.echo(f"Kept step {result.loop.best_step}, validation loss {result.loop.best_loss:.4f}.")
    typer.echo(result.bundle.path)
    words = ["--bundle", str(result.bundle.path), "--labels", f"{request}:0.5", "-n", "4", "--out", "cohort"]
    typer.echo(f"Try: maisi-aug synthesize {shlex.join(words)}")
