from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maisi_aug.networks.building import build_network, build_scheduler
from maisi_aug.training.cases.data import LatentSet
from maisi_aug.training.images.contrastive import LabelRemover
from maisi_aug.training.images.flow import FlowObjective, label_mean_error
from maisi_aug.training.loop.processes import Share
from maisi_aug.training.loop.run import TrainingRun
from maisi_aug.training.loop.settings import FlowLossConfig, LoopConfig
from maisi_aug.vocabulary.labels import MAISI
from tests.builders.tiny_bundle import build_ddpm_header, build_header
from tests.builders.tiny_training import BODY, HEPATIC_TUMOR, LIVER, ArrayStore, build_case, build_store
from tests.oracles.rounding import depth_of, rounding

LATENT_SHAPE = (8, 6, 6)
FACTOR = 4
RFLOW: dict[str, Any] = build_header()["scheduler"]
DDPM = {"class": "DDPMScheduler", "num_train_timesteps": 1000, "schedule": "linear_beta"}


def build_latents(num_cases: int) -> LatentSet:
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(4, *LATENT_SHAPE, generator=generator).half() for _ in range(num_cases)]
    return LatentSet(latents, scale_factor=1.0)


def build_objective(
    store: ArrayStore,
    *,
    with_controlnet: bool = True,
    scheduler: dict[str, Any] | None = None,
    seed: int = 0,
    latents: LatentSet | None = None,
    label_weights: dict[int, float] | None = None,
    remover: LabelRemover | None = None,
    **loss: Any,
) -> FlowObjective:
    torch.manual_seed(0)
    definitions = build_header()["networks"]
    controlnet = build_network(definitions["controlnet"]) if with_controlnet else None
    return FlowObjective(
        build_network(definitions["diffusion_unet"]),
        controlnet,
        build_scheduler(scheduler or RFLOW),
        store,
        latents or build_latents(len(store)),
        FlowLossConfig.model_validate({"train_unet": True, **loss}),
        lesion_ids=(HEPATIC_TUMOR,),
        seed=seed,
        device="cpu",
        label_weights=label_weights or {},
        remover=remover,
    )


def value(objective: FlowObjective, step: int = 0) -> float:
    with torch.no_grad():
        return float(objective.loss(step)[0])


def tolerance_of(objective: FlowObjective) -> float:
    """Relative, of a loss."""
    return rounding(depth_of(objective.unet, *([objective.controlnet] if objective.controlnet else [])))


@pytest.mark.parametrize(
    ("scheduler", "with_controlnet", "num_steps"),
    [(RFLOW, False, 30), (RFLOW, True, 30), (DDPM, False, 100)],
    ids=["rflow", "rflow with ControlNet", "ddpm"],
)
def test_loss_falls_on_one_case(
    scheduler: dict[str, Any], with_controlnet: bool, num_steps: int, tmp_path: Path
) -> None:
    flat = torch.tensor([3.0, -3.0, 2.0, -2.0]).view(4, 1, 1, 1).expand(4, *LATENT_SHAPE).half()
    objective = build_objective(
        build_store(1), with_controlnet=with_controlnet, scheduler=scheduler, latents=LatentSet([flat], 1.0)
    )
    before = np.mean([value(objective, step) for step in range(100, 108)])
    loop = LoopConfig(num_steps=num_steps, learning_rate=1e-2, num_warmup_steps=5, mixed_precision=False)
    TrainingRun(objective, loop, tmp_path, device="cpu").train()
    after = np.mean([value(objective, step) for step in range(100, 108)])
    assert after < 0.8 * before


def test_networks_that_learn_are_those_of_the_settings() -> None:
    store = build_store(1)
    assert set(build_objective(store).networks) == {"diffusion_unet", "controlnet"}
    assert set(build_objective(store, with_controlnet=False, train_unet=False).networks) == {"diffusion_unet"}
    frozen = build_objective(store, train_unet=False)
    assert set(frozen.networks) == {"controlnet"}
    assert not any(parameter.requires_grad for parameter in frozen.unet.parameters())


def test_controlnet_learns_beside_a_frozen_unet(tmp_path: Path) -> None:
    objective = build_objective(build_store(1), train_unet=False)
    for parameter in objective.unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    before = {key: tensor.clone() for key, tensor in objective.unet.state_dict().items()}
    loop = LoopConfig(num_steps=3, num_warmup_steps=1, mixed_precision=False)
    result = TrainingRun(objective, loop, tmp_path, device="cpu").train()
    assert set(result.averaged_weights) == {"controlnet"}
    assert all(torch.equal(tensor, before[key]) for key, tensor in objective.unet.state_dict().items())
    learnt = result.averaged_weights["controlnet"]["controlnet_mid_block.conv.weight"]
    assert learnt.any()


