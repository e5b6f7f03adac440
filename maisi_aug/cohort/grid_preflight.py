"""Whether a bundle's networks have seen a grid: what cannot work is refused, what may go wrong is warned of."""

from __future__ import annotations

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.bundle_spec.grid_limits import nearest_grid, spell_shortfalls
from maisi_aug.cohort.grammar import label_names
from maisi_aug.cohort.request import CohortRequest
from maisi_aug.errors import GridError, VocabularyError
from maisi_aug.vocabulary.regions import REGION_LABELS
from maisi_aug.volumes.grid import Grid, spell_grid


def check_grid(
    grid: Grid,
    bundle: Bundle,
    *,
    shows_head_alone: bool = False,
    allow_unseen: bool = False,
    remedy: str = "; or add --allow-unseen-grid, if the weights have learnt such grids",
) -> tuple[str, ...]:
    """Compare a grid with those that a bundle's networks have seen.

    Args:
        grid: Of the images to be made.
        bundle: A bundle without ``grid_limits`` takes every grid whose sides are multiples of its factor.
        shows_head_alone: Whether the images show nothing but the head, which needs less field of view.
        allow_unseen: Warn of what would be refused, for weights that have learnt more than their bundle says.
        remedy: What else can be done than to use the nearest grid; empty for commands that take no unseen grid.

    Returns:
        What to warn of, a sentence with the nearest grid that is good; empty where there is nothing to warn of.

    Raises:
        GridError: When a side is no multiple of the bundle's factor, or the networks cannot work with the grid.
    """
    limits = bundle.spec.grid_limits
    if limits is None:
        grid.require_multiple_of(bundle.grid_factor, subject=f"Shape for bundle '{bundle.name}'")
        return ()
    nearest = nearest_grid(grid, limits, shows_head_alone=shows_head_alone)
    if any(side % bundle.grid_factor for side in grid.shape):
        raise GridError(
            f"Shape for bundle '{bundle.name}': expected sides that are multiples of {bundle.grid_factor}, found "
            f"{spell_grid(grid.shape, grid.spacing_mm)}. Use {_spell_flags(nearest)}."
        )
    lacking = spell_shortfalls(grid, limits, f"Grid for bundle '{bundle.name}'", shows_head_alone=shows_head_alone)
    if lacking is None:
        return ()
    found, is_refused = lacking
    if is_refused and not allow_unseen:
        raise GridError(f"{found}. Use {_spell_flags(nearest)}{remedy}.")
    return (f"{found}. The networks have not seen such grids, and images may be bad: try {_spell_flags(nearest)}.",)


def shows_head_alone(request: CohortRequest, bundle: Bundle) -> bool:
    """Whether a cohort is about the head and nothing else, by its body region, or else by the labels it asks for."""
    if request.body_region is not None:
        return set(request.body_region) == {"head"}
    return all(_is_in_head(name, bundle) for name in label_names(request.labels))


def _is_in_head(name: str, bundle: Bundle) -> bool:
    try:
        return bundle.vocabulary.id_of(name) in REGION_LABELS["head"]
    except VocabularyError:  # reported when the requests are read
        return False


def _spell_flags(grid: Grid) -> str:
    """A grid as flags of the command line, and its field of view."""
    shape, spacing = ("x".join(f"{part:g}" for part in parts) for parts in (grid.shape, grid.spacing_mm))
    extent = "x".join(f"{side:.0f}" for side in grid.extent_mm)
    return f"--shape {shape} --spacing {spacing} ({extent} mm)"
