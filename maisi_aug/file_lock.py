"""Locks on open files: the kernel drops them when the process dies, however it dies."""

from __future__ import annotations

import errno
import sys

if sys.platform != "win32":
    import fcntl

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


def lock(descriptor: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file until it is closed.

    Where the platform or the disk has no locks, as some network disks, nothing is locked and the answer is yes:
    refusing to work there would help nobody.

    Args:
        descriptor: Of the file.
        shared: Whether others may share the lock; else this process has it alone.
        wait: Whether to wait for the others.

    Returns:
        False where another process holds the lock.

    Raises:
        OSError: The file cannot be locked for another reason.
    """
    if sys.platform == "win32":
        return True
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True
