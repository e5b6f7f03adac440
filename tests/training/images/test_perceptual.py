from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import squeezenet1_1

from maisi_aug.errors import TrainingError
from maisi_aug.training.images.perceptual import SCALE, SHIFT, TAPS, SliceDistance, load_perceptual
from maisi_aug.training.loop.settings import VaeLossConfig
from tests.oracles.rounding import depth_of, rounding


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of SqueezeNet 1.1, as torchvision would publish them."""
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(squeezenet1_1(weights=None).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("heads") / "squeeze.pth"
    generator = torch.Generator().manual_seed(1)
    state = {
        f"lin{place}.model.1.weight": torch.rand(1, channels, 1, 1, generator=generator)
        for place, channels in enumerate(TAPS.values())
    }
    torch.save(state, path)
    return path


def load(weights: Path, **loss: Any) -> SliceDistance:
    config = VaeLossConfig.model_validate({"perceptual_weight": 0.3, "perceptual_weights": str(weights), **loss})
    return load_perceptual(config, "cpu")


def tolerance_of(distance: SliceDistance) -> float:
    """Relative, of a distance: squares err twice as much as the features that they are of."""
    return 2 * rounding(depth_of(distance.features))


def draw_pair(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


def distance_by_hand(distance: SliceDistance, ours: Tensor, theirs: Tensor, heads: dict[str, Tensor] | None) -> Tensor:
    """LPIPS of two ``(N, 1, H, W)`` stacks as its paper writes it, on three equal channels."""

    def features(image: Tensor) -> list[Tensor]:
        layer_input = (image.repeat(1, 3, 1, 1) - torch.tensor(SHIFT).view(1, 3, 1, 1)) / torch.tensor(SCALE).view(
            1, 3, 1, 1
        )
        found = []
        for index, layer in enumerate(distance.features):
            layer_input = layer(layer_input)
            if index in TAPS:
                found.append(layer_input / (layer_input.norm(dim=1, keepdim=True) + 1e-10))
        return found

    total = torch.zeros(len(ours))
    for place, (mine, other) in enumerate(zip(features(ours), features(theirs), strict=True)):
        squares = (mine - other) ** 2
        weight = torch.ones(squares.shape[1]) if heads is None else heads[f"lin{place}.model.1.weight"].flatten()
        total += (squares * weight.view(1, -1, 1, 1)).sum(1).mean((1, 2))
    return total


@pytest.mark.parametrize("with_heads", [False, True])
def test_distance_of_slices_is_lpips(with_heads: bool, weights: Path, heads: Path) -> None:
    distance = load(weights, **({"perceptual_heads": str(heads)} if with_heads else {}))
    ours, theirs = draw_pair((3, 1, 32, 40))
    expected = distance_by_hand(distance, ours, theirs, torch.load(heads) if with_heads else None)
    assert torch.allclose(distance.compare(ours, theirs), expected, rtol=tolerance_of(distance), atol=0)
    assert torch.equal(distance.compare(ours, ours), torch.zeros(3))


def test_distance_of_volumes_is_summed_over_three_axes(weights: Path) -> None:
    distance = load(weights, perceptual_slice_share=1.0)
    ours, theirs = draw_pair((1, 1, 20, 24, 28))
    expected = 0.0
    for axis in range(3):
        slices = [volume[0, 0].movedim(axis, 0)[:, None] for volume in (ours, theirs)]
        expected += float(distance.compare(*slices).mean())
    assert float(distance(ours, theirs, seeds=[0])) == pytest.approx(expected, rel=tolerance_of(distance))


def test_seed_chooses_the_slices_of_each_volume(weights: Path) -> None:
    distance = load(weights, perceptual_slice_share=0.2)
    ours, theirs = draw_pair((2, 1, 20, 20, 20))
    both = float(distance(ours, theirs, seeds=[3, 4]))
    parts = [float(distance(ours[n : n + 1], theirs[n : n + 1], seeds=[3 + n])) for n in range(2)]
    assert both == pytest.approx(sum(parts) / 2, rel=tolerance_of(distance))
    assert float(distance(ours, theirs, seeds=[5, 4])) != pytest.approx(both, rel=tolerance_of(distance))


def test_gradient_flows_to_the_image_and_stays_finite_where_nothing_differs(weights: Path) -> None:
    distance = load(weights)
    ours, theirs = draw_pair((1, 1, 20, 20, 20))
    ours.requires_grad_()
    distance(ours, theirs, seeds=[0]).backward()
    assert ours.grad is not None
    assert ours.grad.isfinite().all()
    assert ours.grad.any()
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    same = theirs.clone().requires_grad_()
    distance(same, theirs, seeds=[0]).backward()
    assert same.grad is not None
    assert same.grad.isfinite().all()


def test_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"perceptual_weights: .*absent\.pth: file not found\. Nothing is downloaded"
    ):
        load(tmp_path / "absent.pth")


def test_file_of_other_content_is_refused(weights: Path, heads: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no weights", encoding="utf-8")
    with pytest.raises(TrainingError, match=r"text\.pth: torch cannot read the file \(Weights only load failed"):
        load(tmp_path / "text.pth")
    with pytest.raises(TrainingError, match="not the weights of torchvision's squeezenet1_1"):
        load(heads)
    with pytest.raises(
        TrainingError, match="not LPIPS' weights for SqueezeNet, which are weights/v0.1/squeeze.pth of the"
    ):
        load(weights, perceptual_heads=str(weights))
