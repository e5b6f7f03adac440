"""What a worker takes before its first case: ``python -m tests.benchmarks.start [--baseline FOLDER] [--rounds N]``.

Processor seconds of a process that imports what draws a cohort and loads the networks of the embedded bundle, with one
thread, from this version and, in turn, from an earlier one in a folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = """
import importlib.util, time

if importlib.util.find_spec("maisi_aug.system.lean_monai"):  # as workers do; earlier versions had no such thing
    from maisi_aug.system.lean_monai import import_monai_lean

    import_monai_lean()
import maisi_aug.generate.case_worker
from maisi_aug.bundle_spec.bundle import load_bundle
from maisi_aug.networks.pipeline import Pipeline

Pipeline.load(load_bundle("phantom-ct"), "cpu")
print(time.process_time())
"""


def measure(root: Path) -> float:
    """Processor seconds of a worker's start, with the version in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, help="folder of an earlier version")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    roots = {"now": REPOSITORY} | ({} if options.baseline is None else {"baseline": options.baseline})
    seconds: dict[str, list[float]] = {name: [] for name in roots}
    for _ in range(options.rounds):
        for name, root in roots.items():
            seconds[name].append(measure(root))
    for name, values in seconds.items():
        print(f"{name}: {median(values):.2f} s ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
