"""Preparation of one case: labels are merged, the body is found, all is resampled to the networks' grid and written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.banks.case_reader import is_same_place, place_labels
from maisi_aug.banks.case_reader import load_ct as read_ct
from maisi_aug.banks.label_ids import Translation
from maisi_aug.banks.label_map import choose_centre, load_mask
from maisi_aug.errors import VolumeError
from maisi_aug.lesions.editing import settle_lesions
from maisi_aug.preparation.prepared import NewLabel
from maisi_aug.preparation.request import CtModalityName
from maisi_aug.preparation.sources import LabelFile, SourceCase
from maisi_aug.preparation.survey import MASK_ID
from maisi_aug.preparation.tissues import Tissue, add_tissues
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.vocabulary.labels import BODY_ID, Vocabulary, lesion_word
from maisi_aug.volumes.body import find_body, is_hollow
from maisi_aug.volumes.components import bounding_box
from maisi_aug.volumes.dicom_files import files_of
from maisi_aug.volumes.grid import Grid, Shape, Spacing
from maisi_aug.volumes.image_files import load_label_map
from maisi_aug.volumes.resampling import centre_grid_on, resample_image, resample_label_map

VERSION = 2
"""Version of the preparation; increase it when the same options and sources give different files."""
AIR_HU = -1000
CT_RANGE_HU = (-1024, 3071)
"""Range of HU in a CT's 12 bits; padding and the inside of metal lie beyond and would spread when averaged."""
MIN_COVERED = 0.75
"""Smallest share of the patient that labels must fill for a labelled body to count as the whole patient."""


