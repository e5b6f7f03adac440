from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.errors import BankError
from maisi_aug.evaluation.studies.real_maps import (
    REPORT_NAME,
    ImageFigures,
    RealMapSettings,
    choose_labels,
    find_phantoms,
    measure_image,
    measure_noise,
    measure_real_maps,
    to_document,
)
from maisi_aug.evaluation.studies.train_segmenter import held_out_seed
from maisi_aug.phantom import build_label_map, ids
from maisi_aug.phantom.intensity import draw_phase
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_label_map

GRID = Grid.from_spacing((40, 36, 20), (5.0, 6.0, 7.0))


def figures(**changes: object) -> ImageFigures:
    known: dict[str, object] = {
        "name": "map 1, all labels",
        "organs_hu": {"liver": 100.0, "spleen": 110.0},
        "labelled": ("liver", "spleen"),
        "fat_hu": -100.0,
        "muscle_hu": 55.0,
        "between": 0.1,
        "liver_noise_hu": 10.0,
    }
    return ImageFigures(**{**known, **changes})  # type: ignore[arg-type]


def test_figures_of_an_image_are_medians_of_its_parts() -> None:
    label_map = np.zeros(GRID.shape, dtype=np.uint8)
    label_map[4:36, 4:32] = ids.BODY
    label_map[8:20, 8:20, 4:16] = ids.LIVER
    shown = np.where(label_map == ids.LIVER, ids.BODY, label_map).astype(np.uint8)
    image = np.full(GRID.shape, -1000, dtype=np.int16)
    image[label_map == ids.BODY] = -105
    image[22:34, 6:30][label_map[22:34, 6:30] == ids.BODY] = 60
    image[22:24, 6:30][label_map[22:24, 6:30] == ids.BODY] = -20
    image[label_map == ids.LIVER] = 90
    found = measure_image("one", image, label_map, shown, GRID)
    assert (found.organs_hu, found.labelled) == ({"liver": 90.0}, ())
    assert (found.fat_hu, found.muscle_hu) == (-105.0, 60.0)
    assert 0.02 < found.between < 0.15
    assert found.liver_noise_hu == pytest.approx(0.0, abs=1e-3)
    assert measure_image("one", image, label_map, label_map, GRID).labelled == ("liver",)


def test_noise_is_measured_without_what_changes_slowly() -> None:
    organ = np.zeros(GRID.shape, dtype=bool)
    organ[3:-3, 3:-3, 3:-3] = True
    slope = 3 * np.arange(GRID.shape[0])[:, None, None]
    noise = np.random.default_rng(1).normal(0, 9, GRID.shape)
    measured = measure_noise((50 + slope + noise).astype(np.int16), organ, GRID)
    assert measured == pytest.approx(9, rel=0.1)
    assert measure_noise(np.zeros(GRID.shape, dtype=np.int16), np.zeros(GRID.shape, dtype=bool), GRID) is None


def test_first_turn_shows_all_labels_and_others_fewer() -> None:
    label_map = build_label_map(seed=3, grid=GRID, region="abdomen").label_map
    name, shown = choose_labels(label_map, 1, 0, 0)
    assert name == "all labels"
    assert shown is label_map
    for turn in range(1, 7):
        reduced = choose_labels(label_map, 1, 0, turn)[1]
        np.testing.assert_array_equal(reduced, choose_labels(label_map, 1, 0, turn)[1])
        assert len(np.unique(reduced)) < len(np.unique(label_map))


def test_phantoms_are_those_that_were_scanned_as_requested() -> None:
    plain = find_phantoms(RealMapSettings(num_phantoms=3, modality="ct_wo_contrast"))
    enhanced = find_phantoms(RealMapSettings(num_phantoms=3, modality="ct_contrast"))
    assert len(plain) == len(enhanced) == 3
    assert not set(plain) & set(enhanced)
    assert find_phantoms(RealMapSettings(num_phantoms=3, modality="ct")) == [0, 1, 2]
    settings = RealMapSettings(num_phantoms=3, modality="ct_contrast")
    arterial = find_phantoms(settings, "arterial")
    assert {draw_phase(held_out_seed(settings.seed, index)) for index in arterial} == {"arterial"}


def test_criteria_count_what_lies_within_their_bounds(bundle: Bundle) -> None:
    images = [
        figures(),
        figures(organs_hu={"liver": 130.0, "spleen": 111.0}, labelled=("spleen",), fat_hu=-60.0, liver_noise_hu=13.0),
        figures(muscle_hu=None, labelled=("liver",), organs_hu={"liver": 80.0}),
    ]
    document = to_document(bundle, RealMapSettings(), images, [(figures(), figures())], [(300.0, 90.0), (400.0, 110.0)])
    assert [(row["found"], row["num"]) for row in document["criteria"]] == [
        (pytest.approx(3 / 4), 4),
        (pytest.approx(2 / 3), 3),
        (1.0, 2),
        (pytest.approx(2 / 3), 3),
        (0.0, 1),
    ]


def test_maps_subsets_phantoms_and_views_are_drawn(bundle: Bundle, tmp_path: Path) -> None:
    grid = Grid.from_spacing((48, 40, 24), (6.4, 6.4, 6.4))
    save_label_map(tmp_path / "maps" / "a.nii.gz", build_label_map(seed=3, grid=grid, region="abdomen").label_map, grid)
    settings = RealMapSettings(num_subsets=2, num_phantoms=1, widths_mm=(320.0, 400.0))
    reported: list[tuple[int, int]] = []
    document = measure_real_maps(
        bundle,
        tmp_path / "maps",
        tmp_path / "out",
        settings=settings,
        mapping="maisi",
        device="cpu",
        report=lambda done, total: reported.append((done, total)),
    )
    assert [image["name"].partition(",")[0] for image in document["images"]] == ["map 1"] * 3
    assert len(document["phantoms"]) == 1
    assert [view["width_mm"] for view in document["fields_of_view"]] == pytest.approx([307.2, 409.6])
    assert reported[-1] == (6, 6)
    assert json.loads((tmp_path / "out" / f"{REPORT_NAME}.json").read_text()) == json.loads(json.dumps(document))
    assert "Held-out phantoms" in (tmp_path / "out" / f"{REPORT_NAME}.md").read_text()
    assert (tmp_path / "out" / f"{REPORT_NAME}.png").is_file()


def test_folder_without_maps_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BankError, match="no label maps found"):
        measure_real_maps(bundle, tmp_path, tmp_path / "out", device="cpu")
