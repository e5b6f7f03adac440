"""The mask source ``diffusion``: label maps that MAISI's mask networks generate, with the lesions requested in them.

One lesion of a kind that the networks are conditioned on is drawn by them: a map counts when the lesion can be brought
to the volume requested. Everything else, and what they did not get right in a few attempts, is planted in what they
drew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.banks.label_map import BankMap, BaseMap, cut_map
from maisi_aug.cohort.plan import CasePlan
from maisi_aug.errors import BankError, VolumeError
from maisi_aug.gates.checks import check_lesion_size
from maisi_aug.lesions.editing import remove_lesions
from maisi_aug.networks.mask_conditions import draw_condition, find_told_tumor, give_sizes
from maisi_aug.sources.map_cleanup import clean_label_map
from maisi_aug.sources.map_source import DrawnMap, MapSource, draw_from_any, has_all, plant_case
from maisi_aug.sources.plant_and_bank import match_volumes
from maisi_aug.system.progress import Report
from maisi_aug.system.seeds import derive_seed, numpy_generator
from maisi_aug.vocabulary.labels import Vocabulary
from maisi_aug.volumes.components import Box
from maisi_aug.volumes.grid import Grid

if TYPE_CHECKING:
    from maisi_aug.cohort.resolve import CohortRun
    from maisi_aug.networks.mask_generator import MaskGenerator

MAX_MAPS = 3
"""Largest number of maps to generate until a lesion can be planted and the required organs are present."""
NUM_DIGITS = 4
ReportMap = Callable[[int, int, int], None]


@dataclass(frozen=True)
class _Generated:
    """A cleaned map on the generator's grid, and how it came to be."""

    label_map: NDArray[np.uint8]
    condition: tuple[float, ...]
    number: int


