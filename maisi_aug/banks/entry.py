"""A label map of a bank before it is read: its path, what is known of it, and the cases that it can be used for."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maisi_aug.errors import VolumeError
from maisi_aug.system.content import ContentError, content_errors
from maisi_aug.vocabulary.regions import Regions, covers
from maisi_aug.volumes.grid import Grid, Spacing

MIN_COVER = 0.5
"""Share of the grid's length from feet to head that a map has to have; a thinner slab would float in air."""
SAME_VIEW, NEAR_VIEW = 0.01, 0.15
"""Relative difference along the worst axis up to which fields of view are the same, and near."""
MIN_NEAR = 32
"""Maps among which chance decides, whatever their field of view: one patient for every case would be no variety."""


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """One file inside a zip archive, such as a label map of NVIDIA's mask database.

    Attributes:
        archive: Path of the archive.
        name: Path inside the archive.
        num_bytes: Uncompressed size in bytes that the archive states.
        crc32: Checksum that the archive states.
        max_bytes: Upper bound of the size in bytes that its number of voxels allows; nothing beyond it is read.
    """

    archive: Path
    name: str
    num_bytes: int
    crc32: int
    max_bytes: int

    def read(self) -> bytes:
        """Return the content of the file, in memory; nothing is written to disk.

        Raises:
            VolumeError: The archive or the member is missing, damaged or encrypted, or the member is too large.
        """
        try:
            with content_errors(), zipfile.ZipFile(self.archive) as archive, archive.open(self.name) as file:
                content = file.read(self.max_bytes + 1)
        except (OSError, ContentError) as error:
            raise VolumeError(
                f"{self.name}: this member of {self.archive.name} is damaged ({error}). Download the archive again."
            ) from error
        if len(content) > self.max_bytes:
            raise self.too_large()
        return content

    def too_large(self) -> VolumeError:
        """Return the error for a file that is larger than its number of voxels allows."""
        return VolumeError(
            f"{self.name}: larger than the {self.max_bytes / 1000000.0:.0f} MB that the archive's list states. "
            "Download the archive again."
        )


@dataclass(frozen=True)
class BankEntry:
    """One label map of a mask bank, with its files and what is known of it before it is read.

    Attributes:
        name: Path relative to the bank, with ``/`` as separator.
        label_paths: The label map, or one mask per organ; empty for a member of an archive.
        image_path: The CT that the label map belongs to; None without one.
        organ_names: Name of the organ of each mask; empty if ``label_paths`` is one label map.
        label_names: Names of the map's own ids from ``labels.json`` or ``dataset.json``; None without such a file.
        label_regions: nnU-Net's regions from the same file: labels that join several ids.
        listed_ids: Label ids that a data list states for the map, as MAISI's lists do; None if unknown.
        has_vocabulary_ids: Whether its ids are the vocabulary's, as in cohorts of this package and MAISI's lists.
        member: The label map inside an archive; None for files on disk.
        extent_mm: Field of view along I, J, K that a data list states; None where unknown.
        regions: Uppermost and lowest body region, stated by a data list or derived from its labels; None where unknown.
        case: Name of the case; empty if no file name states it.
    """

    name: str
    label_paths: tuple[Path, ...]
    image_path: Path | None = None
    organ_names: tuple[str, ...] = ()
    label_names: Mapping[int, str] | None = None
    label_regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    listed_ids: tuple[int, ...] | None = None
    has_vocabulary_ids: bool = False
    member: ArchiveMember | None = None
    extent_mm: Spacing | None = None
    regions: Regions | None = None
    case: str = ""

    @property
    def ids_by_name(self) -> dict[str, tuple[int, ...]]:
        """Label name -> ids in the label map, without the background; several ids may share a name."""
        ids: dict[str, tuple[int, ...]] = {}
        for label_id, name in (self.label_names or {}).items():
            if label_id:
                ids[name] = (*ids.get(name, ()), label_id)
        return {**ids, **self.label_regions}

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files of the label map, followed by its CT if it has one."""
        return self.label_paths if self.image_path is None else (*self.label_paths, self.image_path)


@dataclass(frozen=True)
class Needs:
    """Label ids that a label map must have, or must not have, to be used for a case.

    Attributes:
        required_ids: Ids that must all be present.
        host_ids: Sets of ids of host organs; at least one id of each set must be present.
        only_tumor_ids: The only tumour ids that may be present; None if tumours are removed anyway.
    """

    required_ids: frozenset[int] = frozenset()
    host_ids: tuple[frozenset[int], ...] = ()
    only_tumor_ids: frozenset[int] | None = None

    def are_met_by(self, ids: frozenset[int] | None) -> bool:
        """Whether a label map with these ids meets the requirements; None stands for an unusable map and never does."""
        return ids is not None and self.required_ids <= ids and all(ids & hosts for hosts in self.host_ids)


class BankListing:
    """What is known of the label maps of a bank before they are read.

    Attributes:
        ids: Per map, the label ids that a data list states; None if only reading the map can tell.
    """

    def __init__(
        self, entries: Sequence[BankEntry], *, grid: Grid, tumor_ids: Sequence[int], body_region: Regions | None
    ) -> None:
        self.ids = [None if entry.listed_ids is None else frozenset(entry.listed_ids) for entry in entries]
        tumors = frozenset(tumor_ids)
        self._tumors = [frozenset() if ids is None else ids & tumors for ids in self.ids]
        self._is_told = any(entry.extent_mm is not None for entry in entries)
        extents = np.array([entry.extent_mm or grid.extent_mm for entry in entries], dtype=np.float64).reshape(-1, 3)
        self._distances = np.abs(np.log(extents / grid.extent_mm)).max(axis=1)
        is_long = extents[:, 2] >= MIN_COVER * grid.extent_mm[2]
        self._is_in_view = [
            bool(long) and (body_region is None or entry.extent_mm is None or _shows(entry, body_region))
            for long, entry in zip(is_long, entries, strict=True)
        ]

    def choose(self, order: Sequence[int], needs: Needs) -> list[int]:
        """Return the indices of suitable maps from a given order, those with a similar field of view first.

        If tumours are removed anyway, maps without tumours come first, provided that there are enough of them for
        variety. Without information about the maps, the order is returned unchanged.

        Args:
            order: Indices of maps, in the order to try them.
            needs: Requirements on the label ids.
        """
        if not self._is_told:
            return list(order)
        chosen = np.array([index for index in order if self._may_serve(index, needs)], dtype=np.int64)
        if not chosen.size:
            return []
        distances = self._distances[chosen]
        is_late = np.zeros(chosen.size, dtype=bool)
        if needs.only_tumor_ids is None:
            has_tumor = np.array([bool(self._tumors[index]) for index in chosen])
            if np.count_nonzero(~has_tumor) >= MIN_NEAR:
                is_late = has_tumor
        ascending = np.sort(distances[~is_late])
        near = ascending[min(MIN_NEAR, ascending.size) - 1]
        near = SAME_VIEW if near <= SAME_VIEW else max(near, NEAR_VIEW)
        places = np.lexsort((np.where(distances <= near, 0.0, distances), is_late))
        return [int(index) for index in chosen[places]]

    def _may_serve(self, index: int, needs: Needs) -> bool:
        ids = self.ids[index]
        if ids is None:
            return True
        is_wanted = needs.only_tumor_ids is None or self._tumors[index] <= needs.only_tumor_ids
        return is_wanted and self._is_in_view[index] and needs.are_met_by(ids)


def _shows(entry: BankEntry, wanted: Regions) -> bool:
    return entry.regions is not None and covers(entry.regions, wanted)
