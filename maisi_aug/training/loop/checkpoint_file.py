"""The checkpoint of a run, from which it goes on exactly where it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from maisi_aug.errors import TrainingError, VolumeError
from maisi_aug.networks.weights import load_torch_file
from maisi_aug.system.content import ContentError
from maisi_aug.system.whole_files import open_whole
from maisi_aug.training.loop.settings import LoopConfig

# What may differ between two parts of a run; the number of batches a step is compared with the processes.
FREE_FIELDS = {"checkpoint_minutes", "accumulation_count"}


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all; the former one is replaced only then.

    Raises:
        TrainingError: It cannot be written, for instance because the disk is full; the former one is left.
    """
    try:
        with open_whole(path) as file:
            torch.save(dict(content), file)
    # torch wraps what its writer meets
    except (VolumeError, OSError, RuntimeError) as error:
        kept = f"that of step {_step_of(path)} is whole" if path.exists() else "there is none yet"
        raise TrainingError(
            f"Checkpoint {path}: expected to write that of step {content['step']}, found: {_cause_of(error)}; {kept}. "
            "Make room, and give the same command again to go on."
        ) from error


def read_checkpoint(path: Path, *, device: str) -> dict[str, Any]:
    """Read a checkpoint; only data, no code.

    Raises:
        TrainingError: torch cannot read it.
    """
    try:
        content: dict[str, Any] = load_torch_file(path, device=device, mmap=False)
    except (OSError, ContentError) as error:
        raise TrainingError(
            f"{path}: expected a checkpoint of this program, found what torch cannot read ({error}). "
            "Remove it to start anew."
        ) from error
    return content


def require_same_run(checkpoint: Mapping[str, Any], config: LoopConfig, *, num_shares: int, folder: Path) -> None:
    """Check that a checkpoint is of a run with the same settings and the same number of batches a step.

    Raises:
        TrainingError: Naming what differs.
    """
    before = LoopConfig.model_validate(checkpoint["config"])
    values = {name: (getattr(before, name), getattr(config, name)) for name in LoopConfig.model_fields}
    differing = sorted(name for name, (old, new) in values.items() if old != new and name not in FREE_FIELDS)
    if differing:
        raise TrainingError(
            f"Training run {folder}: expected the configuration of its checkpoint, found other values of "
            f"{', '.join(differing)}. Use another folder, or the same recipe to go on."
        )
    known = checkpoint.get("num_shares", before.accumulation_count)
    if known != num_shares:
        raise TrainingError(
            f"Training run {folder}: expected {known} batches a step (processes times accumulation_count), found "
            f"{num_shares}. Start as many processes as before, or make up for them with accumulation_count."
        )


def _step_of(path: Path) -> int:
    return int(load_torch_file(path)["step"])


def _cause_of(error: BaseException) -> str:
    """What the operating system said, under what torch and ours wrapped around it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error)
