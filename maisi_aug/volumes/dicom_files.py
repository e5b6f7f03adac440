"""Recognise DICOM files by their content, and what they hold: slices, a segmentation, contours, or none of these.

Scanners and archives name files ``IM00001``, ``0000.IMA`` or after a UID, in folders of patient, study and series; no
rule here goes by a name, except that what is called like another format is not opened.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from maisi_aug.errors import VolumeError
from maisi_aug.system.content import ContentError, content_errors, reason_of
from maisi_aug.volumes.held_bytes import RAW_DEFLATE, Piece, count_unpacked

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

DICOM_SUFFIXES = (".dcm", ".ima")
_OTHER_SUFFIXES = (
    *(".nii", ".gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".raw", ".zraw", ".json", ".jsonl", ".yaml", ".txt", ".csv"),
    *(".png", ".jpg", ".xml", ".zip", ".md", ".pdf", ".py", ".sh", ".log", ".tsv", ".xlsx", ".npz", ".npy", ".pt"),
)
_PREAMBLE_BYTES = 128
_MAGIC = b"DICM"
_META_START = _PREAMBLE_BYTES + len(_MAGIC) + 12
"""Start of the group of file meta information, after the element that states its length (PS3.10, 7.1)."""
_META_BYTES = 4096
_DEFLATED = b"1.2.840.10008.1.2.1.99"
MAX_UNPACKED_RATIO = 50
_MOST_UNPACKED = 64 * 2**20
MAX_PIXEL_RATIO = 20_000
"""Largest compression ratio of pixels in DICOM: JPEG 2000 needs some 100 bytes for 512x512 pixels of one value."""

SEGMENTATION_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation Storage, and Label Map Segmentation Storage (DICOM PS3.4 B.5)."""
STRUCTURES_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
_NO_SLICES = {
    **dict.fromkeys(SEGMENTATION_CLASSES, "a DICOM segmentation (SEG)"),
    STRUCTURES_CLASS: "an RT structure set",
    "1.2.840.10008.5.1.4.1.1.481.2": "an RT dose",
    "1.2.840.10008.5.1.4.1.1.66.5": "a surface segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
}

Kind = Literal["slices", "segmentation", "structures", "other", "damaged"]


_SLICES = ("slices", "damaged")


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, judged by its first 132 bytes or, for the few without preamble, by its name."""
    lower = path.name.lower()
    if lower.startswith(".") or lower.endswith(_OTHER_SUFFIXES) or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            start = file.read(_PREAMBLE_BYTES + len(_MAGIC))
    except OSError:
        return False
    return start[_PREAMBLE_BYTES:] == _MAGIC or lower.endswith(DICOM_SUFFIXES)


def dicom_files(folder: Path) -> list[Path]:
    """List the DICOM files directly in a folder, ordered by name."""
    return [path for path in sorted(folder.iterdir()) if is_dicom(path)]


def walk_dicom(folder: Path) -> Iterator[list[Path]]:
    """Yield the non-empty lists of DICOM files of a folder and of each folder below it, except hidden ones."""
    for place, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found = dicom_files(Path(place))
        if found:
            yield found


def files_of(path: Path) -> list[Path]:
    """List the files of an image: a single file, or all files in and below a DICOM folder."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def read_header(path: Path, tags: tuple[str, ...] | None = None, *, has_pixels: bool = False) -> Dataset:
    """Read the header of a DICOM file.

    Args:
        path: Path of the file.
        tags: Keywords of the required elements, which is faster; None for all.
        has_pixels: Also read the stored pixels.

    Raises:
        VolumeError: The file is not a DICOM file.
    """
    header = open_dicom(path, stop_before_pixels=not has_pixels, specific_tags=tags)
    if "SOPClassUID" not in header:
        raise VolumeError(
            f"{path}: not a readable DICOM file: damaged, empty or without a SOP class. Replace the file."
        )
    return header


def open_dicom(path: Path, **options: Any) -> Dataset:
    """Read a DICOM file with pydicom, and convert all values, so that damaged ones are found immediately.

    Args:
        path: Path of the file.
        options: Options of ``pydicom.dcmread``.

    Raises:
        VolumeError: The file is damaged.
    """
    import pydicom

    try:
        with content_errors(path):
            _require_bounded(path)
            dataset = pydicom.dcmread(path, force=True, **options)
            for element in dataset.iterall():
                _ = element.value
    except (OSError, ContentError) as error:
        raise VolumeError(f"{path}: not a readable DICOM file ({reason_of(error)}). Replace the file.") from error
    return dataset


def _require_bounded(path: Path) -> None:
    """Raise for a file that is compressed as a whole and unpacks to far more than images do, which pydicom would."""
    from pydicom.filereader import read_file_meta_info

    with path.open("rb") as file:
        start = file.read(_META_BYTES)
    if _DEFLATED not in start:
        return
    begin = _META_START + int(read_file_meta_info(path).FileMetaInformationGroupLength)
    most = _MOST_UNPACKED + MAX_UNPACKED_RATIO * path.stat().st_size
    if count_unpacked(Piece(path, begin), most + 1, window_bits=RAW_DEFLATE) > most:
        raise ContentError(f"it unpacks to more than {most / 1e6:.0f} MB")


