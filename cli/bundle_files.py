"""`maisi-aug bundles import|convert|verify`: weights that are on this machine already."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from maisi_aug.cli.pull import AcceptOption, ToOption, ask_for_licence, tell_ready

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


class DtypeName(StrEnum):
    """What `--dtype` takes."""

    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"


def import_command(
    source: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Folder of NV-Generate-CTMR, or of MONAI's bundle maisi_ct_generative."),
    ],
    known_name: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="rflow-ct or ddpm-ct, where the folder does not tell."),
    ] = None,
    accept_license: AcceptOption = False,
    to: ToOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take over NVIDIA's checkpoints (.pt) from a folder: check them, and keep them as a bundle of safetensors.

    Only data is read from the files; one that asks to run code is refused by name. The folder is not changed.

    Example: maisi-aug bundles import NV-Generate-CTMR --as rflow-ct --accept-license
    """
    from maisi_aug.checkpoint_folders import import_bundle

    bundle = import_bundle(
        source,
        accept_licence=lambda _: accept_license or ask_for_licence(),
        name=known_name,
        folder=to,
        report=lambda sentence: typer.echo(sentence, err=True),
    )
    tell_ready(bundle, to, as_json=as_json)


def convert_command(
    source: Annotated[
        str, typer.Argument(metavar="NAME|FOLDER|FILE", help="A bundle, or one checkpoint (.pt) of a network.")
    ],
    to: Annotated[Path, typer.Option(metavar="DIR|FILE", help="New folder of the bundle, or new .safetensors file.")],
    dtype: Annotated[
        DtypeName | None,
        typer.Option(help="Floating type of the weights (default: float16 for a bundle, its own for a checkpoint)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a bundle with its weights in another floating type, or turn a checkpoint into safetensors.

    What changes is the size on disk: networks compute as before, and take as much memory. Definitions, scale factor,
    licence and provenance are carried over. Only data is read from checkpoints, never code.

    Example: maisi-aug bundles convert rflow-ct --to rflow-ct-half --dtype float16
    """
    from maisi_aug.weight_copies import convert_bundle, convert_checkpoint

    if Path(source).is_file():
        done = convert_checkpoint(Path(source), to, dtype=None if dtype is None else dtype.value)
    else:
        done = convert_bundle(source, to, dtype=(dtype or DtypeName.float16).value)
    if as_json:
        typer.echo(json.dumps(done.to_json(), indent=1))
        return
    sizes = f"{done.num_bytes / 1e6:.1f} MB of weights, from {done.num_bytes_before / 1e6:.1f} MB"
    typer.echo(f"{done.path}: {sizes}{f', in {done.dtype}' if done.dtype else ''}.")
    if done.left_out:
        typer.echo(f"Left out, for they are no weights: {', '.join(done.left_out)}.")


def verify_command(
    name: Annotated[str, typer.Argument(metavar="NAME|FOLDER", help="A bundle at hand, or a bundle's folder.")],
    as_json: JsonOption = False,
) -> None:
    """Verify a bundle: the SHA-256 of every weight file, and that names and shapes of all tensors are the networks'.

    Example: maisi-aug bundles verify phantom-ct
    """
    from maisi_aug.bundle import load_bundle
    from maisi_aug.weights import verify_bundle

    bundle = load_bundle(name)
    files = verify_bundle(bundle)
    if as_json:
        typer.echo(json.dumps({"name": bundle.name, "path": str(bundle.path), "files": files}, indent=1))
        return
    for row in files:
        typer.echo(f"{row['file']}: intact, {row['num_tensors']} tensors of {row['class']}")
    typer.echo(f"{bundle.name}: all {len(files)} files are as they should be.")
