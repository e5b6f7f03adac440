"""Result of an export next to a real dataset, as JSON and as a page of Markdown."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.banks.raw_datasets import RAW_VARIABLE, note_never_trained
from maisi_aug.integrations.nnunet.folders import PREPROCESSED_VARIABLE
from maisi_aug.integrations.nnunet.labels import describe_mapping
from maisi_aug.integrations.nnunet.plans import choose_configuration
from maisi_aug.integrations.nnunet.request import LikeExport
from maisi_aug.integrations.nnunet.splits import NUM_FOLDS
from maisi_aug.system.whole_files import write_json_whole, write_text_whole
from maisi_aug.vocabulary.labels import BACKGROUND_ID
from maisi_aug.volumes.image_files import load_stored_grid

MAX_SLICES = 32  # per case; contacts within slices are counted, and these are enough to tell inside from beside
MIN_SHARE = 0.6
_NUM_IDS = 256


def count_contacts(label_map: NDArray[np.unsignedinteger]) -> NDArray[np.int64]:
    """Count how often voxels of two labels touch.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids; ids from 256 on count as background.

    Returns:
        ``(256, 256)`` symmetric counts of pairs of different ids that share a face within slices along K.
    """
    step = max(1, -(-label_map.shape[2] // MAX_SLICES))
    slices = label_map[:, :, ::step]
    ids = np.where(slices < _NUM_IDS, slices, 0).astype(np.int64)
    counts = np.zeros(_NUM_IDS * _NUM_IDS, dtype=np.int64)
    for first, second in ((ids[:-1], ids[1:]), (ids[:, :-1], ids[:, 1:])):
        differs = first != second
        counts += np.bincount(first[differs] * _NUM_IDS + second[differs], minlength=counts.size)
    matrix = counts.reshape(_NUM_IDS, _NUM_IDS)
    return matrix + matrix.T


def find_holes(contacts: NDArray[np.int64], values: Mapping[int, int]) -> dict[int, int]:
    """Find labels that become background although they mostly touch a label that is exported.

    Args:
        contacts: Sum of :func:`count_contacts` over all cases.
        values: Vocabulary id -> value in the real dataset; ids that the user mapped to background are not reported.

    Returns:
        Id of the label that becomes background -> id that it touches most.
    """
    kept = [label_id for label_id, value in values.items() if value and label_id < _NUM_IDS]
    holes = {}
    for label_id in np.flatnonzero(contacts.sum(axis=1)).tolist():
        if label_id == 0 or label_id in values or not kept:
            continue
        touching = contacts[label_id, kept]
        if touching.sum() > MIN_SHARE * contacts[label_id].sum():
            holes[label_id] = kept[int(touching.argmax())]
    return holes


SUMMARY_STEM = "maisi_aug_summary"
DEFAULT_TRAINER = "nnUNetTrainerSynthetic50"


@dataclass
class Seen:
    """What occurs in the label maps of the exported cases.

    Attributes:
        counts: Vocabulary id -> number of cases that contain it, without the background.
        contacts: ``(256, 256)`` number of contacts between two labels, over all cases.
    """

    counts: dict[int, int] = field(default_factory=dict)
    contacts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((256, 256), dtype=np.int64))

    def add(self, label_map: NDArray[np.unsignedinteger]) -> None:
        """Add the label map of a case, ``(I, J, K)`` vocabulary ids."""
        for label_id in np.unique(label_map).tolist():
            if label_id != BACKGROUND_ID:
                self.counts[label_id] = self.counts.get(label_id, 0) + 1
        self.contacts += count_contacts(label_map)


@dataclass(frozen=True, slots=True)
class LikeReport:
    """Result of an export to nnU-Net that adds a cohort to a real dataset, or its outlook in a dry run.

    Attributes:
        path: Folder of the raw dataset.
        preprocessed: Folder of the preprocessed dataset.
        real_dataset: Name of the real dataset.
        num_real: Number of cases of the real dataset.
        num_synthetic: Number of cases of the cohort that were added.
        num_available: Number of accepted cases of the cohort.
        labels: Mapping of the labels, one row per label of the cohort, with the number of cases that contain it.
        folds: Per fold, the numbers of real and synthetic training cases, and of validation cases.
        folds_source: Origin of the folds.
        plans: Name of the plans in the new dataset.
        plans_source: Origin of the plans.
        configuration: nnU-Net configuration that the commands use.
        orientation: Voxel axes of the synthetic files.
        num_images_written: Number of images that had to be written anew; other files are referred to or linked.
        notes: Notes to the user, a sentence each.
        commands: Commands to run next, in this order.
        is_written: Whether the dataset was written; False for a dry run.
    """

    path: Path
    preprocessed: Path
    real_dataset: str
    num_real: int
    num_synthetic: int
    num_available: int
    labels: tuple[dict[str, Any], ...]
    folds: tuple[dict[str, Any], ...]
    folds_source: str
    plans: str
    plans_source: str
    configuration: str
    orientation: str
    num_images_written: int
    notes: tuple[str, ...]
    commands: tuple[str, ...]
    is_written: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-able dict."""
        return asdict(self) | {"path": str(self.path), "preprocessed": str(self.preprocessed)}

    def to_markdown(self) -> str:
        """Format the report as a Markdown page."""
        labels = [
            f"| {row['name']} ({row['vocabulary_id']}) | {row['label']} ({row['value']}) | {row['found_by']} | "
            f"{row['num_cases']} |"
            for row in self.labels
        ]
        folds = [
            f"| {number} | {fold['num_real_train']} | {fold['num_synthetic_train']} | {len(fold['val'])} |"
            for number, fold in enumerate(self.folds)
        ]
        return "\n".join(
            [
                f"# {self.path.name}",
                "",
                (
                    f"{self.num_real} real cases of {self.real_dataset} and {self.num_synthetic} of "
                    f"{self.num_available} synthetic cases, for training only."
                ),
                "",
                "| label of the cohort | label of the dataset | found by | cases |",
                "| --- | --- | --- | --- |",
                *labels,
                "",
                f"Folds: {self.folds_source}.",
                "",
                "| fold | real, training | synthetic, training | real, validation |",
                "| --- | --- | --- | --- |",
                *folds,
                "",
                f"Plans: {self.plans}, from {self.plans_source}.",
                "",
                *[f"- {note}" for note in self.notes],
                *([""] if self.notes else []),
                "Next:",
                "",
                *[f"    {command}" for command in self.commands],
                "",
            ]
        )


