#!/bin/bash
# seg-metrics: surface distances of a structure that the prediction misses, or invents.
#
# The distance to an empty mask is not defined: MONAI returns inf and MedPy raises an error. seg-metrics 1.2.8 puts a
# distance map of zeros in place of the empty mask, so that hd, hd95 and msd are 0 mm, as for a perfect result, whether
# the lesion was missed or invented. A warning tells about precision and recall only. A result that is off by 2 voxels
# scores worse than none, and each missed lesion improves the mean HD95 of a cohort. Drop distances where one of the
# masks is empty, or score them at the length of the field of view. Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "seg-metrics==1.2.8" "medutils==0.1.21" "SimpleITK==2.5.7" "numpy<3" "pandas<4" \
    "matplotlib<4"
cd "$work"
MPLBACKEND=Agg "$work/venv/bin/python" - <<'PY'
import logging
import sys
from importlib.metadata import version

import numpy as np
from seg_metrics.seg_metrics import write_metrics

logging.disable(logging.WARNING)
NAMES = ["dice", "hd", "hd95", "msd"]


def draw(start):
    """A lesion of 12 voxels a side that starts at a voxel of the first axis; no lesion for None."""
    mask = np.zeros((40, 32, 32), np.uint8)
    if start is not None:
        mask[start : start + 12, 8:20, 8:20] = 1
    return mask


CASES = {  # reference, prediction, expected
    "identical": (draw(8), draw(8), "0 mm"),
    "2 voxels off": (draw(8), draw(10), "2 mm"),
    "missed": (draw(8), draw(None), "inf or not defined"),
    "invented": (draw(None), draw(8), "inf or not defined"),
}
print("seg-metrics", version("seg-metrics"))
found = {}
for name, (reference, prediction, expected) in CASES.items():
    scores = write_metrics(labels=[1], gdth_img=reference, pred_img=prediction, metrics=NAMES, spacing=[1, 1, 1])[0]
    found[name] = [float(scores[each][0]) for each in NAMES]
    print(f"{name:13} {dict(zip(NAMES, np.round(found[name], 2).tolist()))}, expected HD: {expected}")
is_so = found["missed"] == found["invented"] == [0.0, 0.0, 0.0, 0.0]
is_so &= found["identical"] == [1.0, 0.0, 0.0, 0.0] and found["2 voxels off"][1:3] == [2.0, 2.0]
print("as described" if is_so else "CHANGED")
sys.exit(0 if is_so else 1)
PY
