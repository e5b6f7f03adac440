from __future__ import annotations

import json
import math
import os
import resource
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maisi_aug.errors import TrainingError
from maisi_aug.training.loop.amp import Precision
from maisi_aug.training.loop.processes import WHOLE, Share
from maisi_aug.training.loop.run import CHECKPOINT_NAME, LOG_NAME, TrainingRun, Validate
from maisi_aug.training.loop.settings import LoopConfig
from maisi_aug.training.loop.stopping import TrainingStopped
from tests.oracles.rounding import depth_of, error_of, require_same_formula, rounding


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
        points = torch.randn(8 * share.count, 3, generator=torch.Generator().manual_seed(step))[share.slice_of(8)]
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


def start(
    folder: Path,
    objective: Line | None = None,
    *,
    validate: Validate | None = None,
    precision: Precision | None = None,
    **changes: Any,
) -> TrainingRun:
    config = build_config(**changes)
    return TrainingRun(objective or Line(), config, folder, device="cpu", validate=validate, precision=precision)


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
    with pytest.raises(TrainingError, match="its checkpoint has other values of learning_rate, num_steps"):
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
    with pytest.raises(TrainingError, match="checkpoint.pt: not a checkpoint that torch can read"):
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
    # An average over ten steps, of which every one rounds.
    assert error_of(result.averaged_weights["line"][key], average.double()) <= rounding(10)
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


class PlainLine(Line):
    """The same without a normalisation that looks at the whole batch."""

    def __init__(self, *, num_points: int = 8, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        with torch.no_grad():
            for number, parameter in enumerate(self.network.parameters()):
                parameter.copy_(torch.linspace(-0.5, 0.5 + number, parameter.numel()).view(parameter.shape))
        self.network.to(dtype)
        self.num_points, self.dtype = num_points, dtype

    def loss(self, step: int, share: Share = WHOLE) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(step)
        points = torch.randn(self.num_points * share.count, 3, generator=generator, dtype=self.dtype)
        points = points[share.slice_of(self.num_points)]
        return (self.network(points)[:, 0] - points.sum(1)).square().mean(), {}


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG_NAME).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_optimizer_is_that_of_the_settings(optimizer: str, tmp_path: Path) -> None:
    run = start(tmp_path, optimizer=optimizer, second_beta=0.95, weight_decay=0.3)
    assert type(run.optimizer).__name__.lower() == optimizer
    (group,) = run.optimizer.param_groups
    assert (group["betas"], group["weight_decay"]) == ((0.9, 0.95), 0.3)


