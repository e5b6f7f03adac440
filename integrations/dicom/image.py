"""A volume as a DICOM CT series: what stands in every header, and where each slice lies.

Axes: DICOM's world is LPS; slices run along K, rows of a slice along J and columns along I, both reversed so that a
viewer shows the usual axial picture. The affine may be oblique but not sheared, which DICOM cannot hold.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug import __version__
from maisi_aug.cohort.manifest import AttemptRecord
from maisi_aug.errors import MissingExtraError
from maisi_aug.system.printed_text import clean_value
from maisi_aug.volumes.grid import Grid

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
MANUFACTURER = "maisi-aug"
# Nothing was acquired on any day; a date that no scanner can have had, since some archives refuse an empty one.
FICTITIOUS_DATE, FICTITIOUS_TIME = "19000101", "000000"
USUAL_INTERCEPT = -1024
MAX_LONG_STRING, MAX_SHORT_TEXT = 64, 1024
"""Characters that DICOM's value representations LO and ST hold (PS3.5, 6.2)."""
_PIXELS = {
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "BitsStored": 16,
    "HighBit": 15,
    "PixelRepresentation": 0,
}
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "maisi-aug:dicom")
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def require_dicom() -> None:
    """Raise unless the packages of the extra ``dicom`` are installed.

    Raises:
        MissingExtraError: The message names the extra.
    """
    try:
        import highdicom  # noqa: F401
        import pydicom  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"DICOM export: needs the packages of the extra 'dicom' ({error.name} is missing). Install them with: "
            "pip install 'maisi-aug[dicom]'."
        ) from error


def build_uid(*parts: str | int) -> str:
    """Return a UID derived from the parts, so that equal content has equal UIDs (root 2.25, DICOM PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, '/'.join(map(str, parts))).int}"


def study_uid(case: AttemptRecord) -> str:
    """Return the study UID of a case, derived from its image's bytes and its name."""
    return build_uid("study", case.case_id, case.files["image"].sha256)


def patient_id(case: AttemptRecord) -> str:
    """Return the fictitious patient id of a case, derived from its image's bytes: cohorts share names of cases."""
    return f"SYNTHETIC-{case.files['image'].sha256[:12]}-{case.case_id}"[:64]


def build_series(case: AttemptRecord, image_hu: NDArray[np.int16], grid: Grid) -> Iterator[Dataset]:
    """Yield the DICOM slices of a case, from the most inferior to the most superior.

    Args:
        case: Record of the case, for names, UIDs and provenance.
        image_hu: ``(I, J, K)`` int16 image in HU.
        grid: Grid of the image, with orthogonal axes.
    """
    axes, origin, steps = to_dicom_axes(grid)
    intercept = min(USUAL_INTERCEPT, int(image_hu.min()))
    stored = (image_hu[::-1, ::-1].astype(np.int32) - intercept).astype("<u2")
    study = study_uid(case)
    series = build_uid(study, "CT", __version__)
    for k in range(grid.shape[2]):
        dataset = _build_header(case, study)
        dataset.SeriesInstanceUID = series
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = build_uid(series, k)
        dataset.InstanceNumber = k + 1
        dataset.ImageOrientationPatient = _to_decimals([*axes[:, 0], *axes[:, 1]])
        dataset.ImagePositionPatient = _to_decimals(origin + k * steps[2] * axes[:, 2])
        dataset.PixelSpacing = _to_decimals([steps[1], steps[0]])  # between rows first
        dataset.SliceThickness = dataset.SpacingBetweenSlices = _to_decimals([steps[2]])[0]
        dataset.Columns, dataset.Rows = grid.shape[:2]
        dataset.RescaleIntercept = _to_decimals([intercept])[0]
        dataset.PixelData = np.ascontiguousarray(stored[:, :, k].T).tobytes()
        yield dataset


def to_dicom_axes(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Convert a grid to DICOM: axis directions, position of the first voxel and steps in mm, LPS, I and J reversed.

    Returns:
        ``(3, 3)`` matrix with directions as columns, ``(3,)`` position and ``(3,)`` steps.
    """
    i, j, _ = grid.shape
    reverse = np.diag([-1.0, -1.0, 1.0, 1.0])
    reverse[:2, 3] = (i - 1, j - 1)
    affine = _RAS_TO_LPS @ grid.affine @ reverse
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / steps
    return axes, affine[:3, 3], steps


def _build_header(case: AttemptRecord, study: str) -> Dataset:
    """Build the header that all slices of a case share."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CT_IMAGE_STORAGE
    for keyword, value in _describe(case, study).items():
        setattr(dataset, keyword, value)
    return dataset


def _describe(case: AttemptRecord, study: str) -> dict[str, Any]:
    source = f"Bundle {case.bundle} ({case.licence}), fingerprint {case.bundle_fingerprint[:16]}, seed {case.seed}"
    return {
        "SpecificCharacterSet": "ISO_IR 192",
        "ImageType": ["DERIVED", "SECONDARY", "AXIAL"],
        "SyntheticData": "YES",
        **dict.fromkeys(("StudyDate", "SeriesDate", "ContentDate"), FICTITIOUS_DATE),
        **dict.fromkeys(("StudyTime", "SeriesTime", "ContentTime"), FICTITIOUS_TIME),
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "Modality": "CT",
        "Manufacturer": MANUFACTURER,
        "ManufacturerModelName": to_dicom_text(case.bundle),
        "SoftwareVersions": __version__,
        "StudyDescription": "synthetic",
        "SeriesDescription": "synthetic",
        "DerivationDescription": to_dicom_text(
            f"Not of a patient: drawn by a generative network. {source}; {case.request}", MAX_SHORT_TEXT
        ),
        "PatientName": f"Synthetic^{case.case_id}",
        "PatientID": patient_id(case),
        "PatientBirthDate": "",
        "PatientSex": "O",
        "PatientComments": "Fictitious; this image shows nobody.",
        "KVP": None,
        "PatientPosition": "HFS",
        "StudyInstanceUID": study,
        "StudyID": "",
        "SeriesNumber": 1,
        "AcquisitionNumber": None,
        "FrameOfReferenceUID": build_uid(study, "frame of reference"),
        "PositionReferenceIndicator": "",
        **_PIXELS,
        "BurnedInAnnotation": "NO",
        "RescaleSlope": "1",
        "RescaleType": "HU",
        "WindowCenter": "50",
        "WindowWidth": "400",
    }


def to_dicom_text(text: str, max_length: int = MAX_LONG_STRING) -> str:
    """Return a text as DICOM allows it: without control characters, slashes for backslashes, and not too long.

    Args:
        text: Any text.
        max_length: Largest number of characters; what is beyond is cut off. The default is that of a long string (LO).
    """
    return clean_value(text, max_length).replace("\\", "/")[:max_length]


def _to_decimals(values: Any) -> list[str]:
    """Numbers as DICOM's decimal strings, as exact as their 16 characters allow."""
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(float(value) + 0.0) for value in values]
