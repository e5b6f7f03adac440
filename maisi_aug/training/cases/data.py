"""Training cases on disk: phantoms built once, and their latents encoded once."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from maisi_aug.errors import TrainingError
from maisi_aug.networks.conditioning import hu_to_unit
from maisi_aug.networks.encoder import Encoder
from maisi_aug.phantom.phases import with_phase
from maisi_aug.system.engine.cores import count_cores
from maisi_aug.system.progress import Report, report_nothing
from maisi_aug.system.seeds import derive_seed, numpy_generator
from maisi_aug.system.whole_files import open_whole
from maisi_aug.training.loop.processes import WHOLE, Share
from maisi_aug.vocabulary.regions import Regions
from maisi_aug.volumes.components import Box
from maisi_aug.volumes.grid import Grid, Shape, Spacing

Batch = TypeVar("Batch")
Draw = Callable[[int, Share], Batch]


class Ahead(Generic[Batch]):
    """Draws this process's share of the next training step in a thread, with the same result as without it.

    Args:
        is_on: Whether to draw ahead; False draws on request, as on a CPU, whose cores are busy with the networks.
    """

    def __init__(self, *, is_on: bool) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches") if is_on else None
        self._pending: dict[tuple[Draw[Batch], int, Share], Future[Batch]] = {}

    def __call__(self, draw: Draw[Batch], step: int, share: Share = WHOLE) -> Batch:
        """Return a share of a step's batch, which ``draw`` computes from its arguments alone.

        Args:
            draw: Function from step and share to the batch.
            step: Number of the step, from 0.
            share: Part of the batch that this process takes.
        """
        if self._pool is None:
            return draw(step, share)
        pending = self._pending.pop((draw, step, share), None)
        self._pending[draw, step + 1, share] = self._pool.submit(draw, step + 1, share)
        return pending.result() if pending is not None else draw(step, share)


CACHE_BYTES = 2 * 2**30

REGIONS = ("chest", "abdomen", "pelvis", "any")


@dataclass(frozen=True, slots=True)
class CaseFacts:
    """Facts about a case that are known without its voxels.

    Attributes:
        shape: Voxels along I, J, K.
        spacing_mm: Voxel sides along I, J, K in mm.
        modality: A key of ``modalities.MODALITY_CODES``.
        regions: Uppermost and lowest body region; None to derive them from the label map.
    """

    shape: Shape
    spacing_mm: Spacing
    modality: str
    regions: Regions | None = None


class CaseStore(Protocol):
    """Protocol of training cases, accessed by index and read only on request."""

    def __len__(self) -> int: ...

    def facts(self, index: int) -> CaseFacts:
        """Return shape, spacing, modality and regions of a case, without reading its voxels."""

    def label_map(self, index: int, box: Box = ()) -> NDArray[np.uint8]:
        """Return ``(I, J, K)`` vocabulary ids of a case or of a box of it; read-only.

        Args:
            index: Number of the case, from 0.
            box: Slices along I, J, K; the whole case when empty.
        """

    def condition_map(self, index: int, box: Box = ()) -> NDArray[np.uint8]:
        """Return ``(I, J, K)`` ids that the networks are shown of a case or of a box of it; read-only.

        Args:
            index: Number of the case, from 0.
            box: Slices along I, J, K; the whole case when empty.
        """

    def image_hu(self, index: int, box: Box = ()) -> NDArray[np.int16]:
        """Return ``(I, J, K)`` HU of a case or of a box of it; read-only.

        Args:
            index: Number of the case, from 0.
            box: Slices along I, J, K; the whole case when empty.
        """

    def noise(self, index: int) -> NDArray[np.float32] | None:
        """Return ``(I, J, K)`` white noise of deviation 1 that the noise of a case was made from; None if unknown.

        Args:
            index: Number of the case, from 0.
        """


class Memory:
    """Cache of the most recently used arrays up to a size limit; stores that share files share one cache.

    Args:
        num_bytes: Size limit in bytes; the array read last is kept in any case.
    """

    def __init__(self, num_bytes: int = CACHE_BYTES) -> None:
        self._num_bytes = num_bytes
        self._num_held = 0
        self._arrays: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()
        self._lock = Lock()  # batches are drawn ahead in a thread of their own

    def get(self, key: Hashable, read: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return the array of a key from the cache, or read it with ``read`` and keep it.

        Args:
            key: Key of the array.
            read: Function that reads it.
        """
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
        array = read()
        with self._lock:
            if key not in self._arrays:
                self._arrays[key] = array
                self._num_held += array.nbytes
            while self._num_held > self._num_bytes and len(self._arrays) > 1:
                _, dropped = self._arrays.popitem(last=False)
                self._num_held -= dropped.nbytes
        return array


