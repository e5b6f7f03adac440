"""Resolve a request into a run: every open field is decided once and the plan is made. Cheap, and without torch."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, overload

from maisi_aug import __version__
from maisi_aug.banks.files import BankFiles, digest_of, list_bank
from maisi_aug.banks.label_ids import CHOICES, LabelMapping, load_mapping, require_known_targets
from maisi_aug.banks.raw_datasets import find_dataset
from maisi_aug.bundle_spec.bundle import Bundle, embedded_bundles, load_bundle, load_outline, pulled_bundles
from maisi_aug.bundle_spec.decoding import DecodingConfig
from maisi_aug.bundle_spec.mask_networks import choose_mask_steps, fingerprint_of_masks, require_inside
from maisi_aug.bundle_spec.presets import Preset, find_preset
from maisi_aug.bundle_spec.proven_steps import choose_sampling, warn_of_auto
from maisi_aug.bundle_spec.solvers import Sampling
from maisi_aug.cohort.folder import NOT_BEGUN, BegunCohort
from maisi_aug.cohort.grammar import CaseRequest, label_names, parse_requests
from maisi_aug.cohort.hu_reference import load_hu_reference, ranges_from_json, ranges_to_json
from maisi_aug.cohort.plan import CasePlan, CohortPlan, plan_bare_images, plan_cohort, plan_given_maps
from maisi_aug.cohort.request import DEFAULT_NUM_CASES, EMBEDDED_BANK, GIVEN, CohortRequest, without_unused
from maisi_aug.cohort.twins import Twins, parse_twins, plan_twin_maps, plan_twins, with_size
from maisi_aug.errors import MaisiAugWarning, RequestError, VocabularyError
from maisi_aug.networks.mask_conditions import read_organ_sizes, require_not_absent
from maisi_aug.system.progress import Report
from maisi_aug.vocabulary.hu import HuRange
from maisi_aug.vocabulary.label_meaning import find_label_id
from maisi_aug.vocabulary.labels import Vocabulary
from maisi_aug.vocabulary.regions import REGION_LABELS, BodyRegion, Regions, spell_out
from maisi_aug.vocabulary.sizes import SizeDistribution, measure_distribution
from maisi_aug.volumes.grid import Grid

NUM_DIGITS = 16  # of a hash; enough to tell banks apart, few enough to be read in a message


@dataclass(frozen=True)
class CohortRun:
    """A fully resolved cohort, ready to be made.

    Attributes:
        request: The request as given.
        configuration: The same with what was left open filled in and paths made absolute, as ``cohort.yaml`` has it.
        begun: State of the cohort's existing folder.
        bundle: The weights and their vocabulary.
        grid: Grid of every case; the bundle's where given label maps keep their own.
        bank: The label maps of the user's own, listed; none where the phantoms, mask networks or nothing serve.
        mask_bank: Identity of those label maps or mask networks, as plain JSON values.
        mask_labels: Meaning of their ids, as read from a file.
        mask_steps: Sampling steps of the sampler of label maps; 0 where none are generated.
        organ_sizes: Percentile by id of organs in generated label maps.
        sampling: Number of steps and solver of the sampler of images.
        guidance_scale: Guidance scale of the sampler of images.
        modality: Modality of the images.
        decoding: Settings for decoding images.
        seed: Cohort seed.
        requests: Requests for the cases; none for given maps and for images without maps.
        distributions: Label name -> sizes measured in the user's data; empty without a size reference.
        plan: Required content of every case.
        hu_ranges: HU of organs in the user's own CTs; empty without a HU reference.
    """

    request: CohortRequest
    configuration: Mapping[str, Any]
    begun: BegunCohort
    bundle: Bundle
    grid: Grid
    bank: BankFiles
    mask_bank: Mapping[str, Any]
    mask_labels: LabelMapping
    mask_steps: int
    organ_sizes: Mapping[int, float]
    sampling: Sampling
    guidance_scale: float
    modality: str
    decoding: DecodingConfig
    seed: int
    requests: tuple[CaseRequest, ...]
    distributions: Mapping[str, SizeDistribution]
    plan: CohortPlan
    hu_ranges: tuple[HuRange, ...]

    @property
    def num_inference_steps(self) -> int:
        """Number of inference steps of the sampler of images."""
        return self.sampling.num_steps

    @property
    def regions(self) -> Regions | None:
        """Uppermost and lowest body region that label maps must show; None if no region is requested."""
        return spell_out(self.request.body_region)

    @property
    def twins(self) -> Twins | None:
        """The factor that differs between the cases of a group of twins; None if there are no twins."""
        return _find_twins(self.request)

    def with_seed(self, seed: int) -> CohortRun:
        """Return the same cohort with another seed: other lesion sizes, and another order of cases."""
        if not self.requests:
            return replace(self, seed=seed)  # which decides on nothing in the plan
        grown_from, num_cases = self.configuration.get("grown_from", ()), self.configuration["num_cases"]
        request = self.request.model_copy(update={"num_cases": num_cases, "seed": seed})
        plan = _plan_cases(request, self.requests, self.bundle, self.bank, grown_from, self.distributions)
        return replace(self, seed=seed, plan=plan)

    def to_document(self) -> dict[str, Any]:
        """Return the content of ``cohort.yaml``, without times and machine names: equal cohorts have equal bytes."""
        names = self.bundle.vocabulary.name_of
        return {
            "configuration": dict(self.configuration),
            "bundle": {
                "name": self.bundle.name,
                "fingerprint": self.bundle.fingerprint,
                "licence": self.bundle.licence,
            },
            **({"mask_bank": dict(self.mask_bank)} if self.mask_bank else {}),
            "requested": [{"id": label_id, "name": names(label_id)} for label_id in self.plan.requested_ids],
            "size_distributions": {name: _to_yaml(sizes) for name, sizes in self.distributions.items()},
            **({"hu_ranges": ranges_to_json(self.hu_ranges)} if self.hu_ranges else {}),
            "maisi_aug": __version__,
        }


def resolve(
    request: CohortRequest,
    folder: Path | None = None,
    *,
    may_resume: bool = True,
    report_file: Report | None = None,
    needs_weights: bool = True,
) -> CohortRun:
    """Fill in the optional fields of a request, and plan the cohort; warns about a grid unseen in training.

    Args:
        request: The user's request.
        folder: Folder of the cohort; measured sizes of an existing cohort are reused instead of being measured again.
        may_resume: Whether the folder may hold a cohort already.
        report_file: Progress callback, called with (files read, files in all) while a size or HU reference is measured.
        needs_weights: Whether the bundle's weights must be on this machine; not needed for a plan.

    Raises:
        CohortError: The folder is not a cohort's.
        BundleError: There is no such bundle, or it has no mask networks although label maps are to be generated.
        GridError: The bundle's networks cannot use the grid, or generated label maps do not fill it.
        RecipeError: The preset does not suit the bundle, there are more sampling steps than its scheduler knows, or its
            networks are not conditioned on the requested modality, body region or organ size.
        BankError: The mask bank does not exist or has no label map, or its list or label mapping cannot be read.
        RequestError, VocabularyError: A label request cannot be met.
        VolumeError: The size reference cannot be read.
    """
    begun = NOT_BEGUN if folder is None else BegunCohort.read(folder, may_resume=may_resume)
    bundle = (load_bundle if needs_weights else load_outline)(request.bundle)
    return _decide(request, begun, bundle, report_file)


def _decide(request: CohortRequest, begun: BegunCohort, bundle: Bundle, report_file: Report | None) -> CohortRun:
    named = _name_maps(request, bundle)
    bank, mapping = _list_bank(named["mask_bank"], bundle.vocabulary), load_mapping(named["mask_labels"])
    drawn = _choose_sampling(request, bundle, bank)
    decoding, grid = _choose_decoding(request, bundle), _choose_grid(request, bundle)
    mask_steps = _choose_mask_steps(request, bundle, grid)
    grown_from = begun.steps_to(request.num_cases, request.grown_from)
    described = _describe_bank(request, bundle, bank, mapping)
    distributions = _find_distributions(request, bundle.vocabulary, begun.document, report_file)
    requests = _parse(request, bundle, distributions)
    plan = _plan_cases(request, requests, bundle, bank, grown_from, distributions)
    organ_sizes = read_organ_sizes(request.size_of, bundle.vocabulary) if request.size_of else {}
    _require_makeable(request, plan, bundle.vocabulary, grid, bank, organ_sizes)
    decided: dict[str, Any] = {
        "num_cases": len(plan.cases) // _count_twins(request),
        "grown_from": list(grown_from),
        **named,
        "mask_steps": mask_steps or None,
        **_spell_sampling(**drawn),
        "decoding": decoding.model_dump(mode="json"),
    }
    return CohortRun(
        request=request,
        configuration=_fill_in(request, decided, grid),
        begun=begun,
        bundle=bundle,
        grid=grid,
        bank=bank,
        mask_bank=described,
        mask_labels=mapping,
        mask_steps=mask_steps,
        organ_sizes=organ_sizes,
        **drawn,
        decoding=decoding,
        seed=request.seed,
        requests=requests,
        distributions=distributions,
        plan=plan,
        hu_ranges=_find_hu_ranges(request, bundle, grid, begun.document, report_file),
    )


def _choose_sampling(request: CohortRequest, bundle: Bundle, bank: BankFiles) -> dict[str, Any]:
    """Return sampling, guidance and modality of the images; what the networks were not trained on is warned of."""
    if request.has_maps:
        bundle.require_controlnet()
    modality = bundle.choose_modality(request.modality)
    bundle.require_told(modality=modality, body_region=_find_told_region(request, bundle, bank))
    guidance_scale = bundle.choose_guidance(request.guidance_scale, has_map=request.has_maps)
    is_guided = guidance_scale > 0
    sampling = choose_sampling(bundle, request.num_inference_steps, request.solver, is_guided=is_guided)
    for sentence in (
        *bundle.warn_of_modality(modality),
        *bundle.warn_of_steps(sampling.num_steps),
        *warn_of_auto(bundle, sampling, is_guided=is_guided),
    ):
        warnings.warn(sentence, MaisiAugWarning, stacklevel=3)
    return {"sampling": sampling, "guidance_scale": guidance_scale, "modality": modality}


def _spell_sampling(sampling: Sampling, guidance_scale: float, modality: str) -> dict[str, Any]:
    """The same as fields of a request."""
    return {
        "num_inference_steps": sampling.num_steps,
        "solver": sampling.requested_solver,
        "guidance_scale": guidance_scale,
        "modality": modality,
    }


def _fill_in(request: CohortRequest, decided: Mapping[str, Any], grid: Grid) -> dict[str, Any]:
    """A request with what was left open, its paths absolute, as plain YAML values in the order of its fields."""
    fields = {
        **request.model_dump(mode="json"),
        "bundle": _absolute(request.bundle, *embedded_bundles(), *pulled_bundles()),
        "size_reference": _absolute_dataset(request.size_reference),
        "hu_reference": _absolute_dataset(request.hu_reference),
        **({} if request.follows_maps else {"shape": list(grid.shape), "spacing_mm": list(grid.spacing_mm)}),
        **decided,
    }
    return without_unused(fields)


def _name_maps(request: CohortRequest, bundle: Bundle) -> dict[str, Any]:
    """Find the label maps and the meaning of their ids: the user's, otherwise the bundle's, otherwise phantoms."""
    is_open = request.mask_source == "plant" and "mask_bank" not in request.model_fields_set
    bank, labels = (bundle.find_mask_bank() if is_open else None) or (request.mask_bank, request.mask_labels)
    return {
        "mask_bank": _absolute_dataset(bank, EMBEDDED_BANK),
        "mask_labels": _absolute(labels, *CHOICES) if isinstance(labels, str) else labels,
    }


def _list_bank(path: str, vocabulary: Vocabulary) -> BankFiles:
    """The user's label maps, not opened; none of the phantoms, which come with the package."""
    if path == EMBEDDED_BANK:
        return BankFiles(Path(path), [], [], [])
    return list_bank(Path(path), lambda name: find_label_id(name, vocabulary) is not None)


