"""`maisi-aug finetune-controlnet`: teach a ControlNet labels that it does not know."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maisi_aug.api.bars import add_phase, add_training, open_bars, show_loading
from maisi_aug.cli.shared.completion import complete_bundles
from maisi_aug.cli.shared.parsing import parse_shape
from maisi_aug.errors import PreparationError, VocabularyError, did_you_mean

if TYPE_CHECKING:
    from maisi_aug.bundle_spec.bundle import Bundle
    from maisi_aug.preparation.collecting import Sources
    from maisi_aug.preparation.run import PreparePlan
    from maisi_aug.training.cases.prepared import PreparedStore
    from maisi_aug.training.finetune.run import FinetuneResult
    from maisi_aug.training.finetune.settings import FinetuneConfig

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
    from maisi_aug.preparation.prepared import SPEC_NAME
    from maisi_aug.preparation.writing import STATE_FOLDER
    from maisi_aug.training.cases.prepared import PreparedStore
    from maisi_aug.training.finetune.checks import require_free_folder

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
    from maisi_aug.banks.case_files import IMAGE_FOLDERS, LABEL_FOLDERS, find_folders
    from maisi_aug.preparation.collecting import Sources

    folder = Path(text)
    if not folder.is_dir() or (folder / "dataset.json").is_file():
        return Sources(None, None, text, organs)
    own_labels = [name for name in LABEL_FOLDERS if name != "anatomy"]  # of a cohort: what was asked for
    image_folders, label_folders = find_folders(folder, IMAGE_FOLDERS), find_folders(folder, own_labels)
    if image_folders and label_folders:
        return Sources(image_folders[0], label_folders[0], None, organs)
    return Sources(folder, folder, None, organs)


def _prepare(sources: Sources, base: Bundle, folder: Path, labels: Sequence[str], rules: Sequence[str]) -> None:
    from maisi_aug.api.progress import count_stages
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


_WHAT, _HOW, _RUN = "What to teach", "How to train", "Run"
DEFAULT_RANK = 8
MAX_WARMUP_STEPS = 20
NUM_VALIDATIONS = 10
"""Validations in a run when the user names no distance between them."""


class TuneName(StrEnum):
    """What `--tune` takes."""

    full = "full"
    partial = "partial"
    low_rank = "low-rank"


class StartName(StrEnum):
    """What `--start` takes."""

    auto = "auto"
    label_means = "label-means"
    base = "base"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("finetune-controlnet")(finetune_controlnet)


def finetune_controlnet(
    data: Annotated[
        str,
        typer.Option(
            metavar="DIR|DATASET",
            help="Folder of 'maisi-aug prepare'; or an nnU-Net dataset or a folder of images and label maps, which are "
            "prepared into OUT/prepared first.",
            rich_help_panel=_WHAT,
        ),
    ],
    label: Annotated[
        list[str], typer.Option(metavar="NAME", help="Label to teach; may repeat.", rich_help_panel=_WHAT)
    ],
    base: Annotated[
        str,
        typer.Option(
            metavar="NAME|FOLDER",
            autocompletion=complete_bundles,
            help="Bundle to start from, fine-tuned or not.",
            rich_help_panel=_WHAT,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run; one that was begun is gone on with.")],
    slot: Annotated[
        list[str] | None,
        typer.Option(
            metavar="auto|SLOT|NAME=SLOT",
            help="Placeholder (dummy1 to dummy8) or free id (133-199, 201-255) of a label (default: a free one).",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=ORGAN[,ORGAN]",
            help="What a label lies in (default: what surrounds it in the training cases).",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=lesion|organ",
            help="lesion: planted at any size; organ: taken from label maps (default: by name, hosts and sizes).",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    map_rules: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="LABEL=NAME[@HOSTS]",
            help="What a label of unprepared data means, as for 'maisi-aug prepare'; may repeat.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    organs: Annotated[
        list[Path] | None,
        typer.Option(
            help="Organ labels of unprepared data, as TotalSegmentator writes them; may repeat.", rich_help_panel=_WHAT
        ),
    ] = None,
    tune: Annotated[
        TuneName,
        typer.Option(
            help="full; partial: the layers that read the label map and hand over to the U-Net; low-rank: matrices "
            "added to all layers, for little memory.",
            rich_help_panel=_HOW,
        ),
    ] = TuneName.full,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help=f"Rank of --tune low-rank (default: {DEFAULT_RANK}).", rich_help_panel=_HOW),
    ] = None,
    start: Annotated[
        StartName,
        typer.Option(
            help="label-means: new labels begin at their mean HU, for ControlNets that look it up, as phantom-ct's; "
            "base: as the base is; auto: the former where it can.",
            rich_help_panel=_HOW,
        ),
    ] = StartName.auto,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.", rich_help_panel=_HOW)] = 1000,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Peak learning rate (default: 1e-5 as in MAISI, 1e-4 for low-rank).", rich_help_panel=_HOW
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Cases a step.", rich_help_panel=_HOW)] = 1,
    crop: Annotated[
        str | None,
        typer.Option(
            metavar="IxJxK", help="Train on crops of so many voxels (default: whole cases).", rich_help_panel=_HOW
        ),
    ] = None,
    label_weight: Annotated[
        float, typer.Option(min=1.0, help="Weight of the labels in the loss.", rich_help_panel=_HOW)
    ] = 100.0,
    contrastive_weight: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Weight of the region contrastive loss; 0 for none (default: 0.01; ddpm bases have none).",
            rich_help_panel=_HOW,
        ),
    ] = None,
    label_mean_weight: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Weight of the mean error of every label in the loss, which keeps intensities in place where small "
            "networks such as phantom-ct's would drift; MAISI has none.",
            rich_help_panel=_HOW,
        ),
    ] = 0.0,
    fold: Annotated[int, typer.Option(min=0, help="Fold of the data to validate on.", rich_help_panel=_HOW)] = 0,
    validate_every: Annotated[
        int | None,
        typer.Option(min=1, help="Steps between validations (default: a tenth of --steps).", rich_help_panel=_HOW),
    ] = None,
    patience: Annotated[
        int, typer.Option(min=0, help="Stop after so many validations without a gain; 0 never.", rich_help_panel=_HOW)
    ] = 4,
    pictures: Annotated[
        int, typer.Option(min=0, help="Held-out cases to draw at each validation.", rich_help_panel=_HOW)
    ] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of batches and noise.", rich_help_panel=_RUN)] = 0,
    max_minutes: Annotated[
        float | None,
        typer.Option(min=0.0, help="Stop training after so long; the same command goes on.", rich_help_panel=_RUN),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=_RUN)] = "auto",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also log for TensorBoard.", rich_help_panel=_RUN)
    ] = False,
    self_contained: Annotated[
        bool,
        typer.Option(
            "--self-contained", help="Copy the base's weights and the label maps into the bundle.", rich_help_panel=_RUN
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.", rich_help_panel=_RUN)] = False,
) -> None:
    """Teach a ControlNet new labels from 10 to 200 labelled CTs; the result is a bundle for 'maisi-aug synthesize'.

    The U-Net stays frozen. Held-out patients decide which weights are kept, and show what was learnt in OUT/pictures.

    Example: maisi-aug finetune-controlnet --data prepared --label "left parotid" --base rflow-ct --out runs/parotid
    """
    config = _build_config(
        {
            "labels": tuple(label),
            "slots": _read_slots(slot or (), label),
            "hosts": _read_hosts(host or (), label),
            "kinds": _read_pairs(kind or (), "--kind", label),
            "fold": fold,
            "tune": tune.value,
            "rank": _read_rank(rank, tune),
            "start": start.value,
            "num_pictures": pictures,
            "seed": seed,
            "loss": {
                "lesion_weight": label_weight,
                "label_mean_weight": label_mean_weight,
                "batch_count": batch_size,
            },
            "loop": _describe_loop(steps, learning_rate, tune, validate_every, patience),
        }
    )
    with show_loading():
        from maisi_aug.bundle_spec.bundle import load_bundle
        from maisi_aug.training.finetune.checks import require_trainable, with_contrast, with_crop

    bundle = load_bundle(base)
    require_trainable(bundle)
    result = _run(
        lambda is_main: open_data(
            data, bundle, out, labels=label, rules=map_rules or (), organs=organs or (), is_main=is_main
        ),
        with_contrast(with_crop(config, parse_shape(crop), bundle), contrastive_weight, bundle),
        base=bundle,
        out=out,
        device=device,
        max_minutes=max_minutes,
        with_tensorboard=tensorboard,
        self_contained=self_contained,
    )
    if result is not None:
        _tell(result, as_json=as_json)


def _describe_loop(
    steps: int, learning_rate: float | None, tune: TuneName, validate_every: int | None, patience: int
) -> dict[str, Any]:
    """MAISI's schedule, and a validation at every tenth of the run where the user says nothing else."""
    from maisi_aug.training.finetune.settings import DEFAULT_RATES

    return {
        "num_steps": steps,
        "learning_rate": DEFAULT_RATES[tune.value] if learning_rate is None else learning_rate,
        "num_warmup_steps": min(MAX_WARMUP_STEPS, steps // 10),
        "decay_power": 2.0,
        "validation_steps": validate_every or max(1, steps // NUM_VALIDATIONS),
        "patience": patience or None,
    }


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
        from maisi_aug.networks.pipeline import resolve_device
        from maisi_aug.training.finetune.checks import with_precision
        from maisi_aug.training.finetune.run import Finetuning
        from maisi_aug.training.loop.processes import Processes

    device = resolve_device(device)
    config = with_precision(config, base, device)
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


def _build_config(values: dict[str, Any]) -> FinetuneConfig:
    from pydantic import ValidationError

    from maisi_aug.training.finetune.settings import FinetuneConfig

    try:
        return FinetuneConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise typer.BadParameter(f"{place}: {first['msg']}, found {first['input']!r}.") from None


def _read_slots(texts: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """``dummy3`` for the only label, or ``NAME=dummy3`` for each.

    Raises:
        typer.BadParameter: When it is not clear which label is meant.
    """
    if len(texts) == 1 and "=" not in texts[0]:
        if len(labels) > 1 and texts[0] != "auto":
            raise typer.BadParameter(
                f"--slot: expected 'NAME={texts[0]}' where there are several labels, found '{texts[0]}'."
            )
        return dict.fromkeys(labels, texts[0])
    return _read_pairs(texts, "--slot", labels)


def _read_hosts(texts: Sequence[str], labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(value.split(",")) for name, value in _read_pairs(texts, "--host", labels).items()}


def _read_rank(rank: int | None, tune: TuneName) -> int:
    if rank is not None and tune is not TuneName.low_rank:
        raise typer.BadParameter(f"--rank: expected --tune low-rank beside it, found {tune.value}. Leave one out.")
    return DEFAULT_RANK if rank is None else rank


def _read_pairs(texts: Sequence[str], option: str, labels: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` for some of the labels.

    Raises:
        typer.BadParameter: When it is anything else, or for another label.
    """
    from maisi_aug.errors import did_you_mean

    pairs = [tuple(part.strip() for part in text.partition("=")) for text in texts]
    for text, (name, mark, value) in zip(texts, pairs, strict=True):
        if not (name and mark and value):
            raise typer.BadParameter(f"{option}: expected NAME=VALUE such as 'left parotid=body', found '{text}'.")
        if name not in labels:
            raise typer.BadParameter(
                f"{option}: expected one of the labels ({', '.join(labels)}), found '{name}'."
                f"{did_you_mean(name, labels)}"
            )
    return {name: value for name, _, value in pairs}
