"""Makes the cases of one epoch after the other in memory: same seed, epoch and number, same case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from maisi_aug.cohort.plan import CasePlan
from maisi_aug.cohort.request import CohortRequest
from maisi_aug.cohort.resolve import CohortRun, resolve
from maisi_aug.errors import CohortError
from maisi_aug.generate.attempts import AttemptMaker, judge_drawn_image
from maisi_aug.integrations.reading.export_labels import LabelNumbering, number_labels
from maisi_aug.integrations.reading.items import Pair
from maisi_aug.sources.opening import open_source
from maisi_aug.system.progress import ReportStage, report_nothing
from maisi_aug.system.seeds import derive_seed
from maisi_aug.vocabulary.labels import BODY_ID

NUM_SPARES = 3
"""Number of substitute cases to try for a case of which every attempt fails."""


@dataclass(frozen=True)
class FreshMaker:
    """Draws training cases with networks on their device.

    Attributes:
        run: Resolved request; its plan covers one epoch.
        maker: Object that makes attempts at cases.
        numbering: Numbers of the labels.
        seed: Seed of every case.
    """

    run: CohortRun
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
        report_step: ReportStage = report_nothing,
    ) -> FreshMaker:
        """Load the networks for drawing training cases.

        Args:
            configuration: Result of ``CohortRequest.to_dict``; its number of cases is replaced by ``num_cases``.
            device: Device on which the networks run.
            num_cases: Number of cases per epoch.
            seed: Seed of every case.
            numbers: Label name -> number, such as a real dataset's; None for 1, 2, ... in the order of ids.
            report_step: Progress callback, called with (case id, sampling steps done, sampling steps in all).

        Raises:
            MaisiAugError: The request cannot be met.
        """
        from maisi_aug.networks.pipeline import Pipeline, resolve_device

        run = resolve(CohortRequest.model_validate({**configuration, "num_cases": num_cases}))
        device = resolve_device(device)
        pipeline = Pipeline.load(run.bundle, device, precision=run.request.precision)
        maker = AttemptMaker(run, open_source(run, device), pipeline, report_step)
        return cls(run, maker, number_requested(run, numbers), seed)

    def make(self, epoch: int, number: int) -> Pair:
        """Draw a case, with as many attempts as are allowed, and if none is accepted, other cases instead.

        Args:
            epoch: Number of the epoch, from 0; every epoch shows other patients.
            number: Number of the case in the plan of an epoch, from 0.

        Returns:
            Image in HU, label map with the label numbers of the training, grid, and metadata of the accepted case.

        Raises:
            CohortError: No case is accepted.
        """
        reason = ""
        for spare in range(NUM_SPARES + 1):
            seed = derive_seed(self.seed, "epoch", epoch, *(("spare", spare) if spare else ()))
            run = self.run.with_seed(seed)
            for attempt in range(run.request.max_attempts):
                pair, reason = self._try(replace(self.maker, run=run), run.plan.cases[number], attempt, epoch)
                if pair is not None:
                    return pair
        raise CohortError(
            f"Epoch {epoch}, case {number}: none of {NUM_SPARES + 1} cases was accepted within "
            f"{self.run.request.max_attempts} attempts each. The last: {reason} Request other lesions, or raise "
            "max_attempts."
        )

    def _try(self, maker: AttemptMaker, case: CasePlan, number: int, epoch: int) -> tuple[Pair | None, str]:
        attempt = judge_drawn_image(self.run, maker.draw_image(maker.draw_map(maker.begin(case, number))))
        drawn = attempt.drawn
        if attempt.reason or attempt.image_hu is None or drawn is None or drawn.label_map is None:
            return None, attempt.reason
        metadata = {
            "case_id": f"fresh_{epoch:04d}_{case.index:05d}",
            "request": case.request,
            "seed": attempt.seed,
            "epoch": epoch,
        }
        return Pair(attempt.image_hu, self.numbering.apply(drawn.label_map), drawn.grid, metadata), ""


def number_requested(run: CohortRun, numbers: Mapping[str, int] | None = None) -> LabelNumbering:
    """Return the numbering of the labels that a cohort requests; without label requests, of all but the body.

    Args:
        run: Resolved cohort.
        numbers: Label name -> number, 0 for background; None to number 1, 2, ... in the order of ids.

    Raises:
        RequestError: A number is invalid in a label map, or a requested label has none.
        VocabularyError: A label name is unknown.
    """
    vocabulary = run.bundle.vocabulary
    if numbers is not None:
        return number_labels(vocabulary, numbers, run.plan.requested_ids, vocabulary.name_of)
    every = [label.id for label in vocabulary if label.id not in (0, BODY_ID) and label.kind in ("organ", "tumor")]
    ids = run.plan.requested_ids or tuple(every)
    return LabelNumbering(tuple(ids), tuple(map(vocabulary.name_of, ids)))
