"""A lesion in the plan, in the label map and in the manifest.

How tumours of a kind grow out of their hosts is data (``data/lesion_growth.json``), each figure with its source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from maisi_aug.errors import VocabularyError
from maisi_aug.vocabulary.labels import FULL_VOCABULARY
from maisi_aug.vocabulary.sizes import diameter_mm

_LabelId = Annotated[int, Field(ge=0, le=255)]
_Count = Annotated[int, Field(ge=0, lt=10**9)]
_Amount = Annotated[float, Field(ge=0, lt=1e9, allow_inf_nan=False)]
# What only the run that draws the lesion needs stays out of the manifest.
_UNWRITTEN = Field(exclude=True)


@dataclass(frozen=True, slots=True)
class GrowthRule:
    """Rule by which a tumour may grow beyond its host organ.

    Attributes:
        max_share_outside: Largest fraction of the lesion that may lie outside its host organs.
        max_host_share: Largest volume of the lesion, relative to the largest connected part of its hosts.
        rim_mm: Largest distance in mm from the host at which it may grow into body without an organ.
        in_cavity: Whether it may also replace the fat between the organs of chest and abdomen.
        room_share: Fraction of a large lesion's volume for which host and neighbours are pushed aside.
        max_spread: Largest root mean square distance from the centre, relative to a ball of the same volume.
        source: Source of the figures.
        crosses_hosts: Whether it grows from one host into the next, as lung tumours cross fissures; otherwise it stays
            in one while there is room.
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
    """Return the growth rule of a label, found under any of its names; unlisted labels get a cautious default.

    Args:
        label_name: Name in a vocabulary or a bundle, such as "renal mass".
    """
    default, rules = _rules()
    if label_name in rules:
        return rules[label_name]
    try:
        return rules.get(FULL_VOCABULARY.label(label_name).name, default)
    except VocabularyError:
        return default


@dataclass(frozen=True, slots=True)
class Lesion:
    """One lesion: as requested and, once it is drawn, as realised in the label map.

    The bounds apply to lesions read from a manifest, which may come from an untrusted source.

    Attributes:
        label_id: Vocabulary id of the lesion.
        label: Name in the vocabulary.
        requested_ml: Requested volume in mL; for a given label map, the volume on the map's own grid.
        percentile: Requested percentile in [0, 1] of the size reference; None if mm or mL were requested.
        realised_ml: Volume in mL on the output grid; None before the lesion is drawn.
        diameter_mm: Equivalent-sphere diameter in mm of the realised volume.
        centre_ijk: Voxel of the lesion nearest to its centre of mass, axes I J K.
        host_id: Vocabulary id of the organ that the lesion lies in.
        size_source: Reference of the percentile, which says if it is a stand-in.
        index: Number among the lesions of its case, which distinguishes lesions of the same label.
        hosts: Vocabulary ids of the organs that it may replace.
        rule: Rule by which it may grow beyond hosts that are too small or thin; None keeps it inside.
        num_voxels: Realised number of voxels.
        share_outside: Fraction of its voxels outside the hosts; None for a lesion that was not planted.
        spread: Root mean square distance from the centre of mass, relative to a ball of its volume.
    """

    label_id: _LabelId
    label: str
    requested_ml: Annotated[float, Field(gt=0, lt=1e9, allow_inf_nan=False)]
    percentile: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    realised_ml: _Amount | None = None
    diameter_mm: _Amount | None = None
    centre_ijk: tuple[_Count, _Count, _Count] | None = None
    host_id: _LabelId | None = None
    size_source: str | None = None
    index: Annotated[int, _UNWRITTEN] = 0
    hosts: Annotated[tuple[int, ...], _UNWRITTEN] = ()
    rule: Annotated[GrowthRule | None, _UNWRITTEN] = None
    num_voxels: Annotated[int, _UNWRITTEN] = 0
    share_outside: Annotated[float | None, _UNWRITTEN] = None
    spread: Annotated[float | None, _UNWRITTEN] = None

    @property
    def requested_mm(self) -> float:
        """Equivalent-sphere diameter in mm of the requested volume."""
        return diameter_mm(self.requested_ml)

    @property
    def inside_ml(self) -> float:
        """Volume in mL that must lie inside the host organs."""
        return self.requested_ml * (1.0 if self.rule is None else 1.0 - self.rule.max_share_outside)

    def drawn(
        self,
        *,
        num_voxels: int,
        spacing_mm: Sequence[float],
        centre_ijk: Sequence[int],
        host_id: int,
        spread: float,
        share_outside: float | None = None,
    ) -> Lesion:
        """Return the lesion with its realised size and position in a label map.

        Args:
            num_voxels: Realised number of voxels.
            spacing_mm: Voxel sides along I, J, K in mm.
            centre_ijk: Voxel nearest to the centre of mass.
            host_id: Vocabulary id of the organ that it lies in.
            spread: Root mean square distance from the centre, relative to a ball of its volume.
            share_outside: Fraction of its voxels outside the hosts; None if it was not planted.
        """
        from maisi_aug.volumes.grid import voxel_volume_ml  # not for the options of commands, which know the rules

        i, j, k = map(int, centre_ijk)
        placed = replace(self, centre_ijk=(i, j, k), host_id=host_id, num_voxels=num_voxels)
        return replace(
            placed.measured(num_voxels * voxel_volume_ml(spacing_mm)), spread=spread, share_outside=share_outside
        )

    def measured(self, realised_ml: float) -> Lesion:
        """Return the lesion with a realised volume in mL, and the diameter that belongs to it."""
        return replace(self, realised_ml=realised_ml, diameter_mm=diameter_mm(realised_ml))

    def as_written(self) -> Lesion:
        """Return the lesion as stored in a manifest, without attributes that only the run needs."""
        return replace(self, index=0, hosts=(), rule=None, num_voxels=0, share_outside=None, spread=None)

    def to_plan(self) -> dict[str, Any]:
        """Return the requested values as a JSON-able dict."""
        return {
            "label_id": self.label_id,
            "label": self.label,
            "volume_ml": self.requested_ml,
            "diameter_mm": self.requested_mm,
            "percentile": self.percentile,
            "size_source": self.size_source,
        }
