"""What networks compute in: what may be asked for, and what that comes to on a device. Needs no torch to be imported.

Half precision moves images, and not at random: bfloat16 keeps eight bits of a number's digits, and its errors add up
over the steps of the sampler. Measured with the embedded bundle's trained weights on six held-out phantoms against
float32 (``tests/benchmarks/precision.py``), bfloat16 moves a voxel of the body by 4.8 HU on average, and the medians
of liver, spleen and kidney by +6, +8 and +3 HU, most of it in the sampler, so that a precise decoder does not help;
float16 moves them by 0.6 HU and by 1 HU at most. NVIDIA's own scripts sample in float16. So CUDA devices compute in
that, and processors, few of which have it, in float32.
"""

from __future__ import annotations

from typing import Literal

from maisi_aug.errors import RecipeError

PrecisionName = Literal["auto", "float32", "bfloat16", "float16"]
ComputeType = Literal["float32", "bfloat16", "float16"]
FAULTY_CUDNN = range(908, 911)
"""Major version times 100, plus minor."""


def choose_precision(wanted: PrecisionName, device: str, *, bears_half: bool) -> ComputeType:
    """What networks compute in on a device.

    Args:
        wanted: ``auto`` is float16 on CUDA devices, for networks that bear it, and float32 everywhere else.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        bears_half: Whether the networks are known to draw the same in half precision.

    Raises:
        RecipeError: For a half precision that the device does not compute in: emulated, it takes 80 times as long; for
            bfloat16 with a cuDNN that computes it wrongly.
    """
    if wanted == "auto":
        return "float16" if bears_half and device.startswith("cuda") else "float32"
    if wanted != "float32" and not computes_in(wanted, device):
        raise RecipeError(
            f"precision: expected one that the device '{device}' computes in, found '{wanted}', which it could only "
            "emulate at a fraction of the speed. Use --precision float32 or auto."
        )
    if wanted == "bfloat16" and device.startswith("cuda"):
        import torch

        require_sound_cudnn(torch.backends.cudnn.version())
    return wanted


def require_sound_cudnn(version: int | None) -> None:
    """Raise for a cuDNN whose 3D convolutions in bfloat16 are silently wrong on large inputs.

    Torch's own wheels of the versions that are asked for come with a later one; one of the system may be found first.
    Source: https://github.com/pytorch/pytorch/issues/163539 and 166643.

    Args:
        version: As torch gives it, 91002 for 9.10.2; None without cuDNN.

    Raises:
        RecipeError: For cuDNN 9.8 to 9.10.
    """
    if version is not None and version // 100 in FAULTY_CUDNN:
        major, minor, patch = version // 10000, version // 100 % 100, version % 100
        raise RecipeError(
            "precision: expected cuDNN 9.11 or later for bfloat16 on a CUDA device, found cuDNN "
            f"{major}.{minor}.{patch}, whose 3D convolutions are wrong on large inputs. Use --precision float16, or "
            "install a later one: pip install --upgrade torch nvidia-cudnn-cu13"
        )


def computes_in(precision: ComputeType, device: str) -> bool:
    """Whether a device computes in a type, and does not emulate it."""
    import torch

    device_type = device.partition(":")[0]
    if precision == "float32" or device_type == "cuda":
        return True
    if device_type != "cpu":
        return False
    operators = torch.ops.mkldnn
    supported = operators._is_mkldnn_bf16_supported if precision == "bfloat16" else operators._is_mkldnn_fp16_supported
    return bool(supported())
