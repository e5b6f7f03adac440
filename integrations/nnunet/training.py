"""nnU-Net planned on some cases of a dataset and trained on folds of it, for a set number of steps.

Planning and training run as processes of their own (see :mod:`maisi_aug.integrations.nnunet.check`). Plans are made on
the real cases in a scratch folder and moved to the dataset that holds all cases, so that every fold trains with them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from maisi_aug.errors import BenchmarkError
from maisi_aug.integrations.nnunet.check import count_processes, last_words, run_nnunet
from maisi_aug.integrations.nnunet.compact import COMPACT_SUFFIX, write_compact_plans
from maisi_aug.integrations.nnunet.plans import DEFAULT_PLANS, RealPlans, plan_on_cases
from maisi_aug.integrations.nnunet.splits import SPLITS_NAME
from maisi_aug.system.whole_files import write_json_whole

CONFIGURATION: Final = "3d_fullres"
TRAINER: Final = "nnUNetTrainer"
MAX_EPOCH_STEPS: Final = 250  # of nnU-Net's own epochs
COMPACT_SIDE: Final = 48
REAL_CASES: Final = "Dataset999_RealCases"  # what the real cases are called while nnU-Net plans on them alone

_PREPROCESS = """
import sys
from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

dataset_id, plans, configuration, num_processes = sys.argv[1:]
preprocess_dataset(int(dataset_id), plans, (configuration,), (int(num_processes),), show_progress_bar=False)
"""
_TRAIN = """
import multiprocessing, os, random, signal, sys, threading
from pathlib import Path
import numpy as np
import torch
from nnunetv2.run.run_training import get_trainer_from_args

dataset, configuration, fold, trainer_name, plans, device, num_epochs, num_iterations, seed = sys.argv[1:]
main = os.getpid()


def stop(*_):  # with the workers that draw batches, which would live on and hold the pipe of the output
    for worker in multiprocessing.active_children() if os.getpid() == main else ():
        worker.terminate()
    os._exit(1)


def follow():  # the process that reads the output: killed, it cannot end this one, which another would train beside
    os.read(0, 1)  # not sys.stdin, whose lock a forked worker would wait for when it closes it
    stop()


