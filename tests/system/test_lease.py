from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from maisi_aug.errors import CohortError
from maisi_aug.system import lease as leases
from maisi_aug.system.lease import Holder, Lease, age_of, describe_process, is_fresh, read_holder, take_lease

OTHER = Holder(token="b" * 16, host="node7", pid=4711, boot="another boot", namespace="pid:[1]")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become parts of seconds."""
    monkeypatch.setattr(leases, "STALE_SECONDS", 1.2)
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.05)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".manifest.jsonl.lease"


@contextmanager
def hold_lease(path: Path, *, has_lock: bool | None) -> Iterator[Lease]:
    lease = take_lease(path, has_lock=has_lock)
    try:
        yield lease
    finally:
        lease.end()


def write(path: Path, holder: Holder, *, age: float = 0.0) -> None:
    path.write_bytes(leases._to_bytes(holder))
    now = time.time()
    os.utime(path, (now - age, now - age))


def beat_from_elsewhere(path: Path, ended: threading.Event) -> None:
    """Another machine that goes on writing its lease."""
    beat = 0
    while not ended.wait(0.1):
        beat += 1
        path.write_bytes(leases._to_bytes(replace(OTHER, beat=beat)))


def test_lease_names_its_holder_and_goes_with_it(path: Path) -> None:
    with hold_lease(path, has_lock=None) as lease:
        lease.state = {"num_left": 3}
        first = read_holder(path)
        assert (first.pid, first.host != "", len(first.token)) == (os.getpid(), True, 16)
        time.sleep(0.4)
        assert read_holder(path).beat > first.beat
        assert read_holder(path).read_state() == {"num_left": 3}
        assert is_fresh(path)
        lease.require_held()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("has_lock", [True, None])
def test_second_of_two_gets_a_sentence_whatever_the_clocks_say(path: Path, has_lock: bool | None) -> None:
    ended = threading.Event()
    write(path, OTHER)
    other = threading.Thread(target=beat_from_elsewhere, args=(path, ended))
    other.start()
    try:
        with (
            pytest.warns(UserWarning, match="process 4711 on node7 was working here a moment ago"),
            pytest.raises(CohortError, match="another process is working in this folder"),
        ):
            take_lease(path, has_lock=has_lock)
    finally:
        ended.set()
        other.join()
    assert read_holder(path).host == "node7"


@pytest.mark.parametrize("ahead", [-86400.0, 0.0, 86400.0])
def test_what_a_dead_node_left_is_taken_when_it_is_stale_whatever_the_clocks_say(
    path: Path, ahead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "time", lambda: time.time() + ahead)  # this machine's clock is not asked
    naps: list[float] = []
    monkeypatch.setattr(leases, "sleep", lambda seconds: (naps.append(seconds), time.sleep(seconds)))
    write(path, OTHER, age=60.0)
    begun = time.monotonic()
    with hold_lease(path, has_lock=None):
        assert len(naps) <= 1  # it looks twice, and waits for nothing
        assert read_holder(path).pid == os.getpid()
    write(path, OTHER)
    with pytest.warns(UserWarning, match="Waiting up to"), hold_lease(path, has_lock=None):
        assert time.monotonic() - begun > 1.0
    assert list(path.parent.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells one run of a machine from the next")
def test_killed_process_of_this_machine_leaves_nothing_to_wait_for(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    write(path, replace(describe_process(), token="c" * 16, pid=process.pid))
    with hold_lease(path, has_lock=None):
        assert read_holder(path).pid == os.getpid()
    write(path, replace(describe_process(), token="c" * 16, pid=1, namespace="a container's"))
    with hold_lease(path, has_lock=True):  # the kernel says that it is gone
        assert read_holder(path).pid == os.getpid()


def test_only_one_of_many_takes_what_is_stale(path: Path) -> None:
    write(path, OTHER, age=60.0)
    got, refused = [], []

    def take() -> None:
        try:
            got.append(take_lease(path, has_lock=None))
        except CohortError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)
    got[0].require_held()
    got[0].end()
    assert list(path.parent.iterdir()) == []


def test_process_that_stood_still_and_was_taken_over_says_so(path: Path) -> None:
    lease = take_lease(path, has_lock=None)
    write(path, OTHER)
    time.sleep(0.4)
    with pytest.raises(CohortError, match="process 4711 on node7 took over while this process was suspended"):
        lease.require_held()
    lease.end()
    assert read_holder(path) == OTHER


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"token": 3}', b'{"unknown": 1}', b"\xff" * 9, b"x" * 9000])
def test_damaged_lease_is_nobodys_and_grows_stale(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    os.utime(path, (time.time() - 60, time.time() - 60))
    assert read_holder(path) == Holder()
    with hold_lease(path, has_lock=None):
        assert read_holder(path).pid == os.getpid()
    assert list(path.parent.iterdir()) == []


def test_state_is_figures_alone() -> None:
    told = replace(OTHER, state=json.dumps({"a": 1, "b": "x", "c": [1]})).read_state()
    assert told == {"a": 1}
    assert replace(OTHER, state="{").read_state() == {}


def test_age_of_what_is_gone(path: Path) -> None:
    assert age_of(path) == float("inf")
    assert not is_fresh(path)
