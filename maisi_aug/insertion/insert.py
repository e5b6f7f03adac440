"""Insertion of a lesion into a CT: place, shape, drawing, blending and gates, on a crop; depends only on the seed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.errors import UnfitCtError
from maisi_aug.gates.checks import Verdict, check_lesion_size
from maisi_aug.insertion.checks import LesionLook, check_untouched, judge_look, measure_look
from maisi_aug.insertion.crops import Crop, blend, choose_box, cut_crop, weigh_zone
from maisi_aug.insertion.lungs import CoarseMask, blocks_with, coarse_factors, find_lungs, to_coarse
from maisi_aug.insertion.painting import Painter, PaintTask, Texture, set_contrast
from maisi_aug.insertion.places import Place, draw_place
from maisi_aug.insertion.request import Attachment
from maisi_aug.insertion.shapes import draw_shape
from maisi_aug.insertion.surroundings import LUNG_ID, label_surroundings
from maisi_aug.system.seeds import derive_seed, numpy_generator
from maisi_aug.vocabulary.sizes import diameter_mm
from maisi_aug.volumes.components import Mask, is_any_of
from maisi_aug.volumes.grid import Shape, Spacing, voxel_volume_ml

LEAST_VOXELS = 4
"""Of the smallest lesion: fewer show no shape."""
CONTEXT_MM = 9.0
"""Margin in mm of a crop around a lesion's ball."""
REACH_RADII = 1.7
"""Extent of a lesion with spicules, in radii of its ball."""


@dataclass(frozen=True)
class LesionRequest:
    """A lesion to be inserted: its label, volume and appearance.

    Attributes:
        label_id: Vocabulary id of the lesion.
        volume_ml: Volume in mL.
        texture: Density of a nodule: solid, part-solid or ground-glass.
        attachment: Whether it touches the surface of its host organ; None leaves it to chance.
        sign: Whether a soft lesion is brighter (1) or darker (-1) than its host, or either (0).
        contrast_hu: Contrast to the host in HU; None if it is not fixed.
        place_sizes_ml: Smallest and largest volume in mL of the twins that share its place and crop; None without
            twins.
    """

    label_id: int
    volume_ml: float
    texture: Texture = "solid"
    attachment: Attachment | None = None
    sign: int = 1
    contrast_hu: float | None = None
    place_sizes_ml: tuple[float, float] | None = None


class Host(Protocol):
    """Region of a CT in which lesions may grow."""

    @property
    def coarse(self) -> CoarseMask:
        """Coarse mask of the region, by blocks of voxels."""

    def label(self, crop: Crop) -> tuple[NDArray[np.uint8], Mask]:
        """Return the label map of a crop, 0 beyond the CT, and the mask of the region in it, both ``(I, J, K)``."""


@dataclass(frozen=True, eq=False)
class LungHost:
    """The lungs as a host organ, found from the HU of a CT without labels."""

    coarse: CoarseMask

    @classmethod
    def of(cls, image_hu: NDArray[Any], spacing_mm: Spacing) -> LungHost:
        """Find the lungs of a CT.

        Args:
            image_hu: ``(I, J, K)`` HU in RAS+.
            spacing_mm: Voxel sides along I, J, K in mm.

        Raises:
            UnfitCtError: The CT shows no lungs.
        """
        return cls(find_lungs(image_hu, spacing_mm))

    def label(self, crop: Crop) -> tuple[NDArray[np.uint8], Mask]:
        """Return the label map of a crop (lung and body) and the mask of the lung in it, both ``(I, J, K)``."""
        label_map = label_surroundings(crop.image_hu, crop.spacing_mm)
        label_map[~crop.is_inside] = 0
        near = ndimage.binary_dilation(self.coarse.cut(crop.start, crop.stop), iterations=max(self.coarse.factors))
        return label_map, (label_map == LUNG_ID) & near


