"""Lesions that are drawn into the real cases of nnU-Net's training while it reads them.

What is read is preprocessed: resampled, its axes moved, its HU clipped and scaled. A lesion is drawn on that very grid,
in HU that the scaling is undone for, and is shown several times before another takes its place (see ``LesionPool``).
Only what a patch needs is decompressed, as without lesions: a case is read whole the first time and for every new one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import ExportError, TrainingError
from maisi_aug.integrations.insertion import DrawnLesion, LesionPool, WholeCt
from maisi_aug.integrations.nnunet.folders import MARK_KEY
from maisi_aug.volumes.grid import Grid

INSERT_KEY = "insert"
"""Key in the mark of ``dataset.json`` for the lesions to insert, see :class:`InsertSettings`."""
SCHEME, DEFAULT_SHARE = "CTNormalization", 0.5
_NUMBER = re.compile(r"\d*\.?\d+")


@dataclass(frozen=True, slots=True)
class InsertSettings:
    """Lesions that nnU-Net's trainer inserts into real cases during training.

    Attributes:
        lesion: Lesion of the lung with its sizes, as in ``maisi-aug insert --labels``.
        number: Label number of the lesion in the dataset.
        share: Fraction of the real cases that get a lesion when they are read.
    """

    lesion: str
    number: int
    share: float = DEFAULT_SHARE

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dict for ``dataset.json``."""
        return {"lesion": self.lesion, "number": self.number, "share": self.share}

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> InsertSettings | None:
        """Return the settings in a ``dataset.json``; None if nothing is inserted.

        Raises:
            TrainingError: The settings are invalid.
        """
        mark = description.get(MARK_KEY)
        held = mark.get(INSERT_KEY) if isinstance(mark, dict) else None
        if held is None:
            return None
        try:
            return cls(str(held["lesion"]), int(held["number"]), float(held["share"]))
        except (TypeError, KeyError, ValueError):
            raise TrainingError(
                f"dataset.json: '{MARK_KEY}/{INSERT_KEY}' must hold lesion, number and share, found {held}. Export "
                "the dataset again."
            ) from None


def parse_insertion(text: str, labels: Mapping[str, Any]) -> InsertSettings:
    """Parse ``LABEL=LESION:SIZE[@SHARE]``, such as ``nodule=lung nodule:6-20mm@0.5``.

    Args:
        text: Value of the option.
        labels: Label name -> number in the real dataset.

    Raises:
        ExportError: The text has another form, the dataset has no such label, or the share is invalid.
        RequestError: The request is not a single lesion of the lung with a size.
        VocabularyError: There is no such lesion.
    """
    name, _, rest = (part.strip() for part in text.partition("="))
    lesion, at, written = (part.strip() for part in rest.partition("@"))
    numbers = {label: value for label, value in labels.items() if isinstance(value, int) and value}
    if not lesion or name not in numbers:
        raise ExportError(
            f"--insert '{text}': expected LABEL=LESION:SIZE with a label of the real dataset "
            f"({', '.join(numbers)}), found '{name}'. Write it as in --insert 'nodule=lung nodule:6-20mm'."
        )
    share = float(written) if _NUMBER.fullmatch(written) else 0.0 if at else DEFAULT_SHARE
    if not 0 < share <= 1:
        raise ExportError(f"--insert '{text}': expected a share above 0 and up to 1, found '{written}'.")
    LesionPool(lesion, number=numbers[name])  # refuses what cannot be drawn
    return InsertSettings(lesion, numbers[name], share)


@dataclass(frozen=True, slots=True)
class CtScaling:
    """nnU-Net's scaling of HU: clipping to percentiles, then subtracting the mean and dividing by the deviation.

    Attributes:
        mean_hu: Mean HU of the voxels with a label.
        deviation_hu: Standard deviation of the clipped HU.
        limits_hu: Lower and upper HU of the clipping.
    """

    mean_hu: float
    deviation_hu: float
    limits_hu: tuple[float, float]

    @classmethod
    def of(cls, plans: Mapping[str, Any], schemes: Collection[str]) -> CtScaling:
        """Return the scaling of the first channel from a dataset's plans.

        Args:
            plans: Content of ``nnUNetPlans.json``.
            schemes: Names of the normalisation schemes of the channels, in their order.

        Raises:
            TrainingError: The channel is not scaled as a CT.
        """
        if list(schemes)[:1] != [SCHEME]:
            raise TrainingError(
                f"Plans: lesions can only be inserted under {SCHEME}, found {', '.join(schemes) or 'nothing'}. "
                "Export without --insert."
            )
        held = plans["foreground_intensity_properties_per_channel"]["0"]
        limits_hu = float(held["percentile_00_5"]), float(held["percentile_99_5"])
        return cls(float(held["mean"]), max(float(held["std"]), 1e-8), limits_hu)

    def to_hu(self, scaled: NDArray[Any]) -> NDArray[np.float32]:
        """Convert scaled voxels of any shape back to float32 HU; what the scaling has clipped is not restored."""
        return np.asarray(scaled * self.deviation_hu + self.mean_hu, dtype=np.float32)

    def from_hu(self, image_hu: NDArray[Any]) -> NDArray[np.float32]:
        """Clip HU of any shape to the plans' percentiles and scale them to float32 as nnU-Net does."""
        return np.asarray((np.clip(image_hu, *self.limits_hu) - self.mean_hu) / self.deviation_hu, dtype=np.float32)


