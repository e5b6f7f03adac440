#!/bin/bash
# rt-utils and a series whose pixels are not square: contours in the wrong place and of the wrong shape.
#
# PixelSpacing holds the distance between rows first, then between columns (PS3.3 10.7.1.3); the position of a pixel
# follows from equation C.7.6.2.1-1. rt-utils 1.2.7 multiplies the column index by the first and the row index by the
# second. Where they differ, as in reformatted coronal CT of 2 x 1 mm, the structure set is stretched and moved by some
# cm. The mask that rt-utils reads back is right, since it makes the same mistake in reverse, so a round trip does not
# show it; a planning system does. Reported upstream (issue 92) in 2023. Resample the series to square pixels first, or
# compute the contours with SimpleITK's TransformIndexToPhysicalPoint. Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "rt-utils==1.2.7" "pydicom==3.0.2" "SimpleITK==2.5.7" "numpy<3"
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

warnings.simplefilter("ignore")
from rt_utils import RTStructBuilder

ROWS, COLUMNS, SLICES = 64, 64, 4


def write_series(folder, pixel_spacing):
    folder.mkdir()
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(SLICES):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        each = Dataset()
        each.file_meta = meta
        each.SOPClassUID, each.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        each.StudyInstanceUID, each.SeriesInstanceUID, each.FrameOfReferenceUID = study, series, frame
        each.Modality, each.InstanceNumber, each.PatientName, each.PatientID = "CT", k + 1, "ANON", "ANON"
        each.StudyDate = each.StudyTime = each.StudyID = each.PatientBirthDate = each.PatientSex = ""
        each.ImageOrientationPatient, each.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-40, -60, 3 * k]
        each.PixelSpacing, each.SliceThickness = pixel_spacing, 3
        each.Rows, each.Columns = ROWS, COLUMNS
        each.SamplesPerPixel, each.PhotometricInterpretation = 1, "MONOCHROME2"
        each.BitsAllocated, each.BitsStored, each.HighBit, each.PixelRepresentation = 16, 16, 15, 1
        each.RescaleSlope, each.RescaleIntercept = 1, 0
        each.PixelData = np.zeros((ROWS, COLUMNS), np.int16).tobytes()
        each.save_as(folder / f"{k}.dcm", enforce_file_format=True)


mask = np.zeros((ROWS, COLUMNS, SLICES), bool)
mask[20:31, 30:51, 1] = True  # rows 20 to 30, columns 30 to 50
print("rt-utils", version("rt-utils"), "| SimpleITK", sitk.Version.VersionString())
found = {}
for name, pixel_spacing in {"square": [1, 1], "not_square": [2, 1]}.items():
    write_series(Path(name), pixel_spacing)
    structures = RTStructBuilder.create_new(name)
    structures.add_roi(mask, name="kidney")
    points = np.array(structures.ds.ROIContourSequence[0].ContourSequence[0].ContourData, float).reshape(-1, 3)
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(name))
    ends = (30, 20, 1), (50, 30, 1)  # column, row, slice
    corners = [image.TransformIndexToPhysicalPoint(index)[:2] for index in ends]
    contour = [tuple(points[:, :2].min(axis=0).tolist()), tuple(points[:, :2].max(axis=0).tolist())]
    returned = bool((structures.get_roi_mask_by_name("kidney") == mask).all())
    found[name] = contour == corners, returned
    print(f"{name}: corners in mm by SimpleITK {corners}, of the contour {contour}; own round trip right: {returned}")
is_so = found == {"square": (True, True), "not_square": (False, True)} and contour == [(20.0, -40.0), (60.0, -30.0)]
print("as described" if is_so else "CHANGED")
sys.exit(0 if is_so else 1)
PY
