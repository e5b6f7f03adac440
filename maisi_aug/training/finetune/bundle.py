"""The bundle that fine-tuning ends in: the new ControlNet, the base it shares, and what the data say of labels."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from maisi_aug import __version__
from maisi_aug.bundle_spec.bundle import (
    BUNDLE_FILE,
    NETWORK_ROLES,
    Bundle,
    embedded_bundles,
    load_bundle,
    pulled_bundles,
)
from maisi_aug.bundle_spec.schema import MASK_ROLES, MASK_SECTION, HuSpec, SizeSpec
from maisi_aug.errors import BundleError, MaisiAugError
from maisi_aug.lesions.planting import measure_lesions
from maisi_aug.networks.checkpoints.importing import LICENCE_FILE
from maisi_aug.networks.weights import load_weight_file, write_bundle
from maisi_aug.preparation.prepared import PreparedDataset
from maisi_aug.system.whole_folder import open_whole_folder
from maisi_aug.training.cases.data import CaseStore
from maisi_aug.training.cases.taught_label import TaughtLabel
from maisi_aug.training.finetune.bank import FinetunedBank, collect_bank
from maisi_aug.training.finetune.model_card import LabelMeasures, write_model_card
from maisi_aug.vocabulary.sizes import measure_distribution
from maisi_aug.volumes.grid import voxel_volume_ml

MIN_SPREAD_HU = 10.0
"""Smallest standard deviation over patients to assume, because a few patients say little about all."""
NUM_DEVIATIONS = 3.0
FAINT_HU = 5.0
"""Contrast in HU below which a label counts as neither brighter nor darker."""


def measure_labels(
    taught: Sequence[TaughtLabel], store: CaseStore, dataset: PreparedDataset
) -> dict[str, LabelMeasures]:
    """Measure sizes and HU of the taught labels on the training cases.

    Args:
        taught: Labels to measure.
        store: Training cases with the bundle's ids.
        dataset: Records of the same cases, which state the patients.

    Returns:
        Name of the label -> measurements.
    """
    volumes: dict[str, dict[str, list[float]]] = {label.name: {} for label in taught}
    medians: dict[str, list[float]] = {label.name: [] for label in taught}
    contrasts: dict[str, list[float]] = {label.name: [] for label in taught}
    for index, record in enumerate(dataset.cases):
        present = [label for label in taught if record.voxels.get(label.source_id)]
        if not present:
            continue
        label_map, image_hu = store.label_map(index), store.image_hu(index)
        voxel_ml = voxel_volume_ml(record.spacing_mm)
        for label in present:
            found = measure_lesions(label_map, label.id, voxel_ml)
            own = volumes[label.name].setdefault(record.patient, [])
            own += found if label.kind == "lesion" else [sum(found)]
            inside = float(np.median(image_hu[label_map == label.id]))
            medians[label.name].append(inside)
            hosts = np.isin(label_map, label.hosts)
            if hosts.any():
                contrasts[label.name].append(inside - float(np.median(image_hu[hosts])))
    source = f"{dataset.spec.name}, training cases"
    return {
        label.name: LabelMeasures(
            _to_sizes(list(volumes[label.name].values()), label.name, source),
            _to_range(medians[label.name], contrasts[label.name], source),
            float(np.median(medians[label.name])),
            len(volumes[label.name]),
        )
        for label in taught
    }


def _to_sizes(volumes_ml: Sequence[Sequence[float]], name: str, source: str) -> SizeSpec:
    """Sizes of a label from the volumes of each patient: of its lesions, or of the organ."""
    measured = measure_distribution(volumes_ml, name, source)
    return SizeSpec(quantiles_ml=measured.quantiles_ml, source=measured.source)


def _to_range(medians: Sequence[float], contrasts: Sequence[float], source: str) -> HuSpec:
    """Bounds as MAISI's: three standard deviations about the mean, or the extremes where they lie farther out."""
    reach = NUM_DEVIATIONS * max(float(np.std(medians)), MIN_SPREAD_HU)
    middle = float(np.mean(medians))
    low, high = min(middle - reach, *medians), max(middle + reach, *medians)
    agreed = {int(np.sign(value)) if abs(value) >= FAINT_HU else 0 for value in contrasts}
    sign = agreed.pop() if len(agreed) == 1 else 0
    return HuSpec.model_validate(
        {"low_hu": round(low, 1), "high_hu": round(high, 1), "contrast_sign": sign, "source": source}
    )