def build_report(
    export: LikeExport, seen: Seen, *, plans: Mapping[str, Any] | None, warnings: Sequence[str]
) -> LikeReport:
    """Build the report of an export that adds a cohort to a real dataset.

    Args:
        export: Checked export.
        seen: Labels in the label maps of the exported cases.
        plans: Plans of the new dataset; None for a dry run.
        warnings: Warnings of nnU-Net's integrity check.
    """
    configuration = choose_configuration(plans) if plans else "3d_fullres"
    return LikeReport(
        path=export.target,
        preprocessed=export.preprocessed_target,
        real_dataset=export.real.name,
        num_real=len(export.real.cases),
        num_synthetic=len(export.cases),
        num_available=len(export.cohort.cases),
        labels=tuple(
            row | {"num_cases": seen.counts.get(row["vocabulary_id"], 0)}
            for row in describe_mapping(export.real, export.cohort, export.mapping)
        ),
        folds=tuple(
            {
                "num_real_train": len(fold["train"]),
                "num_synthetic_train": len(mixed["train"]) - len(fold["train"]),
                "val": list(fold["val"]),
            }
            for fold, mixed in zip(export.folds.folds, export.mixed_folds, strict=True)
        ),
        folds_source=export.folds.source,
        plans=export.plans.moved_name,
        plans_source=export.plans.source,
        configuration=configuration,
        orientation=export.orientation,
        num_images_written=len(export.cases) if export.is_turned else 0,
        notes=tuple(_build_notes(export, seen, plans, configuration, warnings)),
        commands=_list_commands(export, configuration),
        is_written=plans is not None,
    )


def write_report(report: LikeReport, folder: Path) -> None:
    """Write the report of an export into a dataset's folder, as JSON and Markdown.

    Args:
        report: Report of the export.
        folder: Folder of the dataset, which has no report yet.

    Raises:
        VolumeError: A file cannot be written, or exists.
    """
    write_json_whole(folder / f"{SUMMARY_STEM}.json", report.to_dict(), is_new=True, indent=2)
    write_text_whole(folder / f"{SUMMARY_STEM}.md", report.to_markdown(), is_new=True)


