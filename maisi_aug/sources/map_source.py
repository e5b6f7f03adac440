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
    """A label map ready for the image networks, with the lesions that it contains.

    Attributes:
        case: Content of the map: lesions as measured on this grid, in the requested order.
        label_map: ``(I, J, K)`` uint8 vocabulary ids; None for an image that is drawn without a label map.
        grid: Shape and affine of the map and its image.
        origin: Origin of the map as JSON values, the same for the same seed and bank.
        image_hu: ``(I, J, K)`` HU of a real CT into which the lesions were drawn; None if networks draw the image.
        tissue: ``(I, J, K)`` uint8 tissue ids under body (200), if the anatomy knows them; None otherwise.
    """

    case: CasePlan
    label_map: NDArray[np.uint8] | None
    grid: Grid
    origin: dict[str, Any]
    image_hu: NDArray[Any] | None = None
    tissue: NDArray[np.uint8] | None = None

    @property
    def lesions(self) -> tuple[Lesion, ...]:
        """Lesions with their realised sizes and positions in the map."""
        return self.case.lesions


class MapSource(Protocol):
    """Protocol of sources that draw label maps, which depend only on the case and the seed."""

    def draw(self, case: CasePlan, seed: int) -> DrawnMap:
        """Draw a label map with the lesions of a case and no others, in which all required organs are present.

        Args:
            case: Planned case with its lesions and required organs.
            seed: Seed of everything random.

        Returns:
            Label map with its grid, the case with realised lesions, and the map's origin.

        Raises:
            LesionError: A lesion finds no room, or none of that size is available.
            BankError: No map has what is needed.
        """
        ...

    @property
    def skipped(self) -> Sequence[tuple[str, str]]:
        """``(name, reason)`` of files that have been found unusable so far."""
        return ()

    def require_unchanged(self, origins: Iterable[Mapping[str, Any]]) -> None:
        """Raise if the files that cases were made from, according to their manifest, have changed.

        Args:
            origins: ``mask_origin`` of the cases, from their manifest.

        Raises:
            CohortError: The message names the first changed file.
        """
        return  # there are no files

    def leaves_hope(self, error: LesionError | BankError, case: CasePlan, others: Sequence[CasePlan]) -> bool:
        """Whether another case may still succeed after a case has failed with an error.

        Another case may request a size that exists, but a label that no map has fails for every case.

        Args:
            error: Error of the failed case.
            case: The failed case.
            others: Cases that are left.
        """
        is_missing = isinstance(error, BankError) and all(other.asks_for_all_of(case) for other in others)
        return bool(others) and not is_missing


class MaskBank(Protocol):
    """Protocol of banks that provide anatomies on the grid of the images.

    Attributes:
        name: Name of the bank, for messages and the manifest.
        varies: Whether every draw is a new anatomy, so that deforming it adds nothing.
        vocabulary: Vocabulary of the ids.
        grid: Grid whose shape and spacing the maps have.
    """

    name: str
    varies: bool
    vocabulary: Vocabulary
    grid: Grid

    @property
    def skipped(self) -> Sequence[tuple[str, str]]:
        """``(path, reason)`` of files that have been found unusable so far."""
        return ()

    @property
    def num_looks(self) -> int:
        """Number of maps to examine to represent the bank; few suffice if patients resemble each other."""
        return NUM_LOOKS

    def require_unchanged(self, origins: Iterable[Mapping[str, Any]]) -> None:
        """Raise :class:`CohortError` if files of the bank have changed since cases were made from them.

        Args:
            origins: ``mask_origin`` of the cases, from their manifest.
        """
        return  # there are no files

    def draw_bases(self, lesions: Sequence[Lesion], *, required_ids: Sequence[int], seed: int) -> Iterator[BaseMap]:
        """Yield label maps that may host the lesions, in seeded random order, without end or until none is suitable.

        Args:
            lesions: Lesions to be planted.
            required_ids: Vocabulary ids that must be present.
            seed: Seed of order and position.
        """
        ...


class BankedSource(MapSource, Protocol):
    """Protocol of sources that draw label maps from a bank.

    Attributes:
        bank: Bank of the anatomies.
    """

    bank: MaskBank

    @property
    def skipped(self) -> Sequence[tuple[str, str]]:
        """``(name, reason)`` of files of the bank that have been found unusable so far."""
        return self.bank.skipped

    def require_unchanged(self, origins: Iterable[Mapping[str, Any]]) -> None:
        """Raise :class:`CohortError` if files of the bank have changed since cases were made from them.

        Args:
            origins: ``mask_origin`` of the cases, from their manifest.
        """
        self.bank.require_unchanged(origins)

    def describe_base(self, source: str, base: BaseMap, *, number: int, seed: int) -> dict[str, Any]:
        """Return the origin of a label map that was made from one of the bank's, for the manifest.

        Args:
            source: Name of the mask source.
            base: Map of the bank.
            number: Number of the map among those tried, from 0.
            seed: Seed of the draw.
        """
        return {"source": source, "bank": self.bank.name, **base.origin, "seed": seed, "base": number}


def draw_from_any(
    bases: Iterable[Base],
    draw: Callable[[int, Base], Drawn | None],
    *,
    gives_up: Callable[[Base], bool] = lambda base: False,
) -> Drawn | None:
    """Try one base map after another until a draw succeeds; return its result, or None.

    Args:
        bases: Base maps to draw from.
        draw: Function of the base's number, from 0, and the base; it returns None or raises LesionError for an
            unsuitable base.
        gives_up: Function of the base, called after every LesionError; returns whether to stop.

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
    """Deform a label map with a random strength between half of ``most`` and ``most``.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids; not modified.
        spacing_mm: Voxel sides along I, J, K in mm.
        rng: Generator of all random draws.
        most: Largest strength, see :func:`~maisi_aug.lesions.deformation.deform_label_map`.

    Returns:
        The deformed label map, and the strength for the manifest.
    """
    strength = round(float(rng.uniform(0.5, 1.0)) * most, 3)
    deformed = deform_label_map(label_map, spacing_mm=spacing_mm, rng=rng, strength=strength)
    return deformed, {"deform_strength": strength}


def plant_case(case: CasePlan, base: BaseMap, rng: np.random.Generator) -> DrawnMap | None:
    """Plant the lesions of a case in a label map without lesions; None if the map lacks a required organ.

    Args:
        case: Planned case.
        base: Label map without lesions.
        rng: Generator of all random draws.

    Raises:
        LesionError: A lesion does not fit.
    """
    label_map, planted = plant_lesions(base.label_map, case.lesions, spacing_mm=base.grid.spacing_mm, rng=rng)
    if not has_all(label_map, case.required_ids):
        return None
    return DrawnMap(replace(case, lesions=planted), label_map, base.grid, base.origin, tissue=base.tissue)


def has_all(label_map: NDArray[np.uint8], label_ids: Sequence[int]) -> bool:
    """Whether an ``(I, J, K)`` label map contains every one of the given ids.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids.
        label_ids: Ids that must occur.
    """
    counts = np.bincount(label_map.ravel(), minlength=256)
    return all(counts[label_id] > 0 for label_id in label_ids)
