"""An independent judge of images: a small network that has learnt to name tissues on phantoms alone.

It has never seen an image of a bundle. What it scores on synthetic images, against what it scores on held-out phantoms,
tells whether a bundle draws what its label maps say. ``train_segmenter`` trains it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from maisi_aug.bundle_spec.bundle import SlotSpec, bind_slots
from maisi_aug.bundle_spec.grid_limits import GridSpec
from maisi_aug.errors import TrainingError
from maisi_aug.evaluation.benchmark.patch_networks import build_unet, score_windows
from maisi_aug.evaluation.studies.tissues import Tissue, list_tissues
from maisi_aug.networks.weights import StateDict
from maisi_aug.system.models import StrictModel
from maisi_aug.system.whole_files import sha256_of, write_whole
from maisi_aug.training.loop.settings import LoopConfig

WEIGHTS_NAME: Final = "segmenter.safetensors"
WINDOWS_HU: Final = ((-1000.0, 1000.0), (-160.0, 240.0))


class SegmenterConfig(StrictModel):
    """Configuration of the independent segmenter, which determines its weights.

    Attributes:
        grid: Grid of the training phantoms or cases, with the spacing of the images to judge.
        slots: Name -> placeholder slot of further tumours.
        seed: Seed of the training phantoms, the initial weights and the batches.
        num_phantoms: Number of training phantoms, if ``dataset`` is None.
        labels: Label name -> id in prepared cases, numbered from class 1; empty for the tissues of phantoms.
        dataset: Identity of the prepared training cases, and the held-out fold; None for phantoms.
        widths: Channels of each level of the U-Net.
        patch_shape: Voxels of a training patch and of a window in use; multiples of 2 per level.
        batch_count: Number of patches per step.
        lesion_share: Fraction of patches centred on a lesion, or on one of ``labels``, if the case has one.
        lesion_weight: Weight of lesions in the loss; other tissues and the background have weight 1.
        loop: Settings of the training loop.
    """

    grid: GridSpec
    slots: dict[str, SlotSpec]
    seed: int = Field(default=1, ge=0)
    num_phantoms: int = Field(default=200, gt=0)
    labels: dict[str, int] = Field(default={})
    dataset: dict[str, str] | None = None
    widths: tuple[int, ...] = (16, 32, 64, 128)
    patch_shape: tuple[int, int, int] = (64, 64, 64)
    batch_count: int = Field(default=2, gt=0)
    lesion_share: float = Field(default=0.67, ge=0, le=1)
    lesion_weight: float = Field(default=4.0, gt=0)
    loop: LoopConfig = LoopConfig(num_steps=2600, learning_rate=2e-3, num_warmup_steps=50, average_decay=0.99)

    @property
    def tissues(self) -> tuple[Tissue, ...]:
        """Tissues that the segmenter distinguishes, in the order of its classes."""
        if self.labels:
            return tuple(Tissue(name, (label_id,)) for name, label_id in self.labels.items())
        return list_tissues(bind_slots(self.slots))

    @property
    def focus(self) -> tuple[Tissue, ...]:
        """Tissues on which patches are centred and that have a larger weight: lesions, or all of ``labels``."""
        return self.tissues if self.labels else self.tissues[-1:]

    def to_text(self) -> str:
        """Return the configuration as JSON; fields for prepared cases are omitted for phantoms, for older folders."""
        hidden = set() if self.dataset is not None else {"labels", "dataset"}
        return self.model_dump_json(indent=1, exclude=hidden) + "\n"


class _Training(StrictModel):
    config: SegmenterConfig
    num_steps: int


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A trained independent segmenter on a device.

    Attributes:
        network: Network in evaluation mode.
        config: Configuration that it was trained with.
        num_steps: Number of training steps.
        device: Device that the network is on.
        fingerprint: SHA-256 of its weight file.
    """

    network: nn.Module
    config: SegmenterConfig
    num_steps: int
    device: str
    fingerprint: str

    @property
    def tissues(self) -> tuple[Tissue, ...]:
        """Tissues of the segmenter; tissue ``n`` is class ``n + 1`` in the result of :meth:`segment`."""
        return self.config.tissues

    @torch.inference_mode()
    def segment(self, image_hu: NDArray[np.int16]) -> NDArray[np.uint8]:
        """Segment a CT into tissues.

        Args:
            image_hu: ``(I, J, K)`` HU at the spacing of the training phantoms.

        Returns:
            ``(I, J, K)`` uint8 classes; 0 for none of the tissues.
        """
        channels = to_channels(torch.from_numpy(image_hu)[None].to(self.device))
        scores = score_windows(self.network, channels, self.config.patch_shape, fill=-1.0, device=self.device)
        classes: NDArray[np.uint8] = scores[0].argmax(dim=0).to(torch.uint8).cpu().numpy()
        return classes


def to_channels(image_hu: Tensor) -> Tensor:
    """Return the full range of HU and the soft-tissue window as channels, each clipped and mapped to [-1, 1].

    Args:
        image_hu: ``(B, I, J, K)`` images in HU.

    Returns:
        ``(B, 2, I, J, K)`` float32, in channels-last memory format.
    """
    image_hu = image_hu.float()
    channels = [(image_hu.clamp(low, high) - low) / (high - low) * 2 - 1 for low, high in WINDOWS_HU]
    return torch.stack(channels, dim=1).contiguous(memory_format=torch.channels_last_3d)


def build_network(config: SegmenterConfig) -> nn.Module:
    """Build the segmenter's U-Net with freshly initialised weights."""
    return build_unet(config.widths, num_channels=len(WINDOWS_HU), num_classes=len(config.tissues) + 1)


def save_segmenter(folder: Path, state: StateDict, config: SegmenterConfig, *, num_steps: int) -> None:
    """Write the weights of a segmenter with its configuration to a folder, whole or not at all.

    Raises:
        VolumeError: The file cannot be written.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    # One entry only: safetensors writes several in random order, and the file's hash would change with it.
    metadata = {"training": _Training(config=config, num_steps=num_steps).model_dump_json()}
    write_whole(folder / WEIGHTS_NAME, safetensors.torch.save(tensors, metadata))


def load_segmenter(folder: Path, *, device: str = "cpu") -> Segmenter:
    """Load a segmenter that :func:`save_segmenter` wrote.

    Raises:
        TrainingError: There is no segmenter in the folder, or its file cannot be read.
    """
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise TrainingError(
            f"Segmenter {folder}: {WEIGHTS_NAME} is missing. Train it with 'python -m "
            "maisi_aug.evaluation.studies.train_segmenter --out FOLDER'."
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
        training = _Training.model_validate_json(metadata.get("training", ""))
        network = build_network(training.config)
        network.load_state_dict(state)
    except (SafetensorError, ValidationError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".:")
        raise TrainingError(f"Segmenter {path}: not a trained segmenter: {reason}. Train it again.") from error
    return Segmenter(network.to(device).eval(), training.config, training.num_steps, device, sha256_of(path))
