"""Common interface of all sources of label maps: draw the map of a case, and handle those that fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from maisi_aug.banks.folder_bank import NUM_LOOKS
from maisi_aug.banks.label_map import BaseMap
from maisi_aug.cohort.plan import CasePlan
from maisi_aug.errors import BankError, LesionError
from maisi_aug.lesions.deformation import deform_label_map
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.lesions.planting import plant_lesions
from maisi_aug.vocabulary.labels import Vocabulary
from maisi_aug.volumes.grid import Grid, Spacing

Base = TypeVar("Base")
Drawn = TypeVar("Drawn")


@dataclass(frozen=True, eq=False)
class DrawnMap:
    """A label map ready for the networks.

    Attributes:
        case: Its content: lesions measured on this grid, in the requested order.
        label_map: ``(I, J, K)`` uint8 vocabulary ids; None where an image is drawn without one.
        grid: Geometry of the map and its image.
        origin: Origin of the map: plain JSON values, the same for the same seed and bank.
        image_hu: ``(I, J, K)`` where the lesions were drawn into a real image; None where the networks draw the image.
    """

    case: CasePlan
    label_map: NDArray[np.uint8] | None
    grid: Grid
    origin: dict[str, Any]
    image_hu: NDArray[Any] | None = None

    @property
    def lesions(self) -> tuple[Lesion, ...]:
        """The lesions, as they lie in the map."""
        return self.case.lesions


class MapSource(Protocol):
    """Draws label maps that depend only on the case and the seed."""

    def draw(self, case: CasePlan, seed: int) -> DrawnMap:
        """Return a map with the lesions of a case and no other, in which all its required organs are present.

        Raises:
            LesionError: A lesion finds no room, or none of that size is available.
            BankError: No map has what is needed.
        """
        ...

    @property
    def skipped(self) -> Sequence[tuple[str, str]]:
        """``(name, reason)`` of files that could not be used, so far."""
        return ()

    def require_unchanged(self, origins: Iterable[Mapping[str, Any]]) -> None:
        """Raise if the files that cases were made from, according to their manifest, have changed.

        Raises:
            CohortError: The message names the first changed file.
        """
        return  # there are no files

    def leaves_hope(self, error: LesionError | BankError, case: CasePlan, others: Sequence[CasePlan]) -> bool:
        """Whether one of the other cases may still succeed after a case has failed with an error.

        Another case may request a size that exists, but a label that no map has fails for every case.
        """
        is_missing = isinstance(error, BankError) and all(other.asks_for_all_of(case) for other in others)
        return bool(others) and not is_missing


class MaskBank(Protocol):
    """Source of anatomies on the networks' grid.

    Attributes:
        name: Name of the bank, for messages and the manifest.
        varies: Whether every draw is a new anatomy, so that deforming it adds nothing.
        vocabulary: Meaning of the ids.
        grid: Shape and spacing of the maps.
    """

    name: str
    varies: bool
    vocabulary: Vocabulary
    grid: Grid

    @property
    def skipped(self) -> Sequence[tuple[str, str]]:
        """``(path, reason)`` of files that could not be used, so far."""
        return ()

    @property
    def num_looks(self) -> int:
        """Number of maps that represent the bank, since patients resemble each other."""
        return NUM_LOOKS

    def require_unchanged(self, origins: Iterable[Mapping[str, Any]]) -> None:
        """Raise if the files that cases were made from have changed."""
        return  # there are no files

    def draw_bases(self, lesions: Sequence[Lesion], *, required_ids: Sequence[int], seed: int) -> Iterator[BaseMap]:
        """Maps that may host the lesions, in the random order of the seed; more are drawn as more are taken."""
        ...


class BankedSource(MapSource, Protocol):
    """A source that draws from a bank.

    Attributes:
        bank: Bank of the anatomies.
    """

    bank: MaskBank

    @property
    def skipped(self) -> Sequence[tuple[str, str]]:
        """``(name, reason)`` of the bank's files that could not be used, so far."""
        return self.bank.skipped

    def require_unchanged(self, origins: Iterable[Mapping[str, Any]]) -> None:
        """Raise if the bank's files that cases were made from have changed."""
        self.bank.require_unchanged(origins)

    def describe_base(self, source: str, base: BaseMap, *, number: int, seed: int) -> dict[str, Any]:
        """Return the origin of a map that is made from one of the bank's."""
        return {"source": source, "bank": self.bank.name, **base.origin, "seed": seed, "base": number}


def draw_from_any(
    bases: Iterable[Base],
    draw: Callable[[int, Base], Drawn | None],
    *,
    gives_up: Callable[[Base], bool] = lambda base: False,
) -> Drawn | None:
    """Draw from one base after another until a draw succeeds; return its result, or None.

    Args:
        bases: Bases to draw from.
        draw: Told the number of the base, from 0, and the base; None or LesionError for one that will not do.
        gives_up: Asked after every LesionError, with the base.

    Raises:
        LesionError: The last error, if no draw succeeded.
    """
    failure: LesionError | None = None
    for number, base in enumerate(bases):
        try:
            drawn = draw(number, base)
        except LesionError as error:
            failure = error
            if gives_up(base):
                break
            continue
        if drawn is not None:
            return drawn
    if failure is not None:
        raise failure
    return None


def deform_at_random(
    label_map: NDArray[np.uint8], spacing_mm: Spacing, rng: np.random.Generator, *, most: float
) -> tuple[NDArray[np.uint8], dict[str, float]]:
    """Return the map deformed with a strength between half of ``most`` and ``most``, and the strength."""
    strength = round(float(rng.uniform(0.5, 1.0)) * most, 3)
    deformed = deform_label_map(label_map, spacing_mm=spacing_mm, rng=rng, strength=strength)
    return deformed, {"deform_strength": strength}


def plant_case(case: CasePlan, base: BaseMap, rng: np.random.Generator) -> DrawnMap | None:
    """Return a map without lesions with those of a case planted in it; None if it lacks a required organ.

    Raises:
        LesionError: A lesion finds no room.
    """
    label_map, planted = plant_lesions(base.label_map, case.lesions, spacing_mm=base.grid.spacing_mm, rng=rng)
    if not has_all(label_map, case.required_ids):
        return None
    return DrawnMap(replace(case, lesions=planted), label_map, base.grid, base.origin)


def has_all(label_map: NDArray[np.uint8], label_ids: Sequence[int]) -> bool:
    """Whether a map holds every one of the ids."""
    counts = np.bincount(label_map.ravel(), minlength=256)
    return all(counts[label_id] > 0 for label_id in label_ids)
