"""Preparing a data set: survey, meanings, cases in parallel, folds, summary; a stopped run continues where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from maisi_aug.banks.label_ids import Translation, build_translation
from maisi_aug.bundle_spec.bundle import Bundle, load_outline
from maisi_aug.bundle_spec.grid_limits import GridSpec
from maisi_aug.cohort.folder import CONTACT_SHEET_NAME
from maisi_aug.errors import BankError, PreparationError
from maisi_aug.pictures.preview import save_contact_sheet
from maisi_aug.preparation.case import CaseTask, PrepareSettings
from maisi_aug.preparation.collecting import add_organs, collect_cases
from maisi_aug.preparation.folds import assign_folds, find_patients, require_enough_patients
from maisi_aug.preparation.mapping import (
    LabelMeanings,
    MapRule,
    allocate_new_labels,
    labels_of,
    parse_rule,
    resolve_meanings,
)
from maisi_aug.preparation.prepared import PreparedCase, PreparedDataset, PreparedSpec, write_lists
from maisi_aug.preparation.request import CtModalityName, PrepareConfig
from maisi_aug.preparation.sources import LabelFile, SourceCase
from maisi_aug.preparation.summary import build_summary, labels_in, spell_summary
from maisi_aug.preparation.survey import (
    CaseSurvey,
    dropped_lesions_of,
    holds_envelope,
    require_labels,
    require_readable,
    survey_case,
    tables_of,
)
from maisi_aug.preparation.tissues import Tissue, parse_tissue
from maisi_aug.preparation.writing import prepare_and_write, take_folder
from maisi_aug.system.engine.mapping import run_parallel
from maisi_aug.system.progress import ReportStage, report_nothing
from maisi_aug.system.whole_files import write_json_whole, write_text_whole
from maisi_aug.vocabulary.labels import Vocabulary
from maisi_aug.volumes.grid import Grid, Shape, Spacing

DEFAULT_BUNDLE = "phantom-ct"
SUMMARY_NAMES = ("summary.md", "summary.json")


@dataclass(frozen=True)
class PrepareRequest:
    """Resolved request of a preparation.

    Attributes:
        cases: Files of every case.
        vocabulary: Vocabulary of the base bundle.
        shape: Voxels of the networks' grid along I, J, K.
        spacing_mm: Voxel sides along I, J, K in mm.
        name: Name of the data set.
        rules: Meanings of the lab's labels.
        tissues: Labels found by their HU in voxels without an organ.
        organ_labels: Meaning of the ids in organ label maps.
        patients: Rule that assigns cases to patients, see :func:`~maisi_aug.preparation.folds.find_patients`.
        num_folds: Number of folds.
        modality: Modality of every image, on which the U-Net is conditioned.
        keeps_surroundings: Whether table and air around the patient are kept.
        allow_empty: Whether cases without any label are accepted.
        runs_totalsegmentator: Whether TotalSegmentator makes organ labels after planning.
    """

    cases: tuple[SourceCase, ...]
    vocabulary: Vocabulary
    shape: Shape
    spacing_mm: Spacing
    name: str
    rules: tuple[MapRule, ...] = ()
    tissues: tuple[Tissue, ...] = ()
    organ_labels: str = "auto"
    patients: str | None = None
    num_folds: int = 5
    modality: CtModalityName = "ct"
    keeps_surroundings: bool = False
    allow_empty: bool = False
    runs_totalsegmentator: bool = False


@dataclass(frozen=True)
class PrepareResult:
    """Result of a preparation.

    Attributes:
        dataset: The prepared folder.
        summary: Content of ``summary.json``.
        problems: Case -> reason why it could not be prepared.
    """

    dataset: PreparedDataset
    summary: Mapping[str, Any]
    problems: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PreparePlan:
    """Plan of a preparation, known before any image is read.

    Attributes:
        request: Resolved request.
        settings: Settings for every case.
        meanings: Meanings of the lab's labels.
        patients: Case -> patient.
        tasks: One task per case.
        notes: Notes to the user, a sentence each.
    """

    request: PrepareRequest
    settings: PrepareSettings
    meanings: LabelMeanings
    patients: Mapping[str, str]
    tasks: tuple[CaseTask, ...]
    notes: tuple[str, ...]


def resolve_preparation(config: PrepareConfig, out: Path) -> tuple[PrepareRequest, tuple[str, ...]]:
    """List the cases of a preparation and read its rules, without opening images.

    Args:
        config: Request of the user.
        out: Folder of the prepared cases, whose name they get if ``config`` has none.

    Returns:
        The request for :func:`plan_preparation`, and notes to the user, a sentence each.

    Raises:
        BundleError: The bundle was not found.
        GridError: The networks cannot use the grid, or a given bundle cannot be trained on it.
        PreparationError: The sources or rules cannot be used.
    """
    bundle = load_outline(config.bundle or DEFAULT_BUNDLE)
    grid, grid_notes = _choose_grid(config, bundle)
    rules = tuple(map(parse_rule, config.map))
    tissues = tuple(parse_tissue(text, bundle.vocabulary) for text in config.tissues)
    cases, notes = collect_cases(config)
    if not (tissues or config.run_totalsegmentator or any(case.labels or case.organs for case in cases)):
        raise PreparationError(
            "Labels: at least one of --labels, --organs, --run-totalsegmentator and --tissue is required."
        )
    request = PrepareRequest(
        cases=cases,
        vocabulary=bundle.vocabulary,
        shape=grid.shape,
        spacing_mm=config.spacing_mm or bundle.spec.grid.spacing_mm,
        name=config.name or out.resolve().name,
        rules=rules,
        tissues=tissues,
        organ_labels=config.organ_labels,
        patients=config.patients,
        num_folds=config.num_folds,
        modality=config.modality,
        keeps_surroundings=config.keeps_surroundings,
        allow_empty=config.allow_empty,
        runs_totalsegmentator=config.run_totalsegmentator,
    )
    return request, (*grid_notes, *notes)


def _choose_grid(config: PrepareConfig, bundle: Bundle) -> tuple[Grid, tuple[str, ...]]:
    """Return the requested grid or the bundle's, with a note if a bundle that the user names was not trained on it."""
    own = bundle.spec.grid
    grid = Grid.from_spacing(config.shape or own.shape, config.spacing_mm or own.spacing_mm)
    grid.require_multiple_of(bundle.grid_factor, subject="--shape")
    if config.bundle is None:
        return grid, ()
    return grid, tuple(
        bundle.check_grid(grid, remedy=", or leave --bundle out if it will not be trained on these data")
    )


