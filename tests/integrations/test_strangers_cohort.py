"""A cohort from somebody else: whatever its manifest says, nothing is written outside, and the cohort stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.cohort.manifest import MANIFEST_NAME
from maisi_aug.system.whole_files import sha256_of
from tests.builders.tiny_cohort import HEPATIC_TUMOR, write_cohort, write_real_dataset

Row = dict[str, Any]


def named(case_id: str) -> Callable[[list[Row]], None]:
    """The second case gets another id; its files keep their names."""

    def change(rows: list[Row]) -> None:
        rows[1]["case_id"] = case_id

    return change


def stored(path: str) -> Callable[[list[Row]], None]:
    """The second case's image lies elsewhere."""

    def change(rows: list[Row]) -> None:
        rows[1]["files"]["image"]["path"] = path

    return change


def accept_twice(rows: list[Row]) -> None:
    rows.append({**rows[0], "attempt": 1, "files": rows[1]["files"]})


def name_no_file(rows: list[Row]) -> None:
    rows[1]["files"] = {}


ATTACKS: dict[str, Callable[[list[Row]], None]] = {
    "id of another case": named("case_0001"),
    "id in other capitals": named("CASE_0001"),
    "one case accepted twice": accept_twice,
    "id upwards": named("../outside"),
    "id far upwards": named("../../../outside"),
    "id absolute": named("/tmp/outside"),
    "id in a folder": named("deep/inside"),
    "id with a backslash": named("..\\outside"),
    "id that is hidden": named(".case"),
    "id empty": named(""),
    "id that turns the terminal red": named("case\x1b[31m"),
    "id with a line break": named("case\n0002"),
    "id with a script": named("<script>alert(1)</script>"),
    "path upwards": stored("../secret.nii.gz"),
    "path absolute": stored("/etc/passwd"),
    "path with a control character": stored("images/\x1b[2J.nii.gz"),
    "no image": name_no_file,
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("template")
    write_cohort(place / "cohort", [HEPATIC_TUMOR], [HEPATIC_TUMOR])
    write_real_dataset(place / "raw")
    return place


@pytest.fixture
def world(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cohort, a real dataset beside it, a file that is nobody's business, and a folder for results."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    shutil.copytree(template, tmp_path / "world")
    shutil.copy(template / "cohort" / "images" / "case_0002.nii.gz", tmp_path / "world" / "secret.nii.gz")
    (tmp_path / "world" / "out").mkdir()
    return tmp_path / "world"


def rewrite(manifest: Path, change: Callable[[list[Row]], None]) -> None:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    change(rows)
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))


def hash_everything(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths}


def commands(world: Path) -> dict[str, list[Any]]:
    cohort, out = world / "cohort", world / "out"
    new = ["--dataset-id", 501, "--out", out / "raw"]
    like = ["--like", world / "raw" / "Dataset003_Liver", "--preprocessed", out / "preprocessed"]
    return {
        "nnunet": ["export", "nnunet", cohort, *new, "--name", "Syn"],
        "nnunet copies": ["export", "nnunet", cohort, *new, "--name", "Syn", "--copy"],
        "nnunet beside real": ["export", "nnunet", cohort, *new, *like, "--label", "hepatic tumor=tumor"],
        "monai": ["export", "monai", cohort, "--out", out / "monai"],
        "dicom": ["export", "dicom", cohort, "--out", out / "dicom"],
        "report": ["report", cohort, "--out", out / "report.html"],
        "evaluation": ["evaluate", "lesions", cohort, "--out", out / "lesions"],
    }


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_reader_refuses_and_writes_nothing(attack: str, world: Path, run_cli: Callable[..., Any]) -> None:
    pytest.importorskip("highdicom", reason="needs the extra 'dicom'")
    rewrite(world / "cohort" / MANIFEST_NAME, ATTACKS[attack])
    before = hash_everything(world.parent)
    for name, words in commands(world).items():
        outcome = run_cli(*words)
        assert outcome.code == 1, f"{name}: {outcome.stdout}"
        assert f"{MANIFEST_NAME}: expected" in outcome.stderr.replace("\n", ""), f"{name}: {outcome.stderr}"
        assert "\x1b" not in outcome.stderr
        assert hash_everything(world.parent) == before, f"{name} has changed files"