@dataclass(frozen=True, eq=False)
class LabelledHost:
    """Organs of a label map as host of lesions."""

    coarse: CoarseMask
    label_map: NDArray[np.uint8]
    host_ids: tuple[int, ...]

    @classmethod
    def of(cls, label_map: NDArray[np.uint8], host_ids: Collection[int], spacing_mm: Spacing) -> LabelledHost:
        """Take organs of a label map as host.

        Args:
            label_map: ``(I, J, K)`` vocabulary ids of the whole CT.
            host_ids: Ids of the organs.
            spacing_mm: Voxel sides along I, J, K in mm.

        Raises:
            UnfitCtError: The label map has none of the organs.
        """
        factors = coarse_factors(spacing_mm)
        organs = is_any_of(label_map, host_ids)
        if not organs.any():
            raise UnfitCtError(f"Host: the label map has no label {' or '.join(map(str, host_ids))}.")
        i, j, k = (factor * step for factor, step in zip(factors, spacing_mm, strict=True))
        return cls(
            CoarseMask(to_coarse(organs, factors, fill=0.0) > 0.5, factors, (i, j, k)), label_map, tuple(host_ids)
        )

    def label(self, crop: Crop) -> tuple[NDArray[np.uint8], Mask]:
        """Return the label map of a crop, 0 beyond the CT, and the mask of the host in it, both ``(I, J, K)``."""
        in_image, in_crop = crop.box_in(self.label_map.shape)
        found = np.zeros(crop.shape, dtype=np.uint8)
        found[in_crop] = self.label_map[in_image]
        return found, is_any_of(found, self.host_ids)


@dataclass(frozen=True, eq=False)
class Insertion:
    """Outcome of the insertion of one lesion.

    Attributes:
        box: Position of the crop in the image, slices along I, J, K.
        image: ``(I, J, K)`` crop with the lesion, of the image's type.
        lesion: ``(I, J, K)`` mask of the lesion in the box.
        zone: ``(I, J, K)`` mask of the voxels that were drawn.
        place: Centre of the lesion, and its position relative to the host's surface.
        volume_ml: Realised volume in mL.
        look: Measured appearance of the lesion.
        verdicts: Verdicts of the gates.
    """

    box: tuple[slice, ...]
    image: NDArray[Any]
    lesion: Mask
    zone: Mask
    place: Place
    volume_ml: float
    look: LesionLook
    verdicts: tuple[Verdict, ...]

    @property
    def reason(self) -> str:
        """Message of the first gate that failed; empty if all passed."""
        return next((verdict.message for verdict in self.verdicts if not verdict.passed), "")


def insert_lesion(
    image: NDArray[Any],
    spacing_mm: Spacing,
    host: Host,
    request: LesionRequest,
    painter: Painter,
    *,
    occupied: Mask | None = None,
    seed: int,
    size_tolerance: float = 0.10,
) -> Insertion:
    """Draw a lesion into a real CT, and judge the result.

    Args:
        image: ``(I, J, K)`` HU in RAS+, not modified.
        spacing_mm: Voxel sides along I, J, K in mm.
        host: Region in which lesions may grow.
        request: Label, volume and appearance of the lesion.
        painter: Painter that draws the lesion.
        occupied: ``(I, J, K)`` mask of existing lesions, from which the new one stays apart.
        seed: Seed; the same seed gives the same lesion.
        size_tolerance: Deviation that the gate on size allows, as a fraction of the volume.

    Returns:
        The crop with the lesion and the verdicts of the gates, which may have failed.

    Raises:
        UnfitCtError: The lesion is smaller than a few voxels, or its host has no room.
        LesionError: There is no room for the shape that was drawn.
    """
    site = _choose_site(image, spacing_mm, host, request, painter, occupied, numpy_generator(seed, "insertion"))
    weight = weigh_zone(site.lesion, spacing_mm)
    task = PaintTask(
        image_hu=site.crop.image_hu,
        label_map=np.where(site.lesion, request.label_id, site.label_map).astype(np.uint8),
        lesion=site.lesion,
        hidden=weight > 0,
        host=site.host,
        spacing_mm=spacing_mm,
        texture=request.texture,
        seed=derive_seed(seed, "paint"),
        sign=request.sign,
    )
    drawn = painter.paint(task)
    if request.contrast_hu is not None:
        drawn = set_contrast(task, drawn, request.contrast_hu)
    in_image, in_crop = site.crop.box_in(image.shape)
    before, zone, lesion = image[in_image], weight[in_crop] > 0, site.lesion[in_crop]
    after = blend(before, drawn[in_crop], weight[in_crop])
    voxel_ml = voxel_volume_ml(spacing_mm)
    volume_ml = float(lesion.sum()) * voxel_ml
    look = measure_look(after, lesion, site.host[in_crop], zone, spacing_mm, before_hu=before)
    verdicts = (
        check_lesion_size(request.volume_ml, volume_ml, voxel_ml, size_tolerance),
        *judge_look(look, request.texture, sign=request.sign, wanted_hu=request.contrast_hu),
        check_untouched(before, after, zone),
    )
    return Insertion(in_image, after, lesion, zone, site.place, volume_ml, look, verdicts)


