"""The plan of a benchmark: which cases every arm trains on, which patients all are tested on, and what to beware of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from maisi_aug.errors import BenchmarkError, MaisiAugError
from maisi_aug.evaluation.benchmark.cases import (
    CaseFiles,
    CaseSource,
    find_lesion_labels,
    find_real_cases,
    find_synthetic_cases,
)
from maisi_aug.evaluation.benchmark.config import EVERY, MADE_KINDS, PRESETS, REAL, Arm, BenchmarkConfig
from maisi_aug.evaluation.benchmark.data import TrainingPlan, load_case, plan_training
from maisi_aug.evaluation.benchmark.split import (
    Shown,
    Split,
    find_cautions,
    find_leaks,
    require_patients,
    split_patients,
)
from maisi_aug.system.progress import ReportStage, report_nothing
from maisi_aug.system.seeds import numpy_generator

FORMAT: Final = 2  # 1 trained under another loss
CaseRef = tuple[str, str]
"""Name of a source and id of a case."""


@dataclass(frozen=True)
class BenchmarkPlan:
    """Plan of a benchmark, as stored in ``benchmark.json``: everything that an arm needs to run by itself.

    Attributes:
        config: Request of the benchmark.
        labels: Names of the labels in the order of their classes, from 1.
        lesion_labels: Labels whose connected components are counted as lesions.
        sources: Name of a source -> cases; the real ones are named ``real``.
        split: Real cases to train and to test on.
        arms: Arm -> training cases; a case may occur more than once. For an arm that draws cases anew for every
            training, those of the first training.
        draws: Arm -> training cases of every training, for arms that draw them anew.
        training: Preprocessing of cases for the light engine's network.
        warnings: Warnings, a sentence each.
    """

    config: BenchmarkConfig
    labels: tuple[str, ...]
    lesion_labels: tuple[str, ...]
    sources: dict[str, CaseSource]
    split: Split
    arms: dict[str, tuple[CaseRef, ...]]
    training: TrainingPlan
    warnings: tuple[str, ...]
    draws: Mapping[str, tuple[tuple[CaseRef, ...], ...]] = field(default_factory=dict)

    @property
    def training_sets(self) -> dict[tuple[str, int], tuple[CaseRef, ...]]:
        """(Arm, draw) -> training cases; arms without draws have only draw 0."""
        return {
            (name, number): refs
            for name, own in self.arms.items()
            for number, refs in enumerate(self.draws.get(name, (own,)))
        }

    def draw_of(self, arm: str, seed: int) -> tuple[str, int]:
        """Return the key of a training's cases in :attr:`training_sets`.

        Args:
            arm: Name of the arm.
            seed: Number of the training, from 0.

        Returns:
            Name of the arm, and the number of the draw; 0 for arms whose trainings share their cases.
        """
        return arm, seed if arm in self.draws else 0

    @property
    def classes(self) -> dict[str, int]:
        """Label name -> class, from 1."""
        return {name: number for number, name in enumerate(self.labels, start=1)}

    @property
    def lesion_classes(self) -> tuple[int, ...]:
        """Classes of the labels that are lesions."""
        return tuple(self.classes[name] for name in self.lesion_labels)

    def find_case(self, ref: CaseRef) -> CaseFiles:
        """Return the files of a case, given by source and id."""
        source, case_id = ref
        return next(case for case in self.sources[source].cases if case.case_id == case_id)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON-able dict."""
        return {
            "format": FORMAT,
            "config": self.config.to_json(),
            "labels": list(self.labels),
            "lesion_labels": list(self.lesion_labels),
            "sources": {name: _source_to_json(source) for name, source in self.sources.items()},
            "split": asdict(self.split),
            "arms": {name: [list(ref) for ref in refs] for name, refs in self.arms.items()},
            "training": self.training.to_json(),
            "warnings": list(self.warnings),
            "draws": {name: [[list(ref) for ref in refs] for refs in draws] for name, draws in self.draws.items()},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> BenchmarkPlan:
        """Restore a plan from the result of :meth:`to_json`.

        Raises:
            BenchmarkError: The plan was written by another version, whose arms are not comparable.
        """
        if content["format"] != FORMAT:
            raise BenchmarkError(
                f"Benchmark: its plan has format {content['format']}, this version needs {FORMAT}, whose arms are "
                "trained differently. Choose another --out."
            )
        return cls(
            config=BenchmarkConfig.model_validate(content["config"]),
            labels=tuple(content["labels"]),
            lesion_labels=tuple(content["lesion_labels"]),
            sources={name: _source_from_json(name, source) for name, source in content["sources"].items()},
            split=Split(tuple(content["split"]["train"]), tuple(content["split"]["test"])),
            arms={name: tuple((s, c) for s, c in refs) for name, refs in content["arms"].items()},
            training=TrainingPlan.from_json(content["training"]),
            warnings=tuple(content["warnings"]),
            draws={
                name: tuple(tuple((s, c) for s, c in refs) for refs in draws)
                for name, draws in content.get("draws", {}).items()
            },
        )


def plan_benchmark(
    config: BenchmarkConfig, *, reads_synthetic: bool = True, notify: ReportStage = report_nothing
) -> BenchmarkPlan:
    """Plan a benchmark: find the cases, split the patients and compose the arms.

    Cases that cannot be read are left out of every arm and reported.

    Args:
        config: Request of the benchmark.
        reads_synthetic: Whether to open every synthetic case; a dry run need not.
        notify: Progress callback, called with (stage, done, total).

    Raises:
        BenchmarkError: There are too few cases, or their labels cannot be matched.
    """
    real = find_real_cases(Path(config.real), config.labels)
    labels = tuple(real.label_ids)
    lesion_labels = _choose_lesion_labels(config, labels)
    require_patients(real.cases, config)
    real, warnings, shown = _keep_readable(real, notify)
    lesions = {case_id: names.intersection(lesion_labels) for case_id, names in shown.items()}
    split = split_patients(lesions, config)
    sources = {REAL: real}
    losses: dict[str, list[str]] = {}
    tested = [case for case in real.cases if case.case_id in split.test]
    for name, path in config.synthetic.items():
        source = find_synthetic_cases(name, Path(path), labels, config.mapping, context=real.names)
        losses[name] = []
        if reads_synthetic:
            source, losses[name], _ = _keep_readable(source, notify)
        source, leaks = _leave_leaks_out(source, tested)
        losses[name] += leaks
        warnings += losses[name]
        sources[name] = source
    train = [load_case(case, real.label_ids) for case in real.cases if case.case_id in split.train]
    warnings += [note for source in sources.values() for note in source.notes]
    warnings += find_cautions(config, split, labels, shown)
    draws = compose_draws(config, split.train, sources, losses)
    return BenchmarkPlan(
        config,
        labels,
        lesion_labels,
        sources,
        split,
        compose_arms(config, split.train, sources, losses) | {name: sets[0] for name, sets in draws.items()},
        plan_training(train, PRESETS[config.preset]),
        tuple(warnings),
        draws,
    )


def compose_arms(
    config: BenchmarkConfig,
    train: Sequence[str],
    sources: Mapping[str, CaseSource],
    losses: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> dict[str, tuple[CaseRef, ...]]:
    """Return arm -> training cases.

    The synthetic cases of a smaller ratio are a part of those of a larger ratio. The arm with duplicated real cases has
    as many cases as the largest arm; a synthetic-only arm has the synthetic cases of the largest mixed arm of its
    source.

    Args:
        config: Request of the benchmark.
        train: Ids of the real cases to train on.
        sources: Name of a source -> cases.
        losses: Name of a source -> sentences about cases that were left out, for the message if too few remain.

    Raises:
        BenchmarkError: A source has fewer cases than an arm needs.
    """
    arms = [arm for arm in config.parsed_arms if not arm.count]
    real: tuple[CaseRef, ...] = tuple((REAL, case_id) for case_id in train)
    orders = {name: _draw_order(config, source) for name, source in sources.items() if name != REAL}
    added = {arm.name: max(1, round(arm.ratio * len(real))) for arm in arms if arm.ratio}
    most = max(added.values(), default=len(real))
    composed: dict[str, tuple[CaseRef, ...]] = {}
    for arm in arms:
        if arm.kind == "mixed":
            composed[arm.name] = (*real, *_take(orders[arm.source], added[arm.name], arm, config, losses))
        elif arm.kind == "only":
            counts = [added[other.name] for other in arms if other.kind == "mixed" and other.source == arm.source]
            num = max(counts, default=len(orders[arm.source]))
            composed[arm.name] = _take(orders[arm.source], num, arm, config, losses)
        elif arm.kind in MADE_KINDS:
            made = ((arm.kind, f"{MADE_KINDS[arm.kind]}-{n:04d}") for n in range(added[arm.name]))
            composed[arm.name] = (*real, *made)
        elif arm.kind == "duplicated":
            composed[arm.name] = (*real, *(real[n % len(real)] for n in range(most)))
        else:
            composed[arm.name] = real
    return composed


def compose_draws(
    config: BenchmarkConfig,
    train: Sequence[str],
    sources: Mapping[str, CaseSource],
    losses: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> dict[str, tuple[tuple[CaseRef, ...], ...]]:
    """Return arm -> training cases of every training, for arms with a number of real patients.

    In each draw, the patients of a smaller number are among those of a larger number, and likewise the synthetic cases
    of a smaller ratio. A synthetic case made from the label map of a training patient outside of the draw is left out,
    because it would add the anatomy of a further real patient.

    Args:
        config: Request of the benchmark.
        train: Ids of the real cases to train on.
        sources: Name of a source -> cases.
        losses: Name of a source -> sentences about cases that were left out, for the message if too few remain.

    Raises:
        BenchmarkError: There are fewer real patients or synthetic cases than an arm needs.
    """
    patients: dict[str, list[str]] = {}
    for case_id in train:
        patients.setdefault(config.patient_of(case_id), []).append(case_id)
    names = sorted(patients)
    drawn: dict[str, list[tuple[CaseRef, ...]]] = {}
    for number in range(config.num_seeds):
        order = [
            names[int(i)] for i in numpy_generator(config.seed, f"draw {number} of patients").permutation(len(names))
        ]
        for arm in config.parsed_arms:
            if not arm.count:
                continue
            if EVERY > arm.count > len(names):
                raise BenchmarkError(
                    f"Arm '{arm.name}': needs {arm.count} real patients for training, but there are only "
                    f"{len(names)}. Correct --real-counts."
                )
            chosen = [case_id for patient in order[: arm.count] for case_id in patients[patient]]
            added: tuple[CaseRef, ...] = ()
            if arm.ratio:
                source = _leave_others_out(sources[arm.source], sources[REAL], set(train) - set(chosen))
                synthetic = _draw_order(config, source, stream=f"draw {number} of {arm.source}")
                added = _take(synthetic, max(1, round(arm.ratio * len(chosen))), arm, config, losses)
            drawn.setdefault(arm.name, []).append((*((REAL, case_id) for case_id in chosen), *added))
    return {name: tuple(sets) for name, sets in drawn.items()}


def _leave_others_out(source: CaseSource, real: CaseSource, others: set[str]) -> CaseSource:
    """The synthetic cases that were not made from label maps of others; what does not say of what it was made stays."""
    told = [case for case in source.cases if case.origin]
    leaks = set(find_leaks(told, [case for case in real.cases if case.case_id in others])) if told and others else set()
    return replace(source, cases=tuple(case for case in source.cases if case.case_id not in leaks))


def _take(
    order: Sequence[CaseRef], num: int, arm: Arm, config: BenchmarkConfig, losses: Mapping[str, Sequence[str]]
) -> tuple[CaseRef, ...]:
    if len(order) < num or not order:
        said = losses.get(arm.source, ())
        why = "".join(f" {text}" for text in dict.fromkeys((*said[:1], *said[-1:])))
        raise BenchmarkError(
            f"Arm '{arm.name}': needs {num or 'some'} synthetic cases, but only {len(order)} of "
            f"{config.synthetic[arm.source]} can be used.{why} Generate more, or lower the ratio."
        )
    return tuple(order[:num])


def _draw_order(config: BenchmarkConfig, source: CaseSource, *, stream: str = "") -> list[CaseRef]:
    order = numpy_generator(config.seed, stream or f"order of {source.name}").permutation(len(source.cases))
    return [(source.name, source.cases[int(index)].case_id) for index in order]


def _choose_lesion_labels(config: BenchmarkConfig, labels: Sequence[str]) -> tuple[str, ...]:
    if config.lesion_labels is None:
        return find_lesion_labels(labels)
    unknown = [name for name in config.lesion_labels if name not in labels]
    if unknown:
        raise BenchmarkError(f"Lesion label '{unknown[0]}': not one of {', '.join(labels)}. Correct --lesion-label.")
    return config.lesion_labels


def _keep_readable(source: CaseSource, notify: ReportStage) -> tuple[CaseSource, list[str], Shown]:
    """The cases that can be read, a sentence on each of the others, and the labels that each shows."""
    kept, warnings, shown = [], [], {}
    names = tuple(source.label_ids)
    for number, case in enumerate(source.cases):
        notify(f"reading {source.name} cases", number, len(source.cases))
        try:
            classes = np.unique(load_case(case, source.label_ids).classes)
        except MaisiAugError as error:
            warnings.append(f"Case {case.case_id} ({source.name}) was left out of every arm. {error}")
        else:
            kept.append(case)
            shown[case.case_id] = frozenset(names[number - 1] for number in classes if number)
    notify(f"reading {source.name} cases", len(source.cases), len(source.cases))
    return replace(source, cases=tuple(kept)), warnings, shown


def _leave_leaks_out(source: CaseSource, tested: Sequence[CaseFiles]) -> tuple[CaseSource, list[str]]:
    leaks = find_leaks(source.cases, tested)
    if not leaks:
        return source, []
    kept = tuple(case for case in source.cases if case.case_id not in leaks)
    shown = ", ".join(leaks[:5]) + (" and others" if len(leaks) > 5 else "")
    return replace(source, cases=kept), [
        (
            f"{len(leaks)} of the {len(source.cases)} cases of '{source.name}' were left out, because they are test "
            f"cases or were made from label maps of test patients ({shown})."
        )
    ]


def _source_to_json(source: CaseSource) -> dict[str, Any]:
    return {
        "label_ids": {name: list(ids) for name, ids in source.label_ids.items()},
        "cases": [
            {"id": c.case_id, "image": str(c.image.resolve()), "label": str(c.label.resolve())} for c in source.cases
        ],
        "notes": list(source.notes),
    }


def _source_from_json(name: str, content: Mapping[str, Any]) -> CaseSource:
    return CaseSource(
        name,
        tuple(CaseFiles(row["id"], Path(row["image"]), Path(row["label"])) for row in content["cases"]),
        {label: tuple(ids) for label, ids in content["label_ids"].items()},
        tuple(content["notes"]),
    )
