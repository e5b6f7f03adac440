from __future__ import annotations

import subprocess
import sys

import pytest

# Blocks of 80 MB, each written to and freed: how often the kernel has to give a page, once the first few have been.
COUNT_FAULTS = """
import resource, sys, torch
from maisi_aug.training.loop.run import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit("no glibc")
for _ in range(20):
    torch.ones(20_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.ones(20_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_faults(kind: str) -> int:
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS, kind], capture_output=True, text=True, check=False)
    if "no glibc" in done.stderr:
        pytest.skip("the C library is not glibc, whose allocator this is about")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_freed_blocks_are_used_again() -> None:
    assert 3 * count_faults("kept") < count_faults("default")