def _find_told_region(request: CohortRequest, bundle: Bundle, bank: BankFiles) -> tuple[BodyRegion, ...] | None:
    """Return the body region for the networks; none if it only selects among label maps that imply their region."""
    only_chooses = request.takes_requests and any(entry.extent_mm is not None for entry in bank.entries)
    return request.body_region if bundle.is_told_regions or not only_chooses else None


def _find_preset(request: CohortRequest, bundle: Bundle) -> Preset | None:
    return None if request.preset is None else find_preset(request.preset, bundle)


def _choose_decoding(request: CohortRequest, bundle: Bundle) -> DecodingConfig:
    """The preset's windows, or the whole where it has none, where windows of no size are requested."""
    decoding, preset = request.decoding, _find_preset(request, bundle)
    if preset is None or decoding.mode != "windows" or decoding.window is not None:
        return decoding
    if preset.decode_window is None:
        return decoding.model_copy(update={"mode": "exact"})
    overlap = decoding.overlap if "overlap" in decoding.model_fields_set else preset.overlap
    return decoding.model_copy(update={"window": preset.decode_window, "overlap": overlap})


def find_grid(request: CohortRequest) -> Grid:
    """Return the grid that a request leads to, without comparing it with the limits of the bundle.

    Raises:
        BundleError: There is no such bundle.
        RecipeError: The preset does not suit the bundle.
    """
    return _build_grid(request, load_outline(request.bundle))


