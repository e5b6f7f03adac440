"""Lesions drawn into real cases while nnU-Net reads them, in files of its own class."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maisi_aug.errors import ExportError, RequestError, TrainingError
from maisi_aug.integrations.insertion import WholeCt
from maisi_aug.integrations.nnunet.inserting import (
    CtScaling,
    InsertingDataset,
    InsertSettings,
    PatchedArray,
    parse_insertion,
)
from tests.insertion.chest import SPACING_MM, build_chest

LABELS = {"background": 0, "vessel": 1, "nodule": 2}
SETTINGS = InsertSettings("lung nodule:10-14mm", 2, 1.0)
PLANS = {
    "foreground_intensity_properties_per_channel": {
        "0": {"mean": -500.0, "std": 300.0, "percentile_00_5": -1000.0, "percentile_99_5": 400.0}
    }
}
SCALING = CtScaling.of(PLANS, ["CTNormalization"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A real and a synthetic case as nnU-Net leaves them after preprocessing: Z, Y, X and scaled."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    for number, name in enumerate(("real", "synthetic")):
        image = SCALING.from_hu(build_chest(seed=number)).T[None]
        label_map = np.zeros(image.shape, dtype=np.int8)
        label_map[0, 1, 2, 3] = 1
        facts = {"class_locations": {1: np.array([[0, 1, 2, 3]]), 2: np.empty((0, 4), dtype=int)}}
        sides = {"chunks": image.shape, "blocks": image.shape}
        nnUNetDatasetBlosc2.save_case(np.ascontiguousarray(image), label_map, facts, str(tmp_path / name), **sides)
    return tmp_path


def wrap(folder: Path, settings: InsertSettings = SETTINGS) -> InsertingDataset:
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    dataset = nnUNetDatasetBlosc2(str(folder))
    return InsertingDataset(dataset, settings, SCALING, spacing_mm=SPACING_MM[::-1], left_alone=["synthetic"])


def test_lesion_is_in_image_labels_and_facts_and_nothing_else_changes(folder: Path) -> None:
    np.random.seed(1)  # noqa: NPY002  the stream that nnU-Net draws from
    dataset = wrap(folder)
    plain, plain_labels, _, _ = dataset._dataset.load_case("real")
    image, label_map, earlier, facts = dataset.load_case("real")
    assert earlier is None
    lesion = label_map[:] == 2
    volume_mm3 = float(lesion.sum() * np.prod(SPACING_MM))
    assert 10 * 0.95 <= (6 * volume_mm3 / np.pi) ** (1 / 3) <= 14 * 1.05
    assert image.shape == plain.shape == label_map.shape
    changed = image[:] != plain[:]
    assert (changed & lesion).any()
    assert changed.mean() < 0.2
    np.testing.assert_array_equal(label_map[:][~lesion], plain_labels[:][~lesion])
    np.testing.assert_array_equal(image[:, 3:9, 2:20, 5:], image[:][:, 3:9, 2:20, 5:])
    places = facts["class_locations"][2]
    assert len(places) == lesion.sum()
    assert lesion[tuple(places.T)].all()
    assert SCALING.to_hu(image[:][lesion]).mean() > SCALING.to_hu(plain[:][lesion]).mean() + 100


def test_cases_are_read_whole_for_new_lesions_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.random.seed(2)  # noqa: NPY002
    dataset, num_read = wrap(folder), 0
    load = dataset._load_whole

    def count(*arrays: Any) -> WholeCt:
        nonlocal num_read
        num_read += 1
        return load(*arrays)

    monkeypatch.setattr(dataset, "_load_whole", count)
    for _ in range(12):
        image, *_ = dataset.load_case("real")
        assert isinstance(image, PatchedArray)
    assert num_read == 1 + dataset._pool.per_ct  # its lungs, then the lesions that are shown several times


def test_share_and_synthetic_cases(folder: Path) -> None:
    np.random.seed(3)  # noqa: NPY002
    dataset = wrap(folder, InsertSettings("lung nodule:10mm", 2, 0.5))
    assert not any(isinstance(dataset.load_case("synthetic")[0], PatchedArray) for _ in range(4))
    drawn = [isinstance(dataset["real"][0], PatchedArray) for _ in range(60)]
    assert 0.3 < np.mean(drawn) < 0.7


def test_loader_lays_patches_around_the_lesion(folder: Path) -> None:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    from maisi_aug.integrations.nnunet.sampling import SyntheticShareLoader

    np.random.seed(4)  # noqa: NPY002
    dataset = wrap(folder)
    loader = SyntheticShareLoader(
        *(pickle.loads(pickle.dumps(dataset)), 2, (8, 16, 16), (8, 16, 16), LabelManager(LABELS, None)),
        oversample_foreground_percent=1.0,
        synthetic_cases=frozenset(["synthetic"]),
        share=multiprocessing.Value("d", 0.0),
        lowest_share=0.0,
    )
    targets = [next(loader)["target"] for _ in range(8)]
    assert sum(bool((target == 2).any()) for target in targets) >= 4


def test_patched_array_shows_its_box_and_reads_the_rest() -> None:
    rng = np.random.default_rng(5)
    array, shown = rng.normal(size=(1, 7, 9, 11)), rng.normal(size=(1, 3, 4, 5))
    where = rng.random(shown.shape) < 0.6
    box = (slice(0, 1), slice(2, 5), slice(4, 8), slice(6, 11))
    expected = array.copy()
    expected[box][where] = shown[where]
    patched = PatchedArray(array, box, shown, where)
    for place in (np.s_[:], np.s_[:, 1:4, 5:9, 2:8], np.s_[0:1, 0:2], np.s_[:, :, :4], np.s_[:, 4:, 7:, 10:]):
        np.testing.assert_array_equal(patched[place], expected[place])
    assert patched.shape == array.shape


def test_scaling_is_undone() -> None:
    image_hu = np.array([-900.0, 0.0, 300.0])
    np.testing.assert_allclose(SCALING.to_hu(SCALING.from_hu(image_hu)), image_hu, atol=1e-3)
    assert SCALING.to_hu(SCALING.from_hu(np.array([900.0])))[0] == pytest.approx(400)
    with pytest.raises(TrainingError, match="Plans: lesions can only be inserted under CTNormalization, found ZScore"):
        CtScaling.of(PLANS, ["ZScoreNormalization"])


def test_settings_are_read_from_the_dataset() -> None:
    assert InsertSettings.of({"maisi_aug": {"synthetic_cases": ["a"]}}) is None
    assert InsertSettings.of({"maisi_aug": {"insert": SETTINGS.to_dict()}}) == SETTINGS
    with pytest.raises(TrainingError, match="dataset.json: 'maisi_aug/insert'"):
        InsertSettings.of({"maisi_aug": {"insert": {"lesion": "lung nodule:6mm"}}})


def test_request_names_label_lesion_and_share() -> None:
    assert parse_insertion("nodule=lung nodule:6-20mm", LABELS) == InsertSettings("lung nodule:6-20mm", 2, 0.5)
    assert parse_insertion("nodule = lung nodule:6mm @ 0.25", LABELS).share == 0.25


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("lung nodule:6mm", ExportError, r"expected LABEL=LESION:SIZE .*\(vessel, nodule\), found 'lung nodule:6mm'"),
        ("tumor=lung nodule:6mm", ExportError, "found 'tumor'"),
        ("background=lung nodule:6mm", ExportError, "found 'background'"),
        ("nodule=lung nodule:6mm@0", ExportError, "expected a share above 0 and up to 1, found '0'"),
        ("nodule=lung nodule:6mm@half", ExportError, "found 'half'"),
        ("nodule=lung nodule:8mmx2", RequestError, "expected one lesion with a size"),
        (
            "nodule=hepatic tumor:10mm",
            RequestError,
            "needs host_numbers, the numbers of its host organs in the label maps",
        ),
    ],
)
def test_other_requests_are_refused(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_insertion(text, LABELS)
