"""Writes a bundle as a MONAI bundle: definitions as MONAI's configuration, weights, and a script that samples.

Source of the layout: MONAI, docs/source/mb_specification.rst and mb_properties.rst.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from maisi_aug import __version__
from maisi_aug.bundle_spec.bundle import NETWORK_ROLES, Bundle
from maisi_aug.bundle_spec.decoding import DEFAULT_OVERLAP, latent_factor
from maisi_aug.errors import ExportError
from maisi_aug.networks.checkpoints.importing import read_notice
from maisi_aug.system.whole_files import write_json_whole, write_text_whole
from maisi_aug.system.whole_folder import open_whole_folder, require_new_folder
from maisi_aug.vocabulary.modalities import MODALITY_CODES
from maisi_aug.vocabulary.regions import BODY_REGIONS, REGION_LABELS, USUAL_REGIONS

SCRIPT = "sampler.py"
SCRIPTS = "scripts"
TARGETS: Final[Mapping[str, str]] = {
    "AutoencoderKlMaisi": "monai.apps.generation.maisi.networks.autoencoderkl_maisi.AutoencoderKlMaisi",
    "DiffusionModelUNetMaisi": (
        "monai.apps.generation.maisi.networks.diffusion_model_unet_maisi.DiffusionModelUNetMaisi"
    ),
    "ControlNetMaisi": "monai.apps.generation.maisi.networks.controlnet_maisi.ControlNetMaisi",
    "RFlowScheduler": "monai.networks.schedulers.rectified_flow.RFlowScheduler",
    "DDPMScheduler": "monai.networks.schedulers.ddpm.DDPMScheduler",
}
INIT = '"""What the configurations of this bundle call."""\n\nfrom . import sampler as sampler\n'
LABEL_CHANNELS = 8
_COMPLETES: Final = (
    "What is unlabelled in a map is completed by procedural anatomy before the networks see it. The script calls the",
    "package maisi-aug for that, and stops with a message where it is not installed.",
    "",
)
SAVED_AS: Final[Mapping[str, object]] = {
    "output_postfix": "image",
    "output_ext": ".nii.gz",
    "output_dtype": "$np.int16",
    "resample": False,
    "separate_folder": False,
}
"""Arguments of MONAI's ``SaveImage``."""
SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
LOGGING = """\
[loggers]
keys=root

[handlers]
keys=consoleHandler

[formatters]
keys=fullFormatter

[logger_root]
level=INFO
handlers=consoleHandler

[handler_consoleHandler]
class=StreamHandler
level=INFO
formatter=fullFormatter
args=(sys.stdout,)

[formatter_fullFormatter]
format=%(asctime)s - %(name)s - %(levelname)s - %(message)s
"""


def export_monai_bundle(bundle: Bundle, folder: Path) -> None:
    """Write a bundle as a MONAI bundle, whole or not at all.

    ``python -m monai.bundle run`` then draws the same images as ``synthesize --mask-source given`` for the same map and
    seed, up to rounding. It requires MONAI, nibabel and safetensors; this package only where a bundle completes maps.

    Args:
        bundle: Bundle with a ControlNet that takes label maps; its files are first compared with their hashes.
        folder: New or empty folder.

    Raises:
        ExportError: The folder is in use, the ControlNet takes more than a label map, or the bundle draws MR, or with
            fewer steps than its DDPM scheduler has.
        BundleError: The bundle is altered or has no ControlNet.
    """
    require_new_folder(folder)
    bundle.require_controlnet()
    channels = bundle.definition("controlnet").get("conditioning_embedding_in_channels", 1)
    if channels != LABEL_CHANNELS:
        raise ExportError(
            f"Bundle '{bundle.name}': its ControlNet is also conditioned on the CT around a lesion, so it cannot draw "
            "from a label map alone. Use it with 'maisi-aug insert'."
        )
    _require_sampler(bundle)
    bundle.require_intact(NETWORK_ROLES)
    with open_whole_folder(folder, require_replaceable=partial(require_new_folder, folder)) as unfinished:
        for role in NETWORK_ROLES:
            target = unfinished / "models" / f"{role}.safetensors"
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(bundle.weight_path(role), target)
        write_json_whole(unfinished / "configs" / "inference.json", build_config(bundle), indent=4)
        write_json_whole(unfinished / "configs" / "metadata.json", build_metadata(bundle), indent=4)
        write_text_whole(unfinished / "configs" / "logging.conf", LOGGING)
        script = Path(__file__).with_name(SCRIPT).read_text(encoding="utf-8")
        write_text_whole(unfinished / SCRIPTS / SCRIPT, script)
        write_text_whole(unfinished / SCRIPTS / "__init__.py", INIT)
        write_text_whole(unfinished / "docs" / "README.md", build_readme(bundle))
        write_text_whole(unfinished / "LICENSE", _spell_licence(bundle))


