from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.errors import BundleError, MissingExtraError
from maisi_aug.networks import acceleration
from maisi_aug.networks.acceleration import EnginePerShape, compile_networks, explain_compilation, require_compiler
from maisi_aug.networks.pipeline import Pipeline
from maisi_aug.volumes.grid import Grid

HAS_TENSORRT = importlib.util.find_spec("tensorrt") is not None


@pytest.mark.skipif(HAS_TENSORRT, reason="TensorRT is installed")
def test_tensorrt_that_is_not_installed_names_its_extra(bundle: Bundle) -> None:
    message = "--compile trt: needs the packages"
    with pytest.raises(MissingExtraError, match=message):
        Pipeline.load(bundle, "cpu", compiler="trt")


def test_tensorrt_wants_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "TRT_PACKAGES", {"torch": "torch"})
    with pytest.raises(BundleError, match="trt: needs a CUDA device, because TensorRT runs on no other, found 'cpu'"):
        require_compiler("trt", "cpu")
    require_compiler("trt", "cuda:1")
    require_compiler("none", "cpu")


def test_no_compiler_leaves_the_networks_alone(bundle: Bundle) -> None:
    networks = Pipeline.load(bundle, "cpu").networks
    before = dict(vars(networks.controlnet))
    compile_networks(networks, "none", fingerprint=bundle.fingerprint)
    assert vars(networks.controlnet) == before


def test_compiler_that_fails_is_explained_and_other_errors_are_not() -> None:
    failure = torch._dynamo.exc.TorchDynamoException("\n  No working C++ compiler found.\nmore")
    message = (
        r"--compile inductor: the networks cannot be compiled: No working C\+\+ compiler found. "
        r"Install a C\+\+ compiler such as g\+\+, or leave --compile out."
    )
    with pytest.raises(BundleError, match=message), explain_compilation("inductor"):
        raise failure
    with pytest.raises(torch._dynamo.exc.TorchDynamoException), explain_compilation("none"):
        raise failure
    with pytest.raises(ValueError, match="steps"), explain_compilation("inductor"):
        raise ValueError("steps")


@pytest.mark.slow
def test_missing_compiler_ends_in_one_sentence(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch._inductor.config as settings

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    label_map = np.full((32, 24, 16), 200, dtype=np.uint8)
    pipeline = Pipeline.load(bundle, "cpu", compiler="inductor")
    message = "--compile inductor: the networks cannot be compiled:"
    # Torch's own way to put the setting back: pytest's leaves none, and later compilations fail.
    with settings.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.raises(BundleError, match=message):
        pipeline.synthesize_image(label_map, Grid.from_spacing(label_map.shape, (4.0, 4.0, 4.0)), seed=1)
    torch.compiler.reset()


class Doubling(nn.Module):
    def forward(self, x: Tensor, extra: Any = None) -> Tensor:
        del extra
        return 2 * x


class FakeCompiler:
    """Stands for MONAI's: it hands out the same memory at every call, as an engine of TensorRT does."""

    def __init__(self, network: nn.Module, plan: str, **arguments: Any) -> None:
        assert network.forward.__name__ == "forward", "its signature names the inputs"
        self.plan, self.arguments, self.forward_plain = plan, arguments, network.forward
        self.memory: Tensor | None = None

    def forward(self, network: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
        found: Tensor = self.forward_plain(*inputs, **named)
        if self.memory is None:
            self.memory = torch.empty_like(found)
        return self.memory.copy_(found)


def test_every_shape_gets_its_engine_and_outputs_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("monai.networks.trt_compiler.TrtCompiler", FakeCompiler)
    network = Doubling()
    engines = EnginePerShape(network, tmp_path / "unet", {"precision": "fp16"})
    network.forward = engines  # type: ignore[method-assign]
    first = network(torch.ones(2, 3))
    second = network(torch.full((2, 3), 5.0))
    assert (first == 2).all()
    assert (second == 10).all()
    assert len(engines.engines) == 1
    network(x=torch.ones(2, 4))
    network(torch.ones(2, 3), extra=(torch.ones(1),))
    plans = {engine.plan for engine in engines.engines.values()}
    assert len(plans) == len(engines.engines) == 3
    assert all(plan.startswith(f"{tmp_path}/unet-") and plan.endswith(".plan") for plan in plans)
