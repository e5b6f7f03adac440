"""MAISI's network classes built from definitions that are data, and their plain, faster twins.

The classes are MONAI's. A definition names one of them and its hyper-parameters, as in NVIDIA's published
``config_network_*.json``; nothing else can be instantiated from a file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import (
    AutoencoderKlMaisi,
    MaisiConvolution,
    MaisiGroupNorm3D,
)
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from monai.networks.schedulers.ddpm import DDPMScheduler
from monai.networks.schedulers.rectified_flow import RFlowScheduler
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from maisi_aug.bundle_spec.decoding import ComputeType, PrecisionName
from maisi_aug.errors import BundleError, RecipeError, did_you_mean
from maisi_aug.networks.conditioning import NUM_LABEL_BITS
from maisi_aug.networks.pointwise import LabelTable
from maisi_aug.system.content import ContentError, content_errors

# MONAI writes to stdout how many weights it copied; stdout carries results.
logging.getLogger("monai.networks.utils").setLevel(logging.WARNING)

Definition = Mapping[str, Any]


class TrainableUNet(DiffusionModelUNetMaisi):  # type: ignore[misc]
    """MAISI's U-Net with ControlNet's residuals added out of place.

    MONAI adds them with ``+=`` to tensors that the backward pass still needs, which is an error as soon as the U-Net
    trains together with the ControlNet. Same weights, same values: the deepest skip is the very tensor that continues
    to the middle block, so that MONAI's ``+=`` reaches the middle block as well.
    """

    def _apply_down_blocks(
        self, h: Tensor, emb: Tensor, context: Tensor | None, down_block_additional_residuals: Any
    ) -> tuple[Tensor, list[Tensor]]:
        h, skips = super()._apply_down_blocks(h, emb, context, None)
        if down_block_additional_residuals is not None:
            skips = [skip + extra for skip, extra in zip(skips, down_block_additional_residuals, strict=True)]
            h = skips[-1]
        return h, skips


@dataclass(frozen=True)
class FastPaths:
    """Switches for optimisations of MAISI's computations, by which their effect on the result can be measured.

    Attributes:
        embed_once: Compute the condition embedding once per image instead of at every step.
        plain_layers: Plain norms and convolutions in place of MAISI's memory-saving ones.
        cpu_layers: Use convolutions with fewer products and fused attention on a CPU, see module ``cpu_layers``.
    """

    embed_once: bool = True
    plain_layers: bool = True
    cpu_layers: bool = True

    @classmethod
    def none(cls) -> FastPaths:
        """Return the switches with which everything is computed as by MAISI's own code."""
        return cls(embed_once=False, plain_layers=False, cpu_layers=False)


ALL_FAST_PATHS = FastPaths()


NETWORK_CLASSES: dict[str, type[nn.Module]] = {
    "AutoencoderKlMaisi": AutoencoderKlMaisi,
    "DiffusionModelUNetMaisi": TrainableUNet,
    "ControlNetMaisi": ControlNetMaisi,
    "DiffusionModelUNet": DiffusionModelUNet,
}
SCHEDULER_CLASSES: dict[str, type] = {"RFlowScheduler": RFlowScheduler, "DDPMScheduler": DDPMScheduler}


def _class_named(definition: Definition, table: Mapping[str, type], *, subject: str) -> type:
    name = str(definition.get("class", ""))
    if name not in table:
        raise BundleError(
            f"{subject}: unknown class '{name}'; expected one of {', '.join(sorted(table))}.{did_you_mean(name, table)}"
        )
    return table[name]


def _arguments(definition: Definition) -> dict[str, Any]:
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in definition.items() if key != "class"
    }


