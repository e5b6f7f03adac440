"""Training cases on disk: phantoms built once, and their latents encoded once."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Generic, Protocol, TypeVar, cast

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray
from torch import Tensor, nn

from maisi_aug.errors import TrainingError
from maisi_aug.networks.conditioning import hu_to_unit
from maisi_aug.system.seeds import derive_seed
from maisi_aug.system.whole_files import write_whole
from maisi_aug.system.workers import count_cores
from maisi_aug.training.loop.processes import WHOLE, Share
from maisi_aug.volumes.grid import Grid, Shape, Spacing

Batch = TypeVar("Batch")
Draw = Callable[[int, Share], Batch]


class Ahead(Generic[Batch]):
    """Draws the same share of the next step in a thread; what a step gets does not depend on it.

    Args:
        is_on: False draws when asked, as on a CPU, whose cores are busy with the networks.
    """

    def __init__(self, *, is_on: bool) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches") if is_on else None
        self._pending: dict[tuple[Draw[Batch], int, Share], Future[Batch]] = {}

    def __call__(self, draw: Draw[Batch], step: int, share: Share = WHOLE) -> Batch:
        """A share of a step's batch, which ``draw`` gives from its arguments alone."""
        if self._pool is None:
            return draw(step, share)
        pending = self._pending.pop((draw, step, share), None)
        self._pending[draw, step + 1, share] = self._pool.submit(draw, step + 1, share)
        return pending.result() if pending is not None else draw(step, share)


ReportProgress = Callable[[int, int], None]
ReportPhase = Callable[[str], ReportProgress]

# Larger images are encoded in overlapping windows, as MAISI does: NV-Generate-CTMR, diff_model_create_training_data.py.
ENCODE_WINDOW: Shape = (320, 320, 160)
ENCODE_OVERLAP = 0.4

REGIONS = ("chest", "abdomen", "pelvis", "any")


@dataclass(frozen=True, eq=False)
class TrainingCase:
    """One image with its label map.

    Attributes:
        image_hu: ``(I, J, K)`` int16.
        label_map: ``(I, J, K)`` uint8 vocabulary ids.
        spacing_mm: Along I, J, K.
        modality: A key of ``conditioning.MODALITY_CODES``.
    """

    image_hu: NDArray[np.int16]
    label_map: NDArray[np.uint8]
    spacing_mm: Spacing
    modality: str


