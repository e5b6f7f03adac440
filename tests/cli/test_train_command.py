from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.bundle_spec.bundle import load_bundle
from maisi_aug.training.cases.data import PhantomStore
from maisi_aug.training.loop.run_files import StepLog
from tests.builders.tiny_training import SHAPE, SPACING_MM, write_prepared, write_recipe

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = PhantomStore(tmp_path_factory.mktemp("phantoms"), seed=5, shape=SHAPE, spacing_mm=SPACING_MM)
    store.ensure(2, num_workers=1)
    return store.folder


@pytest.fixture
def train(run_cli: Callable[..., Any], phantoms: Path, tmp_path: Path) -> Callable[..., Any]:
    """Run a stage of the tiny recipe in ``tmp_path / "run"``, which has its phantoms."""
    shutil.copytree(phantoms, tmp_path / "run" / phantoms.name)
    recipe = write_recipe(tmp_path / "tiny.yaml")

    def call(stage: str, *options: str | Path) -> Any:
        return run_cli("train", stage, "--recipe", recipe, "--out", tmp_path / "run", "--device", "cpu", *options)

    return call


def test_three_stages_end_in_a_bundle(train: Callable[..., Any], tmp_path: Path) -> None:
    for stage in ("vae", "diffusion"):
        assert train(stage) == (0, f"{tmp_path / 'run' / stage}\n", "")
    assert train("controlnet") == (0, f"{tmp_path / 'run' / 'bundle'}\n", "")
    bundle = load_bundle(tmp_path / "run" / "bundle")
    bundle.require_intact()
    assert bundle.spec.provenance["steps"] == {"vae": 3, "diffusion": 2, "controlnet": 2}


def test_run_that_is_out_of_time_says_how_far_it_is_and_goes_on(train: Callable[..., Any], tmp_path: Path) -> None:
    first = train("vae", "--max-minutes", "0")
    assert first == (0, f"{tmp_path / 'run' / 'vae'}\n", "vae: 1 of 3 steps; run the same command again to continue.\n")
    assert train("vae").stderr == ""


