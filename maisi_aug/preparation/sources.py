"""Find a lab's cases: pairs of folders, one folder, patterns with ``{id}``, masks by label, nnU-Net raw."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from maisi_aug.banks.case_files import (
    SortedFiles,
    case_of,
    find_case_series,
    is_image_name,
    list_folders,
    list_labels,
    list_volumes,
    pair_by_name,
    read_file_name,
    sort_files,
    sort_folder,
    stem_of,
)
from maisi_aug.banks.files import NAME_FILES, load_label_names
from maisi_aug.banks.raw_datasets import find_ct_channel
from maisi_aug.errors import BankError, PreparationError, VolumeError
from maisi_aug.volumes.dicom_files import find_label_objects, is_dicom
from maisi_aug.volumes.image_files import is_readable, load_drawn_names
from maisi_aug.volumes.own_names import load_own_names

_SEPARATORS = "_-."
_MASK_FOLDERS = ("segmentations", "masks", "labels")
_PARTS = ("oar", "ptv", "gtv")
"""Words that name what a mask shows, rather than marking a file as a label map."""


@dataclass(frozen=True)
class LabelFile:
    """A label file of a case: a label map, or the mask of one label.

    Attributes:
        path: Path of the file.
        role: Part of the name that distinguishes it from other files of its case, such as ``oar``; empty if there is
            one kind.
        names: Id -> name, if the file contains names.
        mask_name: Label of a mask; None for a label map.
    """

    path: Path
    role: str = ""
    names: Mapping[int, str] = field(default_factory=dict)
    mask_name: str | None = None


@dataclass(frozen=True)
class SourceCase:
    """The source files of one case: CT, label files and organ labels.

    Attributes:
        id: Name of the case.
        image: CT: a file, or a folder with a DICOM series.
        labels: Label files in the order in which they are merged; the last one wins.
        organs: For each folder of organ labels, the files of this case: one label map, or one mask per organ.
    """

    id: str
    image: Path
    labels: tuple[LabelFile, ...] = ()
    organs: tuple[tuple[LabelFile, ...], ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files of the case."""
        organs = (file.path for files in self.organs for file in files)
        return (self.image, *(file.path for file in self.labels), *organs)


def find_images(folder: Path, pattern: str | None = None, *, labels: Path | None = None) -> dict[str, Path]:
    """Find the images in a folder; returns case -> path.

    Args:
        folder: Folder with image files, or with one sub-folder per case that contains ``ct.nii.gz`` or a DICOM series.
        pattern: Path in the folder without the format's suffix, with ``{id}`` for the case, such as ``{id}_ct``.
            Without one the names decide, as :mod:`maisi_aug.banks.case_files` reads them.
        labels: Folder of the label files, whose names show whether ``_0000`` is part of a case's name.

    Raises:
        PreparationError: There is no image, or there are two for one case.
    """
    _require_folder(folder, "--images")
    if pattern is not None:
        found = [(match["id"], path) for path, match in _match_pattern(folder, pattern, "--image-pattern")]
    else:
        images = sort_images(folder, labels).images
        found = [(case_of(path, base, role="image"), path) for path, base in images.items()]
        if folder not in images and all(path.is_dir() for path in images):
            found = list(_find_case_folders(folder))
    if not found:
        raise PreparationError(
            f"--images {folder}: no images found. Give the folder that contains them, or a name pattern with "
            "--image-pattern such as '{id}/ct'."
        )
    return _by_case(found, f"--images {folder}")


def sort_images(folder: Path, labels: Path | None = None) -> SortedFiles:
    """Sort the files of an image folder into images, label maps and others.

    Args:
        folder: Folder of the images.
        labels: Folder of the label files, which may be the same.

    Raises:
        PreparationError: ``dataset.json`` above it describes several channels, none of which is called CT.
    """
    try:
        channel = find_ct_channel(folder.parent)
    except BankError as error:
        raise PreparationError(str(error)) from error
    is_apart = labels != folder
    elsewhere = list_labels(labels) if labels is not None and is_apart and labels.is_dir() else []
    return sort_folder(folder, ct_channel=channel, are_images=is_apart, labels_elsewhere=elsewhere)