def plan_preparation(
    request: PrepareRequest, *, report: ReportStage = report_nothing, num_workers: int | None = None
) -> PreparePlan:
    """Plan a preparation, and check everything that can be checked before the work; nothing is written.

    Args:
        request: Resolved request.
        report: Progress callback, called with (stage, cases done, cases in all).
        num_workers: Number of processes; None for one per core.

    Raises:
        PreparationError: Files are unusable, labels have no meaning or no voxels, or there are too few patients.
    """
    cases = request.cases
    patients = find_patients([case.id for case in cases], request.patients)
    require_enough_patients(patients, request.num_folds)
    allocate_new_labels(request.rules, request.vocabulary)  # a misspelt rule is reported before any file is read
    surveys = run_parallel(survey_case, cases, "checking", report, num_workers)
    require_readable(surveys)
    labels = dict.fromkeys(
        label
        for case, survey in zip(cases, surveys, strict=True)
        for file, counts in zip(case.labels, survey.counts, strict=True)
        for label in labels_of(file, counts)
    )
    meanings = resolve_meanings(list(labels), request.rules, request.vocabulary)
    require_labels(cases, surveys, meanings, allow_empty=request.allow_empty)
    settings = PrepareSettings(
        shape=request.shape,
        spacing_mm=request.spacing_mm,
        vocabulary=meanings.vocabulary,
        new_labels=meanings.new_labels,
        tissues=request.tissues,
        organ_labels=request.organ_labels,
        keeps_surroundings=request.keeps_surroundings,
        modality=request.modality,
    )
    tasks, notes = _build_tasks(cases, surveys, meanings, settings)
    return PreparePlan(request, settings, meanings, patients, tasks, notes)