class PhantomStore:
    """Training phantoms of one seed in a folder, built in parallel if they are missing.

    Phantom ``i`` depends only on the seed, the grid and ``i``, so that a store may grow between two runs.

    Args:
        folder: Folder that gets a sub-folder with the phantoms.
        seed: Seed of all phantoms.
        shape: Voxels along I, J, K.
        spacing_mm: Voxel sides along I, J, K in mm.
        zoom_range: Smallest and largest factor on the spacing of a phantom, drawn for each; None for 1.
        completes: Whether networks are shown the detail map with its phase (``condition_map``) instead of the labels.
        memory: Cache of arrays.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        shape: Shape,
        spacing_mm: Spacing,
        zoom_range: tuple[float, float] | None = None,
        completes: bool = False,
        memory: Memory | None = None,
    ) -> None:
        self.seed = seed
        self.shape = shape
        self.spacing_mm = spacing_mm
        self.zoom_range = zoom_range
        self.completes = completes
        facts = [seed, shape, spacing_mm, *([zoom_range] if zoom_range else []), *(["detail"] if completes else [])]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
        self.folder = folder / f"phantoms-{key}"
        self._memory = memory or Memory()
        self._num_cases = 0

    def ensure(self, num_cases: int, *, report: Report = report_nothing, num_workers: int | None = None) -> None:
        """Build those of the first ``num_cases`` phantoms that are missing.

        Args:
            num_cases: Number of phantoms that there must be.
            report: Progress callback, called with (phantoms built, phantoms to build).
            num_workers: Number of processes; None for one per core.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [index for index in range(num_cases) if not self.path_of(index).exists()]
        tasks = [
            (self.path_of(index), self.seed, index, self.shape, self.spacing_of(index), self.completes)
            for index in missing
        ]
        workers = min(num_workers or count_cores(), len(tasks))
        with ExitStack() as stack:
            finished: Iterator[None] = map(_build_and_save, tasks)
            if workers > 1:
                # Spawned, not forked: a forked child of a process that has used OpenMP can hang.
                pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(workers))
                finished = pool.imap_unordered(_build_and_save, tasks)
            for done, _ in enumerate(finished, start=1):
                report(num_cases - len(tasks) + done, num_cases)
        self._num_cases = num_cases

    def path_of(self, index: int) -> Path:
        """Return the path of the file of phantom ``index``."""
        return self.folder / f"{index:05d}.npz"

    def spacing_of(self, index: int) -> Spacing:
        """Return the voxel sides along I, J, K in mm of phantom ``index``."""
        if self.zoom_range is None:
            return self.spacing_mm
        low, high = self.zoom_range
        zoom = low + (high - low) * float(numpy_generator(derive_seed("zoom", self.seed, index), "zoom").random())
        i, j, k = (round(step * zoom, 2) for step in self.spacing_mm)
        return i, j, k

    def __len__(self) -> int:
        return self._num_cases

    def facts(self, index: int) -> CaseFacts:
        """Return the grid and the modality of a phantom."""
        return CaseFacts(self.shape, self.spacing_of(index), str(self._read(index, "modality")))

    def label_map(self, index: int, box: Box = ()) -> NDArray[np.uint8]:
        """Return ``(I, J, K)`` uint8 vocabulary ids of a phantom, or of a box of it.

        Args:
            index: Number of the phantom, from 0.
            box: Slices along I, J, K; the whole phantom when empty.
        """
        return self._read(index, "label_map")[box]

    def condition_map(self, index: int, box: Box = ()) -> NDArray[np.uint8]:
        """Return ``(I, J, K)`` uint8 ids that the networks are shown of a phantom, or of a box of it.

        Args:
            index: Number of the phantom, from 0.
            box: Slices along I, J, K; the whole phantom when empty.
        """
        return self._read(index, "condition_map" if self.completes else "label_map")[box]

    def noise(self, index: int) -> NDArray[np.float32]:
        """Return ``(I, J, K)`` float32 white noise of deviation 1 that the phantom's noise was made from.

        Args:
            index: Number of the phantom, from 0.
        """
        # The first draw of the renderer's generator of noise.
        return numpy_generator(_phantom_seed(self.seed, index), "noise").standard_normal(self.shape, dtype=np.float32)

    def image_hu(self, index: int, box: Box = ()) -> NDArray[np.int16]:
        """Return ``(I, J, K)`` int16 HU of a phantom, or of a box of it.

        Args:
            index: Number of the phantom, from 0.
            box: Slices along I, J, K; the whole phantom when empty.
        """
        return self._read(index, "image_hu")[box]

    def _read(self, index: int, name: str) -> NDArray[Any]:
        """Read one array of a phantom's archive, without the others."""
        return self._memory.get((self.folder, index, name), partial(read_array, self.path_of(index), name))


