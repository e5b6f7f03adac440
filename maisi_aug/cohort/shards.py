"""Shards: every N-th case of a cohort, made by a run of its own, in the same folder or another, and put together."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from maisi_aug.cohort.manifest import (
    MANIFEST_NAME,
    AttemptRecord,
    FileRecord,
    ManifestWriter,
    find_holder,
    is_cohort,
    join_manifests,
    list_manifests,
    load_manifest,
    read_manifest,
    remove_cohort_leftovers,
    scratch_of,
)
from maisi_aug.cohort.request import COHORT_NAME, differences
from maisi_aug.errors import CohortError, RequestError
from maisi_aug.system.content import ContentError
from maisi_aug.system.lease import Holder, busy_folder
from maisi_aug.system.whole_files import open_whole, sha256_of, write_whole
from maisi_aug.system.whole_folder import link_or_copy
from maisi_aug.system.yaml_content import read_yaml

MAX_SHARDS = 100_000
Group = TypeVar("Group")


@dataclass(frozen=True)
class Shard:
    """One of several parts of a cohort that are made by different processes.

    Attributes:
        number: Number of the shard, starting at 1.
        count: Number of shards.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse ``I/N``, the I-th of N shards.

        Raises:
            RequestError: The text has another form, or I is out of range.
        """
        found = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text, re.ASCII)
        shard = None if found is None else cls(int(found[1]), int(found[2]))
        if shard is None or not 1 <= shard.number <= shard.count <= MAX_SHARDS:
            raise RequestError(
                f"--shard: expected I/N with I from 1 to N and N up to {MAX_SHARDS}, such as 1/4, found '{text}'."
            )
        return shard

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def manifest_name(self) -> str:
        """File name of the manifest that the shard writes."""
        return f"manifest.{self.number}-of-{self.count}.jsonl"

    def part_of(self, groups: Sequence[Group]) -> list[Group]:
        """Return the groups that the shard makes: every N-th, so that consecutive groups go to different shards."""
        return list(groups[self.number - 1 :: self.count])


def find_others(folder: Path, own: str) -> Iterator[tuple[Path, Holder]]:
    """Yield the manifests of a cohort that other processes are writing, with these processes.

    Args:
        folder: Folder of the cohort.
        own: File name of the manifest of this process.
    """
    for path in list_manifests(folder):
        if path.name != own and (holder := find_holder(path)) is not None:
            yield path, holder


def require_compatible(folder: Path, own: str) -> None:
    """Raise if a running process divides the cohort into a different number of shards.

    Args:
        folder: Folder of the cohort.
        own: File name of the manifest of this process.

    Raises:
        CohortError: The message names the process.
    """
    _, is_shard, count = own.rpartition("-of-")
    for path in list_manifests(folder):
        is_sibling = is_shard and path.name.endswith(f"-of-{count}")
        if path.name != own and not is_sibling and (holder := find_holder(path)) is not None:
            raise busy_folder(folder, holder)


def merge_shards(folder: Path) -> int:
    """Merge the manifests of a cohort's shards into one, ordered by case, and delete them.

    If this is interrupted, either the old or the new state remains; run it again to finish.

    Args:
        folder: Folder of the cohort, in which no process is running.

    Returns:
        Number of manifests that were merged.

    Raises:
        CohortError: The folder is not a cohort, a shard is still running, or two shards disagree on an attempt.
    """
    load_manifest(folder, gates=())
    with ExitStack() as locks:
        locks.enter_context(ManifestWriter(folder / MANIFEST_NAME))
        shards = list_manifests(folder)[1:]
        for path in shards:  # no process continues a shard while it is merged
            locks.enter_context(ManifestWriter(path))
        remove_cohort_leftovers(folder)  # a shard cannot, because others may be writing
        if shards:
            load_manifest(folder, gates=())  # once more, now that nothing is written
            _write_joined(folder / MANIFEST_NAME, [folder / MANIFEST_NAME, *shards])
        for path in shards:
            path.unlink()
            shutil.rmtree(scratch_of(path), ignore_errors=True)
    return len(shards)


def gather_shards(folders: Sequence[Path], out: Path) -> None:
    """Collect shards that have a folder each in one folder, as hard links if the disk supports them.

    Args:
        folders: Folders of the shards, begun with the same configuration; they are not changed.
        out: A new folder, an empty one, or one that the same call began.

    Raises:
        CohortError: The configurations differ, ``out`` contains other files, a shard is still running, or two shards
            have different files for the same attempt.
        VolumeError: A file cannot be written.
    """
    document = _require_same_cohort([*folders, *([out] if (out / COHORT_NAME).exists() else [])])
    _require_empty_or_cohort(out)
    out.mkdir(parents=True, exist_ok=True)
    with ManifestWriter(out / MANIFEST_NAME):
        write_whole(out / COHORT_NAME, document)
        manifests = [path for folder in (out, *folders) for path in list_manifests(folder)]
        for path in manifests:
            if path.parent != out and (holder := find_holder(path)) is not None:
                raise busy_folder(path.parent, holder)
        joined = join_manifests(manifests, [read_manifest(path, gates=()) for path in manifests])
        for record in joined.records:
            sources = [folder for folder in folders if all((folder / f.path).is_file() for f in record.files.values())]
            for file in record.files.values():
                _bring(sources[0] if sources else folders[0], out, file)
        _write_joined(out / MANIFEST_NAME, manifests)


def _bring(folder: Path, out: Path, file: FileRecord) -> None:
    """Give a file its place, unless it is there already."""
    target = out / file.path
    if target.is_file() and sha256_of(target) == file.sha256:
        return
    target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    if (folder / file.path).is_file():  # else the case is drawn again when the cohort is continued
        link_or_copy(folder / file.path, target)


def _require_same_cohort(folders: Sequence[Path]) -> bytes:
    """The content of ``cohort.yaml``, which all folders must share.

    Raises:
        CohortError: The message names the field that differs.
    """
    contents = []
    for folder in folders:
        path = folder / COHORT_NAME
        try:
            content = path.read_bytes()
            contents.append((folder, content, read_yaml(path)))
        except (OSError, ContentError):
            raise CohortError(f"{folder}: not a shard, because it has no readable {COHORT_NAME}.") from None
    (first, content, before), *others = contents
    for folder, _, document in others:
        if different := differences(before, document):
            raise CohortError(
                f"{folder}: belongs to another cohort than {first} ({different[0][:200]}). Merge shards of one "
                "command only."
            )
    return bytes(content)


def _require_empty_or_cohort(out: Path) -> None:
    if out.exists() and not is_cohort(out) and (not out.is_dir() or any(out.iterdir())):
        raise CohortError(f"{out}: neither new, empty nor a cohort's folder. Choose another --out.")


def _write_joined(target: Path, sources: Sequence[Path]) -> None:
    """Write the lines of manifests into one, ordered by case and attempt, each attempt once."""
    places: dict[tuple[int, int], tuple[Path, int, int]] = {}
    for path in sources:
        # Of the lines of one manifest on an attempt the last one counts; those of another say the same.
        for key, place in _find_lines(path).items():
            places.setdefault(key, (path, *place))
    with ExitStack() as files:
        opened = {path: files.enter_context(path.open("rb")) for path in sources}
        out = files.enter_context(open_whole(target))
        for _, (path, start, length) in sorted(places.items()):
            opened[path].seek(start)
            out.write(opened[path].read(length))


def _find_lines(path: Path) -> dict[tuple[int, int], tuple[int, int]]:
    """Start and length of the line of each attempt."""
    places, start = {}, 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                record = AttemptRecord.from_json(line)
                places[record.case_index, record.attempt] = start, len(line)
            start += len(line)
    return places
