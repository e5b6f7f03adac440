"""Whether synthetic cases repeat training cases: how near their nearest one is, against real cases held out.

A CT is compared as a picture of 32^3 voxels of its body's bounding box, clipped to [-1000, 1000] HU, by
1 - correlation; a label map as 48^3 voxels of the same box, by the share of organ voxels on which two maps differ.
What is judged is the nearest distance divided by the case's median distance to all training cases: an image that is
merely smooth is nearer to all of them, a copy to one. Images are compared once more under flips, turns, cuts and shifts
(``likeness``), and copies of training cases that were planted so tell how many of them that finds; these distances are
divided by one median, that of real cases, because each case is compared with its few likeliest originals alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.cohort.case_sets import CaseSet, EvaluatedCase, describe_skipped, measure_each
from maisi_aug.evaluation.cohort.likeness import (
    LEAST_KEPT,
    MAX_SHIFT_HU,
    SIDE,
    TURN_DEGREES,
    Portrait,
    measure_likeness,
    plant_copy,
)
from maisi_aug.evaluation.output.charts import DotRow, draw_dot_chart
from maisi_aug.evaluation.output.files import to_markdown
from maisi_aug.pictures.slices import BACKGROUND, DIM_TEXT, SOFT_TISSUE, Plane, draw_slice, write_text
from maisi_aug.system.printed_text import from_clean_document, spell_count
from maisi_aug.system.progress import Report, ReportStage, report_nothing
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.vocabulary.labels import BODY_ID
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import Volume
from maisi_aug.volumes.resampling import resample_image, resample_label_map

COPY_SHARE: Final = 0.5
"""A case closer than this share of a low quantile of the real cases' distances is a copy."""
LOW_QUANTILE: Final = 0.1
SURE_COPY: Final = 0.05
"""A case closer than this share of its own typical distance is a copy, whatever the real cases are like."""
LEAST_TYPICAL: Final = 0.001
"""Smallest median distance to divide by, far below that of two patients; matters if all training cases are equal."""
MIN_CASES: Final = 5
FALSE_WEIGHT: Final = 4.0
ALPHA: Final = 0.05


@dataclass(frozen=True, eq=False)
class Nearest:
    """Nearest training cases of some cases.

    Attributes:
        distances: Distances of each case to its nearest training case.
        relative: The same divided by the median distance to all training cases, or by one that is common to all cases.
        indices: Which training case that is.
    """

    distances: NDArray[np.float64]
    relative: NDArray[np.float64]
    indices: NDArray[np.int_]


class Double(NamedTuple):
    """A real case and a training case that are too similar for the real case to serve as reference.

    Attributes:
        case: Index of the real case.
        train: Index of the training case.
        is_same_patient: Whether they are of the same patient; otherwise they are almost identical.
    """

    case: int
    train: int
    is_same_patient: bool


def find_nearest(distances: NDArray[np.float64], typical: float | None = None) -> Nearest:
    """Return the nearest of each row, which holds at least one number.

    Args:
        distances: ``(cases, train)``; NaN where two were not compared.
        typical: What to divide by; each row's own median when not given.
    """
    filled = np.where(np.isnan(distances), np.inf, distances)
    indices = filled.argmin(axis=1)
    nearest = filled[np.arange(len(filled)), indices]
    return Nearest(nearest, nearest / _typical(distances, typical), indices)


def find_reference(
    distances: NDArray[np.float64],
    patients: Sequence[str],
    train_patients: Sequence[str],
    typical: float | None = None,
) -> tuple[NDArray[np.float64], list[Double]]:
    """Return relative distances of real cases to the nearest training case of another patient.

    Args:
        distances: ``(real, train)``, with at least one number in each row; NaN where a case would meet itself.
        patients: Patients of the real cases; empty where they are not known.
        train_patients: Training patients of the training cases.
        typical: As for :func:`find_nearest`.

    Returns:
        The relative distances, of as many cases as still have a training case to be compared with, and the pairs that
        were left out.
    """
    is_same = np.array([[bool(p) and p == q for q in train_patients] for p in patients])
    relative = distances / _typical(distances, typical)[:, np.newaxis]
    left_out = np.isfinite(relative) & (is_same | (relative < SURE_COPY))
    doubles = [Double(int(row), int(column), bool(is_same[row, column])) for row, column in np.argwhere(left_out)]
    kept = np.where(left_out | np.isnan(relative), np.inf, relative).min(axis=1)
    return kept[np.isfinite(kept)], doubles


