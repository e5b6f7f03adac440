from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from maisi_aug.cohort import review as module
from maisi_aug.cohort.manifest import MANIFEST_NAME, ManifestWriter, load_manifest
from maisi_aug.cohort.review import (
    REVIEW_NAME,
    CaseKey,
    Choice,
    Decision,
    append_decision,
    load_review,
    load_reviewed_manifest,
    num_rejected_in_review,
    reopen_rejected,
)
from maisi_aug.errors import CohortError
from maisi_aug.integrations.reading.cohort_source import load_cohort_source
from tests.builders.tiny_cohort import HEPATIC_TUMOR, write_cohort


def decide(folder: Path, case: int, choice: Choice, reason: str = "", *, reviewer: str = "anna") -> None:
    append_decision(folder, Decision(f"case_{case:04d}", 0, choice, reason, reviewer, module.now()))


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR], [HEPATIC_TUMOR], [HEPATIC_TUMOR])


def test_last_decision_of_each_reviewer_stands(cohort: Path) -> None:
    decide(cohort, 1, "reject", "artefact")
    decide(cohort, 1, "accept", reviewer="ben")
    assert load_review(cohort).rejections() == {CaseKey("case_0001"): "Rejected in review by anna: artefact."}
    decide(cohort, 1, "accept")
    assert load_review(cohort).rejections() == {}
    assert load_review(cohort).reviewers == ["anna", "ben"]


def test_undo_takes_back_the_reviewers_own_last_decision_and_no_other(cohort: Path) -> None:
    decide(cohort, 1, "reject")
    decide(cohort, 2, "reject")
    decide(cohort, 3, "reject", reviewer="ben")
    decide(cohort, 2, "undo")
    assert set(load_review(cohort).rejections()) == {CaseKey("case_0001"), CaseKey("case_0003")}
    decide(cohort, 1, "undo")
    decide(cohort, 1, "undo")  # nothing is left to take back
    assert set(load_review(cohort).rejections()) == {CaseKey("case_0003")}
    assert len((cohort / REVIEW_NAME).read_text().splitlines()) == 6


def test_decision_before_an_undone_one_stands_again(cohort: Path) -> None:
    decide(cohort, 1, "accept")
    decide(cohort, 1, "reject")
    decide(cohort, 1, "undo")
    assert load_review(cohort).decisions_of("anna")[CaseKey("case_0001")].choice == "accept"


def test_torn_last_line_is_skipped_and_cut_before_the_next_decision(cohort: Path) -> None:
    decide(cohort, 1, "reject")
    with (cohort / REVIEW_NAME).open("a") as file:
        file.write('{"case_id": "case_00')
    assert set(load_review(cohort).rejections()) == {CaseKey("case_0001")}
    decide(cohort, 2, "reject")
    assert set(load_review(cohort).rejections()) == {CaseKey("case_0001"), CaseKey("case_0002")}


def test_line_of_another_form_is_named(cohort: Path) -> None:
    (cohort / REVIEW_NAME).write_text('{"case_id": "case_0001", "attempt": 0, "choice": "maybe"}\n')
    with pytest.raises(CohortError, match="not a decision: .*maybe"):
        load_review(cohort)


def test_decisions_of_many_threads_are_whole_lines(cohort: Path) -> None:
    threads = [
        threading.Thread(target=decide, args=(cohort, n + 1, "reject"), kwargs={"reviewer": f"r{n}"}) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (cohort / REVIEW_NAME).read_text().splitlines()
    assert sorted(json.loads(line)["reviewer"] for line in lines) == [f"r{n}" for n in range(8)]


def test_full_disk_leaves_earlier_decisions_and_nothing_of_the_new_one(
    cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(cohort, 1, "reject")
    before, write = (cohort / REVIEW_NAME).read_bytes(), os.write

    def write_half(descriptor: int, content: bytes) -> int:
        if len(content) < 20:
            raise OSError(28, "No space left on device")
        return write(descriptor, content[: len(content) - 10])

    monkeypatch.setattr("maisi_aug.system.whole_files.os.write", write_half)
    with pytest.raises(CohortError, match="the disk is full|a full disk"):
        decide(cohort, 2, "reject")
    assert (cohort / REVIEW_NAME).read_bytes() == before


def test_review_is_not_written_through_a_link(cohort: Path, tmp_path: Path) -> None:
    (cohort / REVIEW_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CohortError, match="cannot append a line"):
        decide(cohort, 1, "reject")
    assert not (tmp_path / "elsewhere").exists()


def test_rejected_cases_are_left_out_of_what_exports_read_and_it_says_so(cohort: Path) -> None:
    decide(cohort, 2, "reject", "lesion in the wrong place")
    source = load_cohort_source(cohort)
    assert [case.case_id for case in source.cases] == ["case_0001", "case_0003"]
    assert source.partial_note == "Left out because rejected in review: 1 case."
    (rejected,) = load_reviewed_manifest(cohort).rejected
    assert rejected.reason == "Rejected in review by anna: lesion in the wrong place."
    assert num_rejected_in_review(cohort, load_manifest(cohort)) == 1
    assert len(load_manifest(cohort).accepted) == 3  # what was made stays on record


def test_cohort_whose_cases_are_all_rejected_is_refused(cohort: Path) -> None:
    for case in (1, 2, 3):
        decide(cohort, case, "reject")
    with pytest.raises(ValueError, match="All were rejected in review.*--redraw-rejected"):
        load_cohort_source(cohort)


def test_reopened_case_waits_for_its_next_attempt_and_its_files_are_gone(cohort: Path) -> None:
    decide(cohort, 2, "reject", "artefact")
    (given_up,) = reopen_rejected(cohort)
    manifest = load_manifest(cohort)
    assert given_up.case_id == "case_0002"
    assert manifest.settled_indices == {0, 2}
    assert manifest.next_attempt(1) == 1
    assert manifest.records[1].reason == "Rejected in review by anna: artefact."
    assert not list(cohort.rglob("case_0002.nii.gz"))
    assert len(list(cohort.rglob("case_0001.nii.gz"))) == 3
    # The decision was on the first attempt: it says nothing of the next, and there is nothing left to give up.
    assert reopen_rejected(cohort) == []
    assert len((cohort / MANIFEST_NAME).read_text().splitlines()) == 4


def test_shards_are_merged_before_their_rejected_cases_are_reopened(cohort: Path) -> None:
    with ManifestWriter(cohort / "manifest.1-of-2.jsonl"):
        pass
    assert reopen_rejected(cohort) == []  # nothing is rejected
    decide(cohort, 2, "reject")
    with pytest.raises(CohortError, match=f"found shards whose .* Run this first: maisi-aug cohort merge {cohort}"):
        reopen_rejected(cohort)
    assert len(load_manifest(cohort).accepted) == 3


def test_volumes_of_a_reopened_case_are_kept_where_the_cohort_keeps_rejected_ones(cohort: Path) -> None:
    (cohort / "cohort.yaml").write_text("configuration:\n  keep_rejected: true\n")
    before = np.frombuffer((cohort / "images/case_0001.nii.gz").read_bytes(), dtype=np.uint8)
    decide(cohort, 1, "reject")
    reopen_rejected(cohort)
    kept = load_manifest(cohort).records[0].files["image"].path
    assert kept == "rejected/images/case_0001_a0.nii.gz"
    assert np.array_equal(np.frombuffer((cohort / kept).read_bytes(), dtype=np.uint8), before)