class _NoDraws(TorchFunctionMode):
    """Leaves weights as they are in memory instead of drawing them.

    Drawing those of an embedding on the meta device makes torch import its compiler, which takes longer than all other
    work on a small network.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_):
            return (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def build_network(definition: Definition, *, device: str = "cpu", draws_weights: bool = True) -> nn.Module:
    """Build one network with freshly initialised weights.

    Args:
        definition: ``{"class": name, **hyper-parameters}``; flash attention is switched off without a CUDA device,
            which changes no weight and no value.
        device: Device on which the parameters live.
        draws_weights: Whether weights are initialised; not needed where all of them are loaded.

    Raises:
        BundleError: For an unknown class or hyper-parameters that the class refuses.
    """
    network_class = _class_named(definition, NETWORK_CLASSES, subject="Network definition")
    arguments = _arguments(definition)
    if not device.startswith("cuda") and "use_flash_attention" in arguments:
        arguments["use_flash_attention"] = False
    try:
        with content_errors(), nullcontext() if draws_weights else _NoDraws():
            network: nn.Module = network_class(**arguments)
    except ContentError as error:
        raise BundleError(f"Network definition of {definition['class']}: rejected by MONAI: {error}") from error
    return network.to(device)


def describe_tensors(definition: Definition) -> dict[str, Tensor]:
    """Return the names and shapes of a network's tensors, on the meta device, which needs no memory for values.

    Raises:
        BundleError: For a definition that cannot be built.
    """
    with torch.device("meta"):
        described: dict[str, Tensor] = build_network(definition, device="meta", draws_weights=False).state_dict()
    return described


def build_scheduler(definition: Definition) -> RFlowScheduler | DDPMScheduler:
    """Build the noise scheduler that a bundle defines.

    Raises:
        BundleError: For an unknown class or arguments that the class refuses.
    """
    scheduler_class = _class_named(definition, SCHEDULER_CLASSES, subject="Scheduler definition")
    try:
        with content_errors():
            scheduler: RFlowScheduler | DDPMScheduler = scheduler_class(**_arguments(definition))
    except ContentError as error:
        raise BundleError(f"Scheduler definition of {definition['class']}: rejected by MONAI: {error}") from error
    return scheduler


def takes_regions(unet: nn.Module) -> bool:
    """Whether a U-Net is conditioned on body regions, as those of ``ddpm-ct`` are."""
    return bool(getattr(unet, "include_top_region_index_input", False))


def count_control_channels(controlnet: nn.Module) -> int:
    """Return the number of condition channels of a ControlNet: 8 for a label map, or 10 with surroundings."""
    embedding = cast(nn.Module, controlnet.controlnet_cond_embedding)
    if isinstance(embedding.conv_in, LabelTable):
        return NUM_LABEL_BITS
    first = next(layer for layer in embedding.modules() if isinstance(layer, nn.Conv3d))
    return first.in_channels


def choose_precision(wanted: PrecisionName, device: str, *, bears_half: bool) -> ComputeType:
    """Return the floating-point type in which networks compute on a device.

    Half precision shifts intensities systematically: bfloat16 keeps eight significant bits, and its errors add up over
    the steps of the sampler. Measured with the embedded bundle's trained weights on six held-out phantoms against
    float32 (``tests/benchmarks/precision.py``), bfloat16 moves a voxel of the body by 4.8 HU on average, and the
    medians of liver, spleen and kidney by +6, +8 and +3 HU, most of it in the sampler, so that a precise decoder does
    not help; float16 moves them by 0.6 HU and by 1 HU at most. NVIDIA's own scripts sample in float16. So CUDA devices
    compute in that, and processors, few of which have it, in float32.

    Args:
        wanted: Requested precision; ``auto`` is float16 on CUDA devices, for networks that tolerate it, otherwise
            float32.
        device: ``cpu``, ``cuda``, ``cuda:N``, ``mps`` or ``xpu``.
        bears_half: Whether the networks are known to give the same images in half precision.

    Raises:
        RecipeError: For a half precision that the device does not compute in: emulated, it takes 80 times as long; for
            bfloat16 with a cuDNN that computes it wrongly.
    """
    if wanted == "auto":
        return "float16" if bears_half and device.startswith("cuda") else "float32"
    if wanted != "float32" and not computes_in(wanted, device):
        raise RecipeError(
            f"precision: device '{device}' does not compute in '{wanted}' natively; emulating it would be several "
            "times slower. Use --precision float32 or auto."
        )
    if wanted == "bfloat16" and device.startswith("cuda"):
        require_sound_cudnn(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    return wanted


def require_sound_cudnn(version: int | None) -> None:
    """Raise for a cuDNN whose 3D convolutions in bfloat16 are silently wrong on large inputs.

    The wheels of the required versions of torch contain a later cuDNN, but one of the system may be found first.
    Source: https://github.com/pytorch/pytorch/issues/163539 and 166643.

    Args:
        version: Version as torch gives it, 91002 for 9.10.2; None without cuDNN.

    Raises:
        RecipeError: For cuDNN 9.8 to 9.10.
    """
    if version is not None and version // 100 in FAULTY_CUDNN:
        major, minor, patch = version // 10000, version // 100 % 100, version % 100
        raise RecipeError(
            f"precision: bfloat16 on a CUDA device needs cuDNN 9.11 or later, found cuDNN {major}.{minor}.{patch}, "
            "whose 3D convolutions give wrong results on large inputs. Use --precision float16, or install a later "
            "version: pip install --upgrade torch nvidia-cudnn-cu13"
        )


def computes_in(precision: ComputeType, device: str) -> bool:
    """Whether a device computes in a floating-point type natively, without emulation.

    Args:
        precision: ``float32``, ``bfloat16`` or ``float16``.
        device: Name of a torch device, such as ``cpu`` or ``cuda:0``.
    """
    device_type = device.partition(":")[0]
    if precision == "float32" or device_type == "cuda":
        return True
    if device_type != "cpu":
        return False
    operators = torch.ops.mkldnn
    supported = operators._is_mkldnn_bf16_supported if precision == "bfloat16" else operators._is_mkldnn_fp16_supported
    return bool(supported())


FAULTY_CUDNN = range(908, 911)
"""Major version times 100, plus minor."""
HALF_TYPES: Mapping[ComputeType, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def compute_in(precision: ComputeType, device: str) -> AbstractContextManager[object]:
    """Return a context in which networks compute in a floating-point type, by torch's autocast.

    Args:
        precision: ``float32``, for which the context has no effect, ``bfloat16`` or ``float16``.
        device: Name of the torch device that computes, such as ``cpu`` or ``cuda:0``.
    """
    device_type = device.partition(":")[0]
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device_type, dtype=HALF_TYPES[precision])


def mixed_precision(device: str) -> AbstractContextManager[object]:
    """Return a context for training: bfloat16 autocast if the device supports it, otherwise float32."""
    return compute_in("bfloat16" if computes_in("bfloat16", device) else "float32", device)


def store_in(precision: ComputeType, network: nn.Module) -> None:
    """Convert the weights that autocast would cast at every call to its type, in place: same values, half the memory.

    From then on the network runs only under autocast of that type; results outside of autocast stay float32.

    Args:
        precision: Type of the weights of convolutions and linear layers; ``float32`` changes nothing.
        network: Network, changed in place.
    """
    if precision == "float32" or isinstance(network, _InFloat32):
        return
    if isinstance(network, nn.Conv3d | nn.ConvTranspose3d | nn.Linear):
        network.to(HALF_TYPES[precision])
    for child in network.children():
        store_in(precision, child)


def use_plain_layers(network: nn.Module) -> int:
    """Replace MAISI's memory-saving layers by plain ones with the same weights, in place.

    ``MaisiGroupNorm3D`` loops over groups and ``MaisiConvolution`` splits and pads; where memory allows,
    ``torch.nn.GroupNorm`` and the inner convolution give the same result several times faster. The parameters are
    shared, but their names lose the inner ``.conv``: save weights before, or from an untouched copy.

    Returns:
        Number of layers replaced.
    """
    num_swapped = 0
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            plain = _plain_twin(child)
            if plain is not None:
                setattr(parent, name, plain)
                num_swapped += 1
    return num_swapped


class _InFloat32(nn.Module):
    """A layer that leaves autocast, so that its output is not rounded to half precision."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            output: Tensor = self.inner(features.float())
        return output


