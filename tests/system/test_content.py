from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from maisi_aug.errors import RecipeError
from maisi_aug.system import content as content_module
from maisi_aug.system.content import (
    MAX_DEPTH,
    ContentError,
    content_errors,
    parse_json,
    read_json,
    read_lines,
    read_text,
    spells_number,
)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("labels"), "it lacks 'labels'"),
        (RecursionError("maximum recursion depth exceeded"), "it is nested too deeply"),
        (MemoryError(), "it needs more memory than is available"),
        (struct.error("unpack requires\na buffer"), "unpack requires a buffer"),
        (EOFError(), "EOFError"),
        (OSError("no image"), "no image"),
        (IndexError("x" * 500), "x" * 200),
    ],
)
def test_whatever_a_library_raises_becomes_one_error_with_a_reason(error: Exception, reason: str) -> None:
    with pytest.raises(ContentError) as caught, content_errors(Path("a.json")):
        raise error
    assert (str(caught.value), caught.value.path) == (reason, Path("a.json"))
    assert caught.value.__cause__ is error


def test_sentences_and_errors_of_the_system_pass() -> None:
    with pytest.raises(RecipeError, match="already said"), content_errors():
        raise RecipeError("already said")
    with pytest.raises(FileNotFoundError), content_errors():
        Path("missing.json").read_bytes()
    with pytest.raises(KeyboardInterrupt), content_errors():
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), f"nested more than {MAX_DEPTH} deep"),
        (b"[%d]" % 2**64, "more than 64 bits"),
        (b"[-9223372036854775809]", "more than 64 bits"),
        (b"1" * 5000, "4300 digits"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"\\ud800": 1}', "surrogates not allowed"),
        (b"\xff", "invalid start byte"),
        (b"{", "Expecting property name"),
    ],
)
def test_json_beyond_the_bounds_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(ContentError, match=reason):
        parse_json(text)


def test_json_within_the_bounds_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"größe": [1, 18446744073709551615, -9223372036854775808, 0.5, null, true]}', encoding="utf-8")
    assert read_json(path) == {"größe": [1, 2**64 - 1, -(2**63), 0.5, None, True]}
    assert parse_json(b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1))


def test_larger_document_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_module, "MAX_JSON_BYTES", 10**6)
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(3 * 10**6)
    with pytest.raises(ContentError, match="it has 3 MB, more than 1 MB") as caught:
        read_json(path)
    assert caught.value.path == path


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ContentError, match="it is not a file"):
        read_text(tmp_path / "pipe.json")


def test_lines_are_bounded_and_the_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"12345\n" * 1000)
    assert list(read_lines(path, 6)) == [b"12345\n"] * 1000
    with pytest.raises(ContentError, match="a line is longer"):
        list(read_lines(path, 5))


@pytest.mark.parametrize(
    ("value", "is_number"),
    [("12", True), (12, True), ("0" * 18, True), ("9" * 19, False), ("9" * 5000, False), ("-1", False), ("²", False)],
)
def test_number_is_spelled_in_digits_that_int_reads(value: object, is_number: bool) -> None:
    assert spells_number(value) is is_number
