"""Find the label maps of a folder or data list, and the CT that belongs to each.

Layouts, tried in this order: a raw dataset whose ``dataset.json`` points at files elsewhere, a cohort of this package
(``anatomy/``), nnU-Net raw or Medical Decathlon (``labelsTr/``), ``labels/`` beside ``images/``, one mask per organ
(TotalSegmentator's output), pairs such as ``X_ct`` and ``X_seg``, and one folder per case with any of these. Names are
read by :mod:`maisi_aug.banks.case_files`. NVIDIA's mask database, packed or not, is recognised by its list.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maisi_aug.banks.case_files import (
    IMAGE_FOLDERS,
    LABEL_FOLDERS,
    LeftOut,
    Pair,
    case_of,
    find_case_series,
    find_folders,
    is_image_name,
    is_letter_and_number,
    label_word,
    list_folders,
    list_images,
    list_labels,
    list_volumes,
    pair_by_name,
    pair_in_case,
    read_file_name,
    sort_files,
    split_channels,
    stem_of,
)
from maisi_aug.banks.entry import BankEntry
from maisi_aug.banks.mask_database import find_database, list_database
from maisi_aug.banks.raw_datasets import DESCRIPTION_NAME, RawDataset, find_dataset
from maisi_aug.errors import BankError, VolumeError
from maisi_aug.system.content import read_json, spells_number
from maisi_aug.vocabulary.labels import read_label_name
from maisi_aug.volumes.dicom_files import files_of, find_volumes, is_dicom
from maisi_aug.volumes.image_files import is_readable, load_drawn_names

IsOrganName = Callable[[str], bool]

NAME_FILES = ("labels.json", DESCRIPTION_NAME)
MIN_ORGAN_FILES = 3
MAX_LISTED_ID = 65535
MAX_NAME_BYTES = 255
MAX_PATH_LETTERS = 3000


@dataclass(frozen=True)
class BankFiles:
    """Label maps and unusable files found at the path of a bank, without opening any of them.

    Attributes:
        path: Path of the bank.
        entries: The label maps in the order of their names.
        faults: ``(name, reason)`` of label maps that cannot be used: files are missing or empty, or several images fit.
        left_out: ``(name, reason)`` of files that are neither the image nor the label map of a case.
    """

    path: Path
    entries: list[BankEntry]
    faults: list[tuple[str, str]]
    left_out: list[tuple[str, str]]

    def require_maps(self) -> None:
        """Raise if a bank holds no label map that looks usable.

        Raises:
            BankError: The message names the first file that is not usable, if there is one.
        """
        if self.entries:
            return
        one = self.faults[:1]
        found = "".join(f" ({name}: {reason})" for name, reason in one)
        raise BankError(f"Mask bank {self.path}: no usable label map{found}. Check the folder's layout.")


def find_entries(path: Path, is_organ_name: IsOrganName) -> tuple[list[BankEntry], list[tuple[str, str]]]:
    """Find the label maps at the path of a bank, and the files that cannot be used; see :func:`list_bank`.

    Args:
        path: Folder, data list, label map or mask database.
        is_organ_name: Whether a file name is that of an organ, which makes a folder of masks one label map.

    Returns:
        The label maps, and ``(name, reason)`` of unusable files.
    """
    found = list_bank(path, is_organ_name)
    return found.entries, found.faults


def list_bank(path: Path, is_organ_name: IsOrganName) -> BankFiles:
    """List the label maps of a bank without opening them.

    Args:
        path: A folder, a JSON data list, one label map, NVIDIA's mask database, or the number or name of a raw dataset
            in the folder that the variable ``nnUNet_raw`` names.
        is_organ_name: Whether a file name is that of an organ, which makes a folder of masks one label map.

    Raises:
        BankError: There is nothing at the path, or the data list or ``dataset.json`` cannot be read.
    """
    place, path = path, find_dataset(path)
    if not path.exists():
        raise BankError(f"Mask bank {path}: not found. Give a folder, a data list or a label map.")
    database = find_database(path)
    if database is not None:
        return BankFiles(place, *list_database(database), [])
    root = path if path.is_dir() else path.parent
    search = _Search(is_organ_name)
    if path.is_dir():
        search.look_into_dataset(path)
    elif path.suffix.lower() == ".json":
        search.entries += _find_in_data_list(path)
    elif is_readable(path):
        search.look_for(path)
    else:
        raise BankError(f"Mask bank {path}: not a folder, a JSON data list or a label map.")
    named = [_with_context(entry, root) for entry in sorted(search.entries, key=lambda entry: entry.label_paths)]
    faults = {id(entry): _find_fault(entry) or search.faults.get(entry.label_paths, "") for entry in named}
    return BankFiles(
        place,
        [entry for entry in named if not faults[id(entry)]],
        [(entry.name, faults[id(entry)]) for entry in named if faults[id(entry)]],
        [(_name_in(root, out.path), out.reason) for out in sorted(search.left_out, key=lambda out: out.path)],
    )


def digest_of(entries: Sequence[BankEntry]) -> str:
    """Return a SHA-256 that identifies a bank by the paths, sizes and label names of its maps, without opening them."""
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
    return sum(file.stat().st_size for file in files_of(path))


LabelRegions = Mapping[str, tuple[int, ...]]
"""nnU-Net's regions: labels that join several ids."""


