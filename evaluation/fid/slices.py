"""Slices of a CT volume for a two-dimensional network: the 2.5D protocol of MAISI's FID.

Steps: RAS+ axes, resampled where a spacing is requested, filled up with -1000 HU and cut to a shape about the centre
where one is requested, clipped to [-1000, 1000] HU; then all slices along each axis, or a central share of them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import RequestError, VolumeError
from maisi_aug.volumes.grid import Grid, Shape, Spacing
from maisi_aug.volumes.image_files import Volume
from maisi_aug.volumes.resampling import resample_image

PlaneName = Literal["xy", "yz", "zx"]
Resampling = Literal["centred", "maisi"]
"""Resampling methods: about the centre of the field of view, smoothed beforehand along axes that become coarser; or
as MAISI's script does, by MONAI's ``Spacing``, which keeps the first voxel in its place and does not smooth."""
PLANES: Final[tuple[PlaneName, ...]] = get_args(PlaneName)
AXIS_OF: Final[dict[PlaneName, int]] = {"xy": 2, "yz": 0, "zx": 1}
"""The axis that the slices of a plane are stacked along; xy is axial, yz sagittal, zx coronal."""
AIR_HU: Final = -1000.0
CLIP_HU: Final = (-1000.0, 1000.0)
MIN_SIDE: Final = 32
"""Smallest side in voxels: a network that halves the sides five times has nothing left below it."""


@dataclass(frozen=True, slots=True)
class SliceProtocol:
    """Protocol that turns volumes into slices for FID; figures are comparable only if all of it is equal.

    Attributes:
        spacing_mm: Voxel sides along I, J, K in mm to resample to; None keeps each volume's own.
        shape: Voxels along I, J, K to pad and crop to, about the centre; None keeps each volume's own.
        centre_share: Central fraction of the slices along each axis that is used.
        every: Step between used slices.
        resampling: How volumes are resampled to ``spacing_mm``; MAISI's published figures use ``maisi``.
    """

    spacing_mm: Spacing | None = None
    shape: Shape | None = None
    centre_share: float = 1.0
    every: int = 1
    resampling: Resampling = "centred"

    def __post_init__(self) -> None:
        if not 0.0 < self.centre_share <= 1.0:
            raise RequestError(
                f"Centre share: expected more than 0 and at most 1, found {self.centre_share:g}. "
                "MAISI's published figures use 0.4 or all slices."
            )
        if self.resampling != "centred" and self.spacing_mm is None:
            raise RequestError(
                f"Resampling '{self.resampling}': needs a spacing to resample to. Add --spacing 1, as for MAISI's "
                "published figures."
            )
        if self.every < 1:
            raise RequestError(f"Every: must be an integer from 1, found {self.every}. 1 takes all slices.")

    def to_dict(self) -> dict[str, Any]:
        """Return the protocol as a JSON-able dict."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def describe(self) -> str:
        """Describe the protocol in a few words."""
        spacing = "own spacing" if self.spacing_mm is None else f"{'x'.join(f'{s:g}' for s in self.spacing_mm)} mm"
        if self.spacing_mm is not None:
            spacing += " from the first voxel on, as in MAISI" if self.resampling == "maisi" else " about the centre"
        shape = "own shape" if self.shape is None else "x".join(map(str, self.shape))
        share = "all slices" if self.centre_share == 1.0 else f"central {100 * self.centre_share:g}% of the slices"
        thinned = "" if self.every == 1 else f", one in {self.every}"
        return f"{spacing}, {shape}, {share}{thinned}"


def prepare_volume(volume: Volume, protocol: SliceProtocol, *, subject: str) -> NDArray[np.float32]:
    """Resample, pad, crop and clip a CT as a protocol defines.

    With the resampling ``maisi``, the result equals that of MAISI's script bit by bit.

    Args:
        volume: ``(I, J, K)`` HU in RAS+; not modified.
        protocol: Protocol to apply.
        subject: Name of the case in messages.

    Returns:
        ``(I, J, K)`` float32 HU.

    Raises:
        VolumeError: A side has fewer than 32 voxels afterwards.
    """
    from monai.transforms import CenterSpatialCrop, ScaleIntensityRange, SpatialPad

    image, grid = volume.array, volume.grid
    if protocol.spacing_mm is not None:
        image = _resample(image.astype(np.float32), grid, protocol.spacing_mm, protocol.resampling)
    array = np.asarray(image, dtype=np.float32)
    if protocol.shape is not None and array.shape != protocol.shape:
        padded = SpatialPad(protocol.shape, mode="constant", value=AIR_HU)(array[None])
        array = np.asarray(CenterSpatialCrop(protocol.shape)(padded)[0])
    if min(array.shape) < MIN_SIDE:
        raise VolumeError(
            f"{subject}: at least {MIN_SIDE} voxels along every axis are needed, found "
            f"{'x'.join(map(str, array.shape))}. Pass a smaller --spacing or a --shape."
        )
    if protocol.resampling == "maisi":  # its script clips by mapping the range onto itself, which rounds once more
        return np.asarray(ScaleIntensityRange(*CLIP_HU, *CLIP_HU, clip=True)(array), dtype=np.float32)
    return np.clip(array, *CLIP_HU)


def take_slices(image_hu: NDArray[np.float32], plane: PlaneName, protocol: SliceProtocol) -> NDArray[np.float32]:
    """Return the slices of a volume in one plane that a protocol selects.

    Args:
        image_hu: ``(I, J, K)`` image in HU.
        plane: ``xy`` stacks along K, ``yz`` along I, ``zx`` along J.
        protocol: Protocol that selects slices.

    Returns:
        ``(N, rows, columns)`` slices, with the other two axes in their order; at least one slice.
    """
    stack = np.moveaxis(image_hu, AXIS_OF[plane], 0)
    num = len(stack)
    start, stop = (int((1.0 + sign * protocol.centre_share) / 2.0 * num) for sign in (-1, 1))
    return np.ascontiguousarray(stack[start : max(stop, start + 1) : protocol.every])


def _resample(
    image_hu: NDArray[np.float32], grid: Grid, spacing_mm: Spacing, resampling: Resampling
) -> NDArray[np.float32]:
    if resampling == "centred":
        return resample_image(image_hu, grid, _respaced(grid, spacing_mm), fill=AIR_HU)
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms.spatial.array import Spacing as MonaiSpacing

    volume = MetaTensor(image_hu[None], affine=grid.affine.copy())
    return np.asarray(MonaiSpacing(spacing_mm, mode="bilinear")(volume)[0], dtype=np.float32)


def _respaced(grid: Grid, spacing_mm: Spacing) -> Grid:
    """A grid over the same field of view, with other voxels."""
    sides = np.maximum(np.round(np.asarray(grid.extent_mm) / np.asarray(spacing_mm)), 1).astype(int)
    directions = grid.affine[:3, :3] / np.asarray(grid.spacing_mm)
    affine = np.eye(4)
    affine[:3, :3] = directions * np.asarray(spacing_mm)
    centre = grid.affine @ np.append((np.asarray(grid.shape) - 1) / 2, 1.0)
    affine[:3, 3] = centre[:3] - affine[:3, :3] @ ((sides - 1) / 2)
    return Grid((int(sides[0]), int(sides[1]), int(sides[2])), affine)
