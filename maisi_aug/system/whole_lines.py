"""Lines that are appended to a file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from maisi_aug.errors import CohortError
from maisi_aug.system.file_lock import lock
from maisi_aug.system.whole_files import is_disk_full

APPENDING = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
"""How a file is opened that lines are added to; without ``O_BINARY`` Windows would change line breaks."""


def cut_torn_line(descriptor: int) -> None:
    """Cut off a last line without a line break, which a killed process left.

    Args:
        descriptor: Of a file that is open for reading and writing.
    """
    end = position = os.fstat(descriptor).st_size
    while position > 0:
        step = min(position, 1 << 16)
        position -= step
        os.lseek(descriptor, position, os.SEEK_SET)  # Windows has no pread
        found = os.read(descriptor, step).rfind(b"\n")
        if found >= 0:
            if position + found + 1 < end:
                os.ftruncate(descriptor, position + found + 1)
            return
    os.ftruncate(descriptor, 0)


def append_line(descriptor: int, text: str) -> None:
    """Write one line and wait until it is on the disk; after an error nothing of it is left.

    Args:
        descriptor: Of a file that is open for appending.
        text: Without the line break.

    Raises:
        OSError: When the disk is full or gone.
    """
    line = text.encode() + b"\n"
    before = os.fstat(descriptor).st_size
    try:
        written = os.write(descriptor, line)
        while written < len(line):
            written += os.write(descriptor, line[written:])
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, before)
        raise


def append_to_shared(path: Path, text: str) -> None:
    """Add a line to a file that several processes may add to at the same time.

    Args:
        path: Of the file, made where there is none; a link is not followed.
        text: Without the line break.

    Raises:
        CohortError: The disk is full or the file cannot be written; what was there stays as it was.
    """
    try:
        descriptor = os.open(path, APPENDING | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            lock(descriptor, wait=True)
            cut_torn_line(descriptor)
            append_line(descriptor, text)
        finally:
            os.close(descriptor)
    except OSError as error:
        is_full = is_disk_full(error)
        found = "a full disk" if is_full else (error.strerror or str(error)).lower()
        raise CohortError(
            f"{path}: expected to add a line, found {found}. Earlier lines are kept; make room or choose a folder that "
            "can be written, and try again."
        ) from error