def write_finetuned(
    folder: Path,
    base: Bundle,
    controlnet: Mapping[str, Tensor],
    taught: Sequence[TaughtLabel],
    measures: Mapping[str, LabelMeasures],
    training: PreparedDataset,
    *,
    table: NDArray[np.uint8],
    training_facts: Mapping[str, Any],
    self_contained: bool,
) -> Bundle:
    """Write a fine-tuned bundle, whole or not at all; one that the same run wrote before is replaced.

    Args:
        folder: Folder of the bundle.
        base: The bundle that was fine-tuned.
        controlnet: State dict of the fine-tuned ControlNet, in MAISI's layout.
        taught: Labels that it was taught.
        measures: Measurements of the labels on the training cases.
        training: Training cases, whose label maps are part of the bundle's mask bank.
        table: ``(256,)`` table from the ids of the prepared maps to the bundle's.
        training_facts: Facts about the training, for the provenance and the model card.
        self_contained: Copy the base's weights and the label maps instead of referring to them.

    Raises:
        BundleError: The folder holds something other than an earlier bundle of the same name.
    """
    bank = collect_bank(base, training, table)
    header = _build_header(folder, base, taught, measures, bank, training_facts, self_contained=self_contained)
    states: dict[str, Mapping[str, Tensor]] = {"controlnet": controlnet}
    if self_contained:
        states |= {role: load_weight_file(base, role) for role in NETWORK_ROLES if role != "controlnet"}
    with open_whole_folder(folder, require_replaceable=partial(_require_own, folder, header["name"])) as unfinished:
        bank.write(unfinished, folder, copies=self_contained)
        for bundle in _with_bases(base):
            if (bundle.path / LICENCE_FILE).is_file():
                shutil.copyfile(bundle.path / LICENCE_FILE, unfinished / LICENCE_FILE)
                break
        write_model_card(unfinished, header, taught, measures, training_facts)
        write_bundle(unfinished, header, states, dtype=None)
    return load_bundle(folder)


def _build_header(
    folder: Path,
    base: Bundle,
    taught: Sequence[TaughtLabel],
    measures: Mapping[str, LabelMeasures],
    bank: FinetunedBank,
    training_facts: Mapping[str, Any],
    *,
    self_contained: bool,
) -> dict[str, Any]:
    header = base.spec.model_dump(mode="json", exclude_defaults=True, exclude={"weights", "base", "provenance"})
    header = {key: value for key, value in header.items() if key != MASK_SECTION}
    header["networks"] = {role: value for role, value in header["networks"].items() if role not in MASK_ROLES}
    names = [label.name for label in taught]
    bound = {label.name: label for label in taught if _is_new(label, base)}
    header["name"] = _name_of(folder)
    header["description"] = f"{base.name} fine-tuned on {', '.join(names)}."
    header["slots"] = {
        **header.get("slots", {}),
        **{name: label.slot.model_dump(mode="json") for name, label in bound.items()},
    }
    header["sizes"] = {
        **header.get("sizes", {}),
        **{name: found.sizes.model_dump(mode="json") for name, found in measures.items()},
    }
    header["hu_ranges"] = {
        **header.get("hu_ranges", {}),
        **{name: found.hu.model_dump(mode="json") for name, found in measures.items()},
    }
    header["mask_bank"] = bank.describe(copies=self_contained).model_dump(mode="json")
    if not self_contained:
        header["base"] = {"name": base.name, "fingerprint": base.fingerprint, "paths": _paths_to(base, folder)}
    header["provenance"] = {
        "fine_tuned_from": {"name": base.name, "fingerprint": base.fingerprint},
        **training_facts,
        "versions": {"maisi-aug": __version__, "monai": version("monai"), "torch": version("torch")},
        "base_provenance": base.spec.provenance,
    }
    return {"format": 1, **header}


def _is_new(label: TaughtLabel, base: Bundle) -> bool:
    return not base.vocabulary.contains(label.id) or base.vocabulary.label(label.id).kind == "slot"


def _name_of(folder: Path) -> str:
    """A bundle's name from the run's folder, for listings."""
    stem = folder.parent.name if folder.name == "bundle" else folder.name
    cleaned = "".join(sign if sign.isalnum() or sign in "._-" else "-" for sign in stem.lower()).strip("._-")
    return cleaned or "fine-tuned"


def _paths_to(base: Bundle, folder: Path) -> list[str]:
    """Return the relative and the absolute path of the base; none if it can be found by name."""
    known = {*embedded_bundles(), *pulled_bundles()}
    if base.name in known and load_bundle(base.name).fingerprint == base.fingerprint:
        return []
    place = base.path.resolve()
    return [Path(os.path.relpath(place, folder.resolve())).as_posix(), place.as_posix()]


def _with_bases(bundle: Bundle) -> list[Bundle]:
    return [bundle, *(_with_bases(bundle.base) if bundle.base is not None else [])]


def _require_own(folder: Path, name: str) -> None:
    """Raise unless a folder is new, empty or an earlier bundle of the same run."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        is_own = (folder / BUNDLE_FILE).is_file() and load_bundle(folder).name == name
    except MaisiAugError:
        is_own = False
    if not is_own:
        raise BundleError(
            f"{folder}: must be a new folder or an earlier bundle of this run. Move it away, and run the same "
            "command again."
        )
