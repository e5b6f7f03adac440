"""Nodules as stacks of slices, and a 2.5D U-Net that learns them: the segmenter of ``nodule_protocol``.

A stack is brought to voxels of ``PIXEL_MM`` in the slice and keeps its slices. The network sees five neighbouring
slices and labels the middle one.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from numpy.typing import NDArray
from scipy import ndimage
from skimage.transform import resize_local_mean
from torch import Tensor, nn
from torch.nn import functional

from maisi_aug.errors import EvaluationError
from maisi_aug.system.seeds import derive_seed, numpy_generator
from maisi_aug.vocabulary.sizes import diameter_mm
from maisi_aug.volumes.components import measure_dice
from maisi_aug.volumes.grid import Spacing, voxel_volume_ml
from maisi_aug.volumes.image_files import load_image, load_label_map

PIXEL_MM: Final = 0.8
PATCH: Final = 40
"""Side of a training patch in pixels: 32 mm."""
NUM_SLICES: Final = 5
BATCH: Final = 16
"""Patches per training step."""
WINDOW_HU: Final = (-1000.0, 400.0)
LEARNING_RATE: Final = 2e-3
LESION_SLICES: Final = 0.8
"""Share of the patches whose middle slice shows the nodule."""
# How much patches vary: the place of the nodule, the logarithm of its scale, and offset, gain and added noise of HU.
SHIFT_PIXELS: Final = 9.0
MOST_LOG_SCALE: Final = 0.25
MOST_SHIFT_HU: Final = 40.0
MOST_GAIN: Final = 0.1
MOST_NOISE_HU: Final = 25.0
DIVISOR: Final = 8
"""Sides of the network's input must be multiples of this."""


@dataclass(frozen=True, eq=False)
class NoduleStack:
    """A nodule with its surroundings, as a stack of axial slices.

    Attributes:
        name: Name of the nodule.
        patient: Name of the patient.
        diameter_mm: Equivalent-sphere diameter in mm.
        image_hu: ``(K, I, J)`` float32 HU, with pixels of ``PIXEL_MM`` in the slice.
        mask: ``(K, I, J)`` mask of the nodule.
        spacing_mm: Spacing of the CT along I, J, K in mm.
    """

    name: str
    patient: str
    diameter_mm: float
    image_hu: NDArray[np.float32]
    mask: NDArray[np.bool_]
    spacing_mm: Spacing


def to_stack(
    name: str, patient: str, image_hu: NDArray[Any], mask: NDArray[np.bool_], spacing_mm: Spacing
) -> NoduleStack:
    """Resample an ``(I, J, K)`` crop in its slices to a stack."""
    factors = [1.0, spacing_mm[0] / PIXEL_MM, spacing_mm[1] / PIXEL_MM]
    image, share = (
        ndimage.zoom(np.moveaxis(array, -1, 0).astype(np.float32), factors, order=1, grid_mode=True, mode="nearest")
        for array in (image_hu, mask)
    )
    diameter = diameter_mm(float(mask.sum()) * voxel_volume_ml(spacing_mm))
    return NoduleStack(name, patient, diameter, image.astype(np.float32), share > 0.5, spacing_mm)


def coarsen_stack(stack: NoduleStack, spacing_mm: Sequence[float]) -> NoduleStack:
    """Return a nodule as a scanner with larger voxels would have shown it, resampled to slices of ``PIXEL_MM``.

    Args:
        stack: Nodule to coarsen.
        spacing_mm: Voxel sides along I, J, K in mm; finer ones than the stack's have no effect.
    """
    steps = stack.spacing_mm[2], max(PIXEL_MM, stack.spacing_mm[0]), max(PIXEL_MM, stack.spacing_mm[1])
    wanted = [max(step, new) for step, new in zip(steps, (spacing_mm[2], *spacing_mm[:2]), strict=True)]
    sides_mm = [stack.image_hu.shape[0] * steps[0], *(side * PIXEL_MM for side in stack.image_hu.shape[1:])]
    if np.allclose(wanted, steps):
        return stack
    shape = [max(1, round(side / step)) for side, step in zip(sides_mm, wanted, strict=True)]
    image, share = (
        ndimage.zoom(
            coarse := resize_local_mean(array.astype(np.float64), shape),
            [1.0, *(side / own for side, own in zip(array.shape[1:], coarse.shape[1:], strict=True))],
            order=1,
            grid_mode=True,
            mode="nearest",
        )
        for array in (stack.image_hu, stack.mask)
    )
    mask = share > min(0.5, 0.999 * float(share.max()))
    i_mm, j_mm, k_mm = wanted[1], wanted[2], wanted[0]
    return replace(stack, image_hu=image.astype(np.float32), mask=mask, spacing_mm=(i_mm, j_mm, k_mm))


