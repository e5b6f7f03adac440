"""Mask networks added to the folder of a bundle: from checkpoints that others wrote, or trained here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maisi_aug.bundle_spec.bundle import BUNDLE_FILE, Bundle, load_bundle
from maisi_aug.bundle_spec.known_bundles import SIZE_CONDITIONS, KnownBundle
from maisi_aug.bundle_spec.schema import MASK_PROVENANCE, MASK_ROLES, MASK_SECTION, dump_bundle, without_masks
from maisi_aug.networks.checkpoints.importing import LICENCE_FILE, require_free
from maisi_aug.networks.mask_conditions import load_size_conditions
from maisi_aug.system.whole_files import sha256_of, write_text_whole, write_whole
from maisi_aug.system.whole_folder import open_whole_folder
from maisi_aug.system.yaml_content import read_yaml

if TYPE_CHECKING:
    import torch

    from maisi_aug.networks.weights import StateDict


def write_mask_networks(
    known: KnownBundle, files: Mapping[str, Path], folder: Path, *, provenance: Mapping[str, Any]
) -> None:
    """Convert the checkpoints of mask networks into a bundle's folder, and add them to its ``bundle.yaml``.

    Whether this happens together with the other networks or later, the folder ends up with the same bytes.

    Args:
        known: The bundle, with the definitions of its mask networks.
        files: Role -> checkpoint, and the size-conditions file.
        folder: Folder of the bundle; no other process may be using it.
        provenance: Origin of the files.

    Raises:
        BundleError: A file cannot be read, contains more than data, or holds another network.
    """
    from maisi_aug.networks.building import describe_tensors
    from maisi_aug.networks.checkpoints.reading import read_checkpoint, take_scale_factor, take_state_dict
    from maisi_aug.networks.weights import require_same_tensors

    masks, states, scale_factor = known.require_masks(), {}, 0.0
    for role in MASK_ROLES:
        about = f"Bundle '{known.name}', {files[role].name}"
        checkpoint = read_checkpoint(files[role], subject=about)
        states[role] = take_state_dict(checkpoint, role, subject=about)
        require_same_tensors(describe_tensors(masks.networks[role]), states[role], subject=about)
        if role == "mask_diffusion_unet":
            scale_factor = take_scale_factor(checkpoint, subject=about)
    load_size_conditions(files[SIZE_CONDITIONS])
    note_masks(
        folder,
        networks=masks.networks,
        states=states,
        settings={**masks.settings, "scale_factor": scale_factor},
        size_conditions=files[SIZE_CONDITIONS].read_bytes(),
        provenance=provenance,
    )


def note_masks(
    folder: Path,
    *,
    networks: Mapping[str, Mapping[str, Any]],
    states: Mapping[str, StateDict],
    settings: Mapping[str, Any],
    size_conditions: bytes,
    provenance: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> None:
    """Write mask networks into a bundle's folder that has none, and add them to its ``bundle.yaml``.

    Args:
        folder: Folder of the bundle; no other process may be using it.
        networks: Role -> definition.
        states: Role -> state dict.
        settings: Fields of ``MaskGenerationSpec`` except the size conditions.
        size_conditions: Content of the size-conditions file.
        provenance: Origin of the networks.
        dtype: Floating-point type of the written weights; None keeps every tensor's own.
    """
    from maisi_aug.networks.weights import write_weights

    sizes = folder / f"{SIZE_CONDITIONS}.json"
    write_whole(sizes, size_conditions)
    content = read_yaml(folder / BUNDLE_FILE)
    content["networks"] |= networks
    content["weights"] |= write_weights(folder, states, dtype=dtype)
    content.setdefault("provenance", {})[MASK_PROVENANCE] = dict(provenance)
    named = {"file": sizes.name, "sha256": sha256_of(sizes)}
    content[MASK_SECTION] = {**settings, SIZE_CONDITIONS: named}
    write_text_whole(folder / BUNDLE_FILE, dump_bundle(content))


def copy_without_masks(bundle: Bundle, folder: Path) -> None:
    """Copy a bundle without its mask networks; files are hard-linked if the disk supports it.

    Args:
        bundle: Bundle to copy.
        folder: Existing, empty folder.
    """
    masks = bundle.spec.mask_generation
    own = {named.file for role, named in bundle.spec.weights.items() if role in MASK_ROLES}
    own |= {masks.size_conditions.file} if masks else set()
    kept = [bundle.path_of(named) for named in bundle.files if named.file not in own]
    for path in [*kept, *(path for path in [bundle.path / LICENCE_FILE] if path.is_file())]:
        _link(path, folder / path.name)
    content = read_yaml(bundle.path / BUNDLE_FILE)
    write_text_whole(folder / BUNDLE_FILE, dump_bundle(without_masks(content)))


def add_mask_networks(
    known: KnownBundle, present: Bundle, files: Mapping[str, Path], *, provenance: Mapping[str, Any]
) -> Bundle:
    """Add mask networks to an installed bundle that has none, whole or not at all.

    Args:
        known: The bundle, with its definitions and the licence, which has been accepted.
        present: The installed bundle, whose files are not changed.
        files: Role -> checkpoint, and the size-conditions file.
        provenance: Origin of the files.

    Returns:
        The bundle with mask networks.

    Raises:
        BundleError: A checkpoint cannot be used, or other files lie in the bundle's folder.
    """
    origin = str(present.spec.provenance["origin"])
    replaceable = partial(require_free, present.path, known.name, origin)
    with open_whole_folder(present.path, require_replaceable=replaceable) as unfinished:
        kept = [present.path / BUNDLE_FILE, *(present.path_of(named) for named in present.files)]
        kept += [path for path in [present.path / LICENCE_FILE] if path.is_file()]
        for path in kept:
            _link(path, unfinished / path.name)
        write_mask_networks(known, files, unfinished, provenance=provenance)
    return load_bundle(present.path)


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the disk has no links; files are replaced, never changed."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
