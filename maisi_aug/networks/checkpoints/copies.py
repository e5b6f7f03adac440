"""Copies of weights in another floating type, and lone checkpoints as safetensors: whole or not at all.

What a copy changes is its size on disk. Networks compute in float32, or in autocast's type, whatever type the file has:
a float32 bundle gives the images of its float16 copy to within the rounding of the weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from maisi_aug.bundle_spec.bundle import BUNDLE_FILE, Bundle, load_bundle
from maisi_aug.errors import BundleError
from maisi_aug.networks.checkpoints.reading import SCALE_FACTOR_KEY, find_state_dict, read_checkpoint, take_scale_factor
from maisi_aug.networks.weights import StateDict, load_weight_file, write_bundle, write_safetensors
from maisi_aug.system.content import read_json
from maisi_aug.system.whole_files import sha256_of, write_json_whole
from maisi_aug.system.whole_folder import open_whole_folder

DTYPES: Mapping[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class Conversion:
    """Result of converting a bundle or a checkpoint.

    Attributes:
        path: Folder of the new bundle, or the new safetensors file.
        dtype: Floating-point type of the weights; None if every tensor kept its own.
        num_bytes_before: Size in bytes of the weight files that were read.
        num_bytes: Size in bytes of the weight files that were written.
        scale_factor: Factor by which latents are multiplied for diffusion; None for a checkpoint without one.
        left_out: Entries of a checkpoint that are not weights, such as the state of its optimiser.
    """

    path: Path
    dtype: str | None
    num_bytes_before: int
    num_bytes: int
    scale_factor: float | None
    left_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON-able dict."""
        return {
            "path": str(self.path),
            "dtype": self.dtype,
            "num_bytes_before": self.num_bytes_before,
            "num_bytes": self.num_bytes,
            "scale_factor": self.scale_factor,
            "left_out": list(self.left_out),
        }


def convert_bundle(name_or_folder: str | Path, target: Path, *, dtype: str) -> Conversion:
    """Copy a bundle with its weights in another floating-point type.

    Definitions, scale factor, licence files and provenance are carried over, and the conversion is recorded.

    Args:
        name_or_folder: Name or folder of the bundle; its files are compared with their hashes first.
        target: Folder of the copy; new or empty.
        dtype: "float16", "bfloat16" or "float32"; integers keep their type.

    Raises:
        BundleError: For a bundle that is altered, a target that exists, or weights beyond the range of the type.
    """
    bundle = load_bundle(name_or_folder)
    bundle.require_intact()
    _require_new(target)
    names = [weights.file for weights in bundle.spec.weights.values()]
    # A copy has all its weights: what it shares with a base would be lost with another floating type.
    states = {
        role: _to_dtype(
            load_weight_file(bundle, role), dtype, subject=f"Bundle '{bundle.name}', {bundle.weight_path(role).name}"
        )
        for role in dict.fromkeys((*bundle.spec.weights, *bundle.roles))
    }
    done = {"dtype": dtype, "from_fingerprint": bundle.fingerprint}
    header = bundle.spec.model_dump(mode="json", exclude={"weights", "base"}, exclude_unset=True)
    earlier = header.get("provenance", {})
    header["provenance"] = {**earlier, "converted": [*earlier.get("converted", []), done]}
    with open_whole_folder(target, require_replaceable=lambda: _require_new(target)) as unfinished:
        for path in sorted(bundle.path.iterdir()):
            if path.is_file() and path.name not in (*names, BUNDLE_FILE):
                shutil.copyfile(path, unfinished / path.name)
        _copy_bank(bundle, unfinished)
        written = write_bundle(unfinished, header, states, dtype=None)
        num_bytes = sum(written.weight_path(role).stat().st_size for role in states)
    num_bytes_before = sum(bundle.weight_path(role).stat().st_size for role in states)
    return Conversion(target, dtype, num_bytes_before, num_bytes, bundle.spec.scale_factor)


def convert_checkpoint(source: Path, target: Path, *, dtype: str | None = None) -> Conversion:
    """Convert the checkpoint of one network to safetensors, with its scale factor and SHA-256 as metadata.

    Args:
        source: A file that ``torch.save`` wrote; its state dict is found alone or under its usual keys.
        target: File to write, ``.safetensors``, or a folder to write it into under the checkpoint's name.
        dtype: "float16", "bfloat16" or "float32"; None keeps every tensor's own.

    Raises:
        BundleError: For a file that is not a checkpoint or contains more than data, a target that exists or has another
            ending, or weights beyond the range of the type.
    """
    path = target / source.with_suffix(SUFFIX).name if target.is_dir() else target
    if path.suffix != SUFFIX:
        raise BundleError(f"{path}: the name must end in {SUFFIX}, or be a folder. Change --to.")
    _require_new(path)
    checkpoint = read_checkpoint(source, subject=str(source))
    key, state = find_state_dict(checkpoint, subject=str(source))
    metadata = {"format": "pt", "source": source.name, "source_sha256": sha256_of(source)}
    scale_factor = None
    if key is not None:
        metadata["key"] = key
        if SCALE_FACTOR_KEY in checkpoint:
            scale_factor = take_scale_factor(checkpoint, subject=str(source))
            metadata[SCALE_FACTOR_KEY] = repr(scale_factor)
    if dtype is not None:
        state = _to_dtype(state, dtype, subject=str(source))
    tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    write_safetensors(path, safetensors.torch.save(tensors, metadata=metadata))
    left_out = () if key is None else tuple(str(name) for name in checkpoint if name not in (key, SCALE_FACTOR_KEY))
    return Conversion(path, dtype, source.stat().st_size, path.stat().st_size, scale_factor, left_out)


def _require_new(target: Path) -> None:
    """Raise when a target exists; an empty folder counts as none."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise BundleError(f"{target}: already exists. Choose another --to.")


def _to_dtype(state: StateDict, dtype: str, *, subject: str) -> dict[str, Tensor]:
    """The weights in a floating type; integers keep theirs.

    Raises:
        BundleError: The message names the first tensor with a value beyond the range of the type.
    """
    converted = {}
    for key, value in state.items():
        converted[key] = value.to(DTYPES[dtype]) if value.is_floating_point() else value
        if value.is_floating_point() and bool((converted[key].isinf() & value.isfinite()).any()):
            largest = float(value[value.isfinite()].abs().max())
            raise BundleError(
                f"{subject}: {key} has {largest:g}, which is beyond the range of {dtype}. Use --dtype bfloat16 or "
                "float32."
            )
    return converted


def _copy_bank(bundle: Bundle, folder: Path) -> None:
    """Put the list of a bundle's label maps, and the maps that lie in its folder, into the folder of a copy.

    Maps elsewhere are listed by their absolute paths, for the copy may lie anywhere.

    Args:
        bundle: Bundle with or without such a list.
        folder: Folder of the copy.
    """
    bank = bundle.spec.mask_bank
    if bank is None:
        return
    document = read_json(bundle.path / bank.list)
    home = bundle.path.resolve()
    for row in document["training"]:
        source = (home / row["label"]).resolve()
        if source.is_relative_to(home):
            target = folder / source.relative_to(home)  # not as it is spelled: '..' would lead out of the copy
            row["label"] = source.relative_to(home).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        else:
            row["label"] = source.as_posix()
    if (bundle.path / bank.labels).is_file():
        shutil.copyfile(bundle.path / bank.labels, folder / bank.labels)
    write_json_whole(folder / bank.list, document)
