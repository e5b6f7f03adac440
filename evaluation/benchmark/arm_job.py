"""One training of one arm as passed to an engine, and the interface of engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from maisi_aug.evaluation.benchmark.cases import CaseFiles
from maisi_aug.evaluation.benchmark.config import COPY_PASTE, MADE_KINDS, REAL
from maisi_aug.evaluation.benchmark.copy_paste import paste_lesion
from maisi_aug.evaluation.benchmark.data import LoadedCase, load_case
from maisi_aug.evaluation.benchmark.plan import BenchmarkPlan, CaseRef
from maisi_aug.lesions.deformation import deform_case
from maisi_aug.system.progress import ReportStep
from maisi_aug.system.seeds import derive_seed, numpy_generator
from maisi_aug.volumes.image_files import save_image, save_label_map


@dataclass(frozen=True)
class ArmJob:
    """One training of one arm of a benchmark, as an engine receives it.

    Attributes:
        plan: Plan of the benchmark.
        arm: Name of the arm.
        seed: Number of the training, from 0.
        folder: Folder of this training.
        bench: Folder of the benchmark.
        device: ``cpu`` or ``cuda``.
    """

    plan: BenchmarkPlan
    arm: str
    seed: int
    folder: Path
    bench: Path
    device: str

    @property
    def training_seed(self) -> int:
        """Seed of the training, equal across arms, so that they begin with the same weights."""
        return derive_seed("benchmark arm", self.plan.config.seed, self.seed)

    @property
    def predictions(self) -> Path:
        """Folder for the predicted label maps of the test cases, ``CASE.nii.gz`` with classes as labels."""
        return self.folder / "predictions"

    @property
    def training_refs(self) -> tuple[CaseRef, ...]:
        """Training cases of the arm; a case may occur more than once."""
        return self.plan.training_sets[self.plan.draw_of(self.arm, self.seed)]

    @property
    def test_refs(self) -> tuple[CaseRef, ...]:
        """Test cases of the benchmark, all of them real."""
        return tuple((REAL, case_id) for case_id in self.plan.split.test)

    def find_case(self, ref: CaseRef) -> tuple[CaseFiles, dict[str, tuple[int, ...]]]:
        """Return the files of a case and the numbers of its labels; a missing one that is made of real ones is made."""
        if ref[0] in MADE_KINDS:
            return make_case(self.bench, self.plan, ref), {name: (n,) for name, n in self.plan.classes.items()}
        return self.plan.find_case(ref), self.plan.sources[ref[0]].label_ids


class Engine(Protocol):
    """Protocol of engines, which train the segmenter of an arm and segment the test cases."""

    def run(self, job: ArmJob, *, max_minutes: float | None, report_step: ReportStep | None) -> bool:
        """Train a segmenter on the cases of an arm, or continue, and write predictions for the test cases.

        Args:
            job: The training.
            max_minutes: Time limit; None for no limit.
            report_step: Progress callback, called with (step, figures such as ``loss``).

        Returns:
            Whether the arm is finished; False if the time limit was reached.
        """


def make_case(bench: Path, plan: BenchmarkPlan, ref: CaseRef) -> CaseFiles:
    """Return a case made of a real training case, on first use; always the same bytes.

    With copy-paste it has a lesion of another one, warped it is deformed as label maps of a mask bank are, the image
    along with its label map.

    Args:
        bench: Folder of the benchmark, in which the case is kept.
        plan: Plan of the benchmark.
        ref: Kind and id of the case.

    Returns:
        Paths of its image and label map.

    Raises:
        BenchmarkError: There is no lesion to paste, or no room.
    """
    kind, case_id = ref
    files = CaseFiles(case_id, bench / kind / f"{case_id}_image.nii.gz", bench / kind / f"{case_id}_label.nii.gz")
    if files.image.is_file() and files.label.is_file():
        return files
    train = plan.split.train
    number = int(case_id.rpartition("-")[2])
    rng = numpy_generator(derive_seed(kind, plan.config.seed, number), MADE_KINDS[kind])
    target_id = train[number % len(train)]
    target = _load_real(plan, target_id)
    if kind == COPY_PASTE:
        donors = [_load_real(plan, case) for case in train if case != target_id] or [target]
        made = paste_lesion(target, donors, plan.lesion_classes, rng=rng)
    else:
        made = _warp(target, rng)
    save_image(files.image, made.image_hu, made.grid)
    save_label_map(files.label, made.classes, made.grid)
    return files


def _warp(case: LoadedCase, rng: np.random.Generator) -> LoadedCase:
    image_hu, classes = deform_case(
        case.image_hu, case.classes, spacing_mm=case.grid.spacing_mm, rng=rng, strength=float(rng.uniform(0.5, 1.0))
    )
    return LoadedCase(np.rint(image_hu).astype(np.int16), classes, case.grid)


def _load_real(plan: BenchmarkPlan, case_id: str) -> LoadedCase:
    return load_case(plan.find_case((REAL, case_id)), plan.sources[REAL].label_ids)
