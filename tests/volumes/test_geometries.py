"""300 random geometries: landmarks stay where nibabel puts them, through reading, resampling and writing.

The image of a geometry holds one world coordinate in every voxel. Linear interpolation and smoothing keep such a ramp,
so that wherever a voxel goes, its value must still be its place: one number tells a shift of a hundredth of a voxel.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from maisi_aug.banks.label_map import BankMap, cut_map
from maisi_aug.integrations.dicom.image import to_dicom_axes
from maisi_aug.sources.given import GridChoice, fit_map
from maisi_aug.volumes.grid import Grid, Shape, Spacing
from maisi_aug.volumes.image_files import load_grid, load_image, load_label_map, save_image, save_label_map
from maisi_aug.volumes.nifti_files import UNIT_MM
from maisi_aug.volumes.orientation import turn_volume
from maisi_aug.volumes.resampling import centre_grid_on, resample_image, resample_label_map

NUM_GEOMETRIES = 300
PER_TEST = 30
TOLERANCE_VOXELS = 0.01
FORMATS = ("nii", "nii.gz", "nifti2", "nrrd", "mha")
FLIP_XY = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Geometry:
    """A stored volume: its shape, where nibabel puts it in millimetres, and how it is written."""

    number: int
    shape: Shape
    affine: NDArray[np.float64]
    is_sheared: bool
    unit: int
    form: str
    codes: tuple[int, int]

    @property
    def steps_mm(self) -> NDArray[np.float64]:
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    def points(self) -> NDArray[np.float64]:
        """World place of every voxel, ``(I, J, K, 3)`` RAS+ mm."""
        indices = np.moveaxis(np.indices(self.shape), 0, -1)
        return np.asarray(indices @ self.affine[:3, :3].T + self.affine[:3, 3])


def draw_geometry(number: int) -> Geometry:
    """A rotation by any angle, flips and permuted axes, anisotropic steps, and for a third of them a shear."""
    rng = np.random.default_rng([15, number])
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    if number % 3 == 0:  # axis-aligned, LPS, RAS and all others
        rotation = np.eye(3)[rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)
    form = FORMATS[number % len(FORMATS)]
    is_sheared = number % 4 == 1
    shear = np.eye(3)
    if is_sheared:
        a, b = rng.choice(3, 2, replace=False)
        shear[a, b] = rng.choice([-1, 1]) * rng.uniform(0.01, 0.5)
    affine = np.eye(4)
    affine[:3, :3] = rotation @ shear * rng.uniform(0.5, 3.0, 3)
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    i, j, k = (int(side) for side in rng.integers(10, 16, 3))
    codes = ((1, 0), (1, 1), (0, 1), (2, 2))[int(rng.integers(4))]
    unit = int(rng.choice([0, 1, 2, 3])) if form.startswith("ni") else 2
    return Geometry(number, (i, j, k), affine, is_sheared, unit, form, (1, 0) if is_sheared else codes)


def write(path: Path, array: NDArray[Any], geometry: Geometry) -> Path:
    """Store an array as the geometry says."""
    if geometry.form in ("nrrd", "mha"):
        path = path.with_name(f"{path.name}.{geometry.form}")
        lps = FLIP_XY @ geometry.affine
        image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.T))
        image.SetSpacing(geometry.steps_mm.tolist())
        image.SetDirection((lps[:3, :3] / geometry.steps_mm).ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        SimpleITK.WriteImage(image, str(path))
        return path
    stored = geometry.affine.copy()
    stored[:3] /= UNIT_MM.get(geometry.unit, 1.0)
    image_class = nib.Nifti2Image if geometry.form == "nifti2" else nib.Nifti1Image
    image = image_class(array, stored)
    image.set_sform(stored if geometry.codes[0] else None, geometry.codes[0])
    image.set_qform(stored if geometry.codes[1] else None, geometry.codes[1])
    image.header["xyzt_units"] = geometry.unit
    path = path.with_name(f"{path.name}.{'nii' if geometry.form == 'nifti2' else geometry.form}")
    nib.save(image, path)
    return path


def require_ramp(
    values: NDArray[Any], grid: Grid, geometry: Geometry, direction: NDArray[np.float64], margin: float, what: str
) -> None:
    """Every voxel well inside the stored volume holds its own place along a direction, to a hundredth of a voxel."""
    indices = np.moveaxis(np.indices(grid.shape), 0, -1)
    points = indices @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    stored = (points - geometry.affine[:3, 3]) @ np.linalg.inv(geometry.affine[:3, :3]).T
    inside = ((stored >= margin - 1e-6) & (stored <= np.asarray(geometry.shape) - 1 - margin + 1e-6)).all(axis=-1)
    assert inside.any(), f"{geometry}: nothing left in {what}"
    off = np.abs(values - points @ direction)[inside].max() / min(*geometry.steps_mm, *grid.spacing_mm)
    assert off <= TOLERANCE_VOXELS, f"{geometry}: {off:.3f} voxels off in {what}"


def require_nearest(
    labels: NDArray[Any], grid: Grid, geometry: Geometry, stored_labels: NDArray[Any], what: str, times: int = 1
) -> None:
    """Every voxel has the label of the stored voxel that it lies in; on a border either neighbour's.

    Args:
        times: How often the nearest label was taken on the way, each of which may move a border by half a voxel.
    """
    indices = np.moveaxis(np.indices(grid.shape), 0, -1)
    points = indices @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    at = (points - geometry.affine[:3, 3]) @ np.linalg.inv(geometry.affine[:3, :3]).T
    reach = TOLERANCE_VOXELS if times == 1 else 1.0
    ok = np.zeros(grid.shape, dtype=bool)
    for corner in product((-reach, reach) if times == 1 else (-reach, 0.0, reach), repeat=3):
        near = np.floor(at + np.asarray(corner) + 0.5).astype(int)
        inside = ((near >= 0) & (near < np.asarray(geometry.shape))).all(axis=-1)
        near = np.clip(near, 0, np.asarray(geometry.shape) - 1)
        ok |= labels == np.where(inside, stored_labels[tuple(np.moveaxis(near, -1, 0))], 0)
    assert ok.all(), f"{geometry}: {np.count_nonzero(~ok)} of {ok.size} labels elsewhere in {what}"


def read_corners(path: Path, shape: Sequence[int]) -> list[NDArray[np.float64]]:
    """The corners of a written file for nibabel's sform, its qform, and ITK, RAS+ mm."""
    header: Any = nib.load(path)
    itk = SimpleITK.ReadImage(str(path))
    itk_affine = np.eye(4)
    itk_affine[:3, :3] = np.reshape(itk.GetDirection(), (3, 3)) * itk.GetSpacing()
    itk_affine[:3, 3] = itk.GetOrigin()
    corners = np.array([[*corner, 1] for corner in product(*((0, side - 1) for side in shape))])
    return [(corners @ np.asarray(a).T)[:, :3] for a in (header.get_sform(), header.get_qform(), FLIP_XY @ itk_affine)]


