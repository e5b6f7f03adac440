#!/bin/bash
# PyTorch's float32 Conv3d on a CPU: a batch of one patch against a batch of two.
#
# One patch is what a sliding window over a CT gives to a network, and what latents of a diffusion model are. With a batch
# of one, torch 2.14.1 hands a convolution of 3x3x3 voxels to `slow_conv3d` unless its input is large (16 channels of 32^3
# voxels are too small still); a batch of two goes to oneDNN. So two patches in one batch take a quarter to a third of
# the time of one alone, with one thread and with more. Inputs from about 0.55 million numbers on go to oneDNN always.
# Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.14.1" "numpy<3"
cd "$work"
cat >conv.py <<'PY'
import sys
import time

import torch
from torch.nn.functional import conv3d
from torch.profiler import ProfilerActivity, profile


def name_kernel(features, weight):
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        conv3d(features, weight, padding=1)
    names = {event.key for event in recorded.key_averages()}
    return next(name for name in ("aten::slow_conv3d", "aten::mkldnn_convolution") if name in names)


def time_best(features, weight):
    best = float("inf")
    for _ in range(5):
        begun = time.process_time()
        conv3d(features, weight, padding=1)
        best = min(best, time.process_time() - begun)
    return best


torch.set_num_threads(1)
torch.manual_seed(0)
is_so = True
with torch.inference_mode():
    for channels, side in ((1, 64), (16, 32), (32, 24), (64, 8)):
        weight = torch.randn(max(channels, 8), channels, 3, 3, 3)
        one, two = torch.randn(1, channels, side, side, side), torch.randn(2, channels, side, side, side)
        kernels = name_kernel(one, weight), name_kernel(two, weight)
        seconds = time_best(one, weight), time_best(two, weight)
        print(
            f"{channels:2} channels of {side}^3: one patch {kernels[0]} {1000 * seconds[0]:.1f} ms, "
            f"two {kernels[1]} {1000 * seconds[1]:.1f} ms"
        )
        is_so &= kernels == ("aten::slow_conv3d", "aten::mkldnn_convolution")
        if side in (32, 24):
            is_so &= seconds[1] < seconds[0]
print("as described" if is_so else "CHANGED")
sys.exit(0 if is_so else 1)
PY
echo "torch 2.14.1"
"$work/venv/bin/python" conv.py 2>/dev/null
