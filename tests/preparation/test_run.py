from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from maisi_aug.errors import PreparationError
from maisi_aug.preparation.prepared import load_prepared
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.vocabulary.labels import BODY_ID
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_image, load_label_map, save_image, save_label_map
from tests.builders.tiny_bank import SPLEEN, build_ct, build_trunk, trunk_grid
from tests.builders.tiny_lab import GRID_WORDS, SHAPE, SPACING_MM, build_own_labels, write_lab

Run = Callable[..., Any]
RULES = ["--map", "1=node@liver", "--map", "2=liver"]


@pytest.fixture
def prepare(run_cli: Run, tmp_path: Path) -> Run:
    def call(lab: Path, *words: str | Path, out: Path = tmp_path / "out", folds: int = 3) -> Any:
        sources = ["--images", lab, "--labels", lab]
        return run_cli(
            "prepare", *sources, "--out", out, *GRID_WORDS, "--folds", folds, "--workers", "1", *RULES, *words
        )

    return call


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A lab of three patients and its prepared folder."""
    from maisi_aug.cli.app import run

    folder = tmp_path_factory.mktemp("prepared")
    lab = write_lab(folder / "lab", 3)
    words = ["prepare", "--images", str(lab), "--labels", str(lab), "--out", str(folder / "out"), "--folds", "3"]
    assert run([*words, *GRID_WORDS, *RULES, "--workers", "1", "--patients", "^(p[0-9]+)_", "--quiet"]) == 0
    return lab, folder / "out"


def test_folder_describes_its_cases(prepared: tuple[Path, Path]) -> None:
    lab, out = prepared
    dataset = load_prepared(out)
    assert dataset.spec.labels == {"liver": 1, "node": 2, "body": BODY_ID}
    assert dataset.spec.new_labels["node"].hosts == (1,)
    assert dataset.vocabulary.label("node").kind == "tumor"
    assert (dataset.spec.grid.shape, dataset.spec.grid.spacing_mm) == (SHAPE, SPACING_MM)
    assert [(case.id, case.patient) for case in dataset.cases] == [(f"p{n}_a", f"p{n}") for n in (1, 2, 3)]
    assert sorted(case.fold for case in dataset.cases) == [0, 1, 2]
    for case in dataset.cases:
        image, label_map = (dataset.file_of("image", case.id), dataset.file_of("label", case.id))
        assert (sha256_of(image), sha256_of(label_map)) == (case.image_sha256, case.label_sha256)
        array = load_label_map(label_map).array
        assert case.voxels == {int(i): int((array == i).sum()) for i in np.unique(array)}
        assert load_image(image).array.shape == case.shape == SHAPE
        assert dataset.file_of("preview", case.id).is_file()
        assert case.image_source == str(lab / f"{case.id}_ct.nii.gz")


def test_summary_shows_volumes_and_hu(prepared: tuple[Path, Path]) -> None:
    _, out = prepared
    summary = json.loads((out / "summary.json").read_text())
    assert summary["folds"] == [{"fold": fold, "cases": 1, "patients": 1} for fold in range(3)]
    rows = {row["name"]: row for row in summary["labels"]}
    assert rows["node"]["is_new"]
    assert rows["node"]["cases"] == 3
    own_ml = [(build_own_labels(seed=seed) == 1).sum() * trunk_grid().voxel_ml for seed in (1, 2, 3)]
    assert rows["node"]["ml_median"] == pytest.approx(float(np.median(own_ml)), rel=0.1)
    assert rows["liver"]["hu_percentiles_5_50_95"][1] == 60
    text = (out / "summary.md").read_text()
    assert "| 2 | node | yes | 3 |" in text
    assert "| p1_a | p1 |" in text
    assert (out / "contact_sheet.png").is_file()


def test_same_command_makes_nothing_again_and_a_new_case_alone(prepare: Run, tmp_path: Path) -> None:
    lab, out = write_lab(tmp_path / "lab", 2), tmp_path / "out"
    assert prepare(lab, folds=2).code == 0
    made = {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
    (out / "labels" / "p2_a.nii.gz").unlink()
    write_lab(lab, 3)  # the same bytes, and a third case
    assert prepare(lab, folds=2).code == 0
    again = {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
    assert {path.name for path in again if again[path] != made.get(path)} == {"p2_a.nii.gz", "p3_a.nii.gz"}
    assert len(load_prepared(out).cases) == 3
    refused = prepare(lab, "--exclude", "p3_a", folds=2)
    assert "1 cases that this folder was prepared from are now left out" in refused.stderr
    assert len(load_prepared(out).cases) == 3
    assert prepare(lab, "--exclude", "p3_a", "--update", folds=2).code == 0
    assert not (out / "images" / "p3_a.nii.gz").exists()
    assert len(load_prepared(out).cases) == 2


def test_other_options_need_a_word(prepare: Run, tmp_path: Path) -> None:
    lab, out = write_lab(tmp_path / "lab", 1), tmp_path / "out"
    assert prepare(lab, folds=1).code == 0
    before = load_prepared(out)
    refused = prepare(lab, "--keep-surroundings", folds=1)
    assert refused.code == 1
    assert "keeps_surroundings: False -> True" in refused.stderr
    assert load_prepared(out) == before
    assert prepare(lab, "--keep-surroundings", "--update", folds=1).code == 0
    assert load_prepared(out).cases[0].image_sha256 != before.cases[0].image_sha256


def test_foreign_folder_is_left_alone(prepare: Run, tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab", 3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    outcome = prepare(lab)
    assert outcome.code == 1
    assert "the folder must be new, empty or a prepared one, found 'thesis.txt'" in outcome.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    outcome = prepare(lab, out=lab / "p1_a_ct.nii.gz")
    assert "this is a file, not a folder" in outcome.stderr


def test_dry_run_shows_meanings_and_writes_nothing(prepare: Run, tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab", 3)
    outcome = prepare(lab, "--dry-run")
    assert outcome.code == 0
    assert outcome.stdout == (
        "3 cases of 3 patients on 48x32x32 at 7x8x7 mm (336x256x224 mm).\n"
        "  seg/1 -> node (new), id 2\n"
        "  seg/2 -> liver, id 1\n"
    )
    assert not (tmp_path / "out").exists()


def test_one_bad_image_never_stops_the_others(prepare: Run, tmp_path: Path) -> None:
    lab, out = write_lab(tmp_path / "lab", 2), tmp_path / "out"
    image = build_ct(build_trunk(seed=2)).astype(np.float32)
    save_image(lab / "p2_a_ct.nii.gz", image + 2000, trunk_grid())
    outcome = prepare(lab, folds=2)
    assert outcome.code == 1
    assert "Not prepared: p2_a: p2_a_ct.nii.gz: expected HU, with air near -1000" in outcome.stderr
    assert [case.id for case in load_prepared(out).cases] == ["p1_a"]
    assert "p2_a: p2_a_ct.nii.gz: expected HU" in (out / "summary.md").read_text()
    write_lab(lab, 2)
    assert prepare(lab, folds=2).code == 0
    assert len(load_prepared(out).cases) == 2


def test_no_good_image_leaves_no_dataset(prepare: Run, tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab", 1)
    save_image(lab / "p1_a_ct.nii.gz", build_ct(build_trunk()) + np.int16(2000), trunk_grid())
    outcome = prepare(lab, folds=1)
    assert outcome.code == 1
    assert "none of 1 can be prepared; p1_a: p1_a_ct.nii.gz" in outcome.stderr
    with pytest.raises(PreparationError, match="not a prepared folder, because dataset.yaml is missing"):
        load_prepared(tmp_path / "out")


def test_two_processes_make_the_same_bytes(prepared: tuple[Path, Path], prepare: Run, tmp_path: Path) -> None:
    lab, out = prepared
    assert prepare(lab, "--workers", "2", "--patients", "^(p[0-9]+)_").code == 0
    for name in ("images", "labels", "previews"):
        for path in (out / name).iterdir():
            assert sha256_of(tmp_path / "out" / name / path.name) == sha256_of(path)
    assert load_prepared(tmp_path / "out").cases == load_prepared(out).cases


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sheared_label_map_is_told_once(prepare: Run, tmp_path: Path, workers: str) -> None:
    lab = write_lab(tmp_path / "lab", 2)
    for path in lab.glob("p1_*"):
        image: Any = nib.load(path)
        affine = image.affine.copy()
        affine[:3, 2] += 0.1 * affine[:3, 1]
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine, image.header), path)
    outcome = prepare(lab, "--workers", workers, folds=2)
    assert outcome.code == 0, outcome.stderr
    told = f"Note: {lab / 'p1_a_seg.nii.gz'}: voxel axes are not at right angles"
    assert outcome.stderr.count(told) == 1


@pytest.mark.parametrize("workers", ["1", "2"])
def test_header_without_an_orientation_is_refused(prepare: Run, tmp_path: Path, workers: str) -> None:
    lab = write_lab(tmp_path / "lab", 2)
    for path in lab.glob("p1_*"):
        image: Any = nib.load(path)
        image.set_sform(None, 0)
        image.set_qform(None, 0)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    outcome = prepare(lab, "--workers", workers, folds=2)
    assert outcome.code == 1
    assert f"{lab / 'p1_a_ct.nii.gz'}: has no sform or qform with a code above 0" in outcome.stderr


def test_organs_come_from_totalsegmentators_output(prepare: Run, tmp_path: Path) -> None:
    lab, organs = write_lab(tmp_path / "lab", 2), tmp_path / "organs"
    spleen = build_trunk(seed=1) == SPLEEN
    for name in ("spleen", "face", "kidney_left"):
        save_label_map(organs / "p1_a" / f"{name}.nii.gz", spleen if name == "spleen" else spleen & False, trunk_grid())
    save_label_map(organs / "p2_a.nii.gz", np.where(build_trunk(seed=2) == SPLEEN, 1, 0), trunk_grid())
    untold = prepare(lab, "--organs", organs, folds=2)
    assert untold.code == 1
    assert "neither labels.json nor dataset.json is there. Choose --organ-labels totalsegmentator-v2" in untold.stderr
    assert prepare(lab, "--organs", organs, "--organ-labels", "totalsegmentator-v2", folds=2).code == 0
    for case in load_prepared(tmp_path / "out").cases:
        own = build_trunk(seed=int(case.patient[1])) == SPLEEN
        assert case.volume_ml(SPLEEN) == pytest.approx(own.sum() * trunk_grid().voxel_ml, rel=0.2)


def test_help_names_the_extra(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert "needs maisi-aug[totalsegmentator]" in run_cli("prepare", "--help-all").stdout


def test_usage_errors_are_one_sentence(prepare: Run, run_cli: Run, tmp_path: Path) -> None:
    lab = write_lab(tmp_path / "lab", 2)
    assert "Folds: 3 folds need at least as many patients, found 2" in prepare(lab).stderr
    outcome = run_cli("prepare", "--images", lab, "--out", tmp_path / "out")
    assert "Labels: at least one of --labels, --organs, --run-totalsegmentator and --tissue" in outcome.stderr
    outcome = prepare(lab, "--shape", "50x32x32", folds=2)
    assert outcome.code == 2
    assert "--shape: expected sides that are multiples of" in outcome.stderr
    affine = np.diag([-1, 1, 1, 1]) @ trunk_grid().affine
    save_label_map(lab / "p2_a_seg.nii.gz", build_own_labels(), Grid(trunk_grid().shape, affine))
    assert "case p2_a: p2_a_seg.nii.gz: expected the image's grid" in prepare(lab, folds=2).stderr
    assert not (tmp_path / "out").exists()


def test_openkbp_patients_are_prepared(real_data: Path, run_cli: Run, tmp_path: Path) -> None:
    folder = real_data / "openkbp"
    words = ["--images", folder, "--labels", folder, "--image-pattern", "{id}_ct", "--label-pattern", "{id}_oar"]
    names = ["left parotid", "right parotid", "mandible", "larynx", "brainstem"]
    sources = ["LeftParotid", "RightParotid", "Mandible", "Larynx", "Brainstem"]
    rules = [word for pair in zip(sources, names, strict=True) for word in ("--map", "=".join(pair))]
    excluded = [path.name.removesuffix("_ct.nii.gz") for path in sorted(folder.glob("*_ct.nii.gz"))[2:]]
    excluded = [word for case in excluded for word in ("--exclude", case)]
    grid = ["--shape", "80x80x64", "--spacing", "4x4x3", "--tissue", "skull=150:3071"]
    outcome = run_cli(
        "prepare", *words, *rules, *excluded, *grid, "--folds", "2", "--workers", "1", "--out", tmp_path / "o"
    )
    assert outcome.code == 0, outcome.stderr
    dataset = load_prepared(tmp_path / "o")
    assert set(dataset.spec.new_labels) == set(names)
    for case in dataset.cases:
        array = load_label_map(dataset.file_of("label", case.id)).array
        left, right = (
            np.argwhere(array == dataset.spec.labels[f"{side} parotid"])[:, 0].mean() for side in ("left", "right")
        )
        assert left < right  # I runs from left to right
        assert case.volume_ml(dataset.spec.labels["mandible"]) > 25