def keep_norms_in_float32(network: nn.Module) -> None:
    """Make MAISI's norms return float32 where their definition says float16, which needs autocast; in place."""
    for layer in network.modules():
        if isinstance(layer, MaisiGroupNorm3D):
            layer.norm_float16 = False


def keep_decoder_output_precise(autoencoder: nn.Module) -> None:
    """Run the decoder's last convolution in float32 under autocast, in place.

    Between 0.5 and 1, the range of soft tissue, neighbouring bfloat16 values are 8 HU apart, so that the image would
    show bands.
    """
    blocks = cast(nn.ModuleList, cast(nn.Module, autoencoder.decoder).blocks)
    blocks[-1] = _InFloat32(blocks[-1])


def release_decoder_output(autoencoder: nn.Module) -> None:
    """Undo :func:`keep_decoder_output_precise`, in place."""
    blocks = cast(nn.ModuleList, cast(nn.Module, autoencoder.decoder).blocks)
    if isinstance(blocks[-1], _InFloat32):
        blocks[-1] = blocks[-1].inner


def _plain_twin(layer: nn.Module) -> nn.Module | None:
    if isinstance(layer, MaisiGroupNorm3D):
        norm = nn.GroupNorm(layer.num_groups, layer.num_channels, layer.eps, layer.affine)
        norm.weight, norm.bias = layer.weight, layer.bias
        return norm
    if isinstance(layer, MaisiConvolution):
        inner = layer.conv
        assert isinstance(inner, nn.Module)
        return inner
    return None


class NoControlNet(nn.Module):
    """Placeholder for bundles without a ControlNet, which draw images without a label map; never called."""


@dataclass(frozen=True)
class Networks:
    """Networks of a bundle on one device, ready for inference, with their scheduler."""

    autoencoder: nn.Module
    diffusion_unet: nn.Module
    controlnet: nn.Module
    scheduler: RFlowScheduler | DDPMScheduler
    scale_factor: float
    device: str


@dataclass(frozen=True)
class MaskNetworks:
    """Networks of a bundle that generate label maps, on one device, ready for inference, with their scheduler."""

    autoencoder: nn.Module
    diffusion_unet: nn.Module
    scheduler: DDPMScheduler
    scale_factor: float
    device: str
