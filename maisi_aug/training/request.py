"""The request for a training stage, on the command line and in Python. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import model_validator

from maisi_aug.errors import RecipeError
from maisi_aug.system.models import Option, PathText, StrictModel

DEFAULT_RECIPE = "train-phantom-ct"


class TrainRequest(StrictModel, use_attribute_docstrings=True):
    """Request for training one stage of the image networks."""

    recipe: Annotated[PathText | None, Option(metavar="NAME|FILE", complete="training_recipes")] = None
    """Training recipe: a name or a YAML file (default without --data: train-phantom-ct)."""
    data: Annotated[Path | None, Option()] = None
    """Folder written by 'maisi-aug prepare', or NVIDIA's JSON list of embeddings, to train on instead of the recipe's
    data; a list becomes a prepared folder in OUT/prepared."""
    embedded_by: Annotated[PathText | None, Option(metavar="NAME|FOLDER", complete="bundles")] = None
    """Bundle whose autoencoder made the embeddings of such a list."""

    @property
    def recipe_name(self) -> str:
        """Name of the training recipe to use.

        Raises:
            RecipeError: No recipe is given for prepared data, while the default recipe is for phantoms.
        """
        if self.recipe is None and self.data is not None:
            raise RecipeError(
                f"--recipe: required with --data, because {DEFAULT_RECIPE} trains on phantoms. Add --recipe "
                "train-rflow-ct, train-ddpm-ct or, for two CPU cores, train-small-base."
            )
        return self.recipe or DEFAULT_RECIPE


class MaskTrainRequest(StrictModel, use_attribute_docstrings=True):
    """Request for training one stage of the mask networks."""

    recipe: Annotated[PathText, Option(complete="training_recipes", metavar="NAME|FILE")] = "train-phantom-ct-masks"
    """Training recipe: a name or a YAML file."""
    data: Annotated[Path | None, Option()] = None
    """Folder written by 'maisi-aug prepare' to train on, instead of the recipe's data."""
    mask_bank: Annotated[PathText | None, Option(metavar="FOLDER")] = None
    """Label maps to train on, as in synthesize (default: phantoms)."""
    mask_labels: Annotated[PathText | None, Option(metavar="NAME|FILE")] = None
    """Meaning of the ids in the mask bank, as in synthesize."""

    @model_validator(mode="after")
    def _require_one_source(self) -> Self:
        if self.data is not None and self.mask_bank is not None:
            raise ValueError("--data and --mask-bank cannot be used together. Leave one out.")
        if self.mask_labels is not None and self.mask_bank is None:
            raise ValueError("mask_labels can only be used with --mask-bank; it gives the meaning of that bank's ids.")
        return self


class MaskDiffusionRequest(MaskTrainRequest):
    """Request for training the last stage of the mask networks, which adds them to a bundle."""

    base: Annotated[PathText | None, Option(complete="bundles")] = None
    """Bundle of image networks to add the mask networks to."""
