"""A training recipe of tiny networks, and a store of small cases that live in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from maisi_aug.bundle_spec.grid_limits import GridSpec
from maisi_aug.preparation.prepared import PreparedCase, PreparedSpec, write_lists
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.training.cases.data import CaseFacts
from maisi_aug.training.images.recipe import TrainingRecipe
from maisi_aug.volumes.components import Box
from maisi_aug.volumes.grid import Grid, Shape, Spacing
from maisi_aug.volumes.image_files import save_image, save_label_map
from tests.builders.tiny_bundle import build_header

SHAPE: Shape = (32, 24, 24)
SPACING_MM: Spacing = (12.0, 13.0, 14.0)
LIVER, HEPATIC_TUMOR, BODY = 1, 26, 200


@dataclass(frozen=True, eq=False)
class ArrayCase:
    """One image with its label map."""

    image_hu: NDArray[np.int16]
    label_map: NDArray[np.uint8]
    spacing_mm: Spacing = SPACING_MM
    modality: str = "ct_contrast"


class ArrayStore:
    """Cases in memory; a ``CaseStore`` that remembers what was read."""

    def __init__(self, cases: Sequence[ArrayCase]) -> None:
        self.cases = list(cases)
        self.reads: list[tuple[str, int]] = []

    def __len__(self) -> int:
        return len(self.cases)

    def facts(self, index: int) -> CaseFacts:
        i, j, k = self.cases[index].label_map.shape
        return CaseFacts((i, j, k), self.cases[index].spacing_mm, self.cases[index].modality)

    def label_map(self, index: int, box: Box = ()) -> NDArray[np.uint8]:
        self.reads.append(("label_map", index))
        return self.cases[index].label_map[box]

    def condition_map(self, index: int, box: Box = ()) -> NDArray[np.uint8]:
        return self.cases[index].label_map[box]

    def noise(self, index: int) -> NDArray[np.float32] | None:
        return None

    def image_hu(self, index: int, box: Box = ()) -> NDArray[np.int16]:
        self.reads.append(("image_hu", index))
        return self.cases[index].image_hu[box]


def build_case(seed: int, *, has_lesion: bool = True) -> ArrayCase:
    """A body with a liver and a darker lesion in it, each a box of its own place and shape."""
    rng = np.random.default_rng(seed)
    label_map = np.zeros(SHAPE, dtype=np.uint8)
    label_map[4:28, 4:20, :] = BODY
    corner = rng.integers((6, 5, 4), (10, 8, 8))
    label_map[_box(corner, (12, 10, 12))] = LIVER
    if has_lesion:
        label_map[_box(corner + rng.integers(2, 5, size=3), (4, 3, 5))] = HEPATIC_TUMOR
    hu = np.full(256, -1000, dtype=np.int16)
    hu[[BODY, LIVER, HEPATIC_TUMOR]] = (20, 110, 60)
    return ArrayCase(hu[label_map], label_map)


def build_store(num_cases: int, *, has_lesion: bool = True) -> ArrayStore:
    """A store of such cases."""
    return ArrayStore([build_case(seed, has_lesion=has_lesion) for seed in range(num_cases)])


def tiny_grid() -> Grid:
    """The grid of the cases and of the recipe."""
    return Grid.from_spacing(SHAPE, SPACING_MM)


def build_recipe_content(**changes: Any) -> dict[str, Any]:
    """The content of a training recipe of a few steps a stage; ``changes`` go by dotted fields with ``__`` for dots."""
    header = {key: value for key, value in build_header().items() if key not in {"format", "scale_factor"}}
    loop = {"learning_rate": 1e-3, "num_warmup_steps": 2, "mixed_precision": False}
    content: dict[str, Any] = {
        "kind": "training",
        "seed": 3,
        "data": {"num_phantoms": 2, "seed": 5},
        "bundle": {**header, "grid": {"shape": list(SHAPE), "spacing_mm": list(SPACING_MM)}},
        "vae": {"loop": {"num_steps": 3, **loop}, "loss": {"patch_shape": [16, 16, 16]}},
        "diffusion": {"loop": {"num_steps": 2, **loop}},
        "controlnet": {"loop": {"num_steps": 2, **loop}, "loss": {"lesion_weight": 4.0, "train_unet": True}},
    }
    return change_fields(content, changes)


def change_fields(content: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Set fields of nested dictionaries in place, named by their dotted path with ``__`` for dots."""
    for field, value in changes.items():
        place = content
        *parents, last = field.split("__")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return content


def build_recipe(**changes: Any) -> TrainingRecipe:
    """The recipe, validated."""
    return TrainingRecipe.model_validate(build_recipe_content(**changes))


def write_recipe(path: Path, **changes: Any) -> Path:
    """The recipe as a file."""
    path.write_text(yaml.safe_dump(build_recipe_content(**changes), sort_keys=False), encoding="utf-8")
    return path


def write_prepared(folder: Path, *, num_cases: int = 3, num_folds: int = 3) -> Path:
    """The cases as a folder that ``maisi-aug prepare`` would have written, a fold a case."""
    records = []
    for number in range(num_cases):
        case, name = build_case(number), f"case-{number}"
        paths = {role: folder / f"{role}s" / f"{name}.nii.gz" for role in ("image", "label")}
        save_image(paths["image"], case.image_hu, tiny_grid())
        save_label_map(paths["label"], case.label_map, tiny_grid())
        ids, counts = np.unique(case.label_map, return_counts=True)
        record = PreparedCase(
            id=name,
            patient=name,
            fold=number % num_folds,
            modality="ct_contrast",
            shape=SHAPE,
            spacing_mm=SPACING_MM,
            voxels=dict(zip(ids.tolist(), counts.tolist(), strict=True)),
            image_sha256=sha256_of(paths["image"]),
            label_sha256=sha256_of(paths["label"]),
            image_source=str(paths["image"]),
            label_sources=(str(paths["label"]),),
            key="0" * 64,
        )
        records.append(record)
    spec = PreparedSpec(
        name="tiny",
        grid=GridSpec(shape=SHAPE, spacing_mm=SPACING_MM),
        labels={"liver": LIVER, "hepatic tumor": HEPATIC_TUMOR, "body": BODY},
        num_folds=num_folds,
    )
    return write_lists(folder, spec, records, command="a test").path


def _box(corner: Sequence[int] | np.ndarray[Any, Any], shape: Shape) -> tuple[slice, ...]:
    return tuple(slice(int(start), int(start) + side) for start, side in zip(corner, shape, strict=True))
