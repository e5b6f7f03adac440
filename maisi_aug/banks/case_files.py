"""Names of image and label map files: the one grammar by which every command pairs them and names the cases.

A name is read without its format's suffix. It may hold, each at most once:

- a word for what the file is: at the end (``P1_ct``, ``P1.seg``, ``P1_seg_v2``), alone (``imaging``), or in front of
  the case (``volume-0``, ``label0001``);
- nnU-Net's number of a channel, ``_0000``, at the end; where cases are counted in four digits that is not a channel;
- the case: what is left, or the folder's name where nothing is.

Names alone never decide against the company that they are in: ``L1`` beside an image ``L1_0000`` is a case and not a
vertebra, and ``scan_0001`` beside a label map of that name is a case and not the second channel of ``scan``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from maisi_aug.volumes.dicom_files import dicom_files, find_label_objects, find_volumes, is_dicom, is_label_object
from maisi_aug.volumes.image_files import READABLE_SUFFIXES, is_readable_name

Role = Literal["image", "label"]

LABEL_FOLDERS = (
    *("anatomy", "labelsTr", "labelsSynthetic", "labels", "label", "masks", "mask", "segmentations", "segmentation"),
    *("segs", "seg", "gt", "derivatives"),
)
"""Names of folders that hold label maps, in order of preference."""
IMAGE_FOLDERS = (
    "imagesTr",
    "imagesSynthetic",
    "images",
    "image",
    "imgs",
    "img",
    "ct",
    "cts",
    "scans",
    "volumes",
    "rawdata",
)
"""Names of folders that hold images."""

_KNOWN_FOLDERS = frozenset(name.lower() for name in (*LABEL_FOLDERS, *IMAGE_FOLDERS))

_IMAGE_WORDS = "ct|images?|imaging|img|volume|vol"
_LONE_IMAGE_WORDS = "data|scan|orig|original"
_LABEL_WORDS = "seg|segmentations?|labels?|label_?map|mask|anatomy|gt|ground_?truth|oar|ptv|gtv"
_BETWEEN = r"[_\-. ]+"
_IMAGE_END = re.compile(rf"(?:(?P<case>.+?){_BETWEEN})?(?P<word>{_IMAGE_WORDS})", re.IGNORECASE)
_IMAGE_ALONE = re.compile(rf"(?P<case>)(?P<word>{_LONE_IMAGE_WORDS})", re.IGNORECASE)
_IMAGE_FRONT = re.compile(rf"(?P<word>{_IMAGE_WORDS})(?:{_BETWEEN}|(?=\d))(?P<case>.+)", re.IGNORECASE)
_LABEL_FRONT = re.compile(rf"(?P<word>{_LABEL_WORDS})(?:{_BETWEEN}|(?=\d))(?P<case>.+)", re.IGNORECASE)
_LABEL_END = re.compile(rf"(?:(?P<case>.+?){_BETWEEN})?(?P<word>{_LABEL_WORDS})", re.IGNORECASE)
_LABEL_BETWEEN = re.compile(rf"(?P<case>.+?){_BETWEEN}(?P<word>{_LABEL_WORDS}){_BETWEEN}.*", re.IGNORECASE)
_GRAMMAR: tuple[tuple[re.Pattern[str], Role, bool], ...] = (
    (_IMAGE_END, "image", False),
    (_IMAGE_ALONE, "image", False),
    (_LABEL_END, "label", False),
    (_LABEL_FRONT, "label", True),
    (_LABEL_BETWEEN, "label", False),
    (_IMAGE_FRONT, "image", True),
)
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<number>000\d)")
_LAST_DIGITS = re.compile(r".*?(?P<digits>\d+)", re.DOTALL)
_LETTER_AND_NUMBER = re.compile(r"[A-Za-z]{1,2}\d{1,2}")


@dataclass(frozen=True, slots=True)
class FileName:
    """Parts of a file name, without the format's suffix and nnU-Net's channel number.

    Attributes:
        role: Kind of the file, image or label map; None if the name does not say.
        case: Rest of the name without the word for the kind of file; may be empty.
        word: Word for the kind of file (``ct``, ``seg``, ...) in lower case; empty without one.
        is_front: Whether the word stands in front of the case, as in ``volume-0``: a case may begin like that as well.
    """

    role: Role | None
    case: str
    word: str = ""
    is_front: bool = False


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that is neither an image nor a label map of any case.

    Attributes:
        path: The file.
        reason: Why the file was left out, as a clause.
    """

    path: Path
    reason: str


