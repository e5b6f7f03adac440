"""Plans that a CPU can train: a small patch and a narrow, shallow U-Net, derived from plans that nnU-Net made.

Spacing, normalisation, resampling and the kind of network stay as planned, so the preprocessed cases are those of the
plans that it starts from; patch, stages and features are chosen anew by nnU-Net's own rule for a smaller budget.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from maisi_aug.errors import ExportError
from maisi_aug.integrations.nnunet.folders import require_preprocessed_folder
from maisi_aug.integrations.nnunet.plans import is_plans
from maisi_aug.system.content import read_json, spells_number
from maisi_aug.system.whole_files import write_text_whole

COMPACT_SUFFIX = "_compact"
DEFAULT_SIDE = 64
DEFAULT_FEATURES = (16, 32, 64, 128)
MIN_BOTTLENECK = 4  # nnU-Net's smallest side of the lowest feature map


def write_compact_plans(
    preprocessed_dataset: Path,
    plans: str,
    *,
    side: int = DEFAULT_SIDE,
    features: Sequence[int] = DEFAULT_FEATURES,
    batch_size: int = 2,
) -> Path:
    """Write compact plans, which a CPU can train, next to nnU-Net's plans, as ``PLANS_compact``.

    Args:
        preprocessed_dataset: Folder of the dataset in nnUNet_preprocessed.
        plans: Name of the plans to start from.
        side: Side of a cube with as many voxels as the patch, whose shape follows the spacing as in nnU-Net.
        features: Channels of each stage, which limits the number of stages.
        batch_size: Number of patches per batch.

    Returns:
        Path of the new plans.

    Raises:
        ExportError: The plans are missing, or have no three-dimensional configuration; a number is out of range; or
            other compact plans are there already.
    """
    if side < 2 * MIN_BOTTLENECK or batch_size < 1 or len(features) < 2 or min(features) < 1:
        raise ExportError(
            f"Compact plans: expected a side of at least {2 * MIN_BOTTLENECK}, a batch of at least 1 and two or more "
            f"stages, found {side}, {batch_size} and {list(features)}. Give larger numbers."
        )
    content = _read_plans(preprocessed_dataset, plans)
    name = plans + COMPACT_SUFFIX
    compact = {**deepcopy(content), "plans_name": name, "configurations": {}}
    for configuration, settings in content["configurations"].items():
        if len(settings.get("patch_size", ())) == 3:
            compact["configurations"][configuration] = _shrink(settings, side, features, batch_size)
    if not compact["configurations"]:
        raise ExportError(
            f"{plans}: has no three-dimensional configuration with a patch of its own, found "
            f"{', '.join(content['configurations'])}. Plan the dataset with nnU-Net."
        )
    path = preprocessed_dataset / f"{name}.json"
    text = json.dumps(compact, indent=2) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ExportError(f"{path}: compact plans already exist. Remove the file to replace it.")
    write_text_whole(path, text)
    return path


def find_planned_dataset(preprocessed: Path | None, dataset: str) -> Path:
    """Return the preprocessed dataset that is given by number, name or path.

    Args:
        preprocessed: Folder for preprocessed datasets; None for ``$nnUNet_preprocessed``.
        dataset: Number (``503``), name (``Dataset503_LiverSynthetic``), or raw or preprocessed folder of the dataset.

    Raises:
        ExportError: There is none, or several have the number.
    """
    if dataset and not spells_number(dataset) and Path(dataset).is_dir():
        folder = Path(dataset).resolve()
        if any(map(is_plans, folder.glob("*.json"))):
            return folder
        dataset = folder.name
    place = require_preprocessed_folder(preprocessed)
    folders = sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []
    if spells_number(dataset):
        found = [path for path in folders if path.name.startswith(f"Dataset{int(dataset):03d}_")]
    else:
        found = [path for path in folders if path.name == dataset]
    if len(found) != 1:
        listed = ", ".join(path.name for path in found) or "none"
        raise ExportError(
            f"Dataset '{dataset}': not the number, name or folder of a dataset under {place}, which has {listed}. "
            "Plan it with nnU-Net, or export it."
        )
    return found[0]


def find_only_plans(preprocessed_dataset: Path) -> str:
    """Return the name of a preprocessed dataset's only plans, apart from compact ones.

    Raises:
        ExportError: There are none, or several.
    """
    names = [path.stem for path in sorted(preprocessed_dataset.glob("*.json")) if is_plans(path)]
    full = [name for name in names if not name.endswith(COMPACT_SUFFIX)]
    if len(full) != 1:
        raise ExportError(
            f"{preprocessed_dataset}: expected one file of plans, found {', '.join(full) or 'none'}. Give --plans "
            "NAME, or plan the dataset with nnU-Net."
        )
    return full[0]


def _read_plans(preprocessed_dataset: Path, plans: str) -> dict[str, Any]:
    path = preprocessed_dataset / f"{plans}.json"
    try:
        content: dict[str, Any] = read_json(path)
        if not isinstance(content["configurations"], dict):
            raise TypeError
    except (OSError, ValueError, TypeError, KeyError):
        others = [other.stem for other in sorted(preprocessed_dataset.glob("*lans*.json"))]
        raise ExportError(
            f"{path}: not nnU-Net's plans; the folder has {', '.join(others) or 'none'}. Give --plans NAME, or plan "
            "the dataset with nnU-Net."
        ) from None
    return content


def _shrink(settings: dict[str, Any], side: int, features: Sequence[int], batch_size: int) -> dict[str, Any]:
    """Return a configuration with a smaller patch and network."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    spacing = [float(step) for step in settings["spacing"]]
    per_mm = side * (spacing[0] * spacing[1] * spacing[2]) ** (1 / 3)
    sides = [
        min(round(per_mm / step), int(median))
        for step, median in zip(spacing, settings["median_image_size_in_voxels"], strict=True)
    ]
    _, strides, kernels, patch, _ = get_pool_and_conv_props(spacing, sides, MIN_BOTTLENECK, len(features) - 1)
    strides, kernels = strides[: len(features)], kernels[: len(features)]
    shrunk = deepcopy(settings)
    shrunk.pop("next_stage", None)  # cascades are left out, and validation would predict for the missing stage
    shrunk["patch_size"] = [int(edge) for edge in patch]
    shrunk["batch_size"] = batch_size
    network = shrunk["architecture"]["arch_kwargs"]
    num_stages = len(strides)
    network.update(
        n_stages=num_stages,
        features_per_stage=list(features[:num_stages]),
        strides=[list(map(int, stride)) for stride in strides],
        kernel_sizes=[list(map(int, kernel)) for kernel in kernels],
    )
    # Plain U-Nets count convolutions per stage, residual ones blocks.
    for key, length in (("n_conv_per_stage", num_stages), ("n_blocks_per_stage", num_stages)):
        if key in network:
            network[key] = list(network[key])[:length]
    network["n_conv_per_stage_decoder"] = list(network["n_conv_per_stage_decoder"])[: num_stages - 1]
    return shrunk
