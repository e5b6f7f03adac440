from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from maisi_aug.errors import MaisiAugWarning, WorkerError
from maisi_aug.system.engine.mapping import run_parallel

REPOSITORY = Path(__file__).resolve().parents[2]
# A shell that starts the tests in the background has them ignore SIGINT, and what they start inherits that.
SLEEPERS = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from maisi_aug.system.engine.mapping import run_parallel
run_parallel(time.sleep, [300, 300], "sleeping", lambda stage, done, total: print(stage, flush=True), 2)
"""


def warn_of(name: str) -> str:
    warnings.warn(f"{name}: expected a name, found one.", MaisiAugWarning, stacklevel=1)
    return name


def test_killed_process_is_told() -> None:
    with pytest.raises(WorkerError, match="3 processes in a row did not finish their work; the last ended with code 3"):
        run_parallel(os._exit, [3, 3], "checking", lambda stage, done, total: None, 2)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_warnings_of_workers_reach_the_main_process(num_workers: int) -> None:
    with pytest.warns(MaisiAugWarning, match="expected a name") as caught:
        done = run_parallel(warn_of, ["a", "b"], "checking", lambda stage, done, total: None, num_workers)
    assert done == ["a", "b"]
    assert [str(warning.message)[:2] for warning in caught] == ["a:", "b:"]


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, "KeyboardInterrupt"), (signal.SIGINT, "KeyboardInterrupt"), (9, "")]
)
def test_workers_end_with_the_process_that_started_them(number: int, error: str) -> None:
    command = [sys.executable, "-c", SLEEPERS]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sleeping\n"
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)  # which waits for all that have its pipes open
    assert process.returncode != 0
    assert stderr.strip().endswith(error)
    assert not error or "leaked" not in stderr
