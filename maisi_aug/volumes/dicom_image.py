"""One DICOM image as an array: a folder with one series, single slices or enhanced (multi-frame), or one file.

Places and rescales come from the slices' own headers (:mod:`maisi_aug.volumes.dicom_frames`), values from the stored
pixels. pydicom decodes them, and ITK the compressed slices that pydicom has no decoder for. ITK takes the pixel type
of the first slice for all, so that one wide enough is requested; frames of an enhanced image are not left to it, for
it would use the first frame's rescale and the file's order for all.
"""

from __future__ import annotations

import locale
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import VolumeError
from maisi_aug.system.content import ContentError, content_errors
from maisi_aug.volumes.dicom_files import (
    items_of,
    kind_of_header,
    name_of_kind,
    open_dicom,
    read_header,
    require_pixels,
    walk_dicom,
    whole_number,
)
from maisi_aug.volumes.dicom_frames import HEADER_TAGS, Frame, Stack, read_frames, stack_slices
from maisi_aug.volumes.grid import Grid

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_MAX_SHOWN = 4
_LOCALIZER = "LOCALIZER"
_PLAIN_SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
"""Implicit and Explicit VR Little Endian."""


class _UndecodableError(VolumeError):
    """A compression that pydicom has no decoder for here."""


def read_dicom_image(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read voxels and geometry of one DICOM image.

    Args:
        path: File, or folder with one series in or below it; scouts and objects without slices are ignored.

    Returns:
        ``(column, row, slice)`` values with their rescale, and the affine from these indices to RAS+ mm, which is
        sheared for a tilted gantry.

    Raises:
        VolumeError: There is no image or more than one, or the position or values of a slice are ambiguous.
    """
    headers = _find_series(path, has_pixels=True)
    frames, stack = _lay_out(headers, path)
    if any(_is_multi_frame(header) for _, header in headers):
        array = _read_multi_frame([file for file, _ in headers], frames, stack)
    else:
        planes = _decode_slices(headers)
        array = _read_with_itk(frames, stack) if planes is None else _scale(planes, frames, stack)
    columns, rows, num_slices = array.shape
    if (rows, columns) != stack.sides or num_slices != stack.num_slices:
        raise VolumeError(
            f"{path}: has {columns}x{rows}x{num_slices} voxels, {stack.sides[1]}x{stack.sides[0]}x{stack.num_slices} "
            "by the headers. Replace the files."
        )
    return array, stack.affine


def read_dicom_grid(path: Path) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Return the grid of a DICOM image from headers only, without its voxels.

    Args:
        path: File with several frames, or folder of a series.

    Returns:
        Number of columns, rows and slices, and the ``(4, 4)`` affine from (column, row, slice) to RAS+ mm.

    Raises:
        VolumeError: The slices cannot be read, or do not form an even stack.
    """
    _, stack = _lay_out(_find_series(path, has_pixels=False), path)
    return (stack.sides[1], stack.sides[0], stack.num_slices), stack.affine


def _lay_out(headers: Sequence[tuple[Path, Dataset]], path: Path) -> tuple[list[Frame], Stack]:
    frames = [frame for file, header in headers for frame in read_frames(file, header)]
    _require_one_scale(frames, headers, path)
    stack = stack_slices(frames, path)
    if len(headers) < len(frames):
        _require_straight(stack, path)
    return frames, stack


def _find_series(path: Path, *, has_pixels: bool) -> list[tuple[Path, Dataset]]:
    """The headers of the one image at a path.

    Raises:
        VolumeError: There is none, or several.
    """
    files = [path] if path.is_file() else [file for found in walk_dicom(path) for file in found]
    tags = (*HEADER_TAGS, "PixelData") if has_pixels else HEADER_TAGS
    headers = [(file, read_header(file, tags, has_pixels=has_pixels)) for file in files]
    images = [(file, header) for file, header in headers if kind_of_header(header) == "slices"]
    series: dict[str, list[tuple[Path, Dataset]]] = {}
    for file, header in images:
        series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append((file, header))
    volumes = {uid: found for uid, found in series.items() if not all(_is_scout(header) for _, header in found)}
    if len(volumes) == 1:
        (found,) = volumes.values()
        return [(file, header) for file, header in found if not _is_scout(header)]
    if len(series) == 1:
        return images
    if not series:
        others = sorted({name_of_kind(header) for _, header in headers})
        what = f"no DICOM file but {', '.join(others[:_MAX_SHOWN])}" if others else "no DICOM file"
        raise VolumeError(f"{path}: expected one DICOM series, found {what}. Give a folder that holds one series.")
    shown = ", ".join(list(series)[:_MAX_SHOWN])
    raise VolumeError(
        f"{path}: expected one DICOM series, found {len(series)} series: {shown}. Give a folder that holds one series."
    )


def _is_scout(header: Dataset) -> bool:
    return _LOCALIZER in str(header.get("ImageType", "")).upper()


def _require_one_scale(frames: Sequence[Frame], headers: Sequence[tuple[Path, Dataset]], path: Path) -> None:
    """Raise where some files say how their values become HU and others do not."""
    has_scale = [header.get("RescaleSlope") is not None for _, header in headers]
    if len(headers) == len(frames) and len(set(has_scale)) == 2:
        raise VolumeError(
            f"{path}: only {sum(has_scale)} of {len(has_scale)} slices have a RescaleSlope. Export the series again."
        )


def _require_straight(stack: Stack, path: Path) -> None:
    """Raise for frames that lean: no scanner writes a tilted scan as an enhanced image, so its meaning is not certain.

    A tilted series of single slices is common, and is resampled where it is read.
    """
    rows, columns = stack.sides
    if not Grid((columns, rows, stack.num_slices), stack.affine).has_right_angles:
        raise VolumeError(
            f"{path}: frames of this enhanced image are tilted against their normal, which is not supported. Export "
            "the scan as single slices."
        )


@contextmanager
def _quiet_itk() -> Iterator[None]:
    """Keep ITK's own lines off stderr, and the process's locale: its DICOM reader sets it to C for all."""
    import SimpleITK

    before, shown = locale.setlocale(locale.LC_ALL), SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(shown)
        locale.setlocale(locale.LC_ALL, before)


def _is_multi_frame(header: Dataset) -> bool:
    return bool(items_of(header, "PerFrameFunctionalGroupsSequence"))


def _is_plain(header: Dataset) -> bool:
    """Whether a slice's pixels are whole bytes, little-endian and uncompressed, as most archives hand them out."""
    syntax = header.file_meta.get("TransferSyntaxUID") if hasattr(header, "file_meta") else None
    return (
        str(syntax) in _PLAIN_SYNTAXES
        and header.get("BitsAllocated") in (8, 16, 32)
        and header.get("SamplesPerPixel", 1) == 1
        and (header.get("NumberOfFrames") or 1) == 1
    )


def _decode_slices(headers: Sequence[tuple[Path, Dataset]]) -> list[NDArray[Any]] | None:
    """Stored values of single slices; None where pydicom lacks a decoder for one of them."""
    planes = []
    for file, header in headers:
        if _is_plain(header):
            planes.append(_unpack(header, file))
            continue
        try:
            planes.append(_decode(file)[0])
        except _UndecodableError:
            return None
    return planes


def _unpack(header: Dataset, path: Path) -> NDArray[Any]:
    """Stored values of a plain slice, ``(row, column)``; bits beyond those in use, which may hold overlays, are cut."""
    bits = whole_number(header, "BitsAllocated", path)
    used = whole_number(header, "BitsStored", path, bits)
    is_signed = header.get("PixelRepresentation", 0) == 1
    rows, columns = (whole_number(header, keyword, path) for keyword in ("Rows", "Columns"))
    content = header.get("PixelData")
    content = content if isinstance(content, bytes) else b""
    if not 0 < used <= bits:
        raise VolumeError(f"{path}: BitsStored must be at most {bits}, found {used}. Replace the file.")
    if len(content) < rows * columns * bits // 8:
        raise VolumeError(
            f"{path}: expected {rows}x{columns} pixels of {bits} bits, found {len(content)} bytes. Replace the file."
        )
    values = np.frombuffer(content, f"<{'i' if is_signed else 'u'}{bits // 8}", rows * columns).reshape(rows, columns)
    if used < bits:
        values = (values << (bits - used)) >> (bits - used)
    return values


def _scale(planes: Sequence[NDArray[Any]], frames: Sequence[Frame], stack: Stack) -> NDArray[Any]:
    """Stored values, each slice scaled by itself and put in its place: ``(column, row, slice)``."""
    rows, columns = stack.sides
    array = np.empty((stack.num_slices, rows, columns), dtype=_choose_type(planes, frames))
    for values, frame, place in zip(planes, frames, stack.places, strict=True):
        slope, intercept = frame.rescale
        target = array[place]
        np.copyto(target, values, casting="unsafe")
        if slope != 1:
            target *= array.dtype.type(slope)
        if intercept != 0:
            target += array.dtype.type(intercept)
    return array.T


def _choose_type(planes: Sequence[NDArray[Any]], frames: Sequence[Frame]) -> type[np.generic]:
    """The smallest of int16, int32 and float64 that holds all scaled values."""
    scales = {frame.rescale for frame in frames}
    if not all(float(part).is_integer() for scale in scales for part in scale):
        return np.float64
    ends = [
        float(end) * frame.rescale[0] + frame.rescale[1]
        for values, frame in zip(planes, frames, strict=True)
        for end in (values.min(), values.max())
    ]
    for dtype in (np.int16, np.int32):
        limits = np.iinfo(dtype)
        # Whole numbers wrap round on the way and come back, as long as the slope and the result fit.
        parts = (*ends, *(part for scale in scales for part in scale))
        if min(parts) >= limits.min and max(parts) <= limits.max:
            return dtype
    return np.float64


def _read_with_itk(frames: Sequence[Frame], stack: Stack) -> NDArray[Any]:
    """Compressed files of one slice each: ``(column, row, slice)``."""
    import SimpleITK

    in_order = sorted(range(len(frames)), key=lambda index: stack.places[index])
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames([str(frames[index].path) for index in in_order])
    if len({(frame.rescale, frame.storage) for frame in frames}) > 1:
        reader.SetOutputPixelType(SimpleITK.sitkFloat64)
    with _quiet_itk(), content_errors():
        image = reader.Execute()
        array = np.asarray(SimpleITK.GetArrayFromImage(image)).T
    if array.ndim != 3:
        raise ContentError(f"one value per voxel is required, {image.GetNumberOfComponentsPerPixel()} are stored")
    return array


def _read_multi_frame(sources: Sequence[Path], frames: Sequence[Frame], stack: Stack) -> NDArray[Any]:
    """Files of several frames, each frame scaled by itself and put in its place: ``(column, row, slice)``."""
    stored = {path: _decode(path) for path in sources}
    for frame in frames:
        if frame.number >= len(stored[frame.path]) or stored[frame.path].shape[1:] != frame.sides:
            raise VolumeError(
                f"{frame.path}: expected {frame.sides[1]}x{frame.sides[0]} pixels in frame {frame.number + 1}, found "
                f"{len(stored[frame.path])} frames of {stored[frame.path].shape[:0:-1]}. Replace the file."
            )
    return _scale([stored[frame.path][frame.number] for frame in frames], frames, stack)


def _decode(path: Path) -> NDArray[Any]:
    """Stored values of a file, ``(frame, row, column)``."""
    dataset = open_dicom(path)
    if dataset.get("SamplesPerPixel", 1) != 1:
        raise VolumeError(
            f"{path}: expected one value per voxel, found {dataset.SamplesPerPixel}. Export it in greyscale."
        )
    syntax = dataset.file_meta.get("TransferSyntaxUID", "") if hasattr(dataset, "file_meta") else ""
    require_pixels(dataset, path)
    try:
        with content_errors(path):
            values = np.asarray(dataset.pixel_array)
    except ContentError as error:
        if not isinstance(error.__cause__, RuntimeError | NotImplementedError | ImportError):
            raise
        raise _UndecodableError(
            f"{path}: pydicom cannot decode its transfer syntax here, {getattr(syntax, 'name', syntax)}. Decompress "
            "the file (gdcmconv --raw, dcmdjpeg), or install pylibjpeg."
        ) from error
    return values if values.ndim == 3 else values[None]
