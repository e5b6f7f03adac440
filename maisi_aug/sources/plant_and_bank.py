"""The mask sources ``plant`` and ``bank``: where the label map of a case comes from.

A bank hands out anatomies on the networks' grid. ``PlantSource`` plants lesions of exact volume in them, ``BankSource``
takes maps that already hold such lesions. Everything a draw decides follows from its seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from maisi_aug.banks.folder_bank import FolderBank
from maisi_aug.banks.label_map import BankLesion, BankMap, BaseMap, cut_map
from maisi_aug.banks.listing import Needs
from maisi_aug.errors import BankError, LesionError
from maisi_aug.lesions.editing import MAX_RESIZE, describe_lesion, remove_lesions, resize_lesion
from maisi_aug.lesions.growth import in_words
from maisi_aug.lesions.planting import (
    LesionWish,
    PlantedLesion,
    deform_label_map,
    host_volumes_ml,
    largest_that_fits_ml,
    plant_lesions,
)
from maisi_aug.system.seeds import derive_seed, numpy_generator
from maisi_aug.vocabulary.labels import Vocabulary
from maisi_aug.volumes.components import is_any_of, label_parts
from maisi_aug.volumes.grid import Grid, voxel_volume_ml

__all__ = [
    "BankSource",
    "BaseMap",
    "DrawnMap",
    "FolderBank",
    "MaskBank",
    "PhantomBank",
    "PlantSource",
]

MAX_BASES = 12
NUM_LOOKS = 3
"""Maps after which a lesion far larger than its hosts in all of them is given up."""
FAR_TOO_LARGE = 1.5
"""Largest organ of its kind among many patients, relative to the largest among ``NUM_LOOKS`` of them."""
MAX_CANDIDATES = 64
"""How many maps of a bank that hold the lesion are compared by its volume."""


@dataclass(frozen=True, eq=False)
class DrawnMap:
    """A label map ready for the networks.

    Attributes:
        label_map: ``(I, J, K)`` uint8 vocabulary ids.
        grid: Its geometry.
        origin: Where it came from: plain JSON values, the same for the same seed and bank.
        lesions: The lesions asked for, measured on this grid, in the order asked for.
    """

    label_map: NDArray[np.uint8]
    grid: Grid
    origin: dict[str, Any]
    lesions: tuple[PlantedLesion, ...]


class MaskBank(Protocol):
    """Hands out anatomies on the networks' grid.

    Attributes:
        name: For messages and the manifest.
        varies: Whether every draw is a new anatomy, so that deforming it adds nothing.
        vocabulary: Meaning of the ids.
        grid: Shape and spacing of the maps.
    """

    name: str
    varies: bool
    vocabulary: Vocabulary
    grid: Grid

    def draw_bases(self, lesions: Sequence[LesionWish], *, required_ids: Sequence[int], seed: int) -> Iterator[BaseMap]:
        """Maps that may host the lesions, in the random order of the seed; more are drawn as more are taken."""
        ...


class PhantomBank:
    """Procedural anatomies: as many as one likes, none of them stored.

    Attributes:
        name: "phantom".
        varies: True: every draw is another patient.
    """

    varies = True

    def __init__(self, *, vocabulary: Vocabulary, grid: Grid) -> None:
        self.name = "phantom"
        self.vocabulary = vocabulary
        self.grid = grid

    def draw_bases(self, lesions: Sequence[LesionWish], *, required_ids: Sequence[int], seed: int) -> Iterator[BaseMap]:
        """Anatomies whose window shows the lesions' hosts and the required organs."""
        from maisi_aug.phantom import build_label_map, region_for

        wanted = [*(wish.label_id for wish in lesions), *required_ids]
        regions: list[Literal["chest", "abdomen", "pelvis", "any"]] = [region_for(label_id) for label_id in wanted]
        regions = list(dict.fromkeys(regions)) or ["any"]
        number = 0
        while True:
            phantom_seed = derive_seed(seed, "phantom", number)
            anatomy = build_label_map(seed=phantom_seed, grid=self.grid, region=regions[number % len(regions)])
            origin = {"phantom_seed": phantom_seed, "region": anatomy.region}
            yield BaseMap(anatomy.label_map, self.grid, origin)
            number += 1


