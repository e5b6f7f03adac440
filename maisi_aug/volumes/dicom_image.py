"""One DICOM image as an array: a folder with one series, single slices or enhanced (multi-frame), or one file.

Places come from the slices' own headers (:mod:`maisi_aug.volumes.dicom_frames`). Values of single slices come from ITK, which
decodes every compression; it takes the pixel type of the first slice for all, so that one wide enough is asked for
where slices differ. Frames of an enhanced image are decoded by pydicom and scaled one by one: ITK would use the first
frame's rescale and order for all.
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
from maisi_aug.volumes.dicom_files import kind_of_header, name_of_kind, read_header, walk_dicom
from maisi_aug.volumes.dicom_frames import HEADER_TAGS, Frame, Stack, read_frames, stack_slices
from maisi_aug.volumes.grid import Grid

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_MAX_SHOWN = 4
_LOCALIZER = "LOCALIZER"


def read_dicom_image(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Values and geometry of one image.

    Args:
        path: A file, or a folder with one series in it or below it; scouts and objects without slices are left out.

    Returns:
        ``(column, row, slice)`` values with their rescale, and the affine from these indices to RAS+ mm, which is
        sheared for a tilted gantry.

    Raises:
        VolumeError: There is no image or more than one, or a slice's place or values are not certain.
    """
    frames, stack = _lay_out(path)
    sources = list(dict.fromkeys(frame.path for frame in frames))
    if len(sources) == len(frames) and max(frame.number for frame in frames) == 0:
        in_order = sorted(range(len(frames)), key=lambda index: stack.places[index])
        array = _read_slices([frames[index] for index in in_order])
    else:
        array = _read_multi_frame(sources, frames, stack)
    columns, rows, num_slices = array.shape
    if (rows, columns) != stack.sides or num_slices != stack.num_slices:
        raise VolumeError(
            f"{path}: expected {stack.sides[1]}x{stack.sides[0]}x{stack.num_slices} voxels by the headers, found "
            f"{columns}x{rows}x{num_slices}. Replace the files."
        )
    return array, stack.affine


def read_dicom_grid(path: Path) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape and affine of :func:`read_dicom_image`, from the headers alone."""
    _, stack = _lay_out(path)
    return (stack.sides[1], stack.sides[0], stack.num_slices), stack.affine


def _lay_out(path: Path) -> tuple[list[Frame], Stack]:
    headers = _find_series(path)
    frames = [frame for file, header in headers for frame in read_frames(file, header)]
    _require_one_scale(frames, headers, path)
    stack = stack_slices(frames, path)
    if len(headers) < len(frames):
        _require_straight(stack, path)
    return frames, stack


def _find_series(path: Path) -> list[tuple[Path, Dataset]]:
    """The headers of the one image at a path.

    Raises:
        VolumeError: There is none, or several.
    """
    files = [path] if path.is_file() else [file for found in walk_dicom(path) for file in found]
    headers = [(file, read_header(file, HEADER_TAGS)) for file in files]
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
    kinds = header.get("ImageType") or ()
    return _LOCALIZER in ([kinds] if isinstance(kinds, str) else [str(kind).upper() for kind in kinds])


def _require_one_scale(frames: Sequence[Frame], headers: Sequence[tuple[Path, Dataset]], path: Path) -> None:
    """Raise where some files say how their values become HU and others do not."""
    has_scale = [header.get("RescaleSlope") is not None for _, header in headers]
    if len(headers) == len(frames) and len(set(has_scale)) == 2:
        raise VolumeError(
            f"{path}: expected a RescaleSlope in all {len(has_scale)} slices, found it in {sum(has_scale)}. Export the "
            "series again."
        )


def _require_straight(stack: Stack, path: Path) -> None:
    """Raise for frames that lean: no scanner writes a tilted scan as an enhanced image, so its meaning is not certain.

    A tilted series of single slices is common, and is resampled where it is read.
    """
    rows, columns = stack.sides
    if not Grid((columns, rows, stack.num_slices), stack.affine).has_right_angles:
        raise VolumeError(
            f"{path}: expected frames stacked along their normal, found a tilted stack in an enhanced image. Export "
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


def _read_slices(frames: Sequence[Frame]) -> NDArray[Any]:
    """Files of one slice each, in order: ``(column, row, slice)``."""
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames([str(frame.path) for frame in frames])
    if len({(frame.rescale, frame.storage) for frame in frames}) > 1:
        reader.SetOutputPixelType(SimpleITK.sitkFloat64)
    with _quiet_itk():
        image = reader.Execute()
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"one value per voxel needed, {image.GetNumberOfComponentsPerPixel()} stored")
    return np.asarray(SimpleITK.GetArrayFromImage(image)).T


def _read_multi_frame(sources: Sequence[Path], frames: Sequence[Frame], stack: Stack) -> NDArray[Any]:
    """Files of several frames, each frame scaled by itself and put in its place: ``(column, row, slice)``."""
    stored = {path: _decode(path) for path in sources}
    scales = {frame.rescale for frame in frames}
    is_whole = all(float(part).is_integer() for scale in scales for part in scale)
    rows, columns = stack.sides
    array = np.empty((stack.num_slices, rows, columns), dtype=np.int32 if is_whole else np.float64)
    for frame, place in zip(frames, stack.places, strict=True):
        slope, intercept = frame.rescale
        values = stored[frame.path][frame.number].astype(array.dtype)
        array[place] = values * array.dtype.type(slope) + array.dtype.type(intercept)
    return array.T


def _decode(path: Path) -> NDArray[Any]:
    """Stored values of a file, ``(frame, row, column)``."""
    import pydicom

    dataset = pydicom.dcmread(path, force=True)
    if int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise VolumeError(f"{path}: expected one value per voxel, found {dataset.SamplesPerPixel}. Export it in grey.")
    try:
        values = np.asarray(dataset.pixel_array)
    except (RuntimeError, NotImplementedError, ImportError) as error:
        syntax = dataset.file_meta.TransferSyntaxUID.name
        raise VolumeError(
            f"{path}: expected frames that pydicom can decode here, found {syntax}. Decompress the file (gdcmconv "
            "--raw, dcmdjpeg), or install pylibjpeg."
        ) from error
    return values if values.ndim == 3 else values[None]
