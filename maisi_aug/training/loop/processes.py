"""Several processes that train as one: who has which share of a batch, and what they tell each other.

Hugging Face Accelerate starts and connects them; one process alone needs none of it, and does not import it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from maisi_aug.errors import TrainingError
from maisi_aug.training.loop.stopping import TimeIsUp

Value = TypeVar("Value")

# One process builds phantoms or encodes latents while the others wait; torch's own limit is ten minutes.
WAITING_TIME = timedelta(hours=24)
# Gradients travel in parts of so many values: few messages, and little memory beside the gradients.
BUCKET_VALUES = 2**25


@dataclass(frozen=True)
class Share:
    """One of ``count`` equal parts of a step's batch.

    An objective draws the whole batch and computes the loss of its part, so that the mean over all parts is the loss of
    one process with the whole batch.

    Attributes:
        index: Number of the part, from 0.
        count: Number of parts: processes times accumulated batches.
    """

    index: int = 0
    count: int = 1

    def slice_of(self, batch_count: int) -> slice:
        """Return the slice of this share in the whole batch of ``batch_count * count`` cases.

        Args:
            batch_count: Number of cases of a share.
        """
        return slice(self.index * batch_count, (self.index + 1) * batch_count)


WHOLE = Share()


class Processes:
    """The processes that train together, including this one, and their communication.

    Args:
        state: Accelerate's ``PartialState``; None for a single process.
    """

    def __init__(self, state: Any | None = None) -> None:
        self._state = state
        self.count: int = 1 if state is None else state.num_processes
        self.rank: int = 0 if state is None else state.process_index

    @classmethod
    def connect(cls, device: str) -> Processes:
        """Join the processes started by ``torchrun`` or ``accelerate launch``; without them, return a single process.

        Args:
            device: ``cpu`` or ``cuda``; each process uses the GPU of its own number on its machine.

        Raises:
            TrainingError: The device names one GPU for several processes.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return cls()
        if device not in ("cpu", "cuda"):
            raise TrainingError(
                f"Device '{device}': several processes need cpu or cuda, not one device. Each process uses the GPU "
                "of its own number."
            )
        from accelerate.state import PartialState

        return cls(PartialState(cpu=device == "cpu", timeout=WAITING_TIME))

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def device_of(self, device: str) -> str:
        """Return the device of this process, given the device that the user requested."""
        if self._state is None or self._state.device.type == "cpu":  # which Accelerate numbers
            return device
        return str(self._state.device)

    def wait(self) -> None:
        """Wait until all processes have reached this point."""
        if self._state is not None:
            self._state.wait_for_everyone()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Context that runs a block in the main process first, then in the others, which find what it wrote.

        Raises:
            TimeIsUp: The time limit was reached in the main process; raised in all processes.
        """
        if not self.is_main:
            self._hear_of_main()
        try:
            yield
        except TimeIsUp as stop:
            if self.is_main:
                self.gather((stop.phase, stop.done, stop.total))
            raise
        if self.is_main:
            self.gather(None)

    def _hear_of_main(self) -> None:
        stop = self.gather(None)[0]
        if stop is not None:
            raise TimeIsUp(*stop)

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, in their order; for small values that can be pickled."""
        if self._state is None:
            return [value]
        from accelerate.utils import gather_object

        gathered: list[Value] = gather_object([value])
        return gathered

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, as a new tensor."""
        if self._state is None:
            return value
        from accelerate.utils import reduce

        total: Tensor = reduce(value, reduction="sum")
        return total

    @torch.no_grad()
    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Copy tensors of the main process to all other processes, in place."""
        if self._state is None:
            return
        from accelerate.utils import broadcast

        for tensor in tensors:
            tensor.copy_(broadcast(tensor.contiguous()))

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their means over all processes, in place.

        The networks need no wrapper, so that several may be trained together, and methods other than ``forward`` may be
        called.
        """
        if self._state is None:
            return
        for bucket in _fill_buckets([p.grad for p in parameters if p.grad is not None]):
            mean = self.sum(torch.cat([gradient.flatten() for gradient in bucket])) / self.count
            parts = torch.split(mean, [gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view(gradient.shape))

    def leave(self) -> None:
        """Leave the group of processes at the end of the training."""
        if self._state is not None:
            self._state.destroy_process_group()


ALONE = Processes()


def _fill_buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    num_values = 0
    for gradient in gradients:
        is_full = num_values + gradient.numel() > BUCKET_VALUES
        if bucket and (is_full or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, num_values = [], 0
        bucket.append(gradient)
        num_values += gradient.numel()
    if bucket:
        yield bucket
