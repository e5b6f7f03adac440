"""A label that is taught: its place in the training data and in the bundle. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maisi_aug.bundle_spec.schema import SlotSpec

Kind = Literal["lesion", "organ"]


@dataclass(frozen=True, slots=True)
class TaughtLabel:
    """A label that a ControlNet is taught, with its slot and its host organs.

    Attributes:
        name: Name of the label in the new bundle.
        source_id: Id in the prepared label maps.
        id: Id in the new bundle.
        hosts: Ids of the labels that surround it, the most frequent first.
        kind: ``lesion`` is planted in its hosts, ``organ`` comes with the label maps.
        why: Reason for hosts and kind, as text for the user.
    """

    name: str
    source_id: int
    id: int
    hosts: tuple[int, ...]
    kind: Kind
    why: str = ""

    @property
    def slot(self) -> SlotSpec:
        """Binding of the label to its slot, for ``bundle.yaml``."""
        return SlotSpec(id=self.id, hosts=self.hosts, kind=self.kind)
