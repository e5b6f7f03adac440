"""From a label map to an image as NVIDIA's published scripts do it, written plainly from MONAI's public classes.

The oracle of the tests and the other side of the benchmark. Nothing of the package is used: the condition embedding is
computed at every step, norms and convolutions are MAISI's own, windows are stitched on the CPU by MONAI.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi, MaisiGroupNorm3D
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.inferers import SlidingWindowInferer
from monai.networks.schedulers import DDPMScheduler, RFlowScheduler
from numpy.typing import NDArray
from torch import Tensor

from tests.oracles.rounding import in_float64

NETWORKS = {"autoencoder": AutoencoderKlMaisi, "diffusion_unet": DiffusionModelUNetMaisi, "controlnet": ControlNetMaisi}
MODALITY_CODES = {"unknown": 0, "ct": 1, "ct_wo_contrast": 2, "ct_contrast": 3}
REGIONS = ("head", "thorax", "abdomen", "pelvis")


@dataclass(frozen=True)
class Inputs:
    """What both networks are told; without a label map the U-Net works alone."""

    label_bits: Tensor | None
    modality: Tensor
    spacing: Tensor
    regions: tuple[Tensor, Tensor] | None = None

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same, with what is no code in another type."""
        regions = None if self.regions is None else (self.regions[0].to(dtype), self.regions[1].to(dtype))
        label_bits = None if self.label_bits is None else self.label_bits.to(dtype)
        return Inputs(label_bits, self.modality, self.spacing.to(dtype), regions)


