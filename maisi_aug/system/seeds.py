"""Seeds: every random number of a case derives from (cohort seed, what is asked, case index, attempt) and a stream."""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on all parts and on their order."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def case_seed(cohort_seed: int, asked: str, case_index: int, attempt: int) -> int:
    """Return the seed of one attempt at one case; it depends on nothing but the arguments.

    So a case is the same in whatever order, shard, batch, process or machine it is made.

    Args:
        cohort_seed: Seed of the cohort, as the user gave it.
        asked: Text of what the case must contain, such as its label request; another text gives another patient.
        case_index: Position of the case in the cohort, from 0.
        attempt: Number of the attempt at this case, from 0.

    Returns:
        Non-negative integer below 2**63, for :func:`numpy_generator` and torch generators.
    """
    return derive_seed("case", cohort_seed, asked, case_index, attempt)


def numpy_generator(seed: int, stream: str) -> np.random.Generator:
    """Return an independent NumPy generator for a named stream of a seed.

    Args:
        seed: Seed of a case, see :func:`case_seed`.
        stream: Name of what is drawn, such as ``mask`` or ``augment``; other names give independent numbers.
    """
    return np.random.default_rng(derive_seed(seed, stream))
