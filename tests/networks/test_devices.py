"""What runs on Apple's GPUs, as far as that can be told without one: every operation, and no float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchgen
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maisi_aug.bundle_spec.bundle import load_bundle
from maisi_aug.bundle_spec.decoding import DecodingConfig
from maisi_aug.errors import BundleError
from maisi_aug.networks import devices
from maisi_aug.networks.building import ALL_FAST_PATHS, choose_precision
from maisi_aug.networks.devices import explain_missing, in_float64
from maisi_aug.networks.pipeline import Pipeline, resolve_device
from maisi_aug.system.memory import is_out_of_memory
from maisi_aug.volumes.grid import Grid
from tests.builders.random_bundle import write_random_bundle
from tests.builders.tiny_bundle import build_ddpm_header

NATIVE_FUNCTIONS = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
COMPOSITE = {"CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional"}
"""Kernels that are made of others, and run wherever those do."""
ON_HOST = {"aten::_local_scalar_dense"}
"""A number that is read off a tensor; part of how tensors of any device are copied."""


class Recorder(TorchDispatchMode):
    """Records the operations of a block, and the types of what they take and give."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.float64: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function._schema.name + (f".{function._overloadname}" if function._overloadname != "default" else "")
        self.names.add(name)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        if any(tensor.dtype == torch.float64 for tensor in tensors):
            self.float64.add(name)
        return result


@pytest.fixture(scope="module")
def kernels() -> Mapping[str, set[str]]:
    """Dispatch keys by operation, as the installed torch was built with."""
    found = {}
    for row in yaml.safe_load(NATIVE_FUNCTIONS.read_text(encoding="utf-8")):
        name = row["func"].partition("(")[0]
        keys = {key.strip() for listed in row.get("dispatch", {}) for key in listed.split(",")}
        found[name] = (keys or {"CompositeImplicitAutograd"}, row.get("structured_delegate"))
    return {
        f"aten::{name}": keys | (found[delegate][0] if delegate else set()) for name, (keys, delegate) in found.items()
    }


def list_missing(names: set[str], kernels: Mapping[str, set[str]]) -> list[str]:
    return sorted(
        name for name in names - ON_HOST if not kernels.get(name, set()) & ({"MPS"} | COMPOSITE) and "prim::" not in name
    )


def draw_all(pipeline: Pipeline, grid: Grid) -> None:
    """An image of a label map, with guidance, decoded whole, in parts and in windows; and a part drawn anew."""
    label_map = np.full(grid.shape, 200, dtype=np.uint8)
    label_map[4:12, 4:12, 4:12] = 1
    steps = None if pipeline.bundle.is_ddpm else 1
    for decoding in (DecodingConfig(), DecodingConfig(num_splits=2), DecodingConfig(window=(16, 16, 16))):
        pipeline.synthesize_image(label_map, grid, seed=1, num_inference_steps=steps, decoding=decoding, guidance_scale=1.5)
    hidden = np.zeros(grid.shape, dtype=bool)
    hidden[8:16, 8:16, 8:16] = True
    image_hu = np.zeros(grid.shape, dtype=np.float32)
    pipeline.redraw_images(image_hu, [label_map], hidden, grid, seed=1, num_inference_steps=2, num_resamplings=2)


@pytest.fixture(scope="module", params=["rectified flow", "ddpm"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """All that drawing takes, on a CPU with the layers that other devices have."""
    from dataclasses import replace

    if request.param == "ddpm":
        bundle = write_random_bundle(tmp_path_factory.mktemp("ddpm"), build_ddpm_header(), seed=0)
    else:
        bundle = load_bundle("phantom-ct")
    pipeline = Pipeline.load(bundle, "cpu", fast_paths=replace(ALL_FAST_PATHS, cpu_layers=False))
    shape = (96, 80, 16) if request.param != "ddpm" else (96, 72, 24)
    with Recorder() as recorder:
        draw_all(pipeline, Grid.from_spacing(shape, bundle.spec.grid.spacing_mm))
    return recorder


def test_every_operation_has_a_kernel_for_mps(recorded: Recorder, kernels: Mapping[str, set[str]]) -> None:
    assert {"aten::convolution", "aten::native_group_norm"} <= recorded.names
    assert len(recorded.names) > 40
    assert list_missing(recorded.names, kernels) == []


def test_list_of_kernels_tells_what_mps_lacks(kernels: Mapping[str, set[str]]) -> None:
    lacking = {"aten::adaptive_max_pool3d", "aten::linalg_qr"}
    assert list_missing(lacking | {"aten::max_pool3d_with_indices", "aten::bmm"}, kernels) == ["aten::adaptive_max_pool3d"] + (
        ["aten::linalg_qr"] if "MPS" not in kernels["aten::linalg_qr"] else []
    )


@pytest.fixture
def without_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU taken for a device without float64; what is meant for the CPU itself is let through."""
    monkeypatch.setattr(devices, "WITHOUT_FLOAT64", ("mps", "cpu"))
    yield


def test_float64_is_left_to_the_cpu(recorded: Recorder) -> None:
    # Statistics of the norms are merged in float64, of a number per group; they are moved to the CPU where there is none.
    small = {"aten::_to_copy", "aten::mul.Tensor", "aten::add.Tensor", "aten::div.Tensor", "aten::pow.Tensor_Scalar"}
    small |= {"aten::reciprocal", "aten::sub.Tensor", "aten::sqrt", "aten::repeat_interleave.self_int", "aten::div.Scalar"}
    assert not recorded.float64 & {"aten::convolution", "aten::native_group_norm", "aten::bmm", "aten::addmm"}
    assert recorded.float64, "the merged statistics"


def test_small_tensors_become_float64_wherever_they_are(without_float64: None) -> None:
    values = torch.tensor([1.0, 2.0])
    assert in_float64(values).dtype == torch.float64
    assert in_float64(values).device.type == "cpu"


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("mps", "built without MPS, which the one for macOS"),
        ("mps:0", "built without MPS"),
        ("xpu", "built without XPU; install Intel's build"),
    ],
)
def test_device_that_is_missing_is_explained(device: str, message: str) -> None:
    if torch.backends.mps.is_built() or torch.xpu.is_available():
        pytest.skip("a torch with MPS or XPU: the message is about one without")
    with pytest.raises(BundleError, match=f"Device '{device}': torch cannot use it: This torch is {message}.*--device cpu"):
        resolve_device(device)


def test_device_that_is_built_and_not_there_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    assert "takes Apple silicon and macOS 14 or later" in explain_missing("mps", RuntimeError())
    monkeypatch.setattr(torch.xpu, "_is_compiled", lambda: True)
    assert "found no Intel GPU with a driver" in explain_missing("xpu:1", RuntimeError())


def test_other_devices_compute_in_float32_and_say_when_memory_is_used_up() -> None:
    assert choose_precision("auto", "mps", bears_half=True) == "float32"
    assert choose_precision("auto", "xpu", bears_half=True) == "float32"
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB)"))
