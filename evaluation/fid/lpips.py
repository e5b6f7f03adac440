"""LPIPS, the distance of two pictures in the features of a network that was weighted by people's judgement.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, version 0.1, on
SqueezeNet 1.1. The weighting comes with the package ``lpips`` (BSD-2-Clause, extra ``lpips``); the weights of the
network do not, and are named by the user, as for FID.
"""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from maisi_aug.errors import MissingExtraError
from maisi_aug.evaluation.fid.extractors import load_extractor

NETWORK: Final = "squeezenet1_1"
BATCH_SLICES: Final = 16
MIN_SIDE: Final = 32
"""Smallest side of a picture in pixels; SqueezeNet halves it four times."""


@dataclass(frozen=True, eq=False)
class PerceptualDistance:
    """The perceptual distance LPIPS with its weights, on a device.

    Attributes:
        network: Network of the package ``lpips``, on ``device``.
        device: Device on which it runs.
        name: Network and weights in words.
    """

    network: nn.Module
    device: str
    name: str

    def measure(self, pictures: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the LPIPS distances of pictures, pair by pair.

        Args:
            pictures: ``(N, rows, columns)`` pictures in [0, 1], with sides of at least 32.
            others: Pictures of the same shape to compare with.

        Returns:
            ``(N,)`` distances.
        """
        found = []
        with torch.inference_mode():
            for start in range(0, len(pictures), BATCH_SLICES):
                pair = [
                    (2 * torch.from_numpy(side[start : start + BATCH_SLICES]) - 1)[:, None].expand(-1, 3, -1, -1)
                    for side in (pictures, others)
                ]
                found.append(self.network(*(side.to(self.device) for side in pair)).flatten().double().cpu())
        distances: NDArray[np.float64] = torch.cat(found).numpy()
        return distances


def load_perceptual_distance(weights: str, *, sha256: str | None = None, device: str = "cpu") -> PerceptualDistance:
    """Load LPIPS with SqueezeNet 1.1.

    Args:
        weights: Path or https address of torchvision's ``squeezenet1_1-b8a52dc0.pth``.
        sha256: SHA-256 of the weights; required for an address.
        device: Device of the network.

    Raises:
        MissingExtraError: The package ``lpips`` is not installed.
        RequestError: The weights or the hash are missing or implausible.
        BundleError: The weights are missing, altered, or those of another network.
    """
    if importlib.util.find_spec("lpips") is None:
        raise MissingExtraError(
            "LPIPS: the package lpips is missing. Install it with 'pip install maisi-aug[lpips]', or leave "
            "--lpips-weights out."
        )
    extractor = load_extractor(NETWORK, weights=weights, sha256=sha256, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it builds torchvision's network with arguments of earlier versions
        from lpips import LPIPS

        network: nn.Module = LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    layers = dict(extractor.network.features.named_children())  # type: ignore[union-attr]
    for part in network.net.children():  # type: ignore[union-attr]
        for name, layer in part.named_children():
            layer.load_state_dict(layers[name].state_dict())
    network = network.eval().requires_grad_(False).to(torch.device(device))
    return PerceptualDistance(network, device, f"SqueezeNet 1.1, LPIPS 0.1, sha256 {extractor.sha256[:12]}")
