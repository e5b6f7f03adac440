"""One picture of a whole cohort, put together from the previews of its cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from maisi_aug.pictures.preview import TEXT_KEY, save_picture
from maisi_aug.pictures.slices import BACKGROUND, DIM_TEXT, font, write_text
from maisi_aug.system.content import ContentError, content_errors, parse_json

MAX_CASES = 48
THUMB_PX = 200
MARGIN_PX = 14
CAPTION_PX = 42
HEADER_PX = 48


def choose_evenly(count: int, limit: int) -> list[int]:
    """At most ``limit`` of ``count`` positions, spread evenly, the first and the last among them."""
    if count <= limit:
        return list(range(count))
    return [round(step * (count - 1) / (limit - 1)) for step in range(limit)]


def build_contact_sheet(previews: Sequence[Path], title: str) -> Image.Image:
    """The axial panels of the previews, plain and outlined side by side, in a grid.

    Args:
        previews: Pictures that ``preview.save_picture`` wrote; of more than 48, evenly chosen ones are shown, and one
            that is gone or damaged is left out.
        title: Words on top.
    """
    chosen = choose_evenly(len(previews), MAX_CASES)
    tiles = [tile for index in chosen if (tile := _build_tile(previews[index])) is not None]
    num_columns = min(4, max(1, len(tiles)))
    num_rows = -(-len(tiles) // num_columns)
    tile_width = max((tile.width for tile in tiles), default=400)
    tile_height = max((tile.height for tile in tiles), default=0)
    width = MARGIN_PX + num_columns * (tile_width + MARGIN_PX)
    sheet = Image.new("RGB", (width, HEADER_PX + num_rows * (tile_height + MARGIN_PX)), BACKGROUND)
    write_text(sheet, (MARGIN_PX, MARGIN_PX), _fit(title, width - 2 * MARGIN_PX, 18), size_px=18)
    for position, tile in enumerate(tiles):
        row, column = divmod(position, num_columns)
        place = (MARGIN_PX + column * (tile_width + MARGIN_PX), HEADER_PX + row * (tile_height + MARGIN_PX))
        sheet.paste(tile, place)
    return sheet


def load_axial_panels(path: Path) -> tuple[list[Image.Image], str, str] | None:
    """The axial panels of a preview, plain and, where there is a label map, outlined; its title and its first line.

    Returns:
        None where the picture cannot be read or is another program's.
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
    """The tile of a case; None where the picture cannot be read or is another program's."""
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
        ValueError: It is empty or leaves the picture.
    """
    left, upper, right, lower = map(int, box)
    if not (0 <= left < right <= picture.width and 0 <= upper < lower <= picture.height):
        raise ValueError(f"box {box} leaves the picture")
    return left, upper, right, lower


def _fit(text: str, width_px: int, size_px: int) -> str:
    """The text, shortened until it fits."""
    face = font(size_px)
    if face.getlength(text) <= width_px:
        return text
    while text and face.getlength(text + "...") > width_px:
        text = text[:-1]
    return text + "..."


def save_contact_sheet(path: Path, previews: Sequence[Path], title: str) -> None:
    """Build and write the contact sheet of a cohort.

    Raises:
        VolumeError: When the file cannot be written.
    """
    save_picture(path, build_contact_sheet(previews, title))
