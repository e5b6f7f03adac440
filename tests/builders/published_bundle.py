"""Bundles with NVIDIA's published definitions and grid limits, for what needs no weights or only tiny ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from maisi_aug.bundle_spec.bundle import Bundle, load_bundle
from maisi_aug.bundle_spec.known_bundles import known_bundles
from tests.builders.random_bundle import write_random_bundle
from tests.builders.tiny_bundle import build_header


def write_published_bundle(folder: Path, name: str = "rflow-ct") -> Bundle:
    """The bundle as it is pulled, but for the weights: enough to plan a cohort."""
    folder.mkdir(parents=True)
    content = {**known_bundles()[name].header, "scale_factor": 1.0, "weights": {}}
    (folder / "bundle.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return load_bundle(folder)


def write_limited_bundle(folder: Path, **changes: Any) -> Bundle:
    """Tiny networks with random weights, and limits in the manner of rflow-ct at a grid that they make in a second."""
    spec = {"shape": [64, 64, 48], "spacing_mm": [6.4, 6.4, 6.0]}
    limits = {
        "sides": [[64, 80], [64, 80], [48, 64]],
        "spacing_mm": [[4.0, 8.0], [4.0, 8.0], [4.0, 8.0]],
        "refuses_other_spacing": True,
        "needs_square_slices": True,
        "least_extent_mm": {"head": 256, "body": 384},
        "recommended": {"chest": spec},
    }
    return write_random_bundle(folder, {**build_header(), "grid_limits": limits, "grid": spec, **changes}, seed=0)