def whole_number(header: Dataset, keyword: str, path: Path | str, default: int | None = None) -> int:
    """Return a value of a DICOM header that must be a non-negative integer.

    Args:
        header: DICOM header.
        keyword: Keyword (name) of the value.
        path: Name of the input, used in messages.
        default: Value if the header has none or an empty one; None if it is required.

    Raises:
        VolumeError: The value is missing or not a non-negative integer.
    """
    value = header.get(keyword)
    if value in (None, "") and default is not None:
        return default
    if isinstance(value, int) and value >= 0:
        return int(value)
    raise VolumeError(f"{path}: {keyword} must be an integer, found {value!r}. Export the scan again.")


def require_pixels(dataset: Dataset, path: Path) -> None:
    """Raise if a DICOM header announces more pixels than the file can hold, for which pydicom would allocate memory.

    Args:
        dataset: Header with the stored, perhaps compressed, pixels.
        path: Name of the file in messages.

    Raises:
        VolumeError: The file is too short, or the number of pixels is missing.
    """
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    with content_errors(path):  # a UID that is none of a transfer syntax
        ratio = MAX_PIXEL_RATIO if syntax is not None and syntax.is_encapsulated else 1
    sides = [whole_number(dataset, keyword, path) for keyword in ("Rows", "Columns", "BitsAllocated")]
    promised = math.prod(sides) * whole_number(dataset, "NumberOfFrames", path, 1) // 8
    content = dataset.get("PixelData")
    held = len(content) if isinstance(content, bytes) else 0
    if promised > held * ratio:
        raise VolumeError(f"{path}: expected {promised} bytes of pixels, found {held}. Replace the file.")


def items_of(header: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence in a DICOM header.

    Args:
        header: DICOM header.
        keyword: Keyword of the sequence, such as ``SegmentSequence``.

    Returns:
        The items in their order; an empty list if the element is missing, empty or not a sequence.
    """
    from pydicom.sequence import Sequence

    value = header.get(keyword)
    return list(value) if isinstance(value, Sequence) else []


def kind_of(path: Path) -> Kind:
    """Return what a DICOM file holds, judged by its SOP class and by whether its header has ``Rows``; never raises.

    Returns:
        ``slices`` for an image, of one frame or several; ``segmentation`` for SEG, ``structures`` for an RT structure
        set; ``other`` for everything else, such as a dose or a report; ``damaged`` for a file that is missing, not
        DICOM, unreadable or without a SOP class.
    """
    try:
        return kind_of_header(read_header(path, ("SOPClassUID", "Rows")))
    except VolumeError:
        return "damaged"


def kind_of_header(header: Dataset) -> Kind:
    """Return what the object of a DICOM header holds; never raises.

    Args:
        header: Header with at least ``SOPClassUID`` and, for images, ``Rows``.

    Returns:
        ``slices``, ``segmentation``, ``structures`` or ``other``, as for :func:`kind_of`.
    """
    sop_class = str(header.get("SOPClassUID", ""))
    if sop_class in SEGMENTATION_CLASSES:
        return "segmentation"
    if sop_class == STRUCTURES_CLASS:
        return "structures"
    return "slices" if "Rows" in header and sop_class not in _NO_SLICES else "other"


def name_of_kind(header: Any) -> str:
    """Return the name of the kind of a DICOM object without slices, for messages."""
    sop_class = str(header.get("SOPClassUID", ""))
    if sop_class in _NO_SLICES:
        return _NO_SLICES[sop_class]
    name = getattr(header.get("SOPClassUID", ""), "name", "")
    return f"a DICOM object without slices ({name or sop_class or 'no SOP class'})"


def holds_slices(folder: Path) -> bool:
    """Whether a folder contains a DICOM image, directly or below; damaged ones count, so that reading reports them."""
    return any(kind_of(path) in _SLICES for files in walk_dicom(folder) for path in files)


def is_label_object(path: Path) -> bool:
    """Whether a file is a DICOM segmentation or a structure set."""
    return is_dicom(path) and kind_of(path) in ("segmentation", "structures")


def find_label_objects(folder: Path) -> list[Path]:
    """List the DICOM segmentations and structure sets in and below a folder."""
    return [path for files in walk_dicom(folder) for path in files if is_label_object(path)]


def find_volumes(folder: Path) -> list[Path]:
    """List the DICOM images in a folder of cases.

    Returns:
        The folder itself if it holds the slices of a series, each file with several frames, and every sub-folder that
        contains an image, directly or below.
    """
    slices = [path for path in dicom_files(folder) if kind_of(path) in _SLICES]
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    found = [path for path in inner if holds_slices(path)]
    if not slices:
        return found
    return [*slices, *found] if all(_has_frames(path) for path in slices) else [folder]


def _has_frames(path: Path) -> bool:
    try:
        return "NumberOfFrames" in read_header(path, ("SOPClassUID", "NumberOfFrames"))
    except VolumeError:
        return False
