"""The autoencoder's objective: reconstruction, a windowed term, Kullback-Leibler and, later on, an adversary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from monai.losses.adversarial_loss import PatchAdversarialLoss
from monai.networks.nets.patchgan_discriminator import PatchDiscriminator
from numpy.typing import NDArray
from torch import Tensor, nn

from maisi_aug.conditioning import HU_MAXIMUM, HU_MINIMUM, hu_to_unit
from maisi_aug.grid import Shape
from maisi_aug.seeds import derive_seed, numpy_generator
from maisi_aug.training.data import CaseStore, TrainingCase
from maisi_aug.training.settings import VaeLossConfig


class VaeObjective:
    """Reconstruct patches of training cases.

    Losses as in MAISI (Guo et al., WACV 2025): L1, KL and a least-squares patch adversary; the windowed L1 is ours.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        store: CaseStore,
        config: VaeLossConfig,
        *,
        lesion_ids: Sequence[int],
        seed: int,
        device: str,
    ) -> None:
        self.autoencoder = autoencoder
        self.store = store
        self.config = config
        self.lesion_ids = np.asarray(lesion_ids, dtype=np.uint8)
        self.seed = seed
        self.device = device
        _set_log_variance(autoencoder, config.initial_log_variance)
        self.adversary = _Adversary(config, device, seed=seed) if config.adversarial_weight > 0 else None
        self._last: tuple[Tensor, Tensor] | None = None

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The autoencoder."""
        return {"autoencoder": self.autoencoder}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of the patches of a step, with the mean error in HU."""
        image = self._draw_batch(step)
        mean, sigma = self.autoencoder.encode(image)  # type: ignore[operator]
        generator = torch.Generator().manual_seed(derive_seed("vae noise", self.seed, step))
        noise = torch.randn(mean.shape, generator=generator).to(self.device)
        rebuilt = self.autoencoder.decode(mean + sigma * noise).float()  # type: ignore[operator]
        mean, sigma = mean.float(), sigma.float()
        l1 = (rebuilt - image).abs().mean()
        divergence = 0.5 * (mean**2 + sigma**2 - torch.log(sigma**2 + 1e-8) - 1).sum() / len(image)
        window = (_to_window(rebuilt, self.config.window_hu) - _to_window(image, self.config.window_hu)).abs().mean()
        loss = l1 + self.config.kl_weight * divergence + self.config.window_weight * window
        figures = {
            "mean_error_hu": float(l1.detach()) * (HU_MAXIMUM - HU_MINIMUM),
            "window": float(window.detach()),
            "kl": float(divergence.detach()),
        }
        if self.adversary is not None and step >= self.config.adversarial_start_step:
            adversarial = self.adversary.generator_loss(rebuilt)
            loss = loss + self.config.adversarial_weight * adversarial
            figures["adversarial"] = float(adversarial.detach())
            self._last = (image, rebuilt.detach())
        return loss, figures

    def after_step(self, step: int) -> None:
        """Train the adversary on the images of the step."""
        if self.adversary is not None and self._last is not None:
            self.adversary.train_step(*self._last)
            self._last = None

    def state(self) -> dict[str, Any]:
        """The weights and the optimiser of the adversary."""
        return {} if self.adversary is None else self.adversary.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back the adversary."""
        if self.adversary is not None and state:
            self.adversary.load_state(state)

    def _draw_batch(self, step: int) -> Tensor:
        rng = numpy_generator(derive_seed("vae batch", self.seed, step), "patches")
        start = self.config.large_patch_start_step
        is_large = start is not None and step >= start
        shape = self.config.large_patch_shape if is_large else self.config.patch_shape
        indices = rng.integers(len(self.store), size=self.config.batch_count)
        patches = [self._draw_patch(self.store[int(index)], shape, rng) for index in indices]
        return hu_to_unit(torch.from_numpy(np.stack(patches)))[:, None].to(self.device)

    def _draw_patch(self, case: TrainingCase, wanted: Shape, rng: np.random.Generator) -> NDArray[np.int16]:
        shape = np.minimum(wanted, case.image_hu.shape)
        limits = np.asarray(case.image_hu.shape) - shape
        corner = rng.integers(0, limits + 1)
        if rng.random() < self.config.lesion_share:
            lesion_voxels = np.argwhere(np.isin(case.label_map, self.lesion_ids))
            if len(lesion_voxels):
                centre = lesion_voxels[rng.integers(len(lesion_voxels))]
                corner = np.clip(centre - rng.integers(0, shape), 0, limits)
        i, j, k = (slice(int(start), int(start + side)) for start, side in zip(corner, shape, strict=True))
        axes = [axis for axis in range(3) if rng.random() < 0.5]
        return np.ascontiguousarray(np.flip(case.image_hu[i, j, k], tuple(axes)))


class _Adversary:
    """A patch discriminator with its optimiser (Isola et al., "Image-to-Image Translation", CVPR 2017)."""

    def __init__(self, config: VaeLossConfig, device: str, *, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("initial weights", seed, "discriminator"))
            self.network = PatchDiscriminator(
                spatial_dims=3, num_layers_d=3, channels=32, in_channels=1, out_channels=1, norm="INSTANCE"
            ).to(device)
        self.criterion = PatchAdversarialLoss(criterion="least_squares")
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.discriminator_learning_rate)
        self.device = device

    def generator_loss(self, rebuilt: Tensor) -> Tensor:
        with self._in_float32():
            logits = self.network(rebuilt.float())[-1]
        loss: Tensor = self.criterion(logits, target_is_real=True, for_discriminator=False)
        return loss

    def train_step(self, image: Tensor, rebuilt: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with self._in_float32():
            fake = self.network(rebuilt.float())[-1]
            real = self.network(image)[-1]
        loss = 0.5 * (
            self.criterion(fake, target_is_real=False, for_discriminator=True)
            + self.criterion(real, target_is_real=True, for_discriminator=True)
        )
        loss.backward()
        self.optimizer.step()

    def _in_float32(self) -> AbstractContextManager[object]:
        # On processors that compute in bfloat16 its gradients were not always numbers, and it is small.
        return torch.autocast(self.device.partition(":")[0], enabled=False)

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


@torch.no_grad()
def _set_log_variance(autoencoder: nn.Module, log_variance: float) -> None:
    for name, parameter in autoencoder.named_parameters():
        if name.startswith("quant_conv_log_sigma") and name.endswith("bias"):
            parameter.fill_(log_variance)


def _to_window(image: Tensor, window_hu: tuple[float, float]) -> Tensor:
    """Map [0, 1] intensities so that the window spans [0, 1], clipped outside it."""
    low, high = ((edge - HU_MINIMUM) / (HU_MAXIMUM - HU_MINIMUM) for edge in window_hu)
    return ((image - low) / (high - low)).clamp(0.0, 1.0)
