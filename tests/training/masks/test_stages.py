from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maisi_aug.bundle_spec.bundle import Bundle, load_bundle
from maisi_aug.errors import BundleError, GridError, TrainingError
from maisi_aug.networks.mask_conditions import load_size_conditions
from maisi_aug.networks.mask_generator import MaskGenerator
from maisi_aug.networks.weights import load_mask_networks, verify_bundle
from maisi_aug.training.loop.run import TrainingRun
from maisi_aug.training.masks.data import MaskSplit
from maisi_aug.training.masks.export import require_base, write_mask_bundle
from maisi_aug.training.masks.label_maps import ClassMaps
from maisi_aug.training.masks.stages import MASK_STAGES, MaskTrainingFolder
from maisi_aug.vocabulary.labels import MAISI
from tests.builders.tiny_bundle import write_tiny_bundle
from tests.builders.tiny_mask_training import build_mask_recipe
from tests.builders.tiny_masks import write_tiny_mask_bundle
from tests.builders.tiny_training import SHAPE, build_case

Open = Callable[..., MaskTrainingFolder]


class Labels:
    """Label maps of cases in memory."""

    def __init__(self, seeds: range) -> None:
        self.maps = [build_case(seed).label_map for seed in seeds]

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.maps[index]


def open_folder(folder: Path, **changes: Any) -> MaskTrainingFolder:
    training, held_out = (ClassMaps(Labels(seeds), MAISI) for seeds in (range(4), range(10, 12)))
    split = MaskSplit(training, held_out, "key", "4 boxes")
    recipe = build_mask_recipe(**changes)
    return MaskTrainingFolder(recipe, split, folder, device="cpu", report_phase=lambda name: lambda done, total: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> MaskTrainingFolder:
    folder = open_folder(tmp_path_factory.mktemp("masks"), data__num_variants=2)
    for stage in MASK_STAGES:
        assert folder.train(stage).is_complete
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def written(trained: MaskTrainingFolder, base: Bundle) -> Bundle:
    return load_bundle(write_mask_bundle(trained, base))


def test_bundle_generates_label_maps(written: Bundle) -> None:
    generator = MaskGenerator.load(written, "cpu")
    label_map = generator.generate(generator.size_conditions[0], seed=1)
    assert label_map.shape == SHAPE
    assert label_map.dtype == np.uint8
    assert all(MAISI.contains(int(label_id)) for label_id in np.unique(label_map))
    verify_bundle(written)


def test_bundle_holds_the_kept_weights_and_the_base(trained: MaskTrainingFolder, written: Bundle, base: Bundle) -> None:
    networks = load_mask_networks(written, plain_layers=False)
    for stage, network in (("mask-vae", networks.autoencoder), ("mask-diffusion", networks.diffusion_unet)):
        kept = trained.load_weights(stage)  # type: ignore[arg-type]
        assert all(torch.equal(value, kept[key].half().float()) for key, value in network.state_dict().items())
    assert written.fingerprint == base.fingerprint
    for role in base.roles:
        assert written.weight_path(role).read_bytes() == base.weight_path(role).read_bytes()


def test_bundle_tells_sizes_and_where_they_come_from(trained: MaskTrainingFolder, written: Bundle) -> None:
    spec = written.spec.mask_generation
    assert spec is not None
    rows = load_size_conditions(written.path_of(spec.size_conditions))
    cases, held_out, scale_factor = trained.encode()
    np.testing.assert_allclose(rows, cases.sizes, atol=1e-4)
    assert (len(cases.latents), len(held_out.latents)) == (8, 2)
    assert spec.scale_factor == scale_factor
    spread = torch.cat([latent.float().flatten() for latent in cases.latents]).std()
    assert float(spread) * scale_factor == pytest.approx(1.0, rel=1e-3)
    masks = written.spec.provenance["masks"]
    assert masks["trained_on"] == "4 boxes"
    assert masks["steps"] == {"mask-vae": 3, "mask-diffusion": 3}
    assert masks["unfinished"] == []
    assert list(masks["organ_volumes_ml"]) == ["liver"]
    smallest, *_, largest = masks["organ_volumes_ml"]["liver"]
    assert 0 < smallest < largest


def test_summary_tells_how_good_the_kept_weights_are(trained: MaskTrainingFolder) -> None:
    summary = json.loads((trained.folder / "mask-vae" / "summary.json").read_text())
    assert (summary["steps"], summary["complete"]) == (3, True)
    assert set(summary["held_out"]["dice_per_label"]) == {"body", "liver", "hepatic tumor"}
    assert 0 <= summary["held_out"]["dice"] <= 1


def test_interrupted_run_ends_in_the_same_bundle(trained: MaskTrainingFolder, base: Bundle, tmp_path: Path) -> None:
    torch.manual_seed(99)
    parts = open_folder(tmp_path, data__num_variants=2)
    for stage in MASK_STAGES:
        num_calls = 1
        while not parts.train(stage, max_minutes=0.0).is_complete:
            parts, num_calls = open_folder(tmp_path, data__num_variants=2), num_calls + 1
        assert num_calls == 3
    one, other = (load_bundle(write_mask_bundle(run, base)) for run in (parts, trained))
    assert (one.path / "bundle.yaml").read_text() == (other.path / "bundle.yaml").read_text()


def test_base_with_mask_networks_gets_these_instead(trained: MaskTrainingFolder, base: Bundle, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path / "run")
    run = open_folder(tmp_path / "run", data__num_variants=2)
    shutil.rmtree(tmp_path / "run" / "bundle", ignore_errors=True)
    masked = write_tiny_mask_bundle(tmp_path / "masked")
    found = load_bundle(write_mask_bundle(run, masked))
    expected = load_bundle(write_mask_bundle(trained, base))
    assert found.spec.mask_generation == expected.spec.mask_generation
    verify_bundle(found)


def test_other_files_in_the_bundles_place_stay(trained: MaskTrainingFolder, base: Bundle, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path / "run")
    folder = tmp_path / "run" / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    run = open_folder(tmp_path / "run", data__num_variants=2)
    write_tiny_bundle(folder)
    with pytest.raises(BundleError, match="must be a new folder or an earlier bundle of this training, found"):
        write_mask_bundle(run, base)
    shutil.rmtree(folder)
    write_mask_bundle(run, base)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"found notes\.txt. Move it away"):
        write_mask_bundle(run, base)
    assert (folder / "notes.txt").read_text() == "mine"


