"""One lesion, from the plan that asks for it, through the label map that it is drawn in, to the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from maisi_aug.lesions.growth_rules import GrowthRule
from maisi_aug.vocabulary.sizes import diameter_mm
from maisi_aug.volumes.grid import voxel_volume_ml

_LabelId = Annotated[int, Field(ge=0, le=255)]
_Count = Annotated[int, Field(ge=0, lt=10**9)]
_Amount = Annotated[float, Field(ge=0, lt=1e9, allow_inf_nan=False)]
# What only the run that draws the lesion needs stays out of the manifest.
_UNWRITTEN = Field(exclude=True)


@dataclass(frozen=True, slots=True)
class Lesion:
    """One lesion, as asked for and, once it is drawn, as it lies in the label map.

    The bounds hold for what is read from a manifest, which may be somebody else's.

    Attributes:
        label_id: Vocabulary id of its voxels.
        label: Its name in the vocabulary.
        requested_ml: Volume that is asked for; of a given map that of the lesion on the map's own grid.
        percentile: The same as a fraction of the size reference, where the request was one.
        realised_ml: Volume on the output grid; ``None`` while the lesion is not drawn.
        diameter_mm: Equivalent-sphere diameter of the realised volume.
        centre_ijk: Voxel of the lesion nearest to its centre of mass, axes I J K.
        host_id: Organ that the lesion lies in.
        size_source: What the percentile refers to; says so where that is a stand-in.
        index: Place among the lesions of its case, which tells it from others of its label.
        hosts: Ids that it may replace.
        rule: How it grows out of hosts that are too small or too thin for it; ``None`` keeps it inside.
        num_voxels: Realised voxels.
        share_outside: Share of its voxels that were no host; ``None`` for a lesion that was not planted.
        spread: Spread about its centre of mass, relative to a ball of its volume.
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
        """Diameter of the sphere of the volume that is asked for."""
        return diameter_mm(self.requested_ml)

    @property
    def inside_ml(self) -> float:
        """What has to lie inside the hosts."""
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
        """The lesion as it lies in a label map with voxels of these sides."""
        i, j, k = map(int, centre_ijk)
        placed = replace(self, centre_ijk=(i, j, k), host_id=host_id, num_voxels=num_voxels)
        return replace(
            placed.measured(num_voxels * voxel_volume_ml(spacing_mm)), spread=spread, share_outside=share_outside
        )

    def measured(self, realised_ml: float) -> Lesion:
        """The lesion with its volume in a label map."""
        return replace(self, realised_ml=realised_ml, diameter_mm=diameter_mm(realised_ml))

    def as_written(self) -> Lesion:
        """The lesion as a manifest holds it, without what only the run needs that draws it."""
        return replace(self, index=0, hosts=(), rule=None, num_voxels=0, share_outside=None, spread=None)

    def to_plan(self) -> dict[str, Any]:
        """What is asked for, as JSON types."""
        return {
            "label_id": self.label_id,
            "label": self.label,
            "volume_ml": self.requested_ml,
            "diameter_mm": self.requested_mm,
            "percentile": self.percentile,
            "size_source": self.size_source,
        }
