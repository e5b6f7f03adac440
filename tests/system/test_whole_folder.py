from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.errors import ExportError
from maisi_aug.system.whole_folder import copy_new, folders_that_appear_whole, link_or_copy
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


def test_file_that_is_there_is_never_linked_or_copied_over(tmp_path: Path) -> None:
    """A target may be a link to somebody's file, so that writing to it would write to that."""
    ours, theirs, target = tmp_path / "ours", tmp_path / "theirs", tmp_path / "target"
    ours.write_text("ours")
    theirs.write_text("theirs")
    assert link_or_copy(theirs, target)
    for put in (link_or_copy, copy_new):
        with pytest.raises(ExportError, match="target: expected one file of that name in the export, found two"):
            put(ours, target)
    assert (theirs.read_text(), target.read_text()) == ("theirs", "theirs")


def test_disk_without_links_gets_a_copy_under_a_new_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    (tmp_path / "source").write_text("content")
    assert not link_or_copy(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "content"
    with pytest.raises(ExportError, match="target: expected one file of that name"):
        link_or_copy(tmp_path / "source", tmp_path / "target")


@pytest.mark.parametrize("is_there", [False, True])
def test_what_another_process_wrote_meanwhile_is_kept(is_there: bool, tmp_path: Path) -> None:
    target = tmp_path / "export"
    if is_there:
        target.mkdir()

    def export() -> None:
        with folders_that_appear_whole(target) as (building,):
            (building / "dataset.json").write_text("ours")
            target.mkdir(exist_ok=True)
            (target / "dataset.json").write_text("theirs")

    with pytest.raises(ExportError, match="expected nothing there, found something that was written meanwhile"):
        export()
    assert (target / "dataset.json").read_text() == "theirs"
    assert [path.name for path in tmp_path.rglob("*")] == ["export", "dataset.json"]
