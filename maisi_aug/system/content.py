"""Content that others wrote: read by libraries, within bounds, and with one kind of error for all that is wrong.

Parsers raise whatever they meet on damaged input (``RecursionError``, ``struct.error``, ``KeyError``, ``zlib.error``,
...). :func:`content_errors` is the one boundary around a call into them. Each reader then says in its own sentence what
it expected, with the file's name, and :class:`ContentError` as the reason.

What a file may cost is bounded before it is read: a document of N bytes takes at most some 30 N bytes of memory, since
it has a largest length, is nested to a largest depth, and its YAML aliases may not stand for more than its own length.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from maisi_aug.errors import MaisiAugError

MAX_JSON_BYTES: Final = 256 * 10**6
"""A list of 100,000 cases, with what was done to each, takes a fifth of it."""
MAX_YAML_BYTES: Final = 2 * 10**6
"""Documents in YAML are settings, not lists of cases."""
MAX_LINE_BYTES: Final = 10**6
"""Of a line in a file of JSON lines; a case's takes some thousand."""
MAX_DEPTH: Final = 64
_FREE_ALIASES: Final = 1000
"""Elements that the aliases of any document may stand for, however short it is."""
_MAX_REASON: Final = 200
_MERGE_TAG: Final = "tag:yaml.org,2002:merge"


class ContentError(MaisiAugError, ValueError):
    """Content that cannot be read.

    Its text is the reason alone, on one line, for the reader to put into a sentence; :attr:`path` is for whoever meets
    it outside of one.
    """

    path: Path | None = None


def reason_of(error: BaseException) -> str:
    """What an error says, on one line and not too long; its type where it says nothing."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, KeyError):
        return f"it lacks {' '.join(str(error).split())[:_MAX_REASON]}"
    return " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__


@contextmanager
def content_errors(path: Path | None = None) -> Iterator[None]:
    """Turn whatever a library raises at content that it cannot read into one kind of error.

    Only calls into libraries belong inside: a mistake of this package's own would look like a damaged file. Errors of
    the operating system, such as a missing file, and errors that say already what is wrong pass.

    Args:
        path: The file, for whoever meets the error outside of a reader's sentence.

    Raises:
        ContentError: With the reason.
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
    """The bytes of a file; of any size by default.

    Raises:
        ContentError: It is larger, or is no file but a device or a pipe.
        OSError: It is missing, a folder, or cannot be read.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode) and not stat.S_ISDIR(about.st_mode):
        raise ContentError("it is no file")
    if max_bytes is not None and about.st_size > max_bytes:
        raise ContentError(f"it has {about.st_size / 1e6:.0f} MB, more than {max_bytes / 1e6:.0f} MB")
    return path.read_bytes()


def read_text(path: Path, max_bytes: int = MAX_JSON_BYTES) -> str:
    """The text of a file in UTF-8, with the line breaks of Unix.

    Raises:
        ContentError: It is larger, or no UTF-8.
        OSError: It is missing or cannot be read.
    """
    with content_errors(path):
        content = read_bounded(path, max_bytes)
        return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path, max_bytes: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """The lines of a file with their breaks, one after the other, so that the file may be of any length.

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
    """A JSON document.

    Raises:
        ContentError: It is no JSON, or beyond the bounds of this module.
        OSError: The file is missing or cannot be read.
    """
    with content_errors(path):
        return parse_json(read_bounded(path, MAX_JSON_BYTES))


def parse_json(content: bytes) -> Any:
    """A JSON document that is held in memory.

    Raises:
        ContentError: It is no JSON in UTF-8, is nested too deeply, has whole numbers beyond 64 bits, or text that is no
            Unicode.
    """
    with content_errors():
        document = json.loads(content.decode("utf-8"))
    _require_plain(document)
    return document


def _require_plain(document: Any) -> None:
    """Raise for what later code could not count with, compare or write: level by level, without recursion."""
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
                raise ContentError("it has a whole number of more than 64 bits")
        if not inner:
            return
        level = inner
    raise ContentError(f"it is nested more than {MAX_DEPTH} deep")


def _require_text(text: Any) -> None:
    if not isinstance(text, str) or text.isascii():
        return
    with content_errors():
        text.encode("utf-8")


def read_yaml(path: Path) -> Any:
    """A YAML document of plain types.

    Raises:
        ContentError: It is no YAML, or beyond the bounds of this module.
        OSError: The file is missing or cannot be read.
    """
    with content_errors(path):
        return parse_yaml(read_text(path, MAX_YAML_BYTES))


def parse_yaml(text: str) -> Any:
    """A YAML document that is held in memory.

    Raises:
        ContentError: It is no YAML, gives a key twice, is nested too deeply, has aliases that stand for more than the
            document's own length or for themselves, whole numbers beyond 64 bits, or text that is no Unicode.
    """
    try:
        with content_errors():
            document = yaml.load(text, _BoundedLoader)  # a SafeLoader with more checks
    except ContentError as error:
        if isinstance(error.__cause__, yaml.YAMLError):
            raise ContentError(_yaml_complaint(error.__cause__)) from error.__cause__
        raise
    _require_plain(document)
    return document


def _yaml_complaint(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or reason_of(error)
    return f"{problem} on line {mark.line + 1}" if mark is not None else str(problem)


class _BoundedLoader(yaml.SafeLoader):
    """YAML's safe loader with bounds; a key that is given twice is an error instead of the last one winning."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._num_aliased = 0
        self._most_aliased = len(stream) + _FREE_ALIASES
        self._sizes: dict[int, int] = {}
        """Elements of every finished node, by its identity, those behind aliases counted."""
        self._own_keys: dict[int, list[yaml.Node]] = {}
        """Keys of every mapping, by its identity, before others are merged into it."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_DEPTH} levels", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return node
        if not is_alias:
            self._sizes[id(node)] = 1 + sum(self._sizes[id(child)] for child in _children(node))
            if isinstance(node, yaml.MappingNode):
                self._own_keys[id(node)] = [key for key, _ in node.value if key.tag != _MERGE_TAG]
        elif id(node) not in self._sizes:
            raise yaml.composer.ComposerError(None, None, "an alias of what it stands in", mark)
        else:
            self._num_aliased += self._sizes[id(node)]
            if self._num_aliased > self._most_aliased:
                raise yaml.composer.ComposerError(None, None, "aliases of more than the document is long", mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node in self._own_keys.get(id(node), ()):
            key = self.construct_object(key_node, deep=True)
            try:
                is_twice = key in seen
                seen.add(key)
            except TypeError:
                continue  # of a type that is no key, as the loader says
            if is_twice:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' twice", key_node.start_mark)
        return super().construct_mapping(node, deep)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value
