"""The last stage of an attempt: gates on the image, files, picture and, when all are whole, the manifest line."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from pydantic import JsonValue

from maisi_aug.cohort.folder import CohortFolder
from maisi_aug.cohort.manifest import AttemptRecord, FileRecord, ManifestWriter, Status, VerdictRecord
from maisi_aug.cohort.resolve import ResolvedCohort
from maisi_aug.errors import CohortError, VolumeError
from maisi_aug.generate.attempts import Attempt, judge_attempt
from maisi_aug.pictures.preview import Caption, build_plain_preview, build_preview, save_picture
from maisi_aug.sources.given import NoMap
from maisi_aug.sources.plant_and_bank import DrawnMap
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.volumes.components import is_any_of
from maisi_aug.volumes.image_files import save_image, save_label_map

MAX_LESION_LINES = 4
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class CaseWriter:
    """Judges images and writes attempts; meant to run in a thread of its own, one attempt at a time.

    Attributes:
        cohort: What is being made.
        folder: Where it goes.
        manifest: Open and locked.
        device: Type of the device that samples, ``cpu`` for instance.
        compiler: Of the networks, or ``none``.
        precision: What the networks compute in.
        num_threads: That a CPU computes with, which decides in what order it sums; None on other devices.
    """

    cohort: ResolvedCohort
    folder: CohortFolder
    manifest: ManifestWriter
    device: str
    compiler: str = "none"
    precision: str = "float32"
    num_threads: int | None = None

    def finish(self, attempt: Attempt) -> AttemptRecord:
        """Judge an attempt, write its files when it passes, and record it.

        Raises:
            CohortError: When the disk is full or the folder cannot be written; the attempt leaves nothing behind.
        """
        started = perf_counter()
        # A mask source has tried many anatomies before it gives up; another attempt would do no better. Nor would one
        # whose label map is given, where it is the map that fails.
        is_map_at_fault = attempt.case.map_index is not None and bool(attempt.reason)
        is_spent = attempt.number + 1 >= self.cohort.config.max_attempts
        is_last = attempt.drawn is None or is_map_at_fault or is_spent
        return self.write(judge_attempt(self.cohort, attempt), is_last=is_last, started=started)

    def write(self, attempt: Attempt, *, is_last: bool, started: float | None = None) -> AttemptRecord:
        """Write the files of an attempt that has been judged, and record it.

        Args:
            attempt: With all its verdicts.
            is_last: Whether no other attempt follows.
            started: When the judgement began, by ``perf_counter``; now when not given.

        Raises:
            CohortError: When the disk is full or the folder cannot be written; the attempt leaves nothing behind.
        """
        started = perf_counter() if started is None else started
        status: Status = "accepted" if not attempt.reason else "rejected" if is_last else "retried"
        written: list[Path] = []
        try:
            files = self._write_files(attempt, attempt.verdicts, status, written)
            seconds = {**attempt.seconds, "files": perf_counter() - started}
            record = self._build_record(attempt, status, files, seconds)
            self.manifest.append(record)
        except (OSError, VolumeError) as error:
            for path in written:
                path.unlink(missing_ok=True)
            raise self._explain(error) from error
        if status != "accepted":  # what an accepted attempt left that was made again on another machine
            for role in ("image", "label", "anatomy", "preview"):
                self.folder.file_of(role, record.case_id).unlink(missing_ok=True)
        return record

    def _write_files(
        self, attempt: Attempt, verdicts: Sequence[VerdictRecord], status: Status, written: list[Path]
    ) -> dict[str, FileRecord]:
        """Write what an attempt leaves behind: everything when accepted, else a picture, if there is an image.

        Of a rejected case the volumes are kept, too, where the user wants that, in a folder apart.
        """
        drawn, image_hu = attempt.drawn, attempt.image_hu
        if drawn is None or image_hu is None:
            return {}
        case_id, files = attempt.case.case_id, {}
        if status == "accepted" or (status == "rejected" and self.cohort.config.keep_rejected):
            is_kept_apart = status == "rejected"
            roles = ("image",) if isinstance(drawn, NoMap) else ("image", "label", "anatomy")
            files = {
                role: self.folder.rejected_file_of(role, case_id, attempt.number)
                if is_kept_apart
                else self.folder.file_of(role, case_id)
                for role in roles
            }
            written += files.values()
            save_image(files["image"], image_hu, drawn.grid)
            if not isinstance(drawn, NoMap):
                kept_ids = self.cohort.plan.requested_ids or attempt.case.label_ids
                label_map = np.where(is_any_of(drawn.label_map, kept_ids), drawn.label_map, 0)
                save_label_map(files["label"], label_map.astype(np.uint8), drawn.grid)
                save_label_map(files["anatomy"], drawn.label_map, drawn.grid)
        if status == "accepted":
            files["preview"] = self.folder.file_of("preview", case_id)
        else:
            files["preview"] = self.folder.rejected_preview(case_id, attempt.number)
        written.append(files["preview"])
        save_picture(files["preview"], self._draw_preview(attempt, drawn, image_hu, verdicts))
        return {role: FileRecord(self.folder.relative(path), sha256_of(path)) for role, path in files.items()}

    def _draw_preview(
        self,
        attempt: Attempt,
        drawn: DrawnMap | NoMap,
        image_hu: NDArray[np.int16],
        verdicts: Sequence[VerdictRecord],
    ) -> Image:
        caption = describe_attempt(attempt, verdicts, drawn.grid.voxel_ml, self.cohort.bundle.name)
        if isinstance(drawn, NoMap):
            return build_plain_preview(image_hu, drawn.grid, caption)
        vocabulary = self.cohort.bundle.vocabulary
        return build_preview(
            image_hu,
            drawn.label_map,
            drawn.grid,
            caption,
            lesion_ids=vocabulary.tumor_ids,
            organ_ids=attempt.case.label_ids,
            outlined_ids=None if self.cohort.config.anatomy is None else self.cohort.plan.requested_ids,
            names={label.id: label.name for label in vocabulary},
        )

    def _build_record(
        self,
        attempt: Attempt,
        status: Status,
        files: dict[str, FileRecord],
        seconds: dict[str, float],
    ) -> AttemptRecord:
        config, bundle = self.cohort.config, self.cohort.bundle
        settings: dict[str, JsonValue] = {
            "num_inference_steps": config.num_inference_steps,
            "guidance_scale": config.guidance_scale,
            "modality": config.modality,
            **({"body_region": list(config.body_region)} if config.body_region else {}),
            "device": self.device,
            **({"gates": config.gates.changes()} if config.gates.changes() else {}),
            "precision": self.precision,
            **({} if self.num_threads is None else {"num_threads": self.num_threads}),
            **({"compile": self.compiler} if self.compiler != "none" else {}),
            **({"decoding": attempt.decoding} if attempt.decoding else {}),
        }
        return AttemptRecord(
            case_id=attempt.case.case_id,
            case_index=attempt.case.index,
            attempt=attempt.number,
            seed=attempt.seed,
            status=status,
            request=attempt.case.request,
            lesions=attempt.lesions,
            required_ids=attempt.case.required_ids,
            verdicts=attempt.verdicts,
            reason=attempt.reason,
            mask_origin={} if attempt.drawn is None else attempt.drawn.origin,
            bundle=bundle.name,
            bundle_fingerprint=bundle.fingerprint,
            licence=bundle.licence,
            settings=settings,
            files=files,
            seconds={stage: round(value, 3) for stage, value in seconds.items()},
            max_attempts=config.max_attempts,
        )

    def _explain(self, error: OSError | VolumeError) -> CohortError:
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and cause.errno in _DISK_FULL:
            return CohortError(
                f"{self.folder.path}: expected room for another case, found a full disk. Free some space and run the "
                "same command again: what was finished is kept, and it goes on from there."
            )
        return CohortError(f"{self.folder.path}: expected a folder that can be written. {error}")


def describe_attempt(attempt: Attempt, verdicts: Sequence[VerdictRecord], voxel_ml: float, bundle_name: str) -> Caption:
    """The words on an attempt's picture: its lesions against the request, then where it comes from."""
    contrasts = {
        (verdict.figures.get("label"), verdict.figures.get("num_voxels")): verdict.figures.get("contrast_hu")
        for verdict in verdicts
        if verdict.gate == "lesion visibility"
    }
    lines = []
    wanted = "asked for" if attempt.case.map_index is None else "its map has"
    largest_first = sorted(attempt.lesions, key=lambda lesion: -(lesion.realised_ml or 0.0))
    for lesion in largest_first[:MAX_LESION_LINES]:
        if lesion.realised_ml is None or lesion.diameter_mm is None:
            lines.append(f"{lesion.label}: absent, {wanted} {lesion.requested_ml:.2f} mL")
            continue
        contrast = contrasts.get((lesion.label, round(lesion.realised_ml / voxel_ml)))
        shown = f"; {contrast:+.0f} HU to its host" if isinstance(contrast, float) else ""
        asked = f"{wanted} {lesion.requested_ml:.2f} mL"
        lines.append(f"{lesion.label}: {lesion.realised_ml:.2f} mL ({lesion.diameter_mm:.1f} mm), {asked}{shown}")
    if len(attempt.lesions) > MAX_LESION_LINES:
        lines.append(f"and {len(attempt.lesions) - MAX_LESION_LINES} more lesions")
    origin = f"{attempt.case.request}; bundle {bundle_name}; attempt {attempt.number + 1}; seed {attempt.seed}"
    failed = next((verdict.message for verdict in verdicts if not verdict.passed), "")
    return Caption(attempt.case.case_id, (*lines, origin, *([f"Rejected: {failed}"] if failed else [])))
