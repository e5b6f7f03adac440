"""Export folders that appear whole or not at all, and files that are linked rather than copied."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from maisi_aug.errors import ExportError

Notify = Callable[[str, int, int], None]
"""Called with a stage, the steps done and their number."""


def tell_nobody(stage: str, done: int, total: int) -> None:
    """A :data:`Notify` that does nothing."""


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
def folder_that_appears_whole(target: Path) -> Iterator[Path]:
    """A hidden folder beside the target that takes the target's name when the block ends without an error.

    Args:
        target: New, or an empty folder.

    Yields:
        The folder to write into.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    building.mkdir()
    try:
        yield building
        building.rename(target)
    except BaseException:  # Ctrl-C too must leave nothing behind
        shutil.rmtree(building, ignore_errors=True)
        raise


def link_or_copy(source: Path, target: Path) -> bool:
    """Put a file in its place, its bytes unchanged.

    Returns:
        Whether it is a hard link.
    """
    try:
        target.hardlink_to(source.resolve())
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
        return False
    return True
