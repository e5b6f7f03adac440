from __future__ import annotations

import pytest

from maisi_aug.errors import BenchmarkError
from maisi_aug.evaluation.benchmark.config import (
    DEFAULT_ARMS,
    PRESETS,
    Arm,
    BenchmarkConfig,
    build_benchmark_config,
    parse_arm,
)


@pytest.mark.parametrize(
    ("text", "arm"),
    [
        ("real", Arm("real", "real")),
        ("real-duplicated", Arm("real-duplicated", "duplicated")),
        ("copy-paste", Arm("copy-paste", "copy-paste", ratio=1.0)),
        ("copy-paste:2", Arm("copy-paste:2", "copy-paste", ratio=2.0)),
        ("warped:3", Arm("warped:3", "warped", ratio=3.0)),
        (" real+synthetic:0.5 ", Arm("real+synthetic:0.5", "mixed", "synthetic", 0.5)),
        ("real+other", Arm("real+other", "mixed", "other", 1.0)),
        ("other-only", Arm("other-only", "only", "other")),
    ],
)
def test_arm_is_read(text: str, arm: Arm) -> None:
    assert parse_arm(text, ["synthetic", "other"]) == arm


def test_folder_of_an_arm_has_no_colon() -> None:
    assert parse_arm("real+synthetic:0.5", ["synthetic"]).folder_name == "real+synthetic_0.5"


def test_unknown_arm_is_refused_with_the_closest_name() -> None:
    with pytest.raises(
        BenchmarkError, match="Arm 'real-duplicate': unknown arm; expected one of real, .*Did you mean 'real-dup"
    ):
        parse_arm("real-duplicate", ["synthetic"])


@pytest.mark.parametrize("ratio", ["0", "-1", "many", "1000"])
def test_senseless_ratio_is_refused(ratio: str) -> None:
    with pytest.raises(BenchmarkError, match=f"above 0 and at most 100, found '{ratio}'"):
        parse_arm(f"real+synthetic:{ratio}", ["synthetic"])


def test_configuration_survives_json() -> None:
    config = build_benchmark_config(
        real="a", synthetic={"synthetic": "b"}, labels={"liver": (1, 2)}, mapping={"liver": ("liver",)}
    )
    assert BenchmarkConfig.model_validate(config.to_json()) == config
    assert config.arms == DEFAULT_ARMS
    assert config.steps == PRESETS["cpu"].num_steps


def test_patient_is_what_the_pattern_says() -> None:
    config = build_benchmark_config(real="a", arms=("real",), patient_pattern=r"^(p\d+)_")
    assert config.patient_of("p07_late") == "p07"
    assert build_benchmark_config(real="a", arms=("real",)).patient_of("p07_late") == "p07_late"
    with pytest.raises(BenchmarkError, match="Case x: the patient pattern '"):
        config.patient_of("x")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arms": ("real", "real")}, "Arms: each must be given exactly once, found real, real"),
        ({"arms": ()}, "Arms: each must be given exactly once, found none"),
        ({"arms": ("real+synthetic:1",)}, r"Arm 'real\+synthetic:1': unknown arm; expected one of real"),
        ({"patient_pattern": "("}, r"patient_pattern: expected a regular expression, found '\('"),
        ({"patient_pattern": "abc"}, "has no group in brackets for the patient; write '"),
        ({"engine": "nnunet", "augmentation": "strong"}, "--augmentation can only be used with --engine monai"),
        ({"num_seeds": 0}, "Benchmark: num_seeds: expected greater than or equal to 1, found 0"),
    ],
)
def test_wrong_configuration_is_refused_in_one_sentence(fields: dict[str, object], message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        build_benchmark_config(real="a", **{"arms": ("real",), **fields})
