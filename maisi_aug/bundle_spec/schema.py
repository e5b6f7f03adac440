"""The content of ``bundle.yaml``, as it is validated. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, PositiveInt, model_validator

from maisi_aug.bundle_spec.grid_limits import GridLimits, GridSpec
from maisi_aug.bundle_spec.solvers import MIN_PROOF_MAPS, DrawingCommand, SolverName
from maisi_aug.system.file_names import INNER_PATH, MAX_PART_BYTES, is_path
from maisi_aug.system.models import Finite, PositiveFinite, StrictModel
from maisi_aug.vocabulary.labels import FREE_IDS
from maisi_aug.vocabulary.modalities import CT_MODALITIES, ImageModality, is_mr

MASK_ROLES = ("mask_autoencoder", "mask_diffusion_unet")
"""Roles of the networks that generate label maps; a bundle has both or none."""
MASK_SECTION = "mask_generation"
UnlabelledRule = Literal["as-is", "complete"]
MASK_PROVENANCE = "masks"
PROOF_SECTION = "proven_steps"
_PROOFS = re.compile(rf"^{PROOF_SECTION}:.*\n(?:[ -].*\n|\n)*".encode(), re.MULTILINE)
"""The section in the text of a ``bundle.yaml``: its key and what is indented below, or begins with a dash."""


def dump_bundle(content: Mapping[str, Any]) -> str:
    """Serialise the content of a ``bundle.yaml``."""
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=100)


def without_masks(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a ``bundle.yaml`` without the entries of its mask networks."""

    def drop(section: Mapping[str, Any], *keys: str) -> dict[str, Any]:
        return {key: value for key, value in section.items() if key not in keys}

    image = drop(content, MASK_SECTION)
    image["networks"], image["weights"] = (drop(content[section], *MASK_ROLES) for section in ("networks", "weights"))
    if "provenance" in image:
        image["provenance"] = drop(image["provenance"], MASK_PROVENANCE)
        if not image["provenance"]:
            del image["provenance"]
    return image


def without_proofs(content: bytes) -> bytes:
    """Return the bytes of a ``bundle.yaml`` without what was proven of its weights, as they were before."""
    return _PROOFS.sub(b"", content)


def with_proofs(content: bytes, proofs: Sequence[StepProof]) -> bytes:
    """Return the bytes of a ``bundle.yaml`` with other proofs of steps; the rest stays.

    Args:
        content: Bytes of the file, which end with a line break.
        proofs: All proofs that the result has; none removes the section.
    """
    plain = without_proofs(content)
    listed = [proof.model_dump(mode="json") for proof in proofs]
    added = dump_bundle({PROOF_SECTION: listed}) if listed else ""
    return plain + added.encode("utf-8")


_MOST: Mapping[str, int] = {
    "num_res_blocks": 64,
    "transformer_num_layers": 64,
    "num_train_timesteps": 10**6,
    "base_img_size_numel": 2**40,
    "num_channels": 2**16,
    "channels": 2**16,
}
_ONE_NUMBER = {"num_train_timesteps", "base_img_size_numel", "transformer_num_layers"}
_LEVELLED_ROLES = {"autoencoder", "diffusion_unet", "mask_autoencoder"}
_MOST_OTHERWISE = 2**24
_MAX_LEVELS = 16


def require_definition(definition: dict[str, Any]) -> dict[str, Any]:
    """Return a network definition unchanged, after checking that it can be built in reasonable time.

    Args:
        definition: Class and hyper-parameters of a network, as in ``bundle.yaml``.

    Raises:
        ValueError: The class is missing, or a value is implausible.
    """
    if not isinstance(definition.get("class"), str):
        raise ValueError("the name of a 'class' is missing")
    for name, value in definition.items():
        parts = value if isinstance(value, list) else [value]
        most = _MOST.get(name, _MOST_OTHERWISE)
        if len(parts) > _MAX_LEVELS or any(isinstance(part, int | float) and not abs(part) <= most for part in parts):
            raise ValueError(
                f"expected numbers up to {most}, at most {_MAX_LEVELS} of them, as '{name}', found {value!r:.60}"
            )
        if name in _MOST and not all(type(part) is int and part > 0 for part in parts):
            raise ValueError(f"expected integers above 0 as '{name}', found {value!r:.60}")
        if name in _ONE_NUMBER and isinstance(value, list):
            raise ValueError(f"expected one integer as '{name}', found {value!r:.60}")
    return definition


