from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from maisi_aug.pictures.slices import (
    BODY_CONTOUR,
    LESION_COLOURS,
    SOFT_TISSUE,
    Plane,
    PlaneName,
    Window,
    annotate,
    draw_contours,
    draw_slice,
    label_colours,
)
from maisi_aug.vocabulary.labels import BODY_ID
from maisi_aug.volumes.grid import Grid

SHAPE = (7, 9, 11)
GRID = Grid.from_spacing(SHAPE, (0.7, 0.8, 2.5))


def mark_voxel(voxel: tuple[int, int, int]) -> NDArray[np.int16]:
    image = np.full(SHAPE, -1000, dtype=np.int16)
    image[voxel] = 1000
    return image


@pytest.mark.parametrize(
    ("name", "voxel", "row", "column"),
    [
        # the patient's right (high I) is on the left, anterior (high J) is up
        ("axial", (6, 8, 4), 0, 0),
        ("axial", (0, 8, 4), 0, 6),
        ("axial", (6, 0, 4), 8, 0),
        # the patient's right is on the left, the head (high K) is up
        ("coronal", (6, 3, 10), 0, 0),
        ("coronal", (0, 3, 10), 0, 6),
        ("coronal", (6, 3, 0), 10, 0),
        # anterior is on the left, the head is up
        ("sagittal", (2, 8, 10), 0, 0),
        ("sagittal", (2, 0, 10), 0, 8),
        ("sagittal", (2, 8, 0), 10, 0),
    ],
)
def test_slices_are_shown_in_radiological_orientation(
    name: PlaneName, voxel: tuple[int, int, int], row: int, column: int
) -> None:
    axis = {"sagittal": 0, "coronal": 1, "axial": 2}[name]
    plane = Plane(name, voxel[axis])
    shown = plane.cut(mark_voxel(voxel))
    assert shown[row, column] == 1000
    assert (shown == 1000).sum() == 1
    x, y = plane.locate(voxel, GRID)
    assert (int(y * shown.shape[0]), int(x * shown.shape[1])) == (row, column)


def test_side_marks_follow_the_orientation() -> None:
    assert Plane("axial", 0).side_marks == Plane("coronal", 0).side_marks == ("R", "L")
    assert Plane("sagittal", 0).side_marks == ("A", "P")


def test_pictures_have_the_true_proportions() -> None:
    assert Plane("axial", 0).size_px(GRID, 10) == (49, 72)
    assert Plane("coronal", 0).size_px(GRID, 10) == (49, 275)
    assert Plane("sagittal", 0).size_px(GRID, 10) == (72, 275)


def test_window_maps_its_ends_to_black_and_white() -> None:
    window = Window("any", 0.0, 200.0)
    for value, grey in ((-2000, 0), (-100, 0), (0, 127), (100, 255), (3000, 255)):
        picture = draw_slice(np.full(SHAPE, value, dtype=np.int16), Plane("axial", 5), (14, 18), window)
        assert set(np.asarray(picture).ravel().tolist()) == {grey}


def test_contours_lie_on_the_border_of_the_label_and_nowhere_else() -> None:
    label_map = np.zeros((20, 20, 3), dtype=np.uint8)
    label_map[5:15, 5:15, 1] = 26
    grid = Grid.from_spacing((20, 20, 3), (1.0, 1.0, 1.0))
    plane = Plane("axial", 1)
    plain = draw_slice(np.zeros((20, 20, 3), dtype=np.int16), plane, plane.size_px(grid, 10), SOFT_TISSUE)
    before = label_map.copy(), plain.tobytes()
    outlined = draw_contours(plain, label_map, plane, {26: LESION_COLOURS[0]}, frozenset({26}))
    changed = (np.asarray(plain) != np.asarray(outlined)).any(axis=2)
    distance = np.abs(np.stack(np.meshgrid(np.arange(200), np.arange(200), indexing="ij")) - 99.5).max(axis=0)
    assert changed[(distance > 49) & (distance < 50)].mean() > 0.9
    assert not changed[distance > 54].any()
    assert not changed[distance < 45].any()
    assert (label_map == before[0]).all()
    assert plain.tobytes() == before[1]


def test_labels_without_a_colour_are_not_outlined() -> None:
    label_map = np.zeros(SHAPE, dtype=np.uint8)
    label_map[2:5, 2:5] = 3
    plain = draw_slice(np.zeros(SHAPE, dtype=np.int16), Plane("axial", 5), (70, 90), SOFT_TISSUE)
    assert draw_contours(plain, label_map, Plane("axial", 5), {}, frozenset()).tobytes() == plain.tobytes()


def test_colours_are_vivid_for_lesions_and_stay_the_same_for_organs() -> None:
    colours = label_colours(np.array([0, 1, 3, 26, BODY_ID]), (26,))
    assert set(colours) == {1, 3, 26, BODY_ID}
    assert colours[26] == LESION_COLOURS[0]
    assert colours[BODY_ID] == BODY_CONTOUR
    assert label_colours(np.array([1]), ())[1] == colours[1]
    every = label_colours(np.arange(1, 133), ())
    assert len(set(every.values())) == 132
    # What is often shown together: oesophagus and spinal cord, organs of the belly, bones of the hip.
    for together in ((11, 121), (1, 3, 4, 5, 14, 10, 12, 13, 62, 6, 7, 15), (93, 94, 95, 96)):
        pairs = [(a, b) for a in together for b in together if a < b]
        assert min(np.abs(np.subtract(every[a], every[b])).max() for a, b in pairs) > 10


def test_annotation_leaves_the_middle_of_the_picture_alone() -> None:
    plane = Plane("axial", 5)
    plain = draw_slice(np.zeros(SHAPE, dtype=np.int16), plane, (300, 300), SOFT_TISSUE)
    marked = plain.copy()
    annotate(marked, plane, 1.0, centre=(0.5, 0.5))
    changed = (np.asarray(plain) != np.asarray(marked)).any(axis=2)
    assert changed.any()
    assert not changed[30:270, 30:270].any()