@dataclass(frozen=True)
class PrepareSettings:
    """Settings that apply to the preparation of every case.

    Attributes:
        shape: Voxels of the networks' grid along I, J, K.
        spacing_mm: Voxel sides along I, J, K in mm.
        vocabulary: Vocabulary with the new labels.
        new_labels: Name -> label, for labels in use that MAISI's vocabulary lacks.
        tissues: Labels found by their HU in voxels without an organ.
        organ_labels: Meaning of the ids in organ label maps: ``auto``, ``totalsegmentator-v1`` or ``-v2``, ``maisi``.
        keeps_surroundings: Whether table and air around the patient are kept; otherwise they become -1000 HU.
        modality: Modality of every image, on which the U-Net is conditioned.
    """

    shape: Shape
    spacing_mm: Spacing
    vocabulary: Vocabulary
    new_labels: Mapping[str, NewLabel]
    tissues: tuple[Tissue, ...] = ()
    organ_labels: str = "auto"
    keeps_surroundings: bool = False
    modality: CtModalityName = "ct"

    @property
    def grid(self) -> Grid:
        """Grid of the prepared cases, centred on the world origin."""
        return Grid.from_spacing(self.shape, self.spacing_mm)

    @property
    def focus_ids(self) -> tuple[int, ...]:
        """Vocabulary ids to be trained: the new labels and the tumours."""
        return tuple(sorted({*self.vocabulary.tumor_ids, *(label.id for label in self.new_labels.values())}))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a JSON-able dict, for ``dataset.yaml``."""
        name_of = self.vocabulary.name_of
        return {
            "version": VERSION,
            "shape": list(self.shape),
            "spacing_mm": list(self.spacing_mm),
            "new_labels": {
                name: {"id": label.id, "hosts": list(label.hosts)} for name, label in self.new_labels.items()
            },
            "tissues": [
                {"label": name_of(tissue.label_id), "hu": [tissue.low_hu, tissue.high_hu]} for tissue in self.tissues
            ],
            "organ_labels": self.organ_labels,
            "keeps_surroundings": self.keeps_surroundings,
            "modality": self.modality,
        }


@dataclass(frozen=True)
class CaseTask:
    """Everything needed to prepare one case in a process of its own.

    Attributes:
        case: Files of the case.
        tables: For each of its label files, source id -> vocabulary id.
        organ_translations: For each folder of organ labels, the translation of its ids.
        settings: Settings for every case.
        has_envelope: Whether the lab's files have a label that means the whole body.
        dropped_lesions: For each of its label files, source ids of lesions that are dropped, i.e. replaced by their
            host.
    """

    case: SourceCase
    tables: tuple[Mapping[int, int], ...]
    organ_translations: tuple[Translation, ...]
    settings: PrepareSettings
    has_envelope: bool = False
    dropped_lesions: tuple[frozenset[int], ...] = ()

    def hash_inputs(self) -> str:
        """Return a SHA-256 over the content of the case's files and the settings of its preparation.

        Raises:
            VolumeError: A file cannot be read.
        """
        paths = [file for path in self.case.paths for file in files_of(path)]
        healed = [sorted((i, sorted(c.items())) for i, c in t.lesions.items()) for t in self.organ_translations]
        content = {
            "sources": [sha256_of(path) for path in paths],
            "tables": [sorted(table.items()) for table in self.tables],
            "organs": [sorted(translation.ids.items()) for translation in self.organ_translations],
            **({"organ_lesions": healed} if any(healed) else {}),
            "settings": self.settings.to_dict(),
            "has_envelope": self.has_envelope,
            **({"dropped_lesions": [sorted(ids) for ids in self.dropped_lesions]} if any(self.dropped_lesions) else {}),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class BuiltCase:
    """A case after resampling to the grid of the networks, before it is written.

    Attributes:
        image_hu: ``(I, J, K)`` int16 image in HU.
        label_map: ``(I, J, K)`` uint8 vocabulary ids with body (200).
        grid: Shape and affine, with the scanner's position and axis directions.
        notes: Notes to the user, a sentence each.
    """

    image_hu: NDArray[np.int16]
    label_map: NDArray[np.uint8]
    grid: Grid
    notes: tuple[str, ...]


def build_case(task: CaseTask) -> BuiltCase:
    """Prepare a case: read its files, translate and merge labels, find the body, and resample.

    If labels overlap, the later one in this order wins: body (200), tissues found by their HU, organs in the order of
    their folders, the lab's own label files in their order, lesions.

    Raises:
        VolumeError: A file cannot be read, the image is not a CT in HU, or shows no patient.
    """
    settings = task.settings
    image, grid = load_ct(task.case.image)
    label_map = np.zeros(grid.shape, dtype=np.uint8)
    for files, translation in zip(task.case.organs, task.organ_translations, strict=True):
        organs = load_organs(files, translation, grid, task.case.image)
        np.copyto(label_map, organs, where=organs > 0)
    own = merge_labels(task.case.labels, task.tables, settings.vocabulary.tumor_ids, grid, task.case.image)
    np.copyto(label_map, own, where=(own > 0) & ((own != BODY_ID) | (label_map == 0)))
    label_map, notes = _add_body(label_map, image, grid, task)
    label_map = _heal_dropped(label_map, task)
    own_ids = sorted({label_id for table in task.tables for label_id in table.values()} - {0, BODY_ID})
    target = _place_grid(label_map, grid, settings, own_ids)
    # A host organ is not kept as well: a lesion that is given back its volume takes it from the host.
    kept_ids = [label_id for label_id in own_ids if label_id in settings.focus_ids]
    prepared = resample_label_map(label_map, grid, target, keep_ids=kept_ids)
    image_hu = _clip(resample_image(image, grid, target, fill=AIR_HU))
    prepared = add_tissues(prepared, image_hu, settings.tissues, target.spacing_mm)
    if not settings.keeps_surroundings:
        image_hu[prepared == 0] = AIR_HU
    notes += _describe_cut(label_map, grid, target, _find_focus(own_ids, settings), settings.vocabulary)
    return BuiltCase(image_hu, prepared, target, tuple(notes))


def load_ct(path: Path) -> tuple[NDArray[Any], Grid]:
    """Read a CT, and clip its values to the range of CT.

    Returns:
        ``(I, J, K)`` HU, and the grid.

    Raises:
        VolumeError: The CT cannot be read, or its values are not HU.
    """
    volume = read_ct(path)
    return np.clip(volume.array, *CT_RANGE_HU), volume.grid


def _clip(image: NDArray[Any]) -> NDArray[np.int16]:
    clipped: NDArray[np.int16] = np.clip(np.rint(image), *CT_RANGE_HU).astype(np.int16)
    return clipped


def load_organs(files: Sequence[LabelFile], translation: Translation, grid: Grid, image: Path) -> NDArray[np.uint8]:
    """Read the organ labels of a case as ``(I, J, K)`` vocabulary ids on the image's grid, without the body.

    Args:
        files: Label map, or masks of organs.
        translation: Translation of their ids.
        grid: Grid of the image.
        image: Path of the image, for messages.
    """
    merged = np.zeros(grid.shape, dtype=np.uint8)
    lesions: list[tuple[NDArray[np.bool_], Mapping[int, int]]] = []
    order = sorted(range(len(files)), key=lambda place: lesion_word(files[place].mask_name or "") is not None)
    for place in order:
        is_mask = files[place].mask_name is not None
        volume = load_mask(files[place].path) if is_mask else load_label_map(files[place].path, image=image)
        volume = place_labels(volume, grid, subject=files[place].path.name, on="its own grid")
        array = volume.array
        if files[place].mask_name is not None:
            array = np.where(array > 0, place + 1, 0).astype(np.uint16)
        translated = translation.apply(array)
        is_lesion_mask = files[place].mask_name is not None and place + 1 in translation.lesions
        if not is_lesion_mask:  # of a mask of a lesion all is body, which the other masks have to tell from
            translated[translated == BODY_ID] = 0
        if not is_same_place(volume.grid, grid):
            translated = resample_label_map(translated, volume.grid, grid)
        if is_lesion_mask:
            lesions.append((translated > 0, translation.lesions[place + 1]))
        else:
            np.copyto(merged, translated, where=translated > 0)
    for lesion, tumor_of_host in lesions:
        merged = settle_lesions(merged, lesion, tumor_of_host=tumor_of_host) if lesion.any() else merged
    merged[merged == BODY_ID] = 0
    return merged


def merge_labels(
    files: Sequence[LabelFile],
    tables: Sequence[Mapping[int, int]],
    lesion_ids: Sequence[int],
    grid: Grid,
    image: Path,
) -> NDArray[np.uint8]:
    """Merge the lab's own label files to ``(I, J, K)`` vocabulary ids: body first, then file by file, lesions last.

    Args:
        files: Label files in their order.
        tables: For each file, source id -> vocabulary id.
        lesion_ids: Vocabulary ids that are lesions.
        grid: Grid of the image.
        image: Path of the image, for messages.
    """
    merged = np.zeros(grid.shape, dtype=np.uint8)
    lesions = np.zeros(grid.shape, dtype=np.uint8)
    is_lesion = np.zeros(256, dtype=bool)
    is_lesion[list(lesion_ids)] = True
    for file, table in zip(files, tables, strict=True):
        array = place_labels(load_label_map(file.path, image=image), grid, subject=file.path.name).array
        if file.mask_name is not None:
            array = np.where(array > 0, MASK_ID, 0).astype(np.uint8)
        look_up = np.zeros(max(int(array.max()), *table, 0) + 1, dtype=np.uint8)
        for source_id, label_id in table.items():
            look_up[source_id] = label_id
        translated = look_up[array]
        np.copyto(lesions, translated, where=is_lesion[translated])
        wins = (translated > 0) & ~is_lesion[translated] & ((translated != BODY_ID) | (merged == 0))
        np.copyto(merged, translated, where=wins)
    np.copyto(merged, lesions, where=lesions > 0)
    return merged


def _heal_dropped(label_map: NDArray[np.uint8], task: CaseTask) -> NDArray[np.uint8]:
    """Lesions that the user drops, or calls body, become the organ that they lie in: no hole of body is left in it."""
    lesions = np.zeros(label_map.shape, dtype=bool)
    for file, ids in zip(task.case.labels, task.dropped_lesions, strict=False):
        if ids:
            array = load_label_map(file.path).array
            lesions |= array > 0 if file.mask_name is not None else np.isin(array, sorted(ids))
    lesions &= label_map == BODY_ID
    return settle_lesions(label_map, lesions) if lesions.any() else label_map


def _add_body(
    label_map: NDArray[np.uint8], image: NDArray[Any], grid: Grid, task: CaseTask
) -> tuple[NDArray[np.uint8], list[str]]:
    """Give the patient without a label the body's, and say where that goes beyond a body among the lab's labels.

    A label that is called the body and fills the patient is taken as it is. Other labels become body too where the
    vocabulary lacks them, such as the pulmonary artery: they leave the rest of the patient to be found.
    """
    has_body = bool((label_map == BODY_ID).any())
    is_shell = has_body and is_hollow(label_map > 0)
    try:
        body = find_body(image, grid.spacing_mm)
    except VolumeError as error:
        if task.has_envelope and has_body and not is_shell:
            return label_map, []
        raise VolumeError(f"{task.case.image.name}: {error}") from error
    covered = float((label_map[body] > 0).mean())
    if task.has_envelope and has_body and not is_shell and covered >= MIN_COVERED:
        return label_map, []
    found = np.where((label_map == 0) & body, BODY_ID, label_map).astype(np.uint8)
    if not has_body:
        return found, []
    drawn = "is hollow" if is_shell else f"and the other labels fill {covered:.0%} of the patient"
    return found, [f"Body (200) as labelled {drawn}; the rest of the patient was found in the CT."]


def _place_grid(label_map: NDArray[np.uint8], grid: Grid, settings: PrepareSettings, own_ids: Sequence[int]) -> Grid:
    """The networks' grid on the scan: centred on the patient, and where the scan is larger, around the labels.

    What counts are the new labels and tumours; without any, all of the lab's labels.
    """
    boxes = dict(enumerate(ndimage.find_objects(label_map), start=1))
    present = [label_id for label_id in own_ids if boxes.get(label_id) is not None]
    wanted = _find_focus(present, settings)
    focus = []
    if wanted:
        bounds = np.array([[(part.start, part.stop) for part in boxes[label_id]] for label_id in wanted])
        low, high = bounds[..., 0].min(axis=0), bounds[..., 1].max(axis=0)
        focus = [tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))]
    centre_mm = choose_centre(label_map, grid, settings.grid, focus)
    return centre_grid_on(centre_mm.tolist(), shape=settings.shape, spacing_mm=settings.spacing_mm, like=grid)


def _find_focus(own_ids: Sequence[int], settings: PrepareSettings) -> list[int]:
    """Find the labels to centre on: new labels and tumours, otherwise all of the lab's labels."""
    return [label_id for label_id in own_ids if label_id in settings.focus_ids] or list(own_ids)