class PatchedArray:
    """Array in a file, ``(C, Z, Y, X)``, of which a box is replaced; slices are read on request."""

    def __init__(self, array: Any, box: tuple[slice, ...], shown: NDArray[Any], where: NDArray[np.bool_]) -> None:
        """Lay values over an array.

        Args:
            array: Array with a shape, a type and slicing.
            box: Along all axes of the array.
            shown: Values in the box, of its shape.
            where: Which of them are shown, of its shape.
        """
        self._array, self._box, self._shown, self._where = array, box, shown, where
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, len(array.shape)

    def __getitem__(self, places: Any) -> NDArray[Any]:
        """Return what the array holds at slices of step 1 along its axes, with what is laid over it."""
        places = places if isinstance(places, tuple) else (places,)
        places = tuple(
            slice(*place.indices(side)) if isinstance(place, slice) else slice(place, place + 1)
            for place, side in zip((*places, *[slice(None)] * (self.ndim - len(places))), self.shape, strict=True)
        )
        found = np.array(self._array[places])
        inner, outer = [], []
        for place, part in zip(places, self._box, strict=True):
            start, stop = max(place.start, part.start), min(place.stop, part.stop)
            if start >= stop:
                return found
            inner.append(slice(start - part.start, stop - part.start))
            outer.append(slice(start - place.start, stop - place.start))
        shown, where = self._shown[tuple(inner)], self._where[tuple(inner)]
        found[tuple(outer)][where] = shown[where].astype(found.dtype)
        return found


class InsertingDataset:
    """nnU-Net dataset whose real cases get a lesion in a fraction of the times that they are read."""

    def __init__(
        self,
        dataset: Any,
        settings: InsertSettings,
        scaling: CtScaling,
        *,
        spacing_mm: Collection[float],
        left_alone: Collection[str],
        pool: LesionPool | None = None,
    ) -> None:
        """Wrap a dataset.

        Args:
            dataset: nnU-Net's.
            settings: Settings of the lesions.
            scaling: Scaling of its images.
            spacing_mm: Along the axes of its arrays, Z, Y, X.
            left_alone: Identifiers of cases that get none, such as synthetic ones.
            pool: Draws; the procedural painter's when not given.
        """
        self._dataset, self._settings, self._scaling = dataset, settings, scaling
        self._left_alone = frozenset(left_alone)
        self._affine = np.diag([*reversed([float(step) for step in spacing_mm]), 1.0])
        self._pool = pool or LesionPool(settings.lesion, number=settings.number)

    def __getattr__(self, name: str) -> Any:
        if name == "_dataset":  # while a worker process unpickles it, there is none yet
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __getitem__(self, identifier: str) -> Any:
        return self.load_case(identifier)

    def load_case(self, identifier: str) -> Any:
        """Return image, label map, label map of an earlier stage and properties of a case, as nnU-Net does."""
        image, label_map, earlier, facts = self._dataset.load_case(identifier)
        # NumPy's global stream, which nnU-Net seeds anew in each worker; a generator of ours would be the same in all.
        seed, chance = np.random.randint(2**31), np.random.uniform()  # noqa: NPY002
        if identifier in self._left_alone or chance >= self._settings.share:
            return image, label_map, earlier, facts
        drawn = self._pool.take(identifier, lambda: self._load_whole(image, label_map), np.random.default_rng(seed))
        if drawn is None:
            return image, label_map, earlier, facts
        box = (slice(0, 1), *drawn.box[::-1])
        shown = self._scaling.from_hu(drawn.after).T[None]
        is_changed = (drawn.after != drawn.before).T[None]
        lesion = drawn.lesion.T[None]
        number = np.full(lesion.shape, self._settings.number)
        return (
            PatchedArray(image, box, shown, is_changed),
            PatchedArray(label_map, box, number, lesion),
            earlier,
            self._locate(facts, drawn),
        )

    def _load_whole(self, image: Any, label_map: Any) -> WholeCt:
        """A case in HU along X, Y, Z; what lies outside of nnU-Net's crop has the label 0."""
        image_hu = self._scaling.to_hu(np.asarray(image[0:1])[0].T)
        labels = np.maximum(np.asarray(label_map[0:1])[0].T, 0)
        return WholeCt(image_hu, labels, Grid(image_hu.shape, self._affine))

    def _locate(self, facts: Mapping[str, Any], drawn: DrawnLesion) -> dict[str, Any]:
        """The facts of a case, in which nnU-Net finds voxels of the lesion to lay patches around."""
        places = np.argwhere(drawn.lesion) + [part.start for part in drawn.box]
        rows = np.column_stack([np.zeros(len(places), dtype=int), places[:, ::-1]])
        known = facts["class_locations"].get(self._settings.number)
        both = rows if known is None or not len(known) else np.concatenate([np.asarray(known), rows])
        return {**facts, "class_locations": {**facts["class_locations"], self._settings.number: both}}
