"""The autoencoder's objective: reconstruction, a windowed term, Kullback-Leibler, features, later on an adversary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from monai.losses.adversarial_loss import PatchAdversarialLoss
from monai.networks.nets.patchgan_discriminator import PatchDiscriminator
from torch import Tensor, nn

from maisi_aug.networks.conditioning import HU_MINIMUM, HU_PER_UNIT
from maisi_aug.system.seeds import derive_seed
from maisi_aug.training.cases.data import Ahead, CaseStore
from maisi_aug.training.images.patches import PatchSource
from maisi_aug.training.images.perceptual import load_perceptual
from maisi_aug.training.loop.processes import ALONE, WHOLE, Processes, Share
from maisi_aug.training.loop.settings import VaeLossConfig


@dataclass(eq=False)
class VaeObjective:
    """Training objective of the autoencoder: reconstruct patches of the training cases.

    The losses are those of MAISI (Guo et al., WACV 2025), L1, KL, a perceptual term and a least-squares patch
    adversary; the windowed L1 is added here.
    """

    autoencoder: nn.Module
    store: CaseStore
    config: VaeLossConfig
    _: KW_ONLY
    lesion_ids: Sequence[int]
    seed: int
    device: str
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        config, device, seed = self.config, self.device, self.seed
        self.patches = PatchSource(self.store, config, lesion_ids=self.lesion_ids, seed=seed)
        self._batches = Ahead[Tensor](is_on=device.startswith("cuda"))
        _set_log_variance(self.autoencoder, config.initial_log_variance)
        self.perceptual = load_perceptual(config, device) if config.perceptual_weight > 0 else None
        has_adversary = bool(config.adversarial_weight)
        self.adversary = _Adversary(config, device, seed=seed, processes=self.processes) if has_adversary else None
        self._rebuilt: list[tuple[Tensor, Tensor]] = []

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """Networks that are trained: the autoencoder."""
        return {"autoencoder": self.autoencoder}

    def loss(self, step: int, share: Share = WHOLE) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a share of a step's patches, with the figures to log, such as the mean error in HU.

        Args:
            step: Number of the step, from 0.
            share: Part of the batch that this process takes.

        Returns:
            Scalar loss with gradients, and name -> figure to log.
        """
        image = self._batches(self.patches.draw, step, share).to(self.device)
        mean, sigma = self.autoencoder.encode(image)  # type: ignore[operator]
        rebuilt = self.autoencoder.decode(mean + sigma * self._draw_noise(step, share, mean.shape)).float()  # type: ignore[operator]
        mean, sigma = mean.float(), sigma.float()
        l1 = (rebuilt - image).abs().mean()
        divergence = kl_divergence(mean, sigma)
        loss = l1 + self.config.kl_weight * divergence
        figures = {"mean_error_hu": l1 * HU_PER_UNIT, "kl": divergence}
        if self.config.window_weight > 0:
            ours, theirs = (_to_window(volume, self.config.window_hu) for volume in (rebuilt, image))
            figures["window"] = (ours - theirs).abs().mean()
            loss = loss + self.config.window_weight * figures["window"]
        if self.perceptual is not None:
            figures["perceptual"] = self._compare_slices(step, share, rebuilt, image)
            loss = loss + self.config.perceptual_weight * figures["perceptual"]
        if self.adversary is not None and step >= self.config.adversarial_start_step:
            figures["adversarial"] = self.adversary.generator_loss(rebuilt)
            loss = loss + self.config.adversarial_weight * figures["adversarial"]
            self._rebuilt.append((image, rebuilt.detach()))
        return loss, {name: value.detach() for name, value in figures.items()}

    def after_step(self, step: int) -> None:
        """Train the discriminator on the images of the step."""
        if self.adversary is not None and self._rebuilt:
            self.adversary.train_step(self._rebuilt)
        self._rebuilt = []

    def state(self) -> dict[str, Any]:
        """Return weights and optimiser state of the discriminator, for the checkpoint."""
        return {} if self.adversary is None else self.adversary.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore weights and optimiser state of the discriminator from a checkpoint."""
        if self.adversary is not None and state:
            self.adversary.load_state(state)

    def _draw_noise(self, step: int, share: Share, shape: torch.Size) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed("vae noise", self.seed, step))
        noise = torch.randn((shape[0] * share.count, *shape[1:]), generator=generator)
        return noise[share.slice_of(shape[0])].to(self.device)

    def _compare_slices(self, step: int, share: Share, rebuilt: Tensor, image: Tensor) -> Tensor:
        assert self.perceptual is not None
        first = share.slice_of(len(image)).start
        seeds = [derive_seed("perceptual slices", self.seed, step, first + place) for place in range(len(image))]
        distance: Tensor = self.perceptual(rebuilt, image, seeds=seeds)
        return distance


class _Adversary:
    """A patch discriminator with its optimiser (Isola et al., "Image-to-Image Translation", CVPR 2017)."""

    def __init__(self, config: VaeLossConfig, device: str, *, seed: int, processes: Processes) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("initial weights", seed, "discriminator"))
            self.network = PatchDiscriminator(
                spatial_dims=3, num_layers_d=3, channels=32, in_channels=1, out_channels=1, norm="INSTANCE"
            ).to(device)
        self.criterion = PatchAdversarialLoss(criterion="least_squares")
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.discriminator_learning_rate)
        self.device = device
        self.processes = processes

    def generator_loss(self, rebuilt: Tensor) -> Tensor:
        self.network.requires_grad_(False)  # its own gradients come in its own step
        with self._in_float32():
            logits = self.network(rebuilt.float())[-1]
        loss: Tensor = self.criterion(logits, target_is_real=True, for_discriminator=False)
        return loss

    def train_step(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Learn to tell images from their reconstructions, on all batches of a step."""
        self.network.requires_grad_(True)
        self.optimizer.zero_grad(set_to_none=True)
        for image, rebuilt in batches:
            with self._in_float32():
                fake = self.network(rebuilt)[-1]
                real = self.network(image)[-1]
            loss = 0.5 * (
                self.criterion(fake, target_is_real=False, for_discriminator=True)
                + self.criterion(real, target_is_real=True, for_discriminator=True)
            )
            (loss / len(batches)).backward()
        self.processes.average_gradients(self.network.parameters())
        self.optimizer.step()

    def _in_float32(self) -> AbstractContextManager[object]:
        # On processors that compute in bfloat16 its gradients were not always numbers, and it is small.
        return torch.autocast(self.device.partition(":")[0], enabled=False)

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


def kl_divergence(mean: Tensor, sigma: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of latents to the standard normal distribution, summed over a latent.

    Args:
        mean: ``(B, C, i, j, k)`` float32 means.
        sigma: ``(B, C, i, j, k)`` float32 standard deviations.

    Returns:
        Mean over the batch.
    """
    return 0.5 * (mean**2 + sigma**2 - torch.log(sigma**2 + 1e-8) - 1).sum() / len(mean)


@torch.no_grad()
def _set_log_variance(autoencoder: nn.Module, log_variance: float) -> None:
    for name, parameter in autoencoder.named_parameters():
        if name.startswith("quant_conv_log_sigma") and name.endswith("bias"):
            parameter.fill_(log_variance)


def _to_window(image: Tensor, window_hu: tuple[float, float]) -> Tensor:
    """Map [0, 1] intensities so that the window spans [0, 1], clipped outside it."""
    low, high = ((edge - HU_MINIMUM) / HU_PER_UNIT for edge in window_hu)
    return ((image - low) / (high - low)).clamp(0.0, 1.0)
