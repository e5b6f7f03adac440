from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from maisi_aug.errors import MissingExtraError
from maisi_aug.integrations.torchio import iterate_subjects, load_subjects
from maisi_aug.volumes.image_files import load_image, load_label_map
from tests.builders.tiny_cohort import HEPATIC_TUMOR, KIDNEY_TUMOR, oblique_grid, write_cohort

torchio = pytest.importorskip("torchio", reason="needs the extra 'torchio'")


def test_subjects_have_the_voxels_and_the_geometry(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path, [HEPATIC_TUMOR], [HEPATIC_TUMOR, KIDNEY_TUMOR], grid=oblique_grid())
    first, second = load_subjects(cohort, ["liver", "kidney tumor"])
    image = load_image(cohort / "images" / "case_0001.nii.gz")
    assert isinstance(first.image, torchio.ScalarImage)
    assert isinstance(second.label, torchio.LabelMap)
    assert np.array_equal(first.image.data[0].numpy(), image.array)
    assert np.allclose(np.asarray(first.image.affine), image.grid.affine)
    assert np.allclose(first.image.spacing, image.grid.spacing_mm)
    anatomy = load_label_map(cohort / "anatomy" / "case_0002.nii.gz").array
    assert np.array_equal(second.label.data[0].numpy() == 2, anatomy == KIDNEY_TUMOR)
    assert (first.case_id, second.case_id) == ("case_0001", "case_0002")


def test_subjects_take_the_numbers_of_a_real_dataset(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path, [HEPATIC_TUMOR])
    numbers = {"liver": 2, "hepatic tumor": 1}
    for subject in (*load_subjects(cohort, numbers=numbers), *iterate_subjects(cohort, numbers=numbers)):
        assert np.array_equal(np.unique(subject.label.data.numpy()), [0, 1, 2])
        anatomy = load_label_map(cohort / "anatomy" / "case_0001.nii.gz").array
        assert np.array_equal(subject.label.data[0].numpy() == 1, anatomy == HEPATIC_TUMOR)


def test_transforms_of_torchio_take_the_subjects(tmp_path: Path) -> None:
    (subject,) = iterate_subjects(write_cohort(tmp_path, [HEPATIC_TUMOR]))
    resampled = torchio.Resample((1.4, 1.6, 2.5))(subject)
    assert resampled.image.spatial_shape == resampled.label.spatial_shape
    assert set(np.unique(resampled.label.data.numpy())) <= {0, 1}


def test_missing_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchio", None)
    with pytest.raises(MissingExtraError, match="TorchIO subjects: the package of the extra 'torchio' is missing"):
        load_subjects(tmp_path)
