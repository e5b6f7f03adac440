r"""Text that holds names of others on its way out: control characters are spelt out, long values shortened.

File names, labels, ids and headers may hold what moves a terminal's cursor, ends a line, or turns the direction of
writing. It is spelt as JSON spells it (``\u001b``), so that JSON stays JSON of the same content. This is the one place
for it; consoles, reports, pages and pictures call it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import wraps
from html import escape
from typing import Any, Final

MAX_VALUE: Final = 1000
"""Largest number of characters of a value in a table, a report or a picture; file paths are usually shorter."""
MAX_LINE: Final = 4000
"""Largest number of characters in a line of a message."""

_INVISIBLE: Final = (
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f"
)
_IN_VALUES: Final = re.compile(f"[\x00-\x1f\x7f-\x9f{_INVISIBLE}]")
_IN_LINES: Final = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_INVISIBLE}]")
_MARKUP: Final = re.compile(r"\||<(?![\s\d])|\\(?=[|<\\])")  # "p < 0.05" begins no tag
_CONTINUATION: Final = re.compile("\n(?=  )")


def clean_value(text: str, max_length: int = MAX_VALUE) -> str:
    """Clean a value for a message: one line, escaped control characters, and the middle of a long text left out.

    Args:
        text: Text from an untrusted file or argument.
        max_length: Length in characters above which the middle is left out.
    """
    return shorten(_IN_VALUES.sub(_spell, text), max_length)


def spell_count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one: ``1 real case``, ``3 real cases``.

    Args:
        number: Number to write.
        noun: Noun in the singular, whose plural ends in ``s``.
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def clean_lines(text: str) -> str:
    """Escape the control characters of a text, except line breaks and tabs."""
    return _IN_LINES.sub(_spell, text)


def clean_message(text: str) -> str:
    """Clean a message: each line is shortened, and only indented lines, such as lists of faults, stay separate.

    Other line breaks come from values and are escaped, so that no value can imitate a message.
    """
    return "\n".join(clean_value(line, MAX_LINE) for line in _CONTINUATION.split(text))


def clean_markdown(text: str) -> str:
    """Clean a value for Markdown: one line, with column separators and tags escaped."""
    return _MARKUP.sub(r"\\\g<0>", clean_value(text))


def clean_html(text: str) -> str:
    """Clean a value for HTML or SVG: one line, with tags escaped."""
    return escape(clean_value(text))


def clean_document(document: Any, clean: Callable[[str], str] = clean_markdown) -> Any:
    """Return a copy of a JSON document with every text cleaned, including keys.

    Args:
        document: JSON values; not modified.
        clean: Function that cleans one text; the default is for Markdown.
    """
    if isinstance(document, str):
        return clean(document)
    if isinstance(document, Mapping):
        return {clean_document(key, clean): clean_document(value, clean) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [clean_document(item, clean) for item in document]
    return document


def from_clean_document(to_markdown: Callable[[Mapping[str, Any]], str]) -> Callable[[Mapping[str, Any]], str]:
    """Wrap a function that formats a document as Markdown, so that it gets the document with all texts cleaned."""

    @wraps(to_markdown)
    def build(document: Mapping[str, Any]) -> str:
        return to_markdown(clean_document(document))

    return build


def shorten(text: str, max_length: int) -> str:
    """Shorten a text to about a length: the middle of a longer text is replaced by its number of characters.

    Args:
        text: Any text.
        max_length: Length in characters above which it is shortened.
    """
    if len(text) <= max_length:
        return text
    half = max_length // 2
    return f"{text[:half]} ... ({len(text)} characters) ... {text[-half:]}"


def _spell(found: re.Match[str]) -> str:
    number = ord(found[0])
    if number < 0x10000:
        return f"\\u{number:04x}"
    high, low = divmod(number - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
