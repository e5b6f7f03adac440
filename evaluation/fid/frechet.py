"""Distances between two sets of features: Fréchet distance, its spread over cases, and the kernel distance.

Notation of Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium", 2017,
section 4: ``m`` mean and ``C`` covariance of a set, ``FID = |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))``.

MONAI's ``FIDMetric`` takes the same trace from a general matrix root, 20 s for 1280 features on one core. Here it comes
from the eigenvalues of ``F' C2 F`` with ``C1 = F F'``, which are those of ``C1 C2``: half a second, and without the
imaginary parts that few slices give that root; a test holds one against the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Features = NDArray[Any]
Matrix = NDArray[np.float64]

BLOCK_ROWS: Final = 4096
RELATIVE_RANK: Final = 1e-10
"""Eigenvalues below this share of the largest count as round-off."""
MIN_HALVED_CASES: Final = 4
NUM_HALVINGS: Final = 2
KID_SUBSET: Final = 1000
KID_NUM_SUBSETS: Final = 50
KID_EXACT_ROWS: Final = 2000


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of a set of features, which determine the Fréchet distance.

    Attributes:
        num: Number of features.
        mean: ``(D,)`` float64.
        covariance: ``(D, D)`` float64, normalised by ``num - 1``.
    """

    num: int
    mean: Matrix
    covariance: Matrix

    @cached_property
    def factor(self) -> Matrix:
        """``F`` with ``F F' = C``: Cholesky's where the covariance has full rank, else its symmetric root."""
        if self.num > self.mean.size:
            with suppress(np.linalg.LinAlgError):
                lower: Matrix = np.linalg.cholesky(self.covariance).astype(np.float64, copy=False)
                return lower
        return _power(self.covariance, 0.5)

    def without(self, part: Moments) -> Moments:
        """Return the moments of the rest of the set, of which ``part`` describes a part."""
        num = self.num - part.num
        mean = (self.num * self.mean - part.num * part.mean) / num
        step = part.mean - mean
        scatter = (self.num - 1) * self.covariance - (part.num - 1) * part.covariance
        scatter -= part.num * num / self.num * np.outer(step, step)
        return Moments(num, mean, scatter / (num - 1))


def measure_moments(blocks: Sequence[Features]) -> Moments:
    """Compute mean and covariance of features that come in blocks, in float64.

    Args:
        blocks: Features ``(N, D)`` in blocks, such as one per case; at least two rows in all.
    """
    num = sum(len(block) for block in blocks)
    mean = np.sum([block.sum(axis=0, dtype=np.float64) for block in blocks], axis=0) / num
    covariance = np.zeros((mean.size, mean.size))
    for rows in _in_blocks(blocks):
        centred = rows - mean
        covariance += centred.T @ centred
    return Moments(num, mean, covariance / (num - 1))


def reduce_to_span(first: Sequence[Features], second: Sequence[Features]) -> tuple[list[Features], list[Features]]:
    """Express features as coordinates in the space that they span, if there are fewer of them than dimensions.

    Distances between the sets do not change, and matrices become smaller.

    Args:
        first: Features of each case, ``(N, D)``.
        second: Features of each case of the other set, ``(N, D)``.

    Returns:
        Features of the same cases as ``(N, R)`` float64, where R is the number of all features; unchanged if R would
        exceed D.
    """
    rows = np.concatenate([*first, *second]).astype(np.float64)
    if len(rows) >= rows.shape[1]:
        return list(first), list(second)
    basis, _ = np.linalg.qr(rows.T)
    return [case @ basis for case in first], [case @ basis for case in second]


def frechet_distance(first: Moments, second: Moments) -> float:
    """Return the squared Fréchet distance between two Gaussians, which is the FID of the sets that they describe.

    Args:
        first: Mean and covariance of the features of one set.
        second: The same of the other set, with the same number of features; the order does not matter.
    """
    product = np.linalg.eigvalsh(first.factor.T @ second.covariance @ first.factor)
    shared = float(np.sqrt(np.clip(product, 0.0, None)).sum())
    step = first.mean - second.mean
    return float(step @ step + np.trace(first.covariance) + np.trace(second.covariance) - 2.0 * shared)


def measure_halves(
    cases: Sequence[Features], whole: Moments, generator: np.random.Generator
) -> tuple[Moments, Moments]:
    """Return the moments of two random halves of a set of cases.

    Args:
        cases: Features of each case, ``(N, D)``; of an odd number, the first half has one more.
        whole: Moments of all of them.
        generator: Source of the random division.

    Returns:
        Moments of the first half and of the rest.
    """
    chosen = np.array_split(generator.permutation(len(cases)), 2)[0]
    half = measure_moments([cases[index] for index in chosen])
    return half, whole.without(half)


def extrapolate_distance(
    first: Sequence[Features],
    second: Sequence[Features],
    moments: tuple[Moments, Moments],
    value: float,
    generator: np.random.Generator,
) -> float | None:
    """Return the distance that a set of very many cases would have, as far as half the cases tell.

    A distance of few cases is too large by about ``b / n`` (Chong and Forsyth, "Effectively unbiased FID and Inception
    score", 2020, section 4): halves of both sets are off by twice as much, so that two distances give the limit. With
    fewer cases than features the law is only begun, and the limit is still too large, but less so than the distance.

    Args:
        first: Features of each case, ``(N, D)``.
        second: The same of the other set.
        moments: Moments of both sets.
        value: Their distance.
        generator: Draws the halves.

    Returns:
        The limit, below zero by chance where the sets are alike; None where a set has fewer than four cases.
    """
    if min(len(first), len(second)) < MIN_HALVED_CASES:
        return None
    halved = []
    for _ in range(NUM_HALVINGS):
        halves = [measure_halves(*each, generator) for each in zip((first, second), moments, strict=True)]
        halved += [frechet_distance(*parts) for parts in zip(*halves, strict=True)]
    return 2.0 * value - float(np.mean(halved))


