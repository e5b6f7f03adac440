from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from maisi_aug.cohort.manifest import MANIFEST_NAME
from maisi_aug.errors import EvaluationError, ExportError, VolumeError
from maisi_aug.evaluation.cohort.case_sets import (
    describe_skipped,
    find_case_set,
    measure_each,
    require_cohort,
    require_labelled,
)
from maisi_aug.vocabulary.labels import FULL_VOCABULARY
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image, save_label_map
from tests.builders.made_cases import GRID, HEPATIC_TUMOR, LIVER, SPLEEN, build_case, write_cohort, write_folder


def test_cohort_brings_accepted_cases_with_anatomy(tmp_path: Path) -> None:
    found = find_case_set(write_cohort(tmp_path / "cohort", [1, 2]))
    assert (found.kind, [case.case_id for case in found.cases]) == ("cohort", ["case_0001", "case_0002"])
    image, label_map = found.load_pair(found.cases[1])
    expected = build_case(2)
    np.testing.assert_array_equal(image.array, expected[0])
    np.testing.assert_array_equal(label_map, expected[1])
    assert len(require_labelled(found)) == len(require_cohort(found).cases) == 2


def test_nnunet_dataset_is_read_by_its_own_names(tmp_path: Path) -> None:
    image, label_map = build_case(3)
    numbers = np.zeros(256, dtype=np.uint8)
    numbers[[LIVER, SPLEEN, HEPATIC_TUMOR]] = 1, 2, 3
    save_image(tmp_path / "imagesTr" / "ct_3_0000.nii.gz", image, GRID)
    save_label_map(tmp_path / "labelsTr" / "ct_3.nii.gz", numbers[label_map], GRID)
    names = {"background": 0, "liver": 1, "spleen": 2, "liver_tumor": 3}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": names}))
    found = find_case_set(tmp_path)
    assert [case.case_id for case in found.cases] == ["ct_3"]
    _, translated = found.load_pair(found.cases[0])
    for label_id in (LIVER, SPLEEN, HEPATIC_TUMOR):
        np.testing.assert_array_equal(translated == label_id, label_map == label_id)


def test_image_with_several_label_maps_is_one_case(tmp_path: Path) -> None:
    image, label_map = build_case(1)
    save_image(tmp_path / "pt_1_ct.nii.gz", image, GRID)
    for role in ("oar", "ptv"):
        save_label_map(tmp_path / f"pt_1_{role}.nii.gz", label_map, GRID)
    assert [case.case_id for case in find_case_set(tmp_path).cases] == ["pt_1"]


def test_bare_volumes_and_folders_of_them(tmp_path: Path) -> None:
    write_folder(tmp_path, [4, 5], labelled=False)
    for path in (tmp_path, tmp_path / "images"):
        found = find_case_set(path)
        assert [case.case_id for case in found.cases] == ["real_04", "real_05"]
        assert not found.labelled
    with pytest.raises(EvaluationError, match="label maps are needed, but its 2 volumes have none"):
        require_labelled(found)
    with pytest.raises(EvaluationError, match="must be a cohort with manifest.jsonl, found a"):
        require_cohort(found)
    assert [case.case_id for case in find_case_set(tmp_path / "images" / "real_04.nii.gz").cases] == ["real_04"]


def test_volumes_beside_pairs_are_cases_without_a_label_map(tmp_path: Path) -> None:
    """One label map is enough to make a folder one of pairs; the other CTs are measured all the same."""
    write_folder(tmp_path, [1, 2, 3])
    (tmp_path / "labels" / "real_02.nii.gz").unlink()
    (tmp_path / "labels" / "real_03.nii.gz").unlink()
    found = find_case_set(tmp_path)
    assert [case.case_id for case in found.cases] == ["real_01", "real_02", "real_03"]
    assert [case.case_id for case in require_labelled(found)] == ["real_01"]
    assert found.skipped == ()


def test_cts_of_other_layouts_need_no_label_map(tmp_path: Path) -> None:
    """By their names, or numbered as nnU-Net numbers channels; a dose is no CT."""
    image, label_map = build_case(1)
    for name in ("a_ct", "b_ct", "a_dose"):
        save_image(tmp_path / "flat" / f"{name}.nii.gz", image, GRID)
    save_label_map(tmp_path / "flat" / "a_seg.nii.gz", label_map, GRID)
    assert [case.case_id for case in find_case_set(tmp_path / "flat").cases] == ["a", "b"]
    for number in range(3):
        save_image(tmp_path / "numbered" / "images" / f"scan_000{number}.nii.gz", image, GRID)
    save_label_map(tmp_path / "numbered" / "labels" / "scan_0001.nii.gz", label_map, GRID)
    assert len(find_case_set(tmp_path / "numbered").cases) == 3
    for case in ("p1", "p2"):
        save_image(tmp_path / "folders" / case / f"{case}_ct.nii.gz", image, GRID)
    save_label_map(tmp_path / "folders" / "p1" / "p1_seg.nii.gz", label_map, GRID)
    assert [case.case_id for case in find_case_set(tmp_path / "folders").cases] == ["p1", "p2"]


