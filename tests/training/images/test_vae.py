from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models import squeezenet1_1

from maisi_aug.networks.building import build_network, use_plain_layers
from maisi_aug.networks.conditioning import hu_to_unit
from maisi_aug.training.images.vae import VaeObjective, _to_window
from maisi_aug.training.loop.processes import Share
from maisi_aug.training.loop.run import TrainingRun
from maisi_aug.training.loop.settings import LoopConfig, VaeLossConfig
from tests.builders.tiny_bundle import build_header
from tests.builders.tiny_training import HEPATIC_TUMOR, ArrayStore, build_case, build_store
from tests.oracles.rounding import depth_of, require_same_steps, rounding

# Large enough for the discriminator's five convolutions.
PATCH = (24, 24, 24)


def build_objective(store: ArrayStore, *, seed: int = 0, **loss: Any) -> VaeObjective:
    torch.manual_seed(0)
    autoencoder = build_network(build_header()["networks"]["autoencoder"])
    use_plain_layers(autoencoder)
    config = VaeLossConfig.model_validate({"patch_shape": PATCH, **loss})
    return VaeObjective(autoencoder, store, config, lesion_ids=(HEPATIC_TUMOR,), seed=seed, device="cpu")


def parts(objective: VaeObjective, step: int = 0) -> tuple[float, dict[str, float]]:
    with torch.no_grad():
        loss, figures = objective.loss(step)
    return float(loss), {name: float(value) for name, value in figures.items()}


def mean_error_hu(objective: VaeObjective) -> float:
    return float(np.mean([parts(objective, step)[1]["mean_error_hu"] for step in range(100, 104)]))


def draw_patches(objective: VaeObjective, num_steps: int = 12) -> list[Tensor]:
    return [objective.patches.draw(step) for step in range(num_steps)]


def test_loss_falls_on_two_cases(tmp_path: Path) -> None:
    objective = build_objective(build_store(2), patch_shape=(16, 16, 16))
    before = mean_error_hu(objective)
    loop = LoopConfig(num_steps=40, learning_rate=3e-3, num_warmup_steps=5, mixed_precision=False)
    TrainingRun(objective, loop, tmp_path, device="cpu").train()
    assert mean_error_hu(objective) < 0.6 * before


def test_loss_is_the_weighted_sum_of_its_parts() -> None:
    loss, figures = parts(build_objective(build_store(1), kl_weight=1e-3, window_weight=0.25))
    expected = figures["mean_error_hu"] / 2000 + 1e-3 * figures["kl"] + 0.25 * figures["window"]
    assert loss == pytest.approx(expected, rel=rounding(4))


def test_window_counts_the_error_inside_its_range_alone() -> None:
    objective = build_objective(build_store(1), window_hu=(-200.0, 300.0))
    image_hu = torch.tensor([-900.0, 0.0, 250.0, 800.0])
    assert torch.allclose(_to_window(hu_to_unit(image_hu), objective.config.window_hu), torch.tensor([0, 0.4, 0.9, 1]))


def test_posterior_starts_narrow() -> None:
    objective = build_objective(build_store(1), initial_log_variance=-8.0)
    bias = dict(objective.autoencoder.named_parameters())["quant_conv_log_sigma.conv.bias"]
    assert set(bias.tolist()) == {-8.0}


def test_same_step_gives_the_same_loss_in_any_order() -> None:
    store = build_store(3)
    ours, theirs = build_objective(store), build_objective(store)
    expected = [parts(ours, step)[0] for step in range(3)]
    assert [parts(theirs, step)[0] for step in (2, 1, 0)] == expected[::-1]
    assert len(set(expected)) == 3
    assert parts(build_objective(store, seed=1))[0] != expected[0]


def mean_lesion_share(objective: VaeObjective) -> float:
    """Share of patches with any voxel of the lesion's HU, which nothing else has."""
    lesion_unit = float(hu_to_unit(torch.tensor(60)))
    patches = draw_patches(objective, 40)
    return float(np.mean([bool((patch == lesion_unit).any()) for patch in patches]))


