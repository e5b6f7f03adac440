#!/bin/bash
# miseval's "HD" and "AHD": Hausdorff and average Hausdorff distance of two masks.
#
# miseval 1.3.0 documents both as metrics of segmentation masks. For "HD" it gives the masks themselves to the package
# hausdorff, which expects a list of points, a row each: what comes out is a distance between rows of pixels as vectors.
# A lesion that is moved by 30 rows has HD 0, because the set of its rows is the same; moved by 30 columns it has 3.2,
# the root of its 10 columns. "AHD", which the package's guideline recommends next to Dice, is the maximum: one stray
# pixel in a corner raises it to the distance of this pixel. Both are in pixels: spacing is not an argument. Use another
# library's HD95 and average surface distance with spacing. Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "miseval==1.3.0" "hausdorff==0.2.6" "dictances==1.5.3" "numba==0.68.1" \
    "numpy<3" "scipy==1.17.1" "scikit-image==0.26.0" "scikit-learn==1.9.1"
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys
import warnings
from importlib.metadata import version

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt

warnings.simplefilter("ignore")
from miseval import evaluate


def draw(row, column, *, stray=False):
    """A lesion of 10 x 10 pixels, with one wrong pixel in the far corner if asked for."""
    mask = np.zeros((64, 64), int)
    mask[row : row + 10, column : column + 10] = 1
    if stray:
        mask[63, 63] = 1
    return mask


def measure(first, second):
    """Hausdorff distance, and average symmetric surface distance, in pixels, of the masks' border pixels."""
    borders = [mask.astype(bool) & ~binary_erosion(mask) for mask in (first, second)]
    ways = [distance_transform_edt(~borders[1 - k])[borders[k]] for k in (0, 1)]
    return float(np.concatenate(ways).max()), float(np.concatenate(ways).mean())


reference = draw(10, 10)
CASES = {
    "identical": draw(10, 10),
    "moved by 30 rows": draw(40, 10),
    "moved by 30 columns": draw(10, 40),
    "right, and one stray pixel": draw(10, 10, stray=True),
}
print("miseval", version("miseval"), "| hausdorff", version("hausdorff"))
found = {}
for name, prediction in CASES.items():
    largest, mean = measure(reference, prediction)
    found[name] = {metric: float(evaluate(reference, prediction, metric)) for metric in ("HD", "AHD")}
    for metric, expected in (("HD", largest), ("AHD", mean)):
        print(f"{name:26} {metric:3} expected {expected:5.2f}, got {found[name][metric]:5.2f}")
    found[name]["largest"] = largest
is_so = found["identical"]["HD"] == found["identical"]["AHD"] == 0
is_so &= found["moved by 30 rows"]["HD"] == 0 and np.isclose(found["moved by 30 columns"]["HD"], 10**0.5)
is_so &= all(np.isclose(each["AHD"], each["largest"]) for each in found.values())
print("as described" if is_so else "CHANGED")
sys.exit(0 if is_so else 1)
PY