def _build_grid(request: CohortRequest, bundle: Bundle) -> Grid:
    base = _find_preset(request, bundle) or bundle.spec.grid
    return Grid.from_spacing(request.shape or base.shape, request.spacing_mm or base.spacing_mm)


def _choose_grid(request: CohortRequest, bundle: Bundle) -> Grid:
    """The grid of every case, compared with those that the networks have seen.

    Given label maps decide on what is left open, each for itself: of theirs only the sides requested are checked.
    """
    grid = _build_grid(request, bundle)
    if request.follows_maps:
        grid.require_multiple_of(bundle.grid_factor, subject=f"Shape for bundle '{bundle.name}'")
        return grid
    is_head = shows_head_alone(request, bundle)
    for sentence in bundle.check_grid(grid, shows_head_alone=is_head, allow_unseen=request.allow_unseen_grid):
        warnings.warn(sentence, MaisiAugWarning, stacklevel=3)
    return grid


def shows_head_alone(request: CohortRequest, bundle: Bundle) -> bool:
    """Whether a cohort shows only the head, judged by its body region or otherwise by its requested labels.

    Args:
        request: Cohort request.
        bundle: Bundle whose vocabulary the label requests refer to.
    """
    if request.body_region is not None:
        return set(request.body_region) == {"head"}
    return all(_is_in_head(name, bundle) for name in label_names(request.labels))


