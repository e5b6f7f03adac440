from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.errors import ExportError
from maisi_aug.system import whole_folder
from maisi_aug.system.whole_folder import (
    UNLOCKED_SECONDS,
    clear_dead_folders,
    copy_new,
    folders_that_appear_whole,
    link_or_copy,
    open_whole_folder,
    require_new_folder,
)
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


def allow() -> None:
    """Whatever has the name may be replaced."""


@pytest.mark.parametrize("builder", [folders_that_appear_whole, partial(open_whole_folder, require_replaceable=allow)])
def test_folder_that_does_not_reach_the_disk_does_not_appear(
    builder: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        assert (folder / "file").is_file()
        raise OSError(errno.ENOSPC, "No space left on device")

    def build() -> None:
        with builder(tmp_path / "new") as made:
            ((made if isinstance(made, Path) else made[0]) / "file").touch()

    monkeypatch.setattr(whole_folder, "flush_all", refuse)
    with pytest.raises(OSError, match="No space left"):
        build()
    assert list(tmp_path.iterdir()) == []


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
        with pytest.raises(ExportError, match="target: two files of the export have this name"):
            put(ours, target)
    assert (theirs.read_text(), target.read_text()) == ("theirs", "theirs")


def test_disk_without_links_gets_a_copy_under_a_new_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    (tmp_path / "source").write_text("content")
    assert not link_or_copy(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "content"
    with pytest.raises(ExportError, match="target: two files of the export have this name"):
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

    with pytest.raises(ExportError, match="was written by another process in the meantime"):
        export()
    assert (target / "dataset.json").read_text() == "theirs"
    assert [path.name for path in tmp_path.rglob("*")] == ["export", "dataset.json"]


KILLED = """
import os, signal, sys
from pathlib import Path
from maisi_aug.system import whole_folder
target, way = Path(sys.argv[1]), sys.argv[2]
if way == "export":
    with whole_folder.folders_that_appear_whole(target) as (building,):
        (building / "file").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
if way == "renaming":
    whole_folder.shutil.rmtree = lambda *_, **__: None
    Path.rename = lambda path, end, rename=Path.rename: (
        os.kill(os.getpid(), signal.SIGKILL) if path.suffix == ".part" else rename(path, end)
    )
with whole_folder.open_whole_folder(target, require_replaceable=lambda: None) as building:
    (building / "file").write_text("new")
"""


def run_killed(target: Path, way: str) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(target), way], check=False)
    assert killed.returncode == -signal.SIGKILL


@pytest.mark.parametrize("is_there", [False, True])
def test_next_export_clears_what_a_killed_one_left(is_there: bool, tmp_path: Path) -> None:
    target = tmp_path / "export"
    if is_there:
        target.mkdir()
    run_killed(target, "export")
    assert len(list(tmp_path.rglob("*.part"))) == 1
    require_new_folder(target)
    assert list(tmp_path.rglob("*.part")) == []
    with folders_that_appear_whole(target) as (building,):
        (building / "file").write_text("whole")
    assert [path.name for path in tmp_path.rglob("*")] == ["export", "file"]


def test_folder_that_is_being_built_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "export"
    with folders_that_appear_whole(target) as (building,):
        os.utime(building, (0, 0))
        clear_dead_folders(target)
        assert building.is_dir()
    assert target.is_dir()


def test_without_locks_a_folder_is_cleared_by_its_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.EBADF, "no locks on folders")

    monkeypatch.setattr(fcntl, "flock", refuse)
    young, old = tmp_path / ".export.00000001.part", tmp_path / ".export.00000002.part"
    for folder in (young, old):
        (folder / "imagesTr").mkdir(parents=True)
    for path in (old / "imagesTr", old):
        os.utime(path, (time.time() - UNLOCKED_SECONDS - 60,) * 2)
    os.utime(young, (0, 0))  # what lies in it was written just now
    clear_dead_folders(tmp_path / "export")
    assert list(tmp_path.iterdir()) == [young]


def test_of_another_target_or_name_nothing_is_cleared(tmp_path: Path) -> None:
    for name in (".other.00000001.part", ".export.part", ".export.1.part", "export.00000001.part"):
        (tmp_path / name).mkdir()
    clear_dead_folders(tmp_path / "export")
    assert len(list(tmp_path.iterdir())) == 4


def test_folder_that_was_being_replaced_gets_its_name_back(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "file").write_text("earlier")
    run_killed(target, "renaming")
    assert not target.exists()
    clear_dead_folders(target)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (target / "file").read_text() == "earlier"
    with open_whole_folder(target, require_replaceable=lambda: None) as unfinished:
        (unfinished / "file").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (target / "file").read_text() == "new"


def test_of_two_exports_to_one_dataset_id_one_wins_and_the_other_says_so(
    tmp_path: Path, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR], [HEPATIC_TUMOR])
    raw = tmp_path / "raw"

    def check(folder: Path, **_: Any) -> None:
        """In the place of nnU-Net's check, which comes last: another export ends while this one is at work."""
        if "First" in folder.name:
            shutil.copytree(folder, raw / "Dataset042_Second")

    monkeypatch.setattr("maisi_aug.integrations.nnunet.dataset.verify_integrity", check)
    outcome = run_cli("export", "nnunet", cohort, "--dataset-id", 42, "--name", "First", "--out", raw)
    assert outcome.code == 1
    assert "42" in outcome.stderr
    assert "Dataset042_Second" in outcome.stderr
    assert [path.name for path in raw.iterdir()] == ["Dataset042_Second"]
