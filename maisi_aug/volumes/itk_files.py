"""NRRD and MetaImage files as ITK reads them, once they hold as many voxels as their headers say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.system.content import ContentError, content_errors
from maisi_aug.volumes.metaimage_facts import require_metaimage_voxels
from maisi_aug.volumes.nrrd_facts import require_nrrd_frame, require_nrrd_voxels

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_with_itk(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read NRRD or MetaImage.

    Returns:
        The voxels with their first axis first, and the affine to RAS+ mm; ITK's world is LPS.

    Raises:
        ContentError: ITK cannot read it.
        VolumeError: It holds fewer voxels than it says, or does not say where they are.
    """
    import SimpleITK

    _require_whole(path)
    with content_errors(path):
        return take_itk_image(SimpleITK.ReadImage(str(path)))


def take_itk_image(image: Any) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Voxels with their first axis first, and the affine to RAS+ mm, of an image that SimpleITK holds.

    Raises:
        ContentError: It has several values in a voxel.
    """
    import SimpleITK

    affine = _affine_of(image)
    return np.asarray(SimpleITK.GetArrayFromImage(image)).T, affine


def read_itk_grid(path: Path) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape and affine of :func:`read_with_itk`, from the header alone.

    Raises:
        ContentError: ITK cannot read it.
        VolumeError: It holds fewer voxels than it says, or does not say where they are.
    """
    import SimpleITK

    _require_whole(path)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    with content_errors(path):
        reader.ReadImageInformation()
        shape = tuple(int(side) for side in reader.GetSize())
    return shape, _affine_of(reader)


def _require_whole(path: Path) -> None:
    if path.suffix.lower() in (".nrrd", ".nhdr"):
        require_nrrd_frame(path)
        require_nrrd_voxels(path)
    else:
        require_metaimage_voxels(path)


def _affine_of(image: Any) -> NDArray[np.float64]:
    """Voxel-to-RAS affine of an image or of a reader that has read its header."""
    num_components = image.GetNumberOfComponents() if hasattr(image, "GetNumberOfComponents") else None
    num_components = image.GetNumberOfComponentsPerPixel() if num_components is None else num_components
    if num_components != 1:
        raise ContentError(f"one value per voxel needed, {num_components} stored")
    num_axes = image.GetDimension()
    direction = np.asarray(image.GetDirection()).reshape(num_axes, num_axes)
    affine = np.eye(4)
    used = min(num_axes, 3)
    affine[:used, :used] = (direction * np.asarray(image.GetSpacing()))[:used, :used]
    affine[:used, 3] = np.asarray(image.GetOrigin())[:used]
    return _LPS_TO_RAS @ affine
