"""Small DICOM files as scanners and archives write them: series, enhanced images, segmentations, structure sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import ArrayLike, NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def build_header(sop_class: str) -> Dataset:
    """A patient, a study, a series and nothing else."""
    dataset, meta = Dataset(), FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.PatientID, dataset.PatientName = "CT", "X", "X^Y"
    for keyword in ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyDate", "StudyTime", "StudyID"):
        setattr(dataset, keyword, "")
    dataset.ReferringPhysicianName = ""
    dataset.StudyInstanceUID = dataset.SeriesInstanceUID = dataset.FrameOfReferenceUID = generate_uid()
    return dataset


def add_pixels(dataset: Dataset, stored: NDArray[Any]) -> None:
    """Grey values, ``(row, column)`` or ``(frame, row, column)``."""
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, int(stored.dtype.kind == "i")
    dataset.PixelData = stored.tobytes()


def write_series(
    folder: Path,
    hu_kji: NDArray[Any],
    *,
    spacing_mm: Sequence[float] = (0.7, 0.8, 2.5),
    direction: ArrayLike = AXIAL,
    place: Callable[[int], ArrayLike] | None = None,
    name: Callable[[int], str] = lambda k: f"1-{k + 1:03d}.dcm",
    rescale: Callable[[int], tuple[float, float]] = lambda _: (1.0, -1024.0),
    change: Callable[[int, Dataset], None] = lambda *_: None,
) -> Path:
    """A series of single slices.

    Args:
        folder: New, or one that gets another series.
        hu_kji: ``(slice, row, column)``.
        spacing_mm: From column to column, from row to row, from slice to slice.
        direction: Along rows, then along columns, LPS.
        place: Slice -> ImagePositionPatient; along the third axis by default.
        name: Slice -> file name.
        rescale: Slice -> slope and intercept.
        change: Called with the slice and its header before it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series = build_header(CT)
    for k, plane in enumerate(hu_kji):
        dataset = build_header(CT)
        for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
            setattr(dataset, keyword, series[keyword].value)
        dataset.InstanceNumber = k + 1
        dataset.PixelSpacing, dataset.SliceThickness = [spacing_mm[1], spacing_mm[0]], spacing_mm[2]
        dataset.ImageOrientationPatient = [float(f"{part:.12f}") for part in np.ravel(direction)]
        position = place(k) if place else (0.0, 0.0, k * spacing_mm[2])
        dataset.ImagePositionPatient = [float(f"{part:.9f}") for part in np.ravel(position)]
        slope, intercept = rescale(k)
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.10g}", f"{intercept:.10g}"
        add_pixels(dataset, np.rint((plane - intercept) / slope).astype(np.uint16))
        change(k, dataset)
        dataset.save_as(folder / name(k), enforce_file_format=True)
    return folder


def item(**values: Any) -> Items:
    """A sequence of one item."""
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return Items([dataset])


def write_enhanced(
    path: Path,
    hu_kji: NDArray[Any],
    *,
    spacing_mm: Sequence[float] = (0.7, 0.8, 2.5),
    direction: ArrayLike = AXIAL,
    place: Callable[[int], ArrayLike] | None = None,
    order: Sequence[int] | None = None,
    rescale: Callable[[int], tuple[float, float]] = lambda _: (1.0, -1024.0),
    change: Callable[[Dataset], None] = lambda _: None,
) -> Path:
    """An enhanced CT, its frames in any order; arguments as of :func:`write_series`."""
    dataset = build_header(ENHANCED_CT)
    dataset.NumberOfFrames, dataset.InstanceNumber = len(hu_kji), 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    shared = Dataset()
    shared.PixelMeasuresSequence = item(PixelSpacing=[spacing_mm[1], spacing_mm[0]], SliceThickness=spacing_mm[2])
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=[float(part) for part in np.ravel(direction)])
    frames, stored = [], []
    for k in order if order is not None else range(len(hu_kji)):
        slope, intercept = rescale(k)
        position = place(k) if place else (0.0, 0.0, k * spacing_mm[2])
        frame = Dataset()
        frame.PlanePositionSequence = item(ImagePositionPatient=[float(part) for part in np.ravel(position)])
        frame.PixelValueTransformationSequence = item(
            RescaleSlope=f"{slope:g}", RescaleIntercept=f"{intercept:g}", RescaleType="HU"
        )
        frames.append(frame)
        stored.append(np.rint((hu_kji[k] - intercept) / slope).astype(np.uint16))
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = Items([shared]), Items(frames)
    add_pixels(dataset, np.stack(stored))
    change(dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_segmentation(
    path: Path,
    series: Path,
    masks: Mapping[str, NDArray[np.bool_]],
    *,
    kind: str = "BINARY",
    omit_empty: bool = True,
    lesions: Sequence[str] = (),
) -> Path:
    """A DICOM SEG by highdicom.

    Args:
        path: New file.
        series: Folder of the CT, whose files come in the order of their slices.
        masks: Segment -> ``(slice, row, column)``; numbers between 0 and 1 for FRACTIONAL.
        kind: BINARY, FRACTIONAL or LABELMAP.
        omit_empty: Leave out frames without a voxel.
        lesions: Segments that are called abnormal.
    """
    import highdicom
    from pydicom.sr.codedict import codes

    names = list(masks)
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=(
                codes.SCT.MorphologicallyAbnormalStructure if name in lesions else codes.SCT.AnatomicalStructure
            ),
            segmented_property_type=codes.SCT.Neoplasm if name in lesions else codes.SCT.Liver,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, name in enumerate(names, start=1)
    ]
    if kind == "LABELMAP":
        pixels: NDArray[Any] = np.zeros(masks[names[0]].shape, dtype=np.uint8)
        for number, name in enumerate(names, start=1):
            pixels[masks[name]] = number
    else:
        pixels = np.stack([masks[name] for name in names], axis=-1)
        pixels = pixels.astype(np.float32 if kind == "FRACTIONAL" else np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    highdicom.seg.Segmentation(
        source_images=[pydicom.dcmread(file) for file in sorted(series.iterdir())],
        pixel_array=pixels,
        segmentation_type=highdicom.seg.SegmentationTypeValues[kind],
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=2,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=omit_empty,
    ).save_as(path)
    return path


def write_structures(
    path: Path, contours: Mapping[str, Sequence[NDArray[np.float64]]], *, kind: str = "CLOSED_PLANAR"
) -> Path:
    """An RT structure set: name -> contours, each ``(points, 3)`` in LPS mm."""
    dataset = build_header(STRUCTURES)
    dataset.Modality = "RTSTRUCT"
    structures, drawn = [], []
    for number, (name, polygons) in enumerate(contours.items(), start=1):
        structures.append(item(ROINumber=number, ROIName=name, ROIGenerationAlgorithm="MANUAL")[0])
        lines = [
            item(
                ContourGeometricType=kind,
                NumberOfContourPoints=len(points),
                ContourData=[f"{part:.4f}" for part in points.ravel()],
            )[0]
            for points in polygons
        ]
        drawn.append(item(ReferencedROINumber=number, ContourSequence=Items(lines))[0])
    dataset.StructureSetROISequence, dataset.ROIContourSequence = Items(structures), Items(drawn)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path
