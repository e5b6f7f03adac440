from __future__ import annotations

from pathlib import Path

import pytest

from maisi_aug.system.content import MAX_DEPTH, ContentError
from maisi_aug.system.yaml_content import MAX_YAML_BYTES, parse_yaml, read_yaml
from tests.builders.processor_time import is_done_within

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "aliases that expand to more than the document's length on line 4"),
        ("a: &a [*a]", "an alias that contains itself on line 1"),
        ("a: 1\nb: 2\na: 3\n", "the key 'a' is given twice on line 3"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"more than {MAX_DEPTH} levels on line 1"),
        ("[" * 50_000, "(levels|nesting depth) on line 1"),
        ("a: 2020-99-99", "month must be in 1..12"),
        ("a: !!timestamp x", "groupdict"),
        ("a: !!int ''", "index out of range"),
        ("a: " + "9" * 5000, "4300 digits"),
        ("a: " + "9" * 30, "more than 64 bits"),
        ("? [a]\n: b", "unhashable key on line 1"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: [", "expected (the )?node content"),
        ('"\\ud800"', "(surrogates not allowed|invalid Unicode)"),
    ],
)
def test_yaml_beyond_the_bounds_is_refused_at_once(text: str, reason: str) -> None:
    def refuse() -> None:
        with pytest.raises(ContentError, match=reason):
            parse_yaml(text)

    assert is_done_within(5.0, refuse)


def test_aliases_and_merged_mappings_are_read() -> None:
    text = "base: &base {shape: [1, 2], seed: 3}\nown: {<<: *base, seed: 4}\nagain: *base\n"
    assert parse_yaml(text) == {
        "base": {"shape": [1, 2], "seed": 3},
        "own": {"shape": [1, 2], "seed": 4},
        "again": {"shape": [1, 2], "seed": 3},
    }


def test_larger_document_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"#" * (MAX_YAML_BYTES + 10**6))
    with pytest.raises(ContentError, match="it has 3 MB, more than 2 MB"):
        read_yaml(path)
