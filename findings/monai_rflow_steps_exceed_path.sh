#!/bin/bash
# MONAI's RFlowScheduler with continuous time steps: the steps add up to more than the path.
#
# `set_timesteps` of MONAI 1.6.1 keeps continuous steps in float16, which holds no finer step than 0.5 above 512, and
# `step` cuts the next time to an integer but not the current one. Where a velocity of 1 should arrive at exactly 1, it
# arrives at 1.010 after 30 steps and at 1.031 after 100: more steps make it worse. MAISI's published configurations use
# these settings (`use_discrete_timesteps: false`). With discrete steps the sum is 1.
# Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "monai==1.6.1" "torch==2.14.1" "numpy<3"
cd "$work"
cat >path.py <<'PY'
import sys
import warnings

import torch

warnings.simplefilter("ignore")
from monai.networks.schedulers import RFlowScheduler

EXPECTED = {(30, False): 1.010, (100, False): 1.031, (30, True): 1.0, (100, True): 1.0}
is_so = True
for (count, is_discrete), expected in EXPECTED.items():
    scheduler = RFlowScheduler(use_discrete_timesteps=is_discrete, use_timestep_transform=True)
    scheduler.set_timesteps(count, input_img_size_numel=64 * 64 * 32)
    times = scheduler.timesteps
    position = torch.zeros(1, dtype=torch.float64)
    for time, following in zip(times, torch.cat((times[1:], times.new_zeros(1)))):
        position, _ = scheduler.step(torch.ones(1, dtype=torch.float64), time, position, following)
    kind = "discrete" if is_discrete else "continuous"
    print(f"{count:3} {kind:10} steps in {times.dtype}, {times[:3].tolist()} ...: arrives at {float(position):.4f}")
    is_so &= abs(float(position) - expected) < 0.0006
print("as described" if is_so else "CHANGED")
sys.exit(0 if is_so else 1)
PY
echo "monai 1.6.1, torch 2.14.1"
"$work/venv/bin/python" path.py 2>/dev/null
