"""The training recipe of the mask generator: one YAML file, as for the image networks. Needs no torch to be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from maisi_aug.bundle_spec.decoding import latent_factor
from maisi_aug.bundle_spec.grid_limits import GridSpec
from maisi_aug.bundle_spec.schema import MASK_ROLES
from maisi_aug.errors import RecipeError
from maisi_aug.system.models import StrictModel, explain_problems, read_yaml
from maisi_aug.training.loop.settings import LoopConfig
from maisi_aug.volumes.grid import Grid

MASK_KIND = "mask-training"
"""Kind of the recipe, a key of ``FIRST_STAGES``."""


class MaskDataConfig(StrictModel):
    """Entry ``data`` of a recipe for mask networks: the label maps to train on.

    Attributes:
        num_phantoms: Number of phantoms, used if the command line names no label maps.
        seed: Seed from which phantom ``i`` is derived, and which chooses the held-out maps.
        num_held_out: Number of maps for validation only; at most a fifth of the user's own maps.
        num_variants: Number of variants of each training map for the diffusion, including itself; the others are
            slightly rotated, stretched and shifted. Each is encoded and measured once.
    """

    num_phantoms: int = Field(default=500, gt=0)
    seed: int = Field(default=1, ge=0)
    num_held_out: int = Field(default=16, gt=0)
    num_variants: int = Field(default=1, gt=0)


class WarpConfig(StrictModel):
    """Largest rotation, stretch and shift of label maps: small changes of posture that keep the anatomy plausible.

    Attributes:
        degrees: Largest rotation about each axis in degrees.
        stretch: Largest relative change of length along each axis.
        shift_mm: Largest shift along each axis in mm.
    """

    degrees: float = Field(default=5.0, ge=0, le=45)
    stretch: float = Field(default=0.08, ge=0, lt=0.5)
    shift_mm: float = Field(default=8.0, ge=0)


class MaskVaeLossConfig(StrictModel):
    """Settings of patches and losses for the autoencoder of label maps.

    Attributes:
        patch_shape: Voxels of a training patch along I, J, K.
        batch_count: Number of patches per step.
        large_patch_shape: Voxels of a patch from ``large_patch_start_step`` on; MAISI, too, trains on small patches
            first. Group normalisation then sees as much air and body as in use.
        large_patch_start_step: Step from which patches are large; None for small patches to the end.
        large_batch_count: Number of large patches per step.
        rare_share: Fraction of patches centred on a voxel of a class that is drawn evenly among the classes of the map.
        mirror_share: Fraction of patches that are mirrored left to right, with left and right labels exchanged. Only
            the autoencoder sees mirrored patients, because the liver is on the right.
        warp: Rotation and scaling of patches.
        weight_power: Exponent p of the class weights: a class with the fraction f of all voxels has the weight f^-p, so
            that 0 weights voxels equally and 1 classes.
        max_weight: Largest weight of a class, as a multiple of the smallest.
        dice_weight: Weight of the Dice loss, relative to the cross-entropy.
        kl_weight: Weight of the Kullback-Leibler divergence, summed over the latent as in MAISI.
        initial_log_variance: Logarithm of the posterior's variance at the start.
    """

    patch_shape: tuple[PositiveInt, PositiveInt, PositiveInt] = (128, 128, 128)
    batch_count: PositiveInt = 1
    large_patch_shape: tuple[PositiveInt, PositiveInt, PositiveInt] = (256, 256, 256)
    large_patch_start_step: int | None = Field(default=None, ge=0)
    large_batch_count: PositiveInt = 1
    rare_share: float = Field(default=0.5, ge=0, le=1)
    mirror_share: float = Field(default=0.5, ge=0, le=1)
    warp: WarpConfig = WarpConfig()
    weight_power: float = Field(default=0.5, ge=0, le=1)
    max_weight: float = Field(default=50.0, ge=1)
    dice_weight: float = Field(default=1.0, ge=0)
    kl_weight: float = Field(default=1e-7, ge=0)
    initial_log_variance: float = -4.0


class MaskNoiseLossConfig(StrictModel):
    """Settings of the loss on the predicted noise of label maps.

    Attributes:
        batch_count: Number of latents per step.
        norm: ``l1`` as in MAISI, or ``l2`` as in Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020.
    """

    batch_count: PositiveInt = 1
    norm: Literal["l1", "l2"] = "l1"


class MaskVaeStage(StrictModel):
    """Entry ``vae`` of a recipe for mask networks: the stage that trains the autoencoder.

    Attributes:
        loop: Number of steps, learning rate and validation.
        loss: Weights of the losses.
    """

    loop: LoopConfig
    loss: MaskVaeLossConfig = MaskVaeLossConfig()


class MaskNoiseStage(StrictModel):
    """Entry ``diffusion`` of a recipe for mask networks: the stage that trains the diffusion U-Net.

    Attributes:
        loop: Number of steps, learning rate and validation.
        loss: Loss of the predicted noise.
        warp: Largest rotation, stretch and shift of the variants of a map.
    """

    loop: LoopConfig
    loss: MaskNoiseLossConfig = MaskNoiseLossConfig()
    warp: WarpConfig = WarpConfig()


class MaskTrainingRecipe(StrictModel):
    """A recipe for mask networks: everything that determines their weights, except the user's own label maps.

    Attributes:
        kind: Marks the file as a recipe for mask networks.
        seed: Seed of initial weights, batches and noise.
        data: Training cases.
        grid: Grid of the label maps that the networks will generate.
        num_inference_steps: Default number of sampling steps of the finished bundle.
        scheduler: Definition of the DDPM scheduler.
        networks: Role -> definition of the network.
        vae: First stage.
        diffusion: Second stage, on the first one's latents.
    """

    kind: str = Field(pattern=f"^{MASK_KIND}$")
    seed: int = Field(ge=0)
    data: MaskDataConfig = MaskDataConfig()
    grid: GridSpec
    num_inference_steps: PositiveInt = 50
    scheduler: dict[str, Any]
    networks: dict[str, dict[str, Any]]
    vae: MaskVaeStage
    diffusion: MaskNoiseStage

    @field_validator("networks")
    @classmethod
    def _require_every_role(cls, networks: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if set(networks) != set(MASK_ROLES):
            raise ValueError(f"expected {' and '.join(MASK_ROLES)}, found {', '.join(networks) or 'none'}")
        return networks

    @field_validator("scheduler")
    @classmethod
    def _require_ddpm(cls, scheduler: dict[str, Any]) -> dict[str, Any]:
        predicts = scheduler.get("prediction_type", "epsilon")
        if scheduler.get("class") != "DDPMScheduler" or predicts != "epsilon" or scheduler.get("clip_sample", True):
            raise ValueError(
                f"the scheduler must be a DDPMScheduler that predicts noise and clips nothing, found {scheduler}"
            )
        return scheduler

    @model_validator(mode="after")
    def _require_same_latents(self) -> Self:
        autoencoder, unet = (self.networks[role] for role in MASK_ROLES)
        wanted = autoencoder.get("latent_channels")
        if not unet.get("in_channels") == unet.get("out_channels") == wanted:
            raise ValueError(
                f"networks.mask_diffusion_unet: needs {wanted} channels in and out, like the latents of the "
                f"autoencoder, found {unet.get('in_channels')} and {unet.get('out_channels')}"
            )
        return self

    def require_divisible(self) -> None:
        """Raise unless the grid and the patches of the recipe have divisible sides.

        Raises:
            GridError: The message names the field and the nearest suitable shape.
        """
        autoencoder, unet = (self.networks[role] for role in MASK_ROLES)
        in_image = latent_factor(autoencoder)
        whole = in_image * 2 ** (len(unet["channels"]) - 1)
        for field, shape, factor in (
            ("grid.shape", self.grid.shape, whole),
            ("vae.loss.patch_shape", self.vae.loss.patch_shape, in_image),
            ("vae.loss.large_patch_shape", self.vae.loss.large_patch_shape, in_image),
        ):
            grid = Grid.from_spacing(shape, (1.0, 1.0, 1.0))
            grid.require_multiple_of(factor, subject=f"Training recipe, {field}")


def load_mask_recipe(path: Path) -> MaskTrainingRecipe:
    """Read and validate a training recipe of mask networks; all problems are reported together.

    Raises:
        RecipeError: The file is missing, not YAML, another kind of recipe, or has invalid fields.
    """
    content = read_yaml(path, f"Training recipe {path}", RecipeError)
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind != MASK_KIND:
        raise RecipeError(
            f"Training recipe {path}: not a recipe for mask networks (kind: {MASK_KIND}), found kind '{kind}'. Start "
            "from 'maisi-aug recipes copy train-phantom-ct-masks'."
        )
    with explain_problems(MaskTrainingRecipe, f"Training recipe {path}", RecipeError, kind="recipe"):
        return MaskTrainingRecipe.model_validate(content)
