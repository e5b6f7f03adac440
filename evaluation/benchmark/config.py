"""The request for a benchmark: arms, presets, and the configuration that its folder keeps to. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, cast

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from maisi_aug.errors import BenchmarkError, did_you_mean
from maisi_aug.system.content import spells_number
from maisi_aug.system.models import (
    Option,
    PathText,
    StrictModel,
    explain_problems,
    split_rule,
    texts_of,
    warn_of_spelling,
)

PLAN_NAME: Final = "benchmark.json"
PREPARED_NAME: Final = "prepared"
"""Cases on the network's grid, shared by all arms."""
REAL: Final = "real"
DUPLICATED: Final = "real-duplicated"
COPY_PASTE: Final = "copy-paste"
WARPED: Final = "warped"
MADE_KINDS: Final = MappingProxyType({COPY_PASTE: "paste", WARPED: "warp"})
"""Kinds of arms whose added cases are made of real training cases; the kind is their source, this begins their ids."""
DEFAULT_ARMS: Final = ("real", "real+synthetic:1", "real-duplicated", "synthetic-only")
MAX_RATIO: Final = 100.0
DEFAULT_DRAWS: Final = 5
EVERY: Final = 1_000_000
"""The count that means all real cases."""

ArmKind = Literal["real", "duplicated", "mixed", "only", "copy-paste", "warped"]
EngineName = Literal["monai", "nnunet"]
PresetName = Literal["cpu", "gpu"]
Augmentation = Literal["light", "strong"]
_DATA, _TRAINING = "Cases and labels", "Training"


@dataclass(frozen=True, slots=True)
class Arm:
    """Arm of a benchmark: one way to compose a training set.

    Attributes:
        name: Name as the user wrote it.
        kind: Kind of its training set.
        source: Name of the synthetic source; empty without one.
        ratio: Added cases per real case; 0 if none are added.
        count: Number of real patients that every training draws anew; 0 for an arm with all real training cases.
    """

    name: str
    kind: ArmKind
    source: str = ""
    ratio: float = 0.0
    count: int = 0

    @property
    def folder_name(self) -> str:
        """Name of the arm as a folder name that is valid on any system."""
        return self.name.replace(":", "_")


