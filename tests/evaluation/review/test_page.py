"""The page in a real browser, as a reviewer uses it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from maisi_aug.cohort.manifest import MANIFEST_NAME, AttemptRecord, ManifestWriter, load_manifest
from maisi_aug.cohort.review import load_review
from maisi_aug.evaluation.review.reader_test import load_readings
from maisi_aug.evaluation.review.serving import ViewOptions, serve_in_background
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image, save_label_map
from maisi_aug.volumes.orientation import turn_volume
from tests.builders.tiny_cohort import HEPATIC_TUMOR, LIVER, build_record

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# WebGL without a graphics card.
FLAGS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
PATIENCE_MS = 90_000
GRID = Grid.from_spacing((24, 20, 16), (4.0, 4.0, 5.0))
CENTRE = (9, 11, 7)

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright to drive a browser")
pytest.importorskip("uvicorn", reason="needs the extra 'view'")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no browser: none of " + ", ".join(BROWSERS) + " is installed")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=list(FLAGS))


def write_case(folder: Path, index: int, *, mm: float = 20.0, **changes: Any) -> AttemptRecord:
    """A body with a liver and a lesion in it."""
    label_map = np.zeros(GRID.shape, dtype=np.uint8)
    label_map[2:-2, 2:-2] = 200
    label_map[5:14, 6:15, 3:12] = LIVER
    label_map[8:11, 10:13, 6:9] = HEPATIC_TUMOR
    image = np.select([label_map == LIVER, label_map == HEPATIC_TUMOR, label_map == 200], [70, 20, -90], -1000)
    paths = {
        role: f"{place}/case_{index + 1:04d}.nii.gz" for role, place in (("image", "images"), ("anatomy", "anatomy"))
    }
    save_image(folder / paths["image"], image.astype(np.int16), GRID)
    save_label_map(folder / paths["anatomy"], label_map, GRID)
    lesion = Lesion(HEPATIC_TUMOR, "hepatic tumor", 2.0, realised_ml=2.16, diameter_mm=mm, centre_ijk=CENTRE)
    return build_record(folder, index, paths, requested=(), **{"lesions": (lesion,), **changes})


def write_cases(folder: Path, num: int) -> Path:
    folder.mkdir(parents=True)
    with ManifestWriter(folder / MANIFEST_NAME) as writer:
        for index in range(num):
            writer.append(write_case(folder, index, mm=10.0 + index))
    return folder


@contextmanager
def open_page(browser: Any, options: ViewOptions, **viewport: int) -> Iterator[tuple[Any, list[str]]]:
    """The page, and what its console complains about."""
    complaints: list[str] = []
    with serve_in_background(options) as address:
        page = browser.new_page(viewport={"width": 1300, "height": 850, **viewport})
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda asked: None if asked.url.startswith((address, "data:", "blob:")) else complaints.append(asked.url),
        )
        page.goto(address)
        try:
            yield page, complaints
        finally:
            page.close()


def wait_for(page: Any, key: str) -> None:
    page.wait_for_selector(f"body[data-shown='{key}']", state="attached")


def test_cohort_is_reviewed_from_the_keyboard(browser: Any, tmp_path: Path) -> None:
    folder = write_cases(tmp_path / "cohort", 4)
    with open_page(browser, ViewOptions(path=folder, reviewer="anna")) as (page, complaints):
        page.wait_for_selector(".cell")
        assert page.locator(".cell").count() == 4
        page.fill("#f-min", "11.5")
        sync_api.expect(page.locator("#count")).to_have_text("2 of 4")
        page.click("#filters button[type=reset]")
        sync_api.expect(page.locator("#count")).to_have_text("4 of 4")

        page.click(".cell >> nth=0")
        wait_for(page, "case_0001.0")
        readout = page.locator("#readout")
        sync_api.expect(readout).to_contain_text("20 HU")
        sync_api.expect(readout).to_contain_text("hepatic tumor")
        sync_api.expect(readout).to_contain_text(f"axial {CENTRE[2] + 1} of 16")
        page.keyboard.press("ArrowUp")
        sync_api.expect(readout).to_contain_text(f"axial {CENTRE[2] + 2} of 16")
        before = page.locator("#canvas").screenshot()
        page.keyboard.press("3")
        sync_api.expect(page.locator("#windows button >> nth=2")).to_have_attribute("aria-pressed", "true")
        filled = page.locator("#canvas").screenshot()
        assert filled != before
        page.keyboard.press("o")
        sync_api.expect(page.locator("#outline")).to_contain_text("Outline")
        assert page.locator("#canvas").screenshot() != filled
        page.keyboard.press("o")
        page.keyboard.press("o")
        sync_api.expect(page.locator("#outline")).to_contain_text("Fill")
        assert page.locator("#canvas").screenshot() == filled

        page.keyboard.press("a")
        wait_for(page, "case_0002.0")
        page.keyboard.press("r")
        page.keyboard.press("2")
        wait_for(page, "case_0003.0")
        rejections = load_review(folder).rejections()
        assert list(rejections.values()) == ["Rejected in review by anna: lesion in the wrong place."]
        page.keyboard.press("r")
        page.fill("#reason-text", "streaks")
        page.keyboard.press("Enter")
        wait_for(page, "case_0004.0")
        page.keyboard.press("u")
        wait_for(page, "case_0003.0")
        sync_api.expect(page.locator("#verdict")).to_have_text("not decided")

        page.reload()
        wait_for(page, "case_0003.0")
        page.keyboard.press("g")
        page.wait_for_selector(".mark.reject")
        assert page.locator(".mark.accept").count() == page.locator(".mark.reject").count() == 1
        page.select_option("#f-review", "open")
        sync_api.expect(page.locator("#count")).to_have_text("2 of 4")
        assert complaints == []


def write_turned(folder: Path, codes: Sequence[str], dtype: Any = np.int16) -> Path:
    """A dataset of nnU-Net with the same case stored along other axes; nothing in it is symmetric."""
    places = zip(np.indices(GRID.shape), (17, 5, 10), (3, 3, 2), strict=True)
    label_map = (sum(np.abs(axis - at) / reach for axis, at, reach in places) <= 1).astype(np.uint8)
    label_map[2:9, 10:18, 3:14] = 2
    image = np.full(GRID.shape, -100, dtype=dtype)
    image[:6, 14:, :4] = 200
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for code in codes:
        for name, array in ((f"imagesTr/{code}_0000", image), (f"labelsTr/{code}", label_map)):
            turned, grid = turn_volume(array, GRID, code)
            nib.Nifti1Image(np.ascontiguousarray(turned), grid.affine).to_filename(folder / f"{name}.nii.gz")
    labels = {"background": 0, "tumor": 1, "organ": 2}
    content = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": len(codes)}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def take_picture(page: Any, canvas: str) -> NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(page.locator(canvas).screenshot())), dtype=np.int16)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_volumes_look_the_same_however_they_are_stored(browser: Any, tmp_path: Path, dtype: Any) -> None:
    """Left is left, and the crosshair is in the lesion, for every order and direction of the stored axes."""
    codes = ("RAS", "LPS", "SAR")
    dataset = write_turned(tmp_path / "Dataset001_Turned", codes, dtype)
    with open_page(browser, ViewOptions(path=dataset)) as (page, complaints):
        pictures, words = [], set()
        for number in range(len(codes)):
            page.goto(f"{page.url.partition('#')[0]}#case=c{number}")
            wait_for(page, f"c{number}")
            pictures.append(take_picture(page, "#canvas"))
            words.add(page.locator("#readout").inner_text())
        (readout,) = words
        assert readout.startswith("-100 HU · tumor · ")
        assert "axial 11 of 16" in readout
        for picture in pictures[1:]:
            assert np.mean(np.abs(picture - pictures[0]) > 30) < 0.003
        assert complaints == []


def test_prediction_is_shown_beside_with_the_labels_that_are_shown(browser: Any, tmp_path: Path) -> None:
    dataset = write_turned(tmp_path / "Dataset001_Real", ("RAS",))
    with open_page(browser, ViewOptions(path=dataset, predictions=dataset / "labelsTr")) as (page, complaints):
        page.goto(f"{page.url}#case=c0")
        wait_for(page, "c0")
        readout = page.locator("#readout").inner_text()
        page.keyboard.press("c")
        sync_api.expect(page.locator("#caption-2")).to_have_text("prediction")
        sync_api.expect(page.locator("#beside")).to_have_attribute("aria-pressed", "true")
        sync_api.expect(page.locator("#readout")).to_have_text(readout)
        before = take_picture(page, "#canvas-2")
        page.get_by_label("organ").check()
        for canvas in ("#canvas", "#canvas-2"):
            assert np.mean(np.abs(take_picture(page, canvas) - before) > 30) > 0.003
        page.get_by_label("organ").uncheck()
        assert np.mean(np.abs(take_picture(page, "#canvas-2") - before) > 30) < 0.001
        assert complaints == []


def test_damaged_volume_is_said_and_the_next_case_is_shown(browser: Any, tmp_path: Path) -> None:
    folder = write_cases(tmp_path / "cohort", 3)
    image = folder / "images/case_0001.nii.gz"
    image.write_bytes(image.read_bytes()[:200])
    (folder / "images/case_0002.nii.gz").write_bytes(b"no image at all")
    with open_page(browser, ViewOptions(path=folder)) as (page, _):
        page.click(".cell >> nth=0")
        wait_for(page, "case_0001.0")
        sync_api.expect(page.locator("#fault")).to_contain_text("cannot be read")
        page.keyboard.press("n")
        wait_for(page, "case_0002.0")
        sync_api.expect(page.locator("#fault")).to_contain_text("cannot be read")
        page.keyboard.press("n")
        wait_for(page, "case_0003.0")
        sync_api.expect(page.locator("#fault")).to_be_hidden()


def test_ten_thousand_cases_are_listed_and_scrolled(browser: Any, tmp_path: Path) -> None:
    folder = write_cases(tmp_path / "cohort", 1)
    (record,) = load_manifest(folder).records
    line = record.to_json()
    lines = [
        line.replace("case_0001", f"case_{n:05d}").replace('"case_index":0', f'"case_index":{n}') for n in range(10_000)
    ]
    (folder / MANIFEST_NAME).write_text("\n".join(lines) + "\n")
    with open_page(browser, ViewOptions(path=folder)) as (page, _):
        page.wait_for_selector(".cell")
        sync_api.expect(page.locator("#count")).to_have_text("10000 of 10000")
        page.evaluate("document.getElementById('scroller').scrollTop = 1e9")
        sync_api.expect(page.locator(".cell b", has_text="case_09999")).to_be_visible()
        assert page.locator(".cell").count() < 100
        page.fill("#f-text", "case_04321")
        sync_api.expect(page.locator("#count")).to_have_text("1 of 10000")


def test_new_cases_and_decisions_of_others_appear_by_themselves(browser: Any, tmp_path: Path) -> None:
    folder = write_cases(tmp_path / "cohort", 1)
    with open_page(browser, ViewOptions(path=folder)) as (page, complaints):
        page.wait_for_selector(".cell")
        with ManifestWriter(folder / MANIFEST_NAME) as writer:
            writer.append(write_case(folder, 1))
        sync_api.expect(page.locator(".cell")).to_have_count(2)
        assert complaints == []


def test_blinded_test_is_read_to_its_end(browser: Any, tmp_path: Path) -> None:
    folder, real = write_cases(tmp_path / "cohort", 1), write_cases(tmp_path / "real", 1)
    options = ViewOptions(path=folder, beside=real, reviewer="anna", is_blind=True, num_images=2)
    with open_page(browser, options) as (page, complaints):
        page.click("#begin")
        for number in range(2):
            wait_for(page, str(number))
            page.keyboard.press("x")
            sync_api.expect(page.locator("#notice")).to_contain_text("Say how sure you are first")
            page.keyboard.press("e")
            page.keyboard.press("x")
        sync_api.expect(page.locator("#done")).to_be_visible()
        assert complaints == []
    readings = load_readings(folder)
    assert [(reading.answer, reading.confidence) for reading in readings] == [("real", 3)] * 2
    assert {reading.truth for reading in readings} == {"real", "synthetic"}
