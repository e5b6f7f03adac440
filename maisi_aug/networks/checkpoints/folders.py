"""Checkpoints that are on this machine already: found in NVIDIA's and MONAI's layout, and taken over as a bundle."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from maisi_aug.bundle_spec.bundle import IMAGE_ROLES, Bundle, embedded_bundles, load_bundle, pulled_bundles_folder
from maisi_aug.bundle_spec.known_bundles import SIZE_CONDITIONS, KnownBundle, find_known_bundle, known_bundles
from maisi_aug.bundle_spec.schema import MASK_PROVENANCE, MASK_ROLES
from maisi_aug.errors import BundleError
from maisi_aug.networks.checkpoints.importing import (
    AcceptLicence,
    convert_checkpoints,
    find_intact,
    require_accepted,
    require_free,
    write_known_bundle,
)
from maisi_aug.networks.checkpoints.mask_networks import write_mask_networks
from maisi_aug.networks.checkpoints.own_networks import build_own_header, match_checkpoints, read_network_file
from maisi_aug.system.progress import Say
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.system.whole_folder import open_whole_folder

# Of MONAI's bundle maisi_ct_generative; it does not tell by names which of NVIDIA's models it holds.
MONAI_NAMES: Mapping[str, str] = {
    "autoencoder": "autoencoder.pt",
    "diffusion_unet": "diff_unet.pt",
    "controlnet": "controlnet.pt",
}
# Its weights are older than NVIDIA's on the hub, and not for commercial use unless the folder's own LICENSE says so.
MONAI_LICENCE = {
    "licence": "NVIDIA Source Code License NSCLv1 (non-commercial), or as stated in the LICENSE next to the weights",
    "licence_url": "https://github.com/Project-MONAI/model-zoo",
    "notice": "Weights of MONAI's bundle maisi_ct_generative",
}
MONAI_MASK_NAMES: Mapping[str, str] = {
    "mask_autoencoder": "mask_generation_autoencoder.pt",
    "mask_diffusion_unet": "mask_generation_diffusion_unet.pt",
    SIZE_CONDITIONS: "all_anatomy_size_conditions.json",
}
"""The same in NVIDIA's folder; they lie in ``models`` and ``datasets``, or beside each other."""
ORIGIN = "checkpoints on this machine"


def import_bundle(
    source: Path,
    *,
    accept_licence: AcceptLicence,
    name: str | None = None,
    folder: Path | None = None,
    report: Say | None = None,
) -> Bundle:
    """Make a bundle from a folder of NVIDIA's checkpoints, laid out as by NV-Generate-CTMR or ``maisi_ct_generative``.

    Without the checkpoint of a ControlNet, the bundle draws images without label maps only.

    Args:
        source: Folder with the checkpoints, or with a sub-folder ``models`` of them; it is not changed.
        accept_licence: Function that asks the user, before anything is written, whether the licence is accepted.
        name: Name of the known bundle; None if it is clear from the folder.
        folder: Folder of the new bundle; None for the user's data folder.
        report: Called with a sentence that describes the current step.

    Returns:
        The bundle; at once if the same checkpoints were imported before and the bundle is intact.

    Raises:
        BundleError: Checkpoints are missing, several bundles could be meant, the licence is not accepted, the target is
            used for something else, or a file contains more than data or another network. Nothing is then left under
            the bundle's name.
    """
    say = report or (lambda _: None)
    known, files = find_checkpoints(source, name)
    target = (folder or pulled_bundles_folder() / known.name).expanduser().resolve()
    if "controlnet" not in files and "controlnet" in known.files:
        say(f"No ControlNet in {source}: the bundle can only draw images without label maps (--mask-source none).")
    mask_files = find_mask_files(source, say) if known.masks is not None and "controlnet" in files else {}
    described, about_masks = _describe(files), {"files": _describe(mask_files)}
    present = find_intact(target, known.name, ORIGIN)
    known_as = present.spec.provenance if present is not None else {}
    has_same_masks = not mask_files or known_as.get(MASK_PROVENANCE) == about_masks
    if present is not None and known_as["files"] == described and has_same_masks:
        return present
    command = shlex.join(
        ["maisi-aug", "bundles", "import", str(source), *(["--as", name] if name else [])]
        + (["--to", str(folder)] if folder else [])
    )
    require_accepted(known, accept_licence, say, command=command)
    require_free(target, known.name, ORIGIN)
    say("Checking the networks and writing the bundle.")
    provenance = {"origin": ORIGIN, "files": described}
    add = partial(write_mask_networks, known, mask_files, provenance=about_masks) if mask_files else None
    return write_known_bundle(known, files, target, provenance=provenance, command=command, complete=add)


