"""What tests of a kind need, and what becomes of them without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PROGRAM = """
import pytest, torch

@pytest.mark.gpu
def test_needs_a_gpu():
    assert torch.ones(1, device="cuda").is_cuda

def test_needs_none():
    pass
"""


def test_gpu_tests_pass_on_a_gpu_and_are_skipped_with_the_reason_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "test_marked.py").write_text(PROGRAM, encoding="utf-8")
    options = ["-rs", "-m", "gpu", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    options += ["-c", str(REPOSITORY / "pyproject.toml")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, tmp_path], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed, 1 deselected" in done.stdout or (
        "1 skipped, 1 deselected" in done.stdout and "needs a CUDA device: PyTorch" in done.stdout
    )
