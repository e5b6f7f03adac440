"""Bank of a user's label maps, which are listed at once, and read and translated to the vocabulary when drawn."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maisi_aug.banks.case_reader import place_labels
from maisi_aug.banks.entry import MIN_COVER, BankEntry, BankListing, Needs
from maisi_aug.banks.files import BankFiles, digest_of, list_bank
from maisi_aug.banks.label_ids import (
    LabelMapping,
    Translation,
    build_translation,
    guess_maisi_ids,
    load_mapping,
    translate_own_names,
)
from maisi_aug.banks.label_map import (
    NUM_DIGITS,
    BankLesion,
    BankMap,
    BaseMap,
    add_envelope,
    cut_map,
    hash_of,
    hash_of_image,
    is_filled_body,
    load_entry,
    no_envelope,
)
from maisi_aug.errors import BankError, CohortError, EmptyBankError, MaisiAugWarning, VolumeError
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.vocabulary.label_meaning import find_label_id
from maisi_aug.vocabulary.labels import BODY_ID, Vocabulary
from maisi_aug.vocabulary.regions import Regions
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import Volume, load_grid
from maisi_aug.volumes.own_names import load_own_names

CACHE_BYTES = 512 * 2**20
NUM_LOOKS = 3
"""Number of maps that represent a bank, since patients resemble each other."""


class _Labels(NamedTuple):
    """A map in vocabulary ids, not yet with a body of its own, and whether a label means all of the body."""

    label_map: NDArray[np.uint8]
    grid: Grid
    has_envelope: bool


class FolderBank:
    """A mask bank of label maps in a folder, a data list, one file or NVIDIA's mask database.

    Attributes:
        name: Name of the folder or file.
        varies: Always False: the same anatomy may be drawn repeatedly, so that callers should deform it.
        skipped: ``(path, reason)`` of the files found unusable so far.
        grid: Output grid, to whose shape and spacing maps are cut.
        vocabulary: Vocabulary of the ids in the returned maps.
    """

    varies = False

    def __init__(
        self,
        path: Path | str | BankFiles,
        *,
        vocabulary: Vocabulary,
        grid: Grid,
        mapping: LabelMapping = "auto",
        body_region: Regions | None = None,
        cache_bytes: int = CACHE_BYTES,
        min_cover: float = MIN_COVER,
    ) -> None:
        """List the files; they are read when they are drawn.

        Args:
            path: Folder, JSON data list, one label map, or NVIDIA's mask database; or its files, listed before.
            vocabulary: Vocabulary to translate into.
            grid: The networks' grid; only its shape and spacing matter.
            mapping: ``auto``, ``maisi``, ``totalsegmentator-v1``, ``-v2`` or ``-v3``, a JSON file, or a dict of
                source ids or names -> vocabulary names or ids.
            body_region: Uppermost and lowest body region that a map has to show, where a list tells it.
            cache_bytes: Largest memory in bytes for the maps read last.
            min_cover: Share of the grid's length from feet to head that a map has to fill.

        Raises:
            BankError: There is no usable file: none at all, or of none is it known what its labels mean.
        """
        if isinstance(path, BankFiles):
            found = path
        else:
            found = list_bank(Path(path), lambda name: find_label_id(name, vocabulary) is not None)
        self._path = found.path
        self.name = self._path.resolve().name
        self.vocabulary = vocabulary
        self.grid = grid
        self._mapping = load_mapping(mapping)
        self._cache: OrderedDict[int, BankMap | _Labels] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._min_cover = min_cover
        self._grids: dict[int, Grid] = {}
        self._bad: dict[int, str] = {}
        self._ids: dict[int, frozenset[int]] = {}
        self._lesions: dict[tuple[int, int], list[BankLesion]] = {}
        self._reported: set[str] = set()
        self._translations: dict[tuple[Any, ...], Translation | BankError | None] = {}
        self._hashes: dict[tuple[int, bool], str | None] = {}
        entries = self._entries = found.entries
        self._missing, self._left_out = found.faults, found.left_out
        self._listing = BankListing(entries, grid=grid, tumor_ids=vocabulary.tumor_ids, body_region=body_region)
        for index, entry in enumerate(entries):
            translation = self._translation_of(entry)
            if isinstance(translation, BankError):
                self._set_aside(index, str(translation))
            elif translation is not None:
                self._report(translation)
                if not translation.envelope_ids and entry.image_path is None:
                    self._set_aside(index, str(no_envelope(entry)))
        self._require_some_left()
        self._require_meaning()

    def __len__(self) -> int:
        """Maps that are usable as far as is known."""
        return len(self._entries) - len(self._bad)

    @property
    def num_looks(self) -> int:
        """Number of maps to examine to represent the bank: all, because each file may show another part of the body."""
        return max(NUM_LOOKS, len(self))

    @property
    def path(self) -> Path:
        """Path of the bank: its folder, data list or file."""
        return self._path

    @property
    def names(self) -> list[str]:
        """Names of all listed maps in their order, whether usable or not."""
        return [entry.name for entry in self._entries]

    @property
    def digest(self) -> str:
        """SHA-256 that identifies the bank by its files and the meaning of their ids, without opening the maps."""
        meanings = self._mapping if isinstance(self._mapping, str) else dict(self._mapping)
        return hashlib.sha256(json.dumps([digest_of(self._entries), meanings]).encode()).hexdigest()

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """``(path, reason)`` of every file that has been found unusable so far."""
        return [*self._unusable, *self._left_out]

    @property
    def _unusable(self) -> list[tuple[str, str]]:
        """Those of them that are label maps."""
        return [*self._missing, *((self._entries[index].name, self._bad[index]) for index in sorted(self._bad))]

    def fault_of(self, index: int) -> str:
        """Return why a map cannot be used, with its name in front; empty if no fault is known.

        Args:
            index: Place of the map in :attr:`names`.
        """
        return f"{self._entries[index].name}: {self._bad[index]}" if index in self._bad else ""

    def image_path_of(self, index: int) -> Path | None:
        """Return the path of the CT that a map belongs to; None without one.

        Args:
            index: Place of the map in :attr:`names`.
        """
        return self._entries[index].image_path

    def order(self, seed: int, needs: Needs) -> list[int]:
        """Return the indices of maps that may be suitable, as far as is known before reading, in a seeded random order.

        If a list states the fields of view, the maps with the closest ones come first.

        Args:
            seed: Seed of the order.
            needs: Requirements on the label ids.
        """
        order: list[int] = numpy_generator(seed, "bank order").permutation(len(self._entries)).tolist()
        return self._listing.choose(order, needs)

    def load(self, index: int) -> BankMap | None:
        """Read one map of the bank; None if it cannot be used, with the reason added to :attr:`skipped`.

        Args:
            index: Place of the map in :attr:`names`.

        Raises:
            BankError: No usable map is left.
        """
        if index in self._bad:
            return None
        known = self._cache.get(index)
        if not isinstance(known, BankMap):
            self._try(index, lambda: self._remember(index, self._read(index)))
            known = self._cache.get(index)
        else:
            self._cache.move_to_end(index)
        return known if isinstance(known, BankMap) else None

    def require_unchanged(self, origins: Iterable[Mapping[str, Any]]) -> None:
        """Raise if a file of the bank has changed since cases were made from it.

        Args:
            origins: Origins of label maps as recorded in the manifest: ``file`` with its SHA-256, and the same of the
                CT from which the body was found.

        Raises:
            CohortError: The message names the first changed file.
        """
        index_of = {entry.name: index for index, entry in enumerate(self._entries)}
        wanted = {
            (index_of[str(origin["file"])], is_image): str(origin[key])[:NUM_DIGITS]
            for origin in origins
            if origin.get("file") in index_of
            for key, is_image in (("sha256", False), ("body_sha256", True))
            if key in origin
        }
        for (index, is_image), sha256 in wanted.items():
            found = self._hash_of(index, is_image=is_image)
            if found is None or not found.startswith(sha256):
                entry = self._entries[index]
                what = f"CT of {entry.name}" if is_image else f"label map {entry.name}"
                raise CohortError(
                    f"Mask bank {self._path}: the {what} has changed since this cohort was begun. Restore the "
                    "earlier file, or choose another --out."
                )

    def _hash_of(self, index: int, *, is_image: bool) -> str | None:
        """Hash of a map's files, or of its CT's, read once."""
        key = (index, is_image)
        if key not in self._hashes:
            self._hashes[key] = (hash_of_image if is_image else hash_of)(self._entries[index])
        return self._hashes[key]

    def ids_of(self, index: int) -> frozenset[int] | None:
        """Return the label ids of a map, which is read at most once; None if it cannot be used.

        Args:
            index: Place of the map in :attr:`names`.
        """
        listed = self._listing.ids[index]
        if listed is not None and index not in self._ids and index not in self._bad:
            return listed
        if index not in self._ids and index not in self._bad:
            self._try(index, lambda: self._read_labels(index))
        return self._ids.get(index) if index not in self._bad else None

    def grid_of(self, index: int) -> Grid | None:
        """Return the grid of a map, which is read at most once; None if it cannot be used.

        Args:
            index: Place of the map in :attr:`names`.
        """
        if index not in self._grids and index not in self._bad:
            self._try(index, lambda: self._read_labels(index))
        return self._grids.get(index) if index not in self._bad else None

    def lesions_of(self, index: int, label_id: int) -> list[BankLesion]:
        """Return the connected lesions of one label in a map, which is measured at most once.

        Args:
            index: Place of the map in :attr:`names`.
            label_id: Vocabulary id of the lesion.
        """
        key = (index, label_id)
        if key not in self._lesions:
            bank_map = self.load(index)
            self._lesions[key] = [] if bank_map is None else bank_map.find_lesions(label_id)
        return self._lesions[key]

    def draw_bases(self, lesions: Sequence[Lesion], *, required_ids: Sequence[int], seed: int) -> Iterator[BaseMap]:
        """Yield label maps that contain a host organ of every lesion and all required ids, in seeded random order.

        Each map is cut to the output grid around the host organs. The bank is traversed repeatedly with new cuts; the
        iterator ends when no map is suitable.

        Args:
            lesions: Lesions to be planted.
            required_ids: Vocabulary ids that must be present.
            seed: Seed of order and cuts.
        """
        needs = Needs(frozenset(required_ids), tuple(frozenset(wish.hosts) for wish in lesions))
        order = self.order(seed, needs)
        for turn in range(1_000_000):
            num_found = 0
            for index in order:
                if not needs.are_met_by(self.ids_of(index)):
                    continue
                bank_map = self.load(index)
                if bank_map is None or not needs.are_met_by(self.ids_of(index)):  # a list may promise too much
                    continue
                num_found += 1
                rng = numpy_generator(seed, f"bank cut {turn} {index}")
                hosts = [_draw_host(bank_map, wish.hosts, rng) for wish in lesions]
                focus = [bank_map.boxes[label_id] for label_id in (*hosts, *required_ids)]
                yield cut_map(bank_map, self.grid, focus, rng=rng)
            if num_found == 0:
                return

    def _translation_of(self, entry: BankEntry) -> Translation | BankError | None:
        names = dict(enumerate(entry.organ_names, start=1)) if entry.organ_names else entry.label_names
        key = (entry.has_vocabulary_ids, tuple(names.items()) if names else None)
        if key not in self._translations:
            mapping = "auto" if entry.organ_names and isinstance(self._mapping, str) else self._mapping
            try:
                self._translations[key] = build_translation(
                    mapping,
                    names,
                    self.vocabulary,
                    has_vocabulary_ids=entry.has_vocabulary_ids,
                    subject=f"Mask bank {self._path}",
                )
            except BankError as error:
                self._translations[key] = error
        return self._translations[key]

    def _translate_by_own_names(self, entry: BankEntry) -> Translation | None:
        """Translate the ids of a map by the names in its own header; None if it has none.

        Raises:
            VolumeError: None of the names is the vocabulary's.
        """
        names = load_own_names(entry.label_paths[0]) if entry.label_paths else {}
        return translate_own_names(names, self.vocabulary, subject=entry.name)

    def _try(self, index: int, read: Callable[[], object]) -> None:
        """Read something of an entry, and set the entry aside if that fails."""
        try:
            read()
        except VolumeError as error:
            self._set_aside(index, str(error))
            self._require_some_left()

    def _set_aside(self, index: int, reason: str) -> None:
        """Note why a map cannot be used, without its name, which stands in front wherever reasons are shown."""
        entry = self._entries[index]
        for name in (entry.name, *map(str, entry.label_paths)):
            reason = reason.removeprefix(f"{name}: ")
        self._bad[index] = reason

    def _read_labels(self, index: int) -> _Labels:
        """The map in vocabulary ids, read once while there is room; its ids are noted on the way.

        Finding the body takes longer than reading the labels, so maps that lack the host are recognised without it.
        """
        known = self._cache.get(index)
        if isinstance(known, _Labels):
            return known
        entry = self._entries[index]
        translation = self._translation_of(entry)
        if isinstance(translation, BankError):
            raise VolumeError(str(translation))
        source = load_entry(entry, translation, self.vocabulary)
        present = np.flatnonzero(np.bincount(source.array.ravel()))
        if not present.any():
            raise VolumeError(f"{entry.name}: has no labels, only background. Replace the file.")
        if translation is None:
            translation = self._translate_by_own_names(entry) or guess_maisi_ids(
                present, self.vocabulary, subject=entry.name
            )
        self._report(translation, present)
        label_map = translation.apply(source.array)
        ids = frozenset(np.flatnonzero(np.bincount(label_map.ravel())).tolist()) | {BODY_ID}
        if not ids - {0, BODY_ID}:
            raise VolumeError(f"{entry.name}: has no label of the vocabulary. Check --mask-labels.")
        has_envelope = bool(translation.envelope_ids.intersection(present.tolist()))
        placed = self._place(entry, Volume(label_map, source.grid))
        self._ids[index], self._grids[index] = ids, placed.grid
        labels = _Labels(placed.array, placed.grid, has_envelope)
        self._remember(index, labels)
        return labels

    def _place(self, entry: BankEntry, labels: Volume) -> Volume:
        """The map where its CT is, if there is one: a map that brings its own body lies there as well."""
        if entry.image_path is None:
            return labels
        return place_labels(labels, load_grid(entry.image_path), subject=entry.name, on="its own grid")

    def _read(self, index: int) -> BankMap:
        entry = self._entries[index]
        label_map, grid, has_envelope = self._read_labels(index)
        image_name = image_sha256 = None
        if not has_envelope or not is_filled_body(label_map):
            if has_envelope:  # a shell, or a few voxels
                placed = self._place(entry, Volume(label_map, grid))
                label_map, grid = placed.array, placed.grid
            label_map, image_name = add_envelope(label_map, grid, entry)
            self._grids[index] = grid
            image_sha256 = self._hash_of(index, is_image=True)
        sha256 = self._hash_of(index, is_image=False) or ""
        bank_map = BankMap(entry.name, label_map, grid, sha256, image_name, image_sha256)
        self._require_cover(bank_map)
        return bank_map

    def _require_cover(self, bank_map: BankMap) -> None:
        filled = np.flatnonzero((bank_map.label_map > 0).any(axis=(0, 1)))
        covered_mm = (int(filled[-1]) - int(filled[0]) + 1) * bank_map.grid.spacing_mm[2]
        wanted_mm = self._min_cover * self.grid.extent_mm[2]
        if covered_mm < wanted_mm:
            raise VolumeError(
                f"{bank_map.name}: covers {covered_mm:.0f} mm from feet to head, at least {wanted_mm:.0f} mm "
                f"({self._min_cover:.0%} of the grid) are needed. Use a longer scan or a shorter grid."
            )

    def _remember(self, index: int, known: BankMap | _Labels) -> None:
        self._cache[index] = known
        self._cache.move_to_end(index)
        while len(self._cache) > 1 and sum(kept.label_map.nbytes for kept in self._cache.values()) > self._cache_bytes:
            self._cache.popitem(last=False)

    def _require_meaning(self) -> None:
        """Read one map where only the maps themselves can tell what their ids mean."""
        unnamed = (index for index, entry in enumerate(self._entries) if self._translation_of(entry) is None)
        next((index for index in unnamed if self.load(index) is not None), None)

    def _report(self, translation: Translation, present: NDArray[np.int_] | None = None) -> None:
        """Warn once of every source label that the vocabulary lacks, and of every lesion that is healed."""
        unlisted = () if present is None else translation.find_unlisted(present)
        for names, fate in (
            ((*translation.unknown, *unlisted), "they become body (200)"),
            (translation.unknown_lesions, "these lesions are replaced by the organ around them"),
        ):
            new = [name for name in names if name not in self._reported]
            self._reported.update(new)
            if new:
                example = new[0].removeprefix("id ")
                warnings.warn(
                    f"Mask bank {self._path}: labels not in the vocabulary: {', '.join(new)}; {fate}. If they "
                    f'matter, map them with --map "{example}=NAME" or a JSON file for --mask-labels.',
                    MaisiAugWarning,
                    stacklevel=3,
                )

    def _require_some_left(self) -> None:
        if len(self) > 0:
            return
        if not self._unusable:
            raise EmptyBankError(f"Mask bank {self._path}: no label maps found. Check the folder's layout.")
        name, reason = self._unusable[0]
        num_unusable = len(self._unusable)
        raise EmptyBankError(
            f"Mask bank {self._path}: none of the {num_unusable} label maps can be used; the first is {name}: {reason}"
        )


def _draw_host(bank_map: BankMap, hosts: Sequence[int], rng: np.random.Generator) -> int:
    """One of the hosts that the map has; the square root keeps ribs in play beside hips."""
    present = [host for host in hosts if bank_map.counts[host]]
    weights = np.sqrt(bank_map.counts[present].astype(np.float64))
    return int(rng.choice(present, p=weights / weights.sum()))
