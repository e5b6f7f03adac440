"""NVIDIA's mask database: some thousand label maps in a zip or unpacked, and a JSON list of what each of them shows.

The list decides which maps are candidates, so that none is opened before it is drawn. Maps are found by the end of the
path that their row gives, since lists and archives differ in the folders before it. Of an archive only members that the
list names are read, each into memory; an archive with a member that would leave a folder is refused as a whole.

Source: file names and fields of ``datasets/`` in the Hugging Face repository ``nvidia/NV-Generate-CT``.
"""

from __future__ import annotations

import math
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from maisi_aug.banks.entry import ArchiveMember, BankEntry
from maisi_aug.errors import BankError
from maisi_aug.system.content import ContentError, content_errors, read_json
from maisi_aug.vocabulary.regions import BODY_REGIONS, BodyRegion, Regions, regions_of
from maisi_aug.volumes.grid import Shape, Spacing
from maisi_aug.volumes.image_files import NIFTI_SUFFIXES

MAPS_STEM, LIST_STEM = "all_masks", "candidate_masks"
PATH_FIELD = "pseudo_label_filename"
MAX_VOXEL_BYTES = 8
"""Bytes per voxel of the widest type in which NIfTI stores labels."""
HEADER_BYTES = 2**20
MAX_DEPTH = 32
"""Largest number of folders in a path, because every suffix of every path is looked up."""
MAX_MAP_BYTES = 4 * 2**30
"""Limit for any size that a list states: 16 times the largest grid of the published models, in bytes."""

Skipped = list[tuple[str, str]]


@dataclass(frozen=True)
class Database:
    """Files of NVIDIA's mask database: a JSON list and the label maps that it names.

    Attributes:
        list_path: Path of the JSON list.
        maps_path: Zip archive or folder with the label maps.
    """

    list_path: Path
    maps_path: Path


def find_database(path: Path) -> Database | None:
    """Find NVIDIA's mask database at a path; None if there is none.

    Args:
        path: The archive, the unpacked folder, the list, or the folder that holds list and maps.

    Raises:
        BankError: An archive without a list, or with several that may belong to it.
    """
    if path.is_dir():
        inside = _find_lists(path)
        if inside:
            return Database(_choose_list(inside, path), _find_maps(path) or path)
        beside = _find_lists(path.parent) if path.name.startswith(MAPS_STEM) else []
        return Database(_choose_list(beside, path), path) if beside else None
    if path.suffix.lower() == ".zip":
        return Database(_choose_list(_find_lists(path.parent), path), path)
    if path.suffix.lower() == ".json" and _is_database_list(path):
        return Database(path, _find_maps(path.parent) or path.parent)
    return None


def list_database(database: Database) -> tuple[list[BankEntry], Skipped]:
    """List the label maps of a mask database in the order of their names, without opening them.

    Returns:
        The entries, and ``(name, reason)`` of rows whose map is missing, empty, too large or not plausible.

    Raises:
        BankError: The list or the archive cannot be read, or one of their paths leaves the folder.
    """
    rows = _read_rows(database.list_path)
    is_archive = database.maps_path.is_file()
    maps = _ArchiveMaps(database.maps_path) if is_archive else _FolderMaps(database.maps_path)
    by_tail = _index_tails(maps.names)
    entries: list[BankEntry] = []
    skipped: Skipped = []
    for number, row in enumerate(rows):
        stated = _read_row(row, f"Mask bank {database.list_path}, row {number}")
        found = _find_by_tail(stated.path, by_tail)
        if isinstance(found, str):
            entry = maps.entry_of(found, stated)
            if isinstance(entry, BankEntry):
                entries.append(entry)
            else:
                skipped.append((stated.path, entry))
        else:
            reason = f"has {len(found)} files, including {found[0]} and {found[1]}" if found else "is missing"
            skipped.append((stated.path, f"{PurePosixPath(stated.path).name} {reason}"))
    return sorted(entries, key=lambda entry: entry.name), skipped


