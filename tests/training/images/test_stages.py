from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from torch import Tensor

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.errors import GridError, TrainingError
from maisi_aug.networks.weights import load_networks
from maisi_aug.training.cases.data import PhantomStore
from maisi_aug.training.images import lookup, stages
from maisi_aug.training.images.stages import STAGE_NAMES, StageName, TrainingFolder
from maisi_aug.training.loop.run import CHECKPOINT_NAME, LOG_NAME, LoopResult
from tests.builders.tiny_training import SHAPE, SPACING_MM, build_recipe, write_prepared, write_recipe

REPOSITORY = Path(__file__).resolve().parents[3]
MAISI_CLASSES = {
    "autoencoder": AutoencoderKlMaisi,
    "diffusion_unet": DiffusionModelUNetMaisi,
    "controlnet": ControlNetMaisi,
}
LONG_VAE = {"vae__loop__num_steps": 30, "vae__loop__checkpoint_minutes": 1e-6, "vae__loop__mixed_precision": True}

HALF_WIDE_LATENTS = {
    "bundle__networks__autoencoder__num_channels": [8, 8],
    "bundle__networks__autoencoder__num_res_blocks": [1, 1],
    "bundle__networks__autoencoder__attention_levels": [False, False],
    "bundle__networks__diffusion_unet__num_channels": [16, 16],
    "bundle__networks__diffusion_unet__norm_num_groups": 2,
    "bundle__networks__controlnet__num_channels": [16, 16],
    "bundle__networks__controlnet__norm_num_groups": 2,
    "bundle__networks__controlnet__conditioning_embedding_num_channels": [16, 16],
    "controlnet__loop__weight_decay": 0.0,
}

OpenFolder = Callable[..., TrainingFolder]
Averages = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> PhantomStore:
    """The phantoms of the tiny recipe, built once."""
    store = PhantomStore(tmp_path_factory.mktemp("phantoms"), seed=5, shape=SHAPE, spacing_mm=SPACING_MM)
    store.ensure(2, num_workers=1)
    return store


@pytest.fixture(scope="module")
def open_folder(phantoms: PhantomStore) -> OpenFolder:
    """Open a folder that has its phantoms, with some fields of the recipe changed."""

    def call(folder: Path, **changes: Any) -> TrainingFolder:
        shutil.copytree(phantoms.folder, folder / phantoms.folder.name, dirs_exist_ok=True)
        recipe = build_recipe(**changes)
        return TrainingFolder(recipe, folder, device="cpu", report_phase=lambda name: lambda done, total: None)

    return call


class Trained:
    """A folder whose three stages are trained, with what the loops returned."""

    def __init__(self, folder: TrainingFolder) -> None:
        self.folder = folder
        self.results: dict[StageName, LoopResult] = {stage: folder.train(stage) for stage in STAGE_NAMES}
        self.bundle: Bundle = folder.write_bundle()


