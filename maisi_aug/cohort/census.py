"""The lesions of a real dataset, counted and measured: what a cohort shall be balanced against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maisi_aug.banks.case_reader import load_labels_in_place, require_place
from maisi_aug.banks.entry import BankEntry
from maisi_aug.banks.files import NAME_FILES, find_entries
from maisi_aug.banks.label_ids import find_label_id
from maisi_aug.cohort.balance import BalanceTarget, LesionCensus
from maisi_aug.errors import BankError, RequestError, did_you_mean
from maisi_aug.lesions.planting import measure_lesions
from maisi_aug.vocabulary.labels import Vocabulary, is_bare_lesion_name
from maisi_aug.volumes.image_files import load_label_map

LesionMap = Mapping[str, str]
"""Label of the vocabulary -> what the dataset calls it: an id or a name."""
_Names = Mapping[str, tuple[int, ...]]
"""What a dataset's names mean: one id, or the several that a region joins."""


def take_census(
    path: Path,
    targets: Sequence[BalanceTarget],
    *,
    vocabulary: Vocabulary,
    mapping: LesionMap | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[LesionCensus, ...]:
    """Measure every lesion of a dataset by its connected parts.

    Args:
        path: nnU-Net raw dataset, Medical Decathlon task, cohort, or folder or data list of label maps.
        targets: The lesions to look for.
        vocabulary: Which a cohort's ids are of.
        mapping: What the dataset calls the lesions; found by their names where it is not told.
        report: Called with (label maps read, label maps in all).

    Raises:
        BankError: There is no label map, or nothing tells what a lesion is called there.
        RequestError: The mapping names a label that is not balanced.
        VolumeError: A label map cannot be read.
    """
    entries = _list_label_maps(path, vocabulary)
    mapping = _by_label(mapping or {}, targets, vocabulary)
    groups: dict[Any, dict[str, tuple[tuple[int, ...], str]]] = {}
    volumes: dict[str, list[tuple[float, ...]]] = {target.label: [] for target in targets}
    sources: dict[str, str] = {}
    for done, entry in enumerate(entries, start=1):
        names = _names_of(entry, vocabulary)
        key = None if names is None else tuple(names.items())
        if key not in groups:
            groups[key] = {t.label: _find_ids(path, t, names, mapping, vocabulary) for t in targets}
        volume = load_labels_in_place(entry) if not entry.organ_names else None
        for target in targets:
            ids, sources[target.label] = groups[key][target.label]
            found = _measure_masks(entry, ids) if volume is None else _measure(volume, ids)
            volumes[target.label].append(tuple(found))
        report(done, len(entries))
    return tuple(LesionCensus(t.label, sources[t.label], tuple(volumes[t.label])) for t in targets)


def _measure(volume: Any, ids: Sequence[int]) -> list[float]:
    mask = volume.array == ids[0] if len(ids) == 1 else np.isin(volume.array, ids)
    return measure_lesions(mask, 1, volume.grid.voxel_ml) if mask.any() else []


def _measure_masks(entry: BankEntry, ids: Sequence[int]) -> list[float]:
    """Lesions of a case that has a file for every organ; ids count its files from 1."""
    paths = (entry.label_paths[place - 1] for place in ids)
    image = entry.image_path
    volumes = (require_place(load_label_map(path, image=image), image, subject=path.name) for path in paths)
    return sorted((size for v in volumes for size in measure_lesions(v.array > 0, 1, v.grid.voxel_ml)), reverse=True)


def _list_label_maps(path: Path, vocabulary: Vocabulary) -> list[BankEntry]:
    """Every label map of a real dataset that is to be measured.

    Args:
        path: nnU-Net raw dataset, by path, name or number, Medical Decathlon task, cohort, or folder or data list.
        vocabulary: Whose names make a folder of masks one label map.

    Raises:
        BankError: There is none, or one of them is missing, empty or fits several images.
    """
    entries, faults = find_entries(path, lambda name: find_label_id(name, vocabulary) is not None)
    if faults:
        name, reason = faults[0]
        raise BankError(f"Dataset {path}: expected whole label maps, found {name}: {reason}. Restore or remove it.")
    if not entries:
        raise BankError(
            f"Dataset {path}: expected an nnU-Net dataset with labelsTr, or a folder of label maps, found none. "
            "Check the path."
        )
    return entries


def _names_of(entry: BankEntry, vocabulary: Vocabulary) -> _Names | None:
    """What the names of an entry mean: of a cohort those of the vocabulary, of masks those of their files."""
    if entry.organ_names:
        return {name: (place,) for place, name in enumerate(entry.organ_names, start=1)}
    if entry.has_vocabulary_ids:
        return {label.name: (label.id,) for label in vocabulary if label.id}
    return None if entry.label_names is None else entry.ids_by_name


def _by_label(mapping: LesionMap, targets: Sequence[BalanceTarget], vocabulary: Vocabulary) -> dict[str, str]:
    """The mapping by the vocabulary's own names."""
    by_name = {vocabulary.label(name).name: source for name, source in mapping.items()}
    for name in by_name:
        if name not in {target.label for target in targets}:
            raise RequestError(
                f"--map '{name}': expected a lesion that --labels asks for ({', '.join(t.label for t in targets)}), "
                "found another one. Correct the mapping."
            )
    return by_name


def _find_ids(
    path: Path, target: BalanceTarget, names: _Names | None, mapping: LesionMap, vocabulary: Vocabulary
) -> tuple[tuple[int, ...], str]:
    """The dataset's ids of a lesion, and what to tell the user of how they were found."""
    if target.label in mapping:
        return _find_mapped(path, target, names, mapping[target.label])
    named = names or {}
    found = [name for name in named if find_label_id(name, vocabulary) == target.label_id]
    if found:
        ids = dict.fromkeys(label_id for name in found for label_id in named[name])
        return tuple(ids), ", ".join(f"label {_spell_ids(named[name])} '{name}'" for name in found)
    # "cancer" beside "liver" in a dataset of one lesion: nothing else can be meant, and the table says what was taken.
    bare = [name for name in named if is_bare_lesion_name(name)]
    others = {find_label_id(name, vocabulary) for name in named}
    if len(bare) == 1 and others.intersection(vocabulary.hosts_of(target.label_id)):
        return named[bare[0]], f"label {_spell_ids(named[bare[0]])} '{bare[0]}' beside its host organ"
    listed = _list(named, limit=12) or f"no names in {NAME_FILES[1]}"
    raise BankError(
        f"Dataset {path}: expected a label that is '{target.label}', found {listed}. Say which it is, such as "
        f"--map '{target.label}=2'."
    )


def _find_mapped(path: Path, target: BalanceTarget, names: _Names | None, source: str) -> tuple[tuple[int, ...], str]:
    text = source.strip()
    by_name = {name.strip().lower(): name for name in names or {}}
    if names is not None and text.lower() in by_name:
        name = by_name[text.lower()]
        return names[name], f"label {_spell_ids(names[name])} '{name}'"
    if text.isdecimal() and int(text) > 0:
        holders = [name for name, ids in (names or {}).items() if ids == (int(text),)]
        if names is None or any(int(text) in ids for ids in names.values()):
            return (int(text),), f"label {text}" + (f" '{holders[0]}'" if holders else "")
    raise BankError(
        f"--map '{target.label}={source}': expected a label of {path} ({_list(names or {}) or 'ids alone'}), found "
        f"none.{did_you_mean(text, by_name)} Name one of them."
    )


def _list(names: _Names, limit: int | None = None) -> str:
    return ", ".join(f"{_spell_ids(ids)} '{name}'" for name, ids in list(names.items())[:limit])


def _spell_ids(ids: Sequence[int]) -> str:
    return "+".join(map(str, ids))
