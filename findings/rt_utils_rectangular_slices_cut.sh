#!/bin/bash
# rt-utils and slices that are not square: the mask that is read back loses the structure.
#
# add_roi takes a mask of (rows, columns, slices) and writes correct contours. get_roi_mask_by_name of rt-utils 1.2.7
# draws them on a canvas of (columns, rows): of 48 rows and 96 columns it returns 96 rows and 48 columns, and whatever
# lies right of column 48 is cut off without a warning. A structure there comes back empty, one in between in part.
# Where a slice is higher than wide, the lower part is lost. A reader that pads or crops to the image hides the wrong
# shape. Pad the series to square slices first, or rasterise ContourData yourself. Exits 0 while this is so, 1 when it
# changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "rt-utils==1.2.7" "pydicom==3.0.2" "numpy<3"
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

warnings.simplefilter("ignore")
from rt_utils import RTStructBuilder

SLICES = 4


def write_series(folder, rows, columns):
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
        each.ImageOrientationPatient, each.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 3 * k]
        each.PixelSpacing, each.SliceThickness = [1, 1], 3
        each.Rows, each.Columns = rows, columns
        each.SamplesPerPixel, each.PhotometricInterpretation = 1, "MONOCHROME2"
        each.BitsAllocated, each.BitsStored, each.HighBit, each.PixelRepresentation = 16, 16, 15, 1
        each.RescaleSlope, each.RescaleIntercept = 1, 0
        each.PixelData = np.zeros((rows, columns), np.int16).tobytes()
        each.save_as(folder / f"{k}.dcm", enforce_file_format=True)


STRUCTURES = {  # rows and columns of the slice, first row and first column of a structure of 11 rows and 20 columns
    "square": (64, 64, 20, 40),
    "right part of wide slices": (48, 96, 20, 70),
    "middle of wide slices": (48, 96, 20, 40),
    "lower part of high slices": (96, 48, 70, 20),
}
print("rt-utils", version("rt-utils"))
found = {}
for index, (name, (rows, columns, row, column)) in enumerate(STRUCTURES.items()):
    write_series(Path(f"series{index}"), rows, columns)
    mask = np.zeros((rows, columns, SLICES), bool)
    mask[row : row + 11, column : column + 20, 1:3] = True
    structures = RTStructBuilder.create_new(f"series{index}")
    structures.add_roi(mask, name="liver")
    points = np.array(structures.ds.ROIContourSequence[0].ContourSequence[0].ContourData, float).reshape(-1, 3)
    is_written_right = points[:, 0].min() == column and points[:, 1].min() == row
    returned = structures.get_roi_mask_by_name("liver")
    found[name] = returned.shape == mask.shape, int(returned.sum())
    print(
        f"{name:26} {mask.shape}, {int(mask.sum())} voxels; contour right: {is_written_right}; "
        f"returned {returned.shape}, {found[name][1]} voxels"
    )
    assert is_written_right
is_so = list(found.values()) == [(True, 440), (False, 0), (False, 176), (False, 0)]
print("as described" if is_so else "CHANGED")
sys.exit(0 if is_so else 1)
PY
