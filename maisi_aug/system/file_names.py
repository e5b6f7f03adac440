"""Checks of names from untrusted sources that become file names: others could lead out of a folder."""

from __future__ import annotations

import sys
import unicodedata
from typing import Final

_NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
PLAIN_NAME: Final = rf"^{_NAME}$"
"""Pattern of file names that this package writes: no separator, no control character, not hidden, no ".."."""
INNER_PATH: Final = rf"^{_NAME}(/{_NAME})*$"
"""Pattern of a path that is relative, stays inside its folder, and is made of such names."""

MAX_PART_BYTES: Final = 255
MAX_PATH_BYTES: Final = 2048
"""Largest length of a path in bytes; Linux takes 255 between separators and 4,096 in all, including the folder that the
path is relative to.
"""

MAX_BYTES: Final = 200
"""Largest length of a name in bytes; file systems take 255, and exports append to it."""


def is_file_name(text: str) -> bool:
    """Whether a name from an untrusted source is a valid file name: one part of a path, in any script.

    It must not be empty, lead to another folder, or contain separators, control characters or characters that change
    the writing direction. Names and characters that are reserved on Windows are refused there.
    """
    if text in ("", ".", "..") or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        return False
    if sys.platform == "win32" and is_reserved_on_windows(text):
        return False
    return not any(
        letter in "/\\" or unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in _TURNING
        for letter in text
    )


def is_reserved_on_windows(text: str) -> bool:
    """Whether Windows reserves a file name for a device, or does not allow one of its characters.

    Source: Microsoft, "Naming Files, Paths, and Namespaces".
    """
    stem = text.partition(".")[0].rstrip(" ").upper()
    return stem in _DEVICES or text[-1:] in (" ", ".") or any(letter in _WINDOWS_LETTERS for letter in text)


def is_path(text: str) -> bool:
    """Whether a text from an untrusted source can be a path at all; the operating system raises for others."""
    try:
        content = text.encode()
    except UnicodeEncodeError:
        return False
    parts = content.split(b"/")
    return 0 < len(content) <= MAX_PATH_BYTES and b"\0" not in content and max(map(len, parts)) <= MAX_PART_BYTES


_DEVICES: Final = frozenset(
    (
        "CON",
        "PRN",
        "AUX",
        "NUL",
        *(f"{port}{number}" for port in ("COM", "LPT") for number in "123456789\u00b9\u00b2\u00b3"),
    )
)
_WINDOWS_LETTERS: Final = frozenset('<>:"/\\|?*')
_TURNING: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
