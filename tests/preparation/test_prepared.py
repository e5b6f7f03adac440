from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from maisi_aug.errors import PreparationError, VocabularyError
from maisi_aug.preparation.prepared import NewLabel, PreparedCase, PreparedSpec, load_prepared

SHA = "0" * 64


def build_case(number: int, **changes: Any) -> PreparedCase:
    fields = {
        "id": f"p{number}",
        "patient": f"p{number}",
        "fold": number % 3,
        "modality": "ct",
        "shape": (4, 5, 6),
        "spacing_mm": (2.0, 2.5, 4.0),
        "voxels": {0: 60, 2: 10, 200: 50},
        "image_sha256": SHA,
        "label_sha256": SHA,
        "image_source": "a.nii.gz",
        "label_sources": ("b.nii.gz",),
        "key": SHA,
        **changes,
    }
    return PreparedCase(**fields)


def write_folder(folder: Path, cases: list[PreparedCase], **changes: Any) -> Path:
    spec = {
        "format": 1,
        "name": "lab",
        "grid": {"shape": [4, 5, 6], "spacing_mm": [2.0, 2.5, 4.0]},
        "labels": {"node": 2, "body": 200},
        "new_labels": {"node": {"id": 2, "hosts": [1]}},
        "num_folds": 3,
        **changes,
    }
    (folder / "dataset.yaml").write_text(yaml.safe_dump(spec))
    (folder / "cases.jsonl").write_text("".join(case.model_dump_json() + "\n" for case in cases))
    return folder


def test_folder_is_read_as_it_was_written(tmp_path: Path) -> None:
    cases = [build_case(number) for number in (2, 0, 1)]
    dataset = load_prepared(write_folder(tmp_path, cases))
    assert [case.id for case in dataset.cases] == ["p0", "p1", "p2"]
    assert dataset.cases[0] == cases[1]
    assert dataset.spec.new_labels == {"node": NewLabel(id=2, hosts=(1,))}
    assert dataset.vocabulary.id_of("node") == 2
    assert dataset.file_of("image", "p1") == tmp_path / "images" / "p1.nii.gz"
    assert dataset.file_of("preview", "p1") == tmp_path / "previews" / "p1.png"


def test_volume_is_told_in_millilitres() -> None:
    case = build_case(0)
    assert case.volume_ml(2) == pytest.approx(0.2)
    assert case.volume_ml(7) == 0.0


def test_folds_are_chosen_and_held_out(tmp_path: Path) -> None:
    dataset = load_prepared(write_folder(tmp_path, [build_case(number) for number in range(6)]))
    assert [case.id for case in dataset.select(exclude_fold=0).cases] == ["p1", "p2", "p4", "p5"]
    assert [case.id for case in dataset.select(folds=(0, 2)).cases] == ["p0", "p2", "p3", "p5"]
    assert [case.id for case in dataset.select(folds=(0, 2), exclude_fold=2).cases] == ["p0", "p3"]
    with pytest.raises(PreparationError, match="fold must be between 0 and 2, found 3"):
        dataset.select(exclude_fold=3)
    with pytest.raises(PreparationError, match="the chosen folds have no cases"):
        dataset.select(folds=(1,), exclude_fold=1)
    together = replace(dataset, cases=dataset.select(folds=(0,)).cases)
    with pytest.raises(PreparationError, match="all are in fold 0, which is held out.* prepare with more --folds"):
        together.select(exclude_fold=0)


def test_unfinished_and_damaged_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PreparationError, match="not a prepared folder, because dataset.yaml"):
        load_prepared(tmp_path)
    write_folder(tmp_path, [build_case(0)], colour="red")
    with pytest.raises(PreparationError, match="dataset.yaml: colour: unknown key .*Prepare the data again"):
        load_prepared(tmp_path)
    write_folder(tmp_path, [])
    with pytest.raises(PreparationError, match="cases.jsonl: has no cases"):
        load_prepared(tmp_path)
    (tmp_path / "cases.jsonl").unlink()
    with pytest.raises(PreparationError, match="cases.jsonl cannot be read: "):
        load_prepared(tmp_path)


def test_names_of_cases_lead_nowhere_else() -> None:
    with pytest.raises(ValueError, match="String should match pattern"):
        build_case(0, id="../../x")


def test_new_label_on_a_taken_id_is_refused() -> None:
    spec = PreparedSpec.model_validate(
        {
            "name": "lab",
            "grid": {"shape": [4, 5, 6], "spacing_mm": [2.0, 2.5, 4.0]},
            "labels": {"node": 1},
            "new_labels": {"node": {"id": 1}},
            "num_folds": 1,
        }
    )
    from maisi_aug.preparation.prepared import bind_new_labels
    from maisi_aug.vocabulary.labels import MAISI

    with pytest.raises(VocabularyError, match="expected a placeholder slot .* found 1, the id of 'liver'"):
        bind_new_labels(MAISI, spec.new_labels.items())


@pytest.mark.parametrize("other", ["p1", "P1"])
def test_case_that_is_listed_twice_is_refused(tmp_path: Path, other: str) -> None:
    with pytest.raises(PreparationError, match="1' is listed twice"):
        load_prepared(write_folder(tmp_path, [build_case(1), build_case(2, id=other)]))


def test_fold_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PreparationError, match="folds are 0 to 2, found 3 for 'p1'"):
        load_prepared(write_folder(tmp_path, [build_case(1, fold=3)]))
