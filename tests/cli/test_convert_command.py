from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from maisi_aug.bundle_spec.bundle import load_bundle
from tests.builders.tiny_bundle import write_tiny_bundle
from tests.builders.tiny_checkpoints import saved


def test_bundle_is_copied_in_another_type(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiny")
    outcome = run_cli("bundles", "convert", tmp_path / "tiny", "--to", tmp_path / "full", "--dtype", "float32")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert outcome.stdout == f"{tmp_path / 'full'}: 1.0 MB of weights, previously 0.5 MB, in float32.\n"
    assert load_bundle(tmp_path / "full").spec.provenance["converted"][0]["dtype"] == "float32"
    assert run_cli("bundles", "verify", tmp_path / "full").code == 0
    half = run_cli("bundles", "convert", tmp_path / "full", "--to", tmp_path / "half", "--json")
    assert json.loads(half.stdout)["dtype"] == "float16"
    again = run_cli("bundles", "convert", tmp_path / "full", "--to", tmp_path / "half")
    assert (again.code, again.stdout) == (1, "")
    assert "already exists." in again.stderr


def test_checkpoint_is_turned_into_safetensors(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved({"unet_state_dict": {"w": torch.ones(4)}, "epoch": 3, "scale_factor": 1.5}))
    outcome = run_cli("bundles", "convert", tmp_path / "a.pt", "--to", tmp_path / "a.safetensors")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert f"{tmp_path / 'a.safetensors'}: 0.0 MB of weights" in outcome.stdout
    assert "Left out, because they are not weights: epoch." in outcome.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["no-such", "--to", "x"], 1, "Bundle 'no-such': expected"),
        (["phantom-ct"], 2, "Missing option '--to'"),
        (["phantom-ct", "--to", "x", "--dtype", "int8"], 2, "'int8' is not one of 'float16', 'bfloat16', 'float32'"),
    ],
)
def test_bad_input_is_one_sentence(run_cli: Callable[..., Any], words: list[str], code: int, message: str) -> None:
    outcome = run_cli("bundles", "convert", *words)
    assert (outcome.code, outcome.stdout) == (code, "")
    assert message in outcome.stderr
