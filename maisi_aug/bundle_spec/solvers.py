"""Names of what integrates a rectified flow, and the choice of steps and solver for a run. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator

SolverName = Literal["euler", "multistep"]
"""``euler``: first order, with MONAI's time steps and rounding, as NVIDIA's scripts draw; ``multistep``: second order,
a predictor and a corrector. Both evaluate the networks once a step.
"""
PLAIN_SOLVER: Final[SolverName] = "euler"
AUTO: Final = "auto"
MIN_PROOF_MAPS: Final = 40
"""A proof that fewer steps draw the same needs that many maps."""
DEFAULT_PROOF_MAPS: Final = MIN_PROOF_MAPS + 4
"""A few more than a proof needs, because a lesion may find no room in some."""


def read_steps(value: object) -> object:
    """A number of steps as it is typed or stands in a recipe, or ``auto``."""
    found = value
    if isinstance(value, str):
        text = value.strip()
        found = int(text) if text.isascii() and text.isdigit() else text.lower()
    if found is None or found == AUTO or (type(found) is int and found > 0):
        return found
    raise ValueError(f"expected a number of steps above 0 or 'auto', found {value!r:.60}")


Steps = Annotated[int | Literal["auto"], BeforeValidator(read_steps)]
"""A number of steps, or ``auto`` for the fewest that were proven for the bundle."""
DrawingCommand = Literal["synthesize", "insert"]
"""Whether images are drawn whole, or lesions into CTs: what is proven of one is not of the other."""


@dataclass(frozen=True)
class Sampling:
    """How a run integrates from noise to a latent.

    Attributes:
        num_steps: Number of steps.
        solver: Solver of a rectified flow; DDPM has its own samplers and keeps ``euler``.
        is_auto: Whether ``--steps auto`` chose both.
    """

    num_steps: int
    solver: SolverName = PLAIN_SOLVER
    is_auto: bool = False

    @property
    def requested_solver(self) -> SolverName | None:
        """The solver as requests and recipes name it; None for the default."""
        return None if self.solver == PLAIN_SOLVER else self.solver

    def to_settings(self) -> dict[str, int | str]:
        """Return the entries of a manifest; of what is as by default, the number of steps alone."""
        return {
            "num_inference_steps": self.num_steps,
            **({"solver": self.solver} if self.is_auto or self.solver != PLAIN_SOLVER else {}),
            **({"steps": AUTO} if self.is_auto else {}),
        }
