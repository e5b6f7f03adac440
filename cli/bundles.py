"""`maisi-aug bundles list|show|presets|pull|push|import|export|convert|verify|prove-steps`: weights and licences."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maisi_aug.bundle_spec.solvers import DEFAULT_PROOF_MAPS, SolverName
from maisi_aug.cli.shared.completion import (
    complete_bundles,
    complete_datasets,
    complete_known_bundles,
    complete_labels,
    complete_modalities,
    complete_recipes,
)
from maisi_aug.cli.shared.run_options import RUN, AsJson
from maisi_aug.cli.shared.streams import open_table_console, tell

if TYPE_CHECKING:
    from maisi_aug.bundle_spec.bundle import Bundle
    from maisi_aug.bundle_spec.presets import Preset


AcceptOption = Annotated[
    bool, typer.Option("--accept-license", help="Accept the licence of the weights without a prompt.")
]
ToOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder for the bundle, to be given as --bundle; without it, the bundle is found by name.",
    ),
]


def pull_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|OWNER/NAME",
            autocompletion=complete_known_bundles,
            help="A bundle that can be downloaded (see 'maisi-aug bundles list'), or the repository of a shared one.",
        ),
    ],
    with_masks: Annotated[
        bool,
        typer.Option(
            "--with-masks", help="Also download the networks that generate label maps, for --mask-source diffusion."
        ),
    ] = False,
    with_mask_database: Annotated[
        bool,
        typer.Option(
            "--with-mask-database", help="Also download NVIDIA's 4,000 label maps, for --mask-bank (11.6 GB)."
        ),
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Branch, tag or commit of a shared bundle (default: the newest)."),
    ] = None,
    accept_license: AcceptOption = False,
    to: ToOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Download a bundle from the Hugging Face hub, check it, and save it as safetensors.

    HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are respected; a broken download continues where it stopped. The
    bundle is kept in MAISI_AUG_HOME, or in the user's data folder.

    Example: maisi-aug bundles pull rflow-ct --accept-license
    """
    from maisi_aug.api.bundles import pull_bundle
    from maisi_aug.networks.checkpoints.databases import database_folder

    bundle = pull_bundle(
        name,
        accept_license=accept_license or ask_for_licence,
        with_masks=with_masks,
        with_mask_database=with_mask_database,
        revision=revision,
        to=to,
        say=tell,
    )
    tell_ready(bundle, to, as_json=as_json, database=database_folder(name) if with_mask_database else None)


def tell_ready(bundle: Bundle, to: Path | None, *, as_json: bool, database: Path | None = None) -> None:
    """Print where a bundle and its downloaded label maps are, and how to use them."""
    if as_json:
        found = {"name": bundle.name, "path": str(bundle.path), "licence": bundle.licence}
        typer.echo(json.dumps(found | ({"mask_database": str(database)} if database else {}), indent=1))
        return
    from maisi_aug.bundle_spec.bundle import reference_of

    used = reference_of(bundle) if to is None else to
    usage = "" if bundle.has_controlnet else " --mask-source none"
    typer.echo(f"{bundle.name}: ready in {bundle.path}.")
    if database is not None:
        typer.echo(f"Use the label maps with: --mask-bank {database}")
    typer.echo(f"Use it with: --bundle {used}{usage}")


def ask_for_licence() -> bool:
    """Ask the user on a terminal whether the licence is accepted; without a terminal, return False."""
    return sys.stdin.isatty() and typer.confirm("Have you read the licence, and do you accept it?", err=True)


