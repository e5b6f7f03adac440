from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from maisi_aug.errors import BundleError
from maisi_aug.evaluation.fid.lpips import load_perceptual_distance

lpips = pytest.importorskip("lpips", reason="the extra lpips is not installed")
LAYERS = (2, 5, 8, 10, 11, 12, 13)
"""Where each of the seven parts of the network ends."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from torchvision.models import squeezenet1_1

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = squeezenet1_1(weights=None)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(network.state_dict(), path)
    return path


def measure_plainly(weights: Path, pictures: torch.Tensor, others: torch.Tensor) -> list[float]:
    """The paper's equation 1, with the published weighting."""
    from torchvision.models import squeezenet1_1

    network = squeezenet1_1(weights=None)
    network.load_state_dict(torch.load(weights, weights_only=True))
    folder = Path(lpips.__file__).parent
    linear = torch.load(folder / "weights" / "v0.1" / "squeeze.pth", map_location="cpu", weights_only=True)
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    first, second = ((2 * side[:, None].expand(-1, 3, -1, -1) - 1 - shift) / scale for side in (pictures, others))
    total = torch.zeros(len(pictures))
    start = 0
    features = nn.Sequential(*list(network.features.children())).eval()
    with torch.inference_mode():
        for number, stop in enumerate(LAYERS):
            first, second = (features[start:stop](side) for side in (first, second))
            start = stop
            apart = (functional.normalize(first, eps=1e-10) - functional.normalize(second, eps=1e-10)) ** 2
            total += (apart * linear[f"lin{number}.model.1.weight"]).sum(1).mean((1, 2))
    return total.tolist()


def test_lpips_is_the_papers(weights: Path, rng: np.random.Generator) -> None:
    pictures, others = rng.random((2, 3, 64, 48)).astype(np.float32)
    found = load_perceptual_distance(str(weights)).measure(pictures, others)
    assert found == pytest.approx(
        measure_plainly(weights, torch.from_numpy(pictures), torch.from_numpy(others)), rel=1e-4
    )
    assert load_perceptual_distance(str(weights)).measure(pictures, pictures) == pytest.approx([0, 0, 0], abs=1e-6)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="weight file not found for"):
        load_perceptual_distance(str(tmp_path / "none.pth"))
