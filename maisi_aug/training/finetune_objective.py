"""The objective of fine-tuning: the velocity inside and around the taught labels, and that the map matters there."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from monai.networks.schedulers.ddpm import DDPMScheduler
from monai.networks.schedulers.rectified_flow import RFlowScheduler
from torch import Tensor, nn

from maisi_aug.labels import Vocabulary
from maisi_aug.seeds import derive_seed
from maisi_aug.slot_choice import TaughtLabel
from maisi_aug.training.contrastive import ChangedRegions, LabelRemover, find_regions, region_contrastive_loss
from maisi_aug.training.data import CaseStore, LatentSet
from maisi_aug.training.finetune_settings import FinetuneConfig
from maisi_aug.training.flow import Batch, FlowObjective, Prediction
from maisi_aug.training.processes import ALONE, Processes


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
        processes: Processes = ALONE,
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
            processes=processes,
        )
        self.finetuning = config
        self.taught = tuple(taught)
        self.remover = LabelRemover(taught, vocabulary)

    def on(self, store: CaseStore, latents: LatentSet) -> FinetuneObjective:
        """The same networks and losses on other cases."""
        other = copy.copy(self)
        other.store, other.latents = store, latents
        return other

    def _extra_loss(self, batch: Batch, predicted: Prediction, figures: dict[str, Tensor]) -> Tensor | None:
        """The region contrastive loss, while the network trains."""
        weight = self.finetuning.contrastive_weight
        if weight == 0 or not torch.is_grad_enabled() or not isinstance(self.scheduler, RFlowScheduler):
            return None
        pairs = zip(batch.label_maps, batch.spacings_mm, strict=True)
        without_maps = np.stack([self.remover.remove(label_map, spacing_mm) for label_map, spacing_mm in pairs])
        regions = find_regions(batch.label_maps, without_maps, batch.clean.shape)
        if not regions.changed.any():
            return None
        on_maps = torch.from_numpy(without_maps).to(self.device)
        without = self._predict(predicted.noisy, predicted.timesteps, batch, on_maps).float()
        on_device = ChangedRegions(*(part.to(self.device) for part in regions))
        reward, outside = region_contrastive_loss(
            predicted.output, without, predicted.target, on_device, bound=self.finetuning.contrastive_bound
        )
        figures |= {"contrast": -reward, "outside": outside}
        return weight * (reward + outside)
