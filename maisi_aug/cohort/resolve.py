"""From a configuration to everything a run needs to know, defaults filled in; cheap, and free of torch."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from maisi_aug import __version__
from maisi_aug.banks.entry import BankEntry
from maisi_aug.banks.files import digest_of, find_entries
from maisi_aug.banks.label_ids import CHOICES, LabelMapping, load_mapping
from maisi_aug.banks.raw_datasets import find_dataset
from maisi_aug.bundle_spec.bundle import Bundle, embedded_bundles, load_bundle, load_outline, pulled_bundles
from maisi_aug.bundle_spec.mask_networks import choose_mask_steps, fingerprint_of_masks, require_inside
from maisi_aug.bundle_spec.presets import Preset, find_preset
from maisi_aug.bundle_spec.references import bundle_distributions, default_bank
from maisi_aug.cohort.folder import grow_from, has_cases, read_cohort_document
from maisi_aug.cohort.grid_preflight import check_grid, shows_head_alone
from maisi_aug.cohort.hu_reference import load_hu_reference, ranges_from_json, ranges_to_json
from maisi_aug.cohort.kept_labels import keep_anatomy
from maisi_aug.cohort.plan import CohortPlan, plan_bare_images, plan_from_texts, plan_given_maps
from maisi_aug.cohort.preflight import (
    needed_ids,
    require_drawable,
    require_known_targets,
    require_maps,
    require_organs_in_maps,
)
from maisi_aug.cohort.recipe import EMBEDDED_BANK, CohortConfig
from maisi_aug.cohort.requests import label_names
from maisi_aug.cohort.source_rules import DEFAULT_NUM_CASES, GIVEN, NO_MAP
from maisi_aug.errors import RequestError
from maisi_aug.networks.mask_conditions import read_organ_sizes, require_not_absent
from maisi_aug.vocabulary.hu import HuRange
from maisi_aug.vocabulary.label_meaning import find_label_id
from maisi_aug.vocabulary.labels import Vocabulary
from maisi_aug.vocabulary.sizes import SizeDistribution, measure_distribution
from maisi_aug.volumes.grid import Grid

NUM_DIGITS = 16  # of a hash; enough to tell banks apart, few enough to be read in a message
ReportFile = Callable[[int, int], None]


@dataclass(frozen=True)
class ResolvedCohort:
    """A cohort ready to be made.

    Attributes:
        config: With every default that the bundle decides filled in, and paths made absolute.
        bundle: The weights and their vocabulary.
        grid: Of every case; the bundle's where given label maps keep their own.
        plan: What every case shall hold.
        distributions: Label name -> sizes measured in the user's data; empty without a size reference.
        mask_bank: What tells the user's label maps, or mask networks, from others, as plain JSON values; empty for the
            phantoms.
        hu_ranges: HU of organs in the user's own CTs; empty without a HU reference.
    """

    config: CohortConfig
    bundle: Bundle
    grid: Grid
    plan: CohortPlan
    distributions: Mapping[str, SizeDistribution]
    mask_bank: Mapping[str, Any]
    hu_ranges: tuple[HuRange, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """The content of ``cohort.yaml``: no times, no machine, so that the same cohort has the same bytes."""
        names = self.bundle.vocabulary.name_of
        return {
            "configuration": self.config.to_dict(),
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


def resolve_cohort(
    config: CohortConfig,
    folder: Path | None = None,
    *,
    report_file: ReportFile | None = None,
    needs_weights: bool = True,
) -> ResolvedCohort:
    """Fill in what the bundle decides, and plan the cohort; a grid that its networks have not seen is warned of.

    Args:
        config: What the user asked for.
        folder: Where the cohort goes; one that is there already lends its measured sizes, so that going on does not
            measure again.
        report_file: Called with (files read, files in all) while a size or HU reference is measured.
        needs_weights: Whether the bundle must be on this machine; a plan can do without.

    Raises:
        CohortError: When the folder is not a cohort's.
        BundleError: When there is no such bundle, or it has no mask networks and label maps shall be generated.
        GridError: When the bundle's networks cannot take the grid, or cannot work with it, or generated label maps do
            not fill it.
        RecipeError: When the bundle has no such preset, when there are more sampling steps than its scheduler knows, or
            when its networks are not told the modality, the body region, or the size of an organ.
        BankError: When there is no such mask bank or no label map in it, or when its list or the mapping of its labels
            cannot be read.
        RequestError, VocabularyError: When a label request cannot be met.
        VolumeError: When the size reference cannot be read.
    """
    document = read_cohort_document(folder) if folder is not None else None
    bundle = (load_bundle if needs_weights else load_outline)(config.bundle)
    config = _with_default_bank(_with_growth(config, folder, document), bundle)
    bank = _Bank(_absolute_dataset(config.mask_bank, EMBEDDED_BANK), bundle.vocabulary)
    bundle.require_told(
        modality=config.modality, body_region=None if _only_chooses_maps(config, bundle, bank) else config.body_region
    )
    preset = None if config.preset is None else find_preset(config.preset, bundle)
    config = _with_windows(config, preset)
    grid = _choose_grid(config, bundle, preset)
    config = config.model_copy(
        update={
            "bundle": _absolute(config.bundle, *embedded_bundles(), *pulled_bundles()),
            "mask_bank": bank.path,
            "mask_labels": _absolute_mapping(config.mask_labels),
            "size_reference": config.size_reference and _absolute_dataset(config.size_reference),
            "hu_reference": config.hu_reference and _absolute_dataset(config.hu_reference),
            **({} if _follows_maps(config) else {"shape": grid.shape, "spacing_mm": grid.spacing_mm}),
            "num_inference_steps": bundle.choose_steps(config.num_inference_steps),
        }
    )
    if config.mask_source == "diffusion":
        config = config.model_copy(update={"mask_steps": choose_mask_steps(bundle, config.mask_steps)})
        require_inside(bundle, grid)
    described = _describe_bank(config, bundle, bank)
    distributions = _find_distributions(config, bundle.vocabulary, document or {}, report_file)
    plan = _plan_cases(config, bundle, distributions, bank)
    require_organs_in_maps(plan, bundle.vocabulary, mask_source=config.mask_source, mask_bank=config.mask_bank)
    if config.anatomy is not None:
        plan = keep_anatomy(plan, config.anatomy, bundle.vocabulary)
    require_drawable(plan, grid)
    config = config.model_copy(update={"num_cases": len(plan.cases)})
    require_not_absent(
        read_organ_sizes(config.size_of or {}, bundle.vocabulary),
        {label_id for case in plan.cases for label_id in needed_ids(case, bundle.vocabulary)},
    )
    hu_ranges = _find_hu_ranges(config, bundle, grid, document or {}, report_file)
    return ResolvedCohort(config, bundle, grid, plan, distributions, described, hu_ranges)


def _with_windows(config: CohortConfig, preset: Preset | None) -> CohortConfig:
    """The configuration with the preset's windows of decoding, unless the user has chosen some."""
    if preset is None or config.decoding.window is not None:
        return config
    own = {} if "overlap" in config.decoding.model_fields_set else {"overlap": preset.overlap}
    decoding = config.decoding.model_copy(update={"window": preset.window, **own})
    return config.model_copy(update={"decoding": decoding})


