"""A label map as a DICOM segmentation (DICOM PS3.3 A.51), written by highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug import __version__
from maisi_aug.cohort.manifest import AttemptRecord
from maisi_aug.integrations.dicom.image import FICTITIOUS_DATE, FICTITIOUS_TIME, MANUFACTURER, build_uid, to_dicom_text
from maisi_aug.integrations.reading.export_labels import LabelNumbering
from maisi_aug.vocabulary.labels import Vocabulary

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# Names of SNOMED CT's structures in pydicom's own dictionary; a label that it lacks gets a code of this package.
SNOMED = {
    1: "Liver",
    3: "Spleen",
    4: "Pancreas",
    6: "Aorta",
    7: "InferiorVenaCava",
    10: "Gallbladder",
    11: "Esophagus",
    12: "Stomach",
    13: "Duodenum",
    19: "SmallIntestine",
    22: "Brain",
    57: "Trachea",
    62: "Colon",
    97: "Sacrum",
    115: "Heart",
    118: "Prostate",
    120: "Skull",
    121: "SpinalCord",
    122: "Sternum",
    125: "SuperiorVenaCava",
}
PRIVATE_SCHEME = "99MAISIAUG"


def build_segmentation(
    case: AttemptRecord,
    slices: Sequence[Dataset],
    label_map: NDArray[np.uint8],
    numbering: LabelNumbering,
    vocabulary: Vocabulary,
) -> Dataset | None:
    """Build the DICOM segmentation of a case, with one segment per exported label that it contains.

    Args:
        case: Record of the case.
        slices: CT series of the case, in order.
        label_map: ``(I, J, K)`` vocabulary ids on the grid of the series.
        numbering: Exported labels, in the order of which segments are numbered without gaps.
        vocabulary: Vocabulary, which says which labels are tumours, and where they grow.

    Returns:
        The DICOM dataset; None for a case without any of the labels.
    """
    import highdicom

    present = np.flatnonzero(np.bincount(label_map.ravel(), minlength=256)).tolist()
    held = [
        (label_id, name) for label_id, name in zip(numbering.ids, numbering.names, strict=True) if label_id in present
    ]
    if not held:
        return None
    segments = LabelNumbering(tuple(i for i, _ in held), tuple(name for _, name in held))
    series = build_uid(slices[0].SeriesInstanceUID, case.files["anatomy"].sha256, *segments.ids)
    frames = segments.apply(label_map)[::-1, ::-1].transpose(2, 1, 0)
    dataset = highdicom.seg.Segmentation(
        source_images=slices,
        pixel_array=np.ascontiguousarray(frames),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _describe_segment(number, label_id, name, series, vocabulary)
            for number, (label_id, name) in enumerate(held, start=1)
        ],
        series_instance_uid=series,
        series_number=2,
        sop_instance_uid=build_uid(series, "segmentation"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=to_dicom_text(case.bundle),
        software_versions=__version__,
        device_serial_number=case.bundle_fingerprint[:16] or "none",
        content_description="label map that the synthetic image was drawn from",
        content_label="SYNTHETIC",
        series_description="synthetic: label map",
    )
    _forget_the_clock(dataset, series)
    dataset.SyntheticData = "YES"
    return dataset


def _describe_segment(number: int, label_id: int, name: str, series: str, vocabulary: Vocabulary) -> Any:
    import highdicom
    from pydicom.sr.codedict import codes

    is_tumor = vocabulary.contains(label_id) and label_id in vocabulary.tumor_ids
    hosts = vocabulary.hosts_of(label_id) if is_tumor else ()
    abnormal, structure = codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.AnatomicalStructure
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=to_dicom_text(name),
        segmented_property_category=abnormal if is_tumor else structure,
        segmented_property_type=codes.SCT.Neoplasm if is_tumor else code_of(label_id, name),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            MANUFACTURER, codes.DCM.ArtificialIntelligence, __version__
        ),
        tracking_uid=build_uid(series, "segment", label_id),
        tracking_id=name,
        anatomic_regions=[code_of(host, vocabulary.name_of(host)) for host in hosts] or None,
    )


def code_of(label_id: int, name: str) -> Any:
    """Return the DICOM code of a structure, from SNOMED CT if pydicom has it, otherwise from an own scheme.

    Args:
        label_id: Vocabulary id of the label.
        name: Name of the label, the meaning of a code of the own scheme; cut to 64 characters.

    Returns:
        A ``pydicom.sr.coding.Code``.
    """
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    if label_id in SNOMED:
        return getattr(codes.SCT, SNOMED[label_id])
    return Code(str(label_id), PRIVATE_SCHEME, name[:64])


def _forget_the_clock(dataset: Dataset, series: str) -> None:
    """Take out what would differ when the same cohort is exported again."""
    fixed = {"DA": FICTITIOUS_DATE, "TM": FICTITIOUS_TIME, "DT": FICTITIOUS_DATE + FICTITIOUS_TIME}

    def fix(_: Dataset, element: Any) -> None:
        if element.VR in fixed and element.value:
            element.value = fixed[element.VR]

    dataset.walk(fix)
    organization = build_uid(series, "dimensions")
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
