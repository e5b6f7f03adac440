"""DICOM objects that draw labels on a CT: segmentations (SEG) by their segments, RT structure sets by their contours.

Both become a label map whose ids are the segments' or structures' own numbers. Where they overlap, the smaller one
wins, since a structure set draws the body around its organs and an organ around its lesion; a lesion wins always.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import MaisiAugWarning, VolumeError
from maisi_aug.system.content import ContentError, content_errors
from maisi_aug.vocabulary.labels import lesion_word
from maisi_aug.volumes.dicom_files import items_of, kind_of, open_dicom, read_header, require_pixels, whole_number
from maisi_aug.volumes.dicom_frames import MAX_VALUE, Stack, read_frames, stack_sparse
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.orientation import turn_to_ras
from maisi_aug.volumes.resampling import crop_or_pad, resample_label_map

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

ON_GRID_VOXELS = 0.1
"""Largest distance, in voxels, of frames and contours from the CT's voxels or slices."""
MIN_SHARE = 0.5
"""A fractional segment holds a voxel of which it covers this share."""
_ABNORMAL = "49755003"
"""Category of a lesion's segment: SNOMED CT, morphologically abnormal structure."""
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
_MAX_SHOWN = 4
_TRIANGLE = 9
"""Number of coordinates of the smallest contour that encloses an area."""
MAX_ID = 65535


@dataclass(frozen=True, eq=False)
class DrawnLabels:
    """Label map read from a DICOM segmentation or structure set.

    Attributes:
        array: ``(I, J, K)`` ids of segments or structures in RAS+; 0 for none.
        grid: Shape and affine, those of the CT if one was given.
        names: Id -> name.
    """

    array: NDArray[np.uint16]
    grid: Grid
    names: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class _Segment:
    """A segment or structure: number, name, whether it is a lesion."""

    number: int
    name: str
    is_lesion: bool


def read_drawn_labels(path: Path, onto: Grid | None) -> DrawnLabels:
    """Read a DICOM segmentation or structure set as a label map.

    Args:
        path: Path of the file.
        onto: Grid of the CT, required for a structure set; a segmentation with the CT's voxels is extended to it. None
            without a CT.

    Raises:
        VolumeError: The file cannot be read, requires a grid, or does not lie on the CT's slices.
    """
    if kind_of(path) == "structures":
        if onto is None:
            raise VolumeError(f"{path}: an RT structure set needs the grid of its CT. Put the CT's series next to it.")
        return _read_structures(path, onto)
    return _read_segmentation(path, onto)


def read_drawn_names(path: Path) -> dict[int, str]:
    """Return id -> name of a DICOM segmentation or structure set, without reading voxels.

    Raises:
        VolumeError: The file cannot be read.
    """
    header = read_header(path)
    if kind_of(path) == "structures":
        return {segment.number: segment.name for segment in _list_structures(header, path).values()}
    return {segment.number: segment.name for segment in _list_segments(header, path)}


# Segmentations.


def _list_segments(dataset: Dataset, path: Path) -> list[_Segment]:
    """List the segments of a segmentation, without the background that label maps may list as segment 0."""
    segments = []
    for item in items_of(dataset, "SegmentSequence"):
        number = whole_number(item, "SegmentNumber", path)
        if number > MAX_ID:
            raise VolumeError(f"{path}: segments must be numbered up to {MAX_ID}, found {number}. Export it again.")
        name = str(item.get("SegmentLabel", "")).strip() or f"segment {number}"
        categories = items_of(item, "SegmentedPropertyCategoryCodeSequence")
        is_abnormal = any(str(category.get("CodeValue", "")) == _ABNORMAL for category in categories[:1])
        segments.append(_Segment(number, name, is_abnormal or lesion_word(name) is not None))
    return [segment for segment in segments if segment.number]


