"""A label map of a bank: its lesions, its files, and its crop for the networks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.banks.case_files import stem_of
from maisi_aug.banks.case_reader import load_ct
from maisi_aug.banks.entry import BankEntry
from maisi_aug.banks.label_ids import Translation
from maisi_aug.errors import VolumeError
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.vocabulary.labels import BODY_ID, Vocabulary, lesion_word
from maisi_aug.volumes.body import add_body, is_hollow
from maisi_aug.volumes.components import Box, Mask, label_parts
from maisi_aug.volumes.dicom_files import files_of
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import Volume, decode_label_map, load_label_map
from maisi_aug.volumes.resampling import centre_grid_on, resample_image, resample_label_map

HOST_MARGIN_MM = 10.0
MIN_BODY_SHARE = 0.05
"""Smallest share of body in all labelled voxels; in a map with all of MAISI's organs the share is several times as
large.
"""
MAX_IDS = 8
NUM_DIGITS = 16
"""Number of digits of a hash that a cohort records."""
JITTER = (0.03, 0.03, 0.12)  # of the grid's extent along I, J, K


@dataclass(frozen=True, eq=False)
class BaseMap:
    """A label map on the networks' grid, before lesions are planted or chosen.

    Attributes:
        label_map: ``(I, J, K)`` uint8 vocabulary ids with body (200).
        grid: Shape and affine of the label map.
        origin: Where the map comes from, as JSON values for the manifest.
        tissue: ``(I, J, K)`` uint8 tissue ids under body (200), which procedural anatomies know; None otherwise.
    """

    label_map: NDArray[np.uint8]
    grid: Grid
    origin: dict[str, Any]
    tissue: NDArray[np.uint8] | None = None


@dataclass(frozen=True, eq=False)
class BankLesion:
    """One connected lesion in a label map of a bank.

    Attributes:
        label_id: Vocabulary id of the lesion.
        volume_ml: Volume in mL.
        box: Smallest box of voxels around the lesion.
        number: Number of the connected component among those with this id, from 1, as ``label_parts`` counts them.
    """

    label_id: int
    volume_ml: float
    box: Box
    number: int


@dataclass(frozen=True, eq=False)
class BankMap:
    """One label map of a bank, in vocabulary ids on its own grid.

    Attributes:
        name: Path relative to the bank.
        label_map: ``(I, J, K)`` uint8 vocabulary ids with body (200).
        grid: Shape and affine of the label map.
        sha256: SHA-256 of the file or files of the label map.
        image_name: File name of the CT that gave the body envelope, or None.
        image_sha256: Hash of that CT's file or slices, or None.
    """

    name: str
    label_map: NDArray[np.uint8]
    grid: Grid
    sha256: str
    image_name: str | None
    image_sha256: str | None = None

    @property
    def body_origin(self) -> dict[str, Any]:
        """The origin of the map's body envelope, as JSON values for the manifest."""
        found = {} if self.image_sha256 is None else {"body_sha256": self.image_sha256[:NUM_DIGITS]}
        return {"body_from": self.image_name, **found}

    @cached_property
    def counts(self) -> NDArray[np.int_]:
        """Number of voxels of every vocabulary id, indexed by id."""
        return np.bincount(self.label_map.ravel(), minlength=256)

    @cached_property
    def boxes(self) -> dict[int, Box]:
        """Vocabulary id -> smallest box of voxels around it."""
        found = ndimage.find_objects(self.label_map)
        return {label_id: box for label_id, box in enumerate(found, start=1) if box is not None}

    def find_lesions(self, label_id: int) -> list[BankLesion]:
        """Return the connected lesions that have the given vocabulary id."""
        if label_id not in self.boxes:
            return []
        outer = self.boxes[label_id]
        parts, _ = label_parts(self.label_map[outer] == label_id)
        sizes = np.bincount(parts.ravel())
        lesions = []
        for number, inner in enumerate(ndimage.find_objects(parts), start=1):
            box = tuple(slice(a.start + b.start, a.start + b.stop) for a, b in zip(outer, inner, strict=True))
            lesions.append(BankLesion(label_id, float(sizes[number] * self.grid.voxel_ml), box, number))
        return lesions

    def mask_of(self, lesions: Sequence[BankLesion]) -> Mask:
        """Return the ``(I, J, K)`` mask of the given lesions of this map."""
        mask = np.zeros(self.label_map.shape, dtype=bool)
        for lesion in lesions:
            outer = self.boxes[lesion.label_id]
            parts, _ = label_parts(self.label_map[outer] == lesion.label_id)
            mask[outer] |= parts == lesion.number
        return mask


