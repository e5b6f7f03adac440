"""The one training loop: steps, learning rate, mixed precision, weight averaging, checkpoints, exact resume.

Nothing random lives in the loop: an objective derives the noise of a step from the step's number, so that a run that
was killed and resumed ends with the same weights as one that was not.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from maisi_aug.errors import TrainingError
from maisi_aug.networks import mixed_precision
from maisi_aug.training.settings import LoopConfig
from maisi_aug.whole_files import write_whole

CHECKPOINT_NAME = "checkpoint.pt"
LOG_NAME = "log.jsonl"


class Objective(Protocol):
    """What is trained: networks, the loss of a step, and whatever the loss needs beside them."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The networks whose weights the loop trains, averages and keeps, by name."""

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of a step as a scalar and the figures to log."""

    def after_step(self, step: int) -> None:
        """What follows the optimiser step, such as training a discriminator."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain values to keep in a checkpoint beside the networks'."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state`` gave."""


@dataclass(frozen=True)
class LoopResult:
    """Where a run stands: steps done, whether that is all of them, and the averaged weights by network."""

    num_steps_done: int
    is_complete: bool
    averaged_weights: dict[str, dict[str, Tensor]]


ReportStep = Callable[[int, dict[str, float]], None]


class TrainingRun:
    """One run in one folder, resumed from its checkpoint where there is one."""

    def __init__(self, objective: Objective, config: LoopConfig, folder: Path, *, device: str) -> None:
        self.objective = objective
        self.config = config
        self.folder = folder
        self.device = device
        self.step = 0
        self.parameters = [p for network in objective.networks.values() for p in network.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
        )
        self.averages = {name: _copy_state(network) for name, network in objective.networks.items()}
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    def train(self, *, max_minutes: float | None = None, report_step: ReportStep | None = None) -> LoopResult:
        """Train until the configured number of steps or the time is up; a checkpoint is written at the end.

        Args:
            max_minutes: Wall-clock limit of this call; None for none.
            report_step: Called after each step with its number (from 1) and figures.

        Raises:
            TrainingError: When the loss is no longer finite.
        """
        started = last_saved = time.monotonic()
        while self.step < self.config.num_steps:
            figures = self._one_step()
            self._log(figures)
            if report_step is not None:
                report_step(self.step, figures)
            now = time.monotonic()
            if now - last_saved > 60 * self.config.checkpoint_minutes:
                self.save()
                last_saved = now
            if max_minutes is not None and now - started > 60 * max_minutes:
                break
        self.save()
        return LoopResult(self.step, self.step >= self.config.num_steps, self.averages)

    def _one_step(self) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        with mixed_precision(self.device) if self.config.mixed_precision else nullcontext():
            loss, figures = self.objective.loss(self.step)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"Training step {self.step}: expected a finite loss, found {float(loss.detach())}. Lower learning_rate "
                f"and start in another folder than {self.folder}."
            )
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_gradient_norm)
        self.optimizer.step()
        self._average()
        self.objective.after_step(self.step)
        self.step += 1
        return {"loss": float(loss.detach()), "gradient_norm": float(norm), **figures}

    @torch.no_grad()
    def _average(self) -> None:
        # A young average would remember the random start: its decay grows with the number of steps.
        decay = min(self.config.average_decay, (1 + self.step) / (10 + self.step))
        for name, network in self.objective.networks.items():
            average = self.averages[name]
            for key, value in network.state_dict().items():
                if value.is_floating_point():
                    average[key].lerp_(value.detach(), 1.0 - decay)
                else:
                    average[key].copy_(value)

    def _log(self, figures: dict[str, float]) -> None:
        with (self.folder / LOG_NAME).open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": self.step, **{k: round(v, 6) for k, v in figures.items()}}) + "\n")

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        buffer = io.BytesIO()
        torch.save(
            {
                "step": self.step,
                "config": self.config.model_dump(),
                "networks": {name: network.state_dict() for name, network in self.objective.networks.items()},
                "averages": self.averages,
                "optimizer": self.optimizer.state_dict(),
                "objective": self.objective.state(),
            },
            buffer,
        )
        write_whole(self.folder / CHECKPOINT_NAME, buffer.getvalue())

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT_NAME
        if not path.exists():
            return
        try:
            checkpoint = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # torch passes on whatever its unpickler stumbles over
            kind = type(error).__name__
            raise TrainingError(
                f"{path}: expected a checkpoint of this program, found what torch cannot read ({kind}). "
                "Remove it to start anew."
            ) from error
        differing = _differing_keys(checkpoint["config"], self.config.model_dump())
        if differing:
            raise TrainingError(
                f"Training run {self.folder}: expected the configuration of its checkpoint, found other values of "
                f"{', '.join(differing)}. Use another folder, or the same recipe to go on."
            )
        for name, network in self.objective.networks.items():
            network.load_state_dict(checkpoint["networks"][name])
        self.averages = checkpoint["averages"]
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.objective.load_state(checkpoint["objective"])
        self.step = int(checkpoint["step"])


def _copy_state(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in network.state_dict().items()}


def _differing_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    ignored = {"checkpoint_minutes"}
    keys: Iterable[str] = sorted((set(before) | set(after)) - ignored)
    return [key for key in keys if before.get(key) != after.get(key)]