def _read_segmentation(path: Path, onto: Grid | None) -> DrawnLabels:
    dataset = _open_segmentation(path)
    frames = read_frames(path, dataset, is_image=False)
    if not items_of(dataset, "PerFrameFunctionalGroupsSequence"):
        raise VolumeError(f"{path}: frames of the segmentation have no positions. Export it again.")
    step = None if onto is None else _step_along(onto, frames[0].direction)
    stack = stack_sparse(frames, path, step_mm=(step,))
    segments = _list_segments(dataset, path)
    rows, columns = stack.sides
    array = np.zeros((stack.num_slices, rows, columns), dtype=np.uint16)
    if str(dataset.SegmentationType) == "LABELMAP":
        for place, (_, values) in zip(stack.places, _label_frames(dataset, path), strict=True):
            array[place] = values
        known = {segment.number for segment in segments}
        unnamed = sorted(set(np.unique(array).tolist()) - known - {0})
        if unnamed:
            raise VolumeError(f"{path}: has segments without a description: {unnamed[:_MAX_SHOWN]}.")
    else:
        _paint_segments(array, stack, dataset, segments, path)
    names = {segment.number: segment.name for segment in segments}
    turned, grid = turn_to_ras(array.T, stack.affine)
    return DrawnLabels(*_place_on(turned, grid, onto, path), names)


def _open_segmentation(path: Path) -> Any:
    try:
        import highdicom
    except ImportError as error:
        raise VolumeError(
            f"{path}: a DICOM segmentation (SEG) is read with highdicom, which is missing. Install maisi-aug[dicom]."
        ) from error
    dataset = open_dicom(path)
    require_pixels(dataset, path)
    try:
        with content_errors(path):
            return highdicom.seg.Segmentation.from_dataset(dataset, copy=False)
    except ContentError as error:
        raise VolumeError(
            f"{path}: highdicom cannot read this DICOM segmentation: {error}. Export it again."
        ) from error


def _label_frames(dataset: Any, path: Path) -> Iterator[tuple[int, NDArray[Any]]]:
    """Every frame's segment, 0 in a label map, and its values, ``(row, column)``."""
    is_label_map = str(dataset.SegmentationType) == "LABELMAP"
    for number, item in enumerate(items_of(dataset, "PerFrameFunctionalGroupsSequence"), start=1):
        with content_errors(path):
            groups = item if "SegmentIdentificationSequence" in item else dataset.SharedFunctionalGroupsSequence[0]
            segment = 0 if is_label_map else int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
            values = np.asarray(dataset.get_stored_frame(number))
        yield segment, values


def _paint_segments(
    array: NDArray[np.uint16], stack: Stack, dataset: Any, segments: Sequence[_Segment], path: Path
) -> None:
    """Write segments of one frame each over each other, ``(slice, row, column)``, in place."""
    is_fractional = str(dataset.SegmentationType) == "FRACTIONAL"
    threshold = MIN_SHARE * whole_number(dataset, "MaximumFractionalValue", path) if is_fractional else 1.0
    # Packed eight to a byte: all segments of a whole body are kept at once.
    packed = [(number, np.packbits(values >= threshold)) for number, values in _label_frames(dataset, path)]
    counts: dict[int, int] = {}
    for number, bits in packed:
        counts[number] = counts.get(number, 0) + int(np.bitwise_count(bits).sum())
    painter = _Painter(path)
    for segment in _painting_order(segments, counts):
        for (number, bits), place in zip(packed, stack.places, strict=True):
            if number == segment.number:
                painter.paint(array[place], _unpack(bits, stack.sides), segment)
    painter.tell({segment.number: segment.name for segment in segments})


def _place_on(array: NDArray[np.uint16], grid: Grid, onto: Grid | None, path: Path) -> tuple[NDArray[np.uint16], Grid]:
    """Fill up to the CT's field of view where its voxels are the CT's; else as it is, for the caller to judge."""
    if onto is None:
        return array, grid
    if not grid.has_right_angles:  # drawn on a tilted scan, which was brought to right angles
        return resample_label_map(array, grid, onto), onto
    to_ct = np.linalg.solve(onto.affine, grid.affine)
    ends = np.array([[0, 0, 0, 1], [*(np.asarray(grid.shape) - 1), 1]]) @ to_ct.T
    first = np.rint(ends[0, :3])
    wanted = np.stack([first, first + np.asarray(grid.shape) - 1])
    if np.abs(ends[:, :3] - wanted).max() > ON_GRID_VOXELS:
        return array, grid
    centre = -first + (np.asarray(onto.shape) - 1) / 2
    placed, _ = crop_or_pad(array, grid, onto.shape, fill=0, centre_ijk=centre.tolist())
    if np.count_nonzero(placed) < np.count_nonzero(array):
        raise VolumeError(f"{path}: some segments are outside the CT. Give the CT that they were drawn on.")
    return placed, onto


