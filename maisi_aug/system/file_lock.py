"""Locks on open files: the kernel drops them when the process dies, however it dies."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


def lock(descriptor: int, *, wait: bool = False) -> bool:
    """Lock an open file for this process alone until it is closed.

    Where the platform or the disk has no locks, as some network disks, nothing is locked and the answer is yes:
    refusing to work there would help nobody.

    Args:
        descriptor: Of the file.
        wait: Whether to wait for the others.

    Returns:
        False where another process holds the lock.

    Raises:
        OSError: The file cannot be locked for another reason.
    """
    return _try(descriptor, shared=False, wait=wait) is not False


def is_locked(path: Path) -> bool | None:
    """Whether a process has a file for itself; asks for the lock and gives it back at once.

    Returns:
        None where the platform or the disk has no locks.

    Raises:
        OSError: The file cannot be opened or locked.
    """
    with path.open("rb") as file:
        is_free = _try(file.fileno(), shared=True, wait=False)
    return None if is_free is None else not is_free


def _try(descriptor: int, *, shared: bool, wait: bool) -> bool | None:
    """Whether the lock was given; None without locks."""
    if sys.platform == "win32":
        return None
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True
