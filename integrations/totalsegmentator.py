"""Organ labels from TotalSegmentator, run in this process through its own Python API.

Source: Wasserthal et al., "TotalSegmentator: Robust Segmentation of 104 Anatomic Structures in CT Images", Radiology:
Artificial Intelligence 2023; the package ``totalsegmentator``, version 2, whose task ``total`` has 117 classes. It
fetches its weights at its first run, and tells its authors of every run unless its own configuration,
``~/.totalsegmentator/config.json``, says otherwise.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maisi_aug.errors import MissingExtraError, PreparationError
from maisi_aug.system.progress import Report, report_nothing
from maisi_aug.system.whole_files import sha256_of, write_text_whole
from maisi_aug.volumes.dicom_files import files_of
from maisi_aug.volumes.image_files import NIFTI_SUFFIXES, load_grid, load_image, load_stored_grid, save_image

EXTRA = "totalsegmentator"
VERSION = "totalsegmentator-v2"
"""Meaning of the ids of its label maps, as in ``--organ-labels``."""


def require_totalsegmentator() -> Callable[..., Any]:
    """Return the function of TotalSegmentator's Python API.

    Raises:
        MissingExtraError: TotalSegmentator is not installed.
    """
    try:
        from totalsegmentator.python_api import totalsegmentator
    except ImportError as error:
        raise MissingExtraError(
            f"TotalSegmentator: the package is missing: {error}. Install it with pip install 'maisi-aug[{EXTRA}]', "
            "or give a folder of its results with --organs."
        ) from error
    run: Callable[..., Any] = totalsegmentator
    return run


def segment_organs(
    images: Mapping[str, Path],
    folder: Path,
    *,
    device: str = "gpu",
    fast: bool = False,
    report: Report = report_nothing,
) -> None:
    """Segment organs with TotalSegmentator's task ``total`` in every image that has no label map yet.

    Label maps that were made from an older image or by the other model are made again; a hidden file next to each
    records its source.

    Args:
        images: Case -> path of the CT; files other than NIfTI are converted first.
        folder: Folder for label maps ``CASE.nii.gz`` with the ids of ``VERSION``; a file appears whole or not at all.
        device: Device in TotalSegmentator's notation: ``gpu``, ``gpu:1``, ``cpu`` or ``mps``.
        fast: Whether to use its model at 3 mm, for computers without a GPU.
        report: Progress callback, called with (images done, images in all).

    Raises:
        MissingExtraError: TotalSegmentator is not installed.
        PreparationError: TotalSegmentator failed on an image.
        VolumeError: An image cannot be read.
    """
    run = require_totalsegmentator()
    folder.mkdir(parents=True, exist_ok=True)
    report(0, len(images))
    for done, (case_id, image) in enumerate(images.items(), start=1):
        result, origin = folder / f"{case_id}.nii.gz", folder / f".{case_id}.origin"
        made_of = f"{_hash_of(image)} {'3 mm' if fast else '1.5 mm'}\n"
        if not (result.is_file() and origin.is_file() and origin.read_text(encoding="utf-8") == made_of):
            origin.unlink(missing_ok=True)
            _segment(run, case_id, image, result, device=device, fast=fast)
            write_text_whole(origin, made_of)
        report(done, len(images))


def _hash_of(image: Path) -> str:
    """Of a file, or of all files of a folder with a DICOM series."""
    return hashlib.sha256("".join(map(sha256_of, files_of(image))).encode()).hexdigest()


def _is_read_alike(image: Path) -> bool:
    """Whether TotalSegmentator, which goes by nibabel's affine, sees the same voxels in a file as this package."""
    if not image.name.lower().endswith(NIFTI_SUFFIXES):
        return False
    stored, grid = load_stored_grid(image), load_grid(image)
    return stored.has_right_angles and np.allclose(sorted(stored.spacing_mm), sorted(grid.spacing_mm), rtol=1e-4)


def _segment(run: Callable[..., Any], case_id: str, image: Path, result: Path, *, device: str, fast: bool) -> None:
    hidden = result.parent / f".{case_id}.{secrets.token_hex(4)}"
    converted, written = (hidden.with_name(f"{hidden.name}.{role}.nii.gz") for role in ("ct", "organs"))
    try:
        source = image
        if not _is_read_alike(image):
            volume = load_image(image)
            save_image(converted, volume.array, volume.grid)
            source = converted
        # Its API raises whatever its parts meet (torch, nnU-Net, downloads): to the user all mean that it failed.
        try:
            run(source, written, ml=True, task="total", fast=fast, device=device, quiet=True)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PreparationError(
                f"TotalSegmentator, case {case_id}: failed: {reason[:300]}. Run TotalSegmentator on this image by "
                "hand for details, or give its results with --organs."
            ) from error
        if not written.is_file():
            raise PreparationError(
                f"TotalSegmentator, case {case_id}: it wrote no label map. Run TotalSegmentator on this image by "
                "hand, and give its results with --organs."
            )
        written.replace(result)
    finally:
        converted.unlink(missing_ok=True)
        written.unlink(missing_ok=True)
