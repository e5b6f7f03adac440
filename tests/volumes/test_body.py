"""The envelope is the patient: skin complete, lungs and gas inside, table, cloth and wires outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from maisi_aug.errors import VolumeError
from maisi_aug.volumes.body import add_body, find_body, is_hollow
from maisi_aug.volumes.grid import Spacing
from maisi_aug.volumes.image_files import load_image, load_label_map

SPACING_MM = (2.5, 2.7, 4.0)
SHAPE = (150, 120, 30)


def _ellipse(centre_mm: tuple[float, float], radii_mm: tuple[float, float], spacing_mm: Spacing) -> NDArray[np.bool_]:
    i, j, _ = np.indices(SHAPE, sparse=True)
    x = (i * spacing_mm[0] - centre_mm[0]) / radii_mm[0]
    y = (j * spacing_mm[1] - centre_mm[1]) / radii_mm[1]
    return np.broadcast_to(x**2 + y**2 <= 1, SHAPE)


def _scan(seed: int = 3, noise_hu: float = 15.0) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """A chest with lungs, trachea, gas and an arm, on a hollow table under a blanket and a wire; and the truth."""
    rng = np.random.default_rng(seed)
    air = np.full(SHAPE, -1000.0)
    trunk = _ellipse((187, 170), (130, 85), SPACING_MM)
    arm = _ellipse((352, 160), (20, 25), SPACING_MM)
    truth = trunk | arm
    air[truth] = 40.0
    air[trunk & ~_ellipse((187, 170), (118, 73), SPACING_MM)] = -100.0
    for x in (125, 250):
        air[_ellipse((x, 175), (45, 62), SPACING_MM)] = -850.0
    air[_ellipse((187, 200), (9, 9), SPACING_MM)] = -1000.0
    gas = _ellipse((187, 130), (25, 12), SPACING_MM).copy()
    gas[:, :, 6:] = False
    air[gas] = -1000.0
    table = _ellipse((187, -310), (600, 387), SPACING_MM) & ~_ellipse((187, -310), (600, 382), SPACING_MM)
    bottom = _ellipse((187, -350), (600, 387), SPACING_MM) & ~_ellipse((187, -350), (600, 382), SPACING_MM)
    between = _ellipse((187, -310), (600, 382), SPACING_MM) & ~_ellipse((187, -350), (600, 387), SPACING_MM)
    air[between & ~truth] = -950.0
    air[(table | bottom) & ~truth] = 60.0
    air[(_ellipse((187, 175), (145, 100), SPACING_MM) & ~_ellipse((187, 175), (142, 97), SPACING_MM)) & ~truth] = -700.0
    air[60:62, 103, :] = 1500.0
    return np.rint(air + rng.normal(0, noise_hu, SHAPE)).astype(np.int16), truth


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return 2.0 * float((a & b).sum()) / float(a.sum() + b.sum())


def test_envelope_is_the_patient_without_table_blanket_and_wire() -> None:
    image_hu, truth = _scan()
    before = image_hu.copy()
    body = find_body(image_hu, SPACING_MM)
    assert body.dtype == np.bool_
    assert body.shape == SHAPE
    assert _dice(body, truth) > 0.985
    assert not body[:, :25].any(), "the table is part of the body"
    assert not body[60:62, 103].any(), "the wire is part of the body"
    np.testing.assert_array_equal(image_hu, before)


def test_lungs_trachea_and_gas_cut_by_the_first_slice_are_inside() -> None:
    image_hu, truth = _scan()
    body = find_body(image_hu, SPACING_MM)
    deep = _ellipse((187, 170), (122, 77), SPACING_MM)
    assert body[deep].all()
    assert truth[deep].all()


def test_skin_alone_is_hollow_and_a_patient_with_gas_and_a_gap_under_the_arm_is_not() -> None:
    _, truth = _scan()
    bridge = _ellipse((325, 160), (30, 5), SPACING_MM) | _ellipse((325, 190), (30, 5), SPACING_MM)
    body = (truth | bridge) & ~_ellipse((187, 130), (25, 12), SPACING_MM)
    skin = truth & ~_ellipse((187, 170), (124, 79), SPACING_MM)
    for cut in (slice(None), slice(60, None), slice(None, 100)):
        assert not is_hollow(body[cut])
        assert is_hollow(skin[cut])
    assert not is_hollow(np.zeros(SHAPE, dtype=bool))


def test_same_patient_at_fine_voxels_gives_the_same_volume() -> None:
    image_hu, truth = _scan(noise_hu=0.0)
    fine = np.repeat(np.repeat(image_hu, 3, axis=0), 3, axis=1)
    fine = (fine + np.random.default_rng(1).normal(0, 25, fine.shape)).astype(np.int16)
    body = find_body(fine, (SPACING_MM[0] / 3, SPACING_MM[1] / 3, SPACING_MM[2]))
    assert _dice(body, np.repeat(np.repeat(truth, 3, axis=0), 3, axis=1)) > 0.985


@pytest.mark.parametrize(
    "window",
    [
        (slice(40, 100), slice(0, 120), slice(0, 30)),  # through both lungs
        (slice(0, 75), slice(30, 120), slice(0, 30)),  # through the middle
        (slice(70, 81), slice(50, 80), slice(3, 20)),  # nothing but the inside
    ],
)
def test_body_cut_by_the_border_is_filled_to_the_border(window: tuple[slice, slice, slice]) -> None:
    image_hu, truth = _scan()
    assert _dice(find_body(image_hu[window], SPACING_MM), truth[window]) > 0.97


def test_air_between_hand_and_hip_stays_outside() -> None:
    image_hu, truth = _scan()
    ring = _ellipse((330, 160), (70, 60), SPACING_MM) & ~_ellipse((330, 160), (52, 42), SPACING_MM)
    held = image_hu.copy()
    held[:, :, 10:20][ring[:, :, 10:20] & ~truth[:, :, 10:20]] = 30
    gap = np.zeros(SHAPE, dtype=bool)
    gap[:, :, 12:18] = (_ellipse((330, 160), (45, 36), SPACING_MM) & ~truth)[:, :, 12:18]
    gap &= image_hu < -900
    gap &= ~_ellipse((187, 170), (136, 91), SPACING_MM) & ~_ellipse((352, 160), (26, 31), SPACING_MM)
    assert gap.sum() > 500
    assert not find_body(held, SPACING_MM)[gap].any()


def test_same_image_gives_the_same_mask() -> None:
    image_hu, _ = _scan()
    np.testing.assert_array_equal(find_body(image_hu, SPACING_MM), find_body(image_hu.copy(), SPACING_MM))


@pytest.mark.parametrize("value", [-1000, -400])
def test_image_without_a_patient_is_refused(value: int) -> None:
    with pytest.raises(VolumeError, match=f"no patient was found in the CT: values lie between {value} and {value}"):
        find_body(np.full((20, 21, 22), value, dtype=np.int16), SPACING_MM)


def test_body_label_fills_only_what_has_no_organ() -> None:
    image_hu, truth = _scan()
    label_map = np.zeros(SHAPE, dtype=np.uint16)
    label_map[_ellipse((125, 175), (45, 62), SPACING_MM)] = 30
    label_map[:3, :3, :3] = 7  # an organ outside the envelope stays as it was given
    before = label_map.copy()
    filled = add_body(label_map, image_hu, SPACING_MM)
    assert filled.dtype == np.uint8
    assert set(np.unique(filled)) == {0, 7, 30, 200}
    np.testing.assert_array_equal(filled[label_map > 0], label_map[label_map > 0])
    assert _dice(filled == 200, truth & (label_map == 0)) > 0.98
    np.testing.assert_array_equal(label_map, before)
    with pytest.raises(VolumeError, match=r"label map's shape \(150, 120, 30\), found \(150, 120, 29\)"):
        add_body(label_map, image_hu[:, :, :29], SPACING_MM)


def test_real_abdomen_holds_every_organ_and_not_the_table(real_data: Path) -> None:
    folder = real_data / "totalsegmentator-example"
    image = load_image(folder / "example_ct.nii.gz")
    label_map = load_label_map(folder / "example_seg_v1_104classes.nii.gz")
    body = find_body(image.array, image.grid.spacing_mm)
    assert body[label_map.array > 0].mean() > 0.999
    behind_back: NDArray[Any] = body[:, :3]
    assert behind_back.mean() < 0.02, "the table is part of the body"
    bright_outside = (image.array > -200) & ~body
    assert bright_outside[:, 12:].mean() < 0.002, "skin is missing"


def test_real_cropped_thigh_keeps_its_tumour(real_data: Path) -> None:
    image = load_image(real_data / "sts" / "STS_002_ct.nii.gz")
    tumour = load_label_map(real_data / "sts" / "STS_002_gtv.nii.gz")
    body = find_body(image.array, image.grid.spacing_mm)
    assert body[tumour.array > 0].all()
    assert 0.5 < body.mean() < 0.9
