"""The figures of an obedience measurement, what follows from them, and their report in words and pictures.

A picture shows the phantom, the synthetic image, and what the map and the segmenter say of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maisi_aug.evaluation.output.files import percent, share_of, to_markdown
from maisi_aug.evaluation.studies.tissues import LESION, mean_dice
from maisi_aug.gates.checks import SMALL_LESION_MM
from maisi_aug.phantom import Phantom
from maisi_aug.phantom.ids import TUMORS
from maisi_aug.pictures.preview import choose_evenly, choose_window, find_focus
from maisi_aug.pictures.slices import BACKGROUND, DIM_TEXT, Plane, draw_contours, draw_slice, label_colours, write_text
from maisi_aug.system.printed_text import from_clean_document
from maisi_aug.vocabulary.hu import reference_hu_ranges

if TYPE_CHECKING:
    from maisi_aug.bundle_spec.bundle import Bundle
    from maisi_aug.evaluation.studies.segmenter import Segmenter

REQUIRED_ORGANS: Final = 0.95
REQUIRED_LESIONS: Final = 0.90
REQUIRED_ORGAN_DICE: Final = 0.90
REQUIRED_LESION_DICE: Final = 0.80
# A tissue that the segmenter misses on phantoms tells nothing about a bundle.
MIN_PHANTOM_DICE: Final = 0.3
PIXELS_PER_MM: Final = 0.6
MARGIN_PX: Final = 10
LINE_PX: Final = 18
MAX_TILES: Final = 12
NUM_COLUMNS: Final = 2
NUM_COLOURS: Final = 256
PANELS: Final = ("phantom", "synthetic", "its map", "segmenter")


@dataclass(frozen=True, slots=True)
class OrganFigures:
    """Median HU of an organ in a phantom and in the synthetic image of its label map.

    Attributes:
        organ: Name of the organ.
        group: Name of the reference range.
        num_voxels: Number of its voxels in the field of view.
        is_judged: Whether there are enough voxels to count.
        phantom_hu: Median HU in the phantom's image.
        synthetic_hu: Median HU in the bundle's image.
        is_phantom_inside: Whether the phantom's median lies inside the range.
        is_synthetic_inside: Whether the bundle's median lies inside the range.
    """

    organ: str
    group: str
    num_voxels: int
    is_judged: bool
    phantom_hu: float
    synthetic_hu: float
    is_phantom_inside: bool
    is_synthetic_inside: bool


@dataclass(frozen=True, slots=True)
class Contrast:
    """Contrast of a lesion to its host organ, measured by ``gates.visibility.check_lesion_visibility``."""

    contrast_hu: float
    noise_hu: float
    has_right_sign: bool
    exceeds_noise: bool

    @property
    def is_visible(self) -> bool:
        """Whether the contrast has the right sign and exceeds the noise."""
        return self.has_right_sign and self.exceeds_noise


@dataclass(frozen=True, slots=True)
class LesionFigures:
    """Contrast of a lesion in a phantom and in the synthetic image of its label map."""

    label: str
    diameter_mm: float
    phantom: Contrast
    synthetic: Contrast


@dataclass(frozen=True, slots=True)
class CaseFigures:
    """All measurements on one held-out label map.

    Attributes:
        case_id: Name of the case.
        key: Identifies the bundle, segmenter and settings of the measurement.
        phantom_seed: Seed of the held-out phantom.
        region: Region of the trunk.
        phase: Contrast phase.
        organs: Organs with a reference range that are in view.
        lesions: All lesions.
        dice_phantom: Tissue -> Dice of the segmenter on the phantom's image; None for tissues out of view.
        dice_synthetic: Tissue -> Dice of the segmenter on the bundle's image.
        error_hu: Tissue -> mean absolute difference in HU of the two images.
        seconds: Stage -> wall-clock seconds.
    """

    case_id: str
    key: str
    phantom_seed: int
    region: str
    phase: str
    organs: tuple[OrganFigures, ...]
    lesions: tuple[LesionFigures, ...]
    dice_phantom: dict[str, float | None]
    dice_synthetic: dict[str, float | None]
    error_hu: dict[str, float]
    seconds: dict[str, float]


def to_document(
    cases: Sequence[CaseFigures], *, bundle: Bundle, segmenter: Segmenter, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Collect the measurements, criteria and tables of the study as a JSON-able dict."""
    organs = [organ for case in cases for organ in case.organs if organ.is_judged]
    lesions = [lesion for case in cases for lesion in case.lesions if lesion.diameter_mm >= SMALL_LESION_MM]
    dice = _dice_rows(cases, [tissue.name for tissue in segmenter.tissues])
    return {
        "bundle": bundle.name,
        "bundle_fingerprint": bundle.fingerprint,
        "segmenter": {
            "fingerprint": segmenter.fingerprint,
            "num_steps": segmenter.num_steps,
            "num_phantoms": segmenter.config.num_phantoms,
        },
        "settings": dict(settings),
        "criteria": _criteria(organs, lesions, dice),
        "organs": [_organ_row(name, [o for o in organs if o.group == name]) for name in _names_of_groups(organs)],
        "lesions": [
            _lesion_row(label, [lesion for lesion in lesions if lesion.label == label])
            for label in sorted({lesion.label for lesion in lesions})
        ],
        "dice": dice,
        "error_hu": _error_rows(cases, [tissue.name for tissue in segmenter.tissues]),
        "seconds_per_image": float(np.median([case.seconds["image"] for case in cases])),
    }


