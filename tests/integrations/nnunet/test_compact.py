from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.errors import ExportError
from maisi_aug.integrations.nnunet.compact import find_only_plans, find_planned_dataset, write_compact_plans
from tests.builders.nnunet_networks import describe_network


def write_plans(folder: Path, spacing: list[float], median: list[float], **blocks: Any) -> Path:
    dataset = folder / "Dataset503_Mixed"
    dataset.mkdir(parents=True, exist_ok=True)
    configuration = {
        "data_identifier": "nnUNetPlans_real_3d_fullres",
        "batch_size": 2,
        "patch_size": [128, 128, 128],
        "median_image_size_in_voxels": median,
        "spacing": spacing,
        "normalization_schemes": ["CTNormalization"],
        "architecture": describe_network([32, 64, 128, 256, 320, 320], num_convolutions=2, **blocks),
    }
    flat = configuration | {"patch_size": [256, 256], "spacing": spacing[1:]}
    content = {
        "plans_name": "nnUNetPlans_real",
        "dataset_name": dataset.name,
        "configurations": {"2d": flat, "3d_fullres": configuration, "3d_cascade_fullres": {"inherits_from": "x"}},
    }
    (dataset / "nnUNetPlans_real.json").write_text(json.dumps(content))
    return dataset


def read_configuration(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    assert content["plans_name"] == path.stem
    (name,) = content["configurations"]
    assert name == "3d_fullres"
    configuration: dict[str, Any] = content["configurations"][name]
    return configuration


def build_and_count(configuration: dict[str, Any]) -> tuple[int, list[tuple[int, ...]]]:
    """Parameters of the network that nnU-Net builds, and the shapes of its outputs."""
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    architecture = configuration["architecture"]
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        3,
        deep_supervision=True,
    )
    with torch.no_grad():
        outputs = network(torch.zeros(1, 1, *configuration["patch_size"]))
    return sum(weight.numel() for weight in network.parameters()), [tuple(output.shape) for output in outputs]


