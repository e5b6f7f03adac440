"""The same cohort by one process, by processes for several devices, and by shards."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from maisi_aug.api.cohorts import cohort_status, merge_cohort, verify_cohort
from maisi_aug.cohort.manifest import MANIFEST_NAME, AttemptRecord, ManifestWriter, load_manifest
from maisi_aug.cohort.request import COHORT_NAME
from maisi_aug.cohort.resolve import CohortRun
from maisi_aug.cohort.shards import Shard
from maisi_aug.errors import CohortError, RequestError, WorkerError
from maisi_aug.generate.driver import Listener
from maisi_aug.generate.run import CohortSummary, synthesize_cohort
from maisi_aug.system.engine.cores import count_threads
from maisi_aug.system.engine.processes import Processes
from maisi_aug.system.whole_files import TEMPORARY_SUFFIX
from tests.builders.cohorts_compared import hash_files, read_lines, sort_lines
from tests.builders.resolver import GATES_OFF, resolver

NUM_CASES = 5
LABELS = ["hepatic tumor:25-40mm", "lung tumor:20-40mm", "kidney tumor:25mm+spleen"]
TWO = Processes(("cpu", "cpu"))


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """As many threads in this process as in a worker: the order of sums is part of an image."""
    before = torch.get_num_threads()
    torch.set_num_threads(count_threads(2))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def resolve(bundle_path: Path) -> Callable[..., CohortRun]:
    return resolver(labels=LABELS, num_cases=NUM_CASES, seed=5, bundle=str(bundle_path), gates=GATES_OFF)


@pytest.fixture(scope="module")
def reference(resolve: Callable[..., CohortRun], tmp_path_factory: pytest.TempPathFactory) -> CohortSummary:
    return synthesize_cohort(resolve(), tmp_path_factory.mktemp("reference") / "cohort", device="cpu")


def test_processes_make_the_same_cohort(
    reference: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    summary = synthesize_cohort(resolve(), tmp_path / "cohort", engine=TWO)
    assert hash_files(summary.folder) == hash_files(reference.folder)
    assert sort_lines(summary.folder) == sort_lines(reference.folder)
    again = synthesize_cohort(resolve(), tmp_path / "cohort", engine=Processes(("no such device",)))
    assert (again.num_new, again.is_complete) == (0, True)


class Killer(Listener):
    """Kills a worker when it has begun an image, as often as is wished."""

    def __init__(self, num_kills: int) -> None:
        self.num_kills, self.lost = num_kills, list[str]()

    def works(self, worker: str, event: str, details: tuple[Any, ...]) -> None:
        if event == "steps" and self.num_kills:
            victim = next(child for child in multiprocessing.active_children() if child.name == worker)
            os.kill(victim.pid or 0, signal.SIGKILL)
            self.num_kills -= 1

    def loses(self, worker: str, how: str) -> None:
        self.lost.append(how)


def test_killed_worker_costs_the_cases_in_flight_only(
    reference: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    killer = Killer(2)
    summary = synthesize_cohort(resolve(), tmp_path / "cohort", engine=TWO, listener=killer)
    assert killer.lost == ["was killed, probably for lack of memory"] * 2
    assert sort_lines(summary.folder) == sort_lines(reference.folder)
    assert hash_files(summary.folder) == hash_files(reference.folder)


@pytest.mark.slow
def test_worker_that_is_killed_again_and_again_stops_the_run(resolve: Callable[..., CohortRun], tmp_path: Path) -> None:
    with pytest.raises(
        WorkerError, match="3 processes in a row did not finish their work; the last was killed, probably for lack of"
    ):
        synthesize_cohort(resolve(), tmp_path / "cohort", engine=Processes(("cpu",)), listener=Killer(99))
    assert multiprocessing.active_children() == []


class Interrupter(Listener):
    """Presses Ctrl-C once a case is recorded."""

    def records(self, record: AttemptRecord) -> None:
        raise KeyboardInterrupt


def test_ctrl_c_stops_all_workers_and_loses_nothing(
    reference: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        synthesize_cohort(resolve(), tmp_path / "cohort", engine=TWO, listener=Interrupter())
    assert multiprocessing.active_children() == []
    assert len(load_manifest(tmp_path / "cohort").accepted) >= 1
    assert not list((tmp_path / "cohort").glob(".*"))
    synthesize_cohort(resolve(), tmp_path / "cohort", device="cpu")
    assert hash_files(tmp_path / "cohort") == hash_files(reference.folder)


def test_error_of_a_worker_is_that_of_the_run(resolve: Callable[..., CohortRun], tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    synthesize_cohort(resolve(), out, device="cpu", case_indices=[0])
    with pytest.raises(Exception, match="'no such device': torch cannot use it"):
        synthesize_cohort(resolve(), out, engine=Processes(("no such device",)))


@pytest.fixture(scope="module")
def shards(resolve: Callable[..., CohortRun], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of three shards, not merged."""
    out = tmp_path_factory.mktemp("shards") / "cohort"
    for number in (2, 3, 1):
        summary = synthesize_cohort(resolve(), out, device="cpu", shard=Shard(number, 3))
        assert summary.is_complete
        assert summary.num_cases == len(range(number - 1, NUM_CASES, 3))
    return out


def leave_files(cohort: Path) -> None:
    """Leave what a process leaves that is killed while it writes files of a cohort."""
    for name in (COHORT_NAME, MANIFEST_NAME, "contact_sheet.png", "images/case_0002.nii.gz"):
        path = cohort / name
        path.with_name(f".{path.name}.0a1b2c3d{TEMPORARY_SUFFIX}").write_bytes(b"torn")


