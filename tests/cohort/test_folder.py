from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from maisi_aug.cohort.folder import BegunCohort, CohortFolder, find_cohort, find_lost, open_cohort, read_cohort_document
from maisi_aug.cohort.manifest import load_manifest
from maisi_aug.errors import CohortError
from tests.builders.tiny_cohort import write_cohort
from tests.cohort.test_manifest import build_record

DOCUMENT: dict[str, Any] = {
    "configuration": {"labels": ["liver"], "seed": 1, "num_cases": 4},
    "bundle": {"name": "phantom-ct", "fingerprint": "aa"},
}


def begin(folder: Path, **changes: Any) -> None:
    with open_cohort(folder, {**DOCUMENT, **changes}, header=["maisi-aug synthesize"]) as (_, writer, _manifest):
        writer.append(build_record())


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_new_cohort_gets_its_configuration_and_a_later_run_finds_its_records(tmp_path: Path) -> None:
    begin(tmp_path / "cohort")
    text = (tmp_path / "cohort" / "cohort.yaml").read_text()
    assert text.startswith("# maisi-aug synthesize\n")
    assert yaml.safe_load(text) == DOCUMENT
    with open_cohort(tmp_path / "cohort", DOCUMENT, header=[]) as (_, _writer, manifest):
        assert manifest.settled_indices == {0}


def test_different_configuration_is_refused_with_every_difference(tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "case_0001.nii.gz").write_text("an image")
    before = snapshot(tmp_path)
    changed = {"labels": ["liver"], "seed": 2, "num_cases": 5}
    with pytest.raises(CohortError, match=r"\(seed: 1 -> 2; num_cases: 4 -> 5\)\. Choose another --out"):
        begin(tmp_path, configuration=changed)
    with pytest.raises(CohortError, match=r"\(bundle\.fingerprint: 'aa' -> 'bb'\)"):
        begin(tmp_path, bundle={"name": "phantom-ct", "fingerprint": "bb"})
    with pytest.raises(CohortError, match=r"\(mask_bank\.num_maps: None -> 3\)"):
        begin(tmp_path, mask_bank={"num_maps": 3})
    assert snapshot(tmp_path) == before


def test_cohort_of_which_nothing_was_made_can_be_begun_anew(tmp_path: Path) -> None:
    begin(tmp_path)
    changed = {**DOCUMENT, "configuration": {"labels": ["spleen"]}}
    with open_cohort(tmp_path, changed, header=[]) as (_, _writer, manifest):
        assert manifest.records == ()
    assert read_cohort_document(tmp_path) == changed


def test_cohort_is_found_only_where_a_run_would_go_on(tmp_path: Path) -> None:
    changed = {**DOCUMENT, "configuration": {"labels": ["spleen"]}}
    assert find_cohort(tmp_path / "absent", DOCUMENT) is None
    begin(tmp_path)
    assert find_cohort(tmp_path, DOCUMENT) == DOCUMENT
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / ".case_0001.nii.gz.12345678.part").write_text("half an image")
    assert find_cohort(tmp_path, changed) is None
    (tmp_path / "images" / "case_0001.nii.gz").write_text("an image")
    before = snapshot(tmp_path)
    with pytest.raises(CohortError, match=r"was made with a different configuration \(labels: "):
        find_cohort(tmp_path, changed)
    assert snapshot(tmp_path) == before


def test_larger_budget_of_attempts_is_noted_and_a_smaller_one_refused(tmp_path: Path) -> None:
    def document(max_attempts: int) -> dict[str, Any]:
        return {**DOCUMENT, "configuration": {**DOCUMENT["configuration"], "max_attempts": max_attempts}}

    def go_on(max_attempts: int) -> None:
        with open_cohort(tmp_path, document(max_attempts), header=["maisi-aug synthesize"]) as (_, _writer, manifest):
            assert manifest.settled_indices == {0}

    begin(tmp_path, **document(3))
    (tmp_path / "images").mkdir(exist_ok=True)
    (tmp_path / "images" / "case_0001.nii.gz").write_text("an image")
    assert find_cohort(tmp_path, document(5)) == document(3)
    go_on(5)
    assert (tmp_path / "cohort.yaml").read_text().startswith("# maisi-aug synthesize\n")
    assert read_cohort_document(tmp_path) == document(5)
    with pytest.raises(CohortError, match=r"\(max_attempts: 5 -> 3\)"):
        go_on(3)
    with pytest.raises(CohortError, match=r"\(seed: 1 -> 2; max_attempts: "):
        begin(tmp_path, configuration={**DOCUMENT["configuration"], "seed": 2})
    assert read_cohort_document(tmp_path) == document(5)


def test_foreign_folder_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    before = snapshot(tmp_path)
    with pytest.raises(CohortError, match=r"it has 'thesis\.docx' but no cohort\.yaml. Nothing was changed"):
        begin(tmp_path)
    assert snapshot(tmp_path) == before


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cohort").write_text("a file")
    with pytest.raises(CohortError, match="cohort: this is a file, not a folder"):
        begin(tmp_path / "cohort")


