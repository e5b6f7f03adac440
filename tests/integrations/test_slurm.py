"""Shards as jobs: on Slurm where one is there, and as processes of this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from maisi_aug.api.cohorts import merge_cohort
from maisi_aug.cli.app import run
from maisi_aug.cohort.resolve import CohortRun
from maisi_aug.cohort.shards import Shard
from maisi_aug.errors import MissingExtraError, RequestError, WorkerError
from maisi_aug.generate.run import CohortSummary, synthesize_cohort
from maisi_aug.integrations.slurm import JobLimits, ShardJob, read_others, submit_shards, write_sbatch
from tests.builders.cohorts_compared import hash_files, sort_lines
from tests.builders.resolver import GATES_OFF, resolver

REPOSITORY = Path(__file__).parents[2]
NO_GPU = JobLimits(minutes=20, num_gpus=0, num_cpus=1)
needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="needs submitit: pip install 'maisi-aug[slurm]'"
)


def has_slurm() -> bool:
    if shutil.which("sinfo") is None:
        return False
    shown = subprocess.run(["sinfo", "--noheader", "-o", "%a %t"], capture_output=True, text=True, check=False)
    return any(line.split()[:1] == ["up"] and "down" not in line for line in shown.stdout.splitlines())


needs_slurm = pytest.mark.skipif(not has_slurm(), reason="needs Slurm: a slurmctld and a slurmd that run here")


@pytest.fixture(scope="module")
def resolve(bundle_path: Path) -> Callable[..., CohortRun]:
    return resolver(labels=["hepatic tumor:25-40mm"], num_cases=4, seed=5, bundle=str(bundle_path), gates=GATES_OFF)


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY), prepend=os.pathsep)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def reference(
    resolve: Callable[..., CohortRun], environment: None, tmp_path_factory: pytest.TempPathFactory
) -> CohortSummary:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    summary = synthesize_cohort(resolve(), tmp_path_factory.mktemp("reference") / "cohort", device="cpu")
    torch.set_num_threads(before)
    return summary


def spell_command(run: CohortRun, folder: Path) -> list[str]:
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(run.to_document()["configuration"]), encoding="utf-8")
    return ["synthesize", "--recipe", str(recipe), "--device", "cpu", "--quiet", "--out", str(folder / "cohort")]


def require_same_when_merged(folder: Path, reference: CohortSummary) -> None:
    merge_cohort(folder)
    assert hash_files(folder) == hash_files(reference.folder)
    assert sort_lines(folder) == sort_lines(reference.folder)


def wait_for(condition: Callable[[], bool], seconds: float = 500) -> None:
    ends_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.5)


@needs_submitit
def test_sbatch_file_says_what_every_job_gets(tmp_path: Path) -> None:
    limits = JobLimits(
        90, 2, 8, "32GB", partition="gpu", account="lab", num_running=5, others=(("qos", "long"), ("exclusive", "user"))
    )
    lines = write_sbatch(tmp_path / "logs", 16, limits).splitlines()
    expected = ["array=0-15%5", "time=90", "gpus-per-node=2", "cpus-per-task=8", "mem=32GB", "partition=gpu"]
    expected += ["account=lab", "qos=long", "exclusive=user", "requeue", "signal=USR2@120", "job-name=maisi-aug"]
    assert [name for name in expected if f"#SBATCH --{name}" not in lines] == []
    assert lines[-1].endswith(f"-u -m submitit.core._submit {tmp_path}/logs")
    assert not (tmp_path / "logs").exists()
    assert "--array" not in write_sbatch(tmp_path, 1, NO_GPU)
    assert "gpus" not in write_sbatch(tmp_path, 1, NO_GPU)


@pytest.mark.parametrize("text", ["qos", "qos=", "=long", "--comment=two words"])
def test_option_of_sbatch_of_another_form_is_refused(text: str) -> None:
    assert read_others(["--qos=long", "nice=100"]) == (("qos", "long"), ("nice", "100"))
    with pytest.raises(RequestError, match=f"--sbatch: expected NAME=VALUE, such as qos=long, found '{text}'"):
        read_others([text])


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["train"], "cluster submit: only synthesize or insert can follow --, found 'train'"),
        (["synthesize", "--labels", "spleen"], "synthesize --out: required here"),
        (["synthesize", "--out", "x", "--shard", "1/2"], "--shard cannot be used in the command of a job"),
        (["synthesize", "--out", "x", "--oud", "y"], "No such option: --oud"),
    ],
)
def test_command_that_makes_no_parts_is_refused(
    command: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cluster", "submit", "--jobs", "2", "--", *command]) in (1, 2)
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_missing_submitit_and_missing_slurm_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "submitit", None)
        with pytest.raises(
            MissingExtraError, match=r"the package submitit is missing: .* pip install 'maisi-aug\[slurm\]'"
        ):
            write_sbatch(tmp_path, 2, NO_GPU)
    pytest.importorskip("submitit", reason="needs submitit: pip install 'maisi-aug[slurm]'")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WorkerError, match="cluster submit: Slurm's commands sbatch and srun are missing"):
        submit_shards(["synthesize"], tmp_path, 2, NO_GPU)


class Sleeping(ShardJob):
    def spell(self) -> list[str]:
        return [sys.executable, "-c", "import time; time.sleep(100)"]


def test_job_that_slurm_terminates_is_queued_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the signal that submitit takes for it."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    try:
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(subprocess.CalledProcessError):
            Sleeping(("synthesize",), Shard(1, 2))()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert heard == [signal.SIGUSR2]


@pytest.mark.slow
@needs_submitit
def test_checkpoint_stops_the_command_and_keeps_the_job() -> None:
    job = Sleeping(("synthesize",), Shard(1, 2))
    kept: list[Any] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: kept.append(job.checkpoint()))
    try:
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGUSR2)).start()
        with pytest.raises(subprocess.CalledProcessError):
            job()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert [delayed.function for delayed in kept] == [ShardJob(("synthesize",), Shard(1, 2))]


@needs_submitit
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit leaves processes
def test_jobs_on_this_machine_make_the_same_cohort(
    reference: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    numbers = submit_shards(spell_command(resolve(), tmp_path), tmp_path / "logs", 2, NO_GPU, is_local=True)
    results = [tmp_path / "logs" / f"{number}_0_result.pkl" for number in numbers]
    wait_for(lambda: all(path.exists() for path in results))
    require_same_when_merged(tmp_path / "cohort", reference)


@pytest.mark.slow
@needs_submitit
@needs_slurm
@pytest.mark.parametrize("signal_name", ["TERM", "USR2"])
def test_preempted_jobs_of_slurm_make_the_same_cohort(
    signal_name: str, reference: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    cohort = tmp_path / "cohort"
    numbers = submit_shards(spell_command(resolve(), tmp_path), tmp_path / "logs", 2, NO_GPU)
    wait_for(lambda: (cohort / "cohort.yaml").exists())
    subprocess.run(["scancel", f"--signal={signal_name}", numbers[0]], check=True)
    wait_for(lambda: "Requeued job" in (tmp_path / "logs" / f"{numbers[0]}_0_log.out").read_text())
    wait_for(lambda: "PENDING" in show_state(numbers[0]))
    subprocess.run(["scontrol", "update", f"JobId={numbers[0]}", "StartTime=now"], check=True)
    wait_for(lambda: all((tmp_path / "logs" / f"{number}_0_result.pkl").exists() for number in numbers))
    require_same_when_merged(cohort, reference)


@pytest.mark.slow
@needs_submitit
@needs_slurm
def test_cancelled_job_is_not_queued_again(resolve: Callable[..., CohortRun], tmp_path: Path) -> None:
    numbers = submit_shards(spell_command(resolve(num_cases=60), tmp_path), tmp_path / "logs", 1, NO_GPU)
    wait_for(lambda: (tmp_path / "cohort" / "cohort.yaml").exists())
    subprocess.run(["scancel", numbers[0]], check=True)
    wait_for(lambda: "COMPLETING" not in show_state(numbers[0]) and "RUNNING" not in show_state(numbers[0]))
    assert "JobState=CANCELLED" in show_state(numbers[0])


def show_state(number: str) -> str:
    return subprocess.run(
        ["scontrol", "--oneliner", "show", "job", number], capture_output=True, text=True, check=True
    ).stdout