def claim_folder(plan: PreparePlan, out: Path, *, update: bool = False) -> None:
    """Create the folder of a preparation, or check that an existing one belongs to it.

    Args:
        plan: Planned preparation.
        out: Folder of the prepared cases.
        update: Whether an existing folder may be changed to other options; cases that are then left out are removed.

    Raises:
        PreparationError: The folder holds something else, was prepared with other options, or has cases that are not
            planned.
    """
    take_folder(out, _describe_options(plan), {task.case.id for task in plan.tasks}, update=update)


def with_organs(plan: PreparePlan, folder: Path, organ_labels: str) -> PreparePlan:
    """Return a plan with a further folder of organ labels, which replace those that the cases have.

    Args:
        plan: Plan made by ``plan_preparation``.
        folder: Folder with one organ label map per case.
        organ_labels: Meaning of the ids: ``auto`` or the name of a scheme.

    Raises:
        PreparationError: The folder has nothing for the cases.
    """
    cases, _ = add_organs([task.case for task in plan.tasks], folder)
    settings = replace(plan.settings, organ_labels=organ_labels)
    tasks = []
    for task, case in zip(plan.tasks, cases, strict=True):
        files_added = case.organs[len(task.case.organs) :]
        added = [translate_organs(files, settings.vocabulary, settings.organ_labels) for files in files_added]
        tasks.append(replace(task, case=case, organ_translations=(*task.organ_translations, *added)))
    return replace(plan, tasks=tuple(tasks))


def run_preparation(
    plan: PreparePlan,
    out: Path,
    *,
    report: ReportStage = report_nothing,
    num_workers: int | None = None,
) -> PrepareResult:
    """Prepare every planned case that is not there yet, then write description, summary and pictures.

    Args:
        plan: Plan made by ``plan_preparation``.
        out: Folder that :func:`claim_folder` has prepared for this plan.
        report: Progress callback, called with (stage, cases done, cases in all).
        num_workers: Number of processes; None for one per core.

    Raises:
        PreparationError: No case could be prepared.
        VolumeError: A file cannot be written.
    """
    works = [(task, out) for task in plan.tasks]
    records = run_parallel(prepare_and_write, works, "preparing", report, num_workers)
    problems = {record["id"]: record["problem"] for record in records if "problem" in record}
    good = [record for record in records if "problem" not in record]
    if not good:
        first = next(iter(problems))
        raise PreparationError(f"Cases: none of {len(records)} can be prepared; {first}: {problems[first]}")
    dataset = _finish(out, plan, good)
    summary = build_summary(dataset, {record["id"]: record["hu"] for record in good}, problems)
    previews = [dataset.file_of("preview", case.id) for case in dataset.cases]
    title = f"{dataset.spec.name}: {len(previews)} cases"
    save_contact_sheet(out / CONTACT_SHEET_NAME, previews, title)
    write_text_whole(out / SUMMARY_NAMES[0], spell_summary(summary, dataset))
    write_json_whole(out / SUMMARY_NAMES[1], summary)
    return PrepareResult(dataset, summary, problems)