def _list_commands(export: LikeExport, configuration: str) -> tuple[str, ...]:
    number, plans = export.target.name[len("Dataset") :].partition("_")[0], export.plans.moved_name
    trainer = DEFAULT_TRAINER if all(fold["train"] for fold in export.folds.folds) else "nnUNetTrainerSynthetic100"
    folders = {RAW_VARIABLE: export.target.parent, PREPROCESSED_VARIABLE: export.preprocessed_target.parent}
    # Given as options, the folders are not in the environment, where nnU-Net looks for them.
    exports = [
        f"export {variable}={shlex.quote(str(folder.absolute()))}"
        for variable, folder in folders.items()
        if Path(os.environ.get(variable) or os.devnull).absolute() != folder.absolute()
    ]
    return (
        *exports,
        'eval "$(maisi-aug nnunet-trainer-path --env)"',
        f"nnUNetv2_preprocess -d {number} -plans_name {plans} -c {configuration}",
        f"nnUNetv2_train {number} {configuration} 0 -p {plans} -tr {trainer}",
    )


def _build_notes(
    export: LikeExport, seen: Seen, plans: Mapping[str, Any] | None, configuration: str, warnings: Sequence[str]
) -> Iterator[str]:
    num_real = len(export.real.cases)
    if export.cohort.partial_note:
        yield export.cohort.partial_note
    if export.num_wanted is not None and len(export.cases) < export.num_wanted:
        num_available = len(export.cohort.cases)
        reason = "; --max-per-label allows no more" if len(export.cases) < num_available else ", which is all of them"
        yield (
            f"--ratio requests {export.num_wanted} synthetic cases; {len(export.cases)} of the cohort's "
            f"{num_available} accepted ones are exported{reason}."
        )
    if num_real < NUM_FOLDS:
        yield (
            f"{num_real} real cases give {len(export.folds.folds)} folds; for any further fold nnU-Net would draw a "
            "random split with synthetic cases in validation, which the trainers of maisi-aug refuse."
        )
    num_derived = sum(bool(origins) for origins in export.origins.values())
    if num_derived:
        yield (
            f"{num_derived} of the {len(export.cases)} synthetic cases were made from label maps of real cases; each "
            "is left out of the folds that validate on the case that it was made from."
        )
    yield from _note_axes(export)
    spellings = {target.value: target.spelling for target in export.real.targets}
    for inner, outer in find_holes(seen.contacts, export.mapping.values).items():
        names = [export.cohort.name_of(label_id) for label_id in (inner, outer)]
        target = spellings[export.mapping.values[outer]]
        yield (
            f"'{names[0]}' becomes background and lies mostly in or at '{names[1]}'; if the real dataset counts it "
            f"as part of '{target}', give --map '{target}={names[0]}'."
        )
    if export.mapping.absent:
        listed = ", ".join(spellings[value] for value in sorted(export.mapping.absent))
        yield f"Absent from every synthetic case, as specified: {listed}."
    yield from _compare_spacings(export, plans, configuration)
    if never := note_never_trained(export.real.case_ids):
        yield never
    if warnings:
        yield f"nnU-Net's integrity check passed with {len(warnings)} warning(s); the first: {warnings[0]}"


def _note_axes(export: LikeExport) -> Iterator[str]:
    if export.is_turned:
        yield (
            f"The real images are stored with axes {export.orientation}, and nnU-Net trains on voxels in stored "
            f"order, so that the {len(export.cases)} synthetic images are rewritten in that order."
        )
    if len(export.real.orientations) > 1 and not export.real.is_reoriented_on_reading:
        listed = ", ".join(f"{codes} ({count})" for codes, count in export.real.orientations.most_common())
        yield f"The real images are stored with different axes: {listed}; nnU-Net does not reorient them."


def _compare_spacings(export: LikeExport, plans: Mapping[str, Any] | None, configuration: str) -> Iterator[str]:
    """A sentence where synthetic voxels are much coarser than what the network is trained at."""
    planned = plans["configurations"][configuration].get("spacing") if plans else None
    if planned is None:
        return
    own = load_stored_grid(export.cohort.folder / export.cases[0].files["image"].path).spacing_mm
    if max(own) > 2 * max(planned):
        yield (
            f"Synthetic voxels of {'x'.join(f'{side:.3g}' for side in own)} mm are coarser than the "
            f"{'x'.join(f'{side:.3g}' for side in planned)} mm of the plans; nnU-Net interpolates them."
        )
