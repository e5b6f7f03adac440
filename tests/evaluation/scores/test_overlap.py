from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics.meandice import DiceMetric
from monai.metrics.surface_dice import SurfaceDiceMetric
from scipy import ndimage

from maisi_aug.errors import BenchmarkError
from maisi_aug.evaluation.scores.overlap import LabelScore, measure_nsd, score_case
from maisi_aug.volumes.components import measure_dice

SPACING_MM = (0.7, 0.8, 2.5)
LABELS = {"liver": 1, "tumor": 2}


def draw_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two blobby masks that overlap and reach the edge of the volume."""
    rng = np.random.default_rng(seed)
    first = ndimage.gaussian_filter(rng.standard_normal((17, 19, 11)), (2, 2, 1))
    second = first + 0.5 * ndimage.gaussian_filter(rng.standard_normal(first.shape), (2, 2, 1))
    return first > 0.02, second > 0.03


def to_one_hot(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([~mask, mask]).astype(np.float32))[None]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tolerance_mm", [0.5, 2.0])
@pytest.mark.filterwarnings("ignore")  # of the libraries on their own future
def test_equal_to_monai_and_to_surface_distance(seed: int, tolerance_mm: float) -> None:
    surface_distance = pytest.importorskip("surface_distance")
    reference, found = draw_pair(seed)
    dice = measure_dice(reference, found)
    assert dice == pytest.approx(surface_distance.compute_dice_coefficient(reference, found), abs=1e-6)
    by_monai = DiceMetric(include_background=False)(to_one_hot(found), to_one_hot(reference))
    assert dice == pytest.approx(float(by_monai), abs=1e-6)
    nsd = measure_nsd(reference, found, spacing_mm=SPACING_MM, tolerance_mm=tolerance_mm)
    distances = surface_distance.compute_surface_distances(reference, found, SPACING_MM)
    assert nsd == pytest.approx(surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm), abs=1e-5)
    metric = SurfaceDiceMetric([tolerance_mm], use_subvoxels=True)
    room = [(2, 2)] * 3
    pair = [to_one_hot(np.pad(mask, room)) for mask in (found, reference)]
    assert nsd == pytest.approx(float(metric(*pair, spacing=list(SPACING_MM))), abs=1e-5)
    assert 0.2 < nsd < 1


def test_tolerance_is_in_millimetres_along_every_axis() -> None:
    reference = np.zeros((12, 12, 12), dtype=bool)
    reference[3:8, 3:8, 3:8] = True
    for axis, step_mm in enumerate(SPACING_MM):
        found = np.roll(reference, 1, axis=axis)
        just_enough = measure_nsd(reference, found, spacing_mm=SPACING_MM, tolerance_mm=step_mm * 1.01)
        too_little = measure_nsd(reference, found, spacing_mm=SPACING_MM, tolerance_mm=step_mm * 0.4)
        assert just_enough == pytest.approx(1)
        assert too_little < 0.95


def test_case_is_scored_label_by_label() -> None:
    reference = np.zeros((7, 9, 11), dtype=np.uint8)
    reference[1:5, 1:5, 1:5] = 1
    reference[2:4, 2:4, 2:4] = 2
    found = reference.copy()
    found[2:4, 2:4, 3] = 1
    scores = score_case(reference, found, LABELS, spacing_mm=SPACING_MM)
    assert scores["tumor"].dice == pytest.approx(2 * 4 / (8 + 4))
    assert scores["liver"].dice == pytest.approx(2 * 56 / (56 + 60))
    assert scores["tumor"].reference_ml == pytest.approx(8 * 0.7 * 0.8 * 2.5 / 1000)
    assert scores["tumor"].found_ml == pytest.approx(4 * 0.7 * 0.8 * 2.5 / 1000)


@pytest.mark.parametrize(
    ("in_reference", "in_prediction", "score"),
    [(True, False, 0.0), (False, True, None), (False, False, None), (True, True, 1.0)],
)
def test_empty_masks_mean_what_the_table_says(in_reference: bool, in_prediction: bool, score: float | None) -> None:
    reference, found = (np.zeros((7, 9, 11), dtype=np.uint8) for _ in range(2))
    reference[2:4, 2:5, 2:6] = 2 * in_reference
    found[2:4, 2:5, 2:6] = 2 * in_prediction
    scores = score_case(reference, found, LABELS, spacing_mm=SPACING_MM)
    assert scores["tumor"].dice == pytest.approx(score)
    assert scores["tumor"].nsd == pytest.approx(score)
    assert scores["liver"] == LabelScore(None, None, 0.0, 0.0)


def test_prediction_on_another_grid_is_refused() -> None:
    maps = np.zeros((7, 9, 11), dtype=np.uint8), np.zeros((7, 9, 10), dtype=np.uint8)
    with pytest.raises(BenchmarkError, match="expected the shape of its reference, 7x9x11, found 7x9x10"):
        score_case(*maps, LABELS, spacing_mm=SPACING_MM)