def find_labels(
    folder: Path, case_ids: Iterable[str], patterns: Sequence[str] = (), *, images: Iterable[Path] = ()
) -> dict[str, list[LabelFile]]:
    """Find the label files in a folder; returns case -> files.

    Args:
        folder: Folder with label maps, or with one sub-folder per case that contains label maps or one mask per label.
        case_ids: Cases that have an image; files of other cases are ignored.
        patterns: Paths in the folder without the format's suffix, with ``{id}`` for the case and, for masks,
            ``{label}`` for the label: ``{id}_oar``, ``{id}/segmentations/{label}``. Without any, names decide.
        images: Files that are known to be images.

    Raises:
        PreparationError: No label file belongs to a case, or a pattern cannot be read.
    """
    _require_folder(folder, "--labels")
    cases = sorted(set(case_ids), key=len, reverse=True)
    images = set(images)
    found: dict[str, list[LabelFile]] = {}
    for pattern in patterns:
        for path, match in _match_pattern(folder, pattern, "--label-pattern"):
            named = to_case_id(match["id"])
            if named in cases and path not in images:
                role = re.sub(r"\{\w+\}", "", pattern.rpartition("/")[2]).strip(_SEPARATORS)
                file = _name_labels(path, role, folder, match.groupdict().get("label"))
                found.setdefault(named, []).append(file)
    if not patterns:
        for path in list_labels(folder):
            case_id, role = _split_name(stem_of(path), cases)
            if case_id is not None and path not in images:
                found.setdefault(case_id, []).append(_name_labels(path, role, folder))
        for case_id, file in _files_by_case(folder, cases):
            if file.path not in images:
                found.setdefault(case_id, []).append(file)
    if not found:
        raise PreparationError(
            f"--labels {folder}: no label files named after the images, such as {_example(cases)}. Give a name "
            "pattern with --label-pattern such as '{id}_seg'."
        )
    return found


def find_organs(
    folder: Path, case_ids: Iterable[str], *, images: Iterable[Path] = ()
) -> dict[str, tuple[LabelFile, ...]]:
    """Find organ labels in a folder, as TotalSegmentator writes them; returns case -> label map or masks.

    Args:
        folder: Folder of the organ labels, ``ID.nii.gz`` or a folder ``ID`` of masks. CTs may lie among them, such as
            ``ID_ct.nii.gz`` next to ``ID_seg.nii.gz``.
        case_ids: Ids of the cases to look for.
        images: Files that are known to be images.

    Raises:
        PreparationError: No organ labels belong to a case.
    """
    found = find_labels(folder, case_ids, images=images)
    for case_id, files in found.items():
        labels = [file for file in files if file.mask_name is not None or not is_image_name(file.path)]
        found[case_id] = labels or files
    several = next((case_id for case_id, files in found.items() if len(files) > 1 and not files[0].mask_name), None)
    if several is not None:
        raise PreparationError(
            f"--organs {folder}, case {several}: expected one label map or a folder of masks, found "
            f"{', '.join(file.path.name for file in found[several])}. Keep only one of them."
        )
    return {case_id: tuple(files) for case_id, files in found.items()}


