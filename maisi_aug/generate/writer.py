"""Last stage of an attempt in a worker: gates on the image, the files, the picture, and their record.

The files are written to a folder of the worker, from which :mod:`maisi_aug.generate.driver` moves them to their place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL.Image import Image
from pydantic import JsonValue

from maisi_aug.cohort.folder import CohortFolder
from maisi_aug.cohort.manifest import AttemptRecord, FileRecord, Status
from maisi_aug.cohort.resolve import CohortRun
from maisi_aug.errors import CohortError, VolumeError
from maisi_aug.generate.attempts import Attempt, judge_drawn_image
from maisi_aug.pictures.preview import Caption, build_plain_preview, build_preview, save_picture
from maisi_aug.pictures.slices import SOFT_TISSUE, choose_mr_window
from maisi_aug.system.whole_files import is_disk_full, sha256_of
from maisi_aug.volumes.components import is_any_of
from maisi_aug.volumes.image_files import save_image, save_label_map

MAX_LESION_LINES = 4


@dataclass(frozen=True)
class CohortFacts:
    """Values that all attempts of a run have in common in the manifest, and which files are kept.

    Attributes:
        bundle: Name of the bundle that draws the images.
        bundle_fingerprint: SHA-256 over its weights and definition; empty if no weights are used.
        licence: Licence of the images.
        settings: Sampling settings.
        max_attempts: Attempts per case before it is rejected.
        kept_ids: Vocabulary ids in the label files; if empty, those of each case.
        keep_rejected: Whether the volumes of rejected cases are kept, in a separate folder.
    """

    bundle: str
    bundle_fingerprint: str
    licence: str
    settings: Mapping[str, JsonValue]
    max_attempts: int
    kept_ids: tuple[int, ...]
    keep_rejected: bool = False


@dataclass(frozen=True)
class CaseWriter:
    """Judges images and writes attempts; intended for a thread of its own, one attempt at a time.

    Attributes:
        facts: Facts of the run.
        folder: Folder to write to, laid out like a cohort.
        judge: Function that runs the remaining gates.
        draw_preview: Function that draws the preview of an attempt with an image.
        home: Folder of the cohort, for messages.
    """

    facts: CohortFacts
    folder: CohortFolder
    judge: Callable[[Attempt], Attempt]
    draw_preview: Callable[[Attempt], Image]
    home: Path

    def finish(self, attempt: Attempt) -> AttemptRecord:
        """Judge an attempt, write its files if it passes, and return its record.

        Raises:
            CohortError: The disk is full or the folder cannot be written to; nothing of the attempt remains.
        """
        return self.write(self.judge(attempt))

    def write(self, attempt: Attempt) -> AttemptRecord:
        """Write the files of a judged attempt if it has passed, and return its record.

        Raises:
            CohortError: The disk is full or the folder cannot be written to; nothing of the attempt remains.
        """
        started = perf_counter()
        is_last = attempt.is_final or attempt.number + 1 >= self.facts.max_attempts
        status: Status = "accepted" if not attempt.reason else "rejected" if is_last else "retried"
        written: list[Path] = []
        try:
            files = self._write_files(attempt, status, written)
        except (OSError, VolumeError) as error:
            for path in written:
                path.unlink(missing_ok=True)
            raise explain_disk(self.home, error) from error
        seconds = {**attempt.seconds, "files": perf_counter() - started}
        return self._build_record(attempt, status, files, seconds)

    def _write_files(self, attempt: Attempt, status: Status, written: list[Path]) -> dict[str, FileRecord]:
        """Write what an attempt leaves behind: everything when accepted, else a picture, if there is an image.

        Of a rejected case the volumes are kept as well, where the user wants that, in a folder apart.
        """
        drawn, image_hu = attempt.drawn, attempt.image_hu
        if drawn is None or image_hu is None:
            return {}
        case_id, files = attempt.case.case_id, {}
        if status == "accepted" or (status == "rejected" and self.facts.keep_rejected):
            roles = ("image",) if drawn.label_map is None else ("image", "label", "anatomy")
            files = {
                role: self.folder.file_of(role, case_id)
                if status == "accepted"
                else self.folder.rejected_file_of(role, case_id, attempt.number)
                for role in roles
            }
            written += files.values()
            save_image(files["image"], image_hu, drawn.grid)
            if drawn.label_map is not None:
                kept_ids = self.facts.kept_ids or attempt.case.label_ids
                label_map = np.where(is_any_of(drawn.label_map, kept_ids), drawn.label_map, 0)
                save_label_map(files["label"], label_map.astype(np.uint8), drawn.grid)
                save_label_map(files["anatomy"], drawn.label_map, drawn.grid)
        if status == "accepted":
            files["preview"] = self.folder.file_of("preview", case_id)
        else:
            files["preview"] = self.folder.rejected_preview(case_id, attempt.number)
        written.append(files["preview"])
        save_picture(files["preview"], self.draw_preview(attempt))
        return {role: FileRecord(self.folder.relative(path), sha256_of(path)) for role, path in files.items()}

    def _build_record(
        self, attempt: Attempt, status: Status, files: dict[str, FileRecord], seconds: Mapping[str, float]
    ) -> AttemptRecord:
        facts, case = self.facts, attempt.case
        return AttemptRecord(
            case_id=case.case_id,
            case_index=case.index,
            attempt=attempt.number,
            seed=attempt.seed,
            status=status,
            request=case.request,
            lesions=tuple(lesion.as_written() for lesion in case.lesions),
            required_ids=case.required_ids,
            verdicts=attempt.verdicts,
            reason=attempt.reason,
            mask_origin=attempt.origin,
            bundle=facts.bundle,
            bundle_fingerprint=facts.bundle_fingerprint,
            licence=facts.licence,
            settings={
                **facts.settings,
                **({"decoding": attempt.decoding} if attempt.decoding else {}),
                **({"completion": attempt.completion} if attempt.completion else {}),
            },
            files=files,
            seconds={stage: round(value, 3) for stage, value in seconds.items()},
            max_attempts=facts.max_attempts,
        )


def explain_disk(folder: Path, error: OSError | VolumeError) -> CohortError:
    """Return an error that explains why files cannot be written to a folder, such as a full disk.

    Args:
        folder: Folder that could not be written to.
        error: Error of the operating system, or of this package with that as its cause.

    Returns:
        An error to raise, whose message says whether the disk is full.
    """
    cause = error if isinstance(error, OSError) else error.__cause__
    if is_disk_full(cause):
        return CohortError(
            f"{folder}: the disk is full. Free some space and run the same command again: finished work is kept, and "
            "it continues from there."
        )
    return CohortError(f"{folder}: cannot be written to. {error}")


def open_writer(
    run: CohortRun,
    folder: CohortFolder,
    *,
    home: Path,
    device: str,
    compiler: str = "none",
    precision: str = "float32",
    num_threads: int | None = None,
) -> CaseWriter:
    """Return the writer for a cohort whose images are drawn as a whole, in contrast to insertion.

    Args:
        run: The cohort that is being made.
        folder: Folder to write to.
        home: Folder of the cohort, for messages.
        device: Type of the sampling device, such as ``cpu``.
        compiler: Compiler for the networks, or ``none``.
        precision: Precision of the networks.
        num_threads: Number of threads on a CPU, which affects the order of summation; None on other devices.
    """
    request, bundle = run.request, run.bundle
    settings: dict[str, JsonValue] = {
        **run.sampling.to_settings(),
        "guidance_scale": run.guidance_scale,
        "modality": run.modality,
        **({"body_region": list(request.body_region)} if request.body_region else {}),
        "device": device,
        **({"gates": request.gates.changes()} if request.gates.changes() else {}),
        "precision": precision,
        **({} if num_threads is None else {"num_threads": num_threads}),
        **({"compile": compiler} if compiler != "none" else {}),
    }
    facts = CohortFacts(
        bundle.name,
        bundle.fingerprint,
        bundle.licence,
        settings,
        max_attempts=request.max_attempts,
        kept_ids=run.plan.requested_ids,
        keep_rejected=request.keep_rejected,
    )
    return CaseWriter(
        facts, folder, lambda attempt: judge_drawn_image(run, attempt), lambda attempt: _preview(run, attempt), home
    )


def _preview(run: CohortRun, attempt: Attempt) -> Image:
    drawn, image_hu, vocabulary = attempt.drawn, attempt.image_hu, run.bundle.vocabulary
    assert drawn is not None
    assert image_hu is not None
    caption = describe_attempt(attempt, drawn.grid.voxel_ml, run.bundle.name)
    window = choose_mr_window(image_hu) if run.bundle.is_mr else None
    if drawn.label_map is None:
        return build_plain_preview(image_hu, drawn.grid, caption, window or SOFT_TISSUE)
    return build_preview(
        image_hu,
        drawn.label_map,
        drawn.grid,
        caption,
        lesion_ids=vocabulary.tumor_ids,
        organ_ids=attempt.case.label_ids,
        outlined_ids=None if run.request.anatomy is None else run.plan.requested_ids,
        names={label.id: label.name for label in vocabulary},
        window=window,
    )


def describe_attempt(attempt: Attempt, voxel_ml: float, bundle_name: str) -> Caption:
    """Return the caption of an attempt's preview: requested and realised lesions, and the origin of the label map.

    Args:
        attempt: Attempt with its lesions, verdicts and label map.
        voxel_ml: Volume of a voxel in mL.
        bundle_name: Name of the bundle that drew the image.
    """
    contrasts = {
        (verdict.figures.get("label"), verdict.figures.get("num_voxels")): verdict.figures.get("contrast_hu")
        for verdict in attempt.verdicts
        if verdict.gate == "lesion visibility"
    }
    lines = []
    largest_first = sorted(attempt.case.lesions, key=lambda lesion: -(lesion.realised_ml or 0.0))
    for lesion in largest_first[:MAX_LESION_LINES]:
        wanted = "its map has" if attempt.case.map_index is not None and lesion.rule is None else "requested"
        if lesion.realised_ml is None or lesion.diameter_mm is None:
            lines.append(f"{lesion.label}: absent, {wanted} {lesion.requested_ml:.2f} mL")
            continue
        contrast = contrasts.get((lesion.label, round(lesion.realised_ml / voxel_ml)))
        shown = f"; {contrast:+.0f} HU to host" if isinstance(contrast, float) else ""
        asked = f"{wanted} {lesion.requested_ml:.2f} mL"
        lines.append(f"{lesion.label}: {lesion.realised_ml:.2f} mL ({lesion.diameter_mm:.1f} mm), {asked}{shown}")
    if len(attempt.case.lesions) > MAX_LESION_LINES:
        lines.append(f"and {len(attempt.case.lesions) - MAX_LESION_LINES} more lesions")
    origin = f"{attempt.case.request}; bundle {bundle_name}; attempt {attempt.number + 1}; seed {attempt.seed}"
    failed = next((verdict.message for verdict in attempt.verdicts if not verdict.passed), "")
    return Caption(attempt.case.case_id, (*lines, origin, *([f"Rejected: {failed}"] if failed else [])))
