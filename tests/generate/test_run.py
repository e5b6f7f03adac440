from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maisi_aug.banks import folder_bank
from maisi_aug.cohort import folder as cohort_folder
from maisi_aug.cohort import resolve as resolving
from maisi_aug.cohort.folder import LostCase
from maisi_aug.cohort.manifest import MANIFEST_NAME, AttemptRecord, VerdictRecord, load_manifest
from maisi_aug.cohort.recipe_files import read_recipe
from maisi_aug.cohort.request import build_request
from maisi_aug.cohort.resolve import CohortRun
from maisi_aug.errors import BankError, CohortError, LesionError, MaisiAugError
from maisi_aug.generate.attempts import Attempt
from maisi_aug.generate.driver import Listener
from maisi_aug.generate.run import CohortSummary, synthesize_cohort
from maisi_aug.vocabulary.labels import BODY_ID
from maisi_aug.volumes.image_files import load_image, load_label_map, save_label_map
from tests.builders.counted import counted
from tests.builders.random_bundle import write_random_bundle
from tests.builders.resolver import GATES_OFF, resolver
from tests.builders.tiny_bank import build_trunk, write_case
from tests.builders.tiny_bundle import TINY_SHAPE, build_header

NUM_CASES = 3
NUM_MANY = 40
LABELS = ["hepatic tumor:25-40mm", "lung tumor:20-40mm", "kidney tumor:25mm+spleen"]


@pytest.fixture(scope="module")
def resolve(bundle_path: Path) -> Callable[..., CohortRun]:
    """Resolve a small cohort that accepts noise, with some fields changed."""
    return resolver(labels=LABELS, num_cases=NUM_CASES, seed=5, bundle=str(bundle_path), gates=GATES_OFF)


@pytest.fixture(scope="module")
def reference(resolve: Callable[..., CohortRun], tmp_path_factory: pytest.TempPathFactory) -> CohortSummary:
    """A cohort made without any trouble."""
    return synthesize_cohort(resolve(), tmp_path_factory.mktemp("reference") / "cohort", device="cpu")