def replan(cohort: ResolvedCohort, seed: int) -> CohortPlan:
    """The plan of a cohort under another seed: the same requests, other sizes and another order."""
    config = cohort.config.model_copy(update={"seed": seed})
    if config.mask_source in (GIVEN, NO_MAP):
        return cohort.plan  # no seed decides on anything in it
    plan = _plan_requests(config, cohort.bundle, cohort.distributions, config.num_cases or DEFAULT_NUM_CASES)
    return plan if config.anatomy is None else keep_anatomy(plan, config.anatomy, cohort.bundle.vocabulary)


class _Bank:
    """The user's label maps, listed when they are first asked for."""

    def __init__(self, path: str, vocabulary: Vocabulary) -> None:
        self.path = path
        self._vocabulary = vocabulary

    @cached_property
    def listing(self) -> tuple[list[BankEntry], list[tuple[str, str]]]:
        """The label maps, and what was left out with the reasons."""
        return find_entries(Path(self.path), lambda name: find_label_id(name, self._vocabulary) is not None)


def _plan_cases(
    config: CohortConfig, bundle: Bundle, distributions: Mapping[str, SizeDistribution], bank: _Bank
) -> CohortPlan:
    """What every case shall hold: by the requests, or by the given label maps, or nothing."""
    if config.mask_source == GIVEN:
        names = [entry.name for entry in bank.listing[0]]
        label_ids = [bundle.vocabulary.id_of(text) for text in config.labels]
        num_cases = config.num_cases or len(names)
        return plan_given_maps(
            names, num_cases=num_cases, label_ids=label_ids, first=min(config.grown_from, default=None)
        )
    num_cases = config.num_cases or DEFAULT_NUM_CASES
    if config.mask_source == NO_MAP:
        return plan_bare_images(num_cases, first=min(config.grown_from, default=None))
    return _plan_requests(config, bundle, distributions, num_cases)


