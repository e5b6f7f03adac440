"""Networks compiled before use: ``torch.compile`` with inductor, or TensorRT through MONAI.

What is compiled: U-Net, ControlNet and the decoder. The condition embedding is computed once per image and stays as it
is. No weight changes.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import platformdirs
import torch
from torch import Tensor, nn

from maisi_aug.errors import BundleError, MissingExtraError
from maisi_aug.networks.building import Networks, release_decoder_output
from maisi_aug.system.memory import is_out_of_memory

Compiler = Literal["none", "inductor", "trt"]
# What MONAI's trt_compiler imports when it builds and runs an engine from ONNX.
TRT_PACKAGES = {"tensorrt": "tensorrt", "polygraphy": "polygraphy", "onnx": "onnx", "cuda": "cuda-python"}
TRT_ARGUMENTS: dict[str, dict[str, Any]] = {
    "controlnet": {"precision": "fp16", "output_lists": [[-1], [0]]},
    "diffusion_unet": {"precision": "fp16"},
    "decoder": {"precision": "fp16"},
}


def require_compiler(compiler: Compiler, device: str) -> None:
    """Raise unless a compiler is installed and supports a device; to be called before anything is loaded.

    Args:
        compiler: ``none``, ``inductor`` or ``trt``.
        device: Device of the networks.

    Raises:
        MissingExtraError: TensorRT, or a package that MONAI needs for it, is not installed.
        BundleError: TensorRT does not support the device.
    """
    if compiler != "trt":
        return
    missing = [package for module, package in TRT_PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"--compile trt: needs the packages {', '.join(TRT_PACKAGES.values())}; {', '.join(missing)} is missing. "
            "Install them with: pip install 'maisi-aug[trt]'"
        )
    if not device.startswith("cuda"):
        raise BundleError(
            f"--compile trt: needs a CUDA device, because TensorRT runs on no other, found '{device}'. Use --compile "
            "inductor, or leave it out."
        )


def compile_networks(networks: Networks, compiler: Compiler, *, fingerprint: str) -> None:
    """Set networks up, in place, to be compiled at their first call, and again for every new input shape.

    Args:
        networks: Networks, already on their device.
        compiler: ``none`` (nothing is done), ``inductor`` or ``trt``.
        fingerprint: Fingerprint of the bundle; TensorRT's engines are kept in the user's cache under it.

    Raises:
        MissingExtraError, BundleError: The compiler cannot be used.
    """
    require_compiler(compiler, networks.device)
    if compiler == "none":
        return
    decoder = cast(nn.Module, networks.autoencoder.decoder)
    parts = {"diffusion_unet": networks.diffusion_unet, "controlnet": networks.controlnet, "decoder": decoder}
    if compiler == "inductor":
        for network in parts.values():
            network.compile(dynamic=False)
        return
    release_decoder_output(networks.autoencoder)  # TensorRT has its own mixed precision
    folder = _engine_folder(fingerprint, networks.device)
    for name, network in parts.items():
        engines = EnginePerShape(network, folder / name, TRT_ARGUMENTS[name])
        network.forward = engines


@contextmanager
def explain_compilation(compiler: Compiler) -> Iterator[None]:
    """Context that turns errors of a compiler into a :class:`BundleError`.

    Raises:
        BundleError: The networks cannot be compiled.
    """
    if compiler == "none":
        yield
        return
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) or not _is_from_compiler(error):
            raise
        found = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        advice = "Install a C++ compiler such as g++, or leave" if compiler == "inductor" else "Leave"
        raise BundleError(
            f"--compile {compiler}: the networks cannot be compiled: {found.rstrip('.')}. {advice} --compile out."
        ) from error


def _is_from_compiler(error: Exception) -> bool:
    homes = ("torch._dynamo", "torch._inductor", "torch.onnx", "tensorrt", "polygraphy")
    return any(kind.__module__.startswith(homes) for kind in type(error).__mro__)


def _engine_folder(fingerprint: str, device: str) -> Path:
    """Engines fit one kind of GPU and the versions that built them."""
    parts = (fingerprint, torch.cuda.get_device_name(device), torch.__version__)
    key = hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
    folder = platformdirs.user_cache_path("maisi-aug", appauthor=False) / "tensorrt" / key
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class EnginePerShape:
    """Forward pass of a network by TensorRT, with one engine per set of input shapes, built once and kept on disk.

    MONAI's ``trt_compile`` keeps one engine per network, which refuses the next grid or window. An engine also returns
    the same memory at every call, so that guidance would compare an output with itself; therefore outputs are copied.
    """

    def __init__(self, network: nn.Module, path: Path, arguments: dict[str, Any]) -> None:
        self.network = network
        self.path = path
        self.arguments = arguments
        self.plain = network.forward
        self.engines: dict[str, Any] = {}

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Return the network's output."""
        key = hashlib.sha256(repr(_shapes([*inputs, named])).encode()).hexdigest()[:16]
        if key not in self.engines:
            self.engines[key] = self._describe_engine(key)
        return _copy(self.engines[key].forward(self.network, inputs, named))

    def _describe_engine(self, key: str) -> Any:
        from monai.networks.trt_compiler import TrtCompiler

        self.network.forward = self.plain  # its signature names the inputs
        try:
            return TrtCompiler(self.network, f"{self.path}-{key}.plan", **self.arguments)
        finally:
            self.network.forward = self


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape), str(value.dtype)
    if isinstance(value, dict):
        return {name: _shapes(item) for name, item in value.items() if item is not None}
    return [_shapes(item) for item in value] if isinstance(value, list | tuple) else value


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return type(value)(map(_copy, value)) if isinstance(value, list | tuple) else value