def test_same_step_gives_the_same_loss_in_any_order() -> None:
    store = build_store(3)
    ours, theirs = build_objective(store), build_objective(store)
    expected = [value(ours, step) for step in range(3)]
    assert [value(theirs, step) for step in (2, 1, 0)] == expected[::-1]
    assert len(set(expected)) == 3
    assert value(build_objective(store, seed=1)) != expected[0]


class Known(nn.Module):
    """Stands for a U-Net that answers with a given tensor, so that the target can be read from the error."""

    def __init__(self, answer: Tensor | None = None) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        self.seen = x
        self.conditions = conditions
        return torch.zeros_like(x) if self.answer is None else self.answer


def test_rectified_flow_goes_from_noise_to_latent_in_a_straight_line() -> None:
    objective = build_objective(build_store(1), with_controlnet=False)
    unet = Known()
    objective.unet = unet
    _, figures = objective.loss(0)
    share = figures["timestep"] / 1000
    clean = objective.latents.latents[0].float()
    noise = (unet.seen - (1 - share) * clean) / share
    assert float(noise.std()) == pytest.approx(1.0, abs=0.1)
    unet.answer = clean - noise
    assert value(objective) < 1e-4
    assert unet.conditions["spacing_tensor"].tolist() == [[1200.0, 1300.0, 1400.0]]


def test_ddpm_predicts_the_noise() -> None:
    objective = build_objective(build_store(1), with_controlnet=False, scheduler=DDPM)
    unet = Known()
    objective.unet = unet
    _, figures = objective.loss(0)
    assert figures["timestep"] == int(figures["timestep"])
    kept = objective.scheduler.alphas_cumprod[int(figures["timestep"])]
    unet.answer = (unet.seen - kept.sqrt() * objective.latents.latents[0].float()) / (1 - kept).sqrt()
    assert value(objective) < 1e-4


def test_latents_are_scaled() -> None:
    store, latents = build_store(1), build_latents(1)
    objective = build_objective(store, latents=LatentSet(latents.latents, scale_factor=3.0), with_controlnet=False)
    assert torch.equal(objective._draw_batches(0)[0].clean[0], latents.latents[0].float() * 3.0)


def test_timesteps_follow_the_scheduler() -> None:
    def draw(**changes: Any) -> np.ndarray[Any, Any]:
        objective = build_objective(build_store(1), with_controlnet=False, scheduler={**RFLOW, **changes})
        clean = torch.zeros(1, 4, *LATENT_SHAPE)
        timesteps = [objective._draw_noise(step, clean)[1] for step in range(400)]
        assert torch.equal(timesteps[7], objective._draw_noise(7, clean)[1])
        return np.array([float(timestep) for timestep in timesteps])

    uniform = draw()
    assert uniform.mean() == pytest.approx(500, abs=40)
    assert uniform.std() == pytest.approx(289, abs=20)
    assert draw(sample_method="logit-normal").std() == pytest.approx(208, abs=20)
    assert draw(use_timestep_transform=True, base_img_size_numel=8).mean() > 600
    whole = draw(use_discrete_timesteps=True)
    assert (whole == whole.astype(int)).all()


def weights_by_hand(label_map: np.ndarray[Any, Any], lesion_weight: float, outside_weight: float) -> Tensor:
    weights = torch.empty(LATENT_SHAPE)
    for place in np.ndindex(LATENT_SHAPE):
        block = label_map[tuple(slice(FACTOR * side, FACTOR * side + FACTOR) for side in place)]
        inside = 1.0 if (block > 0).any() else outside_weight
        weights[place] = lesion_weight if (block == HEPATIC_TUMOR).any() else inside
    return weights


def test_lesions_and_air_count_as_much_as_wished() -> None:
    store = build_store(1)
    objective = build_objective(store, lesion_weight=5.0, outside_weight=0.25)
    batch = objective._draw_batches(0)[0]
    weights, lesions = objective._weights(torch.from_numpy(batch.label_maps), batch.clean.shape)
    expected = weights_by_hand(store.label_map(0), 5.0, 0.25)
    assert torch.equal(weights[0, 0], expected)
    assert set(expected.flatten().tolist()) == {0.25, 1.0, 5.0}
    assert torch.equal(lesions[0, 0] > 0, expected == 5.0)


