"""NIfTI files as nibabel reads them: the header first, the voxels once the file holds as many as the header says.

Places and values are in millimetres and HU, where nibabel and ITK agree on them. nibabel takes the sform if it has a
code, else the qform, and leaves units alone; ITK scales metres and micrometres, takes the sform only with code 1 or
without a qform, and its spacing from ``pixdim`` (SimpleITK 2.5.7 against nibabel 5.4.2, both read). A header that they
read differently is refused, or what is taken is said.
"""

from __future__ import annotations

import gzip
import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import MaisiAugWarning, VolumeError
from maisi_aug.system.content import ContentError, content_errors
from maisi_aug.volumes.held_bytes import (
    GZIP_MAGIC,
    MAX_DEFLATE_RATIO,
    SURPLUS_BYTES,
    unpack_gzip,
    unpack_start,
)

_LONGEST_HEADER: Final = 540
_PACKED_START: Final = 2**16
"""Number of compressed bytes that contain any header."""
UNIT_MM = {1: 1000.0, 3: 0.001}
"""``xyzt_units``: metres and micrometres; all others are millimetres (nifti1.h, NIFTI_UNITS_*)."""
_UNIT_NAMES = {1: "metres", 3: "micrometres"}
_SPACE_BITS = 7
PLAUSIBLE_MM = (0.01, 100.0)
"""Range in mm of a voxel's side in any CT; outside of it the header's unit is wrong."""
SAME_VOXELS = 0.5
"""Largest shift of the last voxel, in voxels, at which a deviating ``pixdim`` counts as rounded."""
SAME_PLACE_VOXELS = 0.1
"""Largest distance, in voxels, between the positions by sform and by qform at which the two count as equal."""