def find_threshold(reference: NDArray[np.float64], *, num_train: int) -> float:
    """Return the relative distance below which a case counts as a copy, from reference distances of real cases.

    Args:
        reference: Relative distances of real cases that are no copies.
        num_train: Number of training cases.
    """
    if min(len(reference), num_train) < MIN_CASES:
        return SURE_COPY
    return max(SURE_COPY, COPY_SHARE * float(np.quantile(reference, LOW_QUANTILE)))


def calibrate_threshold(reference: NDArray[np.float64], planted: NDArray[np.float64], *, num_train: int) -> float:
    """Return the relative distance below which most planted copies and few real cases are.

    Of all places between two neighbouring values it is the one with the largest share of planted copies below it, less
    four times the share of real cases: a patient's CT that is called a copy of another's costs more than a copy missed.
    Where several are as good, the lowest.

    Args:
        reference: Relative distances of real cases.
        planted: Relative distances of planted copies.
        num_train: Number of training cases.
    """
    if min(len(reference), len(planted), num_train) < MIN_CASES:
        return SURE_COPY
    values = np.unique(np.concatenate([reference, planted]))
    places = np.concatenate([values[:1] / 2, (values[1:] + values[:-1]) / 2])
    false = (reference < places[:, np.newaxis]).mean(axis=1)
    index = (planted < places[:, np.newaxis]).mean(axis=1) - FALSE_WEIGHT * false
    best = places[np.isclose(index, index.max())]
    return max(SURE_COPY, float(best[0]))


def trace_roc(reference: NDArray[np.float64], planted: NDArray[np.float64]) -> list[dict[str, float]]:
    """Return how many planted copies can be found at each number of real cases that are taken for copies.

    Args:
        reference: Relative distances of real cases.
        planted: Relative distances of planted copies.

    Returns:
        For every number of false alarms from none to all, the largest threshold with that many, and the planted copies
        below it.
    """
    thresholds = [*np.sort(reference).tolist(), float(max(reference.max(initial=0), planted.max(initial=0))) + 1]
    points = [
        {
            "threshold": threshold,
            "num_false": int((reference < threshold).sum()),
            "num_found": int((planted < threshold).sum()),
        }
        for threshold in thresholds
    ]
    return list({point["num_false"]: point for point in points}.values())


def judge(
    synthetic: NDArray[np.float64],
    reference: NDArray[np.float64],
    *,
    num_train: int,
    threshold: float | None = None,
) -> tuple[str, float | None, NDArray[np.bool_]]:
    """Judge by relative distances whether synthetic cases repeat training cases.

    Args:
        synthetic: Relative distances of the synthetic cases.
        reference: Reference of the held-out cases; may be empty.
        num_train: Number of training cases.
        threshold: Relative distance below which a case counts as a copy; None to derive it from the held-out cases.

    Returns:
        The verdict; the one-sided p-value of the rank-sum test that synthetic cases are nearer; and which cases are
        copies.
    """
    from scipy.stats import mannwhitneyu

    copies = synthetic < (find_threshold(reference, num_train=num_train) if threshold is None else threshold)
    p = None
    verdict = f"undecided with fewer than {MIN_CASES} cases of a kind"
    if min(len(reference), num_train, len(synthetic)) >= MIN_CASES:
        p = float(mannwhitneyu(synthetic, reference, alternative="less").pvalue)
        is_near = p < ALPHA
        verdict = (
            "closer to training cases than held-out cases are, but no copies" if is_near else "no sign of memorization"
        )
    if copies.any():
        verdict = f"{int(copies.sum())} of {len(synthetic)} repeat a training case"
    return verdict, p, copies


def _typical(distances: NDArray[np.float64], common: float | None) -> NDArray[np.float64]:
    """What to divide each row by, never less than what rounding makes of identical cases."""
    typical = np.nanmedian(distances, axis=1) if common is None else np.full(len(distances), common)
    least: NDArray[np.float64] = np.maximum(typical, LEAST_TYPICAL)
    return least