def load_label_names(path: Path) -> dict[str, Mapping[int, str]]:
    """Read the label names of ``labels.json`` or ``dataset.json``, without the regions; see :func:`load_labels`.

    Returns:
        Group -> id -> name; the group is empty if the file has none.
    """
    return load_labels(path)[0]


def load_labels(path: Path) -> tuple[dict[str, Mapping[int, str]], LabelRegions]:
    """Read the label names and regions of ``labels.json`` or ``dataset.json``.

    The file holds id -> name, or name -> id, or a group of these per kind of label map.

    Returns:
        Group -> id -> name, where the group is empty if the file has none; and nnU-Net's regions.

    Raises:
        BankError: The file is not JSON or its labels are not one id to one name.
    """
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise BankError(f"{path}: label names cannot be read as JSON: {error}. Correct the file.") from error
    table = document.get("labels", document) if isinstance(document, dict) else document
    if not isinstance(table, dict) or not table:
        raise BankError(f"{path}: has no label ids with names. Correct the file, or name a mapping.")
    if all(isinstance(value, dict) for value in table.values()):
        return {str(group).lower(): to_label_names(part, path) for group, part in table.items()}, {}
    names = to_label_names(table, path)
    regions = {name: ids for name, ids in table.items() if isinstance(ids, list)}
    if not all(spells_number(label_id) for ids in regions.values() for label_id in ids):
        raise BankError(f"{path}: regions must be lists of ids. Correct the file.")
    return {"": names}, {str(name): tuple(map(int, ids)) for name, ids in regions.items()}


def to_label_names(table: Mapping[str, Any], path: Path) -> dict[int, str]:
    """Convert a table of label ids and names, in either direction, to id -> name.

    An id that belongs to several of nnU-Net's regions gets the name of the smallest one. The rest of a region of
    lesions, of which a part has a name of its own, is named by both: "masses except tumor" may be cysts.

    Args:
        table: Id -> name, or name -> id or ids.
        path: File that the table comes from, for messages.

    Raises:
        BankError: The table is neither of both.
    """
    regions = {name: values for name, values in table.items() if isinstance(values, list)}
    widest_first = sorted(regions, key=lambda name: len(regions[name]), reverse=True)
    parts = [(name, value) for name in widest_first for value in regions[name]]
    names: dict[int, str] = {}
    for key, value in (*parts, *((key, value) for key, value in table.items() if key not in regions)):
        label_id, name = (key, value) if spells_number(key) else (value, key)
        if not spells_number(label_id) or not isinstance(name, str):
            raise BankError(
                f"{path}: expected one id for each name, found {key!r}: {value!r}. Write a mapping file and pass it "
                "with --mask-labels."
            )
        names[int(label_id)] = name
    return {label_id: _name_rest(label_id, name, regions, names) for label_id, name in names.items()}


def _name_rest(label_id: int, name: str, regions: Mapping[str, Any], names: Mapping[int, str]) -> str:
    """The name of an id, where it is that of a region of lesions without those of them that have their own name."""
    others = {names[int(other)] for other in regions.get(name, ()) if int(other) != label_id} - {name}
    inner = sorted(other for other in others if read_label_name(other).kind == "tumor")
    return f"{name} except {' and '.join(inner)}" if inner and read_label_name(name).kind == "tumor" else name


