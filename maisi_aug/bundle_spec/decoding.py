"""Precision of the networks and decoding of an image, as requested and as done. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, JsonValue, PositiveFloat, model_validator

from maisi_aug.system.models import Option, StrictModel
from maisi_aug.volumes.grid_words import read_shape

PrecisionName = Literal["auto", "float32", "bfloat16", "float16"]
"""Floating-point types in which networks may compute."""
ComputeType = Literal["float32", "bfloat16", "float16"]
LatentShape = tuple[int, int, int]
NumSplits = Literal[1, 2, 4, 8, 16, 32, 64, 128]
NUM_SPLITS: tuple[NumSplits, ...] = get_args(NumSplits)
WHOLE: Literal["whole"] = "whole"
DecodeMode = Literal["exact", "windows"]
Keep = Literal["all", "most", "least"]
KEEPS: tuple[Keep, ...] = get_args(Keep)
"""What is kept between passes over slabs: all features; none of an upsampling except its inputs; or additionally no
features within a residual block. Anything else is computed a second time.
"""
WINDOW_MULTIPLE = 16
DEFAULT_OVERLAP = 0.4
_IMAGES = "Images"


def latent_factor(autoencoder: Mapping[str, Any]) -> int:
    """Return the downsampling factor of the VAE: image voxels per latent voxel along a side.

    Args:
        autoencoder: Definition of the VAE.
    """
    return int(2 ** (len(autoencoder["num_channels"]) - 1))


def kept_in(num_splits: int) -> Keep:
    """Return what the decoder keeps between passes when an image is computed in parts: the more parts, the less.

    Args:
        num_splits: Number of parts.
    """
    return "all" if num_splits <= 16 else "most" if num_splits == 32 else "least"


def _read_window(value: object) -> object:
    """A window as YAML and flags give it; pydantic would list a complaint per member of the union."""
    if value is None or (isinstance(value, str) and value.strip().lower() == WHOLE):
        return value and WHOLE
    with suppress(ValueError):
        sides = read_shape(value)
        sides = tuple(sides) if isinstance(sides, list | tuple) else ()
        if len(sides) == 3 and all(type(side) is int and side > 0 and side % WINDOW_MULTIPLE == 0 for side in sides):
            return sides
    raise ValueError(
        f"expected 'whole' or three sides in latent voxels that are multiples of {WINDOW_MULTIPLE}, such as 48x48x64, "
        f"found {value!r}"
    )


class DecodingConfig(StrictModel, strict=True, use_attribute_docstrings=True):
    """Settings for decoding latents to images in windows or parts, which trade memory for time."""

    mode: Annotated[DecodeMode | None, Option("--decode", panel=_IMAGES)] = None
    """`exact`: the whole image, in parts if memory is short, without seams; `windows`: overlapping windows that are
    blended, as in NVIDIA's scripts (default: exact, or windows with --decode-window).
    """
    window: Annotated[
        LatentShape | Literal["whole"] | None,
        BeforeValidator(_read_window),
        Option("--decode-window", metavar="IxJxK|whole", takes=str, panel=_IMAGES),
    ] = None
    """Latent voxels decoded at once, multiples of 16. Smaller windows need less memory but shift intensities slightly,
    since each sees only its part of the image (default with --decode windows: the bundle's).
    """
    overlap: Annotated[float, Field(ge=0, lt=1), Option("--decode-overlap", panel=_IMAGES)] = DEFAULT_OVERLAP
    """Share of a window that overlaps its neighbours, blended with Gaussian weights; a preset may set its own."""
    num_splits: Annotated[NumSplits | None, Option(panel=_IMAGES)] = None
    """Number of parts in which the image is decoded; the result is the same up to rounding (default: chosen by free
    memory).
    """
    memory_gb: Annotated[PositiveFloat | None, Option("--decode-memory", metavar="GB", panel=_IMAGES)] = None
    """Memory for decoding, in addition to weights and latent (default: what is free)."""

    @model_validator(mode="after")
    def _has_no_window_without_windows(self) -> Self:
        if self.mode == "exact" and isinstance(self.window, tuple):
            raise ValueError("window can only be used with mode windows; remove one of the two")
        if self.mode == "windows" and self.window == WHOLE:
            raise ValueError("window 'whole' can only be used with mode exact; remove one of the two")
        return self

    @property
    def takes_windows(self) -> bool:
        """Whether decoding in windows is requested, with an explicit window or the bundle's."""
        return self.mode == "windows" or isinstance(self.window, tuple)


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """Resolved decoding settings of one image.

    Attributes:
        window: Latent voxels along I, J, K that are decoded at once; None for the whole image.
        overlap: Fraction of a window that overlaps with the next one.
        num_splits: Number of parts in which the whole image, or every window, is computed.
        on_host: Whether windows are assembled, or features between parts are kept, in the host's memory instead of the
            device's.
    """

    window: LatentShape | None = None
    overlap: float = DEFAULT_OVERLAP
    num_splits: int = 1
    on_host: bool = False

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the settings for the manifest, without those that have no effect when the image is decoded at once."""
        if self.window is None:
            return {"window": WHOLE, "num_splits": self.num_splits, **({"kept_on": "host"} if self.on_host else {})}
        return {
            "window": list(self.window),
            "overlap": self.overlap,
            "num_splits": self.num_splits,
            "gathered_on": "host" if self.on_host else "device",
        }

    def __str__(self) -> str:
        part = WHOLE if self.window is None else f"windows of {'x'.join(map(str, self.window))}"
        splits = f" in {self.num_splits} parts" if self.num_splits > 1 else ""
        held = "kept" if self.window is None else "gathered"
        place = f", {held} in host memory" if self.on_host else ""
        return f"{part}{splits}{place}"
