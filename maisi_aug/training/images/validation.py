"""Figures of held-out cases: the diffusion loss at fixed noise and timesteps, and the autoencoder's reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from monai.inferers.utils import sliding_window_inference
from monai.metrics.regression import PSNRMetric, SSIMMetric
from monai.networks.schedulers.ddpm import DDPMScheduler
from torch import Tensor, nn

from maisi_aug.networks.conditioning import HU_PER_UNIT, hu_to_unit
from maisi_aug.system.seeds import derive_seed
from maisi_aug.training.cases.data import CaseStore
from maisi_aug.training.images.flow import FlowObjective
from maisi_aug.training.loop.processes import ALONE, Processes
from maisi_aug.volumes.grid import Shape

# Noise levels of a case, evenly spread; all of them at every validation.
NUM_TIMESTEPS = 4
WINDOW_OVERLAP = 0.25
# Side of the Gaussian window of structural similarity, as in the paper.
SSIM_WINDOW = 11


@dataclass(frozen=True, eq=False)
class FlowValidation:
    """Validation of U-Net or ControlNet: loss on whole held-out cases, always at the same noise and time steps.

    Attributes:
        objective: Training objective, with the held-out cases instead of the training cases.
        processes: Processes that share the cases.
    """

    objective: FlowObjective
    processes: Processes = ALONE

    def __call__(self) -> dict[str, float]:
        """Mean figures over all cases and timesteps."""
        return _mean_over_cases(len(self.objective.store), self._compare_case, self.processes)

    def _compare_case(self, index: int) -> dict[str, float]:
        latent = self.objective.latents.latents[index]
        i, j, k = latent.shape[1:]
        batch = self.objective.cut_batch([(index, (0, 0, 0), (i, j, k))])
        rows = []
        for level in range(NUM_TIMESTEPS):
            generator = torch.Generator().manual_seed(
                derive_seed("validation noise", self.objective.seed, index, level)
            )
            noise = torch.randn(batch.clean.shape, generator=generator)
            position = (level + 0.5) / NUM_TIMESTEPS * self.objective.scheduler.num_train_timesteps
            timesteps = torch.tensor([position])
            if isinstance(self.objective.scheduler, DDPMScheduler):
                timesteps = timesteps.long()
            loss, figures = self.objective.compare(batch, noise, timesteps)
            rows.append({"loss": float(loss), **{name: float(value) for name, value in figures.items()}})
        return {name: fmean(row[name] for row in rows) for name in rows[0] if name != "timestep"}


@dataclass(frozen=True, eq=False)
class VaeValidation:
    """Validation of the autoencoder: reconstruction of whole held-out images, in windows, from the posterior mean.

    Attributes:
        autoencoder: Autoencoder in training.
        store: Held-out cases.
        window: Voxels along I, J, K that are encoded and decoded at once.
        device: Device that the autoencoder is on.
        processes: Processes that share the cases.
    """

    autoencoder: nn.Module
    store: CaseStore
    window: Shape
    device: str
    processes: Processes = ALONE

    def __call__(self) -> dict[str, float]:
        """Mean absolute error as loss and in HU, PSNR in dB and SSIM, over all cases."""
        return _mean_over_cases(len(self.store), self._compare_case, self.processes)

    def _compare_case(self, index: int) -> dict[str, float]:
        image = hu_to_unit(torch.from_numpy(self.store.image_hu(index))).to(self.device)[None, None]
        window = [min(side, wanted) for side, wanted in zip(image.shape[2:], self.window, strict=True)]
        rebuilt = sliding_window_inference(
            image, window, 1, self._reconstruct, overlap=WINDOW_OVERLAP, mode="gaussian"
        ).clamp(0.0, 1.0)
        error = float((rebuilt - image).abs().mean())
        side = min(SSIM_WINDOW, *image.shape[2:])
        similarity = SSIMMetric(spatial_dims=3, data_range=1.0, win_size=side - 1 + side % 2)
        return {
            "loss": error,
            "mean_error_hu": error * HU_PER_UNIT,
            "psnr_db": float(PSNRMetric(max_val=1.0)(rebuilt, image)),
            "ssim": float(similarity(rebuilt, image)),
        }

    def _reconstruct(self, image: Tensor) -> Tensor:
        mean, _ = self.autoencoder.encode(image)  # type: ignore[operator]
        rebuilt: Tensor = self.autoencoder.decode(mean)  # type: ignore[operator]
        return rebuilt.float()


def _mean_over_cases(
    num_cases: int, compare: Callable[[int], dict[str, float]], processes: Processes
) -> dict[str, float]:
    """Compute means over all cases, which are divided among the processes and shared with all."""
    own = [compare(index) for index in range(processes.rank, num_cases, processes.count)]
    rows: Sequence[dict[str, float]] = [row for rows in processes.gather(own) for row in rows]
    names = {name: None for row in rows for name in row}
    return {name: fmean(row[name] for row in rows if name in row) for name in names}