def encode(
    label_map: NDArray[np.uint8],
    spacing_mm: tuple[float, float, float],
    modality: str = "ct",
    regions: tuple[str, str] | None = None,
    device: str = "cpu",
) -> Inputs:
    """Label map, spacing, modality and body regions as MAISI's tensors."""
    ids = torch.from_numpy(label_map.astype(np.int64))
    bits = torch.stack([(ids // 2**bit % 2).float() for bit in range(8)])[None].to(device)
    one_hots = None
    if regions is not None:
        rows = [[100.0 * (place == REGIONS.index(region)) for place in range(4)] for region in regions]
        one_hots = torch.tensor(rows[:1], device=device), torch.tensor(rows[1:], device=device)
    return Inputs(
        bits,
        torch.tensor([MODALITY_CODES[modality]], device=device),
        torch.tensor([spacing_mm], device=device) * 100.0,
        one_hots,
    )


def load_networks(
    classes: Mapping[str, Callable[..., Any]],
    definitions: Mapping[str, Mapping[str, Any]],
    states: Mapping[str, Mapping[str, Tensor]],
    device: str,
    *,
    is_exact: bool,
) -> dict[str, Any]:
    """The networks that there are weights of, with these, as they are off CUDA where they have to be.

    Exact ones compute in float64: what float32 is judged by.
    """
    networks = {}
    for role, state in states.items():
        arguments = {key: value for key, value in definitions[role].items() if key != "class"}
        if not device.startswith("cuda") and "use_flash_attention" in arguments:
            arguments["use_flash_attention"] = False  # it raises without CUDA
        network = classes[role](**arguments).to(device).eval().requires_grad_(False)
        network.load_state_dict(state)
        for layer in network.modules():
            if isinstance(layer, MaisiGroupNorm3D) and not device.startswith("cuda"):
                layer.norm_float16 = False  # the next convolution takes it under CUDA's autocast only
        networks[role] = in_float64(network) if is_exact else network
    return networks


class ReferenceLoop:
    """The networks of a bundle and the loop over them; exact in float64, with a latent of the same type."""

    def __init__(
        self,
        definitions: Mapping[str, Mapping[str, Any]],
        states: Mapping[str, Mapping[str, Tensor]],
        scheduler: Mapping[str, Any],
        *,
        scale_factor: float = 1.0,
        device: str = "cpu",
        is_exact: bool = False,
    ) -> None:
        self.device, self.scale_factor = device, scale_factor
        self.networks = load_networks(NETWORKS, definitions, states, device, is_exact=is_exact)
        self.dtype = torch.float64 if is_exact else torch.float32
        settings = {key: value for key, value in scheduler.items() if key != "class"}
        self.is_flow = scheduler["class"] == "RFlowScheduler"
        self.scheduler = RFlowScheduler(**settings) if self.is_flow else DDPMScheduler(**settings)

    def predict(self, latent: Tensor, timestep: Tensor, inputs: Inputs) -> Tensor:
        timesteps = torch.Tensor((timestep,)).to(self.device)
        inputs = inputs.to(self.dtype)
        down, middle = None, None
        if inputs.label_bits is not None:
            down, middle = self.networks["controlnet"](
                x=latent, timesteps=timesteps, controlnet_cond=inputs.label_bits, class_labels=inputs.modality
            )
        top, bottom = inputs.regions or (None, None)
        output: Tensor = self.networks["diffusion_unet"](
            x=latent,
            timesteps=timesteps,
            top_region_index_tensor=top,
            bottom_region_index_tensor=bottom,
            spacing_tensor=inputs.spacing,
            class_labels=inputs.modality,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        )
        return output

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        wanted: Inputs,
        unconditional: Inputs | None = None,
        *,
        num_steps: int,
        guidance_scale: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """From noise to a latent, one step after the other."""
        latent = noise.to(self.dtype)
        if self.is_flow:
            self.scheduler.set_timesteps(num_steps, input_img_size_numel=prod(latent.shape[2:]))
        else:
            self.scheduler.set_timesteps(num_steps)
        timesteps = self.scheduler.timesteps
        next_timesteps = [*timesteps[1:], torch.tensor(0, dtype=timesteps.dtype)]
        for timestep, next_timestep in zip(timesteps, next_timesteps, strict=True):
            output = self.predict(latent, timestep, wanted)
            if unconditional is not None:
                base = self.predict(latent, timestep, unconditional)
                output = base + guidance_scale * (output - base)
            if self.is_flow:
                latent, _ = self.scheduler.step(output, timestep, latent, next_timestep)
            else:
                # In float32, of which the scheduler then draws its noise.
                latent, _ = self.scheduler.step(output.float(), timestep, latent, generator=generator)
        return latent

    @torch.no_grad()
    def decode(self, latent: Tensor, window: tuple[int, int, int] | None = None, overlap: float = 0.4) -> Tensor:
        """A latent as an image in [0, 1] on the CPU, whole or in windows."""

        def reconstruct(part: Tensor) -> Tensor:
            decoded: Tensor = self.networks["autoencoder"].decode_stage_2_outputs(part / self.scale_factor)
            return decoded

        image: Any
        if window is None or prod(latent.shape[2:]) <= prod(window):
            image = reconstruct(latent)
        else:
            inferer = SlidingWindowInferer(
                window, sw_batch_size=1, mode="gaussian", overlap=overlap, sw_device=self.device, device="cpu"
            )
            image = inferer(network=reconstruct, inputs=latent)
        return torch.clip(image, 0.0, 1.0).cpu()


def to_hu(image: Tensor, label_map: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Whole HU with air outside the body."""
    scaled = image[0, 0].float().numpy() * 2000.0 - 1000.0
    return np.where(label_map == 0, -1000, np.round(scaled)).astype(np.int16)


ORGANS: dict[str, list[int]] = {
    "liver": [1],
    "spleen": [3],
    "pancreas": [4],
    "kidney": [5, 14],
    "lung": [28, 29, 30, 31, 32],
    "brain": [22],
    "bone": [*range(33, 57), *range(63, 98), 120, 122, 127],
}


def check_medians(
    image_hu: NDArray[np.int16], label_map: NDArray[np.uint8], is_inside: Callable[[str, float], bool]
) -> dict[str, bool]:
    """The published quality check: the median of every organ that is there, masks put together label by label."""
    verdicts = {}
    for organ, ids in ORGANS.items():
        mask = np.zeros_like(label_map)
        for label_id in ids:
            mask[label_map == label_id] = 1
        values = image_hu[mask == 1]
        if len(values):
            verdicts[organ] = is_inside(organ, float(np.median(values)))
    return verdicts
