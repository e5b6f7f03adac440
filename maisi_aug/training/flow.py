"""The objective of the diffusion U-Net, alone or together with its ControlNet, on encoded latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.networks.schedulers.ddpm import DDPMScheduler
from monai.networks.schedulers.rectified_flow import RFlowScheduler
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from maisi_aug.conditioning import (
    name_for_unet,
    to_label_bits,
    to_modality_tensor,
    to_region_tensors,
    to_spacing_tensor,
)
from maisi_aug.grid import Shape, Spacing
from maisi_aug.networks import takes_regions
from maisi_aug.regions import Regions, find_body_regions
from maisi_aug.seeds import derive_seed, numpy_generator
from maisi_aug.training.data import CaseStore, LatentSet
from maisi_aug.training.settings import FlowLossConfig


@dataclass(frozen=True, eq=False)
class _Batch:
    """Cases of one step: ``(B, C, i, j, k)`` scaled latents, ``(B, I, J, K)`` label maps, and what else is told.

    The regions are those of the whole case, as at generation: a crop may show none of the organs that tell them.
    """

    clean: Tensor
    label_maps: NDArray[np.uint8]
    modalities: tuple[str, ...]
    spacings_mm: tuple[Spacing, ...]
    regions: tuple[Regions, ...]


class FlowObjective:
    """Predict velocity or noise from noisy latents, with a ControlNet when one is given.

    Rectified flow: x_t = (1 - t) x_0 + t e, target x_0 - e (Liu et al., "Flow Straight and Fast", ICLR 2023).
    DDPM: target e (Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020).
    """

    def __init__(
        self,
        unet: nn.Module,
        controlnet: nn.Module | None,
        scheduler: RFlowScheduler | DDPMScheduler,
        store: CaseStore,
        latents: LatentSet,
        config: FlowLossConfig,
        *,
        lesion_ids: Sequence[int],
        seed: int,
        device: str,
    ) -> None:
        self.unet = unet
        self.controlnet = controlnet
        self.scheduler = scheduler
        self.store = store
        self.latents = latents
        self.config = config
        self.lesion_ids = np.asarray(lesion_ids, dtype=np.uint8)
        self.seed = seed
        self.device = device
        self._unet_trains = controlnet is None or config.train_unet
        unet.requires_grad_(self._unet_trains)

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The ControlNet and, where it learns, the U-Net."""
        trained: dict[str, nn.Module] = {"diffusion_unet": self.unet} if self._unet_trains else {}
        if self.controlnet is not None:
            trained["controlnet"] = self.controlnet
        return trained

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Weighted L1 of a step, with the plain L1 and that inside lesions."""
        batch = self._draw_batch(step)
        noise, timesteps = self._draw_noise(step, batch.clean)
        noisy = self.scheduler.add_noise(original_samples=batch.clean, noise=noise, timesteps=timesteps)
        target = batch.clean - noise if isinstance(self.scheduler, RFlowScheduler) else noise
        output = self._predict(noisy.to(self.device), timesteps.to(self.device), batch)
        signed_error = output.float() - target.to(self.device)
        error = signed_error.abs()
        weight, lesions = self._weights(batch)
        # A crop without body has no weight at all where the outside has none.
        loss = (error * weight).sum() / (weight.sum().clamp_min(1e-6) * error.shape[1])
        figures = {"l1": float(error.detach().mean()), "timestep": float(timesteps.float().mean())}
        if lesions.any():
            figures["l1_lesion"] = float((error.detach() * lesions).sum() / (lesions.sum() * error.shape[1]))
        if self.config.label_mean_weight > 0:
            label_maps = torch.from_numpy(batch.label_maps).to(self.device)
            mean_error = label_mean_error(signed_error, label_maps, self.lesion_ids.tolist(), self.config.lesion_weight)
            loss = loss + self.config.label_mean_weight * mean_error
            figures["label_mean"] = float(mean_error.detach())
        return loss, figures

    def after_step(self, step: int) -> None:
        """Nothing to do."""

    def state(self) -> dict[str, Any]:
        """Nothing beside the networks."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to take back."""

    def _draw_noise(self, step: int, clean: Tensor) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(derive_seed("flow noise", self.seed, step))
        noise = torch.randn(clean.shape, generator=generator)
        num = self.scheduler.num_train_timesteps
        share = torch.rand(len(clean), generator=generator)
        if isinstance(self.scheduler, DDPMScheduler):
            return noise, (share * num).long()
        if _is_uniform(self.scheduler):
            return noise, share * num
        with torch.random.fork_rng(devices=[]):  # MONAI draws from the global generator
            torch.manual_seed(derive_seed("flow timesteps", self.seed, step))
            timesteps: Tensor = self.scheduler.sample_timesteps(clean)
        return noise, timesteps

    def _draw_batch(self, step: int) -> _Batch:
        rng = numpy_generator(derive_seed("flow batch", self.seed, step), "cases")
        start = self.config.whole_start_step
        is_late = start is not None and step >= start
        is_whole = self.config.crop_shape is None or is_late
        count = (self.config.whole_batch_count if is_late else None) or self.config.batch_count
        cleans, label_maps, modalities, spacings, regions = [], [], [], [], []
        for index in rng.integers(len(self.store), size=count):
            case, latent = self.store[int(index)], self.latents.latents[int(index)]
            _, i, j, k = latent.shape
            shape = (i, j, k) if is_whole or self.config.crop_shape is None else self.config.crop_shape
            in_latent, in_image = self._draw_crop(case.label_map, (i, j, k), shape, rng)
            cleans.append(latent[(slice(None), *in_latent)].float() * self.latents.scale_factor)
            label_maps.append(case.label_map[in_image])
            modalities.append("ct" if rng.random() < self.config.modality_dropout else case.modality)
            spacings.append(case.spacing_mm)
            if takes_regions(self.unet):
                regions.append(find_body_regions(case.label_map))
        return _Batch(torch.stack(cleans), np.stack(label_maps), tuple(modalities), tuple(spacings), tuple(regions))

    def _draw_crop(
        self, label_map: NDArray[np.uint8], latent_shape: Shape, wanted: Shape, rng: np.random.Generator
    ) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """The same random box in latent voxels and in image voxels."""
        shape = np.minimum(wanted, latent_shape)
        limits = np.asarray(latent_shape) - shape
        corner = rng.integers(0, limits + 1)
        if rng.random() < self.config.lesion_share and limits.any():
            lesion_voxels = np.argwhere(np.isin(label_map, self.lesion_ids))
            if len(lesion_voxels):
                factor = np.asarray(label_map.shape) // np.asarray(latent_shape)
                centre = lesion_voxels[rng.integers(len(lesion_voxels))] // factor
                corner = np.clip(centre - rng.integers(0, shape), 0, limits)
        factors = [side // latent for side, latent in zip(label_map.shape, latent_shape, strict=True)]
        in_latent = tuple(slice(int(c), int(c + s)) for c, s in zip(corner, shape, strict=True))
        in_image = tuple(slice(b.start * f, b.stop * f) for b, f in zip(in_latent, factors, strict=True))
        return in_latent, in_image

    def _predict(self, noisy: Tensor, timesteps: Tensor, batch: _Batch) -> Tensor:
        device = self.device
        modality = to_modality_tensor(batch.modalities, device=device)
        spacing = to_spacing_tensor(batch.spacings_mm, device=device)
        regions = to_region_tensors(batch.regions, device=device) if batch.regions else None
        residuals: dict[str, Any] = {}
        if self.controlnet is not None:
            label_bits = to_label_bits(torch.from_numpy(batch.label_maps).to(device))
            down, middle = self.controlnet(
                x=noisy, timesteps=timesteps, controlnet_cond=label_bits, class_labels=modality
            )
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        told = name_for_unet(modality, spacing, regions)
        output: Tensor = self.unet(x=noisy, timesteps=timesteps, **told, **residuals)
        return output

    def _weights(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        lesions = _pool(np.isin(batch.label_maps, self.lesion_ids), batch.clean.shape)
        body = _pool(batch.label_maps > 0, batch.clean.shape)
        weight = torch.where(body > 0, 1.0, self.config.outside_weight)
        weight = torch.where(lesions > 0, self.config.lesion_weight, weight)
        return weight.to(self.device), lesions.to(self.device)


def label_mean_error(error: Tensor, label_maps: Tensor, lesion_ids: Sequence[int], lesion_weight: float) -> Tensor:
    """Absolute mean error of every label, averaged over labels by the square root of their voxels.

    The error of a voxel is mostly noise that no network could foretell; over a label it cancels, and what is left is
    whether organs and lesions have the right intensity. That keeps a faint lesion from being painted over.

    Args:
        error: ``(B, C, i, j, k)`` signed.
        label_maps: ``(B, I, J, K)`` ids, whole multiples as wide; background does not count.
        lesion_ids: Which of them are lesions.
        lesion_weight: Factor on these.

    Returns:
        A scalar.
    """
    batch_count, num_channels = error.shape[:2]
    wide = functional.interpolate(error, size=label_maps.shape[1:], mode="nearest")
    place = label_maps.flatten(1).long() + 256 * torch.arange(batch_count, device=error.device)[:, None]
    sums = error.new_zeros(256 * batch_count, num_channels)
    sums = sums.index_add(0, place.flatten(), wide.flatten(2).transpose(1, 2).reshape(-1, num_channels))
    counts = torch.bincount(place.flatten(), minlength=256 * batch_count).to(sums)
    weight = counts.sqrt().view(batch_count, 256)
    weight[:, 0] = 0.0
    weight[:, torch.as_tensor(lesion_ids, device=error.device).long()] *= lesion_weight
    means = (sums / counts.clamp_min(1.0)[:, None]).abs().mean(dim=1)
    return (means * weight.flatten()).sum() / weight.sum().clamp_min(1e-6)


def _is_uniform(scheduler: RFlowScheduler) -> bool:
    """Whether timesteps are drawn evenly over the whole range, without rounding or a shift towards noise."""
    is_shifted = scheduler.use_timestep_transform or scheduler.use_discrete_timesteps
    return scheduler.sample_method == "uniform" and not is_shifted


def _pool(mask: NDArray[np.bool_], shape: torch.Size) -> Tensor:
    """``(B, 1, i, j, k)`` float32: whether any voxel of a latent voxel is set."""
    voxels = torch.from_numpy(mask)[:, None].float()
    return functional.adaptive_max_pool3d(voxels, list(shape[2:]))