def require_one_place(path: Path, grid: Grid) -> None:
    """What is written is one thing for sform, qform and ITK."""
    sform, qform, itk = read_corners(path, grid.shape)
    for other in (qform, itk):
        assert np.abs(sform - other).max() <= TOLERANCE_VOXELS * min(grid.spacing_mm)


def draw_target(grid: Grid, rng: np.random.Generator) -> tuple[Shape, Spacing]:
    i, j, k = (int(side) for side in rng.integers(8, 14, 3))
    x, y, z = (float(step * rng.uniform(0.7, 1.5)) for step in grid.spacing_mm)
    return (i, j, k), (x, y, z)


def follow(geometry: Geometry, folder: Path) -> None:
    """Take one geometry through all ways."""
    rng = np.random.default_rng([16, geometry.number])
    direction = np.eye(3)[geometry.number % 3]
    stored_labels = np.repeat(rng.integers(0, 6, (geometry.shape[0], geometry.shape[1], 3)), 5, axis=2)
    stored_labels = stored_labels[..., : geometry.shape[2]].astype(np.uint8)
    stored_labels[0, 0, 0] = 5
    image_path = write(folder / "image", (geometry.points() @ direction).astype(np.float64), geometry)
    label_path = write(folder / "label", stored_labels, geometry)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if geometry.is_sheared else "error")
        image, labels = load_image(image_path), load_label_map(label_path)
        grid = load_grid(image_path)
    assert grid.has_right_angles
    assert grid.is_close(image.grid, tolerance_mm=1e-6)
    assert labels.grid.is_close(image.grid, tolerance_mm=1e-6)
    require_ramp(image.array, image.grid, geometry, direction, 0, "reading")
    require_nearest(labels.array, labels.grid, geometry, stored_labels, "reading labels")
    times = 2 if geometry.is_sheared else 1

    shape, spacing_mm = draw_target(image.grid, rng)
    centre = geometry.affine[:3, :3] @ ((np.asarray(geometry.shape) - 1) / 2) + geometry.affine[:3, 3]
    target = centre_grid_on(centre.tolist(), shape=shape, spacing_mm=spacing_mm, like=image.grid)  # as prepare does
    prepared = resample_image(image.array.astype(np.float32), image.grid, target, fill=0)
    require_ramp(prepared, target, geometry, direction, 2, "prepare")
    require_nearest(
        resample_label_map(labels.array, labels.grid, target), target, geometry, stored_labels, "prepare", times
    )

    bank_map = BankMap("m", labels.array, labels.grid, "", None)
    cut = cut_map(bank_map, Grid.from_spacing(shape, spacing_mm), [], rng=rng)
    require_nearest(cut.label_map, cut.grid, geometry, stored_labels, "bank", times)
    for wish in (GridChoice(4, None, None), GridChoice(4, shape, None), GridChoice(4, shape, spacing_mm)):
        given, given_grid = fit_map(bank_map, wish, lesion_ids=())
        require_nearest(given, given_grid, geometry, stored_labels, f"given, {wish}", times)

    codes = "".join(rng.permutation([pair[rng.integers(2)] for pair in ("RL", "AP", "SI")]))
    turned, turned_grid = turn_volume(prepared, target, codes)  # as export nnunet --like does
    for array, place, name in ((prepared, target, "own"), (turned, turned_grid, codes)):
        save_image(folder / f"{name}.nii.gz", np.rint(array), place)
        save_label_map(folder / f"{name}_label.nii.gz", (array > 0).astype(np.uint8), place)
        require_one_place(folder / f"{name}.nii.gz", place)
        require_one_place(folder / f"{name}_label.nii.gz", place)
        again = load_image(folder / f"{name}.nii.gz")
        assert again.grid.is_close(load_image(folder / "own.nii.gz").grid, tolerance_mm=1e-3)
        np.testing.assert_array_equal(again.array, load_image(folder / "own.nii.gz").array)
    axes, origin, steps = to_dicom_axes(target)  # as export dicom does
    first = target.affine @ [target.shape[0] - 1, target.shape[1] - 1, 0, 1]
    np.testing.assert_allclose(origin * [-1, -1, 1], first[:3], atol=1e-6)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(steps, target.spacing_mm, rtol=1e-9)


@pytest.mark.parametrize("first", range(0, NUM_GEOMETRIES, PER_TEST))
def test_landmarks_stay_where_nibabel_puts_them(tmp_path: Path, first: int) -> None:
    for number in range(first, first + PER_TEST):
        folder = tmp_path / str(number)
        folder.mkdir()
        follow(draw_geometry(number), folder)


def test_the_geometries_are_of_all_kinds() -> None:
    geometries = [draw_geometry(number) for number in range(NUM_GEOMETRIES)]
    assert {geometry.form for geometry in geometries} == set(FORMATS)
    assert {geometry.unit for geometry in geometries} == {0, 1, 2, 3}
    assert sum(geometry.is_sheared for geometry in geometries) >= 70
    assert {np.sign(np.linalg.det(geometry.affine[:3, :3])) for geometry in geometries} == {-1, 1}
    assert sum(nib.aff2axcodes(geometry.affine) == ("L", "P", "S") for geometry in geometries) >= 3
