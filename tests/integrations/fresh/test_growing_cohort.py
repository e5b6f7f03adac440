from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from monai.data import DataLoader

from maisi_aug.cohort.manifest import MANIFEST_NAME, ManifestWriter
from maisi_aug.errors import CohortError, RequestError
from maisi_aug.integrations.fresh import growing_cohort
from maisi_aug.integrations.fresh.growing_cohort import GrowingCohort
from maisi_aug.volumes.image_files import load_image
from tests.builders.tiny_cohort import HEPATIC_TUMOR, save_case


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing_cohort, "POLL_SECONDS", 0.01)


def begin(folder: Path, num_cases: int, *, is_asked: bool = True) -> Path:
    document = {
        "configuration": {"labels": ["hepatic tumor"], "num_cases": num_cases, "bundle": "phantom-ct"},
        "requested": [{"id": HEPATIC_TUMOR, "name": "hepatic tumor"}] * is_asked,
    }
    folder.mkdir()
    (folder / "cohort.yaml").write_text(yaml.safe_dump(document))
    return folder


def add(folder: Path, *indices: int, status: str = "accepted") -> None:
    with ManifestWriter(folder / MANIFEST_NAME) as writer:
        for index in indices:
            writer.append(save_case(folder, index, [HEPATIC_TUMOR], status=status))


def names_of(cases: GrowingCohort) -> list[str]:
    return [cases[index]["case_id"] for index in range(len(cases))]


def test_epochs_reach_further_into_the_plan_and_do_not_depend_on_what_is_there(tmp_path: Path) -> None:
    folder = begin(tmp_path / "cohort", 6)
    cases = GrowingCohort(folder, num_items=2, seed=1)
    add(folder, 0, 1)
    assert names_of(cases) == ["case_0001", "case_0002"]
    add(folder, 2, 3, 4, 5)
    assert names_of(cases) == ["case_0001", "case_0002"]
    assert all(max(cases.case_indices(epoch)) < 2 * (epoch + 1) for epoch in range(3))
    cases.set_epoch(2)
    again = GrowingCohort(folder, num_items=2, seed=1)
    again.set_epoch(2)
    assert names_of(cases) == names_of(again)
    assert len({tuple(cases.case_indices(epoch)) for epoch in range(2, 12)}) > 3


def test_item_waits_for_its_case(tmp_path: Path) -> None:
    folder = begin(tmp_path / "cohort", 2)
    cases = GrowingCohort(folder, num_items=2, wait_seconds=30)

    def grow() -> None:
        time.sleep(0.2)
        add(folder, 0)

    thread = threading.Thread(target=grow)
    thread.start()
    item = cases[0]
    thread.join()
    assert np.array_equal(item["image"][0].numpy(), load_image(folder / "images" / "case_0001.nii.gz").array)
    assert item["label"].max() == 1


def test_rejected_case_is_replaced_by_the_next(tmp_path: Path) -> None:
    folder = begin(tmp_path / "cohort", 3)
    add(folder, 0, status="rejected")
    add(folder, 1, 2)
    cases = GrowingCohort(folder, num_items=4)
    assert names_of(cases) == ["case_0002", "case_0002", "case_0003", "case_0002"]


def test_loader_with_workers_gets_the_same(tmp_path: Path) -> None:
    folder = begin(tmp_path / "cohort", 4)
    add(folder, 0, 1, 2, 3)
    cases = GrowingCohort(folder, num_items=4)
    cases.set_epoch(1)
    found = [name for batch in DataLoader(cases, batch_size=2, num_workers=2) for name in batch["case_id"]]
    assert found == names_of(cases)


def test_cases_that_do_not_come_are_told(tmp_path: Path) -> None:
    folder = begin(tmp_path / "cohort", 2)
    with pytest.raises(CohortError, match="waited 0.05 s for case 1 of 2, 0 are done"):
        GrowingCohort(folder, num_items=1, wait_seconds=0.05)[0]
    add(folder, 0, 1, status="rejected")
    with pytest.raises(CohortError, match="all cases were rejected"):
        GrowingCohort(folder, num_items=1)[0]
    with pytest.raises(CohortError, match="no cohort has been begun here"):
        GrowingCohort(tmp_path / "nowhere", num_items=1)
    with pytest.raises(RequestError, match="num_items: must be 1 or more, found 0"):
        GrowingCohort(folder, num_items=0)


def test_writer_that_has_ended_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing_cohort, "GRACE_SECONDS", 0.2)
    folder = begin(tmp_path / "cohort", 3)
    with ManifestWriter(folder / MANIFEST_NAME) as writer:
        writer.append(save_case(folder, 0, [HEPATIC_TUMOR]))
        with pytest.raises(CohortError, match="waited 1 s for case 2 of 3, 1 are done"):
            GrowingCohort(folder, num_items=2, wait_seconds=1)[1]  # somebody is writing
    with pytest.raises(CohortError, match="case 2 of 3 will not be made: 1 are done, and no process is running"):
        GrowingCohort(folder, num_items=2)[1]


def test_labels_can_be_chosen_and_must_be_where_none_was_asked_for(tmp_path: Path) -> None:
    folder = begin(tmp_path / "cohort", 1, is_asked=False)
    add(folder, 0)
    with pytest.raises(
        RequestError, match="the cohort was made without label requests, so that it has no labels to train"
    ):
        GrowingCohort(folder, num_items=1)
    cases = GrowingCohort(folder, num_items=1, labels=["kidney tumor", "liver", "liver tumor"])
    assert cases.numbering.to_dict() == {"background": 0, "liver": 1, "hepatic tumor": 2, "kidney tumor": 3}
    assert cases[0]["label"].max() == 2


def test_labels_take_the_numbers_of_a_real_dataset(tmp_path: Path) -> None:
    folder = begin(tmp_path / "cohort", 1)
    add(folder, 0)
    cases = GrowingCohort(folder, num_items=1, numbers={"liver": 3, "hepatic tumor": 7})
    assert cases.numbering.to_dict() == {"background": 0, "liver": 3, "hepatic tumor": 7}
    assert np.unique(cases[0]["label"]).tolist() == [0, 3, 7]
    with pytest.raises(RequestError, match="'hepatic tumor', which was requested for the cases, has no number"):
        GrowingCohort(folder, num_items=1, numbers={"liver": 3})
    with pytest.raises(RequestError, match="labels: cannot be used together with numbers, which decide the labels"):
        GrowingCohort(folder, num_items=1, numbers={"liver": 3}, labels=["liver"])
