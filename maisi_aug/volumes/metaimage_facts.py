"""What a MetaImage header says of its voxels; ITK fills what its file lacks with whatever it finds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from maisi_aug.system.content import ContentError, content_errors
from maisi_aug.volumes.held_bytes import MAX_HEADER_BYTES, Piece, require_held

# MetaIO's metaTypes.h, MET_ValueTypeSize: LONG has four bytes on every machine.
_WIDTHS: Final = {
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


def require_metaimage_voxels(path: Path) -> None:
    """Raise for a MetaImage whose data are shorter than its header says.

    Raises:
        ContentError: The header says nothing that can be counted.
        VolumeError: The data are shorter.
    """
    with content_errors(path):
        fields, later_lines, header_bytes = _read_header(path)
        missing = next(
            (name for name in ("ndims", "dimsize", "elementtype", _LAST_FIELD) if not fields.get(name)), None
        )
        if missing is not None:
            raise ContentError(f"its header has no '{missing}'")
        early = next((name for name in fields if name == "ndims" or name in _AFTER_NUMBER), "")
        if early != "ndims" or int(fields["ndims"]) != len(fields["dimsize"].split()):
            raise ContentError(f"its header has 'NDims = {fields['ndims'][:40]}' behind '{early}', or other sides")
        kind = fields["elementtype"].removeprefix("MET_").removesuffix("_ARRAY")
        if kind not in _WIDTHS:
            raise ContentError(f"its ElementType '{kind[:40]}' is no number")
        sides = [max(int(side), 0) for side in fields["dimsize"].split()]
        num_values = math.prod(sides) * max(1, int(fields.get("elementnumberofchannels", "1")))
        pieces = tuple(_find_pieces(fields[_LAST_FIELD], later_lines, path, header_bytes))
        is_packed = fields.get("compresseddata", "false").lower() in ("true", "1")
        if is_packed and (length := int(fields.get("compresseddatasize", "0"))) > 0:
            pieces = tuple(replace(piece, limit=length) for piece in pieces)
    require_held(path, _WIDTHS[kind] * num_values, pieces, is_packed=is_packed)


def _read_header(path: Path) -> tuple[Mapping[str, str], tuple[str, ...], int]:
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


def _find_pieces(source: str, later_lines: tuple[str, ...], path: Path, header_bytes: int) -> Iterator[Piece]:
    """Where the voxels are: behind the header, in a file beside it, or in several."""
    if source.upper() == "LOCAL":
        yield Piece(path, header_bytes)
    elif source.startswith("LIST"):
        yield from (Piece(path.parent / name) for name in later_lines)
    elif "%" in source:  # a pattern of numbers
        start = source.partition("%")[0]
        yield from (Piece(found) for found in sorted(path.parent.iterdir()) if found.name.startswith(start))
    else:
        yield Piece(path.parent / source)
