from __future__ import annotations

import json
import multiprocessing
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maisi_aug.errors import TrainingError
from maisi_aug.integrations.nnunet.trainer_settings import (
    TRAINER_VARIABLE,
    TrainerSettings,
    read_synthetic_cases,
    read_trainer_name,
    trainer_folder,
)
from tests.builders.nnunet_networks import describe_network

REAL = [f"real_{number}" for number in range(5)]
SYNTHETIC = [f"synthetic_{number}" for number in range(3)]
LABELS = {"background": 0, "liver": 1, "tumor": 2}
NAME = "Dataset503_Mixed"
PLANS = "nnUNetPlans_real"


class TestNames:
    @pytest.mark.parametrize(
        ("name", "settings"),
        [
            ("nnUNetTrainerSynthetic50", TrainerSettings(0.5)),
            ("nnUNetTrainerSynthetic0", TrainerSettings(0.0)),
            ("nnUNetTrainerSynthetic25Fade_250epochs", TrainerSettings(0.25, fades=True, num_epochs=250)),
            (
                "nnUNetTrainerSynthetic100CPU",
                TrainerSettings(1.0, is_for_cpu=True, num_epochs=50, num_iterations=50),
            ),
            (
                "nnUNetTrainerSynthetic5FadeCPU_3epochs_7iterations",
                TrainerSettings(0.05, fades=True, is_for_cpu=True, num_epochs=3, num_iterations=7),
            ),
        ],
    )
    def test_name_holds_the_settings(self, name: str, settings: TrainerSettings) -> None:
        assert read_trainer_name(name) == settings

    @pytest.mark.parametrize("name", ["nnUNetTrainer", "nnUNetTrainer_250epochs", "__path__"])
    def test_other_names_are_not_ours(self, name: str) -> None:
        assert read_trainer_name(name) is None

    @pytest.mark.parametrize("ending", ["", "150", "50fade", "50_0epochs", "50_10iterations_5epochs", "50CPUFade"])
    def test_wrong_form_is_refused(self, ending: str) -> None:
        with pytest.raises(TrainingError, match=f"Trainer 'nnUNetTrainerSynthetic{ending}': must be .*PERCENT"):
            read_trainer_name(f"nnUNetTrainerSynthetic{ending}")

    def test_fade_ends_at_four_fifths(self) -> None:
        settings = TrainerSettings(0.5, fades=True)
        shares = [settings.share_at(epoch, 10) for epoch in range(10)]
        assert shares == pytest.approx([0.5, 0.4375, 0.375, 0.3125, 0.25, 0.1875, 0.125, 0.0625, 0, 0])
        assert TrainerSettings(0.5).share_at(9, 10) == 0.5

    def test_dataset_without_synthetic_cases_is_refused(self) -> None:
        with pytest.raises(TrainingError, match="Dataset003: its dataset.json names no synthetic cases"):
            read_synthetic_cases({"labels": {}}, "Dataset003")


class TestPath:
    def test_folder_holds_the_trainers(self, run_cli: Callable[..., Any]) -> None:
        outcome = run_cli("nnunet-trainer-path")
        assert outcome.stdout == f"{trainer_folder()}\n"
        assert (trainer_folder() / "maisi_aug_trainers.py").is_file()

    def test_environment_keeps_other_folders_and_names_what_is_missing(
        self, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(TRAINER_VARIABLE, f"/other one:{trainer_folder()}")
        monkeypatch.setenv("nnUNet_raw", "/raw")
        monkeypatch.delenv("nnUNet_results", raising=False)
        outcome = run_cli("nnunet-trainer-path", "--env")
        assert outcome.stdout == f"export nnUNet_extTrainer='/other one:{trainer_folder()}'\n"
        assert "nnUNet_raw" not in outcome.stderr
        assert "nnUNet_results is not set, but nnU-Net needs it: export nnUNet_results=FOLDER" in outcome.stderr


def build_plans(patch: tuple[int, int, int]) -> dict[str, Any]:
    """Plans in nnU-Net's form for a network of three narrow stages."""
    return {
        "dataset_name": NAME,
        "plans_name": PLANS,
        "continue_training": False,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "3d_fullres": {
                "data_identifier": f"{PLANS}_3d_fullres",
                "batch_size": 4,
                "patch_size": list(patch),
                "median_image_size_in_voxels": list(patch),
                "spacing": [1.0, 1.0, 1.0],
                "use_mask_for_norm": [False],
                "normalization_schemes": ["CTNormalization"],
                "batch_dice": True,
                "architecture": describe_network([2, 4, 4]),
            }
        },
    }


def describe() -> dict[str, Any]:
    return {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": len(REAL) + len(SYNTHETIC),
        "file_ending": ".nii.gz",
        "maisi_aug": {"format": 1, "real_dataset": "Dataset003_Real", "synthetic_cases": SYNTHETIC},
    }


