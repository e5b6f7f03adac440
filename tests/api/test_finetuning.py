"""Fine-tuning from Python makes the bundle that the command makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import maisi_aug as ma
from maisi_aug.system.whole_files import sha256_of
from tests.builders.tiny_prepared import write_prepared, write_tiny_base


def weights_of(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted(folder.rglob("*.safetensors"))}


def test_bundle_is_the_commands(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    data, base = write_prepared(tmp_path / "data", num_cases=3), write_tiny_base(tmp_path / "base").path
    told: list[tuple[str, int, int]] = []
    result = ma.finetune_controlnet(
        "gland",
        data=data,
        base=base,
        num_steps=1,
        num_pictures=0,
        crop_shape=(16, 16, 16),
        tune="low-rank",
        rank=2,
        hosts={"gland": ["body", "liver"]},
        out=tmp_path / "ours",
        progress=lambda *words: told.append(words),
    )
    assert result is not None
    assert [label.name for label in result.taught] == ["gland"]
    assert ("Training", 1, 1) in told
    words = ["--steps", "1", "--pictures", "0", "--crop", "16x16x16", "--tune", "low-rank", "--rank", "2"]
    outcome = run_cli(
        *("finetune-controlnet", "--label", "gland", "--data", data, "--base", base, *words),
        *("--host", "gland=body,liver", "--out", tmp_path / "theirs"),
    )
    assert outcome.code == 0, outcome.stderr
    assert weights_of(tmp_path / "ours") == weights_of(tmp_path / "theirs") != {}