signal.signal(signal.SIGTERM, stop)
threading.Thread(target=follow, daemon=True).start()
random.seed(int(seed))
np.random.seed(int(seed) % 2**32)
torch.manual_seed(int(seed))
trainer = get_trainer_from_args(dataset, configuration, int(fold), trainer_name, plans, device=torch.device(device))
trainer.num_epochs = int(num_epochs)
trainer.num_iterations_per_epoch = int(num_iterations)
trainer.num_val_iterations_per_epoch = 1  # validates on a training case; nothing is chosen by it
trainer.save_every = max(1, int(num_epochs) // 20)
save = trainer.save_checkpoint


def save_whole(path):
    save(path + ".part")
    if os.path.exists(path + ".part"):
        os.replace(path + ".part", path)


trainer.save_checkpoint = save_whole
latest = Path(trainer.output_folder) / "checkpoint_latest.pth"
if latest.is_file():
    trainer.load_checkpoint(str(latest))
trainer.run_training()
"""
_SECONDS_TO_END = 30.0
_EPOCH = re.compile(r"train_loss (-?\d+\.\d+)")

ReportEpoch = Callable[[int, float], None]


def prepare_nnunet_folds(
    folder: Path,
    dataset: str,
    description: Mapping[str, Any],
    *,
    planned_on: Sequence[str],
    folds: Sequence[Sequence[str]],
    is_compact: bool,
) -> str:
    """Plan an nnU-Net dataset on some of its cases, preprocess all of it, and write its folds.

    Args:
        folder: Folder for the sub-folders ``raw`` and ``preprocessed``.
        dataset: Name such as ``Dataset001_Benchmark``.
        description: Content of ``dataset.json``, whose entry ``dataset`` names every file.
        planned_on: Ids of the cases on which plans and HU statistics are based; the first one validates in every fold.
        folds: Ids of the training cases of every fold.
        is_compact: Whether to shrink patch and network for a CPU.

    Returns:
        Name of the plans to train with.

    Raises:
        BenchmarkError: nnU-Net's preprocessing fails; the message contains its last line of output.
        ExportError: nnU-Net's planning fails, or the plans cannot be made compact.
    """
    raw, preprocessed = folder / "raw", folder / "preprocessed"
    for place in (raw, preprocessed):
        write_json_whole(place / dataset / "dataset.json", description)
    num_processes = str(count_processes(len(description["dataset"])))
    environment = _environment(raw, preprocessed, folder / "results")
    alone = {case_id: description["dataset"][case_id] for case_id in planned_on}
    own = RealPlans(DEFAULT_PLANS, None)
    plan_on_cases({**description, "dataset": alone}, REAL_CASES, dataset, plans=own, building=preprocessed / dataset)
    plans = own.moved_name
    if is_compact:
        write_compact_plans(preprocessed / dataset, plans, side=COMPACT_SIDE)
        plans += COMPACT_SUFFIX
    _run(_PREPROCESS, [dataset[7:10].lstrip("0"), plans, CONFIGURATION, num_processes], environment, "preprocessing")
    splits = [{"train": list(fold), "val": [planned_on[0]]} for fold in folds]
    write_json_whole(preprocessed / dataset / SPLITS_NAME, splits)
    return plans


def train_nnunet_fold(
    folder: Path,
    dataset: str,
    plans: str,
    *,
    fold: int,
    results: Path,
    num_steps: int,
    seed: int,
    device: str,
    max_minutes: float | None = None,
    report_epoch: ReportEpoch = lambda epoch, loss: None,
) -> Path | None:
    """Train one fold of an nnU-Net dataset, or continue where it was stopped.

    Args:
        folder: Folder that :func:`prepare_nnunet_folds` prepared.
        dataset: Name of the dataset.
        plans: Name of the plans.
        fold: Number of the fold.
        results: Folder for nnU-Net's results.
        num_steps: Total number of optimiser steps.
        seed: Seed of weights and batches.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        max_minutes: Stop after this many minutes; a later call continues from the last saved epoch.
        report_epoch: Progress callback, called after each epoch with (steps done, loss).

    Returns:
        Folder of the trained model; None if the time limit was reached.

    Raises:
        BenchmarkError: nnU-Net fails; the message contains its last line of output.
    """
    model = results / dataset / f"{TRAINER}__{plans}__{CONFIGURATION}"
    final = model / f"fold_{fold}" / "checkpoint_final.pth"
    if final.is_file():
        return model
    num_iterations = next(n for n in range(min(MAX_EPOCH_STEPS, num_steps), 0, -1) if num_steps % n == 0)
    arguments = [dataset, CONFIGURATION, str(fold), TRAINER, plans, device.split(":")[0]]
    arguments += [str(num_steps // num_iterations), str(num_iterations), str(seed)]
    environment = _environment(folder / "raw", folder / "preprocessed", results) | show_device(device)
    if device == "cpu":
        environment |= {"nnUNet_compile": "f", "nnUNet_n_proc_DA": "0"}
    lines = _follow(arguments, environment, max_minutes, lambda n, loss: report_epoch(n * num_iterations, loss))
    if lines is None:
        return None
    if not final.is_file():
        raise BenchmarkError(f"nnU-Net: the fold was not trained: {lines[-300:] or 'no message'}. See {model}.")
    return model


def show_device(device: str) -> dict[str, str]:
    """Return the environment variable that hides all but one GPU from nnU-Net, which always takes the first.

    Args:
        device: Device such as ``cuda:1``, counted among those that this process sees; others need no variable.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda" or not number:
        return {}
    seen = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return {"CUDA_VISIBLE_DEVICES": seen[int(number)] if int(number) < len(seen) else number}


def _follow(
    arguments: list[str], environment: dict[str, str], max_minutes: float | None, report: ReportEpoch
) -> str | None:
    """Run the training and read what it prints; None if it was stopped at the time limit."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _TRAIN, *arguments],
        stdin=subprocess.PIPE,  # closed when this process ends, however it ends
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **environment},
    )
    is_late = threading.Event()

    def stop() -> None:
        is_late.set()
        process.terminate()

    timer = None if max_minutes is None else threading.Timer(60 * max_minutes, stop)
    num_epochs, last = 0, ""
    with process:
        try:
            if timer is not None:
                timer.start()
            for line in process.stdout or ():
                last = line.strip() or last
                found = _EPOCH.search(line)
                if found:
                    num_epochs += 1
                    report(num_epochs, float(found[1]))
        except BaseException:  # Ctrl-C too must not leave a training behind
            process.terminate()
            try:
                process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
        finally:
            if timer is not None:
                timer.cancel()
    return None if is_late.is_set() else last


def _environment(raw: Path, preprocessed: Path, results: Path) -> dict[str, str]:
    folders = {"nnUNet_raw": raw, "nnUNet_preprocessed": preprocessed, "nnUNet_results": results}
    return {name: str(path.resolve()) for name, path in folders.items()}


def _run(program: str, arguments: list[str], environment: dict[str, str], stage: str) -> None:
    done = run_nnunet(program, arguments, environment=environment)
    if done.returncode != 0:
        raise BenchmarkError(f"nnU-Net, {stage}: failed: {last_words(done)} Check the cases that it names.")