REPORT_NAME: Final = "memorization"
PICTURE_NAME: Final = "closest_pairs.png"
IMAGE_SIDE: Final = 32
LABEL_SIDE: Final = 48
BODY_HU: Final = -300.0
BOX_SIDE: Final = 96
CLIP_HU: Final = (-1000.0, 1000.0)
NUM_PAIRS: Final = 4
NUM_PLANTED: Final = 20
MAX_FALSE_SHOWN: Final = 5
KINDS: Final = (
    ("images", "Images"),
    ("moved_images", "Images, flipped, rotated or cropped"),
    ("label_maps", "Label maps"),
)
PANEL_PX: Final = 190


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """A case reduced for comparison with others.

    Attributes:
        case: Case that was reduced.
        image: ``(32768,)`` intensities with mean 0 and length 1.
        labels: ``(110592,)`` organ ids, 0 elsewhere; None without a label map or without organs.
        portrait: Data for the comparison under flips, rotations and crops.
        planted: The same data of a planted copy; None if none was made.
    """

    case: EvaluatedCase
    image: NDArray[np.float32]
    labels: NDArray[np.uint8] | None
    portrait: Portrait
    planted: Portrait | None = None


Matrix = Callable[[Sequence[Thumbnail], Sequence[Thumbnail]], NDArray[np.float64]]


def measure_memorization(
    synthetic: CaseSet,
    train: CaseSet,
    held_out: CaseSet | None,
    *,
    notify: ReportStage = report_nothing,
    num_workers: int | None = 1,
) -> tuple[dict[str, Any], Image.Image]:
    """Find the nearest training cases of synthetic and of held-out cases, in images and in label maps.

    Args:
        synthetic: Synthetic cases to judge.
        train: Cases that the generator was trained on, at least two.
        held_out: Real cases that the generator was not trained on; None to compare each training case with the others.
        notify: Progress callback, called with (stage, cases done, cases in all).
        num_workers: Number of processes that read cases; None for one per core.

    Returns:
        Figures as a JSON-able dict, and a picture of the nearest pairs.

    Raises:
        EvaluationError: A set has too few readable cases.
    """
    sets = {"synthetic": synthetic, "train": train} | ({"held_out": held_out} if held_out is not None else {})
    found, skipped = {}, {}
    for name, case_set in sets.items():
        found[name], skipped[name] = _shrink_all(
            case_set,
            partial(notify, f"{name.replace('_', '-')} cases"),
            num_planted=NUM_PLANTED if name == "train" else 0,
            num_workers=num_workers,
        )
    if len(found["train"]) < 2:
        raise EvaluationError(
            f"{train.path}: at least two training cases are needed, found one that can be read. Add cases."
        )
    reference = found.get("held_out", found["train"])
    planted = _measure_planted(found["train"], partial(notify, "planted copies"))
    documents = {
        kind: _compare(
            found["synthetic"],
            found["train"],
            reference,
            matrix,
            is_apart=held_out is not None,
            planted=planted if kind == "moved_images" else None,
        )
        for kind, matrix in _list_matrices(partial(notify, "moved images")).items()
    }
    document = {
        "measurement": REPORT_NAME,
        "path": str(synthetic.path),
        "train": _describe_set(train, found["train"], skipped["train"]),
        "held_out": _describe_set(held_out, reference, skipped.get("held_out", ())),
        "num_cases": len(found["synthetic"]),
        **documents,
        "planted": _audit_planted(found["train"], planted, documents["moved_images"]),
        "skipped": describe_skipped(skipped["synthetic"]),
    }
    return document, draw_pairs(documents["images"], found["synthetic"], found["train"])


def shrink(case_set: CaseSet, case: EvaluatedCase, *, planted_seed: int | None = None) -> Thumbnail:
    """Read a case, and crop and downsample it for comparison with others.

    Args:
        case_set: Set that the case belongs to.
        case: Case to read.
        planted_seed: Seed of a copy to plant; None plants none.

    Raises:
        VolumeError: A file cannot be read, or the grids differ.
        BankError: The labels of the label map are unknown.
    """
    if case.has_label_map:
        image, label_map = case_set.load_pair(case)
    else:
        image, label_map = case.load_image(), None
    box = find_body_box(image.array)
    small = resample_image(image.array.astype(np.float32), image.grid, _spread(image.grid, box, IMAGE_SIDE))
    vector = np.clip(small, *CLIP_HU).ravel()
    vector = vector - vector.mean()
    vector /= max(float(np.linalg.norm(vector)), 1e-6)
    labels = None
    if label_map is not None:
        organs = np.where(label_map == BODY_ID, 0, label_map).astype(np.uint8)
        labels = resample_label_map(organs, image.grid, _spread(image.grid, box, LABEL_SIDE)).ravel()
        labels = labels if labels.any() else None
    planted = None
    if planted_seed is not None:
        planted = draw_portrait(plant_copy(image, numpy_generator(planted_seed, "planted copy")))
    return Thumbnail(case, vector.astype(np.float32), labels, _to_portrait(small, image.grid, box), planted)


