"""The picture of a case, plain and with outlines, and the contact sheet of a cohort, put together from such pictures.

That of a case has three planes through its largest lesion and an enlargement.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, PngImagePlugin
from scipy import ndimage

from maisi_aug.pictures.slices import (
    BACKGROUND,
    BONE,
    DIM_TEXT,
    LUNG,
    SOFT_TISSUE,
    Plane,
    Rgb,
    Window,
    annotate,
    draw_contours,
    draw_slice,
    font,
    label_colours,
    write_text,
)
from maisi_aug.system.content import ContentError, content_errors, parse_json
from maisi_aug.system.whole_files import write_whole
from maisi_aug.vocabulary.labels import LUNG_LOBE_IDS
from maisi_aug.volumes.components import label_parts
from maisi_aug.volumes.grid import Grid

PANEL_PX = 440
MARGIN_PX = 14
LINE_PX = 20
MIN_ZOOM_MM = 70.0
MAX_LEGEND_LABELS = 24
TEXT_KEY = "maisi-aug"

BONE_IDS = frozenset({*range(33, 57), *range(63, 98), 120, 122, 127})
MAX_CASES = 48
THUMB_PX = 200
CAPTION_PX = 42
HEADER_PX = 48
TITLE_LINE_PX = 24
MAX_TITLE_LINES = 3


@dataclass(frozen=True, slots=True)
class Caption:
    """Text on a preview.

    Attributes:
        title: Case id.
        lines: Description of the case; the first line is also shown on the contact sheet.
    """

    title: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Panel:
    """One column: a slice of an array at a scale."""

    image_hu: NDArray[Any]
    label_map: NDArray[np.uint8]
    grid: Grid
    plane: Plane
    pixels_per_mm: float
    centre: tuple[float, float] | None = None
    title: str = ""

    @property
    def size_px(self) -> tuple[int, int]:
        return self.plane.size_px(self.grid, self.pixels_per_mm)


def build_preview(
    image_hu: NDArray[Any],
    label_map: NDArray[np.uint8],
    grid: Grid,
    caption: Caption,
    *,
    lesion_ids: Sequence[int],
    organ_ids: Sequence[int] = (),
    outlined_ids: Sequence[int] | None = None,
    names: Mapping[int, str],
    window: Window | None = None,
) -> Image.Image:
    """Draw the preview of a case: three planes through its largest lesion, plain and with outlined labels.

    Args:
        image_hu: ``(I, J, K)`` image in HU.
        label_map: ``(I, J, K)`` vocabulary ids of the full label map.
        grid: Shape and affine of image and label map.
        caption: Words to put on top.
        lesion_ids: Labels drawn as lesions; the planes go through the largest of them.
        organ_ids: Labels that the planes go through if there is no lesion.
        outlined_ids: Labels to outline besides the lesions; None for all.
        names: Names for the legend; ids without one are left out of it.
        window: HU range shown from black to white; None for the window of the tissue around the lesion.

    Returns:
        An RGB picture whose ``info`` has the positions of the axial panels, for the contact sheet.
    """
    focus = find_focus(label_map, lesion_ids, organ_ids)
    lesion_voxel = _widest_voxel(focus)
    window = window or choose_window(label_map, focus)
    present_ids = np.unique(label_map)
    shown_ids = tuple(label_id for label_id in lesion_ids if label_id in present_ids)
    has_lesion = bool(np.isin(label_map[lesion_voxel], lesion_ids))
    panels = _plan_panels(image_hu, label_map, grid, focus, lesion_voxel, has_lesion)
    if outlined_ids is not None:
        present_ids = present_ids[np.isin(present_ids, outlined_ids)]
    colours = label_colours(present_ids, shown_ids)
    plain = [draw_slice(panel.image_hu, panel.plane, panel.size_px, window) for panel in panels]
    bold = frozenset(shown_ids)
    outlined = [
        draw_contours(picture, panel.label_map, panel.plane, colours, bold)
        for picture, panel in zip(plain, panels, strict=True)
    ]
    for panel, *pictures in zip(panels, plain, outlined, strict=True):
        for picture in pictures:
            annotate(picture, panel.plane, panel.pixels_per_mm, centre=panel.centre, title=panel.title)
    legend = _legend_entries(panels, colours, names, shown_ids)
    return _compose([plain, outlined], caption, window, legend)


def build_plain_preview(
    image_hu: NDArray[Any], grid: Grid, caption: Caption, window: Window = SOFT_TISSUE
) -> Image.Image:
    """Draw the preview of an image that has no label map: three planes through its middle.

    Args:
        image_hu: ``(I, J, K)`` image in HU, or in the unit of the window.
        grid: Shape and affine of the image.
        caption: Words to put on top.
        window: HU range shown from black to white.
    """
    scale = PANEL_PX / max(grid.extent_mm)
    i, j, k = (side // 2 for side in grid.shape)
    pictures = []
    for plane in (Plane("axial", k), Plane("coronal", j), Plane("sagittal", i)):
        picture = draw_slice(image_hu, plane, plane.size_px(grid, scale), window)
        annotate(picture, plane, scale)
        pictures.append(picture)
    return _compose([pictures], caption, window, [])


def find_focus(label_map: NDArray[np.uint8], lesion_ids: Sequence[int], organ_ids: Sequence[int]) -> NDArray[np.bool_]:
    """Return the mask that the planes of a preview go through: largest lesion, else named organs, else the body.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids.
        lesion_ids: Ids that count as lesions.
        organ_ids: Ids of the organs to show if there is no lesion.

    Returns:
        ``(I, J, K)`` mask of one connected lesion, or of all voxels of the organs or the body.
    """
    lesions = np.isin(label_map, list(lesion_ids))
    if lesions.any():
        parts, num_parts = label_parts(lesions)
        largest = 1 + int(np.argmax(np.bincount(parts.ravel(), minlength=num_parts + 1)[1:]))
        found: NDArray[np.bool_] = parts == largest
        return found
    organs = np.isin(label_map, list(organ_ids))
    if organs.any():
        return organs
    body: NDArray[np.bool_] = label_map > 0
    return body if body.any() else np.ones_like(body)


def choose_window(label_map: NDArray[np.uint8], focus: NDArray[np.bool_]) -> Window:
    """Return the window for the tissue around the focus: lung, bone or soft tissue.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids.
        focus: ``(I, J, K)`` mask of what is shown, such as a lesion.
    """
    shell = ndimage.binary_dilation(focus, iterations=2) & ~focus
    around = np.bincount(label_map[shell], minlength=256)
    around[0] = 0
    most = int(np.argmax(around))
    if most in LUNG_LOBE_IDS and around[most]:
        return LUNG
    return BONE if most in BONE_IDS and around[most] else SOFT_TISSUE


def _widest_voxel(focus: NDArray[np.bool_]) -> tuple[int, int, int]:
    """A voxel of the focus in the slices where it is widest, as far as one voxel can be in all three."""
    areas = [focus.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    inside = np.argwhere(focus)
    score = sum(areas[axis][inside[:, axis]] / areas[axis].max() for axis in range(3))
    middle = inside.mean(axis=0)
    closest = np.lexsort((((inside - middle) ** 2).sum(axis=1), -np.round(score, 6)))
    i, j, k = inside[int(closest[0])]
    return int(i), int(j), int(k)


def _plan_panels(
    image_hu: NDArray[Any],
    label_map: NDArray[np.uint8],
    grid: Grid,
    focus: NDArray[np.bool_],
    voxel: tuple[int, int, int],
    has_lesion: bool,
) -> list[_Panel]:
    """Axial, coronal and sagittal panels through a voxel, and the axial plane enlarged around a lesion."""
    scale = PANEL_PX / max(grid.extent_mm)
    planes = (Plane("axial", voxel[2]), Plane("coronal", voxel[1]), Plane("sagittal", voxel[0]))
    panels = [
        _Panel(image_hu, label_map, grid, plane, scale, plane.locate(voxel, grid) if has_lesion else None)
        for plane in planes
    ]
    if not has_lesion:
        return panels
    box = _zoom_box(focus, grid)
    cropped = label_map[box]
    i, j, k = cropped.shape
    zoom_grid = Grid.from_spacing((i, j, k), grid.spacing_mm)
    height = panels[0].size_px[1]
    zoom_scale = min(height / zoom_grid.extent_mm[1], PANEL_PX / zoom_grid.extent_mm[0])
    return [*panels, _Panel(image_hu[box], cropped, zoom_grid, planes[0], zoom_scale, title="axial, enlarged")]


def _zoom_box(focus: NDArray[np.bool_], grid: Grid) -> tuple[slice, slice, slice]:
    """A square box in the axial plane around a lesion, inside the volume."""
    inside = np.argwhere(focus)[:, :2]
    reach_mm = (np.ptp(inside, axis=0) + 1) * np.asarray(grid.spacing_mm[:2])
    side_mm = max(MIN_ZOOM_MM, 2.0 * float(reach_mm.max()))
    parts = []
    for axis in range(2):
        length = min(grid.shape[axis], max(1, round(side_mm / grid.spacing_mm[axis])))
        middle = round(float(inside[:, axis].mean()))
        start = min(max(0, middle - length // 2), grid.shape[axis] - length)
        parts.append(slice(start, start + length))
    return parts[0], parts[1], slice(0, grid.shape[2])


def _legend_entries(
    panels: Sequence[_Panel], colours: Mapping[int, Rgb], names: Mapping[int, str], lesion_ids: Sequence[int]
) -> list[tuple[Rgb, str]]:
    """Lesions first, then the labels that cover most of the pictures."""
    counts = sum(np.bincount(panel.plane.cut(panel.label_map).ravel(), minlength=256) for panel in panels[:3])
    largest = sorted((label_id for label_id in colours if np.take(counts, label_id)), key=lambda i: -np.take(counts, i))
    order = [*sorted(lesion_ids), *(label_id for label_id in largest if label_id not in lesion_ids)]
    return [(colours[i], names[i]) for i in order if i in names][:MAX_LEGEND_LABELS]


def _compose(
    panels: Sequence[Sequence[Image.Image]],
    caption: Caption,
    window: Window,
    legend: Sequence[tuple[Rgb, str]],
) -> Image.Image:
    """Put rows of panels, caption and legend on one canvas."""
    row_px = max(picture.height for picture in panels[0])
    width = MARGIN_PX + sum(picture.width + MARGIN_PX for picture in panels[0])
    below = len(panels) * (row_px + MARGIN_PX)
    top = MARGIN_PX + 30 + LINE_PX * len(caption.lines)
    rows = _wrap_legend(legend, width - 2 * MARGIN_PX)
    height = top + below + LINE_PX * len(rows) + MARGIN_PX // 2
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    write_text(canvas, (MARGIN_PX, MARGIN_PX), caption.title, size_px=20)
    write_text(canvas, (width - MARGIN_PX, MARGIN_PX + 4), str(window), size_px=13, colour=DIM_TEXT, anchor="ra")
    for number, line in enumerate(caption.lines):
        write_text(canvas, (MARGIN_PX, MARGIN_PX + 30 + LINE_PX * number), line, size_px=14, colour=DIM_TEXT)
    boxes = []
    for row, pictures in enumerate(panels):
        x = MARGIN_PX
        for picture in pictures:
            y = top + row * (row_px + MARGIN_PX) + (row_px - picture.height) // 2
            canvas.paste(picture, (x, y))
            if picture is pictures[0]:
                boxes.append((x, y, x + picture.width, y + picture.height))
            x += picture.width + MARGIN_PX
    _draw_legend(canvas, rows, top + below)
    canvas.info[TEXT_KEY] = json.dumps({"title": caption.title, "line": next(iter(caption.lines), ""), "boxes": boxes})
    return canvas


def _wrap_legend(legend: Sequence[tuple[Rgb, str]], width: int) -> list[list[tuple[int, Rgb, str]]]:
    """Entries with their horizontal places, in as many rows as they need."""
    rows: list[list[tuple[int, Rgb, str]]] = []
    x = width
    for colour, name in legend:
        needed = 16 + round(font(12).getlength(name)) + 18
        if x + needed > width:
            rows.append([])
            x = 0
        rows[-1].append((x, colour, name))
        x += needed
    return rows


def _draw_legend(canvas: Image.Image, rows: Sequence[Sequence[tuple[int, Rgb, str]]], top: int) -> None:
    draw = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        y = top + number * LINE_PX + LINE_PX // 2
        for x, colour, name in row:
            draw.rectangle((MARGIN_PX + x, y - 5, MARGIN_PX + x + 10, y + 5), fill=colour)
            write_text(canvas, (MARGIN_PX + x + 16, y), name, size_px=12, colour=DIM_TEXT, anchor="lm")


def save_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG, whole or not at all; the same picture gives the same bytes.

    Args:
        path: PNG file to write; an existing one is replaced.
        picture: Picture; the positions in its ``info`` are kept in the file.

    Raises:
        VolumeError: The file cannot be written.
    """
    text = PngImagePlugin.PngInfo()
    if TEXT_KEY in picture.info:
        text.add_text(TEXT_KEY, picture.info[TEXT_KEY])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=text, compress_level=6)
    write_whole(path, buffer.getvalue())


