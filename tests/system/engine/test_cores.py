from __future__ import annotations

import os
from pathlib import Path

import pytest

from maisi_aug.system.engine import cores
from maisi_aug.system.engine.cores import count_cores, count_threads, environment_of


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores, no container, no scheduler."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "_own_groups", list)
    for name in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def test_systems_without_affinity_count_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_cores() == 8
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert count_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert count_cores() == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"jobs/one/cpu.max": "150000 100000\n"}, 2),
        ({"jobs/one/cpu.max": "max 100000\n", "jobs/cpu.max": "300000 100000\n"}, 3),
        ({"cpu/jobs/one/cpu.cfs_quota_us": "100000\n", "cpu/jobs/one/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/jobs/one/cpu.cfs_quota_us": "-1\n", "cpu/jobs/one/cpu.cfs_period_us": "100000\n"}, 8),
        ({"jobs/one/cpu.max": "nonsense"}, 8),
        ({"jobs/one/cpu.max": "5000 100000"}, 1),
        ({}, 8),
    ],
)
def test_containers_count_what_they_are_given(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(cores, "_GROUPS", tmp_path)
    monkeypatch.setattr(cores, "_own_groups", lambda: ["/jobs/one"])
    assert count_cores() == expected


def test_scheduler_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert count_cores() == 3
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "64")
    assert count_cores() == 8
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "")
    assert count_cores() == 8


def test_workers_share_the_cores_and_never_take_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [count_threads(number) for number in (1, 2, 3, 8, 16)] == [8, 4, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    assert [count_threads(number) for number in (1, 8)] == [2, 1]
    with environment_of(4):
        assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "4"
    assert os.environ["OMP_NUM_THREADS"] == "2,1"
    assert "MKL_NUM_THREADS" not in os.environ
