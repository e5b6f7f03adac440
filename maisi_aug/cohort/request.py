"""The request for a cohort: strict fields, from a recipe with flags on top; what is left open is decided later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, Strict, field_validator, model_validator

from maisi_aug.bundle_spec.decoding import DecodingConfig, PrecisionName
from maisi_aug.bundle_spec.solvers import SolverName, Steps
from maisi_aug.cohort.grammar import WrittenRequest
from maisi_aug.cohort.recipe_files import read_recipe
from maisi_aug.errors import RecipeError, did_you_mean
from maisi_aug.lesions.lesion import GrowthRule, growth_rule_of
from maisi_aug.system.content import spells_number
from maisi_aug.system.models import (
    Finite,
    Option,
    PathText,
    PositiveFinite,
    StrictModel,
    explain_problems,
    texts_of,
    warn_of_spelling,
)
from maisi_aug.vocabulary.modalities import ImageModality
from maisi_aug.vocabulary.regions import BODY_REGIONS, BodyRegion
from maisi_aug.volumes.grid_words import ShapeField, SpacingField

COHORT_NAME = "cohort.yaml"
EMBEDDED_BANK = "phantom"
MAX_CASES = 1_000_000
MAX_ATTEMPTS = 10_000
AUTO_MAPPING = "auto"
DEFAULT_NUM_CASES = 4
GIVEN, NO_MAP = "given", "none"
GRID_FIELDS = ("shape", "spacing_mm")

SECTIONS = ("gates", "decoding")
_WHAT, _MASKS, _IMAGES, _GATES, _RUN = "What to make", "Label maps", "Images", "Quality gates", "Run"

# YAML has lists and no tuples; strict mode would refuse them for a tuple field.
_FromList = Strict(False)
_CaseCount = Annotated[int, Field(gt=0, le=MAX_CASES)]


class GateConfig(StrictModel, strict=True, use_attribute_docstrings=True):
    """Settings of the quality gates that a case must pass to be accepted."""

    presence: bool = True
    """Check that every requested label is present."""
    lesion_size: bool = True
    """Check that lesions have the requested volume."""
    size_tolerance: Annotated[float, Field(gt=0, le=1)] = 0.10
    """Largest relative error of a lesion's volume; two voxels are always allowed."""
    lesion_place: bool = True
    """Check that planted lesions lie in their host organ and are compact."""
    max_share_outside: Annotated[float, Field(ge=0, le=1)] | None = None
    """Largest share of a planted lesion outside its host organ (default: typical for its kind)."""
    max_spread: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """Largest spread of a lesion about its centre; a ball has 1 (default: typical for its kind)."""
    organ_hu: bool = True
    """Check that median organ HU lie in the reference ranges, and that an image without a label map shows a patient."""
    hu_bias: bool = True
    """Check that the organs of a case, taken together, have the usual brightness; needs organ_hu."""
    max_dark_hu: PositiveFinite = 38.0
    """How many HU darker than usual the organs may be."""
    max_bright_hu: PositiveFinite = 60.0
    """How many HU brighter than usual the organs may be."""
    visibility: bool = True
    """Check that lesions stand out from their host organ."""
    minimum_cnr: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Least contrast between a lesion and its host, as a multiple of the noise; lesions under 10 mm only need the right
    sign (brighter or darker than their host).
    """

    @model_validator(mode="before")
    @classmethod
    def _read_texts(cls, value: object) -> object:
        """``NAME=on|off|NUMBER`` each, such as ``organ-hu=off`` and ``minimum-cnr=0.5``; nothing for all defaults."""
        if isinstance(value, list | tuple):
            return dict(cls._read_text(text) for text in texts_of(value, "organ-hu=off"))
        return {} if value is None else value

    @classmethod
    def _read_text(cls, text: str) -> tuple[str, bool | float]:
        name, _, value = (part.strip() for part in text.partition("="))
        field = name.replace("-", "_").lower()
        if field not in cls.model_fields:
            known = [known_name.replace("_", "-") for known_name in cls.model_fields]
            hint = did_you_mean(name, known) or f" Known names: {', '.join(known)}."
            raise ValueError(f"unknown gate '{name}'; expected NAME=off or NAME=NUMBER.{hint}")
        if isinstance(cls.model_fields[field].default, bool):
            if value.lower() not in ("on", "off"):
                raise ValueError(f"expected {name}=on or {name}=off, found '{text}'")
            return field, value.lower() == "on"
        try:
            return field, float(value)
        except ValueError:
            raise ValueError(f"expected a number for {name}, found '{text}'") from None

    def changes(self) -> dict[str, Any]:
        """Return the settings that differ from their defaults, for the manifest."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def rule_of(self, label: str) -> GrowthRule:
        """Return the growth rule for the lesions of a label, with the configured thresholds."""
        rule = growth_rule_of(label)
        return replace(
            rule,
            max_share_outside=rule.max_share_outside if self.max_share_outside is None else self.max_share_outside,
            max_spread=rule.max_spread if self.max_spread is None else self.max_spread,
        )


