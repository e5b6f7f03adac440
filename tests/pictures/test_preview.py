from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from maisi_aug.pictures.preview import (
    MARGIN_PX,
    MAX_CASES,
    TEXT_KEY,
    TITLE_LINE_PX,
    Caption,
    build_contact_sheet,
    build_preview,
    choose_evenly,
    choose_window,
    find_focus,
    save_contact_sheet,
    save_picture,
)
from maisi_aug.pictures.slices import BONE, LUNG, SOFT_TISSUE, label_colours
from maisi_aug.vocabulary.labels import BODY_ID
from maisi_aug.volumes.grid import Grid

SHAPE = (40, 36, 24)
GRID = Grid.from_spacing(SHAPE, (3.0, 3.0, 4.0))
NAMES = {1: "liver", 26: "hepatic tumor", BODY_ID: "body"}


@pytest.fixture
def label_map() -> NDArray[np.uint8]:
    """A body with a liver that holds a large and a small lesion."""
    label_map = np.zeros(SHAPE, dtype=np.uint8)
    label_map[4:36, 4:32] = BODY_ID
    label_map[20:34, 8:28, 8:20] = 1
    label_map[24:28, 12:18, 10:14] = 26
    label_map[31:33, 24:26, 16:18] = 26
    return label_map


@pytest.fixture
def image_hu(label_map: NDArray[np.uint8]) -> NDArray[np.int16]:
    """An image in which every label has its own HU."""
    table = np.full(256, -1000, dtype=np.int16)
    table[[1, 26, BODY_ID]] = 100, 50, -80
    image: NDArray[np.int16] = table[label_map]
    return image


def draw(image_hu: NDArray[np.int16], label_map: NDArray[np.uint8], title: str = "case_0001") -> Image.Image:
    return build_preview(image_hu, label_map, GRID, Caption(title, ("one",)), lesion_ids=(26,), names=NAMES)


def test_focus_is_the_largest_lesion(label_map: NDArray[np.uint8]) -> None:
    focus = find_focus(label_map, (26,), ())
    assert focus.sum() == 4 * 6 * 4
    assert focus[25, 14, 12]


def test_focus_falls_back_to_the_organs_and_then_to_the_body(label_map: NDArray[np.uint8]) -> None:
    assert (find_focus(label_map, (23,), (1,)) == (label_map == 1)).all()
    assert (find_focus(label_map, (), (3,)) == (label_map > 0)).all()
    assert find_focus(np.zeros_like(label_map), (), ()).all()


@pytest.mark.parametrize(("host", "window"), [(29, LUNG), (33, BONE), (93, BONE), (1, SOFT_TISSUE), (4, SOFT_TISSUE)])
def test_window_follows_the_tissue_around_the_lesion(label_map: NDArray[np.uint8], host: int, window: object) -> None:
    label_map[label_map == 1] = host
    assert choose_window(label_map, find_focus(label_map, (26,), ())) is window


def test_preview_is_deterministic_and_leaves_its_input_alone(
    tmp_path: Path, image_hu: NDArray[np.int16], label_map: NDArray[np.uint8]
) -> None:
    before = image_hu.copy(), label_map.copy()
    for name in ("a.png", "b.png"):
        save_picture(tmp_path / name, draw(image_hu, label_map))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (image_hu == before[0]).all()
    assert (label_map == before[1]).all()


def test_preview_tells_where_its_axial_panels_are(
    tmp_path: Path, image_hu: NDArray[np.int16], label_map: NDArray[np.uint8]
) -> None:
    save_picture(tmp_path / "a.png", draw(image_hu, label_map))
    with Image.open(tmp_path / "a.png") as preview:
        words = json.loads(preview.info[TEXT_KEY])
        plain, outlined = (np.asarray(preview.crop(tuple(box))).astype(int) for box in words["boxes"])
    assert (words["title"], words["line"]) == ("case_0001", "one")
    height, width = plain.shape[:2]
    assert width / height == pytest.approx(40 * 3 / (36 * 3), rel=0.01)
    assert (plain[..., 0] == plain[..., 1])[30 : height - 30, 30 : width - 30].all()  # grey without outlines
    assert (plain != outlined).any(axis=2)[30 : height - 30, 30 : width - 30].any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 9, 11), (3, 40, 2)])
def test_odd_shapes_can_be_drawn(shape: tuple[int, int, int]) -> None:
    label_map = np.full(shape, 26, dtype=np.uint8)
    grid = Grid.from_spacing(shape, (0.7, 0.8, 2.5))
    build_preview(np.zeros(shape, dtype=np.int16), label_map, grid, Caption("x"), lesion_ids=(26,), names=NAMES)


def test_case_without_lesion_or_body_can_be_drawn() -> None:
    empty = np.zeros(SHAPE, dtype=np.uint8)
    build_preview(np.zeros(SHAPE, dtype=np.int16), empty, GRID, Caption("x"), lesion_ids=(), names={})


def test_contact_sheet_shows_every_case_of_a_small_cohort(
    tmp_path: Path, image_hu: NDArray[np.int16], label_map: NDArray[np.uint8]
) -> None:
    paths = []
    for number in range(5):
        paths.append(tmp_path / f"{number}.png")
        save_picture(paths[-1], draw(image_hu, label_map, title=f"case_{number}"))
    one, five = build_contact_sheet(paths[:1], "one case"), build_contact_sheet(paths, "five cases")
    assert five.width > 3.5 * one.width
    assert five.height > 1.5 * one.height
    long = build_contact_sheet(paths[:1], "1 of 1 case: hepatic tumor, kidney tumor; bundle phantom-ct")
    assert (long.width, long.height) == (one.width, one.height + TITLE_LINE_PX)  # in two lines instead of cut off
    written = np.asarray(long)[MARGIN_PX + TITLE_LINE_PX : MARGIN_PX + TITLE_LINE_PX + 18]
    assert (written > 200).any()
    save_contact_sheet(tmp_path / "sheet_a.png", paths, "a title " * 90)
    save_contact_sheet(tmp_path / "sheet_b.png", paths, "a title " * 90)
    assert (tmp_path / "sheet_a.png").read_bytes() == (tmp_path / "sheet_b.png").read_bytes()


def test_large_cohort_is_shown_by_evenly_chosen_cases() -> None:
    chosen = choose_evenly(1000, MAX_CASES)
    assert len(set(chosen)) == MAX_CASES
    assert (chosen[0], chosen[-1]) == (0, 999)
    assert max(np.diff(chosen)) - min(np.diff(chosen)) <= 1
    assert choose_evenly(3, MAX_CASES) == [0, 1, 2]


@pytest.mark.parametrize(("outlined_ids", "shown_ids"), [(None, {1, 26, BODY_ID}), ((1, 26), {1, 26}), ((), {26})])
def test_outlines_can_be_kept_to_some_labels(
    image_hu: NDArray[np.int16],
    label_map: NDArray[np.uint8],
    outlined_ids: tuple[int, ...] | None,
    shown_ids: set[int],
) -> None:
    picture = build_preview(
        image_hu, label_map, GRID, Caption("a"), lesion_ids=(26,), outlined_ids=outlined_ids, names=NAMES
    )
    pixels = {tuple(pixel) for pixel in np.asarray(picture).reshape(-1, 3).tolist()}
    colours = label_colours(np.unique(label_map), (26,))
    assert {label_id for label_id, colour in colours.items() if colour in pixels} == shown_ids