def _is_in_head(name: str, bundle: Bundle) -> bool:
    try:
        return bundle.vocabulary.id_of(name) in REGION_LABELS["head"]
    except VocabularyError:  # reported when the requests are read
        return False


def _choose_mask_steps(request: CohortRequest, bundle: Bundle, grid: Grid) -> int:
    if request.mask_source != "diffusion":
        return 0
    steps = choose_mask_steps(bundle, request.mask_steps)
    require_inside(bundle, grid)
    return steps


def _describe_bank(request: CohortRequest, bundle: Bundle, bank: BankFiles, mapping: LabelMapping) -> dict[str, Any]:
    """Describe the user's label maps and their explaining file for the cohort's records, without opening maps.

    The phantoms come with the package, so that there is nothing to remember of them; mask networks stand in for a bank.
    """
    if request.mask_source == "diffusion":
        return {"mask_networks_sha256": fingerprint_of_masks(bundle)[:NUM_DIGITS]}
    require_known_targets(mapping, bundle.vocabulary, subject=f"Mask labels {request.mask_labels}")
    if bank.path == Path(EMBEDDED_BANK):
        return {}
    bank.require_maps()
    described = {"num_maps": len(bank.entries), "files_sha256": digest_of(bank.entries)[:NUM_DIGITS]}
    if isinstance(mapping, Mapping):
        described["mapping_sha256"] = hashlib.sha256(json.dumps(mapping).encode()).hexdigest()[:NUM_DIGITS]
    return described


def _parse(
    request: CohortRequest, bundle: Bundle, distributions: Mapping[str, SizeDistribution]
) -> tuple[CaseRequest, ...]:
    """The requests; percentiles refer to the user's data, else to what the bundle was taught on, else to tables."""
    texts = request.labels if request.takes_requests else request.plant
    twins = _find_twins(request)
    if twins is not None and twins.factor == "size":
        texts = tuple(with_size(text, value) for text in texts for value in twins.values)
    known = {**bundle.distributions, **distributions}
    return parse_requests(texts, vocabulary=bundle.vocabulary, distributions=known) if texts else ()