class _Search:
    """What is found on the way through the folders of a bank.

    Attributes:
        entries: Label maps, without their names.
        faults: Label files -> why they cannot be used.
        left_out: Files that are of no case.
    """

    def __init__(self, is_organ_name: IsOrganName) -> None:
        self.entries: list[BankEntry] = []
        self.faults: dict[tuple[Path, ...], str] = {}
        self.left_out: list[LeftOut] = []
        self._is_organ_name = is_organ_name
        self._ct_channel = 0
        self._has_channels = False

    def look_into_dataset(self, folder: Path) -> None:
        """Look into a bank's own folder, which may be a raw dataset with channels or with files elsewhere."""
        if (folder / DESCRIPTION_NAME).is_file():
            dataset = RawDataset.read(folder)
            self._ct_channel, self._has_channels = dataset.ct_channel, len(dataset.channels) > 1
            if dataset.names_files:
                for case in dataset.list_cases():
                    image = None if case.image is None else case.image.resolve()
                    self.entries.append(BankEntry(case.id, (case.label.resolve(),), image, case=case.id))
                return
        self.look_into(folder, depth=1)

    def look_into(self, folder: Path, *, depth: int) -> None:
        """Look into a folder and, if it holds nothing, into its subfolders."""
        for label_folder in find_folders(folder, LABEL_FOLDERS)[:1]:
            self._look_into_labels(folder, label_folder, is_inner=not depth)
            return
        files = list_volumes(folder)
        series = _find_series(folder, files, is_inner=not depth)
        masks = self._build_organ_entry(folder, files, nearby=[*files, *list_volumes(folder.parent)], series=series)
        num_before = len(self.entries)
        if masks is not None:
            self.entries.append(masks)
        if series is not None:
            drawn = [path for path in list_labels(folder, is_case=True) if masks is None or path not in files]
            self._take_case(pair_in_case(drawn, {series: series.name}), folder)
        elif masks is None:
            self._take_pairs(_pair_in_folder(folder, self.left_out, self._ct_channel))
        if depth and len(self.entries) == num_before:
            for child in list_folders(folder):
                self.look_into(child, depth=depth - 1)

    def look_for(self, label: Path) -> None:
        """Look for one label map, whose image may lie next to it."""
        folder = label.parent
        series = _find_series(folder, list_volumes(folder), is_inner=False)
        if series is not None:
            self._take_case([Pair(label, series)], folder)
            return
        pairs = _pair_in_folder(folder, [], 0)
        own = [(pair, base) for pair, base in pairs if pair.label == label]
        self._take_pairs(own or [(Pair(label, None), None)])

    def _look_into_labels(self, folder: Path, label_folder: Path, *, is_inner: bool) -> None:
        """A folder of label maps beside one of images, or beside the images themselves."""
        labels = list_labels(label_folder)
        image_folders = find_folders(folder, IMAGE_FOLDERS)
        others = [child for child in list_folders(folder) if child.name.lower() not in _LABEL_FOLDERS_LOWERED]
        beside = [*list_images(folder), *(path for child in others for path in list_volumes(child))]
        images, channels = split_channels(
            [image for place in image_folders for image in list_images(place)] if image_folders else beside,
            labels,
            ct_channel=self._ct_channel,
            has_channels=self._has_channels,
        )
        series = next(iter(images)) if len(images) == 1 and next(iter(images)).is_dir() else None
        is_unnamed = is_inner and not any(pair.image for pair in pair_by_name(labels, images))
        if series is not None and (series in (folder, *image_folders) or is_unnamed):
            self._look_into_case(folder, label_folder, series)
            return
        pairs = pair_by_name(labels, images, is_one_folder=not image_folders)
        is_named = any(pair.image is not None and not is_image_name(pair.image) for pair in pairs)
        nearby = [*labels, *list_volumes(folder), *list_volumes(label_folder.parent)]
        masks = None if is_named else self._build_organ_entry(label_folder, labels, nearby=nearby)
        if masks is not None:
            self.entries.append(masks)
        elif labels:
            is_cohort = label_folder.name == "anatomy"
            self._take_pairs([(pair, images.get(pair.image)) for pair in pairs if pair.image], is_cohort=is_cohort)
            self._take_pairs([(pair, None) for pair in pairs if pair.image is None], is_cohort=is_cohort)
            self.left_out += channels
        else:
            self._look_into_cases(label_folder, images, image_folders)

    def _look_into_case(self, folder: Path, label_folder: Path, series: Path) -> None:
        """The label maps or masks of a folder that is one case in DICOM."""
        files = list_volumes(label_folder)
        masks = self._build_organ_entry(label_folder, files, nearby=[], series=series)
        if masks is not None:
            self.entries.append(replace(masks, case=folder.resolve().name))
        drawn = [path for path in list_labels(label_folder, is_case=True) if masks is None or path not in files]
        self._take_case(pair_in_case(drawn, {series: series.name}), folder)

    def _look_into_cases(self, label_folder: Path, images: Mapping[Path, str], image_folders: Sequence[Path]) -> None:
        """A folder per case, with masks or label maps, beside images or a folder per case with them."""
        by_case = {case_of(image, base, role="image"): image for image, base in images.items()}
        for child in list_folders(label_folder):
            entry = self._build_organ_entry(child, list_volumes(child), nearby=[])
            if entry is not None:
                image = by_case.get(child.name) or entry.image_path
                self.entries.append(replace(entry, image_path=image, case=child.name))
                continue
            labels = list_labels(child, is_case=True)
            inner = [folder / child.name for folder in image_folders if (folder / child.name).is_dir()]
            own = {image: base for image, base in images.items() if case_of(image, base, role="image") == child.name}
            found = split_channels([image for place in inner for image in list_volumes(place)], labels)[0] or own
            pairs = pair_in_case(labels, found)
            self._take_pairs([(pair, found.get(pair.image) if pair.image else None) for pair in pairs])

    def _take_pairs(self, pairs: Iterable[tuple[Pair, str | None]], *, is_cohort: bool = False) -> None:
        for pair, base in pairs:
            case_id = case_of(pair.label) if pair.image is None else case_of(pair.image, base, role="image")
            if pair.image is not None and pair.image.is_dir() and not read_file_name(stem_of(pair.label)).case:
                case_id = pair.label.parent.name  # a series beside its only label map, in the folder of their case
            self.entries.append(BankEntry("", (pair.label,), pair.image, has_vocabulary_ids=is_cohort, case=case_id))
            if pair.rivals:
                names = " and ".join(image.name for image in pair.rivals[:3])
                self.faults[(pair.label,)] = (
                    f"its image may be {names}; give the pair equal names, or write a data list"
                )

    def _take_case(self, pairs: Iterable[Pair], folder: Path) -> None:
        """The label maps of a folder that is one case."""
        case_id = folder.resolve().name
        self.entries += [BankEntry("", (pair.label,), pair.image, case=case_id) for pair in pairs]

    def _build_organ_entry(
        self, folder: Path, files: Sequence[Path], *, nearby: Sequence[Path], series: Path | None = None
    ) -> BankEntry | None:
        """One entry of all masks, if most files are named after organs.

        A name such as ``L1`` is a vertebra's and a case's: it counts where a CT lies next to it that is called nothing
        but that, or where other organs do.
        """
        masks = [path for path in files if not is_image_name(path)]
        organs = [stem for path in masks if self._is_organ_name(stem := stem_of(path))]
        image = next((path for path in nearby if is_image_name(path)), None)
        if len(organs) < MIN_ORGAN_FILES or len(organs) * 2 < len(masks):
            return None
        if series is not None:
            image, case_id = series, folder.resolve().name
        elif all(map(is_letter_and_number, organs)) and (image is None or read_file_name(stem_of(image)).case):
            return None
        else:
            case_id = case_of(image) if image is not None else folder.name
        return BankEntry("", tuple(masks), image, organ_names=tuple(map(stem_of, masks)), case=case_id)


