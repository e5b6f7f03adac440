"""Whether an error says that memory is used up: every library has its own way of saying so."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import Final

_SIGNS: Final = re.compile(
    # torch's allocator for the CPU, on Linux and on Windows; C++'s; ITK's; the dynamic linker's and mmap's
    r"can't allocate memory|not enough memory|bad_alloc|[Ff]ailed to allocate memory|[Cc]annot allocate memory"
    r"|failed to map segment from shared object|MPS backend out of memory"
)
_ASKED_BYTES: Final = re.compile(r"tried to allocate (\d+) bytes")
_ASKED: Final = re.compile(r"[Tt]ried to allocate (\d[\d.]*) ?([KMG]i?B)|[Uu]nable to allocate (\d[\d.]*) ([KMGT]i?B)")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error itself reports that the memory of the machine or of a GPU is exhausted."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | ImportError | OSError) and bool(_SIGNS.search(str(error)))


def find_memory_error(error: BaseException) -> BaseException | None:
    """Return the out-of-memory error in the chain of an error's causes; None if there is none."""
    return next((found for found in _chain(error) if is_out_of_memory(found)), None)


def spell_asked(error: BaseException) -> str:
    """Return the amount of memory that an error says was requested, such as ``137.4 GB``; empty if it does not say."""
    if found := _ASKED_BYTES.search(str(error)):
        return f"{int(found[1]) / 1e9:.1f} GB"
    found = _ASKED.search(str(error))
    return "" if found is None else " ".join(part for part in found.groups() if part)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
