from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from maisi_aug.errors import MissingExtraError, PreparationError
from maisi_aug.integrations.totalsegmentator import require_totalsegmentator, segment_organs
from maisi_aug.preparation.prepared import load_prepared
from maisi_aug.volumes.image_files import load_label_map, save_image, save_label_map
from tests.builders.tiny_bank import SPLEEN, build_ct, build_trunk, trunk_grid
from tests.builders.tiny_lab import GRID_WORDS, write_lab

USED = ("ml", "task", "fast", "device", "quiet")


class StandIn:
    """Stands where the package's entry point does: its weights cannot be had in a test. Draws one spleen a CT."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.writes = True

    def __call__(self, source: Path, output: Path, **arguments: Any) -> None:
        assert source.is_file()
        self.calls.append({"source": source.name, **arguments})
        if self.error is not None:
            raise self.error
        if self.writes:
            save_label_map(output, np.where(build_trunk(seed=1) == SPLEEN, 1, 0), trunk_grid())


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    found = StandIn()
    package, api = ModuleType("totalsegmentator"), ModuleType("totalsegmentator.python_api")
    api.totalsegmentator = found  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "totalsegmentator", package)
    monkeypatch.setitem(sys.modules, "totalsegmentator.python_api", api)
    return found


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "totalsegmentator", None)
    with pytest.raises(
        MissingExtraError, match=r"pip install 'maisi-aug\[totalsegmentator\]', or give a folder of its"
    ):
        require_totalsegmentator()


def test_installed_package_takes_what_it_is_given() -> None:
    if importlib.util.find_spec("totalsegmentator") is None:
        pytest.skip("TotalSegmentator: the package is missing:")
    parameters = inspect.signature(require_totalsegmentator()).parameters
    assert list(parameters)[:2] == ["input", "output"]
    assert set(USED) <= set(parameters)


def test_every_image_is_segmented_once(stand_in: StandIn, tmp_path: Path) -> None:
    ct = build_ct(build_trunk(seed=1))
    save_image(tmp_path / "a.nii.gz", ct, trunk_grid())
    images = {"a": tmp_path / "a.nii.gz"}
    told: list[tuple[int, int]] = []
    segment_organs(images, tmp_path / "o", device="gpu:1", fast=True, report=lambda *counts: told.append(counts))
    assert stand_in.calls == [
        {"source": "a.nii.gz", "ml": True, "task": "total", "fast": True, "device": "gpu:1", "quiet": True}
    ]
    assert tuple(stand_in.calls[0])[1:] == USED
    assert told == [(0, 1), (1, 1)]
    assert load_label_map(tmp_path / "o" / "a.nii.gz").array.max() == 1
    segment_organs(images, tmp_path / "o", fast=True)
    assert len(stand_in.calls) == 1
    segment_organs(images, tmp_path / "o")
    assert [call["fast"] for call in stand_in.calls] == [True, False]
    save_image(tmp_path / "a.nii.gz", ct + 1, trunk_grid())
    segment_organs(images, tmp_path / "o")
    assert len(stand_in.calls) == 3


def test_other_formats_are_converted_for_it(stand_in: StandIn, tmp_path: Path) -> None:
    import SimpleITK

    image = SimpleITK.GetImageFromArray(build_ct(build_trunk()))
    SimpleITK.WriteImage(image, str(tmp_path / "a.mha"))
    segment_organs({"a": tmp_path / "a.mha"}, tmp_path / "o")
    assert stand_in.calls[0]["source"].endswith(".ct.nii.gz")
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [".a.origin", "a.nii.gz"]


def test_failure_is_one_sentence_and_leaves_nothing(stand_in: StandIn, tmp_path: Path) -> None:
    save_image(tmp_path / "a.nii.gz", build_ct(build_trunk()), trunk_grid())
    stand_in.error = RuntimeError("no weights\nat all")
    with pytest.raises(PreparationError, match="TotalSegmentator, case a: failed:"):
        segment_organs({"a": tmp_path / "a.nii.gz"}, tmp_path / "o")
    stand_in.error, stand_in.writes = None, False
    with pytest.raises(PreparationError, match="TotalSegmentator, case a: it wrote no label map"):
        segment_organs({"a": tmp_path / "a.nii.gz"}, tmp_path / "o")
    assert list((tmp_path / "o").iterdir()) == []


def test_prepare_lays_its_organs_under_the_labels(
    stand_in: StandIn, run_cli: Callable[..., Any], tmp_path: Path
) -> None:
    lab, out = write_lab(tmp_path / "lab", 1), tmp_path / "out"
    words = ["--images", lab, "--labels", lab, "--map", "1=node@liver", "--map", "2=liver", "--folds", "1", *GRID_WORDS]
    words = ["prepare", *words, "--out", out, "--workers", "1", "--run-totalsegmentator", "--device", "cpu"]
    assert run_cli(*words, "--dry-run").code == 0
    assert stand_in.calls == []
    outcome = run_cli(*words, "--fast-organs")
    assert outcome.code == 0, outcome.stderr
    assert [call["device"] for call in stand_in.calls] == ["cpu"]
    (case,) = load_prepared(out).cases
    spleen_ml = (build_trunk(seed=1) == SPLEEN).sum() * trunk_grid().voxel_ml
    assert case.volume_ml(SPLEEN) == pytest.approx(spleen_ml, rel=0.1)
    assert run_cli(*words, "--fast-organs").code == 0
    assert len(stand_in.calls) == 1
    assert run_cli(*words).code == 0
    assert [call["fast"] for call in stand_in.calls] == [True, False]


def test_missing_package_is_told_before_anything_is_written(
    run_cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "totalsegmentator", None)
    lab = write_lab(tmp_path / "lab", 1)
    outcome = run_cli(
        *("prepare", "--images", lab, "--run-totalsegmentator", "--folds", "1", *GRID_WORDS, "--out", tmp_path / "out")
    )
    assert outcome.code == 1
    assert "pip install 'maisi-aug[totalsegmentator]'" in outcome.stderr
    assert not (tmp_path / "out").exists()