@dataclass(frozen=True, slots=True)
class _Row:
    """What the list states of a map."""

    path: str
    ids: tuple[int, ...]
    shape: Shape
    spacing_mm: Spacing
    regions: Regions | None

    @property
    def max_bytes(self) -> int:
        return min(HEADER_BYTES + MAX_VOXEL_BYTES * math.prod(self.shape), MAX_MAP_BYTES)

    def to_entry(self, name: str, label_paths: tuple[Path, ...] = (), member: ArchiveMember | None = None) -> BankEntry:
        i, j, k = (side * step for side, step in zip(self.shape, self.spacing_mm, strict=True))
        return BankEntry(
            name,
            label_paths,
            listed_ids=self.ids,
            has_vocabulary_ids=True,
            member=member,
            extent_mm=(i, j, k),
            regions=self.regions,
        )


class _FolderMaps:
    """The files of an unpacked database."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._root = folder.resolve()
        found = ((Path(place), name) for place, _, names in os.walk(folder) for name in names)
        self.names = [
            (place / name).relative_to(folder).as_posix() for place, name in found if name.endswith(NIFTI_SUFFIXES)
        ]

    def entry_of(self, name: str, row: _Row) -> BankEntry | str:
        path = self._folder / name
        if path.is_symlink() and not path.resolve().is_relative_to(self._root):
            return f"{path.name} is a link that leaves the folder"
        if not path.exists():
            return f"{path.name} is missing"
        return row.to_entry(name, (path,)) if path.stat().st_size else f"{path.name} is empty"


class _ArchiveMaps:
    """The members of a zip archive."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        try:
            with content_errors(), zipfile.ZipFile(archive) as opened:
                infos = opened.infolist()
        except (OSError, ContentError) as error:
            raise BankError(f"Mask bank {archive}: not a readable zip archive ({error}). Download it again.") from error
        for info in infos:
            _require_inside(info, archive)
        self._infos = {info.filename: info for info in infos if info.filename.endswith(NIFTI_SUFFIXES)}
        self.names = list(self._infos)

    def entry_of(self, name: str, row: _Row) -> BankEntry | str:
        info = self._infos[name]
        member = ArchiveMember(self._archive, name, info.file_size, info.CRC, row.max_bytes)
        if not info.file_size:
            return f"{PurePosixPath(name).name} is empty"
        return str(member.too_large()) if info.file_size > row.max_bytes else row.to_entry(name, member=member)


def _require_inside(info: zipfile.ZipInfo, archive: Path) -> None:
    """Raise for a member that would land outside of a folder, or that is a link to somewhere."""
    fault = _find_path_fault(info.orig_filename) or _find_path_fault(info.filename)
    if stat.S_ISLNK(info.external_attr >> 16):
        fault = "a link"
    if fault is not None:
        raise BankError(
            f"Mask bank {archive}: member '{info.orig_filename}' would be written outside the folder: {fault}. "
            "Nothing was read; "
            "download the archive again from its source."
        )


def _find_path_fault(text: str) -> str | None:
    path = PurePosixPath(text.replace("\\", "/"))
    if path.is_absolute() or text[1:2] == ":":
        return "an absolute path"
    if len(path.parts) > MAX_DEPTH:
        return f"a path of {len(path.parts)} folders"
    return "a path that leaves it" if ".." in path.parts else None


def _index_tails(names: Sequence[str]) -> dict[tuple[str, ...], list[str]]:
    """Every end of every path -> the paths that end so; a path that is no longer than the end comes first."""
    by_tail: dict[tuple[str, ...], list[str]] = {}
    for name in sorted(names, key=lambda name: name.count("/")):
        parts = PurePosixPath(name).parts
        for start in range(len(parts)):
            by_tail.setdefault(parts[start:], []).append(name)
    return by_tail


def _find_by_tail(stated: str, by_tail: Mapping[tuple[str, ...], list[str]]) -> str | list[str]:
    """The file that ends in as much of a stated path as any does; several where that does not tell them apart."""
    parts = PurePosixPath(stated).parts
    for start in range(len(parts)):
        found = by_tail.get(parts[start:], [])
        if found and (len(found) == 1 or PurePosixPath(found[0]).parts == parts[start:]):
            return found[0]
        if found:
            return found
    return []


