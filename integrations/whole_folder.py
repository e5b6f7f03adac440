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
def folders_that_appear_whole(*targets: Path) -> Iterator[list[Path]]:
    """Hidden folders beside the targets that take the targets' names together when the block ends without an error.

    Args:
        targets: New, or empty folders.

    Yields:
        The folders to write into.
    """
    buildings = [target.with_name(f".{target.name}.{secrets.token_hex(4)}.part") for target in targets]
    renamed: list[Path] = []
    try:
        for building in buildings:
            building.mkdir(parents=True)
        yield buildings
        for building, target in zip(buildings, targets, strict=True):
            building.rename(target)
            renamed.append(target)
    except BaseException:  # Ctrl-C too must leave nothing behind
        for folder in (*buildings, *renamed):
            shutil.rmtree(folder, ignore_errors=True)
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
