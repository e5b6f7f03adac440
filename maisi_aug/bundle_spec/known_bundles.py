"""The bundles that can be fetched by name: where their files lie, under which licence, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
        settings: Entry on their use in ``bundle.yaml``, as far as known before the files exist.
    """

    files: Mapping[str, str]
    download_size: str
    networks: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class KnownDatabase:
    """Label maps that are published with a bundle.

    Attributes:
        files: Within the bundle's repository, by what they are: ``maps`` and ``list``.
        download_size: Size of all these files as text, such as "11.6 GB".
        num_maps: Number of label maps.
    """

    files: Mapping[str, str]
    download_size: str
    num_maps: int


@dataclass(frozen=True)
class KnownBundle:
    """A bundle that others publish.

    Attributes:
        header: Content of ``bundle.yaml``, as far as known before the files exist.
        repository: Repository on the Hugging Face hub, ``owner/name``.
        files: Checkpoint within the repository by role of the network.
        download_size: Download size of all files, to be read by people.
        licence_url: Address of the text of the licence.
        notice: Notice that the licence requires next to the weights.
        masks: The networks that generate label maps, fetched on request; None where none are published.
        repositories: By role of the network, repositories with checkpoints that the bundle's own repository lacks.
        mask_database: The label maps, fetched on request; None where none are published.
    """

    header: Mapping[str, Any]
    repository: str
    files: Mapping[str, str]
    download_size: str
    licence_url: str
    notice: str
    masks: KnownMasks | None = None
    repositories: Mapping[str, str] = field(default_factory=dict)
    mask_database: KnownDatabase | None = None

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
    def all_repositories(self) -> tuple[str, ...]:
        """The bundle's own repository, and those of single checkpoints."""
        return tuple(dict.fromkeys((self.repository, *self.repositories.values())))

    def files_in(self, repository: str) -> dict[str, str]:
        """The checkpoints that lie in one of the repositories, by role of the network."""
        return {
            role: file
            for role, file in self.files.items()
            if self.repositories.get(role, self.repository) == repository
        }

    def require_masks(self) -> KnownMasks:
        """The networks that generate label maps for it.

        Raises:
            BundleError: When none are published.
        """
        if self.masks is None:
            raise BundleError(
                f"Bundle '{self.name}': no mask networks are published for it, because it draws images "
                "only. Leave --with-masks out."
            )
        return self.masks

    def require_database(self) -> KnownDatabase:
        """The label maps that are published with it.

        Raises:
            BundleError: When none are published.
        """
        if self.mask_database is None:
            raise BundleError(
                f"Bundle '{self.name}': no label maps are published with it, because it draws images "
                "only. Leave --with-mask-database out."
            )
        return self.mask_database

    @property
    def accepted_licence(self) -> dict[str, object]:
        """Text of the licence entry in ``bundle.yaml`` after acceptance."""
        return {"name": self.licence, "url": self.licence_url, "is_accepted": True}

    @property
    def pull_command(self) -> str:
        """The command that fetches the bundle."""
        return f"maisi-aug bundles pull {self.name}"


@cache
def known_bundles() -> Mapping[str, KnownBundle]:
    """Return all bundles that can be fetched, by name."""
    rows = yaml.safe_load(KNOWN_BUNDLES_FILE.read_text(encoding="utf-8"))
    parts = {"masks": KnownMasks, "mask_database": KnownDatabase}
    return {
        name: KnownBundle(**{key: parts[key](**value) if key in parts else value for key, value in row.items()})
        for name, row in rows.items()
    }


def find_known_bundle(name: str) -> KnownBundle:
    """Return the bundle of a name.

    Raises:
        BundleError: The name is unknown; the message offers the closest ones.
    """
    known = known_bundles()
    if name not in known:
        raise BundleError(
            f"Bundle '{name}': cannot be downloaded; known bundles are {', '.join(known)}.{did_you_mean(name, known)}"
        )
    return known[name]
