"""Checkpoints that others wrote with ``torch.save``: read without running code from the file.

Only ``weights_only=True`` is ever used. Beside tensors and plain containers it lets through what MAISI's training
leaves in its files and what holds data alone: MONAI's tensors with their metadata, and numpy's numbers and arrays.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.meta_obj import MetaObj
from monai.data.meta_tensor import MetaTensor
from monai.utils.enums import MetaKeys, SpaceKeys, TraceKeys
from torch import Tensor

from maisi_aug.errors import BundleError
from maisi_aug.networks.weights import load_torch_file
from maisi_aug.system.content import ContentError, content_errors

# Under which key a checkpoint keeps the network of a role; those of autoencoders may also be bare state dicts.
STATE_DICT_KEYS = {
    "autoencoder": "unet_state_dict",
    "diffusion_unet": "unet_state_dict",
    "controlnet": "controlnet_state_dict",
    "mask_autoencoder": "unet_state_dict",
    "mask_diffusion_unet": "unet_state_dict",
}
OTHER_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")
"""Keys under which other programs wrap weights."""
SCALE_FACTOR_KEY = "scale_factor"

# What numpy rebuilds numbers and arrays with, asked of numpy itself: their home has moved with numpy 2, and files name
# the home of their time.
_NUMPY_BUILDERS = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.zeros(1).__reduce__()[0]}
_WORDS = (MetaKeys, SpaceKeys, TraceKeys)  # of MONAI's metadata


def _find_word(words: Any, name: Any) -> Any:
    """Stand in for getattr, which Python 3.11.0 to 3.11.3 uses to store members of enumerations; allows only these."""
    if words not in _WORDS or not isinstance(name, str) or name not in words.__members__:
        raise pickle.UnpicklingError(f"WeightsUnpickler error: GLOBAL builtins.getattr of {words!r}, {name!r}")
    return words[name]


# Types of data alone.
_DATA_TYPES: list[Any] = [
    *(MetaObj, MetaTensor, *_WORDS, np.ndarray, np.dtype),
    (_find_word, "builtins.getattr"),
    *(type(np.dtype(code)) for code in "?bBhHiIqQefd"),
    *(
        (builder, f"numpy.{home}.multiarray.{name}")
        for home in ("core", "_core")
        for name, builder in _NUMPY_BUILDERS.items()
    ),
]


def read_checkpoint(path: Path, *, subject: str) -> Mapping[str, Any]:
    """Read the dictionary of a checkpoint; its tensors stay on disk until they are used.

    Args:
        path: A file that ``torch.save`` wrote.
        subject: Description of the file in messages.

    Raises:
        BundleError: The file is not a checkpoint, or contains code, which is named and not run.
    """
    with torch.serialization.safe_globals(_DATA_TYPES):
        try:
            content = load_torch_file(path)
        except ContentError as error:
            raise BundleError(f"{subject}: must contain weights only, found {_name_surplus(path, error)}.") from error
    if not isinstance(content, Mapping):
        raise BundleError(f"{subject}: expected a dictionary of tensors, found a {type(content).__name__}.")
    return content


def _name_surplus(path: Path, error: Exception) -> str:
    """Name what the file needs besides data, by reading its instructions without executing them."""
    message = str(error.__cause__ or error).rpartition("WeightsUnpickler error:")[2].strip()
    try:
        with content_errors():
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except ContentError:  # the file may be older than that function, or broken in any way
        names = []
    names = names or re.findall(r"GLOBAL ([\w.]+)", message)
    if names:
        return f"a pickle that needs {', '.join(names)}; it was neither run nor used"
    reason = message.partition("\n")[0].rstrip(".")[:200] or "it ends too early"
    return f"a file that cannot be read ({reason})"


def take_state_dict(checkpoint: Mapping[str, Any], role: str, *, subject: str) -> dict[str, Tensor]:
    """Return the state dict of a network from a checkpoint, unwrapped if the checkpoint nests it.

    Args:
        checkpoint: Content of the checkpoint.
        role: Role of the network.
        subject: Description of the file in messages.

    Raises:
        BundleError: There is no state dict; the keys that were found are named.
    """
    inner = checkpoint.get(STATE_DICT_KEYS[role], checkpoint)
    if not isinstance(inner, Mapping) or not inner or not all(isinstance(value, Tensor) for value in inner.values()):
        found = ", ".join(f"'{key}'" for key in list(checkpoint)[:8])
        raise BundleError(
            f"{subject}: no state dict, either directly or under '{STATE_DICT_KEYS[role]}'; found {found or 'nothing'}."
        )
    return {str(key): value.detach().as_subclass(torch.Tensor) for key, value in inner.items()}


def find_state_dict(checkpoint: Mapping[str, Any], *, subject: str) -> tuple[str | None, dict[str, Tensor]]:
    """Return the state dict in the checkpoint of an unknown network.

    Args:
        checkpoint: Content of the checkpoint.
        subject: Name of the file in messages.

    Returns:
        Key of the checkpoint that nests the state dict, None if it is the checkpoint itself; and name -> tensor.

    Raises:
        BundleError: There is no state dict; the keys that were found are named.
    """
    known = dict.fromkeys((*STATE_DICT_KEYS.values(), *OTHER_STATE_DICT_KEYS))
    key = next((key for key in known if isinstance(checkpoint.get(key), Mapping)), None)
    inner = checkpoint if key is None else checkpoint[key]
    if not inner or not all(isinstance(value, Tensor) for value in inner.values()):
        found = ", ".join(f"'{name}'" for name in list(checkpoint)[:8])
        raise BundleError(
            f"{subject}: no state dict, either directly or under {' or '.join(known)}; found {found or 'nothing'}."
        )
    return key, {str(name): value.detach().as_subclass(torch.Tensor) for name, value in inner.items()}


def take_scale_factor(checkpoint: Mapping[str, Any], *, subject: str) -> float:
    """Return the factor by which latents are multiplied for diffusion, from a checkpoint.

    Args:
        checkpoint: Content of the checkpoint of a diffusion U-Net.
        subject: Name of the file in messages.

    Raises:
        BundleError: The factor is missing or not a positive number.
    """
    found = checkpoint.get(SCALE_FACTOR_KEY)
    if isinstance(found, Tensor) and found.numel() == 1:
        found = found.item()
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found) or found <= 0:
        raise BundleError(f"{subject}: '{SCALE_FACTOR_KEY}' must be a positive number, found {found!r}.")
    return float(found)
