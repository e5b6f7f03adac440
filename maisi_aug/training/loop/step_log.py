"""The figures of every step: a line of JSON each, and TensorBoard's scalars where wished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TextIO

from maisi_aug.errors import MissingExtraError, TrainingError
from maisi_aug.system.content import ContentError, parse_json, read_lines
from maisi_aug.system.whole_files import write_whole

LOG_NAME = "log.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
TRAINING = "training"


class StepLog:
    """Writes ``log.jsonl`` and, where wished, TensorBoard's event files beside it.

    Args:
        folder: Of the run.
        last_step: What is logged of later steps is dropped: a run that was killed makes them again.
        with_tensorboard: Also write event files.

    Raises:
        MissingExtraError: TensorBoard is wished for and not installed.
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
        with suppress(OSError):  # a full disk was told of when the line was written
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    def write(self, step: int, figures: Mapping[str, float], *, group: str = TRAINING) -> None:
        """Log the figures of a step, counted from 1.

        Raises:
            TrainingError: The disk is full.
        """
        rounded = {name: float(f"{value:.7g}") for name, value in figures.items()}
        row = {"step": step, **(rounded if group == TRAINING else {group: rounded})}
        try:
            self._file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise TrainingError(
                f"{self.path}: expected to write the figures of step {step}, found: {error.strerror}. Make room, and "
                "give the same command again to go on from the last checkpoint."
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
            "TensorBoard: expected the package tensorboard, found none. Install it with "
            "pip install 'maisi-aug[tensorboard]', or leave --tensorboard out."
        ) from error
    return SummaryWriter(str(folder), purge_step=last_step + 1)
