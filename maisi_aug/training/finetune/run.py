"""Teaching a ControlNet new labels: from a prepared folder and a base to a bundle, in one folder that can be resumed.

OUT/finetune.yaml contains the settings of the run, OUT/labels.json the choices about labels, OUT/training the
checkpoint and the log, OUT/pictures images of held-out cases, and OUT/bundle the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maisi_aug.bundle_spec.bundle import Bundle, bind_slots, load_bundle
from maisi_aug.errors import TrainingError
from maisi_aug.pictures.preview import save_picture
from maisi_aug.system.progress import ReportPhase, ReportStep, Say, report_nothing
from maisi_aug.system.seeds import derive_seed
from maisi_aug.system.whole_files import write_json_whole
from maisi_aug.training.cases.completed import CompletedStore
from maisi_aug.training.cases.data import CaseStore, LatentSet
from maisi_aug.training.cases.prepared import PreparedStore
from maisi_aug.training.cases.taught_label import TaughtLabel
from maisi_aug.training.finetune.bundle import measure_labels, write_finetuned
from maisi_aug.training.finetune.checks import (
    describe_run,
    open_run,
    require_fitting_grid,
    require_one_shape,
    require_trainable,
    require_voxels,
    split_folds,
)
from maisi_aug.training.finetune.networks import FinetuneNetworks, load_trainable, set_up
from maisi_aug.training.finetune.pictures import SampleDrawer, build_sheet
from maisi_aug.training.finetune.settings import FinetuneConfig
from maisi_aug.training.finetune.slot_choice import remap_table
from maisi_aug.training.finetune.slots import SlotStore, plan_labels
from maisi_aug.training.images.contrastive import LabelRemover
from maisi_aug.training.images.flow import FlowObjective
from maisi_aug.training.images.label_means import measure_label_means
from maisi_aug.training.images.lookup import LookupChange, choose_intensities, find_lookup, teach_lookup
from maisi_aug.training.images.validation import FlowValidation
from maisi_aug.training.loop.processes import ALONE, Processes
from maisi_aug.training.loop.run import CHECKPOINT_NAME, LoopResult, TrainingRun
from maisi_aug.training.loop.stopping import TimeLimit
from maisi_aug.vocabulary.labels import FREE_IDS, Vocabulary

LABELS_NAME = "labels.json"
START_NAME = "start.json"
SUMMARY_NAME = "summary.json"
BUNDLE_FOLDER, TRAINING_FOLDER, PICTURES_FOLDER = "bundle", "training", "pictures"


@dataclass(frozen=True)
class FinetuneResult:
    """State of a fine-tuning run, and the bundle that it has written.

    Attributes:
        bundle: Bundle with the best weights so far.
        taught: Labels that it was taught.
        loop: Steps done, and the best validation.
        num_steps: Number of steps of the whole run.
    """

    bundle: Bundle
    taught: tuple[TaughtLabel, ...]
    loop: LoopResult
    num_steps: int

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON-able dict."""
        return {
            "bundle": str(self.bundle.path),
            "name": self.bundle.name,
            "labels": [asdict(label) for label in self.taught],
            "num_steps_done": self.loop.num_steps_done,
            "num_steps": self.num_steps,
            "is_complete": self.loop.is_complete,
            "best_step": self.loop.best_step,
            "best_validation_loss": self.loop.best_loss,
        }


