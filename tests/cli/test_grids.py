from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.cohort.folder import read_cohort_document
from tests.builders.published_bundle import write_limited_bundle, write_published_bundle

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def rflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NVIDIA's definitions and limits without weights."""
    return write_published_bundle(tmp_path_factory.mktemp("bundles") / "rflow-ct").path


@pytest.fixture
def dry_run(run_cli: Run, rflow: Path) -> Run:
    """A dry run of the published bundle."""
    return lambda *words: run_cli("synthesize", "--labels", "hepatic tumor:0.5", "--bundle", rflow, "--dry-run", *words)


def words_of(outcome: Any) -> str:
    """What it says on stderr, besides that the published bundle has no weights here."""
    pull = "Download it first: maisi-aug bundles pull rflow-ct"
    note = f"Note: rflow-ct is not on this machine yet. {pull}\n"
    return str(outcome.stderr).replace(note, "")


def flat(text: str) -> str:
    """Words, whatever width they were folded to."""
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("words", "title"),
    [
        ([], "256 x 256 x 256 at 1.5 x 1.5 x 1.5 mm"),
        (["--preset", "16g-512x512x128"], "512 x 512 x 128 at 0.75 x 0.75 x 4 mm"),
        (["--preset", "chest-abdomen"], "512 x 512 x 128 at 0.781 x 0.781 x 2.981 mm"),
        (["--preset", "chest", "--spacing", "0.8x0.8x2.5"], "512 x 512 x 128 at 0.8 x 0.8 x 2.5 mm"),
        (["--shape", "512x512x768", "--spacing", "0.75x0.75x0.66667"], "512 x 512 x 768 at 0.75 x 0.75 x 0.66667 mm"),
        (["--shape", "384,384,640", "--spacing", "1.1,1.1,1"], "384 x 384 x 640 at 1.1 x 1.1 x 1 mm"),
    ],
)
def test_grids_that_the_networks_know_pass_in_silence(dry_run: Run, words: list[str], title: str) -> None:
    outcome = dry_run(*words)
    assert (outcome.code, words_of(outcome)) == (0, "")
    assert title in flat(outcome.stdout)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "512x384x128"], "as many voxels along I as along J, found 512x384x128 at 1.5x1.5x1.5 mm"),
        (["--spacing", "4"], "expected a spacing of 0.5 to 3 mm along I and J, found 256x256x256 at 4x4x4 mm"),
        (["--spacing", "1.5x1.5x6"], "expected a spacing of 0.5 to 5 mm along K, found 256x256x256"),
        (["--shape", "250x250x128"], "expected sides that are multiples of 32, found 250x250x128"),
        (["--preset", "chst"], "Did you mean 'chest'"),
    ],
)
def test_grids_that_cannot_work_are_refused_in_a_sentence(dry_run: Run, words: list[str], message: str) -> None:
    outcome = dry_run(*words)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert message in outcome.stderr
    assert outcome.stderr.count("\n") == 1


def test_refusal_offers_flags_that_work(dry_run: Run) -> None:
    offered = dry_run("--shape", "512x384x128", "--spacing", "0.4").stderr.partition("Use ")[2].partition(" (")[0]
    outcome = dry_run(*offered.split())
    assert (outcome.code, words_of(outcome)) == (0, "")


def test_unseen_grid_is_warned_of_unless_all_is_to_be_quiet(dry_run: Run) -> None:
    outcome = dry_run("--shape", "320x320x256")
    assert outcome.code == 0
    assert "Note: Grid for bundle 'rflow-ct': expected 256, 384 or 512 voxels along I and J" in flat(outcome.stderr)
    assert "try --shape 384x384x256 --spacing 1.25x1.25x1.5 (480x480x384 mm)" in flat(outcome.stderr)
    assert words_of(dry_run("--shape", "320x320x256", "--quiet")) == ""
    insisted = dry_run("--shape", "512x384x128", "--allow-unseen-grid")
    assert insisted.code == 0
    assert "Note: Grid for bundle 'rflow-ct': expected as many voxels along I" in flat(insisted.stderr)


