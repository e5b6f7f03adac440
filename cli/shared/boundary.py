"""The one place where errors are caught: a sentence on stderr and an exit code, a traceback only with ``--debug``."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from maisi_aug.cli.shared.streams import clean_streams, tell
from maisi_aug.errors import (
    EarlierSpelling,
    GridError,
    MaisiAugError,
    MemoryShortageError,
    RecipeError,
    RequestError,
    VocabularyError,
)
from maisi_aug.system.content import ContentError
from maisi_aug.system.memory import find_memory_error, spell_asked
from maisi_aug.system.printed_text import clean_message
from maisi_aug.system.whole_files import is_disk_full

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STOPPED = 130
"""Exit code of a command that Ctrl-C ended, as in shells: 128 plus the number of the signal."""

OTHER_DEVICE = "another --device"
LESS_MEMORY = {
    "--workers": "fewer --workers",
    "--decode-window": "a smaller --decode-window",
    "--crop": "a smaller --crop",
    "--shape": "a smaller --shape",
    "--spacing": "a larger --spacing",
    "--device": OTHER_DEVICE,
}
"""Advice that reduces memory, by the option that it concerns."""

_USAGE_ERRORS = (GridError, RecipeError, RequestError, VocabularyError)
_STOPPED = "nothing was written."
_STOPPED_RESUMABLE = "finished work is kept, and the same command continues from there."


def silence_third_parties() -> None:
    """Hide warnings and log lines of imported libraries from the user's terminal."""
    warnings.simplefilter("ignore")
    # Libraries are imported later, in the verbs, and may put their own filters in front: hide what those let through.
    warnings.showwarning = lambda *_, **__: None
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("maisi_aug").setLevel(logging.WARNING)  # not a third party
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


@contextmanager
def note_spellings() -> Iterator[None]:
    """Context in which warnings about earlier spellings are printed on stderr, each sentence once."""
    show, told = warnings.showwarning, set[str]()

    def note(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if not issubclass(category, EarlierSpelling):
            show(message, category, *place, **more)
        elif str(message) not in told:
            told.add(str(message))
            tell(f"Note: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", EarlierSpelling)
        warnings.showwarning = note
        yield


def guard(
    call: Callable[[], object],
    *,
    debug: bool,
    is_resumable: bool = False,
    memory_options: Callable[[], Sequence[str]] = tuple,
) -> int:
    """Run a command, and turn whatever it raises into a message and an exit code.

    Args:
        call: Function that runs the command; an integer that it returns is the exit code.
        debug: Print the traceback before the message.
        is_resumable: Whether the command keeps finished work and can be repeated to continue.
        memory_options: Function that returns advice on options that reduce memory; called if memory is exhausted.

    Returns:
        The exit code.
    """
    try:
        with clean_streams(), note_spellings():
            result = call()
    except (Exception, KeyboardInterrupt) as error:
        with clean_streams():
            if debug:
                traceback.print_exc()
            message, code = explain(error, is_resumable=is_resumable, memory_options=memory_options)
            if message:
                sys.stderr.write(f"{clean_message(message)}\n")
        return code
    return result if isinstance(result, int) else 0


def explain(
    error: BaseException, *, is_resumable: bool = False, memory_options: Callable[[], Sequence[str]] = tuple
) -> tuple[str, int]:
    """Return message and exit code for an error; the message is empty if the terminal already shows it.

    Args:
        error: Error that a command raised.
        is_resumable: Whether the command keeps finished work and can be repeated to continue.
        memory_options: Function that returns advice on options that reduce memory.
    """
    if not isinstance(error, MemoryShortageError) and (shortage := find_memory_error(error)) is not None:
        return _explain_memory(shortage, memory_options), EXIT_FAILED
    if isinstance(error, ContentError):
        return (
            f"Error: {error.path or 'A file'}: cannot be read: {error}. Replace the file.",
            EXIT_FAILED,
        )
    if isinstance(error, MaisiAugError):
        return f"Error: {error}", EXIT_USAGE if isinstance(error, _USAGE_ERRORS) else EXIT_FAILED
    if isinstance(error, typer.Abort | KeyboardInterrupt):
        return f"Stopped on request; {_STOPPED_RESUMABLE if is_resumable else _STOPPED}", EXIT_STOPPED
    if isinstance(error, typer.TyperException):
        return _explain_usage(error), error.exit_code
    if isinstance(error, OSError) and error.strerror:
        return _explain_os_error(error, is_resumable=is_resumable), EXIT_FAILED
    summary = (str(error).splitlines() or [""])[0].rstrip(".")
    return (
        f"Error: unexpected {type(error).__name__}: {summary}. Run the same command with --debug for the traceback."
    ), EXIT_FAILED


def _explain_usage(error: typer.TyperException) -> str:
    if type(error).__name__ == "NoArgsIsHelpError":  # the help is on the screen already
        return ""
    context = getattr(error, "ctx", None)
    hint = f" Try '{context.command_path} --help'." if context else ""
    sentence = " ".join(error.format_message().split())
    stop = "" if sentence.endswith((".", "?")) else "."
    return f"Error: {sentence}{stop}{hint}"


def _explain_memory(error: BaseException, options: Callable[[], Sequence[str]]) -> str:
    is_gpu = type(error).__name__ == "OutOfMemoryError"
    asked = spell_asked(error)
    if error.__traceback__ is not None:
        traceback.clear_frames(error.__traceback__)  # which hold what filled the memory
    try:
        less = [option for option in options() if is_gpu or option != OTHER_DEVICE]
    except Exception:  # whatever typer meets when there is too little memory even for that
        less = []
    advice = f", or choose {' or '.join(less)}" if less else ""
    return (
        f"Error: {'the GPU' if is_gpu else 'this machine'} is out of "
        f"memory{f' ({asked} more were requested)' if asked else ''}. Close other programs{advice}."
    )


def _explain_os_error(error: OSError, *, is_resumable: bool) -> str:
    place = f"{error.filename}: " if error.filename else ""
    if is_disk_full(error):
        kept = _STOPPED_RESUMABLE if is_resumable else _STOPPED
        return f"Error: {place}no space left on the disk. Free some and run the same command again; {kept}"
    return f"Error: {place}{error.strerror}. Check the path and its permissions."
