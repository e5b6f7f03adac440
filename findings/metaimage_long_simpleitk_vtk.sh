#!/bin/bash
# MetaImage's integer types mean different things to SimpleITK and to VTK.
#
# In ITK a voxel of ElementType MET_LONG has 4 bytes, and SimpleITK writes 64-bit integers (the type of a NumPy label map
# for which nobody chose one) as MET_LONG_LONG. VTK 9.5.0's vtkMetaImageReader announces MET_LONG as C's "long", 8 bytes
# a voxel on 64-bit Linux, and does not know MET_LONG_LONG: it reports an
# unknown data type. Only headers are read here.
# Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "SimpleITK==2.5.2" "vtk==9.5.0" "numpy<3"
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
import SimpleITK as sitk
import vtk

HEADER = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
DimSize = 2 2 2
ElementSpacing = 1 1 1
ElementType = MET_LONG
ElementDataFile = LOCAL
"""
with open("long.mha", "wb") as file:
    file.write(HEADER.encode() + np.arange(1, 9, dtype="<i4").tobytes())
sitk.WriteImage(sitk.GetImageFromArray(np.arange(8).reshape(2, 2, 2)), "label_map.mha")
with open("label_map.mha", "rb") as file:
    written = next(line for line in file.read().split(b"\n") if line.startswith(b"ElementType")).decode()


def announce(name):
    """Bytes a voxel that VTK announces, and the errors that it reports."""
    errors = []
    reader = vtk.vtkMetaImageReader()
    reader.AddObserver("ErrorEvent", lambda *_: errors.append(name))
    reader.SetFileName(name)
    reader.UpdateInformation()
    return vtk.vtkDataArray.GetDataTypeSize(reader.GetDataScalarType()), len(errors)


image = sitk.ReadImage("long.mha")
itk_type, voxels = image.GetPixelIDTypeAsString(), sitk.GetArrayFromImage(image).ravel().tolist()
print("SimpleITK", sitk.Version.VersionString(), "| VTK", vtk.vtkVersion.GetVTKVersion())
print("MET_LONG, 8 voxels in 32 bytes: SimpleITK", itk_type, voxels, "| VTK", announce("long.mha")[0], "bytes a voxel")
print("int64 written by SimpleITK:", written, "| errors of VTK:", announce("label_map.mha")[1])
is_so = (
    (itk_type, voxels) == ("32-bit signed integer", list(range(1, 9)))
    and announce("long.mha") == (8, 0)
    and written == "ElementType = MET_LONG_LONG"
    and announce("label_map.mha")[1] == 1
)
print("as described" if is_so else "CHANGED")
sys.exit(0 if is_so else 1)
PY