@dataclass(frozen=True)
class PlantSource:
    """Plants lesions of exact volume in the maps of a bank.

    Attributes:
        bank: Where the anatomies come from.
        deform_strength: Upper end of the elastic variety given to maps of a bank that repeats itself.
        max_bases: Maps to try before giving up; a lesion far larger than its hosts is given up after ``NUM_LOOKS``.
    """

    bank: MaskBank
    deform_strength: float = 1.0
    max_bases: int = MAX_BASES

    def draw(self, lesions: Sequence[LesionWish], *, required_ids: Sequence[int] = (), seed: int) -> DrawnMap:
        """A map with these lesions and no other, in which all required organs are present.

        Args:
            lesions: What to plant.
            required_ids: Organs that must be in the map.
            seed: Decides everything.

        Returns:
            The map, with the lesions measured on its grid.

        Raises:
            LesionError: A lesion found no room in ``max_bases`` maps, or cannot find any.
            BankError: No map has the hosts and the required organs.
        """
        failure: LesionError | None = None
        hosts: list[_Hosts] = []
        bases = self.bank.draw_bases(lesions, required_ids=required_ids, seed=seed)
        for attempt, base in enumerate(islice(bases, self.max_bases)):
            try:
                drawn = self._plant(base, lesions, required_ids, attempt, seed)
            except LesionError as error:
                failure = error
                hosts.append(_Hosts.measure(base, lesions))
                if len(hosts) >= _num_looks(self.bank) and _is_hopeless(lesions, hosts):
                    break
                continue
            if drawn is not None:
                return drawn
        if failure is not None:
            raise self._with_largest(failure, lesions, hosts, seed) from failure
        raise _nothing_fits(self.bank, lesions, required_ids)

    def _with_largest(
        self, failure: LesionError, lesions: Sequence[LesionWish], hosts: Sequence[_Hosts], seed: int
    ) -> LesionError:
        """The failure, and the largest of the lesion that is hardest to place that fits in the roomiest map."""
        place = max(
            range(len(lesions)), key=lambda n: lesions[n].volume_ml / max(1e-9, _roomiest(hosts, n).rooms[n][1])
        )
        best = _roomiest(hosts, place).base
        healthy = remove_lesions(best.label_map, self.bank.vocabulary, spacing_mm=best.grid.spacing_mm)
        rng = numpy_generator(seed, "largest that fits")
        volume_ml = largest_that_fits_ml(healthy, lesions[place], spacing_mm=best.grid.spacing_mm, rng=rng)
        seen = f"{len(hosts)} label maps" if len(hosts) > 1 else "the label map"
        fits = f"about {in_words(volume_ml)}" if volume_ml else "none"
        return LesionError(f"{failure} The largest that fits, by {seen} of '{self.bank.name}': {fits}.")

    def _plant(
        self, base: BaseMap, lesions: Sequence[LesionWish], required_ids: Sequence[int], attempt: int, seed: int
    ) -> DrawnMap | None:
        rng = numpy_generator(seed, f"plant {attempt}")
        spacing_mm = base.grid.spacing_mm
        label_map = remove_lesions(base.label_map, self.bank.vocabulary, spacing_mm=spacing_mm)
        origin = {"source": "plant", "bank": self.bank.name, **base.origin, "seed": seed, "base": attempt}
        if not self.bank.varies:
            strength = round(float(rng.uniform(0.5, 1.0)) * self.deform_strength, 3)
            label_map = deform_label_map(label_map, spacing_mm=spacing_mm, rng=rng, strength=strength)
            origin["deform_strength"] = strength
        label_map, planted = plant_lesions(label_map, lesions, spacing_mm=spacing_mm, rng=rng)
        if not has_all(label_map, required_ids):
            return None
        return DrawnMap(label_map, base.grid, origin, planted)


