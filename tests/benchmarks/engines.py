"""One cohort by one process, by processes for devices, by shards, and on Ray: ``python -m tests.benchmarks.engines``.

All make the same cases of the embedded bundle with one thread each, from the same command line but for how. Their files
are compared by SHA-256, and their times with those of the first: a loop over the cases without any engine, where
``loop`` is among the ways, or an earlier version, where its folder is named with ``--baseline``. With ``--rounds`` all
ways take turns, and the medians are compared. Seconds on the clock mean something on a machine that does nothing else.

``--scaling`` measures what a second worker brings: one worker bound to one core, two loops without any engine next to
each other, each bound to a core and with half of the cases, which no engine can pass on this machine, and two workers
of each engine. The rate between a fifth and four fifths of the cases leaves out what start-up takes.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from maisi_aug.cohort.shards import Shard

NUM_SHARDS: Final = 4
LABELS: Final = ("hepatic tumor:0.3", "lung nodule:8-20mm", "spleen")
RAY_WORDS: Final = ("--device", "cpu", "--engine", "ray", "--num-workers")
SCALING_WAYS: Final = ("bound", "loops", "devices", "ray")
REPOSITORY: Final = Path(__file__).resolve().parents[2]


class Way(NamedTuple):
    """A way to make the cohort.

    Attributes:
        commands: Words after the module's name, one command line after the other.
        root: Folder of the version.
        module: That is run.
        num_bound: Cores that the commands are bound to, one each, all at the same time; 0 to bind none.
    """

    commands: Sequence[Sequence[str]]
    root: Path = REPOSITORY
    module: str = "maisi_aug"
    num_bound: int = 0


@dataclass(frozen=True)
class Run:
    """How one way went.

    Attributes:
        way: What it is called.
        seconds: On the clock, start-up included; of shards, one after the other, all together; the median.
        cpu_seconds: Of all its processes; the same.
        num_cases: That were made.
        steady_pace: Cases a minute in the middle of the last round, see :func:`find_steady_pace`.
        all_seconds: Of each round.
        same: Files that have the bytes that the first way gave them.
        different: Files that have others, or that are there in one way only.
    """

    way: str
    seconds: float
    cpu_seconds: float
    num_cases: int
    steady_pace: float
    all_seconds: tuple[float, ...]
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


def make_by_loop(folder: Path, num_cases: int, part: Shard) -> None:
    """Make a part of the cohort without an engine, one case after the other: label map, image, gates and files."""
    from maisi_aug.cohort.folder import open_cohort, open_scratch
    from maisi_aug.cohort.manifest import load_manifest
    from maisi_aug.cohort.request import build_request
    from maisi_aug.cohort.resolve import resolve
    from maisi_aug.generate.case_worker import CohortSpec
    from maisi_aug.generate.driver import CaseItem, Recorder
    from maisi_aug.generate.run import COHORT_HEADER, draw_contact_sheet
    from maisi_aug.system.engine.work import WorkerPlace

    run = resolve(build_request({"labels": list(LABELS), "num_cases": num_cases}, source="loop"), folder)
    opened = open_cohort(folder, run.to_document(), header=COHORT_HEADER, begun=run.begun)
    with opened as (place, writer, _), open_scratch(folder) as scratch:
        recorder = Recorder(place, writer)
        worker = CohortSpec(run, folder).open(WorkerPlace("loop", "cpu", scratch, lambda event, *details: None))
        for case in part.part_of(run.plan.cases):
            is_retried, number = True, 0
            while is_retried:
                item = CaseItem((case,), number, frozenset([case.index]))
                worker.look_ahead(item)
                (record,) = worker.work(item).result().records
                recorder.record(record, scratch)
                is_retried, number = record.status == "retried", number + 1
        worker.close()
        draw_contact_sheet(place, run, load_manifest(folder, gates=()))


def start(words: Sequence[str], way: Way, core: int | None = None) -> subprocess.Popen[bytes]:
    """Start a command line of a way, bound to a core if one is given."""
    environment = {**os.environ, "PYTHONPATH": str(way.root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", way.module, *words]
    if core is not None:
        command = ["taskset", "-c", str(core), *command]
    return subprocess.Popen(command, env=environment, cwd=tempfile.gettempdir(), stdout=subprocess.DEVNULL)


def wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for a command; raise if it failed."""
    if code := process.wait():
        raise subprocess.CalledProcessError(code, process.args)


def measure(way: Way) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    if way.num_bound:
        cores = sorted(os.sched_getaffinity(0))
        for process in [start(words, way, core) for words, core in zip(way.commands, cores, strict=False)]:
            wait(process)
    else:
        for words in way.commands:
            wait(start(words, way))
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - begun
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def find_steady_pace(folder: Path) -> float:
    """Cases a minute between a fifth and four fifths of the cases, by the times at which their images were written."""
    times = sorted(path.stat().st_mtime for path in folder.rglob("images/*.nii.gz"))
    first, last = len(times) // 5, len(times) - 1 - len(times) // 5
    return round(60 * (last - first) / (times[last] - times[first]), 2) if first < last else 0.0