def _plan_requests(
    config: CohortConfig, bundle: Bundle, distributions: Mapping[str, SizeDistribution], num_cases: int
) -> CohortPlan:
    """By the requests; percentiles refer to the user's data, else to what the bundle was taught on, else to tables."""
    return plan_from_texts(
        config.labels,
        vocabulary=bundle.vocabulary,
        num_cases=num_cases,
        seed=config.seed,
        grown_from=config.grown_from,
        distributions={**bundle_distributions(bundle), **distributions},
    )


def _with_growth(config: CohortConfig, folder: Path | None, document: dict[str, Any] | None) -> CohortConfig:
    """The configuration with the steps in which the cohort that is gone on with has grown."""
    if folder is None or document is None:
        return config
    return grow_from(config, document, has_cases=has_cases(folder))


def _absolute_mapping(mask_labels: LabelMapping) -> LabelMapping:
    """What a bank's ids mean, a file by its absolute path."""
    return _absolute(mask_labels, *CHOICES) if isinstance(mask_labels, str) else mask_labels


def _with_default_bank(config: CohortConfig, bundle: Bundle) -> CohortConfig:
    """The configuration with the label maps that a bundle draws from by default, where the user names none."""
    is_open = config.mask_source == "plant" and "mask_bank" not in config.model_fields_set
    bank = default_bank(bundle) if is_open else None
    return config if bank is None else config.model_copy(update={"mask_bank": bank[0], "mask_labels": bank[1]})


def find_grid(config: CohortConfig) -> Grid:
    """The grid of every case, before anything is compared with what the networks have seen.

    Raises:
        BundleError: When there is no such bundle.
        RecipeError: When it has no such preset.
    """
    bundle = load_outline(config.bundle)
    return _build_grid(config, bundle, None if config.preset is None else find_preset(config.preset, bundle))


def _build_grid(config: CohortConfig, bundle: Bundle, preset: Preset | None) -> Grid:
    base = preset or bundle.spec.grid
    return Grid.from_spacing(config.shape or base.shape, config.spacing_mm or base.spacing_mm)


def _choose_grid(config: CohortConfig, bundle: Bundle, preset: Preset | None) -> Grid:
    """The grid of every case, compared with those that the networks have seen.

    Given label maps decide on what is left open, each for itself: of theirs only the sides asked for are checked.
    """
    grid = _build_grid(config, bundle, preset)
    if _follows_maps(config):
        grid.require_multiple_of(bundle.grid_factor, subject=f"Shape for bundle '{bundle.name}'")
        return grid
    for sentence in check_grid(
        grid, bundle, shows_head_alone=shows_head_alone(config, bundle), allow_unseen=config.allow_unseen_grid
    ):
        warnings.warn(sentence, stacklevel=3)
    return grid


def _follows_maps(config: CohortConfig) -> bool:
    return config.mask_source == GIVEN and config.preset is None


def _only_chooses_maps(config: CohortConfig, bundle: Bundle, bank: _Bank) -> bool:
    """Whether a body region does no more than choose among label maps: of a bank that tells what its maps show."""
    if config.body_region is None or bundle.is_told_regions:
        return False  # no need to list the bank
    if config.mask_source not in ("plant", "bank") or config.mask_bank == EMBEDDED_BANK:
        return False
    return any(entry.extent_mm is not None for entry in bank.listing[0])


def _absolute(text: str, *names: str) -> str:
    """A path made absolute, so that a cohort can be gone on with from another folder; a name is no path."""
    return text if text in names or not Path(text).exists() else str(Path(text).resolve())


def _absolute_dataset(text: str, *names: str) -> str:
    """The same of a dataset, which may be called by its number or name in nnU-Net's folder of raw datasets."""
    return text if text in names else _absolute(str(find_dataset(text)))


