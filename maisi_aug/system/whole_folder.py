"""Export folders that appear whole or not at all, and files that are linked rather than copied."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maisi_aug.errors import ExportError


def require_new_folder(folder: Path) -> None:
    """Raise unless nothing is there yet, or an empty folder.

    Raises:
        ExportError: Naming what is there.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        found = "a file" if not folder.is_dir() else f"'{min(path.name for path in folder.iterdir())}' in it"
        raise ExportError(
            f"{folder}: expected a new or an empty folder, found {found}. Nothing was changed; choose another --out."
        )


@contextmanager
def folders_that_appear_whole(*targets: Path) -> Iterator[list[Path]]:
    """Hidden folders that become the targets together when the block ends without an error.

    A folder that is there already, and may be the current one or a mounted disk, stays itself: what was written moves
    into it.

    Args:
        targets: New, or empty folders.

    Yields:
        The folders to write into.

    Raises:
        ExportError: Another process has made a target meanwhile, or put a file of the same name into it.
    """
    places = [Path(os.path.abspath(target)) for target in targets]  # noqa: PTH100  links are kept
    is_there = [place.is_dir() for place in places]
    hidden = [f".{place.name or 'root'}.{secrets.token_hex(4)}.part" for place in places]
    buildings = [
        place / name if there else place.with_name(name)
        for place, name, there in zip(places, hidden, is_there, strict=True)
    ]
    placed: list[Path] = []
    try:
        for building in buildings:
            building.mkdir(parents=True)
        yield buildings
        for building, place, there in zip(buildings, places, is_there, strict=True):
            moves = [(path, place / path.name) for path in building.iterdir()] if there else [(building, place)]
            for source, end in moves:
                if os.path.lexists(end):
                    raise ExportError(
                        f"{end}: expected nothing there, found something that was written meanwhile. Nothing was "
                        "changed; give the command again, with another --out or --dataset-id."
                    )
                source.rename(end)
                placed.append(end)
            if there:
                building.rmdir()
    except BaseException:  # Ctrl-C too must leave nothing behind
        for path in (*buildings, *placed):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        raise


def link_or_copy(source: Path, target: Path) -> bool:
    """Put a file in its place, its bytes unchanged; a file that is there already is never written to.

    Returns:
        Whether it is a hard link.

    Raises:
        ExportError: The place is taken.
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
    """Copy a file to a place where none is.

    Raises:
        ExportError: The place is taken: it could be a link to somebody's file, which would be written through.
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
        f"{target.name}: expected one file of that name in the export, found two. Nothing was changed; make the cohort "
        "again, or give every case a name of its own."
    )