def load_nodules(folder: Path, split: str | None) -> list[NoduleStack]:
    """Load the nodules of a folder with ``images/`` and ``labels/``, in which 1 is a nodule.

    Args:
        folder: Folder, optionally with ``index.csv`` that has the columns file, patient and split.
        split: Split to load; None for every file, where a file without a row is a patient of its own.

    Raises:
        EvaluationError: There are no nodules.
    """
    index, patients = folder / "index.csv", dict[str, str]()
    if index.is_file():
        with index.open(encoding="utf-8") as lines:
            rows = [row for row in csv.DictReader(lines) if split is None or row.get("split") == split]
        patients = {row["file"]: row["patient"] for row in rows}
    elif split is not None:
        raise EvaluationError(f"{folder}: has no index.csv with patients and splits. Check the path.")
    every = sorted(path.name for path in (folder / "images").glob("*.nii.gz"))
    names = every if split is None else [name for name in every if name in patients]
    if not names:
        raise EvaluationError(f"{folder}: has no images/*.nii.gz of nodules. Check the path.")
    stacks = []
    for name in names:
        image, label_map = load_image(folder / "images" / name), load_label_map(folder / "labels" / name)
        stem = name.removesuffix(".nii.gz")
        stacks.append(to_stack(stem, patients.get(name, stem), image.array, label_map.array > 0, image.grid.spacing_mm))
    return stacks


