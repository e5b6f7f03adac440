from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maisi_aug.errors import CohortError
from maisi_aug.generate.phantoms import INDEX_NAME, PhantomSettings, write_phantoms
from maisi_aug.volumes.image_files import load_image, load_label_map

Run = Callable[..., Any]
SMALL = ["--shape", "48x36x30", "--spacing", "8.5"]
SETTINGS = PhantomSettings(seed=3, shape=(48, 36, 30), spacing_mm=(8.5, 8.5, 8.5))


def hash_files(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_phantoms_are_written_with_their_index(run_cli: Run, tmp_path: Path) -> None:
    outcome = run_cli("phantom", "-n", "2", "--out", tmp_path / "p", "--seed", "3", *SMALL, "--json")
    assert outcome.code == 0
    index = json.loads(outcome.stdout)
    assert index == json.loads((tmp_path / "p" / INDEX_NAME).read_text())
    assert [row["id"] for row in index["phantoms"]] == ["phantom_0001", "phantom_0002"]
    hashes = hash_files(tmp_path / "p")
    for row in index["phantoms"]:
        assert all(hashes[file["path"]] == file["sha256"] for file in row["files"].values())
        image = load_image(tmp_path / "p" / row["files"]["image"]["path"])
        label_map = load_label_map(tmp_path / "p" / row["files"]["label"]["path"])
        assert image.array.shape == (48, 36, 30)
        assert image.grid.is_close(label_map.grid)
        for label_id in {lesion["label_id"] for lesion in row["lesions"]}:
            planted_ml = sum(lesion["volume_ml"] for lesion in row["lesions"] if lesion["label_id"] == label_id)
            found_ml = float((label_map.array == label_id).sum()) * label_map.grid.voxel_ml
            assert found_ml == pytest.approx(planted_ml)
    assert "contact_sheet.png" in hashes


def test_asking_for_more_keeps_what_is_there_and_gives_the_same_bytes(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "a", SETTINGS, 3)
    write_phantoms(tmp_path / "b", SETTINGS, 1)
    first = hash_files(tmp_path / "b")["images/phantom_0001.nii.gz"]
    write_phantoms(tmp_path / "b", SETTINGS, 3)
    assert hash_files(tmp_path / "a") == hash_files(tmp_path / "b")
    assert hash_files(tmp_path / "a")["images/phantom_0001.nii.gz"] == first
    assert len(set(hash_files(tmp_path / "a").values())) == len(hash_files(tmp_path / "a"))


def test_no_lesions_means_none(tmp_path: Path, run_cli: Run) -> None:
    outcome = run_cli("phantom", "-n", "1", "--out", tmp_path, "--no-lesions", "--region", "chest", *SMALL)
    assert outcome.code == 0
    (row,) = json.loads((tmp_path / INDEX_NAME).read_text())["phantoms"]
    assert (row["lesions"], row["region"]) == ([], "chest")
    label_map = load_label_map(tmp_path / row["files"]["label"]["path"])
    assert not np.isin(label_map.array, [23, 24, 26, 27, 128, 129]).any()


def test_foreign_folder_is_refused_untouched(tmp_path: Path, run_cli: Run) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "thesis.nii.gz").write_text("years of work")
    outcome = run_cli("phantom", "-n", "1", "--out", tmp_path, *SMALL)
    assert outcome.code == 1
    assert "it has 'thesis.nii.gz' but no phantoms.json. Nothing was changed" in outcome.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["images", "thesis.nii.gz"]


def test_other_settings_and_damaged_index_are_refused(tmp_path: Path) -> None:
    write_phantoms(tmp_path, SETTINGS, 1)
    with pytest.raises(CohortError, match=r"\(seed: 3 -> 4\)"):
        write_phantoms(tmp_path, PhantomSettings(seed=4, shape=(48, 36, 30), spacing_mm=(8.5, 8.5, 8.5)), 1)
    (tmp_path / INDEX_NAME).write_text("[]")
    with pytest.raises(CohortError, match="phantoms.json: not an index of phantoms"):
        write_phantoms(tmp_path, SETTINGS, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(CohortError, match="file: this is a file, not a folder"):
        write_phantoms(tmp_path / "file", SETTINGS, 1)


def test_run_killed_before_its_first_index_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / ".phantom_0001.nii.gz.12345678.part").write_text("half")
    (tmp_path / "images" / "phantom_0001.nii.gz").write_text("whole, but not in an index")
    write_phantoms(tmp_path, SETTINGS, 1)
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["phantom_0001.nii.gz"]
