"""Cores that are really there for this process, whatever the machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_SCHEDULER_VARIABLES: Final = ("SLURM_CPUS_PER_TASK",)
_GROUPS: Final = Path("/sys/fs/cgroup")


def count_cores() -> int:
    """Return the number of cores that this process may use, the smallest limit of system, container and scheduler.

    The limits are the cores that the process is bound to, the CPU time of its control groups (``cpu.max`` of version 2,
    ``cpu.cfs_quota_us`` of version 1), and ``SLURM_CPUS_PER_TASK``.
    """
    # Not on macOS and Windows.
    allowed = getattr(os, "sched_getaffinity", None)
    counts = [len(allowed(0)) if allowed is not None else os.cpu_count() or 1]
    counts += [math.ceil(quota) for quota in _find_quotas(_GROUPS, _own_groups())]
    counts += [int(text) for name in _SCHEDULER_VARIABLES if (text := os.environ.get(name, "")).isdecimal()]
    return max(1, min(counts))


def count_threads(num_workers: int) -> int:
    """Return the number of threads that each of several workers may use, so that together they fill the cores.

    Args:
        num_workers: Number of workers that share the cores of :func:`count_cores`; at least 1.

    Returns:
        Cores divided by workers, rounded down, but not more than ``OMP_NUM_THREADS`` if that is set; at least 1.
    """
    return limit_threads(count_cores() // num_workers)


def limit_threads(num_cores: int) -> int:
    """Return the number of threads of a worker: one per core, limited by ``OMP_NUM_THREADS``, at least one."""
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    wished = int(text) if text.isdecimal() else 0
    share = max(1, num_cores)
    return min(share, wished) if wished else share


@contextmanager
def environment_of(num_threads: int) -> Iterator[None]:
    """Context that sets environment variables by which all libraries of started processes use a number of threads."""
    changes = {name: str(num_threads) for name in THREAD_VARIABLES}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _own_groups() -> list[str]:
    """Paths of the control groups of this process, of any version."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    rows = (line.split(":", 2) for line in lines)
    return [row[2] for row in rows if len(row) == 3 and (not row[1] or "cpu" in row[1].split(","))]


def _find_quotas(root: Path, groups: list[str]) -> Iterator[float]:
    """Cores' worth of CPU time of the groups and of those above them."""
    for group in groups:
        inner = Path(group.strip("/"))
        for path in (inner, *inner.parents):
            yield from _read_quota(root / path / "cpu.max")
            for name in ("cpu", "cpu,cpuacct"):
                yield from _read_quota(root / name / path / "cpu.cfs_quota_us", "cpu.cfs_period_us")


def _read_quota(path: Path, period: str = "") -> Iterator[float]:
    try:
        words = path.read_text(encoding="ascii").split()
        words += path.with_name(period).read_text(encoding="ascii").split() if period else []
        quota, length = map(int, words)  # "max 100000" is not a limit
    except (OSError, ValueError):
        return
    if quota > 0 and length > 0:
        yield quota / length
