"""Training loop of all networks: steps, learning rate, mixed precision, averaging, validation, checkpoints, resuming.

The loop has no random state: an objective derives the noise of a step from its number. A run that was killed and
resumed therefore ends with the same weights as an uninterrupted one: identical bits on the same kind of processor with
the same number of threads, otherwise up to rounding of sums. The steps do not depend on the number of processes or on
whether batches are accumulated.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from maisi_aug.errors import TrainingError
from maisi_aug.system.progress import ReportStep
from maisi_aug.training.loop.amp import Precision
from maisi_aug.training.loop.average import WeightAverage, Weights
from maisi_aug.training.loop.processes import ALONE, WHOLE, Processes, Share
from maisi_aug.training.loop.run_files import LOG_NAME, StepLog, read_checkpoint, require_same_run, write_checkpoint
from maisi_aug.training.loop.settings import LoopConfig
from maisi_aug.training.loop.stopping import StopRequest, TrainingStopped

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_MOST_BYTES = 2**30
_MOST_BYTES_BEFORE_2_35 = 2**25


@cache
def keep_freed_memory() -> bool:
    """Make glibc's allocator keep freed large blocks for reuse; once per process.

    By default it returns them to the kernel, and every step has to get new pages: a ControlNet of a tenth of the width
    trains 8% faster without that, at the same peak memory.

    Returns:
        Whether it was done; False with other C libraries.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    is_trimmed_late = bool(mallopt(_TRIM_THRESHOLD, _MOST_BYTES))
    return is_trimmed_late and any(mallopt(_MMAP_THRESHOLD, most) for most in (_MOST_BYTES, _MOST_BYTES_BEFORE_2_35))


__all__ = ["CHECKPOINT_NAME", "LOG_NAME", "LoopResult", "Objective", "Stateless", "TrainingRun"]

CHECKPOINT_NAME = "checkpoint.pt"
Figures = Mapping[str, float | Tensor]


class Objective(Protocol):
    """Protocol of training objectives: networks, the loss of a step, and the state that the loss needs."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Name -> network that the loop trains, averages and saves."""

    def loss(self, step: int, share: Share = WHOLE) -> tuple[Tensor, Figures]:
        """Return the scalar loss of a share of a step's batch, and figures to log, which may stay on the device.

        Args:
            step: Number of the step, from 0.
            share: Part of the batch that this process takes.

        Returns:
            Scalar loss with gradients, and name -> figure to log.
        """

    def after_step(self, step: int) -> None:
        """Run what follows the optimiser step, such as training a discriminator."""

    def state(self) -> dict[str, Any]:
        """Return further state for a checkpoint, as tensors and plain values."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state that :meth:`state` returned."""


