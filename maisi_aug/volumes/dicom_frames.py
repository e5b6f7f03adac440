"""Position of a DICOM image's slices: each slice's own position, orientation and rescale decide, or it is refused.

A file of one slice and a frame of an enhanced (multi-frame) image are one thing here, a :class:`Frame`. DICOM's world
is LPS; affines are returned in RAS+. PixelSpacing is the step from row to row, then from column to column (PS3.3
C.7.6.2.1.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import VolumeError
from maisi_aug.volumes.dicom_files import items_of, whole_number

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Direction = tuple[float, float, float, float, float, float]

UNEVEN_SHARE = 0.05
"""Steps between slices may differ by this share: positions are rounded in headers."""
MIN_STEP_MM = 0.01
MIN_SPACING_MM = 1e-4
MAX_SPARSE_SLICES = 10_000
MAX_SPARSE_VOXELS = 2**28
"""Slices, and voxels, that frames at a distance may span; voxels up to 64 for each one that is stored."""
OFF_LINE_VOXELS = 0.1
"""Largest distance, in voxels, of a slice from the line through the first and the last one."""
SQUARE = 1e-3
"""Rows and columns meet at a right angle to this; their directions are stored with a few digits."""
MAX_VALUE = 1e6
"""Limit for absolute values of positions in mm, steps and rescaling, far above those of any scan."""
HU_TYPES = ("", "HU", "HU_MOD", "US")
"""``RescaleType`` of a CT in HU; US is 'unspecified', which most older files say."""

HEADER_TAGS = (
    *("SOPClassUID", "SeriesInstanceUID", "ImageType", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence", "BitsAllocated", "BitsStored"),
    *("PixelRepresentation", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, slots=True)
class Frame:
    """One slice of a DICOM image or segmentation, with its position.

    Attributes:
        path: Path of its file.
        number: Number of the frame in the file, from 0.
        position: Centre of its first voxel in mm, LPS.
        direction: Unit vectors along a row and along a column, LPS.
        spacing_mm: Distance in mm between rows and between columns.
        sides: Number of rows and columns.
        thickness_mm: Distance to the next slice in mm, as the header states it; None if missing.
        rescale: Slope and intercept that convert stored values to HU.
        storage: How pixel values are stored; may differ between slices of one image.
    """

    path: Path
    number: int
    position: tuple[float, float, float]
    direction: Direction
    spacing_mm: tuple[float, float]
    sides: tuple[int, int]
    thickness_mm: float | None
    rescale: tuple[float, float]
    storage: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Stack:
    """Order and geometry of DICOM slices stacked to a volume.

    Attributes:
        places: Index of the slice of each given frame.
        num_slices: Number of slices; larger than the number of frames if some may be missing.
        sides: Number of rows and columns.
        affine: ``(4, 4)`` from (column, row, slice) to RAS+ mm.
    """

    places: tuple[int, ...]
    num_slices: int
    sides: tuple[int, int]
    affine: NDArray[np.float64]


def read_frames(path: Path, header: Dataset, *, is_image: bool = True) -> list[Frame]:
    """Return the frames of one DICOM file, from its header.

    Args:
        path: Path of the file, for messages.
        header: Header of the file.
        is_image: Whether the values have a rescale to HU, in contrast to those of a segmentation.

    Raises:
        VolumeError: A slice has no position, or its values are not HU.
    """
    per_frame = items_of(header, "PerFrameFunctionalGroupsSequence")
    if not per_frame:
        if whole_number(header, "NumberOfFrames", path, 1) > 1:
            raise VolumeError(
                f"{path}: the {header.NumberOfFrames} frames have no positions. Export the scan as enhanced CT or as "
                "single slices."
            )
        return [_read_frame(path, 0, header, (header,), is_image)]
    shared = items_of(header, "SharedFunctionalGroupsSequence") or [None]
    return [
        _read_frame(path, number, header, tuple(_groups(frame, shared[0], header)), is_image)
        for number, frame in enumerate(per_frame)
    ]


def _groups(frame: Dataset, shared: Dataset | None, header: Dataset) -> Iterator[Dataset]:
    """Return the places of a frame's values: its own groups, those of all frames, the header."""
    for groups in (frame, shared):
        for element in groups if groups is not None else ():
            if element.VR == "SQ" and element.value:
                yield element.value[0]
    yield header