def train_segmenter(
    real: Sequence[NoduleStack], synthetic: Sequence[NoduleStack], *, share: float, num_steps: int, seed: int
) -> nn.Module:
    """Train a nodule segmenter on real and synthetic nodules; within a kind, all are drawn equally often.

    Args:
        real: Real nodules.
        synthetic: Inserted or pasted nodules; may be empty with a share of 0.
        share: Fraction of synthetic nodules in every batch.
        num_steps: Number of training steps, with ``BATCH`` patches each.
        seed: Seed of the weights and of every patch.
    """
    torch.manual_seed(derive_seed(seed, "weights"))
    network: nn.Module = UNet(
        2, NUM_SLICES, 1, channels=(16, 32, 64, 96), strides=(2, 2, 2), num_res_units=1, norm="batch"
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps)
    criterion = DiceCELoss(sigmoid=True, batch=True)
    rng = numpy_generator(seed, "patches")
    num_synthetic = round(share * BATCH)
    network.train()
    for _ in range(num_steps):
        chosen = [real[int(rng.integers(len(real)))] for _ in range(BATCH - num_synthetic)]
        chosen += [synthetic[int(rng.integers(len(synthetic)))] for _ in range(num_synthetic)]
        images, masks = (torch.cat(parts) for parts in zip(*(draw_patch(stack, rng) for stack in chosen), strict=True))
        loss = criterion(network(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    return network


def draw_patch(stack: NoduleStack, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw a rotated, mirrored, scaled and shifted patch ``(1, 5, 40, 40)`` with its mask ``(1, 1, 40, 40)``."""
    shown = np.flatnonzero(stack.mask.any(axis=(1, 2)))
    is_lesion = bool(len(shown)) and rng.random() < LESION_SLICES
    middle = int(rng.choice(shown)) if is_lesion else int(rng.integers(len(stack.mask)))
    around = _neighbours(middle, len(stack.mask))
    image = torch.from_numpy(scale_hu(_vary_hu(stack.image_hu[around], rng)))[None]
    mask = torch.from_numpy(stack.mask[middle].astype(np.float32))[None, None]
    places = np.argwhere(stack.mask.any(axis=0))
    centre = places.mean(axis=0) if len(places) else np.asarray(mask.shape[2:]) / 2
    grid = functional.affine_grid(_draw_turn(centre, mask.shape[2:], rng), [1, 1, PATCH, PATCH], align_corners=False)
    patch = functional.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
    label = functional.grid_sample(mask, grid, padding_mode="reflection", align_corners=False)
    return patch, (label > 0.5).float()


def _neighbours(middle: int, num_slices: int) -> NDArray[np.intp]:
    reach = NUM_SLICES // 2
    return np.clip(np.arange(middle - reach, middle + reach + 1), 0, num_slices - 1)


def _draw_turn(centre: NDArray[Any], shape: Sequence[int], rng: np.random.Generator) -> Tensor:
    """``(1, 2, 3)``, from the patch's coordinates in [-1, 1] to the slice's, in torch's order of axes."""
    angle, scale = rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(-MOST_LOG_SCALE, MOST_LOG_SCALE))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn[:, 0] *= rng.choice([-1.0, 1.0])
    sides = np.asarray(shape, dtype=float)
    shifted = centre + rng.uniform(-SHIFT_PIXELS, SHIFT_PIXELS, 2)
    # Rows are J (x) and I (y): a patch spans PATCH pixels of a slice of so many.
    matrix = scale * PATCH * turn / sides[::-1, None]
    offset = (2 * (shifted + 0.5) / sides - 1)[::-1, None]
    return torch.from_numpy(np.hstack([matrix, offset]).astype(np.float32))[None]


def _vary_hu(image_hu: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    gain, shift_hu = 1 + rng.uniform(-MOST_GAIN, MOST_GAIN), rng.uniform(-MOST_SHIFT_HU, MOST_SHIFT_HU)
    noise_hu = rng.uniform(0, MOST_NOISE_HU) * rng.standard_normal(image_hu.shape)
    varied: NDArray[np.float32] = ((image_hu + 1000) * gain - 1000 + shift_hu + noise_hu).astype(np.float32)
    return varied


def scale_hu(image_hu: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map HU of the lung window to [-1, 1]."""
    low, high = WINDOW_HU
    return np.asarray(2 * (np.clip(image_hu, low, high) - low) / (high - low) - 1, dtype=np.float32)


@torch.inference_mode()
def find_nodule(network: nn.Module, stack: NoduleStack) -> NDArray[np.bool_]:
    """Return the ``(K, I, J)`` mask of the nodule that a network finds in a stack."""
    sides = stack.mask.shape[1:]
    padding = [(-side) % DIVISOR for side in sides]
    padded = np.pad(stack.image_hu, [(0, 0), (0, padding[0]), (0, padding[1])], mode="edge")
    stacks = scale_hu(padded)[[_neighbours(middle, len(padded)) for middle in range(len(padded))]]
    found = network(torch.from_numpy(stacks))[:, 0, : sides[0], : sides[1]] > 0
    return np.asarray(found.numpy())


def find_by_threshold(stack: NoduleStack, threshold_hu: float = -500.0) -> NDArray[np.bool_]:
    """Return the dense component nearest to the middle of a stack, as a baseline without training."""
    parts, num_parts = ndimage.label(stack.image_hu > threshold_hu, np.ones((3, 3, 3)))
    if not num_parts:
        return np.zeros_like(stack.mask)
    places = np.argwhere(parts > 0)
    nearest = places[int(np.argmin(((places - np.asarray(parts.shape) / 2) ** 2).sum(axis=1)))]
    return np.asarray(parts == parts[tuple(nearest)])


def dice(expected: NDArray[np.bool_], found: NDArray[np.bool_]) -> float:
    """Return the Dice coefficient of two masks, of which the first is not empty."""
    measured = measure_dice(expected, found)
    assert measured is not None
    return measured
