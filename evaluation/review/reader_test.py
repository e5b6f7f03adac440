"""A test with blinded readers: which images are real, which synthetic; mixed, one after the other, with a clock.

Readings go to ``reader_test.jsonl`` in the cohort, a line each; :func:`measure_readings` scores them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from maisi_aug.cohort.review import now
from maisi_aug.errors import EvaluationError, VolumeError
from maisi_aug.evaluation.review.cases import ShownCase
from maisi_aug.evaluation.review.volumes import FolderFiles
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.system.whole_files import append_to_shared
from maisi_aug.volumes.image_files import load_grid

READINGS_NAME = "reader_test.jsonl"
Kind = Literal["real", "synthetic"]


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer of one reader in the viewer's blinded test.

    Attributes:
        case_id: Case that was shown.
        truth: ``real`` or ``synthetic``.
        answer: Answer of the reader, ``real`` or ``synthetic``.
        confidence: Confidence from 1, a guess, to 5, certain.
        seconds: Seconds between showing the image and the answer.
        reviewer: Name of the reader.
        seed: Seed of the order; the same seed and reader continue the same test.
        number: Position in the order, from 0.
        time: Time of the answer in ISO 8601, UTC.
    """

    case_id: Annotated[str, Field(min_length=1, max_length=200)]
    truth: Kind
    answer: Kind
    confidence: Annotated[int, Field(ge=1, le=5)]
    seconds: Annotated[float, Field(ge=0, lt=86_400, allow_inf_nan=False)]
    reviewer: Annotated[str, Field(max_length=500)]
    seed: Annotated[int, Field(ge=0)]
    number: Annotated[int, Field(ge=0)]
    time: Annotated[str, Field(max_length=40)] = ""


_READING: TypeAdapter[Reading] = TypeAdapter(Reading)


@dataclass(frozen=True, slots=True)
class _Item:
    case: ShownCase
    files: FolderFiles
    truth: Kind


