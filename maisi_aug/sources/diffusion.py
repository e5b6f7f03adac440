"""The mask source ``diffusion``: label maps that MAISI's mask networks generate, with the lesions asked for in them.

One lesion of a kind that the networks are told is theirs to draw: a map counts when the lesion can be brought to the
volume asked for. Everything else, and what they did not get right in a few attempts, is planted in what they drew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.banks.label_map import BankMap, BaseMap, cut_map
from maisi_aug.errors import BankError, LesionError, VolumeError
from maisi_aug.gates.checks import check_lesion_size
from maisi_aug.lesions.editing import remove_lesions
from maisi_aug.lesions.planting import LesionWish, plant_lesions
from maisi_aug.networks.mask_conditions import draw_condition, find_told_tumor, give_sizes, read_organ_sizes
from maisi_aug.sources.map_cleanup import clean_label_map
from maisi_aug.sources.plant_and_bank import DrawnMap, has_all, match_volumes
from maisi_aug.system.seeds import derive_seed, numpy_generator
from maisi_aug.vocabulary.labels import Vocabulary
from maisi_aug.volumes.components import Box
from maisi_aug.volumes.grid import Grid

if TYPE_CHECKING:
    from maisi_aug.cohort.resolve import ResolvedCohort
    from maisi_aug.networks.mask_generator import MaskGenerator

MAX_MAPS = 3
"""Maps to generate before a lesion is planted, or before a map without the required organs is given up."""
NUM_DIGITS = 4
ReportMap = Callable[[int, int, int], None]


@dataclass(frozen=True)
class _Generated:
    """A cleaned map on the generator's grid, and how it came to be."""

    label_map: NDArray[np.uint8]
    condition: tuple[float, ...]
    number: int