def test_prepared_folder_takes_the_place_of_the_phantoms(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data")
    recipe = write_recipe(tmp_path / "tiny.yaml")
    outcome = run_cli("train", "vae", "--recipe", recipe, "--out", tmp_path / "run", "--data", data, "--device", "cpu")
    assert outcome == (0, f"{tmp_path / 'run' / 'vae'}\n", "")
    assert "data.cases" in (tmp_path / "run" / "vae" / "settings.json").read_text(encoding="utf-8")
    outcome = run_cli("train", "vae", "--recipe", recipe, "--out", tmp_path / "run", "--data", tmp_path)
    assert outcome.code == 1
    assert "not a prepared folder, because dataset.yaml" in outcome.stderr


def test_prepared_cases_need_a_recipe_that_is_not_for_phantoms(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    outcome = run_cli("train", "vae", "--out", tmp_path / "run", "--data", write_prepared(tmp_path / "data"))
    assert outcome.code == 2
    assert "--recipe: required with --data, because" in outcome.stderr
    assert not (tmp_path / "run").exists()


def test_terminated_run_says_so_and_goes_on(
    train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = StepLog.write

    def write_and_stop(log: StepLog, step: int, *arguments: Any, **options: Any) -> None:
        write(log, step, *arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(StepLog, "write", write_and_stop)
        stopped = train("vae")
    message = "Stopped on request; finished work is kept, and the same command continues from there.\n"
    assert stopped == (130, "", message)
    assert train("vae").code == 0
    assert len((tmp_path / "run" / "vae" / "log.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_tensorboard_has_the_scalars_of_every_step(train: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train("vae", "--tensorboard").code == 0
    events = EventAccumulator(str(tmp_path / "run" / "vae" / "tensorboard")).Reload()
    assert {"training/loss", "training/mean_error_hu"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("training/loss")] == [1, 2, 3]


def test_missing_tensorboard_is_one_sentence(train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    outcome = train("vae", "--tensorboard")
    assert outcome.code == 1
    assert "TensorBoard: the package tensorboard is missing" in outcome.stderr


@pytest.mark.slow
def test_two_processes_train_all_stages_under_torchrun(tmp_path: Path) -> None:
    data, recipe, folder = write_prepared(tmp_path / "data"), write_recipe(tmp_path / "tiny.yaml"), tmp_path / "run"
    for stage in ("vae", "diffusion", "controlnet"):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        options = ["--recipe", recipe, "--out", folder, "--data", data, "--device", "cpu"]
        command = [*launcher, "-m", "maisi_aug.cli.app", "train", stage, *options]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{folder / ('bundle' if stage == 'controlnet' else stage)}\n"
        rows = (folder / stage / "log.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(rows) == {"vae": 3}.get(stage, 2)
    load_bundle(folder / "bundle").require_intact()


def test_stage_out_of_order_is_one_sentence(train: Callable[..., Any]) -> None:
    outcome = train("diffusion")
    assert (outcome.code, outcome.stdout) == (1, "")
    assert "Run 'maisi-aug train vae' first." in outcome.stderr
    assert outcome.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--recipe", "train-fantom-ct"], 2, "Did you mean 'train-phantom-ct', 'train-"),
        (["--device", "tpu"], 1, "Device 'tpu': torch cannot use it"),
        (["--max-minutes", "-1"], 2, "'--max-minutes': Input should be greater than or equal to 0"),
    ],
    ids=["recipe", "device", "minutes"],
)
def test_wrong_option_is_one_sentence(
    options: list[str], code: int, message: str, run_cli: Callable[..., Any], tmp_path: Path
) -> None:
    outcome = run_cli("train", "vae", "--out", tmp_path / "run", *options)
    assert (outcome.code, outcome.stdout) == (code, "")
    assert message in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_help_names_the_stages(run_cli: Callable[..., Any]) -> None:
    outcome = run_cli("train", "--help")
    assert outcome.code == 0
    for stage in ("vae", "diffusion", "controlnet"):
        assert stage in outcome.stdout


def test_time_counts_the_phantoms_and_the_same_command_goes_on(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path / "tiny.yaml"), tmp_path / "run"
    words = ["train", "vae", "--recipe", recipe, "--out", out, "--device", "cpu"]
    stopped = run_cli(*words, "--max-minutes", "0")
    assert (stopped.code, stopped.stdout) == (0, f"{out}\n")
    told = stopped.stderr.splitlines()[-1]
    assert told == "vae: time limit reached while building phantoms, 1 of 2; run the same command again to continue."
    assert len(list(out.glob("phantoms-*/*.npz"))) in (1, 2)  # two workers may have finished both by then
    assert not (out / "vae" / "log.jsonl").exists()
    assert run_cli(*words).code == 0
    assert len(list(out.glob("phantoms-*/*.npz"))) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_progress_is_shown_from_the_first_second(repository: Path, tmp_path: Path) -> None:
    """On a terminal: before PyTorch is there, which takes several seconds."""
    import pty

    recipe = write_recipe(tmp_path / "tiny.yaml")
    reader, writer = pty.openpty()
    words = ["train", "vae", "--recipe", str(recipe), "--out", str(tmp_path / "run"), "--max-minutes", "0"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-m", "maisi_aug", *words], cwd=repository, stderr=writer, stdout=writer, env=environment
    )
    os.close(writer)
    seen = b""
    try:
        while more := os.read(reader, 4096):  # to the end: a terminal that nobody reads stops the program
            seen += more
    except OSError:  # the other end is closed
        pass
    finally:
        process.wait(120)
        os.close(reader)
    assert b"loading libraries" in seen
    assert seen.index(b"loading libraries") < seen.index(b"Building phantoms")