def test_recipe_can_insist_and_validate_warns(run_cli: Run, rflow: Path, tmp_path: Path) -> None:
    content = {"labels": ["hepatic tumor:0.5"], "bundle": str(rflow), "shape": [512, 384, 128]}
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(content))
    refused = run_cli("recipes", "validate", path)
    assert (refused.code, "as many voxels along I" in refused.stderr) == (2, True)
    path.write_text(json.dumps({**content, "allow_unseen_grid": True}))
    outcome = run_cli("recipes", "validate", path)
    assert (outcome.code, outcome.stdout) == (0, f"{path}: valid, 4 cases for 1 label request.\n")
    assert "Note: Grid for bundle 'rflow-ct'" in flat(outcome.stderr)


def test_run_with_a_preset_makes_its_grid_and_warns_of_another(run_cli: Run, tmp_path: Path) -> None:
    bundle = write_limited_bundle(tmp_path / "bundle").path
    recipe = tmp_path / "mine.yaml"
    content = {"labels": ["hepatic tumor:30mm"], "bundle": str(bundle), "num_cases": 1}
    recipe.write_text(json.dumps({**content, "gates": {"organ_hu": False, "visibility": False}}))
    words = ["synthesize", "--recipe", recipe, "--device", "cpu", "--preset", "chest"]
    out = tmp_path / "cohort"
    outcome = run_cli(*words, "--out", out)
    assert outcome.code == 0
    assert "Grid for bundle" not in outcome.stderr
    document = read_cohort_document(out)
    assert document is not None
    configuration = document["configuration"]
    assert (configuration["preset"], configuration["shape"]) == ("chest", [64, 64, 48])
    assert configuration["spacing_mm"] == pytest.approx([6.4, 6.4, 6.0])
    warned = run_cli(*words, "--shape", "56x56x48", "--out", tmp_path / "other")
    assert "expected 64 or 80 voxels along I and J" in flat(warned.stderr)


def test_presets_are_listed(run_cli: Run) -> None:
    outcome = run_cli("bundles", "presets")
    assert (outcome.code, outcome.stderr) == (0, "")
    for text in (
        "35 presets",
        "16g-256x256x256",
        "16 GB (up to 15.4)",
        "0.684x0.684x2.422",
        "80x80x96",
        "[1] NV-Gener",
    ):
        assert text in outcome.stdout
    rows = {row["name"]: row for row in json.loads(run_cli("bundles", "presets", "--json").stdout)}
    assert len(rows) == 35
    assert sum(row["bundles"] == ["rflow-ct", "ddpm-ct"] for row in rows.values()) == 18
    assert rows["chest"]["extent_mm"] == pytest.approx([350.2, 350.2, 310.0], abs=0.1)
    assert rows["24g-256x256x256"]["decode_window"] is None
    assert rows["chest"]["bundles"] == ["rflow-ct", "ddpm-ct"]


def test_presets_of_one_bundle_are_listed(run_cli: Run, rflow: Path) -> None:
    rows = json.loads(run_cli("bundles", "presets", rflow, "--json").stdout)
    assert (len(rows), rows[0]["bundles"]) == (18, ["rflow-ct"])
    none = run_cli("bundles", "presets", "phantom-ct")
    assert (none.code, none.stdout.startswith("phantom-ct: no presets")) == (0, True)


def test_bundle_shows_the_grids_it_has_seen(run_cli: Run, rflow: Path) -> None:
    text = run_cli("bundles", "show", rflow).stdout
    assert "  grids seen: 256, 384 or 512 voxels of 0.5 to 3 mm along I and J; 128, 256, " in text
    assert json.loads(run_cli("bundles", "show", rflow, "--json").stdout)["grid_limits"]["needs_square_slices"]
