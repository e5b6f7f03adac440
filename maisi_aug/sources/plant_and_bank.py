"""The mask sources ``plant`` and ``bank``: where the label map of a case comes from.

A bank hands out anatomies on the networks' grid. ``PlantSource`` plants lesions of exact volume in them, ``BankSource``
takes maps that already hold such lesions. Everything a draw decides follows from its seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from maisi_aug.banks.entry import Needs
from maisi_aug.banks.folder_bank import FolderBank
from maisi_aug.banks.label_map import BankLesion, BaseMap, cut_map
from maisi_aug.cohort.plan import CasePlan
from maisi_aug.errors import BankError, LesionError
from maisi_aug.lesions.editing import MAX_RESIZE, describe_lesion, remove_lesions, resize_lesion
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.lesions.planting import host_volumes_ml, in_words, largest_that_fits_ml
from maisi_aug.sources.map_source import (
    BankedSource,
    DrawnMap,
    MaskBank,
    deform_at_random,
    draw_from_any,
    has_all,
    plant_case,
)
from maisi_aug.system.seeds import derive_seed, numpy_generator
from maisi_aug.vocabulary.labels import Vocabulary
from maisi_aug.volumes.components import is_any_of, label_parts
from maisi_aug.volumes.grid import Grid, voxel_volume_ml

MAX_BASES = 12
FAR_TOO_LARGE = 1.5
"""Largest organ of its kind among many patients, relative to the largest among ``NUM_LOOKS`` of them."""
MAX_CANDIDATES = 64
"""Largest number of maps with the lesion whose volumes are compared."""


class PhantomBank(MaskBank):
    """Bank of procedural anatomies, built on request and not stored.

    Attributes:
        name: ``phantom``.
        varies: Always True, because every draw is another patient.
    """

    varies = True

    def __init__(self, *, vocabulary: Vocabulary, grid: Grid) -> None:
        self.name = "phantom"
        self.vocabulary = vocabulary
        self.grid = grid

    def draw_bases(self, lesions: Sequence[Lesion], *, required_ids: Sequence[int], seed: int) -> Iterator[BaseMap]:
        """Yield anatomies that show the hosts of the lesions and the required organs, without end.

        Args:
            lesions: Lesions to be planted.
            required_ids: Vocabulary ids that must be present.
            seed: Seed of the anatomies.
        """
        from maisi_aug.phantom import build_label_map, region_for

        wanted = [*(wish.label_id for wish in lesions), *required_ids]
        regions: list[Literal["chest", "abdomen", "pelvis", "any"]] = [region_for(label_id) for label_id in wanted]
        regions = list(dict.fromkeys(regions)) or ["any"]
        number = 0
        while True:
            phantom_seed = derive_seed(seed, "phantom", number)
            anatomy = build_label_map(seed=phantom_seed, grid=self.grid, region=regions[number % len(regions)])
            origin = {"phantom_seed": phantom_seed, "region": anatomy.region}
            yield BaseMap(anatomy.label_map, self.grid, origin, anatomy.tissue)
            number += 1


@dataclass(frozen=True)
class PlantSource(BankedSource):
    """Source that plants lesions of exact volume in the label maps of a bank.

    Attributes:
        bank: Bank of the anatomies.
        deform_strength: Largest strength of the elastic deformation of maps from a bank that repeats anatomies.
        max_bases: Number of maps to try before giving up; a lesion far larger than its hosts is given up after
            ``NUM_LOOKS``.
    """

    bank: MaskBank
    deform_strength: float = 1.0
    max_bases: int = MAX_BASES

    def leaves_hope(self, error: LesionError | BankError, case: CasePlan, others: Sequence[CasePlan]) -> bool:
        """Return whether other cases may succeed after a failure: planting a larger lesion is never easier.

        Args:
            error: Error of the case that failed.
            case: Case that failed.
            others: Cases that are still to be made.
        """
        return not all(other.asks_for_all_of(case) for other in others)

    def draw(self, case: CasePlan, seed: int) -> DrawnMap:
        """Draw a label map with the lesions of a case and no others, in which all required organs are present.

        Args:
            case: Planned case with its lesions and required organs.
            seed: Seed of everything random.

        Returns:
            Label map with its grid, the case with realised lesions, and the map's origin.

        Raises:
            LesionError: A lesion found no room in ``max_bases`` maps, or cannot find any.
            BankError: No map has the hosts and the required organs.
        """
        return self.draw_twins([case], seed)[0]

    def draw_twins(self, cases: Sequence[CasePlan], seed: int) -> list[DrawnMap]:
        """Draw one label map per twin, all of one patient: the same lesion in several sizes, or in several hosts.

        The case with the largest lesion decides on the patient; smaller lesions are inner parts of the largest.

        Args:
            cases: Cases of one group of twins.
            seed: Seed of everything random, the same for all.

        Returns:
            One label map per case, in the same order.

        Raises:
            LesionError: The lesions found no room in ``max_bases`` maps, or cannot find any.
            BankError: No map has the hosts and the required organs.
        """
        case = max(cases, key=lambda one: sum(lesion.requested_ml for lesion in one.lesions))
        lesions, hosts = case.lesions, list[_Hosts]()

        def is_hopeless(base: BaseMap) -> bool:
            hosts.append(_Hosts.measure(base, lesions))
            return len(hosts) >= self.bank.num_looks and _is_hopeless(lesions, hosts)

        bases = self.bank.draw_bases(lesions, required_ids=case.required_ids, seed=seed)
        try:
            drawn = draw_from_any(
                islice(bases, self.max_bases),
                lambda number, base: self._plant(cases, case, base, number, seed),
                gives_up=is_hopeless,
            )
        except LesionError as error:
            raise self._with_largest(error, lesions, hosts, seed) from error
        return drawn or _raise_nothing_fits(self.bank, case)

    def _with_largest(
        self, failure: LesionError, lesions: Sequence[Lesion], hosts: Sequence[_Hosts], seed: int
    ) -> LesionError:
        """The failure, and the largest of the lesion that is hardest to place that fits in the roomiest map."""
        place = max(
            range(len(lesions)), key=lambda n: lesions[n].requested_ml / max(1e-9, _roomiest(hosts, n).rooms[n][1])
        )
        best = _roomiest(hosts, place).base
        healthy = remove_lesions(best.label_map, self.bank.vocabulary, spacing_mm=best.grid.spacing_mm)
        rng = numpy_generator(seed, "largest that fits")
        volume_ml = largest_that_fits_ml(healthy, lesions[place], spacing_mm=best.grid.spacing_mm, rng=rng)
        seen = f"{len(hosts)} label maps" if len(hosts) > 1 else "the label map"
        fits = f"about {in_words(volume_ml)}" if volume_ml else "none"
        return LesionError(f"{failure} The largest that fits, by {seen} of '{self.bank.name}': {fits}.")

    def _plant(
        self, cases: Sequence[CasePlan], largest: CasePlan, base: BaseMap, number: int, seed: int
    ) -> list[DrawnMap] | None:
        rng = numpy_generator(seed, f"plant {number}")
        spacing_mm = base.grid.spacing_mm
        label_map = remove_lesions(base.label_map, self.bank.vocabulary, spacing_mm=spacing_mm)
        origin = self.describe_base("plant", base, number=number, seed=seed)
        tissue = base.tissue
        if not self.bank.varies:
            label_map, strength = deform_at_random(label_map, spacing_mm, rng, most=self.deform_strength)
            origin |= strength
            tissue = None  # of the anatomy before it was deformed
        healthy = BaseMap(label_map, base.grid, origin, tissue)
        first = plant_case(largest, healthy, deepcopy(rng))
        if first is None:
            return None
        drawn = []
        for case in cases:
            is_moved = [lesion.hosts for lesion in case.lesions] != [lesion.hosts for lesion in largest.lesions]
            twin = plant_case(case, healthy, deepcopy(rng)) if is_moved else _shrink(first, case)
            if twin is None:
                return None
            drawn.append(twin)
        return drawn


def _shrink(planted: DrawnMap, case: CasePlan) -> DrawnMap | None:
    """The map with its lesions brought to the smaller volumes of a case; None where one would fall apart."""
    wanted = [lesion.requested_ml for lesion in case.lesions]
    if wanted == [lesion.requested_ml for lesion in planted.lesions]:
        return replace(planted, case=replace(case, lesions=planted.lesions))
    assert planted.label_map is not None
    spacing_mm, (wish,) = planted.grid.spacing_mm, case.lesions
    label_map, lesion = resize_lesion(
        planted.label_map,
        planted.label_map == wish.label_id,
        num_voxels=max(1, round(wish.requested_ml / voxel_volume_ml(spacing_mm))),
        hosts=wish.hosts,
        spacing_mm=spacing_mm,
    )
    if not lesion.any() or not has_all(label_map, case.required_ids):
        return None
    sized = describe_lesion(label_map, lesion, wish, spacing_mm=spacing_mm)
    return DrawnMap(replace(case, lesions=(sized,)), label_map, planted.grid, planted.origin, tissue=planted.tissue)


@dataclass(frozen=True)
class BankSource(BankedSource):
    """Source that uses label maps of a bank which already contain the lesions.

    A lesion of the nearest volume is chosen, all other tumours are replaced by their hosts, the map is deformed, and
    the lesion is resized to the requested volume, by at most a factor of two.

    Attributes:
        bank: Bank of stored label maps.
        deform_strength: Largest strength of the elastic deformation.
        max_bases: Number of maps to try before giving up.
    """

    bank: FolderBank
    deform_strength: float = 0.6
    max_bases: int = MAX_BASES

    def draw(self, case: CasePlan, seed: int) -> DrawnMap:
        """Draw a label map of the bank that contains the lesions of a case, and all required organs.

        Args:
            case: Planned case with its lesions and required organs.
            seed: Seed of everything random.

        Returns:
            Label map with its grid, the case with realised lesions, and the map's origin.

        Raises:
            LesionError: The volumes of all lesions in the bank are far from the requested one.
            BankError: No map contains such lesions.
        """
        found = islice(self._find(case, seed), self.max_bases)
        drawn = draw_from_any(found, lambda number, chosen: self._take(case, *chosen, number, seed))
        return drawn or _raise_nothing_fits(self.bank, case)

    def _find(self, case: CasePlan, seed: int) -> Iterator[tuple[int, list[BankLesion]]]:
        """Maps and their lesions, one per wish, in the bank's order, those of near volumes first; read as needed."""
        lesions = case.lesions
        wanted = frozenset(lesion.label_id for lesion in lesions)
        needs = Needs(wanted.union(case.required_ids), only_tumor_ids=wanted)
        others: list[tuple[float, int, int, list[BankLesion]]] = []
        num_near = 0
        for place, index in enumerate(self.bank.order(seed, needs)):
            is_usable = needs.are_met_by(self.bank.ids_of(index))
            chosen = _choose_lesions(self.bank, index, lesions) if is_usable else None
            if chosen is None:
                continue
            ratios = [_ratio(own, lesion) for own, lesion in zip(chosen, lesions, strict=True)]
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
        self, case: CasePlan, index: int, chosen: Sequence[BankLesion], number: int, seed: int
    ) -> DrawnMap | None:
        bank_map = self.bank.load(index)
        if bank_map is None:
            return None
        rng = numpy_generator(seed, f"take {number}")
        kept = bank_map.mask_of(chosen)
        own_mm = bank_map.grid.spacing_mm
        only = remove_lesions(bank_map.label_map, self.bank.vocabulary, spacing_mm=own_mm, keep=kept)
        one = replace(bank_map, label_map=only)
        focus = [lesion.box for lesion in chosen] + [one.boxes[i] for i in case.required_ids if i in one.boxes]
        keep_ids = sorted({lesion.label_id for lesion in case.lesions})
        base = cut_map(one, self.bank.grid, focus, rng=rng, keep_ids=keep_ids)
        spacing_mm = base.grid.spacing_mm
        label_map, strength = deform_at_random(base.label_map, spacing_mm, rng, most=self.deform_strength)
        sized = match_volumes(label_map, case.lesions, spacing_mm)
        if sized is None or not has_all(sized[0], case.required_ids):
            return None
        origin = self.describe_base("bank", base, number=number, seed=seed) | strength
        origin["original_ml"] = [round(lesion.volume_ml, 4) for lesion in chosen]
        return DrawnMap(replace(case, lesions=sized[1]), sized[0], base.grid, origin)


