"""What a benchmark is asked for: arms, presets, and the configuration that its folder keeps to. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from maisi_aug.errors import BenchmarkError, did_you_mean
from maisi_aug.system.models import StrictModel, explain_problems

PLAN_NAME: Final = "benchmark.json"
REAL: Final = "real"
DUPLICATED: Final = "real-duplicated"
COPY_PASTE: Final = "copy-paste"
DEFAULT_ARMS: Final = ("real", "real+synthetic:1", "real-duplicated", "synthetic-only")
MAX_RATIO: Final = 100.0

ArmKind = Literal["real", "duplicated", "mixed", "only", "copy-paste"]
EngineName = Literal["monai", "nnunet"]
PresetName = Literal["cpu", "gpu"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to put a training set together.

    Attributes:
        name: As the user wrote it.
        kind: What its training set holds.
        source: Name of the synthetic source; empty without one.
        ratio: Added cases per real case; 0 where nothing is added.
    """

    name: str
    kind: ArmKind
    source: str = ""
    ratio: float = 0.0

    @property
    def folder_name(self) -> str:
        """The name as a folder may be called on any system."""
        return self.name.replace(":", "_")


def parse_arm(text: str, sources: Sequence[str]) -> Arm:
    """Read the name of an arm.

    Args:
        text: ``real``, ``real-duplicated``, ``copy-paste:RATIO``, ``real+SOURCE:RATIO`` or ``SOURCE-only``.
        sources: Names of the synthetic sources.

    Raises:
        BenchmarkError: The text is none of these.
    """
    name = text.strip()
    head, _, tail = name.partition(":")
    if name == REAL:
        return Arm(name, "real")
    if name == DUPLICATED:
        return Arm(name, "duplicated")
    if head == COPY_PASTE:
        return Arm(name, "copy-paste", ratio=_parse_ratio(tail, name))
    for source in sources:
        if name == f"{source}-only":
            return Arm(name, "only", source)
        if head == f"{REAL}+{source}":
            return Arm(name, "mixed", source, _parse_ratio(tail, name))
    known = [REAL, DUPLICATED, COPY_PASTE, *(form for s in sources for form in (f"real+{s}:1", f"{s}-only"))]
    raise BenchmarkError(
        f"Arm '{text}': expected one of {', '.join(known)}, found another name.{did_you_mean(name, known)} "
        "Correct --arms."
    )


def _parse_ratio(text: str, arm: str) -> float:
    try:
        ratio = float(text or "1")
    except ValueError:
        ratio = 0.0
    if not 0 < ratio <= MAX_RATIO:
        raise BenchmarkError(
            f"Arm '{arm}': expected a number of added cases per real case above 0 and at most {MAX_RATIO:g}, found "
            f"'{text}'. Write real+synthetic:0.5, for instance."
        )
    return ratio


@dataclass(frozen=True, slots=True)
class Preset:
    """Size and training of the light engine's network.

    Attributes:
        widths: Channels of the U-Net's levels.
        patch_side: Voxels of a training patch along each axis, at most.
        batch_count: Patches a step.
        num_steps: Optimiser steps of every arm.
        learning_rate: Its peak.
        max_voxels: Of a case at the planned spacing; larger ones are planned coarser.
    """

    widths: tuple[int, ...]
    patch_side: int
    batch_count: int
    num_steps: int
    learning_rate: float
    max_voxels: int


PRESETS: Final[dict[PresetName, Preset]] = {
    "cpu": Preset((8, 16, 32, 64), 48, 2, 1000, 2e-3, 1_500_000),
    "gpu": Preset((32, 64, 128, 256, 320), 112, 2, 20_000, 1e-3, 40_000_000),
}


