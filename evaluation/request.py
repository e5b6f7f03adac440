"""What a measurement is asked for, on the command line and in Python. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from maisi_aug.system.content import spells_number
from maisi_aug.system.models import Option, PathText, StrictModel
from maisi_aug.volumes.grid_words import ShapeField, SpacingField

_SEGMENTER, _GRID, _RUN = "Segmenter", "Grid", "Run"

_Seed = Annotated[NonNegativeInt, Option(panel=_RUN)]
_Device = Annotated[str, Option(panel=_RUN)]
_Workers = Annotated[PositiveInt | None, Option("--workers", panel=_RUN)]
_VoxelSide = Annotated[float, Field(ge=0.5, le=10.0), Option("--spacing", metavar="MM")]


def read_folds(value: object) -> object:
    """``0,1,2`` or ``all`` as folds; all but text as it is.

    Raises:
        ValueError: The text is anything else.
    """
    words = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(spells_number(word) or word == "all" for word in words):
        raise ValueError(f"expected numbers such as 0,1,2, or all, found '{value}'")
    return tuple(word if word == "all" else int(word) for word in words)


class FidRequest(StrictModel, use_attribute_docstrings=True):
    """A Fréchet distance of slices."""

    extractor: Annotated[str, Option()] = "efficientnet_lite0"
    """efficientnet_lite0 (needs no download), radimagenet_resnet50 or squeezenet1_1."""
    weights: Annotated[PathText | None, Option(metavar="FILE|URL")] = None
    """Weights of the extractor; an https address needs --sha256."""
    sha256: Annotated[str | None, Option()] = None
    """SHA-256 of the weights; of a file, 8 digits or more."""
    spacing_mm: Annotated[SpacingField | None, Option("--spacing", metavar="MM|IxJxK", takes=str, panel=_GRID)] = None
    """Resample to these voxels in mm, such as 1 or 1x1x2."""
    resampling: Annotated[Literal["centred", "maisi"], Option(panel=_GRID)] = "centred"
    """How to resample to --spacing: about the centre, smoothed where voxels become larger; or as in MAISI's script,
    from the first voxel on and not smoothed, for figures to compare with MAISI's."""
    shape: Annotated[ShapeField | None, Option(metavar="IxJxK", takes=str, panel=_GRID)] = None
    """Fill up with air and cut to this shape, such as 256 or 512x512x256."""
    centre_share: Annotated[float, Option()] = 1.0
    """Central share of the slices along each axis, such as 0.4."""
    every: Annotated[int, Option()] = 1
    """Take only every n-th slice: faster, with other figures."""
    seed: _Seed = 0
    """Random seed of the measurement."""
    device: _Device = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    cache: Annotated[Path | None, Option()] = None
    """Folder of features, kept by content; beside the fetched bundles by default."""
    no_cache: Annotated[bool, Option("--no-cache")] = False
    """Keep no features."""


class DistributionRequest(StrictModel, use_attribute_docstrings=True):
    """Distances of the distributions of features."""

    spacing_mm: _VoxelSide = 3.0
    """Voxels on which texture and shape are measured."""
    seed: _Seed = 0
    """Random seed of the measurement."""


class EquivalenceRequest(DistributionRequest):
    """Tests of equivalence."""

    margin: Annotated[float, Field(ge=0.05, le=5.0), Option()] = 0.5
    """Difference of means that does not matter, in real standard deviations."""


class HuRequest(StrictModel, use_attribute_docstrings=True):
    """HU against ranges."""

    reference: Annotated[Path | None, Option(metavar="DIR")] = None
    """Real labelled cases to take the ranges from."""
    ranges: Annotated[Path | None, Option(metavar="FILE")] = None
    """JSON with ranges, such as an earlier hu_ranges.json."""
    num_workers: _Workers = None
    """Processes; one per core for a dozen cases each by default."""

    @model_validator(mode="after")
    def _require_one_source(self) -> Self:
        if self.reference is not None and self.ranges is not None:
            raise ValueError("--reference and --ranges: expected one of them, found both.")
        return self


class LesionsRequest(StrictModel, use_attribute_docstrings=True):
    """Lesions against what was requested."""

    num_workers: _Workers = None
    """Processes; one per core for a dozen cases each by default."""


class SegmenterRequest(StrictModel, use_attribute_docstrings=True):
    """What an independent segmenter finds."""

    model: Annotated[Path | None, Option(metavar="DIR", panel=_SEGMENTER)] = None
    """Trained nnU-Net model; its checkpoint is a pickle: trust it."""
    predictions: Annotated[Path | None, Option(metavar="DIR", panel=_SEGMENTER)] = None
    """Ready label maps CASE.nii.gz instead, with a dataset.json."""
    map: Annotated[tuple[str, ...], Option(metavar="LABEL=NAME", panel=_SEGMENTER)] = ()
    """What a label of the model is compared with; may repeat."""
    folds: Annotated[
        tuple[int | Literal["all"], ...],
        BeforeValidator(read_folds),
        Option(metavar="N,N,...|all", takes=str, panel=_SEGMENTER),
    ] = ()
    """Folds of the model, such as 0,1; all that are there."""
    orientation: Annotated[str, Option(panel=_SEGMENTER)] = "RAS"
    """Orientation of the images that the model was trained on."""
    seed: _Seed = 0
    """Random seed of the measurement."""
    device: _Device = "auto"
    """auto, cpu, cuda, cuda:N or mps."""

    @model_validator(mode="after")
    def _require_one_source(self) -> Self:
        if (self.model is None) == (self.predictions is None):
            raise ValueError("--model and --predictions: expected one of them, found both or none.")
        return self


class MemorizationRequest(StrictModel, use_attribute_docstrings=True):
    """How near training cases are."""

    train: Annotated[Path, Option(metavar="DIR")]
    """Cases that the generator was trained on."""
    held_out: Annotated[Path | None, Option(metavar="DIR")] = None
    """Real cases that it was not trained on; else training cases, left out in turn."""


class ReconstructionRequest(StrictModel, use_attribute_docstrings=True):
    """What an autoencoder leaves of CTs."""

    bundle: Annotated[PathText, Option(complete="bundles")]
    """Name or folder of the bundle whose autoencoder is tried."""
    lpips_weights: Annotated[PathText | None, Option(metavar="FILE|URL")] = None
    """Weights of SqueezeNet 1.1, to measure LPIPS too; an address needs --sha256."""
    sha256: Annotated[str | None, Option()] = None
    """SHA-256 of the weights; of a file, 8 digits or more."""
    device: _Device = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


class BlindPackRequest(StrictModel, use_attribute_docstrings=True):
    """A reader test on pictures."""

    num_each: Annotated[int, Field(ge=1, le=499), Option("--number", "-n")] = 20
    """Items of each kind."""
    with_volumes: Annotated[bool, Option("--volumes")] = False
    """Write every item as NIfTI as well."""
    spacing_mm: _VoxelSide = 2.0
    """Voxels that all items are brought to."""
    seed: _Seed = 0
    """Random seed of the measurement."""