def test_loss_is_the_weighted_mean_of_the_error() -> None:
    store = build_store(1)
    objective = build_objective(store, with_controlnet=False, lesion_weight=5.0, outside_weight=0.25)
    unet = Known()
    objective.unet = unet
    loss, figures = objective.loss(0)
    share = figures["timestep"] / 1000
    clean = objective.latents.latents[0].float()
    error = (clean - (unet.seen[0] - (1 - share) * clean) / share).abs()
    weights = weights_by_hand(store.label_map(0), 5.0, 0.25)
    assert float(loss) == pytest.approx(float((error * weights).sum() / weights.sum() / 4), rel=1e-3)
    assert figures["l1"] == pytest.approx(float(error.mean()), rel=1e-3)
    assert figures["l1_lesion"] == pytest.approx(float(error[:, weights == 5.0].mean()), rel=1e-3)


def test_noise_over_a_label_cancels_and_its_mean_error_does_not() -> None:
    label_maps = torch.zeros(2, 4, 4, 4, dtype=torch.uint8)
    label_maps[0, 2:], label_maps[1, 2:] = LIVER, HEPATIC_TUMOR
    error = torch.zeros(2, 3, 2, 2, 2)
    error[:, :, 0] = 100.0  # the background's
    error[:, :, 1] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert float(label_mean_error(error, label_maps, (HEPATIC_TUMOR,), 3.0)) == 0.0
    error[0, 0, 1] += 0.6
    tolerance = rounding(2) * 1.6 / 0.2  # what is left when 1.6 and -0.4 have cancelled
    assert float(label_mean_error(error, label_maps, (HEPATIC_TUMOR,), 3.0)) == pytest.approx(0.2 / 4, rel=tolerance)
    error[1, 0, 1] -= 0.6
    assert float(label_mean_error(error, label_maps, (HEPATIC_TUMOR,), 3.0)) == pytest.approx(0.2, rel=tolerance)
    assert float(label_mean_error(error, torch.zeros_like(label_maps), (HEPATIC_TUMOR,), 3.0)) == 0.0


def test_label_means_count_as_much_as_wished() -> None:
    store = build_store(1)
    plain = build_objective(store)
    loss, figures = build_objective(store, label_mean_weight=2.0).loss(0)
    assert figures["label_mean"] > 0
    assert loss.item() == pytest.approx(value(plain) + 2.0 * float(figures["label_mean"]), rel=rounding(4))


def test_tumours_have_to_show_where_contrast_counts() -> None:
    plain = build_objective(build_store(2))
    weighed = build_objective(build_store(2), contrastive_weight=0.5, remover=LabelRemover(MAISI))
    loss, figures = weighed.loss(0)
    assert {"contrast", "outside"} <= set(figures)
    expected = plain.loss(0)[0] + 0.5 * (figures["outside"] - figures["contrast"])
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance_of(plain))
    assert value(weighed) == value(plain)  # validation compares what both have


@pytest.mark.parametrize("changes", [{"scheduler": DDPM}, {"contrastive_weight": 0.0}], ids=["ddpm", "no weight"])
def test_there_is_no_contrast_for_ddpm_nor_without_a_weight(changes: dict[str, Any]) -> None:
    options: dict[str, Any] = {"contrastive_weight": 0.5, "remover": LabelRemover(MAISI), **changes}
    assert "contrast" not in build_objective(build_store(1), **options).loss(0)[1]


def test_crop_without_body_has_no_loss_where_air_does_not_count() -> None:
    case = build_case(0, has_lesion=False)
    empty = type(case)(case.image_hu, np.zeros_like(case.label_map), case.spacing_mm, case.modality)
    objective = build_objective(ArrayStore([empty]), outside_weight=0.0)
    assert value(objective) == 0.0


def test_crops_show_the_same_place_in_latent_and_label_map() -> None:
    case = build_case(0)
    coded = np.arange(np.prod(LATENT_SHAPE), dtype=np.uint8).reshape(LATENT_SHAPE) % 19 + 30
    label_map = coded.repeat(FACTOR, 0).repeat(FACTOR, 1).repeat(FACTOR, 2)
    store = ArrayStore([type(case)(case.image_hu, label_map, case.spacing_mm, case.modality)])
    latent = torch.from_numpy(coded.astype(np.float16))[None].repeat(4, 1, 1, 1)
    objective = build_objective(store, latents=LatentSet([latent], 1.0), crop_shape=(4, 2, 2), whole_start_step=20)
    for step in range(20):
        batch = objective._draw_batches(step)[0]
        assert batch.clean.shape == (1, 4, 4, 2, 2)
        assert (batch.label_maps[0, ::FACTOR, ::FACTOR, ::FACTOR] == batch.clean[0, 0].numpy()).all()
    assert objective._draw_batches(20)[0].clean.shape == (1, 4, *LATENT_SHAPE)


