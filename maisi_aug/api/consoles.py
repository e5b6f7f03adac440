"""The consoles that tables, bars and notes are printed on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from rich.console import Console
from rich.segment import Segment
from rich.text import Text

from maisi_aug.system.printed_text import clean_lines


class PlainConsole(Console):
    """A console that takes text for text: no markup, no names of emojis, and control characters spelt out."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Clean text before its width is measured, so that columns stay in line."""
        return super().render_str(clean_lines(text), **settings)

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        """Clean what comes from anywhere else, such as the descriptions of bars."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=clean_lines(segment.text))

    @property
    def file(self) -> IO[str]:
        """The stream behind all that stand in for it: while a bar is shown, one of Rich's stands before ours."""
        found = super().file
        while (behind := getattr(found, "rich_proxied_file", None)) is not None:
            found = behind
        return found

    @file.setter
    def file(self, stream: IO[str]) -> None:
        self._file = stream

    def on_broken_pipe(self) -> None:
        """Go on: the stream behind drops what nobody reads."""
