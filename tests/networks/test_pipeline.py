from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.bundle_spec.decoding import ComputeType, DecodingConfig
from maisi_aug.errors import BundleError, GridError, RecipeError
from maisi_aug.lesions.editing import remove_lesions
from maisi_aug.networks import pipeline as pipeline_module
from maisi_aug.networks.building import compute_in, computes_in, mixed_precision, store_in
from maisi_aug.networks.conditioning import to_label_bits
from maisi_aug.networks.pipeline import Pipeline, choose_image_precision, resolve_device
from maisi_aug.networks.weights import load_networks
from maisi_aug.phantom.condition import condition_map
from maisi_aug.phantom.phases import phase_table
from maisi_aug.system.seeds import derive_seed
from maisi_aug.volumes.grid import Grid
from tests.builders.random_bundle import write_random_bundle
from tests.builders.tiny_bundle import build_ddpm_header, build_header

SHAPE = (32, 24, 16)


@pytest.fixture(scope="module")
def pipeline(bundle: Bundle) -> Pipeline:
    return Pipeline.load(bundle, "cpu")


@pytest.fixture(scope="module")
def grid() -> Grid:
    return Grid.from_spacing(SHAPE, (6.4, 7.0, 9.0))


@pytest.fixture
def label_map() -> NDArray[np.uint8]:
    """A body with a liver, in which there is a tumour."""
    array = np.zeros(SHAPE, dtype=np.uint8)
    array[3:29, 3:21] = 200
    array[8:20, 6:16, 3:14] = 1
    array[10:14, 8:12, 6:10] = 26
    return array


def test_image_is_hu_with_air_outside_the_body(pipeline: Pipeline, grid: Grid, label_map: NDArray[np.uint8]) -> None:
    before = label_map.copy()
    image_hu = pipeline.synthesize_image(label_map, grid, seed=1)
    assert image_hu.shape == SHAPE
    assert image_hu.dtype == np.int16
    assert image_hu.min() >= -1000
    assert image_hu.max() <= 1000
    assert (image_hu[label_map == 0] == -1000).all()
    assert np.unique(image_hu[label_map > 0]).size > 100
    assert np.array_equal(label_map, before)


def test_same_seed_gives_the_same_image_and_the_next_another(
    pipeline: Pipeline, bundle: Bundle, grid: Grid, label_map: NDArray[np.uint8]
) -> None:
    image_hu = pipeline.synthesize_image(label_map, grid, seed=1)
    torch.manual_seed(99)
    assert np.array_equal(Pipeline.load(bundle, "cpu").synthesize_image(label_map, grid, seed=1), image_hu)
    assert not np.array_equal(pipeline.synthesize_image(label_map, grid, seed=2), image_hu)


def test_same_seed_gives_the_same_image_with_ddpm_too(grid: Grid, label_map: NDArray[np.uint8], tmp_path: Path) -> None:
    ddpm = Pipeline.load(write_random_bundle(tmp_path, build_ddpm_header(), seed=0), "cpu")
    images = [ddpm.synthesize_image(label_map, grid, seed=seed) for seed in (1, 1, 2)]
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])
    # The liver says abdomen; what is given stands above the map.
    assert np.array_equal(ddpm.synthesize_image(label_map, grid, seed=1, regions=("abdomen", "abdomen")), images[0])
    assert not np.array_equal(ddpm.synthesize_image(label_map, grid, seed=1, regions=("head", "pelvis")), images[0])