@dataclass(frozen=True)
class SortedFiles:
    """Files of one folder, sorted into images, label maps and others.

    Attributes:
        images: Image -> name of the image without nnU-Net's channel number.
        labels: Label maps.
        others: Files that are neither.
        is_bare: Whether no name says what kind its file is; all files are then listed as images.
    """

    images: Mapping[Path, str]
    labels: tuple[Path, ...] = ()
    others: tuple[LeftOut, ...] = ()
    is_bare: bool = False


@dataclass(frozen=True, slots=True)
class Pair:
    """A label map and the image that it belongs to.

    Attributes:
        label: The label map.
        image: The image; None if no image has a matching name.
        rivals: Images whose names match equally well, so that none of them is chosen.
    """

    label: Path
    image: Path | None
    rivals: tuple[Path, ...] = ()


def list_volumes(folder: Path) -> list[Path]:
    """List the volume files of a folder, except DICOM and hidden files such as macOS' ``._x``."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and is_readable_name(path) and not path.name.startswith(".") and not is_dicom(path)
    )


def list_folders(folder: Path) -> list[Path]:
    """List the folders in a folder, except hidden ones."""
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def find_folders(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the sub-folders of a folder that have one of the given names, in the order of the names.

    Upper and lower case are not distinguished.

    Args:
        folder: Folder to look into.
        names: Names of sub-folders, the preferred one first.

    Returns:
        Paths of those that exist; an empty list if none does.
    """
    ranks = {name.lower(): rank for rank, name in reversed(list(enumerate(names)))}
    found = [child for child in list_folders(folder) if child.name.lower() in ranks]
    return sorted(found, key=lambda child: ranks[child.name.lower()])


def list_images(folder: Path) -> list[Path]:
    """List what may be a CT image in a folder: volume files, folders with a DICOM series, and files of DICOM frames."""
    return [*list_volumes(folder), *find_volumes(folder)]


def find_case_series(folder: Path) -> Path | None:
    """Return the DICOM image of a folder that belongs to one case, in it or anywhere below.

    Returns:
        The only series; the folder itself if it holds several, between which only reading can decide; None if there is
        no series.
    """
    volumes = find_volumes(folder)
    return volumes[0] if len(volumes) == 1 else folder if volumes else None


def list_labels(folder: Path, *, is_case: bool = False) -> list[Path]:
    """List what may be a label map in a folder, including DICOM segmentations and structure sets.

    Args:
        folder: Folder to search.
        is_case: Whether the folder belongs to one case; DICOM objects in its sub-folders then count, whatever their
            names.
    """
    drawn = find_label_objects(folder) if is_case else [path for path in dicom_files(folder) if is_label_object(path)]
    return sorted([*list_volumes(folder), *drawn])


def stem_of(path: Path) -> str:
    """Return a file name without the suffix of its format, such as ``.nii.gz``."""
    lower = path.name.lower()
    for suffix in sorted(READABLE_SUFFIXES, key=len, reverse=True):
        if lower.endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def read_file_name(stem: str) -> FileName:
    """Split a file name into its case and the word for the kind of file, such as ``ct`` or ``seg``.

    A word at the end or alone is preferred to one at the front, and that to one in the middle.

    Args:
        stem: File name without the suffix of its format.
    """
    for pattern, role, is_front in _GRAMMAR:
        match = pattern.fullmatch(stem)
        if match:
            return FileName(role, match["case"] or "", match["word"].lower(), is_front)
    return FileName(None, stem)


def is_image_name(path: Path) -> bool:
    """Whether a file name is, or ends in, a word for images, as in ``X_ct`` or ``image``."""
    name = read_file_name(stem_of(path))
    return name.role == "image" and not name.is_front


def label_word(path: Path) -> str:
    """Return the word in a file name that marks it as a label map, such as ``oar``; empty if there is none."""
    name = read_file_name(stem_of(path))
    return name.word if name.role == "label" else ""


def case_of(path: Path, base: str | None = None, *, role: Role | None = None) -> str:
    """Return the case that a file belongs to: its own name, or its folder's if the name only says what kind it is.

    Args:
        path: File, or folder with a DICOM series.
        base: File name without a channel number, if known; otherwise ``_0000`` is removed from the name.
        role: Kind of the file, if known: ``P_seg`` among images is then a case of that name.
    """
    stem = _stem_of(path)
    if base is None:
        base = re.sub(r"_0000$", "", stem)
    name = read_file_name(base)
    if name.role is None or name.is_front or role not in (None, name.role):
        return base
    holds_one_case = path.parent.name.lower() not in _KNOWN_FOLDERS
    return name.case or (path.parent.name if holds_one_case else "") or base


