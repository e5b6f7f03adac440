"""Solvers of second order for rectified flows: fewer evaluations of the networks for the same image.

Notation, as in MONAI: x_t = (1 - t) x_0 + t e with noise e, from t = 1 down to 0; the U-Net predicts v = x_0 - e, so
that dx = -v dt. A step from t to t - h adds h times a mean velocity. Source: Hairer, Norsett and Wanner, "Solving
Ordinary Differential Equations I", 1993, III.1 (predictor and corrector) and III.5 (variable steps).

MONAI's own loop, Euler's rule, stays in ``sampling``: it rounds times to float16, and the next one to an integer, so
that its steps add up to 1.010 at 30 steps and 1.031 at 100. The steps here add up to 1.
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
    """Takes the steps of one integration; it may remember the earlier ones."""

    def step(self, velocity: Velocity, latent: Tensor, start: float, stop: float) -> Tensor:
        """Take one step of the flow.

        Args:
            velocity: Function from latent and time to the networks' velocity, of the latent's shape.
            latent: ``(B, C, i, j, k)`` latent at time ``start``.
            start: Time of the latent, in (0, 1].
            stop: Time to reach, in [0, ``start``).

        Returns:
            ``(B, C, i, j, k)`` latent at time ``stop``.
        """
        ...


class Multistep:
    """Predict with the line through the last two velocities; correct with the mean of both ends once that is known.

    The velocity at the end of a step is that at the start of the next one, so that the correction costs no evaluation
    (Adams and Bashforth's rule as predictor, Adams and Moulton's as corrector, not evaluated again). The first step is
    predicted by Euler's rule, the last one not corrected.
    """

    def __init__(self) -> None:
        self._before: tuple[Tensor, Tensor, float] | None = None  # latent, velocity and length of the last step

    def step(self, velocity: Velocity, latent: Tensor, start: float, stop: float) -> Tensor:
        """Take one step of the flow, as :meth:`FlowSolver.step`; the networks are evaluated once."""
        now, length = velocity(latent, start), start - stop
        slope = now
        if self._before is not None:
            latent_before, before, length_before = self._before
            latent = latent_before + length_before / 2 * (before + now)
            slope = now + length / (2 * length_before) * (now - before)
        self._before = latent, now, length
        return latent + length * slope


_SOLVERS: dict[SolverName, Callable[[], FlowSolver]] = {"multistep": Multistep}


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
        velocity: Function from latent and time to the networks' velocity, of the latent's shape.
        noise: ``(B, C, i, j, k)`` Gaussian noise.
        times: From 1 down to 0, both included; one step leads from each to the next.
        solver: A solver of second order; not ``euler``.
        restore: Function of latent and time that is applied before every evaluation, for latents of which a part is
            known.
        report: Progress callback, called with (steps done, steps in all).

    Returns:
        ``(B, C, i, j, k)`` latent at time 0.
    """

    def evaluate(latent: Tensor, time: float) -> Tensor:
        return velocity(latent if restore is None else restore(latent, time), time)

    method, latent = _SOLVERS[solver](), noise
    for done, (start, stop) in enumerate(pairwise(times), start=1):
        latent = method.step(evaluate, latent, start, stop)
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
