"""Requests for measurements, on the command line and in Python. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from maisi_aug.system.content import spells_number
from maisi_aug.system.models import Option, PathText, StrictModel
from maisi_aug.volumes.grid_words import ShapeField, SpacingField

_SEGMENTER, _GRID, _RUN = "Segmenter", "Grid", "Run"

_Seed = Annotated[NonNegativeInt, Option(panel=_RUN)]
_Device = Annotated[str, Option(metavar="DEVICE", panel=_RUN)]
_Workers = Annotated[PositiveInt | None, Option("--workers", panel=_RUN)]
_VoxelSide = Annotated[float, Field(ge=0.5, le=10.0), Option("--spacing", metavar="MM")]


def read_folds(value: object) -> object:
    """Parse a list of folds, such as ``0,1,2`` or ``all``.

    Values that are not text are returned unchanged.

    Raises:
        ValueError: The text is not a list of folds.
    """
    words = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(spells_number(word) or word == "all" for word in words):
        raise ValueError(f"expected numbers such as 0,1,2, or all, found '{value}'")
    return tuple(word if word == "all" else int(word) for word in words)


class FidRequest(StrictModel, use_attribute_docstrings=True):
    """Options of ``evaluate fid``, which measures FID and KID of slices."""

    extractor: Annotated[str, Option()] = "efficientnet_lite0"
    """efficientnet_lite0 (needs no download), radimagenet_resnet50 or squeezenet1_1."""
    weights: Annotated[PathText | None, Option(metavar="FILE|URL")] = None
    """Weights of the extractor; an https address also needs --sha256."""
    sha256: Annotated[str | None, Option()] = None
    """SHA-256 of the weights; for a local file at least 8 digits."""
    spacing_mm: Annotated[SpacingField | None, Option("--spacing", metavar="MM|IxJxK", takes=str, panel=_GRID)] = None
    """Resample to this voxel size in mm, such as 1 or 1x1x2."""
    resampling: Annotated[Literal["centred", "maisi"], Option(panel=_GRID)] = "centred"
    """How to resample to --spacing: about the centre, with smoothing when voxels become larger; or as in MAISI's
    script, from the first voxel and without smoothing, to compare with MAISI's figures."""
    shape: Annotated[ShapeField | None, Option(metavar="IxJxK", takes=str, panel=_GRID)] = None
    """Pad with air and crop to this shape, such as 256 or 512x512x256."""
    centre_share: Annotated[float, Option()] = 1.0
    """Central share of the slices along each axis, such as 0.4."""
    every: Annotated[int, Option()] = 1
    """Use only every n-th slice: faster, but changes the figures."""
    seed: _Seed = 0
    """Random seed of the measurement."""
    device: _Device = "auto"
    """Device to compute on: auto, cpu, cuda, cuda:N or mps."""
    cache: Annotated[Path | None, Option()] = None
    """Folder for cached features (default: next to the downloaded bundles)."""
    no_cache: Annotated[bool, Option("--no-cache")] = False
    """Do not cache features."""


class DistributionRequest(StrictModel, use_attribute_docstrings=True):
    """Options of ``evaluate distribution``, which compares distributions of radiomic features."""

    spacing_mm: _VoxelSide = 3.0
    """Voxel size in mm on which texture and shape are measured."""
    seed: _Seed = 0
    """Random seed of the measurement."""
    num_workers: _Workers = None
    """Number of processes (default: one per core, each for at least a dozen cases)."""


class EquivalenceRequest(DistributionRequest):
    """Options of ``evaluate equivalence``, which tests whether synthetic lesions and organs are like real ones."""

    margin: Annotated[float, Field(ge=0.05, le=5.0), Option()] = 0.5
    """Equivalence margin: largest irrelevant difference of means, in standard deviations of the real set."""


class HuRequest(StrictModel, use_attribute_docstrings=True):
    """Options of ``evaluate hu``, which compares HU of labels with reference ranges."""

    reference: Annotated[Path | None, Option(metavar="FOLDER")] = None
    """Real labelled cases to take the HU ranges from."""
    ranges: Annotated[Path | None, Option(metavar="FILE")] = None
    """JSON with HU ranges, such as an earlier hu_ranges.json."""
    num_workers: _Workers = None
    """Number of processes (default: one per core, each for at least a dozen cases)."""

    @model_validator(mode="after")
    def _require_one_source(self) -> Self:
        if self.reference is not None and self.ranges is not None:
            raise ValueError("--reference and --ranges cannot be used together.")
        return self