def import_networks(
    source: Path,
    network_file: Path,
    *,
    name: str | None = None,
    modalities: Sequence[str] = (),
    folder: Path | None = None,
    report: Say | None = None,
) -> Bundle:
    """Make a bundle from the user's own networks, of any width, trained with NVIDIA's scripts.

    Args:
        source: Folder with the checkpoints, or with a folder ``models`` of them; it is not changed. Without the
            checkpoint of a ControlNet the bundle is one of images alone.
        network_file: File ``config_network_*.json`` that defines the networks.
        name: Name of the bundle; None for the name of the source folder.
        modalities: Modalities that the networks were trained on, the default first; empty for CT.
        folder: Folder of the bundle; None for the user's data folder.
        report: Called with a sentence that describes the current step.

    Raises:
        BundleError: The definitions cannot be read, a checkpoint is missing or holds another network, or the name or
            the target is taken.
    """
    say = report or (lambda _: None)
    name = name or re.sub("[^a-z0-9._-]+", "-", source.resolve().name.lower()).strip("-._") or "own"
    if name in (*known_bundles(), *embedded_bundles()):
        raise BundleError(f"Bundle '{name}': this is the name of another bundle. Choose a name of your own with --as.")
    network = read_network_file(network_file)
    files, notes = match_checkpoints(source, network)
    for sentence in notes:
        say(sentence)
    target = (folder or pulled_bundles_folder() / name).expanduser().resolve()
    provenance = {"origin": ORIGIN, "files": _describe({"definitions": network_file, **files})}
    header = {**build_own_header(name, network, tuple(files), modalities), "provenance": provenance}
    present = find_intact(target, name, ORIGIN)
    is_same = present is not None and present.spec.provenance == provenance
    if present is not None and is_same and tuple(modalities) in ((), present.spec.modalities):
        return present
    require_free(target, name, ORIGIN)
    say("Checking the networks and writing the bundle.")
    with open_whole_folder(target, require_replaceable=partial(require_free, target, name, ORIGIN)) as unfinished:
        convert_checkpoints(header, files, unfinished, subject=f"Bundle '{name}'")
    return load_bundle(target)


def _describe(files: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    return {role: {"file": path.name, "sha256": sha256_of(path)} for role, path in files.items()}


def find_mask_files(source: Path, say: Say) -> dict[str, Path]:
    """Return role -> file of the mask networks and size conditions in a folder; empty unless all of them are there.

    Args:
        source: Folder with the checkpoints, or with folders ``models`` and ``datasets``.
        say: Called with a sentence if some of the files are there and others are not.
    """
    root = source.parent if source.name == "models" else source
    places = (root / "models", root / "datasets", source)
    found = {
        role: path
        for role, name in MONAI_MASK_NAMES.items()
        for path in [next((place / name for place in places if (place / name).is_file()), None)]
        if path is not None
    }
    missing = [name for role, name in MONAI_MASK_NAMES.items() if role not in found]
    if missing and set(found) & set(MASK_ROLES):
        say(f"The mask networks are left out, because {' and '.join(missing)} are missing.")
    return {} if missing else found


def find_checkpoints(source: Path, name: str | None = None) -> tuple[KnownBundle, dict[str, Path]]:
    """Return the bundle that a folder's checkpoints belong to, and the checkpoints by role.

    Args:
        source: Folder with the checkpoints, or with a folder ``models`` of them.
        name: Name of the bundle; None if it is clear from the folder.

    Raises:
        BundleError: For an unknown name, when a checkpoint is missing, or when several bundles could be meant.
    """
    if not source.is_dir():
        raise BundleError(f"{source}: not a folder. Check the path.")
    candidates = [find_known_bundle(name)] if name is not None else list(known_bundles().values())
    layouts = [{role: Path(file).name for role, file in known.files.items()} for known in candidates]
    found = [(known, _find_all(source, names)) for known, names in zip(candidates, layouts, strict=True)]
    # Those that lack nothing first: the networks of images alone are also found where the others are.
    is_whole = any(set(files) == set(known.files) for known, files in found)
    found = [(known, files) for known, files in found if files and (set(files) == set(known.files) or not is_whole)]
    of_ct = [known for known in candidates if set(known.files) == set(MONAI_NAMES)]
    unnamed = _find_all(source, MONAI_NAMES) if of_ct and not found else {}
    if unnamed:
        meant = of_ct if name is not None else _choose_by_unet(of_ct, unnamed)
        found = [(_under_monais_licence(known), unnamed) for known in meant]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(known.name for known, _ in found)
        raise BundleError(f"{source}: has the checkpoints of several bundles, {names}. Choose one with --as.")
    if unnamed:
        raise BundleError(
            f"{source}: its U-Net is not that of {' or '.join(known.name for known in of_ct)}. Choose one "
            "with --as to see how it differs."
        )
    wanted = " or ".join(", ".join(names.values()) for names in (*layouts, MONAI_NAMES))
    present = ", ".join(sorted({path.name for path in (*source.glob("*.pt"), *source.glob("models/*.pt"))}))
    raise BundleError(
        f"{source}: needs {wanted}, in the folder or in its folder models, found {present or 'no .pt file'}. Get the "
        "missing files."
    )


def _under_monais_licence(known: KnownBundle) -> KnownBundle:
    header = {**known.header, "licence": MONAI_LICENCE["licence"]}
    return replace(known, header=header, licence_url=MONAI_LICENCE["licence_url"], notice=MONAI_LICENCE["notice"])


def _choose_by_unet(candidates: Sequence[KnownBundle], files: Mapping[str, Path]) -> list[KnownBundle]:
    """Return the bundles whose U-Net has these tensors; bundles differ in its conditioning."""
    from maisi_aug.networks.building import describe_tensors
    from maisi_aug.networks.checkpoints.reading import read_checkpoint, take_state_dict

    path = files["diffusion_unet"]
    state = take_state_dict(read_checkpoint(path, subject=str(path)), "diffusion_unet", subject=str(path))
    return [
        known for known in candidates if set(state) == set(describe_tensors(known.header["networks"]["diffusion_unet"]))
    ]


def _find_all(source: Path, names: Mapping[str, str]) -> dict[str, Path]:
    """The checkpoint of every role that is there, or nothing where images cannot be drawn."""
    for folder in (source / "models", source):
        files = {role: folder / name for role, name in names.items() if (folder / name).is_file()}
        if set(IMAGE_ROLES) <= set(files):
            return files
    return {}
