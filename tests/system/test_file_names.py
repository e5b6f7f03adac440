from __future__ import annotations

import re

import pytest

from maisi_aug.system.file_names import INNER_PATH, PLAIN_NAME, is_file_name, is_reserved_on_windows


@pytest.mark.parametrize("name", ["liver_0", "Pat. 7 (2. Aufnahme)", "肝臓", "émile", "-x", "._x", "a" * 200])
def test_names_of_any_script_can_be_files(name: str) -> None:
    assert is_file_name(name)


TURNING = ["\u202egpj.exe", "a\u2066"]
TOO_LONG = ["a" * 201, "é" * 101]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "/x",
        "a\0",
        "a\nb",
        "\x1b[31m",
        "\x7f",
        "\u2028",
        "\u202egpj.exe",
        "\ud800",
        *TOO_LONG,
    ],
)
def test_names_that_lead_elsewhere_or_cannot_be_shown_are_none(name: str) -> None:
    assert not is_file_name(name)


@pytest.mark.parametrize(
    ("text", "is_name", "is_path"),
    [("case_0001", True, True), ("images/x.nii.gz", False, True), ("a/../b", False, False), ("/x", False, False)],
)
def test_patterns_tell_plain_names_and_inner_paths(text: str, is_name: bool, is_path: bool) -> None:
    assert (re.search(PLAIN_NAME, text) is not None, re.search(INNER_PATH, text) is not None) == (is_name, is_path)


RESERVED = ["con", "NUL.nii.gz", "com1", "LPT\u00b2.txt", "aux .x", "case.", "case ", "a:b", "what?", "a|b"]


@pytest.mark.parametrize("name", RESERVED)
def test_names_that_windows_reserves_are_none_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_reserved_on_windows(name)
    assert is_file_name(name), "a file elsewhere"
    monkeypatch.setattr("sys.platform", "win32")
    assert not is_file_name(name)


@pytest.mark.parametrize("name", ["liver_0", "console", "com10", "nul_1", "Pat. 7 (2. Aufnahme)", "肝臓"])
def test_other_names_are_files_on_windows_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    assert is_file_name(name)
