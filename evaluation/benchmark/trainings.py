"""The trainings of a benchmark as work for an engine: each is one item, and continues where it was stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from maisi_aug.errors import ArmBusyError, WorkerError
from maisi_aug.evaluation.benchmark.run import ArmState, Benchmark, load_benchmark, run_arm
from maisi_aug.system.engine.mapping import map_items
from maisi_aug.system.engine.work import Engine, Tell, Watch, WorkerPlace, ignore_events
from maisi_aug.system.progress import report_nothing
from maisi_aug.training.loop.stopping import TimeLimit


class Training(NamedTuple):
    """One training of an arm: name of the arm, and number of the training."""

    arm: str
    seed: int


def run_trainings(
    benchmark: Benchmark,
    engine: Engine,
    *,
    max_minutes: float | None = None,
    on_state: Callable[[ArmState], None] = lambda state: None,
    watch: Watch = ignore_events,
) -> None:
    """Run unfinished trainings of a benchmark in the workers of an engine, ordered by seed.

    Failed trainings are tried again, and do not stop the others. Trainings that another process is running are skipped
    with the state ``busy``.

    Args:
        benchmark: The benchmark, whose folder is on a disk that all workers see.
        engine: Engine that runs the workers.
        max_minutes: Minutes after which no worker begins another training, and running ones stop, to be continued
            later; None for no limit.
        on_state: Called with the state of every training that was begun.
        watch: Callback for events: those of engines, ``begins`` (arm, seed) and ``steps`` (arm, seed, step, loss).

    Raises:
        WorkerError: Processes were killed repeatedly, or write to a disk that this process cannot see.
    """
    waiting = [Training(state.arm, state.seed) for state in benchmark.states if state.status != "done"]

    def note(training: Training, state: ArmState | None) -> None:
        if state is None:
            return
        if state.status == "done" and benchmark.state_of(*training).status != "done":
            raise WorkerError(
                f"{benchmark.folder}: expected a folder that all workers write to, found a worker whose scores of "
                f"'{state.arm}', seed {state.seed}, are not here. Use a disk that all nodes share."
            )
        on_state(state)

    map_items(
        partial(_open_trainer, benchmark.folder, max_minutes),
        waiting,
        engine,
        report_nothing,
        reads=(benchmark.folder,),
        num_ahead=1,
        on_result=note,
        watch=watch,
    )


def _open_trainer(folder: Path, max_minutes: float | None, place: WorkerPlace) -> Callable[[Training], ArmState | None]:
    from maisi_aug.networks.pipeline import resolve_device

    return _Trainer(load_benchmark(folder), resolve_device(place.device), TimeLimit(max_minutes), place.tell)


@dataclass(frozen=True)
class _Trainer:
    """Runs trainings one after the other, on one device."""

    benchmark: Benchmark
    device: str
    limit: TimeLimit
    tell: Tell

    def __call__(self, training: Training) -> ArmState | None:
        """The state that a training ends in; None for one that is not begun because the time is up."""
        minutes_left = self.limit.minutes_left
        if minutes_left == 0.0:
            return None
        self.tell("begins", *training)
        try:
            return run_arm(
                self.benchmark,
                *training,
                device=self.device,
                max_minutes=minutes_left,
                report_step=lambda step, figures: self.tell("steps", *training, step, figures["loss"]),
            )
        except ArmBusyError:
            return ArmState(*training, "busy")
