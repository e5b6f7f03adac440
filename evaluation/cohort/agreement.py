"""Dice of an independent segmenter's label maps against the given ones: whether an image shows what its map says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import EvaluationError, RequestError, VolumeError
from maisi_aug.evaluation.cohort.case_sets import (
    CaseSet,
    EvaluatedCase,
    describe_skipped,
    measure_each,
    require_labelled,
    spell_skipped,
)
from maisi_aug.evaluation.output.charts import DotRow, draw_dot_chart
from maisi_aug.evaluation.output.files import to_markdown
from maisi_aug.system.printed_text import from_clean_document, spell_count
from maisi_aug.system.progress import Report, report_nothing
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.vocabulary.label_meaning import resolve_names
from maisi_aug.vocabulary.labels import Vocabulary
from maisi_aug.volumes.components import measure_dice
from maisi_aug.volumes.image_files import Volume, load_label_map

REPORT_NAME: Final = "agreement"
NUM_DRAWS: Final = 2000

Segment = Callable[[EvaluatedCase, Volume], NDArray[np.uint8]]
"""Gives the segmenter's label map of a case, on the case's grid."""


@dataclass(frozen=True, slots=True)
class MatchedLabel:
    """A label that a segmenter and the evaluated cases have in common.

    Attributes:
        name: Name of the label in the segmenter's ``dataset.json``.
        values: Ids in a prediction; several for a region.
        vocabulary_ids: Vocabulary ids in the given label maps that together correspond to it.
    """

    name: str
    values: tuple[int, ...]
    vocabulary_ids: tuple[int, ...]


def match_labels(
    label_values: Mapping[str, tuple[int, ...]], vocabulary: Vocabulary, *, mapping: Sequence[str] = ()
) -> tuple[tuple[MatchedLabel, ...], tuple[str, ...]]:
    """Match a segmenter's labels with those of the vocabulary, by name.

    Args:
        label_values: Label name -> ids in predictions, as in nnU-Net's ``dataset.json``.
        vocabulary: Vocabulary of the given label maps.
        mapping: Rules ``LABEL=NAME`` or ``LABEL=NAME+NAME`` for names that the vocabulary lacks or uses for something
            else.

    Returns:
        The matched labels, and the segmenter's label names without a match.

    Raises:
        RequestError: A mapping cannot be read, or names a label that the segmenter lacks.
        VocabularyError: A mapping names a label that the vocabulary lacks.
        EvaluationError: No label matches.
    """
    stated = {}
    for text in mapping:
        name, _, labels = (part.strip() for part in text.partition("="))
        if not labels or name not in label_values:
            raise RequestError(
                f"--map '{text}': must be LABEL=NAME with a label of the segmenter, which has "
                f"{', '.join(label_values)}."
            )
        stated[name] = tuple(vocabulary.id_of(label) for label in labels.split("+"))
    matched, unmatched = [], []
    meanings = resolve_names(label_values, vocabulary)
    by_value = {
        values[0]: meanings[name].label_id
        for name, values in label_values.items()
        if len(values) == 1 and not meanings[name].is_union
    }
    for name, values in label_values.items():
        meant = meanings[name]
        found = [by_value.get(value) for value in values] if meant.is_union else [meant.label_id]
        ids = stated.get(name, tuple(label_id for label_id in found if label_id is not None and None not in found))
        if ids:
            matched.append(MatchedLabel(name, values, ids))
        else:
            unmatched.append(name)
    if not matched:
        raise EvaluationError(
            f"Labels of the segmenter: none is in the vocabulary: {', '.join(unmatched[:8]) or 'none'}. Pass --map "
            "LABEL=NAME, and list labels with 'maisi-aug labels'."
        )
    return tuple(matched), tuple(unmatched)


def segment_from_folder(folder: Path) -> Segment:
    """Return a segmenter that reads existing label maps, such as those of ``nnUNetv2_predict``.

    Nothing is read before the segmenter is called with a case and its image.

    Args:
        folder: Folder of the label maps, named ``CASE.nii.gz`` after the ids of the evaluated cases.

    Returns:
        Function from a case and its image to the ``(I, J, K)`` integer label map of its file, with the file's ids. It
        raises ``VolumeError`` for a case whose file is missing or unreadable, or is not on the image's grid.

    Raises:
        EvaluationError: There is no such folder.
    """
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: folder of predicted label maps not found. Check --predictions.")

    def segment(case: EvaluatedCase, image: Volume) -> NDArray[np.uint8]:
        found = load_label_map(folder / f"{case.case_id}.nii.gz")
        if not found.grid.is_close(image.grid, tolerance_mm=0.05):
            raise VolumeError(
                f"{case.case_id}: the prediction must be on the image's grid, found {found.grid.shape} for "
                f"{image.grid.shape} voxels or another place. Predict from this image."
            )
        return found.array

    return segment


def measure_agreement(
    case_set: CaseSet,
    segment: Segment,
    labels: Sequence[MatchedLabel],
    *,
    segmenter: str,
    unmatched: Sequence[str] = (),
    seed: int = 0,
    notify: Report = report_nothing,
) -> dict[str, Any]:
    """Measure the Dice of a segmenter against the given label maps, for every label and case.

    Args:
        case_set: Labelled cases.
        segment: Function that returns the segmenter's label map of a case.
        labels: Labels to compare.
        segmenter: Description of the segmenter.
        unmatched: Labels of the segmenter that are not compared.
        seed: Seed of the bootstrap over cases.
        notify: Progress callback, called with (cases done, cases in all).

    Returns:
        Figures as a JSON-able dict.

    Raises:
        EvaluationError: No case has a label map, or none can be read.
    """

    def measure(case: EvaluatedCase) -> tuple[str, dict[str, float | None]]:
        image, label_map = case_set.load_pair(case)
        found = segment(case, image)
        masks = ((np.isin(label_map, label.vocabulary_ids), np.isin(found, label.values)) for label in labels)
        return case.case_id, {label.name: measure_dice(*pair) for label, pair in zip(labels, masks, strict=True)}

    cases, skipped = measure_each(require_labelled(case_set), lambda case: case.case_id, measure, notify)
    return {
        "measurement": REPORT_NAME,
        "path": str(case_set.path),
        "segmenter": segmenter,
        "num_cases": len(cases),
        "seed": seed,
        "labels": [_describe_label(label, cases, case_set.vocabulary, seed) for label in labels],
        "unmatched": list(unmatched),
        "cases": [{"case": case_id, "dice": dice} for case_id, dice in cases],
        "skipped": describe_skipped([*case_set.skipped, *skipped]),
    }


def _describe_label(
    label: MatchedLabel, cases: Sequence[tuple[str, Mapping[str, float | None]]], vocabulary: Vocabulary, seed: int
) -> dict[str, Any]:
    values = [value for _, dice in cases if (value := dice[label.name]) is not None]
    interval = None
    if len(values) > 1:
        generator = numpy_generator(seed, f"agreement {label.name}")
        means = generator.choice(values, size=(NUM_DRAWS, len(values))).mean(axis=1)
        interval = [float(end) for end in np.percentile(means, [2.5, 97.5])]
    return {
        "label": label.name,
        "compared_with": [vocabulary.name_of(label_id) for label_id in label.vocabulary_ids],
        "num_cases": len(values),
        "mean": float(np.mean(values)) if values else None,
        "median": float(np.median(values)) if values else None,
        "interval": interval,
        "worst": min(values, default=None),
    }


@from_clean_document
def to_report(document: Mapping[str, Any]) -> str:
    """Format the figures of agreement with a segmenter as Markdown."""
    rows = [
        [
            row["label"],
            ", ".join(row["compared_with"]),
            row["num_cases"],
            row["mean"],
            "-" if row["interval"] is None else f"{row['interval'][0]:.2f} to {row['interval'][1]:.2f}",
            row["median"],
            row["worst"],
        ]
        for row in document["labels"]
    ]
    parts = [
        f"# Agreement with an independent segmenter, {spell_count(document['num_cases'], 'case')}\n",
        f"Segmenter: {document['segmenter']}. Dice against the given label maps, over cases whose map has the label; "
        "95% interval of the mean over cases.\n",
        to_markdown(["label", "compared with", "cases", "mean", "interval", "median", "worst"], rows),
    ]
    if document["unmatched"]:
        parts.append(f"Not compared, because the vocabulary has no such label: {', '.join(document['unmatched'])}.\n")
    return "\n".join([*parts, *spell_skipped(document["skipped"])])


def draw_chart(document: Mapping[str, Any]) -> str:
    """Draw Dice by label as an SVG chart."""
    rows = [
        DotRow(
            row["label"],
            [dice for case in document["cases"] if (dice := case["dice"][row["label"]]) is not None],
            row["mean"],
            row["interval"],
            note=f"{row['mean']:.2f}" if row["mean"] is not None else "not in any map",
        )
        for row in document["labels"]
    ]
    subtitle = (
        f"{spell_count(document['num_cases'], 'case')}; a dot is a case; mean with 95% interval over "
        f"cases; {document['segmenter']}"
    )
    return draw_dot_chart("Dice of an independent segmenter", rows, axis="Dice", subtitle=subtitle, limits=(0.0, 1.0))
