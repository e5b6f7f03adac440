from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.bundle_spec.bundle import load_bundle
from tests.builders.tiny_bank import build_trunk, write_case
from tests.builders.tiny_bundle import write_tiny_bundle
from tests.builders.tiny_mask_training import write_mask_recipe


@pytest.fixture
def train(run_cli: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Run a stage of the tiny recipe on a bank of three trunks."""
    for number in range(3):
        write_case(tmp_path / "bank", f"case{number}", build_trunk(tumours_mm=(9.0,), seed=number))
    recipe = write_mask_recipe(
        tmp_path / "tiny.yaml", grid__shape=[40, 32, 32], grid__spacing_mm=[8.0, 8.5, 9.6], vae__loop__num_steps=2
    )

    def call(stage: str, *options: str | Path) -> Any:
        words = ["train", stage, "--recipe", recipe, "--out", tmp_path / "run", "--device", "cpu"]
        return run_cli(*words, "--mask-bank", tmp_path / "bank", "--mask-labels", "maisi", *options)

    return call


def test_two_stages_end_in_a_bundle_that_synthesize_takes(
    train: Callable[..., Any], run_cli: Callable[..., Any], tmp_path: Path
) -> None:
    base = write_tiny_bundle(tmp_path / "base")
    first = train("mask-vae", "--max-minutes", "0")
    told = (
        r"mask-vae: time limit reached while reading label maps, 1 of \d+; run the same command again to continue\.\n"
    )
    assert (first.code, first.stdout) == (0, f"{tmp_path / 'run'}\n")
    assert re.fullmatch(told, first.stderr)
    assert train("mask-vae").stderr == ""
    outcome = train("mask-diffusion", "--base", base.path)
    assert outcome == (0, f"{tmp_path / 'run' / 'bundle'}\n", "")
    bundle = load_bundle(tmp_path / "run" / "bundle")
    bundle.require_intact()
    words = ["synthesize", "--labels", "liver", "--bundle", bundle.path, "--mask-source", "diffusion"]
    planned = run_cli(*words, "--size-of", "liver:0.5", "--dry-run", "--json")
    assert json.loads(planned.stdout)["configuration"]["mask_source"] == "diffusion"


def test_diffusion_without_a_base_is_refused_at_once(train: Callable[..., Any], tmp_path: Path) -> None:
    outcome = train("mask-diffusion")
    assert (outcome.code, outcome.stdout) == (1, "")
    assert "Mask networks: need a bundle with image networks to be added to" in outcome.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mask-labels", "maisi"], "--mask-labels can only be used with --mask-bank; it gives the meaning of that"),
        (["--data", "one", "--mask-bank", "two"], "--data and --mask-bank cannot be used together"),
        (["--recipe", "train-phantom-ct"], r"found kind 'training'"),
    ],
    ids=["labels", "both", "recipe"],
)
def test_options_that_do_not_fit_are_one_sentence(
    options: list[str], message: str, run_cli: Callable[..., Any], tmp_path: Path
) -> None:
    outcome = run_cli("train", "mask-vae", "--out", tmp_path / "run", "--device", "cpu", *options)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert message in outcome.stderr
    assert not (tmp_path / "run").exists()


def test_recipe_can_be_validated(run_cli: Callable[..., Any]) -> None:
    outcome = run_cli("recipes", "validate", "train-phantom-ct-masks")
    assert outcome.code == 0
    assert "valid, trains networks that generate 48x40x32 at 8x8x8 mm" in outcome.stdout
    assert (
        json.loads(run_cli("recipes", "validate", "train-phantom-ct-masks", "--json").stdout)["kind"] == "mask-training"
    )


def test_help_names_the_stages(run_cli: Callable[..., Any]) -> None:
    outcome = run_cli("train", "--help")
    assert {"mask-vae", "mask-diffusion"} <= set(outcome.stdout.split())
