"""Settings in the name of a trainer: the share of synthetic cases, whether it fades, and the length of training.

nnU-Net chooses a trainer by the name of a class and names the folder of results after it, so every setting is part of
the name: ``nnUNetTrainerSynthetic50Fade_250epochs`` draws half of all cases from the synthetic ones at first and none
at last, over 250 epochs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maisi_aug.errors import TrainingError
from maisi_aug.integrations.nnunet.folders import MARK_KEY

TRAINER_PREFIX = "nnUNetTrainerSynthetic"
TRAINER_FORM = f"{TRAINER_PREFIX}PERCENT[Fade][CPU][_Nepochs][_Niterations]"
TRAINER_VARIABLE = "nnUNet_extTrainer"
# With a fade, the last fifth of training sees real cases only.
FADED_AT = 0.8
CPU_EPOCHS = 50
CPU_ITERATIONS = 50

_PATTERN = re.compile(
    TRAINER_PREFIX + r"(?P<percent>\d{1,3})(?P<fade>Fade)?(?P<cpu>CPU)?"
    r"(?:_(?P<epochs>[1-9]\d*)epochs)?(?:_(?P<iterations>[1-9]\d*)iterations)?"
)


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """Settings that the name of a maisi-aug nnU-Net trainer stands for.

    Attributes:
        share: Fraction of synthetic cases among all drawn cases, 0 to 1; with a fade, that of the first epoch.
        fades: Whether the share falls linearly to 0 at four fifths of the epochs.
        is_for_cpu: Whether the network runs in bfloat16 on a CPU, with a short training unless the name says otherwise.
        num_epochs: Number of epochs; None for nnU-Net's 1000.
        num_iterations: Training iterations per epoch; None for nnU-Net's 250.
    """

    share: float
    fades: bool = False
    is_for_cpu: bool = False
    num_epochs: int | None = None
    num_iterations: int | None = None

    @property
    def lowest_share(self) -> float:
        """Share of synthetic cases at the end of training."""
        return 0.0 if self.fades else self.share

    def share_at(self, epoch: int, num_epochs: int) -> float:
        """Return the share of synthetic cases among the cases that are drawn in an epoch.

        Args:
            epoch: Number of the epoch, from 0.
            num_epochs: Number of epochs of the training.

        Returns:
            Value in [0, 1]; if the share fades, it falls linearly to 0.
        """
        if not self.fades:
            return self.share
        return self.share * max(0.0, 1.0 - epoch / max(1.0, FADED_AT * num_epochs))


def read_trainer_name(name: str) -> TrainerSettings | None:
    """Parse the name of a trainer; None for a name that is not one of maisi-aug's trainers.

    Raises:
        TrainingError: The name begins like one of maisi-aug's trainers, but is invalid.
    """
    if not name.startswith(TRAINER_PREFIX):
        return None
    found = _PATTERN.fullmatch(name)
    if found is None or int(found["percent"]) > 100:
        raise TrainingError(
            f"Trainer '{name}': must be {TRAINER_FORM} with a percentage of 0 to 100. Write for instance "
            f"{TRAINER_PREFIX}50_250epochs."
        )
    is_for_cpu = found["cpu"] is not None
    return TrainerSettings(
        share=int(found["percent"]) / 100,
        fades=found["fade"] is not None,
        is_for_cpu=is_for_cpu,
        num_epochs=int(found["epochs"]) if found["epochs"] else (CPU_EPOCHS if is_for_cpu else None),
        num_iterations=int(found["iterations"]) if found["iterations"] else (CPU_ITERATIONS if is_for_cpu else None),
    )


def read_synthetic_cases(description: Mapping[str, Any], subject: str) -> frozenset[str]:
    """Return the identifiers of the synthetic cases that a ``dataset.json`` names.

    Args:
        description: Content of the ``dataset.json``.
        subject: Name of the dataset in messages.

    Raises:
        TrainingError: There are none.
    """
    mark = description.get(MARK_KEY)
    if not isinstance(mark, dict) or not mark.get("synthetic_cases"):
        raise TrainingError(
            f"{subject}: its dataset.json names no synthetic cases. Make the dataset with maisi-aug export nnunet "
            "COHORT --like."
        )
    return frozenset(map(str, mark["synthetic_cases"]))


def trainer_folder() -> Path:
    """Return the folder of maisi-aug's trainers, the value of the environment variable ``nnUNet_extTrainer``."""
    return Path(__file__).with_name("trainers")