def _read_frame(path: Path, number: int, header: Dataset, places: tuple[Dataset, ...], is_image: bool) -> Frame:
    def find(keyword: str) -> Any:
        return next((value for place in places if (value := place.get(keyword)) not in (None, "")), None)

    subject = f"{path}, frame {number + 1}" if len(places) > 1 else str(path)
    position = _floats(find("ImagePositionPatient"), 3, "ImagePositionPatient", subject)
    direction = _floats(find("ImageOrientationPatient"), 6, "ImageOrientationPatient", subject)
    spacing = _floats(find("PixelSpacing"), 2, "PixelSpacing", subject)
    sides = whole_number(header, "Rows", path), whole_number(header, "Columns", path)
    if min(sides) < 1:
        raise VolumeError(f"{path}: Rows and Columns must be at least 1, found {sides}. Replace the file.")
    if min(spacing) < MIN_SPACING_MM:
        raise VolumeError(f"{subject}: PixelSpacing must be positive, found {list(spacing)}. Correct the file.")
    thickness = _number(find("SpacingBetweenSlices"), "SpacingBetweenSlices", subject)
    thickness = thickness or _number(find("SliceThickness"), "SliceThickness", subject)
    return Frame(
        path,
        number,
        position,  # type: ignore[arg-type]
        _squared(direction, subject),
        spacing,  # type: ignore[arg-type]
        sides,
        None if thickness is None else abs(thickness),
        _read_rescale(find, subject) if is_image else (1.0, 0.0),
        tuple(whole_number(header, word, path, 0) for word in ("BitsAllocated", "BitsStored", "PixelRepresentation")),
    )


def _floats(values: Any, count: int, keyword: str, subject: str) -> tuple[float, ...]:
    try:
        found = () if values is None else tuple(float(value) for value in values)
    except (TypeError, ValueError):  # one number, or words
        found = ()
    if len(found) != count or not all(abs(value) <= MAX_VALUE for value in found):
        raise VolumeError(
            f"{subject}: {keyword} must be {count} numbers, found {list(found) or 'none'}; without it the position "
            "of the slice is unknown. Export the scan again from the archive."
        )
    return found


def _number(value: Any, keyword: str, subject: str) -> float | None:
    """Read one number; None if there is none."""
    if value is None:
        return None
    if not isinstance(value, int | float) or not abs(value) <= MAX_VALUE:
        raise VolumeError(f"{subject}: {keyword} must be a number, found {value!r}. Export the scan again.")
    return float(value)