def test_isotropic_cases_get_a_cube_and_four_narrow_stages(tmp_path: Path) -> None:
    dataset = write_plans(tmp_path, [1.5, 1.5, 1.5], [200, 256, 256])
    configuration = read_configuration(write_compact_plans(dataset, "nnUNetPlans_real"))
    network = configuration["architecture"]["arch_kwargs"]
    assert configuration["patch_size"] == [64, 64, 64]
    assert network["features_per_stage"] == [16, 32, 64, 128]
    assert network["strides"] == [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
    assert configuration["data_identifier"] == "nnUNetPlans_real_3d_fullres"
    num_parameters, shapes = build_and_count(configuration | {"patch_size": [32, 32, 32]})
    assert 0.5e6 < num_parameters < 2e6
    assert shapes == [(1, 3, 32, 32, 32), (1, 3, 16, 16, 16), (1, 3, 8, 8, 8)]


def test_thick_slices_get_a_flat_patch_of_as_many_voxels(tmp_path: Path) -> None:
    dataset = write_plans(tmp_path, [5.0, 0.8, 0.8], [60, 512, 512])
    configuration = read_configuration(write_compact_plans(dataset, "nnUNetPlans_real"))
    sides = configuration["patch_size"]
    assert sides[0] < 24 < 96 < sides[1] == sides[2]
    assert 0.8 < sides[0] * sides[1] * sides[2] / 64**3 < 1.6
    strides = configuration["architecture"]["arch_kwargs"]["strides"]
    assert strides[1] == [1, 2, 2]  # nnU-Net's rule: coarse axes are pooled later
    assert [side % 8 for side in sides[1:]] == [0, 0]


def test_patch_stays_within_small_images(tmp_path: Path) -> None:
    dataset = write_plans(tmp_path, [2.0, 2.0, 2.0], [40, 60, 60])
    configuration = read_configuration(write_compact_plans(dataset, "nnUNetPlans_real"))
    assert configuration["patch_size"] == [40, 64, 64]


def test_low_resolution_does_not_name_a_stage_that_is_left_out(tmp_path: Path) -> None:
    dataset = write_plans(tmp_path, [1.5, 1.5, 1.5], [200, 256, 256])
    path = dataset / "nnUNetPlans_real.json"
    content = json.loads(path.read_text())
    content["configurations"]["3d_fullres"]["next_stage"] = "3d_cascade_fullres"
    path.write_text(json.dumps(content))
    assert "next_stage" not in read_configuration(write_compact_plans(dataset, "nnUNetPlans_real"))


def test_residual_networks_keep_their_blocks(tmp_path: Path) -> None:
    dataset = write_plans(tmp_path, [1.5, 1.5, 1.5], [200, 256, 256], n_blocks_per_stage=[1, 3, 4, 6, 6, 6])
    plans = write_compact_plans(dataset, "nnUNetPlans_real", features=[8, 16, 32], side=48, batch_size=3)
    configuration = read_configuration(plans)
    network = configuration["architecture"]["arch_kwargs"]
    assert network["n_blocks_per_stage"] == [1, 3, 4]
    assert network["n_conv_per_stage_decoder"] == [2, 2]
    assert (configuration["patch_size"], configuration["batch_size"]) == ([48, 48, 48], 3)


def test_command_finds_dataset_and_plans(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    write_plans(tmp_path, [1.5, 1.5, 1.5], [200, 256, 256])
    for _ in range(2):  # the same plans twice are no conflict
        outcome = run_cli("nnunet-compact-plans", "503", "--preprocessed", tmp_path)
        assert outcome.code == 0, outcome.stderr
    assert "train with -p nnUNetPlans_real_compact" in outcome.stdout
    assert run_cli("nnunet-compact-plans", "503", "--preprocessed", tmp_path, "--features", "a,b").code == 2


def test_dataset_may_be_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_plans(tmp_path / "preprocessed", [1.5, 1.5, 1.5], [200, 256, 256])
    raw = tmp_path / "raw" / dataset.name
    raw.mkdir(parents=True)
    assert find_planned_dataset(tmp_path / "elsewhere", str(dataset)) == dataset
    assert find_planned_dataset(tmp_path / "preprocessed", f"{raw}/") == dataset
    monkeypatch.chdir(tmp_path)
    assert find_planned_dataset(None, f"preprocessed/{dataset.name}") == dataset
    monkeypatch.chdir(dataset)
    assert find_planned_dataset(None, ".") == dataset


class TestRefusals:
    def test_other_compact_plans_are_kept(self, tmp_path: Path) -> None:
        dataset = write_plans(tmp_path, [1.5, 1.5, 1.5], [200, 256, 256])
        path = write_compact_plans(dataset, "nnUNetPlans_real")
        before = path.read_bytes()
        with pytest.raises(ExportError, match="compact plans already exist"):
            write_compact_plans(dataset, "nnUNetPlans_real", side=48)
        assert path.read_bytes() == before

    @pytest.mark.parametrize("numbers", [{"side": 4}, {"batch_size": 0}, {"features": [16]}, {"features": [0, 8]}])
    def test_numbers_out_of_range(self, tmp_path: Path, numbers: dict[str, Any]) -> None:
        with pytest.raises(ExportError, match="Compact plans: expected a side of at least 8"):
            write_compact_plans(tmp_path, "nnUNetPlans", **numbers)

    def test_missing_plans_and_datasets(self, tmp_path: Path) -> None:
        dataset = write_plans(tmp_path, [1.5, 1.5, 1.5], [200, 256, 256])
        with pytest.raises(ExportError, match="Other.json: not nnU-Net's plans; the folder has nnUNetPlans_real"):
            write_compact_plans(dataset, "Other")
        with pytest.raises(ExportError, match="Dataset '504': not the number, name or folder of a dataset under"):
            find_planned_dataset(tmp_path, "504")
        for text in ("", ".", "*", "..", "Dataset5*"):
            with pytest.raises(ExportError, match="which has none"):
                find_planned_dataset(tmp_path, text)
        (tmp_path / "Dataset505_Empty").mkdir()
        with pytest.raises(ExportError, match="expected one file of plans, found none"):
            find_only_plans(find_planned_dataset(tmp_path, "Dataset505_Empty"))

    def test_flat_plans_alone(self, tmp_path: Path) -> None:
        dataset = write_plans(tmp_path, [1.5, 1.5, 1.5], [200, 256, 256])
        path = dataset / "nnUNetPlans_real.json"
        content = json.loads(path.read_text())
        del content["configurations"]["3d_fullres"]
        path.write_text(json.dumps(content))
        with pytest.raises(
            ExportError, match="has no three-dimensional configuration with a patch of its own, found 2d"
        ):
            write_compact_plans(dataset, "nnUNetPlans_real")
