"""The shards of a cohort as the jobs of an array, on Slurm or on this machine, through submitit.

A job begins anew where it was stopped: before its time is over Slurm sends SIGUSR2, when it is preempted SIGTERM. At
either the command stops, which loses the images it is working on, and the job is queued again. submitit alone would do
so at SIGUSR2 and ignore SIGTERM.

Source: the package ``submitit``, version 1.5.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

from maisi_aug.cohort.shards import Shard
from maisi_aug.errors import MissingExtraError, RequestError, WorkerError

STOP_SECONDS: Final = 90
"""Seconds that a command may take to stop before it is killed."""
NAME: Final = "maisi-aug"


@dataclass(frozen=True)
class JobLimits:
    """Resources and limits of every Slurm job.

    Attributes:
        minutes: Wall-clock limit; a job that has not finished by then is queued again.
        num_gpus: Number of GPUs.
        num_cpus: Number of cores.
        memory: Memory in Slurm's notation, such as 32GB; empty for the cluster's default.
        partition: Partition of the cluster; empty for its default.
        account: Account to charge; empty for the user's default.
        num_running: Largest number of jobs that run at the same time; None for all.
        num_timeouts: Number of times that a job is queued again after a timeout; preemptions do not count.
        others: Further options of sbatch, as (name, value).
    """

    minutes: int = 480
    num_gpus: int = 1
    num_cpus: int = 4
    memory: str = ""
    partition: str = ""
    account: str = ""
    num_running: int | None = None
    num_timeouts: int = 100
    others: tuple[tuple[str, str], ...] = ()

    def to_parameters(self) -> dict[str, Any]:
        """Return the limits as parameters of submitit."""
        named = {"mem": self.memory, "partition": self.partition, "account": self.account}
        return {
            "job_name": NAME,
            "time": self.minutes,
            "cpus_per_task": self.num_cpus,
            **({"gpus_per_node": self.num_gpus} if self.num_gpus else {}),
            **{name: value for name, value in named.items() if value},
            **({} if self.num_running is None else {"array_parallelism": self.num_running}),
            "signal_delay_s": STOP_SECONDS + 30,
            "additional_parameters": {"requeue": True, **dict(self.others)},
        }


@dataclass
class ShardJob:
    """Slurm job that runs a command for one shard, and stops it before a time limit or preemption.

    Attributes:
        words: Words of the command, after ``maisi-aug``.
        shard: Shard of the cohort.
    """

    words: tuple[str, ...]
    shard: Shard
    _child: subprocess.Popen[bytes] | None = field(default=None, compare=False)
    _is_terminated: bool = field(default=False, compare=False)

    def __call__(self) -> None:
        """Run the command.

        Raises:
            CalledProcessError: It failed.
        """
        # Slurm signals every process of a job; the command takes SIGTERM as Ctrl-C, and must not end of SIGUSR2.
        self._child = subprocess.Popen(self.spell(), preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN))
        before = signal.signal(signal.SIGTERM, self._terminate)
        code = self._child.wait()
        signal.signal(signal.SIGTERM, before)
        if self._is_terminated and not _is_cancelled():
            os.kill(os.getpid(), signal.SIGUSR2)  # which submitit queues the job again at
        if code:
            raise subprocess.CalledProcessError(code, self.spell())

    def spell(self) -> list[str]:
        """Return the command line of the job, as words."""
        return [sys.executable, "-m", "maisi_aug", *self.words, "--shard", str(self.shard)]

    def checkpoint(self) -> Any:
        """Stop the command; submitit calls this before a time limit or preemption.

        Returns:
            The same job, to be queued again.
        """
        from submitit.helpers import DelayedSubmission

        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._child.kill()
        return DelayedSubmission(ShardJob(self.words, self.shard))

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self._is_terminated = True
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()


def _is_cancelled() -> bool:
    """Whether the user has ended this job with scancel, which sends SIGTERM as well.

    Slurm shows such a job as one that completes. One that is to make room runs until its grace time is over, and shows
    the time at which it was chosen.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    if not job:
        return False
    command = ["scontrol", "--oneliner", "show", "job", job]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return "JobState=RUNNING" not in shown and not re.search(r"PreemptTime=\d", shown)


def require_submitit() -> Any:
    """Return the module ``submitit``.

    Raises:
        MissingExtraError: submitit is not installed.
    """
    try:
        import submitit
    except ImportError as error:
        raise MissingExtraError(
            f"cluster submit: the package submitit is missing: {error}. Install it with: pip install 'maisi-aug[slurm]'"
        ) from error
    return submitit


def write_sbatch(folder: Path, num_jobs: int, limits: JobLimits) -> str:
    """Return the text of the file that :func:`submit_shards` would pass to sbatch.

    Args:
        folder: Folder for logs and job files.
        num_jobs: Number of jobs of the array.
        limits: Resources of every job.

    Raises:
        MissingExtraError: submitit is not installed.
    """
    require_submitit()
    from submitit.slurm.slurm import _make_sbatch_string

    command = shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(folder)])
    num_tasks = {"map_count": num_jobs} if num_jobs > 1 else {}
    text: str = _make_sbatch_string(command=command, folder=folder, **num_tasks, **limits.to_parameters())
    return text


def submit_shards(
    words: Sequence[str], folder: Path, num_jobs: int, limits: JobLimits, *, is_local: bool = False
) -> list[str]:
    """Queue a Slurm array of jobs, each of which makes one shard of a cohort.

    Args:
        words: Words of the command, after ``maisi-aug``, without ``--shard``.
        folder: Folder for logs and job files.
        num_jobs: Number of jobs, and of shards.
        limits: Resources of every job.
        is_local: Start processes on this machine instead of Slurm jobs.

    Returns:
        Id of each job.

    Raises:
        MissingExtraError: submitit is not installed.
        WorkerError: Slurm is missing, or rejects the jobs.
    """
    submitit = require_submitit()
    jobs = [ShardJob(tuple(words), Shard(number, num_jobs)) for number in range(1, num_jobs + 1)]
    if is_local:
        executor = submitit.LocalExecutor(folder, max_num_timeout=limits.num_timeouts)
        executor.update_parameters(timeout_min=limits.minutes)
    else:
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise WorkerError(
                "cluster submit: Slurm's commands sbatch and srun are missing. Run it on a login node of the "
                "cluster, or use --local for a trial on this machine."
            )
        executor = submitit.SlurmExecutor(folder, max_num_timeout=limits.num_timeouts)
        executor.update_parameters(**limits.to_parameters())
    try:
        return [job.job_id for job in executor.submit_array(jobs)]
    except submitit.core.utils.FailedJobError as error:
        last = str(error).strip().splitlines()[-1]
        raise WorkerError(f"cluster submit: Slurm rejected the jobs: {last}") from error


def read_others(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Parse options of sbatch, given as ``NAME=VALUE``.

    Raises:
        RequestError: An option has another form.
    """
    pairs = [text.lstrip("-").partition("=") for text in texts]
    for text, (name, sign, value) in zip(texts, pairs, strict=True):
        if not name or not sign or not value or any(letter.isspace() for letter in text):
            raise RequestError(f"--sbatch: expected NAME=VALUE, such as qos=long, found '{text}'.")
    return tuple((name, value) for name, _, value in pairs)
