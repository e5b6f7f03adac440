"""One cohort by one process, by processes for devices, by shards, and on Ray: ``python -m tests.benchmarks.engines``.

All make the same cases of the embedded bundle with one thread each, from the same command line but for how. Their files
are compared by SHA-256, and their times with those of one process: of an earlier version, too, where its folder is
named with ``--baseline``. Seconds on the clock mean something on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

NUM_SHARDS: Final = 4
LABELS: Final = ("hepatic tumor:0.3", "lung nodule:8-20mm", "spleen")
RAY_WORDS: Final = ("--device", "cpu", "--engine", "ray", "--num-workers", "2")
REPOSITORY: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Run:
    """How one way went.

    Attributes:
        way: What it is called.
        seconds: On the clock, start-up included; of shards, one after the other, all together.
        cpu_seconds: Of all its processes.
        num_cases: That were made.
        same: Files that have the bytes that the first way gave them.
        different: Files that have others, or that are there in one way only.
    """

    way: str
    seconds: float
    cpu_seconds: float
    num_cases: int
    same: int = 0
    different: tuple[str, ...] = ()


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 by path; of the manifest, its lines in order and without their times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.name == "manifest.jsonl":
                rows = [{**json.loads(line), "seconds": None} for line in content.splitlines()]
                content = json.dumps(sorted(rows, key=lambda row: (row["case_index"], row["attempt"]))).encode()
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def call(words: Sequence[str], root: Path) -> None:
    """Run a command line of the version in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "maisi_aug", *words]
    subprocess.run(command, env=environment, check=True, cwd=tempfile.gettempdir(), stdout=subprocess.DEVNULL)


def measure(way: str, commands: Sequence[Sequence[str]], root: Path, num_cases: int) -> Run:
    """Time some command lines."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    for words in commands:
        call(words, root)
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - begun
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(way, round(seconds, 1), round(cpu, 1), num_cases)


def list_ways(num_cases: int, folder: Path, baseline: Path | None) -> dict[str, tuple[Path, list[list[str]]]]:
    """Name -> folder of the version, and its command lines."""
    words = ["synthesize", *(word for text in LABELS for word in ("--labels", text)), "-n", str(num_cases), "--quiet"]

    def out(name: str) -> list[str]:
        return [*words, "--out", str(folder / name)]

    shards = [[*out("shards"), "--device", "cpu", "--shard", f"{i}/{NUM_SHARDS}"] for i in range(1, NUM_SHARDS + 1)]
    merge = ["cohort", "merge", str(folder / "shards")]
    ways = {} if baseline is None else {"baseline": (baseline, [[*out("baseline"), "--device", "cpu"]])}
    return {
        **ways,
        "process": (REPOSITORY, [[*out("process"), "--device", "cpu"]]),
        "devices": (REPOSITORY, [[*out("devices"), "--devices", "cpu,cpu"]]),
        "shards": (REPOSITORY, [*shards, merge]),
        **({"ray": (REPOSITORY, [[*out("ray"), *RAY_WORDS]])} if importlib.util.find_spec("ray") else {}),
    }


def to_markdown(runs: Sequence[Mapping[str, Any]]) -> str:
    """A line per way."""
    first = runs[0]
    lines = [
        "# One cohort in several ways",
        "",
        "Written by `python -m tests.benchmarks.engines`. One thread per process; start-up included.",
        "",
        "| way | cases | s | cases a minute | against the first | CPU s | same files | different |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for run in runs:
        pace, share = 60 * run["num_cases"] / run["seconds"], first["seconds"] / run["seconds"]
        lines.append(
            f"| {run['way']} | {run['num_cases']} | {run['seconds']} | {pace:.2f} | {share:.2f} | "
            f"{run['cpu_seconds']} | {run['same']} | {len(run['different'])} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Make the cohorts and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--baseline", type=Path, help="folder of an earlier version")
    parser.add_argument("--ways", nargs="+", help="all by default")
    parser.add_argument("--out", type=Path, help="folder for results_engines.json and .md")
    options = parser.parse_args()
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="engines-") as scratch:
        expected: dict[str, str] = {}
        for way, (root, commands) in list_ways(options.cases, Path(scratch), options.baseline).items():
            if options.ways and way not in options.ways:
                continue
            run, found = measure(way, commands, root, options.cases), hash_files(Path(scratch, way))
            expected = expected or found
            different = tuple(path for path in {**found, **expected} if found.get(path) != expected.get(path))
            runs.append(replace(run, same=len({**found, **expected}) - len(different), different=different))
            print(runs[-1], file=sys.stderr, flush=True)
    rows = [asdict(run) for run in runs]
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results_engines.json").write_text(json.dumps(rows, indent=1) + "\n")
        (options.out / "results_engines.md").write_text(to_markdown(rows))
    print(to_markdown(rows))


if __name__ == "__main__":
    main()