def _step_along(onto: Grid, direction: Sequence[float]) -> float | None:
    """The CT's step along the normal of a frame; None where its axes are others."""
    normal = np.cross(direction[:3], direction[3:]) * _LPS_TO_RAS
    along = np.abs(normal @ (onto.affine[:3, :3] / np.asarray(onto.spacing_mm)))
    return onto.spacing_mm[int(along.argmax())] if along.max() > 1 - 1e-3 else None


# Structure sets.


def _list_structures(dataset: Dataset, path: Path) -> dict[int, _Segment]:
    """Structures by ROI number; their ids are these, or 1, 2, ... where a number is not an id of a label map."""
    items = items_of(dataset, "StructureSetROISequence")
    numbers = [_roi_number(item, "ROINumber", path) for item in items]
    is_id = all(0 < number <= MAX_ID for number in numbers)
    structures = {}
    for place, (number, item) in enumerate(zip(numbers, items, strict=True), start=1):
        name = str(item.get("ROIName", "")).strip() or f"structure {number}"
        structures[number] = _Segment(number if is_id else place, name, lesion_word(name) is not None)
    return structures


def _roi_number(item: Dataset, keyword: str, path: Path) -> int:
    """A structure's number, which may be negative."""
    value = item.get(keyword)
    if not isinstance(value, int):
        raise VolumeError(f"{path}: {keyword} must be an integer, found {value!r}. Export the structures again.")
    return int(value)


def _read_structures(path: Path, onto: Grid) -> DrawnLabels:
    """Contours drawn on the CT's slices; a contour inside another one of its structure is a hole."""
    dataset = read_header(path)
    structures = _list_structures(dataset, path)
    names = {structure.number: structure.name for structure in structures.values()}
    contours, others = _list_contours(dataset, structures, onto, path)
    if not contours:
        raise VolumeError(f"{path}: has no closed contours. Export the structures again.")
    if others:
        warnings.warn(
            f"{path}: {', '.join(sorted(others)[:_MAX_SHOWN])} have contours that are not closed and enclose "
            "nothing; they are left out.",
            MaisiAugWarning,
            stacklevel=4,
        )
    # All lie in slices along one axis: the one along which none of them extends.
    axis = int(np.max([np.ptp(points, axis=0) for _, points in contours], axis=0).argmin())
    masks: dict[int, dict[int, NDArray[np.uint8]]] = {}
    for structure, points in contours:
        place, mask = _draw_contour(points, onto, axis, f"{path}, '{structure.name}'")
        slices, bits = masks.setdefault(structure.number, {}), np.packbits(mask)  # a large set has thousands
        slices[place] = slices[place] ^ bits if place in slices else bits
    counts = {n: sum(int(np.bitwise_count(bits).sum()) for bits in slices.values()) for n, slices in masks.items()}
    array = np.zeros(onto.shape, dtype=np.uint16)
    along = np.moveaxis(array, axis, 0)
    painter = _Painter(path)
    for structure in _painting_order(list(structures.values()), counts):
        for place, bits in masks.get(structure.number, {}).items():
            plane = along[place]
            painter.paint(plane, _unpack(bits, plane.shape), structure)
    painter.tell(names)
    return DrawnLabels(array, onto, names)


