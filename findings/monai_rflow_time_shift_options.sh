#!/bin/bash
# MONAI's RFlowScheduler: which options of its time shift do anything.
#
# With `use_timestep_transform`, time steps are shifted towards noise for volumes that are larger than a base size.
# MONAI 1.6.1 documents `transform_scale` as the strength of the shift; it is stored and read by nothing, neither by the
# steps that are drawn for training nor by those of sampling. `scale`, which published MAISI configurations set to 1.4
# beside `sample_method: uniform`, belongs to the logit-normal draw and does nothing there either. What shifts is
# `base_img_size_numel` alone.
# Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "monai==1.6.1" "torch==2.14.1" "numpy<3"
cd "$work"
cat >shift.py <<'PY'
import sys
import warnings

import torch

warnings.simplefilter("ignore")
from monai.networks.schedulers import RFlowScheduler

ROWS = {
    "defaults": {},
    "transform_scale=4": {"transform_scale": 4.0},
    "scale=1.4": {"scale": 1.4},
    "base_img_size_numel=1024": {"base_img_size_numel": 1024},
}
found = {}
for name, options in ROWS.items():
    scheduler = RFlowScheduler(
        use_discrete_timesteps=False, use_timestep_transform=True, sample_method="uniform", **options
    )
    torch.manual_seed(0)
    # Only the shape of the latents is read: 4096 of 64x64x32, which share one number in memory.
    drawn = scheduler.sample_timesteps(torch.zeros(1).expand(4096, 4, 64, 64, 32))
    scheduler.set_timesteps(4, input_img_size_numel=64 * 64 * 32)
    found[name] = round(float(drawn.mean()), 1), [round(float(step)) for step in scheduler.timesteps]
    print(f"{name:25} training: mean step {found[name][0]:6}   sampling: {found[name][1]}")
same = found["defaults"]
is_so = found["transform_scale=4"] == same and found["scale=1.4"] == same
is_so &= all(one != two for one, two in zip(found["base_img_size_numel=1024"], same))
print("as described" if is_so else "CHANGED")
sys.exit(0 if is_so else 1)
PY
echo "monai 1.6.1, torch 2.14.1"
"$work/venv/bin/python" shift.py 2>/dev/null
