"""A proof that fewer steps suffice, as measuring would have written it."""

from __future__ import annotations

from typing import Any

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.bundle_spec.proven_steps import hash_weights
from maisi_aug.bundle_spec.schema import StepProof


def make_proof(bundle: Bundle, **changes: Any) -> StepProof:
    """A proof of eight steps for ``synthesize`` and the bundle's own weights."""
    liver = {"name": "HU of liver", "unit": "HU", "num_maps": 40, "full": 100.0, "difference": 0.5}
    content = {
        "command": "synthesize",
        "num_inference_steps": 8,
        "solver": "multistep",
        "full_steps": bundle.default_steps,
        "weights": hash_weights(bundle),
        "num_maps": 40,
        "drawn": "40 maps, seed 0, hepatic tumor:0.3",
        "equivalences": [{**liver, "low": -1.0, "high": 2.0, "margin": 5.0}],
        "versions": {"maisi-aug": "0.3.0"},
    }
    return StepProof.model_validate({**content, **changes})
