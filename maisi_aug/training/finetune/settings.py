"""Settings of a fine-tuning run: what is requested, and what is kept beside the run. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from maisi_aug.errors import did_you_mean
from maisi_aug.system.models import Option, PathText, StrictModel, texts_of
from maisi_aug.training.loop.settings import FlowLossConfig, LoopConfig
from maisi_aug.volumes.grid_words import ShapeField

Tune = Literal["full", "partial", "low-rank"]
Start = Literal["auto", "label-means", "base"]
DEFAULT_RATES: dict[str, float] = {"full": 1e-5, "partial": 1e-5, "low-rank": 1e-4}
"""Peak learning rates by ``tune``; MAISI uses that of ``full``."""
DEFAULT_RANK = 8
MAX_WARMUP_STEPS = 20
NUM_VALIDATIONS = 10
"""Number of validations in a run when ``validation_steps`` is not set."""
_WHAT, _HOW, _RUN = "What to teach", "How to train", "Run"


class FinetuneRequest(StrictModel, use_attribute_docstrings=True):
    """Everything that a user can request of a fine-tuning; resolved with a base and a device to a FinetuneConfig."""

    data: Annotated[PathText, Option(metavar="FOLDER|DATASET|LIST", panel=_WHAT, everyday=True)]
    """Folder of 'maisi-aug prepare'; or an nnU-Net dataset, a folder of images and label maps, or NVIDIA's JSON list of
    embeddings, to prepare first.
    """
    labels: Annotated[
        tuple[str, ...], Field(min_length=1), Option("--label", metavar="NAME", panel=_WHAT, everyday=True)
    ]
    """Label to teach; may repeat."""
    base: Annotated[PathText, Option(metavar="NAME|FOLDER", complete="bundles", panel=_WHAT, everyday=True)]
    """Bundle to start from, fine-tuned or not."""
    slots: Annotated[
        dict[str, str],
        Option(
            "--slot",
            metavar="auto|SLOT|NAME=SLOT",
            takes=list[str],
            panel=_WHAT,
            in_python="Label -> its slot: a placeholder (dummy1 to dummy8) or a free id (133-199, 201-255), as text "
            "(default: a free one).",
        ),
    ] = Field(default={})
    """Slot for a label: a placeholder (dummy1 to dummy8) or a free id (133-199, 201-255) (default: a free one)."""
    hosts: Annotated[
        dict[str, tuple[str, ...]],
        Option(
            "--host",
            metavar="NAME=ORGAN[,ORGAN]",
            takes=list[str],
            panel=_WHAT,
            in_python="Label -> its host organs (default: the organs around it in the training cases).",
        ),
    ] = Field(default={})
    """Host organs of a label (default: the organs around it in the training cases)."""
    kinds: Annotated[
        dict[str, Literal["lesion", "organ"]],
        Option(
            "--kind",
            metavar="NAME=lesion|organ",
            takes=list[str],
            panel=_WHAT,
            in_python="Label -> lesion (planted at any size) or organ (taken from label maps) (default: guessed from "
            "name, hosts and sizes).",
        ),
    ] = Field(default={})
    """lesion: planted at any size; organ: taken from label maps (default: guessed from name, hosts and sizes)."""
    map: Annotated[tuple[str, ...], Option(metavar="LABEL=NAME[@HOSTS]", panel=_WHAT, everyday=True)] = ()
    """Meaning of a label in unprepared data, as in 'maisi-aug prepare'; may repeat."""
    organs: Annotated[tuple[PathText, ...], Option(takes=list[Path], panel=_WHAT)] = ()
    """Folder of organ labels for unprepared data, as TotalSegmentator writes them; may repeat."""
    tune: Annotated[Tune, Option(panel=_HOW, everyday=True)] = "full"
    """Weights to train. full: all; partial: only layers that read the label map or feed the U-Net; low-rank: matrices
    added to all layers, which needs little memory.
    """
    rank: Annotated[PositiveInt | None, Option(panel=_HOW)] = None
    """Rank of --tune low-rank (default: 8)."""
    start: Annotated[Start, Option(panel=_HOW)] = "auto"
    """Initial weights. label-means: new labels start at their mean HU, for ControlNets with a lookup of intensities,
    such as phantom-ct's; base: the base's weights; auto: label-means where possible.
    """
    num_steps: Annotated[PositiveInt, Option("--steps", panel=_HOW, everyday=True)] = 1000
    """Optimiser steps."""
    learning_rate: Annotated[float | None, Field(gt=0), Option(panel=_HOW)] = None
    """Peak learning rate (default: 1e-5 as in MAISI; 1e-4 for low-rank)."""
    batch_count: Annotated[PositiveInt, Option("--batch-size", panel=_HOW)] = 1
    """Cases per step."""
    crop_shape: Annotated[
        ShapeField | None, Option("--crop", metavar="IxJxK", takes=str, panel=_HOW, everyday=True)
    ] = None
    """Crop size in voxels (default: whole cases)."""
    label_weight: Annotated[float, Field(ge=1), Option(panel=_HOW)] = 100.0
    """Weight of the taught labels in the loss."""
    contrastive_weight: Annotated[NonNegativeFloat | None, Option(panel=_HOW)] = None
    """Weight of the region contrastive loss; 0 turns it off (default: 0.01; ddpm bases have none)."""
    label_mean_weight: Annotated[NonNegativeFloat, Option(panel=_HOW)] = 0.0
    """Weight of the mean error of every label in the loss, which keeps small networks such as phantom-ct's from
    drifting in intensity; MAISI has no such term.
    """
    fold: Annotated[NonNegativeInt, Option(panel=_HOW)] = 0
    """Fold to validate on."""
    validation_steps: Annotated[PositiveInt | None, Option("--validate-every", panel=_HOW)] = None
    """Steps between validations (default: a tenth of --steps)."""
    patience: Annotated[NonNegativeInt, Option(panel=_HOW)] = 4
    """Stop after this many validations without improvement; 0 never stops early."""
    num_pictures: Annotated[NonNegativeInt, Option("--pictures", panel=_HOW)] = 3
    """Number of held-out cases to draw at each validation."""
    seed: Annotated[NonNegativeInt, Option(panel=_RUN)] = 0
    """Random seed for batch order and noise."""

    @field_validator("slots", "hosts", "kinds", mode="before")
    @classmethod
    def _read_pairs(cls, value: object, info: ValidationInfo) -> object:
        """``NAME=VALUE`` for some of the labels, in texts or as a mapping; one slot for the only label as it is."""
        labels: tuple[str, ...] = info.data.get("labels", ())
        field = str(info.field_name)
        if not isinstance(value, list | tuple | dict) or not labels:
            return value
        if not isinstance(value, dict):
            value = texts_of(value, "NAME=VALUE")
        if field == "slots" and len(value) == 1 and isinstance(value, list | tuple) and "=" not in (slot := value[0]):
            if len(labels) > 1 and slot != "auto":
                raise ValueError(f"with several labels, use 'NAME={slot}', found '{slot}'")
            return dict.fromkeys(labels, slot)
        pairs = value if isinstance(value, dict) else _split_pairs(value)
        for name in pairs:
            if name not in labels:
                raise ValueError(
                    f"unknown label '{name}'; expected one of {', '.join(labels)}.{did_you_mean(name, labels)}"
                )
        if field == "hosts":
            return {name: tuple(hosts.split(",")) if isinstance(hosts, str) else hosts for name, hosts in pairs.items()}
        return pairs

    @model_validator(mode="after")
    def _require_use_of_rank(self) -> Self:
        if self.rank is not None and self.tune != "low-rank":
            raise ValueError(f"rank can only be used with tune low-rank, found {self.tune}")
        return self

    def describe_loop(self) -> LoopConfig:
        """Return the settings of the training loop: MAISI's schedule, and by default ten validations during the run."""
        return LoopConfig(
            num_steps=self.num_steps,
            learning_rate=DEFAULT_RATES[self.tune] if self.learning_rate is None else self.learning_rate,
            num_warmup_steps=min(MAX_WARMUP_STEPS, self.num_steps // 10),
            decay_power=2.0,
            validation_steps=self.validation_steps or max(1, self.num_steps // NUM_VALIDATIONS),
            patience=self.patience or None,
        )


def _split_pairs(texts: list[str] | tuple[str, ...]) -> dict[str, str]:
    pairs = [tuple(part.strip() for part in text.partition("=")) for text in texts]
    for text, pair in zip(texts, pairs, strict=True):
        if not all(pair):
            raise ValueError(f"expected NAME=VALUE such as 'left parotid=body', found '{text}'")
    return {name: value for name, _, value in pairs}


class FinetuneConfig(StrictModel):
    """Resolved settings of a fine-tuning, which determine the result together with base and data.

    Attributes:
        labels, slots, hosts, kinds, fold, tune, start, seed, num_pictures: As in :class:`FinetuneRequest`.
        rank: Rank of the matrices for ``tune`` ``low-rank``.
        contrastive_weight: Weight of the region contrastive loss; 0 leaves it out. A ddpm base has none, as in MAISI.
        contrastive_bound: Largest rewarded mean difference between the outputs with and without the labels.
        loss: Loss of the velocity or the noise; its ``lesion_weight`` applies to the taught labels.
        loop: Settings of the training loop: number of steps, learning rate and validation.
    """

    labels: tuple[str, ...] = Field(min_length=1)
    slots: dict[str, str] = Field(default={})
    hosts: dict[str, tuple[str, ...]] = Field(default={})
    kinds: dict[str, Literal["lesion", "organ"]] = Field(default={})
    fold: NonNegativeInt = 0
    tune: Tune = "full"
    rank: PositiveInt = DEFAULT_RANK
    start: Start = "auto"
    contrastive_weight: NonNegativeFloat = 0.01
    contrastive_bound: float = Field(default=2.0, gt=0)
    num_pictures: NonNegativeInt = 3
    seed: NonNegativeInt = 0
    loss: FlowLossConfig = FlowLossConfig(lesion_weight=100.0)
    loop: LoopConfig
