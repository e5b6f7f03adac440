"""Killed commands lose nothing: ``python -m tests.benchmarks.kills [--kills N ...] [--out FOLDER]``.

Every command is killed (SIGKILL, its process alone) at a random moment of its run and given again, or one of its
workers, or the node of a Ray cluster that some of them are on, is killed and it goes on by itself. What then lies on
the disk is compared by SHA-256 with what an undisturbed run writes, but for the times that are written into text.
Commands are forked from a process that has the libraries loaded, so that the kills fall into their work and not into
imports; workers on Ray load them anew in every run.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

KILLS: Final = {
    "synthesize": 40,
    "prepare": 30,
    "export nnunet": 25,
    "export monai": 25,
    "export dicom": 25,
    "finetune-controlnet": 20,
    "benchmark run": 15,
    "bundles import": 20,
}
"""Command -> how often it is killed."""
ENGINE_KILLS: Final = {
    "devices: the driver": 45,
    "devices: a worker": 45,
    "shards": 40,
    "cohort merge": 30,
    "ray: the driver": 16,
    "ray: a worker": 12,
    "ray: a node": 12,
}
"""The same of cohorts that several processes make; those on Ray need it installed, and start a cluster of two nodes."""
REPOSITORY: Final = Path(__file__).resolve().parents[2]
NODE_SECONDS: Final = 60.0
"""Longest that a node of a Ray cluster may take to start."""
RUN_SECONDS: Final = 600.0
"""Longest that a command may take to go on by itself; one that hangs is a fault."""

TIMES: Final = re.compile(rb'\d{4}-\d\d-\d\dT[\d:.+]+|"[a-z_]*(seconds|minutes)[a-z_]*": ?(\{[^}]*\}|[\d.e+-]+)')
"""When something was written, and how long it took."""

Files = Mapping[str, str]
"""Path below the place of a command's results -> SHA-256; of a folder ``folder``."""


@dataclass(frozen=True)
class Case:
    """A command on inputs that stay the same.

    Attributes:
        words: Of the command line.
        place: Folder that all its results lie in; made anew for every kill.
        more: Command lines that follow it, as if they were one.
        template: What the folder of the results holds before.
        find_victims: Processes one of which is killed, and the command goes on by itself; called with the command's.
            None to kill that one, and give the command again.
        repair: Called before every run.
    """

    words: Sequence[str]
    place: Path
    more: Sequence[Sequence[str]] = ()
    template: Path | None = None
    find_victims: Callable[[int], list[int]] | None = None
    repair: Callable[[], None] = lambda: None

    def empty(self) -> None:
        """Make the place anew."""
        self.repair()
        shutil.rmtree(self.place, ignore_errors=True)
        if self.template is None:
            self.place.mkdir()
        else:
            shutil.copytree(self.template, self.place)


@dataclass
class Row:
    """What came of the kills of one command.

    Attributes:
        seconds: Of an undisturbed run.
        num_kills: Runs that were killed; those that ended before do not count.
        num_resumed: Killed runs after which the same command went on and ended with 0.
        num_done: Killed runs that had given their result its name already, so that the same command says so.
        num_same: Killed runs after which the files are those of an undisturbed run, byte by byte.
        num_left: Killed runs after which a file or folder is there that an undisturbed run does not leave.
        faults: What was wrong, with the moment of the kill.
    """

    command: str
    seconds: float = 0.0
    num_kills: int = 0
    num_resumed: int = 0
    num_done: int = 0
    num_same: int = 0
    num_left: int = 0
    faults: list[str] = field(default_factory=list)


