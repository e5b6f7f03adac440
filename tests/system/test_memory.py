"""Every way of saying that memory is used up is understood, and nothing else."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maisi_aug.system.memory import find_memory_error, is_out_of_memory, spell_asked


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory: you tried to "),
        RuntimeError("Exception thrown in SimpleITK: ... Failed to allocate memory for image."),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
    ids=str,
)
def test_shortage_is_recognised(error: BaseException) -> None:
    assert is_out_of_memory(error)
    outer = ValueError("a damaged file")
    outer.__cause__ = error
    assert not is_out_of_memory(outer)
    assert find_memory_error(outer) is error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ImportError("no module"), OSError(errno.ENOSPC, "x")])
def test_other_errors_are_not(error: BaseException) -> None:
    assert find_memory_error(error) is None


def test_hidden_context_is_not_looked_at() -> None:
    error = ValueError("x")
    error.__context__, error.__suppress_context__ = MemoryError(), True
    assert find_memory_error(error) is None
    error.__suppress_context__ = False
    assert find_memory_error(error) is error.__context__


def test_libraries_speak_as_expected() -> None:
    with pytest.raises(MemoryError) as caught:
        np.empty(1 << 60, dtype=np.uint8)
    assert spell_asked(caught.value) == "1.00 EiB" or spell_asked(caught.value) == ""
    assert spell_asked(RuntimeError("you tried to allocate 1000000000 bytes.")) == "1.0 GB"
    assert spell_asked(RuntimeError("CUDA out of memory. Tried to allocate 2.50 GiB.")) == "2.50 GiB"


def test_import_for_which_the_memory_is_too_small_is_one_sentence(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs limits of the address space")
    program = (
        "import resource, sys\n"
        "from maisi_aug.cli.app import run\n"
        "resource.setrlimit(resource.RLIMIT_AS, (700 << 20, resource.RLIM_INFINITY))\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    assert resource.RLIMIT_AS is not None
    words = [
        "synthesize",
        "--labels",
        "hepatic tumor:0.5",
        "-n",
        "1",
        "--out",
        str(tmp_path / "cohort"),
        "--device",
        "cpu",
    ]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "this machine is out of memory" in done.stderr
    assert list(tmp_path.iterdir()) == []
