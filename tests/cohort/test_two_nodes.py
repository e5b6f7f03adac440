"""One cohort and the processes of several machines, on a disk that has no locks."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from maisi_aug.cohort.manifest import ManifestWriter, find_holder, load_manifest
from maisi_aug.errors import CohortError
from maisi_aug.system import lease as leases
from tests.builders.tiny_cohort import HEPATIC_TUMOR, save_case

REPOSITORY = Path(__file__).resolve().parents[2]
STALE_SECONDS = 3.0
NODE = f"""
import errno, fcntl, sys
from dataclasses import replace
from pathlib import Path
from maisi_aug.cohort.manifest import ManifestWriter, load_manifest
from maisi_aug.errors import CohortError
from maisi_aug.system import lease

def refuse(*_):
    raise OSError(errno.ENOLCK, "No locks available")

fcntl.flock = refuse
own = lease.describe_process()
lease.describe_process = lambda: replace(own, host="node7", boot="another boot")
lease.STALE_SECONDS, lease.BEAT_SECONDS, lease.POLL_SECONDS = {STALE_SECONDS}, 0.1, 0.05
path = Path(sys.argv[1])
try:
    with ManifestWriter(path) as writer:
        print("open", flush=True)
        sys.stdin.readline()
        writer.append(load_manifest(path.parent).records[0])
        print("written", flush=True)
except CohortError as error:
    print(error, flush=True)
"""


@pytest.fixture(autouse=True)
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an NFS mount without a lock daemon answers; and seconds become parts of seconds."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for name, value in (("STALE_SECONDS", STALE_SECONDS), ("BEAT_SECONDS", 0.1), ("POLL_SECONDS", 0.05)):
        monkeypatch.setattr(leases, name, value)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "manifest.jsonl"
    with ManifestWriter(path) as writer:
        writer.append(save_case(tmp_path, 0, [HEPATIC_TUMOR]))
    return path


@contextmanager
def run_node(manifest: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the manifest open, and takes itself for one of another machine."""
    environment, pipe = {**os.environ, "PYTHONPATH": str(REPOSITORY)}, subprocess.PIPE
    command = [sys.executable, "-c", NODE, str(manifest)]
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as node:
        try:
            assert node.stdout is not None
            assert node.stdout.readline() == "open\n"
            yield node
        finally:
            node.send_signal(signal.SIGCONT)
            node.kill()


def ask(node: subprocess.Popen[str]) -> str:
    """Have it write a line; what it says."""
    assert node.stdin is not None
    assert node.stdout is not None
    print(file=node.stdin, flush=True)
    return node.stdout.readline()


def test_second_of_two_nodes_gets_a_sentence(manifest: Path) -> None:
    with run_node(manifest) as node:
        with (
            pytest.warns(UserWarning, match=f"process {node.pid} on node7 was working here a moment ago. Waiting"),
            pytest.raises(CohortError, match=rf"is working in this folder \(process {node.pid} on node7\)"),
        ):
            ManifestWriter(manifest)
        assert ask(node) == "written\n"
        node.wait()
    ManifestWriter(manifest).close()  # at once: what has ended left no lease


def test_node_that_stands_still_is_taken_over_and_writes_nothing_more(manifest: Path) -> None:
    with run_node(manifest) as node:
        node.send_signal(signal.SIGSTOP)
        with pytest.warns(UserWarning, match="Waiting up to"):
            writer = ManifestWriter(manifest)
        with writer:
            before = manifest.read_bytes()
            node.send_signal(signal.SIGCONT)
            assert "took over while this process was" in ask(node)
            node.wait()
            assert manifest.read_bytes() == before
            writer.append(replace(load_manifest(manifest.parent).records[0], reason="ours"))
            holder = find_holder(manifest)
            assert holder is not None
            assert holder.pid == os.getpid()
    assert load_manifest(manifest.parent).records[0].reason == "ours"
    assert sorted(path.name for path in manifest.parent.glob(".*")) == []


def test_cohort_of_a_dead_node_is_gone_on_with_when_its_lease_is_stale(manifest: Path) -> None:
    with run_node(manifest) as node:
        node.kill()
        node.wait()
        assert find_holder(manifest) is not None  # nobody can tell yet that it is gone
        with pytest.warns(UserWarning, match="Waiting up to"):
            ManifestWriter(manifest).close()
    assert find_holder(manifest) is None
