"""The mask networks of a bundle on a device: from ten sizes to a label map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.bundle_spec.decoding import ComputeType, PrecisionName, latent_factor
from maisi_aug.bundle_spec.mask_networks import choose_mask_steps, generated_grid, require_masks
from maisi_aug.errors import BundleError
from maisi_aug.networks.building import MaskNetworks, choose_precision
from maisi_aug.networks.mask_conditions import CONDITION_IDS, load_size_conditions
from maisi_aug.networks.mask_decoding import class_ids, decode_label_map
from maisi_aug.networks.mask_diffusion import sample_mask_latent
from maisi_aug.networks.pipeline import resolve_device
from maisi_aug.networks.weights import load_mask_networks
from maisi_aug.system.progress import Report
from maisi_aug.volumes.grid import Grid


@dataclass(frozen=True, eq=False)
class MaskGenerator:
    """Generator of label maps: mask networks of a bundle, loaded once and used for many maps.

    Attributes:
        networks: Networks, already on their device.
        grid: Grid of the label maps.
        num_inference_steps: Number of sampling steps.
        latent_shape: Shape ``(C, i, j, k)`` of a latent.
        size_conditions: ``(N, 10)`` real sizes that conditions are drawn from.
        precision: Precision of the networks.
    """

    networks: MaskNetworks
    grid: Grid
    num_inference_steps: int
    latent_shape: tuple[int, ...]
    size_conditions: NDArray[np.float32]
    precision: ComputeType = "float32"

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        device: str = "auto",
        *,
        num_inference_steps: int | None = None,
        precision: PrecisionName = "auto",
    ) -> MaskGenerator:
        """Load a bundle's mask networks onto a device.

        Args:
            bundle: Bundle with mask networks.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps`` or ``xpu``.
            num_inference_steps: Number of sampling steps; None for the bundle's default.
            precision: Precision of the networks; ``auto`` is float16 on CUDA devices and float32 elsewhere.

        Raises:
            BundleError: The device cannot be used, or mask networks are missing, altered or do not match their
                definition.
            GridError: The networks cannot make maps of the grid that the bundle names.
            RecipeError: There are more steps than the scheduler was trained with, or the device does not support the
                precision.
        """
        device = resolve_device(device)
        chosen = choose_precision(precision, device, bears_half=bundle.spec.mixed_precision)
        spec, grid = require_masks(bundle), generated_grid(bundle)
        steps = choose_mask_steps(bundle, num_inference_steps)
        autoencoder, unet = bundle.definition("mask_autoencoder"), bundle.definition("mask_diffusion_unet")
        _require_told_sizes(bundle)
        factor = latent_factor(autoencoder)
        subject = f"Label maps of bundle '{bundle.name}'"
        grid.require_multiple_of(factor * 2 ** (len(unet["channels"]) - 1), subject=subject)
        return cls(
            load_mask_networks(bundle, device=device),
            grid,
            steps,
            (int(autoencoder["latent_channels"]), *(side // factor for side in grid.shape)),
            load_size_conditions(bundle.path_of(spec.size_conditions)),
            chosen,
        )

    def generate(
        self, condition: Sequence[float] | NDArray[np.float32], *, seed: int, report: Report | None = None
    ) -> NDArray[np.uint8]:
        """Generate a label map, before clean-up.

        Args:
            condition: Ten sizes in the order of ``mask_conditions.CONDITION_IDS``.
            seed: Seed; the same seed gives the same map on the same type of device.
            report: Progress callback, called with (steps done, steps in all).

        Returns:
            ``(I, J, K)`` uint8 MAISI label ids.
        """
        latent = sample_mask_latent(
            self.networks,
            torch.tensor(np.asarray(condition, dtype=np.float32))[None],
            self.latent_shape,
            num_inference_steps=self.num_inference_steps,
            seed=seed,
            report=report,
            precision=self.precision,
        )
        return decode_label_map(
            self.networks.autoencoder, latent, scale_factor=self.networks.scale_factor, precision=self.precision
        )


def _require_told_sizes(bundle: Bundle) -> None:
    """Raise unless the networks take ten sizes and tell MAISI's classes apart."""
    for role, key, expected in (
        ("mask_diffusion_unet", "cross_attention_dim", len(CONDITION_IDS)),
        ("mask_autoencoder", "out_channels", len(class_ids())),
    ):
        found = bundle.definition(role).get(key)
        if found != expected:
            raise BundleError(
                f"Bundle '{bundle.name}', networks.{role}: {key} must be {expected}, as in MAISI's mask generator, "
                f"found {found}. Get the bundle again."
            )
