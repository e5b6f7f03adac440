"""Networks of one's own: checkpoints of NVIDIA's training scripts, and the file that defines what they are.

The file is a ``config_network_*.json`` of NV-Generate-CTMR: a definition for each network and the scheduler, in which
``@NAME`` stands for a value of the file. It is read as data; expressions, which MONAI would run, are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maisi_aug.bundle_spec.bundle import IMAGE_ROLES, NETWORK_ROLES, SCHEDULER_STEPS
from maisi_aug.bundle_spec.schema import require_definition, require_levels
from maisi_aug.errors import BundleError
from maisi_aug.system.content import ContentError, read_json

if TYPE_CHECKING:
    from torch import Tensor

DEFINITIONS: Mapping[str, str] = {
    "autoencoder": "autoencoder_def",
    "diffusion_unet": "diffusion_unet_def",
    "controlnet": "controlnet_def",
}
"""Key under which the file defines a network, by role."""
SCHEDULER = "noise_scheduler"
TARGET = "_target_"
LICENCE = "Not stated; the licence of the checkpoints applies"
FLOW_STEPS = 30
"""Default number of sampling steps with rectified flow, as of NVIDIA's own networks."""
DEFAULT_GRID = {"shape": [256, 256, 256], "spacing_mm": [1.5, 1.5, 1.5]}
_NAME_PARTS: Mapping[str, str] = {"autoencoder": "autoencoder", "diffusion_unet": "unet", "controlnet": "controlnet"}
"""Parts of the names of NVIDIA's checkpoints by role, to report the most likely file where none fits."""


@dataclass(frozen=True)
class NetworkFile:
    """Networks and scheduler that one of NVIDIA's ``config_network_*.json`` defines.

    Attributes:
        path: Path of the file.
        networks: Role -> definition, as in ``bundle.yaml``.
        scheduler: Scheduler of the image networks.
    """

    path: Path
    networks: Mapping[str, Mapping[str, Any]]
    scheduler: Mapping[str, Any]

    @property
    def default_steps(self) -> int:
        """Number of sampling steps if the user requests none."""
        is_flow = self.scheduler["class"] == "RFlowScheduler"
        return FLOW_STEPS if is_flow else int(self.scheduler.get("num_train_timesteps", SCHEDULER_STEPS))


def read_network_file(path: Path) -> NetworkFile:
    """Read the network definitions of a ``config_network_*.json``.

    Raises:
        BundleError: For a file that cannot be read, lacks a definition, refers to a value that it lacks, or holds an
            expression.
    """
    try:
        content = read_json(path)
    except (OSError, ContentError) as error:
        raise BundleError(f"{path}: expected a config_network_*.json, found: {error}.") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path}: expected definitions of networks by name, found a {type(content).__name__}.")
    needed = [DEFINITIONS[role] for role in IMAGE_ROLES] + [SCHEDULER]
    missing = [name for name in needed if not isinstance(content.get(name), dict)]
    if missing:
        raise BundleError(f"{path}: expected {', '.join(missing)} among its definitions, found {', '.join(content)}.")
    names = {role: name for role, name in DEFINITIONS.items() if isinstance(content.get(name), dict)}
    networks = {role: _to_definition(content, name, path) for role, name in names.items()}
    scheduler = _to_definition(content, SCHEDULER, path)
    try:
        for definition in (*networks.values(), scheduler):
            require_definition(definition)
        require_levels(networks)
    except ValueError as error:
        raise BundleError(f"{path}: {error}.") from error
    return NetworkFile(path, networks, scheduler)


