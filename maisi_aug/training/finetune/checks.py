"""Checks before a fine-tuning run trains: the base, the data, the folds and the folder. Needs no torch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import yaml

from maisi_aug.bundle_spec.bundle import NETWORK_ROLES, Bundle
from maisi_aug.bundle_spec.decoding import latent_factor
from maisi_aug.cohort.request import differences
from maisi_aug.errors import GridError, MaisiAugWarning, TrainingError
from maisi_aug.preparation.prepared import PreparedDataset
from maisi_aug.system.content import ContentError
from maisi_aug.system.whole_files import write_text_whole
from maisi_aug.system.yaml_content import read_yaml
from maisi_aug.training.cases.taught_label import TaughtLabel
from maisi_aug.training.finetune.settings import FinetuneConfig, FinetuneRequest
from maisi_aug.training.loop.settings import FlowLossConfig
from maisi_aug.volumes.grid import Grid, Shape, spell_grid

SETTINGS_NAME = "finetune.yaml"
# The configuration has weights of the contrastive loss of its own, which count; pictures decide nothing.
UNTOLD: dict[str, Any] = {"loss": {"contrastive_weight", "contrastive_bound"}, "num_pictures": True}


def require_trainable(base: Bundle) -> None:
    """Raise unless a bundle has the networks that fine-tuning needs.

    Raises:
        TrainingError: A network is missing.
    """
    for role in NETWORK_ROLES:
        if role not in base.spec.networks:
            what = "a ControlNet" if role == "controlnet" else f"the network {role}"
            raise TrainingError(
                f"Base '{base.name}': needs {what} to start from, found {', '.join(base.spec.networks) or 'none'}. "
                "Choose a base that has one, such as phantom-ct or rflow-ct."
            )
        base.weight_path(role)


def resolve_finetuning(request: FinetuneRequest, base: Bundle, device: str) -> FinetuneConfig:
    """Return the resolved settings of a fine-tuning request for a base and a device.

    Mixed precision is used on CUDA devices only, if the base tolerates it: on processors that compute in bfloat16,
    gradients of convolutions were not always finite.

    Args:
        request: What the user requests.
        base: Bundle to start from.
        device: Name of the torch device that trains.

    Raises:
        GridError: A side of the crop is not a multiple of the base's grid factor.
        TrainingError: The region contrastive loss is requested for a base that predicts noise; in MAISI only rectified
            flow has it.
    """
    if base.is_ddpm and request.contrastive_weight:
        raise TrainingError(
            f"--contrastive-weight {request.contrastive_weight:g}: must be 0 for base '{base.name}', because the "
            "loss is for rectified flow only and this is a ddpm bundle. Leave the option out."
        )
    is_mixed = base.spec.mixed_precision and device.startswith("cuda")
    same = {"labels", "slots", "hosts", "kinds", "fold", "tune", "start", "num_pictures", "seed"}
    chosen = {"contrastive_weight": request.contrastive_weight, "rank": request.rank}
    loss = FlowLossConfig(
        lesion_weight=request.label_weight,
        label_mean_weight=request.label_mean_weight,
        batch_count=request.batch_count,
        crop_shape=None if request.crop_shape is None else _to_latent(request.crop_shape, base),
    )
    return FinetuneConfig.model_validate(
        {
            **request.model_dump(include=same),
            **{name: value for name, value in chosen.items() if value is not None},
            "loss": loss,
            "loop": request.describe_loop().model_copy(update={"mixed_precision": is_mixed}),
        }
    )


def _to_latent(crop_shape: Shape, base: Bundle) -> Shape:
    crop = Grid.from_spacing(crop_shape, base.spec.grid.spacing_mm)
    crop.require_multiple_of(base.grid_factor, subject=f"Crop for bundle '{base.name}'")
    factor = latent_factor(base.definition("autoencoder"))
    i, j, k = (side // factor for side in crop_shape)
    return i, j, k


def split_folds(dataset: PreparedDataset, fold: int) -> tuple[PreparedDataset, PreparedDataset]:
    """Split prepared cases into those to train on, and those of one fold to validate on.

    Args:
        dataset: Prepared cases.
        fold: Number of the fold to hold out.

    Returns:
        The cases to train on, and those to validate on.

    Raises:
        TrainingError: There is only one patient, or all or none of them are in the fold.
        PreparationError: The fold does not exist.
    """
    patients = {case.patient for case in dataset.cases}
    if len(patients) < 2:
        raise TrainingError(
            f"{dataset.path}: needs at least two patients, one of them to validate on, found {len(patients)}. "
            "Prepare more cases."
        )
    held_out = dataset.select(folds=[fold])
    return dataset.select(exclude_fold=fold), held_out


def require_voxels(taught: tuple[TaughtLabel, ...], training: PreparedDataset, held_out: PreparedDataset) -> None:
    """Raise unless every label occurs in a training case; warn if it occurs in no held-out case.

    Args:
        taught: Labels to teach.
        training: Cases to train on.
        held_out: Cases to validate on.

    Raises:
        TrainingError: The message names the label.
    """
    for label in taught:
        num_training, num_held_out = (
            sum(case.voxels.get(label.source_id, 0) > 0 for case in part.cases) for part in (training, held_out)
        )
        if num_training == 0:
            raise TrainingError(
                f"Label '{label.name}': occurs only in {num_held_out} held-out cases, not in any training case. Choose "
                "another --fold."
            )
        if num_held_out == 0:
            warnings.warn(
                f"Label '{label.name}': does not occur in a held-out case, so that validation says nothing about it. "
                "Choose another --fold.",
                MaisiAugWarning,
                stacklevel=3,
            )


def require_fitting_grid(dataset: PreparedDataset, base: Bundle) -> None:
    """Raise unless the base's networks can work with the grid of the prepared cases.

    For a base without grid limits, that is its default grid.

    Args:
        dataset: Prepared cases, all on one grid.
        base: Bundle to start from.

    Raises:
        TrainingError: The message names both grids.
    """
    spec, own = dataset.spec.grid, base.spec.grid
    try:
        for sentence in base.check_grid(Grid.from_spacing(spec.shape, spec.spacing_mm), remedy=""):
            warnings.warn(sentence, MaisiAugWarning, stacklevel=3)
    except GridError as error:
        raise TrainingError(
            f"{dataset.path}: bundle '{base.name}' was not trained on the grid of these cases; it knows for instance "
            f"{spell_grid(own.shape, own.spacing_mm)}. {error} Prepare the data again with this base as --bundle."
        ) from error
    if base.spec.grid_limits is None and not spec.is_like(own):
        raise TrainingError(
            f"{dataset.path}: expected cases on the grid of bundle '{base.name}', "
            f"{spell_grid(own.shape, own.spacing_mm)}, found {spell_grid(spec.shape, spec.spacing_mm)}. Prepare the "
            "data again with this base as --bundle."
        )


def require_one_shape(dataset: PreparedDataset, config: FinetuneConfig) -> None:
    """Raise if cases of different shapes would be put into one batch.

    Args:
        dataset: Prepared cases.
        config: Settings with the number of cases per step.

    Raises:
        TrainingError: The message names the shapes.
    """
    shapes = sorted({case.shape for case in dataset.cases})
    if config.loss.batch_count > 1 and len(shapes) > 1:
        found = " and ".join("x".join(map(str, shape)) for shape in shapes[:3])
        raise TrainingError(
            f"--batch-size: expected 1, because the cases of {dataset.path} have several shapes ({found}), found "
            f"{config.loss.batch_count}. Leave it out."
        )


def describe_run(config: FinetuneConfig, base: Bundle, dataset: PreparedDataset) -> dict[str, Any]:
    """Return JSON values that identify a fine-tuning run: settings, base and data.

    The held-out cases are included, because data that are prepared again with other folds might hold out cases that the
    run was trained on.

    Args:
        config: Resolved settings.
        base: Bundle to start from.
        dataset: Prepared cases.
    """
    return {
        "configuration": config.model_dump(mode="json", exclude=UNTOLD),
        "base": {"name": base.name, "fingerprint": base.fingerprint},
        "data": {
            "path": str(dataset.path.resolve()),
            "cases": {case.id: case.key[:16] for case in dataset.cases},
            "held_out": [case.id for case in dataset.cases if case.fold == config.fold],
        },
    }


def require_free_folder(folder: Path) -> None:
    """Raise unless a folder is new or empty, holds a run, or only prepared cases.

    Raises:
        TrainingError: The folder holds something else; the message names it.
    """
    if (folder / SETTINGS_NAME).is_file():
        return
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name != "prepared") if folder.is_dir() else []
    if foreign or folder.is_file():
        raise TrainingError(
            f"{folder}: must be new, empty or the folder of an earlier run, found "
            f"{', '.join(foreign[:4]) or 'a file'}. Nothing was changed; choose another --out."
        )


def open_run(folder: Path, described: dict[str, Any]) -> None:
    """Start a run in a new or empty folder, or continue the existing one.

    A run without a checkpoint may be restarted with other settings.

    Args:
        folder: Folder of the run, created if missing.
        described: Result of :func:`describe_run`, which the folder keeps.

    Raises:
        TrainingError: The folder holds something else, or a run with other settings.
    """
    path = folder / SETTINGS_NAME
    if path.is_file():
        try:
            before = read_yaml(path)
            before["configuration"].pop("num_pictures", None)  # which earlier versions recorded
            flat_before = _flatten(before)
        except (OSError, ContentError, AttributeError, KeyError, TypeError) as error:
            raise TrainingError(
                f"{path}: settings of the fine-tuning run cannot be read: {error}. Choose another --out."
            ) from error
        changed = differences(flat_before, _flatten(described))
        has_begun = any((folder / "training").glob("checkpoint*"))
        if changed and has_begun:
            raise TrainingError(
                f"{folder}: this run was begun with other settings ({'; '.join(changed[:4])}). Choose another --out, "
                "or continue with the original options."
            )
        if not changed:
            return
    require_free_folder(folder)
    write_text_whole(path, yaml.safe_dump(described, sort_keys=False, allow_unicode=True, width=100))


def _flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
