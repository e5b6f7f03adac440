"""The objective of the autoencoder of label maps: cross-entropy and Dice over 125 classes, and Kullback-Leibler.

MAISI's publication leaves these losses open; cross-entropy with Dice is what MONAI's own segmentation recipes use.
The logits of 125 classes are the memory of this network: a patch of 128^3 has 1 GB of them, and as much again for each
intermediate result and its gradient. They are computed in slabs, and once more for the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from maisi_aug.errors import BundleError
from maisi_aug.networks.building import mixed_precision
from maisi_aug.networks.conditioning import NUM_LABEL_BITS, to_label_bits
from maisi_aug.networks.mask_decoding import MAX_LOGITS, class_ids, decode_classes
from maisi_aug.system.seeds import derive_seed, numpy_generator
from maisi_aug.training.images.vae import kl_divergence
from maisi_aug.training.loop.processes import ALONE, WHOLE, Processes, Share
from maisi_aug.training.loop.run import Stateless
from maisi_aug.training.masks.label_maps import Classes, LabelMaps, draw_warp, mirror, take_patch
from maisi_aug.training.masks.recipe import MaskVaeLossConfig
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.volumes.components import measure_dice_by_class
from maisi_aug.volumes.grid import Shape, Spacing

NUM_SUMS = 3
LEAST_SHARE = 1e-6
"""Initial share assumed for a class that no map contains."""


@dataclass(eq=False)
class MaskVaeObjective(Stateless):
    """Training objective of the autoencoder of label maps: reconstruct patches.

    At the start, it sets the spread of the posterior, and the decoder's biases to the frequencies of the classes.

    Attributes:
        autoencoder: Autoencoder with plain layers.
        maps: Label maps as classes.
        config: Losses and patches.
        counts: ``(N, 125)`` number of voxels per class in the maps.
        spacing_mm: Voxel sides of the maps along I, J, K in mm.
        seed: Seed of patches and noise.
        device: Device that the autoencoder is on.
    """

    autoencoder: nn.Module
    maps: LabelMaps
    config: MaskVaeLossConfig
    counts: NDArray[np.int64]
    spacing_mm: Spacing
    seed: int
    device: str

    def __post_init__(self) -> None:
        config, total = self.config, self.counts.sum(axis=0)
        weights = balance_classes(self.counts, power=config.weight_power, max_weight=config.max_weight)
        self.class_weights = weights.to(self.device)
        self._to_channels = choose_input(self.autoencoder)
        _set_bias(self.autoencoder.quant_conv_log_sigma, torch.tensor(config.initial_log_variance))
        shares = torch.from_numpy(total / max(1, self.counts.sum())).float().to(self.device) * self.class_weights
        _set_bias(_blocks(self.autoencoder)[-1], shares.clamp_min(LEAST_SHARE).log())

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Networks that are trained: the autoencoder."""
        return {"mask_autoencoder": self.autoencoder}

    def loss(self, step: int, share: Share = WHOLE) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a share of a step's patches, with its parts as figures to log.

        Args:
            step: Number of the step, from 0.
            share: Part of the batch that this process takes.

        Returns:
            Scalar loss with gradients, and name -> figure to log.
        """
        patches, noises = self._draw_batch(step, share)
        classes = torch.from_numpy(patches).to(self.device)
        mean, sigma = self.autoencoder.encode(self._to_channels(classes))  # type: ignore[operator]
        noise = torch.stack([torch.randn(mean.shape[1:], generator=generator) for generator in noises])
        features, head = decode_features(self.autoencoder, mean + sigma * noise.to(self.device))
        cross_entropy, dice = compare_classes(head, features, classes, self.class_weights)
        mean, sigma = mean.float(), sigma.float()
        divergence = kl_divergence(mean, sigma)
        loss = cross_entropy + self.config.dice_weight * (1.0 - dice) + self.config.kl_weight * divergence
        figures = {"cross_entropy": cross_entropy, "soft_dice": dice, "kl": divergence}
        return loss, {name: figure.detach() for name, figure in figures.items()}

    def _draw_batch(self, step: int, share: Share) -> tuple[Classes, list[torch.Generator]]:
        """The patches of a share, and the generators of their noise; every patch has a seed of its own."""
        config = self.config
        is_large = config.large_patch_start_step is not None and step >= config.large_patch_start_step
        wanted = config.large_patch_shape if is_large else config.patch_shape
        own = share.slice_of(config.large_batch_count if is_large else config.batch_count)
        patches, noises = [], []
        for place in range(own.start, own.stop):
            seed = derive_seed("mask patch", self.seed, step, place)
            rng = numpy_generator(seed, "patch")
            patches.append(self._draw_patch(self.maps[int(rng.integers(len(self.maps)))], wanted, rng))
            noises.append(torch.Generator().manual_seed(derive_seed(seed, "noise")))
        return np.stack(patches), noises

    def _draw_patch(self, classes: Classes, wanted: Shape, rng: np.random.Generator) -> Classes:
        shape = np.minimum(wanted, classes.shape)
        limits = np.asarray(classes.shape) - shape
        corner = rng.integers(0, limits + 1)
        if rng.random() < self.config.rare_share and limits.any():
            present = np.flatnonzero(np.bincount(classes.ravel()))
            voxels = np.flatnonzero(classes == rng.choice(present))
            place = np.array(np.unravel_index(rng.choice(voxels), classes.shape))
            corner = np.clip(place - rng.integers(0, shape), 0, limits)
        matrix, shift = draw_warp(self.config.warp, self.spacing_mm, rng)
        i, j, k = (int(side) for side in shape)
        patch = take_patch(classes, (i, j, k), corner + (shape - 1) / 2 + shift, matrix)
        return mirror(patch) if rng.random() < self.config.mirror_share else patch


def balance_classes(counts: NDArray[np.int64], *, power: float, max_weight: float) -> Tensor:
    """Return class weights for the loss of label maps, which are higher for small organs.

    Args:
        counts: ``(N, 125)`` number of voxels per class in the training maps.
        power: Exponent p: a class with the fraction f of all voxels has the weight f^-p.
        max_weight: Largest weight, as a multiple of the smallest.

    Returns:
        ``(125,)`` float32; their mean over all voxels is 1, so that the weighted mean of a batch needs no further
        normalisation. Classes that occur in no map have the largest weight.
    """
    shares = counts.sum(axis=0) / max(1, counts.sum())
    with np.errstate(divide="ignore"):
        weights = np.minimum((shares / max(shares.max(), 1e-12)) ** -power, max_weight)
    return torch.from_numpy(weights / max((weights * shares).sum(), 1e-12)).float()


def decode_features(autoencoder: nn.Module, latent: Tensor) -> tuple[Tensor, nn.Module]:
    """Return the features before the decoder's last convolution, and that convolution.

    Args:
        autoencoder: Autoencoder of label maps.
        latent: ``(B, C, i, j, k)`` latent.

    Returns:
        ``(B, D, I, J, K)`` features, and the convolution that makes scores of classes of them.
    """
    blocks = _blocks(autoencoder)
    features = cast(Tensor, cast(nn.Module, autoencoder.post_quant_conv)(latent))
    for block in blocks[:-1]:
        if autoencoder.use_checkpoint:
            features = checkpoint(block, features, use_reentrant=False, preserve_rng_state=False)
        else:
            features = block(features)
    return features, blocks[-1]


def compare_classes(
    head: nn.Module, features: Tensor, classes: Tensor, weights: Tensor, *, max_logits: int = MAX_LOGITS
) -> tuple[Tensor, Tensor]:
    """Return weighted cross-entropy and mean Dice loss of decoded classes, without holding all logits at once.

    Dice is that of Milletari et al., "V-Net", 3DV 2016, without squares, over the classes that a patch has.

    Args:
        head: 3x3x3 convolution from features to logits.
        features: ``(B, C, I, J, K)`` input of the convolution.
        classes: ``(B, I, J, K)`` uint8 true classes.
        weights: ``(125,)`` class weights of the cross-entropy.
        max_logits: Number of logits held at once; a slab along I is at least one voxel thick.

    Returns:
        Two scalars, each a mean over the patches.
    """
    side, num_classes = features.shape[2], len(weights)
    thickness = max(1, max_logits // (num_classes * classes[:, 0].numel()))
    sums = weights.new_zeros(NUM_SUMS, len(classes), num_classes)
    for start in range(0, side, thickness):
        stop = min(side, start + thickness)
        low, high = max(0, start - 1), min(side, stop + 1)
        part = (head, features[:, :, low:high], classes[:, start:stop], slice(start - low, stop - low))
        if thickness >= side:
            sums = sums + _sum_by_class(*part)
        else:
            sums = sums + checkpoint(_sum_by_class, *part, use_reentrant=False, preserve_rng_state=False)
    surprise, hits, volumes = sums
    counts = torch.stack([torch.bincount(one.flatten(), minlength=num_classes) for one in classes]).to(sums)
    cross_entropy = (weights * surprise).sum() / classes.numel()
    is_there = counts > 0
    dice = torch.where(is_there, 2 * hits / (volumes + counts).clamp_min(1e-6), 0.0).sum(dim=1) / is_there.sum(dim=1)
    return cross_entropy, dice.mean()


def _sum_by_class(head: nn.Module, features: Tensor, classes: Tensor, within: slice) -> Tensor:
    """``(3, B, 125)``: cross-entropy and probability of the true class, and probability at all voxels, by class."""
    # Classes last: the softmax of a row of memory is several times faster than one across rows.
    logits = head(features)[:, :, within].permute(0, 2, 3, 4, 1).flatten(1, 3)
    log_likelihood = functional.log_softmax(logits.float(), dim=2)
    truth = classes.flatten(1).long()
    of_truth = log_likelihood.gather(2, truth[:, :, None])[:, :, 0]
    empty = log_likelihood.new_zeros(len(classes), logits.shape[2])
    surprise = empty.scatter_add(1, truth, -of_truth)
    hits = empty.scatter_add(1, truth, of_truth.exp())
    return torch.stack([surprise, hits, log_likelihood.exp().sum(dim=1)])


@torch.no_grad()
def encode_classes(autoencoder: nn.Module, classes: Classes, *, device: str) -> Tensor:
    """Encode a label map, given as ``(I, J, K)`` classes, to its posterior mean.

    Args:
        autoencoder: Autoencoder of label maps, in evaluation mode.
        classes: ``(I, J, K)`` classes of the mask networks.
        device: Name of the torch device on which it runs.

    Returns:
        ``(1, C, i, j, k)`` float32 on the device.
    """
    whole = torch.from_numpy(np.ascontiguousarray(classes))[None].to(device)
    with mixed_precision(device):
        mean = cast(Tensor, autoencoder.encode(choose_input(autoencoder)(whole))[0])  # type: ignore[operator]
    return mean.float()


@dataclass(eq=False)
class MaskVaeValidation:
    """Validation of the autoencoder of label maps: Dice of held-out maps after encoding and decoding.

    Attributes:
        autoencoder: Autoencoder in training.
        maps: Held-out maps as classes.
        device: Device that the autoencoder is on.
        processes: Processes that share the maps.
        dice_per_label: Label name -> Dice at the last call, averaged over the maps with the label.
    """

    autoencoder: nn.Module
    maps: LabelMaps
    device: str
    processes: Processes = ALONE
    dice_per_label: dict[str, float] = field(default_factory=dict)

    def __call__(self) -> dict[str, float]:
        """Return ``dice``, averaged over the labels, and as ``loss`` what is missing to 1."""
        ids, own = class_ids(), []
        for index in range(self.processes.rank, len(self.maps), self.processes.count):
            truth = self.maps[index]
            found = measure_dice_by_class(truth, self._reconstruct(truth), len(ids))
            own.append({place: dice for place, dice in enumerate(found) if dice is not None and ids[place]})
        rows = [row for rows in self.processes.gather(own) for row in rows]
        self.dice_per_label = {
            MAISI.name_of(int(ids[place])): fmean(row[place] for row in rows if place in row)
            for place in sorted({place for row in rows for place in row})
        }
        dice = fmean(self.dice_per_label.values())
        return {"loss": 1.0 - dice, "dice": dice}

    def _reconstruct(self, classes: Classes) -> Classes:
        latent = encode_classes(self.autoencoder, classes, device=self.device)
        with torch.no_grad(), mixed_precision(self.device):
            found: Classes = decode_classes(self.autoencoder, latent)[0].cpu().numpy()
        return found


def choose_input(autoencoder: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the function that encodes ``(B, I, J, K)`` classes as an autoencoder's input channels.

    With 8 bits, as in MAISI, or one channel per class, which is learnt several times faster but takes 16 times the
    memory.
    """
    first = next(autoencoder.parameters())  # the encoder's first convolution: (out, in, 3, 3, 3)
    return to_label_bits if first.shape[1] == NUM_LABEL_BITS else _to_one_hot


