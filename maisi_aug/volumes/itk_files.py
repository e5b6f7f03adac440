"""NRRD and MetaImage files as ITK reads them, once they hold as many voxels as their headers say.

ITK reads an NRRD file without a patient frame as if it had one, and fills what a MetaImage file lacks with whatever it
finds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import VolumeError
from maisi_aug.system.content import ContentError, content_errors
from maisi_aug.volumes.held_bytes import MAX_HEADER_BYTES, Piece, require_held

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MILLIMETRES = ("", "mm", "millimeter", "millimeters", "millimetre", "millimetres")
# Format: Definition of NRRD File Format, teem.sourceforge.net/nrrd/format.html, "Basic Field Specifications".
_WIDTHS: Final = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int"), 8),
    **dict.fromkeys(("uint64", "uint64_t", "double"), 8),
    "float": 4,
}
_PACKED: Final = ("gz", "gzip")
_AS_TEXT: Final = ("txt", "text", "ascii", "hex")
_MAX_FILES: Final = 100_000
_IN_LIST: Final = "LIST"
# MetaIO's metaTypes.h, MET_ValueTypeSize: LONG has four bytes on every machine.
_METAIMAGE_WIDTHS: Final = {
    **dict.fromkeys(("CHAR", "UCHAR", "ASCII_CHAR"), 1),
    **dict.fromkeys(("SHORT", "USHORT"), 2),
    **dict.fromkeys(("INT", "UINT", "LONG", "ULONG", "FLOAT"), 4),
    **dict.fromkeys(("LONG_LONG", "ULONG_LONG", "DOUBLE"), 8),
}
# Fields whose length MetaIO takes from NDims, which it must have read by then.
_AFTER_NUMBER: Final = (
    *("transformmatrix", "rotation", "orientation", "offset", "position", "origin", "centerofrotation"),
    *("elementspacing", "elementsize", "dimsize"),
)
_LAST_FIELD: Final = "elementdatafile"


def read_with_itk(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read a NRRD or MetaImage file with SimpleITK.

    Returns:
        ``(I, J, K)`` voxels, first stored axis first, and the ``(4, 4)`` affine to RAS+ mm (converted from ITK's LPS).

    Raises:
        ContentError: ITK cannot read the file.
        VolumeError: The file has fewer voxels than its header states, or no position.
    """
    import SimpleITK

    _require_whole(path)
    with content_errors(path):
        return take_itk_image(SimpleITK.ReadImage(str(path)))


def take_itk_image(image: Any) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return voxels and affine of a SimpleITK image, as :func:`read_with_itk` does for a file.

    Returns:
        Voxels with axes in the image's own order I, J, K, of its dtype; and the ``(4, 4)`` affine from voxel index to
        RAS+ mm.

    Raises:
        ContentError: The image has several values per voxel.
    """
    import SimpleITK

    affine = _affine_of(image)
    return np.asarray(SimpleITK.GetArrayFromImage(image)).T, affine


def read_itk_grid(path: Path) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Return the geometry of a file from its header only, without its voxels.

    Returns:
        Number of voxels along the file's axes, and the ``(4, 4)`` affine from voxel index to RAS+ mm, as
        :func:`read_with_itk` returns them.

    Raises:
        ContentError: ITK cannot read the file.
        VolumeError: The file has fewer voxels than its header states, or no position.
    """
    import SimpleITK

    _require_whole(path)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    with content_errors(path):
        reader.ReadImageInformation()
        shape = tuple(int(side) for side in reader.GetSize())
    return shape, _affine_of(reader)


def _require_whole(path: Path) -> None:
    if path.suffix.lower() in (".nrrd", ".nhdr"):
        require_nrrd_frame(path)
        require_nrrd_voxels(path)
    else:
        require_metaimage_voxels(path)


