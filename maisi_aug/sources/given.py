"""The mask sources ``given`` and ``none``: the user's own label maps drawn as they are, and images without any map.

A given map is translated to the vocabulary and gets a body envelope where it lacks one; nothing is planted in it but
the lesions that the user requests, and nothing is deformed. It keeps its own grid where the networks take it, voxel for
voxel. Where they do not, or where the user requests another shape or spacing, it is cropped, padded or resampled, and a
warning and the manifest say so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from maisi_aug.banks.folder_bank import FolderBank
from maisi_aug.banks.label_map import BankMap, BaseMap
from maisi_aug.banks.organs import require_organs
from maisi_aug.cohort.plan import CasePlan
from maisi_aug.cohort.resolve import CohortRun
from maisi_aug.errors import BankError, GridError, LesionError, MaisiAugWarning
from maisi_aug.lesions.editing import describe_lesion, widen
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.lesions.planting import measure_lesions
from maisi_aug.sources.map_source import BankedSource, DrawnMap, MapSource, MaskBank
from maisi_aug.sources.plant_and_bank import PlantSource
from maisi_aug.system.progress import Report
from maisi_aug.vocabulary.labels import BODY_ID, Vocabulary
from maisi_aug.vocabulary.regions import REGION_LABELS
from maisi_aug.volumes.components import connected_parts
from maisi_aug.volumes.grid import Grid, Shape, Spacing, spell_grid
from maisi_aug.volumes.resampling import DECIMALS, centre_grid_on, crop_or_pad, resample_label_map

SAME_SPACING_MM = 1e-3
"""Tolerance for a given spacing to count as a map's own: users type 0.781 for 0.78125."""

FindUnseen = Callable[[Grid, frozenset[int]], Sequence[str]]
Change = Literal["none", "cropped or padded", "resampled"]


@dataclass(frozen=True)
class GridChoice:
    """Rule that chooses the grid of the image for a given label map.

    Attributes:
        factor: Number of which every side must be a multiple.
        shape: Requested voxels along I, J, K; None for as many as keep the field of view.
        spacing_mm: Requested voxel sides along I, J, K in mm; None for those of the map.
    """

    factor: int
    shape: Shape | None
    spacing_mm: Spacing | None

    @property
    def wish(self) -> str:
        """Description of the grids that maps may have, for messages."""
        sides = "x".join(map(str, self.shape or ()))
        steps = "x".join(f"{side:g}" for side in self.spacing_mm or ())
        if sides or steps:
            return " at ".join([sides] * bool(sides) + [f"{steps} mm"] * bool(steps)) + " as requested"
        return f"sides that are multiples of {self.factor}"

    def choose(self, own: Grid) -> tuple[Shape, Spacing]:
        """Return shape and spacing in mm of the image that is drawn from a map with a given grid.

        What the user leaves open follows the map: its own grid if the networks accept it, otherwise its field of view
        with the nearest numbers of voxels that they accept.
        """
        spacing_mm = self.spacing_mm
        if spacing_mm is None or np.allclose(spacing_mm, own.spacing_mm, rtol=0, atol=SAME_SPACING_MM):
            spacing_mm = own.spacing_mm
        if self.shape is not None:
            return self.shape, spacing_mm
        exact = [extent / side for extent, side in zip(own.extent_mm, spacing_mm, strict=True)]
        i, j, k = (max(self.factor, round(side / self.factor) * self.factor) for side in exact)
        if self.spacing_mm is None:
            # Same field of view: the voxels give way instead. A side that fits keeps its very spacing.
            pairs = zip(own.shape, (i, j, k), own.spacing_mm, strict=True)
            x, y, z = (step if was == side else step * was / side for was, side, step in pairs)
            spacing_mm = (x, y, z)
        return (i, j, k), spacing_mm

    def name_change(self, own: Grid) -> Change:
        """Describe how a map with a given grid is changed to fit the grid of its image."""
        shape, spacing_mm = self.choose(own)
        if spacing_mm != own.spacing_mm:
            return "resampled"
        return "none" if shape == own.shape else "cropped or padded"


