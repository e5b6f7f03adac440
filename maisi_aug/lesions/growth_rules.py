"""Where tumours of a kind grow: how much of one may leave its host, how large it gets beside it, what gives way.

The figures are data (``data/lesion_growth.json``), each with its source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from maisi_aug.errors import VocabularyError
from maisi_aug.vocabulary.labels import FULL_VOCABULARY


@dataclass(frozen=True, slots=True)
class GrowthRule:
    """How a tumour grows out of its host.

    Attributes:
        max_share_outside: Share of the lesion that may lie in tissue that was no host.
        max_host_share: Largest volume, relative to the largest connected part of its hosts.
        rim_mm: How far from the host it may reach into body without an organ.
        in_cavity: Whether it may also take the fat between the organs of chest and belly.
        room_share: Share of a large lesion's volume for which host and neighbours are pushed aside.
        max_spread: Largest spread about its centre, relative to a ball of its volume.
        source: Where the figures come from.
        crosses_hosts: Whether it crosses from one host into the next, as lung tumours cross fissures, instead of
            keeping to one while there is room.
    """

    max_share_outside: float
    max_host_share: float
    rim_mm: float
    in_cavity: bool
    room_share: float
    max_spread: float
    source: str
    crosses_hosts: bool = False


@cache
def _rules() -> tuple[GrowthRule, Mapping[str, GrowthRule]]:
    text = Path(__file__).parents[1].joinpath("data").joinpath("lesion_growth.json").read_text(encoding="utf-8")
    tables = json.loads(text)
    return GrowthRule(**tables["default"]), {name: GrowthRule(**row) for name, row in tables["labels"].items()}


def growth_rule_of(label_name: str) -> GrowthRule:
    """The rule of a label, found under any of its names; a label that the table lacks has the cautious default.

    Args:
        label_name: As a vocabulary or a bundle names it, such as "renal mass".
    """
    default, rules = _rules()
    if label_name in rules:
        return rules[label_name]
    try:
        return rules.get(FULL_VOCABULARY.label(label_name).name, default)
    except VocabularyError:
        return default