def case_influence(cases: Sequence[Features], own: Moments, other: Moments) -> Matrix:
    """Return the influence of each case on a Fréchet distance: its first-order change if the case is counted once more.

    The derivative of the trace term by ``C1`` is the optimal transport map from one Gaussian to the other, so that the
    influence of one feature ``x`` with ``d = x - m1`` is ``2 (m1 - m2) d + d' (1 - T) d - tr((1 - T) C1)``.

    Args:
        cases: Features of each case, ``(N, D)``, of the set that ``own`` describes.
        own: Moments of all cases together.
        other: Moments of the other set.

    Returns:
        ``(number of cases,)`` influences, whose sum is zero.
    """
    factor = other.factor
    transport = factor @ _power(factor.T @ own.covariance @ factor, -0.5) @ factor.T
    slope = np.eye(own.mean.size) - transport
    step = 2.0 * (own.mean - other.mean)
    sums = []
    for case in cases:
        centred = case - own.mean
        sums.append(float((centred @ step).sum() + np.einsum("nd,nd->", centred @ slope, centred)))
    total = np.asarray(sums) / own.num
    shares = np.asarray([len(case) for case in cases]) / own.num
    balanced: Matrix = total - shares * total.sum()
    return balanced


def bootstrap_interval(
    value: float, influences: Sequence[Matrix], generator: np.random.Generator, *, num_draws: int = 2000
) -> tuple[float, float] | None:
    """Return a 95% bootstrap interval of a Fréchet distance over the choice of cases, to first order.

    It ignores small-sample bias. Cases of each set are drawn with replacement, all slices of a case together. The
    distance of a draw is the value plus the influences of the drawn cases. Recomputing it would cost an
    eigendecomposition per draw, and would answer another question, because repeated cases make every recomputed
    distance larger.

    Args:
        value: Fréchet distance.
        influences: Results of :func:`case_influence` for each set.
        generator: Generator that draws cases.
        num_draws: Number of bootstrap draws.

    Returns:
        Lower and upper end; None if a set has fewer than two cases.
    """
    if min(len(influence) for influence in influences) < 2:
        return None
    draws = np.full(num_draws, value)
    for influence in influences:
        counts = generator.multinomial(len(influence), np.full(len(influence), 1.0 / len(influence)), size=num_draws)
        draws += (counts - 1) @ influence
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def kernel_distance(first: Sequence[Features], second: Sequence[Features], generator: np.random.Generator) -> float:
    """Return KID: the unbiased squared maximum mean discrepancy with the kernel ``(x y / D + 1)^3``.

    Source: Binkowski et al., "Demystifying MMD GANs", 2018, section 4. Slices of one case are similar, so pairs within
    a set are taken across cases; with one slice per case it is the figure of that paper. It is exact for up to 2000
    features per set; above that it is the mean over 50 random subsets of 1000, as in the paper.

    Args:
        first: Features of each case, ``(N, D)``; at least two rows in all.
        second: Features of each case of the other set, ``(N, D)``.
        generator: Generator that draws the subsets.
    """
    rows = [np.concatenate(cases) for cases in (first, second)]
    owners = [np.repeat(np.arange(len(cases)), list(map(len, cases))) for cases in (first, second)]
    if max(map(len, rows)) <= KID_EXACT_ROWS:
        return _unbiased_mmd(rows, owners)
    values = []
    for _ in range(KID_NUM_SUBSETS):
        chosen = [generator.choice(len(part), min(len(part), KID_SUBSET), replace=False) for part in rows]
        values.append(
            _unbiased_mmd(
                [part[places] for part, places in zip(rows, chosen, strict=True)],
                [part[places] for part, places in zip(owners, chosen, strict=True)],
            )
        )
    return float(np.mean(values))


def _unbiased_mmd(rows: Sequence[Features], owners: Sequence[NDArray[np.int_]]) -> float:
    def kernel(a: Features, b: Features) -> NDArray[Any]:
        base: NDArray[Any] = a @ b.T / a.shape[1] + 1.0
        cube: NDArray[Any] = base * base * base  # NumPy's power takes ten times as long
        return cube

    within = 0.0
    for features, owner in zip(rows, owners, strict=True):
        is_pair = owner[:, None] != owner
        if not is_pair.any():  # a set of one case
            is_pair = ~np.eye(len(features), dtype=bool)
        within += float(kernel(features, features)[is_pair].mean(dtype=np.float64))
    return within - 2.0 * float(kernel(*rows).mean(dtype=np.float64))


def _power(symmetric: Matrix, exponent: float) -> Matrix:
    """A power of a positive semi-definite matrix; what is zero stays zero, in its inverse too."""
    values, vectors = np.linalg.eigh((symmetric + symmetric.T) / 2)
    kept = values > RELATIVE_RANK * max(float(values[-1]), 0.0)
    powers = np.zeros_like(values)
    powers[kept] = values[kept] ** exponent
    power: Matrix = (vectors * powers) @ vectors.T
    return power


def _in_blocks(blocks: Sequence[Features]) -> list[Features]:
    return [block[start : start + BLOCK_ROWS] for block in blocks for start in range(0, len(block), BLOCK_ROWS)]