@pytest.mark.parametrize(("lesion_share", "low", "high"), [(1.0, 1.0, 1.0), (0.0, 0.0, 0.6)])
def test_crops_are_laid_over_lesions_as_often_as_wished(lesion_share: float, low: float, high: float) -> None:
    objective = build_objective(build_store(1), crop_shape=(2, 2, 2), lesion_share=lesion_share)
    shown = [bool((objective._draw_batches(step)[0].label_maps == HEPATIC_TUMOR).any()) for step in range(30)]
    assert low <= np.mean(shown) <= high


def test_crop_is_told_the_regions_of_the_whole_case() -> None:
    case = build_case(0)
    case.label_map[-1, -1, -1] = 93  # a femur
    header = build_ddpm_header()
    objective = build_objective(
        ArrayStore([case]), scheduler=header["scheduler"], crop_shape=(2, 2, 2), lesion_share=0.0
    )
    assert objective._draw_batches(0)[0].regions == (), "this U-Net is told none"
    torch.manual_seed(0)
    objective.unet = build_network(header["networks"]["diffusion_unet"])
    objective.controlnet = build_network(header["networks"]["controlnet"])
    assert {objective._draw_batches(step)[0].regions for step in range(8)} == {(("abdomen", "pelvis"),)}
    assert value(objective) > 0


@pytest.mark.parametrize(("dropout", "expected"), [(0.0, {"ct_contrast"}), (1.0, {"ct"}), (0.5, {"ct", "ct_contrast"})])
def test_modality_is_told_plainly_as_often_as_wished(dropout: float, expected: set[str]) -> None:
    objective = build_objective(build_store(1), modality_dropout=dropout)
    assert {objective._draw_batches(step)[0].modalities[0] for step in range(20)} == expected


def test_modality_is_left_out_as_often_as_wished() -> None:
    objective = build_objective(build_store(1), modality_dropout=0.25, modality_omission=0.25)
    told = [objective._draw_batches(step)[0].modalities[0] for step in range(400)]
    shares = {name: told.count(name) / 400 for name in ("ct", "unknown", "ct_contrast")}
    assert shares == pytest.approx({"ct": 0.25, "unknown": 0.25, "ct_contrast": 0.5}, abs=0.07)


def test_named_labels_count_as_much_as_wished() -> None:
    store = build_store(1)
    objective = build_objective(store, lesion_weight=5.0, outside_weight=0.25, label_weights={LIVER: 100.0})
    batch = objective._draw_batches(0)[0]
    weights, lesions = objective._weights(torch.from_numpy(batch.label_maps), batch.clean.shape)
    has_liver = torch.zeros(LATENT_SHAPE, dtype=torch.bool)
    for place in np.ndindex(LATENT_SHAPE):
        block = store.label_map(0)[tuple(slice(FACTOR * side, FACTOR * side + FACTOR) for side in place)]
        has_liver[place] = bool((block == LIVER).any())
    assert torch.equal(weights[0, 0] == 100.0, has_liver)
    plain = build_objective(store, lesion_weight=5.0, outside_weight=0.25)
    others, same_lesions = plain._weights(torch.from_numpy(batch.label_maps), batch.clean.shape)
    assert torch.equal(weights[0, 0][~has_liver], others[0, 0][~has_liver])
    assert torch.equal(lesions, same_lesions)


@pytest.mark.parametrize("scheduler", [RFLOW, {**RFLOW, "sample_method": "logit-normal"}, DDPM])
def test_losses_of_the_shares_average_to_that_of_the_whole_batch(scheduler: dict[str, Any]) -> None:
    store = ArrayStore([build_case(0), build_case(1, has_lesion=False), build_case(2)])
    settings: dict[str, Any] = {"lesion_weight": 50.0, "outside_weight": 0.1, "label_mean_weight": 1.0}
    crops: dict[str, Any] = {"crop_shape": (4, 4, 2), "scheduler": scheduler}
    whole = build_objective(store, batch_count=6, **settings, **crops)
    parts = build_objective(store, batch_count=2, **settings, **crops)
    with torch.no_grad():
        shares = [float(parts.loss(3, Share(index, 3))[0]) for index in range(3)]
    assert np.mean(shares) == pytest.approx(value(whole, 3), rel=tolerance_of(whole))
    assert len(set(shares)) == 3