def _ratio(own: BankLesion, lesion: Lesion) -> float:
    """By how many doublings a stored lesion is off the volume requested."""
    return float(abs(np.log2(own.volume_ml / lesion.requested_ml)))


@dataclass(frozen=True, eq=False)
class _Hosts:
    """A map in which planting failed, and for every lesion the volume of its hosts: all, and the largest part."""

    base: BaseMap
    rooms: tuple[tuple[float, float], ...]

    @classmethod
    def measure(cls, base: BaseMap, lesions: Sequence[Lesion]) -> _Hosts:
        hosts = (is_any_of(base.label_map, wish.hosts) for wish in lesions)
        return cls(base, tuple(host_volumes_ml(host, base.grid.spacing_mm) for host in hosts))


def _roomiest(hosts: Sequence[_Hosts], place: int) -> _Hosts:
    return max(hosts, key=lambda seen: seen.rooms[place][1])


def _is_hopeless(lesions: Sequence[Lesion], hosts: Sequence[_Hosts]) -> bool:
    """Whether a lesion, or all that share its hosts, is far larger than these are in every map that shows them."""
    rooms = np.max([seen.rooms for seen in hosts], axis=0)
    for wish, (total_ml, largest_ml) in zip(lesions, rooms, strict=True):
        limit_ml = largest_ml * (1.0 if wish.rule is None else wish.rule.max_host_share)
        if 0 < FAR_TOO_LARGE * limit_ml < wish.requested_ml and wish.rule is not None:
            return True
        together_ml = sum(other.inside_ml for other in lesions if other.hosts == wish.hosts)
        if 0 < FAR_TOO_LARGE * largest_ml < wish.inside_ml or 0 < FAR_TOO_LARGE * total_ml < together_ml:
            return True
    return False


