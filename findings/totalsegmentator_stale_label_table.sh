#!/bin/bash
# TotalSegmentator 2.18.0: a multilabel NIfTI that is saved twice is read with the names of the first save.
# save_multilabel_nifti appends a label table to the header's extensions; load_multilabel_nifti reads the first one.
# So after a label map was loaded, renumbered and saved under new names, it comes back with the old names.
# Exit 0 while this is so, 1 when it has changed, 2 when it could not be tried. Needs pip and the network.
set -u
T=$(mktemp -d) || exit 2
trap 'rm -rf "$T"' EXIT
python3 -m venv "$T/venv" || exit 2
"$T/venv/bin/pip" install -q --no-deps "TotalSegmentator==2.18.0" || exit 2
"$T/venv/bin/pip" install -q "nibabel==5.3.2" "numpy==2.2.6" "xmltodict==0.14.2" || exit 2
cd "$T" || exit 2
"$T/venv/bin/python" - <<'PY'
import sys

import nibabel as nib
import numpy as np
from totalsegmentator.nifti_ext_header import load_multilabel_nifti, save_multilabel_nifti

image = nib.Nifti1Image(np.ones((4, 3, 2), np.uint8), np.eye(4))
save_multilabel_nifti(image, "first.nii.gz", {1: "spleen"})
loaded, names = load_multilabel_nifti("first.nii.gz")
save_multilabel_nifti(loaded, "second.nii.gz", {1: "liver"})
again, names = load_multilabel_nifti("second.nii.gz")
print("saved as 'liver', tables in the header:", len(again.header.extensions), "- read as", repr(names[1]))
sys.exit(0 if names == {1: "spleen"} else 1)
PY