def test_empty_files_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path, [1, 2, 3])
    (tmp_path / "labels" / "real_02.nii.gz").write_bytes(b"")
    (tmp_path / "images" / "real_03.nii.gz").write_bytes(b"")
    found = find_case_set(tmp_path)
    assert [case.case_id for case in found.cases] == ["real_01", "real_02"]
    assert describe_skipped(found.skipped) == [
        {"case": "labels/real_02.nii.gz", "reason": "real_02.nii.gz is empty."},
        {"case": "labels/real_03.nii.gz", "reason": "real_03.nii.gz is empty."},
    ]
    for seed in (1, 2):
        (tmp_path / "images" / f"real_0{seed}.nii.gz").unlink()
    shutil.rmtree(tmp_path / "labels")
    with pytest.raises(EvaluationError, match=r"no CT volumes that can be read \(.*real_03.nii.gz is empty"):
        find_case_set(tmp_path)


def test_nothing_to_measure_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="nowhere: not found"):
        find_case_set(tmp_path / "nowhere")
    with pytest.raises(EvaluationError, match="no CT volumes"):
        find_case_set(tmp_path)
    (tmp_path / MANIFEST_NAME).touch()
    with pytest.raises(ExportError, match="has no accepted case in"):
        find_case_set(tmp_path)


def test_label_map_on_another_grid_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, [1])
    other = Grid.from_spacing((20, 36, 34), (6.0, 3.0, 4.0))
    _, label_map = build_case(1, grid=other)
    shutil.rmtree(tmp_path / "labels")
    save_label_map(tmp_path / "labels" / "real_01.nii.gz", label_map, other)
    found = find_case_set(tmp_path)
    with pytest.raises(
        VolumeError, match=r"real_01: expected the image's grid, 40x36x34 at 3x3x4 mm from .*, found 20x36x34 at 6x3x4"
    ):
        found.load_pair(found.cases[0])


def test_one_bad_case_does_not_stop_the_others() -> None:
    def measure(number: int) -> float:
        if number == 2:
            raise VolumeError("2: expected a volume, found none.")
        return number / 2

    seen: list[tuple[int, int]] = []
    results, skipped = measure_each([1, 2, 3], str, measure, lambda done, total: seen.append((done, total)))
    assert results == [0.5, 1.5]
    assert describe_skipped(skipped) == [{"case": "2", "reason": "2: expected a volume, found none."}]
    assert seen[-1] == (3, 3)
    with pytest.raises(EvaluationError, match="Cases: none of 1 can be measured; the first: 2"):
        measure_each([2], str, measure, lambda done, total: None)


def test_prepared_folder_brings_patients_and_its_own_names(tmp_path: Path) -> None:
    """A new label keeps its name and gets the id that the vocabulary of the other side has for it."""
    import yaml

    image, label_map = build_case(1)
    save_image(tmp_path / "images" / "a.nii.gz", image, GRID)
    save_label_map(tmp_path / "labels" / "a.nii.gz", np.where(label_map == HEPATIC_TUMOR, 130, label_map), GRID)
    grid = {"shape": list(GRID.shape), "spacing_mm": list(GRID.spacing_mm)}
    spec = {
        "name": "made",
        "grid": grid,
        "labels": {"liver": LIVER, "spleen": SPLEEN, "kidney tumor": 130, "body": 200},
        "new_labels": {"kidney tumor": {"id": 130, "hosts": [5, 14]}},
        "num_folds": 1,
    }
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(spec))
    line = {
        "id": "a",
        "patient": "p1",
        "fold": 0,
        "modality": "ct",
        "voxels": {},
        "image_source": "",
        "label_sources": [],
    }
    line |= grid | dict.fromkeys(("image_sha256", "label_sha256", "key"), "0" * 64)
    (tmp_path / "cases.jsonl").write_text(json.dumps(line) + "\n")
    found = find_case_set(tmp_path)
    assert (found.kind, found.cases[0].patient) == ("prepared folder", "p1")
    assert found.vocabulary.name_of(130) == "kidney tumor"
    other = find_case_set(tmp_path, vocabulary=FULL_VOCABULARY)
    _, translated = other.load_pair(other.cases[0])
    moved = FULL_VOCABULARY.id_of("kidney tumor")
    np.testing.assert_array_equal(translated == moved, label_map == HEPATIC_TUMOR)
    assert moved != 130


def halve(number: int) -> float:
    """Of a module, so that processes can be told of it."""
    if number == 2:
        raise VolumeError(f"{number}: expected a volume, found none.")
    return number / 2


def test_several_processes_measure_the_same() -> None:
    results, skipped = measure_each([1, 2, 3, 4], str, halve, lambda done, total: None, num_workers=2)
    assert results == [0.5, 1.5, 2.0]
    assert describe_skipped(skipped) == [{"case": "2", "reason": "2: expected a volume, found none."}]
