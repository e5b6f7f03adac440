from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maisi_aug.errors import RequestError, VolumeError
from maisi_aug.evaluation.fid.slices import SliceProtocol, prepare_volume, take_slices
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import Volume, load_image

GRID = Grid.from_spacing((40, 33, 47), (0.7, 0.8, 2.5))


@pytest.fixture
def volume(rng: np.random.Generator) -> Volume:
    return Volume(rng.integers(-2000, 3000, GRID.shape).astype(np.int16), GRID)


def test_shape_fills_with_air_and_cuts_about_the_centre(volume: Volume) -> None:
    """The slow version: MAISI's script pads both sides, the lower one less, and cuts from centre - half."""
    before = volume.array.copy()
    found = prepare_volume(volume, SliceProtocol(shape=(36, 38, 32)), subject="case")
    padded = np.full((40, 38, 47), -1000.0)
    padded[:, 2:35] = volume.array
    expected = np.clip(padded[20 - 18 : 20 + 18, :, 23 - 16 : 23 + 16], -1000, 1000)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(volume.array, before)


def test_spacing_keeps_the_field_of_view(rng: np.random.Generator) -> None:
    grid = Grid.from_spacing((64, 60, 40), (1.0, 1.0, 2.0))
    place = np.moveaxis(np.indices(grid.shape, dtype=np.float64), 0, -1) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    found = prepare_volume(
        Volume((4 * place[..., 2]).astype(np.float32), grid), SliceProtocol((1.0, 1.5, 1.0)), subject=""
    )
    assert found.shape == (64, 40, 80)
    inner = found[:, :, 4:-4].mean(axis=(0, 1))
    np.testing.assert_allclose(np.diff(inner), 4.0, atol=1e-2)
    assert inner.mean() == pytest.approx(0.0, abs=1e-2)


@pytest.mark.parametrize(("plane", "axis"), [("xy", 2), ("yz", 0), ("zx", 1)])
def test_planes_and_central_share_are_those_of_maisis_script(volume: Volume, plane: str, axis: int) -> None:
    image = prepare_volume(volume, SliceProtocol(), subject="case")
    num = image.shape[axis]
    expected = [np.take(image, n, axis) for n in range(int(0.6 / 2 * num), int(1.4 / 2 * num), 2)]
    found = take_slices(image, plane, SliceProtocol(centre_share=0.4, every=2))  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, np.stack(expected))
    assert len(take_slices(image, plane, SliceProtocol())) == num  # type: ignore[arg-type]
    assert len(take_slices(image, plane, SliceProtocol(centre_share=0.001))) == 1  # type: ignore[arg-type]


def test_small_volume_is_named() -> None:
    grid = Grid.from_spacing((40, 31, 40), (1.0, 1.0, 1.0))
    with pytest.raises(VolumeError, match="case_7: at least 32 voxels along every axis are needed, found 40x31x40"):
        prepare_volume(Volume(np.zeros(grid.shape, np.int16), grid), SliceProtocol(), subject="case_7")


@pytest.mark.parametrize("share", [0.0, 1.2, -0.4])
def test_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(RequestError, match=f"Centre share: expected more than 0 and at most 1, found {share:g}"):
        SliceProtocol(centre_share=share)


def test_every_must_be_a_number_from_one() -> None:
    with pytest.raises(RequestError, match="Every: must be an integer from 1, found 0"):
        SliceProtocol(every=0)


def test_protocol_is_told_in_words() -> None:
    assert SliceProtocol().describe() == "own spacing, own shape, all slices"
    words = SliceProtocol((1.0, 1.0, 2.5), (512, 512, 256), 0.4, 3).describe()
    assert words == "1x1x2.5 mm about the centre, 512x512x256, central 40% of the slices, one in 3"
    maisi = SliceProtocol((1.0, 1.0, 1.0), resampling="maisi").describe()
    assert maisi == "1x1x1 mm from the first voxel on, as in MAISI, own shape, all slices"


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR"])
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.5, 1.3, 3.1), (2.0, 2.5, 2.5)])
def test_maisis_resampling_is_that_of_monais_transforms_to_the_last_bit(
    axes: str, spacing_mm: tuple[float, float, float], rng: np.random.Generator, tmp_path: Path
) -> None:
    """The transforms of MAISI's FID script, on the file that both read: anisotropic, oblique, in other axes."""
    import nibabel
    from monai.transforms import (
        CenterSpatialCropd,
        Compose,
        EnsureChannelFirstd,
        LoadImaged,
        Orientationd,
        ScaleIntensityRanged,
        Spacingd,
        SpatialPadd,
    )

    turn = np.deg2rad(9.0)
    affine = np.diag([0.9, 1.2, 2.5, 1.0])
    affine[:3, :3] = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]] @ affine[:3, :3]
    affine[:3, 3] = (-31.0, 17.5, 40.0)
    array = rng.integers(-1200, 2500, (52, 47, 36)).astype(np.int16)
    ornament = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(affine), nibabel.orientations.axcodes2ornt(tuple(axes))
    )
    path = tmp_path / "ct.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, affine).as_reoriented(ornament), path)
    keys = ["image"]
    shape = (64, 48, 40)
    steps = [
        *(LoadImaged(keys), EnsureChannelFirstd(keys), Orientationd(keys, axcodes="RAS", labels=None)),
        Spacingd(keys, pixdim=spacing_mm, mode=["bilinear"]),
        SpatialPadd(keys, spatial_size=shape, mode="constant", value=-1000),
        CenterSpatialCropd(keys, roi_size=shape),
        ScaleIntensityRanged(keys, a_min=-1000, a_max=1000, b_min=-1000, b_max=1000, clip=True),
    ]
    expected = np.asarray(Compose(steps)({"image": str(path)})["image"][0])
    protocol = SliceProtocol(spacing_mm, shape, resampling="maisi")
    found = prepare_volume(load_image(path), protocol, subject="case")
    np.testing.assert_array_equal(found, expected)
    centred = prepare_volume(load_image(path), SliceProtocol(spacing_mm, shape), subject="case")
    assert not np.array_equal(found, centred)


def test_maisis_resampling_without_a_spacing_would_do_nothing_and_is_refused() -> None:
    with pytest.raises(RequestError, match="Resampling 'maisi': needs a spacing to resample to"):
        SliceProtocol(resampling="maisi")
