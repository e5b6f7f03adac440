from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from maisi_aug.bundle_spec.grid_limits import GridSpec
from maisi_aug.errors import TrainingError
from maisi_aug.evaluation.studies.segmenter import SegmenterConfig, build_network, load_segmenter
from maisi_aug.evaluation.studies.train_segmenter import VARIATION, SegmenterObjective, main, train_segmenter
from maisi_aug.training.loop.settings import LoopConfig
from tests.builders.tiny_training import ArrayCase, ArrayStore

LIVER, HEPATIC_TUMOR, BODY = 1, 26, 200
CONFIG = SegmenterConfig(
    grid=GridSpec(shape=(32, 24, 20), spacing_mm=(12.8, 12.8, 12.8)),
    slots={},
    num_phantoms=2,
    widths=(4, 8, 8),
    patch_shape=(16, 16, 16),
    loop=LoopConfig(num_steps=4, num_warmup_steps=1),
)


class OneCase(ArrayStore):
    """A store of a single case with one lesion voxel in a corner."""

    def __init__(self) -> None:
        label_map = np.full((30, 24, 20), BODY, dtype=np.uint8)
        label_map[20:, 10:, 10:] = LIVER
        label_map[27, 2, 17] = HEPATIC_TUMOR
        rng = np.random.default_rng(0)
        image_hu = rng.integers(-100, 200, label_map.shape).astype(np.int16)
        super().__init__([ArrayCase(image_hu, label_map, (12.8, 12.8, 12.8), "ct")])


def build_objective(**changes: object) -> SegmenterObjective:
    config = CONFIG.model_copy(update=changes)
    return SegmenterObjective(build_network(config), OneCase(), config, device="cpu")


def test_batch_depends_on_the_step_alone() -> None:
    one, other = build_objective(), build_objective()
    other.draw_batch(1)
    for mine, theirs in zip(one.draw_batch(5), other.draw_batch(5), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert not torch.equal(one.draw_batch(5)[0], one.draw_batch(6)[0])


def test_lesion_share_puts_lesions_into_patches() -> None:
    lesion_class = len(CONFIG.tissues)
    always, never = build_objective(lesion_share=1.0), build_objective(lesion_share=0.0)
    with_lesion = [int((always.draw_batch(step)[1] == lesion_class).sum()) for step in range(8)]
    assert with_lesion == [2] * 8
    assert sum(int((never.draw_batch(step)[1] == lesion_class).sum()) for step in range(8)) < 16


def loss_of_missing(missed_class: int, lesion_weight: float) -> float:
    """The loss of scores that miss one of two slabs, of liver and lesion, and are sure and right elsewhere."""
    num_classes = len(CONFIG.tissues) + 1
    classes = torch.zeros(1, 8, 8, 8, dtype=torch.long)
    classes[:, :2], classes[:, 2:4] = 1, num_classes - 1
    drawn = classes.clone()
    drawn[classes == missed_class] = 0
    scores = 10.0 * torch.nn.functional.one_hot(drawn, num_classes).movedim(-1, 1).float()
    return float(build_objective(lesion_weight=lesion_weight).criterion(scores, classes[:, None]))


def test_lesions_count_as_much_as_wished() -> None:
    lesion_class = len(CONFIG.tissues)
    assert loss_of_missing(lesion_class, 1.0) == pytest.approx(loss_of_missing(1, 1.0), rel=1e-3)
    assert loss_of_missing(lesion_class, 4.0) > 2 * loss_of_missing(1, 4.0)


def test_loss_learns_from_a_single_case() -> None:
    torch.manual_seed(1)
    objective = build_objective(lesion_share=0.0)
    optimizer = torch.optim.Adam(objective.network.parameters(), lr=1e-2)
    losses = []
    for step in range(30):
        optimizer.zero_grad()
        loss, _ = objective.loss(step)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_varied_image_is_near_the_image_and_leaves_it_alone(rng: np.random.Generator) -> None:
    image_hu = np.full((7, 9, 11), 60, dtype=np.int16)
    varied = [VARIATION.apply(image_hu, rng) for _ in range(20)]
    assert (image_hu == 60).all()
    assert {array.dtype for array in varied} == {np.dtype(np.float32)}
    assert all(abs(float(np.median(array)) - 60) < 35 for array in varied)
    assert len({float(np.median(array)) for array in varied}) == 20


def test_training_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole = train_segmenter(CONFIG, tmp_path / "whole", device="cpu", num_workers=1)
    (phantoms,) = (tmp_path / "whole").glob("phantoms-*")
    (tmp_path / "parts").mkdir()
    phantoms.rename(tmp_path / "parts" / phantoms.name)  # the same seed: built once for both
    first = train_segmenter(CONFIG, tmp_path / "parts", device="cpu", max_minutes=0.0)
    assert first.num_steps == 1
    rest = train_segmenter(CONFIG, tmp_path / "parts", device="cpu")
    assert (rest.num_steps, whole.num_steps) == (4, 4)
    assert rest.fingerprint == whole.fingerprint
    with pytest.raises(TrainingError, match="its segmenter.json"):
        train_segmenter(CONFIG.model_copy(update={"seed": 2}), tmp_path / "parts", device="cpu")


@pytest.mark.slow
def test_command_trains_and_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--num-phantoms", "1", "--num-steps", "2", "--num-held-out", "1", "--num-workers", "1"]
    options += ["--recipe", "train-phantom-ct", "--device", "cpu"]
    assert main(["--out", str(tmp_path), *options]) == 0
    dice = json.loads((tmp_path / "held_out_dice.json").read_text())["dice"]
    assert list(dice) == [tissue.name for tissue in load_segmenter(tmp_path).tissues]
    assert "| lesion |" in capsys.readouterr().out
