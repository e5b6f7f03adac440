from __future__ import annotations

import os
import platform
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.data import DataLoader, MetaTensor

from maisi_aug.cohort.request import build_request
from maisi_aug.errors import BundleError, CohortError, RecipeError, RequestError
from maisi_aug.integrations.fresh import cases as fresh_cases
from maisi_aug.integrations.fresh.cases import FreshCases
from maisi_aug.integrations.fresh.maker import FreshMaker
from maisi_aug.integrations.reading.items import Pair
from maisi_aug.vocabulary.labels import BODY_ID
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_label_map
from tests.builders.tiny_bundle import write_tiny_bundle

NUM_ITEMS, REUSE, SEED = 4, 2, 5
SHAPE = (24, 16, 16)


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two small maps of one's own, which are quick to draw, and gates that accept noise."""
    folder = tmp_path_factory.mktemp("fresh")
    write_tiny_bundle(folder / "bundle")
    for number in range(2):
        label_map = np.full(SHAPE, BODY_ID, dtype=np.uint8)
        label_map[4:20, 4:12, 3:12] = 1
        label_map[8 + number : 12, 6:9, 5:9] = 26
        label_map[1:3, 4:8, 3:8], label_map[21:23, 4:8, 3:8] = 3, 14  # organs beside it, as the networks know them
        save_label_map(folder / "maps" / f"map_{number}.nii.gz", label_map, Grid.from_spacing(SHAPE, (8.0, 9.0, 10.0)))
    return {
        "bundle": str(folder / "bundle"),
        "mask_source": "given",
        "mask_bank": str(folder / "maps"),
        "mask_labels": "maisi",
        "gates": {"organ_hu": False, "visibility": False},
    }


@pytest.fixture(scope="module")
def cases(configuration: dict[str, Any]) -> Iterator[FreshCases]:
    settings: dict[str, Any] = {"num_items": NUM_ITEMS, "reuse": REUSE, "buffer": 4, "seed": SEED, "device": "cpu"}
    with FreshCases(configuration, **settings) as running:
        yield running
    assert running._process is not None
    assert running._process.poll() is not None  # ended
    assert not running._folder.exists()