def push_command(
    source: Annotated[
        str, typer.Argument(metavar="NAME|FOLDER", autocompletion=complete_bundles, help="A bundle to share.")
    ],
    repository: Annotated[
        str,
        typer.Argument(metavar="OWNER/NAME", help="Repository on the Hugging Face hub; created if it does not exist."),
    ],
    private: Annotated[bool, typer.Option("--private", help="Create the repository as private.")] = False,
    self_contained: Annotated[
        bool, typer.Option("--self-contained", help="Include the weights of the base that it was fine-tuned from.")
    ] = False,
    with_label_maps: Annotated[
        bool,
        typer.Option("--with-label-maps", help="Include its label maps, which come from the training patients."),
    ] = False,
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also keep the uploaded files, in this new folder.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Upload nothing: list the files, and write them with --to.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Share a bundle on the Hugging Face hub: safetensors, bundle.yaml, a model card and the licence's notice.

    A fine-tuned bundle names its base by hash instead of holding its weights. Needs a token that may write, in HF_TOKEN
    or by 'hf auth login'. Others fetch it with: maisi-aug bundles pull OWNER/NAME

    Example: maisi-aug bundles push runs/parotid anna/parotid-ct --private
    """
    from maisi_aug.api.bundles import push_bundle

    files, address = push_bundle(
        source,
        repository,
        private=private,
        self_contained=self_contained,
        with_label_maps=with_label_maps,
        to=to,
        dry_run=dry_run,
        say=tell,
    )
    if as_json:
        typer.echo(json.dumps({"address": address, "files": [file.to_json() for file in files]}, indent=1))
        return
    for file in files:
        typer.echo(f"{file.name}: {file.num_bytes / 1e6:.2f} MB, SHA-256 {file.sha256[:12]}...")
    typer.echo(f"{repository}: nothing uploaded." if address is None else address)


def export_command(
    source: Annotated[
        str, typer.Argument(metavar="NAME|FOLDER", autocompletion=complete_bundles, help="A bundle to export.")
    ],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="New folder of the MONAI bundle.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Write a bundle as a MONAI bundle, which draws images of label maps without maisi-aug.

    Example: maisi-aug bundles export phantom-ct --to phantom-ct-monai
    """
    from maisi_aug.api.bundles import export_bundle

    bundle = export_bundle(source, to)
    if as_json:
        typer.echo(json.dumps({"name": bundle.name, "path": str(to), "licence": bundle.licence}, indent=1))
        return
    typer.echo(
        f"{to}: {bundle.name} as a MONAI bundle. With pip install fire:\n"
        f"cd {to} && python -m monai.bundle run --config_file configs/inference.json --label_map MAP.nii.gz"
    )


def presets_command(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|FOLDER",
            autocompletion=complete_bundles,
            help="Show only the presets that fit this bundle.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """List what `synthesize --preset` takes: shape, spacing and decode windows by GPU memory and by body region.

    Memory is what NVIDIA reports for its own code on an A100, not a measurement of maisi-aug.

    Example: maisi-aug synthesize --labels "lung tumor" --bundle rflow-ct --preset chest --dry-run
    """
    from maisi_aug.bundle_spec.bundle import load_bundle
    from maisi_aug.bundle_spec.presets import list_all_presets, list_presets

    if name is None:
        rows = list_all_presets()
    else:
        bundle = load_bundle(name)
        rows = [(preset, (bundle.name,)) for preset in list_presets(bundle.spec.grid_limits)]
    if as_json:
        typer.echo(json.dumps([_to_json(preset, bundles) for preset, bundles in rows], indent=1))
        return
    if not rows:
        typer.echo(
            f"{name}: no presets, because its networks were not trained on such grids. All presets: maisi-aug "
            "bundles presets"
        )
        return
    _print_table(rows)


def _to_json(preset: Preset, bundles: tuple[str, ...]) -> dict[str, Any]:
    return {
        "name": preset.name,
        "shape": list(preset.shape),
        "spacing_mm": list(preset.spacing_mm),
        "extent_mm": list(preset.grid.extent_mm),
        "decode_window": None if preset.decode_window is None else list(preset.decode_window),
        "decode_overlap": None if preset.decode_window is None else preset.overlap,
        "memory_gb": preset.memory_gb,
        "peak_gb": preset.peak_gb,
        "bundles": list(bundles),
        "source": preset.source,
    }


def _print_table(rows: list[tuple[Preset, tuple[str, ...]]]) -> None:
    from rich.table import Table

    sources = list(dict.fromkeys(preset.source for preset, _ in rows))
    table = Table(title=f"{len(rows)} presets")
    for heading in ("name", "GPU memory", "voxels", "spacing, mm", "field of view, mm", "decode window", "bundles"):
        table.add_column(heading)
    table.add_column("source", justify="right")
    for preset, bundles in rows:
        window = "whole"
        if preset.decode_window is not None:
            window = f"{'x'.join(map(str, preset.decode_window))}, overlap {preset.overlap:g}"
        table.add_row(
            preset.name,
            f"{preset.memory_gb} GB (up to {preset.peak_gb:g})",
            "x".join(map(str, preset.shape)),
            "x".join(f"{step:g}" for step in preset.spacing_mm),
            "x".join(f"{side:.0f}" for side in preset.grid.extent_mm),
            window,
            ", ".join(bundles),
            f"[{sources.index(preset.source) + 1}]",
        )
    console = open_table_console()
    console.print(table)
    for number, source in enumerate(sources, start=1):
        console.print(f"[{number}] {source}", markup=False, highlight=False, soft_wrap=True)


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


class DtypeName(StrEnum):
    """Floating-point type of weights that `--dtype` selects."""

    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"


def import_command(
    source: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Folder of NV-Generate-CTMR, or of MONAI's bundle maisi_ct_generative."),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="NAME",
            help="Bundle that the files belong to (rflow-ct, ddpm-ct, rflow-mr or rflow-mr-brain), if the folder "
            "does not "
            "show it; with --network the name of the new bundle.",
        ),
    ] = None,
    network: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A config_network_*.json that defines your own networks."),
    ] = None,
    modality: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            autocompletion=complete_modalities,
            help="Modality that networks of your own were trained on, the default first; may repeat (default: CT).",
        ),
    ] = None,
    accept_license: AcceptOption = False,
    to: ToOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import NVIDIA's checkpoints (.pt) from a folder: check them, and save them as a bundle of safetensors.

    Only data is read from the files; one that asks to run code is refused by name. The folder is not changed. Without a
    ControlNet the bundle draws images alone.

    Example: maisi-aug bundles import NV-Generate-CTMR --as rflow-ct --accept-license
    """
    from maisi_aug.api.bundles import import_bundle

    bundle = import_bundle(
        source,
        name=name,
        network=network,
        modalities=modality or (),
        accept_license=accept_license or ask_for_licence,
        to=to,
        say=tell,
    )
    tell_ready(bundle, to, as_json=as_json)


def convert_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FOLDER|FILE",
            autocompletion=complete_bundles,
            help="A bundle, or a single network checkpoint (.pt).",
        ),
    ],
    to: Annotated[
        Path, typer.Option(metavar="FOLDER|FILE", help="New folder for the bundle, or new .safetensors file.")
    ],
    dtype: Annotated[
        DtypeName | None,
        typer.Option(
            help="Floating-point type of the weights (default: float16 for a bundle, unchanged for a checkpoint)."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a bundle with its weights in another floating type, or turn a checkpoint into safetensors.

    Only the size on disk changes: networks compute as before and take the same memory. Definitions, scale factor,
    licence and provenance are carried over. Only data is read from checkpoints, never code.

    Example: maisi-aug bundles convert rflow-ct --to rflow-ct-half --dtype float16
    """
    from maisi_aug.api.bundles import convert_bundle

    done = convert_bundle(source, to, dtype=None if dtype is None else dtype.value)
    if as_json:
        typer.echo(json.dumps(done.to_json(), indent=1))
        return
    sizes = f"{done.num_bytes / 1e6:.1f} MB of weights, previously {done.num_bytes_before / 1e6:.1f} MB"
    typer.echo(f"{done.path}: {sizes}{f', in {done.dtype}' if done.dtype else ''}.")
    if done.left_out:
        typer.echo(f"Left out, because they are not weights: {', '.join(done.left_out)}.")


def verify_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FOLDER", autocompletion=complete_bundles, help="An available bundle, or a bundle's folder."
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Verify a bundle: the SHA-256 of every weight file, and that names and shapes of all tensors are the networks'.

    Example: maisi-aug bundles verify phantom-ct
    """
    from maisi_aug.bundle_spec.bundle import load_bundle
    from maisi_aug.networks.weights import verify_bundle

    bundle = load_bundle(name)
    files = verify_bundle(bundle)
    if as_json:
        typer.echo(json.dumps({"name": bundle.name, "path": str(bundle.path), "files": files}, indent=1))
        return
    for row in files:
        typer.echo(f"{row['file']}: intact, {row['num_tensors']} tensors of {row['class']}")
    typer.echo(f"{bundle.name}: all {len(files)} files are intact.")


def prove_steps_command(
    name: Annotated[
        str, typer.Argument(metavar="NAME|FOLDER", autocompletion=complete_bundles, help="A bundle on this machine.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="Folder for images and report; an unfinished one is continued."
        ),
    ],
    labels: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:SIZE][@SHARE]",
            autocompletion=complete_labels,
            help="Lesion or organ of the maps; may repeat.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            autocompletion=complete_recipes,
            help="Recipe or cohort.yaml that says which maps.",
        ),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(metavar="PATH", autocompletion=complete_datasets, help="CTs to draw lesions into, for 'insert'."),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Steps to try (default: 2/3 to 1/4 of all)."),
    ] = None,
    against: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Compare with another full number than the bundle's; not stored."),
    ] = None,
    solver: Annotated[
        SolverName | None,
        typer.Option(help="Solver of a rectified flow (default: multistep)."),
    ] = None,
    num_maps: Annotated[
        int, typer.Option(min=1, help="Number of maps; a proof needs an image of 40.")
    ] = DEFAULT_PROOF_MAPS,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Random seed of the maps.")] = 0,
    store: Annotated[bool, typer.Option(help="Write a proof into bundle.yaml.")] = True,
    device: Annotated[str, typer.Option(help="Device to compute on.", rich_help_panel=RUN)] = "auto",
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show progress.", rich_help_panel=RUN)] = False,
) -> None:
    """Prove that fewer sampling steps draw the same, so that --steps auto can use them.

    The same maps are drawn from the same noise with the bundle's full number of steps and with fewer and fewer, until
    one is not equal: gates, contrast and texture of lesions, and HU of organs, by two one-sided tests each.

    Example: maisi-aug bundles prove-steps phantom-ct --labels "hepatic tumor:10-40mm" --out proof
    """
    from maisi_aug.api.bars import show_loading
    from maisi_aug.api.engines import Where
    from maisi_aug.api.proving import MapRequest, counts_for_auto, run_proof
    from maisi_aug.bundle_spec.bundle import load_bundle

    request = MapRequest(load_bundle(name), tuple(labels or ()), into, recipe, num_maps, seed)
    where, tried = Where.read(device), None if steps is None else _read_numbers(steps)
    with show_loading(is_quiet=quiet):
        from maisi_aug.api.progress import follow_run
    with follow_run(is_quiet=quiet, as_lines=False) as progress:
        report = run_proof(
            request, out, steps=tried, against=against, solver=solver, where=where, store=store, listener=progress
        )
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=1))
        return
    typer.echo(report.to_markdown())
    if store and counts_for_auto(report, request.bundle):
        typer.echo(f"Stored in {request.bundle.path}. Use it with: --bundle {name} --steps auto")


