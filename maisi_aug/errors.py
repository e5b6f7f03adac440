"""Errors that a user can cause, and warnings. A message names the option, file or value, the fault, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST_WORD = 200
"""Longest word, in characters, to look for similar names of; the search takes time in proportion to both lengths."""


class MaisiAugError(Exception):
    """Base class of every error that a user can cause, such as a wrong argument or a damaged file.

    The message says what is wrong and what to do. Most subclasses, in ``maisi_aug.errors``, are also a ``ValueError``;
    ``MissingExtraError`` is an ``ImportError``, and ``MemoryShortageError`` a ``MemoryError``.
    """


class VocabularyError(MaisiAugError, ValueError):
    """A label name or id is not in the vocabulary."""


class RequestError(MaisiAugError, ValueError):
    """A label request cannot be read or cannot be met."""


class GridError(MaisiAugError, ValueError):
    """A network cannot use a shape, spacing or field of view."""


class LesionError(MaisiAugError, ValueError):
    """A lesion does not fit into its host organ."""


class UnfitCtError(LesionError):
    """A CT cannot take a lesion at all: no host organ, no room, or voxels as large as the lesion."""


class VolumeError(MaisiAugError, ValueError):
    """An image file cannot be read or written."""


class BankError(MaisiAugError, ValueError):
    """A mask bank is empty, unreadable or lacks what was requested."""


class EmptyBankError(BankError):
    """A mask bank has no usable label map, so that no case can be drawn from it."""


class BundleError(MaisiAugError, ValueError):
    """A bundle is missing, incomplete or altered."""


class RecipeError(MaisiAugError, ValueError):
    """A recipe or a set of options is invalid."""


class CohortError(MaisiAugError, ValueError):
    """An output folder or manifest is not what the command needs."""


class WorkerError(MaisiAugError, RuntimeError):
    """Worker processes do not finish their work."""


class PreparationError(MaisiAugError, ValueError):
    """Training data cannot be prepared, or a prepared folder cannot be read."""


class TrainingError(MaisiAugError, ValueError):
    """A training run cannot start or cannot continue."""


class ExportError(MaisiAugError, ValueError):
    """An export would be wrong or incomplete."""


class MigrationError(MaisiAugError, ValueError):
    """A configuration of another program cannot be translated."""


class BenchmarkError(MaisiAugError, ValueError):
    """The cases, arms or folder of a benchmark are not what it needs."""


class ArmBusyError(BenchmarkError):
    """Another process is running this arm of a benchmark."""


class EvaluationError(MaisiAugError, ValueError):
    """A measurement is not possible on the given input."""


class MemoryShortageError(MaisiAugError, MemoryError):
    """The smallest piece of work needs more memory than the device or machine has."""


class MissingExtraError(MaisiAugError, ImportError):
    """An optional package that is needed is not installed; the message names the extra to install."""


class MaisiAugWarning(UserWarning):
    """Base class of the package's warnings; the command line prints these as notes, and no other warnings."""


class EarlierSpelling(FutureWarning):
    """An option or key is spelt as in an earlier release, and still understood."""


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return the closest candidates as a phrase to append to a message, or an empty string.

    Args:
        word: Word that the user typed.
        candidates: The names that would have been right.

    Returns:
        ``" Did you mean 'a', 'b' or 'c'?"`` with a leading space, or ``""``.
    """
    if len(word) > _LONGEST_WORD:
        return ""
    close = difflib.get_close_matches(word.lower(), list(candidates), n=3, cutoff=0.5)
    if not close:
        return ""
    quoted = [f"'{name}'" for name in close]
    listed = quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " or " + quoted[-1]
    return f" Did you mean {listed}?"