def _describe_cut(
    label_map: NDArray[np.uint8], grid: Grid, target: Grid, ids: Sequence[int], vocabulary: Vocabulary
) -> list[str]:
    """Describe how much of the patient and of the labels to be trained is outside the grid."""
    to_source = np.linalg.inv(grid.affine) @ target.affine
    scale, offset = np.diag(to_source)[:3], to_source[:3, 3]  # the target has the source's axis directions
    first, last = offset - 0.5 * scale, offset + (np.asarray(target.shape) - 0.5) * scale
    box = bounding_box(label_map > 0)
    cut = []
    for axis, words in enumerate(("width", "depth", "length")):
        whole = (box[axis].stop - box[axis].start) * grid.spacing_mm[axis]
        ends = max(first[axis], box[axis].start - 0.5), min(last[axis], box[axis].stop - 0.5)
        inside = (ends[1] - ends[0]) * grid.spacing_mm[axis]
        if whole - inside > target.spacing_mm[axis] / 2:
            cut.append(f"{inside:.0f} of {whole:.0f} mm of the {words}")
    notes = [f"Cropped to {', '.join(cut)} of the patient."] if cut else []
    part = label_map[tuple(slice(max(0, int(np.ceil(a))), int(np.ceil(b))) for a, b in zip(first, last, strict=True))]
    before, after = (np.bincount(array.ravel(), minlength=256) for array in (label_map, part))
    for label_id in ids:
        if before[label_id] > after[label_id]:
            was, is_now = (f"{count[label_id] * grid.voxel_ml:.3g}" for count in (before, after))
            notes.append(f"{is_now} of {was} mL of '{vocabulary.name_of(label_id)}' lie inside the grid.")
    return notes