@dataclass(frozen=True, eq=False)
class _Site:
    """Where a lesion is to be drawn.

    Attributes:
        place: Centre of the lesion, and its position relative to the host's surface.
        crop: Box around it, cut out of the CT.
        label_map: ``(I, J, K)`` vocabulary ids of the crop without the lesion, 0 beyond the CT.
        lesion: ``(I, J, K)`` mask of the lesion in the crop.
        host: ``(I, J, K)`` mask of the host in the crop, without lesions.
    """

    place: Place
    crop: Crop
    label_map: NDArray[np.uint8]
    lesion: Mask
    host: Mask


def _choose_site(
    image: NDArray[Any],
    spacing_mm: Spacing,
    host: Host,
    request: LesionRequest,
    painter: Painter,
    occupied: Mask | None,
    rng: np.random.Generator,
) -> _Site:
    """Draw a place for a lesion and its shape there, and cut the crop that the painter needs to see."""
    least_ml, most_ml = request.place_sizes_ml or (request.volume_ml, request.volume_ml)
    voxel_ml = voxel_volume_ml(spacing_mm)
    if round(least_ml / voxel_ml) < LEAST_VOXELS:
        raise UnfitCtError(
            f"Lesion of {least_ml:.3g} mL: has {round(least_ml / voxel_ml)} voxels of {voxel_ml:.2g} mL, at "
            f"least {LEAST_VOXELS} are needed. Request a larger lesion, or use a CT with smaller voxels."
        )
    radius_mm = diameter_mm(most_ml) / 2.0
    place = draw_place(
        host.coarse,
        _shape_of(image),
        radius_mm,
        occupied=None if occupied is None else blocks_with(occupied, host.coarse.factors),
        rng=rng,
        attachment=request.attachment,
        least_radius_mm=diameter_mm(least_ml) / 2.0,
    )
    start, shape = choose_box(
        place.centre,
        REACH_RADII * radius_mm + CONTEXT_MM,
        spacing_mm,
        factor=painter.factor,
        least_shape=painter.least_shape,
    )
    crop = cut_crop(image, start, shape, spacing_mm)
    label_map, room = host.label(crop)
    if occupied is not None:
        in_image, in_crop = crop.box_in(image.shape)
        room[in_crop] &= ~occupied[in_image]
    i, j, k = (centre - first for centre, first in zip(place.centre, start, strict=True))
    lesion = draw_shape(room, (i, j, k), round(request.volume_ml / voxel_ml), spacing_mm, rng)
    return _Site(place, crop, label_map, lesion, room & ~lesion)


def _shape_of(image: NDArray[Any]) -> Shape:
    i, j, k = image.shape
    return i, j, k