def _squared(direction: Sequence[float], subject: str) -> Direction:
    """The two directions with length one and at a right angle, which headers hold to a few digits only."""
    row, column = np.asarray(direction[:3]), np.asarray(direction[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if abs(lengths[0] - 1) > SQUARE or abs(lengths[1] - 1) > SQUARE or abs(float(row @ column)) > SQUARE:
        raise VolumeError(
            f"{subject}: ImageOrientationPatient must be two perpendicular directions, found "
            f"{[round(part, 4) for part in direction]}. Export the scan again."
        )
    row = row / lengths[0]
    column = column - (column @ row) * row
    values = (*row, *(column / np.linalg.norm(column)))
    a, b, c, d, e, f = (float(part) for part in values)
    return a, b, c, d, e, f


def _read_rescale(find: Any, subject: str) -> tuple[float, float]:
    slope, intercept = (_number(find(word), word, subject) for word in ("RescaleSlope", "RescaleIntercept"))
    kind = str(find("RescaleType") or "").strip().upper()
    if kind not in HU_TYPES:
        raise VolumeError(f"{subject}: values must be in HU, found RescaleType {kind}. Export the scan in HU.")
    if find("ModalityLUTSequence") is not None and slope is None:
        raise VolumeError(
            f"{subject}: expected a RescaleSlope, found a table of values (Modality LUT), which is not supported. "
            "Export the scan in HU."
        )
    scale = 1.0 if slope is None else slope
    if scale == 0:
        raise VolumeError(f"{subject}: RescaleSlope is 0. Export the scan again.")
    return scale, 0.0 if intercept is None else intercept


def stack_slices(frames: Sequence[Frame], subject: Path | str) -> Stack:
    """Sort the slices of a DICOM image by position, and check that they form an even stack.

    Args:
        frames: Geometry of the slices, at least one, in any order.
        subject: Name of the image in messages.

    Returns:
        The stack: the place of each frame along the normal, number of slices, rows and columns, and affine.

    Raises:
        VolumeError: Slices differ in orientation, spacing or size, two have the same position, some are missing, or the
            thickness of a single slice is unknown.
    """
    positions = _require_one_kind(frames, subject)
    normal = _normal_of(frames[0])
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    along = positions[order]
    if len(frames) == 1:
        return _build_stack(frames[0], along[0], normal * _single_step(frames[0], subject), (0,), 1)
    steps_mm = np.linalg.norm(np.diff(along, axis=0), axis=1)
    typical_mm = float(np.median(steps_mm))
    rising = np.diff(heights[order])
    lowest = int(rising.argmin())
    if rising[lowest] < MIN_STEP_MM:
        raise VolumeError(
            f"{subject}: two slices at the same position, {_spell_place(along[lowest])}: "
            f"{_name(frames[order[lowest]])} and {_name(frames[order[lowest + 1]])}. Give one series, or one phase "
            "of it, in a folder."
        )
    worst = int(np.abs(steps_mm - typical_mm).argmax())
    if abs(steps_mm[worst] - typical_mm) > max(UNEVEN_SHARE * typical_mm, MIN_STEP_MM):
        raise VolumeError(
            f"{subject}: slices are {typical_mm:.2f} mm apart, but {steps_mm[worst]:.2f} mm between slices "
            f"{worst + 1} and {worst + 2} of {len(frames)}. Complete the series."
        )
    step = (along[-1] - along[0]) / (len(frames) - 1)
    places = np.empty(len(frames), dtype=int)
    places[order] = np.arange(len(frames))
    stack = _build_stack(frames[0], along[0], step, tuple(places.tolist()), len(frames))
    _require_on_line(stack, along, subject)
    return stack


def stack_sparse(frames: Sequence[Frame], subject: Path | str, *, step_mm: Sequence[float | None] = ()) -> Stack:
    """Stack frames of which several may share a position and any may be missing, as in a segmentation.

    Args:
        frames: Frames in any order.
        subject: Path of the file, for messages.
        step_mm: Slice distances in mm to try before those that follow from the frames.

    Raises:
        VolumeError: The frames differ in orientation, spacing or size, or are not slices of one even stack.
    """
    positions = _require_one_kind(frames, subject)
    normal = _normal_of(frames[0])
    heights = positions @ normal
    first, last = positions[heights.argmin()], positions[heights.argmax()]
    rising = np.diff(np.sort(heights))
    own = rising[rising > MIN_STEP_MM]
    tried = [*step_mm, frames[0].thickness_mm, float(own.min()) if own.size else None]
    for step in tried:
        if step is None or step < MIN_STEP_MM:
            continue
        exact = (heights - heights.min()) / step
        places = np.rint(exact).astype(int)
        if np.abs(exact - places).max() <= OFF_LINE_VOXELS:
            num_slices = int(places.max()) + 1
            _require_span(frames, num_slices, subject)
            way = (last - first) / (num_slices - 1) if num_slices > 1 else normal * step
            stack = _build_stack(frames[0], first, way, tuple(places.tolist()), num_slices)
            _require_on_line(stack, positions, subject, places)
            return stack
    raise VolumeError(f"{subject}: frames are not evenly spaced. Export the segmentation again on its CT.")


def _require_span(frames: Sequence[Frame], num_slices: int, subject: Path | str) -> None:
    """Raise for few frames so far apart that the slices between them would take more memory than any scan."""
    plane = frames[0].sides[0] * frames[0].sides[1]
    if num_slices > MAX_SPARSE_SLICES or plane * num_slices > max(MAX_SPARSE_VOXELS, 64 * plane * len(frames)):
        raise VolumeError(
            f"{subject}: {len(frames)} frames span {num_slices} slices, which cannot be one scan. Export the "
            "segmentation again on its CT."
        )


def _require_one_kind(frames: Sequence[Frame], subject: Path | str) -> NDArray[np.float64]:
    """Positions of frames that have one orientation, spacing and size.

    Raises:
        VolumeError: They differ.
    """
    first = frames[0]
    for what, values, tolerance in (
        ("orientation", [frame.direction for frame in frames], SQUARE),
        ("PixelSpacing", [frame.spacing_mm for frame in frames], SQUARE * min(first.spacing_mm)),
        ("number of rows and columns", [frame.sides for frame in frames], 0.0),
    ):
        array = np.asarray(values, dtype=np.float64)
        apart = np.abs(array - array[0]).max(axis=1)
        if apart.max() > tolerance:
            other = frames[int(apart.argmax())]
            raise VolumeError(
                f"{subject}: {what} differs between slices: {_spell(array[0])} in {_name(first)} and "
                f"{_spell(array[int(apart.argmax())])} in {_name(other)}. Remove scouts and other series."
            )
    return np.asarray([frame.position for frame in frames], dtype=np.float64)


def _normal_of(frame: Frame) -> NDArray[np.float64]:
    return np.cross(frame.direction[:3], frame.direction[3:])


def _single_step(frame: Frame, subject: Path | str) -> float:
    if not frame.thickness_mm:
        raise VolumeError(
            f"{subject}: a single slice needs SliceThickness or SpacingBetweenSlices, and has neither. Give the "
            "whole series."
        )
    return frame.thickness_mm


def _build_stack(
    frame: Frame, first: NDArray[np.float64], step: NDArray[np.float64], places: tuple[int, ...], num_slices: int
) -> Stack:
    """The stack with its affine; a step that leads aside by what positions are rounded to runs along the normal."""
    rows_mm, columns_mm = frame.spacing_mm
    normal = _normal_of(frame)
    aside = step - (step @ normal) * normal
    if np.linalg.norm(aside) * (num_slices - 1) <= OFF_LINE_VOXELS * min(frame.spacing_mm):
        step = (step @ normal) * normal
    affine = np.eye(4)
    affine[:3, 0] = np.asarray(frame.direction[:3]) * columns_mm
    affine[:3, 1] = np.asarray(frame.direction[3:]) * rows_mm
    affine[:3, 2] = step
    affine[:3, 3] = first
    return Stack(places, num_slices, frame.sides, _LPS_TO_RAS @ affine)


def _require_on_line(
    stack: Stack, positions: NDArray[np.float64], subject: Path | str, places: NDArray[np.int_] | None = None
) -> None:
    """Raise where a slice does not lie where the affine puts it.

    Args:
        stack: The slices.
        positions: LPS in mm.
        subject: What messages call the input.
        places: The slice of each position; their order by default.

    Raises:
        VolumeError: The message names the slice and how far off it lies.
    """
    number = np.arange(len(positions)) if places is None else places
    expected = number[:, None] * stack.affine[:3, 2] + stack.affine[:3, 3]
    off = (positions @ _LPS_TO_RAS[:3, :3] - expected) @ np.linalg.inv(stack.affine[:3, :3]).T
    worst = int(np.abs(off).max(axis=1).argmax())
    if np.abs(off[worst]).max() > 2 * OFF_LINE_VOXELS:
        off_mm = float(np.linalg.norm(stack.affine[:3, :3] @ off[worst]))
        raise VolumeError(
            f"{subject}: slices are not on one line: slice {worst + 1} of {len(positions)} is {off_mm:.2f} mm off. "
            "Give one series in a folder."
        )


def _name(frame: Frame) -> str:
    return frame.path.name if frame.number == 0 else f"frame {frame.number + 1}"


def _spell(values: NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _spell_place(position: NDArray[np.float64]) -> str:
    return f"{_spell(position)} mm"
