from __future__ import annotations

import gzip
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("starlette", reason="needs the extra 'view'")
pytest.importorskip("httpx", reason="the test client needs httpx")
from starlette.testclient import TestClient

from maisi_aug.cohort.manifest import MANIFEST_NAME, ManifestWriter
from maisi_aug.cohort.review import REVIEW_NAME
from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.report.page import Section, build_page, picture
from maisi_aug.evaluation.review.cases import FolderCases, Partners, Predictions, ShownCase, open_cases
from maisi_aug.evaluation.review.desk import Desk
from maisi_aug.evaluation.review.server import PAGE, build_app, read_report
from maisi_aug.evaluation.review.volumes import FolderFiles
from tests.builders.tiny_benchmark import LABELS, write_dataset
from tests.builders.tiny_cohort import HEPATIC_TUMOR, LUNG_TUMOR, save_case, write_cohort
from tests.builders.tiny_prepared import write_prepared

TOKEN = "s3cret"


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR], [LUNG_TUMOR])


def open_client(
    folder: Path,
    *,
    reviewer: str = "anna",
    beside: Path | None = None,
    predictions: Path | None = None,
    report: Path | None = None,
) -> TestClient:
    source, partners = open_cases(folder), Partners(beside)
    beside_files = None if partners.source is None else FolderFiles(partners.source.path, folder.parent / "beside")
    predicted = None if predictions is None else Predictions(predictions)
    files = FolderFiles(source.path, folder.parent / "scratch")
    desk = Desk(source, files, partners, reviewer=reviewer, predictions=predicted)
    desk.refresh()
    predicted_files = None if predictions is None else FolderFiles(predictions, folder.parent / "scratch")
    app = build_app(desk, TOKEN, beside_files=beside_files, predicted_files=predicted_files, report=report)
    return TestClient(app, base_url=f"http://127.0.0.1/{TOKEN}/", raise_server_exceptions=False)


@pytest.fixture
def client(cohort: Path) -> Iterator[TestClient]:
    with open_client(cohort) as opened:
        yield opened


def rows_of(client: TestClient, since: int = 0) -> dict[str, Any]:
    state = client.get(f"api/state?since={since}").json()
    return {row["key"]: row for row in state["rows"]}


def test_cases_are_listed_with_what_filters_need(client: TestClient) -> None:
    rows = rows_of(client)
    assert list(rows) == ["case_0001.0", "case_0002.0"]
    assert rows["case_0002.0"]["labels"] == ["lung tumor"]
    assert rows["case_0001.0"]["has"] == ["anatomy", "image", "label"]
    assert rows["case_0001.0"]["mine"] is None


def test_case_is_described_with_volumes_and_names_and_colours_of_labels(client: TestClient) -> None:
    case = client.get("api/case/case_0001.0").json()
    assert set(case["volumes"]) == {"image", "anatomy", "label"}
    labels = {label["name"]: label for label in case["labels"]}
    assert labels["liver"]["id"] == 1
    assert labels["hepatic tumor"]["lesion"]
    assert not labels["liver"]["lesion"]
    assert case["origin"]["source"] == "plant"


def test_volume_is_sent_whole_or_in_ranges(client: TestClient, cohort: Path) -> None:
    address = client.get("api/case/case_0001.0").json()["volumes"]["image"]
    content = (cohort / "images/case_0001.nii.gz").read_bytes()
    whole = client.get(address)
    assert (whole.status_code, whole.content) == (200, content)
    part = client.get(address, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content[10:20])


@pytest.mark.parametrize("path", ["", "page/review.js", "api/state", "file/case_0001.0/image.nii.gz"])
@pytest.mark.parametrize("token", ["", "wrong", "s3cre", "s3cret%00"])
def test_address_without_the_token_is_refused(client: TestClient, path: str, token: str) -> None:
    answer = client.get(f"http://127.0.0.1/{token}/{path}")
    assert answer.status_code == 403
    assert "case_0001" not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example"},
        {"Host": "evil.example:80", "Origin": "http://evil.example:80"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
    ],
)
def test_another_page_or_name_is_refused_even_with_the_token(
    client: TestClient, cohort: Path, headers: dict[str, str]
) -> None:
    assert client.get("api/state", headers=headers).status_code == 403
    body = {"key": "case_0001.0", "choice": "reject"}
    assert client.post("api/decide", json=body, headers=headers).status_code == 403
    assert not (cohort / REVIEW_NAME).exists()


