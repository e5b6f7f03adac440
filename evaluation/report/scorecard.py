"""The scorecard of a cohort: seven criteria for synthetic medical data, each with what was measured of it.

The criteria are those of Zamzmi et al., "Scorecards for Synthetic Medical Data Evaluation and Reporting", 2024:
congruence, coverage, constraint, completeness, compliance, comprehension and consistency. There is no sum: figures of
other kinds cannot be added, and what was not measured is named with the command that measures it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from maisi_aug.evaluation.output.files import percent, to_markdown
from maisi_aug.evaluation.report import page
from maisi_aug.system.content import read_json
from maisi_aug.system.printed_text import clean_document, spell_count

Figures = Mapping[str, Any]


class Measurement(NamedTuple):
    """A measurement of ``evaluate`` that a scorecard can show.

    Attributes:
        title: Title of its section.
        module: Module that formats it; imported only when needed, because some import torch.
        has_chart: Whether the module draws a chart of it.
    """

    title: str
    module: str
    has_chart: bool = True

    def to_report(self, document: Figures) -> str:
        """Format the figures of the measurement as Markdown."""
        return str(import_module(f"maisi_aug.evaluation.{self.module}").to_report(document))

    def draw_chart(self, document: Figures) -> str:
        """Draw the figures of the measurement as an SVG chart."""
        return str(import_module(f"maisi_aug.evaluation.{self.module}").draw_chart(document))


MEASUREMENTS: Final[dict[str, Measurement]] = {
    "distribution": Measurement("Distribution by region", "distribution.distances"),
    "equivalence": Measurement("Equivalence", "distribution.equivalence"),
    "memorization": Measurement("Copies of training cases", "cohort.memorization"),
    "reconstruction": Measurement("What the autoencoder preserves", "cohort.reconstruction"),
    "reader-test": Measurement("Reader test", "cohort.blind_pack", has_chart=False),
    "fid": Measurement("FID, as measured", "fid.measurement"),
    "hu": Measurement("HU, as measured", "cohort.hu"),
}
AUDITS: Final = {
    "images": "Images",
    "moved_images": "Images, flipped, rotated or cropped",
    "label_maps": "Label maps",
}


class Entry(NamedTuple):
    """One criterion of a cohort's scorecard, with what was found.

    Attributes:
        criterion: Name of the criterion, and its question.
        found: Findings, a sentence each; may be empty.
        missing: Commands that would measure more.
    """

    criterion: str
    found: tuple[str, ...]
    missing: tuple[str, ...]


def read_evidence(folders: Sequence[Path]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Read results of ``evaluate ... --out`` from folders.

    Args:
        folders: Folders with any number of results; if a measurement occurs several times, the last counts.

    Returns:
        Measurement -> figures, and a sentence about each result that cannot be shown.
    """
    found: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for folder in folders:
        paths = sorted(folder.glob("*.json")) if folder.is_dir() else [folder] if folder.is_file() else []
        known = [path for path in paths if (content := _read(path)) is not None and _take(content, path, found, notes)]
        if not known:
            notes.append(
                f"{folder}: has no results of 'maisi-aug evaluate ... --out' that can be shown. Check --evidence."
            )
    return found, notes


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("measurement") in MEASUREMENTS else None


def _take(content: dict[str, Any], path: Path, found: dict[str, dict[str, Any]], notes: list[str]) -> bool:
    """Keep a result that its own report and chart can show."""
    name = content["measurement"]
    measurement = MEASUREMENTS[name]
    try:
        measurement.to_report(content)
        if measurement.has_chart:
            measurement.draw_chart(content)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        notes.append(f"{path}: not {name} as 'maisi-aug evaluate {name}' writes it: {error!r}. Measure again.")
        return False
    found[name] = content
    return True


def find_other_cohorts(path: Path, evidence: Mapping[str, Figures]) -> list[str]:
    """Return a sentence about every measurement of cases in a folder of another name than the cohort's.

    Folders may have moved since; their names tell enough.

    Args:
        path: Folder of the cohort that is reported on.
        evidence: Measurement -> figures.
    """
    notes = []
    for name, content in evidence.items():
        synthetic = content.get("synthetic")
        measured = (
            content.get("path") if name == "hu" else synthetic.get("path") if isinstance(synthetic, dict) else None
        )
        if isinstance(measured, str) and Path(measured).name not in ("", path.resolve().name):
            notes.append(
                f"{MEASUREMENTS[name].title}: measured on {measured}, this report is of {path}. Measure this cohort, "
                "or check --evidence and --fid."
            )
    return notes