def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path: Path) -> None:
    # In float64: Adam divides a gradient by its own size, so that one of rounding alone would be a whole step.
    lines = [PlainLine(num_points=num_points, dtype=torch.float64) for num_points in (24, 8)]
    depth = 2 * depth_of(lines[0].network) * build_config().num_steps
    large = start(tmp_path / "large", lines[0]).train()
    small = start(tmp_path / "small", lines[1], accumulation_count=3).train()
    for key, value in large.averaged_weights["line"].items():
        require_same_formula(small.averaged_weights["line"][key], value, depth=depth)
    losses = [[row["loss"] for row in read_rows(tmp_path / name)] for name in ("large", "small")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_other_number_of_batches_a_step_is_refused(tmp_path: Path) -> None:
    start(tmp_path, PlainLine(), accumulation_count=2).train(max_minutes=0.0)
    with pytest.raises(TrainingError, match="was begun with 2 batches a step"):
        start(tmp_path, PlainLine(), accumulation_count=3)


def test_checkpoint_from_before_a_setting_existed_goes_on(tmp_path: Path) -> None:
    start(tmp_path).train(max_minutes=0.0)
    checkpoint = read_checkpoint(tmp_path)
    for name in ("decay_power", "optimizer", "second_beta", "accumulation_count", "validation_steps", "patience"):
        del checkpoint["config"][name]
    for name in ("num_shares", "precision", "best"):
        del checkpoint[name]
    torch.save(checkpoint, tmp_path / CHECKPOINT_NAME)
    assert start(tmp_path).step == 1


def test_without_average_the_last_weights_are_kept(tmp_path: Path) -> None:
    run = start(tmp_path, average_decay=0.0)
    kept = run.train().averaged_weights["line"]
    assert_equal(kept, run.objective.networks["line"].state_dict())
    assert read_checkpoint(tmp_path)["averages"] == {}
    assert_equal(start(tmp_path, average_decay=0.0).train().averaged_weights["line"], kept)


class Valley:
    """Validation losses that fall and rise again, with what the networks held at each."""

    def __init__(self, losses: list[float]) -> None:
        self.losses = losses
        self.seen: list[Tensor] = []
        self.run: TrainingRun | None = None

    def __call__(self) -> dict[str, float]:
        assert self.run is not None
        self.seen.append(self.run.objective.networks["line"].state_dict()["0.weight"].clone())
        return {"loss": self.losses[self.run.step // 4 - 1]}


def test_weights_of_the_best_validation_are_kept(tmp_path: Path) -> None:
    valley = Valley([5.0, 2.0, 3.0, 4.0, 2.5])
    valley.run = start(tmp_path, validate=valley, validation_steps=4)
    result = valley.run.train()
    assert (result.best_step, result.best_loss, result.is_complete) == (8, 2.0, True)
    assert torch.equal(result.averaged_weights["line"]["0.weight"], valley.seen[1])
    assert [row["validation"]["loss"] for row in read_rows(tmp_path) if "validation" in row] == valley.losses


def test_validation_sees_the_average_and_leaves_the_weights(tmp_path: Path) -> None:
    valley = Valley([1.0] * 5)
    valley.run = start(tmp_path / "with", validate=valley, validation_steps=4)
    with_validation = valley.run.train()
    plain = start(tmp_path / "without").train()
    assert with_validation.best_step == 4
    end = valley.run.average.copy()["line"]
    assert_equal(end, plain.averaged_weights["line"])
    assert not torch.equal(valley.seen[-1], valley.run.objective.networks["line"].state_dict()["0.weight"])


def test_training_ends_when_validation_stops_gaining_and_so_does_a_resumed_run(tmp_path: Path) -> None:
    for name, minutes in (("whole", None), ("parts", 0.0)):
        result = None
        while result is None or not result.is_complete:
            valley = Valley([5.0, 2.0, 3.0, 4.0, 1.0])
            valley.run = start(tmp_path / name, validate=valley, validation_steps=4, patience=2)
            result = valley.run.train(max_minutes=minutes)
        assert (result.num_steps_done, result.best_step) == (16, 8)
    assert_equal(read_checkpoint(tmp_path / "parts"), read_checkpoint(tmp_path / "whole"))


def test_validation_needs_held_out_cases(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="validation_steps: needs held-out cases"):
        start(tmp_path, validation_steps=4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_run_after_its_step_with_a_checkpoint(number: signal.Signals, tmp_path: Path) -> None:
    def interrupt(step: int, figures: dict[str, float]) -> None:
        if step == 5:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(TrainingStopped):
        start(tmp_path / "stopped").train(report_step=interrupt)
    assert signal.getsignal(number) == before
    assert read_checkpoint(tmp_path / "stopped")["step"] == 5
    result = start(tmp_path / "stopped").train()
    assert_equal(result.averaged_weights, start(tmp_path / "whole").train().averaged_weights)


def test_steps_after_the_last_checkpoint_are_logged_once(tmp_path: Path) -> None:
    run = start(tmp_path, checkpoint_minutes=1e-9)
    with pytest.raises(StoppedError):
        run.train(report_step=stop_at(7))
    with (tmp_path / LOG_NAME).open("a", encoding="utf-8") as log:
        log.write('{"step": 8, "lo')  # what a kill in the middle of a line leaves
    start(tmp_path, checkpoint_minutes=5.0).train()
    assert [row["step"] for row in read_rows(tmp_path)] == list(range(1, 21))


class LimitedFiles:
    """No file may grow beyond so many bytes, as on a full disk."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.num_bytes, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_full_disk_leaves_the_former_checkpoint_whole(tmp_path: Path) -> None:
    start(tmp_path).train(max_minutes=0.0)
    before = (tmp_path / CHECKPOINT_NAME).read_bytes()
    run = start(tmp_path)
    message = "step 2 cannot be written:"
    with LimitedFiles(len(before) // 2), pytest.raises(TrainingError, match=message):
        run.train(max_minutes=0.0)
    assert (tmp_path / CHECKPOINT_NAME).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT_NAME, LOG_NAME}
    assert_equal(start(tmp_path).train().averaged_weights, start(tmp_path / "whole").train().averaged_weights)


def test_full_disk_at_the_first_checkpoint_says_that_there_is_none(tmp_path: Path) -> None:
    with (
        LimitedFiles(4096),
        pytest.raises(TrainingError, match="step 1 cannot be written: File too large; there is none yet"),
    ):
        start(tmp_path).train(max_minutes=0.0)


def test_full_disk_at_the_log_ends_the_run(tmp_path: Path) -> None:
    run = start(tmp_path)
    with (
        LimitedFiles(60),
        pytest.raises(TrainingError, match=r"log\.jsonl: the figures of step 1 cannot be written: File too large"),
    ):
        run.train()


class SteepLine(PlainLine):
    """A loss that is finite and whose gradient is not."""

    def loss(self, step: int, share: Share = WHOLE) -> tuple[Tensor, dict[str, float]]:
        loss, figures = super().loss(step, share)
        return loss + (0.0 * next(self.network.parameters()).sum()).abs().sqrt(), figures


def test_gradients_that_are_not_finite_end_the_run_before_the_step(tmp_path: Path) -> None:
    objective = SteepLine()
    before = {key: value.clone() for key, value in objective.network.state_dict().items()}
    with pytest.raises(TrainingError, match=r"found \d.* with gradients that are not; no checkpoint was written yet"):
        start(tmp_path, objective).train()
    assert_equal(dict(objective.network.state_dict()), before)


def test_float16_scales_the_loss_and_leaves_overflowing_steps_out(tmp_path: Path) -> None:
    precision = Precision("cpu", is_mixed=True, dtype=torch.float16)
    assert precision.scaler is not None
    run = start(tmp_path, PlainLine(), precision=precision, num_steps=60)
    run.train()
    rows = read_rows(tmp_path)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert 0 < precision.scaler.get_scale() <= 65536.0
    again = start(tmp_path, PlainLine(), precision=Precision("cpu", is_mixed=True, dtype=torch.float16), num_steps=60)
    assert again.precision.state() == precision.state()


def test_float16_that_no_scale_saves_ends_the_run(tmp_path: Path) -> None:
    precision = Precision("cpu", is_mixed=True, dtype=torch.float16)
    with pytest.raises(TrainingError, match="below 6e-05, because float16 gradients are not finite"):
        start(tmp_path, SteepLine(), precision=precision, num_steps=100).train()


def test_gradients_are_left_alone_without_a_norm(tmp_path: Path) -> None:
    run = start(tmp_path, max_gradient_norm=None)
    figures: list[float] = []
    run.train(max_minutes=0.0, report_step=lambda step, f: figures.append(f["gradient_norm"]))
    total = math.sqrt(sum(float(p.grad.square().sum()) for p in run.parameters if p.grad is not None))
    assert figures[0] == pytest.approx(total, rel=rounding(4))
