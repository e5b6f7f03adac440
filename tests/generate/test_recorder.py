from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from maisi_aug.cohort.folder import CohortFolder, open_scratch
from maisi_aug.cohort.manifest import MANIFEST_NAME, AttemptRecord, FileRecord, ManifestWriter, load_manifest
from maisi_aug.cohort.plan import CasePlan
from maisi_aug.errors import CohortError
from maisi_aug.generate.driver import CaseDriver, CaseItem, CaseResult, Listener, Recorder
from maisi_aug.system.engine.work import Engine
from tests.cohort.test_manifest import build_record

IMAGE = "images/case_0001.nii.gz"


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    with ManifestWriter(tmp_path / MANIFEST_NAME) as manifest:
        yield Recorder(CohortFolder(tmp_path), manifest)


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    with open_scratch(tmp_path) as folder:
        yield folder


def write(scratch: Path, content: bytes, *, attempt: int = 0) -> AttemptRecord:
    """An accepted attempt with one file, as a worker leaves it."""
    path = scratch / IMAGE
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    files = {"image": FileRecord(IMAGE, hashlib.sha256(content).hexdigest())}
    return replace(build_record(0, attempt), files=files)


def test_files_get_their_place_and_the_line_comes_last(recorder: Recorder, scratch: Path, tmp_path: Path) -> None:
    assert recorder.record(write(scratch, b"drawn"), scratch)
    assert (tmp_path / IMAGE).read_bytes() == b"drawn"
    assert not (scratch / IMAGE).exists()
    assert len(load_manifest(tmp_path).accepted) == 1


def test_second_drawing_of_an_attempt_is_dropped(recorder: Recorder, scratch: Path, tmp_path: Path) -> None:
    recorder.record(write(scratch, b"drawn"), scratch)
    assert not recorder.record(write(scratch, b"drawn"), scratch)
    assert len((tmp_path / MANIFEST_NAME).read_bytes().splitlines()) == 1
    assert not (scratch / IMAGE).exists()


def test_second_drawing_that_differs_is_shown_and_changes_nothing(
    recorder: Recorder, scratch: Path, tmp_path: Path
) -> None:
    recorder.record(write(scratch, b"drawn"), scratch)
    with pytest.raises(CohortError, match="case_0001 was drawn twice with different results: images/case_0001.nii"):
        recorder.record(write(scratch, b"drawn otherwise"), scratch)
    assert (tmp_path / IMAGE).read_bytes() == b"drawn"
    assert len(load_manifest(tmp_path).records) == 1


def test_full_disk_leaves_neither_file_nor_line(
    recorder: Recorder, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = write(scratch, b"drawn")

    def fill_up(descriptor: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", fill_up)
    with pytest.raises(CohortError, match="the disk is full"):
        recorder.record(record, scratch)
    monkeypatch.undo()
    assert not (tmp_path / IMAGE).exists()
    assert load_manifest(tmp_path).records == ()


class HandsOutTwice(Engine):
    """An engine that took a worker for lost, which then hands in what another has made meanwhile."""

    devices = ()

    def run(self, spec, items, settle, *, scratch, watch):  # type: ignore[no-untyped-def]
        """Settle the first item twice."""
        (item,) = items
        for _ in range(2):
            assert [*settle(item, CaseResult((write(scratch, b"drawn"),)), scratch)] == []


def test_case_that_was_handed_out_twice_counts_once(recorder: Recorder, scratch: Path) -> None:
    told: list[str] = []

    class Teller(Listener):
        def records(self, record: AttemptRecord) -> None:
            told.append(record.case_id)

    case = CasePlan("case_0001", 0, "hepatic tumor:0.3", (), ())
    CaseDriver(recorder, Teller()).make(
        None,  # type: ignore[arg-type]  # nothing is opened
        [CaseItem((case,), 0, frozenset({0}))],
        HandsOutTwice(),
        scratch=scratch,
    )
    assert told == ["case_0001"]
    assert recorder.manifest.lease.state["num_settled"] == 1
    assert recorder.manifest.lease.state["num_left"] == 0
