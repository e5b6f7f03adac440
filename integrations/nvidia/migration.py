"""From NVIDIA's configuration files to the command that does the same, with what differs. Needs no torch."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from maisi_aug.bundle_spec.bundle import pulled_bundles
from maisi_aug.bundle_spec.known_bundles import known_bundles
from maisi_aug.errors import MaisiAugError, MigrationError, did_you_mean
from maisi_aug.integrations.nvidia.options import OPTIONS, Counterpart, Kind
from maisi_aug.system.content import ContentError, read_json, reason_of
from maisi_aug.system.printed_text import clean_value
from maisi_aug.vocabulary.label_meaning import find_label_id
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.vocabulary.modalities import MODALITY_CODES
from maisi_aug.vocabulary.regions import BODY_REGIONS, BodyRegion

DEFAULT_VERSION = "rflow-ct"
DEFAULT_OUT = "cohort"
DATA_VARIABLE = "MONAI_DATA_DIRECTORY"
MASKS_FOLDER = "datasets/all_masks_flexible_size_and_spacing_4000"
IMAGE_WINDOW: Final = (80, 80, 80)
"""Latent voxels that ``diff_model_infer`` decodes at once, in windows that overlap by ``IMAGE_OVERLAP``."""
IMAGE_OVERLAP: Final = 0.4
LATENT_FACTOR: Final = 4
DDPM_STEPS: Final = 1000
REGIONS: Final[Mapping[str, BodyRegion]] = {
    "head": "head",
    "chest": "thorax",
    "thorax": "thorax",
    "abdomen": "abdomen",
    "pelvis": "pelvis",
    "lower": "pelvis",
}
SIZED_ORGANS: Final = ("gallbladder", "liver", "stomach", "pancreas", "colon")
"""Organs whose size the first mask model is conditioned on; the second takes more."""
SIGNS: Final[Mapping[Kind, tuple[str, ...]]] = {
    Kind.paired: ("anatomy_list", "controllable_anatomy_size", "output_size"),
    Kind.images: ("diffusion_unet_inference", "diffusion_unet_train"),
    Kind.controlnet: ("controlnet_train", "controlnet_infer"),
    Kind.vae: ("autoencoder_train", "data_option"),
    Kind.environment: ("trained_autoencoder_path", "trained_diffusion_path", "model_dir"),
    Kind.networks: ("autoencoder_def", "diffusion_unet_def"),
    Kind.labels: ("liver", "spleen"),
    Kind.modalities: ("mri_t1", "ct_contrast"),
}
"""Keys, any of which tells what a file is for."""


@dataclass(frozen=True)
class Setting:
    """A key of one of NVIDIA's configuration files, and its counterpart in maisi-aug.

    Attributes:
        key: Name of the key, ``section.key`` within sections.
        value: Value in the file.
        ours: Counterpart in maisi-aug; empty if there is none.
        difference: How the counterpart differs; empty if it does not.
    """

    key: str
    value: Any
    ours: str
    difference: str = ""

    @property
    def is_felt(self) -> bool:
        """Whether the key affects the result of the run: it is set, and is neither a path nor a reference."""
        is_empty = self.value in (None, [], {}, "", 0, ".nii.gz") or str(self.value).startswith("$@")
        is_path = self.key in OPTIONS[Kind.environment]
        is_default = self.key.endswith("modality") and self.value == 1
        is_unused = self.key.startswith("mask_generation")
        has_difference = bool(self.difference) or not self.ours
        return has_difference and not (is_empty or is_path or is_default or is_unused)

    def to_json(self) -> dict[str, Any]:
        """Return the setting as a JSON-able dict."""
        return {"key": self.key, "value": self.value, "ours": self.ours, "difference": self.difference}


@dataclass
class Migration:
    """Configuration files of NVIDIA's scripts, translated into commands.

    Attributes:
        commands: Commands in order; those that fetch weights come first.
        settings: Every key of the files.
        notes: Differences that apply whatever the keys say.
    """

    commands: list[list[str]] = field(default_factory=list)
    settings: list[Setting] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the migration as a JSON-able dict."""
        return {
            "commands": self.commands,
            "settings": [setting.to_json() for setting in self.settings],
            "notes": self.notes,
        }

    def to_script(self) -> str:
        """Return lines for a shell: differences as comments, then the commands."""
        differing = [one for one in self.settings if one.is_felt]
        remarks = [f"{one.key}: {one.difference or 'nothing corresponds to it.'}" for one in differing] + self.notes
        # Keys and values come from a file: a line break in one would end the comment, and a shell would run the rest.
        comments = [f"# {clean_value(remark)}" for remark in remarks]
        return "\n".join((*comments, *(shlex.join(command) for command in self.commands)))


