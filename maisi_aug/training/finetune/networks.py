"""The networks of a fine-tuning run: the base's, of which the ControlNet learns, all of it or a part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.networks.building import Networks
from maisi_aug.networks.weights import load_networks
from maisi_aug.system.seeds import derive_seed
from maisi_aug.training.finetune.low_rank import add_low_rank, merge_low_rank
from maisi_aug.training.finetune.settings import FinetuneConfig
from maisi_aug.training.images.label_means import freeze_lookup

PARTIAL_BLOCKS = ("controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block")
"""What ``partial`` trains: the layers that read the label map, and those that hand over to the U-Net."""


@dataclass(frozen=True)
class FinetuneNetworks:
    """Networks on one device, with the ControlNet set up to learn.

    Attributes:
        all: The base's networks with plain layers; the ControlNet among them is the one that learns.
        num_trained: Parameters that learn.
        num_parameters: Parameters of the ControlNet.
    """

    all: Networks
    num_trained: int
    num_parameters: int

    def merge(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A ControlNet's weights as a run keeps them, with whatever was added to train them merged.

        The ControlNet holds these weights afterwards, and has no added parts any more.
        """
        self.all.controlnet.load_state_dict(state)
        merge_low_rank(self.all.controlnet)
        return {key: value.detach().cpu() for key, value in self.all.controlnet.state_dict().items()}


def load_trainable(base: Bundle, device: str) -> Networks:
    """The base's networks, none of which learns yet.

    Raises:
        BundleError: For altered or missing files.
    """
    networks = load_networks(base, device=device)
    if device == "cpu":
        # It trades time for memory, which small grids have.
        networks.controlnet.use_checkpointing = False  # type: ignore[assignment]
    return networks


def set_up(networks: Networks, config: FinetuneConfig, *, is_looked_up: bool) -> FinetuneNetworks:
    """Decide which parameters of the ControlNet learn, in place.

    Args:
        networks: What ``load_trainable`` returned.
        config: Says which.
        is_looked_up: Whether the intensities of labels are looked up in frozen layers.

    Raises:
        TrainingError: When nothing would learn.
    """
    controlnet: Any = networks.controlnet
    num_parameters = sum(parameter.numel() for parameter in controlnet.parameters())
    networks.diffusion_unet.requires_grad_(False)
    controlnet.requires_grad_(config.tune != "partial")
    if config.tune == "partial":
        for block in PARTIAL_BLOCKS:
            getattr(controlnet, block).requires_grad_(True)
    if is_looked_up:
        freeze_lookup(controlnet)
    if config.tune == "low-rank":
        add_low_rank(controlnet, config.rank, seed=derive_seed(config.seed, "low rank"))
    num_trained = sum(parameter.numel() for parameter in controlnet.parameters() if parameter.requires_grad)
    return FinetuneNetworks(networks, num_trained, num_parameters)