def test_real_dataset_whose_ids_lead_upwards_is_refused(world: Path, run_cli: Callable[..., Any]) -> None:
    path = world / "raw" / "Dataset003_Liver" / "dataset.json"
    description = json.loads(path.read_text())
    files = {"images": ["imagesTr/liver_0_0000.nii.gz"], "label": "labelsTr/liver_0.nii.gz"}
    description |= {"numTraining": 1, "dataset": {"../../../outside": files}}
    path.write_text(json.dumps(description))
    before = hash_everything(world.parent)
    for link in ("hard", "symlink", "none"):
        outcome = run_cli(*commands(world)["nnunet beside real"], "--link", link)
        assert outcome.code == 1
        assert "case names that can be file names" in " ".join(outcome.stderr.split())
        assert hash_everything(world.parent) == before


HOSTILE = "\x1b[2J\u202e<script>alert(1)</script>|\nError: forged \x9b" + "x" * 5000
CONTROLS = {chr(number) for number in (*range(32), *range(127, 160), 0x2028, 0x2029, 0x202E)} - {"\n", "\t"}

TEXTS: dict[str, Callable[[Row], None]] = {
    "request": lambda row: row.update(request=HOSTILE),
    "licence": lambda row: row.update(licence=HOSTILE),
    "bundle": lambda row: row.update(bundle=HOSTILE),
    "reason": lambda row: row.update(reason=HOSTILE),
    "label of a lesion": lambda row: row["lesions"][0].update(label=HOSTILE),
    "modality": lambda row: row["settings"].update(modality=HOSTILE),
    "origin of the map": lambda row: row["mask_origin"].update(source=HOSTILE, base=HOSTILE),
    "verdict": lambda row: row.update(
        verdicts=[{"gate": HOSTILE, "passed": False, "figures": {HOSTILE: HOSTILE}, "message": HOSTILE}]
    ),
}


def require_clean(name: str, words: list[Any], world: Path, run_cli: Callable[..., Any]) -> None:
    """Whether a command takes or refuses it: no control character, no forged line, no script, nothing outside."""
    out = world / "out"
    before = hash_everything(world.parent)
    outcome = run_cli(*words)
    assert "unexpected" not in outcome.stderr, f"{name}: {outcome.stderr}"
    pages = [path for path in out.rglob("*") if path.suffix in (".md", ".html", ".svg")]
    texts = {"stdout": outcome.stdout, "stderr": outcome.stderr}
    texts |= {path.name: path.read_text(encoding="utf-8") for path in pages}
    for place, text in texts.items():
        assert not CONTROLS & set(text), f"{name}: {place}"
        assert not any(line.startswith("Error: forged") for line in text.splitlines()), f"{name}: {place}"
        assert "x" * 5000 not in text, f"{name}: {place}"
        if place.endswith((".html", ".svg")):
            assert "<script>alert" not in text, f"{name}: {place}"
    for path in out.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    shutil.rmtree(out)
    out.mkdir()
    assert hash_everything(world.parent) == before, f"{name} has changed files"


@pytest.mark.parametrize("field", TEXTS)
def test_text_of_a_stranger_comes_out_as_text(field: str, world: Path, run_cli: Callable[..., Any]) -> None:
    rewrite(world / "cohort" / MANIFEST_NAME, lambda rows: TEXTS[field](rows[1]))
    for name in ("monai", "report", "evaluation"):
        require_clean(name, commands(world)[name], world, run_cli)


@pytest.mark.parametrize("name", ["nnunet", "dicom"])
def test_texts_of_a_stranger_are_exported_as_text(name: str, world: Path, run_cli: Callable[..., Any]) -> None:
    pytest.importorskip("highdicom", reason="needs the extra 'dicom'")
    for change in TEXTS.values():
        rewrite(world / "cohort" / MANIFEST_NAME, lambda rows, change=change: change(rows[1]))  # type: ignore[misc]
    require_clean(name, commands(world)[name], world, run_cli)