_LABEL_FOLDERS_LOWERED = frozenset(name.lower() for name in LABEL_FOLDERS)


def _find_series(folder: Path, files: Sequence[Path], *, is_inner: bool) -> Path | None:
    """The DICOM image of a folder that is one case: it lies in it, or, for a folder in the bank, anywhere below.

    Args:
        folder: The folder.
        files: Its files that are not DICOM; where one is called an image, that is the CT.
        is_inner: Whether it lies in the bank, which a folder per case does.

    Returns:
        The image, as :func:`find_case_series` has it; None where the folder is not a case.
    """
    if any(map(is_image_name, files)):
        return None
    series = find_case_series(folder)
    is_direct = series is not None and (series.is_file() or find_volumes(folder) == [folder])
    return series if is_inner or is_direct else None


def _pair_in_folder(folder: Path, left_out: list[LeftOut], ct_channel: int) -> Iterator[tuple[Pair, str | None]]:
    """The label maps of a folder with their images; without a name that tells, every file is a label map."""
    files = list(dict.fromkeys([*list_images(folder), *list_labels(folder)]))
    found = sort_files(files, ct_channel=ct_channel)
    left_out += found.others
    if found.is_bare:
        yield from ((Pair(path, None), None) for path in list_labels(folder))
        return
    pairs = pair_by_name(found.labels, found.images, is_one_folder=True)
    yield from ((pair, found.images.get(pair.image) if pair.image else None) for pair in pairs)