@pytest.mark.parametrize("text", ["labels: [", "- 1\n", "labels: [liver]\n"])
def test_damaged_configuration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "cohort.yaml").write_text(text)
    with pytest.raises(CohortError, match="cohort.yaml: (is not the configuration|cannot be read)"):
        begin(tmp_path)


def test_run_killed_at_its_very_start_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").touch()
    (tmp_path / ".cohort.yaml.1234abcd.part").write_text("half of the confi")
    begin(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cohort.yaml", "manifest.jsonl"]


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / ".case_0001.nii.gz.12345678.part").write_text("half an image")
    with open_cohort(tmp_path, DOCUMENT, header=[]):
        assert list((tmp_path / "images").iterdir()) == []


def test_second_process_is_refused(tmp_path: Path) -> None:
    with open_cohort(tmp_path, DOCUMENT, header=[]), pytest.raises(CohortError, match="another process is working"):
        begin(tmp_path)


def test_absent_and_empty_folders_hold_no_document(tmp_path: Path) -> None:
    assert read_cohort_document(tmp_path) is None
    assert read_cohort_document(tmp_path / "absent") is None


def test_files_of_a_case_have_their_places() -> None:
    folder = CohortFolder(Path("c"))
    places = [folder.relative(folder.file_of(role, "case_0001")) for role in ("image", "label", "anatomy", "preview")]
    assert places == [
        "images/case_0001.nii.gz",
        "labels/case_0001.nii.gz",
        "anatomy/case_0001.nii.gz",
        "previews/case_0001.png",
    ]
    assert folder.relative(folder.rejected_preview("case_0001", 2)) == "previews/rejected/case_0001_a2.png"


def test_lost_files_are_found_by_name_and_altered_ones_by_their_bytes(tmp_path: Path) -> None:
    write_cohort(tmp_path, [26], [26], [26], [26])
    manifest = load_manifest(tmp_path)
    assert find_lost(tmp_path, manifest, verify=True) == []
    (tmp_path / "images/case_0002.nii.gz").unlink()
    (tmp_path / "anatomy/case_0003.nii.gz").write_bytes(b"something else")
    (tmp_path / "labels/case_0004.nii.gz").unlink()
    (tmp_path / "labels/case_0004.nii.gz").symlink_to("nowhere")
    found = find_lost(tmp_path, manifest)
    assert [(case.record.case_id, case.missing, case.altered) for case in found] == [
        ("case_0002", ("images/case_0002.nii.gz",), ()),
        ("case_0004", ("labels/case_0004.nii.gz",), ()),
    ]
    altered = [case for case in find_lost(tmp_path, manifest, verify=True) if case.altered]
    assert [(case.record.case_id, case.altered) for case in altered] == [("case_0003", ("anatomy/case_0003.nii.gz",))]


def test_every_case_is_lost_with_the_folder_of_its_images(tmp_path: Path) -> None:
    write_cohort(tmp_path, [26], [26])
    shutil.rmtree(tmp_path / "images")
    assert len(find_lost(tmp_path, load_manifest(tmp_path))) == 2


def test_cohort_file_is_read_again_only_when_somebody_has_written_it(tmp_path: Path) -> None:
    begin(tmp_path)
    begun = BegunCohort.read(tmp_path)
    assert begun.document == DOCUMENT
    assert begun.has_cases
    known = replace(begun, document={**DOCUMENT, "known": True})
    assert known.read_again(tmp_path) == known.document
    assert known.read_again(tmp_path / "elsewhere") is None
    text = (tmp_path / "cohort.yaml").read_text()
    (tmp_path / "cohort.yaml").write_text(text + "# a note\n")
    assert known.read_again(tmp_path) == DOCUMENT
    with pytest.raises(CohortError, match="--no-resume needs a new folder, but this one holds a cohort"):
        BegunCohort.read(tmp_path, may_resume=False)
    assert BegunCohort.read(tmp_path / "new", may_resume=False).document == {}


@pytest.mark.parametrize(
    ("configuration", "num_cases", "steps"),
    [
        ({"num_cases": 4}, 4, ()),
        ({"num_cases": 4}, 6, (4,)),
        ({"num_cases": 4, "grown_from": [2]}, 6, (2, 4)),
        ({"num_cases": 4, "grown_from": [2]}, 4, (2,)),
        ({"num_cases": 4}, 3, (1,)),  # what the request says, for the comparison to refuse
        ({"num_cases": 4}, None, (1,)),
        ({"num_cases": 4, "grown_from": ["2"]}, 6, (1,)),
        ({"num_cases": 4, "grown_from": [9]}, 6, (1,)),
    ],
)
def test_cohort_grows_in_steps_from_the_cases_that_it_has(
    configuration: dict[str, Any], num_cases: int | None, steps: tuple[int, ...]
) -> None:
    begun = BegunCohort(Path("cohort"), {"configuration": configuration}, has_cases=True)
    assert begun.steps_to(num_cases, (1,)) == steps
    assert replace(begun, has_cases=False).steps_to(num_cases, (1,)) == (1,)
