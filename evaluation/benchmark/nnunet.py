"""Run an arm with nnU-Net: one dataset with the cases of all arms, a fold per arm, plans from the real cases.

The cases are written once, in RAS+ and with the benchmark's classes as labels, so that images and label maps lie on one
grid whatever their files were like. Preprocessing is shared by all arms; the first one does it. A case that
cannot be written then is missing from the dataset, and fails the arms that train on it and no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from maisi_aug.banks.case_reader import load_ct
from maisi_aug.banks.raw_datasets import NEVER_TRAINED
from maisi_aug.errors import BenchmarkError, MaisiAugError
from maisi_aug.evaluation.benchmark.arm_job import ArmJob
from maisi_aug.evaluation.benchmark.data import load_case
from maisi_aug.evaluation.benchmark.plan import CaseRef
from maisi_aug.integrations.nnunet.training import prepare_nnunet_folds, train_nnunet_fold
from maisi_aug.system.content import read_json
from maisi_aug.system.file_lock import lock
from maisi_aug.system.progress import ReportStep
from maisi_aug.system.whole_files import write_json_whole
from maisi_aug.volumes.image_files import save_image, save_label_map

DATASET: Final = "Dataset001_Benchmark"
READY_NAME: Final = "ready.json"


class NnunetEngine:
    """Engine that trains with nnU-Net's own trainer, augmentation and loss."""

    def run(self, job: ArmJob, *, max_minutes: float | None, report_step: ReportStep | None) -> bool:
        """Prepare the nnU-Net dataset if needed, train or continue, then segment the test cases.

        Args:
            job: Training to run, with its folder.
            max_minutes: Time limit; None for no limit.
            report_step: Progress callback, called with (step, figures such as ``loss``).

        Returns:
            Whether training and predictions are done; False if the time limit was reached.
        """
        plans = _prepare(job)
        model = train_nnunet_fold(
            job.bench / "nnunet",
            DATASET,
            plans,
            fold=_fold_of(job),
            results=job.folder / "nnunet",
            num_steps=job.plan.config.steps,
            seed=job.training_seed,
            device=job.device,
            max_minutes=max_minutes,
            report_epoch=lambda step, loss: None if report_step is None else report_step(step, {"loss": loss}),
        )
        if model is None:
            return False
        _predict(job, model)
        return True


def _fold_of(job: ArmJob) -> int:
    """A fold is a training set."""
    return list(job.plan.training_sets).index(job.plan.draw_of(job.arm, job.seed))


def _prepare(job: ArmJob) -> str:
    """Name of the plans; writes and preprocesses all cases where no other arm has done so.

    Raises:
        BenchmarkError: A case that this arm trains on, or that is planned on, cannot be prepared.
    """
    folder = job.bench / "nnunet"
    with _wait_for_lock(folder):
        ready = folder / READY_NAME
        if not ready.is_file():
            write_json_whole(ready, _prepare_all(job, folder))
        found = read_json(ready)
    missing: dict[str, str] = found.get("missing", {})
    lost = [name for ref in dict.fromkeys(job.training_refs) if (name := _name(ref)) in missing]
    if lost:
        raise BenchmarkError(
            f"Arm '{job.arm}': {len(lost)} of its training cases could not be prepared; the first, {lost[0]}: "
            f"{missing[lost[0]]} To prepare them again, remove {folder} while no arm runs."
        )
    return str(found["plans"])


def _prepare_all(job: ArmJob, folder: Path) -> dict[str, object]:
    """Plan on the real training cases and preprocess the cases of all arms; those that cannot be read are listed."""
    planned_on = [("real", case_id) for case_id in job.plan.split.train]
    listed: dict[str, dict[str, object]] = {}
    missing: dict[str, str] = {}
    for ref in dict.fromkeys([*planned_on, *(ref for refs in job.plan.training_sets.values() for ref in refs)]):
        try:
            listed[_name(ref)] = _write_case(job, ref, folder / "raw" / DATASET)
        except MaisiAugError as error:
            if ref in planned_on:  # without it the plans would be others, in every arm
                raise
            missing[_name(ref)] = str(error)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **job.plan.classes},
        "numTraining": len(listed),
        "file_ending": ".nii.gz",
        "dataset": listed,
    }
    plans = prepare_nnunet_folds(
        folder,
        DATASET,
        description,
        planned_on=[_name(ref) for ref in planned_on],
        folds=[[name for ref in refs if (name := _name(ref)) in listed] for refs in job.plan.training_sets.values()],
        is_compact=job.plan.config.preset == "cpu",
    )
    return {"plans": plans, "missing": missing}


def _write_case(job: ArmJob, ref: CaseRef, dataset: Path) -> dict[str, object]:
    image, label = dataset / "imagesTr" / f"{_name(ref)}_0000.nii.gz", dataset / "labelsTr" / f"{_name(ref)}.nii.gz"
    if not (image.is_file() and label.is_file()):
        case = load_case(*job.find_case(ref))
        save_image(image, case.image_hu, case.grid)
        save_label_map(label, case.classes, case.grid)
    return {"images": [str(image.resolve())], "label": str(label.resolve())}


def _predict(job: ArmJob, model: Path) -> None:
    from maisi_aug.integrations.nnunet.prediction import NnUNetModel

    network = NnUNetModel(model, folds=[_fold_of(job)], device=job.device)
    for ref in job.test_refs:
        case, _ = job.find_case(ref)
        path = job.predictions / f"{case.case_id}.nii.gz"
        if not path.is_file():
            image = load_ct(case.image)
            save_label_map(path, network.predict(image), image.grid)


def _name(ref: CaseRef) -> str:
    """A case's id in the dataset, unlike any of another source, and none that nnU-Net leaves out of training."""
    source, case_id = ref
    return f"{source}__{case_id}{'_' if case_id.endswith(NEVER_TRAINED) else ''}"


@contextmanager
def _wait_for_lock(folder: Path) -> Iterator[None]:
    """Let one process at a time prepare the dataset; the others wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        lock(file.fileno(), wait=True)
        yield