def _to_definition(content: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """A definition with the name of its class in place of the class's path, and values in place of references."""
    resolved = {key: _resolve(value, content, f"{path}, {name}.{key}") for key, value in content[name].items()}
    target = resolved.pop(TARGET, None)
    if not isinstance(target, str):
        raise BundleError(f"{path}: expected the path of a class as {name}.{TARGET}, found {target!r}.")
    return {"class": target.rpartition(".")[2], **resolved}


def _resolve(value: Any, content: Mapping[str, Any], place: str) -> Any:
    if isinstance(value, list):
        return [_resolve(part, content, place) for part in value]
    if not isinstance(value, str) or not value.startswith(("@", "$")):
        return value
    found = content.get(value[1:], value) if value.startswith("@") else value
    if isinstance(found, str) and found.startswith(("@", "$")):
        raise BundleError(
            f"{place}: expected a value, or '@NAME' of one in the same file, found '{value}'. Write the value itself."
        )
    return found


def match_checkpoints(source: Path, network: NetworkFile) -> tuple[dict[str, Path], list[str]]:
    """Find the checkpoint of every network by the names and shapes of its tensors, whatever the file names.

    Args:
        source: Folder with the checkpoints, or with a folder ``models`` of them.
        network: Definitions of the networks that the checkpoints hold.

    Returns:
        Role -> checkpoint, without a ControlNet if the folder has none; and sentences about the choice.

    Raises:
        BundleError: A network has no checkpoint (the message says how the likeliest one differs), or several.
    """
    from maisi_aug.networks.building import describe_tensors

    paths = sorted(path for folder in (source / "models", source) for path in folder.glob("*.pt"))
    if not paths:
        raise BundleError(f"{source}: expected checkpoints (.pt), in it or in its folder models, found none.")
    faults: dict[Path, str] = {}
    states = {path: state for path in paths if (state := _read_state(path, faults)) is not None}
    chosen, notes = {}, []
    for role, definition in network.networks.items():
        expected = describe_tensors(definition)
        fitting = [path for path, state in states.items() if _is_same(expected, state)]
        if not fitting and role == "controlnet" and not _named_like(role, paths):
            notes.append(
                f"No ControlNet in {source}: the bundle can only draw images without label maps (--mask-source none)."
            )
            continue
        if not fitting:
            _explain_misfit(role, expected, states, faults, source, network.path)
        chosen[role] = _choose(fitting, role, notes)
    return chosen, notes


def _read_state(path: Path, faults: dict[Path, str]) -> Mapping[str, Tensor] | None:
    """The tensors of a checkpoint, still on the disk; None, with the reason noted, for a file without a network."""
    from maisi_aug.networks.checkpoints.reading import find_state_dict, read_checkpoint

    try:
        return find_state_dict(read_checkpoint(path, subject=path.name), subject=path.name)[1]
    except BundleError as error:
        faults[path] = str(error)
        return None


def _is_same(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> bool:
    return expected.keys() == found.keys() and all(expected[key].shape == found[key].shape for key in expected)


def _named_like(role: str, paths: Sequence[Path]) -> list[Path]:
    """The files whose names say that they hold a network of images; NVIDIA calls a ControlNet's by its experiment."""
    return [path for path in paths if _NAME_PARTS[role] in path.name.lower() and "mask_generation" not in path.name]


def _explain_misfit(
    role: str,
    expected: Mapping[str, Tensor],
    states: Mapping[Path, Mapping[str, Tensor]],
    faults: Mapping[Path, str],
    source: Path,
    network: Path,
) -> None:
    """Raise for a network without a checkpoint.

    Raises:
        BundleError: With the differences of the file that is named like the network, or why it cannot be read.
    """
    from maisi_aug.networks.weights import require_same_tensors

    named = _named_like(role, [*states, *faults])
    readable = [path for path in named if path in states]
    if readable:
        require_same_tensors(
            expected, states[readable[0]], subject=f"{network.name}, {role} against {readable[0].name}"
        )
    if named:
        raise BundleError(faults[named[0]])
    present = ", ".join(path.name for path in (*states, *faults))
    raise BundleError(
        f"{source}: expected a checkpoint of the {role} that {network.name} defines, found none among {present}. Get "
        "the file that is missing, or another --network."
    )


def _choose(paths: Sequence[Path], role: str, notes: list[str]) -> Path:
    """The only checkpoint; of the two that NVIDIA's ControlNet training leaves, the best one.

    Raises:
        BundleError: For several.
    """
    if len(paths) == 1:
        return paths[0]
    best = [path for path in paths if path.stem.endswith("_best")]
    others = {re.sub("_(best|current)$", "", path.stem) for path in paths}
    if len(best) == 1 and len(others) == 1:
        notes.append(f"Of {' and '.join(path.name for path in paths)}, {best[0].name} is taken.")
        return best[0]
    raise BundleError(
        f"{paths[0].parent}: expected one checkpoint of the {role}, found {' and '.join(path.name for path in paths)}. "
        "Move the others away."
    )


def build_own_header(
    name: str, network: NetworkFile, roles: Sequence[str], modalities: Sequence[str]
) -> dict[str, Any]:
    """Return the content of ``bundle.yaml`` for the user's own networks, without weights and scale factor.

    Args:
        name: Name of the bundle.
        network: Definitions of the networks.
        roles: Roles of the networks that the bundle contains.
        modalities: Modalities that they were trained on, the default first.
    """
    return {
        "format": 1,
        "name": name,
        "description": f"Own networks, as {network.path.name} defines them.",
        "licence": LICENCE,
        "grid": DEFAULT_GRID,
        "num_inference_steps": network.default_steps,
        **({"modalities": list(modalities)} if modalities else {}),
        "scheduler": dict(network.scheduler),
        "networks": {role: dict(network.networks[role]) for role in NETWORK_ROLES if role in roles},
    }