def split_channels(
    images: Iterable[Path], labels: Iterable[Path] = (), *, ct_channel: int = 0, has_channels: bool = False
) -> tuple[dict[Path, str], tuple[LeftOut, ...]]:
    """Tell nnU-Net's channel numbers from four-digit case numbers in the names of images.

    Args:
        images: Image files of one folder.
        labels: Label maps of these images, whose names show whether ``_0000`` belongs to the name of the case.
        ct_channel: Number of the channel that is the CT.
        has_channels: Whether every image is known to be a channel.

    Returns:
        Image of the CT channel -> name without the channel number, and the files of other channels.
    """
    stems = {path: _stem_of(path) for path in images}
    groups: dict[str, dict[int, Path]] = defaultdict(dict)
    for path, stem in stems.items():
        match = _CHANNEL.fullmatch(stem)
        if match:
            groups[match["case"]][int(match["number"])] = path
    counted = set(groups) if has_channels else _find_channels(set(stems.values()), groups, labels, ct_channel)
    others = []
    for case_id, channels in groups.items():
        if case_id in counted and ct_channel in channels:
            stems[channels[ct_channel]] = case_id
            for number, path in channels.items():
                if number != ct_channel:
                    del stems[path]
                    others.append(LeftOut(path, f"it is channel {number} of {case_id}"))
    return stems, tuple(others)


def sort_files(
    files: Iterable[Path], *, ct_channel: int = 0, are_images: bool = False, labels_elsewhere: Sequence[Path] = ()
) -> SortedFiles:
    """Sort the files of a folder into images and label maps, by their names and by the other files there.

    Args:
        files: Files of one folder.
        ct_channel: nnU-Net's channel that is the CT.
        are_images: Whether the folder holds images only; a word for label maps then belongs to the name of a case,
            unless the matching image is in the folder, too.
        labels_elsewhere: Label maps of these images in another folder.
    """
    files = list(files)
    labels = [] if are_images else _find_namesakes(files)
    if labels:
        images, channels = split_channels([p for p in files if p not in labels], labels, ct_channel=ct_channel)
        return SortedFiles(images, tuple(labels), channels)
    names = {path: _read_file(path) for path in files}
    cases_like_labels = _find_images_like_labels(names)
    labels = [path for path, name in names.items() if name.role == "label" and path not in cases_like_labels]
    if are_images:
        stems = {_stem_of(path) for path in files if path not in labels}
        labels = [path for path in labels if any(key in stems for key in _keys_of(_stem_of(path), "label"))]
    marked = [path for path, name in names.items() if name.role == "image" and not name.is_front]
    rest = [path for path in files if path not in labels and path not in marked]
    if labels and not are_images:
        return _sort_beside_labels(labels, marked, rest, ct_channel)
    if marked:
        cases = {names[path].case for path in marked} - {""}
        labels = labels or [path for path in rest if _stem_of(path) in cases]
        reason = "other names in the folder end like an image's (_ct, _image and similar), but this one does not"
        others = tuple(LeftOut(path, reason) for path in rest if path not in labels)
        images, channels = split_channels(marked, [*labels, *labels_elsewhere], ct_channel=ct_channel)
        return SortedFiles(images, tuple(labels), (*others, *channels))
    if labels or labels_elsewhere:
        images, channels = split_channels(rest, [*labels, *labels_elsewhere], ct_channel=ct_channel)
        return SortedFiles(images, tuple(labels), channels)
    return _sort_bare(rest, ct_channel)


def sort_folder(
    folder: Path, *, ct_channel: int = 0, are_images: bool = False, labels_elsewhere: Sequence[Path] = ()
) -> SortedFiles:
    """Sort the files of a folder into images and label maps, as :func:`sort_files` does, and DICOM by its content.

    Args:
        folder: Folder to sort.
        ct_channel: nnU-Net's channel that is the CT.
        are_images: Whether the folder holds images only.
        labels_elsewhere: Label maps of these images in another folder.

    Returns:
        The files; folders with a DICOM series are among the images, or the folder itself if it holds the slices of one.
    """
    volumes = find_volumes(folder)
    if folder in volumes:
        return SortedFiles({folder: folder.resolve().name}, tuple(list_labels(folder)))
    files = dict.fromkeys([*list_labels(folder), *(path for path in volumes if path.is_file())])
    found = sort_files(files, ct_channel=ct_channel, are_images=are_images, labels_elsewhere=labels_elsewhere)
    return replace(found, images={**found.images, **{path: path.name for path in volumes if path.is_dir()}})


