"""Unlabelled pictures of real and synthetic cases for a reader test, and its answer key.

Nothing but the patient may tell the two apart: both are brought to the same isotropic voxels, cut to the body's box,
made air outside the body, clipped to -1000..1000 HU and saved under numbers in a drawn order. The key lies beside the
pack, so that the pack can be given to readers as it is.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from maisi_aug.errors import EvaluationError, MaisiAugError
from maisi_aug.evaluation.cohort.case_sets import CaseSet, EvaluatedCase, SkippedCase, describe_skipped
from maisi_aug.evaluation.output.files import to_markdown
from maisi_aug.evaluation.scores.reader_test import ANSWERS, score_answers
from maisi_aug.pictures.preview import save_picture
from maisi_aug.pictures.slices import BACKGROUND, BONE, LUNG, SOFT_TISSUE, Plane, draw_slice
from maisi_aug.system.content import read_json
from maisi_aug.system.printed_text import from_clean_document
from maisi_aug.system.progress import Report
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.system.whole_files import write_json_whole, write_text_whole
from maisi_aug.volumes.body import find_body
from maisi_aug.volumes.components import bounding_box
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import Volume, save_image
from maisi_aug.volumes.resampling import resample_image, resample_label_map

REPORT_NAME: Final = "reader-test"
KEY_FORMAT: Final = "maisi-aug blind pack 1"
ANSWERS_NAME: Final = "answers.csv"
READ_ME: Final = "README.txt"
AIR_HU: Final = -1000
MAX_HU: Final = 1000
GAP_PX: Final = 8
PIXELS_PER_MM: Final = 1.0
DEFAULT_SPACING_MM: Final = 2.0
INSTRUCTIONS: Final = (
    "Reader test\n\nEach item is a CT: axial, coronal and sagittal slices through the middle of the body, in a "
    'window for soft tissue, for\nthe lung and for bone. Some are of patients, some are synthetic. Write "real" or '
    '"synthetic" after each item in\nanswers.csv; items without an answer are ignored. Do not look anything up, '
    "and do not open the key.\n"
)


def name_key(pack: Path) -> Path:
    """Return the path of the answer key of a blinded pack, next to the pack."""
    return pack.with_name(f"{pack.name}_key.json")


def require_new_pack(pack: Path) -> None:
    """Raise if a blinded pack or its key would replace an existing file or folder.

    Raises:
        EvaluationError: The path of the pack or of the key exists.
    """
    is_empty = pack.is_dir() and not any(pack.iterdir())
    taken = [path for path in (pack, name_key(pack)) if path.exists() and not (path == pack and is_empty)]
    if taken:
        raise EvaluationError(f"{taken[0]}: already exists. Choose another --out.")


def write_blind_pack(
    real: CaseSet,
    synthetic: CaseSet,
    pack: Path,
    *,
    num_each: int,
    spacing_mm: float = DEFAULT_SPACING_MM,
    with_volumes: bool = False,
    seed: int = 0,
    notify: Report,
) -> list[dict[str, str]]:
    """Write a blinded pack of unlabelled pictures of real and synthetic cases, and its answer key.

    Args:
        real: Real cases.
        synthetic: Synthetic cases.
        pack: New or empty folder.
        num_each: Number of items of each kind.
        spacing_mm: Isotropic voxel side in mm to which all cases are resampled.
        with_volumes: Also write each item as NIfTI.
        seed: Seed of the choice and the order.
        notify: Progress callback, called with (items done, items in all).

    Returns:
        Cases that could not be read and were replaced by others.

    Raises:
        EvaluationError: There are too few cases of a kind, or a path is in use.
    """
    require_new_pack(pack)
    skipped: list[SkippedCase] = []
    chosen = []
    for kind, case_set in zip(ANSWERS, (real, synthetic), strict=True):
        if len(case_set.cases) < num_each:
            raise EvaluationError(
                f"{case_set.path}: needs at least {num_each} {kind} cases, found {len(case_set.cases)}. Add cases, "
                "or choose a smaller --number."
            )
        order = numpy_generator(seed, f"blind pack, {kind}").permutation(len(case_set.cases))
        chosen.append((kind, [case_set.cases[int(index)] for index in order]))
    places = numpy_generator(seed, "blind pack, order").permutation(2 * num_each) + 1
    items: dict[str, dict[str, str]] = {}
    for kind, cases in chosen:
        left = iter(cases)
        for _ in range(num_each):
            name = f"item-{places[len(items)]:03d}"
            case, image = _read_next(left, kind, num_each, spacing_mm, skipped)
            items[name] = {"truth": kind, "case": case.case_id}
            save_picture(pack / f"{name}.png", draw_item(image))
            if with_volumes:
                save_image(pack / f"{name}.nii.gz", image.array.astype(np.int16), image.grid)
            notify(len(items), 2 * num_each)
    rows = "".join(f"{name},\n" for name in sorted(items))
    write_text_whole(pack / ANSWERS_NAME, f"item,answer\n{rows}")
    write_text_whole(pack / READ_ME, INSTRUCTIONS)
    sources = {"real": str(real.path), "synthetic": str(synthetic.path)}
    key = {"format": KEY_FORMAT, "seed": seed, **sources, "items": dict(sorted(items.items()))}
    write_json_whole(name_key(pack), key)
    return describe_skipped(skipped)


def _read_next(
    left: Any, kind: str, num_each: int, spacing_mm: float, skipped: list[SkippedCase]
) -> tuple[EvaluatedCase, Volume]:
    """The next case that can be read; those that cannot are set aside."""
    for case in left:
        try:
            return case, blind(case.load_image(), spacing_mm)
        except MaisiAugError as error:
            skipped.append(SkippedCase(case.case_id, str(error)))
    raise EvaluationError(
        f"Blind pack: fewer than {num_each} {kind} cases are readable; the first unreadable one: {skipped[0].reason} "
        "Choose a smaller --number."
    )


def blind(image: Volume, spacing_mm: float) -> Volume:
    """Remove the traces of its origin from a CT: voxel size, table, field of view, position, and HU above 1000.

    Args:
        image: CT in HU.
        spacing_mm: Isotropic voxel side in mm of the result.

    Raises:
        VolumeError: The CT shows no patient.
    """
    body = find_body(image.array, image.grid.spacing_mm)
    even = image.grid.with_voxels_of(spacing_mm)
    hu = resample_image(image.array.astype(np.float32), image.grid, even)
    inside = resample_label_map(body.astype(np.uint8), image.grid, even) > 0
    box = bounding_box(inside)
    cut = np.where(inside[box], np.clip(np.rint(hu[box]), AIR_HU, MAX_HU), AIR_HU)
    i, j, k = cut.shape
    return Volume(cut.astype(np.int16), Grid.from_spacing((i, j, k), (spacing_mm,) * 3))


def draw_item(image: Volume) -> Image.Image:
    """Draw axial, coronal and sagittal slices through the middle of a CT, in three windows."""
    i, j, k = image.grid.shape
    planes = (Plane("axial", k // 2), Plane("coronal", j // 2), Plane("sagittal", i // 2))
    sizes = [plane.size_px(image.grid, PIXELS_PER_MM) for plane in planes]
    heights = max(size[1] for size in sizes)
    windows = (SOFT_TISSUE, LUNG, BONE)
    width = sum(size[0] for size in sizes) + GAP_PX * (len(sizes) + 1)
    sheet = Image.new("RGB", (width, len(windows) * (heights + GAP_PX) + GAP_PX), BACKGROUND)
    for row, window in enumerate(windows):
        left = GAP_PX
        for plane, size in zip(planes, sizes, strict=True):
            top = GAP_PX + row * (heights + GAP_PX) + (heights - size[1]) // 2
            sheet.paste(draw_slice(image.array, plane, size, window), (left, top))
            left += size[0] + GAP_PX
    return sheet


def read_key(path: Path) -> dict[str, str]:
    """Read the answer key of a blinded pack, and return item -> ``real`` or ``synthetic``.

    Raises:
        EvaluationError: The file is not a key.
    """
    try:
        content = read_json(path)
        if content["format"] != KEY_FORMAT:
            raise ValueError(f"format {content['format']!r}")
        found = {str(name): str(item["truth"]) for name, item in content["items"].items()}
        if not found or set(found.values()) - set(ANSWERS):
            raise ValueError("items that are neither real nor synthetic")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(
            f"{path}: not the key of a blind pack: {type(error).__name__} {error}. Give the file PACK_key.json that "
            "blind-pack wrote."
        ) from error
    return found


def read_answers(path: Path) -> dict[str, str]:
    """Read a reader's answers from a CSV file with the columns item and answer, and return item -> answer.

    Rows without an answer are left out.

    Raises:
        EvaluationError: The file is not a table of answers, or lists an item twice.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
        pairs = [((row["item"] or "").strip(), (row["answer"] or "").strip().lower()) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise EvaluationError(
            f"{path}: needs a table with the columns item and answer: {type(error).__name__} {error}. Fill in the "
            f"{ANSWERS_NAME} of the pack."
        ) from error
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise EvaluationError(f"{path}: item '{twice}' is listed twice. Remove a row.")
    return {name: answer for name, answer in pairs if answer}


def measure_reader(key: Path, answers: Sequence[Path], *, margin: float) -> dict[str, Any]:
    """Score the answers of one or several readers of a blinded pack.

    Args:
        key: Answer key of the pack.
        answers: CSV files, one per reader.
        margin: Largest irrelevant deviation of the share of right answers from one half.

    Raises:
        EvaluationError: A file cannot be used.
    """
    truth = read_key(key)
    readers = []
    for path in answers:
        try:
            readers.append({"reader": path.stem, **score_answers(read_answers(path), truth, margin=margin)})
        except EvaluationError as error:
            raise error if str(error).startswith(str(path)) else EvaluationError(f"{path}: {error}") from error
    return {"measurement": REPORT_NAME, "key": str(key), "num_items": len(truth), "margin": margin, "readers": readers}


@from_clean_document
def to_report(document: Mapping[str, Any]) -> str:
    """Format the figures of a reader test as Markdown."""
    rows = [
        [
            reader["reader"],
            reader["verdict"],
            *(_spell(reader[part]) for part in ("all", *ANSWERS)),
            f"{reader['p_value']:.3f}",
            reader["num_unanswered"],
        ]
        for reader in document["readers"]
    ]
    return "\n".join(
        [
            f"# Can readers tell {document['num_items']} real and synthetic items apart?\n",
            to_markdown(["reader", "verdict", "right", "of real", "of synthetic", "p", "unanswered"], rows),
            "Shares of right answers with exact 95% intervals (Clopper and Pearson); p of the exact test against one "
            "half. Can tell: p below 0.05. Cannot tell: the 90% interval lies within "
            f"{document['margin']:g} of one half (two one-sided tests); for 40 items and a margin of 0.2, these are 18 "
            "to 22 right answers.\n",
        ]
    )


def _spell(share: Mapping[str, Any]) -> str:
    if share["share"] is None:
        return "-"
    return f"{share['num_right']}/{share['num']}, {share['share']:.2f} ({share['low']:.2f} to {share['high']:.2f})"
