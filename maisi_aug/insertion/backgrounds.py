"""The CTs that lesions are drawn into, with the labels that are known of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.banks.case_reader import load_ct
from maisi_aug.banks.label_ids import Translation
from maisi_aug.banks.raw_datasets import DESCRIPTION_NAME
from maisi_aug.errors import PreparationError
from maisi_aug.preparation.case import load_organs, merge_labels
from maisi_aug.preparation.collecting import collect_cases
from maisi_aug.preparation.mapping import MapRule, labels_of, resolve_meanings
from maisi_aug.preparation.request import Sources
from maisi_aug.preparation.run import translate_organs
from maisi_aug.preparation.sources import SourceCase
from maisi_aug.preparation.survey import CaseSurvey, require_readable, survey_case, tables_of
from maisi_aug.vocabulary.labels import BODY_ID, Vocabulary
from maisi_aug.volumes.grid import Grid


@dataclass(frozen=True, eq=False)
class Background:
    """A CT that lesions can be inserted into, with its label map.

    Attributes:
        image: ``(I, J, K)`` HU in RAS+, as stored: int16, or float32.
        grid: Shape and affine of the CT.
        label_map: ``(I, J, K)`` vocabulary ids; None if the CT has no labels.
    """

    image: NDArray[Any]
    grid: Grid
    label_map: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Backgrounds:
    """The CTs that a cohort of insertions draws into; images are read one at a time.

    Attributes:
        cases: Files of each CT.
        tables: For each case and each of its label files, source id -> vocabulary id.
        organ_translations: For each case and each of its organ files, the translation of the ids.
        vocabulary: Vocabulary of the bundle, with the labels that the files add.
        notes: Notes to the user, a sentence each.
    """

    cases: tuple[SourceCase, ...]
    tables: tuple[tuple[Mapping[int, int], ...], ...]
    organ_translations: tuple[tuple[Translation, ...], ...]
    vocabulary: Vocabulary
    notes: tuple[str, ...] = ()

    def load(self, index: int) -> Background:
        """Read one CT and its labels, given by its index.

        Raises:
            VolumeError: A file cannot be read, or holds no CT in HU.
        """
        case = self.cases[index]
        volume = load_ct(case.image)
        return Background(volume.array, volume.grid, self._load_labels(index, volume.grid))

    def _load_labels(self, index: int, grid: Grid) -> NDArray[np.uint8] | None:
        case = self.cases[index]
        if not case.labels and not case.organs:
            return None
        label_map = np.zeros(grid.shape, dtype=np.uint8)
        for files, translation in zip(case.organs, self.organ_translations[index], strict=True):
            organs = load_organs(files, translation, grid, case.image)
            np.copyto(label_map, organs, where=organs > 0)
        own = merge_labels(case.labels, self.tables[index], self.vocabulary.tumor_ids, grid, case.image)
        np.copyto(label_map, own, where=(own > 0) & ((own != BODY_ID) | (label_map == 0)))
        return label_map

    def describe(self) -> dict[str, Any]:
        """Return JSON values that identify the CTs, from names and sizes; no image is read."""
        rows = [[case.id, *(_size_of(path) for path in case.paths)] for case in self.cases]
        meanings = [[sorted(table.items()) for table in tables] for tables in self.tables]
        digest = hashlib.sha256(json.dumps([rows, meanings]).encode()).hexdigest()
        return {"num_cases": len(self.cases), "files_sha256": digest[:16]}


def find_backgrounds(
    into: Path,
    *,
    vocabulary: Vocabulary,
    labels: Path | None = None,
    organs: Sequence[Path] = (),
    rules: Sequence[MapRule] = (),
    organ_labels: str = "auto",
) -> Backgrounds:
    """Find the CTs to draw into and the meaning of their labels; label files are read, images are not.

    Args:
        into: A CT, a folder of CTs, a folder with one sub-folder per case, or an nnU-Net raw dataset.
        vocabulary: Vocabulary of the bundle.
        labels: Folder of label files, named after the images.
        organs: Folders of organ labels, such as TotalSegmentator's.
        rules: Meanings of labels whose names are not in the vocabulary.
        organ_labels: Meaning of the ids in organ label maps: ``auto`` or a scheme's name.

    Raises:
        PreparationError: There is no CT, the meaning of labels is unknown, or label files do not lie on their CT.
    """
    cases, notes = _collect(into, labels, tuple(organs))
    surveys = [survey_case(case) if case.labels else CaseSurvey(case.id) for case in cases]
    require_readable(surveys)
    listed = [
        label
        for case, survey in zip(cases, surveys, strict=True)
        for file, counts in zip(case.labels, survey.counts, strict=True)
        for label in labels_of(file, counts)
    ]
    meanings = resolve_meanings(list(dict.fromkeys(listed)), rules, vocabulary)
    return Backgrounds(
        cases,
        tuple(tables_of(case, survey, meanings) for case, survey in zip(cases, surveys, strict=True)),
        tuple(
            tuple(translate_organs(files, meanings.vocabulary, organ_labels) for files in case.organs) for case in cases
        ),
        meanings.vocabulary,
        notes,
    )


def _collect(
    into: Path, labels: Path | None, organs: tuple[Path, ...]
) -> tuple[tuple[SourceCase, ...], tuple[str, ...]]:
    if (into / DESCRIPTION_NAME).is_file() and labels is None:
        return collect_cases(Sources(nnunet=str(into), organs=organs))
    if into.is_dir():
        try:
            return collect_cases(Sources(images=into, labels=labels, organs=organs))
        except PreparationError as error:
            raise PreparationError(_in_own_words(str(error))) from error
    if not into.exists():
        raise PreparationError(f"--into {into}: not found. Give a CT or a folder of CTs.")
    case_id = into.name.removesuffix(".gz").rpartition(".")[0] or into.name
    beside = collect_cases(Sources(images=into.parent, labels=labels, organs=organs))[0] if labels or organs else ()
    found = next((case for case in beside if case.image == into), None)
    return (found or SourceCase(case_id, into),), ()


def _in_own_words(message: str) -> str:
    return (
        message.replace("--images", "--into").replace("--labels", "--into-labels").replace("--organs", "--into-organs")
    )


def _size_of(path: Path) -> list[Any]:
    if path.is_dir():
        return [path.name, *sorted(file.stat().st_size for file in path.iterdir() if file.is_file())]
    return [path.name, path.stat().st_size]
