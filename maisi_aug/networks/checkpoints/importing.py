"""Checkpoints that others wrote, turned into a bundle: read without running code, compared, written whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from maisi_aug.bundle_spec.bundle import BUNDLE_FILE, NETWORK_ROLES, Bundle, load_bundle
from maisi_aug.bundle_spec.known_bundles import KnownBundle
from maisi_aug.errors import BundleError, MaisiAugError
from maisi_aug.system.progress import Say
from maisi_aug.system.whole_files import write_text_whole
from maisi_aug.system.whole_folder import open_whole_folder

LICENCE_FILE = "LICENCE.txt"
ACCEPTED = "Accepted "
"""How the line of that file begins that says when and by which command the licence was accepted."""

AcceptLicence = Callable[[KnownBundle], bool]


def write_known_bundle(
    known: KnownBundle,
    files: Mapping[str, Path],
    folder: Path,
    *,
    provenance: Mapping[str, Any],
    command: str,
    complete: Callable[[Path], None] | None = None,
) -> Bundle:
    """Write the folder of a known bundle from its checkpoints, whole or not at all, with the licence's notice.

    Args:
        known: The bundle, with its definitions and the licence, which has been accepted.
        files: Role -> checkpoint; without a ControlNet, the bundle draws images without label maps only.
        folder: Folder of the bundle; an earlier copy from the same origin is replaced.
        provenance: Origin of the checkpoints: ``origin``, ``files`` and further facts. No time and no machine, so that
            the same files give the same bundle anywhere.
        command: Command line of the user, for the record of the licence.
        complete: Function that adds files to the folder before it gets its final name.

    Raises:
        BundleError: The folder is used for something else, or a checkpoint cannot be used.
    """
    networks = {role: definition for role, definition in known.header["networks"].items() if role in files}
    header = {
        **known.header,
        "networks": networks,
        "provenance": {**provenance, "licence": known.accepted_licence},
    }
    replaceable = partial(require_free, folder, known.name, str(provenance["origin"]))
    with open_whole_folder(folder, require_replaceable=replaceable) as unfinished:
        convert_checkpoints(header, files, unfinished, subject=f"Bundle '{known.name}'")
        if complete is not None:
            complete(unfinished)
        write_licence(known, unfinished, command=command)
    return load_bundle(folder)


def find_intact(folder: Path, name: str, origin: str) -> Bundle | None:
    """Return the bundle that an earlier conversion wrote to a folder, if nothing of it is missing or altered.

    Args:
        folder: Folder that may hold it, or not exist.
        name: Name of the bundle.
        origin: Repository or file that it was converted from, as ``bundle.yaml`` states it.

    Returns:
        The bundle; None for anything else.
    """
    try:
        bundle = read_converted(folder, name, origin)
        if bundle is not None:
            bundle.require_intact()
    except MaisiAugError:
        return None
    return bundle


def convert_checkpoints(header: Mapping[str, Any], files: Mapping[str, Path], folder: Path, *, subject: str) -> Bundle:
    """Read the checkpoints of all networks, compare their tensors with the definitions, and write a bundle.

    The tensors keep their values and type; the scale factor is taken from the U-Net's checkpoint.

    Args:
        header: Content of ``bundle.yaml`` without scale factor and weight files.
        files: Role -> checkpoint, for every network that the header defines.
        folder: Folder of the bundle; created when missing.
        subject: Name of the converted item in messages.

    Raises:
        BundleError: A checkpoint cannot be read, contains more than data, or holds another network.
    """
    from maisi_aug.networks.building import describe_tensors
    from maisi_aug.networks.checkpoints.reading import read_checkpoint, take_scale_factor, take_state_dict
    from maisi_aug.networks.weights import require_same_tensors, write_bundle

    content, states = dict(header), {}
    for role in (role for role in NETWORK_ROLES if role in header["networks"]):
        about = f"{subject}, {files[role].name}"
        checkpoint = read_checkpoint(files[role], subject=about)
        states[role] = take_state_dict(checkpoint, role, subject=about)
        require_same_tensors(describe_tensors(header["networks"][role]), states[role], subject=about)
        if role == "diffusion_unet":
            content["scale_factor"] = take_scale_factor(checkpoint, subject=about)
    return write_bundle(folder, content, states, dtype=None)


def require_accepted(known: KnownBundle, accept_licence: AcceptLicence, say: Say, *, command: str) -> None:
    """Show the licence of a bundle's weights, and raise unless the user accepts it.

    Args:
        known: Bundle whose weights are to be written.
        accept_licence: Function that is called with the bundle and returns whether its licence is accepted.
        say: Called with a sentence that names the licence and its address, before the question.
        command: Command to name in the error, which accepts the licence by an option.

    Raises:
        BundleError: It is not accepted; the message names the licence and the command to accept it.
    """
    say(f"{known.name} is licensed under the {known.licence}: {known.licence_url}")
    if not accept_licence(known):
        raise BundleError(
            f"Bundle '{known.name}': its licence must be accepted first: {known.licence} ({known.licence_url}). Read "
            f"it, then run: {command} --accept-license"
        )


def write_licence(known: KnownBundle, folder: Path, *, command: str) -> None:
    """Write the licence's notice and the time of acceptance into ``LICENCE_FILE`` next to the weights.

    Args:
        known: Bundle with its notice.
        folder: Folder of the weights.
        command: Command by which the licence was accepted, to be recorded.

    Raises:
        VolumeError: The file cannot be written.
    """
    when = datetime.now(UTC).isoformat(timespec="seconds")
    text = f"{known.notice}\n{known.licence_url}\n{ACCEPTED}{when} for '{command}'.\n"
    write_text_whole(folder / LICENCE_FILE, text)


def read_notice(bundle: Bundle) -> str | None:
    """Return the licence notice of a bundle or of its base, without the record of acceptance; None if missing."""
    owner: Bundle | None = bundle
    while owner is not None and not (owner.path / LICENCE_FILE).is_file():
        owner = owner.base
    if owner is None:
        return None
    lines = (owner.path / LICENCE_FILE).read_text(encoding="utf-8").splitlines()
    return "".join(f"{line}\n" for line in lines if not line.startswith(ACCEPTED))


def read_converted(folder: Path, name: str, origin: str) -> Bundle | None:
    """Return the bundle that an earlier conversion of the same origin put into a folder; None if there is none.

    Args:
        folder: Folder of the bundle.
        name: Name of the bundle.
        origin: Origin of its checkpoints, as in ``provenance.origin``.

    Raises:
        BundleError: The folder holds a ``bundle.yaml`` that cannot be read.
    """
    if not (folder / BUNDLE_FILE).is_file():
        return None
    bundle = load_bundle(folder)
    return bundle if bundle.name == name and bundle.spec.provenance.get("origin") == origin else None


def require_free(folder: Path, name: str, origin: str) -> None:
    """Raise unless a folder is new or empty, or contains only an earlier copy of the same bundle, altered or not.

    Args:
        folder: Folder that a bundle is to be written to.
        name: Name of the bundle.
        origin: Repository or file that it is converted from, as ``bundle.yaml`` states it.

    Raises:
        BundleError: It holds anything else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        bundle = read_converted(folder, name, origin)
    except MaisiAugError as error:
        raise BundleError(f"{error} Move {folder} away, or choose another folder with --to.") from error
    own = {BUNDLE_FILE, LICENCE_FILE, *(named.file for named in bundle.files)} if bundle else set()
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in own) if folder.is_dir() else []
    if bundle is None or foreign:
        raise BundleError(
            f"{folder}: must be a new folder, or an earlier copy of '{name}' from {origin}; found "
            f"{', '.join(foreign[:4]) or 'a file'}. Choose another folder with --to, or move these files away."
        )
