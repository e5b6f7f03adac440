"""Trainings of a benchmark by the workers of an engine."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import torch

from maisi_aug.errors import WorkerError
from maisi_aug.evaluation.benchmark.run import SCORES_NAME, ArmState, Benchmark, open_benchmark
from maisi_aug.evaluation.benchmark.trainings import run_trainings
from maisi_aug.system.engine.cores import count_threads
from maisi_aug.system.engine.processes import Processes
from maisi_aug.system.engine.work import InProcess
from tests.builders.tiny_benchmark import build_config
from tests.conftest import Outcome

ARMS = ("real", "real+synthetic:1", "real-duplicated")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """As many threads in this process as in a worker: the order of sums is part of a training."""
    before = torch.get_num_threads()
    torch.set_num_threads(count_threads(2))
    yield
    torch.set_num_threads(before)


def begin(tmp_path: Path, name: str = "bench") -> Benchmark:
    return open_benchmark(tmp_path / name, build_config(tmp_path, arms=ARMS, num_steps=3))


def scores_of(benchmark: Benchmark) -> list[Any]:
    return [benchmark.load_scores(arm, 0)["cases"] for arm in ARMS]


@pytest.mark.slow
def test_workers_one_of_which_is_killed_find_the_same_scores(tmp_path: Path) -> None:
    alone, shared = begin(tmp_path, "alone"), begin(tmp_path, "shared")
    run_trainings(alone, InProcess("cpu"))
    begun: list[tuple[Any, ...]] = []
    lost: list[str] = []

    def kill_once(worker: str, event: str, details: tuple[Any, ...]) -> None:
        if event == "begins":
            begun.append(details)
        elif event == "loses":
            lost.append(worker)
        elif event == "steps" and not lost:
            victim = next(child for child in multiprocessing.active_children() if child.name == worker)
            os.kill(victim.pid or 0, signal.SIGKILL)
            victim.join()

    states: list[ArmState] = []
    run_trainings(shared, Processes(("cpu", "cpu")), on_state=states.append, watch=kill_once)
    assert sorted(state.arm for state in states) == sorted(ARMS)
    assert {state.status for state in states} == {"done"}
    assert lost
    assert len(begun) == len(ARMS) + len(lost)
    assert scores_of(alone) == scores_of(shared)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="The processes of a worker are found in /proc.")
def test_nnunet_trains_in_workers_and_ends_with_one_that_is_killed(tmp_path: Path) -> None:
    config = build_config(tmp_path, arms=ARMS[:2], engine="nnunet", num_steps=2)
    benchmark = open_benchmark(tmp_path / "bench", config)
    lost: list[str] = []
    orphans: list[int] = []

    def kill_once(worker: str, event: str, details: tuple[Any, ...]) -> None:
        if event == "loses":
            lost.append(worker)
        elif event == "steps" and not orphans:
            victim = next(child for child in multiprocessing.active_children() if child.name == worker)
            for path in Path(f"/proc/{victim.pid}/task").glob("*/children"):
                orphans.extend(map(int, path.read_text().split()))
            os.kill(victim.pid or 0, signal.SIGKILL)
            victim.join()

    states: list[ArmState] = []
    run_trainings(benchmark, Processes(("cpu", "cpu")), on_state=states.append, watch=kill_once)
    assert [(state.arm, state.status, state.reason) for state in sorted(states, key=lambda one: one.arm)] == [
        (arm, "done", "") for arm in ARMS[:2]
    ]
    assert (len(lost), len(orphans)) == (1, 1)
    ends_at = monotonic() + 60
    while Path(f"/proc/{orphans[0]}").exists():
        assert monotonic() < ends_at, "nnU-Net still trains for a worker that is gone"
        sleep(0.1)


def test_training_that_runs_elsewhere_and_time_that_is_up_are_told(tmp_path: Path) -> None:
    benchmark = begin(tmp_path)
    states: list[ArmState] = []
    run_trainings(benchmark, InProcess("cpu"), max_minutes=0.0, on_state=states.append)
    assert states == []
    folder = benchmark.folder_of("real", 0)
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run_trainings(benchmark, InProcess("cpu"), on_state=states.append)
    assert [(state.arm, state.status) for state in states] == list(zip(ARMS, ("busy", "done", "done"), strict=True))


class Elsewhere(InProcess):
    """A machine that writes to another disk under the same name."""

    def run(self, spec: Any, items: Iterable[Any], settle: Callable[..., Any], *, scratch: Path, watch: Any) -> None:
        for item in items:
            arm, seed = item[1]
            settle(item, (ArmState(arm, seed, "done"), []), scratch)


def test_folder_that_is_not_shared_is_told(tmp_path: Path) -> None:
    benchmark = begin(tmp_path)
    with pytest.raises(WorkerError, match=r"found a worker whose scores of 'real', seed 0, are not here\. Use a disk"):
        run_trainings(benchmark, Elsewhere())
    assert not (benchmark.folder_of("real", 0) / SCORES_NAME).exists()


def test_options_of_a_cluster_need_its_address(tmp_path: Path, run_cli: Callable[..., Outcome]) -> None:
    config = build_config(tmp_path)
    words = ["benchmark", "run", "--real", config.real, "--arms", "real", "--out", str(tmp_path / "bench")]
    alone = run_cli(*words, "--num-workers", "2")
    assert "--num-workers can only be used with --address." in alone.stderr
    both = run_cli(*words, "--address", "auto", "--devices", "cpu,cpu")
    assert "--engine ray: expected one --device of auto, cpu, cuda, found 'cpu,cpu'" in both.stderr
    wrong = run_cli(*words, "--devices", "cpu,nothing")
    assert "Device 'nothing': torch cannot use it" in wrong.stderr
    assert not (tmp_path / "bench").exists()
