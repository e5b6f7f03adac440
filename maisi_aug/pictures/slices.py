"""Slices of a volume as pictures: windows, radiological orientation, smooth enlargement, label contours.

Radiological convention: in the axial and the coronal plane the patient's right is on the left of the picture; anterior
is up in the axial plane and left in the sagittal one; the head is up in the other two.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from maisi_aug.system.printed_text import clean_value
from maisi_aug.vocabulary.labels import BODY_ID
from maisi_aug.volumes.grid import Grid

PlaneName = Literal["axial", "coronal", "sagittal"]
Rgb = tuple[int, int, int]

BACKGROUND: Rgb = (16, 19, 23)
TEXT: Rgb = (232, 234, 237)
DIM_TEXT: Rgb = (150, 157, 166)
MARK: Rgb = (255, 196, 0)
BODY_CONTOUR: Rgb = (92, 104, 118)
LESION_COLOURS: tuple[Rgb, ...] = (
    (255, 196, 0),
    (255, 64, 129),
    (0, 229, 255),
    (178, 255, 89),
    (255, 110, 64),
    (213, 128, 255),
)
SUPERSAMPLING = 2


@dataclass(frozen=True, slots=True)
class Window:
    """A range of HU, or of MR intensities, shown from black to white."""

    name: str
    centre_hu: float
    width_hu: float
    unit: str = "HU"

    def __str__(self) -> str:
        """As it stands on a picture."""
        return " ".join(f"{self.name} window, {self.centre_hu:g} / {self.width_hu:g} {self.unit}".split())


SOFT_TISSUE = Window("soft tissue", 50.0, 400.0)
LUNG = Window("lung", -550.0, 1500.0)
BONE = Window("bone", 400.0, 1800.0)
MR_SHARE = 99.5
"""Percentile of the voxels of an MR image that is shown white."""


def choose_mr_window(image: NDArray[Any]) -> Window:
    """Return the window of an MR image, whose intensities have no unit: from 0 to nearly its brightest voxel."""
    white = max(1.0, float(np.percentile(image, MR_SHARE)))
    return Window("MR", round(white / 2), round(white), "")


@dataclass(frozen=True, slots=True)
class Plane:
    """A slice orthogonal to an axis of the volume.

    Attributes:
        name: ``axial``, ``coronal`` or ``sagittal``.
        index: Voxel index along the axis that the plane is orthogonal to.
    """

    name: PlaneName
    index: int

    @property
    def axis(self) -> int:
        """Array axis that the plane is orthogonal to: 0 for I, 1 for J, 2 for K."""
        return {"sagittal": 0, "coronal": 1, "axial": 2}[self.name]

    @property
    def side_marks(self) -> tuple[str, str]:
        """Letters of the body directions (such as R and L) at the left and right edge of the picture."""
        return ("A", "P") if self.name == "sagittal" else ("R", "L")

    def cut(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Return a slice of an ``(I, J, K)`` array as the ``(rows, columns)`` of a picture, first row on top."""
        return np.ascontiguousarray(np.take(volume, self.index, axis=self.axis)[::-1, ::-1].T)

    def size_px(self, grid: Grid, pixels_per_mm: float) -> tuple[int, int]:
        """Return width and height in pixels of the slice's picture, in true proportions.

        Args:
            grid: Grid of the volume.
            pixels_per_mm: Resolution of the picture.
        """
        across, up = [step for axis, step in enumerate(grid.extent_mm) if axis != self.axis]
        return max(1, round(across * pixels_per_mm)), max(1, round(up * pixels_per_mm))

    def locate(self, voxel: tuple[int, int, int], grid: Grid) -> tuple[float, float]:
        """Return the position of a voxel in the picture, as fractions of its width and height.

        Args:
            voxel: Index of the voxel along I, J, K.
            grid: Grid of the volume.

        Returns:
            Fractions in [0, 1], from the left and from the top.
        """
        column, row = [axis for axis in range(3) if axis != self.axis]
        return (
            1 - (voxel[column] + 0.5) / grid.shape[column],
            1 - (voxel[row] + 0.5) / grid.shape[row],
        )