def _require_sampler(bundle: Bundle) -> None:
    """Raise unless the script can draw what the bundle draws."""
    if bundle.is_mr:
        raise ExportError(f"Bundle '{bundle.name}': draws MR; only CT bundles can be exported. Use it with maisi-aug.")
    if bundle.leaves_steps_out(bundle.default_steps):
        raise ExportError(
            f"Bundle '{bundle.name}': draws with {bundle.default_steps} steps, fewer than its DDPM scheduler has, and "
            "MONAI's takes every one. Use it with maisi-aug."
        )


def build_config(bundle: Bundle) -> dict[str, Any]:
    """Return the content of ``configs/inference.json``, with everything that can be overridden on the command line."""
    spec = bundle.spec
    return {
        "imports": ["$import glob", "$import numpy as np", "$import torch", f"$from {SCRIPTS} import {SCRIPT[:-3]}"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/output'",
        "label_map": None,
        "label_maps": "$[@label_map] if @label_map else sorted(glob.glob(@dataset_dir + '/*.nii*'))",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "amp": f"$@device.type == 'cuda' and {spec.mixed_precision}",
        "seed": 0,
        "num_inference_steps": bundle.default_steps,
        "modality": MODALITY_CODES[bundle.choose_modality(None)] if bundle.is_told_modality else None,
        "decode_window": None if spec.decode_window is None else list(spec.decode_window),
        "decode_overlap": DEFAULT_OVERLAP,
        **{f"{role}_def": _to_target(bundle.definition(role)) for role in NETWORK_ROLES},
        "network_def": "$@diffusion_unet_def",
        **{
            role: f"$sampler.load_network(@{role}_def, @bundle_root + '/models/{role}.safetensors', @device)"
            for role in NETWORK_ROLES
        },
        "noise_scheduler": _to_target(spec.scheduler),
        **_build_workflow(bundle),
    }


def _build_workflow(bundle: Bundle) -> dict[str, Any]:
    """How label maps are read, drawn and saved."""
    settings = ("num_inference_steps", "seed", "modality", "decode_window", "decode_overlap", "amp")
    return {
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "label", "image_only": True, "ensure_channel_first": True},
                {"_target_": "Orientationd", "keys": "label", "axcodes": "RAS"},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'label': path} for path in @label_maps]",
            "transform": "@preprocessing",
        },
        "inferer": {
            "_target_": "scripts.sampler.LabelMapSampler",
            **{role: f"@{role}" for role in NETWORK_ROLES},
            "scheduler": "@noise_scheduler",
            "scale_factor": bundle.spec.scale_factor,
            "region_labels": [list(REGION_LABELS[name]) for name in BODY_REGIONS] if bundle.is_told_regions else None,
            "usual_regions": [BODY_REGIONS.index(name) for name in USUAL_REGIONS],
            "latent_factor": latent_factor(bundle.definition("autoencoder")),
            "grid_factor": bundle.grid_factor,
            "completes": bundle.completes_maps,
            **{name: f"@{name}" for name in settings},
        },
        "postprocessing": {"_target_": "SaveImage", "output_dir": "@output_dir", **SAVED_AS},
        "run": ["$[@postprocessing(@inferer(case['label'])) for case in @dataset]"],
    }


