"""What differs between the devices that networks run on, and what is missing where one cannot be used."""

from __future__ import annotations

import torch
from torch import Tensor

WITHOUT_FLOAT64 = ("mps",)
"""Types of devices that compute in no float64. Source: torch's documentation of the MPS backend."""


def explain_missing(device: str, error: Exception) -> str:
    """Return a sentence on why torch cannot use a device, with the remedy.

    Args:
        device: Device as the user wrote it.
        error: Exception that torch raised.
    """
    kind = device.partition(":")[0]
    if kind == "mps":
        if torch.backends.mps.is_built():
            return "This torch supports MPS, but this machine does not, which needs Apple silicon and macOS 14."
        return "This torch is built without MPS; install the build for macOS on Apple silicon."
    if kind == "xpu":
        if torch.xpu._is_compiled():
            return "This torch supports XPU, but found no Intel GPU with a driver."
        return "This torch is built without XPU; install Intel's build of torch, and the driver of the GPU."
    return str(error).partition("\n")[0].partition(". ")[0].rstrip(".") + "."


def in_float64(values: Tensor) -> Tensor:
    """Return a small tensor in float64, on the CPU if its device has no float64."""
    return (values.cpu() if values.device.type in WITHOUT_FLOAT64 else values).double()


def release_memory(device: torch.device) -> None:
    """Return cached memory of torch to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif device.type == "xpu":
        torch.xpu.empty_cache()
