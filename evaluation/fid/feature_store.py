"""Features of all volumes of a set: one volume in memory at a time, cached, and spread over processes.

Under ``torchrun`` every process takes each n-th volume; after each round they exchange that round's features, so that
all processes end with the same features in the same order, and a case that fails on one is known to all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maisi_aug.bundle_spec.bundle import pulled_bundles_folder
from maisi_aug.errors import MaisiAugError
from maisi_aug.evaluation.cohort.case_sets import CaseSet, EvaluatedCase, SkippedCase, require_some
from maisi_aug.evaluation.fid.slices import PLANES, PlaneName, SliceProtocol, prepare_volume, take_slices
from maisi_aug.networks.weights import write_safetensors
from maisi_aug.system.content import content_errors, parse_json
from maisi_aug.system.progress import Report
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.volumes.dicom_files import files_of

if TYPE_CHECKING:
    from maisi_aug.evaluation.fid.extractors import Extractor

FORMAT: Final = 2
"""Part of every cache key; raise it when the same volume would give other features."""


class CaseFeatures(NamedTuple):
    """Features of one volume, whose it is, and the grid that it came on."""

    case_id: str
    patient: str
    planes: dict[PlaneName, NDArray[np.float32]]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]


@dataclass
class FeatureSet:
    """Features of a set of cases.

    Attributes:
        cases: Those that could be read, in the order of the set.
        skipped: The others, and what the set names as missing.
        num_cached: How many of the cases were in the cache.
    """

    cases: list[CaseFeatures] = field(default_factory=list)
    skipped: list[SkippedCase] = field(default_factory=list)
    num_cached: int = 0

    def of_plane(self, plane: PlaneName) -> list[NDArray[np.float32]]:
        """Return a plane's features, one ``(N, D)`` array per patient: scans of a patient are not independent."""
        by_patient: dict[str, list[NDArray[np.float32]]] = {}
        for case in self.cases:
            by_patient.setdefault(case.patient or case.case_id, []).append(case.planes[plane])
        return [np.concatenate(parts) for parts in by_patient.values()]


class Processes(NamedTuple):
    """This process among those of ``torchrun``; one alone without it."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def gather(self, item: Any) -> list[Any]:
        """Return the items of all processes, in the order of ranks, to every process."""
        if self.world_size == 1:
            return [item]
        import torch.distributed

        items: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(items, item)
        return items


@contextmanager
def join_processes(device: str) -> Iterator[tuple[Processes, str]]:
    """Join the other processes of ``torchrun``, if there are any, over nccl on CUDA devices and gloo elsewhere.

    Args:
        device: A torch device; ``cuda`` becomes that of the local rank.

    Yields:
        This process, and its device.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(), device
        return
    import torch

    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Processes(torch.distributed.get_rank(), count), device
    finally:
        torch.distributed.destroy_process_group()


def default_cache() -> Path:
    """Return the folder for features: next to downloaded bundles, in ``MAISI_AUG_HOME`` or the user's folder."""
    return pulled_bundles_folder().parent / "features"


def collect_features(
    case_set: CaseSet,
    extractor: Extractor,
    protocol: SliceProtocol,
    *,
    cache: Path | None,
    processes: Processes,
    notify: Report,
) -> FeatureSet:
    """Return features of every case of a set.

    Args:
        case_set: The cases.
        extractor: The network.
        protocol: How volumes become slices.
        cache: Folder of features by content; None keeps none.
        processes: This process among its fellows.
        notify: Told how many cases are done, and how many there are.

    Raises:
        EvaluationError: When not one case can be read.
    """
    found = FeatureSet(skipped=list(case_set.skipped))
    cases = case_set.cases
    for start in range(0, len(cases), processes.world_size):
        notify(start, len(cases))
        place = start + processes.rank
        own = _measure(cases[place], extractor, protocol, cache) if place < len(cases) else None
        for item, is_cached in filter(None, processes.gather(own)):
            (found.skipped if isinstance(item, SkippedCase) else found.cases).append(item)
            found.num_cached += is_cached
    notify(len(cases), len(cases))
    require_some(len(found.cases), found.skipped)
    return found


def _measure(
    case: EvaluatedCase, extractor: Extractor, protocol: SliceProtocol, cache: Path | None
) -> tuple[CaseFeatures | SkippedCase, bool]:
    """Features of a case, or why there are none, and whether they were in the cache."""
    try:
        path = None if cache is None else cache / f"{_key_of(case, extractor, protocol)}.safetensors"
        known = None if path is None else _read(path, case)
        if known is not None:
            return known, True
        volume = case.load_image()
        shape, spacing_mm = volume.grid.shape, volume.grid.spacing_mm
        image_hu = prepare_volume(volume, protocol, subject=case.case_id)
        del volume
        planes = {plane: extractor.extract(take_slices(image_hu, plane, protocol)) for plane in PLANES}
        features = CaseFeatures(case.case_id, case.patient, planes, shape, spacing_mm)
        if path is not None:
            _write(path, features)
        return features, False
    except MaisiAugError as error:
        return SkippedCase(case.case_id, str(error)), False


def _key_of(case: EvaluatedCase, extractor: Extractor, protocol: SliceProtocol) -> str:
    """Hash over the volume's bytes, the protocol and the network: nothing else changes its features."""
    parts = {
        "format": FORMAT,
        "volume": [sha256_of(path) for path in files_of(case.image_path)],
        "protocol": protocol.to_dict(),
        "extractor": [extractor.spec.name, extractor.sha256],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write(path: Path, features: CaseFeatures) -> None:
    from safetensors.numpy import save

    about = {"shape": json.dumps(features.shape), "spacing_mm": json.dumps(features.spacing_mm)}
    planes = {str(plane): found for plane, found in features.planes.items()}
    write_safetensors(path, save(planes, metadata=about))


def _read(path: Path, case: EvaluatedCase) -> CaseFeatures | None:
    """Features from the cache; None when they are not there, or damaged and so to be made again."""
    from safetensors import safe_open

    from maisi_aug.networks.weights import require_header

    if not path.is_file():
        return None
    try:
        with content_errors(path):
            require_header(path)
            with safe_open(path, framework="numpy") as file:
                about = file.metadata()
                planes = {plane: file.get_tensor(plane) for plane in PLANES}
        shape, spacing_mm = (tuple(parse_json(about[name].encode())) for name in ("shape", "spacing_mm"))
        return CaseFeatures(case.case_id, case.patient, planes, shape, spacing_mm)
    except (OSError, KeyError, ValueError, TypeError):
        return None
