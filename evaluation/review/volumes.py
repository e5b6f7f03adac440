"""Files that the server may hand out: volumes as they are, converted ones, and small pictures."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.review.cases import ShownCase
from maisi_aug.pictures.preview import load_axial_panels
from maisi_aug.pictures.slices import SOFT_TISSUE, Plane, draw_slice, label_colours
from maisi_aug.volumes.image_files import (
    load_axial_slice,
    load_grid,
    load_image,
    load_label_map,
    save_image,
    save_label_map,
)

SHOWN_SUFFIXES: Final = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Suffixes that NiiVue reads; anything else is converted to NIfTI first."""
THUMB_PX: Final = 260
MAX_THUMBS: Final = 2000
MAX_THUMB_VOXELS: Final = 20_000_000
"""Largest volume in voxels that is read whole for a small picture, to bound the server's memory; larger ones show only
their name.
"""
MAX_LABEL: Final = 65535
AIR_HU: Final = -1000.0
MAX_DRAWN_AT_ONCE: Final = 2
"""Number of small pictures drawn at the same time, each of which may hold a volume in memory."""


class FolderFiles:
    """Access to the files of one folder only; symbolic links that lead out of it are refused."""

    def __init__(self, root: Path, scratch: Path) -> None:
        """Create the store; nothing is read yet.

        Args:
            root: The folder that was named.
            scratch: Temporary folder for converted volumes.
        """
        self._root, self._scratch = root.resolve(), scratch
        self._converting, self._drawing = threading.Lock(), threading.Semaphore(MAX_DRAWN_AT_ONCE)
        self._thumbs_lock = threading.Lock()
        self._thumbs: OrderedDict[str, bytes] = OrderedDict()

    def require(self, path: Path) -> Path:
        """Return the real path of a file, after following symbolic links.

        Raises:
            EvaluationError: The file is missing, or leads out of the folder.
        """
        found = path.resolve()
        if not found.is_relative_to(self._root):
            raise EvaluationError(f"{path.name}: a link leads out of {self._root}.")
        if not found.exists():
            raise EvaluationError(f"{path.name}: not found in {path.parent}.")
        return found

    def name_of(self, case: ShownCase, role: str) -> str:
        """Return the name of a volume in addresses, with a suffix that tells the page how to read it.

        Args:
            case: Case that is shown.
            role: Kind of file, such as ``image`` or ``label``.
        """
        path = case.files[role]
        suffix = next((suffix for suffix in SHOWN_SUFFIXES if path.name.lower().endswith(suffix)), ".nii.gz")
        try:
            status = path.stat()
            stamp = f"?v={status.st_mtime_ns:x}-{status.st_size:x}"
        except OSError:
            stamp = ""
        return f"{role}{suffix}{stamp}"

    def volume(self, case: ShownCase, role: str) -> Path:
        """Return the path of a volume that NiiVue can read, converted if necessary.

        Args:
            case: Shown case.
            role: Role of the volume, such as ``image``.

        Raises:
            EvaluationError: The file is missing, or leads out of the folder.
            MaisiAugError: The volume must be converted and cannot be read.
        """
        path = self.require(case.files[role])
        if path.is_file() and path.name.lower().endswith(SHOWN_SUFFIXES):
            return path
        target = self._scratch / f"{case.key}.{role}.nii.gz"
        with self._converting:
            if not target.exists():
                if role == "image":
                    image = load_image(path)
                    save_image(target, image.array, image.grid)
                else:
                    labels = load_label_map(path)
                    save_label_map(target, labels.array, labels.grid)
        return target

    def thumb(self, case: ShownCase) -> bytes:
        """Return a small picture of a case as JPEG bytes.

        Raises:
            EvaluationError: There is no image to draw it from, or the image is too large.
            MaisiAugError: The volume cannot be read.
        """
        if (known := self._find_thumb(case.key)) is not None:
            return known
        with self._drawing:
            if (known := self._find_thumb(case.key)) is not None:  # drawn for another page meanwhile
                return known
            picture = self._draw(case)
            picture.thumbnail((THUMB_PX, THUMB_PX), Image.Resampling.LANCZOS)
            file = io.BytesIO()
            picture.convert("RGB").save(file, "JPEG", quality=82)
        with self._thumbs_lock:
            self._thumbs[case.key] = file.getvalue()
            if len(self._thumbs) > MAX_THUMBS:
                self._thumbs.popitem(last=False)
        return file.getvalue()

    def _find_thumb(self, key: str) -> bytes | None:
        with self._thumbs_lock:
            if key in self._thumbs:
                self._thumbs.move_to_end(key)
            return self._thumbs.get(key)

    def _draw(self, case: ShownCase) -> Image.Image:
        if "preview" in case.files and (found := load_axial_panels(self.require(case.files["preview"]))) is not None:
            return found[0][-1]
        role = next((role for role in ("image", "anatomy", "label") if role in case.files), None)
        if role is None:
            raise EvaluationError(f"{case.case.case_id}: has no volume or picture.")
        path = self.require(case.files[role])
        grid = load_grid(path)
        array = _load_slice(path, role, _choose_slice(case, grid.shape[2]))
        plane = Plane("axial", 0)
        size_px = plane.size_px(grid, THUMB_PX / max(grid.extent_mm[:2]))
        if role == "image":
            return draw_slice(array, plane, size_px, SOFT_TISSUE)
        labels = plane.cut(array).astype(np.int64).clip(0, MAX_LABEL)
        colours = np.zeros((int(labels.max()) + 1, 3), dtype=np.uint8)
        for number, colour in label_colours(np.unique(labels), ()).items():
            colours[number] = colour
        return Image.fromarray(colours[labels]).resize(size_px, Image.Resampling.NEAREST)


def _load_slice(path: Path, role: str, index: int) -> NDArray[Any]:
    """Return one axial slice, ``(I, J, 1)``, of an image or a label map.

    Raises:
        EvaluationError: The volume is large and has to be read whole.
        MaisiAugError: It cannot be read.
    """
    if (found := load_axial_slice(path, index)) is not None:
        numbers: NDArray[Any] = np.nan_to_num(found.array, nan=AIR_HU)
        return numbers
    if prod(load_grid(path).shape) > MAX_THUMB_VOXELS:
        raise EvaluationError(f"{path.name}: has more than {MAX_THUMB_VOXELS} voxels.")
    whole = load_image(path) if role == "image" else load_label_map(path)
    return whole.array[:, :, index : index + 1]


def _choose_slice(case: ShownCase, num_slices: int) -> int:
    """Through the largest lesion, or the middle."""
    placed = [lesion for lesion in case.lesions if lesion["centre"] is not None]
    if not placed:
        return num_slices // 2
    return min(int(max(placed, key=lambda lesion: lesion["ml"] or 0.0)["centre"][2]), num_slices - 1)
