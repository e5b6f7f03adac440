"""A finished cohort as TorchIO subjects, for TorchIO 1 and 2, and lesions drawn into real ones.

from maisi_aug.integrations.torchio import load_subjects
subjects = load_subjects("cohort")
dataset = torchio.SubjectsDataset(subjects, transform=...)   # version 1; version 2 takes the list as it is
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maisi_aug.integrations.insertion import LesionPool
from maisi_aug.integrations.reading.items import import_torchio, open_pairs, to_subject


def load_subjects(
    folder: Path | str,
    labels: Sequence[str] = (),
    *,
    include_anatomy: bool = False,
    numbers: Mapping[str, int] | None = None,
) -> list[Any]:
    """Load all cases of a cohort as TorchIO subjects with ``image``, ``label``, ``case_id``, ``request`` and ``seed``.

    Args:
        folder: Folder of the cohort.
        labels: Names or ids of labels, numbered 1, 2, ... in the order of ids; if empty, those requested for the
            cohort.
        include_anatomy: Also include every other label in the maps, except the body.
        numbers: Label name -> number instead, such as a real dataset's; 0 for background.

    Raises:
        CohortError: The folder is not a cohort.
        ExportError: The cohort is unfinished or altered, or a label occurs nowhere.
        MissingExtraError: TorchIO is not installed.
        RequestError: ``numbers`` lack a label requested for the cohort, or are otherwise invalid.
        VocabularyError: A label name is unknown.
    """
    return list(iterate_subjects(folder, labels, include_anatomy=include_anatomy, numbers=numbers))


def iterate_subjects(
    folder: Path | str,
    labels: Sequence[str] = (),
    *,
    include_anatomy: bool = False,
    numbers: Mapping[str, int] | None = None,
) -> Iterator[Any]:
    """Yield the subjects of :func:`load_subjects` one at a time, for cohorts that do not fit into memory.

    Args:
        folder: Folder of the cohort.
        labels: Names or ids of labels, numbered 1, 2, ... in the order of ids; if empty, those requested for the
            cohort.
        include_anatomy: Also include every other label in the maps, except the body.
        numbers: Label name -> number instead, such as a real dataset's; 0 for background.

    Returns:
        Iterator over the subjects in the order of the cases; the arguments are checked at once, errors are those of
        :func:`load_subjects`.
    """
    import_torchio()
    pairs = open_pairs(folder, labels, include_anatomy=include_anatomy, numbers=numbers)
    return (to_subject(pairs.load(index)) for index in range(len(pairs)))


class InsertLesion:
    """TorchIO transform that draws a lesion into the CT and the label map of a subject, with a probability."""

    def __init__(
        self,
        lesion: str,
        *,
        probability: float = 0.5,
        image: str = "image",
        label: str = "label",
        seed: int = 0,
        **pool: Any,
    ) -> None:
        """Create the transform.

        Args:
            lesion: One lesion with its sizes, such as ``"lung nodule:6-20mm"``.
            probability: Probability in [0, 1] that a subject gets a lesion.
            image: Name of the image in the subject, in HU.
            label: Name of the label map in the subject, on the image's grid.
            seed: Seed of everything random.
            **pool: Keywords of :class:`LesionPool`, such as ``number`` (the value of lesions in the label maps) or
                ``host_numbers``.

        Raises:
            RequestError: The text is not a single lesion with a size.
            VocabularyError: There is no such label.
        """
        self.probability, self.names = probability, (image, label)
        self.pool = LesionPool(lesion, **pool)
        self._rng = np.random.default_rng(seed)

    def __call__(self, subject: Any) -> Any:
        """Return a copy of a subject with one lesion more; by chance, or if the CT has no room, it has none more."""
        if self._rng.random() >= self.probability:
            return subject
        subject = copy.deepcopy(subject)
        image, label = (subject[name] for name in self.names)
        name = str(getattr(image, "path", None) or subject.get("case_id", ""))
        made = self.pool.insert(
            image.data[0].numpy(),
            label.data[0].numpy(),
            np.asarray(image.affine, dtype=np.float64),
            name=(name, *image.data.shape),
            rng=self._rng,
        )
        for held, new in zip((image, label), made, strict=True):
            held.set_data(held.data.new_tensor(new)[None])
        return subject