def to_case_id(text: str) -> str:
    """Return a text with all but letters, digits, dots and hyphens replaced by underscores, as a case name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text).lstrip("._-") or "case"


def _require_folder(folder: Path, option: str) -> None:
    if not folder.is_dir():
        raise PreparationError(
            f"{option} {folder}: {'this is a file, not a folder' if folder.exists() else 'folder not found'}."
        )


def _find_case_folders(folder: Path) -> Iterable[tuple[str, Path]]:
    """A folder per case: its file named like a CT, or itself where it holds a DICOM series."""
    for child in list_folders(folder):
        found = sort_files(list_volumes(child))
        images = sorted(found.images, key=lambda path: (not is_image_name(path), path))
        series = find_case_series(child)
        if series is not None and not any(map(is_image_name, images)):
            yield child.name, series
        elif images and (not found.is_bare or len(images) == 1):
            yield child.name, images[0]


def _by_case(found: Iterable[tuple[str, Path]], subject: str) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for name, path in found:
        other = images.setdefault(to_case_id(name), path)
        if other != path:
            raise PreparationError(
                f"{subject}: case {to_case_id(name)} has two images, {other.name} and {path.name}. Tell them apart "
                "with --image-pattern."
            )
    return images


def _match_pattern(folder: Path, pattern: str, option: str) -> Iterable[tuple[Path, re.Match[str]]]:
    if "{id}" not in pattern:
        raise PreparationError(f"{option}: needs '{{id}}' in place of the case's name, found '{pattern}'.")
    text = re.escape(pattern.strip("/"))
    for name in ("id", "label"):
        text = text.replace(re.escape(f"{{{name}}}"), f"(?P<{name}>[^/]+)", 1)
    compiled = re.compile(text.replace(r"\*", "[^/]*"), re.IGNORECASE)
    depth = pattern.strip("/").count("/")
    for path in sorted(folder.glob("*/" * depth + "*")):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and is_readable(path) and not is_hidden:
            relative = path.relative_to(folder).parent / stem_of(path)
            match = compiled.fullmatch(relative.as_posix())
            if match:
                yield path, match


def _split_name(stem: str, cases: Sequence[str]) -> tuple[str | None, str]:
    """The case of a label file, and the rest of its name: ``pt_1_oar`` is ``oar`` of ``pt_1``.

    ``cases`` come with the longest first, so that ``pt_12_oar`` is not taken for a file of ``pt_1``.
    """
    if to_case_id(stem) in cases:
        return to_case_id(stem), ""
    name = to_case_id(re.sub(r"_0000$", "", stem))
    for case_id in cases:
        if name == case_id:
            return case_id, ""
        if name.startswith(case_id) and name[len(case_id)] in _SEPARATORS:
            return case_id, name[len(case_id) :].strip(_SEPARATORS)
    (pair,) = pair_by_name([Path(to_case_id(stem))], {Path(case_id): case_id for case_id in cases})
    own = read_file_name(stem)
    if pair.image is None and len(cases) == 1 and own.role == "label" and not own.case:
        return cases[0], own.word  # seg.nii.gz beside ct.nii.gz, in the folder of their case
    return (None, "") if pair.image is None else (pair.image.name, own.word)


def _files_by_case(folder: Path, cases: Sequence[str]) -> Iterable[tuple[str, LabelFile]]:
    """In a folder per case a label map that is called one, or one mask per label there or in ``segmentations``."""
    by_folder = {to_case_id(path.name): path for path in folder.iterdir() if path.is_dir()}
    for case_id in cases:
        if case_id in by_folder:
            inner = (by_folder[case_id] / name for name in _MASK_FOLDERS)
            masks = next((path for path in inner if path.is_dir()), by_folder[case_id])
            for path in list_volumes(masks):
                name = read_file_name(stem_of(path))
                is_map = name.role == "label" and name.word not in _PARTS
                if is_map and to_case_id(name.case or case_id) == case_id:
                    yield case_id, _name_labels(path, name.word, folder)
                elif not is_image_name(path):
                    yield case_id, _name_labels(path, "", folder, stem_of(path))
            yield from ((case_id, _name_labels(path, "", folder)) for path in find_label_objects(by_folder[case_id]))


def _name_labels(path: Path, role: str, root: Path, mask_name: str | None = None) -> LabelFile:
    """A label file with the names of its ids: a DICOM object's own, or ``labels.json`` or ``dataset.json`` nearby."""
    if mask_name is not None:
        return LabelFile(path, role, mask_name=mask_name)
    if is_dicom(path):
        try:
            return LabelFile(path, role, names=load_drawn_names(path))
        except VolumeError as error:
            raise PreparationError(str(error)) from error
    for folder in dict.fromkeys((path.parent, root, root.parent)):
        for names_path in (folder / name for name in NAME_FILES):
            if names_path.is_file():
                try:
                    groups = load_label_names(names_path)
                except BankError as error:
                    raise PreparationError(str(error)) from error
                return LabelFile(path, role, names=groups.get("") or groups.get(role.lower()) or {})
    return LabelFile(path, role, names=load_own_names(path))


def _example(cases: Sequence[str]) -> str:
    return f"{cases[-1]}.nii.gz or {cases[-1]}_seg.nii.gz" if cases else "ID_seg.nii.gz"
