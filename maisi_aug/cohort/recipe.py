"""The configuration of a cohort: strict fields, with flags on top of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from maisi_aug.bundle_spec.decoding import DecodingConfig
from maisi_aug.bundle_spec.precision import PrecisionName
from maisi_aug.cohort.recipe_files import read_recipe
from maisi_aug.cohort.source_rules import AUTO_MAPPING, SOURCES_WITHOUT_REQUESTS, find_misfit
from maisi_aug.errors import RecipeError, did_you_mean
from maisi_aug.vocabulary.regions import BODY_REGIONS, BodyRegion

COHORT_NAME = "cohort.yaml"
EMBEDDED_BANK = "phantom"
MAX_CASES = 1_000_000
MAX_ATTEMPTS = 10_000
MAX_SIDE = 8192
"""Voxels along a side that a recipe may ask for; the bundle's limits are below."""
GRID_FIELDS = ("shape", "spacing_mm")

# YAML has lists and no tuples; strict mode would refuse them for a tuple field.
_FromList = Strict(False)
_PositiveInt = Annotated[int, Field(ge=1)]
_CaseCount = Annotated[int, Field(ge=1, le=MAX_CASES)]
_Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
_PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class GateConfig(BaseModel):
    """What a case must fulfil to be accepted.

    Attributes:
        presence: Whether every label that is asked for must be there.
        lesion_size: Whether lesions must have the volume that was asked for.
        size_tolerance: Largest relative error of a lesion's volume; two voxels are always allowed.
        lesion_place: Whether planted lesions must lie in their host and be compact.
        max_share_outside: Share of a planted lesion that may lie outside its host; what is usual for its kind when not
            given.
        max_spread: Largest spread of a lesion about its centre, 1 for a ball; what is usual when not given.
        organ_hu: Whether organ medians must lie in the reference ranges, and an image without a label map must show a
            patient.
        hu_bias: Whether the organs of a case, taken together, must be about as bright as usual; never without organ_hu.
        max_dark_hu: By how many HU they may be darker.
        max_bright_hu: By how many HU they may be brighter.
        visibility: Whether lesions must stand out from their host organ.
        minimum_cnr: Least contrast between a lesion and its host, as a multiple of the noise; lesions under 10 mm only
            have to be brighter or darker than their host as their kind is.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    presence: bool = True
    lesion_size: bool = True
    size_tolerance: Annotated[float, Field(gt=0, le=1)] = 0.10
    lesion_place: bool = True
    max_share_outside: Annotated[float, Field(ge=0, le=1)] | None = None
    max_spread: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    organ_hu: bool = True
    hu_bias: bool = True
    max_dark_hu: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 38.0
    max_bright_hu: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0
    visibility: bool = True
    minimum_cnr: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0

    def changes(self) -> dict[str, Any]:
        """The fields that differ from their defaults, for the manifest."""
        return self.model_dump(mode="json", exclude_defaults=True)


class CohortConfig(BaseModel):
    """Everything that decides which bytes a cohort consists of.

    Attributes:
        labels: Requests, ``NAME[:SIZE][@SHARE]``, joined with ``+`` where one case serves several. With mask_source
            ``given`` the names of the labels to keep in ``labels/``, every label but the body when there are none; with
            ``none`` there are none.
        num_cases: Cases to make; 4 when not given, and one for each label map with mask_source ``given``.
        grown_from: Numbers of cases that the cohort had before it grew, ascending; going on with a larger ``num_cases``
            notes them, so that the cases that were there stay as they are.
        seed: Cohort seed.
        anatomy: Labels that ``labels/ID.nii.gz`` keeps, by name, alias or id; its organs must be in every case. Those
            that the requests name when not given.
        bundle: Name or folder of a bundle.
        mask_source: ``plant`` puts lesions of exact size into tumour-free maps; ``bank`` takes maps that have them;
            ``diffusion`` generates maps with the bundle's mask networks; ``given`` draws each map of the bank as it is;
            ``none`` draws images without a label map.
        mask_bank: ``phantom`` for the embedded phantoms, or a folder or data list of label maps, or NVIDIA's mask
            database.
        mask_labels: Vocabulary of the bank: ``auto``, ``maisi``, ``totalsegmentator-v1``, ``-v2`` or ``-v3``, or its
            ids or names with what they are, here or in a JSON file.
        mask_steps: Steps of the sampler of label maps, for ``diffusion``; the bundle's default when not given, and
            DDPM when they are all that the mask networks were trained with.
        size_of: Size percentile, or -1 for absent, of organs by name, for ``diffusion``; drawn when not given.
        num_inference_steps: Steps of the sampler; the bundle's default when not given.
        guidance_scale: Strength of the guidance towards the requested lesions; 0 switches it off.
        modality: What the images shall look like: ``ct`` leaves the contrast medium open, ``ct_contrast`` and
            ``ct_wo_contrast`` do not.
        body_region: The body region of every image, or the uppermost and the lowest, for bundles that are told them
            (ddpm-ct); read off each label map when not given.
        preset: Shape, spacing, decode window and overlap by one name, of ``maisi-aug bundles presets``.
        shape: Voxels along I, J, K (right, anterior, superior); the preset's, or else the bundle's when not given, and
            the map's own with mask_source ``given``.
        spacing_mm: Voxel sides along I, J, K; the preset's, the bundle's or the map's own in the same way.
        allow_unseen_grid: Warn of a grid that the bundle's networks cannot work with, instead of refusing it.
        allow_few_organs: Warn of a mask bank whose maps lack the organs around the lesions, instead of refusing it.
        keep_rejected: Keep image and label maps of cases that are rejected, in a folder of their own.
        max_attempts: Attempts per case before it is rejected; a cohort can be gone on with under a larger number.
        size_reference: nnU-Net dataset or folder of label maps whose lesions define the percentiles.
        size_label: Id of the lesion in the size reference, or one id per label name.
        hu_reference: CTs with label maps of the user's own, or a file of ranges, that organs are held against.
        decoding: How images are decoded from their latents.
        precision: What the networks compute in: ``float32``, ``bfloat16``, ``float16``, or ``auto``, which is float16
            on CUDA devices and float32 elsewhere. It moves intensities; the manifest says what was taken.
        gates: Quality gates.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    labels: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], _FromList]
    num_cases: _CaseCount | None = None
    grown_from: Annotated[tuple[_CaseCount, ...], _FromList] = ()
    seed: Annotated[int, Field(ge=0)] = 0
    anatomy: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], _FromList, Field(min_length=1)] | None = None
    bundle: Annotated[str, Field(min_length=1)] = "phantom-ct"
    mask_source: Literal["plant", "bank", "diffusion", "given", "none"] = "plant"
    mask_bank: Annotated[str, Field(min_length=1)] = EMBEDDED_BANK
    mask_labels: Annotated[str, Field(min_length=1)] | dict[str | int, str | int] = AUTO_MAPPING
    mask_steps: _PositiveInt | None = None
    size_of: dict[str, Annotated[float, Field(allow_inf_nan=False)]] | None = None
    num_inference_steps: _PositiveInt | None = None
    guidance_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    modality: Literal["ct", "ct_contrast", "ct_wo_contrast"] = "ct"
    body_region: Annotated[tuple[BodyRegion, ...], _FromList, Field(min_length=1, max_length=2)] | None = None
    preset: Annotated[str, Field(min_length=1)] | None = None
    shape: Annotated[tuple[_Side, _Side, _Side], _FromList] | None = None
    spacing_mm: Annotated[tuple[_PositiveFloat, _PositiveFloat, _PositiveFloat], _FromList] | None = None
    allow_unseen_grid: bool = False
    allow_few_organs: bool = False
    keep_rejected: bool = False
    max_attempts: Annotated[int, Field(ge=1, le=MAX_ATTEMPTS)] = 5
    size_reference: str | None = None
    size_label: _PositiveInt | dict[str, _PositiveInt] | None = None
    hu_reference: str | None = None
    decoding: DecodingConfig = DecodingConfig()
    precision: PrecisionName = "auto"
    gates: GateConfig = GateConfig()

    @model_validator(mode="before")
    @classmethod
    def _need_no_requests(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("mask_source") in SOURCES_WITHOUT_REQUESTS:
            return {"labels": (), **values}
        return values

    @field_validator("gates", "decoding", mode="before")
    @classmethod
    def _read_empty_section(cls, value: object) -> object:
        return {} if value is None else value

    @model_validator(mode="after")
    def _require_growth(self) -> CohortConfig:
        steps = (*self.grown_from, *([] if self.num_cases is None else [self.num_cases]))
        if self.grown_from and (self.num_cases is None or any(a >= b for a, b in pairwise(steps))):
            raise ValueError(
                f"grown_from: expected rising numbers below num_cases, found {list(self.grown_from)} for "
                f"{self.num_cases or 'no'} cases"
            )
        return self

    @model_validator(mode="after")
    def _require_fitting_fields(self) -> CohortConfig:
        if (self.size_reference is None) != (self.size_label is None):
            missing = "size_label" if self.size_label is None else "size_reference"
            raise ValueError(f"size_reference and size_label belong together; {missing} is missing")
        misfit = find_misfit(
            self.mask_source,
            labels=self.labels,
            own_bank=None if self.mask_bank == EMBEDDED_BANK else self.mask_bank,
            mask_labels=self.mask_labels,
            guidance_scale=self.guidance_scale,
            size_reference=self.size_reference,
            has_anatomy=self.anatomy is not None,
            mask_steps=self.mask_steps,
            size_of=self.size_of,
        )
        if misfit:
            raise ValueError(misfit)
        places = [BODY_REGIONS.index(region) for region in self.body_region or ()]
        if places != sorted(places):
            found = ", ".join(self.body_region or ())
            raise ValueError(f"body_region: expected the uppermost region before the lowest, found {found}")
        return self

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain YAML and JSON types, in the order of the class."""
        fields = self.model_dump(mode="json")
        return fields if self.grown_from else {name: value for name, value in fields.items() if name != "grown_from"}


SECTIONS: dict[str, type[BaseModel]] = {"gates": GateConfig, "decoding": DecodingConfig}


def build_config(values: Mapping[str, Any], *, source: str = "recipe") -> CohortConfig:
    """Validate the fields of a recipe.

    Args:
        values: Field names to values, as YAML or flags give them.
        source: What to call them in messages, a file name for instance.

    Raises:
        RecipeError: Listing every problem with its place.
    """
    try:
        return CohortConfig.model_validate(dict(values))
    except ValidationError as error:
        problems = list({_yaml_path(item["loc"]): _problem(item) for item in reversed(error.errors())}.values())[::-1]
        if len(problems) == 1:
            raise RecipeError(f"{source}: {problems[0]}") from None
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise RecipeError(f"{source}: expected a valid recipe, found {len(problems)} problems:\n{listed}") from None


def _problem(details: ErrorDetails) -> str:
    """One validation error as ``path: expected ..., found ....``."""
    path = _yaml_path(details["loc"])
    found = details["input"]
    if details["type"] == "extra_forbidden":
        known = SECTIONS.get(str(details["loc"][0]), CohortConfig).model_fields
        hint = did_you_mean(str(details["loc"][-1]), known) or f" The keys are {', '.join(known)}."
        return f"{path}: expected a known key, found '{details['loc'][-1]}'.{hint}"
    if details["type"] == "missing":
        return f"{path}: expected a value, found none. Give it in the recipe or as a flag."
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if details["type"] == "value_error":
        return f"{message}."
    if details["type"] == "tuple_type":
        message = "a list"
    shown = repr(found) if len(repr(found)) <= 60 else repr(found)[:57] + "..."
    return f"{path}: expected {message}, found {shown}."


def _yaml_path(location: tuple[int | str, ...]) -> str:
    """``labels[1]`` from ``("labels", 1)``; the tags that pydantic adds for the members of a union are left out."""
    if not location:
        return "recipe"
    head, *rest = location
    kept = rest if head in SECTIONS else [part for part in rest if isinstance(part, int)]
    return str(head) + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in kept)


def override(values: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's values with those flags on top that were given (are not ``None``).

    A flag's name may be ``SECTION.FIELD``: the other fields of the section stay. A preset that is given as a flag
    stands above the recipe's shape, spacing, decode window and overlap.
    """
    merged = dict(values)
    if flags.get("preset") is not None:
        merged = {name: value for name, value in values.items() if name not in GRID_FIELDS}
        if isinstance(merged.get("decoding"), Mapping):
            kept = {name: value for name, value in merged["decoding"].items() if name not in ("window", "overlap")}
            merged["decoding"] = kept
    for name, value in flags.items():
        section, _, field = name.partition(".")
        if value is not None and field:
            before = merged.get(section) or {}
            # What is no section is refused where the whole is validated.
            merged[section] = {**before, field: value} if isinstance(before, Mapping) else before
        elif value is not None:
            merged[name] = value
    return merged


def load_recipe(name_or_path: str, flags: Mapping[str, Any] | None = None) -> CohortConfig:
    """Read a recipe, put the flags on top and validate the whole.

    Raises:
        RecipeError: Listing every problem with its place.
    """
    return build_config(override(read_recipe(name_or_path), flags or {}), source=name_or_path)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The fields in which two configurations differ, as ``name: old -> new``."""
    names: Iterable[str] = dict.fromkeys([*old, *new])
    return [f"{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in names if old.get(name) != new.get(name)]
