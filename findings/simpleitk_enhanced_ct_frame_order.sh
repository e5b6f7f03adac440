#!/bin/bash
# SimpleITK and an enhanced (multi-frame) CT whose frames are not stored in the order of their positions.
#
# DICOM lets the frames of an enhanced image come in any order; each has its own Plane Position and its own rescale
# (Pixel Value Transformation) in the per-frame functional groups (PS3.3 C.7.6.16). SimpleITK 2.5.7 stacks them as they
# are stored, takes its spacing along the third axis and the rescale from single frames, and says nothing.
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
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid


def item(**values):
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return Sequence([dataset])


def write(path, order, intercept):
    """Ten frames of 8x8, the frame at z = 2k mm holding 100 k HU."""
    d, meta = Dataset(), FileMetaDataset()
    meta.MediaStorageSOPClassUID = d.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.file_meta = meta
    d.Modality, d.PatientID, d.PatientName = "CT", "X", "X^Y"
    d.StudyInstanceUID = d.SeriesInstanceUID = d.FrameOfReferenceUID = generate_uid()
    d.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    d.NumberOfFrames, d.Rows, d.Columns, d.SamplesPerPixel = 10, 8, 8, 1
    d.PhotometricInterpretation, d.BitsAllocated, d.BitsStored, d.HighBit = "MONOCHROME2", 16, 16, 15
    d.PixelRepresentation = 0
    shared = Dataset()
    shared.PixelMeasuresSequence = item(PixelSpacing=[0.8, 0.8], SliceThickness=2, SpacingBetweenSlices=2)
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=[1.0, 0, 0, 0, 1.0, 0])
    frames, stored = [], []
    for k in order:
        frame = Dataset()
        frame.PlanePositionSequence = item(ImagePositionPatient=[0.0, 0.0, 2.0 * k])
        frame.PixelValueTransformationSequence = item(
            RescaleSlope="1", RescaleIntercept=str(intercept(k)), RescaleType="HU"
        )
        frames.append(frame)
        stored.append(np.full((8, 8), 100 * k - intercept(k), np.uint16))
    d.SharedFunctionalGroupsSequence, d.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(frames)
    d.PixelData = np.stack(stored).tobytes()
    d.save_as(path, enforce_file_format=True)


def read(path):
    image = sitk.ReadImage(path)
    array = sitk.GetArrayFromImage(image)
    values = {}
    for k in range(image.GetDepth()):
        z = image.TransformIndexToPhysicalPoint((0, 0, k))[2]
        values[round(z, 2)] = int(array[k, 0, 0])
    return image.GetSpacing(), values


sitk.ProcessObject.SetGlobalWarningDisplay(False)
print("SimpleITK", sitk.Version.VersionString(), "| pydicom", pydicom.__version__)
true = {2.0 * k: 100 * k for k in range(10)}
order = [3, 0, 7, 1, 9, 2, 8, 4, 6, 5]
write("shuffled.dcm", order, lambda k: -1024)
write("rescale.dcm", list(range(10)), lambda k: -1024 if k % 2 == 0 else -2048)
shuffled, rescale = read("shuffled.dcm"), read("rescale.dcm")
print("true, HU by z in mm:     ", true)
print("frames shuffled, read as:", shuffled[1], "spacing", shuffled[0])
print("rescale per frame, read: ", rescale[1], "spacing", rescale[0])
is_so = shuffled[1] != true and rescale[1] != true
print("as described" if is_so else "CHANGED: SimpleITK now goes by each frame's own place and rescale")
sys.exit(0 if is_so else 1)
PY
