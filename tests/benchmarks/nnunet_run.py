"""A real nnU-Net run on a CPU, start to end: export, preprocess, train, validate, predict, evaluate.

    python -m tests.benchmarks.nnunet_run --out run --phantoms 8 --cohort cohort --map "tumor=hepatic tumor"

``--cohort`` is a folder of ``maisi-aug synthesize``. The real cases are phantoms (``--phantoms N``), or any raw dataset
of nnU-Net (``--like DatasetXXX_Name``; ``nnunet_openkbp.py`` makes one of OpenKBP, ``nnunet_chests.py`` one of chest
CTs, into whose cases ``--insert`` draws nodules during training). Every step is the command that a user runs, as a
process of its own; which cases validated is read from nnU-Net's own files. Results go to ``results_nnunet_NAME.json``
and ``.md`` in ``--out``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from maisi_aug import __version__
from maisi_aug.generate.phantoms import PhantomSettings, write_phantoms
from maisi_aug.integrations.nnunet.trainer_settings import TRAINER_VARIABLE, trainer_folder
from maisi_aug.phantom import ids
from maisi_aug.volumes.image_files import load_image, load_label_map, save_image, save_label_map

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_TEST_CASES = 2
REAL_ID, MIXED_ID = 201, 202
PHANTOM_LABELS = {"liver": ids.LIVER, "tumor": ids.HEPATIC_TUMOR}


class Run:
    """One run in one folder: commands, their seconds, and nnU-Net's folders."""

    def __init__(self, out: Path) -> None:
        self.out = out.resolve()
        self.raw, self.preprocessed, self.results = (self.out / name for name in ("raw", "preprocessed", "results"))
        self.seconds: dict[str, float] = {}
        self.environment = {
            **os.environ,
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            TRAINER_VARIABLE: str(trainer_folder()),
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "1",  # else validation starts eight processes
            "PYTHONPATH": str(REPOSITORY),
        }

    def call(self, stage: str, command: Sequence[str | Path]) -> str:
        """Run one command and note its seconds; its output is kept in ``STAGE.log``."""
        print(stage, "...", flush=True)
        begun = perf_counter()
        words = [str(word) for word in command]
        done = subprocess.run(
            words, env=self.environment, cwd=self.out, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.seconds[stage] = round(perf_counter() - begun, 1)
        (self.out / f"{stage}.log").write_text(done.stdout, encoding="utf-8")
        if done.returncode:
            sys.exit(f"{' '.join(words)}\n{done.stdout[-3000:]}")
        return done.stdout

    def nnunet(self, name: str) -> str:
        """The path of one of nnU-Net's commands."""
        return str(Path(sys.executable).parent / f"nnUNetv2_{name}")


def write_phantom_dataset(raw: Path, scratch: Path, num_cases: int) -> Path:
    """Phantoms as a raw dataset of nnU-Net with liver and tumor, and two more as test cases."""
    settings = PhantomSettings(seed=5, region="abdomen", shape=(96, 80, 64), spacing_mm=(4.0, 4.0, 4.0))
    index = write_phantoms(scratch, settings, num_cases + NUM_TEST_CASES)
    folder = raw / f"Dataset{REAL_ID}_Phantom"
    for number, row in enumerate(index["phantoms"]):
        part = "Tr" if number < num_cases else "Ts"
        image = load_image(scratch / row["files"]["image"]["path"])
        anatomy = load_label_map(scratch / row["files"]["label"]["path"])
        values = np.select([anatomy.array == i for i in PHANTOM_LABELS.values()], [1, 2], 0).astype(np.uint8)
        save_image(folder / f"images{part}" / f"{row['id']}_0000.nii.gz", image.array, image.grid)
        save_label_map(folder / f"labels{part}" / f"{row['id']}.nii.gz", values, anatomy.grid)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{name: value for value, name in enumerate(PHANTOM_LABELS, start=1)}},
        "numTraining": num_cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2), encoding="utf-8")
    return folder