def _find_in_data_list(path: Path) -> Iterator[BankEntry]:
    """Rows ``{"image", "label"}`` as in MONAI, or ``{"pseudo_label_filename", "label_list"}`` as in MAISI."""
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise BankError(f"Mask bank {path}: not a valid JSON data list: {error}. Correct the file.") from error
    rows = document.get("training") if isinstance(document, dict) else document
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BankError(
            f'Mask bank {path}: expected {{"training": [{{"image", "label"}}]}}, found another structure. '
            "Write the list in MONAI's format."
        )
    seen: set[tuple[str, str | None]] = set()
    for number, row in enumerate(rows):
        label = row.get("label", row.get("pseudo_label_filename"))
        if not isinstance(label, str):
            raise BankError(f"Mask bank {path}: row {number} has no 'label', found {sorted(row)}. Add it.")
        image = row["image"] if isinstance(row.get("image"), str) else None
        listed = row.get("label_list")
        if not all(_can_be_path(text) for text in (label, image or "")):
            raise BankError(f"Mask bank {path}: row {number} must hold file names, found {label[:60]!r}. Correct it.")
        if (label, image) in seen:
            raise BankError(
                f"Mask bank {path}: {label!r} in row {number} is already listed in an earlier row. Remove one of them."
            )
        seen.add((label, image))
        if isinstance(listed, list) and not all(type(value) is int and 0 <= value <= MAX_LISTED_ID for value in listed):
            raise BankError(
                f"Mask bank {path}: 'label_list' in row {number} must hold label ids from 0 to {MAX_LISTED_ID}, "
                f"found {str(listed)[:60]}. Correct the row."
            )
        yield BankEntry(
            "",
            (path.parent / label,),
            None if image is None else path.parent / image,
            listed_ids=tuple(listed) if isinstance(listed, list) else None,
        )


def _can_be_path(text: str) -> bool:
    """Whether the system takes text as a path at all: no zero in it, and no longer than it allows."""
    longest = max(len(part.encode("utf-8", "surrogatepass")) for part in text.split("/"))
    return "\0" not in text and longest <= MAX_NAME_BYTES and len(text) <= MAX_PATH_LETTERS


def _with_context(entry: BankEntry, root: Path) -> BankEntry:
    """The entry with its name in the bank, and the names of its ids from the nearest file that lists them."""
    place = entry.label_paths[0]
    name = entry.name or _name_in(root, place.parent if entry.organ_names else place)
    entry = replace(entry, name=root.name if name == "." else name)
    if entry.organ_names or entry.has_vocabulary_ids:
        return entry
    if is_dicom(place):
        return replace(entry, label_names=_names_in(place) or None)
    for folder in (place.parent, place.parent.parent, root):
        for names_path in (folder / name for name in NAME_FILES):
            if folder.is_relative_to(root) and names_path.is_file():
                groups, regions = load_labels(names_path)
                return replace(entry, label_names=_choose_group(groups, place), label_regions=regions)
    return entry


def _names_in(label_path: Path) -> Mapping[int, str]:
    """Read the names of the ids in a DICOM segmentation or structure set."""
    try:
        return load_drawn_names(label_path)
    except VolumeError:
        return {}  # said when it is read


def _name_in(root: Path, path: Path) -> str:
    """A path relative to the bank, with ``/``; the name alone of what lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _choose_group(groups: Mapping[str, Mapping[int, str]], label_path: Path) -> Mapping[int, str] | None:
    return groups.get("") or groups.get(label_word(label_path))


def _find_fault(entry: BankEntry) -> str | None:
    for path in entry.paths:
        if not path.exists():
            return f"{path.name} is missing"
        if path.is_file() and path.stat().st_size == 0:
            return f"{path.name} is empty"
    return None
