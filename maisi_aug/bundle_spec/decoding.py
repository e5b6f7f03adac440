"""What networks compute in, and how an image is decoded: what a recipe may ask for, and what was done. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, JsonValue

from maisi_aug.system.models import Option, StrictModel
from maisi_aug.volumes.grid_words import read_shape

PrecisionName = Literal["auto", "float32", "bfloat16", "float16"]
"""What networks may be asked to compute in."""
ComputeType = Literal["float32", "bfloat16", "float16"]
LatentShape = tuple[int, int, int]
NumSplits = Literal[1, 2, 4, 8, 16]
NUM_SPLITS: tuple[NumSplits, ...] = get_args(NumSplits)
WHOLE: Literal["whole"] = "whole"
WINDOW_MULTIPLE = 16
DEFAULT_OVERLAP = 0.4
_IMAGES = "Images"


def latent_factor(autoencoder: Mapping[str, Any]) -> int:
    """How many voxels along a side make one latent voxel, by the definition of the VAE."""
    return int(2 ** (len(autoencoder["num_channels"]) - 1))


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
    """How images are decoded from their latents; what takes less memory takes more time."""

    window: Annotated[
        LatentShape | Literal["whole"] | None,
        BeforeValidator(_read_window),
        Option("--decode-window", metavar="IxJxK|whole", takes=str, panel=_IMAGES),
    ] = None
    """Latent voxels decoded at once, multiples of 16; smaller windows take less memory and, seeing their own part of
    the image alone, move intensities a little (default: the bundle's)."""
    overlap: Annotated[float, Field(ge=0, lt=1), Option("--decode-overlap", panel=_IMAGES)] = DEFAULT_OVERLAP
    """Share of a window that neighbours share, blended with Gaussian weights; a preset may have its own."""
    num_splits: Annotated[NumSplits | None, Option(panel=_IMAGES)] = None
    """Parts in which the decoder's convolutions are computed, for the same image but for rounding (default: what the
    memory asks for)."""


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """How one image is decoded, nothing left open.

    Attributes:
        window: Latent voxels decoded at once; None for the whole.
        overlap: Share of a window that neighbours have in common.
        num_splits: Parts in which every convolution is computed.
        on_host: Whether windows are gathered in the host's memory instead of the device's.
    """

    window: LatentShape | None = None
    overlap: float = DEFAULT_OVERLAP
    num_splits: int = 1
    on_host: bool = False

    def to_dict(self) -> dict[str, JsonValue]:
        """For the manifest; without what plays no part where the whole is decoded at once."""
        if self.window is None:
            return {"window": WHOLE, "num_splits": self.num_splits}
        return {
            "window": list(self.window),
            "overlap": self.overlap,
            "num_splits": self.num_splits,
            "gathered_on": "host" if self.on_host else "device",
        }

    def __str__(self) -> str:
        part = WHOLE if self.window is None else f"windows of {'x'.join(map(str, self.window))}"
        splits = f", convolutions in {self.num_splits} parts" if self.num_splits > 1 else ""
        place = ", gathered in host memory" if self.on_host and self.window is not None else ""
        return f"{part}{splits}{place}"
