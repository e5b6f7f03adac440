from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maisi_aug.cohort.manifest import MANIFEST_NAME, ManifestWriter
from maisi_aug.errors import BenchmarkError, EvaluationError
from maisi_aug.evaluation.benchmark.run import SCORES_NAME, Benchmark, open_benchmark, run_arm
from maisi_aug.evaluation.output.charts import DotRow, draw_dot_chart
from maisi_aug.evaluation.report import page
from maisi_aug.evaluation.report.build import build_report, write_report
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_label_map
from tests.builders.tiny_benchmark import build_config
from tests.builders.tiny_cohort import HEPATIC_TUMOR, write_cohort
from tests.conftest import Outcome

VOID = {"meta", "link", "img", "br", "hr", "wbr", "input", "rect", "line", "circle"}


class PageChecker(HTMLParser):
    """Collects what a page asks for and whether its elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.scripts = 0
        self.images_without_words = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [str(values[name]) for name in ("src", "href", "xlink:href") if name in values]
        self.scripts += tag == "script" or any(name.startswith("on") for name in values)
        self.images_without_words += tag == "img" and not values.get("alt")
        if "id" in values:
            self.anchors.add(str(values["id"]))
        if tag == "a":
            self.links.add(str(values["href"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def check_page(html: str) -> PageChecker:
    checker = PageChecker()
    checker.feed(html)
    assert checker.open == []
    assert checker.scripts == 0
    assert checker.images_without_words == 0
    assert all(address.startswith(("#", "data:")) for address in checker.addresses)
    assert {link.removeprefix("#") for link in checker.links} <= checker.anchors
    assert not re.search(r"@import|url\(", html)
    return checker


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    folder = tmp_path_factory.mktemp("report")
    config = build_config(folder, arms=("real", "real+synthetic:1", "real-duplicated"))
    benchmark = open_benchmark(folder / "bench", config)
    for state in benchmark.states:
        run_arm(benchmark, state.arm, state.seed, device="cpu")
    return benchmark


def test_benchmark_becomes_one_page_without_network(finished: Benchmark, tmp_path: Path) -> None:
    report = build_report(finished.folder)
    check_page(report.html)
    for words in ("Did the synthetic cases help?", "Verdicts", "Dice by arm", "Lesions by size", "Slices"):
        assert words in report.html
    assert report.html.count("data:image/jpeg;base64,") == 3 * (1 + 3)
    files = write_report(report, tmp_path / "out" / "report.html")
    assert [file.name for file in files] == ["report.html", "report.json", "report.md"]
    assert json.loads(files[1].read_text())["kind"] == "benchmark"
    assert "## Verdicts" in files[2].read_text()


def test_unfinished_arm_is_named_and_the_rest_is_there(finished: Benchmark, tmp_path: Path) -> None:
    bench = tmp_path / "bench"
    shutil.copytree(finished.folder, bench)
    folder = bench / "arms" / "real+synthetic_1" / "seed-0"
    (folder / SCORES_NAME).unlink()
    (folder / "failure.json").write_text(json.dumps({"reason": "the <disk> is full"}))
    html = build_report(bench).html
    check_page(html)
    assert "real+synthetic:1, seed 0: failed: the &lt;disk&gt; is full" in html
    assert "real-duplicated against real" in html


@pytest.fixture(scope="module")
def finished_twice(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """Two trainings of two arms."""
    folder = tmp_path_factory.mktemp("twice")
    benchmark = open_benchmark(folder / "bench", build_config(folder, arms=("real", "real-duplicated"), num_seeds=2))
    for state in benchmark.states:
        run_arm(benchmark, state.arm, state.seed, device="cpu")
    return benchmark


@pytest.mark.parametrize("damage", ["torn", "another shape"])
def test_damaged_prediction_is_named_and_the_rest_is_there(finished: Benchmark, tmp_path: Path, damage: str) -> None:
    bench = tmp_path / "bench"
    shutil.copytree(finished.folder, bench)
    for path in (bench / "arms" / "real" / "seed-0" / "predictions").iterdir():
        if damage == "torn":
            path.write_bytes(path.read_bytes()[:100])
        else:
            save_label_map(path, np.zeros((3, 4, 5), np.uint8), Grid.from_spacing((3, 4, 5), (1.0, 1.0, 1.0)))
    html = build_report(bench).html
    check_page(html)
    assert html.count("data:image/jpeg;base64,") == 3 * (1 + 2)
    assert len(set(re.findall(r"(case_\d+), real: ", html))) == 3
    assert "Method" in html


@pytest.mark.parametrize("damage", ["text", "no labels", "no patient", "no lesions", "a case is missing"])
def test_damaged_scores_are_named_and_another_training_is_shown(
    finished_twice: Benchmark, tmp_path: Path, damage: str
) -> None:
    bench = tmp_path / "bench"
    shutil.copytree(finished_twice.folder, bench)
    path = bench / "arms" / "real" / "seed-0" / SCORES_NAME
    scores = json.loads(path.read_text())
    if damage == "no labels":
        del scores["cases"][0]["labels"]
    if damage == "no patient":
        del scores["cases"][0]["patient"]
    if damage == "no lesions":
        del scores["cases"][0]["labels"]["tumor"]["lesions"]
    if damage == "a case is missing":
        del scores["cases"][0]
    path.write_text("{" if damage == "text" else json.dumps(scores))
    report = build_report(bench)
    check_page(report.html)
    assert [(row["arm"], row["seed"]) for row in report.document["failures"]] == [("real", 0)]
    assert "real, seed 0: failed: " in report.html
    assert f"{path}: the scores of this arm are" in report.html
    assert report.html.count("data:image/jpeg;base64,") == 3 * (1 + 2)
    assert "real-duplicated against real" in report.html


def test_benchmark_without_any_finished_arm_has_a_page(finished: Benchmark, tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    shutil.copy(finished.folder / "benchmark.json", tmp_path / "bench")
    html = build_report(tmp_path / "bench").html
    check_page(html)
    assert "there is nothing to compare" in html


def write_pictured_cohort(folder: Path) -> Path:
    """Two cases, one of them rejected, each with a picture."""
    write_cohort(folder, [HEPATIC_TUMOR], [HEPATIC_TUMOR])
    manifest = folder / MANIFEST_NAME
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        Image.new("RGB", (40, 30), "grey").save(folder / f"{row['case_id']}.png")
        row["files"]["preview"] = {"path": f"{row['case_id']}.png", "sha256": "0" * 64}
    rows[1] |= {"status": "rejected", "reason": "lesion size: 3 mL <found>."}
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_cohort_becomes_a_page_with_pictures_and_licences(tmp_path: Path) -> None:
    folder = write_pictured_cohort(tmp_path / "cohort")
    report = build_report(folder)
    check_page(report.html)
    assert report.document["num_accepted"] > 0
    assert report.document["provenance"][0]["licence"] in report.html
    assert report.document["hu"] is not None
    assert "HU by organ" in report.html
    assert "## Provenance" in report.markdown
    assert report.html.count("data:image/jpeg;base64,") == 2
    assert report.html.count("3 mL &lt;found&gt;") == 2


def test_cases_that_cannot_be_read_are_named_on_the_page(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR], [HEPATIC_TUMOR])
    image = folder / "images" / "case_0002.nii.gz"
    image.write_bytes(image.read_bytes()[:200])
    report = build_report(folder)
    check_page(report.html)
    assert [row["case"] for row in report.document["hu"]["skipped"]] == ["case_0002"]
    assert report.html.count("case_0002 could not be measured. ") == 1
    assert "HU by organ" in report.html


def test_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = write_pictured_cohort(tmp_path / "cohort")
    (folder / "case_0001.png").write_bytes(b"torn")
    report = build_report(folder)
    check_page(report.html)
    assert f"case_0001: the picture {folder / 'case_0001.png'} cannot be read." in report.html


def test_unfinished_cohort_is_held_against_its_plan(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR])
    (folder / "cohort.yaml").write_text("configuration:\n  num_cases: 2\n")
    report = build_report(folder)
    check_page(report.html)
    assert report.document["num_cases"] == 2
    assert "1 of 2 cases accepted" in report.html
    for text in (report.html, report.markdown):
        assert "1 of 2 planned cases have not been made yet" in text
    (folder / "cohort.yaml").unlink()
    assert "1 of 1 case accepted" in build_report(folder).html


def test_cohort_that_is_being_written_has_a_page(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR])
    writer = ManifestWriter(folder / MANIFEST_NAME)
    try:
        report = build_report(folder)
    finally:
        writer.close()
    assert "HU and visibility were not measured." in report.html
    assert "another process is still writing this cohort" in report.html


@pytest.mark.parametrize("content", ["{", "{}", '{"planes": {}}'])
def test_fid_figures_that_are_none_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "fid.json").write_text(content)
    with pytest.raises(EvaluationError, match="not fid.json as 'maisi-aug evaluate fid --out' writes it:"):
        build_report(write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR]), fid_file=tmp_path / "fid.json")


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="neither a benchmark"):
        build_report(tmp_path)


def test_words_from_files_are_escaped() -> None:
    html = page.build_page("<b>", "a & b", [page.Section("One <two>", page.paragraph("<script>alert(1)</script>"))])
    check_page(html)
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_empty_sections_are_left_out() -> None:
    html = page.build_page("t", "l", [page.Section("Here", "<p>x</p>"), page.Section("Gone", "")])
    assert "Here" in html
    assert "Gone" not in html


@pytest.mark.parametrize(
    ("row", "left"), [(page.IntervalRow("a", 0.25, 0.0, 0.5), 25), (page.IntervalRow("a", 7.0, 0.0, 9.0), 100)]
)
def test_intervals_lie_where_their_values_are(row: page.IntervalRow, left: int) -> None:
    html = page.intervals([row], low=0.0, high=1.0, unit="Dice")
    assert f'class="dot" style="left:{left}.00%"' in html
    assert "no figures" in page.intervals([page.IntervalRow("a", None)], low=0.0, high=1.0, unit="Dice")


def test_charts_take_the_colours_of_the_page() -> None:
    svg = draw_dot_chart("t", [DotRow("a", centre=1.0, interval=(0.5, 2.0), band=(0, 3))], axis="x")
    html = page.chart(svg, caption="c")
    assert "#" not in re.sub(r"&#\d+;", "", html)
    assert html.count("var(--") > 5
    style = Path(page.__file__).with_name(page.STYLE_NAME).read_text()
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", html)) <= set(re.findall(r"(--[a-z0-9-]+):", style))


def test_pictures_are_inside_the_page() -> None:
    html = page.picture(Image.new("RGB", (8, 6)), alt='a "b"', caption="c")
    assert 'width="8" height="6"' in html
    assert "&quot;b&quot;" in html


@pytest.mark.parametrize(
    ("text", "kind"),
    [("gain", "gain"), ("no gain", "none"), ("no gain (a loss)", "loss"), ("undecided at this size", "undecided")],
)
def test_verdicts_are_words_before_they_are_colours(text: str, kind: str) -> None:
    assert page.verdict(text) == f'<span class="verdict {kind}">{text}</span>'


def test_command_line_writes_page_figures_and_summary(
    finished: Benchmark, tmp_path: Path, run_cli: Callable[..., Outcome]
) -> None:
    done = run_cli("report", finished.folder, "--out", tmp_path / "r.html")
    assert done.code == 0, done.stderr
    assert [Path(line).name for line in done.stdout.splitlines()] == ["r.html", "r.json", "r.md"]
    printed = run_cli("report", finished.folder, "--out", tmp_path / "r.html", "--json")
    figures: dict[str, Any] = json.loads(printed.stdout)
    assert figures["labels"] == ["liver", "tumor"]
    refused = run_cli("report", finished.folder, "--out", tmp_path / "r.pdf")
    assert refused.code == 2
    assert "the file name must end in .html, found '" in " ".join(refused.stderr.split())


def test_page_never_replaces_a_file_that_is_no_report(
    finished: Benchmark, tmp_path: Path, run_cli: Callable[..., Outcome]
) -> None:
    """The plan of the benchmark, a dataset's description, somebody's README."""
    bench = shutil.copytree(finished.folder, tmp_path / "bench")
    (tmp_path / "dataset.json").write_text('{"labels": {}}')
    (tmp_path / "README.md").write_text("mine")
    for page_name, kept in (
        ("bench/benchmark.html", "bench/benchmark.json"),
        ("dataset.html", "dataset.json"),
        ("README.html", "README.md"),
    ):
        before = (tmp_path / kept).read_bytes()
        files = sorted(tmp_path.rglob("*"))
        refused = run_cli("report", bench, "--out", tmp_path / page_name)
        assert refused.code == 1
        assert f"{tmp_path / kept}: {Path(page_name).name} needs to write this file" in refused.stderr
        assert (tmp_path / kept).read_bytes() == before
        assert sorted(tmp_path.rglob("*")) == files
        with pytest.raises(EvaluationError, match="Choose another --out"):
            write_report(build_report(bench), tmp_path / page_name)


def test_earlier_report_is_replaced(finished: Benchmark, tmp_path: Path) -> None:
    report = build_report(finished.folder)
    write_report(report, tmp_path / "r.html")
    (tmp_path / "r.md").write_text("older")
    assert write_report(report, tmp_path / "r.html")[2].read_text() == report.markdown


@pytest.mark.slow
def test_browser_opens_the_page_without_an_error_or_a_request(finished: Benchmark, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("headless browser: expected chromium, not found")
    target = write_report(build_report(finished.folder), tmp_path / "report.html")[0]
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--log-level=0", "--dump-dom"]
    done = subprocess.run([browser, *flags, target.as_uri()], capture_output=True, text=True, timeout=300)
    assert "Method" in done.stdout
    assert "CONSOLE" not in done.stderr


@pytest.mark.slow
def test_widest_tables_fit_a_window_of_1300_pixels(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("headless browser: expected chromium, not found")
    verdicts = page.table(
        ["label", "verdict", "difference, 95% interval", "p, Holm", "smallest gain", "patients", "trainings"],
        [
            [
                "colon cancer primaries",
                page.verdict("undecided: neither arm finds it"),
                *("-0.02 (-0.05 to +0.01)", "0.031", "0.024", "14", "3 and 3"),
            ]
        ],
        caption="Verdicts",
        words=(1,),
    )
    arms = ["real", "real+synthetic:0.5", "real+synthetic:1", "real-duplicated", "synthetic-only", "copy-paste:1"]
    row = ["colon cancer primaries, NSD at 2 mm", *["0.65 (0.60 to 0.70)"] * len(arms)]
    scores = page.table(["label and metric", *arms], [row], caption="Scores")
    origin = ["phantom-ct", "0123456789abcdef", "NVIDIA Open Model License", "plant", "/data/masks" * 20, "200"]
    provenance = page.table(
        ["bundle", "weights", "licence", "by", "of", "cases"], [origin], caption="", words=(1, 2, 3, 4)
    )
    html = page.build_page("Wide", "Tables", [page.Section("Tables", verdicts + scores + provenance)])
    probe = (
        "<script>document.title = 'widths ' + [...document.querySelectorAll('.scroll')]"
        ".map(part => part.scrollWidth - part.clientWidth).join(' ')</script></body>"
    )
    path = tmp_path / "wide.html"
    path.write_text(re.sub(r"<meta http-equiv[^>]*>", "", html).replace("</body>", probe), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,900", "--dump-dom"]
    done = subprocess.run([browser, *flags, path.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    assert "<title>widths 0 0 0</title>" in done.stdout
