"""Leases: files that say who is at work in a folder, where a lock of the kernel may reach no further than one machine.

Who holds a lease writes to its file every :data:`BEAT_SECONDS`. One that was not written to for :data:`STALE_SECONDS`
is given to the next who asks. How long that is, is measured by the clock of the disk, which stamps both the lease and a
file that is written for comparison, or by waiting: the clocks of machines may differ as they like.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import warnings
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any, Final

from maisi_aug.errors import CohortError, MaisiAugWarning
from maisi_aug.system.content import ContentError, parse_json, read_bounded

BEAT_SECONDS: Final = 5.0
STALE_SECONDS: Final = 45.0
POLL_SECONDS: Final = 0.5
_NUM_BYTES: Final = 2048
"""Size of a lease in bytes, padded so that every beat writes the same length."""


@dataclass(frozen=True)
class Holder:
    """Process that holds a lease, as written in the lease's file.

    Attributes:
        token: Random, unique text; empty while the file is being written.
        host: Name of the machine.
        pid: Process id on its machine or in its container.
        boot: Identity of the machine's current boot; may be empty.
        namespace: Namespace of process ids to which ``pid`` belongs.
        beat: Number of times that the file has been written.
        state: State of the holder's work, as JSON text.
    """

    token: str = ""
    host: str = "another process"
    pid: int = 0
    boot: str = ""
    namespace: str = ""
    beat: int = 0
    state: str = "{}"

    def read_state(self) -> dict[str, float]:
        """Return the figures about its work that the holder reports, by name."""
        with suppress(ContentError):
            told = parse_json(self.state.encode())
            if isinstance(told, dict):
                return {name: value for name, value in told.items() if isinstance(value, int | float)}
        return {}

    @property
    def is_hidden(self) -> bool:
        """Whether the holder runs on this machine, but in another container, so that its process is not visible."""
        own = describe_process()
        return bool(self.boot) and self.boot == own.boot and self.namespace != own.namespace

    def is_dead(self, *, has_lock: bool | None) -> bool:
        """Whether the holder has certainly ended: it ran on this machine, and its lock is free or its process is gone.

        Args:
            has_lock: Whether this process now has the file lock that the holder had; None without support for locks.
        """
        own = describe_process()
        if not self.boot or self.boot != own.boot:
            return False
        if has_lock:
            return True
        return self.namespace == own.namespace != "" and not _is_running(self.pid)


class Lease:
    """Lease that this process holds and renews regularly, by which others see that it is alive.

    Attributes:
        state: State of the work for others to read, written with the next renewal.
    """

    def __init__(self, path: Path, holder: Holder) -> None:
        self.state: dict[str, Any] = {}
        self._path, self._holder = path, holder
        self._is_lost = False
        self._ended = threading.Event()
        self._beating = threading.Lock()
        self._beaten_at = monotonic()
        self._thread = threading.Thread(target=self._go_on_beating, name="lease", daemon=True)
        self._thread.start()

    def require_held(self) -> None:
        """Raise if another process has taken the lease, because this one was suspended for long.

        Raises:
            CohortError: The message names the other process.
        """
        if monotonic() - self._beaten_at > STALE_SECONDS / 2:
            self._beat()
        if self._is_lost:
            raise CohortError(
                f"{self._path.parent}: {spell_holder(read_holder(self._path))} took over while this process was "
                "suspended. Nothing was lost: run the command again when that process has ended."
            )

    def end(self) -> None:
        """Release the lease."""
        self._ended.set()
        self._thread.join()
        if not self._is_lost and read_holder(self._path).token == self._holder.token:
            self._path.unlink(missing_ok=True)

    def _go_on_beating(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self._beat()

    def _beat(self) -> None:
        with self._beating, suppress(OSError):  # a disk that is gone for a while
            if read_holder(self._path).token != self._holder.token:
                self._is_lost = True
                return
            self._holder = replace(self._holder, beat=self._holder.beat + 1, state=json.dumps(self.state))
            with self._path.open("r+b") as file:
                file.write(_to_bytes(self._holder))
            self._beaten_at = monotonic()


def take_lease(path: Path, *, has_lock: bool | None) -> Lease:
    """Take a lease, which the caller must release; an abandoned lease is waited for until it has expired.

    Args:
        path: File of the lease.
        has_lock: Whether this process has the file lock that belongs to the lease; None without support for locks.

    Raises:
        CohortError: Another process holds the lease.
        OSError: The file cannot be written.
    """
    own = describe_process()
    seen, stale_at = Holder(), 0.0
    while not _make(path, own):
        holder = read_holder(path)
        if holder.is_dead(has_lock=has_lock) or (stale_at and monotonic() > stale_at and holder == seen):
            if _take_over(path, holder.token, own):
                break
            continue
        if not stale_at:
            seen, stale_at = holder, monotonic() + STALE_SECONDS - min(STALE_SECONDS, age_of(path))
            if monotonic() + POLL_SECONDS < stale_at:
                warnings.warn(
                    f"{path.parent}: {spell_holder(holder)} was working here a moment ago. Waiting up to "
                    f"{STALE_SECONDS:.0f} s to see whether it still is.",
                    MaisiAugWarning,
                    stacklevel=2,
                )
        elif holder.token and holder != seen:
            raise busy_folder(path.parent, holder)
        sleep(POLL_SECONDS)
    return Lease(path, own)


def busy_folder(folder: Path, holder: Holder) -> CohortError:
    """Return the error for a process that opens a cohort while another one writes to it.

    Args:
        folder: Folder that is in use.
        holder: Process that uses it, as far as it is known.
    """
    who = f" ({spell_holder(holder)})" if holder.pid else ""
    return CohortError(
        f"{folder}: another process is working in this folder{who}. Wait for it to end, or choose another --out."
    )


def spell_holder(holder: Holder) -> str:
    """Describe the holder of a lease for messages: process, machine and time."""
    return f"process {holder.pid} on {holder.host}" if holder.pid else "another process"


def read_holder(path: Path) -> Holder:
    """Read the holder of a lease from its file; an unknown holder if the file is missing or incomplete."""
    try:
        # Opened, not looked at from outside: a network disk then asks its server.
        content = parse_json(read_bounded(path, _NUM_BYTES))
        holder = Holder(**content)
    except (OSError, ContentError, TypeError):
        return Holder()
    is_whole = all(type(getattr(holder, field.name)) is type(field.default) for field in fields(Holder))
    return holder if is_whole else Holder()


def is_fresh(path: Path) -> bool:
    """Whether a lease is held: its file exists, and was renewed a short while ago."""
    return path.exists() and age_of(path) < STALE_SECONDS


def age_of(path: Path) -> float:
    """Return the seconds since a file was written, by the clock of its file system; infinite if it does not exist."""
    now = _ask_disk_for_time(path)
    try:
        return max(0.0, now - _time_of(path))
    except FileNotFoundError:
        return float("inf")


def _ask_disk_for_time(path: Path) -> float:
    """The time that a file has which is written now beside another; this machine's where none can be written."""
    probe = path.with_name(f"{path.name}.{secrets.token_hex(4)}.probe")
    try:
        probe.write_bytes(b"\n")
        return _time_of(probe)
    except OSError:  # a folder that may be read only
        return time()
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _time_of(path: Path) -> float:
    """When a file was written; asked of the server, where the disk is one of a network, by opening it."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime


def describe_process() -> Holder:
    """Return this process as the holder of a new lease."""
    boot, namespace = "", ""
    with suppress(OSError):  # Linux alone tells
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return Holder(secrets.token_hex(8), socket.gethostname(), os.getpid(), boot, namespace)


def _make(path: Path, own: Holder) -> bool:
    """Make the file where there is none, whatever others do at the same moment."""
    try:
        file = path.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(_to_bytes(own))
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _take_over(path: Path, stale: str, own: Holder) -> bool:
    """Put this process in place of a holder, unless another one does; only one may at a time, for each holder."""
    guard = path.with_name(f"{path.name}.{stale or 'empty'}.taken")
    try:
        guard.open("xb").close()
    except FileExistsError:
        if age_of(guard) > STALE_SECONDS:  # who took it died at that moment
            guard.unlink(missing_ok=True)
        sleep(POLL_SECONDS)
        return False
    new = path.with_name(f"{path.name}.{own.token}.new")
    try:
        if read_holder(path).token != stale:
            return False
        new.write_bytes(_to_bytes(own))
        new.replace(path)
        return True
    finally:
        new.unlink(missing_ok=True)
        guard.unlink(missing_ok=True)


def _to_bytes(holder: Holder) -> bytes:
    content = json.dumps(vars(holder)).encode()
    if len(content) > _NUM_BYTES - 1:
        content = json.dumps({**vars(holder), "state": "{}"}).encode()
    return content.ljust(_NUM_BYTES - 1) + b"\n"


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another process
        return True
    return True