@pytest.fixture
def preprocessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset as nnU-Net leaves it after preprocessing, written by nnU-Net's own class."""
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    for variable in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / variable))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    folder = tmp_path / "preprocessed" / NAME
    cases = folder / f"{PLANS}_3d_fullres"
    cases.mkdir(parents=True)
    rng = np.random.default_rng(3)
    for case_id in (*REAL, *SYNTHETIC):
        image = rng.normal(size=(1, 10, 12, 9)).astype(np.float32)
        label_map = np.zeros_like(image, dtype=np.int8)
        label_map[:, 2:8, 3:9, 2:7] = 1
        label_map[:, 4:6, 5:7, 3:5] = 2
        places = {value: np.argwhere(label_map == value) for value in (1, 2)}
        sides = {"chunks": image.shape, "blocks": image.shape}
        nnUNetDatasetBlosc2.save_case(image, label_map, {"class_locations": places}, str(cases / case_id), **sides)
    folds = [{"train": [*REAL[1:], *SYNTHETIC], "val": REAL[:1]}, {"train": REAL[:-1], "val": REAL[-1:]}]
    for name, content in (
        ("splits_final.json", folds),
        ("dataset_fingerprint.json", {}),
        ("dataset.json", describe()),
    ):
        (folder / name).write_text(json.dumps(content))
    return folder


def build_loader(preprocessed: Path, share: Any, lowest: float, case_ids: list[str], batch_size: int = 2) -> Any:
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    from maisi_aug.integrations.nnunet.sampling import SyntheticShareLoader

    dataset = nnUNetDatasetBlosc2(str(preprocessed / f"{PLANS}_3d_fullres"), list(case_ids))
    return SyntheticShareLoader(
        *(dataset, batch_size, (8, 8, 8), (8, 8, 8), LabelManager(LABELS, None)),
        oversample_foreground_percent=0.33,
        synthetic_cases=frozenset(SYNTHETIC),
        share=share,
        lowest_share=lowest,
    )


class TestLoader:
    @pytest.mark.parametrize(("share", "counts"), [(0.0, {0}), (0.5, {1}), (1.0, {2}), (0.25, {0, 1}), (0.6, {1, 2})])
    def test_every_batch_holds_the_share_as_exactly_as_it_can(
        self, preprocessed: Path, share: float, counts: set[int]
    ) -> None:
        np.random.seed(1)  # noqa: NPY002  the stream that nnU-Net draws from
        loader = build_loader(preprocessed, multiprocessing.Value("d", share), share, [*REAL, *SYNTHETIC])
        drawn = [loader.get_indices() for _ in range(1500)]
        per_batch = [sum(case_id in SYNTHETIC for case_id in batch) for batch in drawn]
        assert set(per_batch) == counts
        assert np.mean(per_batch) / 2 == pytest.approx(share, abs=0.02)
        seen = Counter(case_id for batch in drawn for case_id in batch)
        for cases, expected in ((REAL, 3000 * (1 - share) / 5), (SYNTHETIC, 3000 * share / 3)):
            assert [seen[case_id] for case_id in cases] == pytest.approx([expected] * len(cases), abs=110)

    def test_places_with_foreground_go_to_both_kinds(self, preprocessed: Path) -> None:
        np.random.seed(2)  # noqa: NPY002
        loader = build_loader(preprocessed, multiprocessing.Value("d", 0.5), 0.5, [*REAL, *SYNTHETIC])
        assert [loader.get_do_oversample(place) for place in (0, 1)] == [False, True]
        last = [loader.get_indices()[-1] in SYNTHETIC for _ in range(800)]
        assert np.mean(last) == pytest.approx(0.5, abs=0.06)

    def test_batches_are_nnunets(self, preprocessed: Path) -> None:
        loader = build_loader(preprocessed, multiprocessing.Value("d", 0.5), 0.5, [*REAL, *SYNTHETIC])
        batch = next(loader)
        assert batch["data"].shape == (2, 1, 8, 8, 8)
        assert batch["target"].shape == (2, 1, 8, 8, 8)
        assert sum(case_id in SYNTHETIC for case_id in batch["keys"]) == 1

    def test_workers_follow_a_share_that_changes(self, preprocessed: Path) -> None:
        from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter

        share = multiprocessing.Value("d", 1.0)
        loader = build_loader(preprocessed, share, 0.0, [*REAL, *SYNTHETIC])
        running = NonDetMultiThreadedAugmenter(loader, None, 1, 1, seeds=None)
        try:
            assert all(case_id in SYNTHETIC for case_id in next(running)["keys"])
            share.value = 0.0
            for _ in range(6):  # what was drawn ahead
                next(running)
            for _ in range(3):
                assert all(case_id in REAL for case_id in next(running)["keys"])
        finally:
            running._finish()

    @pytest.mark.parametrize(
        ("share", "lowest", "case_ids", "kind"),
        [(0.5, 0.5, REAL, "synthetic"), (0.5, 0.5, SYNTHETIC, "real"), (1.0, 0.0, SYNTHETIC, "real")],
    )
    def test_share_without_its_cases_is_refused(
        self, preprocessed: Path, share: float, lowest: float, case_ids: list[str], kind: str
    ) -> None:
        with pytest.raises(TrainingError, match=f"a synthetic share of .* needs {kind} cases"):
            build_loader(preprocessed, multiprocessing.Value("d", share), lowest, case_ids)