def pair_by_name(labels: Iterable[Path], images: Mapping[Path, str], *, is_one_folder: bool = False) -> list[Pair]:
    """Find the image of each label map by name: the match for which the least must be removed from both names.

    Args:
        labels: Label maps.
        images: Image -> name without nnU-Net's channel number.
        is_one_folder: Whether all files lie in one folder, where ``ct`` or ``imaging`` is the image of all label maps.

    Returns:
        One pair per label map, in the order of ``labels``.
    """
    by_key: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for image, base in images.items():
        for key, cost in _keys_of(base, "image").items():
            by_key[key].append((cost, image))
    alone = [image for image, base in images.items() if _is_alone(base)]
    lone = alone if len(alone) == 1 else [image for image in alone if read_file_name(images[image]).word == "ct"]
    pairs = []
    for label in labels:
        found = [
            (own + cost, image)
            for key, own in _keys_of(_stem_of(label), "label").items()
            for cost, image in by_key.get(key, ())
            if image != label
        ]
        least = min((cost for cost, _ in found), default=0)
        best = sorted({image for cost, image in found if cost == least})
        if not best and is_one_folder and len(lone) == 1:
            best = lone
        if not best and is_one_folder and len(images) == 1 and not read_file_name(_stem_of(label)).case:
            best = list(images)
        pairs.append(Pair(label, best[0], ()) if len(best) == 1 else Pair(label, None, tuple(best)))
    return pairs


def pair_in_case(labels: Iterable[Path], images: Mapping[Path, str]) -> list[Pair]:
    """Pair the label maps and images of one case: by name, or with the only image if the names do not say.

    Args:
        labels: Label maps of the case.
        images: Image -> name without nnU-Net's channel number.
    """
    only = next(iter(images)) if len(images) == 1 else None
    pairs = pair_by_name(labels, images, is_one_folder=True)
    return [Pair(pair.label, pair.image or only, pair.rivals) for pair in pairs]


def is_letter_and_number(stem: str) -> bool:
    """Whether a file name may stand for a case as well as for a vertebra, such as ``L1``, ``T12`` or ``C3``."""
    return _LETTER_AND_NUMBER.fullmatch(stem) is not None


def _stem_of(path: Path) -> str:
    """The name without a format's suffix; of a folder with a DICOM series all of it."""
    return stem_of(path) if is_readable_name(path) else path.name


def _read_any(stem: str) -> FileName:
    """The name, or where it does not say for sure what its file is, the name in front of a channel's number."""
    name, match = read_file_name(stem), _CHANNEL.fullmatch(stem)
    if match and (name.role is None or name.is_front):
        before = read_file_name(match["case"])
        return before if before.role == "image" and before.case and not before.is_front else name
    return name


def _read_file(path: Path) -> FileName:
    """Find the kind of a file by its name; of a DICOM segmentation or structure set by its content."""
    name = _read_any(_stem_of(path))
    return FileName("label", name.case, name.word) if is_label_object(path) else name


def _is_alone(base: str) -> bool:
    name = read_file_name(base)
    return name.role == "image" and not name.case


def _find_images_like_labels(names: Mapping[Path, FileName]) -> set[Path]:
    """Images of cases that are called like label maps, such as ``gt1`` with ``gt1_seg`` next to it."""
    sure = {name.case for name in names.values() if name.role == "label" and not name.is_front}
    stems = {_stem_of(path) for path in names}
    found = set()
    for path, name in names.items():
        stem = _stem_of(path)
        match = _CHANNEL.fullmatch(stem) if name.is_front else None
        if name.is_front and (stem in sure or (match is not None and match["case"] in sure | stems)):
            found.add(path)
    return found


