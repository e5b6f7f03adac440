"""The bundles that can be fetched by name: where their files lie, under which licence, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from maisi_aug.errors import BundleError, did_you_mean

KNOWN_BUNDLES_FILE = Path(__file__).parents[1] / "data" / "known_bundles.yaml"


SIZE_CONDITIONS = "size_conditions"


@dataclass(frozen=True)
class KnownMasks:
    """The networks that generate label maps for a bundle that others publish.

    Attributes:
        files: Checkpoint within the bundle's repository by role of the network, and the file of ``SIZE_CONDITIONS``.
        download_size: Download size of all these files, to be read by people.
        networks: Definitions by role.
        settings: What ``bundle.yaml`` will say of their use, as far as it is known before the files are there.
    """

    files: Mapping[str, str]
    download_size: str
    networks: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class KnownBundle:
    """A bundle that others publish.

    Attributes:
        header: What ``bundle.yaml`` will say, as far as it is known before the files are there.
        repository: On the Hugging Face hub, ``owner/name``.
        files: Checkpoint within the repository by role of the network.
        download_size: Download size of all files, to be read by people.
        licence_url: Where the licence named in the header can be read.
        notice: What the licence asks to be kept beside the weights.
        masks: The networks that generate label maps, fetched on request.
    """

    header: Mapping[str, Any]
    repository: str
    files: Mapping[str, str]
    download_size: str
    licence_url: str
    notice: str
    masks: KnownMasks

    @property
    def name(self) -> str:
        """Name of the bundle."""
        return str(self.header["name"])

    @property
    def description(self) -> str:
        """One line for listings."""
        return str(self.header["description"])

    @property
    def licence(self) -> str:
        """Name of the licence that has to be accepted."""
        return str(self.header["licence"])

    @property
    def accepted_licence(self) -> dict[str, object]:
        """Entry on the licence in ``bundle.yaml`` once it is accepted."""
        return {"name": self.licence, "url": self.licence_url, "is_accepted": True}

    @property
    def pull_command(self) -> str:
        """The command that fetches the bundle."""
        return f"maisi-aug bundles pull {self.name}"


@cache
def known_bundles() -> Mapping[str, KnownBundle]:
    """Return all bundles that can be fetched, by name."""
    rows = yaml.safe_load(KNOWN_BUNDLES_FILE.read_text(encoding="utf-8"))
    return {name: KnownBundle(**{**row, "masks": KnownMasks(**row["masks"])}) for name, row in rows.items()}


def find_known_bundle(name: str) -> KnownBundle:
    """Return the bundle of a name.

    Raises:
        BundleError: Offering the closest names.
    """
    known = known_bundles()
    if name not in known:
        raise BundleError(
            f"Bundle '{name}': cannot be downloaded; known bundles are {', '.join(known)}.{did_you_mean(name, known)}"
        )
    return known[name]
