from __future__ import annotations

from pathlib import Path

import pytest

from maisi_aug.errors import BenchmarkError
from maisi_aug.integrations import nnunet_training
from maisi_aug.integrations.nnunet_training import train_nnunet_fold


def train(folder: Path, reports: list[tuple[int, float]], max_minutes: float | None = None) -> Path | None:
    return train_nnunet_fold(
        folder,
        "Dataset001_X",
        "plans",
        fold=1,
        results=folder / "results",
        num_steps=500,
        seed=1,
        device="cpu",
        max_minutes=max_minutes,
        report_epoch=lambda step, loss: reports.append((step, loss)),
    )


def use_program(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Another program in place of the training, to see how a process is followed whatever it does."""
    monkeypatch.setattr(nnunet_training, "_TRAIN", text)


def test_epochs_are_counted_and_the_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "results/Dataset001_X/nnUNetTrainer__plans__3d_fullres"
    use_program(
        monkeypatch,
        "import pathlib, os\n"
        "print('train_loss 0.5'); print('Epoch 1'); print('train_loss -0.25')\n"
        f"p = pathlib.Path(os.environ['nnUNet_results'], {str(model / 'fold_1')!r}); p.mkdir(parents=True)\n"
        "(p / 'checkpoint_final.pth').touch()\n",
    )
    reports: list[tuple[int, float]] = []
    assert train(tmp_path, reports) == model
    assert reports == [(250, 0.5), (500, -0.25)]
    use_program(monkeypatch, "raise SystemExit('never run again')")
    assert train(tmp_path, reports) == model


def test_failed_training_is_told_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_program(monkeypatch, "import sys; sys.exit('the card has no memory left')")
    with pytest.raises(BenchmarkError, match="expected a trained fold, found: the card has no memory left"):
        train(tmp_path, [])


def test_training_is_stopped_when_the_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_program(monkeypatch, "import time; print('train_loss 0.5', flush=True); time.sleep(60)")
    assert train(tmp_path, [], max_minutes=0.01) is None


def test_failed_planning_is_told_with_its_last_words() -> None:
    with pytest.raises(BenchmarkError, match="nnU-Net, planning: expected it to end well, found: boom"):
        nnunet_training._run("import sys; sys.exit('boom')", [], {}, "planning")
