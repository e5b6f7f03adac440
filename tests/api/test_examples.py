"""The examples in the docstrings of the front door, run in one folder after another."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import maisi_aug as ma
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image, save_label_map
from tests.builders.tiny_bank import build_ct, build_trunk, trunk_grid
from tests.insertion.chest import SHAPE, SPACING_MM, build_chest

API = Path(ma.__file__).parent / "api"
MODULES = sorted(path.stem for path in API.glob("*.py") if ">>>" in path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples find what they name."""
    folder = tmp_path_factory.mktemp("examples")
    ma.synthesize("hepatic tumor:0.3", num_cases=1, out=folder / "cohort", progress=False)
    save_image(folder / "cts" / "p0.nii.gz", build_chest(), Grid.from_spacing(SHAPE, SPACING_MM))
    for number in range(2):
        label_map = build_trunk(seed=number)
        save_image(folder / "lab" / "images" / f"p{number}.nii.gz", build_ct(label_map), trunk_grid())
        save_label_map(folder / "lab" / "labels" / f"p{number}.nii.gz", (label_map == 1).astype("uint8"), trunk_grid())
    return folder


def test_examples_are_found() -> None:
    assert {
        "synthesis",
        "pipeline",
        "results",
        "insertion",
        "preparing",
        "labels",
        "evaluate",
        "benchmarking",
        "training",
    } <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples_say_what_they_show(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    module = import_module(f"maisi_aug.api.{name}")
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert results.attempted > 0
    assert results.failed == 0