def train(run: Run, trainer: str, plans: str) -> dict[str, Any]:
    """Train and validate fold 0, then predict and evaluate the test cases of the real dataset."""
    chosen = ["-p", plans, "-tr", trainer]
    run.call(
        f"train_{trainer}",
        [run.nnunet("train"), str(MIXED_ID), "3d_fullres", "0", *chosen, "-device", "cpu"],
    )
    (dataset,) = run.preprocessed.glob(f"Dataset{MIXED_ID}_*")
    fold = run.results / dataset.name / f"{trainer}__{plans}__3d_fullres" / "fold_0"
    (log,) = fold.glob("training_log_*.txt")
    text = log.read_text(encoding="utf-8")
    shares = [tuple(map(float, pair)) for pair in re.findall(r"Synthetic share: ([\d.]+) drawn, ([\d.]+) set", text)]
    figures = {
        "seconds_per_epoch": [float(value) for value in re.findall(r"Epoch time: ([\d.]+) s", text)],
        "train_loss": [float(value) for value in re.findall(r"train_loss (-?[\d.]+)", text)],
        "synthetic_share": [{"drawn": drawn, "set": wanted} for drawn, wanted in shares],
        "validation": read_scores(fold / "validation" / "summary.json"),
        "validated": prove_validation_is_real(run, dataset, fold),
    }
    return figures | {"test": evaluate_test_cases(run, trainer, chosen)}


def prove_validation_is_real(run: Run, dataset: Path, fold: Path) -> dict[str, Any]:
    """Compare the cases that nnU-Net predicted in validation with its splits and with the real dataset's files."""
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    validated = sorted(Path(row["prediction_file"]).name.removesuffix(".nii.gz") for row in summary["metric_per_case"])
    split = json.loads((dataset / "splits_final.json").read_text())[0]
    mark = json.loads((dataset / "dataset.json").read_text())["maisi_aug"]
    real_labels = next(run.raw.glob(f"{mark['real_dataset']}/labelsTr"))
    synthetic = set(mark["synthetic_cases"])
    assert validated == sorted(split["val"]), "nnU-Net validated other cases than the split says"
    assert not synthetic & set(validated), "a synthetic case was validated"
    assert all((real_labels / f"{case_id}.nii.gz").is_file() for case_id in validated), "a case is not a real one"
    return {
        "cases": validated,
        "num_real_in_training": len(set(split["train"]) - synthetic),
        "num_synthetic_in_training": len(set(split["train"]) & synthetic),
    }


def evaluate_test_cases(run: Run, trainer: str, chosen: Sequence[str]) -> dict[str, Any] | None:
    """nnU-Net's prediction and evaluation of the real dataset's test cases, where there are any with labels."""
    (real,) = run.raw.glob(f"Dataset{REAL_ID}_*")
    if not (real / "labelsTs").is_dir():
        return None
    predicted = run.out / f"predicted_{trainer}"
    run.call(
        f"predict_{trainer}",
        [
            *(run.nnunet("predict"), "-i", real / "imagesTs", "-o", predicted, "-d", str(MIXED_ID)),
            *("-c", "3d_fullres", "-f", "0", *chosen, "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_tta"),
        ],
    )
    run.call(
        f"evaluate_{trainer}",
        [
            *(run.nnunet("evaluate_folder"), real / "labelsTs", predicted),
            *("-djfile", predicted / "dataset.json", "-pfile", predicted / "plans.json"),
        ],
    )
    return read_scores(predicted / "summary.json")


def read_scores(path: Path) -> dict[str, Any]:
    """Mean Dice per label of one of nnU-Net's summaries."""
    summary = json.loads(path.read_text())
    return {
        "dice": {label: row["Dice"] for label, row in summary["mean"].items()},
        "num_cases": len(summary["metric_per_case"]),
    }


