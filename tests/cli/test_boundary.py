from __future__ import annotations

import errno

import pytest
import typer

from maisi_aug import errors
from maisi_aug.cli.app import _memory_options
from maisi_aug.cli.shared.boundary import LESS_MEMORY, OTHER_DEVICE, explain, guard


def _raising(error: BaseException) -> object:
    raise error


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.VocabularyError, 2),
        (errors.RequestError, 2),
        (errors.RecipeError, 2),
        (errors.GridError, 2),
        (errors.LesionError, 1),
        (errors.VolumeError, 1),
        (errors.BankError, 1),
        (errors.BundleError, 1),
        (errors.CohortError, 1),
        (errors.PreparationError, 1),
        (errors.TrainingError, 1),
        (errors.ExportError, 1),
        (errors.MigrationError, 1),
        (errors.BenchmarkError, 1),
        (errors.EvaluationError, 1),
        (errors.MemoryShortageError, 1),
        (errors.MissingExtraError, 1),
        (errors.WorkerError, 1),
    ],
)
def test_own_errors_are_shown_as_they_are(
    kind: type[errors.MaisiAugError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guard(lambda: _raising(kind("Label 'livr': expected a name.")), debug=False) == code
    assert capsys.readouterr() == ("", "Error: Label 'livr': expected a name.\n")


def test_every_own_error_is_covered_above() -> None:
    own = [kind for kind in errors.MaisiAugError.__subclasses__() if kind.__module__ == errors.__name__]
    assert len(own) == 18


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_names_the_file_and_what_to_do(number: int) -> None:
    error = OSError(number, "No space left on device", "cohort/images/a.nii.gz")
    start = "Error: cohort/images/a.nii.gz: no space left on the disk. Free some and run the same command again; "
    assert explain(error) == (start + "nothing was written.", 1)
    kept = "finished work is kept, and the same command continues from there."
    assert explain(error, is_resumable=True) == (start + kept, 1)


def test_unwritable_path_is_one_sentence() -> None:
    message, code = explain(PermissionError(errno.EACCES, "Permission denied", "/cohort"))
    assert (message, code) == ("Error: /cohort: Permission denied. Check the path and its permissions.", 1)


def test_unexpected_error_points_to_debug() -> None:
    message, code = explain(ZeroDivisionError("division by zero\nsecond line"))
    assert code == 1
    assert message == (
        "Error: unexpected ZeroDivisionError: division by zero. Run the same command with --debug for the traceback."
    )


@pytest.mark.parametrize("error", [typer.Abort(), KeyboardInterrupt()])
def test_interruption_is_a_clean_stop(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    assert guard(lambda: _raising(error), debug=False) == 130
    assert capsys.readouterr().err == "Stopped on request; nothing was written.\n"
    assert guard(lambda: _raising(error), debug=False, is_resumable=True) == 130
    assert "finished work is kept" in capsys.readouterr().err


def test_traceback_only_with_debug(capsys: pytest.CaptureFixture[str]) -> None:
    guard(lambda: _raising(errors.RequestError("size 1.5")), debug=False)
    assert "Traceback" not in capsys.readouterr().err
    guard(lambda: _raising(errors.RequestError("size 1.5")), debug=True)
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1), ("text", 0)])
def test_integer_result_is_the_exit_code(returned: object, code: int) -> None:
    assert guard(lambda: returned, debug=False) == code


def test_out_of_memory_is_recognised_without_torch() -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    told = explain(
        OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"),
        memory_options=lambda: [OTHER_DEVICE],
    )
    assert told[0] == (
        "Error: the GPU is out of memory (20.00 GiB more were requested). Close other programs, or choose "
        "another --device."
    )
    assert explain(MemoryError())[0] == "Error: this machine is out of memory. Close other programs."


def test_shortage_of_memory_is_told_of_what_it_was_raised_for() -> None:
    """A reader calls everything that its library raises a damaged file."""
    found = RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 137438953472 bytes. Error code 12 (Cannot allocate memory)"
    )
    error = errors.BundleError("a.pt: must contain weights only, found a file that cannot be read.")
    error.__cause__ = found
    told = explain(error, memory_options=lambda: ["fewer --workers", OTHER_DEVICE])
    assert told == (
        "Error: this machine is out of memory (137.4 GB more were requested). Close other programs, or choose "
        "fewer --workers.",
        1,
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["prepare", "--images", "x"], ["fewer --workers", "a smaller --shape", "a larger --spacing", OTHER_DEVICE]),
        (["evaluate", "lesions", "x"], ["fewer --workers"]),
        (["evaluate", "reviewers", "x"], []),
        (["bundles", "import", "x"], []),
        (["nonsense"], []),
        ([], []),
    ],
)
def test_advice_names_options_of_the_command(words: list[str], expected: list[str]) -> None:
    assert _memory_options(words) == expected


def test_every_advice_is_some_commands() -> None:
    named = [
        word for words in (["synthesize"], ["prepare"], ["finetune-controlnet"]) for word in _memory_options(words)
    ]
    assert set(named) == set(LESS_MEMORY.values())
