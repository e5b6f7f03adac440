from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maisi_aug.errors import TrainingError
from maisi_aug.training.loop import CHECKPOINT_NAME, LOG_NAME, TrainingRun
from maisi_aug.training.processes import WHOLE, Share
from maisi_aug.training.settings import LoopConfig


class Line:
    """Fit a line through noisy points, with a normalisation layer whose counts are not floating point."""

    def __init__(self, *, breaks_at: int | None = None) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.breaks_at = breaks_at
        self.num_after = 0

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        return {"line": self.network}

    def loss(self, step: int, share: Share = WHOLE) -> tuple[Tensor, dict[str, float]]:
        points = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        loss = (self.network(points)[:, 0] - points.sum(1)).square().mean()
        return loss * (float("nan") if step == self.breaks_at else 1.0), {"num_after": float(self.num_after)}

    def after_step(self, step: int) -> None:
        self.num_after += 1

    def state(self) -> dict[str, Any]:
        return {"num_after": self.num_after}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.num_after = int(state["num_after"])


def build_config(**changes: Any) -> LoopConfig:
    settings = {"num_steps": 20, "learning_rate": 0.01, "num_warmup_steps": 3, "mixed_precision": False}
    return LoopConfig.model_validate({**settings, **changes})


def start(folder: Path, objective: Line | None = None, **changes: Any) -> TrainingRun:
    return TrainingRun(objective or Line(), build_config(**changes), folder, device="cpu")


def read_checkpoint(folder: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(folder / CHECKPOINT_NAME, weights_only=True)
    return checkpoint


def assert_equal(found: Any, expected: Any) -> None:
    """Compare nested tensors bit by bit."""
    if isinstance(expected, Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, Mapping):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert_equal(ours, theirs)
    else:
        assert found == expected


class StoppedError(Exception):
    """Ends a run from outside, between two steps."""


def stop_at(last: int) -> Any:
    def report(step: int, figures: dict[str, float]) -> None:
        if step == last:
            raise StoppedError

    return report


def test_loss_falls_and_every_step_is_logged(tmp_path: Path) -> None:
    told: list[int] = []
    result = start(tmp_path, num_steps=200).train(report_step=lambda step, figures: told.append(step))
    assert (result.num_steps_done, result.is_complete) == (200, True)
    rows = [json.loads(line) for line in (tmp_path / LOG_NAME).read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == told == list(range(1, 201))
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]
    assert set(rows[0]) == {"step", "loss", "gradient_norm", "num_after"}


def test_run_stopped_by_the_clock_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole").train()
    result = start(tmp_path / "parts").train(max_minutes=0.0)
    assert (result.num_steps_done, result.is_complete) == (1, False)
    for _ in range(25):
        result = start(tmp_path / "parts").train(max_minutes=0.0)
    assert (result.num_steps_done, result.is_complete) == (20, True)
    assert_equal(result.averaged_weights, whole.averaged_weights)
    assert_equal(read_checkpoint(tmp_path / "parts"), read_checkpoint(tmp_path / "whole"))


def test_run_that_died_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole").train()
    run = start(tmp_path / "died", checkpoint_minutes=1e-9)
    with pytest.raises(StoppedError):
        run.train(report_step=stop_at(7))
    assert read_checkpoint(tmp_path / "died")["step"] == 6
    result = start(tmp_path / "died", checkpoint_minutes=5.0).train()
    assert_equal(result.averaged_weights, whole.averaged_weights)
    assert read_checkpoint(tmp_path / "died")["objective"] == {"num_after": 20}


def test_complete_run_is_left_as_it_is(tmp_path: Path) -> None:
    first = start(tmp_path).train()
    second = start(tmp_path).train(report_step=lambda step, figures: pytest.fail("a step was made"))
    assert second.is_complete
    assert_equal(second.averaged_weights, first.averaged_weights)


def test_other_configuration_is_refused_by_its_fields(tmp_path: Path) -> None:
    start(tmp_path).train(max_minutes=0.0)
    with pytest.raises(TrainingError, match="found other values of learning_rate, num_steps. Use another folder"):
        start(tmp_path, learning_rate=0.02, num_steps=21)


def test_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    run = start(tmp_path, Line(breaks_at=4), checkpoint_minutes=1e-9)
    with pytest.raises(
        TrainingError,
        match=r"Training step 4: expected a finite loss, found nan; the last checkpoint is .*checkpoint\.pt\. Lower l",
    ):
        run.train()
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint["step"] == 4
    assert all(value.isfinite().all() for value in checkpoint["networks"]["line"].values())


@pytest.mark.parametrize("num_bytes", [0, 20, -100])
def test_checkpoint_that_is_cut_off_is_refused(num_bytes: int, tmp_path: Path) -> None:
    start(tmp_path).train(max_minutes=0.0)
    path = tmp_path / CHECKPOINT_NAME
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: expected a checkpoint of this program, found what torch"):
        start(tmp_path)


def test_kept_weights_are_a_moving_average_with_a_young_start(tmp_path: Path) -> None:
    run = start(tmp_path, average_decay=0.9, num_steps=100)
    key = "0.weight"
    average = run.objective.networks["line"].state_dict()[key].clone()
    history: list[Tensor] = []

    def note(step: int, figures: dict[str, float]) -> None:
        history.append(run.objective.networks["line"].state_dict()[key].clone())

    result = run.train(report_step=note)
    for step, value in enumerate(history):
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * value
    assert torch.allclose(result.averaged_weights["line"][key], average, atol=1e-6)
    assert not torch.allclose(average, history[-1], atol=1e-6)
    assert int(result.averaged_weights["line"]["1.num_batches_tracked"]) == 100


def test_learning_rate_of_every_step_is_that_of_the_schedule(tmp_path: Path) -> None:
    run = start(tmp_path)
    rates: list[float] = []
    run.train(report_step=lambda step, figures: rates.append(run.optimizer.param_groups[0]["lr"]))
    assert rates == [build_config().learning_rate_at(step) for step in range(20)]


def test_gradients_are_scaled_down_to_the_norm(tmp_path: Path) -> None:
    run = start(tmp_path, max_gradient_norm=1e-3)
    figures: list[float] = []
    run.train(max_minutes=0.0, report_step=lambda step, f: figures.append(f["gradient_norm"]))
    total = torch.stack([p.grad.norm() for p in run.parameters if p.grad is not None]).norm()
    assert float(total) == pytest.approx(1e-3, rel=1e-2)
    assert figures[0] > 1e-3