class LesionsRequest(StrictModel, use_attribute_docstrings=True):
    """Options of ``evaluate lesions``, which compares realised with requested lesions."""

    num_workers: _Workers = None
    """Number of processes (default: one per core, each for at least a dozen cases)."""


class SegmenterRequest(StrictModel, use_attribute_docstrings=True):
    """Options of ``evaluate agreement`` and ``detection-curve``, which apply an independent segmenter."""

    model: Annotated[Path | None, Option(metavar="FOLDER", panel=_SEGMENTER)] = None
    """Trained nnU-Net model. Its checkpoint is a pickle: use only models that you trust."""
    predictions: Annotated[Path | None, Option(metavar="FOLDER", panel=_SEGMENTER)] = None
    """Folder of existing label maps CASE.nii.gz with a dataset.json, instead of --model."""
    map: Annotated[tuple[str, ...], Option(metavar="LABEL=NAME", panel=_SEGMENTER)] = ()
    """Meaning of a label of the model in the vocabulary; may repeat."""
    folds: Annotated[
        tuple[int | Literal["all"], ...],
        BeforeValidator(read_folds),
        Option(metavar="N,N,...|all", takes=str, panel=_SEGMENTER),
    ] = ()
    """Folds of the model, such as 0,1 (default: all)."""
    orientation: Annotated[str, Option(panel=_SEGMENTER)] = "RAS"
    """Voxel orientation of the images that the model was trained on."""
    seed: _Seed = 0
    """Random seed of the measurement."""
    device: _Device = "auto"
    """Device to compute on: auto, cpu, cuda, cuda:N or mps."""

    @model_validator(mode="after")
    def _require_one_source(self) -> Self:
        if (self.model is None) == (self.predictions is None):
            raise ValueError("Either --model or --predictions is required, but not both.")
        return self


class MemorizationRequest(StrictModel, use_attribute_docstrings=True):
    """Options of ``evaluate memorization``, which compares synthetic with training cases."""

    train: Annotated[Path, Option(metavar="FOLDER")]
    """Cases that the generator was trained on."""
    held_out: Annotated[Path | None, Option(metavar="FOLDER")] = None
    """Real cases that it was not trained on (default: the training cases, each compared with the others)."""
    num_workers: _Workers = None
    """Number of processes (default: one per core, each for at least a dozen cases)."""


class ReconstructionRequest(StrictModel, use_attribute_docstrings=True):
    """Options of ``evaluate reconstruction``, which measures what an autoencoder preserves of CTs."""

    bundle: Annotated[PathText, Option(complete="bundles")]
    """Name or folder of the bundle whose autoencoder is measured."""
    lpips_weights: Annotated[PathText | None, Option(metavar="FILE|URL")] = None
    """Weights of SqueezeNet 1.1, to measure LPIPS as well; an https address also needs --sha256."""
    sha256: Annotated[str | None, Option()] = None
    """SHA-256 of the weights; for a local file at least 8 digits."""
    memory_gb: Annotated[PositiveFloat | None, Option("--memory", metavar="GB")] = None
    """Memory for encoding and for decoding, in addition to weights and image (default: what is free)."""
    device: _Device = "auto"
    """Device to compute on: auto, cpu, cuda, cuda:N or mps."""


class BlindPackRequest(StrictModel, use_attribute_docstrings=True):
    """Options of ``evaluate blind-pack``, which writes pictures for a reader test."""

    num_each: Annotated[int, Field(ge=1, le=499), Option("--number", "-n")] = 20
    """Number of items of each kind."""
    with_volumes: Annotated[bool, Option("--volumes")] = False
    """Also write every item as NIfTI."""
    spacing_mm: _VoxelSide = 2.0
    """Voxel size in mm to which all items are resampled."""
    seed: _Seed = 0
    """Random seed of the measurement."""
