#!/bin/bash
# SimpleITK and a NIfTI file with scl_slope 0 and scl_inter -1024.
#
# nifti1.h: "If the scl_slope field is nonzero, then each voxel value in the dataset should be scaled as
# y = scl_slope * x + scl_inter"; with a slope of 0 nothing is scaled. nibabel 5.4.2 goes by that; SimpleITK 2.5.7 adds
# the intercept all the same, so that the two differ by 1024 HU everywhere, and neither says a word.
# Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "SimpleITK==2.5.7" "nibabel==5.4.2" "numpy<3"
cd "$work"
"$work/venv/bin/python" - <<'PY'
import struct
import sys

import nibabel as nib
import numpy as np
import SimpleITK as sitk

nib.save(nib.Nifti1Image(np.full((4, 5, 6), 100, np.int16), np.diag([-1, -1, 2, 1])), "a.nii")
with open("a.nii", "r+b") as file:
    file.seek(112)  # scl_slope, scl_inter
    file.write(struct.pack("<ff", 0.0, -1024.0))
ours = float(np.asarray(nib.load("a.nii").dataobj)[0, 0, 0])
theirs = float(sitk.ReadImage("a.nii")[0, 0, 0])
print("SimpleITK", sitk.Version.VersionString(), "| nibabel", nib.__version__)
print("stored 100, scl_slope 0, scl_inter -1024: nibabel", ours, "| SimpleITK", theirs)
is_so = ours == 100 and theirs == -924
print("as described" if is_so else "CHANGED")
sys.exit(0 if is_so else 1)
PY
