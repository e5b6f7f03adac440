"""A cohort of real CTs with drawn lesions: made case by case, judged, recorded, and gone on with after a stop."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from maisi_aug.cohort.folder import CONTACT_SHEET_NAME, CohortFolder, open_cohort
from maisi_aug.cohort.kept_labels import spell_labels
from maisi_aug.cohort.manifest import (
    AttemptRecord,
    FileRecord,
    LesionRecord,
    Manifest,
    ManifestWriter,
    Status,
    VerdictRecord,
    load_manifest,
)
from maisi_aug.cohort.plan import CasePlan, PlannedLesion
from maisi_aug.cohort.twins import ORIGIN_KEY
from maisi_aug.errors import CohortError, LesionError, PreparationError, UnfitCtError, VolumeError
from maisi_aug.gates.judgement import unrealised_lesions
from maisi_aug.generate.run import CohortSummary, Listener
from maisi_aug.insertion.backgrounds import Background
from maisi_aug.insertion.config import ResolvedInsertion
from maisi_aug.insertion.crops import cut_crop
from maisi_aug.insertion.insert import Host, Insertion, LabelledHost, LungHost, insert_lesion
from maisi_aug.insertion.painting import Painter, ProceduralPainter, Texture
from maisi_aug.insertion.surroundings import LUNG_ID, label_surroundings
from maisi_aug.pictures.contact_sheet import save_contact_sheet
from maisi_aug.pictures.preview import Caption, build_preview, save_picture
from maisi_aug.system.seeds import derive_seed
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.vocabulary.sizes import diameter_mm
from maisi_aug.volumes.components import is_any_of
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image, save_label_map

COHORT_HEADER = ("Made by maisi-aug insert; the command that began it goes on with this cohort.",)
LUNG_LOBES = frozenset(range(28, 33))
PREVIEW_MM = 120.0
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass
class _Attempt:
    """A case in the making: the CT, what has been drawn into it so far, and what the gates say."""

    case: CasePlan
    number: int
    seed: int
    background_id: str
    background_path: Path
    image: NDArray[Any] | None = None
    grid: Grid | None = None
    label_map: NDArray[np.uint8] | None = None
    lesions: tuple[LesionRecord, ...] = ()
    verdicts: tuple[VerdictRecord, ...] = ()
    origins: tuple[dict[str, JsonValue], ...] = ()
    reason: str = ""
    seconds: float = 0.0
    is_hopeless: bool = False
    passed_over: tuple[str, ...] = ()


def insert_cohort(
    cohort: ResolvedInsertion, folder: Path, *, device: str = "auto", listener: Listener | None = None
) -> CohortSummary:
    """Make a cohort, or go on with one that was begun with the same configuration.

    Args:
        cohort: What to make.
        folder: Where to; new, empty, or this cohort's.
        device: Of the networks, where they draw.
        listener: Is told how the run goes.

    Raises:
        CohortError: When the folder is not this cohort's, in use, or full.
        BundleError: When the weights or the device cannot be used.
        PreparationError: When a CT is none, in HU.
        LesionError: When no lesion fits into any CT.
    """
    listener = listener or Listener()
    started, config = perf_counter(), cohort.config
    with open_cohort(folder, cohort.to_document(), header=COHORT_HEADER) as (place, writer, recorded):
        manifest = recorded.reopen(config.max_attempts)
        listener.starts(len(cohort.plan.cases), manifest)
        todo = [group for group in cohort.groups if not manifest.settled_indices.issuperset(c.index for c in group)]
        if todo:
            listener.enters("loading the networks" if config.painter == "network" else "drawing")
            run = _Run(cohort, place, writer, build_painter(cohort, device), listener)
            for group in todo:
                run.settle(group, manifest)
        listener.enters("drawing the contact sheet")
        done = load_manifest(folder).reopen(config.max_attempts)
        _draw_contact_sheet(place, cohort, [record.files["preview"].path for record in done.accepted])
    listener.enters("done")
    num_new = len(done.settled_indices) - len(manifest.settled_indices)
    return CohortSummary(folder, len(cohort.plan.cases), done, perf_counter() - started, num_new)


def build_painter(cohort: ResolvedInsertion, device: str) -> Painter:
    """What draws the lesions of a cohort.

    Raises:
        BundleError: When the weights or the device cannot be used.
    """
    if cohort.config.painter == "procedural":
        return ProceduralPainter()
    from maisi_aug.insertion.drawing import open_bundle_painter

    return open_bundle_painter(cohort.bundle, device, num_inference_steps=cohort.config.num_inference_steps)


@dataclass(frozen=True)
class _Run:
    """Where cases go and what draws them."""

    cohort: ResolvedInsertion
    folder: CohortFolder
    manifest: ManifestWriter
    painter: Painter
    listener: Listener
    lungs: dict[int, LungHost] = field(default_factory=dict)
    unfit: dict[tuple[int, tuple[int, ...]], str] = field(default_factory=dict)

    def settle(self, group: Sequence[CasePlan], manifest: Manifest) -> None:
        """Make attempts at the cases of a group until all of one are accepted or the budget is spent.

        Twins that a stopped run has recorded already are drawn again to the same bytes, and not written twice.
        """
        todo = {case.index for case in group if case.index not in manifest.settled_indices}
        number, status = max(manifest.next_attempt(index) for index in todo), "retried"
        while status == "retried":
            attempts = [self._draw(case, number) for case in group]
            failed = next((attempt for attempt in attempts if attempt.reason), None)
            for attempt in attempts:
                attempt.is_hopeless = any(twin.is_hopeless for twin in attempts)
                if failed is not None and not attempt.reason:
                    attempt.reason = f"Its twin {failed.case.case_id} failed: {failed.reason}"
                if attempt.case.index in todo:
                    record = self._finish(attempt)
                    self.listener.records(record)
                    status = record.status
            number += 1

    def _draw(self, case: CasePlan, number: int) -> _Attempt:
        """An attempt in the CT whose turn it is, or in the next that can take the lesions whatever is drawn."""
        started = perf_counter()
        order = self.cohort.order_backgrounds(case.index, number)
        for place, index in enumerate(order):
            attempt = self._draw_into(index, case, number)
            attempt.passed_over = tuple(self.cohort.backgrounds.cases[other].id for other in order[:place])
            if not attempt.is_hopeless:
                break
        attempt.seconds = perf_counter() - started
        return attempt

    def _draw_into(self, index: int, case: CasePlan, number: int) -> _Attempt:
        files = self.cohort.backgrounds.cases[index]
        attempt = _Attempt(case, number, self.cohort.seed_of(case, number), files.id, files.image)
        try:
            if (reason := self.unfit.get((index, case.label_ids))) is not None:
                raise UnfitCtError(reason)
            self._insert_all(attempt, index)
        except LesionError as error:
            attempt.reason, attempt.image = str(error), None
            attempt.is_hopeless = isinstance(error, UnfitCtError)
        return attempt

    def _open(self, index: int, case: CasePlan) -> tuple[Background, tuple[Host, ...]]:
        """A CT with the hosts of a case's lesions; one that has none is remembered, and not read again.

        Raises:
            UnfitCtError: It cannot be read, or lacks a host.
        """
        try:
            background = self.cohort.backgrounds.load(index)
            return background, tuple(self._find_host(index, background, lesion) for lesion in case.lesions)
        except (LesionError, PreparationError, VolumeError) as error:  # one bad CT does not stop a cohort
            self.unfit[index, case.label_ids] = str(error)
            raise UnfitCtError(str(error)) from error

    def _insert_all(self, attempt: _Attempt, index: int) -> None:
        """Draw the lesions of a case, the largest first, each clear of the real ones and of those before it."""
        background, hosts = self._open(index, attempt.case)
        image, vocabulary = background.image.copy(), self.cohort.backgrounds.vocabulary
        known = background.label_map
        label_map = np.zeros(image.shape, dtype=np.uint8) if known is None else known.copy()
        occupied = is_any_of(label_map, vocabulary.tumor_ids)
        order = sorted(range(len(attempt.case.lesions)), key=lambda n: -attempt.case.lesions[n].volume_ml)
        records: dict[int, LesionRecord] = {}
        for place in order:
            lesion = attempt.case.lesions[place]
            host = hosts[place]
            seed = derive_seed(attempt.seed, "lesion", place)
            request = self.cohort.request_of(attempt.case, place, is_lung=_is_lung(host), seed=seed)
            try:
                made = insert_lesion(
                    image,
                    background.grid.spacing_mm,
                    host,
                    request,
                    self.painter,
                    occupied=occupied,
                    seed=seed,
                    size_tolerance=self.cohort.config.size_tolerance,
                )
            except UnfitCtError as error:
                if records:  # the lesions before it took the room, and may lie elsewhere another time
                    raise LesionError(str(error)) from error
                raise
            image[made.box] = made.image
            label_map[made.box][made.lesion] = lesion.label_id
            occupied[made.box] |= made.lesion
            records[place] = _describe(lesion, made, host)
            self._note(attempt, lesion, made, request.texture)
        attempt.lesions = tuple(records[place] for place in range(len(records)))
        attempt.image, attempt.grid, attempt.label_map = image, background.grid, label_map

    def _find_host(self, index: int, background: Background, lesion: PlannedLesion) -> Host:
        """The host of a lesion; lungs that were told from HU are remembered, as all cases into a CT need them."""
        host_ids = self.cohort.backgrounds.vocabulary.hosts_of(lesion.label_id)
        if index in self.lungs and LUNG_LOBES.issuperset(host_ids):
            return self.lungs[index]
        host = find_host(background, host_ids, lesion.label)
        if isinstance(host, LungHost):
            self.lungs[index] = host
        return host

    def _note(self, attempt: _Attempt, lesion: PlannedLesion, made: Insertion, texture: Texture) -> None:
        """Add verdicts and origin of a lesion, and the first reason to reject it."""
        for verdict in made.verdicts:
            plain = verdict.to_dict()
            figures = {"label": lesion.label, **plain["figures"]}
            message = f"{lesion.label}: {plain['message']}"
            attempt.verdicts += (VerdictRecord(plain["gate"], plain["passed"], figures, message),)
            if not verdict.passed and not attempt.reason:
                attempt.reason = message
        attempt.origins += (
            {
                "label": lesion.label,
                "texture": texture,
                "attachment": made.place.attachment,
                "centre_ijk": list(made.place.centre),
                "box": [[part.start, part.stop] for part in made.box],
                "num_zone_voxels": int(made.zone.sum()),
            },
        )

    def _finish(self, attempt: _Attempt) -> AttemptRecord:
        """Write an attempt's files when it passes, and record it.

        Raises:
            CohortError: When the disk is full or the folder cannot be written; the attempt leaves nothing behind.
        """
        started, config = perf_counter(), self.cohort.config
        is_last = attempt.is_hopeless or attempt.number + 1 >= config.max_attempts
        status: Status = "accepted" if not attempt.reason else "rejected" if is_last else "retried"
        written: list[Path] = []
        try:
            files = self._write(attempt, status, written)
            seconds = {"image": round(attempt.seconds, 3), "files": round(perf_counter() - started, 3)}
            record = self._build_record(attempt, status, files, seconds)
            self.manifest.append(record)
        except (OSError, VolumeError) as error:
            for path in written:
                path.unlink(missing_ok=True)
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, OSError) and cause.errno in _DISK_FULL:
                raise CohortError(
                    f"{self.folder.path}: the disk is full. Free some space and run the same command again: it goes on "
                    "from what was finished."
                ) from error
            raise CohortError(f"{self.folder.path}: expected a folder that can be written. {error}") from error
        return record

    def _write(self, attempt: _Attempt, status: Status, written: list[Path]) -> dict[str, FileRecord]:
        if attempt.image is None or attempt.grid is None or attempt.label_map is None:
            return {}
        case_id, files = attempt.case.case_id, {}
        if status == "accepted":
            files = {role: self.folder.file_of(role, case_id) for role in ("image", "label", "anatomy")}
            written += files.values()
            requested = np.where(is_any_of(attempt.label_map, self._kept_ids()), attempt.label_map, 0)
            save_image(files["image"], attempt.image, attempt.grid)
            save_label_map(files["label"], requested.astype(np.uint8), attempt.grid)
            save_label_map(files["anatomy"], attempt.label_map, attempt.grid)
            files["preview"] = self.folder.file_of("preview", case_id)
        else:
            files["preview"] = self.folder.rejected_preview(case_id, attempt.number)
        written.append(files["preview"])
        save_picture(files["preview"], self._draw_preview(attempt))
        return {role: FileRecord(self.folder.relative(path), sha256_of(path)) for role, path in files.items()}

    def _kept_ids(self) -> tuple[int, ...]:
        """Labels of the label files: those that are asked for, real lesions of the same label among them."""
        return self.cohort.plan.requested_ids

    def _draw_preview(self, attempt: _Attempt) -> Any:
        """The surroundings of the largest lesion, where a picture of the whole would hide it."""
        assert attempt.image is not None
        assert attempt.grid is not None
        assert attempt.label_map is not None
        vocabulary = self.cohort.backgrounds.vocabulary
        lines = [
            f"{lesion.label}: {lesion.realised_ml or 0:.2f} mL ({lesion.diameter_mm or 0:.1f} mm), asked for "
            f"{lesion.requested_ml:.2f} mL; {origin['texture']}, {origin['attachment']}"
            for lesion, origin in _largest_first(attempt)
        ]
        lines.append(f"into {attempt.background_id}; {self.cohort.painter_name}; attempt {attempt.number + 1}")
        lines += [f"Rejected: {attempt.reason}"] if attempt.reason else []
        image, label_map, grid = _cut_for_preview(attempt.image, attempt.label_map, attempt.grid, attempt.lesions)
        return build_preview(
            image,
            label_map,
            grid,
            Caption(attempt.case.case_id, tuple(lines)),
            lesion_ids=vocabulary.tumor_ids,
            organ_ids=(),
            outlined_ids=self._kept_ids(),
            names={label.id: label.name for label in vocabulary},
        )

    def _build_record(
        self, attempt: _Attempt, status: Status, files: dict[str, FileRecord], seconds: dict[str, float]
    ) -> AttemptRecord:
        cohort, config = self.cohort, self.cohort.config
        is_network = config.painter == "network"
        settings: dict[str, JsonValue] = {"painter": config.painter}
        if is_network:
            settings["num_inference_steps"] = cohort.bundle.choose_steps(config.num_inference_steps)
        origin: dict[str, JsonValue] = {
            "source": "insertion",
            "background": attempt.background_id,
            "image": str(attempt.background_path),
            "lesions": list(attempt.origins),
            **({"passed_over": list(attempt.passed_over)} if attempt.passed_over else {}),
        }
        if cohort.twins is not None:
            origin[ORIGIN_KEY] = cohort.twins.to_origin(attempt.case.index)
        return AttemptRecord(
            case_id=attempt.case.case_id,
            case_index=attempt.case.index,
            attempt=attempt.number,
            seed=attempt.seed,
            status=status,
            request=attempt.case.request,
            lesions=attempt.lesions or unrealised_lesions(attempt.case),
            required_ids=(),
            verdicts=attempt.verdicts,
            reason=attempt.reason,
            mask_origin=origin,
            bundle=cohort.painter_name,
            bundle_fingerprint=cohort.bundle.fingerprint if is_network else "",
            licence=f"{cohort.bundle.licence} (weights); the CTs keep theirs" if is_network else "The CTs keep theirs.",
            settings=settings,
            files=files,
            seconds=seconds,
            max_attempts=config.max_attempts,
        )


def _is_lung(host: Host) -> bool:
    return isinstance(host, LungHost) or bool(LUNG_LOBES.intersection(getattr(host, "host_ids", ())))


def find_host(background: Background, host_ids: Sequence[int], label: str) -> Host:
    """Where lesions of a label may grow in a CT: by its label map, or for the lungs by HU.

    Raises:
        LesionError: The CT has no such host, or nothing tells where it is.
    """
    known = background.label_map
    if known is not None and is_any_of(known, host_ids).any():
        return LabelledHost.of(known, host_ids, background.grid.spacing_mm)
    if LUNG_LOBES.issuperset(host_ids):
        return LungHost.of(background.image, background.grid.spacing_mm)
    raise LesionError(
        f"{label}: expected its host organ in a label map of the CT, found none. Give organ labels with --into-organs, "
        "such as TotalSegmentator's, or with --into-labels."
    )


def _describe(lesion: PlannedLesion, made: Insertion, host: Host) -> LesionRecord:
    i, j, k = made.place.centre
    ids = getattr(host, "host_ids", (LUNG_ID,))
    return LesionRecord(
        label_id=lesion.label_id,
        label=lesion.label,
        requested_ml=lesion.volume_ml,
        percentile=lesion.percentile,
        realised_ml=made.volume_ml,
        diameter_mm=diameter_mm(made.volume_ml),
        centre_ijk=(i, j, k),
        host_id=int(ids[0]),
        size_source=lesion.size_source,
    )


def _largest_first(attempt: _Attempt) -> list[tuple[LesionRecord, dict[str, JsonValue]]]:
    """The lesions of a case with their origins, which are in the order in which they were drawn."""
    largest_first = sorted(attempt.lesions, key=lambda lesion: -lesion.requested_ml)
    return list(zip(largest_first, attempt.origins, strict=True))


def _cut_for_preview(
    image: NDArray[Any], label_map: NDArray[np.uint8], grid: Grid, lesions: Sequence[LesionRecord]
) -> tuple[NDArray[Any], NDArray[np.uint8], Grid]:
    """About 12 cm around the largest lesion; lung and body where nothing is labelled, by which a window is chosen."""
    centre = max(lesions, key=lambda lesion: lesion.realised_ml or 0.0).centre_ijk
    assert centre is not None
    sides = [min(n, int(PREVIEW_MM / mm)) for n, mm in zip(image.shape, grid.spacing_mm, strict=True)]
    start = [int(np.clip(c - s // 2, 0, n - s)) for c, s, n in zip(centre, sides, image.shape, strict=True)]
    box = tuple(slice(a, a + s) for a, s in zip(start, sides, strict=True))
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ start
    crop = cut_crop(image, start, sides, grid.spacing_mm)
    known = label_map[box]
    shown = np.where(known == 0, label_surroundings(crop.image_hu, grid.spacing_mm, lesion=known > 0), known)
    return crop.image_hu, shown.astype(np.uint8), Grid((sides[0], sides[1], sides[2]), affine)


def _draw_contact_sheet(place: CohortFolder, cohort: ResolvedInsertion, previews: Sequence[str]) -> None:
    if previews:
        labels = spell_labels(cohort.plan.requested_ids, cohort.backgrounds.vocabulary)
        title = f"{len(previews)} of {len(cohort.plan.cases)} cases: {labels}; {cohort.painter_name}, real CTs"
        save_contact_sheet(place.path / CONTACT_SHEET_NAME, [place.path / path for path in previews], title)
