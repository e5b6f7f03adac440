from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_prepared import write_prepared, write_tiny_base

COMMAND = ("finetune-controlnet", "--label", "gland")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("finetune")
    return write_prepared(folder / "data", num_cases=3), write_tiny_base(folder / "base").path


def call(run_cli: Callable[..., Any], places: tuple[Path, Path], out: Path, *options: str) -> Any:
    data, base = places
    return run_cli(*COMMAND, "--data", data, "--base", base, "--out", out, *options)


def test_bundle_is_made_and_told_of(run_cli: Callable[..., Any], places: tuple[Path, Path], tmp_path: Path) -> None:
    options = ("--slot", "dummy3", "--kind", "gland=organ", "--host", "gland=body,liver", "--json")
    fast = ("--steps", "1", "--pictures", "0", "--crop", "16x16x16", "--tune", "low-rank", "--rank", "2")
    done = call(run_cli, places, tmp_path / "run", *options, *fast)
    assert done.code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["labels"][0] | {"why": ""} == {
        "name": "gland",
        "source_id": 133,
        "id": 18,
        "hosts": [200, 1],
        "kind": "organ",
        "why": "",
    }
    assert told["is_complete"] is True
    assert "gland: organ in slot 18, lies in body, liver (as given; hosts as given)" in done.stderr
    assert run_cli("bundles", "verify", told["bundle"]).code == 0
    again = call(run_cli, places, tmp_path / "run", *options[:-1], *fast)
    assert again.code == 0, again.stderr
    assert f"Try: maisi-aug synthesize --bundle {told['bundle']} --labels 'gland:0.5'" in again.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--slot", "dummy3", "--label", "bright nodule"), "--slot: expected 'NAME=dummy3' where there are several"),
        (("--slot", "glands=dummy3"), "--slot: expected one of the labels (gland), found 'glands'"),
        (("--host", "body"), "--host: expected NAME=VALUE such as 'left parotid=body', found 'body'"),
        (("--kind", "gland=thing"), "kinds.gland: Input should be 'lesion' or 'organ', found 'thing'"),
        (("--crop", "10x16x16"), "Crop for bundle 'tiny'"),
        (("--slot", "gland=liver"), "Slot of 'gland': expected 'auto', a placeholder"),
        (("--map", "1=gland"), "--map: expected none for"),
    ],
)
def test_bad_words_are_told_of(
    run_cli: Callable[..., Any], places: tuple[Path, Path], tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    done = call(run_cli, places, tmp_path / "run", *options)
    assert done.code != 0
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()