def parse_arm(text: str, sources: Sequence[str]) -> Arm:
    """Parse the name of an arm.

    Args:
        text: ``real``, ``real-duplicated``, ``copy-paste:RATIO``, ``warped:RATIO``, ``real+SOURCE:RATIO`` or
            ``SOURCE-only``; ``real@N`` and ``real@N+SOURCE:RATIO`` draw N real patients anew for every training,
            ``real@all`` takes all.
        sources: Names of the synthetic sources.

    Raises:
        BenchmarkError: The text is not the name of an arm.
    """
    name = text.strip()
    head, _, tail = name.partition(":")
    drawn = re.fullmatch(rf"{REAL}@(\d+|all)(.*)", head)
    if drawn is not None and drawn[1] not in ("0", ""):
        count = EVERY if drawn[1] == "all" else int(drawn[1])
        if not drawn[2] and not tail:
            return Arm(name, "real", count=count)
        for source in sources:
            if drawn[2] == f"+{source}":
                return Arm(name, "mixed", source, _parse_ratio(tail, name), count)
    if name == REAL:
        return Arm(name, "real")
    if name == DUPLICATED:
        return Arm(name, "duplicated")
    if head in MADE_KINDS:
        return Arm(name, cast(ArmKind, head), ratio=_parse_ratio(tail, name))
    for source in sources:
        if name == f"{source}-only":
            return Arm(name, "only", source)
        if head == f"{REAL}+{source}":
            return Arm(name, "mixed", source, _parse_ratio(tail, name))
    known = [REAL, DUPLICATED, *MADE_KINDS, *(form for s in sources for form in (f"real+{s}:1", f"{s}-only"))]
    raise BenchmarkError(
        f"Arm '{text}': unknown arm; expected one of {', '.join(known)}.{did_you_mean(name, known)} Correct --arms."
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
    """Size and training settings of the light engine's network.

    Attributes:
        widths: Channels of each level of the U-Net.
        patch_side: Largest number of voxels of a training patch along each axis.
        batch_count: Number of patches per step.
        num_steps: Number of optimiser steps of every arm.
        learning_rate: Peak of the learning rate.
        max_voxels: Largest number of voxels of a case at the planned spacing, which is coarser for larger cases.
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


class BenchmarkConfig(StrictModel, use_attribute_docstrings=True):
    """Everything that determines the figures of a benchmark; fixed for a folder once the benchmark has begun."""

    real: Annotated[PathText, Option(takes=Path, complete="datasets", panel=_DATA, everyday=True)]
    """Real cases: raw dataset of nnU-Net, prepared folder, or pairs."""
    synthetic: Annotated[
        dict[str, PathText],
        Option(
            metavar="[NAME=]FOLDER",
            takes=list[str],
            panel=_DATA,
            everyday=True,
            in_python="Synthetic cases: a cohort, an nnU-Net raw dataset or a folder of pairs; several as a dict, name "
            "of the source in the arms -> folder.",
            python_type="str | Path | dict[str, str | Path]",
        ),
    ] = Field(default={})
    """Synthetic cases: cohort, nnU-Net raw dataset or folder of pairs; with several, give each a name for its arms."""
    labels: Annotated[
        dict[str, tuple[int, ...]] | None,
        Option(
            "--label",
            metavar="NAME",
            takes=list[str],
            panel=_DATA,
            everyday=True,
            python_type="str | Sequence[str]",
        ),
    ] = None
    """Label to learn and evaluate; may repeat (default: all)."""
    mapping: Annotated[
        dict[str, tuple[str, ...]],
        Option(
            "--map",
            metavar="LABEL=NAME",
            takes=list[str],
            panel=_DATA,
            everyday=True,
            in_python="Label of the real cases -> its name or id in the synthetic maps, or several of them. A label "
            "without a name is written as its id; '+' joins the ids of a label that has several.",
            python_type="dict[str, str | Sequence[str]]",
        ),
    ] = Field(default={})
    """Label of the real cases, and its names or ids in the synthetic maps, joined by '+'. If the real cases do not name
    their labels, LABEL is one or more ids joined by '+'.
    """
    lesion_labels: Annotated[tuple[str, ...] | None, Option("--lesion-label", metavar="NAME", panel=_DATA)] = None
    """Label whose lesions are counted one by one; may repeat (default: labels named as lesions)."""
    patient_pattern: Annotated[str, Option(panel=_DATA)] = ""
    """Regular expression whose first group is the patient in a case's name (default: every case is its own patient)."""
    test_share: Annotated[float, Field(gt=0, lt=1), Option(panel=_DATA)] = 0.4
    """Share of patients to test on."""
    num_train: Annotated[PositiveInt | None, Option(panel=_DATA)] = None
    """Number of patients to train on, instead of a share."""
    test_patients: Annotated[
        tuple[str, ...],
        Option(
            "--test-list",
            takes=Path,
            panel=_DATA,
            everyday=True,
            in_python="Patients to test on, which the cohort's networks have not seen: a text file with one per line, "
            "or a sequence of names (default: drawn by ``test_share``).",
        ),
    ] = ()
    """Text file with one test patient per line: patients that the cohort's networks have not seen."""
    arms: Annotated[
        tuple[str, ...],
        Option(
            metavar="ARM,ARM,...",
            takes=str,
            panel=_TRAINING,
            everyday=True,
            in_python="Arms to compare, as a sequence or separated by commas: real, real+synthetic:RATIO, "
            "real-duplicated, synthetic-only, copy-paste:RATIO, warped:RATIO. All others are compared with the first.",
        ),
    ] = DEFAULT_ARMS
    """Comma-separated: real, real+synthetic:RATIO, real-duplicated, synthetic-only, copy-paste:RATIO, warped:RATIO.
    All others are compared with the first.
    """
    real_counts: Annotated[
        tuple[Annotated[int, Field(ge=1, le=EVERY)], ...] | None,
        Option(
            metavar="N,N,...,all",
            takes=str,
            panel=_TRAINING,
            in_python="Numbers of real patients to train on, such as (3, 10, 30, 'all'), to measure how many real "
            "cases the cohort is worth. Replaces ``arms``; see ``ratios`` and ``draws``.",
            python_type="Sequence[int | Literal['all']]",
        ),
    ] = None
    """Numbers of real patients to train on, such as 3,10,30,all, to measure how many real cases the cohort is worth.
    Replaces --arms; see --ratios and --draws.
    """
    ratios: Annotated[
        tuple[Annotated[float, Field(ge=0, le=MAX_RATIO)], ...] | None,
        Option(metavar="RATIO,RATIO,...", takes=str, panel=_TRAINING),
    ] = None
    """With --real-counts: synthetic cases per real case (default: 0,1); 0, real cases alone, is always included."""
    draws: Annotated[int | None, Field(ge=1, le=100), Option(panel=_TRAINING)] = None
    """With --real-counts: trainings of every arm, each with newly drawn real patients and synthetic cases (default: 5).
    """
    num_seeds: Annotated[int, Field(ge=1, le=100), Option("--seeds", panel=_TRAINING, everyday=True)] = 3
    """Number of trainings of every arm."""
    engine: Annotated[EngineName, Option(panel=_TRAINING, everyday=True)] = "monai"
    """Training framework."""
    preset: Annotated[PresetName, Option(panel=_TRAINING, everyday=True)] = "cpu"
    """Network size for the engine monai."""
    augmentation: Annotated[Augmentation, Option(panel=_TRAINING)] = "light"
    """Augmentation in all arms, for the engine monai: light varies HU, blur and noise; strong also turns and zooms, as
    nnU-Net does.
    """
    num_steps: Annotated[PositiveInt | None, Option("--steps", panel=_TRAINING)] = None
    """Optimiser steps of every arm (default: the preset's)."""
    seed: Annotated[NonNegativeInt, Option(panel=_TRAINING)] = 0
    """Random seed of the split and of all trainings."""
    tolerance_mm: Annotated[float, Field(gt=0), Option("--tolerance", metavar="MM", panel=_TRAINING)] = 2.0
    """Tolerance in mm of the normalised surface Dice (NSD)."""
    margin: Annotated[float, Field(gt=0), Option(panel=_TRAINING)] = 0.01
    """Dice gain that is too small to matter."""

    @model_validator(mode="before")
    @classmethod
    def _read_words(cls, values: Any) -> Any:
        """Labels and rules as they are typed say together what the labels are; arms need sources to name."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        words, rules = values.get("labels"), values.get("mapping")
        if isinstance(words, list | tuple) or isinstance(rules, list | tuple):
            labels, values["mapping"] = parse_labels(texts_of(words or [], "tumor"), texts_of(rules or [], "2=tumor"))
            values["labels"] = labels or None
        if values.get("real_counts") is not None:
            return _plan_counts(values)
        alone = next((name for name in ("ratios", "draws") if values.get(name) is not None), None)
        if alone is not None:
            raise ValueError(f"--{alone} can only be used with --real-counts")
        if not values.get("synthetic"):
            values.setdefault("arms", (REAL, DUPLICATED))
        return values

    @field_validator("synthetic", mode="before")
    @classmethod
    def _name_sources(cls, value: object) -> object:
        return _name_sources(value)

    @field_validator("arms", mode="before")
    @classmethod
    def _split_arms(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("test_patients", mode="before")
    @classmethod
    def _read_list(cls, value: object) -> object:
        if not isinstance(value, str | Path):
            return value
        try:
            lines = tuple(filter(None, map(str.strip, Path(value).read_text(encoding="utf-8-sig").splitlines())))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read the text file: {error}") from None
        if not lines:
            raise ValueError(f"{value} lists no patient; write one per line")
        return lines

    @field_validator("patient_pattern")
    @classmethod
    def _require_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"expected a regular expression, found '{pattern}': {error}") from None
        if pattern and not groups:
            raise ValueError(f"'{pattern}' has no group in brackets for the patient; write '(.+)_scan' for instance")
        return pattern

    @field_validator("test_patients")
    @classmethod
    def _list_once(cls, patients: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(patients)))

    @model_validator(mode="after")
    def _require_own_training(self) -> BenchmarkConfig:
        if self.engine == "nnunet" and self.augmentation != "light":
            raise ValueError("--augmentation can only be used with --engine monai, because nnU-Net has its own")
        return self

    @model_validator(mode="after")
    def _require_arms(self) -> BenchmarkConfig:
        arms = self.parsed_arms
        if len({arm.name for arm in arms}) < len(arms) or not arms:
            raise BenchmarkError(
                f"Arms: each must be given exactly once, found {', '.join(self.arms) or 'none'}. Correct --arms."
            )
        return self

    @property
    def parsed_arms(self) -> tuple[Arm, ...]:
        """Arms of the benchmark in the requested order, parsed."""
        return tuple(parse_arm(text, tuple(self.synthetic)) for text in self.arms)

    @property
    def steps(self) -> int:
        """Number of optimiser steps of every arm."""
        return self.num_steps or PRESETS[self.preset].num_steps

    def patient_of(self, case_id: str) -> str:
        """Return the patient of a case.

        Raises:
            BenchmarkError: The pattern does not fit the case id.
        """
        if not self.patient_pattern:
            return case_id
        match = re.search(self.patient_pattern, case_id)
        if match is None or match[1] is None:
            raise BenchmarkError(
                f"Case {case_id}: the patient pattern '{self.patient_pattern}' does not match this id. Correct the "
                "pattern."
            )
        return match[1]

    def with_paths_found(self) -> BenchmarkConfig:
        """Return the configuration with absolute paths instead of dataset numbers or names."""
        from maisi_aug.banks.raw_datasets import find_dataset

        sources = {name: str(find_dataset(path).resolve()) for name, path in self.synthetic.items()}
        return self.model_copy(update={"real": str(find_dataset(self.real).resolve()), "synthetic": sources})

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as a JSON-able dict."""
        return self.model_dump(mode="json")


def _name_sources(value: object) -> object:
    """``NAME=FOLDER`` words as names and folders; anything else as it is."""
    if not isinstance(value, list | tuple):
        return value
    sources: dict[str, str] = {}
    for word in texts_of(value, "NAME=FOLDER"):
        name, equals, path = word.partition("=")
        if not equals or not name.replace("-", "").replace("_", "").isalnum():
            name, path = "synthetic", word
        if name in sources:
            raise ValueError(f"the name '{name}' is given twice; give each its own, as NAME=FOLDER")
        sources[name] = path
    return sources


def _plan_counts(values: dict[str, Any]) -> dict[str, Any]:
    """The arms of every number of real cases and every ratio, and as many trainings of each as there are draws."""
    values["real_counts"] = counts = _split_numbers(values["real_counts"], "--real-counts", {"all": EVERY})
    values["ratios"] = ratios = tuple(sorted({0.0, *_split_numbers(values.get("ratios") or (0.0, 1.0), "--ratios")}))
    values["synthetic"] = sources = _name_sources(values.get("synthetic") or {})
    values["draws"] = values.get("draws") or DEFAULT_DRAWS
    if len(set(counts)) < len(counts):
        raise ValueError("--real-counts: each number may be given only once")
    if not isinstance(sources, dict) or not sources or len(ratios) < 2:
        raise ValueError("--real-counts: needs --synthetic cases and a ratio above 0 to compare with real ones")
    arms = []
    for count in sorted(counts):
        real = f"{REAL}@{'all' if count == EVERY else f'{count:g}'}"
        arms += [real, *(f"{real}+{source}:{ratio:g}" for source in sources for ratio in ratios if ratio)]
    for name, flag, wanted in (("arms", "--arms", tuple(arms)), ("num_seeds", "--seeds", values["draws"])):
        given = values.get(name, wanted)
        if (tuple(given) if isinstance(given, list) else given) != wanted:
            raise ValueError(f"{flag} cannot be used with --real-counts, which sets it")
        values[name] = wanted
    return values


def _split_numbers(value: object, flag: str, words: Mapping[str, int] = MappingProxyType({})) -> tuple[Any, ...]:
    """Numbers that are joined by commas or given one by one; what is no text is left for the model to check."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, Sequence) else (value,)
    numbers: list[Any] = []
    for part in parts:
        if not isinstance(part, str):
            numbers.append(part)
        elif text := part.strip():
            try:
                numbers.append(words.get(text) or (int(text) if words else float(text)))
            except ValueError:
                raise ValueError(
                    f"{flag}: expected numbers such as {'3,10,all' if words else '0,1,3'}, found '{value}'"
                ) from None
    return tuple(numbers)


def parse_labels(
    words: Sequence[str], rules: Sequence[str]
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[str, ...]]]:
    """Combine the labels of ``--label`` with their meanings by ``--map``.

    Args:
        words: Label names; ``NAME=ID+ID`` is an earlier spelling of a rule with ids, which causes a warning.
        rules: Rules ``LABEL=NAME+NAME``, where LABEL is the name of a real label, or its ids joined by a plus sign if
            the real cases have no names; it is then called NAME.

    Returns:
        Real label -> ids (empty if the real cases name it), and real label -> names or ids in synthetic label maps.

    Raises:
        ValueError: A text has no name, or one side of a rule is missing.
    """
    labels: dict[str, tuple[int, ...]] = {}
    mapping: dict[str, tuple[str, ...]] = {}
    for word in words:
        name, equals, ids = (part.strip() for part in word.partition("="))
        if not name or (equals and _read_ids(ids) is None):
            raise ValueError(
                f"--label {word}: takes a name only, found '=' with '{ids}'; give its ids with --map ID+ID=NAME"
            )
        labels[name] = _read_ids(ids) or ()
        if equals:
            warn_of_spelling(f"--label '{word}'", f"--map '{ids}={name}'")
    for rule in rules:
        label, names = split_rule(rule, "tumor=hepatic tumor")
        parts = tuple(part.strip() for part in names.split("+"))
        if not all(parts):
            raise ValueError(f"--map {rule}: expected LABEL=NAME or LABEL=NAME+NAME, found '{names}'")
        numbers = _read_ids(label)
        if numbers is None:
            mapping[label] = parts
            continue
        labels[names] = tuple(sorted({*labels.get(names, ()), *numbers}))
        if len(parts) > 1:
            mapping[names] = parts
    return labels, mapping


def _read_ids(text: str) -> tuple[int, ...] | None:
    """``1+2`` as its ids; None for anything else."""
    parts = [part.strip() for part in text.split("+")]
    return tuple(map(int, parts)) if all(spells_number(part) and int(part) > 0 for part in parts) else None


def build_benchmark_config(**fields: Any) -> BenchmarkConfig:
    """Build a benchmark configuration from its fields.

    Raises:
        BenchmarkError: The message names every invalid field.
    """
    with explain_problems(BenchmarkConfig, "Benchmark", BenchmarkError, kind="configuration", advice="Correct it."):
        return BenchmarkConfig(**fields)