@dataclass
class Finetuning:
    """One run that fine-tunes a ControlNet in a folder.

    Attributes:
        base: The bundle to start from.
        store: All prepared cases.
        config: Settings of the training.
        folder: Folder of the run.
        device: Device on which the networks run.
        processes: Processes that train together.
        report_phase: Function that starts the progress report of a phase, given its name.
        say: Called with a sentence about each decision.
    """

    base: Bundle
    store: PreparedStore
    config: FinetuneConfig
    folder: Path
    device: str
    processes: Processes = ALONE
    report_phase: ReportPhase = field(default=lambda _: report_nothing)
    say: Say = field(default=lambda _: None)

    def __post_init__(self) -> None:
        require_trainable(self.base)
        if self.base.is_ddpm:
            self.config = self.config.model_copy(update={"contrastive_weight": 0.0})
        require_fitting_grid(self.store.dataset, self.base)
        require_one_shape(self.store.dataset, self.config)
        parts = split_folds(self.store.dataset, self.config.fold)
        self.training, self.held_out = (self.store.part(part) for part in parts)
        self.hosts = {
            name: tuple(self.base.vocabulary.id_of(host) for host in hosts) for name, hosts in self.config.hosts.items()
        }
        self.taught = self._plan()
        require_voxels(self.taught, *parts)
        self.table, self.replayed, dropped = remap_table(self.taught, dataset=self.store.dataset, base=self.base)
        self._tell(dropped)
        with self.processes.main_first():
            open_run(self.folder, describe_run(self.config, self.base, self.store.dataset))
            rows = [asdict(label) for label in self.taught]
            write_json_whole(self.folder / LABELS_NAME, rows)

    def train(
        self,
        *,
        max_minutes: float | None = None,
        report_step: ReportStep | None = None,
        with_tensorboard: bool = False,
        self_contained: bool = False,
    ) -> FinetuneResult:
        """Train from the last checkpoint, if there is one, and write a bundle with the weights of the best validation.

        Args:
            max_minutes: Wall-clock limit, encoding included; the same run continues later.
            report_step: Progress callback, called after each step with (step, figures such as ``loss``).
            with_tensorboard: Also log for TensorBoard.
            self_contained: Copy the base's weights and the label maps into the bundle.

        Raises:
            TrainingError: The loss is not finite any more.
            VolumeError: The disk is full; the last checkpoint is intact.
        """
        limit = TimeLimit(max_minutes)
        networks = load_trainable(self.base, self.device)
        with self.processes.main_first():
            is_looked_up = self._start(networks.controlnet)
        trainable = set_up(networks, self.config, is_looked_up=is_looked_up)
        percent = 100 * trainable.num_trained / trainable.num_parameters
        self.say(f"{trainable.num_trained:,} parameters are trained ({percent:.0f}% of the ControlNet's size).")
        with self.processes.main_first():
            training, held_out = (self._encode(part, trainable) for part in (self.training, self.held_out))
        objective = self._build_objective(trainable, *training)
        validation = _Validation(self, objective, trainable, *held_out, with_tensorboard=with_tensorboard)
        run = self._open_run(objective, validation, with_tensorboard=with_tensorboard)
        loop = run.train(max_minutes=limit.minutes_left, report_step=report_step)
        weights = trainable.merge(loop.averaged_weights["controlnet"])
        with self.processes.main_first():
            if self.processes.is_main:
                self._write_bundle(weights, training[0], loop, self_contained=self_contained)
        bundle = load_bundle(self.folder / BUNDLE_FOLDER)
        result = FinetuneResult(bundle, self.taught, loop, self.config.loop.num_steps)
        if self.processes.is_main:
            write_json_whole(self.folder / SUMMARY_NAME, result.to_json())
        return result

    def _open_run(self, objective: FlowObjective, validation: _Validation, *, with_tensorboard: bool) -> TrainingRun:
        run = TrainingRun(
            objective,
            self.config.loop,
            self.folder / TRAINING_FOLDER,
            device=self.device,
            processes=self.processes,
            validate=validation,
            with_tensorboard=with_tensorboard,
        )
        validation.run = run
        return run

    def _write_bundle(
        self, weights: Mapping[str, Tensor], store: CaseStore, loop: LoopResult, *, self_contained: bool
    ) -> None:
        write_finetuned(
            self.folder / BUNDLE_FOLDER,
            self.base,
            weights,
            self.taught,
            measure_labels(self.taught, store, self.training.dataset),
            self.training.dataset,
            table=self.table,
            training_facts=self._describe_training(loop),
            self_contained=self_contained,
        )

    @property
    def vocabulary(self) -> Vocabulary:
        """Vocabulary of the base with the taught labels bound to their slots."""
        own = {label.name: label.slot for label in self.taught if not self._is_known(label)}
        return bind_slots({**self.base.spec.slots, **own})

    def _is_known(self, label: TaughtLabel) -> bool:
        vocabulary = self.base.vocabulary
        return vocabulary.contains(label.id) and vocabulary.label(label.id).kind != "slot"

    def _plan(self) -> tuple[TaughtLabel, ...]:
        return plan_labels(
            self.config.labels,
            self.training,
            self.base,
            slots=self.config.slots,
            hosts=self.hosts,
            kinds=self.config.kinds,
            report=self.report_phase("Measuring the labels"),
        )

    def _tell(self, dropped: Mapping[str, str]) -> None:
        names = self.base.vocabulary.name_of
        for label in self.taught:
            hosts = ", ".join(map(names, label.hosts))
            self.say(f"{label.name}: {label.kind} in slot {label.id}, lies in {hosts} ({label.why}).")
        for name, label_id in self.replayed.items():
            self.say(f"{name}: taught earlier (id {label_id}) and also in these data, so it is trained as well.")
        for name, target in dropped.items():
            self.say(f"{name}: not taught; its voxels count as {target}.")
        forgotten = sorted(set(self.base.spec.slots) - set(self.replayed) - {label.name for label in self.taught})
        if forgotten:
            self.say(
                f"{', '.join(forgotten)}: taught earlier but not in these data, so it may be forgotten; compare images."
            )

    def _start(self, controlnet: torch.nn.Module) -> bool:
        """Set the intensities of the new labels where the ControlNet looks them up.

        Returns:
            Whether it does.

        Raises:
            TrainingError: When a start from label means is requested and it does not.
        """
        lookup = find_lookup(controlnet) if self.config.start != "base" else None
        if self.config.start == "label-means" and lookup is None:
            raise TrainingError(
                f"Start: '{self.base.name}' has no ControlNet with a lookup of intensities, as phantom-ct has. Use "
                "--start base."
            )
        if lookup is None or (self.folder / TRAINING_FOLDER / CHECKPOINT_NAME).is_file():
            return lookup is not None  # a checkpoint has the intensities
        store = self._open(self.training)
        means = measure_label_means(store, range(len(store)), self.vocabulary)
        wanted = choose_intensities(means, lookup, [label.id for label in self.taught], self.vocabulary)
        known = [label.id for label in self.base.vocabulary if label.kind != "slot"]
        known += FREE_IDS if self.base.completes_maps else ()  # which stand for hidden structure
        change = teach_lookup(controlnet, lookup, wanted, known_ids=known)
        self._tell_change(change)
        return True

    def _tell_change(self, change: LookupChange) -> None:
        for label_id, (before, wanted, now) in change.new_hu.items():
            name = self.vocabulary.name_of(label_id)
            self.say(f"{name}: starts at {now:.0f} HU (measured {wanted:.0f}, the base would draw {before:.0f}).")
        moved = self.base.vocabulary.name_of(change.largest_old_id)
        self.say(f"Known labels keep their intensity; {moved} moved most, by {change.largest_old_hu:.1f} HU.")
        content = {**asdict(change), "new_hu": {str(key): list(value) for key, value in change.new_hu.items()}}
        write_json_whole(self.folder / START_NAME, content)

    def _encode(self, store: PreparedStore, trainable: FinetuneNetworks) -> tuple[CaseStore, LatentSet]:
        owner = self.base.owner_of("autoencoder")
        latents = store.encode(
            trainable.all.autoencoder,
            weights_hash=owner.spec.weights["autoencoder"].sha256,
            device=self.device,
            scale_factor=self.base.spec.scale_factor,
            report=self.report_phase("Encoding latents"),
        )
        return self._open(store), latents

    def _open(self, store: PreparedStore) -> CaseStore:
        """Cases with the bundle's ids, completed where the base completes label maps."""
        slots = SlotStore(store, self.table)
        return CompletedStore(slots, seed=self.config.seed) if self.base.completes_maps else slots

    def _build_objective(self, trainable: FinetuneNetworks, store: CaseStore, latents: LatentSet) -> FlowObjective:
        """The loss on cases that hold the taught labels, which take the place of MAISI's tumours; the U-Net is frozen.

        Labels that the base learnt earlier count as much as the new ones, or they would be forgotten.
        """
        config = self.config
        contrast = {"contrastive_weight": config.contrastive_weight, "contrastive_bound": config.contrastive_bound}
        return FlowObjective(
            trainable.all.diffusion_unet,
            trainable.all.controlnet,
            trainable.all.scheduler,
            store,
            latents,
            config.loss.model_copy(update=contrast),
            lesion_ids=[*(label.id for label in self.taught), *self.replayed.values()],
            seed=derive_seed(config.seed, "finetune"),
            device=self.device,
            remover=LabelRemover.of_taught(self.taught, self.vocabulary),
            processes=self.processes,
        )

    def _describe_training(self, loop: LoopResult) -> dict[str, Any]:
        config = self.config
        return {
            "data": f"{self.store.spec.name}: {len(self.training.cases)} training and {len(self.held_out.cases)} "
            f"held-out cases (fold {config.fold})",
            "tuned": config.tune + (f", rank {config.rank}" if config.tune == "low-rank" else ""),
            "steps": loop.num_steps_done,
            "kept_step": loop.best_step or loop.num_steps_done,
            "validation_loss": loop.best_loss,
            "is_finished": loop.is_complete,
            "learning_rate": config.loop.learning_rate,
            "label_weight": config.loss.lesion_weight,
            "contrastive_weight": config.contrastive_weight,
            "seed": config.seed,
            "trained_along": sorted(self.replayed),
        }


