"""An attempt at a case: its label map, its image, the results of the gates, and the outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from pydantic import JsonValue

from maisi_aug.cohort.manifest import VerdictRecord
from maisi_aug.cohort.plan import CasePlan
from maisi_aug.cohort.resolve import CohortRun
from maisi_aug.cohort.twins import ORIGIN_KEY
from maisi_aug.errors import BankError, EmptyBankError, LesionError
from maisi_aug.gates.judgement import judge_bare_image, judge_image, judge_label_map
from maisi_aug.phantom.phases import describe_completion
from maisi_aug.sources.map_source import DrawnMap, MapSource
from maisi_aug.sources.plant_and_bank import PlantSource
from maisi_aug.system.progress import ReportStage, report_nothing
from maisi_aug.system.seeds import case_seed, derive_seed

if TYPE_CHECKING:
    from maisi_aug.bundle_spec.decoding import DecodeSettings
    from maisi_aug.networks.pipeline import Pipeline


@dataclass(frozen=True)
class Attempt:
    """State of one attempt at a case.

    Attributes:
        case: Required content, with the lesions drawn so far; for a given label map, the content of the map.
        number: Number of the attempt, starting at 0.
        seed: Seed of everything random in the attempt.
        drawn: Label map, or a placeholder in cohorts without label maps; None if none could be drawn.
        verdicts: Verdicts of the gates run so far.
        reason: Why the attempt has failed; empty if it has not.
        image_hu: ``(I, J, K)`` image in HU; None before sampling, and if the label map failed.
        decoding: Settings with which the image was decoded; empty without an image.
        completion: How the label map was completed for the networks; empty where they are shown the map as it is.
        seconds: Stage -> wall-clock seconds.
        origin: Origin of the label map, for the manifest.
        error: Error because of which no label map could be drawn; None otherwise.
        is_final: Whether another attempt would be no better: the source has tried many anatomies already, or a given
            label map has failed, which would fail again.
    """

    case: CasePlan
    number: int
    seed: int
    drawn: DrawnMap | None = None
    verdicts: tuple[VerdictRecord, ...] = ()
    reason: str = ""
    image_hu: NDArray[Any] | None = None
    decoding: dict[str, JsonValue] = field(default_factory=dict)
    completion: dict[str, JsonValue] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    origin: dict[str, JsonValue] = field(default_factory=dict)
    error: LesionError | BankError | None = None
    is_final: bool = False


@dataclass(frozen=True)
class AttemptMaker:
    """Makes attempts at cases: draws the label map and the image; the result depends on the attempt's seed alone.

    Attributes:
        run: The cohort to be made.
        source: Source of the label maps.
        pipeline: Pipeline that draws images; None if only label maps are wanted.
        report_step: Progress callback, called with (case id, sampling steps done, sampling steps in all).
    """

    run: CohortRun
    source: MapSource
    pipeline: Pipeline | None
    report_step: ReportStage = report_nothing

    def begin(self, case: CasePlan, number: int) -> Attempt:
        """Return a new attempt at a case, with its seed, before anything is drawn.

        Args:
            case: Planned case.
            number: Number of the attempt, from 0.
        """
        return Attempt(case, number, case_seed(self.run.seed, case.asked, case.index, number))

    def draw_twins(self, cases: Sequence[CasePlan], number: int) -> list[Attempt]:
        """Make an attempt at every case of a group of twins; images are drawn only if all label maps pass.

        Args:
            cases: All cases of one group of twins, in the order of their values.
            number: Number of the attempt, from 0.

        Returns:
            One attempt per case, in the same order; failed ones have a reason.

        Raises:
            EmptyBankError: The bank has no usable map left, for any case.
        """
        twins, started = self.run.twins, perf_counter()
        assert twins is not None
        assert isinstance(self.source, PlantSource)
        seed = case_seed(self.run.seed, ORIGIN_KEY, twins.group_of(cases[0].index), number)
        attempts = [Attempt(case, number, seed) for case in cases]
        try:
            maps = self.source.draw_twins(cases, derive_seed(seed, "mask"))
        except EmptyBankError:
            raise
        except (LesionError, BankError) as error:
            seconds = {"mask": perf_counter() - started}
            return [replace(one, reason=str(error), error=error, is_final=True, seconds=seconds) for one in attempts]
        judged = [
            self._judge_map(one, replace(drawn, origin={**drawn.origin, ORIGIN_KEY: twins.to_origin(one.case.index)}))
            for one, drawn in zip(attempts, maps, strict=True)
        ]
        seconds = {"mask": (perf_counter() - started) / len(judged)}
        judged = [replace(one, seconds=seconds) for one in judged]
        return judged if any(one.reason for one in judged) else [self.draw_image(one) for one in judged]

    def draw_map(self, attempt: Attempt) -> Attempt:
        """Draw the label map of an attempt, and run the gates on it.

        Raises:
            EmptyBankError: The bank has no usable map left, for any case.
        """
        started = perf_counter()
        try:
            drawn = self.source.draw(attempt.case, derive_seed(attempt.seed, "mask"))
        except EmptyBankError:
            raise
        except (LesionError, BankError) as error:
            seconds = {"mask": perf_counter() - started}
            return replace(attempt, reason=str(error), error=error, is_final=True, seconds=seconds)
        judged = self._judge_map(attempt, drawn)
        return replace(judged, seconds={"mask": perf_counter() - started})

    def _judge_map(self, attempt: Attempt, drawn: DrawnMap) -> Attempt:
        """The attempt with its label map and what the gates say of it."""
        judged = replace(attempt, case=drawn.case, drawn=drawn, origin=drawn.origin)
        if drawn.label_map is None:
            return judged
        vocabulary, gates = self.run.bundle.vocabulary, self.run.request.gates
        found = judge_label_map(drawn.case, drawn.label_map, drawn.grid, vocabulary=vocabulary, gates=gates)
        case = replace(drawn.case, lesions=found.lesions)
        is_final = case.map_index is not None and not attempt.case.lesions and bool(found.reason)
        return replace(judged, case=case, verdicts=found.verdicts, reason=found.reason, is_final=is_final)

    def draw_image(self, attempt: Attempt) -> Attempt:
        """Sample the image of an attempt if its label map passed the gates, or is given and used whatever they say."""
        request, case_id = self.run.request, attempt.case.case_id
        is_kept = request.keep_rejected and attempt.case.map_index is not None
        if attempt.drawn is None or (attempt.reason and not is_kept):
            return attempt
        assert self.pipeline is not None
        started = perf_counter()
        decoded: list[DecodeSettings] = []
        seed = derive_seed(attempt.seed, "image")
        image_hu = self.pipeline.synthesize_image(
            attempt.drawn.label_map,
            attempt.drawn.grid,
            seed=seed,
            tissue=attempt.drawn.tissue,
            num_inference_steps=self.run.sampling.num_steps,
            solver=self.run.sampling.solver,
            guidance_scale=self.run.guidance_scale,
            modality=self.run.modality,
            regions=self.run.regions if self.run.bundle.is_told_regions else None,
            decoding=self.run.decoding,
            report=lambda done, total: self.report_step(case_id, done, total),
            report_decoding=decoded.append,
        )
        seconds = {**attempt.seconds, "image": perf_counter() - started}
        completion: dict[str, JsonValue] = {}
        if self.run.bundle.completes_maps and attempt.drawn.label_map is not None:
            completion = dict(describe_completion(seed, self.run.modality))
        decoding = decoded[0].to_dict()
        return replace(attempt, image_hu=image_hu, decoding=decoding, completion=completion, seconds=seconds)


def judge_drawn_image(run: CohortRun, attempt: Attempt) -> Attempt:
    """Run the gates that need the image of an attempt, or return the attempt unchanged if it has no image.

    Args:
        run: Resolved cohort, with its gates and its bundle.
        attempt: Attempt whose label map has passed its gates.

    Returns:
        The attempt with further verdicts and, if one failed, a reason.
    """
    drawn, image_hu, gates = attempt.drawn, attempt.image_hu, run.request.gates
    if drawn is None or image_hu is None:
        return attempt
    if drawn.label_map is None:
        is_known_poor = bool(run.bundle.advice_without_map)
        found = judge_bare_image(
            image_hu, drawn.grid, run.grid, gates=gates, is_known_poor=is_known_poor, is_mr=run.bundle.is_mr
        )
    else:
        found = judge_image(
            attempt.case,
            image_hu,
            drawn.label_map,
            drawn.grid,
            run.grid if attempt.case.map_index is None else drawn.grid,
            vocabulary=run.bundle.vocabulary,
            gates=gates,
            bundle=run.bundle,
            own_ranges=run.hu_ranges,
        )
    verdicts = (*attempt.verdicts, *found)
    reason = attempt.reason or next((verdict.message for verdict in verdicts if not verdict.passed), "")
    return replace(attempt, verdicts=verdicts, reason=reason)
