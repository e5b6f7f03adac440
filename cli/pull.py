"""`maisi-aug bundles pull`: fetch weights that others publish, once their licence is accepted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from maisi_aug.bundle import Bundle


AcceptOption = Annotated[
    bool, typer.Option("--accept-license", help="Accept the licence of the weights without being asked.")
]
ToOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of the bundle, to be named in --bundle; without it the name is enough."),
]


def pull_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A bundle that can be fetched: see bundles list.")],
    with_masks: Annotated[
        bool,
        typer.Option("--with-masks", help="Also the networks that generate label maps, for --mask-source diffusion."),
    ] = False,
    accept_license: AcceptOption = False,
    to: ToOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Fetch a bundle from the Hugging Face hub, check it, and keep it as safetensors.

    HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are respected; a broken download goes on where it stopped. The
    bundle is kept in MAISI_AUG_HOME, or in the user's data folder.

    Example: maisi-aug bundles pull rflow-ct --accept-license
    """
    from maisi_aug.hub import pull_bundle
    from maisi_aug.known_bundles import find_known_bundle

    bundle = pull_bundle(
        find_known_bundle(name),
        accept_licence=lambda _: accept_license or ask_for_licence(),
        with_masks=with_masks,
        folder=to,
        report=lambda sentence: typer.echo(sentence, err=True),
    )
    tell_ready(bundle, to, as_json=as_json)


def tell_ready(bundle: Bundle, to: Path | None, *, as_json: bool) -> None:
    """Say where a bundle is and how it is used."""
    if as_json:
        typer.echo(json.dumps({"name": bundle.name, "path": str(bundle.path), "licence": bundle.licence}, indent=1))
        return
    typer.echo(f"{bundle.name}: ready in {bundle.path}.\nUse it with: --bundle {bundle.name if to is None else to}")


def ask_for_licence() -> bool:
    """Ask on a terminal; elsewhere nobody can answer."""
    return sys.stdin.isatty() and typer.confirm("Have you read the licence, and do you accept it?", err=True)