class _Validation:
    """Validates held-out cases and draws some of them; called with the averaged weights in the networks."""

    def __init__(
        self,
        finetuning: Finetuning,
        objective: FlowObjective,
        trainable: FinetuneNetworks,
        store: CaseStore,
        latents: LatentSet,
        *,
        with_tensorboard: bool,
    ) -> None:
        self.finetuning = finetuning
        self.loss = FlowValidation(objective.on(store, latents), processes=finetuning.processes)
        self.run: TrainingRun | None = None
        self.with_tensorboard = with_tensorboard
        config = finetuning.config
        names = [case.id for case in finetuning.held_out.cases]
        self.drawer = SampleDrawer(
            trainable.all,
            finetuning.base,
            store,
            names,
            finetuning.taught,
            num_cases=config.num_pictures,
            seed=config.seed,
        )

    def __call__(self) -> dict[str, float]:
        figures = self.loss()
        if self.drawer.indices and self.finetuning.processes.is_main:
            self._draw(figures)
        return figures

    def _draw(self, figures: dict[str, float]) -> None:
        assert self.run is not None
        step = self.run.step
        subjects = self.drawer.draw()
        labels = {label.id: label.name for label in self.finetuning.taught}
        sheet = build_sheet(subjects, labels, f"Step {step}, validation loss {figures['loss']:.4f}: held-out cases")
        path = self.finetuning.folder / PICTURES_FOLDER / f"step_{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        save_picture(path, sheet)
        for label_id, name in labels.items():
            shifts = [
                float(np.median(subject.images_hu["drawn"][mask]) - np.median(subject.images_hu["real"][mask]))
                for subject in subjects
                for mask in [subject.label_map == label_id]
                if mask.any()
            ]
            if shifts:
                figures[f"hu_shift {name}"] = float(np.mean(shifts))
        if self.with_tensorboard:
            show_in_tensorboard(self.finetuning.folder / TRAINING_FOLDER, np.asarray(sheet), step)


def show_in_tensorboard(folder: Path, picture: NDArray[np.uint8], step: int) -> None:
    """Add a picture to the TensorBoard event files of a run, as a run of its own next to the scalars.

    Args:
        folder: Folder of the run.
        picture: ``(height, width, 3)`` RGB.
        step: Number of the training step.
    """
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard" / "pictures"), purge_step=step)
    writer.add_image("held-out cases", picture, step, dataformats="HWC")
    writer.close()