def _criteria(
    organs: Sequence[OrganFigures], lesions: Sequence[LesionFigures], dice: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    judged = [row for row in dice if row["phantom"] is not None and row["phantom"] >= MIN_PHANTOM_DICE]
    of_organs = [row for row in judged if row["tissue"] != LESION]
    of_lesions = [row for row in judged if row["tissue"] == LESION]
    found = (
        (
            "organ medians inside the reference range",
            REQUIRED_ORGANS,
            share_of(o.is_synthetic_inside for o in organs),
            len(organs),
        ),
        (
            f"lesions of {SMALL_LESION_MM:.0f} mm and more with the right sign and above the noise",
            REQUIRED_LESIONS,
            share_of(lesion.synthetic.is_visible for lesion in lesions),
            len(lesions),
        ),
        ("organ Dice of the segmenter, synthetic / phantom", REQUIRED_ORGAN_DICE, _ratio(of_organs), len(of_organs)),
        (
            "lesion Dice of the segmenter, synthetic / phantom",
            REQUIRED_LESION_DICE,
            _ratio(of_lesions),
            len(of_lesions),
        ),
    )
    return [
        {
            "name": name,
            "required": required,
            "found": value,
            "num": num,
            "is_met": value is not None and value >= required,
        }
        for name, required, value, num in found
    ]


def _ratio(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean over tissues on synthetic images, divided by that on phantoms."""
    on_phantoms = sum(row["phantom"] for row in rows)
    return float(sum(row["synthetic"] for row in rows) / on_phantoms) if on_phantoms > 0 else None


def _dice_rows(cases: Sequence[CaseFigures], names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "tissue": name,
            "num_cases": sum(case.dice_phantom[name] is not None for case in cases),
            "phantom": mean_dice([case.dice_phantom for case in cases], name),
            "synthetic": mean_dice([case.dice_synthetic for case in cases], name),
        }
        for name in names
    ]


def _names_of_groups(organs: Sequence[OrganFigures]) -> list[str]:
    present = {organ.group for organ in organs}
    return [bounds.name for bounds in reference_hu_ranges() if bounds.name in present]


def _organ_row(name: str, organs: Sequence[OrganFigures]) -> dict[str, Any]:
    bounds = next(bounds for bounds in reference_hu_ranges() if bounds.name == name)
    return {
        "organ": name,
        "low_hu": bounds.low_hu,
        "high_hu": bounds.high_hu,
        "num": len(organs),
        "phantom_hu": float(np.median([organ.phantom_hu for organ in organs])),
        "synthetic_hu": float(np.median([organ.synthetic_hu for organ in organs])),
        "mean_difference_hu": float(np.mean([abs(organ.synthetic_hu - organ.phantom_hu) for organ in organs])),
        "phantom_inside": share_of(organ.is_phantom_inside for organ in organs),
        "synthetic_inside": share_of(organ.is_synthetic_inside for organ in organs),
    }


def _lesion_row(label: str, lesions: Sequence[LesionFigures]) -> dict[str, Any]:
    return {
        "label": label,
        "num": len(lesions),
        "phantom_contrast_hu": float(np.median([lesion.phantom.contrast_hu for lesion in lesions])),
        "synthetic_contrast_hu": float(np.median([lesion.synthetic.contrast_hu for lesion in lesions])),
        "phantom_noise_hu": float(np.median([lesion.phantom.noise_hu for lesion in lesions])),
        "synthetic_noise_hu": float(np.median([lesion.synthetic.noise_hu for lesion in lesions])),
        "synthetic_right_sign": share_of(lesion.synthetic.has_right_sign for lesion in lesions),
        "phantom_visible": share_of(lesion.phantom.is_visible for lesion in lesions),
        "synthetic_visible": share_of(lesion.synthetic.is_visible for lesion in lesions),
    }


def _error_rows(cases: Sequence[CaseFigures], names: Sequence[str]) -> list[dict[str, Any]]:
    found = dict.fromkeys(name for case in cases for name in case.error_hu)
    rows = []
    for name in [*(name for name in names if name in found), *(name for name in found if name not in names)]:
        errors = [case.error_hu[name] for case in cases if name in case.error_hu]
        rows.append({"tissue": name, "num_cases": len(errors), "mean_absolute_hu": float(np.mean(errors))})
    return rows


@from_clean_document
def to_report(document: Mapping[str, Any]) -> str:
    """Format the figures of the study obedience report as Markdown."""
    settings, judge = document["settings"], document["segmenter"]
    parts = [
        f"# Does the image obey its map? Bundle {document['bundle']}, {settings['num_cases']} held-out maps\n",
        f"Segmenter: {judge['num_steps']} steps on {judge['num_phantoms']} phantoms. Image: median "
        f"{document['seconds_per_image']:.1f} s. Bundle {document['bundle_fingerprint'][:12]}, segmenter "
        f"{judge['fingerprint'][:12]}, seed {settings['seed']}.\n",
        _criteria_table(document["criteria"]),
        "## Organs, medians in HU\n",
        _organ_table(document["organs"]),
        f"## Lesions of {SMALL_LESION_MM:.0f} mm and more, medians in HU\n",
        _lesion_table(document["lesions"]),
        "## Dice of the segmenter\n",
        _dice_table(document["dice"]),
        "## Mean absolute difference from the phantom's image, HU\n",
        _error_table(document["error_hu"]),
    ]
    return "\n".join(parts)


def _criteria_table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [[row["name"], percent(row["required"]), percent(row["found"]), row["num"], row["is_met"]] for row in rows]
    return to_markdown(["criterion", "required", "found", "of", "met"], cells)


def _organ_table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = ("organ", "real, from", "to", "number", "phantom", "synthetic", "difference")
    keys = ("organ", "low_hu", "high_hu", "num", "phantom_hu", "synthetic_hu", "mean_difference_hu")
    shares = ("phantom_inside", "synthetic_inside")
    cells = [[*(row[key] for key in keys), *(percent(row[key]) for key in shares)] for row in rows]
    return to_markdown([*names, "phantom inside", "synthetic inside"], cells, num_digits=0)


def _lesion_table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = ("lesion", "number", "phantom contrast", "noise", "synthetic contrast", "noise")
    keys = ("phantom_contrast_hu", "phantom_noise_hu", "synthetic_contrast_hu", "synthetic_noise_hu")
    shares = ("synthetic_right_sign", "phantom_visible", "synthetic_visible")
    cells = [
        [row["label"], row["num"], *(row[key] for key in keys), *(percent(row[key]) for key in shares)] for row in rows
    ]
    return to_markdown([*names, "right sign", "phantom visible", "synthetic visible"], cells, num_digits=0)


def _dice_table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        [
            row["tissue"],
            row["num_cases"],
            row["phantom"],
            row["synthetic"],
            percent(_ratio([row]) if row["phantom"] else None),
        ]
        for row in rows
    ]
    return to_markdown(["tissue", "cases", "phantom", "synthetic", "ratio"], cells)


def _error_table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [[row["tissue"], row["num_cases"], row["mean_absolute_hu"]] for row in rows]
    return to_markdown(["tissue", "cases", "difference"], cells, num_digits=0)


def draw_comparison(
    phantom: Phantom,
    synthetic_hu: NDArray[np.int16],
    expected: NDArray[np.uint8],
    found: NDArray[np.uint8],
    figures: CaseFigures,
) -> Image.Image:
    """Draw one axial slice through the largest lesion four times: phantom, synthetic image, and both segmented.

    Args:
        phantom: Held-out phantom.
        synthetic_hu: ``(I, J, K)`` HU of the bundle's image of its label map.
        expected: ``(I, J, K)`` classes of the label map.
        found: ``(I, J, K)`` classes that the segmenter found in the synthetic image; the last class is lesions.
        figures: Measured figures, for the caption.
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
    """Draw at most 12 evenly chosen comparisons on one sheet with 256 colours.

    Args:
        tiles: Pictures that :func:`draw_comparison` drew.
        title: Title of the sheet.
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