def _plan_cases(
    request: CohortRequest,
    requests: tuple[CaseRequest, ...],
    bundle: Bundle,
    bank: BankFiles,
    grown_from: Sequence[int],
    distributions: Mapping[str, SizeDistribution],
) -> CohortPlan:
    """Plan the content of every case: from the requests, from the given label maps, or none."""
    num_cases, first = request.num_cases or DEFAULT_NUM_CASES, min(grown_from, default=None)
    if (twins := _find_twins(request)) is not None:
        plan = plan_twins(
            request.labels,
            twins,
            vocabulary=bundle.vocabulary,
            num_groups=num_cases,
            seed=request.seed,
            distributions={**bundle.distributions, **distributions},
            grown_from=grown_from,
            rule_of=request.gates.rule_of,
        )
        plan = plan_twin_maps(plan, twins, bundle.vocabulary)
        return plan if request.anatomy is None else plan.keep_anatomy(request.anatomy, bundle.vocabulary)
    if request.takes_requests:
        return _plan_requests(request, requests, bundle, grown_from, num_cases=num_cases, seed=request.seed)
    if request.mask_source != GIVEN:
        return plan_bare_images(num_cases, first=first)
    names = [entry.name for entry in bank.entries]
    label_ids = [bundle.vocabulary.id_of(text) for text in request.labels]
    plan = plan_given_maps(names, num_cases=request.num_cases or len(names), label_ids=label_ids, first=first)
    if not requests:
        return plan
    return plan.with_lesions_of(
        _plan_requests(request, requests, bundle, grown_from, num_cases=len(plan.cases), seed=request.seed)
    )


def _plan_requests(
    request: CohortRequest,
    requests: tuple[CaseRequest, ...],
    bundle: Bundle,
    grown_from: Sequence[int],
    *,
    num_cases: int,
    seed: int,
) -> CohortPlan:
    rule_of = request.gates.rule_of
    plan = plan_cohort(requests, num_cases=num_cases, seed=seed, grown_from=grown_from, rule_of=rule_of)
    return plan if request.anatomy is None else plan.keep_anatomy(request.anatomy, bundle.vocabulary)


def _find_twins(request: CohortRequest) -> Twins | None:
    return None if request.twins is None else parse_twins(request.twins)


def _count_twins(request: CohortRequest) -> int:
    """Cases of a group."""
    twins = _find_twins(request)
    return 1 if twins is None else len(twins.values)


def _require_makeable(
    request: CohortRequest,
    plan: CohortPlan,
    vocabulary: Vocabulary,
    grid: Grid,
    bank: BankFiles,
    organ_sizes: Mapping[int, float],
) -> None:
    """Raise where a plan requests what its label maps or its grid cannot show."""
    for case in plan.cases:
        organs = [row.label for row in case.lesions if vocabulary.label(row.label_id).kind == "organ"]
        if organs:
            _require_organs_in_maps(case, organs, request.mask_source, bank)
    if not request.follows_maps:
        plan.require_drawable(grid)
    needed = {label_id for case in plan.cases for label_id in case.needed_ids(vocabulary)}
    if organ_sizes:
        require_not_absent(organ_sizes, needed)


def _require_organs_in_maps(case: CasePlan, organs: Sequence[str], source: str, bank: BankFiles) -> None:
    """Raise unless organs that are requested with a size come from label maps that a user has.

    Raises:
        RequestError: For organs of a size without such maps, or beside lesions that the maps must contain as well.
    """
    subject = f"Label request '{case.request}': '{organs[0]}' is not planted, so that label maps must contain it"
    if source not in ("plant", "bank"):
        raise RequestError(
            f"{subject}; mask_source '{source}' does not provide them. Use 'plant' or 'bank' with --mask-bank."
        )
    if not bank.entries:
        raise RequestError(f"{subject}; the phantoms do not. Name label maps that contain it with --mask-bank.")
    if source == "bank" and len(organs) < len(case.lesions):
        raise RequestError(
            f"Label request '{case.request}': lesions together with '{organs[0]}' need mask_source 'plant', found "
            "'bank'. Use --mask-source plant."
        )


def _absolute(text: str, *names: str) -> str:
    """A path made absolute, so that a cohort can be continued from another folder; a name is not a path."""
    return text if text in names or not Path(text).exists() else str(Path(text).resolve())


@overload
def _absolute_dataset(text: str, *names: str) -> str: ...
@overload
def _absolute_dataset(text: str | None, *names: str) -> str | None: ...
def _absolute_dataset(text: str | None, *names: str) -> str | None:
    """The same of a dataset, which may be called by its number or name in nnU-Net's folder of raw datasets."""
    return text if text is None or text in names else _absolute(str(find_dataset(text)))


