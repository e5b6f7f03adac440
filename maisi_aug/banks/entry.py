"""One label map of a bank: where it lies, and what is known of it before it is read."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from maisi_aug.errors import VolumeError
from maisi_aug.system.content import ContentError, content_errors
from maisi_aug.vocabulary.regions import Regions
from maisi_aug.volumes.grid import Spacing


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """A file in a zip archive.

    Attributes:
        archive: The archive.
        name: Name in it.
        num_bytes: Size, as the archive states it.
        crc32: Checksum, as the archive states it.
        max_bytes: More than its voxels can take; neither the member nor what it unpacks to is read beyond this.
    """

    archive: Path
    name: str
    num_bytes: int
    crc32: int
    max_bytes: int

    def read(self) -> bytes:
        """The content, held in memory: nothing is written anywhere.

        Raises:
            VolumeError: The archive or the member is missing, damaged or encrypted, or the member is too large.
        """
        try:
            with content_errors(), zipfile.ZipFile(self.archive) as archive, archive.open(self.name) as file:
                content = file.read(self.max_bytes + 1)
        except (OSError, ContentError) as error:
            raise VolumeError(
                f"{self.name}: expected a readable member of {self.archive.name}, found a damaged one ({error})."
                " Download the archive again."
            ) from error
        if len(content) > self.max_bytes:
            raise self.too_large()
        return content

    def too_large(self) -> VolumeError:
        """The error for a member that its voxels do not explain."""
        return VolumeError(
            f"{self.name}: expected at most {self.max_bytes / 1e6:.0f} MB, by the size that its list states, found "
            "more. Download the archive again."
        )


@dataclass(frozen=True)
class BankEntry:
    """One label map of a bank.

    Attributes:
        name: Path relative to the bank, with ``/``.
        label_paths: The label map, or one mask per organ; empty for a member of an archive.
        image_path: The CT it was drawn on, if there is one.
        organ_names: What each of the masks shows; empty for one label map.
        label_names: Names of the map's own ids from ``labels.json`` or ``dataset.json``; None without such a file.
        label_regions: nnU-Net's regions from the same file: labels that join several ids.
        listed_ids: Ids that a data list promises, as MAISI's lists do; None where unknown.
        has_vocabulary_ids: Whether its ids are the vocabulary's: maps of this package's cohorts and of MAISI's lists.
        member: The label map in an archive; None for files.
        extent_mm: Field of view along I, J, K that a data list states; None where unknown.
        regions: Uppermost and lowest body region, stated by a data list or told by its labels; None where unknown.
        case: The case that its files are of; empty where no name tells.
    """

    name: str
    label_paths: tuple[Path, ...]
    image_path: Path | None = None
    organ_names: tuple[str, ...] = ()
    label_names: Mapping[int, str] | None = None
    label_regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    listed_ids: tuple[int, ...] | None = None
    has_vocabulary_ids: bool = False
    member: ArchiveMember | None = None
    extent_mm: Spacing | None = None
    regions: Regions | None = None
    case: str = ""

    @property
    def ids_by_name(self) -> dict[str, tuple[int, ...]]:
        """What the names of the map's own labels mean, the background left out; several ids may share one."""
        ids: dict[str, tuple[int, ...]] = {}
        for label_id, name in (self.label_names or {}).items():
            if label_id:
                ids[name] = (*ids.get(name, ()), label_id)
        return {**ids, **self.label_regions}

    @property
    def paths(self) -> tuple[Path, ...]:
        """All its files, the CT last."""
        return self.label_paths if self.image_path is None else (*self.label_paths, self.image_path)