class RayNodes:
    """A Ray cluster on this machine with a core on each of two nodes, started when it is first needed."""

    def __init__(self, folder: Path) -> None:
        """Nothing is started.

        Args:
            folder: For the cluster's own files; a short path, since sockets are made in it.
        """
        self._folder = folder
        self.address, self._client_port = f"127.0.0.1:{find_free_port()}", find_free_port()
        self._head: subprocess.Popen[bytes] | None = None
        self._second: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the nodes that do not run."""
        port = self.address.rpartition(":")[2]
        head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self._folder}"]
        self._head = self._start(self._head, [*head, f"--ray-client-server-port={self._client_port}"])
        self._second = self._start(self._second, [f"--address={self.address}"])

    def _start(self, process: subprocess.Popen[bytes] | None, words: Sequence[str]) -> subprocess.Popen[bytes]:
        if process is not None and process.poll() is None and find_raylets(process.pid):
            return process
        if process is not None:
            self._end(process)
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        }
        sizes = ["--num-cpus=1", f"--object-store-memory={100 << 20}", "--node-ip-address=127.0.0.1", "--block"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *words, *sizes]
        log = self._folder.with_suffix(".log")
        with log.open("ab") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        ends_at = time.monotonic() + NODE_SECONDS
        while b"Ray runtime started" not in log.read_bytes().rpartition(b"Local node IP")[2]:
            if process.poll() is not None or time.monotonic() > ends_at:
                raise RuntimeError(log.read_text()[-1000:])
            time.sleep(0.1)
        return process

    def find_second(self) -> list[int]:
        """The process that a node ends with, of the one that no driver is on."""
        return [] if self._second is None else find_raylets(self._second.pid)

    def find_actors(self) -> list[int]:
        """Processes of workers, on both nodes."""
        nodes = [node.pid for node in (self._head, self._second) if node is not None]
        return [child for node in nodes for child in list_descendants(node, b"ray::RemoteWorker")]

    def end(self) -> None:
        """End all nodes."""
        for process in (self._second, self._head):
            if process is not None:
                self._end(process)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        victims = [*list_descendants(process.pid), process.pid]
        for victim in victims:
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        process.wait()


@dataclass(frozen=True)
class Commands:
    """The commands that are killed. Each method writes the inputs of one and says how it is called.

    Attributes:
        folder: For inputs and results.
        nodes: Ray cluster, of which commands on it make use.
    """

    folder: Path
    nodes: RayNodes

    @property
    def place(self) -> Path:
        """Folder of the results."""
        return self.folder / "place"

    def by_name(self) -> dict[str, Callable[[], Case]]:
        """All commands, by their names in ``KILLS`` and ``ENGINE_KILLS``."""
        return {
            "synthesize": self.synthesize,
            "prepare": self.prepare,
            "export nnunet": self.export_nnunet,
            "export monai": lambda: self.export("monai"),
            "export dicom": lambda: self.export("dicom"),
            "finetune-controlnet": self.finetune,
            "benchmark run": self.benchmark,
            "bundles import": self.import_bundle,
            "devices: the driver": self.synthesize_on_devices,
            "devices: a worker": lambda: self.synthesize_on_devices(list_workers),
            "shards": self.synthesize_in_shards,
            "cohort merge": self.merge,
            "ray: the driver": self.synthesize_on_ray,
            "ray: a worker": lambda: self.synthesize_on_ray(lambda _: self.nodes.find_actors()),
            "ray: a node": lambda: self.synthesize_on_ray(lambda _: self.nodes.find_second()),
        }

    def synthesize(self) -> Case:
        """Two cases in one process."""
        from tests.builders.resolver import GATES_OFF
        from tests.builders.tiny_bundle import write_tiny_bundle

        bundle = write_tiny_bundle(self.folder / "tiny").path
        recipe = self.folder / "recipe.yaml"
        labels = ["hepatic tumor:25-40mm", "lung tumor:20-40mm"]
        recipe.write_text(json.dumps({"labels": labels, "gates": GATES_OFF, "seed": 5}))
        words = ["synthesize", "--recipe", str(recipe), "--bundle", str(bundle), "-n", "2", "--device", "cpu"]
        return Case([*words, "--out", str(self.place / "cohort")], self.place)

    def prepare(self) -> Case:
        """Four CTs of a lab."""
        from tests.builders.tiny_lab import GRID_WORDS, write_lab

        lab = write_lab(self.folder / "lab", 4)
        words = ["prepare", "--images", str(lab), "--labels", str(lab), "--folds", "2", "--workers", "1"]
        words += ["--map", "1=node@liver", "--map", "2=liver"]
        return Case([*words, *GRID_WORDS, "--out", str(self.place / "data")], self.place)

    def export_nnunet(self) -> Case:
        """A new dataset of nnU-Net."""
        words = ["export", "nnunet", str(self._cohort()), "--dataset-id", "7", "--name", "Kills"]
        return Case([*words, "--out", str(self.place / "raw")], self.place)

    def export(self, kind: str) -> Case:
        """Another export of the same cohort."""
        return Case(["export", kind, str(self._cohort()), "--out", str(self.place / kind)], self.place)

    def _cohort(self) -> Path:
        from tests.builders.tiny_cohort import HEPATIC_TUMOR, KIDNEY_TUMOR, write_cohort

        path = self.folder / "cohort"
        if not path.exists():
            write_cohort(path, *([HEPATIC_TUMOR], [KIDNEY_TUMOR], [HEPATIC_TUMOR, KIDNEY_TUMOR]) * 8)
        return path

    def finetune(self) -> Case:
        """Four steps on three cases."""
        from tests.builders.tiny_prepared import write_prepared, write_tiny_base

        data = write_prepared(self.folder / "data", num_cases=3)
        base = write_tiny_base(self.folder / "base").path
        words = ["finetune-controlnet", "--label", "gland", "--data", str(data), "--base", str(base)]
        words += ["--steps", "4", "--pictures", "0", "--crop", "16x16x16", "--tune", "low-rank", "--rank", "2"]
        return Case([*words, "--device", "cpu", "--out", str(self.place / "run")], self.place)

    def benchmark(self) -> Case:
        """Two arms of two steps."""
        from tests.builders.tiny_benchmark import write_dataset, write_pairs

        real = write_dataset(self.folder / "Dataset900_Tiny", 6)
        made = write_pairs(self.folder / "made", 4)
        words = ["benchmark", "run", "--real", str(real), "--synthetic", str(made), "--arms", "real,real+synthetic:1"]
        words += ["--seeds", "1", "--steps", "2", "--device", "cpu"]
        return Case([*words, "--out", str(self.place / "bench")], self.place)

    def import_bundle(self) -> Case:
        """Checkpoints as NVIDIA publishes them."""
        words = ["bundles", "import", str(_write_checkpoints(self.folder)), "--accept-license"]
        return Case([*words, "--to", str(self.place / "rflow-ct")], self.place)

    def synthesize_on_devices(self, find_victims: Callable[[int], list[int]] | None = None) -> Case:
        """Two workers on this machine."""
        words = [word for word in self.synthesize().words if word not in ("--device", "cpu")]
        return Case([*words, "--devices", "cpu,cpu"], self.place, find_victims=find_victims)

    def synthesize_in_shards(self) -> Case:
        """Two shards, one after the other, which are then merged."""
        words = list(self.synthesize().words)
        first, second = ([*words, "--shard", f"{number}/2"] for number in (1, 2))
        return Case(first, self.place, [second, ["cohort", "merge", str(self.place / "cohort")]])

    def merge(self) -> Case:
        """The last step of the shards alone; what the first ones leave is the template."""
        case, template = self.synthesize_in_shards(), self.folder / "unmerged"
        case.empty()
        for words in (case.words, case.more[0]):
            if wait(start([words], self.folder / "log")):
                raise RuntimeError((self.folder / "log").read_text())
        shutil.copytree(self.place, template, dirs_exist_ok=True)
        return Case(case.more[-1], self.place, template=template)

    def synthesize_on_ray(self, find_victims: Callable[[int], list[int]] | None = None) -> Case:
        """Six cases on both nodes."""
        words = [*self.synthesize().words, "--engine", "ray", "--address", self.nodes.address, "--num-workers", "2"]
        words[words.index("-n") + 1] = "6"
        return Case(words, self.place, find_victims=find_victims, repair=self.nodes.start)


def _write_checkpoints(folder: Path) -> Path:
    """A folder as NV-Generate-CTMR has it, with networks of tiny width; the known bundle is narrowed likewise."""
    from maisi_aug.bundle_spec import known_bundles as table
    from maisi_aug.networks.checkpoints import folders
    from tests.builders.tiny_bundle import write_tiny_bundle
    from tests.builders.tiny_checkpoints import draw_states, narrow, saved, wrap

    tiny = write_tiny_bundle(folder / "tiny_import")
    known = narrow(table.find_known_bundle("rflow-ct"), tiny)
    for module in (table, folders):
        module.known_bundles = lambda: {"rflow-ct": known}  # type: ignore[attr-defined]
    for role, content in wrap(draw_states(tiny)).items():
        path = folder / "NV" / known.files[role]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(saved(content))
    return folder / "NV"


def start(commands: Sequence[Sequence[str]], log: Path) -> int:
    """Fork a process that runs command lines, one after the other; its output goes to a file.

    Returns:
        Its id.
    """
    process = os.fork()
    if process:
        return process
    from maisi_aug.cli.app import run

    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = next((code for words in commands if (code := run(list(words)))), 0)
        sys.stdout.flush()
    except BaseException:
        code = 99
    os._exit(code)


def wait(process: int, seconds: float | None = None) -> int | None:
    """The exit code of a process, or minus the signal that ended it; None where it still runs after so long."""
    ends_at = None if seconds is None else time.monotonic() + seconds
    while True:
        found, status = os.waitpid(process, 0 if ends_at is None else os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if ends_at is not None and time.monotonic() >= ends_at:
            return None
        time.sleep(0.002)


def list_workers(process: int) -> list[int]:
    """Processes that one has started with Python's spawn, its resource tracker left out."""
    return [child for child, command in _list_children(process) if b"spawn_main" in command]