@dataclass(frozen=True, eq=False)
class DiffusionSource(MapSource):
    """Source that generates label maps with a bundle's mask networks, cleans them up and plants missing lesions.

    Attributes:
        generator: Mask networks.
        vocabulary: Vocabulary of the ids.
        grid: Grid of the images.
        organ_sizes: Organ id -> requested size percentile, or -1 for an organ that must be absent.
        size_tolerance: Largest deviation of a generated lesion's volume, as a fraction.
        max_maps: Largest number of maps that are generated for one case.
        report: Progress callback, called with (map from 1, sampling steps done, sampling steps in all).
    """

    generator: MaskGenerator
    vocabulary: Vocabulary
    grid: Grid
    organ_sizes: Mapping[int, float] = field(default_factory=dict)
    size_tolerance: float = 0.10
    max_maps: int = MAX_MAPS
    report: ReportMap | None = None

    def draw(self, case: CasePlan, seed: int) -> DrawnMap:
        """Generate a label map with the lesions of a case and no others, in which all required organs are present.

        Args:
            case: Planned case with its lesions and required organs.
            seed: Seed of everything random.

        Returns:
            Label map with its grid, the case with realised lesions, and the map's origin.

        Raises:
            LesionError: A lesion found no room in any of ``max_maps`` maps.
            BankError: No map has the hosts and the required organs.
        """
        told = find_told_tumor(case.lesions)
        maps = self._generate(case, told, seed)
        if told is not None:
            seen = []
            for generated in maps:
                seen.append(generated)
                drawn = self._take(generated, case, seed)
                if drawn is not None:
                    return drawn
            maps = iter(seen)
        planted = draw_from_any(maps, lambda number, generated: self._plant(generated, case, seed))
        if planted is None:
            raise self._nothing_fits(case)
        return planted

    def _generate(self, case: CasePlan, told: int | None, seed: int) -> Iterator[_Generated]:
        """Maps of the same wish, each from a condition and noise of its own; a map without a body is passed over."""
        given = give_sizes(case.lesions if told is not None else (), self.organ_sizes)
        kept = () if told is None else (told,)
        hosts = {host for lesion in case.lesions for host in lesion.hosts}
        for number in range(self.max_maps):
            condition = draw_condition(
                self.generator.size_conditions,
                given,
                present_ids=hosts.union(case.required_ids),
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

    def _report_of(self, number: int) -> Report | None:
        report = self.report
        return None if report is None else lambda done, total: report(number + 1, done, total)

    def _take(self, generated: _Generated, case: CasePlan, seed: int) -> DrawnMap | None:
        """The map with the lesion that the networks drew, brought to its volume; None if it is too far from that."""
        (wish,), required_ids = case.lesions, case.required_ids
        whole = self._as_bank_map(generated.label_map)
        found = whole.find_lesions(wish.label_id)
        if not found:
            return None
        own = min(found, key=lambda lesion: abs(np.log(lesion.volume_ml / wish.requested_ml)))
        spacing_mm = whole.grid.spacing_mm
        only = remove_lesions(whole.label_map, self.vocabulary, spacing_mm=spacing_mm, keep=whole.mask_of([own]))
        focus = [own.box, *(whole.boxes[label_id] for label_id in required_ids if label_id in whole.boxes)]
        base = self._cut(only, focus, generated, seed, keep_ids=[wish.label_id])
        sized = match_volumes(base.label_map, [wish], base.grid.spacing_mm)
        if sized is None or not has_all(sized[0], required_ids):
            return None
        label_map, realised = sized
        verdict = check_lesion_size(
            wish.requested_ml,
            realised[0].realised_ml or 0.0,
            voxel_ml=base.grid.voxel_ml,
            tolerance=self.size_tolerance,
        )
        if not verdict.passed:
            return None
        origin = {**base.origin, "is_planted": False, "generated_ml": round(own.volume_ml, NUM_DIGITS)}
        return DrawnMap(replace(case, lesions=realised), label_map, base.grid, origin)

    def _plant(self, generated: _Generated, case: CasePlan, seed: int) -> DrawnMap | None:
        """The map without the networks' own lesions, and those requested planted in it; None if it lacks an organ."""
        spacing_mm = self.generator.grid.spacing_mm
        healthy = self._as_bank_map(remove_lesions(generated.label_map, self.vocabulary, spacing_mm=spacing_mm))
        present = [[host for host in wish.hosts if healthy.counts[host]] for wish in case.lesions]
        if not all(present) or not has_all(healthy.label_map, case.required_ids):
            return None
        hosts = [max(some, key=lambda host: int(healthy.counts[host])) for some in present]
        focus = [healthy.boxes[label_id] for label_id in (*hosts, *case.required_ids)]
        base = self._cut(healthy.label_map, focus, generated, seed)
        base.origin["is_planted"] = bool(case.lesions)
        return plant_case(case, base, numpy_generator(seed, f"plant {generated.number}"))

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

    def _nothing_fits(self, case: CasePlan) -> BankError:
        name = self.vocabulary.name_of
        needs = [f"a host of {wish.label}" for wish in case.lesions] + [name(organ) for organ in case.required_ids]
        return BankError(
            f"Mask generator: none of {self.max_maps} generated maps has "
            f"{' and '.join(dict.fromkeys(needs)) or 'a body'}. Request other labels, other organ sizes, or more "
            "attempts."
        )


def open_diffusion_source(run: CohortRun, device: str, *, report: ReportMap | None = None) -> DiffusionSource:
    """Load the mask networks of a cohort's bundle as a source of label maps.

    Args:
        run: Cohort with the mask source ``diffusion``.
        device: Device on which the networks run.
        report: Progress callback, called with (map from 1, sampling steps done, sampling steps in all).

    Raises:
        BundleError: The mask networks or the device cannot be used.
    """
    from maisi_aug.networks.mask_generator import MaskGenerator

    precision = run.request.precision
    return DiffusionSource(
        MaskGenerator.load(run.bundle, device, num_inference_steps=run.mask_steps, precision=precision),
        run.bundle.vocabulary,
        run.grid,
        organ_sizes=run.organ_sizes,
        size_tolerance=run.request.gates.size_tolerance,
        report=report,
    )
