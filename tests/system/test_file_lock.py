"""A lock is one process's alone, and given where the disk has none."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from maisi_aug.system.file_lock import folder_lock, is_locked, lock


def test_lock_is_given_once(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as mine, path.open() as other:
        assert is_locked(path) is False
        assert lock(mine.fileno())
        assert not lock(other.fileno())
        assert is_locked(path)
    with path.open("w") as later:
        assert lock(later.fileno(), wait=True)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_disk_without_locks_does_not_stop_the_work(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        (tmp_path / "lock").open("w") as file,
        pytest.warns(UserWarning, match="File locks: this disk does not support them, so that two commands working in"),
    ):
        assert lock(file.fileno())
    assert is_locked(tmp_path / "lock") is None
    with folder_lock(tmp_path) as is_given:
        assert is_given is None


def test_other_errors_are_told(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as file:
        descriptor = file.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        lock(descriptor)


def test_folder_is_locked_itself(tmp_path: Path) -> None:
    with folder_lock(tmp_path) as mine, folder_lock(tmp_path) as other:
        assert (mine, other) == (True, False)
    with folder_lock(tmp_path) as later:
        assert later
    assert list(tmp_path.iterdir()) == []
