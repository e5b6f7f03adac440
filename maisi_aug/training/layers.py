"""What the two starts from set weights share: Haar's kernels, and the convolution inside MONAI's wrappers."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

NUM_WAVELETS = 4


def haar_kernels() -> Tensor:
    """``(4, 2, 2, 2)`` weights of the mean of 2x2x2 voxels and of their first differences along I, J and K.

    Source: Haar, "Zur Theorie der orthogonalen Funktionensysteme", 1910; the four mixed differences are left out.
    """
    kernels = torch.full((NUM_WAVELETS, 2, 2, 2), 1.0 / 8.0)
    for axis, corner in product(range(3), product((0, 1), repeat=3)):
        if corner[axis] == 0:
            kernels[(1 + axis, *corner)] *= -1.0
    return kernels


def only_convolution(layer: Any) -> Any:
    """The one convolution inside a layer, transposed or not."""
    found = [part for part in layer.modules() if isinstance(part, nn.Conv3d | nn.ConvTranspose3d)]
    assert len(found) == 1
    return found[0]
