"""Features of all volumes of some sets: one volume in the memory of a worker at a time, and cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maisi_aug.bundle_spec.bundle import pulled_bundles_folder
from maisi_aug.errors import MaisiAugError
from maisi_aug.evaluation.cohort.case_sets import CaseSet, EvaluatedCase, SkippedCase, require_some
from maisi_aug.evaluation.fid.slices import PLANES, PlaneName, SliceProtocol, prepare_volume, take_slices
from maisi_aug.networks.weights import write_safetensors
from maisi_aug.system.content import content_errors, parse_json
from maisi_aug.system.engine.mapping import map_items
from maisi_aug.system.engine.work import Engine, WorkerPlace
from maisi_aug.system.progress import Report
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.volumes.dicom_files import files_of

if TYPE_CHECKING:
    from maisi_aug.evaluation.fid.extractors import Extractor, ExtractorFile

FORMAT: Final = 2
"""Version in every cache key; increase it when the same volume gives different features."""


class CaseFeatures(NamedTuple):
    """Features of one volume by plane, with its patient and its original grid."""

    case_id: str
    patient: str
    planes: dict[PlaneName, NDArray[np.float32]]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]


Measured = tuple[CaseFeatures | SkippedCase, bool]
"""Features of a case, or why there are none, and whether they were in the cache."""


@dataclass
class FeatureSet:
    """Features of all cases of a set.

    Attributes:
        cases: Readable cases, in the order of the set.
        skipped: Cases that could not be read or are missing.
        num_cached: Number of cases found in the cache.
    """

    cases: list[CaseFeatures] = field(default_factory=list)
    skipped: list[SkippedCase] = field(default_factory=list)
    num_cached: int = 0

    def of_plane(self, plane: PlaneName) -> list[NDArray[np.float32]]:
        """Return features of one plane, one ``(N, D)`` array per patient: scans of a patient are not independent."""
        by_patient: dict[str, list[NDArray[np.float32]]] = {}
        for case in self.cases:
            by_patient.setdefault(case.patient or case.case_id, []).append(case.planes[plane])
        return [np.concatenate(parts) for parts in by_patient.values()]


def default_cache() -> Path:
    """Return the default folder for cached features, next to downloaded bundles."""
    return pulled_bundles_folder().parent / "features"


def collect_features(
    case_sets: Sequence[CaseSet],
    extractor: ExtractorFile,
    protocol: SliceProtocol,
    *,
    cache: Path | None,
    engine: Engine,
    notify: Report,
) -> list[FeatureSet]:
    """Extract the features of every case of several sets, or read them from a cache.

    Args:
        case_sets: Sets of cases.
        extractor: Feature extractor.
        protocol: Protocol that turns volumes into slices.
        cache: Folder of features by content; None for no cache.
        engine: Engine that runs the workers, each of which loads the network once.
        notify: Progress callback, called with (cases done, cases in all).

    Returns:
        Features of each set.

    Raises:
        EvaluationError: No case of a set can be read.
    """
    cases = [case for case_set in case_sets for case in case_set.cases]
    open_function = partial(_open_extractor, extractor, protocol, cache)
    reads = (*extractor.reads, *(case_set.path for case_set in case_sets))
    measured = iter(map_items(open_function, cases, engine, notify, reads=reads))
    sets = []
    for case_set in case_sets:
        found = FeatureSet(skipped=list(case_set.skipped))
        for item, is_cached in islice(measured, len(case_set.cases)):
            if isinstance(item, SkippedCase):
                found.skipped.append(item)
            else:
                found.cases.append(item)
            found.num_cached += is_cached
        require_some(len(found.cases), found.skipped)
        sets.append(found)
    return sets


def _open_extractor(
    extractor: ExtractorFile, protocol: SliceProtocol, cache: Path | None, place: WorkerPlace
) -> Callable[[EvaluatedCase], Measured]:
    from maisi_aug.networks.pipeline import resolve_device

    return partial(_measure, extractor.load(resolve_device(place.device)), protocol, cache)


def _measure(extractor: Extractor, protocol: SliceProtocol, cache: Path | None, case: EvaluatedCase) -> Measured:
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
