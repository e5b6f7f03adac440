"""Weights of a bundle: written as safetensors, float16 by default, read strictly into the networks."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from monai.networks.schedulers.ddpm import DDPMScheduler
from torch import Tensor, nn

from maisi_aug.bundle_spec.bundle import BUNDLE_FILE, Bundle, load_bundle
from maisi_aug.bundle_spec.mask_networks import require_masks
from maisi_aug.bundle_spec.schema import MASK_ROLES, dump_bundle
from maisi_aug.errors import BundleError
from maisi_aug.networks.building import (
    MaskNetworks,
    Networks,
    NoControlNet,
    build_network,
    build_scheduler,
    describe_tensors,
    keep_decoder_output_precise,
    keep_norms_in_float32,
    use_plain_layers,
)
from maisi_aug.networks.cpu_layers import use_cpu_layers
from maisi_aug.networks.mask_conditions import load_size_conditions
from maisi_aug.networks.pointwise import use_label_table
from maisi_aug.system.content import ContentError, content_errors
from maisi_aug.system.whole_files import open_whole, sha256_of, write_text_whole

StateDict = Mapping[str, Tensor]

METADATA_KEY = "__metadata__"
"""Key under which a safetensors file keeps metadata."""
MAX_HEADER_BYTES: Final = 16 * 2**20
"""Largest header of a safetensors file in bytes; that of a network of a thousand tensors takes a tenth of a megabyte.
"""
_LENGTH_BYTES: Final = 8


def load_networks(
    bundle: Bundle, *, device: str = "cpu", plain_layers: bool = True, cpu_layers: bool = True
) -> Networks:
    """Build the image networks of a bundle, and load their weights strictly.

    Args:
        bundle: Bundle, whose weight files are first compared with their SHA-256.
        device: Device on which the networks run.
        plain_layers: Replace MAISI's memory-saving layers by plain, faster ones, which can also be computed in parts.
        cpu_layers: Whether convolutions and attention are replaced by faster ones on a CPU.

    Raises:
        BundleError: Files are altered or missing, or tensors do not match the definition; the message lists the keys.
    """
    bundle.require_intact(bundle.image_roles)
    networks = {role: _load_network(bundle, role, device=device) for role in bundle.image_roles}
    for network in networks.values():
        _prepare(network, device, plain_layers=plain_layers, cpu_layers=cpu_layers)
    keep_decoder_output_precise(networks["autoencoder"])
    return Networks(
        **{"controlnet": NoControlNet(), **networks},
        scheduler=build_scheduler(bundle.spec.scheduler),
        scale_factor=bundle.spec.scale_factor,
        device=device,
    )


def load_autoencoder(bundle: Bundle, *, device: str = "cpu") -> nn.Module:
    """Load only the autoencoder of a bundle, as :func:`load_networks` does.

    Args:
        bundle: Bundle whose weight file is first compared with its SHA-256.
        device: Name of the torch device on which it runs.

    Returns:
        The autoencoder in evaluation mode.

    Raises:
        BundleError: The file is altered or missing, or tensors do not match the definition.
    """
    bundle.require_intact(("autoencoder",))
    autoencoder = _load_network(bundle, "autoencoder", device=device)
    _prepare(autoencoder, device, plain_layers=True, cpu_layers=True)
    keep_decoder_output_precise(autoencoder)
    return autoencoder


def load_mask_networks(bundle: Bundle, *, device: str = "cpu", plain_layers: bool = True) -> MaskNetworks:
    """Build the mask networks of a bundle, and load their weights strictly.

    Args:
        bundle: Bundle with mask networks, whose weight files are first compared with their SHA-256.
        device: Device on which the networks run; on a CPU, convolutions and attention are replaced by faster ones.
        plain_layers: Replace MAISI's memory-saving layers by plain, faster ones.

    Raises:
        BundleError: The bundle has no mask networks, files are altered or missing, tensors do not match the definition,
            or the scheduler is not DDPM.
    """
    spec = require_masks(bundle)
    bundle.require_intact(MASK_ROLES)
    autoencoder, unet = (_load_network(bundle, role, device=device) for role in MASK_ROLES)
    scheduler = build_scheduler(spec.scheduler)
    if not isinstance(scheduler, DDPMScheduler) or scheduler.prediction_type != "epsilon" or scheduler.clip_sample:
        raise BundleError(
            f"Bundle '{bundle.name}': mask_generation.scheduler must be a DDPMScheduler that predicts noise and "
            f"clips nothing, found {spec.scheduler}. Get the bundle again."
        )
    for network in (autoencoder, unet):
        network.eval().requires_grad_(False)
    if plain_layers:
        use_plain_layers(autoencoder)
    if device.startswith("cpu"):
        for network in (autoencoder, unet):
            use_cpu_layers(network)
    return MaskNetworks(autoencoder, unet, scheduler, spec.scale_factor, device)


def _prepare(network: nn.Module, device: str, *, plain_layers: bool, cpu_layers: bool) -> None:
    """Make a network ready for drawing, with the layers that are requested."""
    network.eval().requires_grad_(False)
    if plain_layers:
        use_plain_layers(network)
    else:
        keep_norms_in_float32(network)
    if cpu_layers and device.startswith("cpu"):
        if plain_layers:
            use_label_table(network)
        use_cpu_layers(network)


def _load_network(bundle: Bundle, role: str, *, device: str) -> nn.Module:
    subject = f"Bundle '{bundle.name}', {bundle.weight_path(role).name}"
    # Compared first, so that no memory is taken for a network that the file does not hold.
    require_same_tensors(describe_tensors(bundle.definition(role)), describe_weight_file(bundle, role), subject=subject)
    network = build_network(bundle.definition(role), device=device, draws_weights=False)
    state = load_weight_file(bundle, role, device=device)
    network.load_state_dict({key: value.float() for key, value in state.items()})
    return network


def load_weight_file(bundle: Bundle, role: str, *, device: str = "cpu") -> dict[str, Tensor]:
    """Return the tensors of a network's weight file by name, in their own types.

    Args:
        bundle: Bundle of the network.
        role: Role of the network, such as ``controlnet``.
        device: Device to load the tensors to.

    Raises:
        BundleError: The file is missing or cannot be read.
    """
    return _read(lambda path: load_safetensors(path, device=device), bundle, role)


def describe_weight_file(bundle: Bundle, role: str) -> dict[str, Tensor]:
    """Return the names and shapes of the tensors in a network's weight file, without their values.

    Args:
        bundle: Bundle of the network.
        role: Role of the network, such as ``controlnet``.

    Raises:
        BundleError: The file is missing or cannot be read.
    """
    return _read(describe_safetensors, bundle, role)


def _read(read: Callable[[Path], dict[str, Tensor]], bundle: Bundle, role: str) -> dict[str, Tensor]:
    path = bundle.weight_path(role)
    try:
        return read(path)
    except (OSError, ContentError) as error:
        raise BundleError(
            f"Bundle '{bundle.name}': {path.name} is not a readable safetensors file: {error}."
        ) from error


def verify_bundle(bundle: Bundle) -> list[dict[str, Any]]:
    """Compare every weight file with its hash, and its tensors' names and shapes with the definition of its network.

    Returns:
        A row per file: ``role``, ``file``, ``sha256``, ``class`` of the network, ``num_tensors``.

    Raises:
        BundleError: A file is missing or faulty; the message names the first.
    """
    bundle.require_intact()
    build_scheduler(bundle.spec.scheduler)
    if bundle.spec.mask_generation is not None:
        build_scheduler(bundle.spec.mask_generation.scheduler)
        load_size_conditions(bundle.path_of(bundle.spec.mask_generation.size_conditions))
    rows = []
    for role in bundle.roles:
        definition, path = bundle.definition(role), bundle.weight_path(role)
        found = describe_weight_file(bundle, role)
        require_same_tensors(describe_tensors(definition), found, subject=f"Bundle '{bundle.name}', {path.name}")
        rows.append(
            {
                "role": role,
                "file": path.name,
                "sha256": bundle.owner_of(role).spec.weights[role].sha256,
                "bundle": bundle.owner_of(role).name,
                "class": str(definition["class"]),
                "num_tensors": len(found),
            }
        )
    return rows


def require_same_tensors(expected: StateDict, found: StateDict, *, subject: str) -> None:
    """Raise unless two state dicts have the same names and shapes of tensors.

    Args:
        expected: State dict of the network.
        found: State dict of the file.
        subject: Name of the file in messages.

    Raises:
        BundleError: They differ; the message lists missing, surplus and misshapen tensors, at most five of each.
    """
    missing = sorted(set(expected) - set(found))
    surplus = sorted(set(found) - set(expected))
    misshapen = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in sorted(set(expected) & set(found))
        if expected[key].shape != found[key].shape
    ]
    problems = [
        f"{len(keys)} {kind} ({', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''})"
        for kind, keys in (("missing", missing), ("surplus", surplus), ("of a different shape", misshapen))
        if keys
    ]
    if problems:
        raise BundleError(f"{subject}: tensors differ from the definition: {'; '.join(problems)}.")


def write_bundle(
    folder: Path,
    header: Mapping[str, Any],
    weights: Mapping[str, StateDict],
    *,
    dtype: torch.dtype | None = torch.float16,
) -> Bundle:
    """Write a bundle: safetensors, then ``bundle.yaml`` with their hashes.

    Args:
        folder: Folder of the bundle, created if missing; existing files of the same names are replaced.
        header: Fields of ``BundleSpec`` except ``weights``.
        weights: Role -> state dict.
        dtype: Floating-point type of the written weights; None keeps every tensor's own. Integers always keep theirs.

    Raises:
        BundleError: The result does not validate.
    """
    files = write_weights(folder, weights, dtype=dtype)
    write_text_whole(folder / BUNDLE_FILE, dump_bundle({**header, "weights": files}))
    return load_bundle(folder)


def write_safetensors(path: Path, content: bytes) -> None:
    """Write the content of a safetensors file, whole, with its metadata sorted by name.

    The library writes several entries in a random order, which would change the file's hash. The file consists of the
    length of its header in 8 bytes, the header as JSON, padded with spaces to a multiple of 8 bytes, and the tensors,
    whose offsets count from the end of the header.

    Args:
        path: Path of the new file.
        content: Bytes that ``safetensors`` serialised from tensors and metadata.

    Raises:
        VolumeError: The file cannot be written.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    if METADATA_KEY in header:
        header[METADATA_KEY] = dict(sorted(header[METADATA_KEY].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open_whole(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(memoryview(content)[end:])


def write_weights(
    folder: Path, weights: Mapping[str, StateDict], *, dtype: torch.dtype | None = None
) -> dict[str, dict[str, str]]:
    """Write state dicts as safetensors files named after their roles.

    Args:
        folder: Folder, created if missing; existing files of the same names are replaced.
        weights: Role -> state dict.
        dtype: Floating-point type of the written weights; None keeps every tensor's own.

    Returns:
        Role -> entry of ``bundle.yaml`` about the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, str]] = {}
    for role, state in weights.items():
        tensors = {
            key: (value.to(dtype) if dtype is not None and value.is_floating_point() else value).contiguous().cpu()
            for key, value in state.items()
        }
        path = folder / f"{role}.safetensors"
        write_safetensors(path, safetensors.torch.save(tensors))
        files[role] = {"file": path.name, "sha256": sha256_of(path)}
    return files


def load_safetensors(path: Path, *, device: str = "cpu") -> dict[str, Tensor]:
    """Return name -> tensor of a safetensors file, in the types of the file.

    Args:
        path: File to read.
        device: Name of the torch device to load the tensors to.

    Raises:
        ContentError: The file is not a safetensors file, or damaged.
        OSError: The file is missing or cannot be read.
    """
    with content_errors(path):
        require_header(path)
        state: dict[str, Tensor] = safetensors.torch.load_file(path, device=device)
    return state


def describe_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the names and shapes of a safetensors file's tensors, without their values.

    Raises:
        ContentError: The file is not a safetensors file, or damaged.
        OSError: The file is missing or cannot be read.
    """
    with content_errors(path):
        require_header(path)
        with safetensors.safe_open(path, framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  not a mapping
        return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def require_header(path: Path) -> None:
    """Raise if a safetensors file states a header longer than the file or than any valid header.

    Raises:
        ContentError: The header is too long.
        OSError: The file is missing or cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(_LENGTH_BYTES)
    if len(start) < _LENGTH_BYTES:
        raise ContentError("it ends too early")
    (length,) = struct.unpack("<Q", start)
    if length > min(MAX_HEADER_BYTES, path.stat().st_size - _LENGTH_BYTES):
        raise ContentError(f"its header of {length} bytes is longer than the file, or than any valid header")


def load_torch_file(path: Path, *, device: str | torch.device = "cpu", mmap: bool = True) -> Any:
    """Load a file that ``torch.save`` wrote: only tensors and plain containers, no code.

    Args:
        path: The file.
        device: Device to load the tensors to.
        mmap: Leave tensors for the CPU on the disk, which must then stay as it is.

    Raises:
        ContentError: The file cannot be read as such, contains more than data, or states more data than it holds.
        OSError: The file is missing or cannot be read.
    """
    with content_errors(path):
        # Files of torch before 1.6 are not zip archives and cannot be mapped.
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