def write_results(run: Run, name: str, results: dict[str, Any]) -> None:
    (run.out / f"results_nnunet_{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    lines = [
        f"# nnU-Net on a CPU, start to end: {name}",
        "",
        f"maisi-aug {__version__}, {os.cpu_count()} cores. {results['export']['num_real']} real cases, "
        f"{results['export']['num_synthetic']} synthetic ones in training.",
        "",
        "| step | seconds |",
        "| --- | --- |",
        *[f"| {stage} | {seconds} |" for stage, seconds in run.seconds.items()],
        "",
        "| trainer | epochs | seconds per epoch | synthetic share drawn | Dice in validation | Dice on test cases |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for trainer, row in results["trainers"].items():
        drawn = [epoch["drawn"] for epoch in row["synthetic_share"]]
        lines.append(
            f"| {trainer} | {len(row['seconds_per_epoch'])} | {np.median(row['seconds_per_epoch']):.1f} | "
            f"{np.mean(drawn):.3f} | {spell_dice(row['validation'])} | {spell_dice(row['test'])} |"
        )
    validated = sorted({case_id for row in results["trainers"].values() for case_id in row["validated"]["cases"]})
    lines += ["", f"Validated by nnU-Net, all of them real: {', '.join(validated)}."]
    (run.out / f"results_nnunet_{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def spell_dice(scores: dict[str, Any] | None) -> str:
    return ", ".join(f"{label}: {value:.3f}" for label, value in scores["dice"].items()) if scores else "none"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--phantoms", type=int, default=8, help="real cases to make, without --like")
    parser.add_argument("--like", type=Path, help="a raw dataset of nnU-Net in the role of the real one")
    parser.add_argument("--name", default="phantom", help="of the results")
    parser.add_argument("--map", action="append", default=[])
    parser.add_argument("--absent", action="append", default=[])
    parser.add_argument("--insert", action="append", default=[], help="lesions drawn into real cases during training")
    parser.add_argument("--side", default="64", help="of the compact plans' patch")
    parser.add_argument("--trainer", action="append", help="one or more; the first has to be one of maisi-aug's")
    given = parser.parse_args(arguments)
    run = Run(given.out)
    run.out.mkdir(parents=True)
    if given.like:
        shutil.copytree(given.like, run.raw / f"Dataset{REAL_ID}_{given.like.name.partition('_')[2]}", symlinks=True)
    else:
        write_phantom_dataset(run.raw, run.out / "phantoms", given.phantoms)
    (real,) = run.raw.iterdir()
    maisi_aug = [sys.executable, "-m", "maisi_aug.cli.app"]
    flags = [
        word for name in ("map", "absent", "insert") for value in getattr(given, name) for word in (f"--{name}", value)
    ]
    export = [*maisi_aug, "export", "nnunet", given.cohort.resolve(), "--like", real, "--dataset-id", str(MIXED_ID)]
    run.call("export", [*export, *flags])
    (mixed,) = run.raw.glob(f"Dataset{MIXED_ID}_*")
    summary = json.loads((mixed / "maisi_aug_summary.json").read_text())
    run.call("compact_plans", [*maisi_aug, "nnunet-compact-plans", str(MIXED_ID), "--side", given.side])
    plans = f"{summary['plans']}_compact"
    number = ["-d", str(MIXED_ID), "-plans_name", plans]
    run.call("preprocess", [run.nnunet("preprocess"), *number, "-c", "3d_fullres", "-np", "2"])
    trainers = given.trainer or ["nnUNetTrainerSynthetic50CPU_10epochs_25iterations"]
    results = {
        "version": __version__,
        "num_cores": os.cpu_count(),
        "export": {key: summary[key] for key in ("num_real", "num_synthetic", "labels", "folds", "plans_source")},
        "plans": json.loads(next(run.preprocessed.glob(f"*/{plans}.json")).read_text())["configurations"]["3d_fullres"],
        "trainers": {trainer: train(run, trainer, plans) for trainer in trainers},
        "seconds": run.seconds,
    }
    results["export"]["plans_source"] = "made on the real cases alone"
    write_results(run, given.name, results)
    print((run.out / f"results_nnunet_{given.name}.md").read_text())


if __name__ == "__main__":
    main()
