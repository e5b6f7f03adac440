"""Run an arm with the light engine: prepared cases, one training, predictions of the test cases as files."""

from __future__ import annotations

from pathlib import Path

from maisi_aug.evaluation.benchmark.arm_job import ArmJob
from maisi_aug.evaluation.benchmark.config import PREPARED_NAME, PRESETS
from maisi_aug.evaluation.benchmark.data import LoadedCase, PreparedCases
from maisi_aug.evaluation.benchmark.unet import TrainingSet, predict_case, train_unet
from maisi_aug.system.progress import ReportStep
from maisi_aug.volumes.image_files import load_label_map, save_label_map

MAX_CASES_HELD = 64


class LightEngine:
    """Engine that trains MONAI's U-Net in this process."""

    def run(self, job: ArmJob, *, max_minutes: float | None, report_step: ReportStep | None) -> bool:
        """Train MONAI's U-Net or continue, then segment the test cases that have no prediction yet.

        Args:
            job: Training to run, with its folder.
            max_minutes: Time limit; None for no limit.
            report_step: Progress callback, called with (step, figures such as ``loss``).

        Returns:
            Whether training and predictions are done; False if the time limit was reached.
        """
        preset, plan = PRESETS[job.plan.config.preset], job.plan.training
        prepared = PreparedCases(job.bench / PREPARED_NAME, plan, job.plan.lesion_classes)
        network = train_unet(
            TrainingSet(len(job.training_refs), _CaseLoader(job, prepared), len(job.plan.labels) + 1),
            plan,
            preset,
            job.folder,
            num_steps=job.plan.config.steps,
            seed=job.training_seed,
            device=job.device,
            augmentation=job.plan.config.augmentation,
            max_minutes=max_minutes,
            report_step=report_step,
        )
        if network is None:
            return False
        for ref in job.test_refs:
            case, label_ids = job.find_case(ref)
            path = job.predictions / f"{case.case_id}.nii.gz"
            if not path.is_file():
                target = load_label_map(case.label, image=case.image).grid
                classes = predict_case(
                    network, prepared.load(ref[0], case, label_ids), plan, target=target, device=job.device
                )
                save_label_map(path, classes, target)
        _drop_checkpoint(job.folder)
        return True


class _CaseLoader:
    """Gives an arm's cases by index and holds those that were drawn last; a repeated case is held once."""

    def __init__(self, job: ArmJob, prepared: PreparedCases) -> None:
        self._job = job
        self._prepared = prepared
        self._held: dict[tuple[str, str], LoadedCase] = {}

    def __call__(self, index: int) -> LoadedCase:
        ref = self._job.training_refs[index]
        if ref not in self._held:
            if len(self._held) >= MAX_CASES_HELD:
                self._held.pop(next(iter(self._held)))
            self._held[ref] = self._prepared.load(ref[0], *self._job.find_case(ref))
        return self._held[ref]


def _drop_checkpoint(folder: Path) -> None:
    """Delete a checkpoint that is no longer needed; it contains the optimiser state of every weight."""
    (folder / "checkpoint.pt").unlink(missing_ok=True)
