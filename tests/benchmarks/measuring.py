"""Seconds and peak memory per stage, of this process and its device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter

import torch


@dataclass
class Clock:
    """One stage after the other, several times over.

    Attributes:
        device: Whose work is waited for, and on a CUDA device whose memory counts.
        seconds: Per stage, one value per round.
        peak_bytes: Per stage the most of all rounds: resident memory of the process, or allocated memory of the GPU.
    """

    device: str
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    peak_bytes: dict[str, int] = field(default_factory=dict)
    _running: tuple[str, float] | None = None

    def start(self, stage: str) -> None:
        """End the stage that is running and begin another."""
        self.stop()
        _reset_peak(self.device)
        self._running = stage, perf_counter()

    def stop(self) -> None:
        """End the stage that is running."""
        if self._running is None:
            return
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        stage, begun = self._running
        self.seconds[stage].append(perf_counter() - begun)
        self.peak_bytes[stage] = max(self.peak_bytes.get(stage, 0), _read_peak(self.device))
        self._running = None

    def forget(self, stages: Iterable[str]) -> None:
        """Drop what stages have taken in rounds before those that count."""
        self.stop()
        for stage in stages:
            self.seconds.pop(stage, None)
            self.peak_bytes.pop(stage, None)

    def move(self, seconds: float, *, origin: str, target: str) -> None:
        """Count part of the last round of a stage as another stage that ran inside it."""
        self.seconds[origin][-1] -= seconds
        self.seconds[target].append(seconds)
        self.peak_bytes[target] = self.peak_bytes[origin]

    def to_dict(self) -> dict[str, dict[str, float]]:
        """The median of the seconds, and the peak, per stage."""
        return {
            stage: {"seconds": median(values), "peak_bytes": self.peak_bytes[stage]}
            for stage, values in self.seconds.items()
        }


def _reset_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM; see proc(5)


def _read_peak(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