def _find_lists(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{LIST_STEM}*.json") if path.is_file())


def _find_maps(folder: Path) -> Path | None:
    """The unpacked maps beside a list, else the archive."""
    found = sorted(folder.glob(f"{MAPS_STEM}*"))
    folders = [path for path in found if path.is_dir()]
    archives = [path for path in found if path.suffix.lower() == ".zip"]
    return next(iter((*folders, *archives)), None)


def _choose_list(lists: Sequence[Path], maps: Path) -> Path:
    """The only list, or the one that is named like the maps."""
    named_alike = [path for path in lists if path.stem.removeprefix(LIST_STEM) == maps.stem.removeprefix(MAPS_STEM)]
    if len(lists) == 1 or named_alike:
        return (named_alike or lists)[0]
    found = " and ".join(path.name for path in lists) if lists else f"no {LIST_STEM}*.json"
    raise BankError(
        f"Mask bank {maps}: the list of its maps must be next to it, found {found}. "
        f"{'Give the list itself as the mask bank' if lists else 'Download the list as well'}."
    )


def _is_database_list(path: Path) -> bool:
    """Whether every row of a data list has NVIDIA's field, so that its ids are MAISI's own."""
    try:
        rows = read_json(path)
    except (OSError, ValueError):
        return False  # reading it as a data list reports what is wrong
    is_list = isinstance(rows, list) and bool(rows)
    return is_list and all(
        isinstance(row, dict) and {PATH_FIELD, "label_list", "dim", "spacing"} <= set(row) for row in rows
    )


def _read_rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        rows = read_json(path)
    except (OSError, ValueError) as error:
        raise BankError(f"Mask bank {path}: not a valid JSON list: {error}. Download it again.") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise BankError(f"Mask bank {path}: not a list of rows. Download it again.")
    return rows


def _read_row(row: Mapping[str, Any], subject: str) -> _Row:
    path = row.get(PATH_FIELD)
    if not isinstance(path, str) or not path:
        raise BankError(
            f"{subject}: '{PATH_FIELD}' is missing or not text, found {sorted(row)}. Download the list again."
        )
    fault = _find_path_fault(path)
    if fault is not None:
        raise BankError(
            f"{subject}: the path must stay inside the database, found '{path}', {fault}. Correct the list."
        )
    ids = _read_numbers(row, "label_list", subject)
    sides = _read_numbers(row, "dim", subject, length=3)
    steps = _read_numbers(row, "spacing", subject, length=3)
    if not all(side == int(side) and side >= 1 for side in sides) or min(steps) <= 0 or not set(ids) <= set(range(256)):
        raise BankError(
            f"{subject}: expected ids up to 255, whole sides and a spacing in mm, found {sorted(ids)[-1:]}, {sides} "
            f"and {steps}. Download the list again."
        )
    label_ids = tuple(int(label_id) for label_id in ids)
    i, j, k = (int(side) for side in sides)
    x, y, z = steps
    stated = tuple(_read_regions(row, subject))
    return _Row(
        path.replace("\\", "/"),
        label_ids,
        (i, j, k),
        (x, y, z),
        (stated[0], stated[-1]) if stated else regions_of(label_ids),
    )


def _read_numbers(row: Mapping[str, Any], name: str, subject: str, *, length: int | None = None) -> list[float]:
    values = row.get(name)
    is_number = isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )
    if not isinstance(values, list) or not is_number or (length is not None and len(values) != length):
        expected = "numbers" if length is None else f"{length} numbers"
        raise BankError(f"{subject}: expected {expected} as '{name}', found {values!r}. Download the list again.")
    return values


def _read_regions(row: Mapping[str, Any], subject: str) -> Iterator[BodyRegion]:
    """The uppermost and the lowest region, where a row has them: four numbers each, of which one is not 0."""
    for name in ("top_region_index", "bottom_region_index"):
        if row.get(name) is None:
            continue
        values = _read_numbers(row, name, subject, length=len(BODY_REGIONS))
        marked = [region for region, value in zip(BODY_REGIONS, values, strict=True) if value]
        if len(marked) != 1:
            raise BankError(f"{subject}: expected one region as '{name}', found {values}. Download the list again.")
        yield marked[0]