def _build_tasks(
    cases: Sequence[SourceCase], surveys: Sequence[CaseSurvey], meanings: LabelMeanings, settings: PrepareSettings
) -> tuple[tuple[CaseTask, ...], tuple[str, ...]]:
    unknown: dict[str, None] = {}
    healed: dict[str, None] = {}
    tasks = []
    for case, survey in zip(cases, surveys, strict=True):
        translations = tuple(
            translate_organs(files, settings.vocabulary, settings.organ_labels) for files in case.organs
        )
        unknown.update((name, None) for translation in translations for name in translation.unknown)
        healed.update((name, None) for translation in translations for name in translation.unknown_lesions)
        has_envelope = holds_envelope(case, survey, meanings)
        dropped = dropped_lesions_of(case, survey, meanings)
        tasks.append(CaseTask(case, tables_of(case, survey, meanings), translations, settings, has_envelope, dropped))
    notes = []
    if unknown:
        notes.append(f"Organ labels not in the vocabulary become body (200): {', '.join(unknown)}.")
    if healed:
        notes.append(
            f"Lesions among the organ labels that are not in the vocabulary become organ: {', '.join(healed)}."
        )
    unused = [str(label) for label, label_id in meanings.ids.items() if not label_id]
    if unused:
        notes.append(f"Dropped labels: {', '.join(unused)}.")
    return tuple(tasks), tuple(notes)


def translate_organs(files: Sequence[LabelFile], vocabulary: Vocabulary, organ_labels: str) -> Translation:
    """Return the translation of a case's organ label map, or of the ids that its masks get in their order.

    Args:
        files: Label map, or masks of organs.
        vocabulary: Target vocabulary.
        organ_labels: Meaning of the ids: ``auto`` or the name of a scheme.

    Raises:
        PreparationError: The meaning is unknown.
    """
    is_masks = files[0].mask_name is not None
    names = dict(enumerate((file.mask_name or "" for file in files), start=1)) if is_masks else files[0].names
    mapping = "auto" if is_masks else organ_labels
    subject = f"Organ labels {files[0].path.parent}"
    try:
        translation = build_translation(mapping, names or None, vocabulary, has_vocabulary_ids=False, subject=subject)
    except BankError as error:
        raise PreparationError(str(error).replace("--mask-labels", "--organ-labels")) from error
    if translation is None:
        raise PreparationError(
            f"{subject}: the meaning of the ids is unknown, because neither labels.json nor dataset.json is there. "
            "Choose --organ-labels totalsegmentator-v2, totalsegmentator-v1 or maisi."
        )
    return translation


def _describe_options(plan: PreparePlan) -> dict[str, Any]:
    rules = [
        f"{rule.role}/{rule.source}={rule.target}" if rule.role else f"{rule.source}={rule.target}"
        for rule in plan.request.rules
    ]
    options = {"map": rules, "runs_totalsegmentator": plan.request.runs_totalsegmentator}
    plain: dict[str, Any] = json.loads(json.dumps({**plan.settings.to_dict(), **options}))
    return plain


def _finish(out: Path, plan: PreparePlan, records: Sequence[Mapping[str, Any]]) -> PreparedDataset:
    """Deal out the folds and write ``cases.jsonl``, then ``dataset.yaml``, by which the folder is complete."""
    focus = set(plan.settings.focus_ids)
    patients = {record["id"]: plan.patients[record["id"]] for record in records}
    labels = {record["id"]: focus & set(map(int, record["voxels"])) for record in records}
    folds = assign_folds(patients, labels, plan.request.num_folds)
    cases = [
        PreparedCase.model_validate(
            {
                **{key: value for key, value in record.items() if key != "hu"},
                "patient": patients[record["id"]],
                "fold": folds[record["id"]],
            }
        )
        for record in records
    ]
    vocabulary = plan.settings.vocabulary
    present = labels_in(records)
    spec = PreparedSpec(
        name=plan.request.name,
        grid=GridSpec(shape=plan.settings.shape, spacing_mm=plan.settings.spacing_mm),
        labels={vocabulary.name_of(label_id): label_id for label_id in present},
        new_labels=dict(plan.settings.new_labels),
        num_folds=plan.request.num_folds,
        options=_describe_options(plan),
    )
    return write_lists(out, spec, cases, command="maisi-aug prepare")
