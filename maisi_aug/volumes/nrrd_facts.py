"""What an NRRD header says of its place and its voxels; ITK reads one without a patient frame as if it had one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from maisi_aug.errors import VolumeError
from maisi_aug.system.content import ContentError, content_errors
from maisi_aug.volumes.held_bytes import MAX_HEADER_BYTES, Piece, require_held

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


@dataclass(frozen=True, slots=True)
class _Header:
    """A header's fields by their names in lower case, the lines after them, and the length of all that in bytes."""

    fields: Mapping[str, str]
    later_lines: tuple[str, ...]
    num_bytes: int

    def find(self, *names: str) -> str:
        """The first of several spellings that there is."""
        return next((self.fields[name] for name in names if name in self.fields), "")


def _read_header(path: Path) -> _Header | None:
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
    """Raise for an NRRD file that does not say where its voxels are in the patient, or counts in another unit.

    Raises:
        VolumeError: It has neither ``space`` nor ``space directions``, so that left and right are not known, or its
            ``space units`` are not millimetres, which ITK ignores.
    """
    header = _read_header(path)
    if header is None:
        return
    fields = header.fields
    if not fields.get("space") or "space directions" not in fields:
        missing = "space" if not fields.get("space") else "space directions"
        raise VolumeError(
            f"{path}: expected 'space' and 'space directions' in the header, found no '{missing}', so that left and "
            "right are not known. Write the file with its patient frame, such as left-posterior-superior."
        )
    units = [part.strip().lower() for part in fields.get("space units", "").split('"') if part.strip()]
    if any(unit not in _MILLIMETRES for unit in units):
        raise VolumeError(
            f"{path}: expected millimetres, found 'space units' {fields['space units']}, which ITK does not convert. "
            "Write the file in mm."
        )


def require_nrrd_voxels(path: Path) -> None:
    """Raise for an NRRD file whose data are shorter than its header says.

    Raises:
        ContentError: The header says nothing that can be counted.
        VolumeError: The data are shorter.
    """
    header = _read_header(path)
    if header is None:
        return
    with content_errors(path):
        count = math.prod(max(int(side), 0) for side in header.find("sizes").split())
        encoding = header.find("encoding").lower()
        if header.find("type").lower() not in _WIDTHS:
            raise ContentError(f"its type '{header.find('type')[:40]}' is no number")
        width = _WIDTHS[header.find("type").lower()]
        pieces = tuple(_find_pieces(header, path))
    if encoding in _AS_TEXT:
        require_held(path, 2 * count - 1, pieces, is_packed=False)  # a digit and a space, or two digits, each
    else:
        require_held(path, width * count, pieces, is_packed=encoding in _PACKED)


def _find_pieces(header: _Header, path: Path) -> Iterator[Piece]:
    """Where the voxels are: behind the header, or in files beside it."""
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
