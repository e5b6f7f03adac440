"""One cohort through the readers of every framework: the same voxels at the same places, whatever the source's axes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from maisi_aug.vocabulary.labels import BODY_ID
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_image, load_label_map
from tests.builders.tiny_bundle import write_tiny_bundle
from tests.builders.tiny_cohort import GRID, HEPATIC_TUMOR, oblique_grid, write_cohort

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Read(NamedTuple):
    """What a reader gives: ``(I, J, K)`` as the file stores it, and voxel to RAS+ millimetres."""

    array: NDArray[Any]
    affine: NDArray[np.float64]


def from_itk(spacing: Any, direction: Any, origin: Any) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(direction, (3, 3)) * np.asarray(spacing)
    affine[:3, 3] = origin
    return LPS_TO_RAS @ affine


def read_with_simpleitk(path: Path) -> Read:
    image = SimpleITK.ReadImage(str(path))
    array = SimpleITK.GetArrayFromImage(image).T
    return Read(array, from_itk(image.GetSpacing(), image.GetDirection(), image.GetOrigin()))


def read_with_nnunet(path: Path) -> Read:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    data, properties = SimpleITKIO().read_images((str(path),))
    itk = properties["sitk_stuff"]
    assert np.allclose(properties["spacing"], itk["spacing"][::-1])
    return Read(data[0].T, from_itk(itk["spacing"], itk["direction"], itk["origin"]))


def read_with_monai(path: Path) -> Read:
    from monai.transforms import LoadImage

    tensor = LoadImage(image_only=True)(str(path))
    return Read(tensor.numpy(), np.asarray(tensor.affine))


def read_with_torchio(path: Path) -> Read:
    torchio = pytest.importorskip("torchio", reason="needs the extra 'torchio'")
    image = torchio.ScalarImage(str(path))
    return Read(image.data[0].numpy(), np.asarray(image.affine))


READERS: dict[str, Callable[[Path], Read]] = {
    "simpleitk": read_with_simpleitk,
    "nnunet": read_with_nnunet,
    "monai": read_with_monai,
    "torchio": read_with_torchio,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("grid", [GRID, oblique_grid()], ids=["anisotropic", "oblique"])
def test_readers_agree_on_what_is_written(tmp_path: Path, grid: Grid, reader: Callable[[Path], Read]) -> None:
    cohort = write_cohort(tmp_path, [HEPATIC_TUMOR], grid=grid)
    image, anatomy = cohort / "images" / "case_0001.nii.gz", cohort / "anatomy" / "case_0001.nii.gz"
    for path, ours in ((image, load_image(image)), (anatomy, load_label_map(anatomy))):
        read = reader(path)
        assert np.array_equal(read.array, ours.array)
        assert np.allclose(read.affine, ours.grid.affine, atol=1e-3)
        spacing = np.linalg.norm(read.affine[:3, :3], axis=0)
        assert np.allclose(spacing, grid.spacing_mm, atol=1e-5)


def write_source(path: Path, *, is_oblique: bool) -> SimpleITK.Image:
    """A label map in LPS, as a scanner gives it; no axis and no side is like another."""
    label_map = np.zeros((24, 40, 32), dtype=np.uint8)  # K, J, I
    label_map[1:23, 3:37, 2:30] = BODY_ID
    label_map[4:15, 8:25, 6:20] = 1
    label_map[6:10, 12:18, 9:15] = HEPATIC_TUMOR
    label_map[16:21, 27:33, 20:26] = 3
    image = SimpleITK.GetImageFromArray(label_map)
    image.SetSpacing((7.0, 8.0, 11.0))
    image.SetOrigin((-100.5, -140.0, 33.0))
    if is_oblique:
        turned = SimpleITK.Euler3DTransform((0, 0, 0), 0.12, -0.08, 0.2)
        image.SetDirection(turned.GetMatrix())
    SimpleITK.WriteImage(image, str(path))
    return image


@pytest.fixture(scope="module")
def given_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    write_tiny_bundle(folder)
    return folder


@pytest.mark.parametrize("is_oblique", [False, True], ids=["LPS", "oblique LPS"])
def test_given_sources_keep_every_voxel_in_its_place(
    tmp_path: Path, run_cli: Callable[..., Any], given_bundle: Path, is_oblique: bool
) -> None:
    source = write_source(tmp_path / "patient.nii.gz", is_oblique=is_oblique)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"bundle": str(given_bundle), "gates": {"organ_hu": False, "visibility": False}}))
    words = ("--mask-source", "given", "--mask-bank", tmp_path / "patient.nii.gz", "--mask-labels", "maisi")
    outcome = run_cli(
        "synthesize", "--recipe", recipe, *words, "--out", tmp_path / "cohort", "--quiet", "--device", "cpu"
    )
    assert outcome.code == 0, outcome.stderr
    expected = SimpleITK.GetArrayFromImage(source)
    for name, reader in READERS.items():
        read = reader(tmp_path / "cohort" / "anatomy" / "case_0001.nii.gz")
        image = reader(tmp_path / "cohort" / "images" / "case_0001.nii.gz")
        assert np.allclose(image.affine, read.affine)
        index = np.indices(read.array.shape).reshape(3, -1)
        places = read.affine @ np.vstack([index, np.ones(index.shape[1])])
        to_source = np.linalg.inv(from_itk(source.GetSpacing(), source.GetDirection(), source.GetOrigin()))
        voxels = (to_source @ places)[:3]
        assert np.allclose(voxels, np.rint(voxels), atol=1e-2), name
        i, j, k = np.rint(voxels).astype(int)
        assert np.array_equal(read.array.reshape(-1), expected[k, j, i]), name
