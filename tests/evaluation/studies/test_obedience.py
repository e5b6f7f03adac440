from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.bundle_spec.grid_limits import GridSpec
from maisi_aug.errors import BundleError
from maisi_aug.evaluation.studies.obedience import (
    ObedienceSettings,
    compare_lesions,
    compare_organs,
    main,
    measure_errors,
    measure_obedience,
)
from maisi_aug.evaluation.studies.obedience_report import CaseFigures, to_document, to_report
from maisi_aug.evaluation.studies.segmenter import (
    Segmenter,
    SegmenterConfig,
    build_network,
    load_segmenter,
    save_segmenter,
)
from maisi_aug.evaluation.studies.tissues import to_class_map
from maisi_aug.evaluation.studies.train_segmenter import build_held_out_phantom
from maisi_aug.networks.pipeline import Pipeline
from maisi_aug.phantom import Phantom


@pytest.fixture(scope="module")
def segmenter(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    folder = tmp_path_factory.mktemp("segmenter")
    config = SegmenterConfig(grid=bundle.spec.grid, slots=bundle.spec.slots, widths=(4, 8, 8), patch_shape=(32, 32, 32))
    torch.manual_seed(3)
    save_segmenter(folder, build_network(config).state_dict(), config, num_steps=0)
    return load_segmenter(folder)


@pytest.fixture(scope="module")
def phantom(bundle: Bundle) -> Phantom:
    return build_held_out_phantom(3, 1, bundle.grid)


def test_held_out_phantoms_repeat_and_differ(bundle: Bundle, phantom: Phantom) -> None:
    again, other = build_held_out_phantom(3, 1, bundle.grid), build_held_out_phantom(4, 1, bundle.grid)
    np.testing.assert_array_equal(again.image_hu, phantom.image_hu)
    assert not np.array_equal(other.label_map, phantom.label_map)
    assert phantom.region == "abdomen"
    assert phantom.lesions


def test_phantom_itself_obeys_its_map(bundle: Bundle, segmenter: Segmenter, phantom: Phantom) -> None:
    names = [tissue.name for tissue in segmenter.tissues]
    classes = to_class_map(phantom.label_map, segmenter.tissues)
    dice: dict[str, float | None] = dict.fromkeys(names, 0.5)
    figures = CaseFigures(
        case_id="case_0001",
        key="",
        phantom_seed=phantom.seed,
        region=phantom.region,
        phase=phantom.phase,
        organs=compare_organs(phantom, phantom.image_hu),
        lesions=compare_lesions(phantom, phantom.image_hu, bundle.vocabulary),
        dice_phantom=dice,
        dice_synthetic=dice,
        error_hu=measure_errors(phantom, phantom.image_hu, classes, names),
        seconds={"image": 1.0},
    )
    assert {organ.organ for organ in figures.organs} >= {"liver", "spleen", "vertebrae L1"}
    assert all(organ.phantom_hu == organ.synthetic_hu for organ in figures.organs)
    assert len(figures.lesions) == len(phantom.lesions)
    assert all(lesion.phantom == lesion.synthetic for lesion in figures.lesions)
    assert set(figures.error_hu.values()) == {0.0}
    document = to_document([figures], bundle=bundle, segmenter=segmenter, settings={"num_cases": 1, "seed": 3})
    assert [criterion["found"] for criterion in document["criteria"][2:]] == [1.0, 1.0]
    assert all(row["mean_difference_hu"] == 0 for row in document["organs"])
    blind = replace(figures, dice_phantom=dict.fromkeys(names, 0.05), dice_synthetic=dict.fromkeys(names, 0.06))
    document = to_document([blind], bundle=bundle, segmenter=segmenter, settings={"num_cases": 1, "seed": 3})
    assert [(criterion["found"], criterion["is_met"]) for criterion in document["criteria"][2:]] == [(None, False)] * 2


def test_errors_are_mean_absolute_differences(segmenter: Segmenter, phantom: Phantom) -> None:
    names = [tissue.name for tissue in segmenter.tissues]
    classes = to_class_map(phantom.label_map, segmenter.tissues)
    errors = measure_errors(phantom, (phantom.image_hu + 7).astype(np.int16), classes, names)
    assert errors["liver"] == errors["whole body"] == 7.0
    assert "heart" not in errors or (classes == 1 + names.index("heart")).any()


def test_measures_every_case_once(
    bundle: Bundle, segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ObedienceSettings(num_cases=2, seed=3)
    seen: list[tuple[int, int]] = []
    document = measure_obedience(
        bundle, segmenter, tmp_path, settings=settings, device="cpu", report=lambda *done: seen.append(done)
    )
    assert seen == [(1, 2), (2, 2)]
    assert json.loads((tmp_path / "obedience.json").read_text()) == document
    assert (tmp_path / "obedience.md").read_text() == to_report(document)
    with Image.open(tmp_path / "obedience.png") as sheet:
        assert min(sheet.size) > 200
    assert {row["tissue"] for row in document["dice"]} == {tissue.name for tissue in segmenter.tissues}

    def refuse(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(Pipeline, "load", refuse)
    again = measure_obedience(bundle, segmenter, tmp_path, settings=settings, device="cpu")
    assert again == document
    with pytest.raises(AssertionError, match="measured again"):
        measure_obedience(bundle, segmenter, tmp_path, settings=ObedienceSettings(2, 3, 1), device="cpu")


def test_segmenter_of_another_spacing_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    other = GridSpec(shape=(64, 48, 48), spacing_mm=(3.2, 3.2, 3.2))
    config = SegmenterConfig(grid=other, slots={}, widths=(4, 8, 8), patch_shape=(16, 16, 16))
    save_segmenter(tmp_path, build_network(config).state_dict(), config, num_steps=0)
    with pytest.raises(BundleError, match="mm differs from the segmenter's,"):
        measure_obedience(bundle, load_segmenter(tmp_path), tmp_path)


def test_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--bundle", "nonsense", "--out", str(tmp_path)]) == 1
    assert "Bundle 'nonsense'" in capsys.readouterr().err
