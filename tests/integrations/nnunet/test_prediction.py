from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from maisi_aug.errors import EvaluationError, RequestError
from maisi_aug.integrations.nnunet.prediction import NnUNetModel, read_label_values
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import Volume, load_image, save_image
from tests.builders.nnunet_networks import describe_network

GRID = Grid.from_spacing((40, 36, 20), (1.0, 1.2, 2.5))
CONFIGURATION = "3d_fullres"


def write_model(folder: Path, *, transpose: tuple[int, int, int] = (0, 1, 2)) -> Path:
    """A model folder as nnU-Net's training leaves it, of a narrow network with random weights."""
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    architecture = describe_network([4, 8])
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    plans = {
        "dataset_name": "Dataset999_Made",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [2.5, 1.2, 1.0],
        "original_median_shape_after_transp": [20, 36, 40],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(transpose),
        "transpose_backward": [int(place) for place in np.argsort(transpose)],
        "configurations": {
            CONFIGURATION: {
                "data_identifier": "x",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": [16, 16, 16],
                "median_image_size_in_voxels": [20, 36, 40],
                "spacing": [2.5, 1.5, 1.5],
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": resampling,
                "resampling_fn_seg_kwargs": resampling | {"is_seg": True},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": resampling,
                "architecture": architecture,
                "batch_dice": False,
            }
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 50.0, "std": 100.0, "percentile_00_5": -200.0, "percentile_99_5": 400.0}
        },
    }
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "liver_tumor": 2},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    torch.manual_seed(0)
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        3,
        deep_supervision=False,
    )
    for weights in network.parameters():
        torch.nn.init.normal_(weights)
    with torch.no_grad():  # so that every label wins somewhere
        network.decoder.seg_layers[0].bias -= network(torch.randn(4, 1, 16, 16, 16)).mean(dim=(0, 2, 3, 4))
    target = folder / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (target / "fold_0").mkdir(parents=True)
    (target / "plans.json").write_text(json.dumps(plans))
    (target / "dataset.json").write_text(json.dumps(dataset))
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": CONFIGURATION},
        "inference_allowed_mirroring_axes": (0,),
    }
    torch.save(checkpoint, target / "fold_0" / "checkpoint_final.pth")
    return target


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("Dataset999_Made"))


@pytest.fixture
def image(rng: np.random.Generator) -> Volume:
    coarse = rng.normal(size=(10, 9, 5)).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    return Volume((150 * coarse + 50).astype(np.int16), GRID)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_prediction_is_what_nnunet_makes_of_the_file(model_folder: Path, image: Volume, tmp_path: Path) -> None:
    """The slow way: nnU-Net's own reader takes the saved file, and its result is read back by ours."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    model = NnUNetModel(model_folder.parent, device="cpu")
    assert model.folder == model_folder
    assert model.label_values == {"liver": (1,), "liver_tumor": (2,)}
    found = model.predict(image)
    assert found.shape == GRID.shape
    assert len(np.unique(found)) == 3
    path, result = tmp_path / "image.nii.gz", tmp_path / "result.nii.gz"
    save_image(path, image.array, GRID)
    array, properties = SimpleITKIO().read_images([str(path)])
    predicted = model._predictor.predict_single_npy_array(array, properties, None, None, False)
    SimpleITKIO().write_seg(predicted, str(result), properties)
    np.testing.assert_array_equal(found, load_image(result).array)


def test_orientation_turns_the_image_for_the_model(model_folder: Path, image: Volume) -> None:
    flipped = Volume(np.ascontiguousarray(image.array[::-1, ::-1]), GRID)
    as_stored = NnUNetModel(model_folder, device="cpu").predict(flipped)
    turned = NnUNetModel(model_folder, orientation="LPS", device="cpu").predict(image)
    np.testing.assert_array_equal(turned, as_stored[::-1, ::-1])


def test_folders_without_a_model_are_named(tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(EvaluationError, match="expected one trained nnU-Net model, .* found none"):
        NnUNetModel(tmp_path)
    with pytest.raises(EvaluationError, match="fold_3/checkpoint_final.pth: this fold is not trained"):
        NnUNetModel(model_folder, folds=(3,))
    with pytest.raises(EvaluationError, match="no fold has checkpoint_best.pth"):
        NnUNetModel(model_folder, checkpoint="checkpoint_best.pth")
    with pytest.raises(
        RequestError, match="Orientation 'RAX': must be three letters such as RAS or LPS, the first R or L,"
    ):
        NnUNetModel(model_folder, orientation="RAX")


def test_model_of_an_unknown_trainer_is_named(tmp_path: Path) -> None:
    import torch

    folder = write_model(tmp_path)
    path = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=True) | {"trainer_name": "nnUNetTrainerOfMine"}
    torch.save(checkpoint, path)
    with pytest.raises(EvaluationError, match="this nnU-Net cannot open the model:"):
        NnUNetModel(folder)


def test_descriptions_without_labels_are_named(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    path.write_text('{"labels": {"background": 0, "whole": [1, 2], "tumor": 2, "ignore": 3}}')
    assert read_label_values(path) == {"whole": (1, 2), "tumor": (2,)}
    path.write_text('{"labels": 3}')
    with pytest.raises(EvaluationError, match="nnU-Net's description with 'labels' cannot be read: AttributeError"):
        read_label_values(path)