@dataclass(frozen=True)
class BankSource:
    """Takes maps of a bank that already hold the lesions.

    A lesion of the nearest volume is chosen, all other tumours are turned back into their host, the map is deformed,
    and the lesion is then brought to the volume asked for, if that is at most twice or half its own.

    Attributes:
        bank: A bank of stored maps.
        deform_strength: Upper end of the elastic variety.
        max_bases: Maps to try before giving up.
    """

    bank: FolderBank
    deform_strength: float = 0.6
    max_bases: int = MAX_BASES

    def draw(self, lesions: Sequence[LesionWish], *, required_ids: Sequence[int] = (), seed: int) -> DrawnMap:
        """A map that holds these lesions, in which all required organs are present.

        Args:
            lesions: What the map shall hold.
            required_ids: Organs that must be in the map.
            seed: Decides everything.

        Returns:
            The map, with the lesions measured on its grid.

        Raises:
            LesionError: The bank's lesions are all far from the volume asked for.
            BankError: No map holds such lesions.
        """
        found = self._find(lesions, required_ids, seed)
        for attempt, (index, chosen) in enumerate(islice(found, self.max_bases)):
            bank_map = self.bank.load(index)
            if bank_map is None:
                continue
            drawn = self._take(bank_map, chosen, lesions, required_ids, attempt, seed)
            if drawn is not None:
                return drawn
        raise _nothing_fits(self.bank, lesions, required_ids)

    def _find(
        self, lesions: Sequence[LesionWish], required_ids: Sequence[int], seed: int
    ) -> Iterator[tuple[int, list[BankLesion]]]:
        """Maps and their lesions, one per wish, in the bank's order, those of near volumes first; read as needed."""
        wanted = frozenset(wish.label_id for wish in lesions)
        needs = Needs(wanted.union(required_ids), only_tumor_ids=wanted)
        others: list[tuple[float, int, int, list[BankLesion]]] = []
        num_near = 0
        for place, index in enumerate(self.bank.order(seed, needs)):
            is_usable = needs.are_met_by(self.bank.ids_of(index))
            chosen = _choose_lesions(self.bank, index, lesions) if is_usable else None
            if chosen is None:
                continue
            ratios = [abs(np.log2(own.volume_ml / wish.volume_ml)) for own, wish in zip(chosen, lesions, strict=True)]
            # Within half of what resizing reaches, any lesion does: the bank's order then gives the variety.
            if max(ratios, default=0.0) <= 0.5 * np.log2(MAX_RESIZE):
                num_near += 1
                yield index, chosen
            else:
                others.append((max(ratios), place, index, chosen))
            if num_near + len(others) == MAX_CANDIDATES:
                break
        if not num_near and not others:
            raise _holds_none(self.bank, lesions)
        others.sort(key=lambda row: row[:2])
        if not num_near and others[0][0] > np.log2(MAX_RESIZE):
            raise _far_off(self.bank, lesions, others[0][3])
        yield from ((index, chosen) for _, _, index, chosen in others)

    def _take(
        self,
        bank_map: BankMap,
        chosen: Sequence[BankLesion],
        lesions: Sequence[LesionWish],
        required_ids: Sequence[int],
        attempt: int,
        seed: int,
    ) -> DrawnMap | None:
        rng = numpy_generator(seed, f"take {attempt}")
        kept = bank_map.mask_of(chosen)
        own_mm = bank_map.grid.spacing_mm
        only = remove_lesions(bank_map.label_map, self.bank.vocabulary, spacing_mm=own_mm, keep=kept)
        one = BankMap(bank_map.name, only, bank_map.grid, bank_map.sha256, bank_map.image_name)
        focus = [lesion.box for lesion in chosen] + [one.boxes[i] for i in required_ids if i in one.boxes]
        base = cut_map(one, self.bank.grid, focus, rng=rng, keep_ids=sorted({wish.label_id for wish in lesions}))
        spacing_mm = base.grid.spacing_mm
        strength = round(float(rng.uniform(0.5, 1.0)) * self.deform_strength, 3)
        label_map = deform_label_map(base.label_map, spacing_mm=spacing_mm, rng=rng, strength=strength)
        sized = match_volumes(label_map, lesions, spacing_mm)
        if sized is None or not has_all(sized[0], required_ids):
            return None
        origin = {
            "source": "bank",
            "bank": self.bank.name,
            **base.origin,
            "seed": seed,
            "base": attempt,
            "deform_strength": strength,
        }
        origin["original_ml"] = [round(lesion.volume_ml, 4) for lesion in chosen]
        return DrawnMap(sized[0], base.grid, origin, sized[1])


def _num_looks(bank: MaskBank) -> int:
    """How many maps show about what the bank has: patients resemble each other, parts of them in files need not."""
    return max(NUM_LOOKS, len(bank)) if isinstance(bank, FolderBank) else NUM_LOOKS


@dataclass(frozen=True, eq=False)
class _Hosts:
    """A map in which planting failed, and for every lesion the volume of its hosts: all, and the largest part."""

    base: BaseMap
    rooms: tuple[tuple[float, float], ...]

    @classmethod
    def measure(cls, base: BaseMap, lesions: Sequence[LesionWish]) -> _Hosts:
        hosts = (is_any_of(base.label_map, wish.hosts) for wish in lesions)
        return cls(base, tuple(host_volumes_ml(host, base.grid.spacing_mm) for host in hosts))


def _roomiest(hosts: Sequence[_Hosts], place: int) -> _Hosts:
    return max(hosts, key=lambda seen: seen.rooms[place][1])


def _is_hopeless(lesions: Sequence[LesionWish], hosts: Sequence[_Hosts]) -> bool:
    """Whether a lesion, or all that share its hosts, is far larger than these are in every map that shows them."""
    rooms = np.max([seen.rooms for seen in hosts], axis=0)
    for wish, (total_ml, largest_ml) in zip(lesions, rooms, strict=True):
        limit_ml = largest_ml * (1.0 if wish.rule is None else wish.rule.max_host_share)
        if 0 < FAR_TOO_LARGE * limit_ml < wish.volume_ml and wish.rule is not None:
            return True
        together_ml = sum(other.volume_inside_ml for other in lesions if other.hosts == wish.hosts)
        if 0 < FAR_TOO_LARGE * largest_ml < wish.volume_inside_ml or 0 < FAR_TOO_LARGE * total_ml < together_ml:
            return True
    return False


