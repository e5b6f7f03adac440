"""A bundle's description of its mask networks, for runs that generate label maps. Needs no torch."""

from __future__ import annotations

import hashlib
import json

from maisi_aug.bundle_spec.bundle import SCHEDULER_STEPS, Bundle, MaskGenerationSpec
from maisi_aug.bundle_spec.known_bundles import known_bundles
from maisi_aug.bundle_spec.schema import MASK_ROLES
from maisi_aug.errors import BundleError, GridError, RecipeError
from maisi_aug.volumes.grid import Grid

FIELD_TOLERANCE = 1.02
"""Factor by which a grid may be longer than the generated map along the body; a margin of air at either end is
harmless.
"""


def require_masks(bundle: Bundle) -> MaskGenerationSpec:
    """Return the settings with which a bundle generates label maps.

    Raises:
        BundleError: The bundle has no mask networks; the message names the command that downloads some.
    """
    if bundle.spec.mask_generation is None:
        known = known_bundles()
        name = bundle.name if bundle.name in known else next(iter(known))
        raise BundleError(
            f"Bundle '{bundle.name}': mask_source 'diffusion' needs mask networks, which this bundle does not have. "
            f"Run: {known[name].pull_command} --with-masks"
        )
    return bundle.spec.mask_generation


def choose_mask_steps(bundle: Bundle, num_inference_steps: int | None) -> int:
    """Return the number of sampling steps for a label map.

    Args:
        bundle: Bundle with mask networks.
        num_inference_steps: Requested number; None for the bundle's default.

    Raises:
        BundleError: The bundle has no mask networks.
        RecipeError: More steps are requested than the scheduler was trained with.
    """
    spec = require_masks(bundle)
    limit = int(spec.scheduler.get("num_train_timesteps", SCHEDULER_STEPS))
    chosen = num_inference_steps or spec.num_inference_steps
    if chosen > limit:
        raise RecipeError(
            f"mask_steps: at most {limit} (the mask networks of bundle '{bundle.name}' were trained with that many "
            f"time steps), found {chosen}. Choose fewer with --mask-steps."
        )
    return chosen


def generated_grid(bundle: Bundle) -> Grid:
    """Return the grid of the label maps that a bundle generates.

    Raises:
        BundleError: The bundle has no mask networks.
    """
    spec = require_masks(bundle)
    return Grid.from_spacing(spec.grid.shape, spec.grid.spacing_mm)


def require_inside(bundle: Bundle, grid: Grid) -> None:
    """Raise if a grid is longer along the body (K) than the label maps that a bundle generates.

    Across the body, a wider grid is allowed, because it only shows more air.

    Args:
        bundle: Bundle with mask networks.
        grid: Grid of the images that are to be drawn.

    Raises:
        BundleError: The bundle has no mask networks.
        GridError: The message names both lengths.
    """
    field_mm, wanted_mm = generated_grid(bundle).extent_mm[2], grid.extent_mm[2]
    if wanted_mm > field_mm * FIELD_TOLERANCE:
        raise GridError(
            f"Grid for mask_source 'diffusion': the label maps of bundle '{bundle.name}' cover {field_mm:.0f} mm "
            f"from feet to head, this grid {wanted_mm:.0f} mm. Choose a shorter --shape or a smaller --spacing, or "
            "another mask source."
        )


def fingerprint_of_masks(bundle: Bundle) -> str:
    """Return a SHA-256 over a bundle's entry about its mask networks, which includes the hashes of their files.

    Raises:
        BundleError: The bundle has no mask networks.
    """
    said = {
        "mask_generation": require_masks(bundle).model_dump(mode="json"),
        "networks": {role: bundle.definition(role) for role in MASK_ROLES},
        "weights": {role: bundle.spec.weights[role].sha256 for role in MASK_ROLES},
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
