"""YAML that others wrote, within bounds: its aliases may stand for no more than the document is long."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from maisi_aug.system.content import MAX_DEPTH, ContentError, content_errors, read_text, reason_of, require_plain

MAX_YAML_BYTES: Final = 2 * 10**6
"""Documents in YAML are settings, not lists of cases."""
_FREE_ALIASES: Final = 1000
"""Elements that the aliases of any document may stand for, however short it is."""
_MERGE_TAG: Final = "tag:yaml.org,2002:merge"


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
    require_plain(document)
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
