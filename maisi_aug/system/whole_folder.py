"""Folders that appear whole or not at all, and files that are linked rather than copied."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from maisi_aug.errors import ExportError
from maisi_aug.system.file_lock import folder_lock
from maisi_aug.system.whole_files import TEMPORARY_SUFFIX, flush_all

REPLACED_SUFFIX = ".old"
"""Suffix of the hidden name of an earlier folder while a new one takes its name."""
UNLOCKED_SECONDS = 86400.0
"""Seconds without any change in a hidden folder, on a disk without locks, before its process counts as dead."""
NAMING_SECONDS = 5.0
"""Seconds to wait for another process that is renaming files in the same folder."""


def require_new_folder(folder: Path) -> None:
    """Raise unless a path does not exist or is an empty folder.

    Raises:
        ExportError: The path exists; the message says as what.
    """
    clear_dead_folders(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        found = "a file" if not folder.is_dir() else f"'{min(path.name for path in folder.iterdir())}' in it"
        raise ExportError(
            f"{folder}: the folder must be new or empty, found {found}. Nothing was changed; choose another --out."
        )


@contextmanager
def folders_that_appear_whole(*targets: Path, require_free: Callable[[], object] | None = None) -> Iterator[list[Path]]:
    """Context with hidden folders that become the targets together, if the block ends without an error.

    A target that already exists, and may be the current folder or a mounted disk, is kept: the new files are moved into
    it.

    Args:
        targets: New, or empty folders.
        require_free: Function that raises if a target is in use; called again right before the folders get their names,
            while other processes are kept from doing the same.

    Yields:
        The folders to write into.

    Raises:
        ExportError: Another process has created a target meanwhile, or a file of the same name in it.
    """
    places = [Path(os.path.abspath(target)) for target in targets]  # noqa: PTH100  links are kept
    is_there = [place.is_dir() for place in places]
    buildings: list[Path] = []
    placed: list[Path] = []
    with ExitStack() as locks:
        try:
            for place, there in zip(places, is_there, strict=True):
                clear_dead_folders(place)
                name = f".{place.name or 'root'}"
                buildings.append(_make_hidden(place / name if there else place.with_name(name), locks))
            yield buildings
            for building in buildings:
                flush_all(building)
            with _naming_lock(places[0].parent):
                if require_free is not None:
                    require_free()
                for building, place, there in zip(buildings, places, is_there, strict=True):
                    _place(building, place, placed, is_there=there)
        except BaseException:  # Ctrl-C too must leave nothing behind
            for path in (*buildings, *placed):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            raise


def _place(building: Path, place: Path, placed: list[Path], *, is_there: bool) -> None:
    """Give a complete folder its name, or move its content into the folder that has it; add to what is placed."""
    for source, end in [(path, place / path.name) for path in building.iterdir()] if is_there else [(building, place)]:
        if os.path.lexists(end):
            raise ExportError(
                f"{end}: was written by another process in the meantime. Nothing was changed; run the command again "
                "with another --out or --dataset-id."
            )
        source.rename(end)
        placed.append(end)
    if is_there:
        building.rmdir()


@contextmanager
def open_whole_folder(folder: Path, *, require_replaceable: Callable[[], None]) -> Iterator[Path]:
    """Context with a hidden folder that, once complete, gets its final name and replaces an earlier folder.

    Args:
        folder: Final folder.
        require_replaceable: Function that raises if an existing folder must not be replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    clear_dead_folders(folder)
    with ExitStack() as locks:
        unfinished = _make_hidden(folder.with_name(f".{folder.name}"), locks)
        replaced = unfinished.with_suffix(REPLACED_SUFFIX)
        try:
            yield unfinished
            flush_all(unfinished)
            require_replaceable()
            if folder.exists():
                folder.rename(replaced)
            unfinished.rename(folder)
        except BaseException:  # Ctrl-C too must leave nothing behind, and what was there before in its place
            if replaced.exists() and not folder.exists():
                replaced.rename(folder)
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        shutil.rmtree(replaced, ignore_errors=True)


def clear_dead_folders(target: Path) -> None:
    """Remove the remains of processes that were killed while building a folder; folders still being built are kept.

    A folder that such a process was about to replace gets its name back.

    Args:
        target: Final folder.
    """
    name = f".{glob.escape(target.name or 'root')}.{'[0-9a-f]' * 8}"
    for folder in target.parent.glob(name + REPLACED_SUFFIX):
        if folder.with_suffix(TEMPORARY_SUFFIX).exists() and not _is_dead(folder.with_suffix(TEMPORARY_SUFFIX)):
            continue  # its process is at work
        if target.exists():
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.rename(target)
    for folder in (*target.parent.glob(name + TEMPORARY_SUFFIX), *target.glob(name + TEMPORARY_SUFFIX)):
        _is_dead(folder, removes=True)


def _is_dead(folder: Path, *, removes: bool = False) -> bool:
    """Whether no process builds a hidden folder; where there are no locks, whether it was left alone for long."""
    try:
        with folder_lock(folder) as is_locked:
            is_dead = is_locked or (is_locked is None and _idle_seconds(folder) > UNLOCKED_SECONDS)
            if is_dead and removes:
                shutil.rmtree(folder, ignore_errors=True)
            return is_dead
    except OSError:  # gone meanwhile, or of another process
        return False


def _idle_seconds(folder: Path) -> float:
    """Since the last change of anything in a folder."""
    changes = (path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
    return time.time() - max(changes)


def _make_hidden(stem: Path, locks: ExitStack) -> Path:
    """A new folder that is known to be at work, as long as its process lives, by a lock on the folder itself.

    Args:
        stem: Start of the hidden name.
        locks: Keeps the lock.
    """
    while True:
        folder = stem.with_name(f"{stem.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
        folder.mkdir(parents=True)
        try:
            is_locked = locks.enter_context(folder_lock(folder))
        except FileNotFoundError:
            continue
        if is_locked is not False and folder.exists():  # else a process that clears took it before it was locked
            return folder


@contextmanager
def _naming_lock(folder: Path) -> Iterator[None]:
    """Keep other processes from renaming in a folder, unless its lock is held for long, as by ``flock DIR``."""
    ends_at = time.monotonic() + NAMING_SECONDS
    while True:
        with folder_lock(folder) as is_locked:
            if is_locked is not False or time.monotonic() > ends_at:
                yield
                return
        time.sleep(0.02)


def link_or_copy(source: Path, target: Path) -> bool:
    """Hard-link or copy a file to a new path; an existing file is never overwritten.

    Args:
        source: Existing file; of a symbolic link, the file that it points to is linked.
        target: New path, whose folder exists.

    Returns:
        Whether it is a hard link.

    Raises:
        ExportError: The path exists.
    """
    try:
        target.hardlink_to(source.resolve())
    except FileExistsError:
        raise _taken(target) from None
    except OSError:  # another file system, or one without links
        copy_new(source, target)
        return False
    return True


def copy_new(source: Path, target: Path) -> None:
    """Copy a file to a path that does not exist yet.

    Args:
        source: Existing file.
        target: New path, whose folder exists.

    Raises:
        ExportError: The path exists; it could be a link to another file, which would be overwritten.
    """
    with source.open("rb") as content:
        try:
            file = target.open("xb")
        except FileExistsError:
            raise _taken(target) from None
        with file:
            shutil.copyfileobj(content, file, 1 << 20)


def _taken(target: Path) -> ExportError:
    return ExportError(
        f"{target.name}: two files of the export have this name. Nothing was changed; make the cohort again, or give "
        "every case its own name."
    )