@dataclass(frozen=True, eq=False)
class NoMapSource(MapSource):
    """Source without label maps, for images that the diffusion U-Net draws by itself.

    Attributes:
        grid: Geometry of the images.
    """

    grid: Grid

    def draw(self, case: CasePlan, seed: int) -> DrawnMap:
        """Return an empty map for a case: grid and seed of an image that is drawn without a label map.

        Args:
            case: Planned case, returned unchanged.
            seed: Not used, because nothing of an empty map is random.
        """
        return DrawnMap(case, None, self.grid, {"source": "none"})


def _nothing_unseen(grid: Grid, label_ids: frozenset[int]) -> Sequence[str]:
    return ()


@dataclass(frozen=True, eq=False)
class GivenSource(BankedSource):
    """Source that returns the label maps of a user's bank unchanged, one per case.

    Attributes:
        bank: Bank of the user's maps.
        grids: Rule for the grid of each image.
        label_ids: Vocabulary ids to keep in the label files; empty for all but the body.
        find_unseen: Function from a grid and ids to warnings; it raises GridError for a grid that the networks cannot
            use.
    """

    bank: FolderBank
    grids: GridChoice
    label_ids: tuple[int, ...] = ()
    find_unseen: FindUnseen = _nothing_unseen
    _warned: set[str] = field(default_factory=set, init=False, repr=False)

    def leaves_hope(self, error: LesionError | BankError, case: CasePlan, others: Sequence[CasePlan]) -> bool:
        """Return whether other cases are left, each of which has a label map of its own.

        Args:
            error: Error of the case that failed.
            case: Case that failed.
            others: Cases that are still to be made.
        """
        return bool(others)

    def draw(self, case: CasePlan, seed: int) -> DrawnMap:
        """Return the label map of a case, and the case with that map's lesions, their volumes, and its organs.

        If the case requests lesions, they are planted in the map in place of its own.

        Args:
            case: Planned case with the index of its map.
            seed: Seed of the planting of requested lesions.

        Returns:
            Label map with its grid, the case as realised, and the map's origin.

        Raises:
            BankError: The map cannot be used; the message names its file.
            LesionError: A lesion finds no room in it.
        """
        assert case.map_index is not None
        bank_map = self.bank.load(case.map_index)
        if bank_map is None:
            raise BankError(self.bank.fault_of(case.map_index))
        vocabulary = self.bank.vocabulary
        self._require_known(bank_map)
        label_map, grid = fit_map(bank_map, self.grids, lesion_ids=vocabulary.tumor_ids)
        present = _find_ids(label_map)
        lost = tuple(sorted(set(bank_map.boxes) - present))
        self._warn(bank_map, grid, [vocabulary.name_of(label_id) for label_id in lost])
        wanted = [label_id for label_id in sorted(bank_map.boxes) if self._is_wanted(label_id)]
        lesion_ids = [label_id for label_id in wanted if label_id in vocabulary.tumor_ids]
        view = bank_map.label_map[part_inside(bank_map.grid, grid)]
        asked = plan_lesions(view, bank_map.grid.voxel_ml, lesion_ids, vocabulary)
        asking = replace(
            case,
            lesions=find_lesions(label_map, grid, asked),
            required_ids=tuple(i for i in wanted if i in present and i not in lesion_ids),
        )
        origin = {
            "source": "given",
            "bank": self.bank.name,
            "file": bank_map.name,
            "sha256": bank_map.sha256,
            **bank_map.body_origin,
            "map_shape": list(bank_map.grid.shape),
            "map_spacing_mm": [round(side, 6) for side in bank_map.grid.spacing_mm],
            "change": self.grids.name_change(bank_map.grid),
            "lost_ids": list(lost),
        }
        if case.lesions:
            return self._plant(case, BaseMap(label_map, grid, origin), seed)
        return DrawnMap(asking, label_map, grid, origin)

    def _plant(self, case: CasePlan, base: BaseMap, seed: int) -> DrawnMap:
        """The map with the lesions of a case, whose organs are those that the map then shows."""
        drawn = PlantSource(_OneMap(self.bank.name, base, base.grid, self.bank.vocabulary)).draw(case, seed)
        assert drawn.label_map is not None
        organs = _find_ids(drawn.label_map) - set(self.bank.vocabulary.tumor_ids)
        shown = {label_id for label_id in organs if self._is_wanted(label_id)}
        return replace(drawn, case=replace(drawn.case, required_ids=tuple(sorted({*case.required_ids, *shown}))))

    def look_at(self, own: Grid, label_ids: Iterable[int]) -> tuple[str, str]:
        """Return a fault and a warning about the grid of a map's image, each empty if there is none.

        Args:
            own: Grid of the map.
            label_ids: Vocabulary ids in the map.
        """
        shape, spacing_mm = self.grids.choose(own)
        try:
            return "", " ".join(self.find_unseen(Grid.from_spacing(shape, spacing_mm), frozenset(label_ids)))
        except GridError as error:
            return str(error), ""

    def _require_known(self, bank_map: BankMap) -> None:
        """Raise where the networks cannot work with a map's grid; warn of the first one that they have not seen."""
        fault, warning = self.look_at(bank_map.grid, bank_map.boxes)
        if fault:
            raise BankError(f"{bank_map.name}: {fault}")
        if warning and "unseen" not in self._warned:
            self._warned.add("unseen")
            warnings.warn(f"{bank_map.name}: {warning}{self._others()}", MaisiAugWarning, stacklevel=4)

    def _others(self) -> str:
        """Where to read of maps after the first, about each of which a warning would be no news."""
        return " Grids of all maps: --dry-run." if len(self.bank) > 1 else ""

    def _is_wanted(self, label_id: int) -> bool:
        return label_id in self.label_ids if self.label_ids else label_id != BODY_ID

    def _warn(self, bank_map: BankMap, grid: Grid, lost: Sequence[str]) -> None:
        """Say of the first map why it leaves its own grid, and of every map once what it loses on the way."""
        change = self.grids.name_change(bank_map.grid)
        key = bank_map.name if lost else change
        if change == "none" or key in self._warned:
            return
        self._warned.add(key)
        warnings.warn(
            f"{bank_map.name}: expected {self.grids.wish}, found {_spell(bank_map.grid)}; the map is {change} to "
            f"{_spell(grid)}{' and loses ' + ', '.join(lost) if lost else ''}.{self._others()}",
            MaisiAugWarning,
            stacklevel=3,
        )


