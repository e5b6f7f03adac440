"""How commands grow with a cohort: ``python -m tests.benchmarks.growth [--against FOLDER] [--out FOLDER]``.

Cohorts of 100 cases and more, all of them links to a few files of 7x9x11 voxels, with manifests as long as real ones.
Every command is a process of its own; its processor time and the most memory that it held are the system's figures,
those of processes that it started included. ``--against`` names the folder of another version of this package, which
does the same beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from pydantic import JsonValue

from maisi_aug.cohort.folder import CohortFolder
from maisi_aug.cohort.manifest import FOLDERS, MANIFEST_NAME, AttemptRecord, FileRecord, VerdictRecord
from maisi_aug.cohort.plan import CasePlan
from maisi_aug.cohort.request import COHORT_NAME, build_request
from maisi_aug.cohort.resolve import CohortRun, resolve
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.pictures.preview import Caption, build_plain_preview, save_picture
from maisi_aug.system.seeds import case_seed
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.vocabulary.labels import BODY_ID
from maisi_aug.volumes.image_files import save_image, save_label_map
from tests.builders.tiny_cohort import GRID, HEPATIC_TUMOR, LUNG_TUMOR, build_anatomy

REPOSITORY: Final = Path(__file__).resolve().parents[2]
LABELS: Final = ("hepatic tumor:10-30mm", "lung tumor:8-30mm")
LINKS_PER_FILE: Final = 20_000
"""Some file systems allow 65,000 names for a file."""
ORGANS: Final = ("liver", "spleen", "pancreas", "kidney", "lung", "bone")
MAX_SLOW_CASES: Final = 10_000
"""Exports that take milliseconds for every case in other packages, nnU-Net's check and pydicom, are run up to here."""


def write_cohort(folder: Path, num_cases: int) -> None:
    """A finished cohort that the command of :func:`list_commands` goes on with."""
    cohort = resolve(build_request({"labels": list(LABELS), "num_cases": num_cases}, source="growth"))
    place = CohortFolder(folder)
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    (folder / COHORT_NAME).write_text(yaml.safe_dump(cohort.to_document(), sort_keys=False))
    roles = ("image", "label", "anatomy", "preview")
    with (folder / MANIFEST_NAME).open("w") as manifest:
        for case in cohort.plan.cases:
            if case.index % LINKS_PER_FILE == 0:
                sources = _write_sources(folder, case.index)
                hashes = {role: sha256_of(sources[role]) for role in roles}
            files = {role: place.file_of(role, case.case_id) for role in roles}
            for role, path in files.items():
                path.hardlink_to(sources[role])
            named = {role: FileRecord(place.relative(path), hashes[role]) for role, path in files.items()}
            manifest.write(replace(_build_record(cohort, case), files=named).to_json() + "\n")


def _write_sources(folder: Path, number: int) -> dict[str, Path]:
    """The files that cases are links to, outside the folders that are listed."""
    place = folder / f"sources_{number}"
    paths = {role: place / f"{role}.nii.gz" for role in ("image", "label", "anatomy")}
    anatomy = build_anatomy(HEPATIC_TUMOR, LUNG_TUMOR)
    noise = np.random.default_rng(number).integers(-20, 20, GRID.shape)
    tissue_hu = 50 + noise - 60 * (anatomy == HEPATIC_TUMOR)
    image_hu = np.where(anatomy == 0, -1000, tissue_hu).astype(np.int16)
    save_image(paths["image"], image_hu, GRID)
    save_label_map(paths["label"], np.where(anatomy < BODY_ID, anatomy, 0).astype(np.uint8), GRID)
    save_label_map(paths["anatomy"], anatomy, GRID)
    paths["preview"] = place / "preview.png"
    save_picture(paths["preview"], build_plain_preview(image_hu, GRID, Caption("case", ("a preview",))))
    return paths