def parse_nifti(
    content: bytes, subject: Path | str, max_bytes: int | None = None
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Decode NIfTI-1 or NIfTI-2 in memory; gzip is recognised by its content, and its checksum is verified.

    Args:
        content: Bytes of the file.
        subject: Name of the input in messages.
        max_bytes: Largest unpacked size, whatever the header states; None for no limit.

    Returns:
        Voxels with their axes as stored, and the ``(4, 4)`` affine to RAS+ mm.

    Raises:
        ContentError: The content is damaged, or shorter than its header states.
        VolumeError: The header contains something that readers interpret differently.
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
    """Return the geometry of a NIfTI file from its header only, without its voxels.

    Returns:
        Number of voxels along the file's axes, and the ``(4, 4)`` affine from voxel index to RAS+ mm, as
        :func:`parse_nifti` returns them.

    Raises:
        ContentError: The file is damaged.
        OSError: The file is missing or cannot be read.
        VolumeError: The header contains something that readers interpret differently.
    """
    start = _read_start(path)
    header = _parse_header(start)
    return header.get_data_shape(), affine_of(header, header.get_data_shape(), start, path)


def read_nifti_slice(path: Path, index: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read one slice along the last stored axis of a NIfTI file, without holding the rest in memory.

    Args:
        path: Path of the file.
        index: Index along that axis, counted from its end if negative.

    Returns:
        ``(I, J, 1)`` voxels and their affine, as :func:`parse_nifti` returns them.

    Raises:
        ContentError: The file is damaged, or has no such slice.
        OSError: The file is missing or cannot be read.
        VolumeError: The header contains something that readers interpret differently.
    """
    start = _read_start(path)
    header = _parse_header(start)
    sides = [*map(int, header.get_data_shape()), 1, 1, 1][:3]
    affine = affine_of(header, sides, start, path)
    index += sides[2] if index < 0 else 0
    num_bytes = sides[0] * sides[1] * int(header.get_data_dtype().itemsize)
    with path.open("rb") as stored, content_errors(path):
        is_packed = stored.read(2) == GZIP_MAGIC
        stored.seek(0)
        unpacked = gzip.GzipFile(fileobj=stored) if is_packed else stored
        unpacked.seek(max(0, int(header["vox_offset"])) + index * num_bytes)
        content = unpacked.read(num_bytes)
        if not 0 <= index < sides[2] or len(content) < num_bytes:
            raise ContentError(f"it has no slice {index}")
        array = np.frombuffer(content, header.get_data_dtype()).reshape((sides[0], sides[1], 1), order="F")
        slope, intercept = header.get_slope_inter()
        scaled = array if slope in (None, 1.0) and not intercept else array * slope + intercept
    affine[:3, 3] += index * affine[:3, 2]
    return scaled, affine


def read_stored_geometry(path: Path) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Return the first three sides and the affine of a NIfTI file that this package wrote, as nibabel reads them.

    Raises:
        ContentError: The file is damaged.
        OSError: The file is missing or cannot be read.
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


def affine_of(read: Any, sides: Sequence[int], stored: bytes, subject: Path | str) -> NDArray[np.float64]:
    """Return the ``(4, 4)`` affine of a NIfTI header from voxel index to RAS+ mm, converted from the header's unit.

    Args:
        read: Header as nibabel reads it, NIfTI-1 or NIfTI-2.
        sides: Sides of the image.
        stored: First bytes of the file, at least the header, because nibabel clears the scale and repairs steps on
            reading.
        subject: Name of the file in messages.

    Raises:
        VolumeError: The header has no orientation, a spacing in ``pixdim`` that differs from the sform's, a unit that
            means implausible voxels, or an intercept that readers interpret differently.
    """
    header = type(read)(stored[: read.sizeof_hdr], endianness=read.endianness, check=False)
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    if sform_code <= 0 and qform_code <= 0:
        raise VolumeError(
            f"{subject}: has no sform or qform with a code above 0, so left and right are unknown: nibabel and ITK "
            "read such a file mirrored. Convert it again from DICOM, or set its sform code."
        )
    _require_one_scale(header, subject)
    with content_errors():
        affine = np.asarray(read.get_best_affine(), dtype=np.float64)
    shape = [*sides[:3], 1, 1, 1][:3]
    if sform_code > 0:
        _require_same_spacing(header, affine, shape, subject)
        if qform_code > 0:
            _tell_two_places(header, affine, shape, sform_code, subject)
    return _to_millimetres(affine, int(header["xyzt_units"]) & _SPACE_BITS, subject)


def _require_one_scale(header: Any, subject: Path | str) -> None:
    """Raise for an intercept without a usable slope: nibabel ignores it and ITK adds it."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    has_slope = bool(np.isfinite(slope)) and slope != 0
    if not has_slope and np.isfinite(intercept) and intercept != 0:
        raise VolumeError(
            f"{subject}: scl_inter is {intercept:g} but scl_slope is {slope:g}, so that nibabel ignores the "
            "intercept and ITK applies it. Set scl_slope to 1, or scl_inter to 0."
        )


def _require_same_spacing(header: Any, affine: NDArray[np.float64], shape: list[int], subject: Path | str) -> None:
    """Raise where ``pixdim`` and the sform's columns differ; with a sheared one, which ITK refuses, they may."""
    columns = affine[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    steps = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    if not lengths.all() or _is_sheared(columns / lengths):
        return
    apart = np.abs(steps - lengths) / lengths * (np.maximum(np.asarray(shape), 2) - 1)
    if not np.isfinite(apart).all() or apart.max() > SAME_VOXELS:
        raise VolumeError(
            f"{subject}: pixdim ({_spell(steps)} mm) differs from the sform's spacing ({_spell(lengths)} mm); "
            "nibabel uses one and ITK the other. Correct the header."
        )


def _tell_two_places(
    header: Any, affine: NDArray[np.float64], shape: list[int], sform_code: int, subject: Path | str
) -> None:
    """Warn where the qform puts voxels elsewhere than the sform, which is taken."""
    with content_errors():
        qform = np.asarray(header.get_qform(), dtype=np.float64)
    corners = np.array(list(product(*((0, max(side - 1, 1)) for side in shape))))
    far_mm = np.linalg.norm(corners @ (affine - qform)[:3, :3].T + (affine - qform)[:3, 3], axis=1).max()
    if far_mm > SAME_PLACE_VOXELS * np.linalg.norm(affine[:3, :3], axis=0).min():
        others = "as in nibabel and ITK" if sform_code == 1 else "as in nibabel; ITK and SimpleITK use the qform"
        warnings.warn(
            f"{subject}: the sform (code {sform_code}) and the qform (code {int(header['qform_code'])}) place voxels "
            f"up to {far_mm:.3g} mm apart; the sform is used, {others}.",
            MaisiAugWarning,
            stacklevel=4,
        )


def _to_millimetres(affine: NDArray[np.float64], unit: int, subject: Path | str) -> NDArray[np.float64]:
    if unit not in UNIT_MM:
        return affine
    scaled = affine.copy()
    scaled[:3] *= UNIT_MM[unit]
    lengths = np.linalg.norm(scaled[:3, :3], axis=0)
    if lengths.min() < PLAUSIBLE_MM[0] or lengths.max() > PLAUSIBLE_MM[1]:
        raise VolumeError(
            f"{subject}: voxels of {_spell(lengths)} mm are not those of a CT; the header's unit is "
            f"{_UNIT_NAMES[unit]}. Correct its xyzt_units."
        )
    return scaled


def _is_sheared(directions: NDArray[np.float64]) -> bool:
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() > 1e-4)


def _spell(steps: NDArray[np.float64]) -> str:
    return "x".join(f"{step:.4g}" for step in steps)