def draw_portrait(image: Volume) -> Portrait:
    """Reduce a CT for the comparison under flips, rotations and crops."""
    box = find_body_box(image.array)
    small = resample_image(image.array.astype(np.float32), image.grid, _spread(image.grid, box, SIDE))
    return _to_portrait(small, image.grid, box)


def _to_portrait(small: NDArray[np.float32], grid: Grid, box: Sequence[slice]) -> Portrait:
    i, j, k = ((part.stop - part.start) * step for part, step in zip(box, grid.spacing_mm, strict=True))
    return Portrait((np.clip(small, *CLIP_HU) - CLIP_HU[0]).astype(np.float32), (i, j, k))


def find_body_box(image_hu: NDArray[Any]) -> tuple[slice, slice, slice]:
    """Return the box of the largest piece of tissue without thin parts such as a table, or else the whole image.

    Args:
        image_hu: ``(I, J, K)`` image in HU, of which every n-th voxel is examined along long sides.
    """
    from scipy import ndimage

    steps = [max(1, side // BOX_SIDE) for side in image_hu.shape]
    tissue = image_hu[tuple(slice(None, None, step) for step in steps)] > BODY_HU
    solid = ndimage.binary_opening(np.pad(tissue, 2, mode="edge"), iterations=2)[2:-2, 2:-2, 2:-2]
    parts, num_parts = ndimage.label(solid)
    if num_parts == 0:
        return (slice(0, image_hu.shape[0]), slice(0, image_hu.shape[1]), slice(0, image_hu.shape[2]))
    largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    found = ndimage.find_objects(parts, largest)[largest - 1]
    i, j, k = (
        slice(part.start * step, min(part.stop * step, side))
        for part, step, side in zip(found, steps, image_hu.shape, strict=True)
    )
    return i, j, k


def measure_image_distances(cases: Sequence[Thumbnail], others: Sequence[Thumbnail]) -> NDArray[np.float64]:
    """Return the ``(cases, others)`` matrix of 1 - correlation of images, in [0, 2]; 0 for equal ones.

    Args:
        cases: Thumbnails of the rows.
        others: Thumbnails of the columns.
    """
    product = np.stack([case.image for case in cases]) @ np.stack([other.image for other in others]).T
    distances: NDArray[np.float64] = np.clip(1.0 - product.astype(np.float64), 0.0, 2.0)
    return distances


def measure_moved_distances(
    cases: Sequence[Thumbnail], others: Sequence[Thumbnail], notify: Report
) -> NDArray[np.float64]:
    """Return ``(cases, others)`` values of 1 - correlation of images under the best flip, rotation and crop.

    Args:
        cases: Thumbnails of the rows.
        others: Thumbnails of the columns.
        notify: Progress callback, called with (done, in all).
    """
    return measure_likeness([case.portrait for case in cases], [other.portrait for other in others], notify)


def _list_matrices(notify: Report) -> dict[str, Matrix]:
    return {
        "images": measure_image_distances,
        "moved_images": lambda cases, others: measure_moved_distances(cases, others, notify),
        "label_maps": measure_label_distances,
    }


def _describe_set(case_set: CaseSet | None, cases: Sequence[Thumbnail], skipped: Sequence[Any]) -> dict[str, Any]:
    path = None if case_set is None else str(case_set.path)
    return {"path": path, "num_cases": len(cases), "skipped": describe_skipped(skipped)}


def _measure_planted(train: Sequence[Thumbnail], notify: Report) -> NDArray[np.float64]:
    """Distances of the copies that were planted to the training cases."""
    planted = [thumbnail.planted for thumbnail in train if thumbnail.planted is not None]
    return measure_likeness(planted, [thumbnail.portrait for thumbnail in train], notify)


def _audit_planted(
    train: Sequence[Thumbnail], distances: NDArray[np.float64], part: Mapping[str, Any]
) -> dict[str, Any]:
    """Count the planted copies that are found, and measure how well distances separate them from real cases."""
    from scipy.stats import mannwhitneyu

    nearest = find_nearest(distances, part["typical"])
    planted = [index for index, thumbnail in enumerate(train) if thumbnail.planted is not None]
    real, threshold = np.array(part["held_out"]), part["threshold"]
    area = None
    if len(real):
        area = float(mannwhitneyu(real, nearest.relative).statistic / (len(real) * len(planted)))
    return {
        "num_planted": len(planted),
        "num_found": int((nearest.relative < threshold).sum()),
        "num_matched": int((nearest.indices == planted).sum()),
        "num_real": len(real),
        "num_false": int((real < threshold).sum()),
        "area_under_roc": area,
        "roc": trace_roc(real, nearest.relative),
        "relative": nearest.relative.tolist(),
    }


def measure_label_distances(cases: Sequence[Thumbnail], others: Sequence[Thumbnail]) -> NDArray[np.float64]:
    """Return the ``(cases, others)`` fractions of organ voxels that differ between label maps; NaN without maps.

    Args:
        cases: Thumbnails of the rows.
        others: Thumbnails of the columns.
    """
    distances = np.full((len(cases), len(others)), np.nan)
    for row, case in enumerate(cases):
        for column, other in enumerate(others):
            if case.labels is not None and other.labels is not None:
                either = (case.labels > 0) | (other.labels > 0)
                distances[row, column] = np.mean(case.labels[either] != other.labels[either])
    return distances


def _shrink_all(
    case_set: CaseSet, notify: Report, *, num_planted: int, num_workers: int | None
) -> tuple[list[Thumbnail], list[Any]]:
    seeds = [number if number < num_planted else None for number in range(len(case_set.cases))]
    thumbnails, skipped = measure_each(
        list(zip(case_set.cases, seeds, strict=True)),
        lambda item: item[0].case_id,
        partial(_shrink_one, case_set),
        notify,
        num_workers=num_workers,
    )
    return thumbnails, [*case_set.skipped, *skipped]


def _shrink_one(case_set: CaseSet, item: tuple[EvaluatedCase, int | None]) -> Thumbnail:
    return shrink(case_set, item[0], planted_seed=item[1])


def _spread(grid: Grid, box: Sequence[slice], side: int) -> Grid:
    """A grid of ``side``^3 voxels over a box."""
    return grid.cut_to(box).divided_into((side, side, side))


def _compare(
    synthetic: Sequence[Thumbnail],
    train: Sequence[Thumbnail],
    reference: Sequence[Thumbnail],
    matrix: Matrix,
    *,
    is_apart: bool,
    planted: NDArray[np.float64] | None,
) -> dict[str, Any]:
    """Distances of one kind: those of synthetic cases, those of reference cases, and the verdict.

    With distances of planted copies, all are divided by one median, and the threshold is where these say.
    """
    own, other = matrix(synthetic, train), matrix(reference, train)
    if not is_apart:
        np.fill_diagonal(other, np.nan)
    usable, comparable = [np.isfinite(distances).any(axis=1) for distances in (own, other)]
    if not usable.any() or not comparable.any():
        return {"verdict": "not compared: one of the sets has no label maps with known organs", "cases": []}
    typical = None if planted is None else float(np.nanmedian(other))
    nearest = find_nearest(own[usable], typical)
    real = [reference[int(index)] for index in np.flatnonzero(comparable)]
    patients = [[thumbnail.case.patient for thumbnail in side] for side in (real, train)]
    normal, doubles = find_reference(other[comparable], patients[0], patients[1], typical)
    threshold = find_threshold(normal, num_train=len(train))
    if planted is not None:
        threshold = calibrate_threshold(normal, find_nearest(planted, typical).relative, num_train=len(train))
    verdict, p, copies = judge(nearest.relative, normal, num_train=len(train), threshold=threshold)
    chosen = [synthetic[int(index)] for index in np.flatnonzero(usable)]
    rows = [
        {
            "case": case.case.case_id,
            "nearest": train[int(index)].case.case_id,
            "distance": float(distance),
            "relative": float(relative),
            "is_copy": bool(copy),
        }
        for case, index, distance, relative, copy in zip(
            chosen, nearest.indices, nearest.distances, nearest.relative, copies, strict=True
        )
    ]
    return {
        "verdict": verdict,
        "p": p,
        "median": float(np.median(nearest.relative)),
        "held_out_median": float(np.median(normal)) if len(normal) else None,
        "held_out_lowest": float(normal.min()) if len(normal) else None,
        "held_out": normal.tolist(),
        "threshold": threshold,
        "typical": typical,
        "doubles": _name_doubles(doubles, real, train, is_apart=is_apart),
        "cases": sorted(rows, key=lambda row: row["relative"]),
    }


def _name_doubles(
    doubles: Sequence[Double], real: Sequence[Thumbnail], train: Sequence[Thumbnail], *, is_apart: bool
) -> list[dict[str, str]]:
    """The pairs by name; comparing training cases with each other yields each pair twice, and it is named once."""
    named: dict[tuple[str, str], str] = {}
    for double in doubles:
        pair = real[double.case].case.case_id, train[double.train].case.case_id
        if is_apart or pair[::-1] not in named:
            named[pair] = "of the same patient" if double.is_same_patient else "almost identical"
    return [{"case": case, "other": other, "reason": reason} for (case, other), reason in named.items()]


@from_clean_document
def to_report(document: Mapping[str, Any]) -> str:
    """Format the figures of memorization as Markdown."""
    against = (
        f"{spell_count(document['held_out']['num_cases'], 'held-out case')}"
        if document["held_out"]["path"]
        else f"{spell_count(document['held_out']['num_cases'], 'training case')}, each against the others"
    )
    parts = [
        f"# Do {spell_count(document['num_cases'], 'synthetic case')} repeat training cases?\n",
        (
            f"Nearest of {spell_count(document['train']['num_cases'], 'training case')}, for the synthetic "
            f"cases and for {against}. "
            f"Images: 1 - correlation of {IMAGE_SIDE}^3 voxels of the body's box; label maps: share of organ voxels "
            f"that differ, of {LABEL_SIDE}^3; flipped, rotated or cropped: 1 - correlation of the detail of images "
            "after alignment, with the two training cases that fit best. Relative: divided by the case's median "
            "distance to all training cases; of aligned images, by one median, that of the real cases. A copy is "
            f"below {SURE_COPY:g}, or, with {MIN_CASES} held-out and {MIN_CASES} training cases or more, nearer than "
            f"{COPY_SHARE:g} times the {100 * LOW_QUANTILE:.0f}% quantile of held-out cases; of aligned images, below "
            "the threshold that planted copies set. Similarity of smaller parts, such as a single organ, is not "
            "detected.\n"
        ),
    ]
    for kind, name in KINDS:
        part = document[kind]
        parts.append(f"## {name}: {part['verdict']}\n")
        if part["cases"]:
            p = "" if part["p"] is None else f" Rank-sum test, nearer than held-out cases: p = {part['p']:.3g}."
            parts.append(f"Relative distance, median: synthetic {part['median']:.2f}, {_spell_reference(part)}.{p}\n")
            rows = [[r["case"], r["nearest"], r["distance"], r["relative"], r["is_copy"]] for r in part["cases"][:10]]
            parts.append(to_markdown(["case", "nearest", "distance", "relative", "copy"], rows, num_digits=3))
            parts += [
                f"- Left out of the {name.lower()} of real cases: {row['case']} and {row['other']} (training) are "
                f"{row['reason']}.\n"
                for row in part["doubles"]
            ]
    parts.append(_spell_planted(document["planted"]))
    for name in ("train", "held_out"):
        parts += [f"- Left out, {case['case']}: {case['reason']}\n" for case in document[name]["skipped"]]
    parts += [f"- Left out, {case['case']}: {case['reason']}\n" for case in document["skipped"]]
    return "\n".join(parts)


def _spell_planted(planted: Mapping[str, Any]) -> str:
    area = "" if planted["area_under_roc"] is None else f" Area under the ROC: {planted['area_under_roc']:.3f}."
    points = [
        [point["num_false"], point["num_found"], point["threshold"]]
        for point in planted["roc"]
        if point["num_false"] <= MAX_FALSE_SHOWN
    ]
    return (
        f"## Planted copies: {planted['num_found']} of {planted['num_planted']} found\n\nTraining cases that were "
        f"flipped at random, turned by up to {TURN_DEGREES:g} degrees, cut to {100 * LEAST_KEPT:.0f} to 100% of each "
        f"axis and shifted by up to {MAX_SHIFT_HU:g} HU, judged like synthetic cases; {planted['num_matched']} "
        f"have the right training case as nearest. Of {spell_count(planted['num_real'], 'real case')}, "
        f"{planted['num_false']} would be called copies at the same threshold, which makes the share of planted "
        f"copies found, less {FALSE_WEIGHT:g} times that of real cases, as large as possible.{area}\n\n"
        + to_markdown(["real cases called copies", "planted copies found", "threshold"], points, num_digits=3)
    )


def _spell_reference(part: Mapping[str, Any]) -> str:
    if part["held_out_median"] is None:
        return f"there is no held-out case to compare with; copies below {part['threshold']:.2f}"
    return (
        f"held-out {part['held_out_median']:.2f} (lowest {part['held_out_lowest']:.2f}); copies below "
        f"{part['threshold']:.2f}"
    )


def draw_chart(document: Mapping[str, Any]) -> str:
    """Draw relative distances of synthetic and held-out cases as an SVG chart."""
    rows = []
    others = "held-out" if document["held_out"]["path"] else "training"
    for kind, name in (("images", "images"), ("moved_images", "moved images"), ("label_maps", "label maps")):
        part = document[kind]
        if part["cases"]:
            own = [row["relative"] for row in part["cases"]]
            has_copy = any(row["is_copy"] for row in part["cases"])
            rows.append(DotRow(f"{name}, synthetic", own, part["median"], is_marked=has_copy))
            if part["held_out"]:
                rows.append(DotRow(f"{name}, {others}", part["held_out"], part["held_out_median"]))
        if kind == "moved_images":
            rows.append(DotRow(f"{name}, planted copies", document["planted"]["relative"]))
    verdict = document["images"]["verdict"]
    subtitle = f"{spell_count(document['num_cases'], 'synthetic case')}; large dot: median; images: {verdict}"
    return draw_dot_chart(
        "Distance to the nearest training case",
        rows,
        axis="nearest / median distance to training cases",
        subtitle=subtitle,
    )


def draw_pairs(part: Mapping[str, Any], synthetic: Sequence[Thumbnail], train: Sequence[Thumbnail]) -> Image.Image:
    """Draw the nearest pairs side by side: axial and coronal slices through the middle of the body.

    Args:
        part: Distances of images, from the result of :func:`measure_memorization`.
        synthetic: Synthetic cases, shown at the left.
        train: Training cases, shown at the right.
    """
    by_name = [{thumbnail.case.case_id: thumbnail.case for thumbnail in side} for side in (synthetic, train)]
    rows = part["cases"][:NUM_PAIRS]
    gap, head = 6, 26
    width = 4 * PANEL_PX + 5 * gap
    sheet = Image.new("RGB", (width, max(1, len(rows)) * (PANEL_PX + head + gap) + gap), BACKGROUND)
    for number, row in enumerate(rows):
        top = gap + number * (PANEL_PX + head + gap)
        figures = f"distance {row['distance']:.3f}, relative {row['relative']:.2f}"
        words = f"{row['case']} (synthetic) and {row['nearest']} (training), {figures}"
        write_text(sheet, (gap, top + 5), words, size_px=13, colour=DIM_TEXT)
        panels = _draw_middle(by_name[0][row["case"]].load_image()) + _draw_middle(
            by_name[1][row["nearest"]].load_image()
        )
        for place, panel in enumerate((panels[0], panels[2], panels[1], panels[3])):
            left = gap + place * (PANEL_PX + gap)
            sheet.paste(panel, (left + (PANEL_PX - panel.width) // 2, top + head + (PANEL_PX - panel.height) // 2))
    return sheet


def _draw_middle(image: Volume) -> list[Image.Image]:
    """Axial and coronal slice through the middle of the body, as large as a panel allows."""
    body = image.array[find_body_box(image.array)]
    i, j, k = body.shape
    grid = Grid.from_spacing((i, j, k), image.grid.spacing_mm)
    panels = []
    for plane in (Plane("axial", k // 2), Plane("coronal", j // 2)):
        scale = PANEL_PX / max(length for axis, length in enumerate(grid.extent_mm) if axis != plane.axis)
        panels.append(draw_slice(body, plane, plane.size_px(grid, scale), SOFT_TISSUE))
    return panels