def _choose_lesions(bank: FolderBank, index: int, lesions: Sequence[Lesion]) -> list[BankLesion] | None:
    """For every wish another lesion of the map, the largest wish choosing first; None if there are too few."""
    chosen: dict[int, BankLesion] = {}
    for place in sorted(range(len(lesions)), key=lambda n: -lesions[n].requested_ml):
        wish = lesions[place]
        free = [own for own in bank.lesions_of(index, wish.label_id) if own not in chosen.values()]
        if not free:
            return None
        chosen[place] = min(free, key=lambda own: abs(np.log(own.volume_ml / wish.requested_ml)))
    return [chosen[place] for place in range(len(lesions))]


def match_volumes(
    label_map: NDArray[np.uint8], lesions: Sequence[Lesion], spacing_mm: Sequence[float]
) -> tuple[NDArray[np.uint8], tuple[Lesion, ...]] | None:
    """Resize the lesions of a cut label map to the requested volumes; None if the cut lost, split or joined one.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids; not modified.
        lesions: Requested lesions of the case.
        spacing_mm: Voxel sides along I, J, K in mm.

    Returns:
        ``(I, J, K)`` label map with resized lesions, and the lesions as realised in it, in the given order; a lesion
        that would have to change by more than a factor of ``MAX_RESIZE`` keeps its volume. None if the map does not
        have exactly one connected lesion for each.
    """
    voxel_ml = voxel_volume_ml(spacing_mm)
    realised: dict[int, Lesion] = {}
    for label_id in sorted({wish.label_id for wish in lesions}):
        places = sorted(
            (place for place, wish in enumerate(lesions) if wish.label_id == label_id),
            key=lambda place: -lesions[place].requested_ml,
        )
        parts, num_parts = label_parts(label_map == label_id)
        if num_parts != len(places):
            return None
        numbers = np.argsort(-np.bincount(parts.ravel())[1:], kind="stable") + 1
        for place, number in zip(places, numbers, strict=True):
            wish, lesion = lesions[place], parts == number
            target = max(1, round(wish.requested_ml / voxel_ml))
            if 1 / MAX_RESIZE <= target / int(lesion.sum()) <= MAX_RESIZE:
                label_map, lesion = resize_lesion(
                    label_map, lesion, num_voxels=target, hosts=wish.hosts, spacing_mm=spacing_mm
                )
            realised[place] = describe_lesion(label_map, lesion, wish, spacing_mm=spacing_mm)
    return label_map, tuple(realised[place] for place in range(len(lesions)))