@dataclass(frozen=True)
class Flags:
    """Settings that NVIDIA's scripts take as flags, in addition to configuration files.

    Attributes:
        version: Version of the networks; None to take it from the files.
        seed: Random seed; None to take it from the files, or for the default.
        mask: Label map to draw an image of; None for none.
        out: Folder of the result; None to take it from the files.
        is_fetched: Function of a bundle's name that returns whether its weights are installed.
    """

    version: str | None = None
    seed: int | None = None
    mask: Path | None = None
    out: Path | None = None
    is_fetched: Callable[[str], bool] = lambda name: name in pulled_bundles()


def migrate(paths: Sequence[Path], flags: Flags | None = None) -> Migration:
    """Translate configuration files of NVIDIA's scripts into commands of maisi-aug.

    Args:
        paths: Files of one run, in any order: ``config_infer*.json`` or one for a training, with or without its
            ``environment*.json``. Each is recognised by its keys.
        flags: Further settings, which NVIDIA's scripts take as flags.

    Raises:
        MigrationError: A file is not of NVIDIA's scripts, files belong to several runs, or their scripts refuse a
            value.
    """
    flags = flags or Flags()
    documents = {path: _read(path) for path in paths}
    by_kind: dict[Kind, dict[str, Any]] = {}
    path_of: dict[Kind, Path] = {}
    for path, document in documents.items():
        kind = find_kind(document, path)
        if kind in by_kind:
            raise MigrationError(f"{path}: a file for {kind} was given before it. Migrate one run at a time.")
        by_kind[kind], path_of[kind] = document, path
    environment = by_kind.get(Kind.environment, {})
    version = flags.version or _find_version(environment, [path.name for path in paths])
    if version not in known_bundles():
        names = known_bundles()
        raise MigrationError(f"--version: '{version}' is not one of {', '.join(names)}.{did_you_mean(version, names)}")
    run = _Run(version, environment, flags)
    for kind, document in by_kind.items():
        run.result.settings += _list_settings(kind, document)
        if kind in _BUILDERS:
            _build(run, kind, document, path_of[kind])
    if not any(kind in by_kind for kind in _BUILDERS):
        run.fetch()
    return run.result


def _build(run: _Run, kind: Kind, document: Mapping[str, Any], path: Path) -> None:
    """Add the commands for a file.

    Raises:
        MigrationError: A value has a type or a size that NVIDIA's files do not have.
    """
    try:
        _BUILDERS[kind](run, document)
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        if isinstance(error, MaisiAugError):
            raise
        raise MigrationError(f"{path}: a value is not as in NVIDIA's files: {reason_of(error)}. Correct it.") from error


def find_kind(document: Mapping[str, Any], path: Path) -> Kind:
    """Return the kind of a configuration file of NVIDIA's scripts, recognised by its keys.

    Args:
        document: Content of the file.
        path: Name of the file in messages.

    Raises:
        MigrationError: The file is not one of NVIDIA's.
    """
    if any("trt_compile" in str(value) for value in document.values()):
        return Kind.trt
    for kind, signs in SIGNS.items():
        if any(sign in document for sign in signs):
            return kind
    found = ", ".join(list(document)[:4]) or "no keys"
    raise MigrationError(
        f"{path}: not a configuration file of NVIDIA's scripts (NV-Generate-CTMR); its keys are {found}. Name "
        "config_infer*.json, config_maisi_*.json or environment*.json."
    )