def draw_slice(image_hu: NDArray[Any], plane: Plane, size_px: tuple[int, int], window: Window) -> Image.Image:
    """Draw a slice in grey as an RGB picture; it is enlarged smoothly before the window is applied.

    Args:
        image_hu: ``(I, J, K)`` image in HU.
        plane: Plane to cut.
        size_px: Width and height of the picture in pixels.
        window: HU shown from black to white.
    """
    slice_hu = Image.fromarray(plane.cut(image_hu).astype(np.float32))
    enlarged = np.asarray(slice_hu.resize(size_px, Image.Resampling.BICUBIC))
    low = window.centre_hu - window.width_hu / 2
    grey = np.clip((enlarged - low) / window.width_hu * 255, 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def draw_contours(
    picture: Image.Image, label_map: NDArray[np.uint8], plane: Plane, colours: Mapping[int, Rgb], bold: frozenset[int]
) -> Image.Image:
    """Outline the labels of a slice on its picture.

    Args:
        picture: Result of :func:`draw_slice`; not modified.
        label_map: ``(I, J, K)`` label ids.
        plane: The slice.
        colours: Colour of each id; ids without one are not outlined.
        bold: Ids whose outline is drawn thicker and on top.
    """
    fine = (picture.width * SUPERSAMPLING, picture.height * SUPERSAMPLING)
    labels = _enlarge_labels(plane.cut(label_map), fine)
    thin, thick = np.zeros((256, 4), dtype=np.uint8), np.zeros((256, 4), dtype=np.uint8)
    for label_id, colour in colours.items():
        (thick if label_id in bold else thin)[label_id] = (*colour, 255 if label_id in bold else 190)
    edges = _edges(labels)
    broad = edges | _edges(edges)  # of each outline, the pixels next to it on either side
    result = picture.convert("RGBA")
    for palette, thickness in ((thin, 0), (thick, 3)):
        layer = Image.fromarray(palette[np.where(edges if thickness else broad, labels, 0)])
        layer = layer.filter(ImageFilter.MaxFilter(thickness)) if thickness else layer
        result = Image.alpha_composite(result, layer.resize(picture.size, Image.Resampling.BOX))
    return result.convert("RGB")


def _edges(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels that have a neighbour of another label to the left, right, above or below."""
    edges = np.zeros(labels.shape, dtype=bool)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    edges[1:] |= down
    edges[:-1] |= down
    return edges


def _enlarge_labels(labels: NDArray[np.uint8], size_px: tuple[int, int]) -> NDArray[np.uint8]:
    """Enlarge a label slice with smooth borders: each pixel takes the label that covers most of its surroundings."""
    width, height = size_px
    per_row, per_column = height / labels.shape[0], width / labels.shape[1]
    largest = np.zeros((height, width), dtype=np.uint8)
    enlarged = np.zeros((height, width), dtype=np.uint8)
    for label_id in np.unique(labels):
        mask = labels == label_id
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        top, bottom = max(0, rows[0] - 2), min(labels.shape[0], rows[-1] + 3)
        left, right = max(0, columns[0] - 2), min(labels.shape[1], columns[-1] + 3)
        y, x = (
            slice(round(top * per_row), round(bottom * per_row)),
            slice(round(left * per_column), round(right * per_column)),
        )
        crop = Image.fromarray(mask[top:bottom, left:right].astype(np.uint8) * 255)
        cover = np.asarray(crop.resize((x.stop - x.start, y.stop - y.start), Image.Resampling.BICUBIC))
        wins = cover > largest[y, x]
        largest[y, x][wins] = cover[wins]
        enlarged[y, x][wins] = label_id
    return enlarged


def label_colours(label_ids: NDArray[Any], lesion_ids: tuple[int, ...]) -> dict[int, Rgb]:
    """Return id -> colour: vivid for lesions, muted and well separated for organs, the same in every picture.

    Args:
        label_ids: Vocabulary ids to colour; background gets none.
        lesion_ids: Those of them that are lesions.

    Returns:
        Id -> red, green and blue, 0 to 255.
    """
    colours: dict[int, Rgb] = {}
    for label_id in map(int, label_ids):
        if label_id == BODY_ID:
            colours[label_id] = BODY_CONTOUR
        elif label_id and label_id not in lesion_ids:
            # Roberts' R2 sequence (2018) spreads any ids evenly over hue and lightness.
            hue, share = (label_id * 0.7548777) % 1.0, (label_id * 0.5698403) % 1.0
            red, green, blue = colorsys.hls_to_rgb(hue, 0.45 + 0.33 * share, 0.6)
            colours[label_id] = (round(red * 255), round(green * 255), round(blue * 255))
    for position, label_id in enumerate(sorted(lesion_ids)):
        colours[label_id] = LESION_COLOURS[position % len(LESION_COLOURS)]
    return colours


def font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the typeface of all pictures in a size in pixels."""
    return ImageFont.load_default(size_px)


def write_text(
    picture: Image.Image,
    place: tuple[float, float],
    text: str,
    *,
    size_px: int,
    colour: Rgb = TEXT,
    anchor: str = "la",
    outlined: bool = False,
) -> None:
    """Write text on a picture, in place.

    Args:
        picture: Picture to write on.
        place: Position in pixels.
        text: Text to write.
        size_px: Size of the typeface.
        colour: Colour of the text.
        anchor: Anchor as Pillow defines it.
        outlined: Add an outline, which keeps the text readable on an image.
    """
    stroke = 2 if outlined else 0
    ImageDraw.Draw(picture).text(
        place,
        clean_value(text),
        font=font(size_px),
        fill=colour,
        anchor=anchor,
        stroke_width=stroke,
        stroke_fill=(0, 0, 0),
    )


def annotate(
    picture: Image.Image,
    plane: Plane,
    pixels_per_mm: float,
    *,
    centre: tuple[float, float] | None = None,
    title: str = "",
) -> None:
    """Add side letters, the plane's name, a scale bar and ticks that point at a position to a picture, in place.

    Args:
        picture: Picture of a slice.
        plane: Which slice it is.
        pixels_per_mm: Scale of the picture.
        centre: Point that the ticks mark, as fractions of width and height; None for no ticks.
        title: Words in the corner instead of the plane's name.
    """
    width, height = picture.size
    left, right = plane.side_marks
    write_text(picture, (6, height / 2), left, size_px=13, anchor="lm", outlined=True)
    write_text(picture, (width - 6, height / 2), right, size_px=13, anchor="rm", outlined=True)
    write_text(picture, (7, 6), title or plane.name, size_px=12, colour=DIM_TEXT, outlined=True)
    draw = ImageDraw.Draw(picture)
    bar_mm = max((step for step in (5, 10, 20, 50, 100) if step * pixels_per_mm <= max(width, height) / 4), default=5)
    bar_px = round(bar_mm * pixels_per_mm)
    draw.rectangle((7, height - 11, 8 + bar_px, height - 7), fill=(0, 0, 0))
    draw.rectangle((8, height - 10, 7 + bar_px, height - 8), fill=TEXT)
    write_text(picture, (14 + bar_px, height - 9), f"{bar_mm} mm", size_px=11, anchor="lm", outlined=True)
    if centre is not None:
        x, y = centre[0] * width, centre[1] * height
        draw.polygon([(x - 5, 0), (x + 5, 0), (x, 8)], fill=MARK)
        draw.polygon([(width, y - 5), (width, y + 5), (width - 8, y)], fill=MARK)