class CaseStore(Protocol):
    """Training cases by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> TrainingCase: ...


class PhantomStore:
    """Phantoms of one seed in a folder, built in parallel when they are missing.

    Phantom ``i`` depends on the seed, the grid and ``i`` alone: a store may grow between two runs.
    """

    def __init__(self, folder: Path, *, seed: int, shape: Shape, spacing_mm: Spacing) -> None:
        self.seed = seed
        self.shape = shape
        self.spacing_mm = spacing_mm
        key = hashlib.sha256(json.dumps([seed, shape, spacing_mm]).encode()).hexdigest()[:12]
        self.folder = folder / f"phantoms-{key}"
        self._cases: dict[int, TrainingCase] = {}
        self._num_cases = 0

    def ensure(self, num_cases: int, *, report: ReportProgress | None = None, num_workers: int | None = None) -> None:
        """Build what is missing of the first ``num_cases`` phantoms."""
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [index for index in range(num_cases) if not self.path_of(index).exists()]
        tasks = [(self.path_of(index), self.seed, index, self.shape, self.spacing_mm) for index in missing]
        workers = min(num_workers or count_cores(), len(tasks))
        with ExitStack() as stack:
            finished: Iterator[None] = map(_build_and_save, tasks)
            if workers > 1:
                # Spawned, not forked: a forked child of a process that has used OpenMP can hang.
                pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(workers))
                finished = pool.imap_unordered(_build_and_save, tasks)
            for done, _ in enumerate(finished, start=1):
                if report is not None:
                    report(num_cases - len(tasks) + done, num_cases)
        self._num_cases = num_cases

    def path_of(self, index: int) -> Path:
        """Where phantom ``index`` lies."""
        return self.folder / f"{index:05d}.npz"

    def __len__(self) -> int:
        return self._num_cases

    def __getitem__(self, index: int) -> TrainingCase:
        if index not in self._cases:
            with np.load(self.path_of(index), allow_pickle=False) as stored:
                self._cases[index] = TrainingCase(
                    stored["image_hu"], stored["label_map"], self.spacing_mm, str(stored["modality"])
                )
        return self._cases[index]


def _build_and_save(task: tuple[Path, int, int, Shape, Spacing]) -> None:
    from maisi_aug.phantom import build_phantom

    path, seed, index, shape, spacing_mm = task
    phantom = build_phantom(
        seed=derive_seed("training phantom", seed, index),
        grid=Grid.from_spacing(shape, spacing_mm),
        region=REGIONS[index % len(REGIONS)],  # type: ignore[arg-type]
    )
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        image_hu=phantom.image_hu,
        label_map=phantom.label_map,
        modality=phantom.modality,
    )
    write_whole(path, buffer.getvalue())


@dataclass(frozen=True, eq=False)
class LatentSet:
    """The posterior means of all cases of a store.

    Attributes:
        latents: One ``(C, I/f, J/f, K/f)`` float16 tensor a case, not yet scaled.
        scale_factor: Diffusion works on ``latent * scale_factor``.
    """

    latents: Sequence[Tensor]
    scale_factor: float


def encode_store(
    store: CaseStore,
    autoencoder: nn.Module,
    folder: Path,
    *,
    weights_hash: str,
    deviation: float,
    device: str,
    report: ReportProgress | None = None,
) -> LatentSet:
    """Encode every case once and keep the result on disk by the hash of the encoder's weights.

    The posterior mean is kept, never a draw around it: what a draw adds is noise that diffusion would have to learn.
    The scale factor brings the standard deviation over all latents to ``deviation``.

    Raises:
        TrainingError: For an empty store.
    """
    if len(store) == 0:
        raise TrainingError("Latents: expected at least one training case, found none. Build the phantoms first.")
    folder = folder / f"latents-{weights_hash[:12]}"
    paths = [folder / f"{index:05d}.npy" for index in range(len(store))]
    latents = load_or_encode(store, autoencoder, paths, device=device, report=report)
    return LatentSet(latents, measure_scale_factor(latents, deviation))


@torch.no_grad()
def load_or_encode(
    store: CaseStore,
    autoencoder: nn.Module,
    paths: Sequence[Path],
    *,
    device: str,
    report: ReportProgress | None = None,
) -> list[Tensor]:
    """The posterior mean of every case, from its file where that exists, else encoded and written there.

    Args:
        store: The cases; a case whose file exists is not read.
        autoencoder: Encodes images; in evaluation mode on ``device``.
        paths: One ``.npy`` file a case.
        device: Where to encode.
        report: Called with (cases done, cases in all), after those that were encoded now and after the last.
    """
    latents: list[Tensor] = []
    for index, path in enumerate(paths):
        is_there = path.exists()
        if is_there:
            latent = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            latent = _encode(store[index], autoencoder, device)
            buffer = io.BytesIO()
            np.save(buffer, latent.numpy())
            write_whole(path, buffer.getvalue())
        latents.append(latent)
        if report is not None and not (is_there and index + 1 < len(paths)):
            report(index + 1, len(paths))
    return latents


def measure_scale_factor(latents: Sequence[Tensor], deviation: float) -> float:
    """The factor that brings the standard deviation over all latents to ``deviation``."""
    power = torch.stack([latent.float().var() + latent.float().mean() ** 2 for latent in latents]).mean()
    centre = torch.stack([latent.float().mean() for latent in latents]).mean()
    return deviation / float((power - centre**2).sqrt())


def _encode(case: TrainingCase, autoencoder: nn.Module, device: str) -> Tensor:
    def encode(image: Tensor) -> Tensor:
        mean: Tensor = autoencoder.encode(image)[0]  # type: ignore[operator]
        return mean

    image = hu_to_unit(torch.from_numpy(case.image_hu)).to(device)[None, None]
    if image.numel() <= prod(ENCODE_WINDOW):
        return encode(image)[0].half().cpu()
    window = [min(side, wanted) for side, wanted in zip(case.image_hu.shape, ENCODE_WINDOW, strict=True)]
    mean = sliding_window_inference(image, window, 1, encode, overlap=ENCODE_OVERLAP, mode="gaussian")
    return cast(Tensor, mean)[0].half().cpu()