def _read_words(value: object) -> object:
    """``thorax,abdomen`` as its words, in lower case."""
    return [word.strip().lower() for word in value.split(",")] if isinstance(value, str) else value


def _read_organ_sizes(value: object) -> object:
    """``liver:0.5`` once per organ."""
    if not isinstance(value, list | tuple):
        return value
    sizes: dict[str, float] = {}
    for text in texts_of(value, "liver:0.5"):
        name, _, number = (part.strip() for part in text.rpartition(":"))
        try:
            size = float(number)
        except ValueError:
            size = float("nan")
        if not name or not isfinite(size):
            raise ValueError(f"expected an organ and its size such as 'liver:0.5', found '{text}'")
        if name in sizes:
            raise ValueError(f"expected each organ once, found '{name}' twice")
        sizes[name] = size
    return sizes


def _read_size_label(value: object) -> object:
    """``2``; ``NAME=2`` once per lesion is an earlier spelling of ``--map 2=NAME``, and warned of."""
    if not isinstance(value, list | tuple):
        return value
    texts = texts_of(value, "2")
    if len(texts) == 1 and spells_number(texts[0].strip()):
        return int(texts[0])
    pairs = [text.rpartition("=") for text in texts]
    if not all(name.strip() and spells_number(number.strip()) for name, _, number in pairs):
        raise ValueError(
            f"expected an id such as 2, or one --map '2=hepatic tumor' per lesion, found '{' '.join(texts)}'"
        )
    for text, (name, _, number) in zip(texts, pairs, strict=True):
        warn_of_spelling(f"--size-label '{text}'", f"--map '{number.strip()}={name.strip()}'")
    return {name.strip(): int(number) for name, _, number in pairs}