def build_scorecard(cohort: Figures, evidence: Mapping[str, Figures]) -> list[Entry]:
    """Build a cohort's scorecard: the seven criteria with what was found.

    Args:
        cohort: Result of :func:`maisi_aug.evaluation.report.cohort.summarise_cohort`.
        evidence: Measurement -> figures.
    """
    return [
        _judge_congruence(cohort, evidence),
        _judge_coverage(evidence),
        _judge_constraint(cohort),
        _judge_completeness(cohort),
        _judge_compliance(cohort, evidence),
        _judge_comprehension(cohort),
        _judge_consistency(cohort, evidence),
    ]


def _judge_congruence(cohort: Figures, evidence: Mapping[str, Figures]) -> Entry:
    found, missing = [], []
    if "distribution" in evidence:
        rows = evidence["distribution"]["regions"]
        far = [row["region"] for row in rows if row["frd_p"] < 0.05]
        found.append(
            (
                f"Radiomics of {len(rows) - len(far)} of {spell_count(len(rows), 'region')} no farther "
                "apart than real cases "
                "reassigned at random"
            )
            + (f"; farther: {', '.join(far)}" if far else "")
            + f". Precision of the body {rows[0]['precision']['value']:.2f}."
        )
    else:
        missing.append("evaluate distribution")
    if "equivalence" in evidence:
        counts = Counter(row["verdict"] for row in evidence["equivalence"]["rows"])
        words = {"cannot tell": "undecided"}
        said = ", ".join(f"{number} {words.get(verdict, verdict)}" for verdict, number in counts.most_common())
        found.append(f"Quantities of organs and lesions: {said}.")
    else:
        missing.append("evaluate equivalence")
    figures = evidence.get("fid") or cohort.get("fid")
    if figures is not None:
        mean = figures["planes"]["mean"]
        floor = "" if mean["floor"] is None else f", real halves {np.mean(mean['floor']):.2f}"
        found.append(f"FID {mean['fid']:.2f}{floor}.")
    if "reader-test" in evidence:
        for reader in evidence["reader-test"]["readers"]:
            found.append(f"Reader {reader['reader']}: {reader['verdict']} ({reader['all']['share']:.2f} right).")
    else:
        missing.append("evaluate blind-pack")
    return Entry("Congruence: do cases look like real ones?", tuple(found), tuple(missing))


def _judge_coverage(evidence: Mapping[str, Figures]) -> Entry:
    if "distribution" not in evidence:
        return Entry("Coverage: are all kinds of real cases there?", (), ("evaluate distribution",))
    rows = evidence["distribution"]["regions"]
    found = [
        f"{row['region']}: recall {row['recall']['value']:.2f}, coverage {row['coverage']['value']:.2f} (real halves "
        f"{np.mean(row['floors']['recall']):.2f} and {np.mean(row['floors']['coverage']):.2f})."
        for row in sorted(rows, key=lambda row: row["coverage"]["value"])[:3]
    ]
    return Entry("Coverage: are all kinds of real cases there?", tuple(found), ())


def _judge_constraint(cohort: Figures) -> Entry:
    found = [f"{cohort['num_accepted']} of {spell_count(cohort['num_cases'], 'case')} passed every gate."]
    if cohort["hu"] is not None and cohort["hu"]["inside"] is not None:  # None where no label has a range
        found.append(f"{percent(cohort['hu']['inside'])} of organ medians within {cohort['hu']['reference']}.")
    if cohort["lesions"] is not None:
        error = cohort["lesions"]["calibration"][0].get("mean_absolute_error")
        if error is not None:
            found.append(f"Mean error of lesion sizes {100 * error:.1f}%.")
    return Entry("Constraint: do they obey anatomy, HU and the request?", tuple(found), ())


def _judge_completeness(cohort: Figures) -> Entry:
    left = cohort["num_cases"] - cohort["num_accepted"]
    found = [
        f"{spell_count(cohort['num_accepted'], 'case')} with image, label map and manifest line; {left} "
        "planned ones without."
    ]
    if cohort["hu"] is not None:
        found.append(f"{spell_count(len(cohort['hu']['labels']), 'label')} shown.")
    return Entry("Completeness: is everything there?", tuple(found), ())


