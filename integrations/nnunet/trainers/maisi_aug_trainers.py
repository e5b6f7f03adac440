"""Trainers for nnU-Net that mix real and synthetic cases in a set share; the class's name holds the settings.

nnU-Net imports this file on its own from the folder in nnUNet_extTrainer and asks it for a class by name, so classes
are made when they are requested: ``nnUNetTrainerSynthetic50``, ``nnUNetTrainerSynthetic25Fade_250epochs``, and so on.
"""

from __future__ import annotations

import multiprocessing
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import Tensor, nn

from maisi_aug.errors import TrainingError
from maisi_aug.integrations.nnunet.inserting import CtScaling, InsertingDataset, InsertSettings
from maisi_aug.integrations.nnunet.sampling import SyntheticShareLoader
from maisi_aug.integrations.nnunet.splits import SPLITS_NAME
from maisi_aug.integrations.nnunet.trainer_settings import TrainerSettings, read_synthetic_cases, read_trainer_name


class Float32Loss(nn.Module):
    """Loss that is always computed in float32, because sums for Dice are too coarse in bfloat16."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Any, target: Any) -> Tensor:
        """Return the loss of one output, or of a list of outputs with deep supervision."""
        with torch.autocast("cpu", enabled=False):
            raised = [part.float() for part in output] if isinstance(output, list | tuple) else output.float()
            value: Tensor = self.loss(raised, target)
        return value


class SyntheticShareTrainer(nnUNetTrainer):  # type: ignore[misc]  # nnU-Net has no types
    """nnU-Net trainer with a share of synthetic cases in training, and none in validation."""

    settings: ClassVar[TrainerSettings]
    num_epochs: int
    dataset_class: Any

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net reads this signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.synthetic_cases = read_synthetic_cases(dataset_json, self.plans_manager.dataset_name)
        if self.settings.num_epochs:
            self.num_epochs = self.settings.num_epochs
        if self.settings.num_iterations:
            self.num_iterations_per_epoch = self.settings.num_iterations
            self.num_val_iterations_per_epoch = max(1, self.settings.num_iterations // 5)  # nnU-Net's own proportion
        self.share = multiprocessing.Value("d", self.settings.share_at(0, self.num_epochs))
        self._num_drawn = self._num_synthetic_drawn = 0

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return nnU-Net's split, after checking that no synthetic case is in validation and the fold exists.

        Raises:
            TrainingError: There is no file of folds, no such fold, or a synthetic case in validation.
        """
        if self.fold != "all":
            path = Path(self.preprocessed_dataset_folder_base, SPLITS_NAME)
            num_folds = len(load_json(str(path))) if path.is_file() else 0
            if self.fold >= num_folds:
                raise TrainingError(
                    f"Fold {self.fold}: {path} has {num_folds} folds; for any other, nnU-Net would draw a random "
                    "split with synthetic cases in validation. Choose another fold, or export again."
                )
        training, validation = super().do_split()
        if self.fold == "all":
            return training, [case_id for case_id in validation if case_id not in self.synthetic_cases]
        leaked = sorted(self.synthetic_cases.intersection(validation))
        if leaked:
            raise TrainingError(
                f"Fold {self.fold}: only real cases can be used for validation, found the synthetic case "
                f"'{leaked[0]}'. Export "
                f"again, or correct {SPLITS_NAME}."
            )
        return training, validation

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Return nnU-Net's loaders and transforms, where training draws synthetic cases by their share."""
        if self.dataset_class is None:
            self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        training_transforms, validation_transforms, initial_patch = self._build_transforms()
        training, validation = self.get_tr_and_val_datasets()
        training = self._insert_into(training)
        patch, labels = self.configuration_manager.patch_size, self.label_manager
        drawing = {
            "oversample_foreground_percent": self.oversample_foreground_percent,
            "probabilistic_oversampling": self.probabilistic_oversampling,
        }
        return self._run_loaders(
            SyntheticShareLoader(
                *(training, self.batch_size, initial_patch, patch, labels),
                synthetic_cases=self.synthetic_cases,
                share=self.share,
                lowest_share=self.settings.lowest_share,
                transforms=training_transforms,
                **drawing,
            ),
            nnUNetDataLoader(
                *(validation, self.batch_size, patch, patch, labels), transforms=validation_transforms, **drawing
            ),
        )

    def _insert_into(self, training: Any) -> Any:
        """The training cases, with lesions drawn into the real ones where ``dataset.json`` says so."""
        settings = InsertSettings.of(self.dataset_json)
        if settings is None:
            return training
        self.print_to_log_file(f"Inserted into {settings.share:.0%} of the real cases that are read: {settings.lesion}")
        return InsertingDataset(
            training,
            settings,
            CtScaling.of(self.plans_manager.plans, self.configuration_manager.normalization_schemes),
            spacing_mm=self.configuration_manager.spacing,
            left_alone=self.synthetic_cases,
        )

    def _build_transforms(self) -> tuple[Any, Any, Any]:
        """nnU-Net's transforms for training and validation, and the patch that the first of them cuts from."""
        configuration, labels = self.configuration_manager, self.label_manager
        scales = self._get_deep_supervision_scales()
        rotation, is_dummy_2d, initial_patch, mirrored = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        common = {
            "is_cascaded": self.is_cascaded,
            "foreground_labels": labels.foreground_labels,
            "regions": labels.foreground_regions if labels.has_regions else None,
            "ignore_label": labels.ignore_label,
        }
        training = self.get_training_transforms(
            *(configuration.patch_size, rotation, scales, mirrored, is_dummy_2d),
            use_mask_for_norm=configuration.use_mask_for_norm,
            **common,
        )
        return training, self.get_validation_transforms(scales, **common), initial_patch

    def _run_loaders(self, training: Any, validation: Any) -> tuple[Any, Any]:
        """Loaders with as many worker processes as nnU-Net would give them; the first batch of each is drawn here."""
        num_workers = get_allowed_n_proc_DA()
        if num_workers == 0:
            running = SingleThreadedAugmenter(training, None), SingleThreadedAugmenter(validation, None)
        else:
            workers = {"seeds": None, "pin_memory": self.device.type == "cuda", "wait_time": 0.002}
            running = (
                NonDetMultiThreadedAugmenter(training, None, num_workers, max(6, num_workers // 2), **workers),
                NonDetMultiThreadedAugmenter(
                    validation, None, max(1, num_workers // 2), max(3, num_workers // 4), **workers
                ),
            )
        for loader in running:
            next(loader)
        return running

    def on_train_start(self) -> None:
        """Set the share of the epoch with which training starts or continues, before workers draw from it."""
        self.share.value = self.settings.share_at(self.current_epoch, self.num_epochs)
        super().on_train_start()

    def on_train_epoch_start(self) -> None:
        """Set the share of synthetic cases of this epoch; batches that are drawn already have the previous share."""
        super().on_train_epoch_start()
        self.share.value = self.settings.share_at(self.current_epoch, self.num_epochs)
        self._num_drawn = self._num_synthetic_drawn = 0

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log the drawn share of synthetic cases, and the requested one."""
        super().on_train_epoch_end(train_outputs)
        drawn = self._num_synthetic_drawn / max(1, self._num_drawn)
        self.print_to_log_file(f"Synthetic share: {drawn:.3f} drawn, {self.share.value:.3f} set")

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Run nnU-Net's training step, in bfloat16 on a CPU if the trainer is for one."""
        self._num_drawn += len(batch["keys"])
        self._num_synthetic_drawn += sum(str(case_id) in self.synthetic_cases for case_id in batch["keys"])
        with self._autocast():
            outcome: dict[str, Any] = super().train_step(batch)
        return outcome

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Run nnU-Net's validation step, in bfloat16 on a CPU if the trainer is for one."""
        with self._autocast():
            outcome: dict[str, Any] = super().validation_step(batch)
        return outcome

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predict the validation cases as nnU-Net does, in bfloat16 on a CPU if the trainer is for one."""
        with self._autocast():
            super().perform_actual_validation(save_probabilities)

    def _build_loss(self) -> nn.Module:
        loss: nn.Module = super()._build_loss()
        return Float32Loss(loss) if self._is_in_bfloat16 else loss

    @property
    def _is_in_bfloat16(self) -> bool:
        return self.settings.is_for_cpu and self.device.type == "cpu"

    def _autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 on a CPU, where nnU-Net leaves autocast out; on a GPU nnU-Net has its own."""
        return torch.autocast("cpu", dtype=torch.bfloat16) if self._is_in_bfloat16 else nullcontext()


def __getattr__(name: str) -> type[SyntheticShareTrainer]:
    """Return the trainer of a name, made on demand."""
    settings = read_trainer_name(name)
    if settings is None:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    trainer = type(name, (SyntheticShareTrainer,), {"settings": settings, "__module__": __name__})
    globals()[name] = trainer
    return trainer
