"""nnU-Net's own integrity check of a dataset, run as a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from maisi_aug.errors import ExportError

WORKERS_VARIABLE = "nnUNet_n_proc_DA"
_COMPLAINT = re.compile(r"^(error|warning)\b.*", re.IGNORECASE | re.MULTILINE)
_WARNING = re.compile(r"^warning\b.*", re.IGNORECASE | re.MULTILINE)
_ERROR = re.compile(r"^error\b.*", re.IGNORECASE | re.MULTILINE)
_PROGRAM = (
    "import sys\n"
    "from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity\n"
    "verify_dataset_integrity(sys.argv[1], int(sys.argv[2]))\n"
)


def verify_integrity(dataset: Path, *, num_processes: int) -> None:
    """Run nnU-Net's integrity check on a purely synthetic dataset, where warnings about geometry count as errors.

    Args:
        dataset: Folder of the raw dataset.
        num_processes: Number of processes that read cases.

    Raises:
        ExportError: The check fails; the message contains nnU-Net's first complaint.
    """
    done = run_nnunet(_PROGRAM, [str(dataset.resolve()), str(num_processes)])
    complaint = _COMPLAINT.search(done.stdout)
    if done.returncode == 0 and complaint is None:
        return
    raise ExportError(
        f"nnU-Net's integrity check complains: {_first_words(complaint, done)} Nothing was exported; make the cohort "
        "again or report this."
    )


def verify_mixed_integrity(dataset: Path, *, num_processes: int) -> tuple[str, ...]:
    """Run nnU-Net's integrity check on a dataset that also contains real cases.

    Args:
        dataset: Folder of the raw dataset.
        num_processes: Number of processes that read cases.

    Returns:
        nnU-Net's warnings, each once; it trains on such cases nevertheless.

    Raises:
        ExportError: The check fails; the message contains nnU-Net's first error.
    """
    done = run_nnunet(_PROGRAM, [str(dataset.resolve()), str(num_processes)])
    if done.returncode == 0:
        return tuple(dict.fromkeys(" ".join(found.split()) for found in _WARNING.findall(done.stdout)))
    raise ExportError(
        f"nnU-Net's integrity check complains: {_first_words(_ERROR.search(done.stdout), done)} Nothing was "
        "exported; repair the case that it names."
    )


def _first_words(complaint: re.Match[str] | None, done: subprocess.CompletedProcess[str]) -> str:
    return to_sentence(complaint.group(0)) if complaint else last_words(done)


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that a process wrote to standard error, as a sentence for an error message."""
    return to_sentence((done.stderr.strip().splitlines() or ["no message"])[-1])


def to_sentence(text: str) -> str:
    """Format a text as one line with a full stop, shortened if it is too long for a message."""
    return " ".join(text.split())[:300].rstrip(" .") + "."


def run_nnunet(
    program: str, arguments: list[str], *, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python source that calls nnU-Net in a process of its own, and wait for it.

    nnU-Net prints, reads its folders from the environment, and starts workers that would import a caller's unguarded
    script again.

    Args:
        program: Python source, which finds the arguments in ``sys.argv[1:]``.
        arguments: Arguments of the program.
        environment: Environment variables to set in addition to the caller's.
    """
    variables = {**os.environ, **(environment or {})}
    if variables.get(WORKERS_VARIABLE, "").strip() == "0":  # for a training without workers; its planner needs a thread
        variables[WORKERS_VARIABLE] = "1"
    # -P: a module of the user's current folder must not stand in for one of nnU-Net's.
    command = [sys.executable, "-P", "-c", program, *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=variables,
    )


def count_processes(num_cases: int) -> int:
    """Return the number of worker processes for nnU-Net: starting one takes as long as reading several cases."""
    return max(1, min(num_cases // 8, os.cpu_count() or 1, 8))
