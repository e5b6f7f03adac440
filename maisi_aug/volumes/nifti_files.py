"""NIfTI files as nibabel reads them: the header first, the voxels once the file holds as many as the header says."""

from __future__ import annotations

import math
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.system.content import ContentError, content_errors
from maisi_aug.volumes.held_bytes import (
    GZIP_MAGIC,
    MAX_DEFLATE_RATIO,
    SURPLUS_BYTES,
    unpack_gzip,
    unpack_start,
)
from maisi_aug.volumes.nifti_facts import affine_of

_LONGEST_HEADER: Final = 540
_PACKED_START: Final = 2**16
"""More compressed bytes than any header takes."""


def parse_nifti(
    content: bytes, subject: Path | str, max_bytes: int | None = None
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read NIfTI-1 or NIfTI-2; gzip is told by its content, and its checksum is verified.

    Args:
        content: The file's bytes.
        subject: For messages.
        max_bytes: What it may unpack to, whatever its header says.

    Returns:
        The voxels with their axes as they are stored, and the affine to RAS+ mm.

    Raises:
        ContentError: It is damaged, or its header promises more than it holds.
        VolumeError: Its header says something that readers disagree on.
    """
    is_packed = content[:2] == GZIP_MAGIC
    start = unpack_start(content, _LONGEST_HEADER) if is_packed else content[:_LONGEST_HEADER]
    header = _parse_header(start)
    promised = _count_promised(header)
    most = len(content) * (MAX_DEFLATE_RATIO if is_packed else 1)
    if promised > most:
        raise ContentError(f"its header promises {promised} bytes, it holds at most {most}")
    if is_packed:
        limit = promised + SURPLUS_BYTES
        content = unpack_gzip(content, limit if max_bytes is None else min(limit, max_bytes))
    if promised > len(content):
        raise ContentError(f"its header promises {promised} bytes, it holds {len(content)}")
    with content_errors():
        # Not an image of nibabel's, which would check and copy the header twice more, and parse extensions.
        array = np.asarray(header.data_from_fileobj(BytesIO(content)))
    return array, affine_of(header, header.get_data_shape(), content, subject)


def read_nifti_grid(path: Path) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape and affine of :func:`parse_nifti`, from the header alone.

    Raises:
        ContentError: It is damaged.
        OSError: It is missing or cannot be read.
        VolumeError: It says something that readers disagree on.
    """
    start = _read_start(path)
    header = _parse_header(start)
    return header.get_data_shape(), affine_of(header, header.get_data_shape(), start, path)


def read_stored_geometry(path: Path) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """The first three sides and the affine as nibabel has it, units and all; for files of this package's own kind.

    Raises:
        ContentError: It is damaged.
        OSError: It is missing or cannot be read.
    """
    header = _parse_header(_read_start(path))
    with content_errors(path):
        i, j, k = (*header.get_data_shape(), 1, 1)[:3]
        return (i, j, k), np.asarray(header.get_best_affine(), dtype=np.float64)


def _read_start(path: Path) -> bytes:
    """The first bytes of a file, unpacked."""
    with path.open("rb") as file:
        start = file.read(_PACKED_START)
    return unpack_start(start, _LONGEST_HEADER) if start[:2] == GZIP_MAGIC else start[:_LONGEST_HEADER]


def _image_class(start: bytes) -> Any:
    import nibabel as nib

    sizes = {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
    return nib.Nifti2Image if _LONGEST_HEADER in sizes else nib.Nifti1Image


def _parse_header(start: bytes) -> Any:
    """nibabel's header, checked and mended as it does on reading; not to be modified."""
    with content_errors():
        size = _image_class(start).header_class.sizeof_hdr
        if len(start) < size:
            raise ContentError("it ends too early")
        return _check_header(bytes(start[:size]))


@lru_cache(maxsize=64)
def _check_header(content: bytes) -> Any:
    """A header of the cases of a cohort is mostly that of all, and nibabel's checks take longer than small files."""
    header = _image_class(content).header_class(content)
    sides = [int(side) for side in header.get_data_shape()]
    if any(side < 0 for side in sides):
        raise ContentError(f"its header has sides of {sides} voxels")
    return header


def _count_promised(header: Any) -> int:
    """Bytes up to the end of the voxels."""
    with content_errors():
        num_voxels = math.prod(int(side) for side in header.get_data_shape())
        return max(0, int(header["vox_offset"])) + num_voxels * int(header.get_data_dtype().itemsize)