class BenchmarkConfig(StrictModel):
    """Everything that the figures of a benchmark depend on; a folder keeps to the first one.

    Attributes:
        real: nnU-Net raw dataset, or folder of image and label pairs.
        synthetic: Cohort, nnU-Net raw dataset or folder of pairs, by the name that arms call it.
        labels: Name to numbers in the real label maps; None for the names that the dataset gives itself.
        mapping: Name of a real label to names or ids in the synthetic label maps, where the names differ.
        lesion_labels: Labels whose connected parts are counted one by one; None for those whose name says lesion.
        arms: As :func:`parse_arm` reads them; the first is what the others are held against.
        num_seeds: Trainings of every arm.
        seed: Of the split into training and test patients, and of every training.
        engine: What trains.
        preset: Size of the light engine's network.
        num_steps: Optimiser steps of every arm; None for the preset's.
        test_share: Share of patients to test on.
        num_train: Patients to train on, in place of a share.
        test_patients: Patients to test on, in place of a share.
        patient_pattern: Regular expression whose first group is the patient in a case id; empty if cases are patients.
        tolerance_mm: Of the normalised surface Dice.
        margin: Gain of Dice that would not matter.
    """

    real: str
    synthetic: dict[str, str] = Field(default={})
    labels: dict[str, tuple[int, ...]] | None = None
    mapping: dict[str, tuple[str, ...]] = Field(default={})
    lesion_labels: tuple[str, ...] | None = None
    arms: tuple[str, ...] = DEFAULT_ARMS
    num_seeds: int = Field(default=3, ge=1, le=100)
    seed: int = Field(default=0, ge=0)
    engine: EngineName = "monai"
    preset: PresetName = "cpu"
    num_steps: int | None = Field(default=None, gt=0)
    test_share: float = Field(default=0.4, gt=0, lt=1)
    num_train: int | None = Field(default=None, gt=0)
    test_patients: tuple[str, ...] = ()
    patient_pattern: str = ""
    tolerance_mm: float = Field(default=2.0, gt=0)
    margin: float = Field(default=0.01, gt=0)

    @field_validator("patient_pattern")
    @classmethod
    def _require_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise BenchmarkError(
                f"Patient pattern '{pattern}': expected a regular expression, found: {error}. Correct it."
            ) from error
        if pattern and not groups:
            raise BenchmarkError(
                f"Patient pattern '{pattern}': expected a group in brackets that is the patient, found none. "
                "Write '(.+)_scan' for instance."
            )
        return pattern

    @field_validator("test_patients")
    @classmethod
    def _list_once(cls, patients: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(patients)))

    @model_validator(mode="after")
    def _require_arms(self) -> BenchmarkConfig:
        arms = self.parsed_arms
        if len({arm.name for arm in arms}) < len(arms) or not arms:
            raise BenchmarkError(f"Arms: expected each once, found {', '.join(self.arms) or 'none'}. Correct --arms.")
        return self

    @property
    def parsed_arms(self) -> tuple[Arm, ...]:
        """The arms in the order given."""
        return tuple(parse_arm(text, tuple(self.synthetic)) for text in self.arms)

    @property
    def steps(self) -> int:
        """Optimiser steps of every arm."""
        return self.num_steps or PRESETS[self.preset].num_steps

    def patient_of(self, case_id: str) -> str:
        """The patient of a case.

        Raises:
            BenchmarkError: The pattern does not fit the case id.
        """
        if not self.patient_pattern:
            return case_id
        match = re.search(self.patient_pattern, case_id)
        if match is None or match[1] is None:
            raise BenchmarkError(
                f"Case {case_id}: expected an id that the patient pattern '{self.patient_pattern}' fits, found none. "
                "Correct the pattern."
            )
        return match[1]

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON types."""
        return self.model_dump(mode="json")


def build_benchmark_config(**fields: Any) -> BenchmarkConfig:
    """A configuration of its fields.

    Raises:
        BenchmarkError: Naming every field that does not validate.
    """
    with explain_problems(BenchmarkConfig, "Benchmark", BenchmarkError, kind="configuration", advice="Correct it."):
        return BenchmarkConfig(**fields)
