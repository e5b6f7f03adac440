"""Held-out phantoms: drawn from a stream of seeds of their own, so that no network has been trained on them."""

from __future__ import annotations

from typing import Final, Literal

from maisi_aug.grid import Grid
from maisi_aug.phantom import Phantom, build_phantom
from maisi_aug.seeds import derive_seed

REGIONS: Final[tuple[Literal["chest", "abdomen", "pelvis", "any"], ...]] = ("chest", "abdomen", "pelvis", "any")


def build_held_out_phantom(seed: int, index: int, grid: Grid) -> Phantom:
    """Held-out phantom ``index`` of a seed, with lesions; regions take turns.

    The name of the stream is part of the seed: whatever number a training run uses, it never draws these patients.
    """
    return build_phantom(
        seed=derive_seed("held-out phantom", seed, index), grid=grid, region=REGIONS[index % len(REGIONS)]
    )
