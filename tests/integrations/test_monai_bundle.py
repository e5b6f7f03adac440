from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from maisi_aug.bundle_spec.bundle import Bundle, load_bundle
from maisi_aug.errors import BundleError, ExportError
from maisi_aug.integrations.monai_bundle.export import build_config, build_metadata, export_monai_bundle
from maisi_aug.integrations.monai_bundle.sampler import LabelMapSampler, derive_seed
from maisi_aug.networks.building import FastPaths
from maisi_aug.networks.pipeline import Pipeline
from maisi_aug.system import seeds
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_image, save_label_map
from tests.builders.random_bundle import write_random_bundle
from tests.builders.tiny_bundle import build_ddpm_header, build_header, write_tiny_bundle

SEED = 5


def draw_map(bundle: Bundle, shape: tuple[int, int, int]) -> tuple[NDArray[np.uint8], Grid]:
    """A body with a liver and lungs, off the centre along every axis."""
    label_map = np.zeros(shape, dtype=np.uint8)
    i, j, k = shape
    label_map[2 : i - 3, 4 : j - 2, :] = 200
    label_map[4 : i // 2, 6 : j // 2, 1 : k // 2] = 1
    label_map[i // 2 : i - 6, 6 : j // 2, k // 2 :] = 28
    return label_map, Grid.from_spacing(shape, bundle.spec.grid.spacing_mm)


def run_monai(folder: Path, label_map: Path, *words: str, cwd: Path, is_blocked: bool = True) -> NDArray[np.int16]:
    """Run the exported bundle in a process that cannot import this package, unless it needs it; the image it writes."""
    blocked = "import sys; sys.modules['maisi_aug'] = None\n" if is_blocked else ""
    given = {"label_map": str(label_map), "seed": SEED, "bundle_root": str(folder)}
    given |= dict(word.split("=") for word in words)
    program = (
        blocked
        + f"from monai.bundle import run\nrun(config_file={str(folder / 'configs' / 'inference.json')!r}, **{given!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return read_image(folder)


def read_image(folder: Path) -> NDArray[np.int16]:
    (path,) = (folder / "output").glob("*.nii.gz")
    volume = load_image(path)
    return np.asarray(volume.array, dtype=np.int16)


def require_same(image: NDArray[np.int16], expected: NDArray[np.int16]) -> None:
    assert image.shape == expected.shape
    assert expected.std() > 10, "an image of something"
    difference = np.abs(image.astype(int) - expected)
    assert difference.max() <= 1, "up to rounding to whole HU"
    assert (difference > 0).mean() < 0.01


def test_embedded_bundle_run_by_monai_draws_the_same_image(tmp_path: Path) -> None:
    bundle, folder = load_bundle("phantom-ct"), tmp_path / "exported"
    export_monai_bundle(bundle, folder)
    label_map, grid = draw_map(bundle, (96, 80, 16))
    save_label_map(tmp_path / "map.nii.gz", label_map, grid)
    image = run_monai(folder, tmp_path / "map.nii.gz", cwd=tmp_path, is_blocked=not bundle.completes_maps)
    expected = Pipeline.load(bundle, "cpu", fast_paths=FastPaths.none()).synthesize_image(label_map, grid, seed=SEED)
    require_same(image, expected)
    assert (image[label_map == 0] == -1000).all()
    saved = nib.load(next((folder / "output").glob("*.nii.gz")))
    np.testing.assert_allclose(saved.affine, grid.affine, atol=1e-4)
    assert saved.get_data_dtype() == np.int16


def test_ddpm_bundle_is_conditioned_on_the_regions_of_the_map(tmp_path: Path) -> None:
    bundle, folder = write_random_bundle(tmp_path / "ddpm", build_ddpm_header(), seed=1), tmp_path / "exported"
    export_monai_bundle(bundle, folder)
    label_map, grid = draw_map(bundle, (32, 24, 16))
    save_label_map(tmp_path / "map.nii.gz", label_map, grid)
    image = run_monai(folder, tmp_path / "map.nii.gz", cwd=tmp_path)
    require_same(image, Pipeline.load(bundle, "cpu").synthesize_image(label_map, grid, seed=SEED))


@pytest.fixture
def exported(bundle: Bundle, tmp_path: Path) -> Path:
    export_monai_bundle(bundle, tmp_path / "exported")
    return tmp_path / "exported"


def test_monais_command_line_runs_it_in_its_folder(bundle: Bundle, exported: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("fire") is None:
        pytest.skip("MONAI's command line: needs the package fire, which is not installed")
    label_map, grid = draw_map(bundle, (32, 24, 16))
    save_label_map(exported / "data" / "map.nii.gz", label_map, grid)
    command = [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        "configs/inference.json",
        "--seed",
        str(SEED),
    ]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=exported, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = Pipeline.load(bundle, "cpu").synthesize_image(label_map, grid, seed=SEED)
    require_same(read_image(exported), expected)


def build_sampler(bundle: Bundle, **options: Any) -> LabelMapSampler:
    networks = Pipeline.load(bundle, "cpu").networks
    return LabelMapSampler(
        networks.autoencoder,
        networks.diffusion_unet,
        networks.controlnet,
        networks.scheduler,
        scale_factor=1.0,
        num_inference_steps=1,
        latent_factor=4,
        **options,
    )


def test_map_that_the_networks_cannot_take_is_refused_in_a_sentence(bundle: Bundle, tmp_path: Path) -> None:
    import torch
    from monai.data.meta_tensor import MetaTensor

    sampler = build_sampler(bundle, grid_factor=bundle.grid_factor)
    with pytest.raises(ValueError, match=r"sides \(32, 24, 15\) are not all multiples of 8"):
        sampler(MetaTensor(torch.full((1, 32, 24, 15), 200)))
    with pytest.raises(ValueError, match=r"the body around the organs \(id 200\)"):
        sampler(MetaTensor(torch.ones(1, 32, 24, 16)))
    beyond = torch.full((1, 32, 24, 16), 200.0)
    beyond[0, 0, 0, 0] = 300
    with pytest.raises(ValueError, match="ids must be from 0 to 255, found 200 to 300"):
        sampler(MetaTensor(beyond))


def test_folder_is_laid_out_as_monai_has_it(exported: Path) -> None:
    names = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert names == {
        *("configs/inference.json", "configs/metadata.json", "configs/logging.conf", "docs/README.md", "LICENSE"),
        *("scripts/__init__.py", "scripts/sampler.py"),
        *(f"models/{role}.safetensors" for role in ("autoencoder", "diffusion_unet", "controlnet")),
    }
    metadata = json.loads((exported / "configs" / "metadata.json").read_text())
    for key in (
        "version",
        "monai_version",
        "pytorch_version",
        "numpy_version",
        "task",
        "network_data_format",
        "schema",
    ):
        assert metadata[key], key
    assert metadata["network_data_format"]["outputs"]["pred"]["value_range"] == [-1000, 1000]


def test_seeds_of_the_script_are_those_of_the_package() -> None:
    assert derive_seed(3, "latent noise") == seeds.derive_seed(3, "latent noise")


def test_bundle_that_draws_into_a_ct_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="conditioned on the CT around a lesion.*maisi-aug insert"):
        export_monai_bundle(load_bundle("lung-nodule-ct"), tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_bundle_that_the_script_would_draw_wrongly_is_refused(tmp_path: Path) -> None:
    mr = write_random_bundle(tmp_path / "mr", {**build_header(), "modalities": ["mri_t1"]}, seed=1)
    with pytest.raises(ExportError, match="Bundle 'tiny': draws MR; only CT bundles can be exported"):
        export_monai_bundle(mr, tmp_path / "exported")
    few = write_random_bundle(tmp_path / "few", {**build_ddpm_header(), "num_inference_steps": 1}, seed=1)
    with pytest.raises(ExportError, match="draws with 1 steps, fewer than its DDPM scheduler has"):
        export_monai_bundle(few, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_script_refuses_steps_that_leave_noise_in_the_image(tmp_path: Path) -> None:
    networks = Pipeline.load(write_random_bundle(tmp_path / "ddpm", build_ddpm_header(), seed=1), "cpu").networks
    with pytest.raises(ValueError, match="num_inference_steps: must be .*because DDPM uses every time step, found 1"):
        LabelMapSampler(
            networks.autoencoder,
            networks.diffusion_unet,
            networks.controlnet,
            networks.scheduler,
            scale_factor=1.0,
            num_inference_steps=1,
            latent_factor=4,
        )


def test_modality_is_the_first_of_the_bundle(tmp_path: Path) -> None:
    header = {**build_header(), "modalities": ["ct_contrast", "ct"]}
    assert build_config(write_random_bundle(tmp_path / "contrast", header, seed=1))["modality"] == 3
    assert build_config(load_bundle("phantom-ct"))["modality"] == 1


def test_altered_bundle_and_used_folder_are_refused(tmp_path: Path) -> None:
    altered = write_tiny_bundle(tmp_path / "tiny")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="found 'notes.txt' in it"):
        export_monai_bundle(altered, tmp_path / "used")
    altered.weight_path("controlnet").write_bytes(b"altered")
    with pytest.raises(BundleError, match="controlnet.safetensors should have SHA-256"):
        export_monai_bundle(altered, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_metadata_names_what_is_drawn() -> None:
    metadata = build_metadata(load_bundle("phantom-ct"))
    assert metadata["copyright"] == "Apache-2.0"
    assert metadata["network_data_format"]["inputs"]["label"]["spatial_shape"] == [128, 112, 80]


def test_command_says_how_it_is_run(run_cli: Callable[..., Any], bundle_path: Path, tmp_path: Path) -> None:
    outcome = run_cli("bundles", "export", bundle_path, "--to", tmp_path / "out")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "python -m monai.bundle run --config_file configs/inference.json" in outcome.stdout
    again = run_cli("bundles", "export", bundle_path, "--to", tmp_path / "out", "--json")
    assert again.code == 1


def test_script_says_what_completes_maps_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch
    from monai.data.meta_tensor import MetaTensor

    bundle = write_tiny_bundle(tmp_path)
    sampler = build_sampler(bundle, completes=True)
    monkeypatch.setitem(sys.modules, "maisi_aug.phantom.condition", None)
    with pytest.raises(ImportError, match="pip install maisi-aug"):
        sampler(MetaTensor(torch.ones(1, 32, 24, 16)))


def test_bundle_that_completes_maps_draws_with_this_package(tmp_path: Path) -> None:
    header = {**build_header(), "unlabelled": "complete"}
    bundle, folder = write_random_bundle(tmp_path / "tiny", header, seed=0), tmp_path / "exported"
    export_monai_bundle(bundle, folder)
    assert "completed by procedural anatomy" in (folder / "docs" / "README.md").read_text(encoding="utf-8")
    assert "maisi-aug" in json.loads((folder / "configs" / "metadata.json").read_text())["required_packages_version"]
    label_map, grid = draw_map(bundle, (32, 24, 16))
    save_label_map(tmp_path / "map.nii.gz", label_map, grid)
    image = run_monai(folder, tmp_path / "map.nii.gz", cwd=tmp_path, is_blocked=False)
    require_same(image, Pipeline.load(bundle, "cpu").synthesize_image(label_map, grid, seed=SEED))