class ReaderTest:
    """The viewer's blinded test of one reader: a random order of real and synthetic images, and the answers."""

    def __init__(
        self,
        folder: Path,
        synthetic: tuple[Sequence[ShownCase], FolderFiles],
        real: tuple[Sequence[ShownCase], FolderFiles],
        *,
        reviewer: str = "",
        num_images: int = 40,
        seed: int = 0,
    ) -> None:
        """Choose the images, half of each kind as far as there are enough, and mix them.

        Args:
            folder: Folder of the cohort, which gets the readings.
            synthetic: Accepted cases, and access to their files.
            real: The same of the reference.
            reviewer: Name of the reader.
            num_images: Number of images in total.
            seed: Seed of the choice and the order.

        Raises:
            EvaluationError: There is none of one kind.
            CohortError: Earlier readings cannot be read.
        """
        rng = numpy_generator(seed, f"reader test/{reviewer}")
        items: list[_Item] = []
        kinds: tuple[tuple[Kind, Sequence[ShownCase], FolderFiles], ...] = (("synthetic", *synthetic), ("real", *real))
        for truth, cases, files in kinds:
            if not cases:
                raise EvaluationError(f"Reader test: there are no {truth} images. Name others with --beside.")
            chosen = rng.permutation(len(cases))[: max(1, num_images // 2)]
            items += [_Item(cases[index], files, truth) for index in chosen.tolist()]
        self._items = [items[index] for index in rng.permutation(len(items)).tolist()]
        self._folder, self._reviewer, self._seed = folder, reviewer, seed
        self._lock = threading.Lock()
        self._answered = {
            reading.number
            for reading in load_readings(folder)
            if (reading.reviewer, reading.seed) == (reviewer, seed)
            and reading.number < len(self._items)
            and self._items[reading.number].case.case.case_id == reading.case_id
        }

    def find_giveaway(self) -> str:
        """Return a warning if voxel sizes alone reveal the kind of an image; otherwise empty."""
        grids: dict[str, set[str]] = {"real": set(), "synthetic": set()}
        for item in self._items:
            try:
                grid = load_grid(item.files.require(item.case.files["image"]))
            except VolumeError:
                continue
            grids[item.truth].add(" x ".join(f"{side:.1f}" for side in grid.spacing_mm))
        if not grids["real"] or not grids["synthetic"] or grids["real"] & grids["synthetic"]:
            return ""
        return (
            f"Real images have voxels of {', '.join(sorted(grids['real'])[:3])} mm, synthetic ones of "
            f"{', '.join(sorted(grids['synthetic'])[:3])} mm: readers may distinguish them by sharpness alone. "
            "Resample the real ones to the grid of the cohort first."
        )

    def to_state(self) -> dict[str, Any]:
        """Return the state with which the page continues, without anything that reveals the kind of an image."""
        left = [number for number in range(len(self._items)) if number not in self._answered]
        return {
            "total": len(self._items),
            "done": len(self._answered),
            "next": left[0] if left else None,
            "after": left[1] if len(left) > 1 else None,
            "reviewer": self._reviewer,
        }

    def find(self, number: int) -> tuple[FolderFiles, ShownCase]:
        """Return the case with a number in the order, and access to its files.

        Raises:
            EvaluationError: There is no such number.
        """
        if not 0 <= number < len(self._items):
            raise EvaluationError(f"Reader test: images are numbered 0 to {len(self._items) - 1}, found {number}.")
        return self._items[number].files, self._items[number].case

    def answer(self, number: int, answer: Kind, confidence: int, seconds: float) -> dict[str, Any]:
        """Save a reader's answer; the first one for an image counts, and a second one is refused.

        Args:
            number: Position of the image in the order.
            answer: ``real`` or ``synthetic``.
            confidence: Confidence from 1, a guess, to 5, certain.
            seconds: Seconds between showing the image and the answer.

        Raises:
            EvaluationError: There is no such image, or it was answered before.
            CohortError: The disk is full; nothing is saved.
        """
        _, case = self.find(number)
        with self._lock:
            if number in self._answered:
                raise EvaluationError(f"Reader test: image {number} was already read.")
            reading = _READING.validate_python(
                {
                    "case_id": case.case.case_id,
                    "truth": self._items[number].truth,
                    "answer": answer,
                    "confidence": confidence,
                    "seconds": round(seconds, 2),
                    "reviewer": self._reviewer,
                    "seed": self._seed,
                    "number": number,
                    "time": now(),
                }
            )
            append_to_shared(self._folder / READINGS_NAME, _READING.dump_json(reading).decode())
            self._answered.add(number)
        return self.to_state()


def load_readings(folder: Path) -> list[Reading]:
    """Read all readings of a folder; empty if there are none. A torn last line is skipped.

    Raises:
        EvaluationError: A line is not a reading.
    """
    path = folder / READINGS_NAME
    if not path.is_file():
        return []
    readings = []
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            try:
                readings.append(_READING.validate_json(line))
            except ValidationError:
                raise EvaluationError(f"{path}: not a reading: {line.rstrip()[:60]!r}. Remove the line.") from None
    return readings


def measure_readings(readings: Sequence[Reading]) -> dict[str, Any]:
    """Measure how well a reader distinguishes real from synthetic images.

    The share of right answers is scored as for a pack of pictures, see
    :func:`maisi_aug.evaluation.scores.reader_test.score_answers`. The area under the ROC curve orders images by the
    reader's confidence that they are synthetic; 0.5 is chance for both.

    Args:
        readings: Readings of one reader; at least one.

    Returns:
        ``num_images``, ``num_right``, ``accuracy``, ``low``, ``high``, ``p_chance``, ``verdict``, ``auc`` (None where
        one kind is missing), ``called_synthetic`` of each kind, ``median_seconds``.
    """
    from maisi_aug.evaluation.scores.reader_test import score_answers

    answers = {str(place): reading.answer for place, reading in enumerate(readings)}
    score = score_answers(answers, {str(place): reading.truth for place, reading in enumerate(readings)})
    kinds: tuple[Kind, Kind] = ("real", "synthetic")
    scores = {
        kind: np.array([r.confidence * (1 if r.answer == "synthetic" else -1) for r in readings if r.truth == kind])
        for kind in kinds
    }
    auc = None
    if scores["real"].size and scores["synthetic"].size:
        above = scores["synthetic"][:, None] - scores["real"][None, :]
        auc = float(np.mean((above > 0) + 0.5 * (above == 0)))
    return {
        "num_images": len(readings),
        "num_right": score["all"]["num_right"],
        "accuracy": score["all"]["share"],
        "low": score["all"]["low"],
        "high": score["all"]["high"],
        "p_chance": score["p_value"],
        "verdict": score["verdict"],
        "auc": auc,
        "called_synthetic": {kind: float(np.mean(scores[kind] > 0)) if scores[kind].size else None for kind in kinds},
        "median_seconds": float(np.median([reading.seconds for reading in readings])),
    }
