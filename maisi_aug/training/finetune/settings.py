"""Settings of a fine-tuning run, as they are kept beside it. Needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from maisi_aug.system.models import StrictModel
from maisi_aug.training.loop.settings import FlowLossConfig, LoopConfig

Tune = Literal["full", "partial", "low-rank"]
Start = Literal["auto", "label-means", "base"]
DEFAULT_RATES: dict[str, float] = {"full": 1e-5, "partial": 1e-5, "low-rank": 1e-4}
"""Peak learning rates; that of ``full`` is MAISI's."""


class FinetuneConfig(StrictModel):
    """What decides the weights of a fine-tuned ControlNet, beside the base and the data.

    Attributes:
        labels: What is taught, as the user names it.
        slots: Name -> placeholder slot or free id; ``auto`` or none for a free choice.
        hosts: Name -> hosts by name or id; none for what the base, the data or the surroundings say.
        kinds: Name -> ``lesion`` or ``organ``; none for what the base, the data or the sizes say.
        fold: Fold of the prepared data that is held out for validation.
        tune: ``full`` trains the whole ControlNet; ``partial`` what reads the label map and what hands over to the
            U-Net, its copy of the U-Net's encoder staying as it is; ``low-rank`` adds matrices of low rank to all
            layers.
        rank: Of those matrices.
        start: ``label-means`` sets the intensity of each new label to its mean in the data before the first step, for
            ControlNets that look intensities up; ``base`` takes the base as it is; ``auto`` the former where it can.
        contrastive_weight: Of the region contrastive loss; 0 leaves it out. A ddpm base has none, as in MAISI.
        contrastive_bound: Mean difference between the outputs with and without the labels that is rewarded at most.
        num_pictures: Held-out cases that are drawn.
        seed: Of batches, noise and everything else.
        loss: Of the velocity or the noise; its ``lesion_weight`` is that of the taught labels.
        loop: How long and how fast.
    """

    labels: tuple[str, ...] = Field(min_length=1)
    slots: dict[str, str] = Field(default={})
    hosts: dict[str, tuple[str, ...]] = Field(default={})
    kinds: dict[str, Literal["lesion", "organ"]] = Field(default={})
    fold: int = Field(default=0, ge=0)
    tune: Tune = "full"
    rank: PositiveInt = 8
    start: Start = "auto"
    contrastive_weight: float = Field(default=0.01, ge=0)
    contrastive_bound: float = Field(default=2.0, gt=0)
    num_pictures: int = Field(default=3, ge=0)
    seed: int = Field(default=0, ge=0)
    loss: FlowLossConfig = FlowLossConfig(lesion_weight=100.0)
    loop: LoopConfig