def test_base_is_needed_and_must_not_be_longer(base: Bundle) -> None:
    recipe = build_mask_recipe()
    assert require_base(str(base.path), recipe).name == "tiny"
    with pytest.raises(TrainingError, match="Mask networks: need a bundle with image networks to be added to"):
        require_base(None, recipe)
    short = build_mask_recipe(grid__spacing_mm=[12.0, 13.0, 10.0])
    with pytest.raises(TrainingError, match="at least as long as the images of bundle 'tiny', 307 mm, found 240 mm"):
        require_base(str(base.path), short)


def test_first_try_that_left_no_checkpoint_may_begin_anew(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TrainingRun, "train", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            open_folder(tmp_path, seed=8).train("mask-vae")
    assert open_folder(tmp_path).train("mask-vae").is_complete
    with pytest.raises(TrainingError, match="stage mask-vae was begun with other values of seed"):
        open_folder(tmp_path, seed=8).train("mask-vae")


def test_diffusion_before_the_autoencoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="mask_autoencoder.pt"):
        open_folder(tmp_path).train("mask-diffusion")


def test_other_recipe_in_the_same_folder_is_refused(trained: MaskTrainingFolder) -> None:
    with pytest.raises(TrainingError, match="mask-vae was begun with other values of vae.loss"):
        open_folder(trained.folder, vae__loss__dice_weight=0.5).train("mask-vae")
    other = open_folder(trained.folder, networks__mask_diffusion_unet__num_res_blocks=2)
    with pytest.raises(
        TrainingError, match=r"begun with other values of data\.num_variants, networks\.mask_diffusion_unet"
    ):
        other.train("mask-diffusion")


def test_wrong_shapes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(GridError, match="found 32x24x20"):
        open_folder(tmp_path, grid__shape=[32, 24, 20]).train("mask-vae")
    assert list(tmp_path.iterdir()) == []