def choose_evenly(count: int, limit: int) -> list[int]:
    """Return at most ``limit`` of ``count`` positions, evenly spread and including the first and the last.

    Args:
        count: Number of positions.
        limit: Largest number to choose, 2 or more if there are more positions.

    Returns:
        Ascending positions, from 0 to ``count - 1``.
    """
    if count <= limit:
        return list(range(count))
    return [round(step * (count - 1) / (limit - 1)) for step in range(limit)]


def build_contact_sheet(previews: Sequence[Path], title: str) -> Image.Image:
    """Draw a contact sheet: the axial panels of many previews, plain and outlined, in a grid.

    Args:
        previews: Files that :func:`save_picture` wrote; of more than 48, evenly spread ones are shown. Missing or
            damaged ones are left out.
        title: Title of the sheet.
    """
    chosen = choose_evenly(len(previews), MAX_CASES)
    tiles = [tile for index in chosen if (tile := _build_tile(previews[index])) is not None]
    num_columns = min(4, max(1, len(tiles)))
    num_rows = -(-len(tiles) // num_columns)
    tile_width = max((tile.width for tile in tiles), default=400)
    tile_height = max((tile.height for tile in tiles), default=0)
    width = MARGIN_PX + num_columns * (tile_width + MARGIN_PX)
    lines = _wrap(title, width - 2 * MARGIN_PX, 18)
    header_px = HEADER_PX + TITLE_LINE_PX * (len(lines) - 1)
    sheet = Image.new("RGB", (width, header_px + num_rows * (tile_height + MARGIN_PX)), BACKGROUND)
    for number, line in enumerate(lines):
        write_text(sheet, (MARGIN_PX, MARGIN_PX + TITLE_LINE_PX * number), line, size_px=18)
    for position, tile in enumerate(tiles):
        row, column = divmod(position, num_columns)
        place = (MARGIN_PX + column * (tile_width + MARGIN_PX), header_px + row * (tile_height + MARGIN_PX))
        sheet.paste(tile, place)
    return sheet


def load_axial_panels(path: Path) -> tuple[list[Image.Image], str, str] | None:
    """Load the axial panels of a preview (plain, and outlined if there is a label map), its title and first line.

    Returns:
        None if the picture cannot be read or was written by another program.
    """
    try:
        with content_errors(path), Image.open(path) as preview:
            words = parse_json(preview.info[TEXT_KEY].encode())
            picture = preview.convert("RGB")
        boxes = [_inside(box, picture) for box in words["boxes"]]
        return [picture.crop(box) for box in boxes], str(words["title"]), str(words["line"])
    except (OSError, ContentError, KeyError, TypeError, ValueError):
        return None


def _build_tile(path: Path) -> Image.Image | None:
    """The tile of a case; None if the picture cannot be read or was written by another program."""
    found = load_axial_panels(path)
    if found is None:
        return None
    panels, title, line = found
    for panel in panels:
        panel.thumbnail((THUMB_PX, 2 * THUMB_PX), Image.Resampling.LANCZOS)
    width = sum(panel.width for panel in panels) + 2
    tile = Image.new("RGB", (width, max(panel.height for panel in panels) + CAPTION_PX), BACKGROUND)
    x = 0
    for panel in panels:
        tile.paste(panel, (x, 0))
        x += panel.width + 2
    y = tile.height - CAPTION_PX + 5
    write_text(tile, (0, y), _fit(title, width, 13), size_px=13)
    write_text(tile, (0, y + 17), _fit(line, width, 12), size_px=12, colour=DIM_TEXT)
    return tile


def _inside(box: Sequence[int], picture: Image.Image) -> tuple[int, int, int, int]:
    """A panel's left, upper, right and lower edge, checked: cropping beyond a picture makes a larger one.

    Raises:
        ValueError: The box is empty or extends beyond the picture.
    """
    left, upper, right, lower = map(int, box)
    if not (0 <= left < right <= picture.width and 0 <= upper < lower <= picture.height):
        raise ValueError(f"box {box} extends beyond the picture")
    return left, upper, right, lower


def _wrap(text: str, width_px: int, size_px: int) -> list[str]:
    """The text in lines that fit, of which the last is shortened if there are too many."""
    face = font(size_px)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or face.getlength(longer) <= width_px or len(lines) == MAX_TITLE_LINES:
            lines[-1] = longer
        else:
            lines.append(word)
    return [_fit(line, width_px, size_px) for line in lines]


def _fit(text: str, width_px: int, size_px: int) -> str:
    """The text, shortened until it fits."""
    face = font(size_px)
    if face.getlength(text) <= width_px:
        return text
    while text and face.getlength(text + "...") > width_px:
        text = text[:-1]
    return text + "..."


def save_contact_sheet(path: Path, previews: Sequence[Path], title: str) -> None:
    """Draw the contact sheet of a cohort and write it as PNG.

    Args:
        path: File to write.
        previews: Previews of the cases.
        title: Title of the sheet.

    Raises:
        VolumeError: The file cannot be written.
    """
    save_picture(path, build_contact_sheet(previews, title))