@dataclass(frozen=True, eq=False)
class _OneMap(MaskBank):
    """A given map as the only anatomy of a bank, on its image's grid and not deformed.

    Attributes:
        name: Name of the user's bank.
        base: The map.
        grid: Its own.
        vocabulary: Meaning of its ids.
        varies: True, so that nothing is deformed for variety.
        num_looks: 1: there is no other map that might have more room.
    """

    name: str
    base: BaseMap
    grid: Grid
    vocabulary: Vocabulary
    varies: bool = True
    num_looks: int = 1

    def draw_bases(self, lesions: Sequence[Lesion], *, required_ids: Sequence[int], seed: int) -> Iterator[BaseMap]:
        """Yield the map, once."""
        yield self.base


def open_given_source(run: CohortRun) -> GivenSource:
    """Open the user's label maps as a source; they are listed, but not read yet.

    Raises:
        BankError: None of them can be used.
    """
    bank = FolderBank(
        run.bank,
        vocabulary=run.bundle.vocabulary,
        grid=run.grid,
        mapping=run.mask_labels,
        min_cover=0.0,  # of a grid that a given map does not have to fill
    )
    require_organs(bank, bundle=run.bundle, is_allowed=True)
    follows, factor, request = run.request.follows_maps, run.bundle.grid_factor, run.request
    shape, spacing_mm = (request.shape, request.spacing_mm) if follows else (run.grid.shape, run.grid.spacing_mm)
    # The grid of a preset was compared with the bundle's when the cohort was resolved.
    find_unseen = _compare_with(run) if follows else _nothing_unseen
    return GivenSource(bank, GridChoice(factor, shape, spacing_mm), run.plan.requested_ids, find_unseen)


def _compare_with(run: CohortRun) -> FindUnseen:
    """Grids are compared with those that a cohort's bundle has seen, as those that the user requests are."""

    def find_unseen(grid: Grid, label_ids: frozenset[int]) -> Sequence[str]:
        regions = {region for region, ids in REGION_LABELS.items() if label_ids.intersection(ids)}
        is_head = regions == {"head"}
        return run.bundle.check_grid(
            grid,
            shows_head_alone=is_head,
            allow_unseen=run.request.allow_unseen_grid,
            shape_follows=run.request.shape is None,
        )

    return find_unseen