def list_ways(num_cases: int, folder: Path, baseline: Path | None) -> dict[str, Way]:
    """By name."""
    words = ["synthesize", *(word for text in LABELS for word in ("--labels", text)), "-n", str(num_cases), "--quiet"]

    def out(name: str, *more: str) -> list[str]:
        return [*words, "--out", str(folder / name), *more]

    shards = [out("shards", "--device", "cpu", "--shard", f"{i}/{NUM_SHARDS}") for i in range(1, NUM_SHARDS + 1)]
    merge = ["cohort", "merge", str(folder / "shards")]
    loop, module = ["--cases", str(num_cases), "--loop"], "tests.benchmarks.engines"
    halves = [[*loop, str(folder / "loops" / str(i)), "--part", f"{i}/2"] for i in (1, 2)]
    ways = {} if baseline is None else {"baseline": Way([out("baseline", "--device", "cpu")], baseline)}
    ways |= {
        "loop": Way([[*loop, str(folder / "loop")]], module=module),
        "bound": Way([out("bound", "--device", "cpu")], num_bound=1),
        "loops": Way(halves, module=module, num_bound=2),
        "process": Way([out("process", "--device", "cpu")]),
        "device": Way([out("device", "--devices", "cpu")]),
        "devices": Way([out("devices", "--devices", "cpu,cpu")]),
        "shards": Way([*shards, merge]),
    }
    if importlib.util.find_spec("ray"):
        ways |= {"ray": Way([out("ray", *RAY_WORDS, "2")]), "ray4": Way([out("ray4", *RAY_WORDS, "4")])}
    return ways


def to_markdown(runs: Sequence[Mapping[str, Any]]) -> str:
    """A line per way."""
    first = runs[0]
    lines = [
        "# One cohort in several ways",
        "",
        "Written by `python -m tests.benchmarks.engines`. One thread per process; start-up included; medians of "
        f"{len(first['all_seconds'])} rounds. loop: no engine; loops: two of these with half of the cases each, bound "
        "to a core each; process: one worker in the process of the command; bound: the same, bound to one core; "
        "device: one in a process of its own; devices: two of these; ray, ray4: 2 and 4 workers on a Ray cluster that "
        "the command starts; shards: four, one after the other, and merged. Steady: cases a minute between a fifth and "
        "four fifths of the cases.",
        "",
        "| way | cases | s | cases a minute | against the first | steady | against the first | CPU s | same files "
        "| different |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for run in runs:
        pace, steady = 60 * run["num_cases"] / run["seconds"], run["steady_pace"]
        row = [run["way"], run["num_cases"], run["seconds"], f"{pace:.2f}", f"{first['seconds'] / run['seconds']:.2f}"]
        row += [steady, f"{steady / (first['steady_pace'] or 1):.2f}", run["cpu_seconds"], run["same"]]
        lines.append(f"| {' | '.join(map(str, row))} | {len(run['different'])} |")
    return "\n".join([*lines, ""])


def compare(way: str, folder: Path, expected: Mapping[str, str], times: Sequence[tuple[float, float]]) -> Run:
    """What came of a way, held against the files of the first."""
    found = hash_files(folder)
    if way == "loops":  # each has a manifest and a contact sheet of its cases, in a folder of its own
        inner = {path.partition("/")[2]: value for path, value in found.items()}
        found, expected = ({path: files[path] for path in files if "/" in path} for files in (inner, expected))
    every = {**found, **expected}
    different = tuple(path for path in every if found.get(path) != expected.get(path))
    seconds, cpu_seconds = (tuple(round(value, 1) for value in values) for values in zip(*times, strict=True))
    num_cases, pace = sum(path.startswith("images/") for path in found), find_steady_pace(folder)
    num_same = len(every) - len(different)
    return Run(way, median(seconds), median(cpu_seconds), num_cases, pace, seconds, num_same, different)


def main() -> None:
    """Make the cohorts and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, help="40 by default")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--baseline", type=Path, help="folder of an earlier version")
    parser.add_argument("--ways", nargs="+", help="all by default")
    parser.add_argument("--scaling", action="store_true", help=f"the ways {', '.join(SCALING_WAYS)}, of 24 cases")
    parser.add_argument("--out", type=Path, help="folder for results_engines.json and .md")
    parser.add_argument("--loop", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--part", type=Shard.parse, default="1/1", help=argparse.SUPPRESS)
    options = parser.parse_args()
    num_cases = options.cases or (24 if options.scaling else 40)
    names = options.ways or (SCALING_WAYS if options.scaling else ())
    if options.loop is not None:
        make_by_loop(options.loop, num_cases, options.part)
        return
    with tempfile.TemporaryDirectory(prefix="engines-") as scratch:
        ways = list_ways(num_cases, Path(scratch), options.baseline)
        chosen = {name: way for name, way in ways.items() if not names or name in names}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
        for _ in range(options.rounds):
            for name, way in chosen.items():
                shutil.rmtree(Path(scratch, name), ignore_errors=True)
                times[name].append(measure(way))
                print(name, times[name][-1], file=sys.stderr, flush=True)
        expected = hash_files(Path(scratch, next(iter(chosen))))
        rows = [asdict(compare(name, Path(scratch, name), expected, times[name])) for name in chosen]
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results_engines.json").write_text(json.dumps(rows, indent=1) + "\n")
        (options.out / "results_engines.md").write_text(to_markdown(rows))
    print(to_markdown(rows))


if __name__ == "__main__":
    main()