def _to_target(definition: Mapping[str, Any]) -> dict[str, Any]:
    """A definition as MONAI's configurations have it; what depends on the device is decided when it is run."""
    arguments = {key: value for key, value in definition.items() if key != "class"}
    if "use_flash_attention" in arguments:
        arguments["use_flash_attention"] = "$@device.type == 'cuda'"
    if arguments.get("norm_float16"):
        arguments["norm_float16"] = "$@amp"
    return {"_target_": TARGETS[str(definition["class"])], **arguments}


def build_metadata(bundle: Bundle) -> dict[str, Any]:
    """Return the content of ``configs/metadata.json``, in MONAI's schema."""
    shared = {"type": "image", "spatial_shape": list(bundle.spec.grid.shape), "is_patch_data": False, "num_channels": 1}
    label_map = {"format": "segmentation", "modality": "n/a", "dtype": "uint8", "value_range": [0, 255]}
    image = {"format": "hounsfield", "modality": "CT", "dtype": "int16", "value_range": [-1000, 1000]}
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"Written by maisi-aug {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {
            **{name: version(name) for name in ("nibabel", "safetensors")},
            **({"maisi-aug": __version__} if bundle.completes_maps else {}),
        },
        "supported_apps": {},
        "name": f"{bundle.name} (MAISI)",
        "task": "CT images drawn from label maps",
        "description": bundle.spec.description,
        "authors": "See docs/README.md",
        "copyright": bundle.licence,
        "intended_use": "Research and the training of networks; not for diagnosis",
        "network_data_format": {
            "inputs": {"label": {**shared, **label_map, "channel_def": {"0": "label map"}}},
            "outputs": {"pred": {**shared, **image, "channel_def": {"0": "image"}}},
        },
    }


def build_readme(bundle: Bundle) -> str:
    """Return the text of ``docs/README.md`` of an exported MONAI bundle."""
    grid = bundle.spec.grid
    names = [f"- {slot.id}: {name}" for name, slot in bundle.spec.slots.items()]
    own = bundle.path / "README.md"
    lines = [
        f"# {bundle.name}",
        "",
        bundle.spec.description,
        "",
        "```sh",
        f"pip install 'monai[fire,nibabel]' safetensors{' maisi-aug' if bundle.completes_maps else ''}",
        "python -m monai.bundle run --config_file configs/inference.json --label_map MAP.nii.gz",
        "```",
        "",
        "Run in this folder, or add `--bundle_root FOLDER`. Without `--label_map` every map in `data/` is drawn;",
        "images go to `output/`. `--seed`, `--num_inference_steps` and all other keys of `configs/inference.json` can",
        "be set in the same way.",
        "",
        "A label map holds MAISI's ids, with 200 for the body around organs and 0 for air. Networks were trained on",
        f"grids such as {'x'.join(map(str, grid.shape))} at {'x'.join(f'{side:g}' for side in grid.spacing_mm)} mm; "
        f"sides are multiples of {bundle.grid_factor}.",
        "",
        *(_COMPLETES if bundle.completes_maps else []),
        *(["Ids that this bundle gives a meaning:", "", *names, ""] if names else []),
        f"Licence of the weights, and of what they draw: {bundle.licence}.",
        "",
        f"Written by maisi-aug {__version__} from fingerprint {bundle.fingerprint}. Guidance and quality checks are",
        "left to maisi-aug.",
    ]
    text = "\n".join(lines) + "\n"
    return text + (f"\n---\n\n{own.read_text(encoding='utf-8')}" if own.is_file() else "")


def _spell_licence(bundle: Bundle) -> str:
    """The licence by its name, and its notice where there is one."""
    return f"{bundle.licence}\n{read_notice(bundle) or ''}"
