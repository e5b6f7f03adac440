"""Pictures of an obedience measurement: phantom, synthetic image, and what the map and the segmenter say of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maisi_aug.evaluation.studies.obedience_report import CaseFigures
from maisi_aug.phantom import Phantom
from maisi_aug.phantom.ids import TUMORS
from maisi_aug.pictures.preview import choose_evenly, choose_window, find_focus
from maisi_aug.pictures.slices import BACKGROUND, DIM_TEXT, Plane, draw_contours, draw_slice, label_colours, write_text

PIXELS_PER_MM: Final = 0.6
MARGIN_PX: Final = 10
LINE_PX: Final = 18
MAX_TILES: Final = 12
NUM_COLUMNS: Final = 2
NUM_COLOURS: Final = 256
PANELS: Final = ("phantom", "synthetic", "its map", "segmenter")


def draw_comparison(
    phantom: Phantom,
    synthetic_hu: NDArray[np.int16],
    expected: NDArray[np.uint8],
    found: NDArray[np.uint8],
    figures: CaseFigures,
) -> Image.Image:
    """One axial slice through the largest lesion, four times.

    Args:
        phantom: The case.
        synthetic_hu: ``(I, J, K)`` the bundle's image of its map.
        expected: ``(I, J, K)`` classes of the map.
        found: ``(I, J, K)`` classes that the segmenter found in the synthetic image; the last class is lesions.
        figures: What was measured, for the caption.
    """
    focus = find_focus(phantom.label_map, TUMORS, ())
    plane = Plane("axial", int(np.argmax(focus.sum(axis=(0, 1)))))
    window = choose_window(phantom.label_map, focus)
    size_px = plane.size_px(phantom.grid, PIXELS_PER_MM)
    lesion_class = len(figures.dice_phantom)
    colours = label_colours(np.arange(lesion_class + 1), (lesion_class,))
    images = [draw_slice(image_hu, plane, size_px, window) for image_hu in (phantom.image_hu, synthetic_hu)]
    panels = [
        *images,
        *(
            draw_contours(images[1], classes, plane, colours, frozenset({lesion_class}))
            for classes in (expected, found)
        ),
    ]
    picture = Image.new("RGB", (len(panels) * (size_px[0] + 2) - 2, size_px[1] + LINE_PX), BACKGROUND)
    for number, (panel, name) in enumerate(zip(panels, PANELS, strict=True)):
        write_text(panel, (5, 4), name, size_px=12, outlined=True)
        picture.paste(panel, (number * (size_px[0] + 2), 0))
    caption = f"{figures.case_id}, {figures.region}, {figures.phase}, {window.name} window"
    write_text(picture, (0, size_px[1] + 2), caption, size_px=12, colour=DIM_TEXT)
    return picture


def draw_sheet(tiles: Sequence[Path], title: str) -> Image.Image:
    """At most 12 comparisons, evenly chosen, on one sheet of 256 colours.

    Args:
        tiles: Pictures that :func:`draw_comparison` drew.
        title: Words on top.
    """
    pictures = []
    for index in choose_evenly(len(tiles), MAX_TILES):
        with Image.open(tiles[index]) as stored:
            pictures.append(stored.convert("RGB"))
    width = max((picture.width for picture in pictures), default=400) + MARGIN_PX
    height = max((picture.height for picture in pictures), default=0) + MARGIN_PX
    num_columns = min(NUM_COLUMNS, max(1, len(pictures)))
    top = 2 * MARGIN_PX + LINE_PX
    sheet = Image.new(
        "RGB", (MARGIN_PX + num_columns * width, top + -(-len(pictures) // num_columns) * height), BACKGROUND
    )
    write_text(sheet, (MARGIN_PX, MARGIN_PX), title, size_px=16)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, num_columns)
        sheet.paste(picture, (MARGIN_PX + column * width, top + row * height))
    return sheet.quantize(NUM_COLOURS, dither=Image.Dither.NONE)
