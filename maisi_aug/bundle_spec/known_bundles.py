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
    """Networks that generate label maps for a downloadable bundle.

    Attributes:
        files: Role of a network -> checkpoint in the bundle's repository; also the file of ``SIZE_CONDITIONS``.
        download_size: Download size of all these files as text, such as "1.2 GB".
        networks: Role -> definition of the network.
        settings: Entry ``mask_generation`` of ``bundle.yaml``, as far as it is known before the download.
    """

    files: Mapping[str, str]
    download_size: str
    networks: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class KnownDatabase:
    """Label maps that are published with a downloadable bundle.

    Attributes:
        files: Files in the bundle's repository: ``maps`` and ``list``.
        download_size: Size of all these files as text, such as "11.6 GB".
        num_maps: Number of label maps.
    """

    files: Mapping[str, str]
    download_size: str
    num_maps: int


@dataclass(frozen=True)
class KnownBundle:
    """A bundle published by others that ``maisi-aug bundles pull`` can download.

    Attributes:
        header: Content of ``bundle.yaml``, as far as it is known before the download.
        repository: Repository on the Hugging Face hub, ``owner/name``.
        files: Role of a network -> checkpoint in the repository.
        download_size: Download size of all files as text, such as "1.2 GB".
        licence_url: Address of the text of the licence.
        notice: Notice that the licence requires next to the weights.
        masks: Networks that generate label maps, downloaded on request; None if none are published.
        repositories: Role of a network -> repository, for checkpoints that the bundle's own repository lacks.
        mask_database: Published label maps, downloaded on request; None if there are none.
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
        """Description of the bundle on one line, for listings."""
        return str(self.header["description"])

    @property
    def licence(self) -> str:
        """Name of the licence that has to be accepted."""
        return str(self.header["licence"])

    @property
    def all_repositories(self) -> tuple[str, ...]:
        """All repositories to download from: the bundle's own, and those of single checkpoints."""
        return tuple(dict.fromkeys((self.repository, *self.repositories.values())))

    def files_in(self, repository: str) -> dict[str, str]:
        """Return role -> checkpoint for the checkpoints in one of the repositories."""
        return {
            role: file
            for role, file in self.files.items()
            if self.repositories.get(role, self.repository) == repository
        }

    def require_masks(self) -> KnownMasks:
        """Return the networks that generate label maps for the bundle.

        Raises:
            BundleError: None are published.
        """
        if self.masks is None:
            raise BundleError(
                f"Bundle '{self.name}': no mask networks are published for it, because it draws images "
                "only. Leave --with-masks out."
            )
        return self.masks

    def require_database(self) -> KnownDatabase:
        """Return the label maps that are published with the bundle.

        Raises:
            BundleError: None are published.
        """
        if self.mask_database is None:
            raise BundleError(
                f"Bundle '{self.name}': no label maps are published with it, because it draws images "
                "only. Leave --with-mask-database out."
            )
        return self.mask_database

    @property
    def accepted_licence(self) -> dict[str, object]:
        """Licence entry of ``bundle.yaml`` after the user has accepted the licence."""
        return {"name": self.licence, "url": self.licence_url, "is_accepted": True}

    @property
    def pull_command(self) -> str:
        """Command that downloads the bundle."""
        return f"maisi-aug bundles pull {self.name}"


@cache
def known_bundles() -> Mapping[str, KnownBundle]:
    """Return name -> bundle, for all bundles that can be downloaded."""
    rows = yaml.safe_load(KNOWN_BUNDLES_FILE.read_text(encoding="utf-8"))
    parts = {"masks": KnownMasks, "mask_database": KnownDatabase}
    return {
        name: KnownBundle(**{key: parts[key](**value) if key in parts else value for key, value in row.items()})
        for name, row in rows.items()
    }


def find_known_bundle(name: str) -> KnownBundle:
    """Return the downloadable bundle with the given name.

    Raises:
        BundleError: The name is unknown; the message offers the closest ones.
    """
    known = known_bundles()
    if name not in known:
        raise BundleError(
            f"Bundle '{name}': cannot be downloaded; known bundles are {', '.join(known)}.{did_you_mean(name, known)}"
        )
    return known[name]