def fit_map(bank_map: BankMap, grids: GridChoice, *, lesion_ids: Sequence[int]) -> tuple[NDArray[np.uint8], Grid]:
    """Resample, crop or pad a label map to the grid of its image.

    Along axes where the image shows less than the map, it is centred on the body; where it shows more, on the map.

    Args:
        bank_map: Label map; not modified, but returned itself if nothing changes.
        grids: Rule for the grid of the image.
        lesion_ids: Vocabulary ids of lesions whose volume must survive resampling.

    Returns:
        ``(I, J, K)`` vocabulary ids and their grid, which keeps the map's position and axis directions.
    """
    own, change = bank_map.grid, grids.name_change(bank_map.grid)
    if change == "none":
        return bank_map.label_map, own
    shape, spacing_mm = grids.choose(own)
    centre_ijk = _choose_centre(bank_map, np.asarray(shape) * np.asarray(spacing_mm))
    if change == "cropped or padded":
        return crop_or_pad(bank_map.label_map, own, shape, fill=0, centre_ijk=centre_ijk.tolist())
    centre_mm = own.affine[:3, :3] @ centre_ijk + own.affine[:3, 3]
    grid = centre_grid_on(centre_mm.tolist(), shape=shape, spacing_mm=spacing_mm, like=own)
    present = [label_id for label_id in lesion_ids if label_id in bank_map.boxes]
    return resample_label_map(bank_map.label_map, own, grid, keep_ids=present), grid


