"""A benchmark whose answer is known: does it say "gain" of cases that help and "no" of cases that cannot?

    python -m maisi_aug.evaluation.studies.known_truth --out runs/known-truth

Phantoms stand for the real data. Those to train on are few and healthy, most of those to test on have tumours: no arm
of real cases alone can find them. Synthetic cases with tumours, drawn by the embedded bundle, must help with tumours,
and so must as many further phantoms with tumours. Synthetic cases with their label maps shifted by six centimetres must
not help with anything, and neither must the real cases taken several times over. An interrupted run continues when the
command is repeated.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from maisi_aug.cohort.request import build_request, override
from maisi_aug.cohort.resolve import resolve
from maisi_aug.evaluation.benchmark.config import BenchmarkConfig, build_benchmark_config
from maisi_aug.evaluation.benchmark.results import summarise_benchmark
from maisi_aug.evaluation.benchmark.run import Benchmark, open_benchmark, run_arm
from maisi_aug.evaluation.benchmark.text import to_report_text
from maisi_aug.evaluation.output.files import run_command, save_results, to_markdown
from maisi_aug.generate.phantoms import PhantomSettings, write_phantoms
from maisi_aug.generate.run import synthesize_cohort
from maisi_aug.integrations.reading.cohort_source import load_cohort_source
from maisi_aug.phantom import ids
from maisi_aug.system.whole_files import write_whole
from maisi_aug.volumes.image_files import load_label_map, save_label_map

REPORT_NAME: Final = "known_truth"
SHAPE: Final = (96, 80, 64)
SPACING_MM: Final = (4.0, 4.0, 4.0)
SHIFT_VOXELS: Final = (12, 0, 8)
REQUESTS: Final = ("hepatic tumor:15-50mm", "kidney tumor:15-45mm", "pancreatic tumor:15-40mm")
TUMOR: Final = "tumor"
LABELS: Final[dict[str, tuple[int, ...]]] = {
    "liver": (ids.LIVER, ids.HEPATIC_VESSEL),
    "kidneys": (ids.RIGHT_KIDNEY, ids.LEFT_KIDNEY),
    TUMOR: (ids.HEPATIC_TUMOR, ids.KIDNEY_TUMOR, ids.PANCREATIC_TUMOR),
}
MIXED, FURTHER, SHIFTED = "real+synthetic", "real+further", "real+shifted"
DUPLICATED: Final = "real-duplicated"


def build_known_truth(
    folder: Path, *, num_train: int, num_test: int, num_synthetic: int, num_seeds: int, num_steps: int, seed: int
) -> BenchmarkConfig:
    """Write the phantoms, cohort and shifted cohort that are missing, and return the benchmark that compares them.

    Args:
        folder: Folder of the run.
        num_train: Number of healthy phantoms to train on.
        num_test: Number of phantoms to test on, most of them with tumours.
        num_synthetic: Number of synthetic cases.
        num_seeds: Number of trainings of every arm.
        num_steps: Number of optimiser steps of every arm.
        seed: Seed of everything random.
    """
    settings = PhantomSettings(seed=seed, region="abdomen", shape=SHAPE, spacing_mm=SPACING_MM)
    healthy = replace(settings, seed=seed + 1, has_lesions=False)
    tested = write_real_cases(folder, healthy, num_train, settings, num_test)
    flags = {"labels": list(REQUESTS), "num_cases": num_synthetic, "seed": seed + 1, "max_attempts": 8}
    config = build_request(override({}, flags), source="known truth")
    synthesize_cohort(resolve(config, folder / "cohort"), folder / "cohort")
    num_accepted = write_shifted(folder / "cohort", folder / "shifted")
    write_phantoms(
        folder / "further", replace(settings, seed=seed + 2), num_accepted, report=_report("further phantom")
    )
    ratio = f"{num_accepted / num_train:g}"
    return build_benchmark_config(
        real=str((folder / "real").resolve()),
        test_patients=tested,
        synthetic={
            name: str((folder / place).resolve())
            for name, place in (("synthetic", "cohort"), ("further", "further"), ("shifted", "shifted"))
        },
        labels=LABELS,
        mapping={name: tuple(map(str, numbers)) for name, numbers in LABELS.items()},
        arms=("real", f"{MIXED}:{ratio}", f"{FURTHER}:{ratio}", f"{SHIFTED}:{ratio}", DUPLICATED),
        num_seeds=num_seeds,
        num_steps=num_steps,
        seed=seed,
        tolerance_mm=4.0,
    )


def write_real_cases(
    folder: Path, training: PhantomSettings, num_train: int, testing: PhantomSettings, num_test: int
) -> tuple[str, ...]:
    """Write the real cases of the study: phantoms of two kinds, as one folder of image and label pairs.

    The phantoms go to ``folder/train`` and ``folder/test``. The pairs ``folder/real/images/NAME.nii.gz`` and
    ``folder/real/labels/NAME.nii.gz`` are symbolic links to them; links of an earlier call are removed first.

    Args:
        folder: Folder of the study; phantoms that it has already are kept.
        training: Settings of the phantoms to train on.
        num_train: Number of phantoms to train on.
        testing: Settings of the phantoms to test on.
        num_test: Number of phantoms to test on.

    Returns:
        Names of the test cases, ``test_`` and the phantom's id, in the order of the phantoms.

    Raises:
        CohortError: A folder contains something else, or phantoms with other settings.
        VolumeError: A file cannot be written.
    """
    names: list[str] = []
    for stale in (folder / "real").glob("*/*.nii.gz"):  # of an earlier call with other numbers
        stale.unlink()
    for part, settings, count in (("train", training, num_train), ("test", testing, num_test)):
        index = write_phantoms(folder / part, settings, count, report=_report(f"{part} phantom"))
        for row in index["phantoms"][:count]:
            names.append(f"{part}_{row['id']}")
            for kind, place in (("image", "images"), ("label", "labels")):
                link = folder / "real" / place / f"{names[-1]}.nii.gz"
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path("../..") / part / row["files"][kind]["path"])
    return tuple(name for name in names if name.startswith("test_"))


def write_shifted(cohort: Path, folder: Path) -> int:
    """Write a cohort's accepted cases with every label map shifted, and return their number."""
    cases = load_cohort_source(cohort).cases
    for case in cases:
        label = folder / "labels" / f"{case.case_id}.nii.gz"
        if not label.is_file():
            write_whole(folder / "images" / label.name, (cohort / case.files["image"].path).read_bytes())
            anatomy = load_label_map(cohort / case.files["anatomy"].path)
            save_label_map(label, np.roll(anatomy.array, SHIFT_VOXELS, axis=(0, 1, 2)), anatomy.grid)
    return len(cases)


