"""A label that is taught: its place in the training data and in the bundle. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maisi_aug.bundle_spec.schema import SlotSpec

Kind = Literal["lesion", "organ"]


@dataclass(frozen=True, slots=True)
class TaughtLabel:
    """A label that is taught.

    Attributes:
        name: Its final name.
        source_id: Its id in the prepared label maps.
        id: Its id in the bundle.
        hosts: Labels that it is inside of, the most frequent first.
        kind: ``lesion`` is planted in its hosts, ``organ`` comes with the label maps.
        why: How hosts and kind were decided, as text for the user.
    """

    name: str
    source_id: int
    id: int
    hosts: tuple[int, ...]
    kind: Kind
    why: str = ""

    @property
    def slot(self) -> SlotSpec:
        """The binding for ``bundle.yaml``."""
        return SlotSpec(id=self.id, hosts=self.hosts, kind=self.kind)
