from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.cohort.manifest import (
    MANIFEST_NAME,
    AttemptRecord,
    FileRecord,
    Manifest,
    ManifestReader,
    ManifestWriter,
    Status,
    VerdictRecord,
    load_manifest,
)
from maisi_aug.errors import CohortError
from maisi_aug.lesions.lesion import Lesion
from tests.builders.tiny_cohort import HEPATIC_TUMOR, write_cohort


def build_record(case_index: int = 0, attempt: int = 0, status: Status = "accepted") -> AttemptRecord:
    return AttemptRecord(
        case_id=f"case_{case_index + 1:04d}",
        case_index=case_index,
        attempt=attempt,
        seed=2**62 + 7,
        status=status,
        request="hepatic tumor:0.3",
        lesions=(Lesion(26, "hepatic tumor", 5.9, 0.3, 5.87, 22.4, (80, 60, 50), 1, "84 patients"),),
        required_ids=(3,),
        verdicts=(VerdictRecord("lesion_size", True, {"error": 0.005, "voxels": [179]}, ""),),
        reason="" if status == "accepted" else "hepatic tumor: too small",
        mask_origin={"source": "plant", "seed": 4},
        bundle="phantom-ct",
        bundle_fingerprint="ab12",
        licence="Apache-2.0",
        settings={"num_inference_steps": 30, "device": "cpu"},
        files={"image": FileRecord(f"images/case_{case_index + 1:04d}.nii.gz", "00ff" * 16)}
        if status == "accepted"
        else {},
        seconds={"mask": 0.2, "image": 3.1},
    )


def write_manifest(folder: Path, *records: AttemptRecord) -> Path:
    path = folder / MANIFEST_NAME
    with ManifestWriter(path) as writer:
        for record in records:
            writer.append(record)
    return path


def test_record_survives_the_way_to_json_and_back() -> None:
    record = build_record()
    assert AttemptRecord.from_json(record.to_json()) == record
    assert "\n" not in record.to_json()


def test_manifest_is_read_in_the_order_of_the_plan(tmp_path: Path) -> None:
    records = [build_record(2), build_record(0, 1), build_record(0, 0, "retried"), build_record(1, 0, "rejected")]
    write_manifest(tmp_path, *records)
    manifest = load_manifest(tmp_path)
    assert [(record.case_index, record.attempt) for record in manifest.records] == [(0, 0), (0, 1), (1, 0), (2, 0)]
    assert [record.case_id for record in manifest.accepted] == ["case_0001", "case_0003"]
    assert [record.case_id for record in manifest.rejected] == ["case_0002"]
    assert manifest.settled_indices == {0, 1, 2}


def test_first_attempt_rate_counts_first_attempts_only() -> None:
    manifest = Manifest.from_records([build_record(0, 0, "retried"), build_record(0, 1), build_record(1)])
    assert manifest.first_attempt_rate() == 0.5
    assert Manifest(()).first_attempt_rate() is None


def test_unsettled_case_goes_on_with_the_attempt_after_the_recorded_ones() -> None:
    manifest = Manifest.from_records([build_record(0, 0, "retried"), build_record(0, 1, "retried")])
    assert manifest.settled_indices == frozenset()
    assert [manifest.next_attempt(0), manifest.next_attempt(1)] == [2, 0]


def test_rejected_case_that_was_taken_up_again_counts_by_its_last_attempt() -> None:
    records = [build_record(0, 0, "rejected"), build_record(1, 0, "rejected"), build_record(2, 0, "rejected")]
    manifest = Manifest.from_records([*records, build_record(0, 1), build_record(1, 1, "retried")])
    assert [record.case_id for record in manifest.rejected] == ["case_0003"]
    assert manifest.settled_indices == {0, 2}


def test_larger_budget_of_attempts_reopens_rejected_cases_only() -> None:
    rejected = replace(build_record(0, 1, "rejected"), max_attempts=2)
    manifest = Manifest.from_records([build_record(0, 0, "retried"), rejected, build_record(1)])
    assert manifest.reopen(2) == manifest
    reopened = manifest.reopen(3)
    assert reopened.settled_indices == {1}
    assert (reopened.rejected, reopened.next_attempt(0)) == ((), 2)
    assert reopened.accepted == manifest.accepted


def test_record_that_does_not_tell_its_budget_can_be_read() -> None:
    fields = json.loads(build_record(0, 0, "rejected").to_json())
    del fields["max_attempts"]
    assert Manifest((AttemptRecord.from_json(json.dumps(fields)),)).reopen(1).rejected == ()


def test_repeated_lines_count_once(tmp_path: Path) -> None:
    write_manifest(tmp_path, build_record(0), build_record(1), build_record(0))
    assert [record.case_index for record in load_manifest(tmp_path).records] == [0, 1]


