"""A benchmark whose answer is known: does it say "gain" of cases that help and "no" of cases that cannot?

    python -m maisi_aug.evaluation.known_truth --out runs/known-truth

Phantoms stand for the real data: a few to train on, more to test on. Synthetic cases of the embedded bundle, which has
learnt to draw such phantoms, should help. The same cases with their label maps shifted by two centimetres should not,
and neither should the real cases taken several times over. An interrupted run goes on when the command is repeated.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from maisi_aug.evaluation.benchmark import Benchmark, open_benchmark, run_arm
from maisi_aug.evaluation.benchmark_config import BenchmarkConfig, build_benchmark_config
from maisi_aug.evaluation.benchmark_results import summarise_benchmark
from maisi_aug.evaluation.benchmark_text import to_report_text
from maisi_aug.evaluation.reports import run_command, to_markdown, write_json
from maisi_aug.generate import synthesize_cohort
from maisi_aug.integrations.cohort_source import load_cohort_source
from maisi_aug.phantom import ids
from maisi_aug.phantom_folder import PhantomSettings, write_phantoms
from maisi_aug.recipe import build_config, override
from maisi_aug.resolve import resolve_cohort
from maisi_aug.volume_io import load_label_map, save_label_map
from maisi_aug.whole_files import write_text_whole, write_whole

REPORT_NAME: Final = "known_truth"
SHAPE: Final = (96, 80, 64)
SPACING_MM: Final = (4.0, 4.0, 4.0)
SHIFT_VOXELS: Final = (5, 0, 5)
REQUESTS: Final = ("hepatic tumor:12-40mm", "kidney tumor:12-35mm", "pancreatic tumor:12-30mm")
LABELS: Final[dict[str, tuple[int, ...]]] = {
    "liver": (ids.LIVER, ids.HEPATIC_VESSEL),
    "spleen": (ids.SPLEEN,),
    "kidneys": (ids.RIGHT_KIDNEY, ids.LEFT_KIDNEY),
    "tumor": tuple(ids.TUMORS),
}
MIXED, SHIFTED, DUPLICATED, ONLY = "real+synthetic", "real+shifted", "real-duplicated", "synthetic-only"


def build_known_truth(
    folder: Path, *, num_train: int, num_test: int, num_synthetic: int, num_seeds: int, num_steps: int, seed: int
) -> BenchmarkConfig:
    """Write phantoms, cohort and shifted cohort where they are missing; returns the benchmark that compares them.

    Args:
        folder: Of the run.
        num_train: Phantoms to train on.
        num_test: Phantoms to test on.
        num_synthetic: Synthetic cases.
        num_seeds: Trainings of every arm.
        num_steps: Optimiser steps of every arm.
        seed: Of everything.
    """
    settings = PhantomSettings(seed=seed, region="abdomen", shape=SHAPE, spacing_mm=SPACING_MM)
    write_phantoms(folder / "real", settings, num_train + num_test, report=_report("phantom"))
    flags = {"labels": list(REQUESTS), "num_cases": num_synthetic, "seed": seed + 1, "max_attempts": 8}
    config = build_config(override({}, flags), source="known truth")
    synthesize_cohort(resolve_cohort(config, folder / "cohort"), folder / "cohort")
    num_accepted = write_shifted(folder / "cohort", folder / "shifted")
    ratio = f"{num_accepted / num_train:g}"
    return build_benchmark_config(
        real=str((folder / "real").resolve()),
        synthetic={"synthetic": str((folder / "cohort").resolve()), "shifted": str((folder / "shifted").resolve())},
        labels=LABELS,
        mapping={name: tuple(map(str, numbers)) for name, numbers in LABELS.items()},
        arms=("real", f"{MIXED}:{ratio}", f"{SHIFTED}:{ratio}", DUPLICATED, ONLY),
        num_train=num_train,
        num_seeds=num_seeds,
        num_steps=num_steps,
        seed=seed,
        tolerance_mm=4.0,
    )


def write_shifted(cohort: Path, folder: Path) -> int:
    """The accepted cases of a cohort with every label map moved; returns how many there are."""
    cases = load_cohort_source(cohort).cases
    for case in cases:
        label = folder / "labels" / f"{case.case_id}.nii.gz"
        if not label.is_file():
            write_whole(folder / "images" / label.name, (cohort / case.files["image"].path).read_bytes())
            anatomy = load_label_map(cohort / case.files["anatomy"].path)
            save_label_map(label, np.roll(anatomy.array, SHIFT_VOXELS, axis=(0, 1, 2)), anatomy.grid)
    return len(cases)


def judge(document: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """What the benchmark should have said: the arm, what is expected of it, and whether it was said."""
    by_arm: dict[str, list[Mapping[str, Any]]] = {}
    for row in document["comparisons"]:
        if row["metric"] == "dice" and row["baseline"] == "real":
            by_arm.setdefault(row["arm"].partition(":")[0], []).append(row)

    def gains(arm: str) -> list[bool]:
        return [row["verdict"] == "gain" for row in by_arm.get(arm, ())]

    return [
        (MIXED, "a gain for some label", any(gains(MIXED))),
        (MIXED, "a loss for no label", bool(by_arm.get(MIXED)) and not any(r["is_loss"] for r in by_arm[MIXED])),
        (SHIFTED, "a gain for no label", bool(gains(SHIFTED)) and not any(gains(SHIFTED))),
        (DUPLICATED, "a gain for no label", bool(gains(DUPLICATED)) and not any(gains(DUPLICATED))),
    ]


def run_benchmark(benchmark: Benchmark, *, max_minutes: float | None = None) -> None:
    """Run the arms that are not done, printing a line for each."""
    for state in benchmark.states:
        if state.status != "done":
            done = run_arm(benchmark, state.arm, state.seed, device="cpu", max_minutes=max_minutes)
            print(f"{done.arm}, seed {done.seed}: {done.status} {done.reason}".rstrip(), file=sys.stderr, flush=True)


def _report(name: str) -> Any:
    def report(done: int, total: int) -> None:
        if done == total:
            print(f"{done} {name}s", file=sys.stderr, flush=True)

    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, run, print the report; returns the exit code, 1 when the verdicts are not the right ones."""
    parser = argparse.ArgumentParser(
        prog="python -m maisi_aug.evaluation.known_truth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; its report is in report/")
    parser.add_argument("--num-train", type=int, default=4, help="phantoms to train on")
    parser.add_argument("--num-test", type=int, default=24, help="phantoms to test on")
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
        write_json(folder / "report" / f"{REPORT_NAME}.json", {**document, "expectations": expectations})
        text = f"{to_report_text(document)}\n## Known truth\n\n{table}"
        write_text_whole(folder / "report" / f"{REPORT_NAME}.md", text)
        print(text)

    return run_command(body) or int(not all(right))


if __name__ == "__main__":
    sys.exit(main())
