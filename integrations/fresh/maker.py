"""Makes the cases of one epoch after the other in memory: same seed, epoch and number, same case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from maisi_aug.cohort.plan import CasePlan
from maisi_aug.cohort.recipe import CohortConfig
from maisi_aug.cohort.resolve import ResolvedCohort, replan, resolve_cohort
from maisi_aug.errors import CohortError
from maisi_aug.generate.attempts import AttemptMaker, judge_attempt, open_source
from maisi_aug.integrations.reading.export_labels import LabelNumbering, number_labels
from maisi_aug.integrations.reading.items import Pair
from maisi_aug.sources.given import NoMap
from maisi_aug.system.seeds import derive_seed
from maisi_aug.vocabulary.labels import BODY_ID

NUM_SPARES = 3
"""Other cases that are tried in place of one that no attempt at succeeds."""


@dataclass(frozen=True)
class FreshMaker:
    """The networks on their device, and what they draw.

    Attributes:
        cohort: What is asked for; its plan is that of one epoch.
        maker: Draws.
        numbering: What the labels become.
        seed: Decides every case.
    """

    cohort: ResolvedCohort
    maker: AttemptMaker
    numbering: LabelNumbering
    seed: int

    @classmethod
    def open(
        cls,
        configuration: dict[str, Any],
        *,
        device: str,
        num_cases: int,
        seed: int,
        numbers: Mapping[str, int] | None = None,
        report_step: Callable[[str, int, int], None] = lambda case_id, done, total: None,
    ) -> FreshMaker:
        """Load the weights.

        Args:
            configuration: Of the cohort, as ``CohortConfig.to_dict`` gives it.
            device: Where the networks run.
            num_cases: Of an epoch.
            seed: Decides every case.
            numbers: Label name -> number, such as a real dataset's; 1, 2, ... in the order of their ids without.
            report_step: Told of every step of the sampler: case id, steps done, steps in all.

        Raises:
            MaisiAugError: What is asked for cannot be made.
        """
        from maisi_aug.networks.pipeline import Pipeline, resolve_device

        config = CohortConfig.model_validate(configuration).model_copy(update={"num_cases": num_cases})
        cohort = resolve_cohort(config)
        device = resolve_device(device)
        pipeline = Pipeline.load(cohort.bundle, device, precision=cohort.config.precision)
        maker = AttemptMaker(cohort, open_source(cohort, device), pipeline, report_step)
        return cls(cohort, maker, number_requested(cohort, numbers), seed)

    def make(self, epoch: int, number: int) -> Pair:
        """Draw a case, with as many attempts as the configuration allows, and then other cases in its place.

        Raises:
            CohortError: None of them is accepted.
        """
        reason = ""
        for spare in range(NUM_SPARES + 1):
            seed = derive_seed(self.seed, "epoch", epoch, *(("spare", spare) if spare else ()))
            case = replan(self.cohort, seed).cases[number]
            maker = replace(self.maker, cohort=replace(self.cohort, config=_with_seed(self.cohort.config, seed)))
            for attempt in range(self.cohort.config.max_attempts):
                pair, reason = self._try(maker, case, attempt, epoch)
                if pair is not None:
                    return pair
        raise CohortError(
            f"Epoch {epoch}, case {number}: expected one of {NUM_SPARES + 1} cases to be accepted within "
            f"{self.cohort.config.max_attempts} attempts each, found none. The last: {reason} Ask for other lesions, "
            "or raise max_attempts."
        )

    def _try(self, maker: AttemptMaker, case: CasePlan, number: int, epoch: int) -> tuple[Pair | None, str]:
        attempt = maker.draw_image(maker.draw_map(maker.begin(case, number)))
        attempt = judge_attempt(self.cohort, attempt)
        if attempt.reason or attempt.image_hu is None or attempt.drawn is None:
            return None, attempt.reason
        assert not isinstance(attempt.drawn, NoMap)
        metadata = {
            "case_id": f"fresh_{epoch:04d}_{case.index:05d}",
            "request": case.request,
            "seed": attempt.seed,
            "epoch": epoch,
        }
        return (
            Pair(attempt.image_hu, self.numbering.apply(attempt.drawn.label_map), attempt.drawn.grid, metadata),
            "",
        )


def _with_seed(config: CohortConfig, seed: int) -> CohortConfig:
    return config.model_copy(update={"seed": seed})


def number_requested(cohort: ResolvedCohort, numbers: Mapping[str, int] | None = None) -> LabelNumbering:
    """The labels of the plan as 1, 2, ... or as given; of given maps without a request every label but the body."""
    vocabulary = cohort.bundle.vocabulary
    if numbers is not None:
        return number_labels(vocabulary, numbers, cohort.plan.requested_ids, vocabulary.name_of)
    every = [label.id for label in vocabulary if label.id not in (0, BODY_ID) and label.kind in ("organ", "tumor")]
    ids = cohort.plan.requested_ids or tuple(every)
    return LabelNumbering(tuple(ids), tuple(map(vocabulary.name_of, ids)))