def _affine_of(image: Any) -> NDArray[np.float64]:
    """Voxel-to-RAS affine of an image or of a reader that has read its header."""
    num_components = image.GetNumberOfComponents() if hasattr(image, "GetNumberOfComponents") else None
    num_components = image.GetNumberOfComponentsPerPixel() if num_components is None else num_components
    if num_components != 1:
        raise ContentError(f"one value per voxel is required, {num_components} are stored")
    num_axes = image.GetDimension()
    direction = np.asarray(image.GetDirection()).reshape(num_axes, num_axes)
    affine = np.eye(4)
    used = min(num_axes, 3)
    affine[:used, :used] = (direction * np.asarray(image.GetSpacing()))[:used, :used]
    affine[:used, 3] = np.asarray(image.GetOrigin())[:used]
    return _LPS_TO_RAS @ affine


@dataclass(frozen=True, slots=True)
class _Header:
    """A header's fields by their names in lower case, the lines after them, and the length of all that in bytes."""

    fields: Mapping[str, str]
    later_lines: tuple[str, ...]
    num_bytes: int

    def find(self, *names: str) -> str:
        """Return the first of several spellings that exists."""
        return next((self.fields[name] for name in names if name in self.fields), "")


def _read_nrrd_header(path: Path) -> _Header | None:
    """The header; None where the file does not begin like NRRD, and ITK says what is wrong with it."""
    with path.open("rb") as file:
        start = file.read(MAX_HEADER_BYTES)
    if not start.startswith(b"NRRD"):
        return None
    fields: dict[str, str] = {}
    num_bytes = 0
    lines = start.splitlines(keepends=True)
    for place, raw in enumerate(lines):
        num_bytes += len(raw)
        line = raw.decode("latin-1").rstrip("\r\n")
        if place and not line:
            return _Header(fields, (), num_bytes)
        name, found, value = line.partition(":")
        if place and found and not line.startswith("#") and not value.startswith("="):
            fields[name.strip().lower()] = value.strip()
            if name.strip().lower() in ("data file", "datafile") and value.strip().startswith(_IN_LIST):
                later = (later.decode("latin-1").strip() for later in lines[place + 1 :])
                return _Header(fields, tuple(line for line in later if line), num_bytes)
    return _Header(fields, (), num_bytes)


def require_nrrd_frame(path: Path) -> None:
    """Raise for an NRRD file whose orientation in the patient is unknown, or whose unit is not millimetres.

    Raises:
        VolumeError: The header has neither ``space`` nor ``space directions``, so that left and right are unknown, or
            ``space units`` other than millimetres, which ITK ignores.
    """
    header = _read_nrrd_header(path)
    if header is None:
        return
    fields = header.fields
    if not fields.get("space") or "space directions" not in fields:
        missing = "space" if not fields.get("space") else "space directions"
        raise VolumeError(
            f"{path}: the header has no '{missing}', so left and right are unknown. Write the file with 'space', "
            "such as left-posterior-superior, and 'space directions'."
        )
    units = [part.strip().lower() for part in fields.get("space units", "").split('"') if part.strip()]
    if any(unit not in _MILLIMETRES for unit in units):
        raise VolumeError(
            f"{path}: the unit must be mm, found 'space units' {fields['space units']}, which ITK does not convert. "
            "Write the file in mm."
        )


def require_nrrd_voxels(path: Path) -> None:
    """Raise for an NRRD file whose data are shorter than its header states.

    Raises:
        ContentError: The header does not state the number of voxels.
        VolumeError: The data are shorter.
    """
    header = _read_nrrd_header(path)
    if header is None:
        return
    with content_errors(path):
        count = math.prod(max(int(side), 0) for side in header.find("sizes").split())
        encoding = header.find("encoding").lower()
        if header.find("type").lower() not in _WIDTHS:
            raise ContentError(f"its type '{header.find('type')[:40]}' is not numeric")
        width = _WIDTHS[header.find("type").lower()]
        pieces = tuple(_find_nrrd_pieces(header, path))
    if encoding in _AS_TEXT:
        require_held(path, 2 * count - 1, pieces, is_packed=False)  # a digit and a space, or two digits, each
    else:
        require_held(path, width * count, pieces, is_packed=encoding in _PACKED)