def _build_verdicts(case: CasePlan, lesions: Sequence[Lesion]) -> tuple[VerdictRecord, ...]:
    """Verdicts with figures as the gates give them."""
    label = lesions[0].label
    organs: list[JsonValue] = [
        {
            "organ": name,
            "median_hu": 50.0 + case.index % 13,
            "low_hu": -21.6,
            "high_hu": 162.0,
            "num_voxels": 20000 + case.index,
            "inside": True,
            "judged": True,
        }
        for name in ORGANS
    ]
    sizes: dict[str, JsonValue] = {
        "label": label,
        "requested_ml": [part.requested_ml for part in case.lesions],
        "realised_ml": [lesion.realised_ml for lesion in lesions],
        "errors_ml": [0.001 * (case.index % 7)],
        "voxel_ml": GRID.voxel_ml,
        "tolerance": 0.1,
    }
    seen: dict[str, JsonValue] = {
        "label": label,
        "num_voxels": 92,
        "lesion_hu": 13.0,
        "host_hu": 74.0,
        "contrast_hu": -61.0,
    }
    return (
        VerdictRecord("presence", True, {"num_voxels": {"26": 92}, "missing_ids": []}, "Presence: all are there."),
        VerdictRecord("lesion size", True, sizes, f"{label}: Lesion size: 1 of 1 as requested."),
        VerdictRecord(
            "geometry", True, {"image_shape": list(GRID.shape), "lowest_hu": -1000.0}, "Geometry: as expected."
        ),
        VerdictRecord("organ HU", True, {"organs": organs, "num_judged": 6}, "Organ HU: 6 of 6 inside their range."),
        VerdictRecord("lesion visibility", True, seen, "Lesion visibility: found -61 HU at 22.4 mm."),
    )


def _build_record(cohort: CohortRun, case: CasePlan) -> AttemptRecord:
    """An accepted attempt, whose lesions are up to 0.6% larger than requested."""
    lesions = tuple(
        Lesion(
            part.label_id,
            part.label,
            part.requested_ml,
            part.percentile,
            part.requested_ml * (1 + 1e-3 * (case.index % 7)),
            part.requested_mm,
            (3, 4, 2),
            1,
            part.size_source,
        )
        for part in case.lesions
    )
    seed = case_seed(cohort.seed, case.asked, case.index, 0)
    return AttemptRecord(
        case_id=case.case_id,
        case_index=case.index,
        attempt=0,
        seed=seed,
        status="accepted",
        request=case.request,
        lesions=lesions,
        required_ids=case.required_ids,
        verdicts=_build_verdicts(case, lesions),
        reason="",
        mask_origin={"source": "plant", "bank": "phantom", "phantom_seed": seed, "region": "abdomen", "base": 0},
        bundle=cohort.bundle.name,
        bundle_fingerprint=cohort.bundle.fingerprint,
        licence=cohort.bundle.licence,
        settings={"num_inference_steps": 4, "modality": "ct", "decoding": {"window": "whole", "num_splits": 1}},
        files={},
        seconds={"mask": 0.2, "image": 3.1, "files": 0.1},
        max_attempts=cohort.request.max_attempts,
    )


def list_commands(cohort: Path, out: Path, num_cases: int) -> Iterator[tuple[str, list[str]]]:
    """What is measured, by name."""
    labels = [word for label in LABELS for word in ("--labels", label)]
    resume = ["synthesize", *labels, "-n", str(num_cases), "--out", str(cohort), "--quiet"]
    yield "resume", resume
    yield "dry run", [*resume[:-1], "--dry-run"]
    yield "report", ["report", str(cohort), "--out", str(out / "report.html")]
    yield "evaluate lesions", ["evaluate", "lesions", str(cohort), "--out", str(out / "lesions"), "--quiet"]
    yield "export monai", ["export", "monai", str(cohort), "--out", str(out / "monai")]
    if num_cases <= MAX_SLOW_CASES:
        yield "export dicom", ["export", "dicom", str(cohort), "--out", str(out / "dicom")]
        words = ["export", "nnunet", str(cohort), "--dataset-id", "7", "--name", "Growth"]
        yield "export nnunet", [*words, "--out", str(out / "raw")]


