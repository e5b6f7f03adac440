"""Which files of a folder or data list are label maps, and which CT belongs to each.

Layouts, tried in this order: a cohort of this package (``anatomy/``), nnU-Net raw or Medical Decathlon (``labelsTr/``),
``labels/`` beside ``images/``, one mask per organ (TotalSegmentator's output), pairs such as ``X_ct`` and ``X_seg``,
and one folder per case with any of these. NVIDIA's mask database, packed or not, is told by its list.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from maisi_aug.banks.entry import BankEntry
from maisi_aug.banks.mask_database import find_database, list_database
from maisi_aug.errors import BankError
from maisi_aug.volumes.image_files import READABLE_SUFFIXES, is_readable_name

IsOrganName = Callable[[str], bool]

LABEL_FOLDERS = ("anatomy", "labelsTr", "labelsSynthetic", "labels", "label", "masks", "segmentations")
IMAGE_FOLDERS = ("imagesTr", "imagesSynthetic", "images", "image", "ct")
NAME_FILES = ("labels.json", "dataset.json")
MIN_ORGAN_FILES = 3
MAX_LISTED_ID = 65535

_IMAGE_NAME = re.compile(r"^(?:(?P<case>.+)[_-])?(?:ct|image|img|volume|vol)$", re.IGNORECASE)
_LABEL_NAME = re.compile(
    r"^(?:(?P<case>.+?)[_-])?(?P<role>seg|segmentation|labels?|labelmap|mask|anatomy|gt|oar|ptv|gtv)(?:[_-].*)?$",
    re.IGNORECASE,
)


def find_entries(path: Path, is_organ_name: IsOrganName) -> tuple[list[BankEntry], list[tuple[str, str]]]:
    """List the label maps of a bank without opening them.

    Args:
        path: A folder, a JSON data list, one label map, or NVIDIA's mask database.
        is_organ_name: Whether a file's name is an organ's, which makes a folder of masks one label map.

    Returns:
        The entries in the order of their names, and ``(name, reason)`` of files that are missing or empty.

    Raises:
        BankError: There is nothing at the path, or the data list cannot be read.
    """
    if not path.exists():
        raise BankError(
            f"Mask bank {path}: expected a folder, a data list or a label map, found nothing there. Check the path."
        )
    database = find_database(path)
    if database is not None:
        return list_database(database)
    root = path if path.is_dir() else path.parent
    if path.is_dir():
        entries = list(_find_in_folder(path, is_organ_name, depth=1))
    elif path.suffix.lower() == ".json":
        entries = list(_find_in_data_list(path))
    elif is_readable_name(path):
        entries = [_build_single(path)]
    else:
        raise BankError(f"Mask bank {path}: expected a folder, a JSON data list or a label map, found another file.")
    named = [_with_context(entry, root) for entry in sorted(entries, key=lambda entry: entry.label_paths)]
    usable: list[BankEntry] = []
    skipped: list[tuple[str, str]] = []
    for entry in named:
        reason = _find_fault(entry)
        if reason is None:
            usable.append(entry)
        else:
            skipped.append((entry.name, reason))
    return usable, skipped


def digest_of(entries: Sequence[BankEntry]) -> str:
    """SHA-256 over what tells one bank from another without opening its maps: files, their sizes, names of labels."""
    rows = [
        {
            "name": entry.name,
            "files": [(path.name, _num_bytes(path)) for path in entry.paths],
            "label_names": entry.label_names,
            "listed_ids": entry.listed_ids,
            "is_cohort": entry.has_vocabulary_ids,
            **({"member": [entry.member.num_bytes, entry.member.crc32]} if entry.member is not None else {}),
        }
        for entry in entries
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _num_bytes(path: Path) -> int:
    """Size of a file, or of the slices in a DICOM folder."""
    files = [child for child in path.iterdir() if child.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def stem_of(path: Path) -> str:
    """File name without the format's suffix, ``.nii.gz`` included."""
    lower = path.name.lower()
    for suffix in sorted(READABLE_SUFFIXES, key=len, reverse=True):
        if lower.endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def is_label_name(path: Path) -> bool:
    """Whether a file's name says that it is a label map, as in ``X_seg`` or ``labels``."""
    return _LABEL_NAME.match(stem_of(path)) is not None


def is_image_name(path: Path) -> bool:
    """Whether a file's name says that it is an image, as in ``X_ct`` or ``image``."""
    return _IMAGE_NAME.match(stem_of(path)) is not None


