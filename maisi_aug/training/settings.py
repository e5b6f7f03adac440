"""Settings of the training stages, as they stand in a training recipe. Needs no torch."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field


class LoopConfig(BaseModel):
    """How long and how fast to train.

    Attributes:
        num_steps: Optimiser steps of the whole run; the learning rate falls to zero over them along a half cosine.
        learning_rate: Peak of the learning rate.
        num_warmup_steps: Steps over which the learning rate rises linearly from zero.
        weight_decay: Decoupled weight decay of AdamW.
        max_gradient_norm: Gradients are scaled down to this global norm.
        average_decay: Decay of the exponential moving average of the weights, which is what is kept in the end.
        mixed_precision: Run forward passes in bfloat16 where that is numerically safe, on devices that compute in it.
        checkpoint_minutes: Wall-clock time between checkpoints.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    num_steps: int = Field(gt=0)
    learning_rate: float = Field(default=3e-4, gt=0)
    num_warmup_steps: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    average_decay: float = Field(default=0.999, ge=0, lt=1)
    mixed_precision: bool = True
    checkpoint_minutes: float = Field(default=3.0, gt=0)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of the given step, counted from 0."""
        warmup = min(1.0, (step + 1) / max(1, self.num_warmup_steps))
        return self.learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * step / self.num_steps))


class VaeLossConfig(BaseModel):
    """Weights of the autoencoder's losses.

    Attributes:
        patch_shape: Voxels of a training patch along I, J, K.
        large_patch_shape: Patch from ``large_patch_start_step`` on; MAISI too trains on small patches first. Group
            normalisation then sees the shares of air and body that it will see in use.
        large_patch_start_step: None for small patches to the end.
        batch_count: Patches a step.
        lesion_share: Share of patches centred on a lesion, where the case has one.
        kl_weight: Weight of the Kullback-Leibler divergence, summed over the latent as in MAISI.
        initial_log_variance: Logarithm of the posterior's variance at the start. MAISI starts at 0, which drowns the
            latent in noise for the first thousand steps.
        window_hu: Range of HU whose reconstruction counts extra: soft tissue is 2% of MAISI's intensity range, and
            lesions live in it.
        window_weight: Weight of that extra term, an L1 over the window mapped to [0, 1].
        adversarial_weight: Weight of the least-squares adversarial term; 0 for none.
        adversarial_start_step: Step from which the adversary counts.
        discriminator_learning_rate: Of Adam for the patch discriminator.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    patch_shape: tuple[int, int, int] = (64, 64, 64)
    large_patch_shape: tuple[int, int, int] = (128, 128, 128)
    large_patch_start_step: int | None = None
    batch_count: int = Field(default=1, gt=0)
    lesion_share: float = Field(default=0.5, ge=0, le=1)
    kl_weight: float = Field(default=1e-7, ge=0)
    initial_log_variance: float = -6.0
    window_hu: tuple[float, float] = (-200.0, 300.0)
    window_weight: float = Field(default=0.5, ge=0)
    adversarial_weight: float = Field(default=0.0, ge=0)
    adversarial_start_step: int = Field(default=0, ge=0)
    discriminator_learning_rate: float = Field(default=2e-4, gt=0)


class FlowLossConfig(BaseModel):
    """Weights of the losses on the velocity (rectified flow) or the noise (DDPM).

    Attributes:
        batch_count: Cases a step.
        lesion_weight: Factor on the loss of latent voxels that hold a lesion.
        outside_weight: Factor on the loss of latent voxels wholly outside the body, which generation overwrites.
        label_mean_weight: Factor on the absolute mean error of each label; 0 leaves it out. See ``label_mean_error``.
        modality_dropout: Share of cases whose modality is told as plain "ct".
        crop_shape: Latent voxels of a training crop along I, J, K; None for whole latents.
        lesion_share: Share of crops laid over a lesion, where the case has one.
        whole_start_step: Step from which whole latents are taken in place of crops; None for crops to the end.
        whole_batch_count: Cases a step from ``whole_start_step`` on; None for ``batch_count``.
        train_unet: Whether the U-Net learns beside the ControlNet; False keeps it frozen, as MAISI does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_count: int = Field(default=1, gt=0)
    lesion_weight: float = Field(default=1.0, ge=1)
    outside_weight: float = Field(default=1.0, ge=0, le=1)
    label_mean_weight: float = Field(default=0.0, ge=0)
    modality_dropout: float = Field(default=0.25, ge=0, le=1)
    crop_shape: tuple[int, int, int] | None = None
    lesion_share: float = Field(default=0.5, ge=0, le=1)
    whole_start_step: int | None = Field(default=None, ge=0)
    whole_batch_count: int | None = Field(default=None, gt=0)
    train_unet: bool = False
