#!/bin/bash
# SimpleITK and a DICOM series whose RescaleSlope is 1 in the first slices and 0.5 in later ones.
#
# Scanners and PACS may write a rescale per slice (PS3.3 C.11.1). SimpleITK 2.5.7's series reader scales each slice by
# its own, but takes the pixel type of the first file for the volume: with a whole slope there, the fractions of every
# later slice are cut, and all of 0.5 HU is lost towards zero. The same slices in the other order come out right.
# Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "SimpleITK==2.5.7" "pydicom==3.0.2" "numpy<3"
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

series, study = generate_uid(), generate_uid()
for k in range(4):
    slope = 1.0 if k < 2 else 0.5
    d, meta = Dataset(), FileMetaDataset()
    meta.MediaStorageSOPClassUID = d.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.file_meta = meta
    d.Modality, d.PatientID, d.PatientName, d.InstanceNumber = "CT", "X", "X^Y", k + 1
    d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = study, series, study
    d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = 8, 8, 1, "MONOCHROME2"
    d.BitsAllocated = d.BitsStored = 16
    d.HighBit, d.PixelRepresentation = 15, 0
    d.PixelSpacing, d.SliceThickness = [1, 1], 1
    d.ImageOrientationPatient, d.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, float(k)]
    d.RescaleSlope, d.RescaleIntercept = str(slope), "-1024"
    d.PixelData = np.full((8, 8), 2101, np.uint16).tobytes()  # 1077 HU with slope 1, 26.5 HU with slope 0.5
    d.save_as(f"{k}.dcm", enforce_file_format=True)


def read(names):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    image = reader.Execute()
    return image.GetPixelIDTypeAsString(), [float(v) for v in sitk.GetArrayFromImage(image)[:, 0, 0]]


sitk.ProcessObject.SetGlobalWarningDisplay(False)
names = [f"{k}.dcm" for k in range(4)]
print("SimpleITK", sitk.Version.VersionString(), "| pydicom", pydicom.__version__)
print("true HU:               ", [1077.0, 1077.0, 26.5, 26.5])
forward, backward = read(names), read(names[::-1])
print("whole slopes first:    ", forward[1], forward[0])
print("fractional slopes first:", backward[1], backward[0])
is_so = forward[1] == [1077, 1077, 26, 26] and backward[1] == [26.5, 26.5, 1077, 1077]
print("as described" if is_so else "CHANGED")
sys.exit(0 if is_so else 1)
PY