def _names_of(bank: MaskBank, label_ids: Sequence[int]) -> str:
    shown = [bank.vocabulary.name_of(label_id) for label_id in label_ids[:4]]
    return ", ".join(shown) + (f" and {len(label_ids) - 4} more" if len(label_ids) > 4 else "")


def _num_skipped(bank: MaskBank) -> str:
    return f" ({len(bank.skipped)} skipped)" if bank.skipped else ""


def _raise_nothing_fits(bank: MaskBank, case: CasePlan) -> NoReturn:
    needs = [f"a host of {_names_of(bank, [wish.label_id])} ({_names_of(bank, wish.hosts)})" for wish in case.lesions]
    needs += [_names_of(bank, case.required_ids)] if case.required_ids else []
    raise BankError(
        f"Mask bank '{bank.name}': no map has "
        f"{' and '.join(dict.fromkeys(needs)) or 'any organ'}{_num_skipped(bank)}. Request other labels or use "
        "another bank."
    )


def _holds_none(bank: FolderBank, lesions: Sequence[Lesion]) -> BankError:
    names = " and ".join(dict.fromkeys(_names_of(bank, [wish.label_id]) for wish in lesions)) or "labels"
    return BankError(
        f"Mask bank '{bank.name}': no map contains {names}{_num_skipped(bank)}. Use --mask-source plant to plant the "
        "lesions."
    )


def _far_off(bank: FolderBank, lesions: Sequence[Lesion], nearest: Sequence[BankLesion]) -> LesionError:
    wanted = ", ".join(f"{_names_of(bank, [wish.label_id])} of {wish.requested_ml:.2f} mL" for wish in lesions)
    found = ", ".join(f"{lesion.volume_ml:.2f} mL" for lesion in nearest)
    return LesionError(
        f"Mask bank '{bank.name}': no lesion within a factor of {MAX_RESIZE:g} of {wanted}; the nearest is {found}. "
        "Request another size, or use --mask-source plant."
    )
