"""What a name of somebody else's may hold reaches a terminal, a page or a picture as text alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maisi_aug.system.printed_text import (
    clean_document,
    clean_html,
    clean_lines,
    clean_markdown,
    clean_message,
    clean_value,
    from_clean_document,
    shorten,
)

HOSTILE = "a\x1b[31m\x07\r\x7f\x9b\u202eb\u2028\u2066\ufeff\u200b\udc80\U000e0041"
SPELT = r"a\u001b[31m\u0007\u000d\u007f\u009b\u202eb\u2028\u2066\ufeff\u200b\udc80\udb40\udc41"


def test_control_characters_are_spelt_as_json_spells_them() -> None:
    assert clean_value(HOSTILE) == clean_lines(HOSTILE) == clean_message(HOSTILE) == SPELT


@given(st.text())
def test_json_stays_json_of_the_same_content(text: str) -> None:
    written = json.dumps({text: text}, indent=1, ensure_ascii=False)
    assert json.loads(clean_lines(written)) == {text: text}
    assert clean_lines(clean_lines(written)) == clean_lines(written)


@given(st.text())
def test_a_value_is_one_printable_line(text: str) -> None:
    found = clean_value(text)
    assert len(found.splitlines()) <= 1
    assert found.encode("utf-8").decode("utf-8") == found


@pytest.mark.parametrize("text", ["hepatic tumor", "肝臓", "ورم", "जिगर", "क\u200dष", "Leber–Läsion", "🫁", "a\u0301"])
def test_words_of_any_script_stay(text: str) -> None:
    assert clean_value(text) == clean_lines(text) == text


def test_lines_of_our_own_stay_and_those_of_a_value_do_not() -> None:
    assert clean_lines("a\tb\nc") == "a\tb\nc"
    assert clean_value("a\tb\nc") == r"a\u0009b\u000ac"
    message = "recipe.yaml: this recipe has 2 problems:\n  first\n  second\nError: forged"
    assert clean_message(message).splitlines() == [
        "recipe.yaml: this recipe has 2 problems:",
        "  first",
        r"  second\u000aError: forged",
    ]


def test_long_values_are_shortened_in_the_middle() -> None:
    assert shorten("x" * 100, 100) == "x" * 100
    assert shorten("a" * 5000 + "z" * 5000, 20) == "a" * 10 + " ... (10000 characters) ... " + "z" * 10
    assert len(clean_value("\x00" * 10**6)) < 1100
    assert len(clean_message("y" * 10**7)) < 4100


def test_a_value_is_no_markup() -> None:
    assert clean_markdown("a|b\n<script>") == r"a\|b\u000a\<script>"
    assert clean_markdown(r"a\<b c\d") == r"a\\\<b c\d", "its backslash takes none of ours away"
    assert clean_markdown("p < 0.05, <3") == "p < 0.05, <3", "begins no tag, and a console shows every backslash"
    assert clean_markdown("<") == r"\<", "what follows the value may be a letter"
    assert clean_html("<b>&\x1b") == r"&lt;b&gt;&amp;\u001b"


def test_documents_are_cleaned_all_through_and_stay_as_they_are() -> None:
    document = {"a\x1b": ["b\n", {"c|": ("d\u202e", 1, None, True, 0.5)}]}
    cleaned = {r"a\u001b": [r"b\u000a", {r"c\|": [r"d\u202e", 1, None, True, 0.5]}]}
    assert clean_document(document) == cleaned
    assert from_clean_document(lambda found: json.dumps(found))(document) == json.dumps(cleaned)
    assert "a\x1b" in document
