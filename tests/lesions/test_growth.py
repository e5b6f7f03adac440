"""One lesion: exact size, connected, inside its host, irregular, reproducible."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import LesionError
from maisi_aug.lesions import growth
from maisi_aug.lesions.growth import draw_part, grow_roundest, require_num_voxels
from maisi_aug.volumes.components import TOUCHING, bounding_box, flood, label_parts

Mask = NDArray[np.bool_]
ISOTROPIC = (3.2, 3.2, 3.2)
ANISOTROPIC = (0.7, 0.8, 2.5)
DIAMETERS_MM = (8.0, 12.0, 20.0, 30.0, 50.0)


def draw_ellipsoid(shape: tuple[int, int, int], spacing_mm: tuple[float, ...], radii_mm: tuple[float, ...]) -> Mask:
    centred = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing_mm, strict=True)]
    i, j, k = np.ix_(*centred)
    return np.asarray((i / radii_mm[0]) ** 2 + (j / radii_mm[1]) ** 2 + (k / radii_mm[2]) ** 2 <= 1.0)


def sphere_ml(diameter_mm: float) -> float:
    return float(np.pi / 6.0 * diameter_mm**3 / 1000.0)


def is_connected(mask: Mask) -> bool:
    return bool(ndimage.label(mask, TOUCHING)[1] == 1)


def grow_lesion(
    host: Mask,
    *,
    volume_ml: float,
    spacing_mm: tuple[float, ...],
    rng: np.random.Generator,
    room: Mask | None = None,
) -> Mask:
    """A lesion in the frame of its host, as planting grows it: inside the host, or anywhere in a room around it."""
    num_voxels = require_num_voxels(volume_ml, spacing_mm)
    part = draw_part(host, host if room is None else room, num_voxels, spacing_mm, rng)
    assert part is not None
    lesion = np.zeros(host.shape, dtype=bool)
    lesion[part[0]] = grow_roundest(part[1], part[2], num_voxels, spacing_mm, rng)[0]
    return lesion


LIVER_LIKE = draw_ellipsoid((52, 44, 40), ISOTROPIC, (76.0, 62.0, 58.0))
FLAT = draw_ellipsoid((90, 70, 22), ANISOTROPIC, (30.0, 26.0, 25.0))


@pytest.mark.parametrize("diameter_mm", DIAMETERS_MM)
@pytest.mark.parametrize("seed", range(4))
def test_lesion_has_exact_voxel_count_and_stays_connected_inside_host(diameter_mm: float, seed: int) -> None:
    host = LIVER_LIKE.copy()
    volume_ml = sphere_ml(diameter_mm)
    lesion = grow_lesion(host, volume_ml=volume_ml, spacing_mm=ISOTROPIC, rng=np.random.default_rng(seed))
    assert lesion.shape == host.shape
    assert lesion.dtype == bool
    assert lesion.sum() == round(volume_ml / (3.2**3 / 1000))
    assert not (lesion & ~host).any()
    assert is_connected(lesion)
    np.testing.assert_array_equal(host, LIVER_LIKE)


@pytest.mark.parametrize("diameter_mm", [3.0, 8.0, 14.0, 25.0])
def test_lesion_is_as_long_in_millimetres_on_every_axis_of_an_anisotropic_grid(diameter_mm: float) -> None:
    volume_ml = sphere_ml(diameter_mm)
    extents_mm = []
    for seed in range(8):
        lesion = grow_lesion(FLAT, volume_ml=volume_ml, spacing_mm=ANISOTROPIC, rng=np.random.default_rng(seed))
        assert lesion.sum() == round(volume_ml / (0.7 * 0.8 * 2.5 / 1000))
        assert not (lesion & ~FLAT).any()
        assert is_connected(lesion)
        box = bounding_box(lesion)
        extents_mm.append([(part.stop - part.start) * step for part, step in zip(box, ANISOTROPIC, strict=True)])
    mean_mm = np.mean(extents_mm, axis=0)
    assert mean_mm.min() > 0.75 * diameter_mm
    assert mean_mm.max() < 1.6 * diameter_mm + 2.5


def test_lesion_depends_on_its_seed_alone() -> None:
    def grow(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        return grow_lesion(LIVER_LIKE, volume_ml=4.0, spacing_mm=ISOTROPIC, rng=rng).tobytes()

    assert grow(3) == grow(3)
    assert grow(3) != grow(4)


def test_lesion_is_irregular(monkeypatch: pytest.MonkeyPatch) -> None:
    def overlap_with_ball() -> float:
        shares = []
        for seed in range(5):
            rng = np.random.default_rng(seed)
            lesion = grow_lesion(LIVER_LIKE, volume_ml=14.0, spacing_mm=ISOTROPIC, rng=rng)
            centre = np.argwhere(lesion).mean(axis=0)
            squared = ((np.argwhere(LIVER_LIKE) - centre) ** 2).sum(axis=1)
            ball = np.zeros_like(lesion)
            ball[tuple(np.argwhere(LIVER_LIKE)[np.argsort(squared)[: lesion.sum()]].T)] = True
            shares.append((ball & lesion).sum() / lesion.sum())
        return float(np.mean(shares))

    assert 0.6 < overlap_with_ball() < 0.9
    monkeypatch.setattr(growth, "IRREGULARITY", 0.0)
    assert overlap_with_ball() > 0.93


@pytest.mark.parametrize("num_voxels", range(1, 11))
def test_lesion_of_a_few_voxels_is_compact(num_voxels: int) -> None:
    for seed in range(5):
        volume_ml = num_voxels * 3.2**3 / 1000
        lesion = grow_lesion(LIVER_LIKE, volume_ml=volume_ml, spacing_mm=ISOTROPIC, rng=np.random.default_rng(seed))
        assert lesion.sum() == num_voxels
        assert is_connected(lesion)
        assert max(part.stop - part.start for part in bounding_box(lesion)) <= 4


def test_lesion_follows_a_thin_host() -> None:
    rib = np.zeros((60, 9, 9), dtype=bool)
    rib[2:58, 4:6, 3:5] = True
    lesion = grow_lesion(rib, volume_ml=100 * 3.2**3 / 1000, spacing_mm=ISOTROPIC, rng=np.random.default_rng(0))
    assert lesion.sum() == 100
    assert is_connected(lesion)
    assert not (lesion & ~rib).any()


def test_lesion_can_fill_a_whole_host_of_any_form() -> None:
    maze = np.random.default_rng(1).random((9, 11, 7)) < 0.35
    parts, _ = ndimage.label(maze, TOUCHING)
    largest = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    volume_ml = float(largest.sum()) * 3.2**3 / 1000
    lesion = grow_lesion(maze, volume_ml=volume_ml, spacing_mm=ISOTROPIC, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(lesion, largest)


def test_lesion_leaves_its_host_where_it_has_room_around_it() -> None:
    small = draw_ellipsoid((21, 19, 17), ISOTROPIC, (12.0, 12.0, 12.0))
    volume_ml = sphere_ml(36.0)
    rng = np.random.default_rng(0)
    lesion = grow_lesion(small, volume_ml=volume_ml, spacing_mm=ISOTROPIC, rng=rng, room=np.ones_like(small))
    assert lesion.sum() == round(volume_ml / (3.2**3 / 1000))
    assert is_connected(lesion)
    assert (lesion & small).any()
    assert (lesion & ~small).any()


def test_host_without_room_for_a_lesion_has_no_part_for_it() -> None:
    host = np.zeros((7, 9, 11), dtype=bool)
    host[1:4, 1:4, 1:4] = True
    host[5:7, 6:8, 6:8] = True
    rng = np.random.default_rng(0)
    assert draw_part(host, host, 27, ANISOTROPIC, rng) is not None
    assert draw_part(host, host, 28, ANISOTROPIC, rng) is None


@pytest.mark.parametrize("volume_ml", [0.0, -1.0, 0.0002, float("nan")])
def test_lesion_below_half_a_voxel_is_refused(volume_ml: float) -> None:
    with pytest.raises(LesionError, match=rf"at least half a voxel, 0\.0007 mL, found {volume_ml} mL"):
        require_num_voxels(volume_ml, ANISOTROPIC)


def test_parts_are_numbered_as_scipy_numbers_them() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random(tuple(rng.integers(1, 12, 3))) < rng.random() for _ in range(300)]
    masks += [ndimage.gaussian_filter(rng.random((17, 19, 23)), 1.5) > 0.5, np.zeros((0, 3, 4), dtype=bool)]
    masks += [np.asfortranarray(masks[-2]), masks[-2][::2, 1:, ::-1], np.arange(13).reshape(1, 1, 13) % 2 == 0]
    for mask in masks:
        labelled, num_parts = label_parts(mask)
        expected, num_expected = ndimage.label(mask, TOUCHING)
        assert num_parts == num_expected
        np.testing.assert_array_equal(labelled, expected)


def test_flood_equals_a_flood_with_a_priority_queue() -> None:
    """The oracle takes the reachable voxel of lowest score one at a time."""

    def flood_slowly(score: NDArray[np.float64], room: Mask, start: tuple[int, ...], num_voxels: int) -> Mask:
        taken, queue, seen = np.zeros_like(room), [(score[start], start)], {start}
        while taken.sum() < num_voxels:
            _, here = heapq.heappop(queue)
            taken[here] = True
            for step in np.argwhere(TOUCHING) - 1:
                there = tuple(int(value) for value in np.add(here, step))
                inside = all(0 <= value < side for value, side in zip(there, room.shape, strict=True))
                if inside and room[there] and there not in seen:
                    seen.add(there)
                    heapq.heappush(queue, (score[there], there))
        return taken

    rng = np.random.default_rng(5)
    num_equal = 0
    for _ in range(20):
        score = ndimage.gaussian_filter(rng.standard_normal((9, 11, 7)), 1.0)
        room = rng.random(score.shape) < 0.8
        start = tuple(int(value) for value in np.argwhere(room)[np.argmin(score[room])])
        taken = flood(score, room, np.array(start), 40)
        assert taken is not None
        assert taken.sum() == 40
        assert is_connected(taken)
        num_equal += np.array_equal(taken, flood_slowly(score, room, start, 40))
    assert num_equal >= 10  # they differ only in how the last pocket is filled
