from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.system.whole_folder import folders_that_appear_whole
from tests.builders.tiny_cohort import HEPATIC_TUMOR, write_cohort


def test_folders_appear_together(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    before = (tmp_path / "there").stat().st_ino
    targets = [tmp_path / "new", tmp_path / "there"]
    with folders_that_appear_whole(*targets) as buildings:
        for building in buildings:
            (building / "folder").mkdir()
            (building / "file").touch()
        assert not targets[0].exists()
        assert not (targets[1] / "file").exists()
    assert [sorted(path.name for path in target.iterdir()) for target in targets] == [["file", "folder"]] * 2
    assert targets[1].stat().st_ino == before  # somebody's current folder stays the same one
    assert len(list(tmp_path.iterdir())) == 2


def test_failure_leaves_the_targets_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()

    def fail() -> None:
        with folders_that_appear_whole(tmp_path / "new", tmp_path / "there") as buildings:
            (buildings[1] / "file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("kind", ["monai", "dicom"])
def test_current_folder_is_exported_to(
    kind: str, tmp_path: Path, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "dicom":
        pytest.importorskip("highdicom", reason="needs the extra 'dicom'")
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR], [HEPATIC_TUMOR])
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    outcome = run_cli("export", kind, cohort, "--out", ".")
    assert outcome.code == 0, outcome.stderr
    assert len([path for path in Path().iterdir() if not path.name.startswith(".")]) >= 3
    assert list(tmp_path.rglob("*.part")) == []