def case_of(path: Path) -> str:
    """The case that a file belongs to: its name, or its folder's where the name says no more than what it holds.

    nnU-Net's images end in ``_0000``, which is no part of the name; ``s0001/ct.nii.gz`` is of case ``s0001``.
    """
    stem = re.sub(r"_0000$", "", stem_of(path))
    match = _IMAGE_NAME.match(stem) or _LABEL_NAME.match(stem)
    return (match["case"] or path.parent.name or stem) if match else stem


LabelRegions = Mapping[str, tuple[int, ...]]
"""nnU-Net's regions: labels that join several ids."""


def load_label_names(path: Path) -> dict[str, Mapping[int, str]]:
    """The names of :func:`load_labels`."""
    return load_labels(path)[0]


def load_labels(path: Path) -> tuple[dict[str, Mapping[int, str]], LabelRegions]:
    """Read ``labels.json`` or ``dataset.json``: id -> name, or name -> id, or a group of those per kind of label map.

    Returns:
        Group -> id -> name, the group being empty where the file has none; and the regions.

    Raises:
        BankError: The file is not JSON or its labels are not one id to one name.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BankError(f"{path}: expected JSON with label names, found: {error}. Correct the file.") from error
    table = document.get("labels", document) if isinstance(document, dict) else document
    if not isinstance(table, dict) or not table:
        raise BankError(f"{path}: expected label ids and names, found none. Correct the file or name a mapping.")
    if all(isinstance(value, dict) for value in table.values()):
        return {str(group).lower(): to_label_names(part, path) for group, part in table.items()}, {}
    names = to_label_names(table, path)
    return {"": names}, {str(name): tuple(map(int, ids)) for name, ids in table.items() if isinstance(ids, list)}


def find_referenced(folder: Path, text: str) -> Path:
    """A file that an nnU-Net dataset's ``dataset`` entry points at: relative to its folder, variables replaced."""
    return folder / os.path.expandvars(text)


def to_label_names(table: Mapping[str, Any], path: Path) -> dict[int, str]:
    """A table of ids and names as id -> name.

    An id of nnU-Net's regions, which join several ids, is called as the smallest region that holds it.

    Args:
        table: Id -> name, or name -> id or ids.
        path: Where it comes from, for errors.

    Raises:
        BankError: The table is something else.
    """
    regions = {name: values for name, values in table.items() if isinstance(values, list)}
    widest_first = sorted(regions, key=lambda name: len(regions[name]), reverse=True)
    parts = [(name, value) for name in widest_first for value in regions[name]]
    names: dict[int, str] = {}
    for key, value in (*parts, *((key, value) for key, value in table.items() if key not in regions)):
        label_id, name = (key, value) if str(key).isdecimal() else (value, key)
        if not str(label_id).isdecimal() or not isinstance(name, str):
            raise BankError(
                f"{path}: expected one id for each name, found {key!r}: {value!r}. Write a mapping file and pass it "
                "with --mask-labels."
            )
        names[int(label_id)] = name
    return names


def _find_in_folder(folder: Path, is_organ_name: IsOrganName, *, depth: int) -> Iterator[BankEntry]:
    for label_folder in (folder / name for name in LABEL_FOLDERS):
        if label_folder.is_dir():
            images = [image for name in IMAGE_FOLDERS if (folder / name).is_dir() for image in _files(folder / name)]
            masks = _build_organ_entry(label_folder, _files(label_folder), is_organ_name, image_folder=folder)
            yield from [masks] if masks else _pair_by_case(images, _files(label_folder), label_folder.name == "anatomy")
            return
    files = _files(folder)
    masks = _build_organ_entry(folder, files, is_organ_name, image_folder=folder)
    found = [masks] if masks else list(_pair_by_role(files))
    yield from found
    if depth and not found:
        for child in sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")):
            yield from _find_in_folder(child, is_organ_name, depth=depth - 1)


def _files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_file() and is_readable_name(path) and not path.name.startswith(".")
    )


def _build_organ_entry(
    folder: Path, files: Sequence[Path], is_organ_name: IsOrganName, *, image_folder: Path
) -> BankEntry | None:
    """One entry of all masks, if most files are named after organs."""
    masks = [path for path in files if not _IMAGE_NAME.match(stem_of(path))]
    num_organs = sum(is_organ_name(stem_of(path)) for path in masks)
    if num_organs < MIN_ORGAN_FILES or num_organs * 2 < len(masks):
        return None
    nearby = [*files, *_files(image_folder), *_files(folder.parent)]
    image = next((path for path in nearby if _IMAGE_NAME.match(stem_of(path))), None)
    return BankEntry("", tuple(masks), image, organ_names=tuple(map(stem_of, masks)))