def _sort_beside_labels(
    labels: Sequence[Path], marked: Sequence[Path], rest: Sequence[Path], ct_channel: int
) -> SortedFiles:
    """Beside label maps a file is an image that is called one, or that has a label map's name."""
    bases, channels = split_channels([*marked, *rest], labels, ct_channel=ct_channel)
    wanted = {key for label in labels for key in _keys_of(_stem_of(label), "label") if not key.startswith(_DIGITS)}
    images = {
        path: base
        for path, base in bases.items()
        if path in marked or any(key in wanted for key in _keys_of(base, "image"))
    }
    left = [path for path in bases if path not in images]
    if not images and len(left) == 1 and not any(read_file_name(_stem_of(label)).case for label in labels):
        images, left = {left[0]: bases[left[0]]}, []
    reason = "its name marks neither an image nor a label map, unlike the names of the files next to it"
    others = tuple(LeftOut(path, reason) for path in left)
    return SortedFiles(images, tuple(labels), (*others, *channels))


def _find_namesakes(files: Sequence[Path]) -> list[Path]:
    """The label maps of a folder of nothing but pairs such as ``P1_0000`` and ``P1``, in nnU-Net's names."""
    stems = {_stem_of(path): path for path in files}
    cases = {match["case"] for stem in stems if (match := _CHANNEL.fullmatch(stem)) and match["case"] in stems}
    is_whole = all(stem in cases or ((match := _CHANNEL.fullmatch(stem)) and match["case"] in cases) for stem in stems)
    return [stems[case_id] for case_id in sorted(cases)] if is_whole else []


def _sort_bare(files: Sequence[Path], ct_channel: int) -> SortedFiles:
    """Sort files whose names do not tell their kind: all are of one kind."""
    images, channels = split_channels(files, ct_channel=ct_channel)
    numbered = {path: base for path, base in images.items() if base != _stem_of(path)}
    if numbered:
        reason = "other names in the folder end in a channel number, but this one does not"
        channels += tuple(LeftOut(path, reason) for path in images if path not in numbered)
        images = numbered
    return SortedFiles(images, (), channels, is_bare=True)


def _find_channels(
    stems: Collection[str], groups: Mapping[str, Mapping[int, Path]], labels: Iterable[Path], ct_channel: int
) -> set[str]:
    """The cases whose images' four digits number channels, as the label maps tell; without any, the numbers themselves.

    A label map that is called as a case says that they do, one that is called as an image that they do not; both at
    once say nothing. What most of them say goes for cases without a label map as well. Without label maps four digits
    are channels where each of several cases has the same numbers from 0 on, or a single one has 0 alone.
    """
    votes: dict[str, int] = defaultdict(int)
    for label in labels:
        for key in _keys_of(_stem_of(label), "label"):
            match, is_case, is_image = _CHANNEL.fullmatch(key), f"{key}_{ct_channel:04d}" in stems, key in stems
            if is_case and not is_image:
                votes[key] += 1
            elif match and is_image and not is_case:
                votes[match["case"]] -= 1
            if is_case or is_image:
                break
    if any(votes.values()):
        is_usual = sum(votes.values()) > 0
        return {case_id for case_id in groups if votes.get(case_id, int(is_usual)) > 0}
    numbers = {frozenset(channels) for channels in groups.values()}
    own = next(iter(numbers), frozenset())
    is_alike = len(numbers) == 1 and own == set(range(len(own))) and (len(groups) > 1 or len(own) == 1)
    return set(groups) if is_alike else set()


# What it costs to take a part off a name: where two images fit a label map, the cheaper one is its own.
_BY_WORD_AT_END = 1
_BY_CHANNEL = 1
_BY_WORD_IN_FRONT = 2
_BY_LAST_DIGITS = 4
_DIGITS = "#"
"""Prefix of a number that is all two names have in common, as in PANCREAS_0001 and label0001."""


def _keys_of(stem: str, role: Role) -> dict[str, int]:
    """Return the names by which a partner file may refer to a file, with the cost of each."""
    keys = {stem: 0}
    bases = {stem: 0}
    if stem.endswith("_0000"):
        bases[stem.removesuffix("_0000")] = _BY_CHANNEL
    for base, cost in bases.items():
        keys.setdefault(base, cost)
        name = read_file_name(base)
        if name.role == role and name.case:
            keys.setdefault(name.case, cost + (_BY_WORD_IN_FRONT if name.is_front else _BY_WORD_AT_END))
            if role == "label" and name.case.isdecimal():
                keys.setdefault(_DIGITS + name.case, cost + _BY_LAST_DIGITS)
    digits = _LAST_DIGITS.fullmatch(stem)
    if role == "image" and digits:
        keys.setdefault(_DIGITS + digits["digits"], _BY_LAST_DIGITS)
    return keys
