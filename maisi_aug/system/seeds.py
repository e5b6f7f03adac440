"""Seeds: every random number of a case derives from (cohort seed, what is asked, case index, attempt) and a stream."""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on all parts and on their order."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def case_seed(cohort_seed: int, asked: str, case_index: int, attempt: int) -> int:
    """Return the seed of one attempt at one case; it is the same in any order, shard, batch or engine.

    Args:
        cohort_seed: Seed of the cohort.
        asked: Text that describes the required content; cohorts with different requests show different patients.
        case_index: Position in the cohort, from 0.
        attempt: Number of the attempt, starting at 0.
    """
    return derive_seed("case", cohort_seed, asked, case_index, attempt)


def numpy_generator(seed: int, stream: str) -> np.random.Generator:
    """Return an independent NumPy generator for a named stream of a seed, such as ``mask`` or ``augment``."""
    return np.random.default_rng(derive_seed(seed, stream))