def test_page_may_be_opened_by_a_link(client: TestClient) -> None:
    answer = client.get("", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "file/../../secret.txt",
        "file/..%2f..%2fsecret/image.nii.gz",
        "file/case_0001.0/..%2f..%2f..%2fsecret.txt",
        "file/case_0001.0/preview.png",
        "file/case_0009.0/image.nii.gz",
        "page/..%2fserver.py",
        "page/server.py",
        "page/../server.py",
        "beside/c0/image.nii.gz/..",
        "test/0/image.nii.gz",
    ],
)
def test_nothing_outside_of_the_folder_is_sent(client: TestClient, cohort: Path, path: str) -> None:
    (cohort.parent / "secret.txt").write_text("secret words")
    answer = client.get(path)
    assert answer.status_code in (403, 404)
    assert "secret words" not in answer.text
    assert "import" not in answer.text


def test_link_that_leads_out_is_refused(client: TestClient, cohort: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.nii.gz"
    shutil.move(cohort / "images/case_0001.nii.gz", outside)
    (cohort / "images/case_0001.nii.gz").symlink_to(outside)
    answer = client.get("file/case_0001.0/image.nii.gz")
    assert answer.status_code == 404
    assert "a link leads out of" in answer.json()["error"]


def test_volume_that_is_gone_is_said(client: TestClient, cohort: Path) -> None:
    (cohort / "images/case_0001.nii.gz").unlink()
    assert client.get("api/case/case_0001.0").status_code == 200
    assert "not found in" in client.get("file/case_0001.0/image.nii.gz").json()["error"]


def test_decisions_are_kept_and_taken_back(client: TestClient, cohort: Path) -> None:
    body = {"key": "case_0001.0", "choice": "reject", "reason": "artefact"}
    assert client.post("api/decide", json=body).status_code == 200
    assert rows_of(client)["case_0001.0"]["mine"] == {"choice": "reject", "reason": "artefact"}
    with open_client(cohort) as again:
        assert rows_of(again)["case_0001.0"]["mine"]["choice"] == "reject"
    assert client.post("api/undo", json={}).json() == {"key": "case_0001.0"}
    assert rows_of(client)["case_0001.0"]["mine"] is None
    assert client.post("api/undo", json={}).json() == {"key": None}


def test_two_pages_see_each_others_decisions_as_changes(client: TestClient, cohort: Path) -> None:
    revision = client.get("api/state").json()["revision"]
    assert rows_of(client, revision) == {}
    with open_client(cohort, reviewer="ben") as other:
        other.post("api/decide", json={"key": "case_0002.0", "choice": "reject", "reason": "artefact"})
    (row,) = rows_of(client, revision).values()
    assert row["mine"] is None
    assert row["others"] == [{"choice": "reject", "reason": "artefact", "reviewer": "ben"}]


@pytest.mark.parametrize(
    "body",
    [
        {"key": "case_0001.0", "choice": "maybe"},
        {"key": "case_0001.0", "choice": "undo"},
        {"key": "case_0001.0", "choice": "reject", "reason": "x" * 501},
        {"key": "case_0009.0", "choice": "reject"},
        {"choice": "reject"},
        ["reject"],
        {"key": "case_0001.0", "choice": "reject", "reason": "x" * 30_000},
    ],
)
def test_decision_of_another_form_is_refused(client: TestClient, cohort: Path, body: Any) -> None:
    assert client.post("api/decide", json=body).status_code == 404
    assert not (cohort / REVIEW_NAME).exists()


def test_full_disk_while_deciding_is_said_and_loses_nothing(
    client: TestClient, cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post("api/decide", json={"key": "case_0001.0", "choice": "accept"})
    before = (cohort / REVIEW_NAME).read_bytes()

    def refuse(descriptor: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("maisi_aug.system.whole_files.os.write", refuse)
        answer = client.post("api/decide", json={"key": "case_0002.0", "choice": "reject"})
    assert answer.status_code == 507
    assert "the disk is full" in answer.json()["error"]
    assert (cohort / REVIEW_NAME).read_bytes() == before
    assert client.post("api/decide", json={"key": "case_0002.0", "choice": "reject"}).status_code == 200


def test_cohort_that_grows_meanwhile_shows_its_new_cases(client: TestClient, cohort: Path) -> None:
    state = client.get("api/state").json()
    assert not state["isGrowing"]
    with ManifestWriter(cohort / MANIFEST_NAME) as writer:
        writer.append(save_case(cohort, 2, [HEPATIC_TUMOR]))
        grown = client.get(f"api/state?since={state['revision']}").json()
    assert [row["key"] for row in grown["rows"]] == ["case_0003.0"]
    assert grown["isGrowing"]
    assert client.get("file/case_0003.0/image.nii.gz").status_code == 200


def test_damaged_line_of_the_manifest_is_said(client: TestClient, cohort: Path) -> None:
    with (cohort / MANIFEST_NAME).open("a") as file:
        file.write("no record\n")
    answer = client.get("api/state")
    assert answer.status_code == 500
    assert "on line 3" in answer.json()["error"]


def test_small_picture_is_drawn_where_there_is_no_preview(client: TestClient) -> None:
    answer = client.get("thumb/case_0001.0")
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.content.startswith(b"\xff\xd8")


def test_small_picture_of_a_large_volume_is_drawn_from_one_slice_of_it(
    cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maisi_aug.evaluation.review.volumes.MAX_THUMB_VOXELS", 10)
    for name in ("load_image", "load_label_map"):
        monkeypatch.setattr(f"maisi_aug.evaluation.review.volumes.{name}", None)
    with open_client(cohort) as client:
        assert client.get("thumb/case_0001.0").status_code == 200
    (image,) = (cohort / "images").glob("case_0002*")
    image.write_bytes(image.read_bytes()[:100])
    with open_client(cohort) as client:
        assert client.get("thumb/case_0002.0").status_code == 204


def test_small_pictures_are_drawn_while_another_one_takes_long(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_cases(cohort)
    first, second = source.read_on()
    files = FolderFiles(source.path, cohort.parent / "scratch")
    draw, begun, may_end = FolderFiles._draw, threading.Event(), threading.Event()

    def draw_slowly(self: FolderFiles, case: ShownCase) -> Any:
        if case is first:
            begun.set()
            assert may_end.wait(60)
        return draw(self, case)

    monkeypatch.setattr(FolderFiles, "_draw", draw_slowly)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(files.thumb, first)
        assert begun.wait(60)
        assert files.thumb(second).startswith(b"\xff\xd8")
        assert not slow.done()
        may_end.set()
        assert slow.result() == files.thumb(first)


def test_pictures_of_a_report_lead_to_their_cases(cohort: Path, tmp_path: Path) -> None:
    html = build_page(
        "Cohort",
        "Two cases.",
        [Section("Cases", picture(Image.new("RGB", (8, 8)), alt="Slices", caption="One", case="case_0001.0"))],
    )
    assert "#case=" not in html  # opened as a file, no server may run
    path = tmp_path / "report.html"
    path.write_text(html)
    with open_client(cohort, report=path) as client:
        assert client.get("api/state").json()["hasReport"]
        answer = client.get("report")
        assert answer.status_code == 200
        assert '<a href="./#case=case_0001.0"><img ' in answer.text
        assert (
            answer.text.replace('<a href="./#case=case_0001.0">', "", 1).replace("</a><figcaption>", "<figcaption>")
            == html
        )
    with open_client(cohort) as client:
        assert not client.get("api/state").json()["hasReport"]
        assert client.get("report").status_code == 404


@pytest.mark.parametrize("content", [None, b"no page", b"\xff\xfe"])
def test_file_that_is_no_report_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "report.html"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EvaluationError, match=r"report.html: (cannot be read as|is not) a report of maisi-aug"):
        read_report(path)


def test_case_is_looked_at_beside_the_one_it_came_from(tmp_path: Path) -> None:
    real = write_dataset(tmp_path / "Dataset001_Real", 2)
    image = sorted((real / "imagesTr").iterdir())[0]
    origin = {"source": "insertion", "background": "x", "image": str(image)}
    folder = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR], mask_origin=origin)
    with open_client(folder, beside=real) as client:
        (beside,) = client.get("api/case/case_0001.0").json()["beside"]
        assert beside["title"].startswith("before insertion: ")
        assert client.get(beside["volumes"]["image"]).content == image.read_bytes()
    with open_client(folder) as client:  # a folder that was not named stays closed
        assert client.get("api/case/case_0001.0").json()["beside"] == []


def test_twins_are_shown_side_by_side(tmp_path: Path) -> None:
    folder = tmp_path / "cohort"
    folder.mkdir()
    with ManifestWriter(folder / MANIFEST_NAME) as writer:
        for index, value in enumerate(("6mm", "10mm", "6mm")):
            twins = {"group": index // 2, "factor": "size", "value": value}
            writer.append(save_case(folder, index, [HEPATIC_TUMOR], mask_origin={"source": "x", "twins": twins}))
    with open_client(folder) as client:
        (twin,) = client.get("api/case/case_0001.0").json()["beside"]
        assert twin["title"] == "twin case_0002, size 10mm"
        assert client.get("api/case/case_0003.0").json()["beside"] == []


def test_predictions_are_shown_on_the_same_image(tmp_path: Path) -> None:
    real, predictions = write_dataset(tmp_path / "Dataset001_Real", 2), tmp_path / "predictions"
    predictions.mkdir()
    shutil.copy(real / "labelsTr/case_001.nii.gz", predictions / "case_000.nii.gz")
    with open_client(real, predictions=predictions) as client:
        first, second = (client.get(f"api/case/{key}").json() for key in rows_of(client))
        (predicted,) = first["beside"]
        assert predicted["title"] == "prediction"
        assert predicted["volumes"]["image"] == first["volumes"]["image"]
        assert predicted["labels"] == first["labels"]
        assert client.get(predicted["volumes"]["label"]).content == (predictions / "case_000.nii.gz").read_bytes()
        assert second["beside"] == []
        assert client.get("predicted/c1/label.nii.gz").status_code == 404
    with pytest.raises(EvaluationError, match="folder of predicted label maps not found"):
        Predictions(tmp_path / "nothing")


def test_dataset_of_nnunet_is_shown_with_its_own_labels(tmp_path: Path) -> None:
    real = write_dataset(tmp_path / "Dataset001_Real", 2)
    with open_client(real) as client:
        state = client.get("api/state").json()
        assert len(state["rows"]) == len(list((real / "imagesTr").iterdir()))
        case = client.get(f"api/case/{state['rows'][0]['key']}").json()
        assert [(label["name"], label["lesion"]) for label in case["labels"]] == [
            (name, "tumor" in name) for name in LABELS if name != "background"
        ]
        assert gzip.decompress(client.get(case["volumes"]["label"]).content)


def test_prepared_folder_is_shown_with_its_new_labels(tmp_path: Path) -> None:
    with open_client(write_prepared(tmp_path / "prepared", num_cases=2)) as client:
        assert client.get("api/state").json()["kind"] == "prepared folder"
        rows = rows_of(client)
        assert [row["id"] for row in rows.values()] == ["p0", "p1"]
        case = client.get(f"api/case/{next(iter(rows))}").json()
        assert {"gland", "bright nodule", "liver"} <= {label["name"] for label in case["labels"]}
        assert all(client.get(address).status_code == 200 for address in case["volumes"].values())


def test_bank_of_label_maps_alone_is_shown(cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(cohort / "anatomy", tmp_path / "bank" / "labels")
    with open_client(tmp_path / "bank") as client:
        rows = rows_of(client)
        assert [row["has"] for row in rows.values()] == [["label"], ["label"]]
        assert client.get(f"thumb/{next(iter(rows))}").status_code == 200


def test_folder_with_nothing_to_look_at_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no CT volumes"):
        FolderCases(tmp_path)


def test_page_loads_nothing_from_elsewhere_and_its_library_has_its_licence() -> None:
    for path in PAGE.iterdir():
        if path.suffix in (".html", ".css") or path.name in ("review.js", "grid.js", "viewer.js", "reader_test.js"):
            text = path.read_text(encoding="utf-8")
            assert "http://" not in text
            assert "https://" not in text
    assert "BSD 2-Clause" in (PAGE / "niivue-LICENSES.txt").read_text(encoding="utf-8")


def test_every_address_of_the_page_is_answered(client: TestClient) -> None:
    for path in PAGE.iterdir():
        assert client.get(f"page/{path.name}").status_code == 200
