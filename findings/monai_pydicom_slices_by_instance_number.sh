#!/bin/bash
# MONAI's PydicomReader on a CT series whose instance numbers do not follow the slices' positions.
#
# An instance number only identifies an image of its series; where a slice lies is said by its position. In a series that
# was scanned as two interleaved halves, numbered half by half, the PydicomReader of MONAI 1.6.1 stacks slices by number:
# the anatomy is shuffled, while the affine, from the first and the last slice, looks regular, and no warning is given.
# SimpleITK 2.5.7 sorts the same files by position. Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "monai==1.6.1" "torch==2.14.1" "numpy<3" "pydicom==3.0.2" "SimpleITK==2.5.7"
cd "$work"
cat >series.py <<'PY'
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

warnings.simplefilter("ignore")
from monai.transforms import LoadImage


def write_slice(path, *, number, position_mm, value, series, study, frame):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slice_ = Dataset()
    slice_.file_meta = meta
    slice_.SOPClassUID, slice_.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
    slice_.Modality, slice_.InstanceNumber = "CT", number
    slice_.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    slice_.ImagePositionPatient = [0, 0, position_mm]
    slice_.PixelSpacing, slice_.SliceThickness = [1, 1], 2
    slice_.Rows = slice_.Columns = 16
    slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
    slice_.RescaleSlope, slice_.RescaleIntercept = 1, 0
    slice_.PixelData = np.full((16, 16), value, np.int16).tobytes()
    slice_.save_as(path, enforce_file_format=True)


def write_series(folder, positions_mm):
    """A series whose slices are numbered in this order; each has its position in mm as its value."""
    uids = dict(series=generate_uid(), study=generate_uid(), frame=generate_uid())
    for index, position in enumerate(positions_mm):
        write_slice(folder / f"{index:02}.dcm", number=index + 1, position_mm=position, value=position, **uids)


def read_monai(folder):
    image = LoadImage(reader="PydicomReader", image_only=True)(folder)
    return image[8, 8].numpy().astype(int).tolist(), abs(float(image.affine[2, 2]))


def read_itk(folder):
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    return sitk.GetArrayFromImage(image)[:, 8, 8].tolist(), image.GetSpacing()[2]


SERIES = {"in order": [0, 2, 4, 6, 8, 10], "two half scans": [0, 4, 8, 2, 6, 10]}
found = {}
with tempfile.TemporaryDirectory() as work:
    for name, positions in SERIES.items():
        folder = Path(work) / name.replace(" ", "_")
        folder.mkdir()
        write_series(folder, positions)
        for reader in (read_monai, read_itk):
            found[name, reader] = reader(folder)
            print(f"{name:14} {reader.__name__:10} values along z {found[name, reader][0]}, spacing {found[name, reader][1]} mm")
in_order = ([0, 2, 4, 6, 8, 10], 2.0)
is_so = found.pop(("two half scans", read_monai)) == ([0, 4, 8, 2, 6, 10], 2.0)
is_so &= all(each == in_order for each in found.values())
print("as described" if is_so else "CHANGED")
sys.exit(0 if is_so else 1)
PY
echo "monai 1.6.1, pydicom 3.0.2, SimpleITK 2.5.7"
"$work/venv/bin/python" series.py 2>/dev/null
