"""Lesions to ask for, and cases of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from maisi_aug.cohort.plan import CasePlan
from maisi_aug.lesions.growth_rules import GrowthRule
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.sources.map_source import DrawnMap, MapSource
from maisi_aug.vocabulary.labels import MAISI


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


def draw(source: MapSource, lesions: Sequence[Lesion], *, required_ids: Sequence[int] = (), seed: int) -> DrawnMap:
    """What a source draws for a case of some lesions and organs."""
    return source.draw(case_of(lesions, required_ids), seed)