def hash_files(folder: Path) -> dict[str, str]:
    """Hashes of all files but the manifest, which holds times."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_cohort_has_its_files_and_nothing_else(reference: CohortSummary) -> None:
    ids = [f"case_{number:04d}" for number in range(1, NUM_CASES + 1)]
    volumes = {f"{folder}/{case}.nii.gz" for folder in ("images", "labels", "anatomy") for case in ids}
    pictures = {f"previews/{case}.png" for case in ids}
    assert set(hash_files(reference.folder)) == volumes | pictures | {"cohort.yaml", "contact_sheet.png"}
    assert reference.is_complete


def test_manifest_holds_what_is_on_the_disk(reference: CohortSummary) -> None:
    hashes = hash_files(reference.folder)
    records = load_manifest(reference.folder).accepted
    assert [record.case_index for record in records] == list(range(NUM_CASES))
    for record in records:
        assert set(record.files) == {"image", "label", "anatomy", "preview"}
        assert all(hashes[file.path] == file.sha256 for file in record.files.values())
        assert record.reason == ""
        assert record.mask_origin["source"] == "plant"
        assert record.licence == "Apache-2.0"
        assert {verdict.gate for verdict in record.verdicts} == {"presence", "lesion size", "lesion place", "geometry"}


def test_label_file_holds_the_requested_labels_of_the_anatomy_only(reference: CohortSummary) -> None:
    requested = [3, 23, 26, 129]
    for record in load_manifest(reference.folder).accepted:
        files = {role: reference.folder / file.path for role, file in record.files.items()}
        image, label_map = load_image(files["image"]), load_label_map(files["label"])
        anatomy = load_label_map(files["anatomy"])
        assert image.array.shape == anatomy.array.shape == TINY_SHAPE
        assert image.array.dtype == np.int16
        assert image.grid.is_close(label_map.grid)
        assert image.grid.is_close(anatomy.grid)
        assert (label_map.array == np.where(np.isin(anatomy.array, requested), anatomy.array, 0)).all()
        assert (image.array[anatomy.array == 0] == -1000).all()
        assert {lesion.label_id for lesion in record.lesions} <= set(np.unique(label_map.array))


def test_realised_sizes_are_those_of_the_saved_label_map(reference: CohortSummary) -> None:
    for record in load_manifest(reference.folder).accepted:
        label_map = load_label_map(reference.folder / record.files["label"].path)
        for lesion in record.lesions:
            found_ml = float((label_map.array == lesion.label_id).sum()) * label_map.grid.voxel_ml
            assert lesion.realised_ml == pytest.approx(found_ml)
            allowed = max(0.1 * lesion.requested_ml, 2 * label_map.grid.voxel_ml)
            assert abs(found_ml - lesion.requested_ml) <= allowed


def test_another_order_gives_the_same_bytes(
    reference: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    synthesize_cohort(resolve(), tmp_path, device="cpu", case_indices=[2])
    synthesize_cohort(resolve(), tmp_path, device="cpu", case_indices=[1, 0])
    assert hash_files(tmp_path) == hash_files(reference.folder)


def test_next_seed_gives_other_images(
    reference: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    synthesize_cohort(resolve(seed=6), tmp_path, device="cpu", case_indices=[0])
    ours, theirs = hash_files(tmp_path), hash_files(reference.folder)
    assert all(ours[name] != theirs[name] for name in ours if name.startswith(("images", "anatomy")))


@pytest.fixture
def copy(reference: CohortSummary, tmp_path: Path) -> Path:
    """A copy of the whole cohort, to be damaged."""
    return shutil.copytree(reference.folder, tmp_path / "copy")


class Finder(Listener):
    """Notes what a run finds lost."""

    def __init__(self) -> None:
        self.lost: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []

    def finds_lost(self, lost: Sequence[LostCase]) -> None:
        self.lost += [(case.record.case_id, case.missing, case.altered) for case in lost]


def test_lost_files_are_drawn_again_to_the_same_bytes(
    reference: CohortSummary, resolve: Callable[..., CohortRun], copy: Path
) -> None:
    for name in ("images/case_0001.nii.gz", "previews/case_0003.png"):
        (copy / name).unlink()
    finder = Finder()
    again = synthesize_cohort(resolve(), copy, device="cpu", listener=finder)
    assert [case_id for case_id, _, _ in finder.lost] == ["case_0001", "case_0003"]
    assert finder.lost[0][1:] == (("images/case_0001.nii.gz",), ())
    assert (again.num_new, again.num_lost, again.is_complete) == (2, 2, True)
    assert hash_files(copy) == hash_files(reference.folder)
    files = [[record.files for record in load_manifest(folder).accepted] for folder in (copy, reference.folder)]
    assert files[0] == files[1]
    assert synthesize_cohort(resolve(), copy, device="no such device", verify=True).num_lost == 0


def test_altered_files_are_drawn_again_where_bytes_are_compared(
    reference: CohortSummary, resolve: Callable[..., CohortRun], copy: Path
) -> None:
    (copy / "labels/case_0002.nii.gz").write_bytes(b"another program's")
    (copy / "previews/case_0002.png").write_bytes(b"no picture")
    finder = Finder()
    assert synthesize_cohort(resolve(), copy, device="no such device", listener=finder).num_lost == 0
    assert finder.lost == []
    assert synthesize_cohort(resolve(), copy, device="cpu", listener=finder, verify=True).num_lost == 1
    assert finder.lost == [("case_0002", (), ("labels/case_0002.nii.gz", "previews/case_0002.png"))]
    assert hash_files(copy) == hash_files(reference.folder)


def test_lost_case_that_is_not_wanted_waits(resolve: Callable[..., CohortRun], copy: Path) -> None:
    (copy / "previews/case_0003.png").unlink()
    assert synthesize_cohort(resolve(), copy, device="no such device", case_indices=[0]).num_lost == 0
    assert not (copy / "previews/case_0003.png").exists()


def test_case_that_fails_when_it_is_drawn_again_leaves_no_file_of_its_earlier_self(
    resolve: Callable[..., CohortRun], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "previews/case_0001.png").unlink()
    failed = VerdictRecord("geometry", False, {}, "Geometry: not on this machine.")

    def reject(run: CohortRun, attempt: Attempt) -> Attempt:
        return replace(attempt, verdicts=(*attempt.verdicts, failed), reason=failed.message)

    monkeypatch.setattr("maisi_aug.generate.writer.judge_drawn_image", reject)
    again = synthesize_cohort(resolve(), copy, device="cpu")
    assert [record.case_id for record in again.manifest.rejected] == ["case_0001"]
    assert [path.name for path in copy.rglob("case_0001.*")] == []
    assert {record.status for record in load_manifest(copy).records if record.case_index == 0} >= {"rejected"}


def test_complete_cohort_is_left_as_it_is(reference: CohortSummary, resolve: Callable[..., CohortRun]) -> None:
    before = hash_files(reference.folder), (reference.folder / MANIFEST_NAME).read_bytes()
    again = synthesize_cohort(resolve(), reference.folder, device="no such device")
    assert again.num_new == 0
    assert again.is_complete
    assert (hash_files(reference.folder), (reference.folder / MANIFEST_NAME).read_bytes()) == before


def test_case_whose_line_is_removed_is_made_again_with_the_same_bytes(
    reference: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    shutil.copytree(reference.folder, tmp_path / "cohort")
    manifest = tmp_path / "cohort" / MANIFEST_NAME
    (tmp_path / "cohort" / "images" / "case_0002.nii.gz").unlink()
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(line for line in lines if '"case_0002"' not in line))
    assert synthesize_cohort(resolve(), tmp_path / "cohort", device="cpu").num_new == 1
    assert hash_files(tmp_path / "cohort") == hash_files(reference.folder)


def test_different_configuration_is_refused(reference: CohortSummary, resolve: Callable[..., CohortRun]) -> None:
    before = hash_files(reference.folder)
    with pytest.raises(CohortError, match=r"num_inference_steps: 2 -> 3; max_attempts: 5 -> 1"):
        synthesize_cohort(resolve(num_inference_steps=3, max_attempts=1), reference.folder)
    assert hash_files(reference.folder) == before


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], *, timeout_s: float = 400) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, "the process ended too early"
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.002)


def start(bundle: Path, repository: Path, out: Path) -> subprocess.Popen[bytes]:
    """The reference cohort as a process of its own."""
    flags = [word for text in LABELS for word in ("--labels", text)]
    recipe = out.parent / "recipe.yaml"
    recipe.write_text(json.dumps({"labels": LABELS, "gates": GATES_OFF, "seed": 5}))
    command = [sys.executable, "-m", "maisi_aug.cli.app", "synthesize", "--recipe", str(recipe), *flags]
    command += ["--bundle", str(bundle), "-n", str(NUM_CASES), "--out", str(out), "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_killed_run_leaves_whole_files_only_and_goes_on_to_the_same_bytes(
    reference: CohortSummary,
    resolve: Callable[..., CohortRun],
    bundle_path: Path,
    repository: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "cohort"
    process = start(bundle_path, repository, out)
    # In the middle of writing a case: a hidden half of a file is there, or a file that the manifest does not know yet.
    wait_for(lambda: any((out / "images").glob("*")), process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    expected = hash_files(reference.folder)
    left = hash_files(out)
    assert set(left) != set(expected)
    visible = {name: value for name, value in left.items() if not any(p.startswith(".") for p in Path(name).parts)}
    assert all(expected[name] == value for name, value in visible.items())
    synthesize_cohort(resolve(), out, device="cpu")
    assert hash_files(out) == expected


def test_interrupted_run_stops_with_one_sentence_and_keeps_what_it_has(
    reference: CohortSummary,
    resolve: Callable[..., CohortRun],
    bundle_path: Path,
    repository: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "cohort"
    process = start(bundle_path, repository, out)
    wait_for(lambda: (out / MANIFEST_NAME).is_file() and (out / MANIFEST_NAME).stat().st_size > 0, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=400)
    if process.returncode != 0:  # else it was done before the signal came
        assert process.returncode == 130
        assert "finished work is kept" in stderr.decode().splitlines()[-1]
        assert "Traceback" not in stderr.decode()
        assert len(load_manifest(out).accepted) >= 1
    synthesize_cohort(resolve(), out, device="cpu")
    assert hash_files(out) == hash_files(reference.folder)


class Interrupter(Listener):
    """Presses Ctrl-C while the second image is sampled."""

    def steps(self, case_id: str, done: int, total: int) -> None:
        if case_id == "case_0002":
            raise KeyboardInterrupt


def test_ctrl_c_while_sampling_keeps_the_finished_case(
    reference: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        synthesize_cohort(resolve(), tmp_path, device="cpu", listener=Interrupter())
    assert [record.case_id for record in load_manifest(tmp_path).records] == ["case_0001"]
    expected = hash_files(reference.folder)
    assert all(expected[name] == value for name, value in hash_files(tmp_path).items())


@pytest.mark.parametrize("num_writes", [4, 6, 9])
def test_full_disk_is_one_sentence_and_leaves_nothing_half_written(
    resolve: Callable[..., CohortRun],
    reference: CohortSummary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_writes: int,
) -> None:
    real_fsync, calls = os.fsync, 0

    def fill_up(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > num_writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fill_up)
    with pytest.raises(CohortError, match="the disk is full") as caught:
        synthesize_cohort(resolve(), tmp_path, device="cpu", case_indices=[0])
    assert "\n" not in str(caught.value)
    assert set(hash_files(tmp_path)) == {"cohort.yaml"}
    assert load_manifest(tmp_path).records == ()
    monkeypatch.undo()
    synthesize_cohort(resolve(), tmp_path, device="cpu")
    assert hash_files(tmp_path) == hash_files(reference.folder)


class Recorder(Listener):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[AttemptRecord] = []

    def records(self, record: AttemptRecord) -> None:
        self.told.append(record)


def test_image_that_fails_its_gates_is_retried_and_then_rejected(
    resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    recorder = Recorder()
    cohort = resolve(gates={}, max_attempts=2, num_cases=2, labels=LABELS[:2])
    summary = synthesize_cohort(cohort, tmp_path, device="cpu", listener=recorder)
    records = load_manifest(tmp_path).records
    assert [(r.case_index, r.attempt, r.status) for r in records] == [
        (0, 0, "retried"),
        (0, 1, "rejected"),
        (1, 0, "retried"),
        (1, 1, "rejected"),
    ]
    assert sorted(recorder.told, key=lambda r: (r.case_index, r.attempt)) == list(records)
    assert len({record.seed for record in records}) == 4
    assert all(record.reason and not all(v.passed for v in record.verdicts) for record in records)
    assert (summary.is_complete, summary.manifest.first_attempt_rate()) == (False, 0.0)
    pictures = {f"previews/rejected/case_000{case}_a{attempt}.png" for case in (1, 2) for attempt in (0, 1)}
    assert set(hash_files(tmp_path)) == pictures | {"cohort.yaml"}


def test_rejected_cases_get_further_attempts_under_a_larger_budget_as_if_it_had_been_so_from_the_start(
    resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    def run(out: Path, max_attempts: int) -> CohortSummary:
        cohort = resolve(gates={}, max_attempts=max_attempts, num_cases=2, labels=LABELS[:2])
        return synthesize_cohort(cohort, out, device="cpu")

    at_once, in_two = tmp_path / "at_once", tmp_path / "in_two"
    expected = run(at_once, 2)
    assert run(in_two, 1).num_new == 2
    again = run(in_two, 2)
    assert (again.num_new, len(again.manifest.rejected)) == (2, 2)
    assert hash_files(in_two) == hash_files(at_once)
    assert [record.seed for record in again.manifest.records] == [record.seed for record in expected.manifest.records]
    assert run(in_two, 2).num_new == 0
    with pytest.raises(CohortError, match=r"\(max_attempts: 2 -> 1\)"):
        run(in_two, 1)


def test_larger_budget_leaves_accepted_cases_as_they_are(
    reference: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    shutil.copytree(reference.folder, tmp_path / "cohort")
    again = synthesize_cohort(resolve(max_attempts=9), tmp_path / "cohort", device="no such device")
    assert (again.num_new, again.is_complete) == (0, True)
    ours, theirs = hash_files(tmp_path / "cohort"), hash_files(reference.folder)
    assert {name for name in ours if ours[name] != theirs[name]} == {"cohort.yaml"}
    assert build_request(read_recipe(str(tmp_path / "cohort" / "cohort.yaml"))).max_attempts == 9


def test_lesion_larger_than_any_host_stops_the_run_at_the_first_case(
    resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    cohort = resolve(labels=["kidney tumor:900mL"], num_cases=NUM_MANY)
    with pytest.raises(LesionError, match=r"900\.00 mL .* at most 150% of its host, .* largest that fits"):
        synthesize_cohort(cohort, tmp_path, device="cpu")
    assert load_manifest(tmp_path).records == ()


def test_one_impossible_request_does_not_stop_the_others(resolve: Callable[..., CohortRun], tmp_path: Path) -> None:
    cohort = resolve(labels=["kidney tumor:900mL", "hepatic tumor:30mm"], num_cases=2)
    summary = synthesize_cohort(cohort, tmp_path, device="cpu")
    assert [record.request for record in summary.manifest.accepted] == ["hepatic tumor:30mm"]
    (record,) = summary.manifest.rejected
    assert (record.request, record.attempt, record.files) == ("kidney tumor:900mL", 0, {})
    assert record.lesions[0].realised_ml is None
    assert "kidney tumor" in record.reason
    assert synthesize_cohort(cohort, tmp_path, device="no such device").num_new == 0
    more = resolve(labels=["kidney tumor:900mL", "hepatic tumor:30mm"], num_cases=2, max_attempts=6)
    again = synthesize_cohort(more, tmp_path, device="cpu")
    assert [(r.case_index, r.attempt) for r in again.manifest.rejected] == [(0, 1)]
    assert again.manifest.accepted == summary.manifest.accepted


def write_bank(folder: Path, anatomy: Path, *, without: tuple[int, ...] = ()) -> Path:
    """A bank of one label map of this package, some organs of which have become body."""
    volume = load_label_map(anatomy)
    label_map = np.where(np.isin(volume.array, without), BODY_ID, volume.array).astype(np.uint8)
    save_label_map(folder / "map_seg.nii.gz", label_map, volume.grid)
    return folder


def test_bank_without_the_organs_ends_the_run_and_finds_every_case_open_once_repaired(
    reference: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    anatomy = reference.folder / "anatomy" / "case_0003.nii.gz"
    bank = write_bank(tmp_path / "bank", anatomy, without=(1, 3, 5, 14, 129))
    changes = {"labels": ["hepatic tumor:25mm", "spleen"], "num_cases": 4, "mask_bank": str(bank)}
    out = tmp_path / "cohort"
    with pytest.raises(BankError, match="no map has .*"):
        synthesize_cohort(resolve(**changes), out, device="cpu")
    assert load_manifest(out).records == ()
    write_bank(bank, anatomy)
    summary = synthesize_cohort(resolve(**changes), out, device="cpu")
    assert summary.is_complete
    assert summary.manifest.first_attempt_rate() == 1.0


def test_case_of_an_organ_that_the_bank_lacks_does_not_stop_the_others(
    reference: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    bank = write_bank(tmp_path / "bank", reference.folder / "anatomy" / "case_0003.nii.gz", without=(3,))
    cohort = resolve(labels=["spleen", "hepatic tumor:25mm"], num_cases=2, mask_bank=str(bank))
    summary = synthesize_cohort(cohort, tmp_path / "cohort", device="cpu")
    assert [record.request for record in summary.manifest.rejected] == ["spleen"]
    assert [record.request for record in summary.manifest.accepted] == ["hepatic tumor:25mm"]


def test_size_far_below_the_stored_lesions_does_not_stop_larger_ones(
    reference: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    record = next(record for record in reference.manifest.accepted if record.lesions[0].label == "hepatic tumor")
    stored_ml = record.lesions[0].realised_ml
    bank = write_bank(tmp_path / "bank", reference.folder / record.files["anatomy"].path)
    labels = ["hepatic tumor:8mm", f"hepatic tumor:{stored_ml:.2f}mL"]
    cohort = resolve(labels=labels, num_cases=2, mask_source="bank", mask_bank=str(bank))
    summary = synthesize_cohort(cohort, tmp_path / "cohort", device="cpu")
    assert [record.request for record in summary.manifest.records] == labels
    assert summary.manifest.records[0].reason.startswith("Mask bank 'bank': no lesion within a factor of")
    assert summary.manifest.records[0].status == "rejected"


def test_bank_is_listed_and_the_cohorts_file_read_once_a_run(
    resolve: Callable[..., CohortRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_case(tmp_path / "bank", "a", build_trunk(with_body=False), with_ct=True)
    values = {"labels": ["hepatic tumor:30mm"], "mask_bank": str(tmp_path / "bank"), "mask_labels": "maisi"}
    run = resolve(**values, num_cases=1, allow_few_organs=True)
    synthesize_cohort(run, tmp_path / "cohort", device="cpu")
    listed = [counted(monkeypatch, module, "list_bank") for module in (resolving, folder_bank)]
    read = counted(monkeypatch, cohort_folder, "read_cohort_document")
    asked = {**run.request.to_dict(), "num_cases": 2}
    grown = resolving.resolve(build_request(asked), tmp_path / "cohort")
    assert synthesize_cohort(grown, tmp_path / "cohort", device="cpu").is_complete
    assert [len(calls) for calls in listed] == [1, 0]
    assert len(read) == 1


def test_cohort_is_not_gone_on_with_when_a_ct_that_gave_a_body_is_another(
    resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    write_case(tmp_path / "bank", "a", build_trunk(with_body=False), with_ct=True)
    values = {"labels": ["hepatic tumor:30mm"], "mask_bank": str(tmp_path / "bank"), "mask_labels": "maisi"}
    run = resolve(**values, num_cases=2, allow_few_organs=True)
    synthesize_cohort(run, tmp_path / "cohort", device="cpu", case_indices=[0])
    ct = tmp_path / "bank" / "a_ct.nii.gz"
    content = ct.read_bytes()
    ct.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # as many bytes as before
    with pytest.raises(CohortError, match="the CT of a_seg.nii.gz has changed since this cohort was begun"):
        synthesize_cohort(run, tmp_path / "cohort", device="cpu")
    ct.write_bytes(content)
    assert synthesize_cohort(run, tmp_path / "cohort", device="cpu").is_complete


def test_bank_of_files_skips_and_names_the_damaged_one(
    reference: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    bank = tmp_path / "bank" / "anatomy"
    bank.mkdir(parents=True)
    good = reference.folder / "anatomy" / "case_0001.nii.gz"
    (bank / good.name).write_bytes(good.read_bytes())
    damaged = [f"damaged_{number}.nii.gz" for number in range(4)]
    for name in damaged:
        (bank / name).write_bytes(good.read_bytes()[:500])
    cohort = resolve(mask_bank=str(bank.parent), mask_labels="maisi", labels=["hepatic tumor:25mm"], num_cases=3)
    summary = synthesize_cohort(cohort, tmp_path / "cohort", device="cpu")
    assert summary.is_complete
    skipped = {Path(name).name for name, _ in summary.skipped}  # those that a draw has come upon
    assert skipped
    assert skipped <= set(damaged)
    assert [row["reason"] for row in summary.to_json()["skipped_bank_files"]] == [
        reason for _, reason in summary.skipped
    ]
    for path in bank.iterdir():
        path.write_bytes(b"")
    with pytest.raises(BankError, match="none of the"):
        synthesize_cohort(cohort, tmp_path / "other", device="cpu")


@pytest.mark.filterwarnings("ignore:Mask bank")
def test_bank_of_one_real_scan_gives_cases_on_the_bundles_grid(
    resolve: Callable[..., CohortRun], real_data: Path, tmp_path: Path
) -> None:
    bank = real_data / "totalsegmentator-example"
    cohort = resolve(mask_bank=str(bank), mask_labels="totalsegmentator-v1", labels=LABELS[:1], num_cases=1)
    summary = synthesize_cohort(cohort, tmp_path, device="cpu")
    (record,) = summary.manifest.accepted
    anatomy = load_label_map(tmp_path / record.files["anatomy"].path)
    assert anatomy.array.shape == TINY_SHAPE
    assert anatomy.grid.spacing_mm == pytest.approx(cohort.grid.spacing_mm, abs=1e-3)
    assert {1, 26, 200} <= set(np.unique(anatomy.array))


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({}, {"device": "no such device"}, "Device 'no such device': torch cannot use it"),
        ({}, {"device": "cpu", "compiler": "trt"}, "--compile trt: needs the packages"),
        ({"precision": "float16"}, {"device": "mps"}, "Device 'mps': torch cannot use it|precision: device 'mps'"),
    ],
)
def test_what_cannot_be_computed_leaves_no_folder(
    settings: dict[str, Any],
    options: dict[str, Any],
    message: str,
    resolve: Callable[..., CohortRun],
    tmp_path: Path,
) -> None:
    with pytest.raises(MaisiAugError, match=message):
        synthesize_cohort(resolve(**settings), tmp_path / "cohort", **options)
    assert not (tmp_path / "cohort").exists()


def test_manifest_says_what_was_computed_in(reference: CohortSummary) -> None:
    for record in reference.manifest.records:
        assert record.settings["precision"] == "float32"
        assert record.settings["num_threads"] == torch.get_num_threads()


def test_manifest_tells_how_maps_were_completed(tmp_path: Path) -> None:
    write_random_bundle(tmp_path / "completing", {**build_header(), "unlabelled": "complete"}, seed=0)
    asked = {"labels": ["hepatic tumor:25-40mm"], "num_cases": 1, "seed": 5, "modality": "ct_wo_contrast"}
    run = resolver(**asked, bundle=str(tmp_path / "completing"), gates=GATES_OFF)()
    summary = synthesize_cohort(run, tmp_path / "cohort", device="cpu")
    (record,) = load_manifest(summary.folder).accepted
    told = record.settings["completion"]
    assert isinstance(told, dict)
    assert told["phase"] == "non-contrast"
    saved = np.asarray(load_label_map(summary.folder / record.files["anatomy"].path).array)
    known = {label.id for label in run.bundle.vocabulary}
    assert set(np.unique(saved).tolist()) <= known