class CohortRequest(StrictModel, strict=True, use_attribute_docstrings=True):
    """Everything that a user can request of a cohort; a field that is None is filled in when it is resolved.

    ``cohort.yaml`` contains the resolved request, so that it is a recipe for the same cohort.
    """

    labels: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        _FromList,
        Option(metavar="NAME[:SIZE][@SHARE]", complete="labels", panel=_WHAT, everyday=True),
    ]
    """Lesion or organ, with a size: 0.3 (percentile), 0.1-0.6, 8-20mm, 4mL, 10-30mmx3; may repeat; '+' puts several
    into one case. With given maps: label to keep.
    """
    num_cases: Annotated[_CaseCount | None, Option("-n", metavar="N", panel=_WHAT, everyday=True)] = None
    """Number of cases (default: 4, or one per given map)."""
    grown_from: Annotated[tuple[_CaseCount, ...], _FromList] = ()
    """Numbers of cases that the cohort had before it grew, ascending. Continuing with a larger ``num_cases`` records
    them, so that existing cases stay as they are.
    """
    seed: Annotated[int, Field(ge=0), Option(metavar="N", panel=_WHAT, everyday=True)] = 0
    """Random seed of the patients."""
    twins: Annotated[str | None, Option(metavar="FACTOR=VALUE,...", panel=_WHAT)] = None
    """One case per value for each of the -n patients, all else equal: size=6mm,10mm,20mm, or place= with host organs of
    the lesion; for 'evaluate detection-curve'.
    """
    anatomy: Annotated[
        Annotated[tuple[Annotated[str, Field(min_length=1)], ...], _FromList, Field(min_length=1)] | None,
        BeforeValidator(_read_words),
        Option(metavar="NAME[,NAME]", takes=str, complete="anatomy", panel=_WHAT),
    ] = None
    """Labels kept in labels/ID.nii.gz, including those of --labels; organs listed here need no request and are in every
    case (default: the labels of --labels).
    """
    bundle: Annotated[
        PathText,
        Field(min_length=1),
        Option(metavar="NAME|FOLDER", complete="bundles", panel=_IMAGES, everyday=True),
    ] = "phantom-ct"
    """Bundle of network weights."""
    mask_source: Annotated[
        Literal["plant", "bank", "diffusion", "given", "none"], Option(metavar="SOURCE", panel=_MASKS, everyday=True)
    ] = "plant"
    """Source of label maps. plant: lesions planted in tumour-free maps; bank: maps with lesions; diffusion: generated
    maps; given: your maps, unchanged; none: images only.
    """
    mask_bank: Annotated[PathText, Field(min_length=1), Option(metavar="phantom|PATH", panel=_MASKS, everyday=True)] = (
        EMBEDDED_BANK
    )
    """File, folder or data list of label maps, or NVIDIA's mask database (zip or folder, with its JSON list next to
    it).
    """
    mask_labels: Annotated[
        Annotated[str, Field(min_length=1)] | dict[str | int, str | int],
        Option(
            metavar="NAME|FILE",
            takes=str,
            panel=_MASKS,
            in_python="Meaning of the label ids in the bank: auto, maisi, totalsegmentator-v1, totalsegmentator-v2, "
            "totalsegmentator-v3, a JSON file, or a dict, id -> label of the vocabulary.",
        ),
    ] = AUTO_MAPPING
    """Meaning of the label ids in the bank: auto, maisi, totalsegmentator-v1, -v2 or -v3, or a JSON file."""
    mask_steps: Annotated[PositiveInt | None, Option(panel=_MASKS)] = None
    """Sampling steps for a generated map (default: the bundle's; NVIDIA's DDPM uses 1000)."""
    size_of: Annotated[
        dict[str, Finite] | None,
        BeforeValidator(_read_organ_sizes),
        Option(
            metavar="ORGAN:SIZE",
            takes=list[str],
            panel=_MASKS,
            in_python="Organ (gallbladder, liver, stomach, pancreas or colon) -> its size percentile in generated "
            "maps: 0 to 1, or -1 for absent (default: random).",
        ),
    ] = None
    """Size percentile (0-1, or -1 for absent) of gallbladder, liver, stomach, pancreas or colon in generated maps; may
    repeat (default: random).
    """
    plant: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        _FromList,
        Option(metavar="NAME:SIZE[@SHARE]", complete="labels", panel=_MASKS),
    ] = ()
    """Lesion to plant in given maps, with a size as in --labels; may repeat; '+' puts several into one case. Tumours
    already in the maps become healthy organ; everything else stays unchanged.
    """
    num_inference_steps: Annotated[
        Steps | None, Option("--steps", metavar="N|auto", takes=str, complete="steps", panel=_IMAGES)
    ] = None
    """Sampling steps for the image (default: the bundle's); auto takes the fewest that were proven for the bundle by
    'maisi-aug bundles prove-steps'.
    """
    solver: Annotated[SolverName | None, Option(panel=_IMAGES)] = None
    """Solver of a rectified flow: euler draws as NVIDIA's scripts do, multistep needs fewer steps (default: euler; with
    --steps auto the proven one).
    """
    guidance_scale: Annotated[Annotated[float, Field(ge=0, allow_inf_nan=False)] | None, Option(panel=_IMAGES)] = None
    """Strength of the guidance towards the lesions, or without label maps towards the modality; values above 0 double
    the sampling time (default: 0; for images without label maps the bundle's).
    """
    modality: Annotated[ImageModality | None, Option(metavar="NAME", complete="modalities", panel=_IMAGES)] = None
    """Image modality used as conditioning: ct (contrast unspecified), ct_contrast or ct_wo_contrast; for MR bundles
    mri, mri_t1, mri_t2, mri_flair and others, listed by 'maisi-aug bundles show' (default: the bundle's first).
    """
    body_region: Annotated[
        Annotated[tuple[BodyRegion, ...], _FromList, Field(min_length=1, max_length=2)] | None,
        BeforeValidator(_read_words),
        Option(metavar="REGION[,REGION]", takes=str, panel=_IMAGES),
    ] = None
    """Uppermost and lowest of head, thorax, abdomen and pelvis; used by ddpm-ct, and to choose maps in NVIDIA's mask
    database (default: read from the map).
    """
    preset: Annotated[
        str | None, Field(min_length=1), Option(metavar="NAME", complete="presets", panel=_IMAGES, everyday=True)
    ] = None
    """Grid and decoding windows by GPU memory or body region; list them with: maisi-aug bundles presets."""
    shape: Annotated[ShapeField | None, Option(metavar="IxJxK", takes=str, panel=_IMAGES)] = None
    """Voxels along I, J, K, which point right, anterior, superior (default: from the preset, bundle or given map)."""
    spacing_mm: Annotated[SpacingField | None, Option("--spacing", metavar="MM|IxJxK", takes=str, panel=_IMAGES)] = None
    """Voxel spacing in mm (default: from the preset, bundle or given map)."""
    allow_unseen_grid: Annotated[bool, Option("--allow-unseen-grid", panel=_IMAGES)] = False
    """Warn about a grid that the bundle's networks were not trained on, instead of refusing it."""
    allow_few_organs: Annotated[bool, Option("--allow-few-organs", panel=_MASKS)] = False
    """Warn about label maps that lack the organs around the lesions, instead of refusing them."""
    keep_rejected: Annotated[bool, Option("--keep-rejected", panel=_GATES)] = False
    """Keep image and label maps of rejected cases in OUT/rejected."""
    max_attempts: Annotated[int, Field(gt=0, le=MAX_ATTEMPTS), Option(panel=_RUN)] = 5
    """Attempts per case before it is rejected; an existing cohort can be continued with more."""
    size_reference: Annotated[PathText | None, Option(takes=Path, complete="datasets", panel=_WHAT)] = None
    """nnU-Net dataset (path, number or name) or folder of label maps whose lesions define the size percentiles."""
    size_label: Annotated[
        PositiveInt | dict[str, PositiveInt] | None,
        BeforeValidator(_read_size_label),
        Option(
            metavar="ID",
            takes=list[str],
            panel=_WHAT,
            in_python="Id of the lesion in the size reference; if it has several, a dict, lesion -> id.",
        ),
    ] = None
    """Id of the lesion in the size reference; if it has several, use --map."""
    hu_reference: Annotated[PathText | None, Option(takes=Path, panel=_GATES)] = None
    """Your own CTs with label maps, or a file written by 'evaluate hu', as the reference for organ HU (default: the
    bundle's usual HU).
    """
    decoding: DecodingConfig = DecodingConfig()
    """How latents are decoded to images."""
    precision: Annotated[PrecisionName, Option(panel=_IMAGES)] = "auto"
    """Floating-point type of the networks; auto: float16 on CUDA, float32 elsewhere. bfloat16 is fast on CPUs but
    shifts organs by several HU.
    """
    gates: Annotated[
        GateConfig,
        Option(
            "--gate",
            metavar="NAME=off|NUMBER",
            takes=list[str],
            panel=_GATES,
            in_python="Quality gates to turn off, and their thresholds.",
        ),
    ] = GateConfig()
    """Turn a quality gate off or set its threshold; may repeat: presence, lesion-size, size-tolerance, lesion-place,
    max-share-outside, max-spread, organ-hu, hu-bias, max-dark-hu, max-bright-hu, visibility, minimum-cnr.
    """

    @model_validator(mode="before")
    @classmethod
    def _need_no_requests(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("mask_source") in (GIVEN, NO_MAP):
            return {"labels": (), **values}
        return values

    @field_validator("decoding", mode="before")
    @classmethod
    def _read_empty_section(cls, value: object) -> object:
        return {} if value is None else value

    @model_validator(mode="after")
    def _require_growth(self) -> CohortRequest:
        steps = (*self.grown_from, *([] if self.num_cases is None else [self.num_cases]))
        if self.grown_from and (self.num_cases is None or any(a >= b for a, b in pairwise(steps))):
            raise ValueError(
                f"grown_from: expected rising numbers below num_cases, found {list(self.grown_from)} for "
                f"{self.num_cases or 'no'} cases"
            )
        return self

    @model_validator(mode="after")
    def _require_fitting_fields(self) -> CohortRequest:
        if (self.size_reference is None) != (self.size_label is None):
            missing = "size_label" if self.size_label is None else "size_reference"
            raise ValueError(f"size_reference and size_label must be given together; {missing} is missing")
        misfit = self._find_misfit() or self._find_misfit_of_maps()
        if misfit:
            raise ValueError(misfit)
        places = [BODY_REGIONS.index(region) for region in self.body_region or ()]
        if places != sorted(places):
            found = ", ".join(self.body_region or ())
            raise ValueError(f"body_region: expected the uppermost region before the lowest, found {found}")
        return self

    def _find_misfit(self) -> str:
        """The first field that its mask source makes nothing of: refused rather than ignored; else empty."""
        source = self.mask_source
        if self.plant and source != GIVEN:
            return (
                f"plant cannot be used with mask_source '{source}', found {', '.join(self.plant)}; name lesions in "
                "labels, or use mask_source 'given' to plant them in your own label maps"
            )
        if self.twins is not None and source != "plant":
            return f"twins cannot be used with mask_source '{source}', found {self.twins}; use mask_source 'plant'"
        if self.takes_requests:
            return "" if self.labels else "labels: at least one lesion or organ is required"
        if self.size_reference is not None:
            return f"size_reference cannot be used with mask_source '{source}', which takes no sizes"
        if self.anatomy is not None:
            return (
                f"anatomy cannot be used with mask_source '{source}'; name the labels of the given maps to keep in "
                "labels"
            )
        if source == GIVEN:
            return self._find_misfit_of_given()
        unused = {
            "labels": ", ".join(self.labels),
            "mask_bank": "one" if self.has_own_bank else "",
            "mask_labels": "" if self.mask_labels == AUTO_MAPPING else str(self.mask_labels),
            "hu_reference": self.hu_reference or "",
        }
        field, found = next(((field, found) for field, found in unused.items() if found), ("", ""))
        if not field:
            return ""
        return (
            f"{field}: expected none with mask_source 'none', which draws images without a label map, found "
            f"{found}; leave it out, or choose another mask_source"
        )

    def _find_misfit_of_given(self) -> str:
        if not self.has_own_bank:
            return (
                "mask_source 'given': requires a mask_bank with your own label maps; give a file, a folder or a data "
                "list"
            )
        for place, text in enumerate(self.labels):
            if not WrittenRequest.is_name(text):
                return (
                    f"labels[{place}]: expected a label name without a size, since mask_source 'given' draws each "
                    f"map with its own lesions, found '{text}'; leave labels out to keep every label, or use "
                    "mask_source 'plant' to choose sizes"
                )
        return ""

    def _find_misfit_of_maps(self) -> str:
        """A bank without the lesions that are to be taken from it, or a field of another kind of label maps."""
        bank = self.mask_bank if self.has_own_bank else None
        if self.mask_source == "bank" and bank is None:
            return (
                "mask_source 'bank': requires a mask_bank with lesions, but the phantoms have none; give a folder or "
                "a data list, or use mask_source 'plant'"
            )
        idle: dict[str, object]
        if self.mask_source == "diffusion":
            idle = {"mask_bank": bank, "mask_labels": None if self.mask_labels == AUTO_MAPPING else self.mask_labels}
            advice = "leave it out"
        else:
            idle = {"mask_steps": self.mask_steps, "size_of": self.size_of}
            advice = "use mask_source 'diffusion', or leave it out"
        for name, found in idle.items():
            if found is not None:
                return f"{name} cannot be used with mask_source '{self.mask_source}', found {found}; {advice}"
        return ""

    @property
    def takes_requests(self) -> bool:
        """Whether label requests apply; they do not for given label maps and for images without label maps."""
        return self.mask_source not in (GIVEN, NO_MAP)

    @property
    def has_maps(self) -> bool:
        """Whether cases have label maps; without one, the diffusion U-Net draws the image unconditionally."""
        return self.mask_source != NO_MAP

    @property
    def has_own_bank(self) -> bool:
        """Whether the user names a mask bank."""
        return self.mask_bank != EMBEDDED_BANK

    @property
    def follows_maps(self) -> bool:
        """Whether each image keeps the grid of its given label map, if the networks can."""
        return self.mask_source == GIVEN and self.preset is None

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain YAML and JSON types, in the order of the class."""
        return without_unused(self.model_dump(mode="json"))


_UNUSED = ("grown_from", "plant", "twins", "solver")


def without_unused(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a request without unused optional ones, so that older ``cohort.yaml`` files stay valid."""
    return {name: value for name, value in fields.items() if value or name not in _UNUSED}


def build_request(values: Mapping[str, Any], *, source: str = "recipe") -> CohortRequest:
    """Validate the fields of a recipe, and return the request.

    Args:
        values: Field -> value, as in YAML.
        source: Name of the recipe in messages, such as a file name.

    Raises:
        RecipeError: The message lists every problem with its place.
    """
    with explain_problems(
        CohortRequest, source, RecipeError, kind="recipe", if_missing="Set it in the recipe or as an option."
    ):
        return CohortRequest.model_validate(dict(values))


def override(values: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe, overridden by the options that were given (are not None).

    The name of an option may be ``SECTION.FIELD``, or its value some fields of a section; other fields of the section
    are kept. A preset that is given as an option overrides the recipe's shape, spacing, decode window and overlap.

    Args:
        values: Fields of the recipe.
        flags: Field -> value of the option.
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
            merged[section] = _with_fields(merged.get(section), {field: value})
        elif value is not None:
            merged[name] = _with_fields(merged.get(name), value) if name in SECTIONS else value
    return merged


def _with_fields(section: object, fields: Mapping[str, Any]) -> object:
    """A section with some fields replaced; what is not a section is refused where the whole is validated."""
    before = section or {}
    return {**before, **fields} if isinstance(before, Mapping) else before


def load_recipe(name_or_path: str, flags: Mapping[str, Any] | None = None) -> CohortRequest:
    """Read a recipe, override it with options, and validate the result.

    Args:
        name_or_path: Name of a packaged recipe, or a YAML file.
        flags: Field -> value of the option; None for none.

    Raises:
        RecipeError: The message lists every problem with its place.
    """
    return build_request(override(read_recipe(name_or_path), flags or {}), source=name_or_path)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Describe the fields in which two configurations differ, as ``name: old -> new``.

    Args:
        old: Field -> value of the first configuration.
        new: Field -> value of the second configuration.

    Returns:
        One text per differing field; a missing field counts as None.
    """
    names: Iterable[str] = dict.fromkeys([*old, *new])
    return [f"{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in names if old.get(name) != new.get(name)]