@pytest.mark.parametrize(
    "settings",
    [{"modality": "ct_contrast"}, {"num_inference_steps": 3}, {"guidance_scale": 3.0}],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_change_the_image(
    settings: dict[str, Any], pipeline: Pipeline, grid: Grid, label_map: NDArray[np.uint8]
) -> None:
    image_hu = pipeline.synthesize_image(label_map, grid, seed=1)
    assert not np.array_equal(pipeline.synthesize_image(label_map, grid, seed=1, **settings), image_hu)


def test_label_map_and_spacing_change_the_image(pipeline: Pipeline, grid: Grid, label_map: NDArray[np.uint8]) -> None:
    image_hu = pipeline.synthesize_image(label_map, grid, seed=1)
    healthy = remove_lesions(label_map, pipeline.bundle.vocabulary, spacing_mm=grid.spacing_mm)
    assert not np.array_equal(pipeline.synthesize_image(healthy, grid, seed=1), image_hu)
    finer = Grid.from_spacing(SHAPE, (1.0, 1.0, 1.0))
    assert not np.array_equal(pipeline.synthesize_image(label_map, finer, seed=1), image_hu)


def test_bundles_number_of_steps_is_the_default(pipeline: Pipeline, grid: Grid, label_map: NDArray[np.uint8]) -> None:
    told: list[tuple[int, int]] = []
    image_hu = pipeline.synthesize_image(label_map, grid, seed=1, report=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
    assert np.array_equal(pipeline.synthesize_image(label_map, grid, seed=1, num_inference_steps=2), image_hu)


def test_more_steps_than_the_scheduler_was_trained_with_are_refused(
    pipeline: Pipeline, grid: Grid, label_map: NDArray[np.uint8]
) -> None:
    with pytest.raises(RecipeError, match="at most 1000 .*, found 1001"):
        pipeline.synthesize_image(label_map, grid, seed=1, num_inference_steps=1001)


def test_bundles_window_is_for_windows_alone_and_changes_the_image_by_little(
    pipeline: Pipeline, grid: Grid, label_map: NDArray[np.uint8], tmp_path: Path
) -> None:
    whole, other = (pipeline.synthesize_image(label_map, grid, seed=seed) for seed in (1, 2))
    images = {}
    for window in ((6, 6, 4), (8, 6, 64)):
        header = {**build_header(), "decode_window": list(window)}
        windowed = Pipeline.load(write_random_bundle(tmp_path / str(window), header, seed=0), "cpu")
        images[window] = windowed.synthesize_image(label_map, grid, seed=1, decoding=DecodingConfig(mode="windows"))
        assert np.array_equal(windowed.synthesize_image(label_map, grid, seed=1), whole), "exact is the default"
    body = label_map > 0
    assert np.corrcoef(images[6, 6, 4][body], whole[body])[0, 1] > 0.9  # the norms of random weights see a part each
    assert np.corrcoef(other[body], whole[body])[0, 1] < 0.5
    assert not np.array_equal(images[6, 6, 4], whole)
    assert np.array_equal(images[8, 6, 64], whole)


def test_memory_layout_of_the_label_map_does_not_matter(
    pipeline: Pipeline, grid: Grid, label_map: NDArray[np.uint8]
) -> None:
    image_hu = pipeline.synthesize_image(label_map, grid, seed=1)
    assert np.array_equal(pipeline.synthesize_image(np.asfortranarray(label_map), grid, seed=1), image_hu)


def test_grid_that_the_networks_cannot_take_is_refused_with_the_nearest(pipeline: Pipeline) -> None:
    grid = Grid.from_spacing((30, 24, 19), (6.4, 6.4, 6.4))
    label_map = np.full(grid.shape, 200, dtype=np.uint8)
    message = "bundle 'tiny': expected sides that are multiples of 8, found 30x24x19. Use 32x24x16."
    with pytest.raises(GridError, match=message):
        pipeline.synthesize_image(label_map, grid, seed=1)


@pytest.mark.parametrize("text", ["tpu", "cuda:99", "gpu"])
def test_device_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match=f"Device '{text}': torch cannot use it: .* Use --device cpu or auto"):
        resolve_device(text)


def test_device_is_found() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


def test_bfloat16_is_used_where_the_device_computes_in_it() -> None:
    with mixed_precision("cpu"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype in {torch.bfloat16, torch.float32}
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_weights_in_half_precision_change_no_image(
    precision: ComputeType, bundle: Bundle, grid: Grid, label_map: NDArray[np.uint8]
) -> None:
    networks, halved = load_networks(bundle), load_networks(bundle)
    for network in (halved.autoencoder, halved.diffusion_unet, halved.controlnet):
        store_in(precision, network)
    assert {p.dtype for p in halved.controlnet.parameters()} == {torch.float32, getattr(torch, precision)}
    first, second = [
        Pipeline(bundle, each, precision=precision).synthesize_image(label_map, grid, seed=1, num_inference_steps=1)
        for each in (networks, halved)
    ]
    assert np.array_equal(first, second)
    plain = Pipeline(bundle, networks).synthesize_image(label_map, grid, seed=1, num_inference_steps=1)
    assert not np.array_equal(first, plain)


def test_processors_compute_in_float32_unless_told_otherwise(
    bundle: Bundle, pipeline: Pipeline, grid: Grid, label_map: NDArray[np.uint8]
) -> None:
    """bfloat16 is faster and moves organs by several HU."""
    assert pipeline.precision == "float32"
    assert {p.dtype for p in pipeline.networks.controlnet.parameters()} == {torch.float32}
    exact = Pipeline.load(bundle, "cpu", precision="float32").synthesize_image(label_map, grid, seed=1)
    assert np.array_equal(pipeline.synthesize_image(label_map, grid, seed=1), exact)
    if computes_in("bfloat16", "cpu"):
        quick = Pipeline.load(bundle, "cpu", precision="bfloat16")
        assert quick.precision == "bfloat16"
        assert not np.array_equal(quick.synthesize_image(label_map, grid, seed=1), exact)


def test_tensorrt_is_float16_and_nothing_else(bundle: Bundle) -> None:
    assert choose_image_precision("auto", bundle, "cuda", "trt") == "float16"
    with pytest.raises(
        RecipeError, match="engines in float16, so that only float16 or auto can be used, found 'float32'"
    ):
        choose_image_precision("float32", bundle, "cuda", "trt")


def test_networks_that_leave_the_range_of_float16_are_named(
    bundle: Bundle, grid: Grid, label_map: NDArray[np.uint8]
) -> None:
    networks = load_networks(bundle)
    with torch.no_grad():
        for parameter in networks.diffusion_unet.parameters():
            parameter.mul_(60.0)
    message = "Bundle 'tiny': the image has values that float16 cannot represent"
    with pytest.raises(BundleError, match=message):
        Pipeline(bundle, networks, precision="float16").synthesize_image(label_map, grid, seed=1, num_inference_steps=1)


@pytest.mark.parametrize("build", [build_header, build_ddpm_header], ids=["rflow", "ddpm"])
def test_image_without_a_label_map_is_what_monai_draws_with_the_unet_alone(
    build: Callable[[], dict[str, Any]], grid: Grid, tmp_path: Path
) -> None:
    """The reference is the plain loop of NVIDIA's image-only script, written from MONAI's public classes."""
    from monai.networks.schedulers import RFlowScheduler

    pipeline = Pipeline.load(write_random_bundle(tmp_path, build(), seed=0), "cpu")
    networks, scheduler = pipeline.networks, pipeline.networks.scheduler
    told: dict[str, Any] = {"spacing_tensor": torch.tensor([grid.spacing_mm]) * 100, "class_labels": torch.tensor([1])}
    if build is build_ddpm_header:  # thorax to abdomen, where nobody says otherwise
        told["top_region_index_tensor"] = torch.tensor([[0.0, 100.0, 0.0, 0.0]])
        told["bottom_region_index_tensor"] = torch.tensor([[0.0, 0.0, 100.0, 0.0]])
    latent = pipeline._draw_noise(grid, 1)
    generator = torch.Generator().manual_seed(derive_seed(1, "sampling noise"))
    is_rflow = isinstance(scheduler, RFlowScheduler)
    size = {"input_img_size_numel": latent[0, 0].numel()} if is_rflow else {}
    scheduler.set_timesteps(pipeline.bundle.default_steps, **size)
    timesteps = scheduler.timesteps
    with torch.no_grad(), compute_in("float32", "cpu"):
        for timestep, following in zip(timesteps, [*timesteps[1:], torch.tensor(0.0)], strict=True):
            output = networks.diffusion_unet(x=latent, timesteps=torch.Tensor((timestep,)), **told)
            last = {"next_timestep": following} if is_rflow else {"generator": generator}
            latent, _ = scheduler.step(output.float(), timestep, latent, **last)
        decoded = networks.autoencoder.decode(latent / networks.scale_factor)  # type: ignore[operator]
    expected = np.rint(decoded[0, 0].clamp(0, 1).numpy() * 2000 - 1000)
    found = pipeline.synthesize_image(None, grid, seed=1)
    assert found.dtype == np.int16
    assert np.abs(found - expected).max() <= 1  # whole HU on either side of a half
    assert (found[:2] != -1000).any()  # nothing is cut out by a body that nobody knows


def test_networks_that_are_told_regions_draw_others_without_a_label_map(grid: Grid, tmp_path: Path) -> None:
    ddpm = Pipeline.load(write_random_bundle(tmp_path, build_ddpm_header(), seed=0), "cpu")
    usual = ddpm.synthesize_image(None, grid, seed=1)
    assert np.array_equal(ddpm.synthesize_image(None, grid, seed=1, regions=("thorax", "abdomen")), usual)
    assert not np.array_equal(ddpm.synthesize_image(None, grid, seed=1, regions=("head", "head")), usual)


def test_guidance_without_a_label_map_needs_a_modality_to_lead_to(grid: Grid, tmp_path: Path) -> None:
    ddpm = Pipeline.load(write_random_bundle(tmp_path, build_ddpm_header(), seed=0), "cpu")
    with pytest.raises(RecipeError, match="guidance_scale: must be 0 without a label map, .*, found 2.5. Leave it"):
        ddpm.synthesize_image(None, grid, seed=1, guidance_scale=2.5)


@pytest.mark.gpu
def test_gpu_draws_the_image_of_the_cpu(bundle: Bundle, pipeline: Pipeline, grid: Grid) -> None:
    label_map = np.full(SHAPE, 200, dtype=np.uint8)
    on_gpu = Pipeline.load(bundle, "cuda").synthesize_image(label_map, grid, seed=1).astype(int)
    on_cpu = pipeline.synthesize_image(label_map, grid, seed=1).astype(int)
    assert np.abs(on_gpu - on_cpu).mean() < 20


@pytest.fixture(scope="module")
def completing(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The same networks in a bundle that completes label maps."""
    folder = tmp_path_factory.mktemp("completing")
    return Pipeline.load(write_random_bundle(folder, {**build_header(), "unlabelled": "complete"}, seed=0), "cpu")


def test_networks_of_a_completing_bundle_see_the_completed_map(
    completing: Pipeline, grid: Grid, label_map: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, shown = label_map.copy(), []
    to_bits = to_label_bits

    def remember(maps: torch.Tensor) -> torch.Tensor:
        shown.append(maps[0].numpy().copy())
        return to_bits(maps)

    monkeypatch.setattr(pipeline_module, "to_label_bits", remember)
    image_hu = completing.synthesize_image(label_map, grid, seed=1, modality="ct_contrast", guidance_scale=1.5)
    np.testing.assert_array_equal(label_map, before)
    with_lesion, without = sorted(shown, key=lambda maps: -np.isin(maps, lesion_ids()).sum())
    np.testing.assert_array_equal(with_lesion, condition_map(label_map, grid=grid, seed=1, modality="ct_contrast"))
    np.testing.assert_array_equal(with_lesion != without, label_map == 26)
    assert (image_hu[label_map == 0] == -1000).all()


def lesion_ids() -> list[int]:
    """The hepatic tumour's id in all contrast phases."""
    return [26, *(own for (label, _), own in phase_table().items() if label == 26)]


def test_other_bundles_see_the_map_as_it_is(
    pipeline: Pipeline, grid: Grid, label_map: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("completed")

    monkeypatch.setattr(pipeline_module, "complete_map", refuse)
    pipeline.synthesize_image(label_map, grid, seed=1)


def test_outline_that_is_missing_is_drawn_by_a_completing_bundle(
    completing: Pipeline, grid: Grid, label_map: NDArray[np.uint8]
) -> None:
    organs = np.where(label_map == 200, 0, label_map).astype(np.uint8)
    image_hu = completing.synthesize_image(organs, grid, seed=1)
    assert (image_hu > -1000).sum() > 2 * (organs > 0).sum()