@dataclass
class _Run:
    """A migration in the making."""

    version: str
    environment: Mapping[str, Any]
    flags: Flags
    result: Migration = field(default_factory=Migration)

    @property
    def out(self) -> str:
        return str(self.flags.out or self.environment.get("output_dir") or DEFAULT_OUT)

    def fetch(self, *extras: str) -> None:
        """Fetch the weights first, unless they are there."""
        if not self.flags.is_fetched(self.version) or extras:
            self.result.commands.append(["maisi-aug", "bundles", "pull", self.version, *extras])

    def note(self, sentence: str) -> None:
        if sentence not in self.result.notes:
            self.result.notes.append(sentence)

    def add(self, words: Sequence[str]) -> None:
        self.result.commands.append(["maisi-aug", *words])


def _build_paired(run: _Run, config: Mapping[str, Any]) -> None:
    """``scripts.inference``, or ``scripts.infer_image_from_mask`` for one label map."""
    sizes = _read_sizes(config.get("controllable_anatomy_size") or [])
    words = ["synthesize", "--bundle", run.version]
    if run.flags.mask is not None:
        run.fetch()
        words += ["--mask-source", "given", "--mask-bank", str(run.flags.mask), "--mask-labels", "maisi"]
        run.note("Shape and spacing are those of the label map where the networks take them, as with --mask there.")
    elif sizes:
        run.fetch("--with-masks")
        words += [
            "--mask-source",
            "diffusion",
            *_ask_for_sizes(run, sizes),
            *_option("-n", config, "num_output_samples"),
        ]
        words += _option("--mask-steps", config, "mask_generation_num_inference_steps")
    else:
        run.fetch()
        words += [*_ask_for_anatomy(run, config), "--mask-bank", _find_masks(run)]
        words += [*_spell_regions(config.get("body_region") or []), *_option("-n", config, "num_output_samples")]
    if config.get("controllable_demographics"):
        run.note("controllable_demographics is set: label maps will not follow it, and the images will differ.")
    if run.flags.mask is None:
        words += [*_spell_grid("--shape", config, "output_size"), *_spell_grid("--spacing", config, "spacing")]
    words += _spell_steps(run, config.get("num_inference_steps"))
    words += _spell_decoding(
        config.get("autoencoder_sliding_window_infer_size"),
        config.get("autoencoder_sliding_window_infer_overlap"),
        None if run.flags.mask is not None else config.get("output_size"),
    )
    words += _option("--num-splits", config, "autoencoder_tp_num_splits")
    words += [*_spell_modality(config.get("modality")), *_spell_guidance(config.get("cfg_guidance_scale"))]
    run.add([*words, *_spell_seed(run.flags.seed), "--out", run.out])
    run.note(
        "A case that fails a quality check is drawn again, up to five times, and recorded as rejected if all fail; "
        "NVIDIA's scripts save it. --gate NAME=off switches a check off."
    )


def _build_images(run: _Run, config: Mapping[str, Any]) -> None:
    """``scripts.diff_model_infer``."""
    inference = config.get("diffusion_unet_inference", {})
    run.fetch()
    words = ["synthesize", "--bundle", run.version, "--mask-source", "none", "-n", "1"]
    words += [*_spell_grid("--shape", inference, "dim"), *_spell_grid("--spacing", inference, "spacing")]
    words += _spell_steps(run, inference.get("num_inference_steps"))
    if run.version.startswith("ddpm"):
        words += _spell_regions(
            [
                _name_region(inference[key], key)
                for key in ("top_region_index", "bottom_region_index")
                if key in inference
            ]
        )
    words += [*_spell_modality(inference.get("modality")), *_spell_guidance(inference.get("cfg_guidance_scale"))]
    words += _spell_decoding(IMAGE_WINDOW, IMAGE_OVERLAP, inference.get("dim"))
    seed = inference.get("random_seed") if run.flags.seed is None else run.flags.seed
    run.add([*words, *_spell_seed(seed), "--out", run.out])
    if "diffusion_unet_train" in config:
        recipe = "train-ddpm-ct" if run.version.startswith("ddpm") else "train-rflow-ct"
        run.note(
            f"To train as scripts.diff_model_train does: maisi-aug train diffusion --recipe {recipe} --data PREPARED "
            "--out RUN, with PREPARED written by maisi-aug prepare."
        )