def test_torn_last_line_is_skipped_and_cut_off_by_the_next_writer(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, build_record(0))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"case_id": "case_00')
    assert len(load_manifest(tmp_path).records) == 1
    write_manifest(tmp_path, build_record(1))
    assert path.read_bytes().startswith(whole)
    assert len(load_manifest(tmp_path).records) == 2


@pytest.mark.parametrize(
    ("line", "place"), [(b"nonsense", "line"), (build_record().to_json().replace("2,", "x,", 1).encode(), "")]
)
def test_damaged_line_is_an_error_that_names_it(tmp_path: Path, line: bytes, place: str) -> None:
    path = write_manifest(tmp_path, build_record(0))
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(CohortError, match=rf"manifest\.jsonl: expected a record on line 2, found .*{place}"):
        load_manifest(tmp_path)


def test_unknown_status_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / MANIFEST_NAME
    path.write_text(build_record().to_json().replace('"accepted"', '"perhaps"') + "\n")
    with pytest.raises(CohortError, match="status: Input should be 'accepted', 'retried' or 'rejected'"):
        load_manifest(tmp_path)


def test_folder_without_a_manifest_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="not a cohort, because manifest.jsonl is missing"):
        load_manifest(tmp_path)


def test_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    path = tmp_path / MANIFEST_NAME
    with ManifestWriter(path), pytest.raises(CohortError, match="another process is working"):
        ManifestWriter(path)
    ManifestWriter(path).close()


