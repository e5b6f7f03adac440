"""Trained mask networks written into a bundle, so that label maps can be generated from it at once."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maisi_aug import __version__
from maisi_aug.bundle_spec.bundle import BUNDLE_FILE, Bundle, load_bundle
from maisi_aug.bundle_spec.mask_networks import FIELD_TOLERANCE
from maisi_aug.errors import BundleError, MaisiAugError, TrainingError
from maisi_aug.networks.checkpoints.importing import LICENCE_FILE
from maisi_aug.networks.checkpoints.mask_networks import copy_without_masks, note_masks
from maisi_aug.networks.mask_conditions import SIZED_ORGANS
from maisi_aug.system.content import read_json
from maisi_aug.system.whole_folder import open_whole_folder
from maisi_aug.training.masks.recipe import MaskTrainingRecipe
from maisi_aug.training.masks.stages import MASK_STAGES, SUMMARY_NAME, MaskTrainingFolder
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.volumes.grid import Grid, spell_grid

TRAINED_HERE = "maisi-aug train"
QUARTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def require_base(name_or_path: str | None, recipe: MaskTrainingRecipe) -> Bundle:
    """Return the bundle with image networks to which mask networks are added.

    Args:
        name_or_path: Name or path of the bundle; None if the user named none, which is an error.
        recipe: Recipe of the mask networks, with the grid of their label maps.

    Raises:
        TrainingError: No bundle is named, or its images are longer along the body than the label maps.
        BundleError: The bundle cannot be read.
    """
    if name_or_path is None:
        raise TrainingError(
            "Mask networks: need a bundle with image networks to be added to. Name one with --base, for instance "
            "--base phantom-ct."
        )
    base = load_bundle(name_or_path)
    grid = Grid.from_spacing(recipe.grid.shape, recipe.grid.spacing_mm)
    field_mm, wanted_mm = grid.extent_mm[2], base.grid.extent_mm[2]
    if wanted_mm > field_mm * FIELD_TOLERANCE:
        raise TrainingError(
            f"Mask networks: their label maps must be at least as long as the images of bundle '{base.name}', "
            f"{wanted_mm:.0f} mm, found {field_mm:.0f} mm ({spell_grid(grid.shape, grid.spacing_mm)}). Use a longer "
            "grid in the recipe, or another --base."
        )
    return base


def write_mask_bundle(run: MaskTrainingFolder, base: Bundle) -> Path:
    """Write a copy of a bundle with the trained mask networks into the run's ``bundle``, whole or not at all.

    Args:
        run: Run whose stages are trained.
        base: Bundle of image networks to copy.

    Returns:
        The bundle's folder.

    Raises:
        TrainingError: A stage has not been trained.
        BundleError: The sub-folder holds something else.
    """
    recipe, folder = run.recipe, run.folder / "bundle"
    states = {role: run.load_weights(stage) for stage, role in MASK_STAGES.items()}
    cases, _, scale_factor = run.encode()
    if not run.processes.is_main:
        return folder
    with open_whole_folder(folder, require_replaceable=lambda: _require_ours(folder)) as unfinished:
        copy_without_masks(base, unfinished)
        note_masks(
            unfinished,
            networks=recipe.networks,
            states=states,
            settings={
                "grid": recipe.grid.model_dump(mode="json"),
                "num_inference_steps": recipe.num_inference_steps,
                "scale_factor": scale_factor,
                "scheduler": recipe.scheduler,
            },
            size_conditions=_spell_sizes(cases.sizes),
            provenance=_describe(run),
            dtype=torch.float16,
        )
    return folder


def _spell_sizes(sizes: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    """The sizes in the layout of NVIDIA's file, one row a line."""
    rows = [json.dumps({"organ_size": [round(float(size), 4) for size in row]}) for row in sizes]
    return ("[\n" + ",\n".join(rows) + "\n]\n").encode()


def _describe(run: MaskTrainingFolder) -> dict[str, Any]:
    """Describe the origin and quality of the networks, and the volumes behind the sizes of organs."""
    summaries = {stage: read_json(run.folder / stage / SUMMARY_NAME) for stage in MASK_STAGES}
    organs = zip(SIZED_ORGANS, run.measure().organ_volumes_ml(), strict=True)
    return {
        "origin": TRAINED_HERE,
        "trained_on": run.split.origin,
        "steps": {stage: summary["steps"] for stage, summary in summaries.items()},
        "unfinished": [stage for stage, summary in summaries.items() if not summary["complete"]],
        "held_out": {
            "dice": round(summaries["mask-vae"]["held_out"]["dice"], 4),
            "loss": round(summaries["mask-diffusion"]["held_out"]["loss"], 4),
        },
        "organ_volumes_ml": {
            MAISI.name_of(label_id): [round(float(np.quantile(volumes, share)), 2) for share in QUARTILES]
            for label_id, volumes in organs
            if len(volumes)
        },
        "versions": {"maisi-aug": __version__, "monai": version("monai"), "torch": version("torch")},
    }


def _require_ours(folder: Path) -> None:
    """Raise unless a folder is new, or holds nothing but an earlier bundle of this training.

    Raises:
        BundleError: When it holds anything else.
    """
    if not folder.exists():
        return
    try:
        bundle = load_bundle(folder)
        own = {BUNDLE_FILE, LICENCE_FILE, *(named.file for named in bundle.files)}
        is_ours = bundle.spec.provenance.get("masks", {}).get("origin") == TRAINED_HERE
    except MaisiAugError:
        own, is_ours = set(), False
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in own)
    if foreign or not is_ours:
        raise BundleError(
            f"{folder}: must be a new folder or an earlier bundle of this training, found "
            f"{', '.join(foreign[:4]) or 'another bundle'}. Move it away, or choose another --out."
        )
