"""YAML that others wrote, within bounds: its aliases may stand for no more than the document is long."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from maisi_aug.system.content import MAX_DEPTH, ContentError, content_errors, read_text, reason_of, require_plain

MAX_YAML_BYTES: Final = 2 * 10**6
"""Largest YAML document in bytes; YAML files hold settings, not lists of cases."""
_FREE_ALIASES: Final = 1000
"""Number of elements that aliases may expand to in any document, however short."""
_MERGE_TAG: Final = "tag:yaml.org,2002:merge"

if TYPE_CHECKING:
    _BaseLoader = yaml.SafeLoader
else:  # libyaml's, which is ten times as fast, where PyYAML was built with it
    _BaseLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """Read a YAML file of plain types, within the limits of this module.

    Raises:
        ContentError: The content is not YAML, or exceeds the limits of this module.
        OSError: The file is missing or cannot be read.
    """
    with content_errors(path):
        return parse_yaml(read_text(path, MAX_YAML_BYTES))


def parse_yaml(text: str) -> Any:
    """Parse YAML of plain types, within the limits of this module.

    Raises:
        ContentError: The text is not YAML, has a key twice, is nested too deeply, has aliases that expand beyond the
            document's length or contain themselves, integers beyond 64 bits, or invalid Unicode.
    """
    try:
        with content_errors():
            _require_bounds(text)
            document = yaml.load(text, _Loader)  # a SafeLoader with one check more
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


def _require_bounds(text: str) -> None:
    """Raise for a document that is nested too deeply, or is larger than its text once its aliases are followed.

    Raises:
        ContentError: The message names the line.
    """
    sizes: dict[str, int] = {}  # of what is finished, by its anchor
    open_parts: list[tuple[str | None, int]] = []  # anchor, and elements so far
    num_aliased = 0
    event: Any
    for event in yaml.parse(text, Loader=_BaseLoader):
        line = event.start_mark.line + 1
        anchor, size = getattr(event, "anchor", None), 1
        if isinstance(event, yaml.CollectionStartEvent):
            open_parts.append((anchor, 1))
            if len(open_parts) > MAX_DEPTH:
                raise ContentError(f"more than {MAX_DEPTH} levels on line {line}")
            continue
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == opened for opened, _ in open_parts):
                raise ContentError(f"an alias that contains itself on line {line}")
            size = sizes.get(str(event.anchor), 1)
            num_aliased += size
            if num_aliased > len(text) + _FREE_ALIASES:
                raise ContentError(f"aliases that expand to more than the document's length on line {line}")
            anchor = None
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_parts.pop()
        elif not isinstance(event, yaml.ScalarEvent):
            continue
        if anchor is not None:
            sizes[anchor] = size
        if open_parts:
            outer, num_elements = open_parts[-1]
            open_parts[-1] = outer, num_elements + size


class _Loader(_BaseLoader):
    """YAML's safe loader, but a key that is given twice is an error instead of the last one winning."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._checked: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge what ``<<`` names, once the mapping's own keys are known to differ."""
        if id(node) not in self._checked:
            self._checked.add(id(node))
            self._require_different_keys(node)
        super().flatten_mapping(node)

    def _require_different_keys(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key_node in (key for key, _ in node.value if key.tag != _MERGE_TAG):
            key = self.construct_object(key_node, deep=True)
            try:
                is_twice = key in seen
                seen.add(key)
            except TypeError:
                continue  # of a type that is not a key, as the loader says
            if is_twice:
                message = f"the key '{key}' is given twice"
                raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
