"""The gates of MR images, whose intensities are no HU."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from nibabel.testing import data_path
from numpy.typing import NDArray

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.cohort.request import GateConfig
from maisi_aug.gates.checks import check_anatomy, check_geometry
from maisi_aug.gates.judgement import judge_bare_image
from maisi_aug.pictures.slices import choose_mr_window
from maisi_aug.volumes.grid import Grid

SHAPE = (40, 30, 20)
GRID = Grid.from_spacing(SHAPE, (1.0, 1.2, 1.5))


@pytest.fixture
def head(rng: np.random.Generator) -> NDArray[np.int16]:
    """A bright ellipsoid with some noise before a dark background."""
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in SHAPE), indexing="ij"))
    inside = (places**2).sum(axis=0) < 0.6
    return np.abs(np.where(inside, 600, 20) + rng.normal(0, 40, SHAPE)).astype(np.int16)


def test_real_mr_image_shows_anatomy() -> None:
    image = np.asarray(nib.load(f"{data_path}/anatomical.nii").dataobj)
    verdict = check_anatomy(image)
    assert verdict.passed
    assert verdict.figures["edge_share"] == pytest.approx(0.142, abs=0.001)


def test_head_passes_and_noise_or_nothing_does_not(head: NDArray[np.int16], rng: np.random.Generator) -> None:
    gates = GateConfig()
    passed = judge_bare_image(head, GRID, GRID, gates=gates, is_known_poor=False, is_mr=True)
    assert [(verdict.gate, verdict.passed) for verdict in passed] == [("geometry", True), ("anatomy", True)]
    noise = rng.integers(0, 1000, SHAPE).astype(np.int16)
    verdict = check_anatomy(noise)
    assert (verdict.passed, verdict.figures["edge_share"]) == (False, pytest.approx(0.5, abs=0.02))
    assert "noise: " in verdict.message
    assert check_anatomy(noise, is_judged=False).passed
    empty = check_anatomy(np.zeros(SHAPE, dtype=np.int16))
    assert not empty.passed
    assert "found bright voxels in 0% of the image" in empty.message
    off = judge_bare_image(noise, GRID, GRID, gates=GateConfig(organ_hu=False), is_known_poor=False, is_mr=True)
    assert [verdict.gate for verdict in off] == ["geometry"]


def test_mr_is_not_held_against_hu(head: NDArray[np.int16]) -> None:
    bright = (head * 9).astype(np.int16)
    assert check_geometry(bright, None, GRID, GRID, is_mr=True).passed
    assert "HU" in check_geometry(bright, None, GRID, GRID).message
    assert (
        "intensities from 0 to 30000"
        in check_geometry(np.where(head > 600, 30000, 0).astype(np.int16), None, GRID, GRID, is_mr=True).message
    )


def test_window_of_mr_reaches_from_zero_to_its_brightest(head: NDArray[np.int16]) -> None:
    window = choose_mr_window(head)
    assert window.centre_hu - window.width_hu / 2 == pytest.approx(0, abs=1)
    assert 600 < window.width_hu < 800
    assert "HU" not in str(window)


def test_mr_bundle_expects_no_sign_of_a_lesion(bundle: Bundle) -> None:
    spec = bundle.spec.model_copy(update={"modalities": ("mri_t1",)})
    of_mr = Bundle(spec, bundle.path)
    tumor = of_mr.vocabulary.id_of("hepatic tumor")
    assert bundle.contrast_sign_of(tumor) == -1
    assert of_mr.contrast_sign_of(tumor) == 0
