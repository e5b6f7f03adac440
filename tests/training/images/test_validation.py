from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maisi_aug.networks.building import build_network, build_scheduler
from maisi_aug.training.cases.data import LatentSet
from maisi_aug.training.images.flow import FlowObjective
from maisi_aug.training.images.validation import FlowValidation, VaeValidation
from maisi_aug.training.loop.processes import ALONE, Processes
from maisi_aug.training.loop.settings import FlowLossConfig
from tests.builders.tiny_bundle import build_ddpm_header, build_header
from tests.builders.tiny_training import HEPATIC_TUMOR, build_store
from tests.oracles.rounding import rounding


def build_validation(header: dict[str, Any], *, processes: Processes = ALONE, num_cases: int = 2) -> FlowValidation:
    torch.manual_seed(0)
    networks = header["networks"]
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(4, 8, 6, 6, generator=generator).half() for _ in range(num_cases)]
    objective = FlowObjective(
        build_network(networks["diffusion_unet"]),
        build_network(networks["controlnet"]),
        build_scheduler(header["scheduler"]),
        build_store(num_cases),
        LatentSet(latents, 1.0),
        # Crops and left-out modalities are for training alone.
        FlowLossConfig(crop_shape=(2, 2, 2), modality_dropout=1.0, lesion_weight=10.0),
        lesion_ids=(HEPATIC_TUMOR,),
        seed=0,
        device="cpu",
    )
    return FlowValidation(objective, processes=processes)


def run(validation: FlowValidation) -> dict[str, float]:
    with torch.no_grad():
        return validation()


@pytest.mark.parametrize("header", [build_header(), build_ddpm_header()], ids=["rflow", "ddpm"])
def test_diffusion_loss_is_the_same_every_time(header: dict[str, Any]) -> None:
    validation = build_validation(header)
    first = run(validation)
    torch.manual_seed(5)
    assert run(validation) == first
    assert set(first) == {"loss", "l1", "l1_lesion"}
    assert first["loss"] != first["l1"]


def test_diffusion_loss_tells_better_networks_from_worse() -> None:
    validation = build_validation(build_header())
    before = run(validation)["loss"]
    with torch.no_grad():
        for parameter in validation.objective.unet.parameters():
            parameter.add_(0.3)
    assert run(validation)["loss"] > before


def test_whole_cases_are_told_all_that_is_known() -> None:
    validation = build_validation(build_header())
    batch = validation.objective.cut_batch([(0, (0, 0, 0), (8, 6, 6))])
    assert batch.modalities == ("ct_contrast",)
    assert batch.clean.shape == (1, 4, 8, 6, 6)


class OneOfTwo(Processes):
    """One of two processes, that of the other's rows included in what is gathered."""

    def __init__(self, rank: int, others: list[dict[str, float]]) -> None:
        super().__init__()
        self.rank, self.count, self.others = rank, 2, others

    def gather(self, value: Any) -> list[Any]:
        return [value, self.others] if self.rank == 0 else [self.others, value]


def test_processes_share_the_cases_and_agree_on_the_mean() -> None:
    alone = run(build_validation(build_header(), num_cases=3))
    rows: list[list[dict[str, float]]] = [[], []]
    for rank in range(2):
        validation = build_validation(build_header(), num_cases=3)
        with torch.no_grad():
            rows[rank] = [validation._compare_case(index) for index in range(rank, 3, 2)]
    for rank in range(2):
        shared = build_validation(build_header(), processes=OneOfTwo(rank, rows[1 - rank]), num_cases=3)
        assert run(shared) == pytest.approx(alone, rel=rounding(2))


class Offset(nn.Module):
    """Gives an image back, brighter by a number, and a latent of the same shape."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset
        self.seen: list[tuple[int, ...]] = []

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(tuple(image.shape[2:]))
        return image, torch.zeros_like(image)

    def decode(self, latent: Tensor) -> Tensor:
        return latent + self.offset


def test_reconstruction_is_measured_window_by_window() -> None:
    autoencoder = Offset(0.1)
    figures = VaeValidation(autoencoder, build_store(2), window=(16, 16, 16), device="cpu")()
    assert set(autoencoder.seen) == {(16, 16, 16)}
    assert figures["loss"] == pytest.approx(0.1, rel=1e-4)
    assert figures["mean_error_hu"] == pytest.approx(200.0, rel=1e-4)
    assert figures["psnr_db"] == pytest.approx(10 * np.log10(1 / 0.01), rel=1e-3)
    assert 0 < figures["ssim"] < 1
    perfect = VaeValidation(Offset(0.0), build_store(1), window=(64, 16, 64), device="cpu")()
    assert perfect["ssim"] == pytest.approx(1.0, abs=1e-5)
    assert perfect["loss"] < 1e-6
