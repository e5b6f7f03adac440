"""The one place where errors are caught: a sentence on stderr and an exit code, a traceback only with ``--debug``."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable

import typer

from maisi_aug.errors import GridError, MaisiAugError, RecipeError, RequestError, VocabularyError
from maisi_aug.system.content import ContentError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STOPPED = 130
"""Of a command that Ctrl-C ended, as shells have it: 128 and the number of the signal."""

_USAGE_ERRORS = (GridError, RecipeError, RequestError, VocabularyError)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_STOPPED = "nothing was written."
_STOPPED_RESUMABLE = "what was finished is kept, and the same command goes on from there."


def silence_third_parties() -> None:
    """Keep warnings and log lines of imported libraries off the user's terminal."""
    warnings.simplefilter("ignore")
    # Libraries are imported later, in the verbs, and may put their own filters in front: hide what those let through.
    warnings.showwarning = lambda *_, **__: None
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("maisi_aug").setLevel(logging.WARNING)  # not a third party
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def guard(call: Callable[[], object], *, debug: bool, is_resumable: bool = False) -> int:
    """Run ``call`` and turn whatever it raises into a message and an exit code.

    Args:
        call: Runs one command; an integer that it returns is the exit code.
        debug: Print the traceback before the message.
        is_resumable: Whether the command keeps what it has finished, so that it can be stopped and repeated.

    Returns:
        The exit code.
    """
    try:
        result = call()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output is gone (`| head`); point stdout elsewhere so that the interpreter's flush is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        message, code = explain(error, is_resumable=is_resumable)
        if message:
            sys.stderr.write(f"{message}\n")
        return code
    return result if isinstance(result, int) else 0


def explain(error: BaseException, *, is_resumable: bool = False) -> tuple[str, int]:
    """The sentence and the exit code for an error; the sentence is empty where the screen already says it all."""
    if isinstance(error, ContentError):
        return (
            f"Error: {error.path or 'A file'}: expected readable content, found: {error}. Replace the file.",
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
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "Error: the memory is used up. Close other programs, or choose another --device or bundle.", EXIT_FAILED
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


def _explain_os_error(error: OSError, *, is_resumable: bool) -> str:
    place = f"{error.filename}: " if error.filename else ""
    if error.errno in _DISK_FULL:
        kept = _STOPPED_RESUMABLE if is_resumable else _STOPPED
        return f"Error: {place}no space is left on the disk. Free some and run the same command again; {kept}"
    return f"Error: {place}{error.strerror}. Check the path and its permissions."