def cut_map(
    bank_map: BankMap,
    grid: Grid,
    focus: Sequence[Box],
    *,
    rng: np.random.Generator,
    keep_ids: Sequence[int] = (),
) -> BaseMap:
    """Cut a label map of a bank to another shape and spacing, with the boxes of interest well inside.

    Args:
        bank_map: Label map to cut.
        grid: Shape and spacing of the result; its position is ignored.
        focus: Boxes of voxels that must be inside; empty for the middle of the map.
        rng: Generator that draws the shift of the cut.
        keep_ids: Vocabulary ids of lesions whose volume must survive resampling.

    Returns:
        The cut map, with the map's axis directions and scanner coordinates.
    """
    shift_mm = rng.uniform(-1, 1, 3) * np.asarray(JITTER) * np.asarray(grid.extent_mm)
    centre_mm = choose_centre(bank_map.label_map, bank_map.grid, grid, focus, shift_mm=shift_mm)
    target = centre_grid_on(centre_mm.tolist(), shape=grid.shape, spacing_mm=grid.spacing_mm, like=bank_map.grid)
    label_map = resample_label_map(bank_map.label_map, bank_map.grid, target, keep_ids=keep_ids)
    origin: dict[str, Any] = {
        "file": bank_map.name,
        "sha256": bank_map.sha256[:NUM_DIGITS],
        **bank_map.body_origin,
        "centre_mm": [round(float(part), 3) for part in centre_mm],
    }
    return BaseMap(label_map, target, origin)


def load_entry(entry: BankEntry, translation: Translation | None, vocabulary: Vocabulary) -> Volume:
    """Read the label map of a bank entry in its own ids; masks of single organs are numbered from 1 in their order.

    Args:
        entry: Entry to read.
        translation: Translation to the vocabulary; None if only the ids of the map can tell (never for organ masks).
        vocabulary: Vocabulary of the translation.

    Raises:
        VolumeError: A file cannot be read, or masks differ in their grid.
    """
    if entry.member is not None:
        return decode_label_map(entry.member.read(), entry.name, max_bytes=entry.member.max_bytes)
    if translation is None or not entry.organ_names:
        return load_label_map(entry.label_paths[0], image=entry.image_path)
    first = load_mask(entry.label_paths[0])
    label_map = np.zeros(first.array.shape, dtype=np.uint16)
    for place in _order_masks(entry.organ_names, translation, vocabulary):
        mask = first if place == 0 else load_mask(entry.label_paths[place])
        if not mask.grid.is_close(first.grid, tolerance_mm=0.01):
            raise VolumeError(f"{entry.label_paths[place]}: its grid differs from that of the other masks.")
        label_map[mask.array > 0] = place + 1
    return Volume(label_map, first.grid)


def load_mask(path: Path) -> Volume:
    """Read the mask of one label, as a label map with one id.

    Args:
        path: Volume file.

    Raises:
        VolumeError: The file cannot be read, or holds several ids.
    """
    volume = load_label_map(path)
    counts = np.bincount(volume.array.ravel())
    require_one_label({int(label_id): int(counts[label_id]) for label_id in np.flatnonzero(counts)}, path)
    return volume


def require_one_label(counts: Mapping[int, int], path: Path) -> None:
    """Raise if a mask holds more than one id, whatever its number.

    Args:
        counts: Id -> number of voxels.
        path: File of the mask, for the message.

    Raises:
        VolumeError: It holds several ids, which its one name cannot mean.
    """
    ids = sorted(label_id for label_id in counts if label_id)
    if len(ids) > 1:
        shown = ", ".join(f"{label_id} ({counts[label_id]} voxels)" for label_id in ids[:MAX_IDS])
        raise VolumeError(
            f"{path.name}: expected a mask of one label, '{stem_of(path)}', found {len(ids)} ids: "
            f"{shown}{', ...' if len(ids) > MAX_IDS else ''}. Provide it as a label map, whose ids can be named one "
            "by one."
        )


def _order_masks(names: Sequence[str], translation: Translation, vocabulary: Vocabulary) -> list[int]:
    """Places of the masks in the order in which they are written, since the last one wins where they overlap.

    The envelope covers every organ, and so may a name that the vocabulary lacks: organs win over both. Tumours and
    cysts win over their host.
    """

    def rank(place: int) -> int:
        if place + 1 in translation.lesions:
            return 3
        label_id = translation.ids.get(place + 1, BODY_ID)
        if label_id == BODY_ID:
            return 1 if place + 1 in translation.envelope_ids else 0
        is_lesion = label_id in vocabulary.tumor_ids or lesion_word(names[place]) is not None
        return 3 if is_lesion else 2

    return sorted(range(len(names)), key=rank)


def add_envelope(label_map: NDArray[np.uint8], grid: Grid, entry: BankEntry) -> tuple[NDArray[np.uint8], str]:
    """Add the body (200) to a label map, found in the CT that it belongs to.

    Args:
        label_map: ``(I, J, K)`` uint8 vocabulary ids.
        grid: Shape and affine of the label map.
        entry: Bank entry with the CT's path.

    Returns:
        The map with body (200), and the CT's file name.

    Raises:
        VolumeError: There is no CT, or it cannot be used.
    """
    if entry.image_path is None:
        raise no_envelope(entry)
    return add_body(label_map, load_image_on(entry.image_path, grid), grid.spacing_mm), entry.image_path.name


