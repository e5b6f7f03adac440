"""Organs of a wanted size: a label map whose patient has about that size is taken, and its surface moved to meet it.

Nothing is planted: a parotid gland cannot be drawn at will into a patient, a label map that holds one can be chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.banks.entry import Needs
from maisi_aug.banks.folder_bank import FolderBank
from maisi_aug.banks.label_map import BankMap, BaseMap, cut_map
from maisi_aug.cohort.plan import CasePlan
from maisi_aug.errors import BankError, LesionError
from maisi_aug.lesions.editing import HOST_REACH_MM, MAX_RESIZE, describe_lesion, remove_lesions, widen
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.sources.map_source import (
    BankedSource,
    DrawnMap,
    MapSource,
    deform_at_random,
    draw_from_any,
    plant_case,
)
from maisi_aug.sources.plant_and_bank import MAX_BASES, MAX_CANDIDATES
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.vocabulary.labels import Vocabulary
from maisi_aug.volumes.components import bounding_box

DEFORM_STRENGTH = 0.6
"""Upper end of the elastic variety given to a map, as for lesions that a bank's maps hold."""


def is_sized_organ(label_id: int, vocabulary: Vocabulary) -> bool:
    """Whether a label that is requested with a size is an organ, which is resized instead of planted.

    Args:
        label_id: Vocabulary id of the label.
        vocabulary: Vocabulary of the id.
    """
    return vocabulary.label(label_id).kind == "organ"


@dataclass(frozen=True)
class SizedOrganSource(BankedSource):
    """Source that uses label maps of a bank whose organs have about the requested volume.

    Maps within a factor of the square root of ``MAX_RESIZE`` are used in random order, then others up to
    ``MAX_RESIZE``, the nearest first. The map is deformed, the organ resized to the exact volume by moving its surface
    evenly into or out of its hosts, and requested lesions are planted.

    Attributes:
        bank: Bank of stored label maps.
        others: Source for cases that request no organ of a size.
        max_bases: Number of maps to try before giving up.
    """

    bank: FolderBank
    others: MapSource
    max_bases: int = MAX_BASES

    def draw(self, case: CasePlan, seed: int) -> DrawnMap:
        """Draw a label map with the organs and lesions of a case, and no other lesions.

        Args:
            case: Planned case with its organs and lesions.
            seed: Seed of everything random.

        Returns:
            Label map with its grid, the case as realised, and the map's origin.

        Raises:
            LesionError: The volumes of all such organs in the bank are far from the requested one, or a lesion does not
                fit.
            BankError: No map contains the required labels.
        """
        organs = [lesion for lesion in case.lesions if is_sized_organ(lesion.label_id, self.bank.vocabulary)]
        if not organs:
            return self.others.draw(case, seed)
        found = islice(self._find(case, organs, seed), self.max_bases)
        drawn = draw_from_any(found, lambda number, bank_map: self._take(bank_map, case, organs, number, seed))
        if drawn is not None:
            return drawn
        raise BankError(
            f"Mask bank '{self.bank.name}': in {self.max_bases} attempts no map kept "
            f"{', '.join(organ.label for organ in organs)} at the requested size when cut to the grid. Request "
            "another size, or choose a larger grid."
        )

    def _find(self, case: CasePlan, organs: Sequence[Lesion], seed: int) -> Iterator[BankMap]:
        """Maps whose organs can be brought to the volumes, near ones in the bank's order, then the others."""
        wanted = frozenset(wish.label_id for wish in organs) | frozenset(case.required_ids)
        hosts = tuple(frozenset(wish.hosts) for wish in case.lesions if wish not in organs)
        needs = Needs(wanted, hosts)
        nearest: tuple[float, list[float]] | None = None
        others: list[tuple[float, int, int]] = []
        num_near = 0
        for place, index in enumerate(self.bank.order(seed, needs)):
            bank_map = self.bank.load(index) if needs.are_met_by(self.bank.ids_of(index)) else None
            if bank_map is None:
                continue
            volumes = [float(bank_map.counts[wish.label_id] * bank_map.grid.voxel_ml) for wish in organs]
            if not all(volumes):
                continue
            ratio = max(abs(np.log2(own / wish.requested_ml)) for own, wish in zip(volumes, organs, strict=True))
            nearest = min(nearest or (np.inf, volumes), (ratio, volumes))
            if ratio <= 0.5 * np.log2(MAX_RESIZE):
                num_near += 1
                yield bank_map
            elif ratio <= np.log2(MAX_RESIZE):
                others.append((ratio, place, index))
            if num_near + len(others) == MAX_CANDIDATES:
                break
        if not num_near and not others:
            raise self._explain(organs, nearest)
        for _, _, index in sorted(others):
            bank_map = self.bank.load(index)
            if bank_map is not None:
                yield bank_map

    def _take(
        self, bank_map: BankMap, case: CasePlan, organs: Sequence[Lesion], number: int, seed: int
    ) -> DrawnMap | None:
        rng = numpy_generator(seed, f"organ {number}")
        focus = [bank_map.boxes[wish.label_id] for wish in organs]
        focus += [bank_map.boxes[label_id] for label_id in case.required_ids if label_id in bank_map.boxes]
        keep_ids = sorted({wish.label_id for wish in organs})
        base = cut_map(bank_map, self.bank.grid, focus, rng=rng, keep_ids=keep_ids)
        spacing_mm = base.grid.spacing_mm
        healthy = remove_lesions(base.label_map, self.bank.vocabulary, spacing_mm=spacing_mm)
        label_map, strength = deform_at_random(healthy, spacing_mm, rng, most=DEFORM_STRENGTH)
        for wish in organs:
            if not (label_map == wish.label_id).any():
                return None
            num_voxels = max(1, round(wish.requested_ml / base.grid.voxel_ml))
            label_map = resize_organ(
                label_map, wish.label_id, num_voxels=num_voxels, hosts=wish.hosts, spacing_mm=spacing_mm
            )
        origin = self.describe_base("bank", base, number=number, seed=seed) | strength
        origin["original_ml"] = [
            round(float(bank_map.counts[wish.label_id] * bank_map.grid.voxel_ml), 4) for wish in organs
        ]
        tumors = tuple(lesion for lesion in case.lesions if lesion not in organs)
        drawn = plant_case(replace(case, lesions=tumors), BaseMap(label_map, base.grid, origin), rng)
        if drawn is None or drawn.label_map is None:
            return None
        found = {lesion.index: lesion for lesion in drawn.lesions}
        for organ in organs:
            own = drawn.label_map == organ.label_id
            found[organ.index] = describe_lesion(drawn.label_map, own, organ, spacing_mm=spacing_mm)
        return replace(drawn, case=replace(case, lesions=tuple(found[lesion.index] for lesion in case.lesions)))

    def _explain(
        self, organs: Sequence[Lesion], nearest: tuple[float, Sequence[float]] | None
    ) -> LesionError | BankError:
        names = [organ.label for organ in organs]
        if nearest is None:
            return BankError(
                f"Mask bank '{self.bank.name}': no map contains {' and '.join(names)}. Name label maps that do with "
                "--mask-bank."
            )
        wanted = ", ".join(f"{name} of {wish.requested_ml:.2f} mL" for name, wish in zip(names, organs, strict=True))
        found = ", ".join(f"{volume:.2f} mL" for volume in nearest[1])
        return LesionError(
            f"Mask bank '{self.bank.name}': no patient within a factor of {MAX_RESIZE:g} of {wanted}; the nearest "
            f"has {found}. Request another size, or provide more label maps with --mask-bank."
        )


