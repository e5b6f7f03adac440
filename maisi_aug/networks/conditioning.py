"""Conditions of the networks: label map, spacing, modality and body regions, encoded as in MAISI.

Source: Guo et al., "MAISI: Medical AI for Synthetic Imaging", WACV 2025, and NVIDIA's published configurations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from maisi_aug.vocabulary.modalities import MODALITY_CODES
from maisi_aug.vocabulary.regions import BODY_REGIONS, Regions
from maisi_aug.volumes.grid import Spacing

REGION_SCALE = 100.0

NUM_LABEL_BITS = 8
NUM_SURROUNDINGS = 2
SURROUNDINGS_HU = (-600.0, 300.0)
"""HU represented by 0 in the channel of surroundings, and HU per unit, which spread out lung and its noise."""
SPACING_SCALE = 100.0
HU_MINIMUM, HU_MAXIMUM = -1000.0, 1000.0
HU_PER_UNIT = HU_MAXIMUM - HU_MINIMUM
"""Width of the range of HU that the networks know as [0, 1]."""
MR_MAXIMUM = 1000.0
"""MR intensity that the networks know as 1; bright voxels may lie above it. 0 is 0."""


def to_label_bits(label_map: Tensor) -> Tensor:
    """Encode label ids as binary channels, lowest bit first.

    Args:
        label_map: ``(B, I, J, K)`` ids in 0-255, uint8.

    Returns:
        ``(B, 8, I, J, K)`` float32 of zeros and ones.
    """
    # (1, 8, 1, 1, 1)
    bits = torch.arange(NUM_LABEL_BITS, dtype=torch.uint8, device=label_map.device).view(1, -1, 1, 1, 1)
    return torch.bitwise_and(torch.bitwise_right_shift(label_map.unsqueeze(1), bits), 1).float()  # (B, 8, I, J, K)


def to_surroundings(image: Tensor, is_known: Tensor) -> Tensor:
    """Encode the known part of an image as condition channels, for ControlNets that draw into it.

    Args:
        image: ``(B, I, J, K)`` image in [0, 1], see :func:`hu_to_unit`; unknown voxels are ignored.
        is_known: ``(B, I, J, K)`` bool mask of known voxels.

    Returns:
        ``(B, 2, I, J, K)`` float32: the image relative to -600 HU in units of 300 HU, and the mask.
    """
    centre_hu, scale_hu = SURROUNDINGS_HU
    known = is_known.float()
    spread = (image * HU_PER_UNIT + HU_MINIMUM - centre_hu) / scale_hu  # (B, I, J, K)
    return torch.stack((spread * known, known), dim=1)  # (B, 2, I, J, K)


def to_control(label_bits: Tensor, surroundings: Tensor | None, *, num_channels: int) -> Tensor:
    """Concatenate a ControlNet's condition: the label map and, if the network takes them, the surroundings.

    Args:
        label_bits: ``(B, 8, I, J, K)`` result of :func:`to_label_bits`.
        surroundings: ``(B, 2, I, J, K)`` result of :func:`to_surroundings`; None if nothing is known.
        num_channels: Condition channels of the ControlNet: 8, or 10 with surroundings.

    Returns:
        ``(B, 8, I, J, K)`` or ``(B, 10, I, J, K)`` float32; without surroundings the last two channels are 0.

    Raises:
        ValueError: The number of channels is neither 8 nor 10.
    """
    if num_channels == NUM_LABEL_BITS:
        return label_bits
    if num_channels != NUM_LABEL_BITS + NUM_SURROUNDINGS:
        raise ValueError(
            f"ControlNet: the condition must have {NUM_LABEL_BITS} channels, or {NUM_LABEL_BITS + NUM_SURROUNDINGS} "
            f"with surroundings, found {num_channels}."
        )
    if surroundings is None:
        surroundings = label_bits.new_zeros((len(label_bits), NUM_SURROUNDINGS, *label_bits.shape[2:]))
    return torch.cat((label_bits, surroundings), dim=1)  # (B, 10, I, J, K)


def to_spacing_tensor(spacing_mm: Sequence[Spacing], *, device: str = "cpu") -> Tensor:
    """Encode spacing as the networks take it, in hundredths of a millimetre.

    Args:
        spacing_mm: For each image of the batch, voxel sides along I, J, K in mm.
        device: Name of the torch device of the result.

    Returns:
        ``(B, 3)`` float32: the sides times 100.
    """
    return torch.tensor([list(step) for step in spacing_mm], dtype=torch.float32, device=device) * SPACING_SCALE


def to_modality_tensor(modalities: Sequence[str], *, device: str = "cpu") -> Tensor:
    """Encode names of modalities as the codes that the networks were trained with.

    Args:
        modalities: For each image of the batch, a key of ``MODALITY_CODES``, such as ``ct``.
        device: Name of the torch device of the result.

    Returns:
        ``(B,)`` int64 codes.

    Raises:
        KeyError: A name is unknown.
    """
    return torch.tensor([MODALITY_CODES[name] for name in modalities], dtype=torch.int64, device=device)


def to_region_tensors(regions: Sequence[Regions], *, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Encode the uppermost and lowest body regions of images, which bundles of MAISI's first version take.

    Args:
        regions: For each image of the batch, its uppermost and its lowest region, names of ``BODY_REGIONS``.
        device: Name of the torch device of the results.

    Returns:
        Uppermost and lowest regions, each ``(B, 4)`` float32 with 100 at the region's index and 0 elsewhere.

    Raises:
        ValueError: A name is unknown.
    """
    # (B, 2)
    places = torch.tensor([[BODY_REGIONS.index(region) for region in pair] for pair in regions], device=device)
    top, bottom = (one_hot(places, len(BODY_REGIONS)).float() * REGION_SCALE).unbind(dim=1)  # (B, 4) each
    return top, bottom