def test_lock_of_a_killed_process_is_free(tmp_path: Path, repository: Path) -> None:
    path = tmp_path / MANIFEST_NAME
    code = (
        "import os, signal, sys; from pathlib import Path; from maisi_aug.cohort.manifest import ManifestWriter;"
        "writer = ManifestWriter(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=False)
    assert done.returncode == -9
    ManifestWriter(path).close()


def test_disk_that_fills_up_within_a_line_leaves_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_manifest(tmp_path, build_record(0))
    whole = path.read_bytes()
    real_write = os.write

    def write_half(descriptor: int, content: Any) -> int:
        if len(content) < 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(descriptor, content[: len(content) - 50])

    with ManifestWriter(path) as writer:
        monkeypatch.setattr(os, "write", write_half)
        with pytest.raises(OSError, match="No space left"):
            writer.append(replace(build_record(1), request="x" * 300))
        monkeypatch.undo()
    assert path.read_bytes() == whole


def write_strange_line(folder: Path, **changes: Any) -> None:
    """A manifest whose second line is a record with other values, as another program may write it."""
    fields = json.loads(build_record(1).to_json()) | changes
    path = write_manifest(folder, build_record(0))
    path.write_text(path.read_text() + json.dumps(fields) + "\n")


def named(path: str, sha256: str = "00ff" * 16) -> dict[str, Any]:
    return {"files": {"image": {"path": path, "sha256": sha256}}}


@pytest.mark.parametrize(
    "case_id",
    [
        "",
        ".",
        "..",
        "../outside",
        "a/b",
        "a\\b",
        "/etc/passwd",
        ".hidden",
        "two words",
        "nul\0",
        "line\nbreak",
        "\x1b[31m",
        *("tab\t", "case_0002\n", "-flag", "é", "x" * 65, "<script>", "C:x"),
    ],
)
def test_case_id_that_is_no_plain_name_is_refused(tmp_path: Path, case_id: str) -> None:
    write_strange_line(tmp_path, case_id=case_id)
    with pytest.raises(CohortError, match=r"expected a record on line 2, found .*\(case_id: String should"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../image.nii.gz",
        "images/../../image.nii.gz",
        "images//x",
        "images/",
        "./x",
        "images\\x",
        "C:/x",
        "images/.x",
        "images/x\n",
        "images/\x1b[2J",
        "a/" * 200 + "a",
    ],
)
def test_path_that_may_lead_out_of_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    write_strange_line(tmp_path, **named(path))
    with pytest.raises(CohortError, match=r"expected a record on line 2, found .*\(files\.image\.path: String should"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("sha256", ["", "00ff", "00FF" * 16, "00ff" * 16 + "\n", "xy" * 32])
def test_hash_that_is_none_is_refused(tmp_path: Path, sha256: str) -> None:
    write_strange_line(tmp_path, **named("images/case_0002.nii.gz", sha256))
    with pytest.raises(CohortError, match=r"on line 2, found .*\(files\.image\.sha256: String should match"):
        load_manifest(tmp_path)


LESION = {"label_id": 26, "label": "hepatic tumor", "requested_ml": 5.9}


@pytest.mark.parametrize(
    ("place", "changes"),
    [
        ("case_index", {"case_index": -1}),
        ("case_index", {"case_index": 10**400}),
        ("attempt", {"attempt": 1.5}),
        ("seed", {"seed": 2**64}),
        ("max_attempts", {"max_attempts": -2}),
        ("required_ids.0", {"required_ids": [256]}),
        ("seconds.mask", {"seconds": {"mask": float("nan")}}),
        ("lesions.0.label_id", {"lesions": [LESION | {"label_id": 70000}]}),
        ("lesions.0.requested_ml", {"lesions": [LESION | {"requested_ml": 0}]}),
        ("lesions.0.requested_ml", {"lesions": [LESION | {"requested_ml": float("inf")}]}),
        ("lesions.0.percentile", {"lesions": [LESION | {"percentile": 30}]}),
        ("lesions.0.realised_ml", {"lesions": [LESION | {"realised_ml": -1}]}),
        ("files.mesh", {"files": {"mesh": {"path": "x.stl", "sha256": "00ff" * 16}}}),
    ],
)
def test_number_or_role_out_of_bounds_is_refused(tmp_path: Path, place: str, changes: dict[str, Any]) -> None:
    write_strange_line(tmp_path, **changes)
    with pytest.raises(CohortError, match=rf"expected a record on line 2, found .*\({place}"):
        load_manifest(tmp_path)


def test_accepted_line_names_its_image(tmp_path: Path) -> None:
    write_strange_line(tmp_path, files={})
    with pytest.raises(CohortError, match="expected the image of the accepted case 'case_0002' on line 2, found none"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("case_id", ["case_0001", "CASE_0001"])
def test_id_of_two_cases_is_refused(tmp_path: Path, case_id: str) -> None:
    write_strange_line(tmp_path, case_id=case_id)
    with pytest.raises(CohortError, match=f"an id of one case alone on line 2, found '{case_id}', as case 0 has"):
        load_manifest(tmp_path)


def test_case_of_two_ids_is_refused(tmp_path: Path) -> None:
    write_strange_line(tmp_path, case_index=0)
    with pytest.raises(CohortError, match="the id 'case_0001' of case 0 on line 2, found 'case_0002'"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("status", ["accepted", "retried"])
@pytest.mark.parametrize("is_turned", [False, True])
def test_case_that_goes_on_after_it_was_accepted_is_refused(tmp_path: Path, status: Status, is_turned: bool) -> None:
    records = [build_record(0, 0), build_record(0, 1, status)]
    write_manifest(tmp_path, *(reversed(records) if is_turned else records))
    with pytest.raises(CohortError, match=r"one accepted attempt of 'case_0001', its last, on line 2, found attempts"):
        load_manifest(tmp_path)


def test_attempt_that_was_made_again_counts_by_its_last_line(tmp_path: Path) -> None:
    write_manifest(tmp_path, build_record(0), build_record(0, 0, "retried"), build_record(0, 1))
    assert [record.status for record in load_manifest(tmp_path).records] == ["retried", "accepted"]


def test_attempts_left_out_are_open_again() -> None:
    manifest = Manifest.from_records([build_record(0, 0, "retried"), build_record(0, 1), build_record(1)])
    opened = manifest.without([build_record(0, 1)])
    assert opened.settled_indices == {1}
    assert [opened.next_attempt(0), opened.next_attempt(1)] == [1, 1]


def test_manifest_that_grows_is_read_on_from_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str | bytes] = []
    original = AttemptRecord.from_json

    def count(line: str | bytes) -> AttemptRecord:
        read.append(line)
        return original(line)

    monkeypatch.setattr(AttemptRecord, "from_json", count)
    write_cohort(tmp_path, [HEPATIC_TUMOR], [HEPATIC_TUMOR], [HEPATIC_TUMOR])
    path = tmp_path / MANIFEST_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:50])
    reader = ManifestReader(path)
    assert [record.case_id for record in reader.read_on()] == ["case_0001"]
    assert reader.read_on() == []
    with path.open("ab") as file:
        file.write(lines[1][50:] + lines[2])
    assert [record.case_id for record in reader.read_on()] == ["case_0002", "case_0003"]
    assert len(read) == 3, "no line is read twice"
    with path.open("ab") as file:
        file.write(lines[0].replace(b'"case_index":0', b'"case_index":3'))
    with pytest.raises(CohortError, match="an id of one case alone on line 4, found 'case_0001', as case 0 has"):
        reader.read_on()
    path.write_bytes(lines[2])
    assert [record.case_id for record in reader.read_on()] == ["case_0003"], "a shorter file is read from its start"
