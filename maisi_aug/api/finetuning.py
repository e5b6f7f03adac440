"""A ControlNet taught new labels: what ``finetune-controlnet`` does, for the command line and for Python."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maisi_aug.api.displays import Progress, TrainingDisplay, show_training
from maisi_aug.api.keywords import build_model, require_known, takes_fields_of
from maisi_aug.errors import PreparationError, RecipeError, VocabularyError, did_you_mean
from maisi_aug.training.finetune.settings import FinetuneRequest

if TYPE_CHECKING:
    from maisi_aug.bundle_spec.bundle import Bundle
    from maisi_aug.preparation.request import Sources
    from maisi_aug.preparation.run import PreparePlan
    from maisi_aug.training.cases.prepared import PreparedStore
    from maisi_aug.training.finetune.run import FinetuneResult, Finetuning
    from maisi_aug.training.loop.stopping import TimeLimit

PREPARED_FOLDER = "prepared"
MAX_FOLDS = 5


@takes_fields_of(FinetuneRequest)
def finetune_controlnet(
    labels: str | Sequence[str],
    *,
    data: str | Path,
    base: str | Path,
    out: str | Path,
    device: str = "auto",
    max_minutes: float | None = None,
    with_tensorboard: bool = False,
    self_contained: bool = False,
    progress: Progress = True,
    **fields: Any,
) -> FinetuneResult | None:
    """Teach a ControlNet new labels from labelled CTs; ``maisi-aug finetune-controlnet``.

    The resulting bundle can be used with :func:`synthesize` and :class:`Pipeline`, and knows the labels by name::

        result = ma.finetune_controlnet("left parotid", data="prepared", base="rflow-ct", out="run")
        ma.synthesize("left parotid", bundle=result.bundle.path, num_cases=4, out="cohort")

    Args:
        labels: One label to teach or several, by their names in the data.
        data: Folder that :func:`prepare` wrote; or an nnU-Net dataset, a folder of images and label maps, or NVIDIA's
            JSON list of embeddings, which are prepared into ``out/prepared`` first.
        base: Name or folder of the bundle to start from.
        out: Folder of the run: new, or one that the same call began, which is continued. The bundle is written to
            ``out/bundle``, checkpoint and log to ``out/training``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        max_minutes: Time limit, after which the state is saved and the call returns; the same call continues.
        with_tensorboard: Whether to log for TensorBoard as well; needs the extra ``tensorboard``.
        self_contained: Copy the base's weights and the label maps into the bundle, which otherwise refers to them.
        progress: True for bars on a terminal or in a notebook, False for none, or a function that is called with
            ``(stage, done, total)``: a text and two numbers.
        **fields: The keywords listed below.

    Returns:
        ``bundle`` (with the best weights so far; its folder is ``bundle.path``), ``taught`` (labels with their ids),
        ``loop`` (``num_steps_done``, ``is_complete``, ``best_loss``) and ``num_steps``. None if the time limit was
        reached before training began, and in all processes of ``torchrun`` except the first.

    Raises:
        RecipeError: A keyword is unknown, or fields are invalid; the message lists all problems.
        BundleError: The base was not found, or the device cannot be used.
        PreparationError: The data cannot be prepared.
        TrainingError: The labels cannot be taught from the data or to the base, or ``out`` holds something else.
        MaisiAugError: The request cannot be met for another reason; the message is the one that the command prints.
    """
    require_known(finetune_controlnet, fields)
    values = {"labels": labels, "data": data, "base": base, **fields}
    return finetune(
        build_model(FinetuneRequest, values, source="finetune_controlnet", error=RecipeError),
        Path(out),
        device=device,
        max_minutes=max_minutes,
        display=show_training(progress),
        with_tensorboard=with_tensorboard,
        self_contained=self_contained,
    )


def finetune(
    request: FinetuneRequest,
    out: Path,
    *,
    device: str,
    max_minutes: float | None,
    display: TrainingDisplay,
    with_tensorboard: bool,
    self_contained: bool,
) -> FinetuneResult | None:
    """Open the data of a fine-tuning and train the ControlNet; under ``torchrun`` with all its processes.

    Args:
        request: Labels to teach, data, base and training settings.
        out: Folder of the run.
        device: Device on which the networks run.
        max_minutes: Wall-clock limit; the same call continues.
        display: Shows progress.
        with_tensorboard: Whether to log for TensorBoard as well.
        self_contained: Copy the base's weights and the label maps into the bundle.

    Returns:
        The bundle and the progress of training; None if the time limit was reached before training began, and in all
        processes of ``torchrun`` except the first.

    Raises:
        MaisiAugError: The request cannot be met.
    """
    from maisi_aug.bundle_spec.bundle import load_bundle
    from maisi_aug.training.loop.stopping import TimeLimit

    with display.show_loading():
        from maisi_aug.networks.pipeline import resolve_device
        from maisi_aug.training.finetune.checks import require_trainable, resolve_finetuning
        from maisi_aug.training.finetune.run import Finetuning
        from maisi_aug.training.loop.processes import Processes

    base, limit = load_bundle(request.base), TimeLimit(max_minutes)
    require_trainable(base)
    device = resolve_device(device)
    config = resolve_finetuning(request, base, device)
    processes = Processes.connect(device)
    display = display if processes.is_main else TrainingDisplay(is_shown=False)
    with processes.main_first():
        store = open_data(request, base, out, is_main=processes.is_main, display=display, device=device)
    with display:
        run = Finetuning(
            base,
            store,
            config,
            out,
            device=processes.device_of(device),
            processes=processes,
            report_phase=limit.limit(display.add_phase, uninterrupted=("Looking",)),
            say=display.say,
        )
        result = _train(
            run, limit, display, config.loop.num_steps, with_tensorboard=with_tensorboard, self_contained=self_contained
        )
    processes.leave()
    return result if processes.is_main else None


def _train(
    run: Finetuning, limit: TimeLimit, display: TrainingDisplay, num_steps: int, **options: bool
) -> FinetuneResult | None:
    """Train until the end or the time limit, which the display says."""
    from maisi_aug.training.loop.stopping import TimeIsUp

    try:
        report_step = display.add_training("Training", num_steps)
        return run.train(report_step=report_step, max_minutes=limit.minutes_left, **options)
    except TimeIsUp as stop:
        display.say(f"Time limit reached while {stop}; run the same command again to continue.")
        return None


def open_data(
    request: FinetuneRequest,
    base: Bundle,
    out: Path,
    *,
    is_main: bool = True,
    display: TrainingDisplay | None = None,
    device: str = "cpu",
) -> PreparedStore:
    """Return the prepared cases to fine-tune on; data that are not prepared yet are prepared first.

    NVIDIA's list of embeddings becomes a prepared folder in ``OUT/prepared`` that keeps the embeddings. An nnU-Net
    dataset, by folder, name or number, and a folder of images and label maps are prepared into ``OUT/prepared`` as by
    ``maisi-aug prepare`` with its defaults; cases that are already there are kept. Labels in the data with the names of
    those to be taught need no rule.

    Args:
        request: Names the data, the labels to teach, the rules and the folders of organ labels.
        base: Bundle to start from, whose grid and slot names the prepared cases get.
        out: Folder of the run.
        is_main: Whether this process prepares missing cases; the other processes of ``torchrun`` read them afterwards.
        display: Shows the progress of the preparation.
        device: Device on which embeddings are decoded.

    Raises:
        PreparationError: The data cannot be prepared, or rules are given for data that are prepared already.
        TrainingError: ``out`` holds something else; nothing is written.
    """
    from maisi_aug.preparation.prepared import SPEC_NAME
    from maisi_aug.preparation.writing import STATE_FOLDER
    from maisi_aug.training.cases.embeddings import is_embedded_list
    from maisi_aug.training.cases.prepared import PreparedStore
    from maisi_aug.training.finetune.checks import require_free_folder

    text, rules, organs = request.data, request.map, request.organs
    require_free_folder(out)
    if (Path(text) / SPEC_NAME).is_file():
        if rules or organs:
            option = "--map" if rules else "--organs"
            raise PreparationError(
                f"{option} cannot be used with {text}, which is already prepared. Leave it out, or prepare the data "
                "again."
            )
        return PreparedStore.from_folder(text)
    if (Path(text) / STATE_FOLDER).is_dir():
        return PreparedStore.from_folder(text)  # which tells that its preparation was stopped
    display = display or TrainingDisplay(is_shown=False)
    if is_embedded_list(Path(text)):
        if is_main:
            _prepare_embeddings(request, base, out / PREPARED_FOLDER, display, device)
        return PreparedStore.from_folder(out / PREPARED_FOLDER)
    if not is_main:  # the main process has prepared them: two at once would take each other's description away
        return PreparedStore.from_folder(out / PREPARED_FOLDER)
    try:
        sources = _find_sources(text, tuple(map(Path, organs)))
        _prepare(sources, base, out / PREPARED_FOLDER, request, display)
    except PreparationError as error:
        message = re.sub(r"--(nnunet|images|labels)\b", "--data", str(error))
        if set(re.findall(r"--[a-z-]+", message)) - {"--data", "--map", "--organs", "--out"}:
            message += " It is an option of 'maisi-aug prepare': run that first, then give its folder as --data."
        raise PreparationError(message) from error
    return PreparedStore.from_folder(out / PREPARED_FOLDER)


def _prepare_embeddings(
    request: FinetuneRequest, base: Bundle, folder: Path, display: TrainingDisplay, device: str
) -> None:
    from maisi_aug.training.cases.embeddings import prepare_embeddings

    if request.organs:
        raise PreparationError(
            f"--organs cannot be used with {request.data}, whose label maps contain the organs. Leave it out."
        )
    with display.count_stages() as report:
        prepare_embeddings(
            Path(request.data),
            folder,
            base,
            labels=request.labels,
            rules=request.map,
            device=device,
            report=partial(report, "reading embeddings"),
            say=display.say,
        )


def _find_sources(text: str, organs: tuple[Path, ...]) -> Sources:
    from maisi_aug.banks.case_files import IMAGE_FOLDERS, LABEL_FOLDERS, find_folders
    from maisi_aug.preparation.request import Sources

    folder = Path(text)
    if not folder.is_dir() or (folder / "dataset.json").is_file():
        return Sources(nnunet=text, organs=organs)
    own_labels = [name for name in LABEL_FOLDERS if name != "anatomy"]  # of a cohort: what was requested
    image_folders, label_folders = find_folders(folder, IMAGE_FOLDERS), find_folders(folder, own_labels)
    if image_folders and label_folders:
        return Sources(images=image_folders[0], labels=label_folders[0], organs=organs)
    return Sources(images=folder, labels=folder, organs=organs)


def _prepare(sources: Sources, base: Bundle, folder: Path, wanted: FinetuneRequest, display: TrainingDisplay) -> None:
    from maisi_aug.preparation.collecting import collect_cases
    from maisi_aug.preparation.mapping import name_new_labels, parse_rule
    from maisi_aug.preparation.run import PrepareRequest, claim_folder, plan_preparation, run_preparation
    from maisi_aug.training.finetune.checks import SETTINGS_NAME

    cases, notes = collect_cases(sources)
    if len(cases) < 2:
        raise PreparationError(
            f"--data: needs at least two cases, one of them to validate on, found only {cases[0].id}. Add cases."
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
    display.say(
        "Note: every case counts as a patient of its own. If patients have several cases, run 'maisi-aug prepare "
        "--patients' first; otherwise scans of one patient are used for both training and validation."
    )
    with display.count_stages() as report:
        plan = plan_preparation(request, report=report)
        for note in (*notes, *plan.notes):
            display.say(f"Note: {note}")
        _require_labels(wanted.labels, plan)
        # Until a run has begun, nothing depends on what was prepared: a first try must not hold the options fast.
        claim_folder(plan, folder, update=not (folder.parent / SETTINGS_NAME).is_file())
        result = run_preparation(plan, folder, report=report)
    for case_id, problem in result.problems.items():
        display.say(f"Not prepared: {case_id}: {problem}")


def _require_labels(labels: Sequence[str], plan: PreparePlan) -> None:
    """Raise before any case is prepared, if the data will not hold what is to be taught.

    Raises:
        PreparationError: The message names the label and those that the data will hold.
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
            hint = did_you_mean(name, names) or f" They contain {', '.join(names[:12]) or 'none'}."
            raise PreparationError(
                f"--label '{name}': the data have no label of that name.{hint} Name one of those, or add a --map."
            )
