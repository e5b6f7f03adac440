from __future__ import annotations

import numpy as np
import pytest
import torch

from maisi_aug.networks.conditioning import (
    hu_to_unit,
    to_control,
    to_label_bits,
    to_modality_tensor,
    to_region_tensors,
    to_spacing_tensor,
    to_surroundings,
    unit_to_hu,
    unit_to_mr,
)
from maisi_aug.vocabulary.modalities import CT_MODALITIES, MODALITY_CODES, MR_MODALITIES, is_mr
from maisi_aug.vocabulary.regions import BODY_REGIONS, REGION_LABELS, find_body_regions


def test_label_bits_hold_every_id_lowest_bit_first() -> None:
    ids = torch.arange(256, dtype=torch.uint8).view(1, 4, 8, 8)
    bits = to_label_bits(ids)
    assert bits.shape == (1, 8, 4, 8, 8)
    assert bits.dtype == torch.float32
    assert set(bits.flatten().tolist()) == {0.0, 1.0}
    weights = torch.tensor([2.0**place for place in range(8)]).view(1, 8, 1, 1, 1)
    assert torch.equal((bits * weights).sum(1), ids.float())


def test_label_bits_of_one_voxel() -> None:
    liver_tumor = torch.full((1, 1, 1, 1), 26, dtype=torch.uint8)
    assert to_label_bits(liver_tumor).flatten().tolist() == [0, 1, 0, 1, 1, 0, 0, 0]


def test_label_bits_leave_cases_apart_and_the_input_untouched() -> None:
    ids = torch.randint(0, 256, (2, 7, 9, 11), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = ids.clone()
    bits = to_label_bits(ids)
    assert torch.equal(bits[1:], to_label_bits(ids[1:]))
    assert torch.equal(ids, before)


def test_spacing_is_told_in_hundredths_of_a_millimetre() -> None:
    spacing = to_spacing_tensor([(0.7, 0.8, 2.5), (3.2, 3.2, 3.2)])
    assert spacing.dtype == torch.float32
    assert torch.allclose(spacing, torch.tensor([[70.0, 80.0, 250.0], [320.0, 320.0, 320.0]]))


def test_modality_codes_are_maisis() -> None:
    of_ct = {"unknown": 0, "ct": 1, "ct_wo_contrast": 2, "ct_contrast": 3}
    assert {name: code for name, code in MODALITY_CODES.items() if not is_mr(name)} == of_ct
    assert sorted(code for name, code in MODALITY_CODES.items() if is_mr(name)) == [*range(8, 18), 20, *range(29, 34)]
    assert set(MODALITY_CODES) == {"unknown", *CT_MODALITIES, *MR_MODALITIES}
    codes = to_modality_tensor(["ct_contrast", "unknown", "mri_t1_skull_stripped"])
    assert codes.dtype == torch.int64
    assert codes.tolist() == [3, 0, 29]


def test_mr_is_cut_to_whole_numbers_without_a_cap() -> None:
    image = np.array([-0.01, 0.0, 0.0019, 0.9999, 1.0, 1.5, 40.0], dtype=np.float32)
    assert unit_to_mr(image).tolist() == [0, 0, 1, 999, 1000, 1500, 32767]
    assert unit_to_mr(image).dtype == np.int16


def test_hu_becomes_unit_and_back_without_loss() -> None:
    image_hu = np.arange(-1000, 1001, dtype=np.int16).reshape(3, 23, 29)
    unit = hu_to_unit(torch.from_numpy(image_hu))
    assert unit.dtype == torch.float32
    assert (float(unit.min()), float(unit.max())) == (0.0, 1.0)
    inside = np.full(image_hu.shape, 200, dtype=np.uint8)
    assert np.array_equal(unit_to_hu(unit.numpy(), inside), image_hu)


@pytest.mark.parametrize(("hu", "unit"), [(-3024, 0.0), (-1000, 0.0), (0, 0.5), (1000, 1.0), (3071, 1.0)])
def test_hu_is_clipped_to_a_thousand(hu: int, unit: float) -> None:
    assert float(hu_to_unit(torch.tensor(hu, dtype=torch.int16))) == unit


def test_image_is_clipped_and_air_outside_the_body() -> None:
    image = np.array([-0.5, 0.0, 0.5, 0.50026, 1.0, 1.5, 0.7], dtype=np.float32).reshape(7, 1, 1)
    label_map = np.array([1, 1, 1, 1, 1, 1, 0], dtype=np.uint8).reshape(7, 1, 1)
    image_hu = unit_to_hu(image, label_map)
    assert image_hu.dtype == np.int16
    assert image_hu.ravel().tolist() == [-1000, -1000, 0, 1, 1000, 1000, -1000]
    assert image[6, 0, 0] == np.float32(0.7)


@pytest.mark.parametrize(
    ("label_ids", "expected"),
    [
        ((200,), ("thorax", "abdomen")),
        ((28,), ("thorax", "thorax")),
        ((93, 22, 14), ("head", "pelvis")),
        ((3, 32, 200, 255), ("thorax", "abdomen")),
    ],
)
def test_body_regions_are_those_whose_organs_are_shown(label_ids: tuple[int, ...], expected: tuple[str, str]) -> None:
    label_map = np.zeros((4, 3, 2), dtype=np.uint8)
    for place, label_id in enumerate(label_ids):
        label_map[place % 4, 0, 0] = label_id
    assert find_body_regions(label_map) == expected
    assert tuple(REGION_LABELS) == BODY_REGIONS


def test_regions_are_one_hot_times_a_hundred() -> None:
    top, bottom = to_region_tensors([("head", "abdomen"), ("thorax", "pelvis")])
    assert top.tolist() == [[100, 0, 0, 0], [0, 100, 0, 0]]
    assert bottom.tolist() == [[0, 0, 100, 0], [0, 0, 0, 100]]
    assert top.dtype == bottom.dtype == torch.float32


def test_surroundings_hold_the_image_where_it_is_known_and_nothing_elsewhere() -> None:
    image = hu_to_unit(torch.tensor([-900.0, -600.0, 0.0, 300.0]).view(1, 4, 1, 1))
    known = torch.tensor([True, True, True, False]).view(1, 4, 1, 1)
    shown = to_surroundings(image, known)
    assert shown.shape == (1, 2, 4, 1, 1)
    torch.testing.assert_close(shown[0, 0].flatten(), torch.tensor([-1.0, 0.0, 2.0, 0.0]), atol=1e-4, rtol=0)
    assert shown[0, 1].flatten().tolist() == [1.0, 1.0, 1.0, 0.0]


def test_controlnet_is_shown_as_much_as_it_takes() -> None:
    bits, shown = torch.ones(1, 8, 2, 3, 4), torch.full((1, 2, 2, 3, 4), 5.0)
    assert to_control(bits, shown, num_channels=8) is bits
    assert torch.equal(to_control(bits, shown, num_channels=10), torch.cat((bits, shown), dim=1))
    assert not to_control(bits, None, num_channels=10)[:, 8:].any()
    with pytest.raises(
        ValueError, match="ControlNet: the condition must have 8 channels, or 10 with surroundings, found 9"
    ):
        to_control(bits, None, num_channels=9)
