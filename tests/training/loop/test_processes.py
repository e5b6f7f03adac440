from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maisi_aug.errors import TrainingError
from maisi_aug.training.loop.processes import ALONE, BUCKET_VALUES, Processes, Share, _fill_buckets
from maisi_aug.training.loop.run import LOG_NAME
from tests.builders.joint_runs import LOOP, RUNS, run_alone
from tests.oracles.rounding import require_same_steps

REPOSITORY = Path(__file__).resolve().parents[3]


def test_shares_are_the_parts_of_a_batch() -> None:
    whole = list(range(12))
    assert [whole[Share(index, 3).slice_of(4)] for index in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_one_process_alone_waits_for_nobody() -> None:
    assert Processes.connect("cuda:3").count == 1
    assert ALONE.is_main
    assert ALONE.gather("mine") == ["mine"]
    assert ALONE.device_of("cuda:3") == "cuda:3"
    with ALONE.main_first():
        ALONE.wait()
    tensor = torch.ones(3)
    assert torch.equal(ALONE.sum(tensor), tensor)


class Joined:
    """What Accelerate says of the second of two processes."""

    num_processes, process_index = 2, 1

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)


def test_each_process_has_the_gpu_of_its_number_and_all_one_cpu() -> None:
    assert Processes(Joined("cuda:1")).device_of("cuda") == "cuda:1"
    assert Processes(Joined("cpu:0")).device_of("cpu") == "cpu"
    assert not Processes(Joined("cpu:0")).is_main


def test_several_processes_cannot_share_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    message = "Device 'cuda:1': several processes need cpu or cuda, not one device"
    with pytest.raises(TrainingError, match=message):
        Processes.connect("cuda:1")


def test_buckets_hold_one_type_and_few_values() -> None:
    half = torch.zeros(5, dtype=torch.float16)
    large = torch.zeros(1).expand(BUCKET_VALUES)
    sizes = [
        [t.numel() for t in bucket] for bucket in _fill_buckets([torch.zeros(3), torch.zeros(4), half, half, large])
    ]
    assert sizes == [[3, 4], [5, 5], [BUCKET_VALUES]]
    assert list(_fill_buckets([])) == []


def start_process(rank: int, folder: Path, port: int) -> subprocess.Popen[str]:
    """What ``torchrun --nproc_per_node=2`` sets for each process."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    environment = {
        **os.environ,
        **{name: str(value) for name, value in names.items()},
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, "-m", "tests.builders.joint_runs", str(folder)]
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)


def test_two_processes_make_the_steps_of_one_with_the_doubled_batch(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [start_process(rank, tmp_path / "two", port) for rank in range(2)]
    run_alone(tmp_path / "one", batch_count=2)
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    for name in RUNS:
        ours, theirs = (
            [json.loads(line) for line in (tmp_path / side / name / LOG_NAME).read_text().splitlines()]
            for side in ("two", "one")
        )
        assert [row["step"] for row in ours] == [row["step"] for row in theirs] == [1, 2, 3, 4]
        for mine, other in zip(ours, theirs, strict=True):
            # The first of the same weights; later ones of weights as far apart as require_same_steps allows.
            is_first = mine["step"] == 1
            assert mine["loss"] == pytest.approx(other["loss"], rel=1e-6 if is_first else 1e-4), name
            close = 1e-5 if is_first else 2e-3
            assert mine["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=close), name
        kept = [torch.load(tmp_path / side / f"{name}.pt", weights_only=True) for side in ("two", "one")]
        require_same_steps(*kept, length=LOOP.learning_rate, num_steps=LOOP.num_steps)