def test_patches_are_laid_over_lesions_as_often_as_wished() -> None:
    shape = (4, 4, 4)
    store = ArrayStore([build_case(0)])
    assert mean_lesion_share(build_objective(store, patch_shape=shape, lesion_share=1.0)) == 1.0
    assert mean_lesion_share(build_objective(store, patch_shape=shape, lesion_share=0.0)) < 0.5
    healthy = ArrayStore([build_case(0, has_lesion=False)])
    assert mean_lesion_share(build_objective(healthy, patch_shape=shape, lesion_share=1.0)) == 0.0


def test_large_patches_begin_at_their_step() -> None:
    objective = build_objective(
        build_store(1), patch_shape=(8, 8, 8), large_patch_shape=(64, 16, 16), large_patch_start_step=3
    )
    assert [tuple(patch.shape[2:]) for patch in draw_patches(objective, 5)] == 3 * [(8, 8, 8)] + 2 * [(32, 16, 16)]


def test_adversary_joins_at_its_step_and_learns() -> None:
    objective = build_objective(build_store(1), adversarial_weight=0.1, adversarial_start_step=1)
    assert "adversarial" not in parts(objective, 0)[1]
    objective.after_step(0)
    before = {key: value.clone() for key, value in objective.state()["network"].items()}
    loss, figures = objective.loss(1)
    assert figures["adversarial"] > 0
    loss.backward()  # type: ignore[no-untyped-call]
    objective.after_step(1)
    after = objective.state()["network"]
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_adversary_is_the_same_for_the_same_seed_and_goes_on(tmp_path: Path) -> None:
    loop = LoopConfig(num_steps=4, num_warmup_steps=1, mixed_precision=False)
    weights = []
    for name, pauses in (("whole", 0), ("parts", 3)):
        for left in range(pauses, -1, -1):
            torch.manual_seed(left)
            objective = build_objective(build_store(1), adversarial_weight=0.1)
            run = TrainingRun(objective, loop, tmp_path / name, device="cpu")
            result = run.train(max_minutes=0.0 if left else None)
        assert result.is_complete
        weights.append((result.averaged_weights["autoencoder"], objective.state()["network"]))
    for ours, theirs in zip(*weights, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_perceptual_term_is_added_with_its_weight(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(squeezenet1_1(weights=None).state_dict(), tmp_path / "squeezenet.pth")
    plain = parts(build_objective(build_store(1)))[0]
    path = str(tmp_path / "squeezenet.pth")
    loss, figures = parts(build_objective(build_store(1), perceptual_weight=0.3, perceptual_weights=path))
    assert figures["perceptual"] > 0
    assert loss == pytest.approx(plain + 0.3 * figures["perceptual"], rel=rounding(4))


def test_losses_of_the_shares_average_to_that_of_the_whole_batch() -> None:
    store = build_store(3)
    whole = build_objective(store, batch_count=4, kl_weight=1e-3, adversarial_weight=0.1)
    small = build_objective(store, batch_count=2, kl_weight=1e-3, adversarial_weight=0.1)
    with torch.no_grad():
        shares = [float(small.loss(2, Share(index, 2))[0]) for index in range(2)]
    assert whole.adversary is not None
    depth = depth_of(whole.autoencoder, whole.adversary.network)
    assert np.mean(shares) == pytest.approx(parts(whole, 2)[0], rel=rounding(depth))


def test_adversary_learns_from_all_accumulated_batches() -> None:
    weights = []
    for batch_count, num_shares in ((4, 1), (2, 2)):
        objective = build_objective(build_store(3), batch_count=batch_count, adversarial_weight=0.1)
        with torch.no_grad():
            for index in range(num_shares):
                objective.loss(0, Share(index, num_shares))
        objective.after_step(0)
        weights.append(objective.state()["network"])
    require_same_steps(weights[1], weights[0], length=objective.config.discriminator_learning_rate)
