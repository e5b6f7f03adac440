#!/bin/bash
# MONAI's PydicomReader on a DICOM segmentation whose segments occupy different slices.
#
# A segmentation stores frames only where a segment is (highdicom leaves out empty ones), each with its position.
# The PydicomReader of MONAI 1.6.1 divides the number of frames by the number of segments and stacks each segment's frames
# from slice 0 on: two segments of three slices each, one above the other, come out at the same height, without a
# warning. If the numbers of frames differ it raises an error; it is right only where all segments occupy the same slices.
# highdicom 0.28.2 puts them where they are. Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "monai==1.6.1" "torch==2.14.1" "numpy<3" "pydicom==3.0.2" "highdicom==0.28.2"
cd "$work"
cat >segments.py <<'PY'
import sys
import tempfile
import warnings
from pathlib import Path

import highdicom
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

warnings.simplefilter("ignore")
from monai.transforms import LoadImage

NUM_SLICES = 12


def build_ct():
    study, series, frame = (generate_uid() for _ in range(3))
    slices = []
    for index in range(NUM_SLICES):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ct = Dataset()
        ct.file_meta = meta
        ct.SOPClassUID, ct.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        ct.StudyInstanceUID, ct.SeriesInstanceUID, ct.FrameOfReferenceUID = study, series, frame
        ct.Modality, ct.InstanceNumber, ct.SeriesNumber = "CT", index + 1, 1
        ct.PatientID = ct.PatientName = ct.StudyID = ct.AccessionNumber = "1"
        ct.PatientBirthDate = ct.PatientSex = ct.StudyDate = ct.StudyTime = ct.ReferringPhysicianName = ""
        ct.ImageOrientationPatient, ct.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2 * index]
        ct.PixelSpacing, ct.SliceThickness = [1, 1], 2
        ct.Rows = ct.Columns = 16
        ct.SamplesPerPixel, ct.PhotometricInterpretation = 1, "MONOCHROME2"
        ct.BitsAllocated, ct.BitsStored, ct.HighBit, ct.PixelRepresentation = 16, 16, 15, 1
        ct.PixelData = bytes(16 * 16 * 2)
        slices.append(ct)
    return slices


def describe(number, label):
    return highdicom.seg.SegmentDescription(
        segment_number=number, segment_label=label, segmented_property_category=codes.SCT.Organ,
        segmented_property_type=codes.SCT.Kidney, algorithm_type="MANUAL",
    )


def write_seg(path, slices_of):
    masks = np.zeros((NUM_SLICES, 16, 16, len(slices_of)), np.uint8)
    for channel, (first, last) in enumerate(slices_of):
        masks[first:last, 4:8, 4:8, channel] = 1
    seg = highdicom.seg.Segmentation(
        source_images=build_ct(), pixel_array=masks, segmentation_type="BINARY",
        segment_descriptions=[describe(1, "upper"), describe(2, "lower")], series_instance_uid=generate_uid(),
        series_number=2, sop_instance_uid=generate_uid(), instance_number=1, manufacturer="1", manufacturer_model_name="1",
        software_versions="1", device_serial_number="1",
    )
    seg.save_as(path)


def read_truth(path):
    """Slices that each of the two segments occupies, by their positions; highdicom leaves out empty slices at the ends."""
    volume = highdicom.seg.segread(path).get_volume()
    return [np.flatnonzero(volume.array[..., channel].any((1, 2))).tolist() for channel in (0, 1)]


def read_monai(path):
    try:
        image = LoadImage(reader="PydicomReader", image_only=True)(path)
    except ValueError as error:
        return str(error)
    return [np.flatnonzero(np.asarray(image[..., channel]).any((0, 1))).tolist() for channel in (0, 1)]


CASES = {"the same slices": [(2, 6), (2, 6)], "3 slices each": [(1, 4), (7, 10)], "3 and 4 slices": [(1, 4), (7, 11)]}
found = {}
with tempfile.TemporaryDirectory() as work:
    for name, slices_of in CASES.items():
        path = Path(work) / f"{name}.dcm"
        write_seg(path, slices_of)
        found[name] = read_truth(path), read_monai(path)
        print(f"{name:16} highdicom {found[name][0]}, MONAI {found[name][1]}")
is_so = found["the same slices"][0] == found["the same slices"][1]
is_so &= found["3 slices each"] == ([[6, 7, 8], [0, 1, 2]], [[0, 1, 2], [0, 1, 2]])
is_so &= "could not broadcast" in found["3 and 4 slices"][1]
print("as described" if is_so else "CHANGED")
sys.exit(0 if is_so else 1)
PY
echo "monai 1.6.1, highdicom 0.28.2, pydicom 3.0.2"
"$work/venv/bin/python" segments.py 2>/dev/null
