"""The intensity of each label that a small ControlNet looks up in its first layers.

These layers are a small network from the bits of a label id to an intensity (:class:`Lookup`). It is fitted to the mean
intensities of training cases (:mod:`maisi_aug.training.images.label_means`), written into the ControlNet, found there
again, and taught new labels: of a slot that was never trained, the network looks up an accident of its bits. While it
learns a new label every other one keeps its intensity; by how much these moved is measured and reported.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from maisi_aug.networks.conditioning import HU_MINIMUM, HU_PER_UNIT, NUM_LABEL_BITS, to_label_bits
from maisi_aug.networks.pointwise import is_pointwise, middle_tap, use_pointwise_layers
from maisi_aug.system.seeds import derive_seed
from maisi_aug.training.images.label_means import SOFT_TISSUE, LabelMeans
from maisi_aug.training.images.wavelet import haar_kernels, only_convolution
from maisi_aug.vocabulary.labels import Vocabulary

NUM_FIT_STEPS = 12_000
NUM_POLISH_STEPS = 1000
NUM_REFIT_STEPS = 12_000
FIT_GAIN = 10.0
"""Intensities span [0, 1] and soft tissue 2% of it: the fit works on larger numbers."""
TUMOR_FIT_WEIGHT = 5.0
"""A tumor's contrast is a few HU in a thousand and its voxels are few: in the fit they count as so many more."""
TOLERANCE_HU = 0.5
"""Largest error of any label at which the fit to new labels ends."""


@dataclass(frozen=True, eq=False)
class Lookup:
    """A small network from the bits of a label id to an intensity, used as the first layers of a ControlNet.

    Attributes:
        first: Layer on the bits.
        second: Layer on the features of the first.
        readout: Layer to the intensity, times ``FIT_GAIN``.
        num_wavelets: Wavelets of the looked-up image that the ControlNet's next layer makes.
        centre: Intensity that this layer takes for 0.
    """

    first: nn.Linear
    second: nn.Linear
    readout: nn.Linear
    num_wavelets: int
    centre: float = SOFT_TISSUE

    def __call__(self, bits: Tensor) -> Tensor:
        """Return intensities in [0, 1] of ``(..., 8)`` bits, about."""
        hidden = functional.silu(self.second(functional.silu(self.first(bits))))
        intensity: Tensor = self.readout(hidden)[..., 0] / FIT_GAIN
        return intensity

    @property
    def layers(self) -> nn.ModuleList:
        """The three layers of the network."""
        return nn.ModuleList([self.first, self.second, self.readout])


@dataclass(frozen=True, slots=True)
class LookupChange:
    """How the intensities of labels change when a ControlNet's lookup is fitted to new labels.

    Attributes:
        largest_old_hu: Largest change in HU among labels that the bundle already knew.
        largest_old_id: Id of the label with this change.
        new_hu: New id -> HU (before, wanted, now).
    """

    largest_old_hu: float
    largest_old_id: int
    new_hu: Mapping[int, tuple[float, float, float]]