def _pair_by_case(images: Sequence[Path], labels: Sequence[Path], is_cohort: bool) -> Iterator[BankEntry]:
    """Pair the files of two folders by case name; nnU-Net's images end in ``_0000``."""
    # A label map's namesake comes first: "phantom_0001" is a case of its own, not nnU-Net's second channel of another.
    by_stem = {stem_of(image): image for image in images}
    by_case = {case_of(image): image for image in images if not re.search(r"_000[1-9]$", stem_of(image))}
    for label in labels:
        image = by_stem.get(stem_of(label)) or by_case.get(case_of(label))
        yield BankEntry("", (label,), image, has_vocabulary_ids=is_cohort)


def _pair_by_role(files: Sequence[Path]) -> Iterator[BankEntry]:
    """Pair ``X_ct`` with every ``X_seg...`` of one folder; without any such name, every file is a label map."""
    images = {match["case"]: path for path in files if (match := _IMAGE_NAME.match(stem_of(path)))}
    labels = [(match["case"], path) for path in files if (match := _LABEL_NAME.match(stem_of(path)))]
    if not images and not labels:
        labels = [(None, path) for path in files]
    for case, path in labels:
        if path not in images.values():
            yield BankEntry("", (path,), images.get(case))


def _build_single(path: Path) -> BankEntry:
    for entry in _pair_by_role(_files(path.parent)):
        if path in entry.label_paths:
            return entry
    return BankEntry("", (path,))


def _find_in_data_list(path: Path) -> Iterator[BankEntry]:
    """Rows ``{"image", "label"}`` as in MONAI, or ``{"pseudo_label_filename", "label_list"}`` as in MAISI."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BankError(f"Mask bank {path}: expected a JSON data list, found: {error}. Correct the file.") from error
    rows = document.get("training") if isinstance(document, dict) else document
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BankError(
            f'Mask bank {path}: expected {{"training": [{{"image", "label"}}]}}, found another structure. '
            "Write the list as MONAI does."
        )
    seen: set[tuple[str, str | None]] = set()
    for number, row in enumerate(rows):
        label = row.get("label", row.get("pseudo_label_filename"))
        if not isinstance(label, str):
            raise BankError(f"Mask bank {path}: expected 'label' in row {number}, found {sorted(row)}. Add it.")
        image = row["image"] if isinstance(row.get("image"), str) else None
        listed = row.get("label_list")
        if any("\0" in text for text in (label, image or "")):
            raise BankError(f"Mask bank {path}: expected names of files in row {number}, found {label!r}. Correct it.")
        if (label, image) in seen:
            raise BankError(
                f"Mask bank {path}: expected every case once, found {label!r} in row {number} and before. Remove a row."
            )
        seen.add((label, image))
        if isinstance(listed, list) and not all(type(value) is int and 0 <= value <= MAX_LISTED_ID for value in listed):
            raise BankError(
                f"Mask bank {path}: expected label ids from 0 to {MAX_LISTED_ID} as 'label_list' in row {number}, "
                f"found {str(listed)[:60]}. Correct the row."
            )
        yield BankEntry(
            "",
            (path.parent / label,),
            None if image is None else path.parent / image,
            listed_ids=tuple(listed) if isinstance(listed, list) else None,
        )


def _with_context(entry: BankEntry, root: Path) -> BankEntry:
    """The entry with its name in the bank, and the names of its ids from the nearest file that lists them."""
    place = entry.label_paths[0]
    shown = place.parent if entry.organ_names else place
    name = shown.relative_to(root).as_posix() if shown.is_relative_to(root) else shown.name
    entry = replace(entry, name=root.name if name == "." else name)
    if entry.organ_names or entry.has_vocabulary_ids:
        return entry
    for folder in (place.parent, place.parent.parent, root):
        for names_path in (folder / name for name in NAME_FILES):
            if folder.is_relative_to(root) and names_path.is_file():
                groups, regions = load_labels(names_path)
                return replace(entry, label_names=_choose_group(groups, place), label_regions=regions)
    return entry


def _choose_group(groups: Mapping[str, Mapping[int, str]], label_path: Path) -> Mapping[int, str] | None:
    match = _LABEL_NAME.match(stem_of(label_path))
    return groups.get("") or groups.get(match["role"].lower() if match else "")


def _find_fault(entry: BankEntry) -> str | None:
    for path in entry.paths:
        if not path.exists():
            return f"{path.name} is missing"
        if path.is_file() and path.stat().st_size == 0:
            return f"{path.name} is empty"
    return None
