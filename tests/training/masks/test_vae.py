from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from maisi_aug.errors import BundleError
from maisi_aug.networks.building import build_network, use_plain_layers
from maisi_aug.training.loop.processes import Share
from maisi_aug.training.masks.recipe import MaskVaeLossConfig
from maisi_aug.training.masks.vae import (
    MaskVaeObjective,
    MaskVaeValidation,
    balance_classes,
    choose_input,
    compare_classes,
    decode_features,
    encode_classes,
    require_mask_autoencoder,
)
from tests.builders.tiny_mask_training import NUM_CLASSES, ClassList, build_maps, class_of
from tests.builders.tiny_masks import build_mask_networks
from tests.builders.tiny_training import SPACING_MM
from tests.oracles.rounding import depth_of, error_of, in_float64, require_rounding_alone, rounding

DEFINITION = build_mask_networks()["mask_autoencoder"]


def build_autoencoder(**changes: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        autoencoder = build_network({**DEFINITION, **changes})
    use_plain_layers(autoencoder)
    return autoencoder


def build_objective(autoencoder: nn.Module | None = None, **changes: Any) -> MaskVaeObjective:
    maps = build_maps(3)
    counts = np.stack([np.bincount(one.ravel(), minlength=NUM_CLASSES) for one in maps.maps])
    return MaskVaeObjective(
        autoencoder or build_autoencoder(),
        maps,
        MaskVaeLossConfig(**{"patch_shape": (16, 16, 16), **changes}),
        counts=counts,
        spacing_mm=SPACING_MM,
        seed=1,
        device="cpu",
    )


def compare_plainly(logits: Tensor, classes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and Dice from all logits at once."""
    surprise = functional.cross_entropy(logits, classes.long(), reduction="none")
    found = logits.softmax(dim=1)
    truth = functional.one_hot(classes.long(), NUM_CLASSES).movedim(-1, 1).to(logits.dtype)
    rows = []
    for one, true in zip(found, truth, strict=True):
        present = true.flatten(1).sum(1) > 0
        overlap = (one * true).flatten(1).sum(1)
        total = one.flatten(1).sum(1) + true.flatten(1).sum(1)
        rows.append((2 * overlap / total)[present].mean())
    return (weights[classes.long()] * surprise).mean(), torch.stack(rows).mean()


@pytest.mark.parametrize("max_logits", [1, 3 * 5 * 6 * 2 * NUM_CLASSES, 10**9])
def test_loss_in_slabs_is_the_loss_of_all_logits(max_logits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    head = nn.Conv3d(4, NUM_CLASSES, 3, padding=1)
    features = torch.randn(2, 4, 7, 5, 6, generator=generator, requires_grad=True)
    classes = torch.randint(0, 9, (2, 7, 5, 6), generator=generator).to(torch.uint8)
    weights = torch.rand(NUM_CLASSES, generator=generator) + 0.1
    exact_head = in_float64(head)
    exact_features = features.detach().double().requires_grad_()
    results = []
    for (cross_entropy, dice), inputs in (
        (compare_classes(head, features, classes, weights, max_logits=max_logits), [features, *head.parameters()]),
        (
            compare_plainly(exact_head(exact_features), classes, weights.double()),
            [exact_features, *exact_head.parameters()],
        ),
    ):
        gradients = torch.autograd.grad(cross_entropy - dice, inputs)
        results.append([each.detach() for each in (cross_entropy, dice, *gradients)])
    for found, exact in zip(*results, strict=True):
        # Convolution, softmax, sums over the voxels of a class, over slabs and classes, and back.
        assert error_of(found, exact) <= rounding(2 * 5)


def test_weights_have_a_mean_of_one_over_voxels_and_favour_the_rare() -> None:
    counts = np.zeros((2, NUM_CLASSES), dtype=np.int64)
    counts[0, :2], counts[1, 2] = (800, 180), 20
    weights = balance_classes(counts, power=0.5, max_weight=4.0)
    shares = torch.tensor([0.8, 0.18, 0.02])
    assert float((weights[:3] * shares).sum()) == pytest.approx(1.0, rel=rounding(2))
    assert float(weights[1] / weights[0]) == pytest.approx((0.8 / 0.18) ** 0.5, rel=rounding(2))
    assert float(weights[2] / weights[0]) == pytest.approx(4.0, rel=rounding(2))
    assert torch.equal(balance_classes(counts, power=0.0, max_weight=4.0), torch.ones(NUM_CLASSES))


def test_features_and_head_are_the_decoder() -> None:
    for use_checkpointing in (False, True):
        autoencoder = build_autoencoder(use_checkpointing=use_checkpointing)
        latent = torch.randn(1, 4, 2, 3, 4, generator=torch.Generator().manual_seed(0))
        features, head = decode_features(autoencoder, latent)
        decoded = autoencoder.decode(latent)  # type: ignore[operator]
        exact = in_float64(autoencoder).decode(latent.double())  # type: ignore[operator]
        require_rounding_alone(head(features), decoded, exact, depth=depth_of(autoencoder))


@pytest.mark.parametrize("in_channels", [8, NUM_CLASSES])
def test_classes_are_told_in_bits_or_one_channel_each(in_channels: int) -> None:
    classes = torch.tensor([[[[0, 5, 124]]]], dtype=torch.uint8)
    channels = choose_input(build_autoencoder(in_channels=in_channels))(classes)
    assert channels.shape == (1, in_channels, 1, 1, 3)
    told = channels[0, :, 0, 0].T
    if in_channels == NUM_CLASSES:
        assert torch.equal(told, functional.one_hot(classes.flatten().long(), NUM_CLASSES).float())
    else:
        assert (told @ 2.0 ** torch.arange(8)).tolist() == [0, 5, 124]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("in_channels", 1, "in_channels must be 8 or 125, .* found 1"),
        ("out_channels", 4, "out_channels must be 125, .* found 4"),
    ],
)
def test_other_autoencoder_is_refused(key: str, value: int, message: str) -> None:
    require_mask_autoencoder(DEFINITION)
    with pytest.raises(BundleError, match=message):
        require_mask_autoencoder({**DEFINITION, key: value})


def test_decoder_starts_with_every_class_as_likely_as_it_is_weighted() -> None:
    objective = build_objective(weight_power=0.5)
    bias = list(objective.autoencoder.decoder.parameters())[-1]  # type: ignore[union-attr]
    shares = bias.detach().exp()
    assert float(shares.sum()) == pytest.approx(1.0, abs=1e-3)
    present = [class_of(label_id) for label_id in (0, 1, 26, 200)]
    assert sorted(shares.argsort(descending=True)[:4].tolist()) == sorted(present)


def test_mean_loss_of_two_shares_is_that_of_twice_the_batch() -> None:
    autoencoder = build_autoencoder(use_checkpointing=False)
    with torch.no_grad():
        whole, whole_figures = build_objective(autoencoder, batch_count=2).loss(4)
        parts = [build_objective(autoencoder).loss(4, Share(index, 2)) for index in range(2)]
    tolerance = rounding(depth_of(autoencoder))
    assert float(torch.stack([loss for loss, _ in parts]).mean()) == pytest.approx(float(whole), rel=tolerance)
    for name, value in whole_figures.items():
        mean = torch.stack([figures[name] for _, figures in parts]).mean()
        assert float(mean) == pytest.approx(float(value), rel=tolerance), name


def test_large_patches_come_late() -> None:
    objective = build_objective(large_patch_shape=(32, 24, 24), large_patch_start_step=3, mirror_share=0)
    small, _ = objective._draw_batch(2, Share())
    large, _ = objective._draw_batch(3, Share())
    assert (small.shape, large.shape) == ((1, 16, 16, 16), (1, 32, 24, 24))
    again, _ = objective._draw_batch(2, Share())
    np.testing.assert_array_equal(again, small)


def test_patches_go_where_rare_classes_are() -> None:
    tumor = class_of(26)
    shares = [
        np.mean(
            [(build_objective(rare_share=share)._draw_batch(step, Share())[0] == tumor).any() for step in range(40)]
        )
        for share in (0.0, 1.0)
    ]
    assert shares[1] > shares[0]


def test_few_steps_teach_it_the_maps() -> None:
    autoencoder = build_autoencoder(in_channels=NUM_CLASSES, use_checkpointing=False)
    objective = build_objective(autoencoder, patch_shape=(32, 24, 24), mirror_share=0.0, weight_power=0.25)
    validation = MaskVaeValidation(autoencoder, ClassList(build_maps(5).maps[3:]), device="cpu")
    before = validation()
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=1e-2)
    for step in range(40):
        optimizer.zero_grad()
        objective.loss(step)[0].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = validation()
    assert after["dice"] > max(0.4, before["dice"] + 0.2)
    assert after["loss"] == pytest.approx(1 - after["dice"])
    assert set(validation.dice_per_label) == {"body", "liver", "hepatic tumor"}
    assert np.mean(list(validation.dice_per_label.values())) == pytest.approx(after["dice"])


def test_latent_is_the_posterior_mean() -> None:
    autoencoder = build_autoencoder()
    classes = build_maps(1)[0]
    latent = encode_classes(autoencoder, classes, device="cpu")
    assert latent.shape == (1, 4, 8, 6, 6)
    assert torch.equal(latent, encode_classes(autoencoder, classes, device="cpu"))
