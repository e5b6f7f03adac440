"""Settings of the training stages, as they stand in a training recipe. Needs no torch."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from maisi_aug.system.models import StrictModel

# Smaller slices are gone after SqueezeNet's three poolings.
LEAST_SLICE_SIDE = 20


class LoopConfig(StrictModel, strict=True):
    """Settings of a training loop: number of steps, optimiser, averaging, checkpoints and validation.

    Attributes:
        num_steps: Number of optimiser steps of the whole run.
        learning_rate: Peak of the learning rate.
        num_warmup_steps: Steps over which the learning rate rises linearly from zero.
        decay_power: None decays the learning rate to zero along half a cosine; a number p along (1 - step /
            num_steps)^p, so that 0 keeps it constant. MAISI trains diffusion and ControlNet with 2 and the autoencoder
            with 0.
        optimizer: ``adamw``, or ``adam``, whose weight decay is part of the gradient.
        second_beta: Decay of the optimiser's mean of squared gradients; the first mean's is 0.9.
        weight_decay: Weight decay of the optimiser.
        max_gradient_norm: Global norm to which gradients are clipped; None for no clipping.
        accumulation_count: Number of batches whose gradients are averaged for one step; the effective batch is larger
            by this factor and by the number of processes.
        average_decay: Decay of the exponential moving average of the weights, which is saved in the end; 0 saves the
            last weights and needs no memory.
        mixed_precision: Run forward passes in bfloat16 where that is numerically safe, on devices that compute in it;
            on CUDA devices that do not, in float16 with a scaled loss.
        checkpoint_minutes: Wall-clock time between checkpoints.
        validation_steps: Steps between two validations on held-out cases, the last step included; the weights of the
            best one are kept. None for no validation.
        patience: Number of consecutive validations without improvement after which training ends; None trains all
            steps.
    """

    num_steps: int = Field(gt=0)
    learning_rate: float = Field(default=3e-4, gt=0)
    num_warmup_steps: int = Field(default=100, ge=0)
    decay_power: float | None = Field(default=None, ge=0)
    optimizer: Literal["adamw", "adam"] = "adamw"
    second_beta: float = Field(default=0.99, gt=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    max_gradient_norm: float | None = Field(default=1.0, gt=0)
    accumulation_count: int = Field(default=1, gt=0)
    average_decay: float = Field(default=0.999, ge=0, lt=1)
    mixed_precision: bool = True
    checkpoint_minutes: float = Field(default=3.0, gt=0)
    validation_steps: int | None = Field(default=None, gt=0)
    patience: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _require_validation_for_patience(self) -> Self:
        if self.patience is not None and self.validation_steps is None:
            raise ValueError("patience: needs validation_steps, because it counts validations")
        return self

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warmup = min(1.0, (step + 1) / max(1, self.num_warmup_steps))
        progress = step / self.num_steps
        if self.decay_power is None:
            return self.learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.learning_rate * warmup * math.pow(1.0 - progress, self.decay_power)


class VaeLossConfig(StrictModel):
    """Settings of the autoencoder's patches and losses.

    Attributes:
        patch_shape: Voxels of a training patch along I, J, K.
        large_patch_shape: Voxels of a patch from ``large_patch_start_step`` on; MAISI, too, trains on small patches
            first. Group normalisation then sees as much air and body as in use.
        large_patch_start_step: Step from which patches are large; None for small patches to the end.
        batch_count: Number of patches per step.
        lesion_share: Fraction of patches centred on a lesion, if the case has one.
        kl_weight: Weight of the Kullback-Leibler divergence, summed over the latent as in MAISI.
        perceptual_weight: Weight of the perceptual term, a distance of SqueezeNet's features on slices along all three
            axes; 0 for none. MAISI's is 0.3.
        perceptual_weights: File of SqueezeNet 1.1's weights as torchvision publishes them (squeezenet1_1-*.pth);
            required for the perceptual term.
        perceptual_heads: File with LPIPS' weights of the features' channels (weights/v0.1/squeeze.pth of the package
            lpips), which MAISI uses; None weights all channels equally.
        perceptual_slice_share: Fraction of the slices along each axis that the term compares.
        initial_log_variance: Logarithm of the posterior's variance at the start. MAISI starts at 0, which drowns the
            latent in noise for the first thousand steps.
        window_hu: Range of HU whose reconstruction counts in addition; soft tissue, with most lesions, is 2% of MAISI's
            intensity range.
        window_weight: Weight of this term, an L1 over the window mapped to [0, 1].
        adversarial_weight: Weight of the least-squares adversarial term; 0 for none.
        adversarial_start_step: Step from which the adversarial term counts.
        discriminator_learning_rate: Learning rate of Adam for the patch discriminator.
        rotation_share: Fraction of patches that are rotated by 90, 180 or 270 degrees in a random plane.
        intensity_scale: Largest deviation from 1 of the factor that intensities are multiplied by.
        intensity_shift: Largest absolute value that is added to intensities in [0, 1].
        spacing_mm: Spacing along I, J, K to which patches are resampled (MAISI's mode "fixed"); None keeps their own
            ("original").
        zoom_range: Range of the factor by which patches are enlarged (MAISI's mode "rand_zoom" with 0.5 to 1.5).
    """

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
    perceptual_weight: float = Field(default=0.0, ge=0)
    perceptual_weights: str | None = None
    perceptual_heads: str | None = None
    perceptual_slice_share: float = Field(default=0.2, gt=0, le=1)
    rotation_share: float = Field(default=0.0, ge=0, le=1)
    intensity_scale: float = Field(default=0.0, ge=0, lt=1)
    intensity_shift: float = Field(default=0.0, ge=0, lt=1)
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    zoom_range: tuple[PositiveFloat, PositiveFloat] | None = None

    @model_validator(mode="after")
    def _require_perceptual_weights(self) -> Self:
        if self.perceptual_weight > 0 and self.perceptual_weights is None:
            raise ValueError("perceptual_weight: needs perceptual_weights, a file of SqueezeNet 1.1's weights")
        if self.perceptual_weight > 0 and min(self.patch_shape) < LEAST_SLICE_SIDE:
            raise ValueError(
                f"perceptual_weight: needs patches of at least {LEAST_SLICE_SIDE} voxels along every axis, found "
                f"{'x'.join(map(str, self.patch_shape))} in patch_shape"
            )
        if self.zoom_range is not None and self.zoom_range[0] > self.zoom_range[1]:
            raise ValueError(f"zoom_range: the smaller factor must come first, found {list(self.zoom_range)}")
        return self


class SurroundingsConfig(StrictModel):
    """Settings of the surroundings that a ControlNet sees when it learns to draw lesions into real images.

    Of every crop a part is hidden, which the network must draw: a lesion with a margin, a ball anywhere, or everything.

    Attributes:
        hidden_share: Fraction of crops that are hidden as a whole, so that the network can also draw without
            surroundings.
        elsewhere_share: Fraction of crops with a lesion in which a ball anywhere is hidden instead; crops without
            lesions always have a ball.
        margin_mm: Range in mm of the margin around a lesion that is hidden with it.
        radius_mm: Range in mm of the radius of a ball.
        known_weight: Factor on the loss of latent voxels that are completely visible.
    """

    hidden_share: float = Field(default=0.1, ge=0, le=1)
    elsewhere_share: float = Field(default=0.25, ge=0, le=1)
    margin_mm: tuple[PositiveFloat, PositiveFloat] = (2.0, 6.0)
    radius_mm: tuple[PositiveFloat, PositiveFloat] = (4.0, 12.0)
    known_weight: float = Field(default=0.2, ge=0, le=1)


class FlowLossConfig(StrictModel):
    """Settings of crops and losses for the velocity (rectified flow) or the noise (DDPM).

    Attributes:
        batch_count: Number of cases per step.
        distance: ``l1`` as in MAISI, or ``l2``, whose optimum is the mean; the median of a texture with a few bright
            vessels has no vessels.
        lesion_weight: Factor on the loss of latent voxels with a lesion.
        outside_weight: Factor on the loss of latent voxels outside the body, which generation overwrites.
        label_mean_weight: Factor on the absolute mean error of each label; 0 leaves it out. See ``label_mean_error``.
        label_weights: Label name -> factor on the loss of latent voxels with the label; if several apply, the largest
            counts. MAISI gives 100 to the labels that a ControlNet is taught (``weighted_loss_label``).
        modality_dropout: Fraction of cases whose modality is given as plain ``ct``, or ``mri`` for MR.
        modality_omission: Fraction of cases whose modality is omitted (code 0), which guidance needs.
        crop_shape: Latent voxels of a training crop along I, J, K; None for whole latents.
        lesion_share: Fraction of crops that contain a lesion, if the case has one.
        whole_start_step: Step from which whole latents are used instead of crops; None for crops to the end.
        whole_batch_count: Number of cases per step from ``whole_start_step`` on; None for ``batch_count``.
        train_unet: Whether the U-Net is trained with the ControlNet; False keeps it frozen, as MAISI does.
        contrastive_weight: Weight of the region contrastive loss of a ControlNet of rectified flow: if a tumour is
            removed from the label map, the output should change there and nowhere else. 0 for none; MAISI uses 0.01.
        contrastive_bound: Largest rewarded mean difference between the outputs with and without the tumours.
        surroundings: Settings of the visible part of the image for a ControlNet with 10 channels; None without.
        sampling_steps: Number of sampling steps of a rectified flow whose time steps alone are trained, each as often;
            None trains all levels of noise.
        own_noise: Whether an image's latent gets the noise that the phantom's own noise was made from, so that the
            networks learn to turn noise into that of a CT; for latents of wavelets.
    """

    batch_count: int = Field(default=1, gt=0)
    distance: Literal["l1", "l2"] = "l1"
    lesion_weight: float = Field(default=1.0, ge=1)
    outside_weight: float = Field(default=1.0, ge=0, le=1)
    label_mean_weight: float = Field(default=0.0, ge=0)
    label_weights: dict[str, PositiveFloat] = Field(default={})
    modality_dropout: float = Field(default=0.25, ge=0, le=1)
    modality_omission: float = Field(default=0.0, ge=0, le=1)
    crop_shape: tuple[int, int, int] | None = None
    lesion_share: float = Field(default=0.5, ge=0, le=1)
    whole_start_step: int | None = Field(default=None, ge=0)
    whole_batch_count: int | None = Field(default=None, gt=0)
    train_unet: bool = False
    contrastive_weight: float = Field(default=0.0, ge=0)
    contrastive_bound: float = Field(default=2.0, gt=0)
    surroundings: SurroundingsConfig | None = None
    sampling_steps: int | None = Field(default=None, gt=0)
    own_noise: bool = False

    @model_validator(mode="after")
    def _require_shares_below_one(self) -> Self:
        if self.modality_dropout + self.modality_omission > 1:
            raise ValueError("modality_dropout and modality_omission: their sum must be at most 1")
        return self
