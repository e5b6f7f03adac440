"""`maisi-aug migrate`: what configurations of NVIDIA's scripts ask for, as commands of this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from maisi_aug.cli.shared.streams import tell


def register(app: typer.Typer) -> None:
    """Add the command ``migrate`` to the application."""
    app.command("migrate")(migrate)


def migrate(
    configs: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            help="Configuration files of one run of NV-Generate-CTMR, in any order: config_infer*.json or "
            "config_maisi_*.json, and environment*.json if available.",
        ),
    ],
    version: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Networks, such as rflow-ct (default: those that the files name, or rflow-ct)."
        ),
    ] = None,
    random_seed: Annotated[int | None, typer.Option("--random-seed", min=0, help="Random seed.")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Label map to draw an image of, as in scripts.infer_image_from_mask.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output folder (default: the one that the files name).")
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Also run the commands.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print commands and every setting with its counterpart as JSON.")
    ] = False,
) -> None:
    """Translate configuration files of NVIDIA's scripts into commands of maisi-aug, and list the differences.

    The output is a shell script: differences are in comments above the commands.

    Example: maisi-aug migrate configs/config_infer.json configs/environment_rflow-ct.json
    """
    from maisi_aug.api.migrating import migrate as translate

    found = translate(configs, version=version, random_seed=random_seed, mask=mask, out=out)
    typer.echo(json.dumps(found.to_json(), indent=1, ensure_ascii=False) if as_json else found.to_script())
    if run:
        _run(found.commands)


def _run(commands: list[list[str]]) -> None:
    from maisi_aug.cli.app import run

    for command in commands:
        code = run(command[1:])
        if code:
            tell(f"'{' '.join(command[:3])}' ended with code {code}; the commands after it were not run.")
            raise typer.Exit(code)
