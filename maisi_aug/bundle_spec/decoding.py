"""How an image is decoded: what a recipe may ask for, and what was done. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, JsonValue

from maisi_aug.system.models import StrictModel

LatentShape = tuple[int, int, int]
NumSplits = Literal[1, 2, 4, 8, 16]
NUM_SPLITS: tuple[NumSplits, ...] = get_args(NumSplits)
WHOLE: Literal["whole"] = "whole"
WINDOW_MULTIPLE = 16
DEFAULT_OVERLAP = 0.4


def latent_factor(autoencoder: Mapping[str, Any]) -> int:
    """How many voxels along a side make one latent voxel, by the definition of the VAE."""
    return int(2 ** (len(autoencoder["num_channels"]) - 1))


def _read_window(value: object) -> object:
    """A window as YAML and flags give it; pydantic would list a complaint per member of the union."""
    if value is None or value == WHOLE:
        return value
    sides = tuple(value) if isinstance(value, list | tuple) else ()
    if len(sides) == 3 and all(type(side) is int and side > 0 and side % WINDOW_MULTIPLE == 0 for side in sides):
        return sides
    raise ValueError(
        f"decoding.window: expected 'whole' or three sides in latent voxels that are multiples of {WINDOW_MULTIPLE}, "
        f"such as [48, 48, 64], found {value!r}"
    )


class DecodingConfig(StrictModel, strict=True):
    """How images are decoded from their latents; what takes less memory takes more time.

    Attributes:
        window: Latent voxels along I, J, K that are decoded at once, multiples of 16, or ``whole``; the bundle's when
            not given. Windows see their own part of the image alone, which moves intensities a little.
        overlap: Share of a window that neighbours have in common, blended with Gaussian weights.
        num_splits: Parts in which every convolution is computed, 1, 2, 4, 8 or 16, for the same image but for rounding;
            as many as the memory asks for when not given.
    """

    window: Annotated[LatentShape | Literal["whole"] | None, BeforeValidator(_read_window)] = None
    overlap: Annotated[float, Field(ge=0, lt=1)] = DEFAULT_OVERLAP
    num_splits: NumSplits | None = None


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