def list_descendants(process: int, begin: bytes = b"") -> list[int]:
    """Processes below one whose command line begins so."""
    found = []
    for child, command in _list_children(process):
        found += [child] * command.startswith(begin) + list_descendants(child, begin)
    return found


def find_free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def find_raylets(process: int) -> list[int]:
    """The process of a node, of a command that has started one."""
    return [child for child, command in _list_children(process) if b"raylet/raylet" in command.partition(b"\0")[0]]


def _list_children(process: int) -> Iterator[tuple[int, bytes]]:
    """Children of all threads of a process, with their command lines."""
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            for child in path.read_text().split():
                with suppress(OSError):
                    yield int(child), Path(f"/proc/{child}/cmdline").read_bytes()


def hash_all(place: Path) -> Files:
    """Everything below a folder."""
    paths = sorted(place.rglob("*"))
    return {str(path.relative_to(place)): _hash(path) if path.is_file() else "folder" for path in paths}


def _hash(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix in (".json", ".jsonl", ".txt"):
        content = TIMES.sub(b"", content)
    if path.name == "manifest.jsonl":  # several workers end in any order
        content = b"".join(sorted(content.splitlines(keepends=True)))
    return hashlib.sha256(content).hexdigest()


def run_whole(case: Case, log: Path) -> tuple[Files, float]:
    """The files of an undisturbed run, and its seconds."""
    case.empty()
    begun = time.monotonic()
    code = wait(start([case.words, *case.more], log))
    if code:
        raise RuntimeError(f"{' '.join(case.words)}: exit {code}: {log.read_text()[-500:]}")
    return hash_all(case.place), time.monotonic() - begun


def measure(command: str, case: Case, num_kills: int, draws: random.Random, log: Path) -> Row:
    """Kill a command so often."""
    first, _ = run_whole(case, log)
    expected, seconds = run_whole(case, log)
    row = Row(command, round(seconds, 2))
    if first != expected:
        different = [name for name in {*first, *expected} if first.get(name) != expected.get(name)]
        raise RuntimeError(f"{command}: undisturbed runs differ: {different}")
    while row.num_kills < num_kills:
        case.empty()
        delay = draws.uniform(0, seconds)
        process = start([case.words, *case.more], log)
        if wait(process, delay) is not None:
            continue
        victims = [process] if case.find_victims is None else case.find_victims(process)
        if not victims:  # none is there yet, or none any more
            wait(process)
            continue
        with suppress(ProcessLookupError):
            os.kill(draws.choice(victims), signal.SIGKILL)
        left: Files = {}
        if case.find_victims is not None:
            code = wait(process, RUN_SECONDS)
            if code is None:
                os.kill(process, signal.SIGKILL)
                wait(process)
        elif wait(process) != -signal.SIGKILL:
            continue
        else:
            left, code = hash_all(case.place), wait(start([case.words, *case.more], log))
        row.num_kills += 1
        _judge(row, expected, left, hash_all(case.place), code, f"killed after {delay:.2f} s, exit {code}", log)
    return row


def _judge(row: Row, expected: Files, left: Files, found: Files, code: int | None, about: str, log: Path) -> None:
    """Add a killed run to the counts."""
    is_done = code != 0 and sorted(left) == sorted(expected)
    row.num_resumed += code == 0
    row.num_done += is_done
    surplus = sorted(set(found) - set(expected))
    row.num_left += bool(surplus)
    differing = [name for name in expected if found.get(name) != expected[name]]
    row.num_same += not differing
    if surplus or differing or (code != 0 and not is_done):
        said = log.read_text().strip().splitlines()[-1:]
        row.faults.append(f"{about}: left {surplus[:3]}, differ {differing[:3]}, said {said}")
        print(row.faults[-1], file=sys.stderr, flush=True)


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per command, then what differs between undisturbed runs, and the faults."""
    header = ("command", "run, s", "kills", "went on", "was done", "same bytes", "something left")
    keys = ("command", "seconds", "num_kills", "num_resumed", "num_done", "num_same", "num_left")
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    lines += ["| " + " | ".join(str(row[key]) for key in keys) + " |" for row in rows]
    totals = [sum(row[key] for row in rows) for key in keys[2:]]
    lines.append("| all | | " + " | ".join(map(str, totals)) + " |")
    faults = [f"- {row['command']}: {fault}" for row in rows for fault in row["faults"]] or ["None."]
    return "\n".join(
        [
            "# Commands that are killed",
            "",
            "Written by `python -m tests.benchmarks.kills`. The process of a command is killed at a random moment and "
            "the same command given again. It goes on and ends with 0, or, where the result had its name already, says "
            "so. Where a worker or a node is killed, the command goes on by itself. Then everything below the folder "
            "of its results is compared by SHA-256 with an undisturbed run, the times in texts left out.",
            "",
            *lines,
            "",
            "Faults:",
            "",
            *faults,
            "",
        ]
    )


def main() -> None:
    """Kill, print the table and write it where asked to."""
    every = {**KILLS, **ENGINE_KILLS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--commands", nargs="+", default=list(KILLS), choices=list(every), help="those of one process by default"
    )
    parser.add_argument("--engines", action="store_true", help="those of several processes, in place of --commands")
    parser.add_argument("--kills", type=int, help="of every command, in place of 200 of each kind")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--name", default="results_kills", help="of their files")
    options = parser.parse_args()
    commands = list(ENGINE_KILLS) if options.engines else options.commands
    if importlib.util.find_spec("ray") is None and any(command.startswith("ray:") for command in commands):
        commands = [command for command in commands if not command.startswith("ray:")]
        print("Ray is not installed: what needs it is left out.", file=sys.stderr)
    import maisi_aug.training.finetune.run  # noqa: F401  loads torch and MONAI once

    draws, rows = random.Random(options.seed), []
    with ExitStack() as open_things:
        scratch = open_things.enter_context(tempfile.TemporaryDirectory(prefix="kills-"))
        os.environ["MAISI_AUG_HOME"] = str(Path(scratch, "home"))
        os.environ["RAY_AUTH_MODE"] = "disabled"  # a cluster that listens on this machine alone
        nodes = RayNodes(Path(scratch, "ray"))
        open_things.callback(nodes.end)
        for command, build in Commands(Path(scratch), nodes).by_name().items():
            if command in commands:
                num_kills = options.kills if options.kills is not None else every[command]
                rows.append(asdict(measure(command, build(), num_kills, draws, Path(scratch, "log"))))
                print(rows[-1], file=sys.stderr, flush=True)
                if options.out is not None:
                    options.out.mkdir(parents=True, exist_ok=True)
                    (options.out / f"{options.name}.json").write_text(json.dumps(rows, indent=1) + "\n")
                    (options.out / f"{options.name}.md").write_text(to_markdown(rows))
    print(to_markdown(rows))


if __name__ == "__main__":
    main()
