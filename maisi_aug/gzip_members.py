"""Unpacking of gzip files that are held in memory."""

from __future__ import annotations

import zlib


def decompress_gzip(content: bytes, max_bytes: int | None = None) -> bytes:
    """All gzip members of a file, checksums verified; ``gzip`` itself would hold three copies.

    Args:
        content: The file's bytes.
        max_bytes: What they may unpack to; None for any.

    Raises:
        ValueError: They unpack to more.
        EOFError: A member is cut off.
        zlib.error: A member is damaged.
    """
    parts: list[bytes] = []
    num_bytes = 0
    while content[:2] == b"\x1f\x8b":
        member = zlib.decompressobj(wbits=31)
        # One byte more than may come, since zlib takes 0 for "all of it".
        parts.append(member.decompress(content, 0 if max_bytes is None else max_bytes - num_bytes + 1))
        num_bytes += len(parts[-1])
        if max_bytes is not None and num_bytes > max_bytes:
            raise ValueError(f"it unpacks to more than {max_bytes / 1e6:.0f} MB")
        if not member.eof:
            raise EOFError("compressed data ends too early")
        content = member.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)