def resize_organ(
    label_map: NDArray[np.uint8], label_id: int, *, num_voxels: int, hosts: Sequence[int], spacing_mm: Sequence[float]
) -> NDArray[np.uint8]:
    """Grow or shrink an organ to a number of voxels by moving its surface evenly, inside its hosts.

    The organ may consist of several parts.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids; not modified.
        label_id: Id of the organ.
        num_voxels: Wanted number of voxels; fewer are reached if the hosts have no room.
        hosts: Vocabulary ids that the organ may grow into; voxels that it gives up get the most frequent of them around
            it.
        spacing_mm: Voxel sides along I, J, K in mm.

    Returns:
        A new label map.
    """
    organ = label_map == label_id
    wide = widen(bounding_box(organ, margin=0), HOST_REACH_MM, spacing_mm, label_map.shape)
    inside, host = organ[wide], np.isin(label_map[wide], hosts)
    depth_mm = ndimage.distance_transform_edt(inside, sampling=spacing_mm)
    depth_mm = depth_mm - ndimage.distance_transform_edt(~inside, sampling=spacing_mm)
    candidates = np.flatnonzero((inside | host).ravel())
    order = np.argsort(-depth_mm.ravel()[candidates], kind="stable")
    chosen = np.zeros(inside.size, dtype=bool)
    chosen[candidates[order[:num_voxels]]] = True
    chosen = chosen.reshape(inside.shape)
    resized = label_map.copy()
    counts = np.bincount(label_map[wide][host], minlength=256)
    resized[wide][inside & ~chosen] = int(counts.argmax()) if host.any() else hosts[0]
    resized[wide][chosen] = label_id
    return resized
