"""Checkpoints that are on this machine already: found in NVIDIA's and MONAI's layout, and taken over as a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from maisi_aug.bundle import NETWORK_ROLES, Bundle, load_bundle, pulled_bundles_folder
from maisi_aug.conversion import (
    AcceptLicence,
    Report,
    convert_checkpoints,
    open_whole_folder,
    require_accepted,
    require_free,
    write_licence,
)
from maisi_aug.errors import BundleError
from maisi_aug.known_bundles import KnownBundle, find_known_bundle, known_bundles
from maisi_aug.whole_files import sha256_of

# Of MONAI's bundle maisi_ct_generative; it does not tell by names which of NVIDIA's models it holds.
MONAI_NAMES: Mapping[str, str] = {
    "autoencoder": "autoencoder.pt",
    "diffusion_unet": "diff_unet.pt",
    "controlnet": "controlnet.pt",
}


def import_bundle(
    source: Path,
    *,
    accept_licence: AcceptLicence,
    name: str | None = None,
    folder: Path | None = None,
    report: Report | None = None,
) -> Bundle:
    """Make a bundle of a folder of checkpoints, as NV-Generate-CTMR and MONAI's ``maisi_ct_generative`` lay them out.

    Args:
        source: Folder with the checkpoints, or with a folder ``models`` of them; it is not changed.
        accept_licence: Asked before anything is read whether the user accepts the licence of the weights.
        name: Which of the known bundles it is; None where the folder tells.
        folder: Of the bundle; None for the user's data folder.
        report: Told in a sentence what is going on.

    Raises:
        BundleError: When checkpoints are missing, several bundles could be meant, the licence is not accepted, the
            target is in other use, or a file asks for more than data or holds another network. Nothing is left under
            the bundle's name then.
    """
    say = report or (lambda _: None)
    known, files = find_checkpoints(source, name)
    target = (folder or pulled_bundles_folder() / known.name).expanduser().resolve()
    command = f"maisi-aug bundles import {source}" + (f" --as {name}" if name else "")
    say(f"{known.name} comes under the {known.licence}: {known.licence_url}")
    require_accepted(known, accept_licence, command=command)
    require_free(target, known.name)
    say("Checking the networks and writing the bundle.")
    provenance = {
        "imported": "checkpoints on this machine",
        "files": {role: {"file": path.name, "sha256": sha256_of(path)} for role, path in files.items()},
        "licence": known.accepted_licence,
    }
    with open_whole_folder(target) as unfinished:
        header = {**known.header, "provenance": provenance}
        convert_checkpoints(header, files, unfinished, subject=f"Import of {source} as '{known.name}'")
        write_licence(known, unfinished, command=command)
    return load_bundle(target)


def find_checkpoints(source: Path, name: str | None = None) -> tuple[KnownBundle, dict[str, Path]]:
    """Which bundle a folder holds, and its checkpoints by role.

    Args:
        source: Folder with the checkpoints, or with a folder ``models`` of them.
        name: Of the bundle; None where the folder tells.

    Raises:
        BundleError: For an unknown name, when a checkpoint is missing, or when several bundles could be meant.
    """
    if not source.is_dir():
        raise BundleError(f"{source}: expected a folder of checkpoints, found none. Check the path.")
    candidates = [find_known_bundle(name)] if name is not None else list(known_bundles().values())
    layouts = [{role: Path(file).name for role, file in known.files.items()} for known in candidates]
    found = [(known, _find_all(source, names)) for known, names in zip(candidates, layouts, strict=True)]
    found = [(known, files) for known, files in found if files]
    unnamed = {} if found else _find_all(source, MONAI_NAMES)
    if unnamed:
        found = [(known, unnamed) for known in candidates if name is not None or _is_unet_of(known, unnamed)]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(known.name for known, _ in found)
        raise BundleError(f"{source}: expected checkpoints of one bundle, found those of {names}. Choose with --as.")
    wanted = " or ".join(", ".join(names.values()) for names in (*layouts, MONAI_NAMES))
    present = ", ".join(sorted({path.name for path in (*source.glob("*.pt"), *source.glob("models/*.pt"))}))
    raise BundleError(
        f"{source}: expected {wanted}, in it or in its folder models, found {present or 'no .pt file'}"
        f"{', with the U-Net of neither' if unnamed else ''}. Get the files that are missing, or name it with --as."
    )


def _find_all(source: Path, names: Mapping[str, str]) -> dict[str, Path]:
    """The checkpoint of every role, or nothing."""
    for folder in (source / "models", source):
        files = {role: folder / names[role] for role in NETWORK_ROLES}
        if all(path.is_file() for path in files.values()):
            return files
    return {}


def _is_unet_of(known: KnownBundle, files: Mapping[str, Path]) -> bool:
    """Whether the U-Net's tensors are those of a bundle; the bundles differ in what their U-Nets are told."""
    from maisi_aug.checkpoints import read_checkpoint, take_state_dict
    from maisi_aug.networks import describe_tensors

    path = files["diffusion_unet"]
    state = take_state_dict(read_checkpoint(path, subject=str(path)), "diffusion_unet", subject=str(path))
    return set(state) == set(describe_tensors(known.header["networks"]["diffusion_unet"]))
