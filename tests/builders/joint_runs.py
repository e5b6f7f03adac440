"""Short runs of the autoencoder and of the ControlNet, alone or together with other processes.

    python -m tests.builders.joint_runs FOLDER

joins the processes that the environment names, as ``torchrun`` sets it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from maisi_aug.networks.building import build_network, build_scheduler, use_plain_layers
from maisi_aug.training.cases.data import LatentSet
from maisi_aug.training.images.flow import FlowObjective
from maisi_aug.training.images.vae import VaeObjective
from maisi_aug.training.loop.processes import ALONE, Processes
from maisi_aug.training.loop.run import Objective, TrainingRun
from maisi_aug.training.loop.settings import FlowLossConfig, LoopConfig, VaeLossConfig
from tests.builders.tiny_bundle import build_header
from tests.builders.tiny_training import HEPATIC_TUMOR, build_store

RUNS = ("vae", "controlnet")
LOOP = LoopConfig(num_steps=4, num_warmup_steps=0, learning_rate=1e-4, mixed_precision=False, average_decay=0.0)


def build_vae(batch_count: int, processes: Processes) -> Objective:
    """The autoencoder with an adversary."""
    autoencoder = build_network(build_header()["networks"]["autoencoder"])
    use_plain_layers(autoencoder)
    config = VaeLossConfig(
        patch_shape=(24, 24, 24), batch_count=batch_count, adversarial_weight=0.1, rotation_share=0.5
    )
    return VaeObjective(
        autoencoder, build_store(3), config, lesion_ids=(HEPATIC_TUMOR,), seed=0, device="cpu", processes=processes
    )


def build_controlnet(batch_count: int, processes: Processes) -> Objective:
    """ControlNet and U-Net with losses whose weights differ from case to case."""
    definitions = build_header()["networks"]
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(4, 8, 6, 6, generator=generator).half() for _ in range(3)]
    config = FlowLossConfig(
        batch_count=batch_count,
        lesion_weight=20.0,
        outside_weight=0.2,
        label_mean_weight=1.0,
        crop_shape=(4, 4, 4),
        train_unet=True,
    )
    return FlowObjective(
        build_network(definitions["diffusion_unet"]),
        build_network(definitions["controlnet"]),
        build_scheduler(build_header()["scheduler"]),
        build_store(3),
        LatentSet(latents, 1.0),
        config,
        lesion_ids=(HEPATIC_TUMOR,),
        seed=0,
        device="cpu",
        processes=processes,
    )


def run_alone(folder: Path, *, batch_count: int, processes: Processes = ALONE) -> None:
    """Both runs, each in a folder of its own, with the weights beside it."""
    for name, build in zip(RUNS, (build_vae, build_controlnet), strict=True):
        # Another start in each process: the main one's has to be taken over.
        torch.manual_seed(processes.rank)
        objective = build(batch_count, processes)
        result = TrainingRun(objective, LOOP, folder / name, device="cpu", processes=processes).train()
        weights = {
            f"{network}.{key}": value
            for network, state in result.averaged_weights.items()
            for key, value in state.items()
        }
        if processes.is_main:
            torch.save(weights, folder / f"{name}.pt")


if __name__ == "__main__":
    joined = Processes.connect("cpu")
    run_alone(Path(sys.argv[1]), batch_count=1, processes=joined)
    joined.leave()
