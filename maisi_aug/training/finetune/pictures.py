"""Pictures of a fine-tuning run: held-out cases as they are, and as the networks draw their label maps so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.networks.building import Networks
from maisi_aug.networks.pipeline import Pipeline
from maisi_aug.pictures.slices import (
    BACKGROUND,
    DIM_TEXT,
    LESION_COLOURS,
    Plane,
    Rgb,
    Window,
    annotate,
    draw_contours,
    draw_slice,
    write_text,
)
from maisi_aug.system.seeds import derive_seed
from maisi_aug.training.cases.data import CaseStore
from maisi_aug.training.cases.taught_label import TaughtLabel
from maisi_aug.volumes.grid import Grid

SOFT_TISSUE_NARROW = Window("soft tissue", 40.0, 400.0)
PANEL_PX = 300
MARGIN_PX = 10
LINE_PX = 22
AROUND_MM = 45.0
"""Smallest margin in mm around the labels; without surroundings a gland's place cannot be seen."""


@dataclass(frozen=True)
class Subject:
    """One row of a picture sheet: a case with several images.

    Attributes:
        name: Name of the case.
        label_map: ``(I, J, K)`` vocabulary ids.
        grid: Shape and affine of the label map and the images.
        images_hu: Heading -> ``(I, J, K)`` image in HU.
    """

    name: str
    label_map: NDArray[np.uint8]
    grid: Grid
    images_hu: Mapping[str, NDArray[np.int16]]


class SampleDrawer:
    """Draws images of fixed held-out label maps, from fixed noise, with networks that are being trained."""

    def __init__(
        self,
        networks: Networks,
        base: Bundle,
        store: CaseStore,
        names: Sequence[str],
        taught: Sequence[TaughtLabel],
        *,
        num_cases: int,
        seed: int,
    ) -> None:
        self.pipeline = Pipeline(base, networks)
        self.store = store
        self.names = names
        self.taught = taught
        self.seed = seed
        ids = [label.id for label in taught]
        largest = sorted(range(len(store)), key=lambda index: -int(np.isin(store.label_map(index), ids).sum()))
        # The largest, the smallest and what lies between: not the best cases alone.
        places = np.unique(np.linspace(0, len(largest) - 1, min(num_cases, len(largest))).round().astype(int))
        self.indices = [largest[place] for place in places.tolist()]

    def draw(self) -> list[Subject]:
        """Return the held-out cases, each with its real image and the one drawn by the current networks."""
        return [self._draw_case(index) for index in self.indices]

    def _draw_case(self, index: int) -> Subject:
        facts, label_map = self.store.facts(index), self.store.label_map(index)
        grid = Grid.from_spacing(facts.shape, facts.spacing_mm)
        modality = facts.modality if self._is_told(facts.modality) else None
        drawn = self.pipeline.synthesize_image(
            label_map, grid, seed=derive_seed("validation picture", self.seed, index), modality=modality
        )
        if self.pipeline.bundle.is_mr:  # on the scale of the training images, from -1000 to 1000
            drawn = 2 * drawn - 1000
        return Subject(self.names[index], label_map, grid, {"real": self.store.image_hu(index), "drawn": drawn})

    def _is_told(self, modality: str) -> bool:
        definition = self.pipeline.bundle.definition("diffusion_unet")
        return definition.get("num_class_embeds") is not None and modality != "unknown"


def build_sheet(subjects: Sequence[Subject], labels: Mapping[int, str], title: str) -> Image.Image:
    """Draw a sheet with one row per case: axial slices through the labels, plain and outlined.

    Args:
        subjects: Cases, all with the same headings of images.
        labels: Id -> name of the labels to outline.
        title: Title of the sheet.
    """
    rows = [_draw_row(subject, labels) for subject in subjects]
    width = max([picture.width for picture in rows], default=PANEL_PX) + 2 * MARGIN_PX
    height = 2 * LINE_PX + MARGIN_PX + sum(picture.height + MARGIN_PX for picture in rows)
    sheet = Image.new("RGB", (max(width, 640), height), BACKGROUND)
    write_text(sheet, (MARGIN_PX, 8), title, size_px=15)
    names = ", ".join(labels.values())
    window = SOFT_TISSUE_NARROW
    under = f"{names}; axial, {window.name} window {window.centre_hu:g} / {window.width_hu:g} HU"
    write_text(sheet, (MARGIN_PX, 8 + LINE_PX), under, size_px=12, colour=DIM_TEXT)
    top = 2 * LINE_PX + MARGIN_PX
    for picture in rows:
        sheet.paste(picture, (MARGIN_PX, top))
        top += picture.height + MARGIN_PX
    return sheet


def _draw_row(subject: Subject, labels: Mapping[int, str]) -> Image.Image:
    mask = np.isin(subject.label_map, list(labels))
    shown = mask if mask.any() else subject.label_map > 0
    plane = Plane("axial", int(np.argmax(shown.sum(axis=(0, 1)))))
    box = _choose_box(shown[:, :, plane.index], subject.grid)
    cropped = subject.label_map[box]
    grid = Grid.from_spacing(cropped.shape, subject.grid.spacing_mm)
    scale = PANEL_PX / max(grid.extent_mm[:2])
    colours = label_colours_of(labels)
    panels = []
    for heading, image_hu in subject.images_hu.items():
        plain = draw_slice(image_hu[box], plane, plane.size_px(grid, scale), SOFT_TISSUE_NARROW)
        outlined = draw_contours(plain, cropped, plane, colours, frozenset(labels))
        for picture, words in ((plain, f"{subject.name}, {heading}"), (outlined, f"{heading}, outlined")):
            annotate(picture, plane, scale, title=words)
            panels.append(picture)
    row = Image.new("RGB", (sum(p.width + MARGIN_PX for p in panels), max(p.height for p in panels)), BACKGROUND)
    left = 0
    for picture in panels:
        row.paste(picture, (left, 0))
        left += picture.width + MARGIN_PX
    return row


def label_colours_of(labels: Mapping[int, str]) -> dict[int, Rgb]:
    """Return label id -> vivid colour, in the order of the labels."""
    return {label_id: LESION_COLOURS[place % len(LESION_COLOURS)] for place, label_id in enumerate(labels)}


def _choose_box(mask: NDArray[np.bool_], grid: Grid) -> tuple[slice, slice, slice]:
    """A square of the axial plane around a mask, with what lies around it."""
    places = np.argwhere(mask)
    parts = []
    spacing = np.asarray(grid.spacing_mm[:2])
    side_mm = float(((np.ptp(places, axis=0) + 1) * spacing).max()) + 2 * AROUND_MM
    for axis in range(2):
        length = min(grid.shape[axis], max(1, round(side_mm / grid.spacing_mm[axis])))
        middle = round(float(places[:, axis].min() + places[:, axis].max()) / 2)
        start = min(max(0, middle - length // 2), grid.shape[axis] - length)
        parts.append(slice(start, start + length))
    return parts[0], parts[1], slice(0, grid.shape[2])
