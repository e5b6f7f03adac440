"""Files of tensors, safetensors and ``torch.save``: read once what they state is compared with what they hold.

Every reader of weights goes through here. What is wrong with a file comes out as one kind of error.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from maisi_aug.system.content import ContentError, content_errors

MAX_HEADER_BYTES: Final = 16 * 2**20
"""Of a safetensors file; that of a network of a thousand tensors takes a tenth of a megabyte."""
_LENGTH_BYTES: Final = 8


def load_safetensors(path: Path, *, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ContentError: It is no such file, or damaged.
        OSError: It is missing or cannot be read.
    """
    with content_errors(path):
        require_header(path)
        state: dict[str, Tensor] = safetensors.torch.load_file(path, device=device)
    return state


def describe_safetensors(path: Path) -> dict[str, Tensor]:
    """Names and shapes of a file's tensors, without their values.

    Raises:
        ContentError: It is no such file, or damaged.
        OSError: It is missing or cannot be read.
    """
    with content_errors(path):
        require_header(path)
        with safetensors.safe_open(path, framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  not a mapping
        return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def require_header(path: Path) -> None:
    """Raise where a safetensors file says that its header is longer than the file or than any.

    Raises:
        ContentError: It does.
        OSError: The file is missing or cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_LENGTH_BYTES)
    if len(start) < _LENGTH_BYTES:
        raise ContentError("it ends too early")
    (length,) = struct.unpack("<Q", start)
    if length > min(MAX_HEADER_BYTES, path.stat().st_size - _LENGTH_BYTES):
        raise ContentError(f"its header of {length} bytes is longer than the file, or than any")


def load_torch_file(path: Path, *, device: str | torch.device = "cpu", mmap: bool = True) -> Any:
    """What ``torch.save`` wrote: tensors and plain containers, no code, its tensors on the disk until they are used.

    Args:
        path: The file.
        device: Where the tensors go.
        mmap: Leave tensors for the CPU on the disk, which must then stay as it is.

    Raises:
        ContentError: It cannot be read as such, asks for more than data, or states more than it holds.
        OSError: It is missing or cannot be read.
    """
    with content_errors(path):
        # Files of torch before 1.6 are no zip archives and cannot be mapped.
        is_archive = zipfile.is_zipfile(path)
        if is_archive:
            _require_stored(path)
        content = torch.load(path, map_location=device, weights_only=True, mmap=mmap and is_archive)
    _require_held(content, path.stat().st_size)
    return content


def _require_stored(path: Path) -> None:
    """Raise for an archive with compressed members: torch writes none, and one could unpack to any size."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > member.compress_size:
                raise ContentError(f"its part '{member.filename[:60]}' is compressed")


def _require_held(content: Any, num_bytes: int) -> None:
    """Raise for tensors that state more elements than the file can hold, as one element that is repeated does."""
    level, seen = [content], set()
    while level:
        value = level.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            level += value.values()
        elif isinstance(value, list | tuple):
            level += value
        elif isinstance(value, Tensor) and value.numel() * value.element_size() > num_bytes:
            raise ContentError(f"a tensor of shape {tuple(value.shape)} is larger than the file")