def _list_contours(
    dataset: Dataset, structures: Mapping[int, _Segment], onto: Grid, path: Path
) -> tuple[list[tuple[_Segment, NDArray[np.float64]]], set[str]]:
    """Closed contours in voxel indices of a grid, ``(points, 3)``, and the names of structures with other ones."""
    to_index = np.linalg.inv(onto.affine[:3, :3]).T
    contours: list[tuple[_Segment, NDArray[np.float64]]] = []
    others: set[str] = set()
    for item in items_of(dataset, "ROIContourSequence"):
        structure = structures.get(_roi_number(item, "ReferencedROINumber", path))
        if structure is None:
            continue
        for contour in items_of(item, "ContourSequence"):
            with content_errors(path):
                points = np.asarray(contour.get("ContourData") or (), dtype=np.float64)
            if points.ndim != 1 or points.size % 3 or not (np.abs(points) <= MAX_VALUE).all():
                raise VolumeError(
                    f"{path}, '{structure.name}': contours must be points in mm, but these {points.size} numbers are "
                    "not. Export the structures again."
                )
            if str(contour.get("ContourGeometricType", "")).upper() in _CLOSED and points.size >= _TRIANGLE:
                world = points.reshape(-1, 3) * _LPS_TO_RAS
                contours.append((structure, (world - onto.affine[:3, 3]) @ to_index))
            else:
                others.add(structure.name)
    return contours, others


def _draw_contour(indices: NDArray[np.float64], onto: Grid, axis: int, subject: str) -> tuple[int, NDArray[np.bool_]]:
    """The slice that a contour lies in, and the voxels whose centres it encloses.

    Args:
        indices: ``(points, 3)`` voxel indices.
        onto: The CT's grid.
        axis: Axis of the slices.
        subject: What messages call the input.

    Raises:
        VolumeError: The contour lies between slices, across them, or outside the CT.
    """
    from skimage.draw import polygon2mask

    place = round(float(np.median(indices[:, axis])))
    off = float(np.abs(indices[:, axis] - place).max())
    if off > ON_GRID_VOXELS:
        raise VolumeError(
            f"{subject}: a contour lies {off * onto.spacing_mm[axis]:.2f} mm from the CT's nearest slice, slice "
            f"{place + 1}. Give the CT that the contours were drawn on."
        )
    sides = [side for other, side in enumerate(onto.shape) if other != axis]
    flat = np.delete(indices, axis, axis=1)
    if not 0 <= place < onto.shape[axis] or (flat < -1).any() or (flat > np.asarray(sides)).any():
        raise VolumeError(f"{subject}: a contour is outside the CT. Give the CT that the contours were drawn on.")
    return place, np.asarray(polygon2mask(tuple(sides), flat), dtype=bool)


# Overlaps.


def _painting_order(segments: Sequence[_Segment], counts: Mapping[int, int]) -> list[_Segment]:
    """The largest first, lesions last."""
    return sorted(segments, key=lambda segment: (segment.is_lesion, -counts.get(segment.number, 0)))


def _unpack(bits: NDArray[np.uint8], sides: Sequence[int]) -> NDArray[np.bool_]:
    """A mask of one slice that was packed eight voxels to a byte."""
    rows, columns = sides
    return np.unpackbits(bits, count=rows * columns).reshape(rows, columns).astype(bool)


class _Painter:
    """Writes segments over each other and remembers which met."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._met: dict[tuple[int, int], int] = {}

    def paint(self, target: NDArray[np.uint16], mask: NDArray[np.bool_], segment: _Segment) -> None:
        """Write one slice of a segment, in place."""
        below = target[mask]
        for number in np.unique(below[below > 0]).tolist():
            if number != segment.number:
                pair = (segment.number, int(number))
                self._met[pair] = self._met.get(pair, 0) + int(np.count_nonzero(below == number))
        target[mask] = segment.number

    def tell(self, names: Mapping[int, str]) -> None:
        """Warn about overlapping labels, because a label map holds only one of them."""
        if self._met:
            pairs = sorted(self._met, key=lambda pair: -self._met[pair])
            shown = ", ".join(f"{names[over]} in {names[under]}" for over, under in pairs[:_MAX_SHOWN])
            more = f" and {len(pairs) - _MAX_SHOWN} more pairs" if len(pairs) > _MAX_SHOWN else ""
            warnings.warn(
                f"{self._path}: labels overlap ({shown}{more}); the smaller one wins, and a lesion always wins.",
                MaisiAugWarning,
                stacklevel=4,
            )
