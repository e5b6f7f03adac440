"""The objective of the diffusion U-Net, alone or together with its ControlNet, on encoded latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.networks.schedulers.ddpm import DDPMScheduler
from monai.networks.schedulers.rectified_flow import RFlowScheduler
from torch import Tensor, nn
from torch.nn import functional

from maisi_aug.conditioning import to_label_bits, to_modality_tensor, to_spacing_tensor
from maisi_aug.seeds import derive_seed, numpy_generator
from maisi_aug.training.data import CaseStore, LatentSet
from maisi_aug.training.settings import FlowLossConfig


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
        rng = numpy_generator(derive_seed("flow batch", self.seed, step), "cases")
        indices = [int(index) for index in rng.integers(len(self.store), size=self.config.batch_count)]
        clean = torch.stack([self.latents.latents[index].float() for index in indices]) * self.latents.scale_factor
        noise, timesteps = self._draw_noise(step, clean)
        noisy = self.scheduler.add_noise(original_samples=clean, noise=noise, timesteps=timesteps)
        target = clean - noise if isinstance(self.scheduler, RFlowScheduler) else noise
        output = self._predict(noisy.to(self.device), timesteps.to(self.device), indices, rng)
        error = (output.float() - target.to(self.device)).abs()
        weight, lesions = self._weights(indices, clean.shape)
        loss = (error * weight).sum() / (weight.sum() * error.shape[1])
        figures = {"l1": float(error.mean()), "timestep": float(timesteps.float().mean())}
        if lesions.any():
            figures["l1_lesion"] = float((error * lesions).sum() / (lesions.sum() * error.shape[1]))
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
        return noise, share * num

    def _predict(self, noisy: Tensor, timesteps: Tensor, indices: list[int], rng: np.random.Generator) -> Tensor:
        cases = [self.store[index] for index in indices]
        modalities = ["ct" if rng.random() < self.config.modality_dropout else case.modality for case in cases]
        classes = to_modality_tensor(modalities, device=self.device)
        residuals: dict[str, Any] = {}
        if self.controlnet is not None:
            label_maps = torch.from_numpy(np.stack([case.label_map for case in cases])).to(self.device)
            down, middle = self.controlnet(
                x=noisy, timesteps=timesteps, controlnet_cond=to_label_bits(label_maps), class_labels=classes
            )
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        spacing = to_spacing_tensor([case.spacing_mm for case in cases], device=self.device)
        output: Tensor = self.unet(
            x=noisy, timesteps=timesteps, class_labels=classes, spacing_tensor=spacing, **residuals
        )
        return output

    def _weights(self, indices: list[int], shape: torch.Size) -> tuple[Tensor, Tensor]:
        label_maps = np.stack([self.store[index].label_map for index in indices])
        lesions = _pool(np.isin(label_maps, self.lesion_ids), shape)
        body = _pool(label_maps > 0, shape)
        weight = torch.where(body > 0, 1.0, self.config.outside_weight)
        weight = torch.where(lesions > 0, self.config.lesion_weight, weight)
        return weight.to(self.device), lesions.to(self.device)


def _pool(mask: np.ndarray[Any, Any], shape: torch.Size) -> Tensor:
    """``(B, 1, i, j, k)`` float32: whether any voxel of a latent voxel is set."""
    voxels = torch.from_numpy(mask)[:, None].float()
    return functional.adaptive_max_pool3d(voxels, list(shape[2:]))
