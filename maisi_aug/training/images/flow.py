"""The objective of the diffusion U-Net, alone or together with its ControlNet, on encoded latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from monai.networks.schedulers.ddpm import DDPMScheduler
from monai.networks.schedulers.rectified_flow import RFlowScheduler
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from maisi_aug.errors import TrainingError
from maisi_aug.networks.building import count_control_channels, takes_regions
from maisi_aug.networks.conditioning import (
    hu_to_unit,
    name_for_unet,
    to_control,
    to_label_bits,
    to_modality_tensor,
    to_region_tensors,
    to_spacing_tensor,
    to_surroundings,
)
from maisi_aug.system.seeds import derive_seed, numpy_generator
from maisi_aug.training.cases.data import Ahead, CaseStore, LatentSet
from maisi_aug.training.images.contrastive import (
    ChangedRegions,
    LabelRemover,
    find_regions,
    region_contrastive_loss,
    show_without,
)
from maisi_aug.training.images.patches import LesionPlaces, draw_hidden
from maisi_aug.training.images.wavelet import haar_kernels
from maisi_aug.training.loop.processes import ALONE, WHOLE, Processes, Share
from maisi_aug.training.loop.run import Stateless
from maisi_aug.training.loop.settings import FlowLossConfig
from maisi_aug.vocabulary.modalities import generic_modality
from maisi_aug.vocabulary.regions import Regions, find_body_regions
from maisi_aug.volumes.grid import Shape, Spacing


@dataclass(frozen=True, eq=False)
class Batch:
    """Cases of one training step: ``(B, C, i, j, k)`` scaled latents, ``(B, I, J, K)`` label maps, and conditions.

    The regions are those of the whole case, as in generation, because a crop may not show the organs that decide them.
    ``surroundings`` is the part of the images that the ControlNet is conditioned on, ``(B, 2, I, J, K)``, or None.
    ``shown`` are the maps that it is conditioned on if they are not the label maps. ``noise`` is that which the image's
    own was made from, ``(B, C, i, j, k)``, or None.
    """

    clean: Tensor
    label_maps: NDArray[np.uint8]
    modalities: tuple[str, ...]
    spacings_mm: tuple[Spacing, ...]
    regions: tuple[Regions, ...]
    has_lesions: bool
    surroundings: Tensor | None = None
    shown: NDArray[np.uint8] | None = None
    noise: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """Noisy latents, output and target of a network, ``(B, C, i, j, k)`` each, and ``(B,)`` time steps."""

    noisy: Tensor
    timesteps: Tensor
    output: Tensor
    target: Tensor


@dataclass(frozen=True, eq=False)
class DrawnStep:
    """Batches of this process for one training step, and the mean loss weights over all shares of the step.

    With these weights, the mean of the shares' losses equals the loss of one batch with all cases; None for one share.
    """

    step: int
    num_shares: int
    batches: Sequence[Batch]
    mean_weights: Tensor | None


@dataclass(eq=False)
class FlowObjective(Stateless):
    """Training objective: predict velocity or noise from noisy latents, with or without a ControlNet.

    Rectified flow: x_t = (1 - t) x_0 + t e, target x_0 - e (Liu et al., "Flow Straight and Fast", ICLR 2023). DDPM:
    target e (Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020).

    The L1 is weighted as in MAISI, and divided by the sum of the weights, where MAISI takes a plain mean. Thus a case
    with large lesions does not count more than one with small lesions, and the balance with the other losses is kept.

    Attributes:
        unet: U-Net, which is trained without a ControlNet, or with it if the settings say so.
        controlnet: ControlNet; None to train only the U-Net.
        scheduler: Scheduler that adds the noise.
        store: Training cases.
        latents: Latents of the training cases.
        config: Settings of the loss.
        lesion_ids: Labels that count as lesions.
        seed: Seed of batches, noise and timesteps.
        device: Device that the networks are on.
        label_weights: Id -> factor on the loss of latent voxels with the label.
        remover: Removes labels from maps, for the region contrastive loss; None without it.
        processes: Processes that train together.
    """

    unet: nn.Module
    controlnet: nn.Module | None
    scheduler: RFlowScheduler | DDPMScheduler
    store: CaseStore
    latents: LatentSet
    config: FlowLossConfig
    _: KW_ONLY
    lesion_ids: Sequence[int]
    seed: int
    device: str
    label_weights: Mapping[int, float] = field(default_factory=dict)
    remover: LabelRemover | None = None
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        self.lesions = LesionPlaces(self.store, self.lesion_ids)
        self._weight_of_id = _tabulate_weights(self.config, self.lesion_ids, self.label_weights)
        self._batches = Ahead[list[Batch]](is_on=self.device.startswith("cuda"))
        self._drawn: DrawnStep | None = None
        self._regions: dict[int, Regions] = {}
        self._unet_trains = self.controlnet is None or self.config.train_unet
        self.unet.requires_grad_(self._unet_trains)

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Networks that are trained: the ControlNet, the U-Net, or both."""
        trained: dict[str, nn.Module] = {"diffusion_unet": self.unet} if self._unet_trains else {}
        if self.controlnet is not None:
            trained["controlnet"] = self.controlnet
        return trained

    def on(self, store: CaseStore, latents: LatentSet) -> Self:
        """Return an objective with the same networks and losses, but other cases.

        Args:
            store: Cases.
            latents: Latents of these cases, in the same order.
        """
        return replace(self, store=store, latents=latents)

    def loss(self, step: int, share: Share = WHOLE) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a share of a step's batch, with the figures to log: plain L1, and L1 inside lesions.

        Args:
            step: Number of the step, from 0.
            share: Part of the batch that this process takes.

        Returns:
            Scalar loss with gradients, and name -> figure to log.
        """
        drawn = self._draw_step(step, share)
        batch = drawn.batches[share.index // self.processes.count]
        noise, timesteps = self._draw_noise(step, batch.clean, share)
        return self.compare(
            batch, noise if batch.noise is None else batch.noise, timesteps, mean_weights=drawn.mean_weights
        )

    def compare(
        self, batch: Batch, noise: Tensor, timesteps: Tensor, *, mean_weights: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch at given noise and time steps, with the figures to log.

        Args:
            batch: Cases of the batch.
            noise: ``(B, C, i, j, k)`` standard normal noise.
            timesteps: ``(B,)`` time steps.
            mean_weights: Sums of the weights of latent voxels and of labels, averaged over all shares of the step; None
                for those of the batch.
        """
        clean, noise, timesteps = (tensor.to(self.device) for tensor in (batch.clean, noise, timesteps))
        noisy = self.scheduler.add_noise(original_samples=clean, noise=noise, timesteps=timesteps)
        target = clean - noise if isinstance(self.scheduler, RFlowScheduler) else noise
        label_maps = torch.from_numpy(batch.label_maps).to(self.device)
        shown = label_maps if batch.shown is None else torch.from_numpy(batch.shown).to(self.device)
        output = self._predict(noisy, timesteps, batch, shown)
        signed_error = output.float() - target
        error = signed_error.abs()
        weight, lesions = self._weights(label_maps, batch.clean.shape)
        weight = self._weigh_known(weight, batch)
        # A crop without body has no weight at all where the outside has none.
        total = weight.sum() if mean_weights is None else mean_weights[0]
        counted = error if self.config.distance == "l1" else signed_error.square()
        loss = (counted * weight).sum() / (total.clamp_min(1e-6) * error.shape[1])
        figures = {"l1": error.mean(), "timestep": timesteps.float().mean()}
        if batch.has_lesions:
            figures["l1_lesion"] = (error * lesions).sum() / (lesions.sum() * error.shape[1])
        if self.config.label_mean_weight > 0:
            figures["label_mean"] = label_mean_error(
                signed_error,
                label_maps,
                self.lesion_ids,
                self.config.lesion_weight,
                total_weight=None if mean_weights is None else mean_weights[1],
            )
            loss = loss + self.config.label_mean_weight * figures["label_mean"]
        extra = self._contrast(batch, Prediction(noisy, timesteps, output.float(), target), figures)
        loss = loss if extra is None else loss + extra
        return loss, {name: value.detach() for name, value in figures.items()}

    def _contrast(self, batch: Batch, predicted: Prediction, figures: dict[str, Tensor]) -> Tensor | None:
        """The region contrastive loss, while the network trains, its figures added in place; None for nothing."""
        weight = self.config.contrastive_weight if isinstance(self.scheduler, RFlowScheduler) else 0.0
        if weight == 0 or self.remover is None or not torch.is_grad_enabled():
            return None
        pairs = zip(batch.label_maps, batch.spacings_mm, strict=True)
        without_maps = np.stack([self.remover.remove(label_map, spacing_mm) for label_map, spacing_mm in pairs])
        regions = find_regions(batch.label_maps, without_maps, batch.clean.shape)
        if not regions.changed.any():
            return None
        shown = without_maps if batch.shown is None else show_without(batch.shown, batch.label_maps, without_maps)
        on_maps = torch.from_numpy(shown).to(self.device)
        without = self._predict(predicted.noisy, predicted.timesteps, batch, on_maps).float()
        on_device = ChangedRegions(*(part.to(self.device) for part in regions))
        reward, outside = region_contrastive_loss(
            predicted.output, without, predicted.target, on_device, bound=self.config.contrastive_bound
        )
        figures |= {"contrast": -reward, "outside": outside}
        return weight * (reward + outside)

    def _draw_noise(self, step: int, clean: Tensor, share: Share = WHOLE) -> tuple[Tensor, Tensor]:
        """Noise and timesteps of a share, cut from those of the whole batch."""
        shape = (len(clean) * share.count, *clean.shape[1:])
        own = share.slice_of(len(clean))
        generator = torch.Generator().manual_seed(derive_seed("flow noise", self.seed, step))
        noise = torch.randn(shape, generator=generator)[own]
        num = self.scheduler.num_train_timesteps
        positions = torch.rand(shape[0], generator=generator)[own]
        if self.config.sampling_steps is not None:
            return noise, self._draw_levels(positions)
        if isinstance(self.scheduler, DDPMScheduler):
            return noise, (positions * num).long()
        if _is_uniform(self.scheduler):
            return noise, positions * num
        with torch.random.fork_rng(devices=[]):  # MONAI draws from the global generator
            torch.manual_seed(derive_seed("flow timesteps", self.seed, step))
            timesteps: Tensor = self.scheduler.sample_timesteps(clean.new_empty(1).expand(shape))[own]
        return noise, timesteps

    def _draw_levels(self, positions: Tensor) -> Tensor:
        """Time steps at which sampling calls the networks, by random positions in [0, 1)."""
        assert isinstance(self.scheduler, RFlowScheduler)
        assert self.config.sampling_steps is not None
        numel = self.latents.latents[0][0].numel()
        self.scheduler.set_timesteps(self.config.sampling_steps, input_img_size_numel=numel)
        levels: Tensor = self.scheduler.timesteps.float()
        return levels[(positions * len(levels)).long()]

    def _draw_step(self, step: int, share: Share) -> DrawnStep:
        """All that this process needs of a step, drawn with the first of its shares and kept for the others."""
        drawn = self._drawn
        if drawn is None or (drawn.step, drawn.num_shares) != (step, share.count):
            batches = self._batches(self._draw_batches, step, Share(share.index % self.processes.count, share.count))
            weights = None
            if share.count > 1:
                total = torch.stack([self._sum_weights(batch) for batch in batches]).sum(0)
                weights = self.processes.sum(total) / share.count
            drawn = self._drawn = DrawnStep(step, share.count, batches, weights)
        return drawn

    def _draw_batches(self, step: int, first: Share = WHOLE) -> list[Batch]:
        """The batches of the shares of a step that one process makes, of which the first is given."""
        start = self.config.whole_start_step
        is_late = start is not None and step >= start
        is_whole = self.config.crop_shape is None or is_late
        count = (self.config.whole_batch_count if is_late else None) or self.config.batch_count
        rng = numpy_generator(derive_seed("flow batch", self.seed, step), "cases")
        places, told = [], []
        for index in rng.integers(len(self.store), size=count * first.count):
            corner, shape = self._draw_crop(int(index), None if is_whole else self.config.crop_shape, rng)
            places.append((int(index), corner, shape))
            told.append(rng.random())
        batches = []
        for index in range(first.index, first.count, self.processes.count):
            own = Share(index, first.count).slice_of(count)
            batch = self.cut_batch(places[own], told=told[own])
            if self.config.surroundings is not None and self.controlnet is not None:
                seeds = [derive_seed("hidden part", self.seed, step, place) for place in range(own.start, own.stop)]
                batch = self._show_surroundings(batch, places[own], seeds)
            batches.append(batch)
        return batches

    def _show_surroundings(
        self, batch: Batch, places: Sequence[tuple[int, Shape, Shape]], seeds: Sequence[int]
    ) -> Batch:
        """The batch with what the ControlNet is shown of its images."""
        assert self.config.surroundings is not None
        images, known = [], []
        for (index, corner, shape), label_map, spacing_mm, seed in zip(
            places, batch.label_maps, batch.spacings_mm, seeds, strict=True
        ):
            factor = label_map.shape[0] // shape[0]
            box = tuple(slice(c * factor, (c + s) * factor) for c, s in zip(corner, shape, strict=True))
            rng = numpy_generator(seed, "hidden part")
            hidden = draw_hidden(label_map, spacing_mm, self.lesion_ids, self.config.surroundings, rng)
            images.append(hu_to_unit(torch.from_numpy(np.ascontiguousarray(self.store.image_hu(index, box)))))
            known.append(torch.from_numpy(~hidden & (label_map > 0)))
        return replace(batch, surroundings=to_surroundings(torch.stack(images), torch.stack(known)))

    def cut_batch(self, places: Sequence[tuple[int, Shape, Shape]], *, told: Sequence[float] | None = None) -> Batch:
        """Cut crops of cases, with the conditions that the networks get.

        Args:
            places: For each crop, index of the case, first latent voxel, and number of latent voxels along i, j, k.
            told: Random numbers in [0, 1), one per crop, that decide whether its modality is omitted; None to omit
                none.
        """
        cleans, label_maps, modalities, spacings, regions = [], [], [], [], []
        shown, noises = [], []
        for place, (index, corner, shape) in enumerate(places):
            facts, latent = self.store.facts(index), self.latents.latents[index]
            factors = [side // small for side, small in zip(facts.shape, latent.shape[1:], strict=True)]
            in_latent = tuple(slice(c, c + s) for c, s in zip(corner, shape, strict=True))
            in_image = tuple(slice(b.start * f, b.stop * f) for b, f in zip(in_latent, factors, strict=True))
            cleans.append(latent[(slice(None), *in_latent)].float() * self.latents.scale_factor)
            label_maps.append(self.store.label_map(index, in_image))
            shown.append(self.store.condition_map(index, in_image))
            if self.config.own_noise:
                noises.append(self._find_noise(index)[(slice(None), *in_latent)])
            modalities.append(facts.modality if told is None else self._tell(facts.modality, told[place]))
            spacings.append(facts.spacing_mm)
            if takes_regions(self.unet):
                regions.append(self._find_regions(index))
        maps = np.stack(label_maps)
        has_lesions = bool(self.lesions.is_lesion[maps].any())
        return Batch(
            torch.stack(cleans),
            maps,
            tuple(modalities),
            tuple(spacings),
            tuple(regions),
            has_lesions,
            shown=np.stack(shown),
            noise=torch.stack(noises) if noises else None,
        )

    def _find_noise(self, index: int) -> Tensor:
        """``(C, i, j, k)`` noise of deviation 1 in the latent of what a case's noise was made from."""
        white = self.store.noise(index)
        if white is None:
            raise TrainingError(f"Case {index}: own_noise needs the noise that images were made from. Leave it out.")
        num_channels = len(self.latents.latents[index])
        kernels = haar_kernels(num_channels)[:, None] * 8**0.5
        return functional.conv3d(torch.from_numpy(white)[None, None], kernels, stride=2)[0]

    def _find_regions(self, index: int) -> Regions:
        if index not in self._regions:
            told = self.store.facts(index).regions
            self._regions[index] = told or find_body_regions(self.store.label_map(index))
        return self._regions[index]

    def _tell(self, modality: str, draw: float) -> str:
        if draw < self.config.modality_dropout:
            return generic_modality(modality)
        return "unknown" if draw < self.config.modality_dropout + self.config.modality_omission else modality

    def _draw_crop(self, index: int, wanted: Shape | None, rng: np.random.Generator) -> tuple[Shape, Shape]:
        """First latent voxel and latent voxels of a random box; all of the latent where none is wanted."""
        latent_shape = np.asarray(self.latents.latents[index].shape[1:])
        shape = latent_shape if wanted is None else np.minimum(wanted, latent_shape)
        limits = latent_shape - shape
        corner = rng.integers(0, limits + 1)
        if rng.random() < self.config.lesion_share and limits.any():
            lesion_voxels = self.lesions[index]
            if len(lesion_voxels):
                factor = np.asarray(self.store.facts(index).shape) // latent_shape
                centre = lesion_voxels[rng.integers(len(lesion_voxels))] // factor
                corner = np.clip(centre - rng.integers(0, shape), 0, limits)
        (i, j, k), (di, dj, dk) = corner.tolist(), shape.tolist()
        return (i, j, k), (di, dj, dk)

    def _predict(self, noisy: Tensor, timesteps: Tensor, batch: Batch, label_maps: Tensor) -> Tensor:
        device = self.device
        modality = to_modality_tensor(batch.modalities, device=device)
        spacing = to_spacing_tensor(batch.spacings_mm, device=device)
        regions = to_region_tensors(batch.regions, device=device) if batch.regions else None
        residuals: dict[str, Any] = {}
        if self.controlnet is not None:
            shown = None if batch.surroundings is None else batch.surroundings.to(device)
            control = to_control(to_label_bits(label_maps), shown, num_channels=self._num_control_channels)
            down, middle = self.controlnet(x=noisy, timesteps=timesteps, controlnet_cond=control, class_labels=modality)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        told = name_for_unet(modality, spacing, regions)
        output: Tensor = self.unet(x=noisy, timesteps=timesteps, **told, **residuals)
        return output

    def _weights(self, label_maps: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """``(B, 1, i, j, k)`` factors on the loss, and whether a latent voxel holds a lesion."""
        device = label_maps.device
        is_lesion = torch.from_numpy(self.lesions.is_lesion).to(device, torch.float32)
        weight, lesions = (_pool(table, label_maps, shape) for table in (self._weight_of_id.to(device), is_lesion))
        return weight, lesions

    @cached_property
    def _num_control_channels(self) -> int:
        assert self.controlnet is not None
        return count_control_channels(self.controlnet)

    def _weigh_known(self, weight: Tensor, batch: Batch) -> Tensor:
        """The weights with less on latent voxels that the ControlNet is shown as a whole."""
        if batch.surroundings is None or self.config.surroundings is None:
            return weight
        hidden = 1.0 - batch.surroundings[:, 1:].to(weight.device)
        share = functional.adaptive_max_pool3d(hidden, list(weight.shape[2:]))
        return weight * (share + (1.0 - share) * self.config.surroundings.known_weight)

    def _sum_weights(self, batch: Batch) -> Tensor:
        """Of the latent voxels of a batch, and of its labels where their mean errors count."""
        label_maps = torch.from_numpy(batch.label_maps).to(self.device)
        weight = _pool(self._weight_of_id.to(self.device), label_maps, batch.clean.shape)
        voxels = self._weigh_known(weight, batch).sum()
        if self.config.label_mean_weight == 0:
            return torch.stack([voxels, torch.zeros_like(voxels)])
        return torch.stack([voxels, weigh_labels(label_maps, self.lesion_ids, self.config.lesion_weight).sum()])


def _tabulate_weights(config: FlowLossConfig, lesion_ids: Sequence[int], label_weights: Mapping[int, float]) -> Tensor:
    """Factor on the loss of each of 256 ids; a latent voxel takes the largest that it holds."""
    table = torch.ones(256)
    table[0] = config.outside_weight
    table[list(lesion_ids)] = config.lesion_weight
    for label_id, weight in label_weights.items():
        table[label_id] = weight
    return table


def label_mean_error(
    error: Tensor,
    label_maps: Tensor,
    lesion_ids: Sequence[int],
    lesion_weight: float,
    *,
    total_weight: Tensor | None = None,
) -> Tensor:
    """Return the absolute mean error of every label, averaged over labels by the square root of their voxels.

    The error of a voxel is mostly noise that no network can predict. Over a label it cancels, so that the rest shows
    whether organs and lesions have the right intensity; this keeps faint lesions from being lost.

    Args:
        error: ``(B, C, i, j, k)`` signed error.
        label_maps: ``(B, I, J, K)`` vocabulary ids, with sides that are multiples of those of ``error``; background
            does not count.
        lesion_ids: Ids that are lesions.
        lesion_weight: Factor on the weight of lesions.
        total_weight: Sum of the labels' weights to divide by; None for the sum over these cases.

    Returns:
        Scalar loss.
    """
    batch_count, num_channels = error.shape[:2]
    wide = functional.interpolate(error, size=label_maps.shape[1:], mode="nearest")
    place = _places_of_labels(label_maps)
    sums = error.new_zeros(256 * batch_count, num_channels)
    sums = sums.index_add(0, place, wide.flatten(2).transpose(1, 2).reshape(-1, num_channels))
    counts = torch.bincount(place, minlength=256 * batch_count).to(sums)
    weight = weigh_labels(label_maps, lesion_ids, lesion_weight).to(sums)
    means = (sums / counts.clamp_min(1.0)[:, None]).abs().mean(dim=1)
    total = weight.sum() if total_weight is None else total_weight
    return (means * weight.flatten()).sum() / total.clamp_min(1e-6)


def weigh_labels(label_maps: Tensor, lesion_ids: Sequence[int], lesion_weight: float) -> Tensor:
    """Return ``(B, 256)`` weights of each case's labels: square root of their voxels, with a factor for lesions.

    Args:
        label_maps: ``(B, I, J, K)`` vocabulary ids.
        lesion_ids: Ids of the labels that count as lesions.
        lesion_weight: Factor on their weights.

    Returns:
        ``(B, 256)`` float32 weights by id; 0 for the background and for labels that a case lacks.
    """
    counts = torch.bincount(_places_of_labels(label_maps), minlength=256 * len(label_maps)).float()
    weight = counts.sqrt().view(len(label_maps), 256)
    weight[:, 0] = 0.0
    weight[:, torch.as_tensor(lesion_ids, device=weight.device).long()] *= lesion_weight
    return weight


def _places_of_labels(label_maps: Tensor) -> Tensor:
    """``(B * I * J * K,)`` row of each voxel's label in a table of 256 rows a case."""
    rows = 256 * torch.arange(len(label_maps), device=label_maps.device)[:, None]
    return (label_maps.flatten(1).long() + rows).flatten()


def _is_uniform(scheduler: RFlowScheduler) -> bool:
    """Whether timesteps are drawn evenly over the whole range, without rounding or a shift towards noise."""
    is_shifted = scheduler.use_timestep_transform or scheduler.use_discrete_timesteps
    return scheduler.sample_method == "uniform" and not is_shifted


def _pool(table: Tensor, label_maps: Tensor, shape: torch.Size) -> Tensor:
    """``(B, 1, i, j, k)``: the largest value in a table of the ids that a latent voxel holds."""
    # index_select is five times as fast as indexing on a CPU.
    values = table.index_select(0, label_maps.flatten().int()).view(label_maps.shape)[:, None]
    return functional.adaptive_max_pool3d(values, list(shape[2:]))