def _judge_compliance(cohort: Figures, evidence: Mapping[str, Figures]) -> Entry:
    licences = sorted({row["licence"] for row in cohort["provenance"]})
    found = [f"Licence: {', '.join(licences) or 'unknown'}."]
    if "memorization" not in evidence:
        return Entry("Compliance: privacy and licences", tuple(found), ("evaluate memorization",))
    audit = evidence["memorization"]
    for kind, name in AUDITS.items():
        found.append(f"{name}: {audit[kind]['verdict']}.")
    planted = audit["planted"]
    found.append(f"The audit found {planted['num_found']} of {planted['num_planted']} planted copies.")
    return Entry("Compliance: privacy and licences", tuple(found), ())


def _judge_comprehension(cohort: Figures) -> Entry:
    rows = cohort["provenance"]
    # Lesions that are painted without networks have no weights to name.
    named = sum(int(row["cases"]) for row in rows if row["weights"] or row["mask_source"] == "insertion")
    return Entry(
        "Comprehension: is it documented how they were made?",
        (
            (
                f"{named} of {spell_count(cohort['num_accepted'], 'case')} record bundle or painter, hash of its "
                "weights if it has any, licence and source of their map."
            ),
        ),
        (),
    )


def _judge_consistency(cohort: Figures, evidence: Mapping[str, Figures]) -> Entry:
    found = []
    if cohort["hu"] is not None:
        judged = [row for row in cohort["hu"]["labels"] if row["inside"] is not None]
        if judged:
            worst = min(judged, key=lambda row: row["inside"])
            found.append(f"HU by label: worst {worst['label']}, {percent(worst['inside'])} within range.")
    if "distribution" in evidence:
        rows = evidence["distribution"]["regions"]
        worst = min(rows, key=lambda row: row["precision"]["value"])
        found.append(f"Precision by region: worst {worst['region']}, {worst['precision']['value']:.2f}.")
    missing = () if "distribution" in evidence else ("evaluate distribution",)
    return Entry("Consistency: is it as good for every organ?", tuple(found), missing)


def build_scorecard_html(entries: Sequence[Entry]) -> str:
    """Format a scorecard as HTML: short lists, which also suit narrow screens."""
    note = (
        "Criteria of Zamzmi et al., Scorecards for Synthetic Medical Data Evaluation and Reporting, 2024. There is "
        "no total: read each criterion by itself; a criterion that was not measured counts neither for nor against."
    )
    parts = [page.paragraph(note, kind="note")]
    for entry in entries:
        parts += [page.heading(entry.criterion), page.bullets(entry.found or ("Not measured.",))]
        if entry.missing:
            commands = ", ".join(f"maisi-aug {command}" for command in entry.missing)
            parts.append(page.paragraph(f"Further evidence: {commands}.", kind="note"))
    return "\n".join(parts)


def build_evidence_html(name: str, document: Figures) -> str:
    """Format the figures of a measurement as HTML, for a section of the page.

    Args:
        name: Name of the measurement.
        document: Its figures.
    """
    measurement = MEASUREMENTS[name]
    if measurement.has_chart:
        return page.chart(measurement.draw_chart(document), caption=measurement.title)
    return page.bullets(
        f"{reader['reader']}: {reader['verdict']}, {reader['all']['num_right']} of {reader['all']['num']} right."
        for reader in document["readers"]
    )


def to_scorecard_text(entries: Sequence[Entry], evidence: Mapping[str, Figures]) -> str:
    """Format a scorecard, and the reports behind it, as Markdown.

    Args:
        entries: Criteria with what was found.
        evidence: Name of the measurement -> its figures.
    """
    rows = (
        [entry.criterion, " ".join(entry.found) or "not measured", ", ".join(entry.missing) or None]
        for entry in (Entry(**clean_document(entry._asdict())) for entry in entries)
    )
    parts = ["# Scorecard\n", to_markdown(["criterion", "what was found", "further evidence"], rows)]
    return "\n".join([*parts, *(MEASUREMENTS[name].to_report(document) for name, document in evidence.items())])
