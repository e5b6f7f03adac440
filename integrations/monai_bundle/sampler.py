"""Draw CT images of label maps with MAISI's networks: what ``configs/inference.json`` of this MONAI bundle runs.

Axes are ``I J K`` in RAS+. Label maps hold MAISI's ids, with 200 for the body around the organs and 0 for air.

Source: Guo et al., "MAISI: Medical AI for Synthetic Imaging", WACV 2025, and NVIDIA's published configurations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import SlidingWindowInferer
from monai.networks.schedulers.ddpm import DDPMScheduler
from monai.networks.schedulers.rectified_flow import RFlowScheduler
from torch import Tensor, nn

BODY_ID = 200
NUM_LABEL_BITS = 8
MAX_ID = 2**NUM_LABEL_BITS - 1
SPACING_SCALE = 100.0
REGION_SCALE = 100.0
HU_MINIMUM, HU_MAXIMUM = -1000.0, 1000.0


def load_network(network: nn.Module, path: str, device: torch.device) -> nn.Module:
    """Load all weights of a safetensors file into a network, in float32, and move it to a device.

    Args:
        network: Freshly built network.
        path: Path of the file.
        device: Device of the network.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: weights not found. Run in the bundle's folder, or add --bundle_root FOLDER.")
    state = safetensors.torch.load_file(path)
    network.load_state_dict({name: value.float() for name, value in state.items()})
    return network.eval().requires_grad_(False).to(device)