@pytest.fixture(scope="module")
def maker(configuration: dict[str, Any]) -> FreshMaker:
    """The same cases, made in this process."""
    values = build_request(configuration).to_dict()
    return FreshMaker.open(values, device="cpu", num_cases=NUM_ITEMS // REUSE, seed=SEED)


def key_of(pair: Pair) -> tuple[str, int, int]:
    return str(pair.metadata["case_id"]), int(pair.image_hu.astype(int).sum()), int(pair.label_map.sum())


def test_loaders_with_and_without_workers_get_the_cases_of_the_schedule(cases: FreshCases, maker: FreshMaker) -> None:
    expected = [key_of(maker.make(1, number)) for number in cases.schedule.cases_of(1)]
    cases.set_epoch(1)
    for num_workers in (0, 2):
        found = []
        for batch in DataLoader(cases, batch_size=2, num_workers=num_workers):
            assert batch["image"].shape == (2, 1, *SHAPE)
            for place in range(2):
                image, label = batch["image"][place], batch["label"][place]
                found.append((batch["case_id"][place], int(image.long().sum()), int(label.long().sum())))
        assert found == expected


def test_what_is_waited_for_is_told_from_the_first_second(
    configuration: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch alone takes longer to load than that."""
    with FreshCases(configuration, num_items=1, reuse=1, device="cpu") as waiting:
        waiting.fetch(0, 0)
        assert capsys.readouterr().err.splitlines()[0] == "Fresh cases: loading the networks"
        for step in (1, 2):
            waiting._tell(f"case 2 of epoch 1: step {step} of 30")
        assert capsys.readouterr().err == "Fresh cases: case 2 of epoch 1: step 1 of 30\n", "a line, not one a step"
        waiting._is_quiet = True
        waiting._tell("case 3 of epoch 1: drawing the label map")
        assert capsys.readouterr().err == ""


def test_items_are_metatensors_of_the_requested_labels(cases: FreshCases) -> None:
    cases.set_epoch(0)
    item = cases[0]
    assert isinstance(item["image"], MetaTensor)
    assert np.allclose(item["image"].pixdim, (8.0, 9.0, 10.0))
    assert len(np.unique(item["label"].numpy())) == 5  # background, three organs and the lesion
    assert item["case_id"].startswith("fresh_0000_")
    with pytest.raises(IndexError):
        cases[NUM_ITEMS]


def test_epochs_differ_and_hold_every_request(maker: FreshMaker) -> None:
    first, second = ([maker.make(epoch, number) for number in range(2)] for epoch in (0, 1))
    for pairs in (first, second):
        assert sorted(str(pair.metadata["request"]) for pair in pairs) == ["map_0.nii.gz", "map_1.nii.gz"]
    assert key_of(first[0])[1] != key_of(second[0])[1]


def test_labels_take_the_numbers_of_a_real_dataset(configuration: dict[str, Any], cases: FreshCases) -> None:
    assert cases.numbering.to_dict()["liver"] == 1
    wanted = {**configuration, "labels": ["hepatic tumor"]}
    assert FreshMaker.open(build_request(wanted).to_dict(), device="cpu", num_cases=1, seed=SEED).numbering.ids == (26,)
    numbers = {"background": 0, "hepatic tumor": 2, "liver": 5}
    with FreshCases(wanted, num_items=1, reuse=1, seed=SEED, device="cpu", numbers=numbers) as running:
        assert running.numbering.to_dict() == {"background": 0, "liver": 5, "hepatic tumor": 2}
        assert np.unique(running.fetch(0, 0).label_map).tolist() == [0, 2, 5]
    with pytest.raises(RequestError, match="numbers, 'liver': expected an integer from 0 to 255, found 300"):
        FreshCases(wanted, num_items=1, numbers={"liver": 300})
    with (
        FreshCases(wanted, num_items=1, device="cpu", numbers={"liver": 1}) as running,
        pytest.raises(RequestError, match="numbers: 'hepatic tumor', which was requested for the cases, has no number"),
    ):
        running.fetch(0, 0)


def test_transform_and_subjects(cases: FreshCases) -> None:
    pytest.importorskip("torchio", reason="needs the extra 'torchio'")
    from maisi_aug.integrations.reading.items import to_subject

    pair = cases.fetch(0, 1)
    subject = to_subject(pair)
    assert np.array_equal(subject.image.data[0].numpy(), pair.image_hu)
    assert np.allclose(np.asarray(subject.label.affine), pair.grid.affine)


def test_failure_of_the_process_surfaces_where_one_trains(configuration: dict[str, Any]) -> None:
    wrong = {**configuration, "bundle": "no-such-bundle"}
    with FreshCases(wrong, num_items=4, device="cpu") as running, pytest.raises(BundleError, match="no-such-bundle"):
        running.fetch(0, 0)


def test_process_that_was_killed_is_told(configuration: dict[str, Any]) -> None:
    with FreshCases(configuration, num_items=4, device="cpu") as running:
        assert running._process is not None
        os.kill(running._process.pid, signal.SIGKILL)
        running._process.wait()
        with pytest.raises(CohortError, match="Fresh cases: the process that makes them has ended"):
            running.fetch(0, 0)


def test_temporary_folder_may_have_a_long_path(
    configuration: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with FreshCases(configuration, num_items=1, seed=SEED, device="cpu") as running:
        assert running.fetch(0, 0).metadata["epoch"] == 0
        assert running._folder.is_relative_to(folder)


@pytest.mark.parametrize("system", ["Linux", "Darwin"])
def test_address_is_short_whatever_the_folder(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    assert fresh_cases._choose_address(Path("/tmp/maisi-aug-1")) == "/tmp/maisi-aug-1/socket"
    assert len(fresh_cases._choose_address(Path("/", "a" * 200))) < fresh_cases.MAX_ADDRESS_BYTES


def test_trouble_of_the_asking_process_is_not_told_as_the_end_of_the_other(
    cases: FreshCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(fresh_cases, "Client", refuse)
    monkeypatch.setattr(cases, "_connections", {})
    with pytest.raises(CohortError, match="Fresh cases: the process that makes them cannot be reached:"):
        cases.fetch(0, 0)


def test_process_ends_with_its_dataset(configuration: dict[str, Any]) -> None:
    running = FreshCases(configuration, num_items=4, device="cpu")
    process, folder = running._process, running._folder
    assert process is not None
    del running
    assert process.poll() is not None
    assert not Path(folder).exists()


def test_process_ends_when_the_training_does(configuration: dict[str, Any]) -> None:
    running = FreshCases(configuration, num_items=4, device="cpu")
    process = running._process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()  # all that is left of a training that was killed
    ends_at = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < ends_at:
        time.sleep(0.05)
    assert process.poll() == 0
    running.close()


def test_case_that_is_never_accepted_names_its_reason(configuration: dict[str, Any]) -> None:
    values = build_request({**configuration, "gates": {}, "max_attempts": 1}).to_dict()
    maker = FreshMaker.open(values, device="cpu", num_cases=1, seed=0)
    with pytest.raises(CohortError, match="Epoch 0, case 0: none of 4 cases was accepted within 1 attempts each"):
        maker.make(0, 0)


def test_images_without_label_maps_are_refused() -> None:
    with pytest.raises(
        RecipeError, match="FreshCases: needs a mask source with label maps to train on; mask_source 'none'"
    ):
        FreshCases({"mask_source": "none"}, num_items=1)
