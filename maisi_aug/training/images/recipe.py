"""The training recipe: one YAML file from which a bundle can be rebuilt. Needs no torch to be read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, field_validator, model_validator

from maisi_aug.bundle_spec.bundle import NETWORK_ROLES, SlotSpec, bind_slots
from maisi_aug.bundle_spec.grid_limits import GridLimits, GridSpec
from maisi_aug.bundle_spec.known_bundles import find_known_bundle
from maisi_aug.bundle_spec.schema import UnlabelledRule
from maisi_aug.cohort.recipe_files import list_training_recipes
from maisi_aug.errors import BundleError, RecipeError, did_you_mean
from maisi_aug.system.models import StrictModel, explain_problems, read_yaml
from maisi_aug.training.loop.settings import FlowLossConfig, LoopConfig, VaeLossConfig
from maisi_aug.vocabulary.modalities import ImageModality

# What ``bundle.like`` takes over.
SHARED_FIELDS = (
    *("grid", "grid_limits", "num_inference_steps", "modalities", "guidance_scale", "decode_window", "scheduler"),
    "networks",
)
OWN_LICENCE = "Own weights; the licence of the training data applies."


class PhantomData(StrictModel):
    """Entry ``data`` of a training recipe: phantoms to train on.

    Attributes:
        num_phantoms: Number of phantoms.
        seed: Seed from which phantom ``i`` is derived, whatever their number.
        zoom_range: Smallest and largest factor on the grid's spacing, drawn for every phantom; None for 1.
    """

    num_phantoms: int = Field(gt=0)
    seed: int = Field(ge=0)
    zoom_range: tuple[PositiveFloat, PositiveFloat] | None = None


class PreparedData(StrictModel):
    """Entry ``data`` of a training recipe: a folder that ``maisi-aug prepare`` wrote.

    Attributes:
        prepared: Path of the folder.
        validation_fold: Fold that is held out to choose the best weights; None trains on all cases.
    """

    prepared: str
    validation_fold: int | None = Field(default=None, ge=0)


def _kind_of_data(value: object) -> str:
    is_prepared = isinstance(value, PreparedData) or (isinstance(value, dict) and "prepared" in value)
    return "prepared" if is_prepared else "phantoms"


DataConfig = Annotated[
    Annotated[PhantomData, Tag("phantoms")] | Annotated[PreparedData, Tag("prepared")],
    Discriminator(_kind_of_data),
]


class VaeStage(StrictModel):
    """Entry ``vae`` of a training recipe: the stage that trains the autoencoder.

    Attributes:
        start: ``random``, or ``wavelet`` for an autoencoder that begins as a Haar transform.
        wavelet_gains: Factors on the mean and on differences along one, two and three axes; see ``start_as_wavelet``.
    """

    start: Literal["random", "wavelet"] = "random"
    wavelet_gains: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    loop: LoopConfig
    loss: VaeLossConfig = VaeLossConfig()


class FlowStage(StrictModel):
    """Entry ``diffusion`` of a training recipe: the stage that trains the diffusion U-Net."""

    loop: LoopConfig
    loss: FlowLossConfig = FlowLossConfig()


class ControlNetStage(FlowStage):
    """Entry ``controlnet`` of a training recipe: the stage that trains the ControlNet, with or without the U-Net.

    Attributes:
        start: ``encoder`` copies the U-Net's encoder, as MAISI does; ``label-means`` also sets both networks up to draw
            every label at its mean intensity, and requires that the U-Net is trained.
        start_share: Weight in [0, 1] of the initial weights in the ControlNet that is kept, which is interpolated
            between start and end of training (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022).
            What a ControlNet learns of noise shows as mottled organs; the start is free of it.
        faint_gain: With ``label-means``, factor on the contrast of tumours that differ from their host by less than 100
            HU, which compensates for what training and sampling lose.
        noise_share: With ``label-means``, share of the starting noise that is left in the image, as its noise.
        kept_noise_share: The share in the weights that are kept, because training adds noise to it; None for
            ``noise_share``.
    """

    start: Literal["encoder", "label-means"] = "encoder"
    start_share: float = Field(default=0.0, ge=0, lt=1)
    faint_gain: float = Field(default=1.0, gt=0)
    noise_share: float = Field(default=0.0, ge=0, lt=1)
    kept_noise_share: float | None = Field(default=None, ge=0, lt=1)

    @model_validator(mode="after")
    def _require_trained_unet(self) -> Self:
        if self.start == "label-means" and not self.loss.train_unet:
            raise ValueError("start: label-means changes the U-Net and needs loss.train_unet: true")
        if self.start != "label-means" and self.faint_gain != 1.0:
            raise ValueError("faint_gain: applies to start: label-means only")
        if self.start != "label-means" and (self.noise_share != 0.0 or self.kept_noise_share is not None):
            raise ValueError("noise_share: applies to start: label-means only")
        if self.start == "label-means" and self.loop.weight_decay != 0.0:
            raise ValueError("loop.weight_decay: start: label-means keeps weights unchanged and needs 0")
        return self


class BundleHeader(StrictModel):
    """Entry ``bundle`` of a training recipe: the header of the finished bundle, with fields of ``bundle.yaml``.

    Fields without a value get the defaults of :class:`~maisi_aug.bundle_spec.schema.BundleSpec`.

    With ``like: NAME``, missing values of grid, grid limits, sampling, scheduler and networks are taken from a
    downloadable bundle, whose definitions are known without its weights.
    """

    name: str
    description: str
    advice: str = ""
    advice_without_map: str = ""
    licence: str
    grid: GridSpec
    grid_limits: GridLimits | None = None
    num_inference_steps: int = Field(gt=0)
    modalities: tuple[ImageModality, ...] | None = Field(default=None, min_length=1)
    guidance_scale: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    mixed_precision: bool = True
    decode_window: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    scheduler: dict[str, Any]
    networks: dict[str, dict[str, Any]]
    slots: dict[str, SlotSpec] = Field(default={})
    unlabelled: UnlabelledRule = "as-is"

    def describe(self) -> dict[str, Any]:
        """Return the fields of ``bundle.yaml`` that the header sets, in the order of the class."""
        unsaid = {name for name in ("modalities", "guidance_scale") if getattr(self, name) is None}
        return self.model_dump(mode="json", exclude=unsaid)

    @model_validator(mode="before")
    @classmethod
    def _take_over(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "like" not in content:
            return content
        given = {key: value for key, value in content.items() if key != "like"}
        try:
            header = find_known_bundle(str(content["like"])).header
        except BundleError as error:
            raise ValueError(f"like: {error}") from error
        return {**{key: header[key] for key in SHARED_FIELDS if key in header}, **given}

    @field_validator("networks")
    @classmethod
    def _require_every_role(cls, networks: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if set(networks) != set(NETWORK_ROLES):
            raise ValueError(f"expected {', '.join(NETWORK_ROLES)}, found {', '.join(networks) or 'none'}")
        return networks


class TrainingRecipe(StrictModel):
    """A training recipe: everything that determines the weights of a bundle's image networks.

    Attributes:
        kind: Marks the file as a training recipe.
        seed: Seed of initial weights, batches and noise.
        data: Training cases.
        latent_deviation: Standard deviation to which latents are scaled, relative to noise of 1. MAISI uses 1; larger
            values move training and sampling towards low noise, where most of the work is left if the label map
            determines almost everything (Chen, "On the Importance of Noise Scheduling for Diffusion Models",
            arXiv:2301.10972).
        bundle: Networks and metadata.
        vae: First stage.
        diffusion: Second stage, on the first one's latents.
        controlnet: Third stage, from the second one's U-Net.
    """

    kind: str = Field(pattern="^training$")
    seed: int = Field(ge=0)
    data: DataConfig
    latent_deviation: float = Field(default=1.0, gt=0)
    bundle: BundleHeader
    vae: VaeStage
    diffusion: FlowStage
    controlnet: ControlNetStage

    @model_validator(mode="after")
    def _require_held_out_cases(self) -> Self:
        has_fold = isinstance(self.data, PreparedData) and self.data.validation_fold is not None
        for name in ("vae", "diffusion", "controlnet"):
            if getattr(self, name).loop.validation_steps is not None and not has_fold:
                raise ValueError(
                    f"{name}.loop.validation_steps: needs held-out cases, which data.validation_fold provides"
                )
        return self

    @model_validator(mode="after")
    def _require_what_contrast_needs(self) -> Self:
        if self.diffusion.loss.contrastive_weight > 0:
            raise ValueError("diffusion.loss.contrastive_weight: applies to a ControlNet; set only controlnet.loss")
        if self.controlnet.loss.contrastive_weight > 0 and self.bundle.scheduler.get("class") != "RFlowScheduler":
            raise ValueError("controlnet.loss.contrastive_weight: applies to rectified flow, not to ddpm; leave it out")
        return self

    @model_validator(mode="after")
    def _require_known_labels(self) -> Self:
        if isinstance(self.data, PhantomData):  # prepared data may bring labels of its own
            vocabulary = bind_slots(self.bundle.slots)
            for stage in (self.diffusion, self.controlnet):
                for name in stage.loss.label_weights:
                    vocabulary.id_of(name)
        return self

    def with_prepared(self, folder: Path) -> TrainingRecipe:
        """Return a copy of the recipe that trains on the cases of a prepared folder instead of its own data.

        A recipe that trains on prepared data already keeps its other settings of the data, such as the fold that is
        held out. A recipe that trains on phantoms then trains on all cases of the folder, without a held-out fold; the
        name of its bundle gets the prefix ``own-``, and its description, advice and licence are replaced, because they
        describe phantoms.

        Args:
            folder: Folder that ``maisi-aug prepare`` wrote; it is not opened here.
        """
        if isinstance(self.data, PreparedData):
            return self.model_copy(update={"data": self.data.model_copy(update={"prepared": str(folder)})})
        words = {
            "name": f"own-{self.bundle.name}",
            "description": f"Networks of the recipe for {self.bundle.name}, trained on prepared CTs.",
            "advice": "",
            "advice_without_map": "",
            "licence": OWN_LICENCE,
        }
        bundle = self.bundle.model_copy(update=words)
        return self.model_copy(update={"data": PreparedData(prepared=str(folder)), "bundle": bundle})


def training_recipe_path(name_or_path: str) -> Path:
    """Return the file of a training recipe, given by the name of a packaged one or by path.

    Raises:
        RecipeError: The name is unknown; the message offers the closest ones.
    """
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    named = {info.name: info.path for info in list_training_recipes()}
    if name_or_path not in named:
        raise RecipeError(
            f"Training recipe '{name_or_path}': not a file or one of "
            f"{', '.join(named)}.{did_you_mean(name_or_path, named)}"
        )
    return named[name_or_path]


def load_training_recipe(path: Path) -> TrainingRecipe:
    """Read and validate a training recipe; all problems are reported together.

    Raises:
        RecipeError: The file is missing, not YAML, or has invalid fields.
    """
    content = read_yaml(path, f"Training recipe {path}", RecipeError)
    with explain_problems(TrainingRecipe, f"Training recipe {path}", RecipeError, kind="recipe"):
        return TrainingRecipe.model_validate(content)
