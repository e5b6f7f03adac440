"""The objective of fine-tuning: the velocity inside and around the taught labels, and that the map matters there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.networks.schedulers.ddpm import DDPMScheduler
from monai.networks.schedulers.rectified_flow import RFlowScheduler
from torch import Tensor, nn

from maisi_aug.labels import Vocabulary
from maisi_aug.networks import takes_regions
from maisi_aug.regions import find_body_regions
from maisi_aug.seeds import derive_seed
from maisi_aug.slot_choice import TaughtLabel
from maisi_aug.training.contrastive import LabelRemover, find_regions, region_contrastive_loss
from maisi_aug.training.data import CaseStore, LatentSet
from maisi_aug.training.finetune_settings import FinetuneConfig
from maisi_aug.training.flow import FlowObjective, _Batch


class FinetuneObjective(FlowObjective):
    """A ControlNet's loss on cases that hold the taught labels; the U-Net stays frozen.

    The weighted L1 is MAISI's, with the labels in place of its tumours, and so is the region contrastive loss on top.
    """

    def __init__(
        self,
        unet: nn.Module,
        controlnet: nn.Module,
        scheduler: RFlowScheduler | DDPMScheduler,
        store: CaseStore,
        latents: LatentSet,
        config: FinetuneConfig,
        *,
        taught: Sequence[TaughtLabel],
        replayed_ids: Sequence[int],
        vocabulary: Vocabulary,
        device: str,
    ) -> None:
        # Labels that the base learnt earlier count as much as the new ones, or they would be forgotten.
        weighted = [*(label.id for label in taught), *replayed_ids]
        super().__init__(
            unet,
            controlnet,
            scheduler,
            store,
            latents,
            config.loss,
            lesion_ids=weighted,
            seed=derive_seed(config.seed, "finetune"),
            device=device,
        )
        self.finetuning = config
        self.taught = tuple(taught)
        self.remover = LabelRemover(taught, vocabulary)

    def loss(self, step: int, *share: Any) -> tuple[Tensor, dict[str, Any]]:
        """Loss of a step's cases; its parts are logged."""
        batch = self._draw_batch(step, *share)
        noise, timesteps = self._draw_noise(step, batch.clean, *share)
        return self.loss_of(batch, noise, timesteps, with_contrast=self.finetuning.contrastive_weight > 0)

    def loss_of(
        self, batch: _Batch, noise: Tensor, timesteps: Tensor, *, with_contrast: bool
    ) -> tuple[Tensor, dict[str, Any]]:
        """Loss of some cases with given noise.

        Args:
            batch: The cases.
            noise: ``(B, C, i, j, k)`` standard normal.
            timesteps: ``(B,)``.
            with_contrast: Whether the region contrastive loss counts.
        """
        noisy = self.scheduler.add_noise(original_samples=batch.clean, noise=noise, timesteps=timesteps).to(self.device)
        is_flow = isinstance(self.scheduler, RFlowScheduler)
        target = (batch.clean - noise if is_flow else noise).to(self.device)
        times = timesteps.to(self.device)
        output = self._predict(noisy, times, batch).float()
        error = (output - target).abs()
        weight, labels = self._weights(batch)
        num_channels = error.shape[1]
        loss = (error * weight).sum() / (weight.sum().clamp_min(1e-6) * num_channels)
        figures: dict[str, Any] = {"l1": error.detach().mean()}
        if labels.any():
            figures["l1_label"] = (error.detach() * labels).sum() / (labels.sum() * num_channels)
        if with_contrast and is_flow:
            loss = loss + self._contrast(batch, noisy, times, output, target, figures)
        return loss, figures

    def _contrast(
        self,
        batch: _Batch,
        noisy: Tensor,
        timesteps: Tensor,
        output: Tensor,
        target: Tensor,
        figures: dict[str, Any],
    ) -> Tensor:
        pairs = zip(batch.label_maps, batch.spacings_mm, strict=True)
        without_maps = np.stack([self.remover.remove(label_map, spacing_mm) for label_map, spacing_mm in pairs])
        regions = find_regions(batch.label_maps, without_maps, batch.clean.shape)
        if not regions.changed.any():
            return output.new_zeros(())
        without = self._predict(noisy, timesteps, replace(batch, label_maps=without_maps)).float()
        on_device = type(regions)(*(part.to(self.device) for part in regions))
        reward, outside = region_contrastive_loss(
            output, without, target, on_device, bound=self.finetuning.contrastive_bound
        )
        figures["contrast"] = -reward.detach()
        figures["outside"] = outside.detach()
        return self.finetuning.contrastive_weight * (reward + outside)


class HeldOutLoss:
    """The weighted loss on held-out cases, always with the same noise and timesteps."""

    def __init__(self, objective: FinetuneObjective, store: CaseStore, latents: LatentSet) -> None:
        self.objective = objective
        self.store = store
        self.latents = latents

    def __call__(self) -> dict[str, float]:
        """Means over cases and timesteps: ``loss``, ``l1`` and, inside the labels, ``l1_label``."""
        found: dict[str, list[float]] = {}
        num_times = self.objective.finetuning.num_validation_times
        with torch.no_grad():
            for index in range(len(self.store)):
                batch = self._batch(index)
                for number in range(num_times):
                    seed = derive_seed("validation noise", self.objective.seed, index * num_times + number)
                    noise = torch.randn(batch.clean.shape, generator=torch.Generator().manual_seed(seed))
                    loss, figures = self.objective.loss_of(
                        batch, noise, self._timestep((number + 0.5) / num_times), with_contrast=False
                    )
                    for name, value in {"loss": loss, **figures}.items():
                        found.setdefault(name, []).append(float(value))
        return {name: float(np.mean(values)) for name, values in found.items()}

    def _batch(self, index: int) -> _Batch:
        case, latent = self.store[index], self.latents.latents[index]
        regions = (find_body_regions(case.label_map),) if takes_regions(self.objective.unet) else ()
        clean = latent.float()[None] * self.latents.scale_factor
        return _Batch(clean, case.label_map[None], (case.modality,), (case.spacing_mm,), regions)

    def _timestep(self, share: float) -> Tensor:
        scheduler = self.objective.scheduler
        timestep = torch.tensor([share * scheduler.num_train_timesteps])
        return timestep.long() if isinstance(scheduler, DDPMScheduler) else timestep