def _choose_centre(bank_map: BankMap, extent_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Voxel index of the map that becomes the centre of a field of view."""
    steps, sides = np.asarray(bank_map.grid.spacing_mm), np.asarray(bank_map.grid.extent_mm)
    bounds = np.array([[(part.start, part.stop) for part in box] for box in bank_map.boxes.values()])
    body_mm = (bounds[:, :, 0].min(axis=0) + bounds[:, :, 1].max(axis=0)) / 2 * steps
    inside = np.clip(body_mm, np.minimum(extent_mm, sides) / 2, sides - np.minimum(extent_mm, sides) / 2)
    return np.asarray(np.where(extent_mm >= sides, sides / 2, inside) / steps - 0.5, dtype=np.float64)


def part_inside(own: Grid, grid: Grid) -> tuple[slice, slice, slice]:
    """Return the slices of the voxels of a grid whose centres lie within another grid with the same axis directions.

    Args:
        own: Grid that limits the part.
        grid: Grid whose voxels are cut, with the same axis directions.

    Returns:
        Slices along I, J, K of ``grid``; of no width along an axis on which nothing lies inside.
    """
    corners = np.array([[-0.5, -0.5, -0.5, 1.0], [*(side - 0.5 for side in grid.shape), 1.0]])
    first, stop = (np.linalg.solve(own.affine, grid.affine) @ corners.T).T[:, :3]
    low, high = (np.maximum(np.ceil(np.round(corner, DECIMALS)), 0).astype(int) for corner in (first, stop))
    i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return i, j, k


def plan_lesions(
    label_map: NDArray[np.uint8], voxel_ml: float, lesion_ids: Sequence[int], vocabulary: Vocabulary
) -> tuple[Lesion, ...]:
    """Return the lesions of a label map as a plan would request them, ordered by label, the largest first.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids.
        voxel_ml: Volume of a voxel in mL.
        lesion_ids: Vocabulary ids of the lesions.
        vocabulary: Vocabulary of the ids.
    """
    present = _find_ids(label_map) if lesion_ids else frozenset()
    wanted = [
        (label_id, volume_ml)
        for label_id in lesion_ids
        if label_id in present
        for volume_ml in measure_lesions(label_map, label_id, voxel_ml)
    ]
    return tuple(
        Lesion(
            label_id,
            vocabulary.name_of(label_id),
            volume_ml,
            index=index,
            hosts=vocabulary.hosts_of(label_id) or (BODY_ID,),
        )
        for index, (label_id, volume_ml) in enumerate(wanted)
    )


def find_lesions(label_map: NDArray[np.uint8], grid: Grid, asked: Sequence[Lesion]) -> tuple[Lesion, ...]:
    """Return the requested lesions as measured on the grid of an image, ordered by label, the largest first.

    Each is searched in its own neighbourhood, for speed; one that was lost by resampling is reported as not drawn.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids.
        grid: Grid of the image.
        asked: Lesions of the original map.
    """
    found = []
    for label_id in dict.fromkeys(lesion.label_id for lesion in asked):
        own = [lesion for lesion in asked if lesion.label_id == label_id]
        parts = sorted(connected_parts(label_map == label_id), key=lambda part: -int(part[1].sum()))
        for lesion, (box, mask) in zip(own, parts, strict=False):
            wide = widen(box, 2 * max(grid.spacing_mm), grid.spacing_mm, label_map.shape)
            near = np.zeros(label_map[wide].shape, dtype=bool)
            near[tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, wide, strict=True))] = mask
            drawn = describe_lesion(label_map[wide], near, lesion, spacing_mm=grid.spacing_mm)
            i, j, k = (place + side.start for place, side in zip(drawn.centre_ijk or (), wide, strict=True))
            found.append(replace(drawn, centre_ijk=(i, j, k)))
        found += own[len(parts) :]
    return tuple(found)


def _find_ids(label_map: NDArray[np.uint8]) -> frozenset[int]:
    """The ids in a map, background left out; slice by slice, since counting at once takes eight times its memory."""
    counts = np.zeros(256, dtype=np.int_)
    for plane in label_map:
        counts += np.bincount(plane.ravel(), minlength=256)
    return frozenset(np.flatnonzero(counts).tolist()) - {0}


def _spell(grid: Grid) -> str:
    return spell_grid(grid.shape, grid.spacing_mm, with_extent=False)


# What a dry run shows.


@dataclass(frozen=True, eq=False)
class MapOutlook:
    """What will be done with one given label map, known before any image is drawn.

    Attributes:
        name: Path relative to the bank.
        own: Grid of the map; None if the map cannot be used.
        shape: Voxels of its image along I, J, K.
        spacing_mm: Voxel sides of its image along I, J, K in mm.
        change: How the map is changed to fit that grid.
        label_ids: Vocabulary ids in the map, without the body.
        fault: Why the map cannot be used; empty if it can.
        warning: Warning about the grid of its image; may be empty.
    """

    name: str
    own: Grid | None
    shape: Shape | None
    spacing_mm: Spacing | None
    change: Change | None
    label_ids: tuple[int, ...]
    fault: str
    warning: str = ""

    def to_json(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """Return the outlook as a JSON-able dict, with names of labels."""
        return {
            "name": self.name,
            "map_shape": None if self.own is None else list(self.own.shape),
            "map_spacing_mm": None if self.own is None else list(self.own.spacing_mm),
            "shape": None if self.shape is None else list(self.shape),
            "spacing_mm": None if self.spacing_mm is None else list(self.spacing_mm),
            "change": self.change,
            "labels": [vocabulary.name_of(label_id) for label_id in self.label_ids],
            "fault": self.fault,
            "warning": self.warning,
        }


def look_at_maps(source: GivenSource, cases: Sequence[CasePlan], report: Report) -> list[MapOutlook]:
    """Read the given label maps of a plan and report what will be done with each; bodies are not searched for in CTs.

    Args:
        source: Source of the given maps.
        cases: Cases of the plan.
        report: Progress callback, called with (maps read, maps in all).

    Raises:
        BankError: None of the maps can be used.
    """
    names = {case.map_index: source.bank.names[case.map_index] for case in cases if case.map_index is not None}
    outlooks = []
    for done, (index, name) in enumerate(names.items(), start=1):
        own, ids = source.bank.grid_of(index), source.bank.ids_of(index)
        if own is None or ids is None:
            outlooks.append(MapOutlook(name, None, None, None, None, (), source.bank.fault_of(index)))
        else:
            shape, spacing_mm = source.grids.choose(own)
            label_ids = tuple(sorted(ids - {0, BODY_ID}))
            change = source.grids.name_change(own)
            fault, warning = source.look_at(own, ids)
            fault = f"{name}: {fault}" if fault else ""
            outlooks.append(MapOutlook(name, own, shape, spacing_mm, change, label_ids, fault, warning))
        report(done, len(names))
    return outlooks