class Stateless:
    """Base class of objectives without further state, which do nothing after a step."""

    def after_step(self, step: int) -> None:
        """Do nothing, because nothing follows the optimiser step."""

    def state(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Do nothing, because there is no further state."""


@dataclass(frozen=True)
class LoopResult:
    """State of a training loop, and the weights to keep.

    Attributes:
        num_steps_done: Number of optimiser steps done.
        is_complete: Whether training is finished: all steps are done, or validation has stopped improving.
        averaged_weights: Network -> weights to keep: those of the best validation, if there was one.
        best_step: Step of the best validation; None without validation.
        best_loss: Loss of the best validation; None without validation.
    """

    num_steps_done: int
    is_complete: bool
    averaged_weights: Weights
    best_step: int | None = None
    best_loss: float | None = None


@dataclass
class _Best:
    """The best validation so far; its weights are on the CPU."""

    step: int | None = None
    loss: float = math.inf
    num_without_gain: int = 0
    weights: Weights = field(default_factory=dict)


Validate = Callable[[], Mapping[str, float]]


class TrainingRun:
    """One training run in a folder, which continues from its checkpoint if there is one.

    Args:
        objective: Training objective.
        config: Settings of the training loop.
        folder: Folder of the checkpoint and the log; only the main process writes there.
        device: Device that the networks are on.
        processes: Processes that train together; each computes its share of every step.
        validate: Function that returns figures of the held-out cases, including ``loss``, the same in every process;
            called every ``config.validation_steps`` with the averaged weights in the networks.
        with_tensorboard: Also log for TensorBoard.
        precision: Precision of the computation; None to choose it by the settings and the device.
    """

    def __init__(
        self,
        objective: Objective,
        config: LoopConfig,
        folder: Path,
        *,
        device: str,
        processes: Processes = ALONE,
        validate: Validate | None = None,
        with_tensorboard: bool = False,
        precision: Precision | None = None,
    ) -> None:
        if config.validation_steps is not None and validate is None:
            raise TrainingError("validation_steps: needs held-out cases. Give a validation fold, or leave it out.")
        self.objective = objective
        self.config = config
        self.folder = folder
        self.device = device
        self.processes = processes
        self.validate = validate
        self.with_tensorboard = with_tensorboard
        self.step = 0
        self.parameters = [p for network in objective.networks.values() for p in network.parameters()]
        self.optimizer = build_optimizer(self.parameters, config)
        self.precision = precision or Precision(device, is_mixed=config.mixed_precision)
        self.best = _Best()
        self.shares = [
            Share(index * processes.count + processes.rank, config.accumulation_count * processes.count)
            for index in range(config.accumulation_count)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        for network in objective.networks.values():
            processes.copy_from_main(network.state_dict().values())
        self.average = WeightAverage(objective.networks, config.average_decay)
        self._resume()

    def train(self, *, max_minutes: float | None = None, report_step: ReportStep | None = None) -> LoopResult:
        """Train until the configured number of steps is done or the time is up, and write a checkpoint.

        Args:
            max_minutes: Wall-clock limit of this call; None for none.
            report_step: Progress callback, called in the main process with (step from 1, figures such as ``loss``).

        Raises:
            TrainingError: The loss or its gradients are not finite any more, or the disk is full.
            TrainingStopped: SIGTERM or SIGINT was received; the step is finished and the checkpoint written.
        """
        if self.device == "cpu":
            keep_freed_memory()
        started = last_saved = time.monotonic()
        with StopRequest() as request, self._open_log() as log:
            while not self.is_complete:
                figures = self._one_step()
                if log is not None:
                    log.write(self.step, figures)
                    if report_step is not None:
                        report_step(self.step, figures)
                self._validate_when_due(log)
                now = time.monotonic()
                is_late = max_minutes is not None and now - started > 60 * max_minutes
                has_to_stop, is_late, is_due = self._agree(
                    request.has_come, is_late, now - last_saved > 60 * self.config.checkpoint_minutes
                )
                if has_to_stop:
                    self.save()
                    raise TrainingStopped
                if is_late:
                    break
                if is_due:
                    self.save()
                    last_saved = now
        self.save()
        return self.result()

    @property
    def is_complete(self) -> bool:
        """Whether no step is left to do."""
        patience = self.config.patience
        has_stopped_gaining = patience is not None and self.best.num_without_gain >= patience
        return self.step >= self.config.num_steps or has_stopped_gaining

    def result(self) -> LoopResult:
        """Return the current state of the run, with the weights to keep."""
        if self.best.step is None:
            return LoopResult(self.step, self.is_complete, self.average.copy())
        return LoopResult(self.step, self.is_complete, self.best.weights, self.best.step, self.best.loss)

    def _one_step(self) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        parts = []
        for share in self.shares:
            with self.precision.autocast():
                loss, figures = self.objective.loss(self.step, *([share] if share.count > 1 else []))
            self.precision.backward(loss / len(self.shares))
            parts.append({"loss": loss.detach(), **figures})
        self.processes.average_gradients(self.parameters)
        self.precision.unscale(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.config.max_gradient_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.max_gradient_norm, norm)
        means = self._mean_over_shares(parts)  # here the device is waited for, once a step
        self._require_finite(means["loss"], float(norm))
        self.precision.step(self.optimizer)
        self.average.update(self.step)
        self.objective.after_step(self.step)
        self.step += 1
        return {"loss": means["loss"], "gradient_norm": float(norm), **means}

    def _mean_over_shares(self, parts: Sequence[Figures]) -> dict[str, float]:
        """Means of the figures over all shares of the step; a figure may be missing in some."""
        own = [{name: float(value) for name, value in figures.items()} for figures in parts]
        rows = [row for rows in self.processes.gather(own) for row in rows]
        if len(rows) == 1:
            return rows[0]
        names = {name: None for row in rows for name in row}
        found = {name: [row[name] for row in rows if name in row] for name in names}
        return {name: math.fsum(values) / len(values) for name, values in found.items()}

    def _require_finite(self, loss: float, norm: float) -> None:
        # A scaled loss may overflow: then the scaler leaves the step out.
        if math.isfinite(loss) and (math.isfinite(norm) or self.precision.scaler is not None):
            return
        path = self.folder / CHECKPOINT_NAME
        kept = f"the last checkpoint is {path}" if path.exists() else "no checkpoint was written yet"
        what = f"found {loss}" if not math.isfinite(loss) else f"found {loss:.4g} with gradients that are not"
        raise TrainingError(
            f"Training step {self.step}: expected a finite loss, {what}; {kept}. Lower learning_rate, or set "
            f"mixed_precision: false, and start in another folder than {self.folder}."
        )

    def _agree(self, *flags: bool) -> list[bool]:
        """Whether any process says so, flag by flag: all have to go the same way."""
        return [any(column) for column in zip(*self.processes.gather(flags), strict=True)]

    def _validate_when_due(self, log: StepLog | None) -> None:
        every = self.config.validation_steps
        if every is None or self.validate is None or (self.step % every and self.step < self.config.num_steps):
            return
        with self.average.in_use(), torch.no_grad(), self.precision.autocast():
            figures = dict(self.validate())
        if log is not None:
            log.write(self.step, figures, group="validation")
        if figures["loss"] < self.best.loss:
            self.best = _Best(self.step, figures["loss"], weights=self.average.copy(device="cpu"))
        else:
            self.best.num_without_gain += 1

    def _open_log(self) -> AbstractContextManager[StepLog | None]:
        if not self.processes.is_main:
            return nullcontext()
        return StepLog(self.folder, last_step=self.step, with_tensorboard=self.with_tensorboard)

    def save(self) -> None:
        """Write the checkpoint of the run, whole or not at all."""
        content = {
            "step": self.step,
            "config": self.config.model_dump(),
            "num_shares": self.shares[0].count,
            "networks": {name: network.state_dict() for name, network in self.objective.networks.items()},
            "averages": self.average.state(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.precision.state(),
            "objective": self.objective.state(),
            "best": vars(self.best),
        }
        if self.processes.is_main:
            write_checkpoint(self.folder / CHECKPOINT_NAME, content)
        self.processes.wait()

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT_NAME
        if not path.exists():
            return
        checkpoint = read_checkpoint(path, device=self.device)
        require_same_run(checkpoint, self.config, num_shares=self.shares[0].count, folder=self.folder)
        for name, network in self.objective.networks.items():
            network.load_state_dict(checkpoint["networks"][name])
        self.average.load_state(checkpoint["averages"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.precision.load_state(checkpoint.get("precision", {}))
        self.objective.load_state(checkpoint["objective"])
        self.best = _Best(**checkpoint.get("best", {}))
        self.best.weights = {
            name: {key: value.cpu() for key, value in state.items()} for name, state in self.best.weights.items()
        }
        self.step = int(checkpoint["step"])


def build_optimizer(parameters: Sequence[nn.Parameter], config: LoopConfig) -> torch.optim.Optimizer:
    """Return Adam or AdamW with the settings of a training loop.

    Args:
        parameters: Parameters that are trained.
        config: Settings of the loop: optimiser, learning rate, weight decay and betas.
    """
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    betas = (0.9, config.second_beta)
    return kind(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=betas)
