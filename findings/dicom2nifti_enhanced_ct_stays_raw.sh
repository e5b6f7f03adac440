#!/bin/bash
# dicom2nifti and an enhanced (multi-frame) CT whose rescale is the same for all frames.
#
# The Pixel Value Transformation of an enhanced CT stands either in the shared or in the per-frame functional groups
# (PS3.3 C.7.6.16); one that all frames have in common may stand in the shared ones. dicom2nifti 2.6.2 looks for it in
# the per-frame groups only. With a shared one it writes the stored numbers as if they were HU, 1024 too high, and says
# nothing. With a per-frame one it raises "Python integer -1024 out of bounds" for unsigned stored numbers, by NumPy 2's
# rules for small integers; signed ones come out right. SimpleITK 2.5.7 gives HU in all four. Check that air is near
# -1000 after a conversion. Exits 0 while this is so, 1 when it changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "dicom2nifti==2.6.2" "pydicom==3.0.2" "nibabel==5.4.2" "SimpleITK==2.5.7" \
    "numpy==2.4.6"
cd "$work"
"$work/venv/bin/python" - <<'PY'
import logging
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
import dicom2nifti

FRAMES, AIR, WATER, BONE = 6, -1000, 0, 700


def item(**values):
    made = Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def write_enhanced_ct(path, *, place, is_signed):
    """Frames with a third each of air, water and bone, stored as HU + 1024, rescaled in the given functional groups."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = EnhancedCTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = item(Modality="CT", InstanceNumber=1, NumberOfFrames=FRAMES, Rows=12, Columns=12, SamplesPerPixel=1)
    image.file_meta = meta
    image.SOPClassUID, image.SOPInstanceUID = EnhancedCTImageStorage, meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = (generate_uid() for _ in range(3))
    image.ImageType, image.PhotometricInterpretation = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, int(is_signed)
    rescale = Sequence([item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")])
    shared = item(
        PixelMeasuresSequence=Sequence([item(PixelSpacing=[1, 1], SliceThickness=2)]),
        PlaneOrientationSequence=Sequence([item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]),
    )
    frames = [
        item(
            FrameContentSequence=Sequence([item(StackID="1", InStackPositionNumber=k + 1)]),
            PlanePositionSequence=Sequence([item(ImagePositionPatient=[0, 0, 2 * k])]),
        )
        for k in range(FRAMES)
    ]
    for group in [shared] if place == "shared" else frames:
        group.PixelValueTransformationSequence = rescale
    image.SharedFunctionalGroupsSequence = Sequence([shared])
    image.PerFrameFunctionalGroupsSequence = Sequence(frames)
    hu = np.zeros((FRAMES, 12, 12), np.int16)
    hu[:, :, :4], hu[:, :, 4:8], hu[:, :, 8:] = AIR, WATER, BONE
    image.PixelData = (hu + 1024).astype(np.int16 if is_signed else np.uint16).tobytes()
    image.save_as(path, enforce_file_format=True)


def convert(folder):
    try:
        made = dicom2nifti.dicom_series_to_nifti(folder, f"{folder}.nii", reorient_nifti=False)
    except OverflowError as error:
        return str(error)
    return np.unique(np.asarray(made["NII"].dataobj)).tolist()


print("dicom2nifti", version("dicom2nifti"), "| NumPy", np.__version__, "| SimpleITK", sitk.Version.VersionString())
right, found = [AIR, WATER, BONE], {}
is_so = True
for place in ("shared", "per-frame"):
    for is_signed in (False, True):
        folder = f"{place}_{'signed' if is_signed else 'unsigned'}"
        Path(folder).mkdir()
        write_enhanced_ct(f"{folder}/ct.dcm", place=place, is_signed=is_signed)
        itk = np.unique(sitk.GetArrayFromImage(sitk.ReadImage(f"{folder}/ct.dcm"))).astype(int).tolist()
        found[place, is_signed] = convert(folder)
        is_so &= itk == right
        print(f"{folder:19} expected {right}, SimpleITK {itk}, dicom2nifti {found[place, is_signed]}")
raw = [hu + 1024 for hu in right]
is_so &= found["shared", False] == found["shared", True] == raw and found["per-frame", True] == right
is_so &= "out of bounds" in str(found["per-frame", False])
print("as described" if is_so else "CHANGED")
sys.exit(0 if is_so else 1)
PY