def judge(document: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Return the expected verdict of each arm, and whether the benchmark reached it."""
    by_arm: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in document["comparisons"]:
        if row["metric"] == "dice" and row["baseline"] == "real":
            by_arm[row["arm"].partition(":")[0]].append(row)

    def gains(arm: str) -> list[str]:
        return [row["label"] for row in by_arm[arm] if row["verdict"] == "gain"]

    def losses(arm: str) -> list[str]:
        return [row["label"] for row in by_arm[arm] if row["is_loss"]]

    found = [(arm, f"a gain for {TUMOR}", TUMOR in gains(arm)) for arm in (MIXED, FURTHER)]
    found += [(FURTHER, "a loss for no label", bool(by_arm[FURTHER]) and not losses(FURTHER))]
    found += [(arm, "a gain for no label", bool(by_arm[arm]) and not gains(arm)) for arm in (SHIFTED, DUPLICATED)]
    return found


def run_benchmark(benchmark: Benchmark) -> None:
    """Run the unfinished trainings of a benchmark, and print a line for each."""
    for state in benchmark.states:
        if state.status != "done":
            done = run_arm(benchmark, state.arm, state.seed, device="cpu")
            print(f"{done.arm}, seed {done.seed}: {done.status} {done.reason}".rstrip(), file=sys.stderr, flush=True)


def _report(name: str) -> Any:
    def report(done: int, total: int) -> None:
        if done == total:
            print(f"{done} {name}s", file=sys.stderr, flush=True)

    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this module's command line: build and run the benchmark; exit code 1 if a verdict is not the expected one."""
    parser = argparse.ArgumentParser(
        prog="python -m maisi_aug.evaluation.studies.known_truth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; its report is in report/")
    parser.add_argument("--num-train", type=int, default=4, help="healthy phantoms to train on")
    parser.add_argument("--num-test", type=int, default=24, help="phantoms to test on, most of them with tumours")
    parser.add_argument("--num-synthetic", type=int, default=16, help="synthetic cases")
    parser.add_argument("--num-seeds", type=int, default=3, help="trainings of every arm")
    parser.add_argument("--num-steps", type=int, default=800, help="optimiser steps of every arm")
    parser.add_argument("--seed", type=int, default=7)
    options = vars(parser.parse_args(arguments))
    folder: Path = options.pop("out")
    right: list[bool] = []

    def body() -> None:
        config = build_known_truth(folder, **options)
        benchmark = open_benchmark(folder / "bench", config)
        run_benchmark(benchmark)
        document = summarise_benchmark(benchmark)
        expectations = judge(document)
        right.extend(met for _, _, met in expectations)
        table = to_markdown(["arm", "expected", "met"], expectations)
        text = f"{to_report_text(document)}\n## Known truth\n\n{table}"
        save_results(folder / "report", REPORT_NAME, {**document, "expectations": expectations}, text)
        print(text)

    return run_command(body) or int(not all(right))


if __name__ == "__main__":
    sys.exit(main())
