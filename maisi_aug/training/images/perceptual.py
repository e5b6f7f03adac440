"""A perceptual distance of volumes: SqueezeNet's features of their slices, with weights from a file.

MAISI takes MONAI's ``PerceptualLoss`` with LPIPS on SqueezeNet. That class downloads what LPIPS needs when it is built;
this one computes the same from torchvision's network and files that the user names, and downloads nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maisi_aug.errors import TrainingError
from maisi_aug.networks.weights import load_torch_file
from maisi_aug.system.content import ContentError
from maisi_aug.training.loop.settings import VaeLossConfig

# Layers of squeezenet1_1.features after which LPIPS compares, and the channels there.
TAPS = {1: 64, 4: 128, 7: 256, 9: 384, 10: 384, 11: 512, 12: 512}
# LPIPS' own scaling of RGB; MAISI hands it intensities in [0, 1], the same in all three channels.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class SliceDistance(nn.Module):
    """LPIPS of random slices along each of the three axes, summed over the axes.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, eq. 1.

    Args:
        features: torchvision's ``squeezenet1_1().features``.
        heads: One weight per channel of each of the seven layers; None for ones.
        slice_share: Fraction of the slices along each axis that are compared.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, features: nn.Sequential, heads: Sequence[Tensor] | None, *, slice_share: float) -> None:
        super().__init__()
        self.features = features
        self.slice_share = slice_share
        self.heads = nn.ParameterList(heads or [torch.ones(channels) for channels in TAPS.values()])
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])
        self.requires_grad_(False)
        self.eval()

    def forward(self, ours: Tensor, theirs: Tensor, *, seeds: Sequence[int]) -> Tensor:
        """Return the mean LPIPS distance of two batches of volumes.

        Args:
            ours: ``(B, 1, I, J, K)`` intensities in [0, 1]; gradients flow to them.
            theirs: ``(B, 1, I, J, K)`` intensities to compare with.
            seeds: One seed per volume, for the choice of slices.

        Returns:
            Scalar distance.
        """
        distances = []
        with torch.autocast(ours.device.type, enabled=False):
            for mine, other, seed in zip(ours.float(), theirs.float(), seeds, strict=True):
                generator = torch.Generator().manual_seed(seed)
                for axis in range(3):
                    num_slices = mine.shape[1 + axis]
                    chosen = torch.randperm(num_slices, generator=generator)[
                        : max(1, int(num_slices * self.slice_share))
                    ]
                    pair = [volume[0].movedim(axis, 0)[chosen.to(volume.device), None] for volume in (mine, other)]
                    distances.append(self.compare(*pair).mean())
        return torch.stack(distances).sum() / len(ours)

    def compare(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Return the ``(N,)`` LPIPS distances of two stacks of slices, ``(N, 1, H, W)`` each.

        Args:
            ours: ``(N, 1, H, W)`` slices, which get gradients.
            theirs: ``(N, 1, H, W)`` slices to compare with.

        Returns:
            ``(N,)`` distances, one per pair of slices; 0 for equal ones.
        """
        distance = ours.new_zeros(len(ours))
        mine, other = ((image - self.shift) / self.scale for image in (ours, theirs))
        place = 0
        for index, layer in enumerate(self.features):
            mine = layer(mine)
            with torch.no_grad():
                other = layer(other)
            if index in TAPS:
                difference = (_normalise(mine) - _normalise(other)).square()
                distance = (
                    distance + torch.einsum("nchw,c->n", difference, self.heads[place]) / difference[0, 0].numel()
                )
                place += 1
        return distance


def _normalise(features: Tensor) -> Tensor:
    # Inside the root, so that the gradient stays finite where all channels are zero.
    return features / (features.square().sum(dim=1, keepdim=True) + 1e-10).sqrt()


def load_perceptual(config: VaeLossConfig, device: str) -> SliceDistance:
    """Load the perceptual distance that the settings request, with weights from the named files.

    Args:
        config: Settings of the autoencoder's losses.
        device: Device of the distance.

    Raises:
        TrainingError: A file is missing or holds other weights.
    """
    from torchvision.models import squeezenet1_1

    assert config.perceptual_weights is not None
    features = squeezenet1_1(weights=None).features
    state = _read(Path(config.perceptual_weights), "perceptual_weights")
    own = {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}
    try:
        features.load_state_dict(own)
    except RuntimeError as error:
        raise TrainingError(
            f"{config.perceptual_weights}: not the weights of torchvision's squeezenet1_1. Get "
            "squeezenet1_1-b8a52dc0.pth from download.pytorch.org/models."
        ) from error
    heads = None if config.perceptual_heads is None else _read_heads(Path(config.perceptual_heads))
    return SliceDistance(features, heads, slice_share=config.perceptual_slice_share).to(device)


def _read_heads(path: Path) -> list[Tensor]:
    state = _read(path, "perceptual_heads")
    heads = [state.get(f"lin{place}.model.1.weight") for place in range(len(TAPS))]
    if any(head is None or head.numel() != channels for head, channels in zip(heads, TAPS.values(), strict=True)):
        raise TrainingError(
            f"{path}: not LPIPS' weights for SqueezeNet, which are weights/v0.1/squeeze.pth of the package lpips."
        )
    return [head.flatten() for head in heads if head is not None]


def _read(path: Path, field: str) -> dict[str, Any]:
    try:
        state: dict[str, Any] = load_torch_file(path)
    except (OSError, ContentError) as error:
        problem = "file not found" if isinstance(error, FileNotFoundError) else f"torch cannot read the file ({error})"
        raise TrainingError(
            f"vae.loss.{field}: {path}: {problem}. Nothing is downloaded: fetch the weights, or set "
            "perceptual_weight: 0."
        ) from error
    return state
