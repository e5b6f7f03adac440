"""A training in stages in a folder: one folder a stage, with the stage's run and the weights that it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, Unpack

import torch
from torch import Tensor, nn

from maisi_aug.errors import TrainingError
from maisi_aug.networks.building import build_network, use_plain_layers
from maisi_aug.networks.weights import StateDict, load_torch_file
from maisi_aug.system.progress import ReportPhase
from maisi_aug.system.seeds import derive_seed
from maisi_aug.system.whole_files import open_whole
from maisi_aug.training.loop.processes import ALONE, Processes
from maisi_aug.training.loop.run import Objective, TrainingRun, Validate
from maisi_aug.training.loop.settings import LoopConfig


class StageOptions(TypedDict):
    """Options of a training in stages: device, processes and output.

    Attributes:
        device: Device of this process.
        report_phase: Function that starts the progress report of a phase, given its name.
        processes: Processes that train together; only the main one writes.
        with_tensorboard: Whether to log for TensorBoard, too.
    """

    device: str
    report_phase: ReportPhase
    processes: NotRequired[Processes]
    with_tensorboard: NotRequired[bool]


class StageFolder:
    """Base class of folders in which networks are trained in several stages.

    Args:
        folder: Folder of the training.
        how: Options of the run, see :class:`StageOptions`.
    """

    def __init__(self, folder: Path, **how: Unpack[StageOptions]) -> None:
        self.folder = folder
        self.device = how["device"]
        self.report_phase = how["report_phase"]
        self.processes = how.get("processes", ALONE)
        self.with_tensorboard = how.get("with_tensorboard", False)

    def _open_run(self, stage: str, objective: Objective, loop: LoopConfig, validate: Validate | None) -> TrainingRun:
        return TrainingRun(
            objective,
            loop,
            self.folder / stage,
            device=self.device,
            processes=self.processes,
            validate=validate,
            with_tensorboard=self.with_tensorboard,
        )

    def _build_plain(self, role: str, definition: Mapping[str, Any], seed: int) -> tuple[nn.Module, dict[str, str]]:
        """A network with plain layers, and its tensors' names in MAISI's layout by their plain names."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("initial weights", seed, role))
            network = build_network(definition, device=self.device)
        original_names = list(network.state_dict())
        use_plain_layers(network)
        network.to(memory_format=torch.channels_last_3d)
        return network, dict(zip(network.state_dict(), original_names, strict=True))

    def _weights_path(self, stage: str, role: str) -> Path:
        return self.folder / stage / f"{role}.pt"

    def _require_weights(self, stage: str, role: str) -> Path:
        """The file of a network's weights.

        Raises:
            TrainingError: When the stage has not been trained.
        """
        path = self._weights_path(stage, role)
        if not path.exists():
            raise TrainingError(
                f"Training folder {self.folder}: the weights of stage {stage} are missing ({path.name}). Run "
                f"'maisi-aug train {stage}' first."
            )
        return path

    def _save_weights(self, stage: str, role: str, state: StateDict) -> None:
        with open_whole(self._weights_path(stage, role)) as file:
            torch.save({key: value.cpu() for key, value in state.items()}, file)

    def _load_weights(self, stage: str, role: str) -> dict[str, Tensor]:
        path = self._require_weights(stage, role)
        state: dict[str, Tensor] = load_torch_file(path, device=self.device, mmap=False)
        return state