def _build_controlnet(run: _Run, config: Mapping[str, Any]) -> None:
    """``scripts.train_controlnet``."""
    train = config.get("controlnet_train", {})
    run.fetch()
    data = run.environment.get("json_data_list") or "PREPARED"
    words = ["finetune-controlnet", "--data", str(data), "--base", run.version]
    for label_id in train.get("weighted_loss_label") or []:
        words += _spell_taught(int(label_id))
    num_cases = _count_training_cases(data, train.get("fold", 0))
    if num_cases and "n_epochs" in train:
        steps = max(1, int(train["n_epochs"]) * num_cases // int(train.get("batch_size", 1)))
        words += ["--steps", str(steps)]
    else:
        run.note(
            "--steps: n_epochs times the number of training cases, which is unknown because no list of cases was found."
        )
    words += [*_option("--learning-rate", train, "lr"), *_option("--batch-size", train, "batch_size")]
    words += [*_option("--fold", train, "fold"), *_option("--label-weight", train, "weighted_loss")]
    out = run.flags.out or run.environment.get("exp_name") or "run"
    run.add([*words, *_spell_seed(run.flags.seed), "--out", str(out)])
    run.note(
        "The weights with the lowest loss on held-out cases are kept; NVIDIA's script keeps those with the "
        "lowest training loss."
    )


def _build_vae(run: _Run, config: Mapping[str, Any]) -> None:
    """The notebook ``train_vae_tutorial``."""
    recipe = "train-ddpm-ct" if run.version.startswith("ddpm") else "train-rflow-ct"
    out = run.flags.out or run.environment.get("model_dir") or "run"
    run.add(["train", "vae", "--recipe", recipe, "--data", "PREPARED", "--out", str(out)])
    run.note("PREPARED is a folder written by maisi-aug prepare.")


_BUILDERS: Final[Mapping[Kind, Callable[[_Run, Mapping[str, Any]], None]]] = {
    Kind.paired: _build_paired,
    Kind.images: _build_images,
    Kind.controlnet: _build_controlnet,
    Kind.vae: _build_vae,
}


def _read(path: Path) -> dict[str, Any]:
    try:
        document = read_json(path)
    except (OSError, ContentError) as error:
        raise MigrationError(f"{path}: cannot be read as JSON: {error}. Check the file.") from error
    if not isinstance(document, dict):
        raise MigrationError(f"{path}: not a configuration file, but a list. Name a file of configs/.")
    return document


def _list_settings(kind: Kind, document: Mapping[str, Any]) -> list[Setting]:
    """Every key of a file with what corresponds to it."""
    known = OPTIONS.get(kind)
    if known is None:
        ours, difference = _WHOLE_FILES[kind]
        return [Setting(str(kind), None, ours, difference)]
    rows = []
    for key, value in document.items():
        inner = value.items() if isinstance(value, dict) and kind != Kind.environment else [(None, value)]
        for name, content in inner:
            full = key if name is None else f"{key}.{name}"
            ours, difference = known.get(full, Counterpart("", "Not a key of NVIDIA's files; it is left out."))
            rows.append(Setting(full, content, ours, difference))
    return rows


_WHOLE_FILES: Final[Mapping[Kind, Counterpart]] = {
    Kind.networks: Counterpart("--bundle", "Networks of your own: maisi-aug bundles import FOLDER --network FILE."),
    Kind.trt: Counterpart("--compile trt"),
    Kind.labels: Counterpart("--mask-labels", "The file itself can be given, for label maps with its ids."),
    Kind.modalities: Counterpart("--modality", "The codes come with the package."),
}


def _find_version(environment: Mapping[str, Any], names: Sequence[str]) -> str:
    """Which networks files are for: by the names of checkpoints, or else by those of the files."""
    texts = [str(environment.get(key, "")) for key in ("trained_diffusion_path", "model_filename")]
    # The longest first: rflow-mr is the beginning of rflow-mr-brain.
    for text in (*texts, *names):
        for version in sorted(known_bundles(), key=len, reverse=True):
            if version in text:
                return version
    return DEFAULT_VERSION


def _read_sizes(pairs: Sequence[Any]) -> dict[str, float]:
    sizes: dict[str, float] = {}
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[1], int | float):
            raise MigrationError(
                f"controllable_anatomy_size: {pair!r} is not a name and a size between 0 and 1, or -1."
            )
        sizes[_name_label(str(pair[0]), "controllable_anatomy_size")] = float(pair[1])
    return sizes