def require_levels(networks: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return network definitions unchanged, after checking that those on which the grid depends name their levels.

    Args:
        networks: Role of the network -> definition.

    Raises:
        ValueError: A definition has no list ``num_channels``.
    """
    for role in networks.keys() & _LEVELLED_ROLES:
        if not isinstance(levels := networks[role].get("num_channels"), list) or not levels:
            raise ValueError(f"expected a list of integers as {role}.num_channels")
    return networks


def _require_path(text: str) -> str:
    """Raise for what no file can be called."""
    if not is_path(text):
        raise ValueError("the path is empty, too long or contains a null character")
    return text


_Path = Annotated[str, AfterValidator(_require_path)]
_InnerPath = Annotated[str, Field(pattern=INNER_PATH, max_length=MAX_PART_BYTES)]
_Definition = Annotated[dict[str, Any], AfterValidator(require_definition)]
_Networks = Annotated[dict[str, _Definition], AfterValidator(require_levels)]


class WeightFile(StrictModel):
    """A weight file of a bundle: its path relative to the bundle's folder, and its SHA-256."""

    file: _Path
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class SlotSpec(StrictModel):
    """Label name that is bound to one of MAISI's placeholder slots or a free id.

    Attributes:
        id: Vocabulary id of the slot.
        hosts: For a lesion, the organs that it grows in; for an organ, the labels that replace it when it is removed
            from a label map.
        kind: ``lesion`` is planted in its hosts, ``organ`` comes with the label maps; None means ``lesion`` if there
            are hosts, otherwise ``organ``.
    """

    id: int = Field(ge=1, le=255)
    hosts: tuple[int, ...]
    kind: Literal["lesion", "organ"] | None = None


class BaseSpec(StrictModel):
    """Entry of ``bundle.yaml`` about the base bundle that a bundle was fine-tuned from and shares weights with.

    Attributes:
        name: Name of the base.
        fingerprint: Fingerprint of the base; a base that has changed since cannot be used.
        paths: Paths to try if the base is not found by name: relative to this bundle's folder, or absolute.
    """

    name: str
    fingerprint: str = Field(pattern="^[0-9a-f]{64}$")
    paths: tuple[_Path, ...] = ()


class SizeSpec(StrictModel):
    """Distribution of a label's volume over patients, to which size percentiles refer.

    Attributes:
        quantiles_ml: Quantiles of the volume in mL at 0, 5, ..., 100 percent.
        source: Dataset on which they were measured.
    """

    quantiles_ml: tuple[PositiveFinite, ...] = Field(min_length=21, max_length=21)
    source: str


class HuSpec(StrictModel):
    """Allowed range of the median HU of a label in an image.

    Attributes:
        low_hu: Lowest plausible median.
        high_hu: Highest plausible median.
        contrast_sign: 1 for brighter than its surroundings, -1 for darker, 0 for either.
        source: Source of the figures.
    """

    low_hu: Finite
    high_hu: Finite
    contrast_sign: Literal[-1, 0, 1] = 0
    source: str

    @model_validator(mode="after")
    def _require_order(self) -> HuSpec:
        if self.low_hu >= self.high_hu:
            raise ValueError(f"expected low_hu below high_hu, found {self.low_hu:g} and {self.high_hu:g}")
        return self


class MaskBankSpec(StrictModel):
    """Label maps that a bundle uses as its mask bank if the user names none.

    Attributes:
        list: File with the list of maps, relative to the bundle's folder.
        labels: Meaning of the maps' ids: ``maisi``, or a mapping file relative to the bundle's folder.
        source: Description of the maps, for people.
    """

    list: _InnerPath
    labels: _InnerPath
    source: str


class ProvenEquivalence(StrictModel):
    """One quantity of images drawn with fewer steps, against the same maps and noise at the full number.

    Attributes:
        name: Name of the quantity, such as ``HU of liver``.
        unit: Unit of the figures below.
        num_maps: Maps in which it was measured.
        full: Mean at the full number of steps.
        difference: Mean of fewer minus full.
        low: Lower end of the 90% interval of the difference.
        high: Upper end.
        margin: The interval lies within plus and minus this.
    """

    name: str
    unit: str
    num_maps: PositiveInt
    full: Finite
    difference: Finite
    low: Finite
    high: Finite
    margin: PositiveFinite

    @property
    def is_shown(self) -> bool:
        """Whether both one-sided tests of 5% reject a difference as large as the margin."""
        return -self.margin < self.low and self.high < self.margin


class StepProof(StrictModel):
    """Proof that fewer steps draw images that are equal to those of the full number within margins.

    Attributes:
        command: What was drawn with: ``synthesize`` or ``insert``.
        num_inference_steps: The number of steps that suffices.
        solver: Solver that it was proven with.
        full_steps: The bundle's full number at the time, with ``euler``.
        weights: Hash of weights and definitions that it was proven of, see ``Bundle.weights_hash``.
        num_maps: Maps that were drawn twice.
        drawn: The requests for the maps, as a cohort's file has them, in short.
        equivalences: The quantities that were compared, all of them equivalent.
        versions: Versions of maisi-aug and torch.
    """

    command: DrawingCommand
    num_inference_steps: PositiveInt
    solver: SolverName
    full_steps: PositiveInt
    weights: str = Field(pattern="^[0-9a-f]{64}$")
    num_maps: int = Field(ge=MIN_PROOF_MAPS)
    drawn: str
    equivalences: tuple[ProvenEquivalence, ...] = Field(min_length=1)
    versions: dict[str, str] = Field(default={})

    @model_validator(mode="after")
    def _require_shown(self) -> StepProof:
        failed = next((one for one in self.equivalences if not one.is_shown), None)
        if failed is not None:
            raise ValueError(
                f"expected intervals within their margins, found {failed.low:g} to {failed.high:g} {failed.unit} as "
                f"'{failed.name}' with a margin of {failed.margin:g}"
            )
        return self


class MaskGenerationSpec(StrictModel):
    """Settings with which a bundle's mask networks generate label maps.

    Attributes:
        grid: Grid of the generated label maps.
        num_inference_steps: Default number of sampling steps.
        scale_factor: Factor by which mask latents are multiplied for diffusion, and divided before decoding.
        scheduler: Definition of the DDPM scheduler that the networks were trained with.
        size_conditions: File with the organ and tumour sizes that conditions are drawn from.
    """

    grid: GridSpec
    num_inference_steps: PositiveInt
    scale_factor: float = Field(gt=0)
    scheduler: _Definition
    size_conditions: WeightFile


class BundleSpec(StrictModel):
    """The content of ``bundle.yaml``.

    Attributes:
        format: Version of this layout.
        name: Name of the bundle.
        description: Description on one line, for listings.
        advice: A sentence shown when the bundle is used, or empty.
        advice_without_map: A sentence shown when images are drawn without a label map, if these are known to be poor;
            otherwise empty.
        licence: Licence of the weights, inherited by the images that they generate.
        grid: Default grid.
        grid_limits: Limits of the grids seen in training; None if unknown, so that any grid is accepted.
        num_inference_steps: Default number of sampling steps.
        modalities: Kinds of CT or of MR that the networks were trained on, the default first. CT images are in HU; MR
            intensities begin at 0, and 1000 stands for the networks' 1.
        guidance_scale: Default scale of classifier-free guidance towards the modality, for images without a label map.
        scale_factor: Factor by which latents are multiplied for diffusion, and divided before decoding.
        mixed_precision: Whether the networks tolerate float16, which CUDA devices then use by default; False means
            float32 everywhere, unless another precision is requested.
        decode_window: Latent voxels along I, J, K that the autoencoder decodes at once with ``--decode windows``;
            windows overlap by 0.4 and are blended. None decodes the whole image.
        scheduler: Scheduler definition (``class`` and arguments).
        networks: Network definitions by role.
        weights: Weight files by role.
        slots: Label names bound to placeholder slots.
        unlabelled: What the networks are shown of voxels without a label of their own: ``as-is`` the label map, or
            ``complete`` a map that is completed by procedural anatomy, see ``maisi_aug.phantom.condition``.
        mask_generation: How label maps are generated; None for a bundle without mask networks.
        base: Bundle whose weights this one shares; None for a bundle that contains all of its weights.
        sizes: Label name -> distribution of volumes in the training data.
        hu_ranges: Label name -> range of HU in the training data.
        mask_bank: Label maps to draw from by default; None for the phantoms.
        provenance: Origin of the weights: recipe, steps, seed, versions.
        proven_steps: Numbers of steps that suffice, as ``bundles prove-steps`` has shown; for ``--steps auto``.
    """

    format: int = Field(ge=1, le=1)
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=MAX_PART_BYTES)
    description: str
    advice: str = ""
    advice_without_map: str = ""
    licence: str
    grid: GridSpec
    grid_limits: GridLimits | None = None
    num_inference_steps: int = Field(gt=0)
    modalities: tuple[ImageModality, ...] = Field(default=CT_MODALITIES, min_length=1)
    guidance_scale: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    scale_factor: float = Field(gt=0)
    mixed_precision: bool = True
    decode_window: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    scheduler: _Definition
    networks: _Networks
    weights: dict[str, WeightFile]
    slots: dict[str, SlotSpec] = Field(default={})
    unlabelled: UnlabelledRule = "as-is"
    mask_generation: MaskGenerationSpec | None = None
    base: BaseSpec | None = None
    sizes: dict[str, SizeSpec] = Field(default={})
    hu_ranges: dict[str, HuSpec] = Field(default={})
    mask_bank: MaskBankSpec | None = None
    provenance: dict[str, Any] = Field(default={})
    proven_steps: tuple[StepProof, ...] = ()

    @model_validator(mode="after")
    def _require_one_kind(self) -> BundleSpec:
        if len({is_mr(modality) for modality in self.modalities}) > 1:
            raise ValueError(f"expected only CT modalities or only MR modalities, found {', '.join(self.modalities)}")
        return self

    @model_validator(mode="after")
    def _require_completable(self) -> BundleSpec:
        if self.unlabelled == "complete":
            if is_mr(self.modalities[0]) or "controlnet" not in self.networks:
                raise ValueError("unlabelled: 'complete' is for CT bundles with a ControlNet")
            for name, slot in self.slots.items():
                if slot.id in FREE_IDS:
                    raise ValueError(
                        f"slots: with unlabelled 'complete', ids from {FREE_IDS[0]} stand for hidden structure, found "
                        f"{slot.id} for '{name}'"
                    )
        return self
