"""Label maps of a plan with their lesions, drawn before anything is generated; no network is loaded.

In place of a CT each organ is painted in its usual HU, so that the map can be looked at as a CT would be.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.cohort.plan import CasePlan
from maisi_aug.cohort.request import GIVEN
from maisi_aug.cohort.resolve import CohortRun
from maisi_aug.cohort.review import CaseKey
from maisi_aug.errors import EvaluationError, MaisiAugError
from maisi_aug.evaluation.review.cases import ShownCase, describe_lesions, describe_verdicts
from maisi_aug.generate.attempts import AttemptMaker
from maisi_aug.generate.rehearsal import REHEARSED_SOURCES
from maisi_aug.sources.opening import open_source
from maisi_aug.system.printed_text import spell_count
from maisi_aug.vocabulary.hu import expected_contrast_sign, reference_hu_ranges
from maisi_aug.vocabulary.labels import BODY_ID, Vocabulary
from maisi_aug.volumes.image_files import save_image, save_label_map

VIEWED_SOURCES: Final = (*REHEARSED_SOURCES, GIVEN)
AIR_HU: Final = -1000
FAT_HU: Final = -100
SOFT_TISSUE_HU: Final = 40
LESION_CONTRAST_HU: Final = 60


class PlannedCases:
    """First attempts at the cases of a plan, as far as their label maps have been drawn."""

    kind = "plan"

    def __init__(self, run: CohortRun, scratch: Path) -> None:
        """Create the source; nothing is drawn yet.

        Args:
            run: The plan.
            scratch: Temporary folder for the label maps.

        Raises:
            EvaluationError: Its label maps come from networks, or there are none.
        """
        if run.request.mask_source not in VIEWED_SOURCES:
            raise EvaluationError(
                f"--view: needs label maps that are drawn without networks ({', '.join(VIEWED_SOURCES)}), found the "
                f"source '{run.request.mask_source}'. Generate a few cases and view those."
            )
        self.path, self.title, self.vocabulary = (
            scratch,
            f"Plan, {spell_count(len(run.plan.cases), 'case')}",
            run.bundle.vocabulary,
        )
        self._run, self._fault = run, ""
        self._drawn: queue.SimpleQueue[ShownCase] = queue.SimpleQueue()
        self._stops = threading.Event()

    def read_on(self) -> list[ShownCase]:
        """Return the cases that were drawn since the last call.

        Raises:
            EvaluationError: No case can be drawn.
        """
        if self._fault:
            raise EvaluationError(self._fault)
        return [self._drawn.get() for _ in range(self._drawn.qsize())]

    @contextmanager
    def draw_meanwhile(self) -> Iterator[None]:
        """Context in which the label maps are drawn in a thread."""
        thread = threading.Thread(target=self._draw_all, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stops.set()
            thread.join()

    def _draw_all(self) -> None:
        try:
            maker = AttemptMaker(self._run, open_source(self._run, "cpu"), None)
            for case in self._run.plan.cases:
                if self._stops.is_set():
                    return
                self._drawn.put(self._draw(maker, case))
        except MaisiAugError as error:
            self._fault = str(error)

    def _draw(self, maker: AttemptMaker, case: CasePlan) -> ShownCase:
        attempt = maker.draw_map(maker.begin(case, 0))
        shown = ShownCase(
            case.case_id,
            CaseKey(case.case_id),
            case.index,
            "rejected" if attempt.reason else "accepted",
            {},
            case.request,
            attempt.reason,
            describe_lesions(attempt.case.lesions),
            describe_verdicts(attempt.verdicts),
            {**attempt.origin, "seed": attempt.seed},
        )
        drawn = attempt.drawn
        if drawn is None or drawn.label_map is None:
            return shown
        files = {role: self.path / f"{case.case_id}_{role}.nii.gz" for role in ("image", "anatomy")}
        save_image(files["image"], paint_hu(drawn.label_map, self.vocabulary), drawn.grid)
        save_label_map(files["anatomy"], drawn.label_map, drawn.grid)
        return replace(shown, files=files)


def paint_hu(label_map: NDArray[np.uint8], vocabulary: Vocabulary) -> NDArray[np.int16]:
    """Paint a label map in the usual HU of its organs, with fat as body around them and air outside.

    Args:
        label_map: ``(I, J, K)`` vocabulary ids.
        vocabulary: Vocabulary of the ids.

    Returns:
        ``(I, J, K)`` int16 HU.
    """
    values = np.full(256, SOFT_TISSUE_HU, dtype=np.int16)
    values[0], values[BODY_ID] = AIR_HU, FAT_HU
    for reference in reference_hu_ranges():
        values[list(reference.label_ids)] = round(reference.median_hu or SOFT_TISSUE_HU)
    for label_id in vocabulary.tumor_ids:
        label = vocabulary.label(label_id)
        host_hu = int(values[label.hosts[0]]) if label.hosts else SOFT_TISSUE_HU
        sign = expected_contrast_sign(label.name) or -1
        # A lesion of the lung is soft tissue in air.
        values[label_id] = 0 if host_hu < FAT_HU else host_hu + sign * LESION_CONTRAST_HU
    return values[label_map]