def name_for_unet(modality: Tensor, spacing: Tensor, regions: tuple[Tensor, Tensor] | None) -> dict[str, Tensor]:
    """Return the conditions of a diffusion U-Net as keyword arguments of its ``forward``.

    Args:
        modality: ``(B,)`` result of :func:`to_modality_tensor`.
        spacing: ``(B, 3)`` result of :func:`to_spacing_tensor`.
        regions: Results of :func:`to_region_tensors`; None for a network that does not take them.

    Returns:
        Argument name -> tensor; without regions their two names are left out.
    """
    told = {"class_labels": modality, "spacing_tensor": spacing}
    if regions is not None:
        told["top_region_index_tensor"], told["bottom_region_index_tensor"] = regions
    return told


def hu_to_unit(image_hu: Tensor) -> Tensor:
    """Clip HU to [-1000, 1000] and map them linearly to [0, 1], as the networks take images; see :func:`unit_to_hu`.

    Args:
        image_hu: HU of any shape and dtype; not modified.

    Returns:
        float32 tensor of the same shape: -1000 HU and less become 0, 1000 HU and more become 1.
    """
    return (image_hu.float().clamp(HU_MINIMUM, HU_MAXIMUM) - HU_MINIMUM) / HU_PER_UNIT


def unit_to_hu(image: NDArray[np.float32], label_map: NDArray[np.uint8] | None) -> NDArray[np.int16]:
    """Map a decoded image linearly to whole HU, 0 to -1000 HU and 1 to 1000 HU, and voxels outside the body to air.

    Args:
        image: ``(I, J, K)`` decoder output; values outside [0, 1] are clipped; not modified.
        label_map: ``(I, J, K)`` vocabulary ids; voxels of id 0, the background, become -1000 HU. None leaves every
            voxel as it was decoded.

    Returns:
        ``(I, J, K)`` int16 HU in [-1000, 1000], rounded.
    """
    scaled = np.clip(image, 0.0, 1.0) * HU_PER_UNIT + HU_MINIMUM
    image_hu: NDArray[np.int16] = np.rint(scaled).astype(np.int16)
    if label_map is not None:
        image_hu[label_map == 0] = int(HU_MINIMUM)
    return image_hu


def unit_to_mr(image: NDArray[np.float32]) -> NDArray[np.int16]:
    """Map a decoded MR image to integers: 1 becomes 1000, values below 0 become 0, and values above 1 stay above 1000.

    Source: NV-Generate-CTMR, ``scripts/diff_model_infer.py``, which clips at 0 only and cuts off the decimals.

    Args:
        image: ``(I, J, K)`` decoder output.

    Returns:
        ``(I, J, K)`` int16; larger values become the largest int16.
    """
    scaled = np.clip(image * np.float32(MR_MAXIMUM), 0.0, np.iinfo(np.int16).max)
    cut: NDArray[np.int16] = scaled.astype(np.int16)
    return cut
