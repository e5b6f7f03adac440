"""Shared parts of networks that segment patches: the U-Net, augmentation, and windows over a whole case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from monai.losses.dice import DiceLoss
from monai.networks.nets.dynunet import DynUNet
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import (
    RandAdjustContrastd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
)
from monai.transforms.spatial.dictionary import RandAffined, RandSimulateLowResolutiond
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from maisi_aug.networks.building import mixed_precision

WINDOW_OVERLAP: Final = 0.5
MAX_TURN_DEGREES: Final = 30.0
WIDER: Final = 1.4
"""Side of the patch that a turned or zoomed one is cut from, in sides of the latter."""


@dataclass(frozen=True)
class Variation:
    """Limits of an augmentation of HU images without mirroring, which would exchange left and right organs.

    Attributes:
        share: Fraction of images that are blurred, and likewise of images with added noise.
        max_blur_voxels: Largest standard deviation of the blur in voxels.
        max_noise_hu: Largest standard deviation of the noise in HU.
        max_shift_hu: Largest shift up or down in HU.
        max_gain: Largest deviation of the scaling factor from 1.
    """

    share: float
    max_blur_voxels: float
    max_noise_hu: float
    max_shift_hu: float
    max_gain: float

    def apply(self, image_hu: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float32]:
        """Blur, scale, shift and add noise to an image, each by a random amount.

        Args:
            image_hu: ``(I, J, K)`` image in HU; not modified.
            rng: Source of all randomness.

        Returns:
            ``(I, J, K)`` float32 HU.
        """
        varied = image_hu.astype(np.float32)
        if rng.random() < self.share:
            varied = ndimage.gaussian_filter(varied, float(rng.uniform(0.2, self.max_blur_voxels)), truncate=2.5)
        gain, shift_hu = 1 + self.max_gain * rng.uniform(-1, 1), self.max_shift_hu * rng.uniform(-1, 1)
        varied = varied * np.float32(gain) + np.float32(shift_hu)
        if rng.random() < self.share:
            varied += np.float32(rng.uniform(0, self.max_noise_hu)) * rng.standard_normal(
                varied.shape, dtype=np.float32
            )
        return varied


class StrongVariation:
    """Augmentation by MONAI's transforms, with the kinds and shares of nnU-Net's (Isensee et al., 2021), unmirrored.

    Patches are turned by up to 30 degrees about each axis and zoomed by 0.7 to 1.4 at once, in half of the cases
    instead of nnU-Net's two draws of a fifth. They are cut out of wider ones, so that none shows a border of its own.
    """

    def __init__(self, patch_shape: Sequence[int]) -> None:
        turn = float(np.deg2rad(MAX_TURN_DEGREES))
        self.wide_shape = tuple(int(np.ceil(side * WIDER)) for side in patch_shape)
        self.transforms = Compose(
            [
                RandAffined(
                    ("image", "classes"),
                    spatial_size=tuple(patch_shape),
                    prob=0.5,
                    rotate_range=[turn] * 3,
                    scale_range=[(-0.3, 0.4)] * 3,
                    mode=("bilinear", "nearest"),
                    padding_mode="border",
                ),
                RandGaussianNoised("image", prob=0.1, std=0.3),
                RandGaussianSmoothd("image", *[(0.5, 1.0)] * 3, prob=0.2),
                RandScaleIntensityd("image", factors=0.25, prob=0.15),
                RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
                RandSimulateLowResolutiond("image", prob=0.25, zoom_range=(0.5, 1.0)),
            ]
        )

    def apply(
        self, image: NDArray[np.float32], classes: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Vary a normalised image and its classes.

        Args:
            image: ``(wide I, wide J, wide K)`` of :attr:`wide_shape`.
            classes: The same shape.
            rng: Source of all randomness.

        Returns:
            Both, cut to the patch.
        """
        self.transforms.set_random_state(int(rng.integers(2**31)))
        # A training step computes in bfloat16 where the processor can, but the transforms compute with positions.
        with torch.autocast("cpu", enabled=False):
            varied = self.transforms({"image": image[None], "classes": classes[None]})
        return np.asarray(varied["image"][0], np.float32), np.asarray(varied["classes"][0], np.uint8)


class BalancedDiceCrossEntropy(nn.Module):
    """Soft Dice plus cross-entropy that weights small labels, for trainings of a few hundred steps of two patches.

    Plain Dice and cross-entropy (MONAI's ``DiceCELoss``) lost the kidneys in one of three trainings of 800 steps, and
    tumours in all: in a softmax, a class that has begun to lose is hardly recovered by a thousandth of the voxels, and
    a label that no patch shows has the worst Dice for any trace of it. Therefore Dice is computed for the labels that a
    batch shows, and half of the cross-entropy is a mean over classes instead of voxels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True, reduction="none")
        self.cross_entropy = nn.CrossEntropyLoss(reduction="none")

    def forward(self, scores: Tensor, classes: Tensor) -> Tensor:
        """Return the scalar loss.

        Args:
            scores: ``(B, N, I, J, K)`` scores before the softmax.
            classes: ``(B, I, J, K)`` integer classes below N; 0 is the background.
        """
        counts = torch.bincount(classes.flatten().long(), minlength=scores.shape[1])
        is_shown = counts[1:] > 0
        dice: Tensor = self.dice(scores, classes[:, None]).flatten()
        dice_loss = (dice * is_shown).sum() / is_shown.sum().clamp_min(1)
        by_voxel: Tensor = self.cross_entropy(scores, classes.long())
        by_class = (by_voxel / counts[classes.long()]).sum() / (counts > 0).sum()
        return dice_loss + (by_voxel.mean() + by_class) / 2


def build_unet(widths: Sequence[int], *, num_channels: int, num_classes: int) -> nn.Module:
    """Return a U-Net of nnU-Net's kind (Isensee et al., "nnU-Net", Nature Methods 2021), with fresh weights.

    Its first level works at full resolution: at half of it, lesions of a few voxels are lost.

    Args:
        widths: Channels of each level.
        num_channels: Number of channels of the input.
        num_classes: Number of classes of the output, including the background.
    """
    num_levels = len(widths)
    network: nn.Module = DynUNet(
        spatial_dims=3,
        in_channels=num_channels,
        out_channels=num_classes,
        kernel_size=[3] * num_levels,
        strides=[1] + [2] * (num_levels - 1),
        upsample_kernel_size=[2] * (num_levels - 1),
        filters=widths,
        norm_name="instance",
    )
    network.to(memory_format=torch.channels_last_3d)
    return network


def score_windows(
    network: nn.Module, channels: Tensor, window: tuple[int, int, int], *, fill: float, device: str
) -> Tensor:
    """Return the scores ``(1, classes, I, J, K)`` of a case, computed in overlapping windows.

    Args:
        network: Network in evaluation mode.
        channels: ``(1, C, I, J, K)`` input, on the device.
        window: Voxels of a window along I, J, K.
        fill: Padding value for a case that is smaller than a window.
        device: Device that the network is on.
    """
    with mixed_precision(device):
        scores = sliding_window_inference(
            channels, window, sw_batch_size=1, predictor=network, overlap=WINDOW_OVERLAP, mode="gaussian", cval=fill
        )
    return cast(Tensor, scores)
