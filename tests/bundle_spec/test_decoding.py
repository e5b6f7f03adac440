from __future__ import annotations

from typing import Any

import pytest

from maisi_aug.bundle_spec.decoding import NUM_SPLITS, DecodeSettings, DecodingConfig
from maisi_aug.cohort.request import build_request, override
from maisi_aug.errors import RecipeError


def read(**decoding: Any) -> DecodingConfig:
    return build_request({"labels": ["liver"], "decoding": decoding}, source="mine.yaml").decoding


@pytest.mark.parametrize("window", [None, "whole", [48, 48, 64], (16, 32, 16)])
def test_window_is_read_from_yaml_and_flags(window: Any) -> None:
    assert read(window=window).window == (tuple(window) if isinstance(window, list) else window)


def test_everything_is_automatic_unless_asked_for() -> None:
    config = build_request({"labels": ["liver"], "decoding": None}).decoding
    assert config == DecodingConfig() == read()
    assert (config.window, config.overlap, config.num_splits) == (None, 0.4, None)
    assert [read(num_splits=number).num_splits for number in NUM_SPLITS] == [1, 2, 4, 8, 16, 32, 64, 128]


def test_windows_are_taken_where_they_are_asked_for() -> None:
    assert not read().takes_windows
    assert not read(window="whole").takes_windows
    assert read(mode="windows").takes_windows
    assert read(window=[16, 16, 16]).takes_windows


def test_configuration_can_be_written_and_read_again() -> None:
    config = build_request({"labels": ["liver"], "decoding": {"window": [16, 16, 32], "num_splits": 4}})
    assert build_request(config.to_dict()) == config


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        ({"window": [48, 48, 50]}, "decoding.window: expected 'whole' or three sides .*16.*, found [48, 48, 50]"),
        ({"window": [48, 48]}, "decoding.window: expected 'whole' or three sides"),
        ({"window": [16, 16, 0]}, "decoding.window: expected .* found [16, 16, 0]"),
        ({"window": "hole"}, "decoding.window: expected 'whole' .* found 'hole'"),
        ({"overlap": 1.0}, "decoding.overlap: expected less than 1, found 1.0"),
        ({"num_splits": 3}, "decoding.num_splits: expected 1, 2, 4, 8, 16, 32, 64 or 128, found 3"),
        ({"mode": "exakt"}, "decoding.mode: expected 'exact' or 'windows', found 'exakt'"),
        ({"memory_gb": 0}, "decoding.memory_gb: expected greater than 0, found 0"),
        (
            {"mode": "exact", "window": [16, 16, 16]},
            "decoding: window can only be used with mode windows; remove one of the two",
        ),
        (
            {"mode": "windows", "window": "whole"},
            "decoding: window 'whole' can only be used with mode exact; remove one of the two",
        ),
        ({"num_split": 4}, "decoding.num_split: unknown key 'num_split'. Did you mean 'num_splits'"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(decoding: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("[", r"\[")):
        read(**decoding)


def test_flag_of_a_section_leaves_its_other_fields() -> None:
    values = {"decoding": {"overlap": 0.25, "num_splits": 2}, "seed": 1}
    flags = {"decoding.window": "whole", "decoding.num_splits": 4, "decoding.overlap": None, "seed": None}
    merged = override(values, flags)
    assert merged == {"decoding": {"overlap": 0.25, "num_splits": 4, "window": "whole"}, "seed": 1}
    assert values["decoding"] == {"overlap": 0.25, "num_splits": 2}
    assert override({"decoding": None}, {"decoding.overlap": 0.5}) == {"decoding": {"overlap": 0.5}}
    assert override({}, {"decoding.window": None}) == {}


def test_manifest_is_told_what_plays_a_part() -> None:
    assert DecodeSettings().to_dict() == {"window": "whole", "num_splits": 1}
    assert DecodeSettings((48, 48, 64), 0.25, 2, on_host=True).to_dict() == {
        "window": [48, 48, 64],
        "overlap": 0.25,
        "num_splits": 2,
        "gathered_on": "host",
    }
    assert str(DecodeSettings((48, 48, 64), 0.25, 2, on_host=True)) == (
        "windows of 48x48x64 in 2 parts, gathered in host memory"
    )
