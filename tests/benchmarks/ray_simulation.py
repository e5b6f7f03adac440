"""Does the driver of a Ray cluster keep many workers busy? Workers that sleep as long as a case takes stand for GPUs.

    PYTHONPATH=. python tests/benchmarks/ray_simulation.py --workers 64 --cases 10000 --seconds 4

Everything but the drawing is real: the engine that hands out cases and listens, the calls that it makes on Ray for each
worker, the events of the sampler's steps, a line written and flushed for each case. So that 64 workers fit into a small
machine, several share the process of an actor, in threads of their own: they sleep, and would do nothing else in
processes of their own. The driver is the same; it makes as many calls. A case of 512^3 voxels takes minutes, not
seconds: the driver has so many times less to do for it, and workers wait so many times shorter, compared with what they
do.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from maisi_aug.integrations.ray.actor import Assignment, RemoteWorker
from maisi_aug.integrations.ray.engine import Office, RayEngine, Shape
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


class Host:
    """An actor with several workers in it."""

    def __init__(self) -> None:
        """None is in it yet."""
        self._workers: dict[str, RemoteWorker] = {}

    def call(self, name: str, method: str, arguments: tuple[Any, ...]) -> Any:
        """Call a method of a worker, or make one."""
        if method == "__init__":
            self._workers[name] = RemoteWorker(*arguments)
            return None
        return getattr(self._workers[name], method)(*arguments)


@dataclass(frozen=True)
class Room:
    """A worker in a host, with the methods of an actor's handle."""

    host: Any
    name: str

    def __getattr__(self, method: str) -> Method:
        return Method(self, method)


class Method(NamedTuple):
    """Of an actor's handle."""

    room: Room
    name: str

    def remote(self, *arguments: Any) -> Any:
        """Call it."""
        return self.room.host.call.remote(self.room.name, self.name, arguments)


@dataclass
class SharedOffice(Office):
    """Makes workers in turn in a few actors.

    Attributes:
        num_hosts: How many.
    """

    num_hosts: int = 8
    _hosts: list[Any] = field(default_factory=list)
    _num_hired: int = 0

    def hire(self, assignment: Assignment) -> Room:
        """A worker, begun."""
        if len(self._hosts) < self.num_hosts:
            threads = 4 * -(-self.shape.num_workers // self.num_hosts)  # as many for each as in an actor of its own
            self._hosts.append(self.ray.remote(Host).options(num_cpus=1, max_concurrency=threads).remote())
        room = Room(self._hosts[self._num_hired % self.num_hosts], assignment.name)
        self._num_hired += 1
        self.ray.get(Method(room, "__init__").remote(assignment, self.ray.get(self.spec)))
        return room

    def dismiss(self, actor: Any) -> None:
        """End all of them, when the first is to end."""
        for host in self._hosts:
            self.ray.kill(host)
        self._hosts.clear()


@dataclass(frozen=True)
class SharedEngine(RayEngine):
    """The engine, with several workers in each actor."""

    num_hosts: int = 8

    def open_office(self, ray: Any, shape: Shape, spec: Any) -> Office:
        """What makes them."""
        return SharedOffice(ray, shape, spec, num_hosts=self.num_hosts)


class Outcome(NamedTuple):
    """What was measured."""

    wall_seconds: float
    idle_share: float
    driver_share: float
    driver_ms_per_case: float


def simulate(num_workers: int, num_cases: int, seconds: float, folder: Path, num_hosts: int) -> tuple[Outcome, int]:
    """Hand out cases until all are slept through; the cluster must have as many cores as there are hosts.

    Args:
        num_workers: Workers.
        num_cases: Cases.
        seconds: That each takes on average.
        folder: For what is written.
        num_hosts: Actors that share the workers.

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

        engine = SharedEngine(num_workers=num_workers, device="cpu", num_hosts=num_hosts)
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
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--hosts", type=int, default=8, help="actors that share the workers")
    asked = parser.parse_args(arguments)
    import ray

    ray.init(address="local", num_cpus=asked.hosts, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        outcome, num_drawing = simulate(asked.workers, asked.cases, asked.seconds, Path(folder), asked.hosts)
    print(json.dumps({**vars(asked), "workers_that_drew": num_drawing, **outcome._asdict()}, indent=1))


if __name__ == "__main__":
    from tests.benchmarks import ray_simulation  # what workers open is found by this name elsewhere

    ray_simulation.main()
