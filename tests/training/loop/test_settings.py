from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from maisi_aug.training.loop.settings import FlowLossConfig, LoopConfig, VaeLossConfig


def test_learning_rate_warms_up_and_falls_along_half_a_cosine() -> None:
    loop = LoopConfig(num_steps=1000, learning_rate=2e-3, num_warmup_steps=10)
    rates = [loop.learning_rate_at(step) for step in range(1001)]
    assert rates[0] == pytest.approx(2e-4)
    assert rates[4] == pytest.approx(1e-3, rel=1e-3)
    assert rates[10] == pytest.approx(2e-3, rel=1e-3)
    assert rates[500] == pytest.approx(1e-3)
    assert rates[1000] == pytest.approx(0.0, abs=1e-12)
    assert rates[9:] == sorted(rates[9:], reverse=True)


@pytest.mark.parametrize(("power", "middle"), [(2.0, 0.25), (1.0, 0.5), (0.0, 1.0)])
def test_learning_rate_decays_along_a_power(power: float, middle: float) -> None:
    loop = LoopConfig(num_steps=100, learning_rate=1e-5, num_warmup_steps=0, decay_power=power)
    assert loop.learning_rate_at(0) == pytest.approx(1e-5)
    assert loop.learning_rate_at(50) == pytest.approx(middle * 1e-5)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert LoopConfig(num_steps=10, learning_rate=0.5, num_warmup_steps=0).learning_rate_at(0) == 0.5


@pytest.mark.parametrize(
    ("model", "values", "place"),
    [
        (LoopConfig, {"num_steps": 0}, "num_steps"),
        (LoopConfig, {"num_steps": 1, "average_decay": 1.0}, "average_decay"),
        (LoopConfig, {"num_steps": 1, "learning_rate": "fast"}, "learning_rate"),
        (LoopConfig, {"num_steps": 1, "warmup": 3}, "warmup"),
        (
            LoopConfig,
            {"num_steps": 1, "patience": 3},
            "patience: needs validation_steps, because it counts validations",
        ),
        (VaeLossConfig, {"lesion_share": 1.5}, "lesion_share"),
        (VaeLossConfig, {"perceptual_weight": 0.3}, "perceptual_weight: needs perceptual_weights, a file of"),
        (
            VaeLossConfig,
            {"perceptual_weight": 0.3, "perceptual_weights": "w.pth", "patch_shape": [32, 32, 16]},
            "perceptual_weight: needs patches of at least 20 voxels along every axis, found 32x32x16",
        ),
        (VaeLossConfig, {"zoom_range": [1.5, 0.5]}, "zoom_range: the smaller factor must come first, found"),
        (
            FlowLossConfig,
            {"modality_dropout": 0.6, "modality_omission": 0.6},
            "modality_dropout and modality_omission: their sum must be at most 1",
        ),
        (VaeLossConfig, {"patch_shape": [64, 64]}, "patch_shape"),
        (FlowLossConfig, {"lesion_weight": 0.5}, "lesion_weight"),
        (FlowLossConfig, {"outside_weight": 2.0}, "outside_weight"),
    ],
)
def test_settings_out_of_range_are_refused(model: type[BaseModel], values: dict[str, Any], place: str) -> None:
    with pytest.raises(ValidationError, match=place):
        model.model_validate(values)
