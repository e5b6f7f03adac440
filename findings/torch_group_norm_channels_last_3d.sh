#!/bin/bash
# PyTorch's GroupNorm of a 3D volume on a CPU, in float32: contiguous against channels_last_3d.
#
# channels_last_3d is the memory format in which 3D convolutions are fastest, and group norm is the norm of MAISI's
# networks and of many 3D U-Nets. torch 2.14.1 computes mean and variance of contiguous features by Welford's method with
# cascaded sums, right to the seventh digit. For channels_last_3d it adds one number after the other in float32 (sum and
# sum of squares): at 64^3 voxels the result is wrong in the fourth digit, and in the third where the mean is ten times
# the spread, some thousand times worse than from the very same numbers in the other order of memory.
# Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "numpy<3"
cd "$work"
OMP_NUM_THREADS=1 "$work/venv/bin/python" - <<'PY'
import sys

import torch
from torch.nn.functional import group_norm

print("torch", torch.__version__)
torch.manual_seed(0)
ratios = []
for side, mean in ((32, 0.0), (64, 0.0), (64, 10.0), (96, 0.0)):
    features = torch.randn(1, 32, side, side, side) + mean
    truth = group_norm(features.double(), 32)
    contiguous = (group_norm(features, 32) - truth).abs().max().item()
    moved = features.contiguous(memory_format=torch.channels_last_3d)
    channels_last = (group_norm(moved, 32) - truth).abs().max().item()
    ratios.append(channels_last / contiguous)
    print(f"{side}^3, mean {mean:4.0f}: largest error contiguous {contiguous:.1e}, channels_last_3d {channels_last:.1e}")
is_so = ratios[0] > 10 and ratios[1] > 50 and ratios[2] > 500 and ratios[3] > 50
print("as described" if is_so else "CHANGED")
sys.exit(0 if is_so else 1)
PY
