"""Lesions to ask for, and cases of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from maisi_aug.cohort.plan import CasePlan
from maisi_aug.lesions.lesion import GrowthRule, Lesion
from maisi_aug.sources.map_source import MapSource
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.volumes.grid import Grid


def ask_for(
    label_id: int, hosts: Sequence[int], volume_ml: float, label: str = "", *, rule: GrowthRule | None = None
) -> Lesion:
    """A lesion that is not drawn yet, called as MAISI does unless it is told."""
    name = label or (MAISI.name_of(label_id) if MAISI.contains(label_id) else f"label {label_id}")
    return Lesion(label_id, name, volume_ml, hosts=tuple(hosts), rule=rule)


def case_of(lesions: Sequence[Lesion], required_ids: Sequence[int] = ()) -> CasePlan:
    """A case of some lesions and organs."""
    numbered = tuple(replace(lesion, index=index) for index, lesion in enumerate(lesions))
    return CasePlan("case_0001", 0, "a request", numbered, tuple(required_ids))


class Drawn(NamedTuple):
    """A label map that was drawn, with its lesions in the order asked for."""

    label_map: NDArray[np.uint8]
    grid: Grid
    origin: dict[str, Any]
    lesions: tuple[Lesion, ...]


def draw(source: MapSource, lesions: Sequence[Lesion], *, required_ids: Sequence[int] = (), seed: int) -> Drawn:
    """What a source of label maps draws for a case of some lesions and organs."""
    found = source.draw(case_of(lesions, required_ids), seed)
    assert found.label_map is not None
    return Drawn(found.label_map, found.grid, found.origin, found.lesions)