def test_batch_holds_as_many_cases_as_wished() -> None:
    store = build_store(3)
    objective = build_objective(store, batch_count=4)
    batch = objective._draw_batches(0)[0]
    assert batch.clean.shape == (4, 4, *LATENT_SHAPE)
    assert (batch.label_maps == BODY).any()
    assert value(objective) > 0


def test_batch_of_whole_latents_may_hold_fewer_cases() -> None:
    objective = build_objective(
        build_store(3), batch_count=4, crop_shape=(4, 2, 2), whole_start_step=1, whole_batch_count=2
    )
    assert objective._draw_batches(0)[0].clean.shape == (4, 4, 4, 2, 2)
    assert objective._draw_batches(1)[0].clean.shape == (2, 4, *LATENT_SHAPE)


def build_shown_objective(**loss: Any) -> FlowObjective:
    torch.manual_seed(0)
    definitions = build_header()["networks"]
    controlnet = build_network({**definitions["controlnet"], "conditioning_embedding_in_channels": 10})
    store = ArrayStore([build_case(0), build_case(1)])
    settings = {"train_unet": True, "surroundings": {"hidden_share": 0.0}, "batch_count": 3, **loss}
    return FlowObjective(
        build_network(definitions["diffusion_unet"]),
        controlnet,
        build_scheduler(RFLOW),
        store,
        build_latents(2),
        FlowLossConfig.model_validate(settings),
        lesion_ids=(HEPATIC_TUMOR,),
        seed=0,
        device="cpu",
    )


@pytest.mark.parametrize("crop_shape", [None, (4, 4, 2)])
def test_controlnet_is_shown_what_is_not_hidden(crop_shape: tuple[int, int, int] | None) -> None:
    objective = build_shown_objective(crop_shape=crop_shape)
    batch = objective._draw_batches(0)[0]
    assert batch.surroundings is not None
    assert batch.surroundings.shape == (3, 2, *batch.label_maps.shape[1:])
    known = batch.surroundings[:, 1].bool()
    assert known.any()
    assert not known.all()
    assert not batch.surroundings[:, 0][~known].any()
    assert not known[torch.from_numpy(batch.label_maps == 0)].any()
    assert value(objective) == value(objective)


def test_what_is_shown_counts_as_much_as_wished() -> None:
    little, much = (
        build_shown_objective(surroundings={"hidden_share": 0.0, "known_weight": weight}) for weight in (0.0, 1.0)
    )
    assert value(little) != value(much)
    plain = build_shown_objective(surroundings={"hidden_share": 1.0, "known_weight": 0.0})
    assert plain._draw_batches(0)[0].surroundings is not None
    assert not plain._draw_batches(0)[0].surroundings.any()  # type: ignore[union-attr]


def test_squared_distance_is_that_of_the_plain_error() -> None:
    store = ArrayStore([build_case(0)])
    first, second = (build_objective(store, distance=name) for name in ("l1", "l2"))
    batch = first._draw_batches(0)[0]
    noise, timesteps = first._draw_noise(0, batch.clean)
    with torch.no_grad():
        plain, squared = (each.compare(batch, noise, timesteps) for each in (first, second))
    assert float(plain[1]["l1"]) == pytest.approx(float(squared[1]["l1"]))
    assert float(squared[0]) > float(plain[0]) ** 2


def test_a_step_reads_label_maps_and_no_image() -> None:
    store = build_store(3)
    value(build_objective(store))
    assert {name for name, _ in store.reads} == {"label_map"}


def test_batches_of_an_accumulated_step_are_drawn_once() -> None:
    store = build_store(3)
    objective = build_objective(store, lesion_share=0.0)
    for index in range(3):
        objective.loss(4, Share(index, 3))
    assert len(store.reads) == 3
    objective.loss(5, Share(0, 3))
    assert len(store.reads) == 6, "all of the next step"


def test_objective_on_other_cases_draws_from_them() -> None:
    store, other = build_store(2), build_store(3)
    objective = build_objective(store)
    first = value(objective)
    held_out = objective.on(other, build_latents(3))
    value(held_out)
    assert len(other.reads) > 0
    assert value(objective) == first
