"""A training recipe of tiny mask networks, and small label maps as classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from maisi_aug.networks.mask_decoding import class_ids
from maisi_aug.training.masks.label_maps import to_classes
from maisi_aug.training.masks.recipe import MaskTrainingRecipe
from tests.builders.tiny_masks import build_mask_networks, build_mask_settings
from tests.builders.tiny_training import SHAPE, SPACING_MM, build_case, change_fields

NUM_CLASSES = 125


class ClassList:
    """Label maps in memory, as classes."""

    def __init__(self, maps: Sequence[NDArray[np.uint8]]) -> None:
        self.maps = list(maps)

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return self.maps[index]


def build_maps(num_maps: int) -> ClassList:
    """A body with a liver and a hepatic tumour each."""
    return ClassList([to_classes(build_case(seed).label_map) for seed in range(num_maps)])


def class_of(label_id: int) -> int:
    """The class of a label."""
    return int(np.flatnonzero(class_ids() == label_id)[0])


def build_mask_recipe_content(**changes: Any) -> dict[str, Any]:
    """The content of a recipe of a few steps; ``changes`` go by dotted fields with ``__`` for dots."""
    settings = build_mask_settings()
    loop = {"learning_rate": 1e-3, "num_warmup_steps": 2, "mixed_precision": False}
    content: dict[str, Any] = {
        "kind": "mask-training",
        "seed": 3,
        "data": {"num_phantoms": 2, "seed": 5, "num_held_out": 1},
        "grid": {"shape": list(SHAPE), "spacing_mm": list(SPACING_MM)},
        "num_inference_steps": settings["num_inference_steps"],
        "scheduler": settings["scheduler"],
        "networks": build_mask_networks(),
        "vae": {"loop": {"num_steps": 3, **loop}, "loss": {"patch_shape": [16, 16, 16], "large_patch_shape": SHAPE}},
        "diffusion": {"loop": {"num_steps": 3, **loop}},
    }
    return change_fields(content, changes)


def build_mask_recipe(**changes: Any) -> MaskTrainingRecipe:
    """The recipe, validated."""
    return MaskTrainingRecipe.model_validate(build_mask_recipe_content(**changes))


def write_mask_recipe(path: Path, **changes: Any) -> Path:
    """The recipe as a file."""
    content = build_mask_recipe_content(**changes)
    content["vae"]["loss"]["large_patch_shape"] = list(content["vae"]["loss"]["large_patch_shape"])
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path
