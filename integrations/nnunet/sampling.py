"""nnU-Net's data loader with a set share of synthetic cases in every batch.

It lies outside the folder of trainers: nnU-Net forgets the modules that it imported from there, and worker processes
that do not start as a copy of their parent have to import this class by its name.
"""

from __future__ import annotations

from collections.abc import Collection
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from numpy.typing import NDArray

from maisi_aug.errors import TrainingError


class SyntheticShareLoader(nnUNetDataLoader):  # type: ignore[misc]  # nnU-Net has no types
    """nnU-Net data loader that draws real and synthetic cases separately, with a fixed share of synthetic ones.

    A batch of ``B`` contains ``floor(share * B)`` synthetic cases, and one more with the probability that makes the
    mean exact. The order within a batch is random, because nnU-Net uses the last places for patches with foreground.
    """

    def __init__(
        self,
        *arguments: Any,
        synthetic_cases: Collection[str],
        share: Synchronized[float],
        lowest_share: float,
        **settings: Any,
    ) -> None:
        """Split the cases of the training set.

        Args:
            arguments: Positional arguments of nnU-Net's loader.
            synthetic_cases: Identifiers of the synthetic cases; those outside the training set are left aside.
            share: Share of synthetic cases, 0 to 1; read for every batch, also in worker processes.
            lowest_share: Lowest value that the share will fall to.
            settings: Keyword arguments of nnU-Net's loader.

        Raises:
            TrainingError: The share needs real or synthetic cases, and the training set holds none.
        """
        super().__init__(*arguments, **settings)
        self._share = share
        identifiers = sorted(self.indices)
        self._synthetic = [case_id for case_id in identifiers if case_id in synthetic_cases]
        self._real = [case_id for case_id in identifiers if case_id not in synthetic_cases]
        for kind, cases, is_needed in (
            ("real", self._real, lowest_share < 1),
            ("synthetic", self._synthetic, share.value > 0),
        ):
            if is_needed and not cases:
                raise TrainingError(
                    f"Training set: a synthetic share of {lowest_share:.0%} to {share.value:.0%} needs {kind} cases, "
                    f"but none of the {len(identifiers)} is. Choose a trainer of another share, or another fold."
                )

    def get_indices(self) -> NDArray[np.str_]:
        """Return the ``(batch_size,)`` identifiers of the cases of one batch, drawn with replacement."""
        expected = float(self._share.value) * self.batch_size
        # NumPy's global stream, which nnU-Net seeds anew in each worker; a generator of ours would be the same in all.
        num_synthetic = int(expected) + int(np.random.uniform() < expected - int(expected))  # noqa: NPY002
        parts = ((self._real, self.batch_size - num_synthetic), (self._synthetic, num_synthetic))
        drawn = [np.random.choice(cases, count, replace=True) for cases, count in parts if count]  # noqa: NPY002
        return np.random.permutation(np.concatenate(drawn))  # noqa: NPY002
