"""A benchmark or a cohort as one page, with the same figures as JSON and Markdown next to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from maisi_aug.cohort.manifest import MANIFEST_NAME, is_cohort
from maisi_aug.errors import BenchmarkError, EvaluationError, MaisiAugError
from maisi_aug.evaluation.benchmark.config import PLAN_NAME
from maisi_aug.evaluation.benchmark.text import to_report_text
from maisi_aug.evaluation.report import page
from maisi_aug.evaluation.report.cohort import build_cohort_sections, summarise_cohort, to_cohort_text
from maisi_aug.evaluation.report.page import Section
from maisi_aug.evaluation.report.scorecard import (
    MEASUREMENTS,
    build_evidence_html,
    build_scorecard,
    build_scorecard_html,
    find_other_cohorts,
    read_evidence,
    to_scorecard_text,
)
from maisi_aug.system.content import read_json
from maisi_aug.system.printed_text import spell_count
from maisi_aug.system.progress import ReportStage, report_nothing
from maisi_aug.system.whole_files import write_json_whole, write_text_whole

KINDS: Final = ("benchmark", "cohort")


@dataclass(frozen=True)
class Report:
    """A report as HTML page, Markdown summary and JSON figures.

    Attributes:
        html: HTML page.
        markdown: Summary as Markdown.
        document: Figures as JSON types.
    """

    html: str
    markdown: str
    document: dict[str, Any]


def build_report(
    path: Path,
    *,
    fid_file: Path | None = None,
    curve_file: Path | None = None,
    evidence: Sequence[Path] = (),
    notify: ReportStage = report_nothing,
) -> Report:
    """Build the report of a benchmark or a cohort.

    Args:
        path: Folder of the benchmark or cohort.
        fid_file: File that ``evaluate fid --out`` wrote, to show with the cohort.
        curve_file: File that ``evaluate detection-curve --out`` wrote, to show with the cohort.
        evidence: Folders with results of ``evaluate ... --out``, for the scorecard of a cohort.
        notify: Progress callback, called with (stage, done, total).

    Raises:
        BenchmarkError: The folder is neither a benchmark nor a cohort.
        EvaluationError: A file of figures has another format, or does not belong to the folder.
    """
    if (path / PLAN_NAME).is_file():
        if curve_file is not None:
            raise EvaluationError(f"{path}: --detection-curve can only be used with a cohort, but this is a benchmark.")
        if evidence:
            raise EvaluationError(f"{path}: --evidence can only be used with a cohort, but this is a benchmark.")
        return _report_benchmark(path, fid_file, notify)
    if is_cohort(path):
        document = summarise_cohort(path, fid_file=fid_file, curve_file=curve_file, notify=notify)
        return _report_cohort(path, document, evidence)
    raise BenchmarkError(f"{path}: neither a benchmark ({PLAN_NAME}) nor a cohort ({MANIFEST_NAME}). Check the path.")


def require_own_report(target: Path) -> None:
    """Raise if the JSON or Markdown file of a page would replace a file that is not of an earlier report.

    Their names follow from that of the page: ``benchmark.html`` would be accompanied by ``benchmark.json``, which is
    the name of a benchmark's plan.

    Raises:
        EvaluationError: There is such a file.
    """
    _, figures, summary = _files_of(target)
    if _is_report(figures):
        return
    for file in (figures, summary):
        if file.exists():
            raise EvaluationError(
                f"{file}: {target.name} needs to write this file, but it exists and is not from an earlier report. "
                "Choose another --out."
            )


def _files_of(target: Path) -> tuple[Path, Path, Path]:
    """The page, its figures and its summary."""
    return target, target.with_suffix(".json"), target.with_suffix(".md")


def _is_report(figures: Path) -> bool:
    try:
        content = read_json(figures)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("kind") in KINDS


def write_report(report: Report, target: Path) -> tuple[Path, ...]:
    """Write a report's page, figures and summary with the same stem, and return the paths, the page first.

    Args:
        report: Report to write.
        target: Path of the page; figures and summary get its stem.

    Raises:
        EvaluationError: A file of that name is not of an earlier report; nothing is written.
        VolumeError: A file cannot be written.
    """
    require_own_report(target)
    page, figures, summary = files = _files_of(target)
    write_text_whole(page, report.html)
    write_json_whole(figures, report.document)
    write_text_whole(summary, report.markdown)
    return files


def _report_benchmark(path: Path, fid_file: Path | None, notify: ReportStage) -> Report:
    # Networks that train come with these; a cohort's report needs none.
    from maisi_aug.evaluation.benchmark.results import summarise_benchmark
    from maisi_aug.evaluation.benchmark.run import load_benchmark
    from maisi_aug.evaluation.report.benchmark import build_benchmark_sections

    benchmark = load_benchmark(path)
    document = summarise_benchmark(benchmark)
    sections = build_benchmark_sections(benchmark, document)
    document["cohorts"] = {}
    for name, place in benchmark.plan.config.synthetic.items():
        folder = Path(place)
        if is_cohort(folder):
            try:
                cohort = summarise_cohort(folder, fid_file=fid_file, notify=notify)
            except MaisiAugError as error:
                sections.append(Section(f"{name}: Cohort", page.warn(str(error))))
                continue
            document["cohorts"][name] = cohort
            sections += build_cohort_sections(folder, cohort, name=name)
    lead = (
        f"{document['config']['real']}: {spell_count(document['num_train_cases'], 'real case')} to train on, "
        f"{spell_count(document['num_test_patients'], 'patient')} to test on."
    )
    html = page.build_page("Did the synthetic cases help?", lead, sections)
    return Report(html, to_report_text(document), document)


def _report_cohort(path: Path, document: dict[str, Any], folders: Sequence[Path]) -> Report:
    lead = f"{document['num_accepted']} of {spell_count(document['num_cases'], 'case')} accepted, in {path}."
    evidence, notes = read_evidence(folders)
    given = {"fid": document["fid"]} if document.get("fid") else {}
    document["notes"] += notes + find_other_cohorts(path, {**given, **evidence})
    entries = build_scorecard(document, evidence)
    sections = build_cohort_sections(path, document)
    sections.insert(1, Section("Scorecard", build_scorecard_html(entries)))
    sections[-1:-1] = [
        Section(MEASUREMENTS[name].title, build_evidence_html(name, found)) for name, found in evidence.items()
    ]
    html = page.build_page("Synthetic cohort", lead, sections)
    text = f"{to_cohort_text(document)}\n{to_scorecard_text(entries, evidence)}"
    return Report(html, text, {**document, "scorecard": [entry._asdict() for entry in entries], "evidence": evidence})