def _name_label(name: str, key: str) -> str:
    label_id = find_label_id(name, MAISI)
    if label_id is not None:
        return MAISI.name_of(label_id)
    if name == "lung":
        return name  # of the second mask model, which takes both lungs together
    names = [label.name for label in MAISI]
    raise MigrationError(f"{key}: no label is called '{name}'.{did_you_mean(name, names)} List them: maisi-aug labels.")


def _ask_for_sizes(run: _Run, sizes: Mapping[str, float]) -> list[str]:
    """Tumors as label requests of a size, organs by ``--size-of``."""
    tumors = {name: size for name, size in sizes.items() if _is_tumor(name) and size >= 0}
    organs = {name: size for name, size in sizes.items() if name in SIZED_ORGANS}
    others = [name for name in sizes if not _is_tumor(name) and name not in SIZED_ORGANS]
    for name in others:
        run.note(f"controllable_anatomy_size: the size of {name} is left out; only the second mask model takes it.")
    asked = [f"{name}:{size:g}" for name, size in tumors.items()]
    shown = [name for name, size in organs.items() if size >= 0] + [name for name in others if name != "lung"]
    words = ["--labels", "+".join(asked or shown or ["liver"])]
    if asked and shown:
        words += ["--anatomy", ",".join([*tumors, *shown])]
    for name, size in organs.items():
        words += ["--size-of", f"{name}:{size:g}"]
    return words


def _ask_for_anatomy(run: _Run, config: Mapping[str, Any]) -> list[str]:
    """All labels of the list in every case: tumors are asked for, and organs kept with them.

    Maps with tumors are drawn by the size of these; of organs alone any map that holds them will do.
    """
    names = [_name_label(str(name), "anatomy_list") for name in config.get("anatomy_list") or []]
    if not names:
        raise MigrationError("anatomy_list: empty, and so is controllable_anatomy_size. Name a label in one of them.")
    tumors = [name for name in names if _is_tumor(name)]
    words = ["--mask-source", "bank" if tumors else "plant", "--labels", "+".join(tumors or names)]
    if tumors:
        run.note(
            "A label map is chosen whose tumor is about as large as one drawn from published sizes; NVIDIA's scripts "
            "take any. --mask-source plant plants one of exactly that size instead."
        )
    return [*words, "--anatomy", ",".join(names)] if tumors and len(names) > len(tumors) else words


def _is_tumor(name: str) -> bool:
    label_id = find_label_id(name, MAISI)
    return label_id is not None and MAISI.label(label_id).kind == "tumor"


def _find_masks(run: _Run) -> str:
    """Where NVIDIA's scripts look for the mask database."""
    stated = str(run.environment.get("all_mask_files_base_dir") or MASKS_FOLDER)
    root = os.environ.get(DATA_VARIABLE)
    place = Path(root, stated) if root and "datasets/" in stated else Path(stated)
    if not place.exists():
        run.note(f"{place}: not found; download it with: maisi-aug bundles pull {run.version} --with-mask-database")
    return str(place)