@pytest.fixture(scope="module")
def trained(open_folder: OpenFolder, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(open_folder(tmp_path_factory.mktemp("trained")))


def read_weights(bundle: Bundle, role: str) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = safetensors.torch.load_file(bundle.weight_path(role))
    return weights


def test_bundle_of_a_run_loads_strictly_into_maisis_classes(trained: Trained) -> None:
    for role, maisi_class in MAISI_CLASSES.items():
        arguments = {key: value for key, value in trained.bundle.definition(role).items() if key != "class"}
        maisi_class(**arguments).load_state_dict(read_weights(trained.bundle, role), strict=True)


@pytest.mark.parametrize(
    ("stage", "role"), [("vae", "autoencoder"), ("controlnet", "diffusion_unet"), ("controlnet", "controlnet")]
)
def test_bundle_holds_the_averaged_weights_of_the_stages(stage: StageName, role: str, trained: Trained) -> None:
    averaged = trained.results[stage].averaged_weights[role]
    kept = read_weights(trained.bundle, role)
    assert all((each.dtype == torch.float16) == (each.numel() >= stages.LARGE_TENSOR) for each in kept.values())
    # The order of the tensors is that of the network, whatever plain layers call them.
    assert all(
        torch.equal(ours, theirs.to(ours.dtype))
        for ours, theirs in zip(
            (kept[key] for key in MAISI_CLASSES[role](**_arguments(trained.bundle, role)).state_dict()),
            averaged.values(),
            strict=True,
        )
    )


def _arguments(bundle: Bundle, role: str) -> dict[str, Any]:
    return {key: value for key, value in bundle.definition(role).items() if key != "class"}


def test_bundle_tells_where_it_comes_from(trained: Trained) -> None:
    spec = trained.bundle.spec
    assert (spec.name, spec.licence, spec.grid.shape) == ("tiny", "Apache-2.0", SHAPE)
    assert spec.provenance["trained_on"] == "2 procedural phantoms, seed 5"
    assert spec.provenance["steps"] == {"vae": 3, "diffusion": 2, "controlnet": 2}
    assert spec.provenance["unfinished"] == []
    assert set(spec.provenance["versions"]) == {"maisi-aug", "monai", "torch"}
    networks = load_networks(trained.bundle)
    assert networks.scale_factor == spec.scale_factor > 0


def test_complete_stages_are_not_trained_again(trained: Trained, open_folder: OpenFolder) -> None:
    before = trained.bundle.fingerprint
    again = open_folder(trained.folder.folder)
    for stage in STAGE_NAMES:
        assert again.train(stage, report_step=lambda step, figures: pytest.fail("a step was made")).is_complete
    assert again.write_bundle().fingerprint == before


def test_same_recipe_gives_the_same_bundle(trained: Trained, open_folder: OpenFolder, tmp_path: Path) -> None:
    torch.manual_seed(123)
    parts = open_folder(tmp_path)
    for stage in STAGE_NAMES:
        while not parts.train(stage, max_minutes=0.0).is_complete:
            parts = open_folder(tmp_path)
    assert parts.write_bundle().fingerprint == trained.bundle.fingerprint


def test_frozen_unet_comes_from_the_diffusion_stage(trained: Trained, open_folder: OpenFolder, tmp_path: Path) -> None:
    shutil.copytree(trained.folder.folder, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "controlnet")
    frozen = open_folder(tmp_path, controlnet__loss__train_unet=False)
    assert set(frozen.train("controlnet").averaged_weights) == {"controlnet"}
    kept = read_weights(frozen.write_bundle(), "diffusion_unet")
    averaged = trained.results["diffusion"].averaged_weights["diffusion_unet"]
    assert all(torch.equal(kept[key], averaged[key].to(kept[key].dtype)) for key in averaged)


def test_kept_controlnet_lies_between_end_and_start(trained: Trained, open_folder: OpenFolder, tmp_path: Path) -> None:
    shutil.copytree(trained.folder.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "controlnet")
    folder = open_folder(tmp_path / "run", controlnet__start_share=0.25)
    folder.train("controlnet")
    read = partial(torch.load, weights_only=True)
    end, start, kept = (
        read(path / "controlnet" / f"{name}.pt")
        for path, name in (
            (trained.folder.folder, "controlnet"),
            (folder.folder, "controlnet_start"),
            (folder.folder, "controlnet"),
        )
    )
    unet = read(folder.folder / "diffusion" / "diffusion_unet.pt")
    assert any(torch.equal(start[key], unet[key]) for key in start if key in unet and start[key].std() > 0)
    assert any(not torch.equal(start[key], end[key]) for key in start)
    for key, value in kept.items():
        torch.testing.assert_close(value, 0.75 * end[key] + 0.25 * start[key])


def test_killed_run_goes_on_to_the_weights_of_an_unkilled_one(open_folder: OpenFolder, tmp_path: Path) -> None:
    whole = open_folder(tmp_path / "whole", **LONG_VAE).train("vae")
    killed = open_folder(tmp_path / "killed", **LONG_VAE)
    recipe = write_recipe(tmp_path / "recipe.yaml", **LONG_VAE)
    kill_training(recipe, killed.folder, after_steps=4)
    checkpoint = torch.load(killed.folder / "vae" / CHECKPOINT_NAME, weights_only=True)
    assert 3 <= checkpoint["step"] < 30
    result = killed.train("vae")
    assert result.is_complete
    for key, value in whole.averaged_weights["autoencoder"].items():
        assert torch.equal(result.averaged_weights["autoencoder"][key], value), key
    hidden = [path.name for path in (killed.folder / "vae").iterdir() if path.name.startswith(".")]
    assert len(hidden) <= 1  # what the kill may have cut off has no final name


def kill_training(recipe: Path, folder: Path, *, after_steps: int) -> None:
    """Train in a process of its own and kill it, as a machine that goes down does."""
    command = [sys.executable, "-m", "maisi_aug.cli.app", "train", "vae", "--recipe", recipe, "--out", folder]
    # With as many threads as this process: their number decides in which order sums are taken.
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "MKL_NUM_THREADS": str(torch.get_num_threads()),
    }
    process = subprocess.Popen(
        [*map(str, command), "--device", "cpu"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    log = folder / "vae" / LOG_NAME
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.read_bytes().count(b"\n") >= after_steps:
            break
        time.sleep(0.005)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()


def test_start_from_label_means_is_made_once(
    open_folder: OpenFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "NUM_FIT_STEPS", 20)
    whole = open_folder(tmp_path / "whole", controlnet__start="label-means", **HALF_WIDE_LATENTS)
    whole.train("vae")
    whole.train("diffusion")
    shutil.copytree(whole.folder, tmp_path / "parts")
    parts = open_folder(tmp_path / "parts", controlnet__start="label-means", **HALF_WIDE_LATENTS)
    assert parts.train("controlnet", max_minutes=0).num_steps_done == 1
    expected = whole.train("controlnet").averaged_weights
    monkeypatch.setattr(stages, "start_from_label_means", lambda *_, **__: pytest.fail("made again"))
    found = parts.train("controlnet").averaged_weights
    for name, state in expected.items():
        assert all(torch.equal(found[name][key], value) for key, value in state.items())


def test_kept_weights_have_the_share_of_noise_of_the_recipe(
    open_folder: OpenFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "NUM_FIT_STEPS", 20)
    shares = {"controlnet__noise_share": 0.2, "controlnet__kept_noise_share": 0.05}
    folder = open_folder(tmp_path, controlnet__start="label-means", **shares, **HALF_WIDE_LATENTS)
    for stage in ("vae", "diffusion", "controlnet"):
        folder.train(stage)
    kept = torch.load(tmp_path / "controlnet" / "diffusion_unet.pt", weights_only=True)["conv_in.conv.weight"]
    assert kept[range(4), range(4), 1, 1, 1].tolist() == pytest.approx([0.95] * 4)


def test_stage_before_its_predecessor_is_refused(open_folder: OpenFolder, tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    with pytest.raises(TrainingError, match="the weights of stage vae are missing"):
        folder.train("diffusion")
    with pytest.raises(TrainingError, match="Run 'maisi-aug train vae' first"):
        folder.write_bundle()


def test_controlnet_before_the_unet_is_refused(trained: Trained, open_folder: OpenFolder, tmp_path: Path) -> None:
    shutil.copytree(trained.folder.folder / "vae", tmp_path / "vae")
    with pytest.raises(TrainingError, match="diffusion_unet.pt"):
        open_folder(tmp_path).train("controlnet")


def test_other_recipe_in_the_same_folder_is_refused(trained: Trained, open_folder: OpenFolder) -> None:
    folder = trained.folder.folder
    with pytest.raises(TrainingError, match="stage vae was begun with other values of vae.loss.kl_weight"):
        open_folder(folder, vae__loss__kl_weight=1.0).train("vae")
    with pytest.raises(TrainingError, match="its checkpoint has other values of num_steps"):
        open_folder(folder, vae__loop__num_steps=99).train("vae")


def test_grid_that_the_networks_cannot_take_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    recipe = build_recipe(bundle__grid__shape=[32, 24, 20])
    folder = TrainingFolder(recipe, tmp_path, device="cpu", report_phase=lambda name: lambda done, total: None)
    with pytest.raises(GridError, match=r"bundle\.grid\.shape: .* found 32x24x20. Use 32x24x16"):
        folder.train("vae")
    assert list(tmp_path.iterdir()) == []


def test_summary_tells_how_far_a_stage_is(open_folder: OpenFolder, tmp_path: Path) -> None:
    open_folder(tmp_path).train("vae", max_minutes=0.0)
    summary = json.loads((tmp_path / "vae" / "summary.json").read_text(encoding="utf-8"))
    assert summary == {"steps": 1, "complete": False}


VALIDATED = {
    "data": {"prepared": "none", "validation_fold": 1},
    **{f"{stage}__loop__validation_steps": 1 for stage in STAGE_NAMES},
    "controlnet__loss__label_weights": {"liver": 30.0},
}


def open_prepared(folder: Path, data: Path, **changes: Any) -> TrainingFolder:
    recipe = build_recipe(**VALIDATED, **changes).with_prepared(data)
    return TrainingFolder(recipe, folder, device="cpu", report_phase=lambda name: lambda done, total: None)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("prepared"))


def test_prepared_cases_train_all_stages_and_the_best_weights_are_kept(prepared: Path, tmp_path: Path) -> None:
    folder = open_prepared(tmp_path / "run", prepared)
    results = {stage: folder.train(stage) for stage in STAGE_NAMES}
    for stage, result in results.items():
        rows = [json.loads(line) for line in (tmp_path / "run" / stage / LOG_NAME).read_text().splitlines()]
        losses = [row["validation"]["loss"] for row in rows if "validation" in row]
        assert len(losses) == result.num_steps_done
        assert result.best_loss == pytest.approx(min(losses), rel=1e-6)
        summary = json.loads((tmp_path / "run" / stage / "summary.json").read_text(encoding="utf-8"))
        assert summary["best_step"] == result.best_step
    spec = folder.write_bundle().spec
    assert spec.provenance["trained_on"] == "2 cases of tiny, fold 1 held out"
    assert spec.provenance["kept_steps"] == {stage: result.best_step for stage, result in results.items()}
    latents = {path.name.partition(".")[0] for path in (prepared / "latents").rglob("*.npy")}
    assert latents == {"case-0", "case-1", "case-2"}


def test_other_cases_in_the_same_folder_are_refused(prepared: Path, tmp_path: Path) -> None:
    open_prepared(tmp_path / "run", prepared).train("vae", max_minutes=0.0)
    other = write_prepared(tmp_path / "other", num_cases=2)
    with pytest.raises(TrainingError, match="stage vae was begun with other values of data.cases"):
        open_prepared(tmp_path / "run", other).train("vae")
    moved = shutil.copytree(prepared, tmp_path / "moved")
    assert open_prepared(tmp_path / "run", moved).train("vae").is_complete


def test_one_patient_cannot_be_held_out(tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", num_cases=1, num_folds=2)
    with pytest.raises(TrainingError, match="needs at least two patients to hold a fold out, found 1"):
        open_prepared(tmp_path / "run", data)


def test_perceptual_weights_that_are_missing_are_told_before_training(prepared: Path, tmp_path: Path) -> None:
    loss = {
        "vae__loss__patch_shape": [32, 32, 32],
        "vae__loss__perceptual_weight": 0.3,
        "vae__loss__perceptual_weights": str(tmp_path / "none.pth"),
    }
    with pytest.raises(TrainingError, match=r"perceptual_weights: .*none\.pth: file not found\. Nothing is downloaded"):
        open_prepared(tmp_path / "run", prepared, **loss).train("vae")
    assert not (tmp_path / "run" / "vae" / LOG_NAME).exists()


def test_large_grids_have_the_condition_computed_again(prepared: Path, tmp_path: Path, monkeypatch: Any) -> None:
    folder = open_prepared(tmp_path / "run", prepared)
    for limit, expected in ((10**6, False), (10, True)):
        monkeypatch.setattr(stages, "MAX_VOXELS_KEPT", limit)
        assert vars(folder._build("controlnet")[0])["use_checkpointing"] == expected