def _describe_bank(config: CohortConfig, bundle: Bundle, bank: _Bank) -> dict[str, Any]:
    """What a cohort remembers of the user's label maps and of the file that explains them; none of them is opened.

    The phantoms come with the package, so that there is nothing to remember of them; mask networks stand in for a bank.
    """
    if config.mask_source == "diffusion":
        return {"mask_networks_sha256": fingerprint_of_masks(bundle)[:NUM_DIGITS]}
    vocabulary = bundle.vocabulary
    mapping = load_mapping(config.mask_labels)
    require_known_targets(mapping, vocabulary, subject=f"Mask labels {config.mask_labels}")
    if config.mask_bank == EMBEDDED_BANK:
        return {}
    entries, skipped = bank.listing
    require_maps(entries, skipped, subject=f"Mask bank {config.mask_bank}")
    described = {"num_maps": len(entries), "files_sha256": digest_of(entries)[:NUM_DIGITS]}
    if isinstance(mapping, Mapping):
        described["mapping_sha256"] = hashlib.sha256(json.dumps(mapping).encode()).hexdigest()[:NUM_DIGITS]
    return described


def _find_hu_ranges(
    config: CohortConfig, bundle: Bundle, grid: Grid, document: Mapping[str, Any], report_file: ReportFile | None
) -> tuple[HuRange, ...]:
    """HU of the user's organs: from the cohort that is gone on with, else measured or read from a file."""
    if config.hu_reference is None:
        return ()
    written = document.get("configuration", {})
    if written.get("hu_reference") == config.hu_reference and "hu_ranges" in document:
        return ranges_from_json(document["hu_ranges"])
    return load_hu_reference(Path(config.hu_reference), bundle.vocabulary, grid=grid, report=report_file)


def _find_distributions(
    config: CohortConfig, vocabulary: Vocabulary, document: Mapping[str, Any], report_file: ReportFile | None
) -> dict[str, SizeDistribution]:
    """The sizes of the user's lesions: from the cohort that is gone on with, else measured."""
    if config.size_reference is None or config.size_label is None:
        return {}
    label_ids = _find_size_labels(config, vocabulary)
    written = document.get("configuration", {})
    if all(written.get(key) == config.to_dict()[key] for key in ("size_reference", "size_label", "labels")):
        return {name: _from_yaml(row) for name, row in document.get("size_distributions", {}).items()}
    volumes = _measure_label_maps(Path(config.size_reference), set(label_ids.values()), vocabulary, report_file)
    return {
        name: measure_distribution(volumes[label_id], name, f"{config.size_reference}, label {label_id}")
        for name, label_id in label_ids.items()
    }


def _find_size_labels(config: CohortConfig, vocabulary: Vocabulary) -> dict[str, int]:
    """Which lesion of the vocabulary is which id of the size reference."""
    if isinstance(config.size_label, dict):
        return {vocabulary.label(name).name: label_id for name, label_id in config.size_label.items()}
    labels = [vocabulary.label(name) for name in label_names(config.labels)]
    names = sorted({label.name for label in labels if label.kind == "tumor"})
    if len(names) != 1 or config.size_label is None:
        raise RequestError(
            f"size_label {config.size_label}: expected one lesion in the label requests, found {len(names)} "
            f"({', '.join(names) or 'none'}). Say which is which, such as "
            f"--map '{config.size_label}={names[0] if names else 'hepatic tumor'}'."
        )
    return {names[0]: config.size_label}


def _measure_label_maps(
    path: Path, label_ids: set[int], vocabulary: Vocabulary, report_file: ReportFile | None
) -> dict[int, list[list[float]]]:
    """For every id and patient the volumes in mL of the lesions in a dataset's label maps."""
    from maisi_aug.banks.case_reader import load_labels_in_place
    from maisi_aug.lesions.planting import measure_lesions

    def is_organ(name: str) -> bool:
        return find_label_id(name, vocabulary) is not None

    entries, faults = find_entries(path, is_organ) if path.exists() else ([], [])
    if faults:
        raise RequestError(f"{path}: expected whole label maps, found {': '.join(faults[0])}. Restore or remove it.")
    masks = next((entry for entry in entries if entry.organ_names), None)
    if masks is not None or not entries:
        found = f"a mask for each label ({masks.name})" if masks else "no image files"
        raise RequestError(
            f"{path}: expected an nnU-Net dataset with labelsTr, or a folder of label maps, found {found}. "
            "Check --size-reference."
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