def measure(words: Sequence[str], version: Path, timeout_s: float) -> dict[str, Any]:
    """Run a command of a version and tell its processor time and memory, or why there are none."""
    environment = {**os.environ, "PYTHONPATH": str(version), "OMP_NUM_THREADS": "1"}
    program = (
        "import json,resource,subprocess,sys\n"
        "code = subprocess.run([sys.executable, '-m', 'maisi_aug.cli.app', *sys.argv[1:]], stdout=2).returncode\n"
        "use = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps([code, use.ru_utime + use.ru_stime, use.ru_maxrss]))\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            env=environment,
            cwd=version,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"over {timeout_s:.0f} s"}
    code, seconds, kilobytes = json.loads(done.stdout)
    if code != 0:
        return {"error": f"exit {code}: {done.stderr.strip()[-200:]}"}
    return {"seconds": round(seconds, 2), "peak_mb": round(kilobytes / 1000)}


def to_markdown(document: dict[str, Any]) -> str:
    """A table of seconds and megabytes; the columns of the other version only where there is one."""
    versions = [name for name in ("before", "now") if any(row["version"] == name for row in document["rows"])]
    header = ["command", "cases", *(f"{name}, s" for name in versions), *(f"{name}, MB" for name in versions)]
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    found = {(row["command"], row["num_cases"], row["version"]): row for row in document["rows"]}
    for command, num_cases in dict.fromkeys((row["command"], row["num_cases"]) for row in document["rows"]):
        pair = [found.get((command, num_cases, name), {}) for name in versions]
        cells = [str(row.get("seconds", row.get("error", "-"))) for row in pair]
        cells += [str(row.get("peak_mb", "-")) for row in pair]
        lines.append("| " + " | ".join([command, f"{num_cases:,}", *cells]) + " |")
    return (
        "# Growth with the number of cases\n\nWritten by `python -m tests.benchmarks.growth`. Seconds of processor "
        "time and most resident memory of the command, its start included (about "
        f"{document['start_seconds']} s). Cases are links to files of 7x9x11 voxels.\n\n" + "\n".join(lines) + "\n"
    )


def main() -> None:
    """Measure, print the table and write it where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="+", default=[100, 1000, 10_000], help="sizes of the cohorts")
    parser.add_argument("--against", type=Path, help="folder of another version of this package")
    parser.add_argument("--max-against", type=int, default=10_000, help="largest cohort that it is run on")
    parser.add_argument("--timeout", type=float, default=600.0, help="longest that a command may take, in seconds")
    parser.add_argument("--commands", nargs="+", help="names of the commands to run; all by default")
    parser.add_argument("--out", type=Path, help="folder for results_growth.json and results_growth.md")
    options = parser.parse_args()
    versions = {"now": REPOSITORY, **({"before": options.against.resolve()} if options.against else {})}
    rows: list[dict[str, Any]] = []
    start = measure(["--version"], REPOSITORY, options.timeout)
    with tempfile.TemporaryDirectory(prefix="growth-") as scratch:
        for num_cases in options.cases:
            cohort = Path(scratch, f"cohort_{num_cases}")
            write_cohort(cohort, num_cases)
            for name, version in versions.items():
                if name == "before" and num_cases > options.max_against:
                    continue
                out = Path(scratch, "out")
                for command, words in list_commands(cohort, out, num_cases):
                    if options.commands and command not in options.commands:
                        continue
                    figures = measure(words, version, options.timeout)
                    rows.append({"command": command, "num_cases": num_cases, "version": name, **figures})
                    print(rows[-1], file=sys.stderr, flush=True)
                shutil.rmtree(out, ignore_errors=True)
            shutil.rmtree(cohort)
    rows.sort(key=lambda row: (row["command"], row["num_cases"], row["version"]))
    document = {"start_seconds": start.get("seconds"), "num_cores": os.cpu_count(), "rows": rows}
    text = to_markdown(document)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results_growth.json").write_text(json.dumps(document, indent=1) + "\n")
        (options.out / "results_growth.md").write_text(text)


if __name__ == "__main__":
    main()
