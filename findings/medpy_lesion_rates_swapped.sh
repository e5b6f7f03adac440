#!/bin/bash
# MedPy's obj_tpr and obj_fpr: found and false lesions, counted as connected objects.
#
# By the notes in its docstring, obj_tpr(result, reference) is 1 when all objects of the reference are found, and says
# nothing of additional ones, for which there is obj_fpr. MedPy 0.5.2 divides each by the number of objects of the other
# mask. With one of three lesions found and none false, obj_tpr is 1 and obj_fpr 2/3; with the only lesion found and two
# false ones, obj_tpr is 1/3 and obj_fpr 0. So obj_tpr is the precision and obj_fpr the share of missed lesions, and the
# examples in their own docstrings do not hold either. A detector that misses most lesions looks perfect. Call both with
# the masks swapped, (reference, result), to have what is documented. Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "medpy==0.5.2" "numpy<3" "scipy==1.17.1" "SimpleITK==2.5.7"
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys
import warnings
from importlib.metadata import version

import numpy as np

warnings.simplefilter("ignore")
from medpy.metric.binary import obj_fpr, obj_tpr


def draw(*corners):
    """A mask with a lesion of 3 x 3 x 3 voxels at each corner."""
    mask = np.zeros((40, 24, 16), bool)
    for i, j, k in corners:
        mask[i : i + 3, j : j + 3, k : k + 3] = True
    return mask


ONE, TWO, THREE = (4, 4, 4), (16, 10, 6), (30, 16, 10)
CASES = {  # prediction, reference, true positive rate, share of false lesions among the predicted
    "one of three lesions found, none false": (draw(ONE), draw(ONE, TWO, THREE), 1 / 3, 0.0),
    "the one lesion found, two false": (draw(ONE, TWO, THREE), draw(ONE), 1.0, 2 / 3),
}
print("medpy", version("medpy"))
is_so = True
for name, (result, reference, rate, false_share) in CASES.items():
    found, swapped = (
        (float(obj_tpr(*masks)), float(obj_fpr(*masks))) for masks in ((result, reference), (reference, result))
    )
    print(f"{name}: expected obj_tpr {rate:.2f}, obj_fpr {false_share:.2f}")
    for order, rates in (("result, reference", found), ("reference, result", swapped)):
        print(f"  ({order}) gives {rates[0]:.2f}, {rates[1]:.2f}")
    is_so &= np.allclose(swapped, (rate, false_share)) and not np.allclose(found, (rate, false_share))
first, second = np.asarray([1, 0, 1, 0, 0]), np.asarray([1, 0, 1, 0, 1])
example = float(obj_tpr(first, second)), float(obj_fpr(first, second))
print(f"example of the docstrings, there 0.67 and 0.00: returned are {example[0]:.2f} and {example[1]:.2f}")
is_so &= np.allclose(example, (1.0, 1 / 3))
print("as described" if is_so else "CHANGED")
sys.exit(0 if is_so else 1)
PY
