"""Locks on open files: the kernel drops them when the process dies, however it dies."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maisi_aug.errors import MaisiAugWarning

if sys.platform != "win32":
    import fcntl

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_NO_FOLDER_LOCKS = (*_NO_LOCKS, errno.EBADF)  # NFS locks only what is open for writing


NO_LOCKS_NOTE = (
    "File locks: this disk does not support them, so that two commands working in the same folder are not kept "
    "apart. Run one at a time."
)


def lock(descriptor: int, *, wait: bool = False) -> bool:
    """Lock an open file exclusively for this process, until it is closed.

    If the platform or the file system has no locks, as some network disks, nothing is locked and the result is True,
    with a warning, because refusing to work there would not help.

    Args:
        descriptor: Descriptor of the file.
        wait: Whether to wait for other processes.

    Returns:
        Whether this process may continue; False if another process holds the lock.

    Raises:
        OSError: The file cannot be locked for another reason.
    """
    is_given = try_lock(descriptor, wait=wait)
    if is_given is None:
        warnings.warn(NO_LOCKS_NOTE, MaisiAugWarning, stacklevel=2)
    return is_given is not False


def is_locked(path: Path) -> bool | None:
    """Whether a process holds the lock of a file, found by taking the lock and releasing it at once.

    Returns:
        True or False; None if the platform or the file system has no locks.

    Raises:
        OSError: The file cannot be opened or locked.
    """
    with path.open("rb") as file:
        is_free = try_lock(file.fileno(), shared=True)
    return None if is_free is None else not is_free


@contextmanager
def folder_lock(folder: Path) -> Iterator[bool | None]:
    """Context that locks a folder exclusively for this process, without waiting for others.

    Yields:
        Whether the folder is locked now: False if another process holds the lock, None if the platform or the file
            system has no locks on folders.

    Raises:
        OSError: The folder cannot be opened or locked.
    """
    if sys.platform == "win32":
        yield None
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # a folder that may be written to, but not listed
        yield None
        return
    try:
        yield try_lock(descriptor, no_locks=_NO_FOLDER_LOCKS)
    finally:
        os.close(descriptor)


def try_lock(
    descriptor: int, *, shared: bool = False, wait: bool = False, no_locks: tuple[int, ...] = _NO_LOCKS
) -> bool | None:
    """Try to lock an open file; return whether it is locked now, or None without support for locks.

    Args:
        descriptor: Descriptor of the file.
        shared: Whether the lock may be shared with other readers.
        wait: Whether to wait for other processes.
        no_locks: Error numbers that mean that locks are not supported.
    """
    if sys.platform == "win32":
        return None
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in no_locks:
            raise
        return None
    return True
