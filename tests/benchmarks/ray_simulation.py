"""Does the driver of a Ray cluster keep many workers busy? Workers that sleep as long as a case takes stand for GPUs.

    PYTHONPATH=. python tests/benchmarks/ray_simulation.py --workers 64 --cases 10000 --seconds 2

Everything but the drawing is real: an actor for each worker, the engine that hands out cases and listens, the events of
the sampler's steps, a line written and flushed for each case. A case of 512^3 voxels takes minutes, not seconds: the
driver has so many times less to do for it, and workers wait so many times shorter, compared with what they do.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from maisi_aug.integrations.ray.engine import RayEngine
from maisi_aug.system.engine.work import WorkerPlace, finished, ignore_events

NUM_STEPS = 30
"""Of the sampler, of each of which a worker tells."""
SPREAD = 0.2
"""Cases take this share more or less."""


class Slept(NamedTuple):
    """A case that was slept through."""

    worker: str
    begin: float
    end: float


@dataclass(frozen=True)
class Sleeper:
    """Opens workers that sleep.

    Attributes:
        seconds: Of a case, on average.
    """

    seconds: float

    def open(self, place: WorkerPlace) -> SleepingWorker:
        return SleepingWorker(self.seconds, place)


@dataclass(frozen=True)
class SleepingWorker:
    seconds: float
    place: WorkerPlace

    def look_ahead(self, number: int) -> None:
        pass

    def work(self, number: int) -> Future[Slept]:
        begin = time.time()
        seconds = self.seconds * random.Random(number).uniform(1 - SPREAD, 1 + SPREAD)
        for step in range(1, NUM_STEPS + 1):
            time.sleep(max(0.0, begin + seconds * step / NUM_STEPS - time.time()))
            self.place.tell("steps", f"case_{number:05d}", step, NUM_STEPS)
        return finished(Slept(self.place.name, begin, time.time()))

    def close(self) -> None:
        pass


class Outcome(NamedTuple):
    """What was measured."""

    wall_seconds: float
    idle_share: float
    driver_share: float
    driver_ms_per_case: float


def simulate(num_workers: int, num_cases: int, seconds: float, folder: Path) -> tuple[Outcome, int]:
    """Hand out cases until all are slept through; the cluster must have as many cores as there are workers.

    Args:
        num_workers: Workers.
        num_cases: Cases.
        seconds: That each takes on average.
        folder: For what is written.

    Returns:
        What was measured from the moment when all workers were open, and the number of workers that drew.
    """
    slept: list[Slept] = []
    opened: list[tuple[float, float]] = []

    with (folder / "lines.jsonl").open("a", encoding="utf-8") as lines:

        def settle(number: int, result: Slept, scratch: Path) -> tuple[()]:
            lines.write(json.dumps([number, *result]) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
            slept.append(result)
            if not opened and len({one.worker for one in slept}) == num_workers:
                opened.append((time.time(), _cpu_seconds()))
            return ()

        engine = RayEngine(num_workers=num_workers, device="cpu")
        engine.run(Sleeper(seconds), range(num_cases), settle, scratch=folder, watch=ignore_events)
    begin, cpu_before = opened[0]
    end = max(one.end for one in slept)
    cpu, wall = _cpu_seconds() - cpu_before, end - begin
    busy = sum(max(0.0, one.end - max(one.begin, begin)) for one in slept)
    num_after = sum(one.end > begin for one in slept)
    outcome = Outcome(wall, 1 - busy / (num_workers * wall), cpu / wall, 1000 * cpu / num_after)
    return outcome, len({one.worker for one in slept})


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=2.0)
    asked = parser.parse_args(arguments)
    import ray

    ray.init(address="local", num_cpus=asked.workers, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        outcome, num_drawing = simulate(asked.workers, asked.cases, asked.seconds, Path(folder))
    print(json.dumps({**vars(asked), "workers_that_drew": num_drawing, **outcome._asdict()}, indent=1))


if __name__ == "__main__":
    from tests.benchmarks import ray_simulation  # what workers open is found by this name elsewhere

    ray_simulation.main()