def _spell_regions(names: Sequence[str]) -> list[str]:
    regions = []
    for name in names:
        if name not in REGIONS:
            raise MigrationError(
                f"body_region: '{name}' is not one of {', '.join(REGIONS)}.{did_you_mean(name, REGIONS)}"
            )
        regions.append(REGIONS[name])
    ordered = sorted(set(regions), key=BODY_REGIONS.index)
    return ["--body-region", ",".join(dict.fromkeys((ordered[0], ordered[-1])))] if ordered else []


def _name_region(one_hot: Sequence[int], key: str) -> str:
    if len(one_hot) != len(BODY_REGIONS) or 1 not in one_hot:
        raise MigrationError(f"{key}: {one_hot} is not a one-hot of head, thorax, abdomen and pelvis.")
    return BODY_REGIONS[list(one_hot).index(1)]


def _spell_grid(flag: str, config: Mapping[str, Any], key: str) -> list[str]:
    if key not in config:
        return []
    sides = config[key]
    if not isinstance(sides, list) or len(sides) != 3 or not all(isinstance(side, int | float) for side in sides):
        raise MigrationError(f"{key}: {sides!r} is not a list of three numbers.")
    return [flag, "x".join(f"{side:g}" for side in sides)]


def _spell_decoding(window: Any, overlap: Any, shape: Any) -> list[str]:
    """Windows, unless one holds the whole latent, which is then decoded at once."""
    if not window:
        return []
    if shape and all(side <= LATENT_FACTOR * length for side, length in zip(shape, window, strict=True)):
        return []
    words = ["--decode-window", "x".join(str(int(side)) for side in window)]
    return words if overlap is None else [*words, "--decode-overlap", f"{overlap:g}"]


def _spell_steps(run: _Run, steps: Any) -> list[str]:
    if steps is None:
        return []
    if run.version.startswith("ddpm") and steps != DDPM_STEPS:
        run.note(
            f"num_inference_steps: {run.version} was trained with {DDPM_STEPS} steps; {steps} are those of "
            "DPM-Solver++ here, and of DDPM in NVIDIA's scripts."
        )
    return ["--steps", str(steps)]


def _spell_modality(code: Any) -> list[str]:
    if code in (None, 1):
        return []
    names = {number: name for name, number in MODALITY_CODES.items()}
    if code not in names:
        raise MigrationError(f"modality: {code!r} is not a known code ({', '.join(map(str, names))}).")
    return ["--modality", names[code]]


def _spell_guidance(scale: Any) -> list[str]:
    return ["--guidance-scale", f"{scale:g}"] if scale else []


def _spell_seed(seed: Any) -> list[str]:
    return [] if seed is None else ["--seed", str(seed)]


def _option(flag: str, config: Mapping[str, Any], key: str) -> list[str]:
    value = config.get(key)
    return [] if value is None else [flag, f"{value:g}" if isinstance(value, float) else str(value)]


def _spell_taught(label_id: int) -> list[str]:
    """A label to teach: by its name in the vocabulary, or by a name to be changed for a placeholder."""
    if MAISI.contains(label_id) and MAISI.label(label_id).kind != "slot":
        return ["--label", MAISI.name_of(label_id)]
    name = f"label {label_id}"
    slot = MAISI.name_of(label_id) if MAISI.contains(label_id) else str(label_id)
    return ["--label", name, "--slot", f"{name}={slot}"]


def _count_training_cases(data: object, fold: object) -> int:
    """How many rows of a list of cases are trained on; 0 where there is no such list."""
    try:
        rows = read_json(Path(str(data)))["training"]
        return sum(row.get("fold") != fold for row in rows)
    except (OSError, ContentError, KeyError, TypeError, AttributeError):
        return 0
