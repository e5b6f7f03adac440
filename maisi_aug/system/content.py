"""Content that others wrote: read by libraries, within bounds, and with one kind of error for all that is wrong.

Parsers raise whatever they meet on damaged input (``RecursionError``, ``struct.error``, ``KeyError``, ``zlib.error``,
...). :func:`content_errors` is the one boundary around a call into them. Each reader then says in its own sentence what
it expected, with the file's name, and :class:`ContentError` as the reason.

What a file may cost is bounded before it is read: a document of N bytes takes at most some 30 N bytes of memory, since
it has a largest length and is nested to a largest depth; YAML is in :mod:`maisi_aug.system.yaml_content`.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from maisi_aug.errors import MaisiAugError

MAX_JSON_BYTES: Final = 256 * 10**6
"""Largest JSON document in bytes; a list of 100,000 processed cases takes a fifth of it."""
MAX_LINE_BYTES: Final = 10**6
"""Largest line of a file of JSON lines in bytes; that of a case takes some thousand."""
MAX_DEPTH: Final = 64
_MAX_REASON: Final = 200
_MAX_DIGITS: Final = 18
# How SimpleITK begins an error: the function, a place in its own sources, and perhaps the object's address.
_ITK_PLACE: Final = re.compile(
    r"^Exception thrown in SimpleITK \w+: \S+ (sitk::|itk::|ITK )ERROR: (\w+\((0x)?[0-9a-fA-F]+\): )?"
)


def spells_number(value: object) -> bool:
    """Whether a text is a non-negative integer of plausible length.

    Unlike ``int``, it accepts ASCII digits only, and not thousands of them.
    """
    text = str(value)
    return text.isdecimal() and len(text) <= _MAX_DIGITS


class ContentError(MaisiAugError, ValueError):
    """The content of a file or text cannot be read.

    The message is only the reason, on one line, for callers to put into a sentence; :attr:`path` is for code that
    handles the error elsewhere.
    """

    path: Path | None = None


def reason_of(error: BaseException) -> str:
    """Return the message of an error on one line, shortened; its type if it has no message."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it needs more memory than is available"
    if isinstance(error, KeyError):
        return f"it lacks {' '.join(str(error).split())[:_MAX_REASON]}"
    return _ITK_PLACE.sub("", " ".join(str(error).split()))[:_MAX_REASON] or type(error).__name__


@contextmanager
def content_errors(path: Path | None = None) -> Iterator[None]:
    """Context that turns all errors that a library raises for unreadable content into :class:`ContentError`.

    Only calls into libraries belong inside, because a bug of this package would look like a damaged file. Errors of the
    operating system, such as a missing file, and errors that already state what is wrong, pass.

    Args:
        path: File that is read, for code that handles the error elsewhere.

    Raises:
        ContentError: The content cannot be read; the message is the reason.
    """
    try:
        yield
    except ContentError as error:
        error.path = error.path or path
        raise
    except MaisiAugError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        named = ContentError(reason_of(error))
        named.path = path
        raise named from error


def read_bounded(path: Path, max_bytes: int | None = None) -> bytes:
    """Read the bytes of a file, refusing files larger than a limit.

    Args:
        path: File to read.
        max_bytes: Largest size; None for no limit.

    Raises:
        ContentError: The file is larger, or is a device or a pipe.
        OSError: The file is missing, a folder, or cannot be read.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode) and not stat.S_ISDIR(about.st_mode):
        raise ContentError("it is not a file")
    if max_bytes is not None and about.st_size > max_bytes:
        raise ContentError(f"it has {about.st_size / 1e6:.0f} MB, more than {max_bytes / 1e6:.0f} MB")
    return path.read_bytes()


def read_text(path: Path, max_bytes: int = MAX_JSON_BYTES) -> str:
    r"""Read a UTF-8 text file, with line breaks converted to ``\n``.

    Args:
        path: File to read.
        max_bytes: Largest size in bytes.

    Raises:
        ContentError: The file is larger, or not UTF-8.
        OSError: The file is missing or cannot be read.
    """
    with content_errors(path):
        content = read_bounded(path, max_bytes)
        return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path, max_bytes: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """Yield the lines of a file with their line breaks, one at a time, so that the file may be of any size.

    Args:
        path: File to read.
        max_bytes: Largest length of a line.

    Raises:
        ContentError: A line is longer.
        OSError: The file is missing or cannot be read.
    """
    with path.open("rb") as file:
        while line := file.readline(max_bytes + 1):
            if len(line) > max_bytes:
                raise ContentError(f"a line is longer than {max_bytes / 1e6:.0f} MB")
            yield line


def read_json(path: Path) -> Any:
    """Read a JSON file, within the limits of this module.

    Raises:
        ContentError: The content is not JSON, or exceeds the limits of this module.
        OSError: The file is missing or cannot be read.
    """
    with content_errors(path):
        return parse_json(read_bounded(path, MAX_JSON_BYTES))


def parse_json(content: bytes) -> Any:
    """Parse JSON, within the limits of this module.

    Raises:
        ContentError: The content is not JSON in UTF-8, is nested too deeply, has integers beyond 64 bits, or invalid
            Unicode.
    """
    with content_errors():
        document = json.loads(content.decode("utf-8"))
    require_plain(document)
    return document


def require_plain(document: Any) -> None:
    """Raise for values in a parsed document that later code cannot compute with, compare or write.

    The document is checked level by level, without recursion. Values of other types than those named below pass.

    Args:
        document: Result of a JSON or YAML parser: dicts, lists, strings, numbers, booleans and None.

    Raises:
        ContentError: Dicts and lists are nested more than ``MAX_DEPTH`` (64) levels deep, an integer needs more than 64
            bits, or a string or a key cannot be written as UTF-8, such as a lone surrogate.
    """
    level = [document]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += value.values()
                for key in value:
                    _require_text(key)
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str):
                _require_text(value)
            elif isinstance(value, int) and not -(2**63) <= value < 2**64:
                raise ContentError("it has an integer of more than 64 bits")
        if not inner:
            return
        level = inner
    raise ContentError(f"it is nested more than {MAX_DEPTH} deep")


def _require_text(text: Any) -> None:
    if not isinstance(text, str) or text.isascii():
        return
    with content_errors():
        text.encode("utf-8")