def _read_numbers(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise typer.BadParameter(f"--steps: expected numbers such as 4,6,8, found '{text}'.")
    return [int(word) for word in words]


bundles_app = typer.Typer(
    no_args_is_help=True, help="List, show, fetch, share, convert, verify and speed up bundles of weights."
)


def register(app: typer.Typer) -> None:
    """Add the group of commands ``bundles`` to the application."""
    app.add_typer(bundles_app, name="bundles")


@bundles_app.callback()
def bundles() -> None:
    """List, show, fetch, share, convert, verify and speed up bundles of weights: networks, licence, grids, origin."""


@bundles_app.command("list")
def list_command(as_json: JsonOption = False) -> None:
    """List available and downloadable bundles; any folder with a bundle.yaml can be used as well.

    Example: maisi-aug bundles list
    """
    from maisi_aug.api.bundles import list_bundles

    rows = list_bundles()
    if as_json:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    from rich.table import Table

    table = Table(title=f"{len(rows)} bundle{'' if len(rows) == 1 else 's'}")
    for heading in ("name", "description", "licence", "default grid", "on disk"):
        table.add_column(heading)
    for row in rows:
        size = _spell_bytes(row["num_bytes"] or 0) + (" with mask networks" if row["has_masks"] else "")
        size += f" on top of {row['base']}" if "base" in row else ""
        place = size if row["pull"] is None else f"{row['pull']} ({row['download_size']})"
        licence, _, _ = row["licence"].partition(";")  # what follows is the attribution, which `show` has
        table.add_row(row["name"], row["description"], licence, _spell_grid(row["grid"]), place)
    open_table_console().print(table)


@bundles_app.command("show")
def show_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FOLDER",
            autocompletion=complete_bundles,
            help="A bundle of the package, or a bundle's folder.",
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show a bundle: its networks and their widths, slots, size, and the origin of its weights.

    Example: maisi-aug bundles show phantom-ct
    """
    from maisi_aug.api.bundles import show_bundle

    described = show_bundle(name)
    if as_json:
        typer.echo(json.dumps(described, indent=1, ensure_ascii=False))
        return
    typer.echo("\n".join(_spell(described)))


bundles_app.command("presets")(presets_command)
bundles_app.command("pull")(pull_command)
bundles_app.command("push")(push_command)
bundles_app.command("import")(import_command)
bundles_app.command("export")(export_command)
bundles_app.command("convert")(convert_command)
bundles_app.command("verify")(verify_command)
bundles_app.command("prove-steps")(prove_steps_command)


_UNLABELLED = {"as-is": "", "complete": "completed from procedural anatomy that is fitted to the label map"}


def _spell(described: Mapping[str, Any]) -> list[str]:
    """The lines of `bundles show`."""
    from maisi_aug.api.bundles import WIDTH_KEYS

    lines = [f"{described['name']}: {described['description']}"]
    masks = described["mask_generation"]
    facts = {
        "draws": "" if "controlnet" in described["networks"] else "images without label maps only (--mask-source none)",
        "modalities": ", ".join(described["modalities"]),
        "guidance": described["guidance_scale"] and f"{described['guidance_scale']:g} by default",
        "advice": described["advice"],
        "unlabelled tissue": _UNLABELLED[described["unlabelled"]],
        "without a label map": described["advice_without_map"],
        "licence": described["licence"],
        "default grid": f"{_spell_grid(described['grid'])}; sides are multiples of {described['sides_multiple_of']}",
        "grids seen": _spell_limits(described["grid_limits"]),
        "sampling": f"{described['scheduler']}, {described['num_inference_steps']} steps",
        "fewer steps": "; ".join(map(_spell_proof, described["proven_steps"])),
        "precision": "float16 on CUDA devices, float32 elsewhere" if described["mixed_precision"] else "float32",
        "label maps": masks and f"generated, {_spell_grid(masks['grid'])}, {masks['num_inference_steps']} steps",
        "on disk": f"{_spell_bytes(described['num_bytes'])} in {described['path']}",
        "base": described["base_path"] and f"{described['base']}, in {described['base_path']}",
        "draws from": described["mask_bank"] and described["mask_bank"]["source"],
    }
    lines += [f"  {name}: {text}" for name, text in facts.items() if text]
    lines += [f"  slot {slot['id']}: {_spell_slot(name, slot)}" for name, slot in described["slots"].items()]
    for role, network in described["networks"].items():
        widths = ", ".join(f"{key} {_spell_value(network[key])}" for key in WIDTH_KEYS if key in network)
        size = f"; {_spell_bytes(network['num_bytes'])}" if "num_bytes" in network else ""
        size += f" of {network['bundle']}" if "bundle" in network else ""
        lines.append(f"  {role}: {network['class']}, {widths}{size}")
    told = {name.replace("_", " "): _spell_value(value) for name, value in described["provenance"].items()}
    lines += [f"  {name}: {text}" for name, text in told.items() if text]
    return lines


def _spell_proof(proof: Mapping[str, Any]) -> str:
    text = f"{proof['num_inference_steps']} ({proof['solver']}) for {proof['command']}, in {proof['num_maps']} maps"
    return text if proof["is_valid"] else f"{text}, of other weights"


def _spell_slot(name: str, slot: Mapping[str, Any]) -> str:
    """A bound slot: where it lies, and what was measured of it."""
    hosts = ", ".join(host["name"] for host in slot["hosts"])
    text = f"{name}, {'grows' if slot['kind'] == 'tumor' else 'an organ'} in {hosts}" if hosts else name
    if "median_ml" in slot:
        text += f"; median {slot['median_ml']:.3g} mL"
    if "median_hu_range" in slot:
        low, high = slot["median_hu_range"]
        text += f"; {low:.0f} to {high:.0f} HU"
    return text


def _spell_value(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_spell_value(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return "/".join(map(_spell_value, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _spell_grid(grid: Mapping[str, Any]) -> str:
    from maisi_aug.volumes.grid import spell_grid

    return spell_grid(grid["shape"], grid["spacing_mm"])


def _spell_limits(limits: Mapping[str, Any] | None) -> str:
    from maisi_aug.bundle_spec.grid_limits import GridLimits, spell_limits

    return "" if limits is None else spell_limits(GridLimits.model_validate(limits))


def _spell_bytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
