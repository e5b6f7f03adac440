"""Compare what an image's header promises with what its file holds, before memory is taken for missing voxels.

Libraries allocate the memory that a header states, and some fill it, before they find the voxels missing: ITK fills
2 GB for an NRRD header of 300 bytes (SimpleITK 2.5.7). What is compressed is unpacked piece by piece and counted.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from maisi_aug.errors import VolumeError
from maisi_aug.system.content import ContentError, content_errors

MAX_DEFLATE_RATIO: Final = 1032
"""Largest ratio to which gzip or zlib unpack (J. Gailly and M. Adler, zlib technical details: 1032:1)."""
MAX_HEADER_BYTES: Final = 10**6
SURPLUS_BYTES: Final = 2**20
"""Number of bytes that may follow the voxels."""
GZIP_MAGIC: Final = b"\x1f\x8b"
_CHUNK_BYTES: Final = 2**16
_MAX_PART_BYTES: Final = 2**20
_GZIP: Final = 31
_GZIP_OR_ZLIB: Final = 47
RAW_DEFLATE: Final = -15


@dataclass(frozen=True, slots=True)
class Piece:
    """Range of bytes of a file in which voxels are stored.

    Attributes:
        path: Path of the file.
        start: Position of the first byte.
        limit: Largest number of bytes; None for all up to the end of the file.
    """

    path: Path
    start: int = 0
    limit: int | None = None

    @property
    def num_bytes(self) -> int:
        """Number of bytes in the range; 0 if the file does not exist."""
        found = max(0, self.path.stat().st_size - self.start) if self.path.is_file() else 0
        return found if self.limit is None else min(found, self.limit)


def require_held(subject: Path, promised: int, pieces: Iterable[Piece], *, is_packed: bool) -> None:
    """Raise unless files contain as many bytes of voxels as a header promises.

    Args:
        subject: Path of the image, for messages.
        promised: Number of bytes that the header promises.
        pieces: Ranges of bytes in the files.
        is_packed: Whether the bytes are compressed, by gzip or zlib.

    Raises:
        VolumeError: The files contain fewer bytes.
        ContentError: The compressed data are damaged.
    """
    listed = tuple(pieces)
    held = sum(piece.num_bytes for piece in listed)
    if is_packed and promised <= MAX_DEFLATE_RATIO * held:
        held = 0
        for piece in listed:
            held += count_unpacked(piece, promised - held)
    if held < promised:
        raise VolumeError(f"{subject}: expected {promised} bytes of voxels, found {held}. Replace the file.")


def count_unpacked(piece: Piece, enough: int, *, window_bits: int = _GZIP_OR_ZLIB) -> int:
    """Count the unpacked bytes of compressed voxels, verifying the checksum; counting stops soon after ``enough``.

    Args:
        piece: Range of compressed bytes.
        enough: Number of bytes after which counting may stop.
        window_bits: Kind of compression, see ``zlib.decompressobj``.

    Raises:
        ContentError: The compressed data are damaged.
    """
    count, left = 0, piece.num_bytes
    with content_errors(piece.path), piece.path.open("rb") as file:
        file.seek(piece.start)
        member = zlib.decompressobj(window_bits)
        rest = b""
        while (rest or left) and not (count >= enough and member.eof):
            if not rest:
                rest = file.read(min(left, _CHUNK_BYTES))
                left -= len(rest)
            if member.eof and not rest.startswith(GZIP_MAGIC):
                return count  # padding
            member = zlib.decompressobj(window_bits) if member.eof else member
            part = member.decompress(rest, _MAX_PART_BYTES)
            count += len(part)
            if count > enough + SURPLUS_BYTES:
                return count
            rest = member.unused_data if member.eof else member.unconsumed_tail
        while not member.eof and (part := member.decompress(b"", _MAX_PART_BYTES)):
            count += len(part)  # what the decompressor still holds
        if not member.eof:
            raise ContentError("compressed data ends too early")
    return count


def unpack_gzip(content: bytes, max_bytes: int) -> bytes:
    """Unpack gzip bytes in memory and verify all checksums; ``gzip`` itself would hold three copies.

    Args:
        content: Compressed bytes.
        max_bytes: Largest unpacked size.

    Raises:
        ContentError: The content unpacks to more, or is damaged or truncated.
    """
    parts: list[bytes] = []
    num_bytes = 0
    with content_errors():
        while content[:2] == GZIP_MAGIC:
            member = zlib.decompressobj(_GZIP)
            # One byte more than may come, since zlib takes 0 for "all of it".
            parts.append(member.decompress(content, max_bytes - num_bytes + 1))
            num_bytes += len(parts[-1])
            if num_bytes > max_bytes:
                raise ContentError(f"it unpacks to more than {max_bytes / 1e6:.0f} MB")
            if not member.eof:
                raise ContentError("compressed data ends too early")
            content = member.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)


def unpack_start(content: bytes, num_bytes: int) -> bytes:
    """Return the first bytes that gzip bytes unpack to.

    Args:
        content: Compressed bytes, from the beginning of a gzip stream; may be cut off.
        num_bytes: Largest number of unpacked bytes to return; fewer if there are no more.

    Raises:
        ContentError: The compressed data are damaged.
    """
    with content_errors():
        return zlib.decompressobj(_GZIP).decompress(content, num_bytes)
