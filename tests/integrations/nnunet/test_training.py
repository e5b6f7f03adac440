from __future__ import annotations

import time
from pathlib import Path

import pytest

from maisi_aug.errors import BenchmarkError
from maisi_aug.integrations.nnunet import training as nnunet_training
from maisi_aug.integrations.nnunet.training import show_device, train_nnunet_fold


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
    with pytest.raises(BenchmarkError, match="nnU-Net: the fold was not trained: the card has no memory left"):
        train(tmp_path, [])


def test_training_is_stopped_when_the_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_program(monkeypatch, "import time; print('train_loss 0.5', flush=True); time.sleep(60)")
    assert train(tmp_path, [], max_minutes=0.01) is None


def test_failed_preprocessing_is_told_with_its_last_words() -> None:
    with pytest.raises(BenchmarkError, match="nnU-Net, preprocessing: failed: boom"):
        nnunet_training._run("import sys; sys.exit('boom')", [], {}, "preprocessing")


@pytest.mark.parametrize(
    ("seen", "device", "expected"),
    [
        (None, "cuda:1", {"CUDA_VISIBLE_DEVICES": "1"}),
        ("4,GPU-7", "cuda:1", {"CUDA_VISIBLE_DEVICES": "GPU-7"}),
        ("4", "cuda", {}),
        (None, "cpu", {}),
    ],
)
def test_nnunet_sees_the_chosen_gpu_alone(
    monkeypatch: pytest.MonkeyPatch, seen: str | None, device: str, expected: dict[str, str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert show_device(device) == expected


STAND_IN = """
import fcntl, multiprocessing, os, sys, time, types
from pathlib import Path
folder = Path({folder!r})


def draw():
    held = open(folder / "held by the worker", "w")
    fcntl.flock(held, fcntl.LOCK_EX)
    (folder / "worker draws").touch()
    time.sleep(600)


class Trainer:
    output_folder = str(folder)

    def save_checkpoint(self, path):
        Path(path).write_text("half")
        (folder / "seen").write_text(" ".join(sorted(p.name for p in folder.glob("*.pth"))))
        Path(path).write_text("whole")

    def run_training(self):
        self.save_checkpoint(str(folder / "checkpoint_latest.pth"))
        multiprocessing.get_context("fork").Process(target=draw, daemon=True).start()
        while not (folder / "worker draws").exists():
            time.sleep(0.01)
        print("train_loss 0.5", flush=True)
        time.sleep(600)


module = types.ModuleType("nnunetv2.run.run_training")
module.get_trainer_from_args = lambda *arguments, **settings: Trainer()
for name in ("nnunetv2", "nnunetv2.run"):
    sys.modules[name] = types.ModuleType(name)
sys.modules[module.__name__] = module
sys.modules["torch"] = torch = types.ModuleType("torch")  # takes seconds to load, and only seeds are set
torch.manual_seed = torch.device = lambda value: value
"""


def test_stopped_training_leaves_no_half_checkpoint_and_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_program(monkeypatch, STAND_IN.format(folder=str(tmp_path)) + nnunet_training._TRAIN)

    def stop_at_first_epoch(step: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_nnunet_fold(
            tmp_path, "D", "p", fold=0, results=tmp_path / "r", num_steps=5, seed=1, device="cpu",
            report_epoch=stop_at_first_epoch,
        )  # fmt: skip
    assert (tmp_path / "seen").read_text() == ""  # while it was being written, nothing had the name yet
    assert (tmp_path / "checkpoint_latest.pth").read_text() == "whole"
    wait_until_released(tmp_path / "held by the worker")


def wait_until_released(path: Path, timeout_s: float = 60) -> None:
    """Return once no process holds a lock on a file: a lock ends with its process, however that ends.

    A process id would not do: it may be given to another process, and a dead one keeps it until it is collected.
    """
    import fcntl

    ends_at = time.monotonic() + timeout_s
    with path.open() as file:
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                assert time.monotonic() < ends_at, f"a worker still draws after {timeout_s:g} s"
            time.sleep(0.05)
