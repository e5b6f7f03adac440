"""The objective of fine-tuning: the velocity inside and around the taught labels, and that the map matters there."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.schedulers.ddpm import DDPMScheduler
from monai.networks.schedulers.rectified_flow import RFlowScheduler
from torch import nn

from maisi_aug.system.seeds import derive_seed
from maisi_aug.training.cases.data import CaseStore, LatentSet
from maisi_aug.training.cases.taught_label import TaughtLabel
from maisi_aug.training.finetune.settings import FinetuneConfig
from maisi_aug.training.images.contrastive import LabelRemover
from maisi_aug.training.images.flow import FlowObjective
from maisi_aug.training.loop.processes import ALONE, Processes
from maisi_aug.vocabulary.labels import Vocabulary


class FinetuneObjective(FlowObjective):
    """A ControlNet's loss on cases that hold the taught labels; the U-Net stays frozen.

    The weighted L1 and the region contrastive loss are MAISI's with the labels in place of its tumours, but for the
    scale of the first: see ``FlowObjective``.
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
        contrast = {
            "contrastive_weight": config.contrastive_weight,
            "contrastive_bound": config.contrastive_bound,
        }
        super().__init__(
            unet,
            controlnet,
            scheduler,
            store,
            latents,
            config.loss.model_copy(update=contrast),
            lesion_ids=weighted,
            seed=derive_seed(config.seed, "finetune"),
            device=device,
            remover=LabelRemover.of_taught(taught, vocabulary),
            processes=processes,
        )
