#!/bin/bash
# MONAI's RemoveSmallObjects on channels: one-hot with 26 neighbours, and regions that overlap.
#
# With independent_channels=True, the default, channels are documented as independent. MONAI 1.6.1 hands the array with
# its channel axis to scikit-image's remove_small_objects as one image of four dimensions. With 26 neighbours
# (connectivity 3) a voxel of one channel is then next to voxels of the neighbouring channels: in one-hot channels a
# false island of tumour is connected to the kidney around it, its size is that of both together, and it is never
# removed. In region channels (organ with tumour, tumour, as of KiTS or BraTS) the same voxel of the next channel is a
# neighbour, so that the default connectivity of 1 fails, too. One-hot channels with the default connectivity, or one
# channel alone, are cleaned, which hides this. Call it once per channel. Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "monai==1.6.1" "torch==2.14.1" "numpy<3" "scipy==1.17.1" "scikit-image==0.26.0"
cd "$work"
cat >objects.py <<'PY'
import sys
import warnings
from importlib.metadata import version

import torch

warnings.simplefilter("ignore")
from monai.transforms import KeepLargestConnectedComponent, RemoveSmallObjects

kidney = torch.zeros((32, 32, 32))
kidney[4:28, 4:28, 4:28] = 1  # the organ with its tumour: 13824 voxels
tumour = torch.zeros((32, 32, 32))
tumour[8:16, 8:16, 8:16] = 1  # the tumour: 512 voxels
tumour[22:24, 22:24, 22] = 1  # a false island: 4 voxels
regions = torch.stack([kidney, tumour])
exclusive = torch.stack([kidney - tumour, tumour])
largest = KeepLargestConnectedComponent(applied_labels=[0, 1], is_onehot=True, independent=True)
print("monai", version("monai"), "| scikit-image", version("scikit-image"))
print("tumour of 512 voxels and an island of 4; objects below 64 voxels are to go")
found = {}
for connectivity in (1, 3):
    remove = RemoveSmallObjects(min_size=64, connectivity=connectivity)
    cleaned = {
        "tumour channel alone": remove(regions[1:])[0],
        "one-hot channels": remove(exclusive)[1],
        "region channels": remove(regions)[1],
    }
    for name, channel in cleaned.items():
        found[connectivity, name] = int(channel.sum())
        print(f"connectivity {connectivity}, {name:20}: {found[connectivity, name]} voxels of tumour left")
kept = int(largest(regions)[1].sum())
print(f"KeepLargestConnectedComponent, region channels: {kept} voxels of tumour left")
is_so = list(found.values()) == [512, 512, 516, 512, 516, 516] and kept == 512
print("as described" if is_so else "CHANGED")
sys.exit(0 if is_so else 1)
PY
"$work/venv/bin/python" objects.py 2>/dev/null