def _find_hu_ranges(
    request: CohortRequest, bundle: Bundle, grid: Grid, begun: Mapping[str, Any], report_file: Report | None
) -> tuple[HuRange, ...]:
    """HU of the user's organs: from the cohort that is continued, else measured or read from a file."""
    path = _absolute_dataset(request.hu_reference)
    if path is None:
        return ()
    if begun.get("configuration", {}).get("hu_reference") == path and "hu_ranges" in begun:
        return ranges_from_json(begun["hu_ranges"])
    return load_hu_reference(Path(path), bundle.vocabulary, grid=grid, report=report_file)


def _find_distributions(
    request: CohortRequest, vocabulary: Vocabulary, begun: Mapping[str, Any], report_file: Report | None
) -> dict[str, SizeDistribution]:
    """The sizes of the user's lesions: from the cohort that is continued, else measured."""
    path = _absolute_dataset(request.size_reference)
    if path is None or request.size_label is None:
        return {}
    label_ids = _find_size_labels(request.size_label, request.labels, vocabulary)
    asked = {**request.model_dump(mode="json", include={"size_label", "labels"}), "size_reference": path}
    written = begun.get("configuration", {})
    if all(written.get(key) == value for key, value in asked.items()):
        return {name: _from_yaml(row) for name, row in begun.get("size_distributions", {}).items()}
    volumes = _measure_label_maps(Path(path), set(label_ids.values()), vocabulary, report_file)
    return {
        name: measure_distribution(volumes[label_id], name, f"{path}, label {label_id}")
        for name, label_id in label_ids.items()
    }


def _find_size_labels(
    size_label: int | Mapping[str, int], texts: Sequence[str], vocabulary: Vocabulary
) -> dict[str, int]:
    """Match lesions of the vocabulary with ids of the size reference."""
    if isinstance(size_label, Mapping):
        return {vocabulary.label(name).name: label_id for name, label_id in size_label.items()}
    labels = [vocabulary.label(name) for name in label_names(texts)]
    names = sorted({label.name for label in labels if label.kind == "tumor"})
    if len(names) != 1:
        raise RequestError(
            f"size_label {size_label}: can stand for one lesion only, but the label requests have {len(names)} "
            f"({', '.join(names) or 'none'}). Say which is which, for instance with --map "
            f"'{size_label}={names[0] if names else 'hepatic tumor'}'."
        )
    return {names[0]: size_label}


def _measure_label_maps(
    path: Path, label_ids: set[int], vocabulary: Vocabulary, report_file: Report | None
) -> dict[int, list[list[float]]]:
    """For every id and patient the volumes in mL of the lesions in a dataset's label maps."""
    from maisi_aug.banks.case_reader import load_labels_in_place
    from maisi_aug.lesions.planting import measure_lesions

    found = list_bank(path, lambda name: find_label_id(name, vocabulary) is not None) if path.exists() else None
    if found is not None and found.faults:
        fault = ": ".join(found.faults[0])
        raise RequestError(f"{path}: a label map cannot be used: {fault}. Restore or remove it.")
    entries = [] if found is None else found.entries
    masks = next((entry for entry in entries if entry.organ_names), None)
    if masks is not None or not entries:
        what = f"a mask for each label ({masks.name})" if masks else "no image files"
        raise RequestError(
            f"{path}: neither an nnU-Net dataset with labelsTr nor a folder of label maps, found {what}. Check "
            "--size-reference."
        )
    volumes: dict[int, list[list[float]]] = {label_id: [] for label_id in label_ids}
    for number, entry in enumerate(entries, start=1):
        volume = load_labels_in_place(entry)
        for label_id in label_ids:
            volumes[label_id].append(measure_lesions(volume.array, label_id, volume.grid.voxel_ml))
        if report_file is not None:
            report_file(number, len(entries))
    return volumes


def _to_yaml(sizes: SizeDistribution) -> dict[str, Any]:
    return {**asdict(sizes), "quantiles_ml": list(sizes.quantiles_ml)}


def _from_yaml(row: Mapping[str, Any]) -> SizeDistribution:
    return SizeDistribution(**{**row, "quantiles_ml": tuple(row["quantiles_ml"])})
