"""An image without a label map passes when it shows a patient, and not when it shows air or noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from maisi_aug.cohort.request import GateConfig
from maisi_aug.gates.judgement import judge_bare_image
from maisi_aug.gates.patient import check_patient, measure_patient
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_image

GRID = Grid.from_spacing((48, 40, 20), (7.0, 7.5, 9.0))


def build_patient(rng: np.random.Generator, *, noise_hu: float = 15.0, tissue_hu: float = 50.0) -> NDArray[np.int16]:
    """A trunk of soft tissue with a spine, in air."""
    i, j, _ = np.indices(GRID.shape, sparse=True)
    trunk = ((i - 24) / 20) ** 2 + ((j - 20) / 14) ** 2 <= 1
    spine = ((i - 24) / 3) ** 2 + ((j - 10) / 3) ** 2 <= 1
    image = np.where(spine, 400.0, np.where(trunk, tissue_hu, -1000.0)) + np.zeros(GRID.shape)
    image += rng.normal(0, noise_hu, GRID.shape) * trunk
    patient: NDArray[np.int16] = np.rint(image).astype(np.int16)
    return patient


def test_patient_passes(rng: np.random.Generator) -> None:
    verdict = check_patient(build_patient(rng), GRID.spacing_mm)
    assert verdict.passed
    assert verdict.figures["body_share"] == pytest.approx(np.pi * 20 * 14 / (48 * 40), rel=0.1)
    assert verdict.figures["median_step_hu"] == pytest.approx(15 * np.sqrt(2) * 0.6745, rel=0.15)


def build_noise(name: str, rng: np.random.Generator) -> NDArray[np.int16]:
    images: dict[str, Any] = {
        "air": np.full(GRID.shape, -1000),
        "noisy air": rng.normal(-950, 30, GRID.shape),
        "uniform noise": rng.uniform(-1000, 1000, GRID.shape),
        "full of tissue": rng.normal(50, 15, GRID.shape),
        "noisy patient": build_patient(rng, noise_hu=200.0),
        "stone": build_patient(rng, tissue_hu=700.0),
    }
    noise: NDArray[np.int16] = np.rint(images[name]).astype(np.int16)
    return noise


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("air", "a body that fills 0% of the image"),
        ("noisy air", "a body that fills 0% of the image"),
        ("uniform noise", "which is noise|fills 100% of the image"),
        ("full of tissue", "a body that fills 100% of the image"),
        ("noisy patient", "soft tissue in which neighbours differ by .* HU, which is noise"),
        ("stone", "a body of which 0% is soft tissue"),
    ],
)
def test_what_is_no_patient_fails(name: str, found: str, rng: np.random.Generator) -> None:
    image_hu = build_noise(name, rng)
    verdict = check_patient(image_hu, GRID.spacing_mm)
    assert not verdict.passed
    with pytest.raises(AssertionError, match=found):
        raise AssertionError(verdict.message)
    noted = check_patient(image_hu, GRID.spacing_mm, is_judged=False)
    assert noted.passed
    assert "Not judged, as this bundle is known to draw poorly without a label map." in noted.message
    assert {**noted.figures, "is_judged": True} == verdict.figures


def test_gates_of_a_bare_image(rng: np.random.Generator) -> None:
    def judge(image_hu: NDArray[np.int16], *, is_known_poor: bool = False, **options: Any) -> dict[str, bool]:
        gates = GateConfig(**options)
        found = judge_bare_image(image_hu, GRID, GRID, gates=gates, is_known_poor=is_known_poor)
        return {verdict.gate: verdict.passed for verdict in found}

    patient, noise = build_patient(rng), build_noise("uniform noise", rng)
    assert judge(patient) == {"geometry": True, "patient": True}
    assert judge(noise) == {"geometry": True, "patient": False}
    assert judge(noise, is_known_poor=True) == {"geometry": True, "patient": True}
    assert judge(noise, organ_hu=False) == {"geometry": True}
    assert judge(patient[:-1])["geometry"] is False


def test_real_scan_is_a_patient(real_data: Path) -> None:
    volume = load_image(real_data / "totalsegmentator-example" / "example_ct.nii.gz")
    assert check_patient(volume.array, volume.grid.spacing_mm).passed
    assert measure_patient(volume.array, volume.grid.spacing_mm)["median_step_hu"] < 40