def fit_lookup(means: LabelMeans, tumor_ids: Sequence[int], *, width: int, num_wavelets: int, seed: int) -> Lookup:
    """Fit a lookup to the mean intensities of all labels that have voxels.

    Args:
        means: Intensity and number of voxels of every label.
        tumor_ids: Ids that count ``TUMOR_FIT_WEIGHT`` times as much as their voxels.
        width: Channels of both layers.
        num_wavelets: Wavelets that the ControlNet's next layer makes, see :class:`Lookup`.
        seed: Seed of the weights to begin with.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("label means", seed))
        lookup = Lookup(nn.Linear(NUM_LABEL_BITS, width), nn.Linear(width, width), nn.Linear(width, 1), num_wavelets)
    optimizer = torch.optim.Adam(lookup.layers.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_FIT_STEPS)
    bits = bits_of_ids()
    # Large organs count more, but a small one must not be lost.
    weight = means.num_voxels.sqrt()
    weight[list(tumor_ids)] *= TUMOR_FIT_WEIGHT
    weight /= weight.sum()
    for _ in range(NUM_FIT_STEPS):
        optimizer.zero_grad(set_to_none=True)
        loss = (weight * (FIT_GAIN * (lookup(bits) - means.intensity)) ** 2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    polish_lookup(lookup, means.intensity, torch.nonzero(means.num_voxels)[:, 0], num_steps=NUM_POLISH_STEPS)
    return lookup


def polish_lookup(lookup: Lookup, intensity: Tensor, ids: Tensor, *, num_steps: int) -> None:
    """Bring a lookup's intensities of some ids to their values, in place, to a fraction of a HU where it can.

    Args:
        lookup: Lookup that is near them, such as one fitted by gradient descent.
        intensity: ``(256,)`` wanted intensities in [0, 1].
        ids: Ids that count, all alike.
        num_steps: Largest number of steps.
    """
    precise = lookup.layers.double()
    bits, wanted = bits_of_ids()[ids].double(), intensity[ids].double()
    optimizer = torch.optim.LBFGS(
        precise.parameters(), max_iter=num_steps, history_size=50, line_search_fn="strong_wolfe", tolerance_grad=1e-12,
        tolerance_change=1e-14,
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = _weigh_largest(HU_PER_UNIT * (lookup(bits) - wanted))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    lookup.layers.float()


def _weigh_largest(error: Tensor) -> Tensor:
    """Loss of ``(N,)`` errors; the fourth power next to the square holds the label that is farthest off."""
    return (error**2).mean() + (error**4).mean().sqrt()


def bits_of_ids() -> Tensor:
    """Return the ``(256, 8)`` bits of all label ids, as the ControlNet gets them."""
    return to_label_bits(torch.arange(256, dtype=torch.uint8).view(1, 256, 1, 1))[0, :, :, 0, 0].T


def write_lookup(embedding: Any, lookup: Lookup) -> None:
    """Write a lookup into the first layers of a ControlNet's condition embedding, in place.

    Args:
        embedding: Condition embedding of two widths, changed in place.
        lookup: Lookup to write.
    """
    first, second, down = (only_convolution(layer) for layer in (embedding.conv_in, *embedding.blocks))
    for layer, fitted in ((first, lookup.first), (second, lookup.second)):
        layer.weight.zero_()
        middle_tap(layer).copy_(fitted.weight)
        layer.bias.copy_(fitted.bias)
    count = lookup.num_wavelets
    for channel, kernel in enumerate(haar_kernels(count)):
        for sign, place in ((1.0, channel), (-1.0, channel + count)):
            down.weight[place] = 0.0
            # A stride of 2 and a padding of 1: taps 1 and 2 see the two voxels of a pair.
            down.weight[place, :, 1:, 1:, 1:] = sign * kernel * lookup.readout.weight[0][:, None, None, None] / FIT_GAIN
            shift = float(lookup.readout.bias) / FIT_GAIN - lookup.centre
            down.bias[place] = sign * float(kernel.sum()) * shift


def freeze_lookup(controlnet: nn.Module) -> None:
    """Freeze the first layers of a ControlNet's condition embedding, which look up intensities of labels.

    Hundreds of weights add up in every intensity, so that a training step would shift organs by tens of HU.
    """
    embedding: Any = controlnet.controlnet_cond_embedding
    for layer in (embedding.conv_in, *embedding.blocks):
        layer.requires_grad_(False)
    use_pointwise_layers(embedding)


def find_lookup(controlnet: nn.Module) -> Lookup | None:
    """Return the lookup in a ControlNet's first layers; None if it was not started from label means."""
    embedding: Any = controlnet.controlnet_cond_embedding
    if len(embedding.blocks) != 2:
        return None
    first, second, down = (only_convolution(layer) for layer in (embedding.conv_in, *embedding.blocks))
    taps = down.weight.detach()[0]
    mean = haar_kernels()[0]
    readout = taps[:, 1, 1, 1] / mean[0, 0, 0]  # ``write_lookup`` puts the kernel on taps 1 and 2
    is_mean = torch.equal(taps[:, 1:, 1:, 1:], readout[:, None, None, None] * mean.to(taps))
    if not (is_pointwise(first) and is_pointwise(second) and is_mean and bool(readout.any())):
        return None
    layers = (
        nn.Linear(NUM_LABEL_BITS, first.out_channels),
        nn.Linear(*_widths(second)),
        nn.Linear(second.out_channels, 1),
    )
    lookup = Lookup(*layers, num_wavelets=only_convolution(controlnet.conv_in).in_channels, centre=0.0)
    with torch.no_grad():
        for layer, source in ((lookup.first, first), (lookup.second, second)):
            layer.weight.copy_(middle_tap(source))
            layer.bias.copy_(source.bias)
        lookup.readout.weight.copy_(readout[None] * FIT_GAIN)
        lookup.readout.bias.copy_(down.bias[:1] * FIT_GAIN)
        # Air is 0 in [0, 1], and far below it where the next layer takes soft tissue for 0.
        if float(lookup(bits_of_ids()[0])) < -SOFT_TISSUE / 2:
            lookup = replace(lookup, centre=SOFT_TISSUE)
            lookup.readout.bias.add_(SOFT_TISSUE * FIT_GAIN)
    return lookup


