#!/bin/bash
# MONAI's transforms inside an autocast region: positions of voxels are computed in bfloat16.
#
# Mixed precision is entered around a whole training step, and patches are often augmented in that step. Autocast turns
# every product of matrices and every convolution inside into half precision, and MONAI's spatial transforms are such
# products: a grid of voxel positions times an affine. bfloat16 keeps 8 binary digits, so that positions beyond 128 voxels
# from the centre are whole numbers. With MONAI 1.6.1 and torch 2.14.1 on a CPU, `Rotate` by 17 degrees moves voxels of a
# volume of 256x256x16 by more than a voxel, with a float32 result and without a word; labels and image move alike, so that
# overlays look right and borders are ragged. `Affine` and `RandAffine` with the same angle raise TypeError, since the
# affine has become bfloat16, which NumPy lacks. `GaussianSmooth` returns bfloat16, up to 9 HU off at 1500 HU.
# `Zoom`, `Resize` and `Spacing` are exact: they interpolate, or compute in NumPy.
# What helps: transforms in the data loader, whose workers know no autocast, or `torch.autocast(..., enabled=False)`.
# Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "monai==1.6.1" "torch==2.14.1" "numpy<3"
cd "$work"
cat >inside.py <<'PY'
import sys
import warnings

import torch

warnings.simplefilter("ignore")
from monai.transforms import Affine, GaussianSmooth, RandAffine, Rotate, Zoom

ANGLE = (0.0, 0.0, 0.3)
# Every voxel holds its own position along the first axis, so that a result says where it was taken from.
ramp = torch.arange(256.0)[:, None, None].expand(256, 256, 16)[None].contiguous()
hu = torch.full((1, 16, 16, 16), 1500.3)
CALLS = {
    "Rotate": (Rotate(ANGLE, padding_mode="border"), ramp),
    "Zoom": (Zoom(1.2), ramp),
    "Affine": (Affine(rotate_params=ANGLE, padding_mode="border"), ramp),
    "RandAffine": (RandAffine(prob=1.0, rotate_range=((0.3, 0.3),) * 3, padding_mode="border"), ramp),
    "GaussianSmooth": (GaussianSmooth(1.0), hu),
}
found = {}
for name, (transform, image) in CALLS.items():
    plain = transform(image)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = transform(image)
    except TypeError as error:
        found[name] = "raises"
        print(f"{name:15} raises {type(error).__name__}: {error}")
        continue
    away = (torch.as_tensor(inside).float() - torch.as_tensor(plain).float()).abs()
    found[name] = inside.dtype, float(away.max())
    print(f"{name:15} {str(inside.dtype):15} differs by {away.max():.2f} at most, {away.mean():.3f} on average")
is_so = found["Rotate"][0] == torch.float32 and found["Rotate"][1] > 1.0
is_so &= found["Zoom"] == (torch.float32, 0.0)
is_so &= found["Affine"] == found["RandAffine"] == "raises"
is_so &= found["GaussianSmooth"][0] == torch.bfloat16 and found["GaussianSmooth"][1] > 1.0
print("as described" if is_so else "CHANGED")
sys.exit(0 if is_so else 1)
PY
echo "monai 1.6.1, torch 2.14.1"
"$work/venv/bin/python" inside.py 2>/dev/null
