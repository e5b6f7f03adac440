from __future__ import annotations

from collections import Counter

from tests.docs.sample_texts import list_docstrings, list_messages


def test_messages_of_every_kind_are_found_once_with_their_values_in_braces() -> None:
    texts = list(list_messages())
    kinds = Counter(text.kind for text in texts)
    assert len(texts) >= 1200
    assert kinds["error"] >= 700
    assert kinds["option"] >= 150
    assert kinds["command"] >= 15
    assert max(Counter((text.place, text.words) for text in texts).values()) == 1
    (one,) = (text.words for text in texts if text.place.startswith("maisi_aug/api/keywords.py:"))
    assert one == "{subject}: unknown keyword '{name}'.{hint}"


def test_docstrings_are_those_of_public_functions_and_methods() -> None:
    heads = [text.words.partition("(")[0] for text in list_docstrings()]
    assert len(heads) >= 2000
    assert {"synthesize", "Pipeline.from_bundle", "fid"} <= set(heads)
    assert not any(part.startswith("_") for head in heads for part in head.split("."))
