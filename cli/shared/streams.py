"""Standard output and error as commands write to them: nothing that a value holds reaches the terminal as a command.

Rich writes its own colours and cursor moves, and asks a stream for what is behind it; what it prints is cleaned by
:class:`~maisi_aug.api.bars.PlainConsole` instead.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

from maisi_aug.system.printed_text import clean_lines, clean_message

if TYPE_CHECKING:
    from rich.console import Console

# Rich assumes 80 columns where there is no terminal, which would fold every row of a piped table.
PIPED_WIDTH = 160


class PatientStream:
    """Text stream whose reader may have ended (``| head``): further output is dropped, and work continues."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text unchanged, or drop it if the reader has ended."""
        try:
            self._stream.write(text)
        except BrokenPipeError:
            self._drop()
        return len(text)

    def flush(self) -> None:
        """Flush the underlying stream."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        """Point the stream to nowhere, so that the interpreter's last flush is quiet as well."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class CleanStream(PatientStream):
    """Text stream that escapes control characters."""

    @property
    def rich_proxied_file(self) -> PatientStream:
        """The underlying stream, under the name by which Rich finds it."""
        return PatientStream(self._stream)

    @property
    def buffer(self) -> io.RawIOBase:
        """The underlying stream for bytes."""
        return _CleanBytes(self)

    def write(self, text: str) -> int:
        """Write text with control characters escaped; only a leading carriage return, as in progress bars, is kept."""
        start = "\r" if text.startswith("\r") else ""
        super().write(start + clean_lines(text[len(start) :]))
        return len(text)


class _CleanBytes(io.RawIOBase):
    """What lies behind a clean stream for those who go around it, as typer does while Rich shows a bar."""

    def __init__(self, stream: CleanStream) -> None:
        self._stream = stream

    def writable(self) -> bool:
        """Whether bytes can be written: always."""
        return True

    def write(self, content: Any) -> int:
        """Write text in UTF-8."""
        self._stream.write(bytes(content).decode("utf-8", "surrogateescape"))
        return len(content)

    def flush(self) -> None:
        """Flush the underlying stream."""
        self._stream.flush()


def tell(sentence: str) -> None:
    """Write a sentence to standard error as one line, even if a name in it contains a line break."""
    typer.echo(clean_message(sentence), err=True)


@contextmanager
def clean_streams() -> Iterator[None]:
    """Context in which control characters are escaped in everything written to standard output and error."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (CleanStream(stream) for stream in before)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    finally:
        sys.stdout, sys.stderr = before


def open_closed_streams() -> None:
    """Replace standard streams that were closed when the process started (``>&-``) by ones that discard everything.

    Otherwise the next opened file would get the number of a standard stream, and output would be written to it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  as long as the process


def open_table_console() -> Console:
    """Return a console on standard output for tables, as wide as the terminal or, without one, as any table needs."""
    from maisi_aug.api.bars import PlainConsole

    return PlainConsole(width=None if sys.stdout.isatty() else PIPED_WIDTH)
