"""Our images against those of the plain loop, and how far each fast path moves them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from maisi_aug.bundle_spec.bundle import NETWORK_ROLES, Bundle
from maisi_aug.bundle_spec.decoding import DecodingConfig
from maisi_aug.lesions.editing import remove_lesions
from maisi_aug.networks import streaming
from maisi_aug.networks.building import FastPaths
from maisi_aug.networks.pipeline import Pipeline
from maisi_aug.system.seeds import derive_seed
from maisi_aug.volumes.grid import Grid
from tests.builders.narrow_networks import FULL_WIDTH, NARROW, scaled_header
from tests.builders.random_bundle import write_random_bundle
from tests.oracles.reference_loop import Inputs, ReferenceLoop, encode, to_hu
from tests.oracles.rounding import SPREAD, WINOGRAD_SPREAD, depth_of, error_of, require_rounding_alone, rounding

# MAISI's own splits along J want three latent voxels or more in each of eight parts; else as small as it goes.
SHAPE = (32, 96, 32)
SPACING_MM = (1.5, 2.0, 3.0)
SEED = 3
NUM_STEPS = {"rflow-ct": 3, "ddpm-ct": 4}
REGIONS = {"rflow-ct": None, "ddpm-ct": ("abdomen", "abdomen")}
NAMES = tuple(NUM_STEPS)


@pytest.fixture(scope="module")
def label_map() -> NDArray[np.uint8]:
    """A body with a liver, in which there is a tumour."""
    array = np.zeros(SHAPE, dtype=np.uint8)
    array[3:29, 3:90] = 200
    array[6:24, 12:70, 3:26] = 1
    array[8:16, 20:40, 6:14] = 26
    return array


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """NVIDIA's networks with random weights, by name and width."""
    written: dict[tuple[str, int], Bundle] = {}

    def find(name: str, divisor: int = NARROW) -> Bundle:
        if (name, divisor) not in written:
            header = scaled_header(name, divisor=divisor, num_inference_steps=NUM_STEPS[name])
            written[name, divisor] = write_random_bundle(tmp_path_factory.mktemp(name), header, seed=0)
        return written[name, divisor]

    return find


def build_reference(bundle: Bundle, *, is_exact: bool = False) -> ReferenceLoop:
    states = {
        role: {key: value.float() for key, value in safetensors.torch.load_file(bundle.weight_path(role)).items()}
        for role in NETWORK_ROLES
    }
    definitions = {role: bundle.definition(role) for role in NETWORK_ROLES}
    return ReferenceLoop(
        definitions, states, bundle.spec.scheduler, scale_factor=bundle.spec.scale_factor, is_exact=is_exact
    )


