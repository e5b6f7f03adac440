"""Convolutions of MAISI's shapes on a CPU in float32: torch's own way against ours.

python -m tests.benchmarks.convolutions
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import process_time

import torch
from torch import nn

from maisi_aug.networks.cpu_layers import CpuConv3d, CpuUpsampling

# Input and output channels and sides: deep layers of a U-Net, its upper levels, and a decoder's.
SHAPES = (
    *((512, 512, (4, 4, 4)), (128, 128, (6, 5, 4)), (128, 128, (12, 10, 8)), (64, 64, (12, 10, 8))),
    *((4, 32, (48, 40, 32)), (32, 32, (48, 40, 32)), (128, 128, (16, 16, 16)), (64, 64, (64, 64, 64))),
    *((16, 16, (96, 80, 64)), (16, 1, (96, 80, 64))),
)
UPSAMPLING = (32, (48, 40, 32))


def time_best(function: Callable[[], object], *, repeats: int = 5) -> float:
    """Least processor milliseconds of several calls after one that warms up."""
    function()
    seconds = []
    for _ in range(repeats):
        begun = process_time()
        function()
        seconds.append(process_time() - begun)
    return 1e3 * min(seconds)


@torch.inference_mode()
def main() -> None:
    """Print a table."""
    sys.stdout.write("| layer | torch, ms | ours, ms | times |\n|---|---|---|---|\n")
    rows: list[tuple[str, nn.Module, nn.Module, torch.Tensor]] = []
    for channels, num_outputs, sides in SHAPES:
        plain = nn.Conv3d(channels, num_outputs, 3, padding=1)
        name = f"{channels} to {num_outputs} channels, {'x'.join(map(str, sides))}"
        rows.append((name, plain, CpuConv3d.sharing(plain), torch.randn(1, channels, *sides)))
    channels, sides = UPSAMPLING
    transposed = nn.ConvTranspose3d(channels, channels, 3, stride=2, padding=1, output_padding=1)
    name = f"{channels} channels, upsampling from {'x'.join(map(str, sides))}"
    rows.append((name, transposed, CpuUpsampling.sharing(transposed), torch.randn(1, channels, *sides)))
    for name, plain_layer, fast_layer, features in rows:
        laid_out = features.contiguous(memory_format=torch.channels_last_3d)
        plain_ms = time_best(lambda layer=plain_layer, given=features: layer(given))  # type: ignore[misc]
        fast_ms = time_best(lambda layer=fast_layer, given=laid_out: layer(given))  # type: ignore[misc]
        sys.stdout.write(f"| {name} | {plain_ms:.2f} | {fast_ms:.2f} | {plain_ms / fast_ms:.1f} |\n")


if __name__ == "__main__":
    main()