def _find_nrrd_pieces(header: _Header, path: Path) -> Iterator[Piece]:
    """Find the voxels, which follow the header or are in files next to it."""
    source = header.find("data file", "datafile")
    if not source:
        yield Piece(path, header.num_bytes)
    elif source.startswith(_IN_LIST):
        yield from (Piece(path.parent / name) for name in header.later_lines[:_MAX_FILES])
    elif "%" in source and len(source.split()) >= 4:
        pattern, first, last, step = source.split()[:4]
        numbers = range(int(first), int(last) + (1 if int(step) > 0 else -1), int(step))
        yield from (Piece(path.parent / (pattern % number)) for number in numbers[:_MAX_FILES])
    else:
        yield Piece(path.parent / source)


def require_metaimage_voxels(path: Path) -> None:
    """Raise for a MetaImage file whose data are shorter than its header states.

    Raises:
        ContentError: The header does not state the number of voxels.
        VolumeError: The data are shorter.
    """
    with content_errors(path):
        fields, later_lines, header_bytes = _read_metaimage_header(path)
        missing = next(
            (name for name in ("ndims", "dimsize", "elementtype", _LAST_FIELD) if not fields.get(name)), None
        )
        if missing is not None:
            raise ContentError(f"its header has no '{missing}'")
        early = next((name for name in fields if name == "ndims" or name in _AFTER_NUMBER), "")
        if early != "ndims" or int(fields["ndims"]) != len(fields["dimsize"].split()):
            raise ContentError(
                f"its header has 'NDims = {fields['ndims'][:40]}' after '{early}', or inconsistent sides"
            )
        kind = fields["elementtype"].removeprefix("MET_").removesuffix("_ARRAY")
        if kind not in _METAIMAGE_WIDTHS:
            raise ContentError(f"its ElementType '{kind[:40]}' is not numeric")
        sides = [max(int(side), 0) for side in fields["dimsize"].split()]
        num_values = math.prod(sides) * max(1, int(fields.get("elementnumberofchannels", "1")))
        pieces = tuple(_find_metaimage_pieces(fields[_LAST_FIELD], later_lines, path, header_bytes))
        is_packed = fields.get("compresseddata", "false").lower() in ("true", "1")
        if is_packed and (length := int(fields.get("compresseddatasize", "0"))) > 0:
            pieces = tuple(replace(piece, limit=length) for piece in pieces)
    require_held(path, _METAIMAGE_WIDTHS[kind] * num_values, pieces, is_packed=is_packed)


def _read_metaimage_header(path: Path) -> tuple[Mapping[str, str], tuple[str, ...], int]:
    """Fields by their names in lower case, the lines after the last one, and the length of the header in bytes."""
    with path.open("rb") as file:
        start = file.read(MAX_HEADER_BYTES)
    fields: dict[str, str] = {}
    num_bytes = 0
    lines = start.split(b"\n")
    for place, line in enumerate(lines):
        num_bytes += len(line) + 1
        name, _, value = line.decode("latin-1").partition("=")
        fields[name.strip().lower()] = value.strip()
        if name.strip().lower() == _LAST_FIELD:
            later = lines[place + 1 :] if value.strip().startswith("LIST") else []
            return fields, tuple(text for line in later if (text := line.decode("latin-1").strip())), num_bytes
    return fields, (), num_bytes


def _find_metaimage_pieces(source: str, later_lines: tuple[str, ...], path: Path, header_bytes: int) -> Iterator[Piece]:
    """Find the voxels, which follow the header or are in one or several files next to it."""
    if source.upper() == "LOCAL":
        yield Piece(path, header_bytes)
    elif source.startswith("LIST"):
        yield from (Piece(path.parent / name) for name in later_lines)
    elif "%" in source:  # a pattern of numbers
        start = source.partition("%")[0]
        yield from (Piece(found) for found in sorted(path.parent.iterdir()) if found.name.startswith(start))
    else:
        yield Piece(path.parent / source)