def load_image_on(path: Path, grid: Grid) -> NDArray[Any]:
    """Read the CT that belongs to a label map, in HU on the grid of the map.

    Args:
        path: Path of the CT.
        grid: Grid of the label map.

    Returns:
        ``(I, J, K)`` HU.

    Raises:
        VolumeError: The CT cannot be read.
    """
    image = load_ct(path)
    if image.grid.is_close(grid, tolerance_mm=0.01):
        return image.array
    return resample_image(image.array, image.grid, grid)


def is_filled_body(label_map: NDArray[np.uint8]) -> bool:
    """Whether body (200) in a label map is a filled body outside of organs, not a shell or a few stray voxels.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids.
    """
    num_body, num_labelled = int(np.count_nonzero(label_map == BODY_ID)), int(np.count_nonzero(label_map))
    return num_body >= MIN_BODY_SHARE * num_labelled and not is_hollow(label_map > 0)


def no_envelope(entry: BankEntry) -> VolumeError:
    """Return the error for a map without a CT whose body (200) is missing, hollow or only a few voxels."""
    return VolumeError(
        f"{entry.name}: needs a filled body (200), or a CT to find the body in. Put the CT next to the label map, "
        "for instance as X_ct.nii.gz and X_seg.nii.gz."
    )


def hash_of(entry: BankEntry) -> str:
    """Return the SHA-256 of a label map's file; for organ masks, the SHA-256 over the hashes of all masks."""
    if entry.member is not None:
        return hashlib.sha256(entry.member.read()).hexdigest()
    return _hash_all(entry.label_paths)


def hash_of_image(entry: BankEntry) -> str | None:
    """Return the SHA-256 of the CT of a bank entry; for DICOM, over the hashes of its slices; None without a CT."""
    return None if entry.image_path is None else _hash_all(files_of(entry.image_path))


def _hash_all(paths: Sequence[Path]) -> str:
    hashes = [sha256_of(path) for path in paths]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def choose_centre(
    label_map: NDArray[np.uint8],
    source: Grid,
    grid: Grid,
    focus: Sequence[Box],
    *,
    shift_mm: Sequence[float] = (0.0, 0.0, 0.0),
) -> NDArray[np.float64]:
    """Return the best centre, in RAS+ mm, for cutting a grid out of a label map.

    Across the body, the cut is centred on the patient, as in scans. Along the body, it is centred on the focus, and
    kept inside the patient if the scan is long enough.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids with body (200).
        source: Shape and affine of the label map.
        grid: Shape and spacing of the cut.
        focus: Boxes of voxels that must be inside, with a margin; empty for the middle of the map.
        shift_mm: Shift of the cut along I, J, K in mm, as far as the focus allows.

    Returns:
        ``(3,)`` centre in RAS+ millimetres.
    """
    spacing, extent = np.asarray(source.spacing_mm), np.asarray(grid.extent_mm)
    slices_mm = _find_filled(np.asarray(label_map.any(axis=(0, 1))), spacing[2])
    whole = tuple(slice(0, side) for side in source.shape)
    bounds = np.array([[(part.start, part.stop) for part in box] for box in (focus or [whole])], dtype=np.float64)
    bounds *= spacing[None, :, None]
    low, high = bounds[:, :, 0].min(axis=0), bounds[:, :, 1].max(axis=0)
    centre = np.empty(3)
    along = bounds[:, 2].mean() + shift_mm[2]
    centre[2] = _clamp(_keep_inside(along, low[2], high[2], extent[2]), *slices_mm, extent[2])
    slices = slice(
        max(0, int((centre[2] - extent[2] / 2) / spacing[2])), max(1, int((centre[2] + extent[2] / 2) / spacing[2]))
    )
    seen = label_map[:, :, slices].max(axis=2) > 0
    for axis in (0, 1):
        middle = sum(_find_filled(np.asarray(seen.any(axis=1 - axis)), spacing[axis])) / 2
        centre[axis] = _keep_inside(middle + shift_mm[axis], low[axis], high[axis], extent[axis])
    index = centre / spacing - 0.5
    world: NDArray[np.float64] = source.affine[:3, :3] @ index + source.affine[:3, 3]
    return world


def _keep_inside(centre: float, low: float, high: float, extent: float) -> float:
    """Move a window so that an interval with a margin lies in it; one that is too long is centred."""
    if high - low + 2 * HOST_MARGIN_MM > extent:
        return (low + high) / 2 if high - low > extent else centre
    return min(max(centre, high + HOST_MARGIN_MM - extent / 2), low - HOST_MARGIN_MM + extent / 2)


def _find_filled(is_filled: NDArray[np.bool_], step_mm: float) -> tuple[float, float]:
    """Find the filled slices along an axis, in millimetres from its start; the whole axis if there are none."""
    filled = np.flatnonzero(is_filled)
    first, last = (filled[0], filled[-1] + 1) if filled.size else (0, is_filled.size)
    return float(first * step_mm), float(last * step_mm)


def _clamp(centre: float, low: float, high: float, extent: float) -> float:
    """Keep a window inside an interval, or centre it on one that is shorter."""
    if high - low <= extent:
        return (low + high) / 2
    return min(max(centre, low + extent / 2), high - extent / 2)