def read_array(path: Path, name: str) -> NDArray[Any]:
    """Return one array of an ``.npz`` archive, by its name.

    Args:
        path: Archive, read without pickles.
        name: Name of the array in it.
    """
    with np.load(path, allow_pickle=False) as stored:
        array: NDArray[Any] = stored[name]
    return array


def _phantom_seed(seed: int, index: int) -> int:
    return derive_seed("training phantom", seed, index)


def _build_and_save(task: tuple[Path, int, int, Shape, Spacing, bool]) -> None:
    from maisi_aug.phantom import build_phantom

    path, seed, index, shape, spacing_mm, completes = task
    grid = Grid.from_spacing(shape, spacing_mm)
    region = REGIONS[index % len(REGIONS)]
    phantom = build_phantom(seed=_phantom_seed(seed, index), grid=grid, region=region)  # type: ignore[arg-type]
    arrays: dict[str, Any] = {
        "image_hu": phantom.image_hu,
        "label_map": phantom.label_map,
        "modality": np.asarray(phantom.modality),
    }
    if completes:
        arrays["condition_map"] = with_phase(phantom.detail, phantom.phase)
    with open_whole(path) as file:
        np.savez_compressed(file, **arrays)


@dataclass(frozen=True, eq=False)
class LatentSet:
    """Latents (posterior means) of all cases of a store, with the factor that scales them.

    Attributes:
        latents: One ``(C, I/f, J/f, K/f)`` float16 tensor per case, not yet scaled.
        scale_factor: Factor by which latents are multiplied for diffusion.
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
    report: Report = report_nothing,
) -> LatentSet:
    """Encode every case of a store once; latents are kept on disk under the hash of the encoder's weights.

    The posterior mean is kept instead of a sample, because sampling adds noise that diffusion would have to learn. The
    scale factor brings the standard deviation over all latents to ``deviation``.

    Args:
        store: Training cases.
        autoencoder: Autoencoder in evaluation mode, on ``device``.
        folder: Folder of the kept latents, which go to ``latents-HASH`` in it, a ``.npy`` file per case.
        weights_hash: SHA-256 of the autoencoder's weights.
        deviation: Standard deviation of scaled latents.
        device: Name of the torch device on which images are encoded.
        report: Progress callback, called with (cases done, cases in all).

    Returns:
        Latents in the order of the cases, not yet scaled, and their scale factor.

    Raises:
        TrainingError: The store is empty.
    """
    if len(store) == 0:
        raise TrainingError("Latents: there is no training case. Build the phantoms first.")
    folder = folder / f"latents-{weights_hash[:12]}"
    paths = [folder / f"{index:05d}.npy" for index in range(len(store))]
    encoder = Encoder(autoencoder)
    latents = load_or_encode(paths, lambda index: encode_image(store.image_hu(index), encoder, device), report=report)
    return LatentSet(latents, measure_scale_factor(latents, deviation))


@torch.no_grad()
def load_or_encode(
    paths: Sequence[Path], encode: Callable[[int], Tensor], *, report: Report = report_nothing
) -> list[Tensor]:
    """Return the latent of every case, read from its file, or encoded and written if the file is missing.

    Args:
        paths: One ``.npy`` file per case.
        encode: Function from the index of a case to its ``(C, i, j, k)`` latent.
        report: Progress callback, called with (cases done, cases in all), after those that were encoded now and after
            the last.

    Returns:
        ``(C, i, j, k)`` float16 tensors on the CPU.
    """
    latents: list[Tensor] = []
    for index, path in enumerate(paths):
        is_there = path.exists()
        if is_there:
            latent = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            latent = encode(index).half().cpu()
            with open_whole(path) as file:
                np.save(file, latent.numpy())
        latents.append(latent)
        if not (is_there and index + 1 < len(paths)):
            report(index + 1, len(paths))
    return latents


def measure_scale_factor(latents: Sequence[Tensor], deviation: float) -> float:
    """Return the factor that brings the standard deviation over all latents to a value.

    Args:
        latents: One ``(C, i, j, k)`` latent per case, of any sizes.
        deviation: Standard deviation that scaled latents have.
    """
    power = torch.stack([latent.float().var() + latent.float().mean() ** 2 for latent in latents]).mean()
    centre = torch.stack([latent.float().mean() for latent in latents]).mean()
    return deviation / float((power - centre**2).sqrt())


def encode_image(image_hu: NDArray[np.int16], encoder: Encoder, device: str) -> Tensor:
    """Return the posterior mean ``(C, i, j, k)`` of an ``(I, J, K)`` image, in parts where memory is short.

    Args:
        image_hu: ``(I, J, K)`` image in HU.
        encoder: Encoder of the autoencoder.
        device: Name of the torch device on which it runs.

    Returns:
        ``(C, i, j, k)`` latent on the device, not scaled.
    """
    return encoder.encode(hu_to_unit(torch.from_numpy(image_hu)).to(device)[None, None])[0]
