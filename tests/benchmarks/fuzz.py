"""Damaged input for every reader: ``python -m tests.benchmarks.fuzz [--inputs 2000] [--reader NAME] [--out FOLDER]``.

Each reader is a process of its own. Its memory is what the process held at most, less what it held once it had read
valid input; the making of the damaged input counts, too. The same number gives the same inputs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from maisi_aug.errors import MaisiAugError
from maisi_aug.system.content import ContentError
from tests.fuzz.readers import READERS, Reader

REPOSITORY: Final = Path(__file__).resolve().parents[2]
NUM_INPUTS: Final = 2000
HANG_SECONDS: Final = 5.0
MAX_MEMORY_MB: Final = 500
MAX_SECONDS: Final = 3600
_PLACE: Final = "last_input"


@dataclass
class Outcome:
    """What a reader did with damaged input.

    Attributes:
        reader: Its name.
        num_inputs: How many were tried.
        num_read: Those that were still valid.
        num_refused: Those that it said in a sentence what is wrong with.
        unexpected: What else it raised, and how often; a process that died, too.
        num_hangs: Those that took longer than five seconds of processor time.
        slowest_s: The longest that one took, in processor time.
        memory_mb: Most memory beyond the process's own.
    """

    reader: str
    num_inputs: int = 0
    num_read: int = 0
    num_refused: int = 0
    unexpected: dict[str, int] = field(default_factory=dict)
    num_hangs: int = 0
    slowest_s: float = 0.0
    memory_mb: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether nothing unexpected was raised, nothing hung, and memory stayed in its bounds."""
        return not self.unexpected and not self.num_hangs and self.memory_mb <= MAX_MEMORY_MB


def try_reader(reader: Reader, num_inputs: int, place: Path) -> Outcome:
    """Read damaged input, one after the other, in this process.

    Args:
        reader: The reader.
        num_inputs: How many; each has its number as seed.
        place: File that holds the number of the one that is being read, for whoever finds the process dead.
    """
    files, outcome = reader.build(), Outcome(reader.name, num_inputs)
    unexpected: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        reader.try_on(files, Path(folder))
    own_mb = _status_mb("VmRSS")
    for number in range(num_inputs):
        place.write_text(str(number))
        damaged = reader.damage(files, Random(number))
        with tempfile.TemporaryDirectory() as folder:
            begun = time.process_time()
            try:
                reader.try_on(damaged, Path(folder))
                outcome.num_read += 1
            except MaisiAugError as error:
                outcome.num_refused += not isinstance(error, ContentError)
                unexpected[f"no sentence: {error}"[:120]] += isinstance(error, ContentError)
            except Exception as error:
                unexpected[f"{type(error).__name__}: {error} (input {number})"[:120]] += 1
            seconds = time.process_time() - begun
        outcome.slowest_s = max(outcome.slowest_s, round(seconds, 2))
        outcome.num_hangs += seconds > HANG_SECONDS
    outcome.unexpected = dict(+unexpected)
    outcome.memory_mb = round(max(0.0, _status_mb("VmHWM") - own_mb), 1)
    return outcome


def _status_mb(name: str) -> float:
    """A figure of Linux on this process, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{name}:"))


def run_reader(name: str, num_inputs: int) -> Outcome:
    """The same in a process of its own; one that dies is an outcome, too."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, _PLACE)
        command = [sys.executable, "-m", "tests.benchmarks.fuzz", "--child", name, str(num_inputs), str(place)]
        try:
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=MAX_SECONDS)
        except subprocess.TimeoutExpired:
            return Outcome(name, num_inputs, unexpected={f"hangs at input {place.read_text()}": 1}, num_hangs=1)
        lines = [line for line in done.stdout.splitlines() if line.startswith('{"reader"')]
        if done.returncode != 0 or not lines:
            where = place.read_text() if place.is_file() else "none"
            last = (done.stderr.strip().splitlines() or ["no message"])[-1][:80]
            return Outcome(name, num_inputs, unexpected={f"died ({done.returncode}) at input {where}: {last}": 1})
        return Outcome(**json.loads(lines[-1]))


def to_markdown(outcomes: Sequence[Outcome]) -> str:
    """The table, and below it whatever was unexpected."""
    header = ["reader", "inputs", "read", "refused", "unexpected", f"over {HANG_SECONDS:g} s", "slowest s", "memory MB"]
    rows = [
        [
            *(o.reader, o.num_inputs, o.num_read, o.num_refused, sum(o.unexpected.values())),
            *(o.num_hangs, o.slowest_s, o.memory_mb),
        ]
        for o in outcomes
    ]
    lines = ["# Damaged input", "", f"`python -m tests.benchmarks.fuzz --inputs {outcomes[0].num_inputs}`", ""]
    lines += [_to_row(header), _to_row("---" for _ in header), *map(_to_row, rows)]
    faults = [f"- {o.reader}: {text} ({count})" for o in outcomes for text, count in o.unexpected.items()]
    about = (
        "Seconds are of processor time. Memory is the most that the process held beyond its own after reading valid "
        "input, the making of the damaged input included."
    )
    return "\n".join([*lines, "", about, "", *faults]).rstrip() + "\n"


def _to_row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    """Run the benchmark; the exit status is 1 where a reader is not good."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=NUM_INPUTS)
    parser.add_argument("--reader", action="append", choices=[reader.name for reader in READERS])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, num_inputs, place = arguments.child
        reader = next(reader for reader in READERS if reader.name == name)
        print(json.dumps(asdict(try_reader(reader, int(num_inputs), Path(place)))))
        return 0
    names = [reader.name for reader in READERS]
    outcomes = _load(arguments.out)
    for name in arguments.reader or names:
        outcomes[name] = run_reader(name, arguments.inputs)
        print(outcomes[name], flush=True)
        rows = [outcomes[known] for known in names if known in outcomes]
        if arguments.out is not None:
            (arguments.out / "results_fuzz.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
            (arguments.out / "results_fuzz.md").write_text(to_markdown(rows), encoding="utf-8")
    print(to_markdown(rows))
    return 0 if all(outcome.is_good for outcome in rows) else 1


def _load(folder: Path | None) -> dict[str, Outcome]:
    """Earlier outcomes by reader, of which some are to be made again."""
    path = None if folder is None else folder / "results_fuzz.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else []
    return {row["reader"]: Outcome(**row) for row in rows}


if __name__ == "__main__":
    sys.exit(main())
