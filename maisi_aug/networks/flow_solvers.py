"""Solvers of second order for rectified flows: fewer evaluations of the networks for the same image.

Notation, as in MONAI: x_t = (1 - t) x_0 + t e with noise e, from t = 1 down to 0; v = x_0 - e is what the U-Net predicts,
so that dx = -v dt. A step of length h from t to t - h adds h times a mean velocity, and the solvers differ in how they
estimate that. Source: Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", 1993, II.1 (midpoint) and
III.5 (Adams methods of variable step size).

MONAI's own loop, Euler's rule, stays in ``sampling``: it rounds its time steps to float16 and the next one to an integer,
so that its steps add up to 1.010 at 30 steps and 1.031 at 100. The steps here add up to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

from monai.networks.schedulers.rectified_flow import RFlowScheduler, timestep_transform
from torch import Tensor

from maisi_aug.bundle_spec.solvers import SolverName
from maisi_aug.system.progress import Report

Velocity = Callable[[Tensor, float], Tensor]
"""v of x_t ``(B, C, i, j, k)`` at t in [0, 1]."""
Restore = Callable[[Tensor, float], Tensor]
"""Put the known part of x_t back at t."""


class FlowSolver(Protocol):
    """Estimates the mean velocity along a step; new for every integration, because it may remember earlier steps."""

    def slope(self, velocity: Velocity, latent: Tensor, start: float, stop: float) -> Tensor:
        """Return the mean velocity ``(B, C, i, j, k)`` from time ``start`` down to ``stop``."""
        ...


class Midpoint:
    """The velocity in the middle of the step, where half a step of Euler's leads."""

    def slope(self, velocity: Velocity, latent: Tensor, start: float, stop: float) -> Tensor:
        """Evaluate the networks twice."""
        middle = (start + stop) / 2
        return velocity(latent + (start - middle) * velocity(latent, start), middle)


class AdamsBashforth:
    """The line through this velocity and the one before, taken in the middle of the step; the first step is Euler's."""

    def __init__(self) -> None:
        self._before: tuple[Tensor, float] | None = None

    def slope(self, velocity: Velocity, latent: Tensor, start: float, stop: float) -> Tensor:
        """Evaluate the networks once."""
        now, length = velocity(latent, start), start - stop
        slope = now
        if self._before is not None:
            before, length_before = self._before
            slope = now + length / (2 * length_before) * (now - before)
        self._before = now, length
        return slope


_SOLVERS: dict[SolverName, Callable[[], FlowSolver]] = {"midpoint": Midpoint, "adams-bashforth": AdamsBashforth}


def integrate_flow(
    velocity: Velocity,
    noise: Tensor,
    times: Sequence[float],
    *,
    solver: SolverName,
    restore: Restore | None = None,
    report: Report | None = None,
) -> Tensor:
    """Integrate a rectified flow from noise to a latent.

    Args:
        velocity: Predicts v.
        noise: ``(B, C, i, j, k)``, x_1.
        times: From 1 down to 0, both included.
        solver: A solver of second order; not ``euler``.
        restore: Applied before every evaluation, for latents of which a part is known.
        report: Called with (steps done, steps in all).
    """

    def evaluate(latent: Tensor, time: float) -> Tensor:
        return velocity(latent if restore is None else restore(latent, time), time)

    method, latent = _SOLVERS[solver](), noise
    for done, (start, stop) in enumerate(pairwise(times), start=1):
        latent = latent + (start - stop) * method.slope(evaluate, latent, start, stop)
        if report is not None:
            report(done, len(times) - 1)
    return latent


def spread_times(scheduler: RFlowScheduler, num_steps: int, num_latent_voxels: int) -> list[float]:
    """Return times from 1 down to 0: evenly spread, and moved towards the noise by the scheduler's own transform.

    Args:
        scheduler: The scheduler that the networks were trained with.
        num_steps: Number of steps.
        num_latent_voxels: Voxels of the latent, by which the transform moves times.
    """
    times = [1.0 - done / num_steps for done in range(num_steps)]
    if scheduler.use_timestep_transform:
        num_training = scheduler.num_train_timesteps
        times = [
            timestep_transform(
                time * num_training,
                input_img_size_numel=num_latent_voxels,
                base_img_size_numel=scheduler.base_img_size_numel,
                num_train_timesteps=num_training,
                spatial_dim=scheduler.spatial_dim,
            )
            / num_training
            for time in times
        ]
    return [*times, 0.0]