@dataclass(frozen=True, eq=False)
class DiffusionSource:
    """Generates label maps and finishes them.

    Attributes:
        generator: The mask networks.
        vocabulary: Meaning of the ids.
        grid: The image networks' grid.
        organ_sizes: Percentile by id of an organ, or -1 for absent, where asked for.
        size_tolerance: Share of its volume by which a generated lesion may be off.
        max_maps: Maps to generate for a draw at most.
        report: Told (map, steps done, steps in all) while a map is sampled; maps count from 1.
        bank: Always None: there are no stored maps.
    """

    generator: MaskGenerator
    vocabulary: Vocabulary
    grid: Grid
    organ_sizes: Mapping[int, float] = field(default_factory=dict)
    size_tolerance: float = 0.10
    max_maps: int = MAX_MAPS
    report: ReportMap | None = None
    bank: None = None

    def draw(self, lesions: Sequence[LesionWish], *, required_ids: Sequence[int] = (), seed: int) -> DrawnMap:
        """A generated map with these lesions and no other, in which all required organs are present.

        Args:
            lesions: What the map shall hold.
            required_ids: Organs that must be in the map.
            seed: Decides everything.

        Returns:
            The map, with the lesions measured on its grid.

        Raises:
            LesionError: A lesion found no room in any of ``max_maps`` maps.
            BankError: No map has the hosts and the required organs.
        """
        told = find_told_tumor(lesions)
        maps = self._generate(lesions, required_ids, told, seed)
        if told is not None:
            seen = []
            for generated in maps:
                seen.append(generated)
                drawn = self._take(generated, lesions[0], required_ids, seed)
                if drawn is not None:
                    return drawn
            maps = iter(seen)
        failure: LesionError | None = None
        for generated in maps:
            try:
                drawn = self._plant(generated, lesions, required_ids, seed)
            except LesionError as error:
                failure = error
                continue
            if drawn is not None:
                return drawn
        raise failure or self._nothing_fits(lesions, required_ids)

    def _generate(
        self, lesions: Sequence[LesionWish], required_ids: Sequence[int], told: int | None, seed: int
    ) -> Iterator[_Generated]:
        """Maps of the same wish, each from a condition and noise of its own; a map without a body is passed over."""
        given = give_sizes(lesions if told is not None else (), self.organ_sizes)
        kept = () if told is None else (told,)
        hosts = {host for wish in lesions for host in wish.hosts}
        for number in range(self.max_maps):
            condition = draw_condition(
                self.generator.size_conditions,
                given,
                present_ids=hosts.union(required_ids),
                rng=numpy_generator(seed, f"condition {number}"),
            )
            drawn = self.generator.generate(
                condition, seed=derive_seed(seed, "generated map", number), report=self._report_of(number)
            )
            try:
                cleaned = clean_label_map(drawn, spacing_mm=self.generator.grid.spacing_mm, keep_tumor_ids=kept)
            except VolumeError:
                continue
            yield _Generated(cleaned, tuple(round(float(size), NUM_DIGITS) for size in condition), number)

    def _report_of(self, number: int) -> Callable[[int, int], None] | None:
        report = self.report
        return None if report is None else lambda done, total: report(number + 1, done, total)

    def _take(self, generated: _Generated, wish: LesionWish, required_ids: Sequence[int], seed: int) -> DrawnMap | None:
        """The map with the lesion that the networks drew, brought to its volume; None if it is too far from that."""
        whole = self._as_bank_map(generated.label_map)
        found = whole.find_lesions(wish.label_id)
        if not found:
            return None
        own = min(found, key=lambda lesion: abs(np.log(lesion.volume_ml / wish.volume_ml)))
        spacing_mm = whole.grid.spacing_mm
        only = remove_lesions(whole.label_map, self.vocabulary, spacing_mm=spacing_mm, keep=whole.mask_of([own]))
        focus = [own.box, *(whole.boxes[label_id] for label_id in required_ids if label_id in whole.boxes)]
        base = self._cut(only, focus, generated, seed, keep_ids=[wish.label_id])
        sized = match_volumes(base.label_map, [wish], base.grid.spacing_mm)
        if sized is None or not has_all(sized[0], required_ids):
            return None
        label_map, realised = sized
        verdict = check_lesion_size(
            wish.volume_ml, realised[0].volume_ml, voxel_ml=base.grid.voxel_ml, tolerance=self.size_tolerance
        )
        if not verdict.passed:
            return None
        origin = {**base.origin, "is_planted": False, "generated_ml": round(own.volume_ml, NUM_DIGITS)}
        return DrawnMap(label_map, base.grid, origin, realised)

    def _plant(
        self, generated: _Generated, lesions: Sequence[LesionWish], required_ids: Sequence[int], seed: int
    ) -> DrawnMap | None:
        """The map without the networks' own lesions, and those asked for planted in it; None if it lacks an organ."""
        spacing_mm = self.generator.grid.spacing_mm
        healthy = self._as_bank_map(remove_lesions(generated.label_map, self.vocabulary, spacing_mm=spacing_mm))
        present = [[host for host in wish.hosts if healthy.counts[host]] for wish in lesions]
        if not all(present) or not has_all(healthy.label_map, required_ids):
            return None
        hosts = [max(some, key=lambda host: int(healthy.counts[host])) for some in present]
        focus = [healthy.boxes[label_id] for label_id in (*hosts, *required_ids)]
        base = self._cut(healthy.label_map, focus, generated, seed)
        label_map, planted = plant_lesions(
            base.label_map,
            lesions,
            spacing_mm=base.grid.spacing_mm,
            rng=numpy_generator(seed, f"plant {generated.number}"),
        )
        if not has_all(label_map, required_ids):
            return None
        return DrawnMap(label_map, base.grid, {**base.origin, "is_planted": bool(lesions)}, planted)

    def _as_bank_map(self, label_map: NDArray[np.uint8]) -> BankMap:
        return BankMap("generated", label_map, self.generator.grid, "", None)

    def _cut(
        self,
        label_map: NDArray[np.uint8],
        focus: Sequence[Box],
        generated: _Generated,
        seed: int,
        *,
        keep_ids: Sequence[int] = (),
    ) -> BaseMap:
        """The map on the image networks' grid, and all that there is to say of its origin so far."""
        rng = numpy_generator(seed, f"cut {generated.number}")
        base = cut_map(self._as_bank_map(label_map), self.grid, focus, rng=rng, keep_ids=keep_ids)
        origin: dict[str, Any] = {
            "source": "diffusion",
            "seed": seed,
            "num_maps": generated.number + 1,
            "condition": list(generated.condition),
            "mask_steps": self.generator.num_inference_steps,
            "centre_mm": base.origin["centre_mm"],
        }
        return BaseMap(base.label_map, base.grid, origin)

    def _nothing_fits(self, lesions: Sequence[LesionWish], required_ids: Sequence[int]) -> BankError:
        name = self.vocabulary.name_of
        needs = [f"a host of {name(wish.label_id)}" for wish in lesions] + [name(label_id) for label_id in required_ids]
        return BankError(
            f"Mask generator: expected a map with {' and '.join(dict.fromkeys(needs)) or 'a body'}, found none among "
            f"{self.max_maps} generated ones. Ask for other labels, for other organ sizes, or for more attempts."
        )


def open_diffusion_source(cohort: ResolvedCohort, device: str, *, report: ReportMap | None = None) -> DiffusionSource:
    """Load the mask networks of a cohort's bundle.

    Args:
        cohort: With the mask source ``diffusion``.
        device: Where the networks run.
        report: Told (map, steps done, steps in all) while a map is sampled.

    Raises:
        BundleError: When the mask networks or the device cannot be used.
    """
    from maisi_aug.networks.mask_generator import MaskGenerator

    config = cohort.config
    return DiffusionSource(
        MaskGenerator.load(cohort.bundle, device, num_inference_steps=config.mask_steps, precision=config.precision),
        cohort.bundle.vocabulary,
        cohort.grid,
        organ_sizes=read_organ_sizes(config.size_of or {}, cohort.bundle.vocabulary),
        size_tolerance=config.gates.size_tolerance,
        report=report,
    )
