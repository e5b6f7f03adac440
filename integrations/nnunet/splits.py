"""Folds of a real dataset with synthetic cases added to the training side only.

The validation cases are those of the real dataset's own folds, so that a model trained with synthetic cases and one
trained without are compared on the same cases, fold by fold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from maisi_aug.errors import ExportError
from maisi_aug.integrations.nnunet.folders import choose_same, tell_places
from maisi_aug.system.content import read_json

SPLITS_NAME = "splits_final.json"
NUM_FOLDS = 5  # of nnU-Net's default split
SPLIT_SEED = 12345  # of nnU-Net's default split

Fold = dict[str, list[str]]


@dataclass(frozen=True)
class Folds:
    """Cross-validation folds of a real dataset.

    Attributes:
        folds: ``train`` and ``val`` identifiers, one entry per fold, real cases only.
        source: Origin of the folds, as text.
    """

    folds: tuple[Fold, ...]
    source: str

    def with_synthetic(self, origins: Mapping[str, Collection[str]]) -> list[Fold]:
        """Add synthetic cases to the training sides of the folds; the result is the content of ``splits_final.json``.

        Args:
            origins: Synthetic case -> real cases from whose label maps it was made; a fold that validates on one of
                these does not train on it.

        Raises:
            ExportError: A fold has no case left to train on.
        """
        mixed, names = [], sorted(origins)
        for number, fold in enumerate(self.folds):
            validated = frozenset(fold["val"])
            added = [case_id for case_id in names if validated.isdisjoint(origins[case_id])]
            if not fold["train"] and not added:
                raise ExportError(
                    f"Fold {number}: no case is left to train on: there is no other real case, and every synthetic "
                    f"one was made from the label map of '{fold['val'][0]}', a validation case. Make cases from other "
                    "label maps."
                )
            mixed.append({"train": [*fold["train"], *added], "val": list(fold["val"])})
        return mixed


def load_real_folds(places: Sequence[Path], case_ids: Sequence[str], *, raw: Path | None = None) -> Folds:
    """Return the folds of a real dataset: its ``splits_final.json``, otherwise those that nnU-Net would draw.

    nnU-Net's planner copies the file from the raw dataset to a preprocessed one without it
    (``default_experiment_planner.py`` of 2.8), so that the raw dataset's file counts, too.

    With two to four cases, each is validated on once; a single case is validated on in the only fold, whose training
    side contains only synthetic cases.

    Args:
        places: Folders in which the dataset may be preprocessed; none of them needs to exist.
        case_ids: Identifiers of all real cases.
        raw: Folder of the raw dataset; None for none.

    Raises:
        ExportError: A file cannot be read, does not match the cases, or differs from that in another folder.
    """
    path = choose_same([place / SPLITS_NAME for place in places], "Folds of the real dataset")
    own = raw / SPLITS_NAME if raw is not None and (raw / SPLITS_NAME).is_file() else None
    if (used := path or own) is not None:
        own_folds = Folds(_read_folds(used, frozenset(case_ids)), str(used))
        if path is not None and own is not None:
            _require_continuation(own_folds, Folds(_read_folds(own, frozenset(case_ids)), str(own)))
        return own_folds
    if len(case_ids) == 1:
        return Folds(({"train": [], "val": list(case_ids)},), "the only real case is used for validation")
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    num_folds = min(NUM_FOLDS, len(case_ids))
    drawn = generate_crossval_split(sorted(case_ids), seed=SPLIT_SEED, n_splits=num_folds)
    folds = tuple({side: [str(case_id) for case_id in fold[side]] for side in ("train", "val")} for fold in drawn)
    rule = "nnU-Net's own rule" if num_folds == NUM_FOLDS else f"nnU-Net's own rule with {num_folds} folds"
    missing = f"no {SPLITS_NAME} was found in {tell_places(places)}{f' or {raw}' if raw else ''}"
    return Folds(folds, f"{rule} on the {len(case_ids)} real cases, because {missing}")


def _require_continuation(folds: Folds, raw: Folds) -> None:
    """Raise unless the first folds are the raw dataset's, as nnU-Net's planner requires.

    Raises:
        ExportError: The message names both files.
    """
    ours, theirs = (
        [{side: set(fold[side]) for side in ("train", "val")} for fold in part.folds] for part in (folds, raw)
    )
    if ours[: len(theirs)] != theirs:
        raise ExportError(
            f"Folds of the real dataset: {raw.source} and {folds.source} differ, which nnU-Net's planner refuses. "
            "Remove the file that is not to be used."
        )


def _read_folds(path: Path, case_ids: frozenset[str]) -> tuple[Fold, ...]:
    try:
        content = read_json(path)
        folds = tuple({side: [str(case_id) for case_id in fold[side]] for side in ("train", "val")} for fold in content)
    except (OSError, ValueError, TypeError, KeyError):
        raise ExportError(
            f"{path}: must be a list of folds with 'train' and 'val'. Repair or remove the file."
        ) from None
    if not folds:
        raise ExportError(f"{path}: has no folds. Repair or remove the file.")
    for number, fold in enumerate(folds):
        strange = sorted({*fold["train"], *fold["val"]} - case_ids)
        if strange:
            raise ExportError(
                f"{path}: fold {number} names '{strange[0]}', which is not a case of the real dataset. Repair or "
                "remove the file."
            )
        for side in ("train", "val"):
            twice = next((case_id for case_id, count in Counter(fold[side]).items() if count > 1), None)
            if twice is not None:
                raise ExportError(
                    f"{path}: fold {number} names '{twice}' twice on the side '{side}'. Repair or remove the file."
                )
        if not fold["val"]:
            raise ExportError(f"{path}: fold {number} has no validation cases. Repair or remove the file.")
        shared = sorted(set(fold["train"]) & set(fold["val"]))
        if shared:
            raise ExportError(
                f"{path}: '{shared[0]}' is used for both training and validation in fold {number}. Repair or remove "
                "the file."
            )
    return folds