class LabelMapSampler:
    """Draws CT images from label maps inside an exported MONAI bundle, without this package unless it completes maps.

    Args:
        autoencoder: VAE, of which the decoder is used.
        diffusion_unet: Diffusion U-Net.
        controlnet: ControlNet that is conditioned on 8 bits of a label map.
        scheduler: Rectified flow or DDPM.
        scale_factor: Factor by which latents are divided before they are decoded.
        num_inference_steps: Number of sampling steps.
        seed: Seed; the same seed gives the same image on the same type of device.
        modality: Code of the modality; None for networks that are not conditioned on one.
        region_labels: For each body region from head to pelvis, ids that belong to it; None for networks that are not
            conditioned on regions.
        usual_regions: Indices of the uppermost and lowest region for a label map without any of those ids.
        latent_factor: Image voxels per latent voxel along a side.
        grid_factor: Number of which the sides of label maps must be multiples.
        decode_window: Latent voxels along I, J, K that are decoded at once; None decodes the whole image.
        decode_overlap: Fraction of a window that overlaps with the next one.
        amp: Whether to compute in float16, on a CUDA device.
        completes: Whether the networks take completed label maps, which the package maisi-aug makes of others.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        diffusion_unet: nn.Module,
        controlnet: nn.Module,
        scheduler: Any,
        *,
        scale_factor: float,
        num_inference_steps: int,
        latent_factor: int,
        seed: int = 0,
        modality: int | None = None,
        region_labels: Sequence[Sequence[int]] | None = None,
        usual_regions: Sequence[int] = (1, 2),
        grid_factor: int = 1,
        decode_window: Sequence[int] | None = None,
        decode_overlap: float = 0.4,
        amp: bool = False,
        completes: bool = False,
    ) -> None:
        self.autoencoder, self.diffusion_unet, self.controlnet = autoencoder, diffusion_unet, controlnet
        self.scheduler, self.scale_factor = scheduler, scale_factor
        self.num_inference_steps, self.seed, self.modality = num_inference_steps, seed, modality
        self.region_labels, self.usual_regions = region_labels, usual_regions
        # MONAI's scheduler would leave noise in the image: it removes that of one time step at each step.
        if isinstance(scheduler, DDPMScheduler) and num_inference_steps != scheduler.num_train_timesteps:
            raise ValueError(
                f"num_inference_steps: must be {scheduler.num_train_timesteps}, because DDPM uses every time step, "
                f"found {num_inference_steps}. Leave it out, or use maisi-aug, which draws with fewer."
            )
        self.latent_factor, self.grid_factor, self.amp = latent_factor, grid_factor, amp
        self.completes = completes
        self.decode_window, self.decode_overlap = decode_window, decode_overlap
        self.device = next(diffusion_unet.parameters()).device

    @torch.inference_mode()
    def __call__(self, label_map: MetaTensor) -> MetaTensor:
        """Draw the image of a label map.

        Args:
            label_map: ``(1, I, J, K)`` ids in RAS+, with its affine.

        Returns:
            ``(1, I, J, K)`` int16 HU; -1000 where the label map is 0.

        Raises:
            ValueError: For a label map that the networks cannot take.
            ImportError: The networks take completed label maps, and maisi-aug is not installed.
        """
        self._require_drawable(label_map.as_tensor())
        ids = label_map.as_tensor().round().to(torch.uint8)
        if self.completes:
            ids = self._complete(ids, torch.as_tensor(label_map.affine))
        spacing_mm = [float(length) for length in torch.as_tensor(label_map.affine)[:3, :3].norm(dim=0)]
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.amp):
            latent = self._sample(ids.to(self.device), self._condition(ids, spacing_mm))
            image = self._decode(latent.float() / self.scale_factor)
        image_hu = image[0].float().cpu().clamp(0.0, 1.0) * (HU_MAXIMUM - HU_MINIMUM) + HU_MINIMUM
        image_hu[ids.cpu() == 0] = HU_MINIMUM
        return MetaTensor(image_hu.round().to(torch.int16), meta=dict(label_map.meta))

    def _complete(self, ids: Tensor, affine: Tensor) -> Tensor:
        """The label map with procedural anatomy where nothing is labelled, by the seed and the modality."""
        try:
            from maisi_aug.phantom.condition import condition_map
            from maisi_aug.vocabulary.modalities import MODALITY_CODES
            from maisi_aug.volumes.grid import Grid
        except ImportError as error:
            raise ImportError(
                "These networks take label maps that procedural anatomy completes, which needs the package maisi-aug. "
                "Run: pip install maisi-aug"
            ) from error
        names = {code: name for name, code in MODALITY_CODES.items()}
        maps = ids[0].cpu().numpy()
        grid = Grid(maps.shape, affine.cpu().numpy())
        completed = condition_map(maps, grid=grid, seed=self.seed, modality=names[self.modality or 1])
        return torch.from_numpy(completed)[None]

    def _require_drawable(self, ids: Tensor) -> None:
        if any(side % self.grid_factor for side in ids.shape[1:]):
            raise ValueError(
                f"Label map: its sides {tuple(ids.shape[1:])} are not all multiples of {self.grid_factor}. Resample it."
            )
        if not self.completes and not bool((ids == BODY_ID).any()):
            raise ValueError(
                f"Label map: the body around the organs (id {BODY_ID}) is missing, without which images are poor. "
                "Add it."
            )
        if ids.min() < 0 or ids.max() > MAX_ID:
            raise ValueError(
                f"Label map: ids must be from 0 to {MAX_ID}, found {ids.min():g} to {ids.max():g}. Change them."
            )

    def _condition(self, ids: Tensor, spacing_mm: Sequence[float]) -> dict[str, Tensor]:
        """Conditions of the U-Net by the names of its arguments."""
        told = {"spacing_tensor": torch.tensor([spacing_mm], dtype=torch.float32) * SPACING_SCALE}  # (1, 3)
        if self.modality is not None:
            told["class_labels"] = torch.tensor([self.modality])
        if self.region_labels is not None:
            present = set(torch.unique(ids).tolist())
            shown = [place for place, labels in enumerate(self.region_labels) if present.intersection(labels)]
            shown = shown or list(self.usual_regions)
            names = ("top_region_index_tensor", "bottom_region_index_tensor")
            for name, place in zip(names, (shown[0], shown[-1]), strict=True):
                told[name] = torch.eye(len(self.region_labels))[place : place + 1] * REGION_SCALE  # (1, regions)
        return {name: value.to(self.device) for name, value in told.items()}

    def _sample(self, ids: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        """From noise to a latent ``(1, C, i, j, k)``."""
        bits = torch.arange(NUM_LABEL_BITS, dtype=torch.uint8, device=ids.device).view(1, -1, 1, 1, 1)
        control = torch.bitwise_and(torch.bitwise_right_shift(ids[:, None], bits), 1).float()  # (1, 8, I, J, K)
        latent = self._draw_noise([side // self.latent_factor for side in ids.shape[1:]])
        self._set_timesteps(latent)
        timesteps = self.scheduler.timesteps
        if timesteps.is_floating_point():
            timesteps = timesteps.float()
        generator = torch.Generator(self.device).manual_seed(derive_seed(self.seed, "sampling noise"))
        modality = {"class_labels": told["class_labels"]} if "class_labels" in told else {}
        for place, timestep in enumerate(timesteps):
            time = timestep[None].to(self.device)
            down, middle = self.controlnet(x=latent, timesteps=time, controlnet_cond=control, **modality)
            output = self.diffusion_unet(
                x=latent,
                timesteps=time,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
                **told,
            ).float()
            if isinstance(self.scheduler, RFlowScheduler):
                following = timesteps[place + 1] if place + 1 < len(timesteps) else torch.zeros_like(timestep)
                latent, _ = self.scheduler.step(output, timestep, latent, following)
            else:
                latent, _ = self.scheduler.step(output, timestep, latent, generator)
        return latent

    def _draw_noise(self, sides: Sequence[int]) -> Tensor:
        # Drawn on the CPU, so that the same seed means the same noise on every device.
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "latent noise"))
        channels = int(self.diffusion_unet.in_channels)  # type: ignore[arg-type]
        return torch.randn((1, channels, *sides), generator=generator).to(self.device)

    def _set_timesteps(self, latent: Tensor) -> None:
        if isinstance(self.scheduler, RFlowScheduler):
            self.scheduler.set_timesteps(
                self.num_inference_steps, device=self.device, input_img_size_numel=latent[0, 0].numel()
            )
        else:
            self.scheduler.set_timesteps(self.num_inference_steps, device=self.device)

    def _decode(self, latent: Tensor) -> Tensor:
        """``(1, 1, I, J, K)``, the whole at once or in windows that are blended."""
        window = self.decode_window
        if window is None or all(side <= length for side, length in zip(latent.shape[2:], window, strict=True)):
            return self.autoencoder.decode(latent)  # type: ignore[operator,no-any-return]
        inferer = SlidingWindowInferer(
            roi_size=[min(pair) for pair in zip(window, latent.shape[2:], strict=True)],
            mode="gaussian",
            overlap=self.decode_overlap,
        )
        image: Tensor = inferer(latent, self.autoencoder.decode)
        return image


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed derived from a seed and the name of a random stream."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
