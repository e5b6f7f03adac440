"""Lesions in the cases of a training, while they are loaded."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, RandFlipd

from maisi_aug.errors import RequestError
from maisi_aug.insertion.painting import PaintTask, ProceduralPainter
from maisi_aug.integrations.insertion import LesionPool
from maisi_aug.integrations.monai import InsertLesiond
from maisi_aug.integrations.torchio import InsertLesion
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.orientation import turn_volume
from tests.insertion.chest import SHAPE, SPACING_MM, build_chest

GRID = Grid.from_spacing(SHAPE, SPACING_MM)
NODULE = "lung nodule:8-12mm"


class CountingPainter(ProceduralPainter):
    """The procedural painter, and how often it was asked."""

    num_drawn = 0

    def paint(self, task: PaintTask) -> np.ndarray:
        type(self).num_drawn += 1
        return super().paint(task)


@pytest.fixture(scope="module")
def chest() -> np.ndarray:
    return build_chest().astype(np.float32)


def insert(pool: LesionPool, chest: np.ndarray, *, seed: int, name: str = "p0") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return pool.insert(chest, np.zeros(SHAPE, np.uint8), GRID.affine, name=name, rng=rng)


def test_pool_shows_what_it_has_drawn_and_then_draws_anew(chest: np.ndarray) -> None:
    CountingPainter.num_drawn = 0
    pool = LesionPool(NODULE, number=3, reuse=3, per_ct=1, painter=CountingPainter(), texture="solid", place="free")
    before = chest.copy()
    made = [insert(pool, chest, seed=seed) for seed in range(6)]
    np.testing.assert_array_equal(chest, before)
    masks = [label == 3 for _, label in made]
    assert all(mask.any() for mask in masks)
    assert all((masks[n] == masks[0]).all() for n in (1, 2))
    assert (masks[3] != masks[0]).any()
    assert CountingPainter.num_drawn <= 2 * 4
    image, label = made[0]
    assert np.median(image[label == 3]) > -550
    away = np.abs(image - chest) > 0
    assert 0 < away.sum() < 0.02 * chest.size


def test_what_is_drawn_follows_from_the_generator(chest: np.ndarray) -> None:
    first, again, other = (insert(LesionPool(NODULE), chest, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[1] != other[1]).any()


def test_axes_may_run_any_way(chest: np.ndarray) -> None:
    turned, grid = turn_volume(chest, GRID, "LPS")
    plain = insert(LesionPool(NODULE), chest, seed=1)
    rng = np.random.default_rng(1)
    made = LesionPool(NODULE).insert(
        np.ascontiguousarray(turned), np.zeros(SHAPE, np.uint8), grid.affine, name="p0", rng=rng
    )
    for array, expected in zip(made, plain, strict=True):
        np.testing.assert_array_equal(turn_volume(array, grid, "RAS")[0], expected)


def test_ct_without_lungs_stays_as_it_is_and_says_so_once() -> None:
    pool, image = LesionPool(NODULE), build_chest(with_lungs=False).astype(np.float32)
    with pytest.warns(UserWarning, match="p0: no lesion is inserted. Lungs: the CT has no region"):
        made = insert(pool, image, seed=1)
    np.testing.assert_array_equal(made[0], image)
    insert(pool, image, seed=2)  # a second warning would be an error here


def test_lesion_keeps_to_organs_of_the_label_map(chest: np.ndarray) -> None:
    organ = np.zeros(SHAPE, np.uint8)
    organ[50:70, 20:60, 8:22] = 2
    image = np.where(organ, 60 + np.random.default_rng(0).normal(0, 10, SHAPE), chest).astype(np.float32)
    pool = LesionPool("hepatic tumor:10-14mm", number=1, host_numbers=(2,))
    _, label = pool.insert(image, organ, GRID.affine, name="p0", rng=np.random.default_rng(0))
    assert (organ[label == 1] == 2).all()
    assert (label == 1).any()


@pytest.mark.parametrize(
    ("lesion", "message"),
    [
        ("liver", "expected one lesion with a size"),
        ("lung nodule:8mmx2", "expected one lesion with a size"),
        ("hepatic tumor:8mm", "needs host_numbers, the numbers of its host organs in the label maps"),
    ],
)
def test_what_cannot_be_drawn_is_refused(lesion: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        LesionPool(lesion)


def build_item(chest: np.ndarray) -> dict[Hashable, Any]:
    affine = torch.from_numpy(GRID.affine.copy())
    image = MetaTensor(torch.from_numpy(chest[None].copy()), affine=affine, meta={"filename_or_obj": "p0.nii.gz"})
    return {"image": image, "label": MetaTensor(torch.zeros((1, *SHAPE), dtype=torch.uint8), affine=affine)}


def test_monai_transform_goes_into_a_compose(chest: np.ndarray) -> None:
    item = build_item(chest)
    load = Compose([InsertLesiond(NODULE, number=1, probability=1.0), RandFlipd(("image", "label"), prob=0.0)])
    load.set_random_state(4)
    made = load(item)
    load.set_random_state(4)
    again = load(item)
    assert made["label"].sum() > 4
    assert made["image"].dtype == item["image"].dtype
    assert made["image"].meta["filename_or_obj"] == "p0.nii.gz"
    assert torch.equal(made["label"], again["label"]) or again["label"].sum() > 4
    assert float(item["label"].sum()) == 0
    changed = (made["image"] != item["image"])[0]
    assert bool(changed[made["label"][0] > 0].float().mean() > 0.9)


def test_monai_transform_with_probability_zero_does_nothing(chest: np.ndarray) -> None:
    item = build_item(chest)
    assert InsertLesiond(NODULE, probability=0.0)(item)["image"] is item["image"]


def test_torchio_subject_gets_a_lesion(chest: np.ndarray) -> None:
    torchio = pytest.importorskip("torchio")
    affine = GRID.affine
    subject = torchio.Subject(
        image=torchio.ScalarImage(tensor=torch.from_numpy(chest[None].copy()), affine=affine),
        label=torchio.LabelMap(tensor=torch.zeros((1, *SHAPE), dtype=torch.uint8), affine=affine),
        case_id="p0",
    )
    transform = torchio.Compose([InsertLesion(NODULE, probability=1.0, seed=1)])
    made = transform(subject)
    assert float(made["label"].data.sum()) > 4
    assert float(subject["label"].data.sum()) == 0
