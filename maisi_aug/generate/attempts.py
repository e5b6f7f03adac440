"""One attempt at a case: its label map, its image, and what the gates say; whatever becomes of it afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from maisi_aug.banks.organs import require_organs
from maisi_aug.cohort.manifest import LesionRecord, VerdictRecord
from maisi_aug.cohort.plan import CasePlan
from maisi_aug.cohort.recipe import EMBEDDED_BANK
from maisi_aug.cohort.resolve import ResolvedCohort
from maisi_aug.cohort.source_rules import GIVEN, NO_MAP
from maisi_aug.errors import BankError, LesionError, MaisiAugError
from maisi_aug.gates.judgement import judge_bare_image, judge_image, judge_label_map, unrealised_lesions, usual_growth
from maisi_aug.lesions.planting import LesionWish
from maisi_aug.sources.diffusion import DiffusionSource, open_diffusion_source
from maisi_aug.sources.given import GivenSource, NoMap, NoMapSource, open_given_source
from maisi_aug.sources.plant_and_bank import BankSource, DrawnMap, FolderBank, PhantomBank, PlantSource
from maisi_aug.sources.sized_organs import SizedOrganSource, is_sized_organ
from maisi_aug.system.seeds import case_seed, derive_seed
from maisi_aug.vocabulary.regions import spell_out

if TYPE_CHECKING:
    from maisi_aug.bundle_spec.decoding import DecodeSettings
    from maisi_aug.networks.pipeline import Pipeline

Source = PlantSource | BankSource | SizedOrganSource | DiffusionSource | GivenSource | NoMapSource


def open_source(
    cohort: ResolvedCohort, device: str, report: Callable[[int, int, int], None] = lambda number, done, total: None
) -> Source:
    """The mask source of a cohort.

    Args:
        cohort: What is made.
        device: For mask networks.
        report: Told how a generated label map comes along: its number for its case, steps done, steps in all.

    Raises:
        BankError: When the bank has no usable label map.
        BundleError: When the mask networks or the device cannot be used.
    """
    config, vocabulary = cohort.config, cohort.bundle.vocabulary
    if config.mask_source == GIVEN:
        return open_given_source(cohort)
    if config.mask_source == NO_MAP:
        return NoMapSource(cohort.grid)
    if config.mask_source == "diffusion":
        return open_diffusion_source(cohort, device, report=report)
    if config.mask_bank == EMBEDDED_BANK:
        return PlantSource(PhantomBank(vocabulary=vocabulary, grid=cohort.grid))
    bank = FolderBank(
        config.mask_bank,
        vocabulary=vocabulary,
        grid=cohort.grid,
        mapping=config.mask_labels,
        body_region=spell_out(config.body_region),
    )
    require_organs(bank, bundle=cohort.bundle, is_allowed=config.allow_few_organs)
    source = PlantSource(bank) if config.mask_source == "plant" else BankSource(bank)
    has_organs = any(is_sized_organ(part.label_id, vocabulary) for case in cohort.plan.cases for part in case.lesions)
    return SizedOrganSource(bank, source) if has_organs else source


@dataclass(frozen=True)
class Attempt:
    """One attempt at a case, as far as it has come.

    Attributes:
        case: What it shall hold.
        number: From 0.
        seed: Everything random derives from it.
        drawn: The label map, or what stands for it where the cohort has none; ``None`` where none could be drawn.
        lesions: Requested against realised.
        verdicts: Of the gates that have run.
        reason: Why the attempt has failed already; empty while it has not.
        image_hu: ``(I, J, K)``; ``None`` before sampling, and where the label map failed.
        decoding: How the image was decoded; empty without one.
        seconds: Per stage.
    """

    case: CasePlan
    number: int
    seed: int
    drawn: DrawnMap | NoMap | None = None
    lesions: tuple[LesionRecord, ...] = ()
    verdicts: tuple[VerdictRecord, ...] = ()
    reason: str = ""
    image_hu: NDArray[np.int16] | None = None
    decoding: dict[str, JsonValue] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AttemptMaker:
    """Makes attempts; what one becomes depends on its seed alone.

    Attributes:
        cohort: What is made.
        source: Of the label maps.
        pipeline: Of the images; None where label maps alone are wanted.
        report_step: Told of every step of the sampler: case id, steps done, steps in all.
        failures: By case index, why no label map could be drawn.
    """

    cohort: ResolvedCohort
    source: Source
    pipeline: Pipeline | None
    report_step: Callable[[str, int, int], None] = lambda case_id, done, total: None
    failures: dict[int, MaisiAugError] = field(default_factory=dict)

    def begin(self, case: CasePlan, number: int) -> Attempt:
        """An attempt of which nothing is drawn yet."""
        seed = case_seed(self.cohort.config.seed, case.asked, case.index, number)
        return Attempt(case, number, seed, lesions=unrealised_lesions(case))

    def draw_map(self, attempt: Attempt) -> Attempt:
        """Draw the label map of an attempt and judge it."""
        started = perf_counter()
        try:
            case, drawn = self._take_map(attempt)
        except (LesionError, BankError) as error:
            if isinstance(self.source.bank, FolderBank) and not len(self.source.bank):
                raise
            self.failures[attempt.case.index] = error
            return replace(attempt, reason=str(error), seconds={"mask": perf_counter() - started})
        if isinstance(drawn, NoMap):
            return replace(attempt, drawn=drawn, seconds={"mask": perf_counter() - started})
        judgement = judge_label_map(
            case,
            drawn.label_map,
            drawn.lesions,
            drawn.grid,
            vocabulary=self.cohort.bundle.vocabulary,
            gates=self.cohort.config.gates,
        )
        return replace(
            attempt,
            case=case,
            drawn=drawn,
            lesions=judgement.lesions,
            verdicts=judgement.verdicts,
            reason=judgement.reason,
            seconds={"mask": perf_counter() - started},
        )

    def _take_map(self, attempt: Attempt) -> tuple[CasePlan, DrawnMap | NoMap]:
        """The label map of an attempt, and its case, which asks for what a given map holds."""
        case = attempt.case
        if isinstance(self.source, GivenSource | NoMapSource):
            return self.source.take(case)
        hosts_of = self.cohort.bundle.vocabulary.hosts_of
        wishes = [
            LesionWish(
                lesion.label_id,
                hosts_of(lesion.label_id),
                lesion.volume_ml,
                lesion.label,
                usual_growth(lesion.label, self.cohort.config.gates),
            )
            for lesion in case.lesions
        ]
        seed = derive_seed(attempt.seed, "mask")
        return case, self.source.draw(wishes, required_ids=case.required_ids, seed=seed)

    def draw_image(self, attempt: Attempt) -> Attempt:
        """Sample the image of an attempt whose label map is good, or given and wanted whatever the gates say."""
        is_kept = self.cohort.config.keep_rejected and attempt.case.map_index is not None
        if attempt.drawn is None or (attempt.reason and not is_kept):
            return attempt
        assert self.pipeline is not None
        started = perf_counter()
        config, case_id = self.cohort.config, attempt.case.case_id
        decoded: list[DecodeSettings] = []
        image_hu = self.pipeline.synthesize_image(
            attempt.drawn.label_map,
            attempt.drawn.grid,
            seed=derive_seed(attempt.seed, "image"),
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            modality=config.modality,
            regions=spell_out(config.body_region) if self.cohort.bundle.is_told_regions else None,
            decoding=config.decoding,
            report=lambda done, total: self.report_step(case_id, done, total),
            report_decoding=decoded.append,
        )
        seconds = {**attempt.seconds, "image": perf_counter() - started}
        return replace(attempt, image_hu=image_hu, decoding=decoded[0].to_dict(), seconds=seconds)


def judge_attempt(cohort: ResolvedCohort, attempt: Attempt) -> Attempt:
    """Run the gates that need the image on an attempt that has one."""
    if attempt.image_hu is None or attempt.drawn is None:
        return attempt
    verdicts = attempt.verdicts + judge_drawn_image(cohort, attempt.case, attempt.drawn, attempt.image_hu)
    reason = attempt.reason or next((verdict.message for verdict in verdicts if not verdict.passed), "")
    return replace(attempt, verdicts=verdicts, reason=reason)


def judge_drawn_image(
    cohort: ResolvedCohort, case: CasePlan, drawn: DrawnMap | NoMap, image_hu: NDArray[np.int16]
) -> tuple[VerdictRecord, ...]:
    """Run the gates that need the image, or those of an image without a label map."""
    if isinstance(drawn, NoMap):
        is_known_poor = bool(cohort.bundle.advice_without_map)
        return judge_bare_image(
            image_hu, drawn.grid, cohort.grid, gates=cohort.config.gates, is_known_poor=is_known_poor
        )
    return judge_image(
        case,
        image_hu,
        drawn.label_map,
        drawn.grid,
        cohort.grid if case.map_index is None else drawn.grid,
        vocabulary=cohort.bundle.vocabulary,
        gates=cohort.config.gates,
        bundle=cohort.bundle,
        own_ranges=cohort.hu_ranges,
    )
