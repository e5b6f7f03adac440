"""The intensity that a ControlNet which started from label means looks up for each label, and new labels in it.

Such a ControlNet's first layers are a small network from the bits of a label to its mean intensity
(:mod:`maisi_aug.training.images.label_means`). They know nothing of a slot that was never trained: what they
look up because it is an accident of its bits. Here they are fitted again so that a new label gets its measured
mean while every other label keeps what it had; by how much these moved is measured and reported.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from maisi_aug.networks.conditioning import HU_MAXIMUM, HU_MINIMUM
from maisi_aug.networks.pointwise import is_pointwise
from maisi_aug.training.images.label_means import CENTRE, FIT_GAIN, LabelMeans, Lookup, bits_of_ids, write_lookup
from maisi_aug.training.images.wavelet import haar_kernels, only_convolution
from maisi_aug.vocabulary.labels import Vocabulary

NUM_REFIT_STEPS = 12_000
TOLERANCE_HU = 0.5
HU_PER_UNIT = HU_MAXIMUM - HU_MINIMUM


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


def find_lookup(controlnet: nn.Module) -> Lookup | None:
    """Return the lookup in a ControlNet's first layers; None if it was not started from label means."""
    embedding: Any = controlnet.controlnet_cond_embedding
    if len(embedding.blocks) != 2:
        return None
    first, second, down = (only_convolution(layer) for layer in (embedding.conv_in, *embedding.blocks))
    taps = down.weight.detach()[0]
    mean = haar_kernels()[0]
    readout = taps[:, 1, 1, 1] / mean[0, 0, 0]
    is_mean = torch.equal(taps[:, 1:, 1:, 1:], readout[:, None, None, None] * mean.to(taps))
    if not (is_pointwise(first) and is_pointwise(second) and is_mean and bool(readout.any())):
        return None
    layers = nn.Linear(8, first.out_channels), nn.Linear(*_widths(second)), nn.Linear(second.out_channels, 1)
    lookup = Lookup(*layers, num_wavelets=only_convolution(controlnet.conv_in).in_channels, centre=0.0)
    with torch.no_grad():
        for layer, source in ((lookup.first, first), (lookup.second, second)):
            layer.weight.copy_(source.weight[:, :, 1, 1, 1])
            layer.bias.copy_(source.bias)
        lookup.readout.weight.copy_(readout[None] * FIT_GAIN)
        lookup.readout.bias.copy_(down.bias[:1] * FIT_GAIN)
        # Air is 0 in [0, 1], and far below it where the next layer takes soft tissue for 0.
        if float(lookup(bits_of_ids()[0])) < -CENTRE / 2:
            lookup = replace(lookup, centre=CENTRE)
            lookup.readout.bias.add_(CENTRE * FIT_GAIN)
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
        # The fourth power beside the square: the label that moves most is the one to hold.
        loss = (error**2).mean() + (error**4).mean().sqrt()
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
