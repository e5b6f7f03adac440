"""The label maps that NVIDIA publishes with its CT bundles: fetched, compared with what the hub states, and kept."""

from __future__ import annotations

from pathlib import Path

from maisi_aug.bundle_spec.bundle import pulled_bundles_folder
from maisi_aug.bundle_spec.known_bundles import KnownBundle, KnownDatabase
from maisi_aug.errors import BundleError, MaisiAugError
from maisi_aug.networks.checkpoints.hub import Hub, fetch_files
from maisi_aug.networks.checkpoints.importing import LICENCE_FILE, AcceptLicence, require_accepted, write_licence
from maisi_aug.system.content import ContentError, read_json
from maisi_aug.system.progress import Say
from maisi_aug.system.whole_files import sha256_of, write_json_whole
from maisi_aug.system.whole_folder import link_or_copy, open_whole_folder

RECORD_NAME = "fetched.json"
"""Hashes of the files of a database by their names."""


def database_folder(name: str) -> Path:
    """Return the folder of the label maps published with a bundle, next to downloaded bundles."""
    return pulled_bundles_folder().parent / "mask-databases" / name


def pull_database(
    known: KnownBundle, *, accept_licence: AcceptLicence, hub: Hub | None = None, report: Say | None = None
) -> Path:
    """Download the label maps published with a bundle, with their list; returns at once if both are intact.

    If the disk supports it, the files are hard links to those in the cache of ``huggingface_hub``, so that they take
    space once. An archive is not unpacked, because maps are read from it.

    Args:
        known: The bundle.
        accept_licence: Function that asks the user, before any download, whether the licence is accepted.
        hub: Hub to download from.
        report: Called with a sentence that describes the current step.

    Returns:
        The folder, which is a mask bank.

    Raises:
        BundleError: No maps are published with the bundle, the licence is not accepted, the hub cannot be reached or
            holds no such file, or a file is not what the hub states. Nothing is left in the folder then.
    """
    database = known.require_database()
    folder, say = database_folder(known.name), report or (lambda _: None)
    if _is_intact(folder, database):
        return folder
    command = f"{known.pull_command} --with-mask-database"
    require_accepted(known, accept_licence, say, command=command)
    _require_replaceable(folder, database)
    say(f"Fetching {database.num_maps:,} label maps and their list ({database.download_size}) from {known.repository}.")
    fetched = fetch_files(known.repository, database.files, hub or Hub())
    with open_whole_folder(folder, require_replaceable=lambda: _require_replaceable(folder, database)) as unfinished:
        for file in fetched.values():
            link_or_copy(file.path, unfinished / Path(file.name).name)
        hashes = {Path(file.name).name: file.sha256 for file in fetched.values()}
        write_json_whole(unfinished / RECORD_NAME, hashes)
        write_licence(known, unfinished, command=command)
    return folder


def _names_of(database: KnownDatabase) -> set[str]:
    return {Path(name).name for name in database.files.values()}


def _is_intact(folder: Path, database: KnownDatabase) -> bool:
    """Whether an earlier download is complete, and its files are what they were."""
    try:
        hashes = read_json(folder / RECORD_NAME)
        return set(hashes) == _names_of(database) and all(sha256_of(folder / name) == hashes[name] for name in hashes)
    except (OSError, ContentError, MaisiAugError, TypeError):
        return False


def _require_replaceable(folder: Path, database: KnownDatabase) -> None:
    """Raise where a folder holds anything but an earlier download, whole or not."""
    own = {RECORD_NAME, LICENCE_FILE, *_names_of(database)}
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in own) if folder.is_dir() else []
    if foreign or folder.is_file():
        raise BundleError(
            f"{folder}: must hold nothing but an earlier download of the label maps, found "
            f"{', '.join(foreign[:4]) or 'a file'}. Move them away."
        )