def _to_one_hot(classes: Tensor) -> Tensor:
    shape = (len(classes), len(class_ids()), *classes.shape[1:])
    channels = torch.zeros(shape, device=classes.device, dtype=torch.float32)
    return channels.scatter_(1, classes[:, None].long(), 1.0)


def require_mask_autoencoder(definition: Mapping[str, Any]) -> None:
    """Raise unless an autoencoder takes label maps in a known encoding, and distinguishes all of MAISI's classes.

    Raises:
        BundleError: The message names the key.
    """
    num_classes = len(class_ids())
    for key, allowed in (("in_channels", (NUM_LABEL_BITS, num_classes)), ("out_channels", (num_classes,))):
        if definition.get(key) not in allowed:
            raise BundleError(
                f"Network definition of mask_autoencoder: {key} must be {' or '.join(map(str, allowed))}, as in "
                f"MAISI's mask generator or one per class, found {definition.get(key)}. Correct "
                "networks.mask_autoencoder in the recipe."
            )


def _blocks(autoencoder: nn.Module) -> nn.ModuleList:
    return cast(nn.ModuleList, cast(nn.Module, autoencoder.decoder).blocks)


@torch.no_grad()
def _set_bias(layer: Any, value: Tensor) -> None:
    """Set the one bias in a layer, wrapped or not."""
    (bias,) = (parameter for name, parameter in layer.named_parameters() if name.endswith("bias"))
    bias.copy_(value.expand_as(bias))
