"""`maisi-aug bundles presets`: grids by name, for GPUs of so much memory and for body regions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maisi_aug.cli.tables import open_table_console

if TYPE_CHECKING:
    from maisi_aug.presets import Preset


def presets_command(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME|FOLDER]", help="A bundle, to show no presets but those it takes.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """List what `synthesize --preset` takes: shape, spacing and decode window by GPU memory and by body region.

    Memory is what NVIDIA reports for its own code on an A100, not a measurement of maisi-aug.

    Example: maisi-aug synthesize --labels "lung tumor" --bundle rflow-ct --preset chest --dry-run
    """
    from maisi_aug.bundle import load_bundle
    from maisi_aug.presets import list_all_presets, list_presets

    if name is None:
        rows = list_all_presets()
    else:
        bundle = load_bundle(name)
        rows = [(preset, (bundle.name,)) for preset in list_presets(bundle.spec.grid_limits)]
    if as_json:
        typer.echo(json.dumps([_to_json(preset, bundles) for preset, bundles in rows], indent=1))
        return
    if not rows:
        typer.echo(f"{name}: no presets, for its networks have not seen such grids. All presets: bundles presets")
        return
    _print_table(rows)


def _to_json(preset: Preset, bundles: tuple[str, ...]) -> dict[str, Any]:
    return {
        "name": preset.name,
        "shape": list(preset.shape),
        "spacing_mm": list(preset.spacing_mm),
        "extent_mm": list(preset.grid.extent_mm),
        "decode_window": None if preset.decode_window is None else list(preset.decode_window),
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
        window = "whole" if preset.decode_window is None else "x".join(map(str, preset.decode_window))
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
