"""Which files are DICOM, told by their content, and what they hold: slices, a segmentation, contours, or none of these.

Scanners and archives name files ``IM00001``, ``0000.IMA`` or after a UID, in folders of patient, study and series; no
rule here goes by a name, except that what is called like another format is not opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from maisi_aug.errors import VolumeError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

DICOM_SUFFIXES = (".dcm", ".ima")
_OTHER_SUFFIXES = (
    *(".nii", ".gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".raw", ".zraw", ".json", ".jsonl", ".yaml", ".txt", ".csv"),
    *(".png", ".jpg", ".xml", ".zip", ".md", ".pdf", ".py", ".sh", ".log", ".tsv", ".xlsx", ".npz", ".npy", ".pt"),
)
_PREAMBLE_BYTES = 128
_MAGIC = b"DICM"

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
    """Whether a file is DICOM: by its first 132 bytes, or, for the few without them, by its name."""
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
    """The DICOM files that lie directly in a folder, in the order of their names."""
    return [path for path in sorted(folder.iterdir()) if is_dicom(path)]


def walk_dicom(folder: Path) -> Iterator[list[Path]]:
    """The DICOM files of a folder and of every folder below it, hidden ones left out; no empty lists."""
    for place, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found = dicom_files(Path(place))
        if found:
            yield found


def files_of(path: Path) -> list[Path]:
    """What an image is made of: a file, or all that lies in a DICOM folder and below it."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def read_header(path: Path, tags: tuple[str, ...] | None = None, *, has_pixels: bool = False) -> Dataset:
    """A file's header.

    Args:
        path: The file.
        tags: Keywords of what is needed, which is quicker; all by default.
        has_pixels: Read the stored pixels, too, where they are asked for.

    Raises:
        VolumeError: It is no DICOM file.
    """
    import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=not has_pixels, specific_tags=tags, force=True)
        is_whole = "SOPClassUID" in header
    except Exception as error:  # the parser raises whatever it meets
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise VolumeError(
            f"{path}: expected a readable DICOM file, found a damaged one ({reason}). Replace the file."
        ) from error
    if not is_whole:
        raise VolumeError(
            f"{path}: expected a readable DICOM file, found a damaged or empty file without a SOP class. Replace the "
            "file."
        )
    return header


def kind_of(path: Path) -> Kind:
    """What a DICOM file holds."""
    try:
        return kind_of_header(read_header(path, ("SOPClassUID", "Rows")))
    except VolumeError:
        return "damaged"


def kind_of_header(header: Dataset) -> Kind:
    """What a file with this header holds."""
    sop_class = str(header.get("SOPClassUID", ""))
    if sop_class in SEGMENTATION_CLASSES:
        return "segmentation"
    if sop_class == STRUCTURES_CLASS:
        return "structures"
    return "slices" if "Rows" in header and sop_class not in _NO_SLICES else "other"


def name_of_kind(header: Any) -> str:
    """What a file that holds no slices is, in words."""
    sop_class = str(header.get("SOPClassUID", ""))
    if sop_class in _NO_SLICES:
        return _NO_SLICES[sop_class]
    name = getattr(header.get("SOPClassUID", ""), "name", "")
    return f"a DICOM object without slices ({name or sop_class or 'no SOP class'})"


def holds_slices(folder: Path) -> bool:
    """Whether a DICOM image lies in a folder or below it; a damaged one counts, so that reading it says so."""
    return any(kind_of(path) in _SLICES for files in walk_dicom(folder) for path in files)


def is_label_object(path: Path) -> bool:
    """Whether a file is a DICOM segmentation or a structure set."""
    return is_dicom(path) and kind_of(path) in ("segmentation", "structures")


def find_label_objects(folder: Path) -> list[Path]:
    """The segmentations and structure sets in a folder and below it."""
    return [path for files in walk_dicom(folder) for path in files if is_label_object(path)]


def find_volumes(folder: Path) -> list[Path]:
    """The DICOM images that lie in a folder as cases.

    Returns:
        The folder itself where it holds the slices of a series, files with several frames by themselves, and every
        folder in it that holds an image, itself or deeper.
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
