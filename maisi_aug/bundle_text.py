"""``bundle.yaml`` as text, with and without what it says of mask networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

MASK_ROLES = ("mask_autoencoder", "mask_diffusion_unet")
"""Roles of the networks that generate label maps; a bundle has both or none."""
MASK_SECTION = "mask_generation"
MASK_PROVENANCE = "masks"


def dump_bundle(content: Mapping[str, Any]) -> str:
    """The text of a ``bundle.yaml``."""
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=100)


def without_masks(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a ``bundle.yaml`` said before mask networks were added."""

    def drop(section: Mapping[str, Any], *keys: str) -> dict[str, Any]:
        return {key: value for key, value in section.items() if key not in keys}

    image = drop(content, MASK_SECTION)
    image["networks"], image["weights"] = (drop(content[section], *MASK_ROLES) for section in ("networks", "weights"))
    if "provenance" in image:
        image["provenance"] = drop(image["provenance"], MASK_PROVENANCE)
        if not image["provenance"]:
            del image["provenance"]
    return image