def teach_lookup(
    controlnet: nn.Module,
    lookup: Lookup,
    wanted: Mapping[int, float],
    *,
    known_ids: Sequence[int],
    num_steps: int = NUM_REFIT_STEPS,
) -> LookupChange:
    """Fit a ControlNet's lookup to new labels, in place, such that the other labels keep their intensity.

    Args:
        controlnet: ControlNet whose first layers are the lookup.
        lookup: Result of :func:`find_lookup`; not modified.
        wanted: New id -> mean intensity in [0, 1].
        known_ids: Ids that keep their intensity, unless they are in ``wanted``.
        num_steps: Largest number of steps of the fit, which ends when all labels are within half a HU.
    """
    kept = torch.tensor([label_id for label_id in known_ids if label_id not in wanted])
    new = torch.tensor(list(wanted))
    fitted = copy.deepcopy(lookup)
    bits = bits_of_ids()
    with torch.no_grad():
        before: Tensor = lookup(bits)
    target = before.clone()
    target[new] = torch.tensor(list(wanted.values()))
    ids = torch.cat((kept, new))
    optimizer = torch.optim.Adam(fitted.layers.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        optimizer.zero_grad(set_to_none=True)
        error = FIT_GAIN * (fitted(bits[ids]) - target[ids])
        if float(error.detach().abs().max()) * HU_PER_UNIT < FIT_GAIN * TOLERANCE_HU:
            break
        loss = _weigh_largest(error)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        now = fitted(bits)
        write_lookup(controlnet.controlnet_cond_embedding, fitted)
    moved = (now - before).abs()[kept] * HU_PER_UNIT
    place = int(moved.argmax())
    return LookupChange(
        float(moved[place]),
        int(kept[place]),
        {label_id: (_to_hu(before[label_id]), _to_hu(target[label_id]), _to_hu(now[label_id])) for label_id in wanted},
    )


def choose_intensities(
    means: LabelMeans, lookup: Lookup, new_ids: Sequence[int], vocabulary: Vocabulary
) -> dict[int, float]:
    """Choose the mean intensity in [0, 1] of each new label before the first training step.

    An organ gets its measured mean. A lesion gets the intensity with which the bundle draws its hosts, plus the
    measured contrast: a bundle that draws brighter livers than those of the data should draw brighter lesions, too.

    Args:
        means: Mean intensities measured on the training cases.
        lookup: Intensities with which the bundle draws labels.
        new_ids: Ids of the new labels.
        vocabulary: Vocabulary with the new labels; defines which are lesions, and their hosts.
    """
    with torch.no_grad():
        drawn = lookup(bits_of_ids())
    wanted = {}
    for label_id in new_ids:
        hosts = [host for host in vocabulary.hosts_of(label_id) if means.num_voxels[host] > 0]
        intensity = means.intensity[label_id]
        if label_id in vocabulary.tumor_ids and hosts:
            share = means.num_voxels[hosts] / means.num_voxels[hosts].sum()
            intensity = intensity + (share * (drawn[hosts] - means.intensity[hosts])).sum()
        wanted[label_id] = float(intensity.clamp(0.0, 1.0))
    return wanted


def _widths(convolution: nn.Conv3d) -> tuple[int, int]:
    return convolution.in_channels, convolution.out_channels


def _to_hu(intensity: Tensor) -> float:
    return float(intensity) * HU_PER_UNIT + HU_MINIMUM
