"""What runs on Apple's GPUs, as far as that can be told without one: every operation, and no float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maisi_aug.bundle_spec.decoding import DecodingConfig
from maisi_aug.errors import BundleError
from maisi_aug.networks import devices
from maisi_aug.networks.building import ALL_FAST_PATHS, choose_precision
from maisi_aug.networks.devices import explain_missing, in_float64
from maisi_aug.networks.pipeline import Pipeline, resolve_device
from maisi_aug.system.memory import is_out_of_memory
from maisi_aug.volumes.grid import Grid
from tests.builders.random_bundle import write_random_bundle
from tests.builders.tiny_bundle import build_ddpm_header, build_header

NATIVE_FUNCTIONS = (
    Path(torch.__file__).parents[1] / "torchgen" / "packaged" / "ATen" / "native" / "native_functions.yaml"
)
COMPOSITE = {"CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional"}
"""Kernels that are made of others, and run wherever those do."""
ON_HOST = {"aten::_local_scalar_dense"}
"""A number that is read off a tensor; part of how tensors of any device are copied."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operations of a block, and the types of what they take and give."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()
        self.float64: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # in inference mode some arrive whole that are made of others
            result = function.decompose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
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
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C it takes a second instead of ten
    for row in yaml.load(NATIVE_FUNCTIONS.read_text(encoding="utf-8"), Loader=loader):
        name = row["func"].partition("(")[0]
        keys = {key.strip() for listed in row.get("dispatch", {}) for key in listed.split(",")}
        delegate = row.get("structured_delegate")
        found[name] = (keys or (set() if delegate else {"CompositeImplicitAutograd"}), delegate)
    return {
        f"aten::{name}": keys | (found[delegate][0] if delegate else set()) for name, (keys, delegate) in found.items()
    }


def list_missing(names: set[str], kernels: Mapping[str, set[str]]) -> list[str]:
    return sorted(
        name
        for name in names - ON_HOST
        if not kernels.get(name, set()) & ({"MPS"} | COMPOSITE) and "prim::" not in name
    )


def draw_all(pipeline: Pipeline, grid: Grid) -> None:
    """An image of a label map, with guidance, decoded whole, in parts and in windows; and a part drawn anew."""
    label_map = np.full(grid.shape, 200, dtype=np.uint8)
    label_map[4:12, 4:12, 4:12] = 1
    steps = None if pipeline.bundle.is_ddpm else 1
    for decoding in (DecodingConfig(), DecodingConfig(num_splits=2), DecodingConfig(window=(16, 16, 16))):
        pipeline.synthesize_image(
            label_map, grid, seed=1, num_inference_steps=steps, decoding=decoding, guidance_scale=1.5
        )
    hidden = np.zeros(grid.shape, dtype=bool)
    hidden[8:16, 8:16, 8:16] = True
    image_hu = np.zeros(grid.shape, dtype=np.float32)
    pipeline.redraw_images(image_hu, [label_map], hidden, grid, seed=1, num_inference_steps=2, num_resamplings=2)


@pytest.fixture(scope="module", params=["rectified flow", "ddpm"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """All that drawing takes, on a CPU with the layers that other devices have."""
    header = build_ddpm_header() if request.param == "ddpm" else build_header()
    header["networks"]["autoencoder"]["use_convtranspose"] = request.param != "ddpm"
    if request.param == "ddpm":
        header |= {"num_inference_steps": 2, "scheduler": {**header["scheduler"], "num_train_timesteps": 2}}
    bundle = write_random_bundle(tmp_path_factory.mktemp("bundle"), header, seed=0)
    pipeline = Pipeline.load(bundle, "cpu", fast_paths=replace(ALL_FAST_PATHS, cpu_layers=False))
    recorder = Recorder()
    with recorder:
        draw_all(pipeline, Grid.from_spacing((80, 24, 16), (6.4, 6.4, 6.4)))
    return recorder


def test_every_operation_has_a_kernel_for_mps(recorded: Recorder, kernels: Mapping[str, set[str]]) -> None:
    assert {"aten::convolution", "aten::native_group_norm"} <= recorded.names
    assert len(recorded.names) > 40
    assert list_missing(recorded.names, kernels) == []


def test_list_of_kernels_tells_what_mps_lacks(kernels: Mapping[str, set[str]]) -> None:
    names = {"aten::adaptive_max_pool3d", "aten::max_pool3d_with_indices", "aten::bmm", "aten::none_of_torch"}
    assert list_missing(names, kernels) == ["aten::adaptive_max_pool3d", "aten::none_of_torch"]


def test_float64_is_left_to_the_cpu(recorded: Recorder) -> None:
    # The statistics of norms are merged in float64, a number per group, which in_float64 moves to the CPU.
    assert not recorded.float64 & {"aten::convolution", "aten::native_group_norm", "aten::bmm", "aten::addmm"}
    assert recorded.float64


def test_small_tensors_become_float64_wherever_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "WITHOUT_FLOAT64", ("mps", "cpu"))
    values = torch.tensor([1.0, 2.0])
    assert in_float64(values).dtype == torch.float64
    assert in_float64(values).device.type == "cpu"


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("mps", "built without MPS; install the build for macOS"),
        ("mps:0", "built without MPS"),
        ("xpu", "built without XPU; install Intel's build"),
    ],
)
def test_device_that_is_missing_is_explained(device: str, message: str) -> None:
    if torch.backends.mps.is_built() or torch.xpu.is_available():
        pytest.skip("a torch with MPS or XPU: the message is about one without")
    with pytest.raises(
        BundleError, match=f"Device '{device}': torch cannot use it: This torch is {message}.*--device cpu"
    ):
        resolve_device(device)


def test_device_that_is_built_and_not_there_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    assert "needs Apple silicon and macOS 14" in explain_missing("mps", RuntimeError())
    monkeypatch.setattr(torch.xpu, "_is_compiled", lambda: True)
    assert "found no Intel GPU with a driver" in explain_missing("xpu:1", RuntimeError())


def test_other_devices_compute_in_float32_and_say_when_memory_is_used_up() -> None:
    assert choose_precision("auto", "mps", bears_half=True) == "float32"
    assert choose_precision("auto", "xpu", bears_half=True) == "float32"
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB)"))
