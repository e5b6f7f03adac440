"""Files of a run: a checkpoint, from which it continues exactly where it was, and the figures of every step.

Those are a line of JSON each, and TensorBoard's scalars where wished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TextIO

import torch

from maisi_aug.errors import MissingExtraError, TrainingError, VolumeError
from maisi_aug.networks.weights import load_torch_file
from maisi_aug.system.content import ContentError, parse_json, read_lines
from maisi_aug.system.whole_files import open_whole, write_whole
from maisi_aug.training.loop.settings import LoopConfig

LOG_NAME = "log.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
TRAINING = "training"
# What may differ between two parts of a run; the number of batches a step is compared with the processes.
FREE_FIELDS = {"checkpoint_minutes", "accumulation_count"}


class StepLog:
    """Log of a training: ``log.jsonl`` and, optionally, TensorBoard's event files.

    Args:
        folder: Folder of the run.
        last_step: Last step of the checkpoint; log lines of later steps are dropped, because they are repeated.
        with_tensorboard: Also write event files.

    Raises:
        MissingExtraError: TensorBoard is requested but not installed.
    """

    def __init__(self, folder: Path, *, last_step: int, with_tensorboard: bool = False) -> None:
        self.path = folder / LOG_NAME
        self._writer = _open_writer(folder / TENSORBOARD_FOLDER, last_step) if with_tensorboard else None
        _drop_later_steps(self.path, last_step)
        # Line by line, so that what was logged is on the disk whatever ends the process.
        self._file: TextIO = self.path.open("a", encoding="utf-8", buffering=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a full disk was reported when the line was written
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    def write(self, step: int, figures: Mapping[str, float], *, group: str = TRAINING) -> None:
        """Log the figures of a step, counted from 1.

        Args:
            step: Number of the step.
            figures: Name -> value.
            group: Name under which the figures are logged; those of training stand in the line itself.

        Raises:
            TrainingError: The disk is full.
        """
        rounded = {name: float(f"{value:.7g}") for name, value in figures.items()}
        row = {"step": step, **(rounded if group == TRAINING else {group: rounded})}
        try:
            self._file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise TrainingError(
                f"{self.path}: the figures of step {step} cannot be written: {error.strerror}. Free some space, and "
                "run the same command again to continue from the last checkpoint."
            ) from error
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)


def _drop_later_steps(path: Path, last_step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in read_lines(path):
        try:
            row = parse_json(line)
            is_earlier = row["step"] <= last_step
        except (ContentError, KeyError, TypeError):  # a line that a full disk or a kill has cut off
            continue
        if is_earlier:
            kept.append(line.rstrip(b"\r\n") + b"\n")
    write_whole(path, b"".join(kept))


def _open_writer(folder: Path, last_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError(
            "TensorBoard: the package tensorboard is missing. Install it with pip install 'maisi-aug[tensorboard]', "
            "or leave --tensorboard out."
        ) from error
    return SummaryWriter(str(folder), purge_step=last_step + 1)


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all; only then is the previous one replaced.

    Args:
        path: File to write.
        content: What to keep, with the number of the ``step``: tensors and plain values.

    Raises:
        TrainingError: The checkpoint cannot be written, for instance because the disk is full; the previous one is
            kept.
    """
    try:
        with open_whole(path) as file:
            torch.save(dict(content), file)
    # torch wraps what its writer meets
    except (VolumeError, OSError, RuntimeError) as error:
        kept = f"that of step {_step_of(path)} is intact" if path.exists() else "there is none yet"
        raise TrainingError(
            f"Checkpoint {path}: step {content['step']} cannot be written: {_cause_of(error)}; {kept}. Free some "
            "space, and run the same command again to continue."
        ) from error


def read_checkpoint(path: Path, *, device: str) -> dict[str, Any]:
    """Read a checkpoint, as data only, without code.

    Args:
        path: File that :func:`write_checkpoint` wrote.
        device: Name of the torch device to load tensors to.

    Raises:
        TrainingError: torch cannot read it.
    """
    try:
        content: dict[str, Any] = load_torch_file(path, device=device, mmap=False)
    except (OSError, ContentError) as error:
        raise TrainingError(
            f"{path}: not a checkpoint that torch can read ({error}). Remove it to start anew."
        ) from error
    return content


def require_same_run(checkpoint: Mapping[str, Any], config: LoopConfig, *, num_shares: int, folder: Path) -> None:
    """Raise unless a run can continue from a checkpoint, which needs the same settings and batches per step.

    Args:
        checkpoint: Result of :func:`read_checkpoint`, of which ``config`` and ``num_shares`` are read.
        config: Settings of the run that is to continue; ``checkpoint_minutes`` and ``accumulation_count`` may differ.
        num_shares: Batches per optimiser step: processes times ``accumulation_count``.
        folder: Folder of the run, for messages only.

    Raises:
        TrainingError: A setting or the number of batches differs; the message names it.
    """
    before = LoopConfig.model_validate(checkpoint["config"])
    values = {name: (getattr(before, name), getattr(config, name)) for name in LoopConfig.model_fields}
    differing = sorted(name for name, (old, new) in values.items() if old != new and name not in FREE_FIELDS)
    if differing:
        raise TrainingError(
            f"Training run {folder}: its checkpoint has other values of {', '.join(differing)}. Use another folder, "
            "or the original recipe to continue."
        )
    known = checkpoint.get("num_shares", before.accumulation_count)
    if known != num_shares:
        raise TrainingError(
            f"Training run {folder}: was begun with {known} batches a step (processes times accumulation_count), "
            f"found {num_shares}. Start as many processes as before, or compensate with accumulation_count."
        )


def _step_of(path: Path) -> int:
    return int(load_torch_file(path)["step"])


def _cause_of(error: BaseException) -> str:
    """Return the error of the operating system that is wrapped in those of torch and ours."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error)
