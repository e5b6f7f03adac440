"""Organs of a wanted size: a label map whose patient has about that size is taken, and its surface moved to meet it.

Nothing is planted: a parotid gland cannot be drawn at will into a patient, a label map that holds one can be chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.banks.folder_bank import FolderBank
from maisi_aug.banks.label_map import BankMap, cut_map
from maisi_aug.banks.listing import Needs
from maisi_aug.errors import BankError, LesionError
from maisi_aug.lesions.editing import HOST_REACH_MM, MAX_RESIZE, describe_lesion, remove_lesions, widen
from maisi_aug.lesions.planting import LesionWish, PlantedLesion, deform_label_map, plant_lesions
from maisi_aug.sources.plant_and_bank import MAX_BASES, MAX_CANDIDATES, BankSource, DrawnMap, PlantSource, has_all
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.vocabulary.labels import Vocabulary
from maisi_aug.volumes.components import bounding_box

DEFORM_STRENGTH = 0.6
"""Upper end of the elastic variety given to a map, as for lesions that a bank's maps hold."""


def is_sized_organ(label_id: int, vocabulary: Vocabulary) -> bool:
    """Whether a label that is asked for with a size is an organ, which cannot be planted."""
    return vocabulary.label(label_id).kind == "organ"


@dataclass(frozen=True)
class SizedOrganSource:
    """Takes maps of a bank whose organs have about the wanted volume.

    Maps within a factor of the square root of ``MAX_RESIZE`` serve in random order, then others up to ``MAX_RESIZE``,
    the nearest first. The map is deformed, the organ brought to the exact volume by moving its surface evenly into or
    out of its hosts, and lesions that are asked for beside it are planted.

    Attributes:
        bank: A bank of stored maps.
        others: Draws what is asked for without any organ of a size.
        max_bases: Maps to try before giving up.
    """

    bank: FolderBank
    others: PlantSource | BankSource
    max_bases: int = MAX_BASES

    def draw(self, lesions: Sequence[LesionWish], *, required_ids: Sequence[int] = (), seed: int) -> DrawnMap:
        """A map with these organs and lesions, and no other lesion.

        Args:
            lesions: What the map shall hold, with volumes.
            required_ids: Organs that must be in the map, of any size.
            seed: Decides everything.

        Raises:
            LesionError: Every organ of the bank is far from the volume asked for, or a lesion finds no room.
            BankError: No map holds what is needed.
        """
        organs = [wish for wish in lesions if is_sized_organ(wish.label_id, self.bank.vocabulary)]
        if not organs:
            return self.others.draw(lesions, required_ids=required_ids, seed=seed)
        failure: LesionError | None = None
        for attempt, bank_map in enumerate(islice(self._find(lesions, organs, required_ids, seed), self.max_bases)):
            try:
                drawn = self._take(bank_map, lesions, organs, required_ids, attempt, seed)
            except LesionError as error:
                failure = error
                continue
            if drawn is not None:
                return drawn
        names = ", ".join(self.bank.vocabulary.name_of(wish.label_id) for wish in organs)
        raise failure or BankError(
            f"Mask bank '{self.bank.name}': expected a map that still holds {names} at the wanted size after it is cut "
            f"to the grid, found none in {self.max_bases} attempts. Ask for another size, or choose a larger grid."
        )

    def _find(
        self, lesions: Sequence[LesionWish], organs: Sequence[LesionWish], required_ids: Sequence[int], seed: int
    ) -> Iterator[BankMap]:
        """Maps whose organs can be brought to the volumes, near ones in the bank's order, then the others."""
        wanted = frozenset(wish.label_id for wish in organs) | frozenset(required_ids)
        hosts = tuple(frozenset(wish.hosts) for wish in lesions if wish not in organs)
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
            ratio = max(abs(np.log2(own / wish.volume_ml)) for own, wish in zip(volumes, organs, strict=True))
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
        self,
        bank_map: BankMap,
        lesions: Sequence[LesionWish],
        organs: Sequence[LesionWish],
        required_ids: Sequence[int],
        attempt: int,
        seed: int,
    ) -> DrawnMap | None:
        rng = numpy_generator(seed, f"organ {attempt}")
        focus = [bank_map.boxes[wish.label_id] for wish in organs]
        focus += [bank_map.boxes[label_id] for label_id in required_ids if label_id in bank_map.boxes]
        keep_ids = sorted({wish.label_id for wish in organs})
        base = cut_map(bank_map, self.bank.grid, focus, rng=rng, keep_ids=keep_ids)
        spacing_mm = base.grid.spacing_mm
        strength = round(float(rng.uniform(0.5, 1.0)) * DEFORM_STRENGTH, 3)
        label_map = remove_lesions(base.label_map, self.bank.vocabulary, spacing_mm=spacing_mm)
        label_map = deform_label_map(label_map, spacing_mm=spacing_mm, rng=rng, strength=strength)
        for wish in organs:
            if not (label_map == wish.label_id).any():
                return None
            num_voxels = max(1, round(wish.volume_ml / base.grid.voxel_ml))
            label_map = resize_organ(
                label_map, wish.label_id, num_voxels=num_voxels, hosts=wish.hosts, spacing_mm=spacing_mm
            )
        tumors = [wish for wish in lesions if wish not in organs]
        label_map, planted = plant_lesions(label_map, tumors, spacing_mm=spacing_mm, rng=rng)
        if not has_all(label_map, required_ids):
            return None
        planted_left = iter(planted)
        realised: tuple[PlantedLesion, ...] = tuple(
            describe_lesion(label_map, label_map == wish.label_id, hosts=wish.hosts, spacing_mm=spacing_mm)
            if wish in organs
            else next(planted_left)
            for wish in lesions
        )
        origin: dict[str, Any] = {
            "source": "bank",
            "bank": self.bank.name,
            **base.origin,
            "seed": seed,
            "base": attempt,
            "deform_strength": strength,
        }
        origin["original_ml"] = [
            round(float(bank_map.counts[wish.label_id] * bank_map.grid.voxel_ml), 4) for wish in organs
        ]
        return DrawnMap(label_map, base.grid, origin, realised)

    def _explain(
        self, organs: Sequence[LesionWish], nearest: tuple[float, Sequence[float]] | None
    ) -> LesionError | BankError:
        names = [self.bank.vocabulary.name_of(wish.label_id) for wish in organs]
        if nearest is None:
            return BankError(
                f"Mask bank '{self.bank.name}': expected a map that holds {' and '.join(names)}, found none. Name "
                "label maps that hold it with --mask-bank."
            )
        wanted = ", ".join(f"{name} of {wish.volume_ml:.2f} mL" for name, wish in zip(names, organs, strict=True))
        found = ", ".join(f"{volume:.2f} mL" for volume in nearest[1])
        return LesionError(
            f"Mask bank '{self.bank.name}': expected a patient with {wanted}, or at most {MAX_RESIZE:g} times larger "
            f"or smaller, found {found} as the nearest. Ask for another size, or give more label maps with --mask-bank."
        )


def resize_organ(
    label_map: NDArray[np.uint8], label_id: int, *, num_voxels: int, hosts: Sequence[int], spacing_mm: Sequence[float]
) -> NDArray[np.uint8]:
    """Give an organ another number of voxels by moving its surface evenly, inside its hosts; it may be in parts.

    Args:
        label_map: ``(I, J, K)`` ids that hold the organ; not modified.
        label_id: Of the organ.
        num_voxels: Wanted voxels; fewer where the hosts have no room.
        hosts: Ids that the organ may grow into; voxels that it leaves get the most frequent of them around it.
        spacing_mm: Voxel sides along I, J, K.
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
