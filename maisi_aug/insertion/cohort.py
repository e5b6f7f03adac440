"""A cohort of real CTs with drawn lesions: made case by case, judged, recorded, and continued after a stop."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from pydantic import JsonValue

from maisi_aug.cohort.folder import CONTACT_SHEET_NAME, CohortFolder, find_lost, open_cohort, open_scratch
from maisi_aug.cohort.manifest import MANIFEST_NAME, Manifest, VerdictRecord, load_manifest
from maisi_aug.cohort.plan import CasePlan, spell_labels
from maisi_aug.cohort.shards import Shard
from maisi_aug.cohort.twins import ORIGIN_KEY
from maisi_aug.errors import LesionError, PreparationError, UnfitCtError, VolumeError
from maisi_aug.gates.judgement import name_verdict, to_record
from maisi_aug.generate.attempts import Attempt
from maisi_aug.generate.case_worker import write_group
from maisi_aug.generate.driver import CaseDriver, CaseItem, CaseResult, Listener, Recorder, list_items
from maisi_aug.generate.run import CohortSummary
from maisi_aug.generate.writer import CaseWriter, CohortFacts
from maisi_aug.insertion.backgrounds import Background
from maisi_aug.insertion.config import ResolvedInsertion
from maisi_aug.insertion.crops import cut_crop
from maisi_aug.insertion.insert import Host, Insertion, LabelledHost, LungHost, insert_lesion
from maisi_aug.insertion.painting import Painter, ProceduralPainter
from maisi_aug.insertion.surroundings import LUNG_ID, add_surroundings
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.pictures.preview import Caption, build_preview, save_contact_sheet
from maisi_aug.sources.map_source import DrawnMap, MapSource
from maisi_aug.system.engine.work import Engine, InProcess, WorkerPlace, finished
from maisi_aug.system.printed_text import spell_count
from maisi_aug.system.seeds import derive_seed
from maisi_aug.vocabulary.labels import LUNG_LOBE_IDS
from maisi_aug.volumes.components import is_any_of
from maisi_aug.volumes.grid import Grid

COHORT_HEADER = ("Made by maisi-aug insert; run the same command again to continue this cohort.",)
PREVIEW_MM = 120.0


def insert_cohort(
    cohort: ResolvedInsertion,
    folder: Path,
    *,
    device: str = "auto",
    engine: Engine | None = None,
    shard: Shard | None = None,
    listener: Listener | None = None,
    verify: bool = False,
) -> CohortSummary:
    """Make a cohort of CTs with inserted lesions, or continue one that was begun with the same configuration.

    Accepted cases whose files are missing are drawn again, to the same bytes.

    Args:
        cohort: The cohort to make.
        folder: Folder of the cohort: new, empty, or one that holds this cohort.
        device: Device of the networks, if networks draw the lesions.
        engine: Engine whose workers draw the cases; None to draw in this process, on ``device``.
        shard: Make only every N-th case, or group of twins.
        listener: Object whose methods are called as the run proceeds.
        verify: Check the bytes of finished cases against the manifest and draw altered ones again.

    Raises:
        CohortError: The folder is not this cohort's or is in use, or the disk is full.
        BundleError: The weights or the device cannot be used.
        PreparationError: A file is not a CT in HU.
        LesionError: No lesion fits into any CT.
    """
    listener, engine = listener or Listener(), engine or InProcess(device)
    started, config = perf_counter(), cohort.config
    groups, name = cohort.groups, MANIFEST_NAME
    if shard is not None:
        groups, name = shard.part_of(groups), shard.manifest_name
    chosen = frozenset(case.index for group in groups for case in group)
    opened = open_cohort(folder, cohort.to_document(), header=COHORT_HEADER, manifest=name)
    with opened as (place, lines, recorded):
        recorded = recorded.among(chosen)
        lost = find_lost(folder, recorded, verify=verify)
        manifest = recorded.without([case.record for case in lost]).reopen(config.max_attempts)
        listener.starts(len(chosen), manifest)
        if lost:
            listener.finds_lost(lost)
        driver = CaseDriver(Recorder(place, lines), listener)
        if todo := chosen - manifest.settled_indices:
            items = list_items(groups, manifest, todo)
            with open_scratch(folder, name) as scratch:
                driver.make(InsertionSpec(cohort, folder), items, engine, scratch=scratch)
        done = load_manifest(folder).among(chosen).reopen(config.max_attempts)
        if shard is None:
            listener.enters("drawing the contact sheet")
            draw_contact_sheet(place, cohort, done)
    listener.enters("done")
    num_new = len(done.settled_indices) - len(manifest.settled_indices)
    seconds = perf_counter() - started
    unfit = tuple(driver.skipped.items())
    return CohortSummary(folder, len(chosen), done, seconds, num_new, num_lost=len(lost), shard=shard, unfit_cts=unfit)


@dataclass(frozen=True)
class InsertionSpec:
    """Picklable specification from which a worker that inserts lesions is opened.

    Attributes:
        cohort: The cohort to be made.
        home: Folder of the cohort, for messages.
    """

    cohort: ResolvedInsertion
    home: Path

    @property
    def reads(self) -> tuple[Path, ...]:
        """Paths that the worker reads: the bundle, and the CTs."""
        return self.cohort.bundle.path, *(case.image for case in self.cohort.backgrounds.cases)

    def open(self, place: WorkerPlace) -> InsertionWorker:
        """Load the networks, if they draw the lesions, and return the worker."""
        place.tell("enters", "loading the networks" if self.cohort.painter == "network" else "drawing")
        inserter = Inserter(self.cohort, build_painter(self.cohort, place.device))
        folder, facts = CohortFolder(place.scratch), _facts_of(self.cohort)
        return InsertionWorker(
            inserter, CaseWriter(facts, folder, lambda attempt: attempt, inserter.draw_preview, self.home)
        )


@dataclass(frozen=True)
class InsertionWorker:
    """Worker that inserts lesions into CTs, one group of cases at a time."""

    inserter: Inserter
    writer: CaseWriter

    def look_ahead(self, item: CaseItem) -> None:
        """Do nothing, because an insertion prepares nothing ahead."""

    def work(self, item: CaseItem) -> Future[CaseResult]:
        """Draw the lesions of an item into a CT, judge and write it; the future holds the result."""
        attempts = [self.inserter.attempt(case, item.number) for case in item.cases]
        return finished(CaseResult(write_group(attempts, item, self.writer), skipped=self.inserter.skipped))

    def close(self) -> None:
        """Do nothing, because no resource stays open between items."""


def build_painter(cohort: ResolvedInsertion, device: str) -> Painter:
    """Return the painter that draws the lesions of a cohort, with its networks loaded onto a device if it has any.

    Args:
        cohort: Resolved cohort of inserted lesions, with its bundle and its sampling.
        device: Name of the torch device; a procedural painter uses none.

    Raises:
        BundleError: The weights or the device cannot be used.
    """
    if cohort.painter == "procedural":
        return ProceduralPainter()
    from maisi_aug.insertion.drawing import open_bundle_painter

    return open_bundle_painter(cohort.bundle, device, sampling=cohort.sampling)


def _facts_of(cohort: ResolvedInsertion) -> CohortFacts:
    config, bundle = cohort.config, cohort.bundle
    is_network = cohort.painter == "network"
    sampled = {} if cohort.sampling is None else cohort.sampling.to_settings()
    settings: dict[str, JsonValue] = {"painter": cohort.painter, **sampled}
    return CohortFacts(
        cohort.painter_name,
        bundle.fingerprint if is_network else "",
        f"{bundle.licence} (weights); the CTs keep their own licences"
        if is_network
        else "no weights; the CTs keep their own licences",
        settings,
        max_attempts=config.max_attempts,
        kept_ids=cohort.plan.requested_ids,  # real lesions of the same label among them
    )


@dataclass(frozen=True)
class Inserter:
    """Makes attempts at cases by drawing their lesions into one of the CTs.

    Attributes:
        cohort: The cohort to be made.
        painter: Painter that draws lesions.
        lungs: Index of a CT -> lungs found from its HU, shared by all cases drawn into it.
        unfit: (Index of a CT, labels) -> reason why the CT cannot take lesions with these labels.
    """

    cohort: ResolvedInsertion
    painter: Painter
    lungs: dict[int, LungHost] = field(default_factory=dict)
    unfit: dict[tuple[int, tuple[int, ...]], str] = field(default_factory=dict)

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """``(case, reason)`` of the CTs that could not take some lesions so far."""
        return tuple((self.cohort.backgrounds.cases[index].id, reason) for (index, _), reason in self.unfit.items())

    def attempt(self, case: CasePlan, number: int) -> Attempt:
        """Make an attempt at a case; after a failed one, the next attempt uses the next CT.

        CTs that can never take the lesions are skipped; if no CT can, the attempt is marked as the last.

        Args:
            case: Planned case with its lesions.
            number: Number of the attempt, from 0.

        Returns:
            The attempt with image and label map, judged; a failed one has a reason.
        """
        started, seed = perf_counter(), self.cohort.seed_of(case, number)
        passed_over: list[JsonValue] = []
        for index in self.cohort.order_backgrounds(case.index, number):
            source = InsertionSource(self, index)
            attempt = Attempt(case, number, seed)
            try:
                drawn = source.draw(case, seed)
            except UnfitCtError as error:
                attempt = replace(attempt, reason=str(error), is_final=True)
                passed_over.append(source.origin["background"])
                continue
            except LesionError as error:
                attempt = replace(attempt, reason=str(error))
            else:
                reason = next((verdict.message for verdict in source.verdicts if not verdict.passed), "")
                attempt = replace(attempt, case=drawn.case, drawn=drawn, image_hu=drawn.image_hu, reason=reason)
            break
        origin = source.origin | ({"passed_over": passed_over} if passed_over else {})
        if self.cohort.twins is not None:
            origin[ORIGIN_KEY] = self.cohort.twins.to_origin(case.index)
        seconds = {"image": perf_counter() - started}
        return replace(attempt, verdicts=tuple(source.verdicts), origin=origin, seconds=seconds)

    def open(self, index: int, case: CasePlan) -> tuple[Background, dict[int, Host]]:
        """Read a CT, and return it with label id -> host of a case's lesions; unsuitable CTs are not read again.

        Args:
            index: Index of the CT.
            case: Planned case.

        Raises:
            UnfitCtError: The CT cannot be read, or lacks a host organ.
        """
        if (reason := self.unfit.get((index, case.label_ids))) is not None:
            raise UnfitCtError(reason)
        try:
            background = self.cohort.backgrounds.load(index)
            return background, {lesion.index: self._find_host(index, background, lesion) for lesion in case.lesions}
        except (LesionError, PreparationError, VolumeError) as error:  # one bad CT does not stop a cohort
            self.unfit[index, case.label_ids] = str(error)
            raise UnfitCtError(str(error)) from error

    def _find_host(self, index: int, background: Background, lesion: Lesion) -> Host:
        """The host of a lesion in a CT."""
        if index in self.lungs and LUNG_LOBE_IDS.issuperset(lesion.hosts):
            return self.lungs[index]
        host = find_host(background, lesion.hosts, lesion.label)
        if isinstance(host, LungHost):
            self.lungs[index] = host
        return host

    def draw_preview(self, attempt: Attempt) -> Image:
        """Draw the preview of an attempt: three planes through its largest lesion, with words on top.

        About 12 cm around the lesion are shown, because it is too small for a picture of the whole CT.

        Args:
            attempt: Attempt whose image and label map have been drawn, with at least one lesion.

        Returns:
            RGB picture in which each plane is shown without and with outlines of the requested labels.
        """
        drawn, origins = attempt.drawn, attempt.origin
        assert drawn is not None
        assert drawn.image_hu is not None
        assert drawn.label_map is not None
        vocabulary, lesions = self.cohort.backgrounds.vocabulary, _largest_first(drawn.lesions)
        lines = [
            f"{lesion.label}: {lesion.realised_ml or 0:.2f} mL ({lesion.diameter_mm or 0:.1f} mm), requested "
            f"{lesion.requested_ml:.2f} mL; {origin['texture']}, {origin['attachment']}"
            for lesion, origin in zip(lesions, drawn.origin["lesions"], strict=True)
        ]
        lines.append(f"into {origins['background']}; {self.cohort.painter_name}; attempt {attempt.number + 1}")
        lines += [f"Rejected: {attempt.reason}"] if attempt.reason else []
        image, label_map, grid = _cut_for_preview(drawn.image_hu, drawn.label_map, drawn.grid, drawn.lesions)
        return build_preview(
            image,
            label_map,
            grid,
            Caption(attempt.case.case_id, tuple(lines)),
            lesion_ids=vocabulary.tumor_ids,
            organ_ids=(),
            outlined_ids=self.cohort.plan.requested_ids,
            names={label.id: label.name for label in vocabulary},
        )


class InsertionSource(MapSource):
    """Map source that draws the lesions of a case into one CT; lesions drawn before a failure are reported, too.

    Attributes:
        origin: Origin of the lesions drawn so far, for the manifest.
        verdicts: Verdicts on the lesions drawn so far.
    """

    def __init__(self, inserter: Inserter, index: int) -> None:
        """Choose a CT.

        Args:
            inserter: Knows the cohort and what draws.
            index: Index of the CT.
        """
        self._inserter, self._index, self._backgrounds = inserter, index, inserter.cohort.backgrounds
        files = self._backgrounds.cases[index]
        self.verdicts: list[VerdictRecord] = []
        self._origins: list[JsonValue] = []
        self.origin: dict[str, JsonValue] = {
            "source": "insertion",
            "background": files.id,
            "image": str(files.image),
            "lesions": self._origins,
        }

    def draw(self, case: CasePlan, seed: int) -> DrawnMap:
        """Draw the lesions of a case, the largest first, each separate from real lesions and from earlier ones.

        Args:
            case: Planned case with its lesions.
            seed: Seed of everything random.

        Returns:
            CT with lesions, label map, grid, the lesions as realised, and their origin.

        Raises:
            UnfitCtError: The CT cannot be used, or has no host or no room for a lesion.
            LesionError: There is no room left next to other lesions.
        """
        background, hosts = self._inserter.open(self._index, case)
        image, known = background.image.copy(), background.label_map
        label_map = np.zeros(image.shape, dtype=np.uint8) if known is None else known.copy()
        occupied = (
            np.zeros(image.shape, dtype=bool)
            if known is None
            else is_any_of(known, self._backgrounds.vocabulary.tumor_ids)
        )
        drawn: dict[int, Lesion] = {}
        for lesion in _largest_first(case.lesions):
            host = hosts[lesion.index]
            try:
                made = self._insert(case, lesion, image, background.grid, host, occupied, seed)
            except UnfitCtError as error:
                if drawn:  # the lesions before it took the room, and may lie elsewhere another time
                    raise LesionError(str(error)) from error
                raise
            image[made.box] = made.image
            label_map[made.box][made.lesion] = lesion.label_id
            occupied[made.box] |= made.lesion
            ids = getattr(host, "host_ids", (LUNG_ID,))
            placed = replace(lesion.measured(made.volume_ml), centre_ijk=made.place.centre, host_id=int(ids[0]))
            drawn[lesion.index] = placed
        case = replace(case, lesions=tuple(drawn[lesion.index] for lesion in case.lesions))
        return DrawnMap(case, label_map, background.grid, self.origin, image)

    def _insert(
        self,
        case: CasePlan,
        lesion: Lesion,
        image: NDArray[Any],
        grid: Grid,
        host: Host,
        occupied: NDArray[np.bool_],
        seed: int,
    ) -> Insertion:
        """Draw one lesion, and note what the gates say of it and where it came from."""
        cohort, seed = self._inserter.cohort, derive_seed(seed, "lesion", lesion.index)
        request = cohort.request_of(case, lesion, is_lung=_is_lung(host), seed=seed)
        made = insert_lesion(
            image,
            grid.spacing_mm,
            host,
            request,
            self._inserter.painter,
            occupied=occupied,
            seed=seed,
            size_tolerance=cohort.config.size_tolerance,
        )
        self.verdicts += [to_record(name_verdict(verdict, lesion.label)) for verdict in made.verdicts]
        self._origins.append(
            {
                "label": lesion.label,
                "texture": request.texture,
                "attachment": made.place.attachment,
                "centre_ijk": list(made.place.centre),
                "box": [[part.start, part.stop] for part in made.box],
                "num_zone_voxels": int(made.zone.sum()),
            }
        )
        return made


def _is_lung(host: Host) -> bool:
    return isinstance(host, LungHost) or bool(LUNG_LOBE_IDS.intersection(getattr(host, "host_ids", ())))


def _largest_first(lesions: Sequence[Lesion]) -> list[Lesion]:
    """In the order in which they are drawn."""
    return sorted(lesions, key=lambda lesion: -lesion.requested_ml)


def find_host(background: Background, host_ids: Sequence[int], label: str) -> Host:
    """Return the host organ of a label's lesions in a CT: from its label map, or for the lungs from HU.

    Args:
        background: CT with its label map.
        host_ids: Vocabulary ids of the host organs.
        label: Name of the lesion, for messages.

    Raises:
        LesionError: The CT has no such host, or no labels for it.
    """
    known = background.label_map
    if known is not None and is_any_of(known, host_ids).any():
        return LabelledHost.of(known, host_ids, background.grid.spacing_mm)
    if LUNG_LOBE_IDS.issuperset(host_ids):
        return LungHost.of(background.image, background.grid.spacing_mm)
    raise LesionError(
        f"{label}: no label map of the CT has its host organ. Give organ labels with --into-organs, such as "
        "TotalSegmentator's, or with --into-labels."
    )


def _cut_for_preview(
    image: NDArray[Any], label_map: NDArray[np.uint8], grid: Grid, lesions: Sequence[Lesion]
) -> tuple[NDArray[Any], NDArray[np.uint8], Grid]:
    """About 12 cm around the largest lesion; lung and body next to what is labelled, by which a window is chosen."""
    centre = max(lesions, key=lambda lesion: lesion.realised_ml or 0.0).centre_ijk
    assert centre is not None
    sides = [min(n, int(PREVIEW_MM / mm)) for n, mm in zip(image.shape, grid.spacing_mm, strict=True)]
    start = [int(np.clip(c - s // 2, 0, n - s)) for c, s, n in zip(centre, sides, image.shape, strict=True)]
    box = tuple(slice(a, a + s) for a, s in zip(start, sides, strict=True))
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ start
    crop = cut_crop(image, start, sides, grid.spacing_mm)
    shown = label_map[box]
    shown = add_surroundings(crop.image_hu, shown, grid.spacing_mm, lesion=shown > 0)
    return crop.image_hu, shown, Grid((sides[0], sides[1], sides[2]), affine)


def draw_contact_sheet(place: CohortFolder, cohort: ResolvedInsertion, manifest: Manifest) -> None:
    """Write the contact sheet of a cohort of inserted lesions: the previews of all accepted cases in one picture.

    Args:
        place: Folder of the cohort, which holds the previews; ``contact_sheet.png`` is written there.
        cohort: Plan of the cohort, for the title.
        manifest: Attempts of the cohort; without an accepted one nothing is written.

    Raises:
        VolumeError: The file cannot be written.
    """
    previews = [place.path / record.files["preview"].path for record in manifest.accepted]
    if previews:
        labels = spell_labels(cohort.plan.requested_ids, cohort.backgrounds.vocabulary)
        made = f"{len(previews)} of {spell_count(len(cohort.plan.cases), 'case')}"
        title = f"{made}: {labels}; {cohort.painter_name}, in given CTs"
        save_contact_sheet(place.path / CONTACT_SHEET_NAME, previews, title)