def _choose_lesions(bank: FolderBank, index: int, lesions: Sequence[LesionWish]) -> list[BankLesion] | None:
    """For every wish another lesion of the map, the largest wish choosing first; None if there are too few."""
    chosen: dict[int, BankLesion] = {}
    for place in sorted(range(len(lesions)), key=lambda n: -lesions[n].volume_ml):
        wish = lesions[place]
        free = [own for own in bank.lesions_of(index, wish.label_id) if own not in chosen.values()]
        if not free:
            return None
        chosen[place] = min(free, key=lambda own: abs(np.log(own.volume_ml / wish.volume_ml)))
    return [chosen[place] for place in range(len(lesions))]


def match_volumes(
    label_map: NDArray[np.uint8], lesions: Sequence[LesionWish], spacing_mm: Sequence[float]
) -> tuple[NDArray[np.uint8], tuple[PlantedLesion, ...]] | None:
    """Bring the lesions of a cut to the wanted volumes; None if the cut lost, tore or joined one."""
    voxel_ml = voxel_volume_ml(spacing_mm)
    realised: dict[int, PlantedLesion] = {}
    for label_id in sorted({wish.label_id for wish in lesions}):
        places = sorted(
            (place for place, wish in enumerate(lesions) if wish.label_id == label_id),
            key=lambda place: -lesions[place].volume_ml,
        )
        parts, num_parts = label_parts(label_map == label_id)
        if num_parts != len(places):
            return None
        numbers = np.argsort(-np.bincount(parts.ravel())[1:], kind="stable") + 1
        for place, number in zip(places, numbers, strict=True):
            wish, lesion = lesions[place], parts == number
            target = max(1, round(wish.volume_ml / voxel_ml))
            if 1 / MAX_RESIZE <= target / int(lesion.sum()) <= MAX_RESIZE:
                label_map, lesion = resize_lesion(
                    label_map, lesion, num_voxels=target, hosts=wish.hosts, spacing_mm=spacing_mm
                )
            realised[place] = describe_lesion(label_map, lesion, hosts=wish.hosts, spacing_mm=spacing_mm)
    return label_map, tuple(realised[place] for place in range(len(lesions)))


def has_all(label_map: NDArray[np.uint8], label_ids: Sequence[int]) -> bool:
    """Whether a map holds every one of the ids."""
    counts = np.bincount(label_map.ravel(), minlength=256)
    return all(counts[label_id] > 0 for label_id in label_ids)


def _names_of(bank: MaskBank, label_ids: Sequence[int]) -> str:
    shown = [bank.vocabulary.name_of(label_id) for label_id in label_ids[:4]]
    return ", ".join(shown) + (f" and {len(label_ids) - 4} more" if len(label_ids) > 4 else "")


def _num_skipped(bank: MaskBank) -> str:
    skipped = bank.skipped if isinstance(bank, FolderBank) else []
    return f" ({len(skipped)} skipped)" if skipped else ""


def _nothing_fits(bank: MaskBank, lesions: Sequence[LesionWish], required_ids: Sequence[int]) -> BankError:
    needs = [f"a host of {_names_of(bank, [wish.label_id])} ({_names_of(bank, wish.hosts)})" for wish in lesions]
    needs += [_names_of(bank, required_ids)] if required_ids else []
    return BankError(
        f"Mask bank '{bank.name}': expected a map with {' and '.join(dict.fromkeys(needs)) or 'any organ'}, found none"
        f"{_num_skipped(bank)}. Ask for other labels or give another bank."
    )


def _holds_none(bank: FolderBank, lesions: Sequence[LesionWish]) -> BankError:
    names = " and ".join(dict.fromkeys(_names_of(bank, [wish.label_id]) for wish in lesions)) or "labels"
    return BankError(
        f"Mask bank '{bank.name}': expected a map that holds {names}, found none{_num_skipped(bank)}. "
        "Use --mask-source plant to plant the lesions."
    )


def _far_off(bank: FolderBank, lesions: Sequence[LesionWish], nearest: Sequence[BankLesion]) -> LesionError:
    wanted = ", ".join(f"{_names_of(bank, [wish.label_id])} of {wish.volume_ml:.2f} mL" for wish in lesions)
    found = ", ".join(f"{lesion.volume_ml:.2f} mL" for lesion in nearest)
    return LesionError(
        f"Mask bank '{bank.name}': expected {wanted}, or at most {MAX_RESIZE:g} times larger or smaller, found {found} "
        "as the nearest. Ask for another size, or use --mask-source plant."
    )