def build_trainer(name: str, fold: int | str = 0, folder: Path | None = None) -> Any:
    import os

    import torch
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    os.environ[TRAINER_VARIABLE] = str(folder or trainer_folder())
    found = recursive_find_trainer_class_by_name(name)
    return found(build_plans((8, 8, 8)), "3d_fullres", fold, describe(), torch.device("cpu"))


@pytest.fixture
def trainer_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the variable back its value after the test."""
    monkeypatch.setenv(TRAINER_VARIABLE, "")


@pytest.mark.usefixtures("trainer_variable", "preprocessed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
class TestTrainer:
    def test_nnunet_finds_it_in_a_copy_of_the_folder(self, tmp_path: Path) -> None:
        copied = tmp_path / "trainers"
        shutil.copytree(trainer_folder(), copied)
        trainer = build_trainer("nnUNetTrainerSynthetic50_7epochs", folder=copied)
        assert type(trainer).__name__ == "nnUNetTrainerSynthetic50_7epochs"
        assert trainer.num_epochs == 7
        assert trainer.num_iterations_per_epoch == 250

    def test_training_draws_the_share_that_fades_and_validates_on_real_cases(self, tmp_path: Path) -> None:
        np.random.seed(4)  # noqa: NPY002
        trainer = build_trainer("nnUNetTrainerSynthetic50FadeCPU_5epochs_2iterations")
        trainer.disable_checkpointing = True
        validated: set[str] = set()
        plain_step = trainer.validation_step

        def note_cases(batch: dict[str, Any]) -> dict[str, Any]:
            validated.update(batch["keys"])
            outcome: dict[str, Any] = plain_step(batch)
            return outcome

        trainer.validation_step = note_cases
        trainer.run_training()
        assert validated == {REAL[0]}
        log = Path(trainer.log_file).read_text()
        shares = [tuple(map(float, pair)) for pair in re.findall(r"share: ([\d.]+) drawn, ([\d.]+) set", log)]
        assert [wanted for _, wanted in shares] == pytest.approx([0.5, 0.375, 0.25, 0.125, 0.0], abs=1e-3)
        assert shares[0][0] == 0.5
        assert shares[2][0] == 0.25  # one of four, without a remainder
        assert shares[4][0] == 0.0
        assert trainer.logger.get_value("train_losses", step=None)[-1] < 5

    def test_cpu_trainer_computes_in_bfloat16_and_its_loss_in_float32(self) -> None:
        import torch

        trainer = build_trainer("nnUNetTrainerSynthetic50CPU_1epochs_1iterations")
        trainer.initialize()
        seen: dict[str, torch.dtype] = {}

        def note(module: Any, inputs: Any, output: Any) -> None:
            seen["network"] = output[0].dtype

        trainer.network.register_forward_hook(note)
        inner = trainer.loss.loss
        inner.register_forward_pre_hook(lambda module, inputs: seen.update(loss=inputs[0][0].dtype))
        batch = {
            "data": torch.randn(4, 1, 8, 8, 8),
            "target": [torch.ones(4, 1, side, side, side) for side in (8, 4)],
            "keys": [*REAL[:2], *SYNTHETIC[:2]],
        }
        assert np.isfinite(trainer.train_step(batch)["loss"])
        assert seen == {"network": torch.bfloat16, "loss": torch.float32}

    def test_all_cases_train_and_real_ones_validate_with_fold_all(self) -> None:
        training, validation = build_trainer("nnUNetTrainerSynthetic50", fold="all").do_split()
        assert sorted(training) == sorted([*REAL, *SYNTHETIC])
        assert sorted(validation) == REAL

    def test_fold_past_the_end_is_refused(self) -> None:
        with pytest.raises(TrainingError, match="Fold 2:"):
            build_trainer("nnUNetTrainerSynthetic50", fold=2).do_split()

    def test_missing_splits_are_refused(self, preprocessed: Path) -> None:
        (preprocessed / "splits_final.json").unlink()
        with pytest.raises(TrainingError, match="Fold 0:"):
            build_trainer("nnUNetTrainerSynthetic50").do_split()

    def test_synthetic_case_in_validation_is_refused(self, preprocessed: Path) -> None:
        folds = [{"train": REAL, "val": [SYNTHETIC[1]]}]
        (preprocessed / "splits_final.json").write_text(json.dumps(folds))
        with pytest.raises(TrainingError, match="only real cases can be used for validation, found the"):
            build_trainer("nnUNetTrainerSynthetic50").do_split()
