"""Presets: shape, spacing and decode windows in one word, by the memory of the GPU or by body region. Needs no torch.

By memory they are data of the package, by region the recommended grids of a bundle's ``grid_limits``. A bundle takes
those whose grids its networks have seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from maisi_aug.bundle_spec.bundle import Bundle, list_bundles
from maisi_aug.bundle_spec.decoding import DEFAULT_OVERLAP
from maisi_aug.bundle_spec.grid_limits import GridLimits
from maisi_aug.bundle_spec.known_bundles import known_bundles
from maisi_aug.errors import RecipeError, did_you_mean
from maisi_aug.volumes.grid import Grid, Shape, Spacing, spell_grid

PRESETS_FILE = Path(__file__).parents[1] / "data" / "presets.yaml"
LIST_COMMAND = "maisi-aug bundles presets"


@dataclass(frozen=True, slots=True)
class Preset:
    """A named grid with decoding settings that fit a GPU memory or a body region.

    Attributes:
        name: Name to pass as ``--preset``.
        shape: Voxels along I, J, K.
        spacing_mm: Voxel sides along I, J, K in mm.
        decode_window: Latent voxels along I, J, K that the autoencoder decodes at once; None for the whole image.
        overlap: Fraction of a window that overlaps with the next one.
        memory_gb: GPU memory in GB that suffices.
        peak_gb: Peak memory used in GB; for presets by region, an upper bound.
        source: Source of the grid and the window.
    """

    name: str
    shape: Shape
    spacing_mm: Spacing
    decode_window: Shape | None
    overlap: float
    memory_gb: int
    peak_gb: float
    source: str

    @property
    def grid(self) -> Grid:
        """Grid with the preset's shape and spacing, centred on the world origin."""
        return Grid.from_spacing(self.shape, self.spacing_mm)


@cache
def memory_presets() -> tuple[Preset, ...]:
    """Return the presets by GPU memory, the smallest memory first."""
    document = yaml.safe_load(PRESETS_FILE.read_text(encoding="utf-8"))
    return tuple(_read(name, row, document["source"]) for name, row in document["presets"].items())


def _read(name: str, row: Mapping[str, Any], source: str) -> Preset:
    i, j, k = map(int, name.partition("-")[2].split("x"))
    window = row["decode_window"]
    return Preset(
        name=name,
        shape=(i, j, k),
        spacing_mm=tuple(row["spacing_mm"]),
        decode_window=None if window is None else tuple(window),
        overlap=row.get("overlap", DEFAULT_OVERLAP),
        memory_gb=row["memory_gb"],
        peak_gb=row["peak_gb"],
        source=source,
    )


def region_presets(limits: GridLimits) -> tuple[Preset, ...]:
    """Return a bundle's recommended grids as presets, decoded as in the smallest memory preset that covers them."""
    found = []
    for region, spec in limits.recommended.items():
        covering = (one for one in memory_presets() if all(a >= b for a, b in zip(one.shape, spec.shape, strict=True)))
        base = next(covering, None)
        if base is not None:
            found.append(replace(base, name=region, shape=spec.shape, spacing_mm=spec.spacing_mm, source=limits.source))
    return tuple(found)


def list_presets(limits: GridLimits | None) -> tuple[Preset, ...]:
    """Return the presets that suit a bundle: those by GPU memory within its limits, then those by body region.

    Args:
        limits: Grid limits of the bundle; None if it has none.
    """
    if limits is None:
        return ()
    usual = [Grid.from_spacing(spec.shape, spec.spacing_mm).extent_mm for spec in limits.recommended.values()]
    # Along each axis the largest field of view that is recommended: those by memory are for a trunk, not for a head.
    largest = tuple(map(max, zip(*usual, strict=True))) if usual else (math.inf,) * 3
    by_memory = (
        preset
        for preset in memory_presets()
        if limits.admits(preset.grid) and all(a <= b for a, b in zip(preset.grid.extent_mm, largest, strict=True))
    )
    return (*by_memory, *region_presets(limits))


def list_all_presets() -> list[tuple[Preset, tuple[str, ...]]]:
    """Return every preset of any installed or downloadable bundle, each with the names of the bundles it suits."""
    limits = {bundle.name: bundle.spec.grid_limits for bundle in list_bundles()}
    for name, known in known_bundles().items():
        if name not in limits and "grid_limits" in known.header:
            limits[name] = GridLimits.model_validate(known.header["grid_limits"])
    takers: dict[Preset, list[str]] = {}
    for name, found in limits.items():
        for preset in list_presets(found):
            takers.setdefault(preset, []).append(name)
    return [(preset, tuple(names)) for preset, names in takers.items()]


def find_preset(name: str, bundle: Bundle) -> Preset:
    """Return the preset with a given name that suits a bundle.

    Args:
        name: Name of the preset, such as those that ``maisi-aug bundles presets`` lists.
        bundle: Bundle whose grid limits the preset must respect.

    Raises:
        RecipeError: There is no such preset, or it does not suit the bundle.
    """
    own = {preset.name: preset for preset in list_presets(bundle.spec.grid_limits)}
    if name in own:
        return own[name]
    everywhere = list_all_presets()
    foreign = next((row for row in everywhere if row[0].name == name), None)
    if foreign is None:
        names = _names([*own.values(), *(preset for preset, _ in everywhere)])
        raise RecipeError(f"preset: unknown name '{name}'.{did_you_mean(name, names)} List them with '{LIST_COMMAND}'.")
    preset, bundles = foreign
    raise RecipeError(
        f"preset: the networks of bundle '{bundle.name}' are not known to work on the grid of '{name}', "
        f"{spell_grid(preset.shape, preset.spacing_mm, with_extent=False)}. Use it with --bundle "
        f"{' or '.join(bundles)}, or give --shape and --spacing instead."
    )


def _names(presets: Iterable[Preset]) -> list[str]:
    return list(dict.fromkeys(preset.name for preset in presets))