def test_merged_shards_are_as_from_one_process(reference: CohortSummary, shards: Path, tmp_path: Path) -> None:
    out = shutil.copytree(shards, tmp_path / "cohort")
    assert len(load_manifest(out).accepted) == NUM_CASES  # read as one before, too
    assert cohort_status(out).shards == tuple(f"manifest.{number}-of-3.jsonl" for number in (1, 2, 3))
    leave_files(out)  # by a shard that was killed; another was at work when it went on
    cohort = merge_cohort(out)
    assert (cohort.summary.is_complete, cohort_status(out).shards) == (True, ())
    assert hash_files(out) == hash_files(reference.folder)
    assert read_lines(out) == sort_lines(reference.folder)
    assert verify_cohort(out).is_whole
    leave_files(out)  # by a merge that was killed at its end
    merge_cohort(out)
    assert hash_files(out) == hash_files(reference.folder)


def test_shards_with_a_folder_each_are_merged_into_a_new_one(
    reference: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for number, folder in enumerate(folders, start=1):
        synthesize_cohort(resolve(), folder, device="cpu", shard=Shard(number, 2))
    before = [hash_files(folder) for folder in folders]
    merge_cohort(*folders, out=tmp_path / "all")
    assert hash_files(tmp_path / "all") == hash_files(reference.folder)
    assert read_lines(tmp_path / "all") == sort_lines(reference.folder)
    assert [hash_files(folder) for folder in folders] == before
    (tmp_path / "all" / "images" / "case_0002.nii.gz").unlink()  # as if it had been killed before
    leave_files(tmp_path / "all")
    merge_cohort(*folders, out=tmp_path / "all")
    assert hash_files(tmp_path / "all") == hash_files(reference.folder)


def test_shards_of_different_commands_are_not_merged(resolve: Callable[..., CohortRun], tmp_path: Path) -> None:
    for number, seed in ((1, 5), (2, 6)):
        folder = tmp_path / str(number)
        synthesize_cohort(resolve(seed=seed), folder, device="cpu", shard=Shard(number, NUM_CASES))
    with pytest.raises(CohortError, match="belongs to another cohort than"):
        merge_cohort(tmp_path / "1", tmp_path / "2", out=tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_plain_run_goes_on_with_shards(
    reference: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    out = tmp_path / "cohort"
    synthesize_cohort(resolve(), out, device="cpu", shard=Shard(2, 2))
    assert synthesize_cohort(resolve(), out, device="cpu").num_new == NUM_CASES - 2
    merge_cohort(out)
    assert hash_files(out) == hash_files(reference.folder)


def test_shard_takes_up_what_was_rejected(resolve: Callable[..., CohortRun], tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    once, twice = (resolve(gates={}, max_attempts=budget) for budget in (1, 2))
    assert len(synthesize_cohort(once, out, device="cpu", shard=Shard(1, 3)).manifest.rejected) == 2
    again = synthesize_cohort(twice, out, device="cpu", shard=Shard(1, 3))
    assert {(record.case_index, record.attempt) for record in again.manifest.records} == {
        (0, 0),
        (0, 1),
        (3, 0),
        (3, 1),
    }


def test_two_drawings_of_a_case_that_differ_are_shown(shards: Path, tmp_path: Path) -> None:
    out = shutil.copytree(shards, tmp_path / "cohort")
    first = load_manifest(out).accepted[0]
    other = {**first.files, "image": replace(first.files["image"], sha256="0" * 64)}
    with ManifestWriter(out / "manifest.1-of-2.jsonl") as writer:
        writer.append(first)
    merge_cohort(shutil.copytree(out, tmp_path / "same"))
    with ManifestWriter(out / "manifest.1-of-2.jsonl") as writer:
        writer.append(replace(first, files=other))
    before = hash_files(out)
    with pytest.raises(CohortError, match="case_0001 was drawn twice with different results: images/case_0001.nii"):
        merge_cohort(out)
    assert {name: value for name, value in hash_files(out).items() if name != MANIFEST_NAME} == before


def test_shard_that_is_at_work_is_not_merged_nor_crossed(
    resolve: Callable[..., CohortRun], shards: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(shards, tmp_path / "cohort")
    with ManifestWriter(out / "manifest.2-of-3.jsonl") as writer:
        writer.lease.state = {"num_settled": 1, "seconds": 30.0, "num_left": 2}
        writer.lease._beat()
        (job,) = cohort_status(out).running
        assert (job.manifest, job.pid, job.cases_a_minute) == ("manifest.2-of-3.jsonl", os.getpid(), 2.0)
        assert cohort_status(out).seconds_left == 60.0
        busy = pytest.raises(CohortError, match="another process is working in this folder")
        with busy:
            merge_cohort(out)
        with busy:
            synthesize_cohort(resolve(), out, device="cpu")
        with busy:
            synthesize_cohort(resolve(), out, device="cpu", shard=Shard(1, 2))
        with busy:
            synthesize_cohort(resolve(), out, device="cpu", shard=Shard(2, 3))
        assert synthesize_cohort(resolve(), out, device="cpu", shard=Shard(1, 3)).is_complete
        with pytest.raises(CohortError, match="this cohort was made with a different configuration"):
            synthesize_cohort(resolve(seed=6), out, device="cpu", shard=Shard(1, 3))


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "4", "a/b", "-1/4", "1/4/2", "", "1/9999999"])
def test_shard_out_of_range_is_a_sentence(text: str) -> None:
    with pytest.raises(RequestError, match=r"--shard: expected I/N with I from 1 to N .*, such as 1/4, found"):
        Shard.parse(text)
    assert str(Shard.parse(" 2/4 ")) == "2/4"