def draw_noise() -> Tensor:
    shape = (1, 4, *(side // 4 for side in SHAPE))
    return torch.randn(shape, generator=torch.Generator().manual_seed(derive_seed(SEED, "latent noise")))


class Outcome:
    """Latent, decoded image and image in HU of the plain loop; exact in float64."""

    def __init__(
        self, bundle: Bundle, label_map: NDArray[np.uint8], guidance_scale: float = 0.0, *, is_exact: bool = False
    ) -> None:
        reference = build_reference(bundle, is_exact=is_exact)
        regions = REGIONS[bundle.name]
        unconditional: Inputs | None = None
        if guidance_scale:
            healthy = remove_lesions(label_map, bundle.vocabulary, spacing_mm=SPACING_MM, with_cysts=True)
            unconditional = encode(healthy, SPACING_MM, "unknown", regions)
        self.latent = reference.sample(
            draw_noise(),
            encode(label_map, SPACING_MM, "ct", regions),
            unconditional,
            num_steps=NUM_STEPS[bundle.name],
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(derive_seed(SEED, "sampling noise")),
        )
        self.image = reference.decode(self.latent, bundle.spec.decode_window)
        self.image_hu = to_hu(self.image, label_map)


def synthesize(pipeline: Pipeline, label_map: NDArray[np.uint8], **settings: Any) -> Outcome:
    """The same by our pipeline, with what it hands from sampling to decoding noted down."""
    found = object.__new__(Outcome)
    decode = pipeline.decoder.decode

    def note(latent: Tensor, config: DecodingConfig | None = None) -> Any:
        found.latent = latent
        found.image, used = decode(latent, config)
        return found.image, used

    pipeline.__dict__["decoder"] = replace(pipeline.decoder)
    object.__setattr__(pipeline.decoder, "decode", note)
    try:
        found.image_hu = pipeline.synthesize_image(
            label_map, Grid.from_spacing(SHAPE, SPACING_MM), seed=SEED, **settings
        )
    finally:
        del pipeline.__dict__["decoder"]
    return found


@pytest.fixture(scope="module")
def draw_exactly(bundles: Callable[..., Bundle], label_map: NDArray[np.uint8]) -> Callable[..., Outcome]:
    """What the narrow networks draw in float64, once for each that is asked for."""

    @cache
    def draw(name: str, guidance_scale: float = 0.0) -> Outcome:
        return Outcome(bundles(name), label_map, guidance_scale, is_exact=True)

    return draw


def depths_of(bundle: Bundle) -> tuple[int, int]:
    """Layers on the way to a latent, and to an image."""
    networks = build_reference(bundle).networks
    sampling = NUM_STEPS[bundle.name] * depth_of(networks["diffusion_unet"], networks["controlnet"])
    return sampling, sampling + depth_of(networks["autoencoder"])


def require_equal(found: Outcome, expected: Outcome, exact: Outcome, bundle: Bundle, *, spread: float = SPREAD) -> None:
    """Equal but for the rounding of float32 sums in another order."""
    for_latent, for_image = depths_of(bundle)
    require_rounding_alone(found.latent, expected.latent, exact.latent, depth=for_latent, spread=spread)
    require_rounding_alone(found.image, expected.image, exact.image, depth=for_image, spread=spread)
    assert np.abs(found.image_hu.astype(int) - expected.image_hu).max() <= 1
    # Whole HU differ where the image lies as near to a half as float32 errs.
    image_hu = 2000 * exact.image[0, 0].numpy()
    error_hu = 2000 * max(float((each.image - exact.image).abs().max()) for each in (found, expected))
    near_half = np.abs(image_hu - np.floor(image_hu) - 0.5) <= error_hu + 2000 * rounding(1)
    assert near_half[found.image_hu != expected.image_hu].all()
    assert near_half.mean() < 0.1
    assert np.unique(expected.image_hu).size > 50


@pytest.mark.parametrize("guidance_scale", [0.0, 2.0])
@pytest.mark.parametrize("name", NAMES)
def test_narrow_networks_draw_the_image_of_the_plain_loop(
    name: str,
    guidance_scale: float,
    bundles: Callable[..., Bundle],
    draw_exactly: Callable[..., Outcome],
    label_map: NDArray[np.uint8],
) -> None:
    bundle = bundles(name)
    pipeline = Pipeline.load(bundle, "cpu", fast_paths=FastPaths.none())
    found = synthesize(pipeline, label_map, guidance_scale=guidance_scale, regions=REGIONS[name])
    expected = Outcome(bundle, label_map, guidance_scale)
    require_equal(found, expected, draw_exactly(name, guidance_scale), bundle)


def test_windows_are_those_of_the_plain_loop(bundles: Callable[..., Bundle], label_map: NDArray[np.uint8]) -> None:
    bundle = bundles("rflow-ct")
    pipeline = Pipeline.load(bundle, "cpu", fast_paths=FastPaths.none())
    latent = torch.randn(1, 4, 24, 16, 8, generator=torch.Generator().manual_seed(0))
    image, used = pipeline.decoder.decode(latent, DecodingConfig(window=(16, 16, 16)))
    expected, exact = (
        build_reference(bundle, is_exact=is_exact).decode(latent.double() if is_exact else latent, (16, 16, 8))
        for is_exact in (False, True)
    )
    assert used.window == (16, 16, 8)
    assert used.num_splits == 4
    require_rounding_alone(image, expected, exact, depth=depths_of(bundle)[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_full_width_networks_draw_the_image_of_the_plain_loop(
    name: str, bundles: Callable[..., Bundle], label_map: NDArray[np.uint8]
) -> None:
    bundle = bundles(name, FULL_WIDTH)
    expected, exact = (Outcome(bundle, label_map, is_exact=is_exact) for is_exact in (False, True))
    pipeline = Pipeline.load(bundle, "cpu", fast_paths=FastPaths.none())
    require_equal(synthesize(pipeline, label_map, regions=REGIONS[name]), expected, exact, bundle)


@pytest.fixture(scope="module")
def exact(draw_exactly: Callable[..., Outcome]) -> Outcome:
    """What rflow-ct draws in float64."""
    return draw_exactly("rflow-ct")


@pytest.fixture(scope="module")
def slow(bundles: Callable[..., Bundle], label_map: NDArray[np.uint8]) -> Outcome:
    """What rflow-ct draws without any fast path."""
    return synthesize(Pipeline.load(bundles("rflow-ct"), "cpu", fast_paths=FastPaths.none()), label_map)


@pytest.mark.parametrize("path", ["embed_once", "plain_layers", "cpu_layers"])
def test_fast_path_moves_the_image_by_rounding_alone(
    path: str, slow: Outcome, exact: Outcome, bundles: Callable[..., Bundle], label_map: NDArray[np.uint8]
) -> None:
    bundle, fast_paths = bundles("rflow-ct"), replace(FastPaths.none(), **{path: True})
    found = synthesize(Pipeline.load(bundle, "cpu", fast_paths=fast_paths), label_map)
    require_equal(found, slow, exact, bundle, spread=WINOGRAD_SPREAD if path == "cpu_layers" else SPREAD)


@pytest.fixture(scope="module")
def plain(bundles: Callable[..., Bundle]) -> Pipeline:
    """All fast paths, in float32."""
    return Pipeline.load(bundles("rflow-ct"), "cpu", precision="float32")


@pytest.mark.parametrize("num_splits", [2, 4, 8, 16])
def test_splits_move_the_image_by_rounding_alone(
    num_splits: Any,
    plain: Pipeline,
    slow: Outcome,
    exact: Outcome,
    label_map: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "MIN_CPU_ROWS", 1)  # narrow as they are, they would not be split
    found = synthesize(plain, label_map, decoding=DecodingConfig(num_splits=num_splits))
    require_equal(found, slow, exact, plain.bundle, spread=WINOGRAD_SPREAD)


def test_bfloat16_moves_the_image_by_a_few_hu(
    slow: Outcome, bundles: Callable[..., Bundle], label_map: NDArray[np.uint8]
) -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor does not compute in bfloat16")
    fast_paths = replace(FastPaths.none(), plain_layers=True)
    pipeline = Pipeline.load(bundles("rflow-ct"), "cpu", fast_paths=fast_paths, precision="bfloat16")
    found = synthesize(pipeline, label_map)
    body = label_map > 0
    difference = np.abs(found.image_hu.astype(int) - slow.image_hu)[body]
    assert error_of(found.latent, slow.latent.double()) < 0.1
    assert difference.max() > 1, "bfloat16 was not used"
    assert difference.mean() < 0.05 * slow.image_hu[body].std()


def test_windows_move_the_image_where_norms_see_a_part(plain: Pipeline, bundles: Callable[..., Bundle]) -> None:
    latent = torch.randn(1, 4, 32, 24, 24, generator=torch.Generator().manual_seed(0))
    whole, _ = plain.decoder.decode(latent, DecodingConfig(window="whole"))
    windows, used = plain.decoder.decode(latent, DecodingConfig(window=(16, 16, 16)))
    assert used.window == (16, 16, 16)
    difference = (windows - whole).abs()
    assert 0 < float(difference.mean()) < 0.3 * float(whole.std())  # random weights: a trained VAE moves less


@pytest.mark.slow
def test_inductor_moves_the_image_by_rounding_alone(
    plain: Pipeline, exact: Outcome, bundles: Callable[..., Bundle], label_map: NDArray[np.uint8], tmp_path: Path
) -> None:
    expected = synthesize(plain, label_map)
    compiled = Pipeline.load(
        bundles("rflow-ct"),
        "cpu",
        precision="float32",
        compiler="inductor",
    )
    require_equal(synthesize(compiled, label_map), expected, exact, plain.bundle, spread=WINOGRAD_SPREAD)
