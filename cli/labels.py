"""`maisi-aug labels`: what can be requested, under which names and ids, in which organs and in which sizes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maisi_aug.api.labels import load_vocabulary, select_labels
from maisi_aug.cli.shared.completion import complete_bundles
from maisi_aug.cli.shared.streams import open_table_console
from maisi_aug.vocabulary.labels import Label, Vocabulary
from maisi_aug.vocabulary.sizes import SizeDistribution, diameter_mm

if TYPE_CHECKING:
    from rich.table import Table

SHOWN_PERCENTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MAX_HOSTS_IN_TABLE = 5
NEEDS_BUNDLE = "* only in bundles that define it, such as phantom-ct"


class Kind(StrEnum):
    """Kind of labels that `--kind` selects."""

    organ = "organ"
    tumor = "tumor"
    slot = "slot"


def register(app: typer.Typer) -> None:
    """Add the command ``labels`` to the application."""
    app.command("labels")(labels)


def labels(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    find: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only labels whose name or alias contains this text.")
    ] = None,
    kind: Annotated[Kind | None, typer.Option(help="Only organs, tumours or placeholder slots.")] = None,
    sizes: Annotated[
        bool, typer.Option("--sizes", help="Only lesions, with the size that each percentile means.")
    ] = False,
    bundle: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER",
            autocompletion=complete_bundles,
            help="Bundle whose names for placeholder slots are listed (default: phantom-ct).",
        ),
    ] = None,
) -> None:
    """List the labels that can be requested, with ids, host organs, aliases and lesion sizes.

    Example: maisi-aug labels --find kidney
    """
    vocabulary, known_sizes = load_vocabulary(bundle)
    rows = select_labels(
        vocabulary, find=find, kind=None if kind is None else kind.value, sizes=known_sizes if sizes else None
    )
    starred = frozenset(label.id for label in rows if bundle is None and label.is_slot and label.kind != "slot")
    if as_json:
        chosen = known_sizes if sizes else None
        listed = [_describe(label, vocabulary, sizes=chosen, needs_bundle=label.id in starred) for label in rows]
        typer.echo(json.dumps(listed, indent=1, ensure_ascii=False))
        return
    console = open_table_console()
    table = _build_sizes_table(rows, starred, known_sizes) if sizes else _build_table(rows, vocabulary, starred)
    table.caption = NEEDS_BUNDLE if starred else None
    console.print(table)
    if sizes:
        for label in rows:
            console.print(f"{label.name}: {known_sizes[label.name].source}", markup=False, highlight=False)
    if bundle is None and any(label.kind == "slot" for label in rows):
        typer.echo("Names of placeholder slots come from a bundle: maisi-aug labels --bundle phantom-ct", err=True)


def _describe(
    label: Label, vocabulary: Vocabulary, *, sizes: Mapping[str, SizeDistribution] | None, needs_bundle: bool
) -> dict[str, Any]:
    """Describe one label as JSON types."""
    described: dict[str, Any] = {
        "id": label.id,
        "name": label.name,
        "kind": label.kind,
        "slot": label.is_slot,
        "needs_bundle": needs_bundle,
        "hosts": [{"id": host, "name": vocabulary.name_of(host)} for host in label.hosts],
        "aliases": list(label.aliases),
    }
    if sizes is not None:
        distribution = sizes[label.name]
        described["sizes"] = {
            "measured_on": distribution.label,
            "is_stand_in": distribution.stand_in_for is not None,
            "percentiles": [round(step * 0.05, 2) for step in range(len(distribution.quantiles_ml))],
            "volumes_ml": list(distribution.quantiles_ml),
            "source": distribution.source,
        }
    return described


def _starred_name(label: Label, starred: Set[int]) -> str:
    return f"{label.name} *" if label.id in starred else label.name


def _build_table(rows: list[Label], vocabulary: Vocabulary, starred: Set[int]) -> Table:
    from rich.table import Table

    table = Table(title=f"{len(rows)} label{'s' if len(rows) > 1 else ''}")
    table.add_column("id", justify="right")
    for heading in ("name", "kind", "grows in", "also found as"):
        table.add_column(heading)
    for label in rows:
        hosts = [vocabulary.name_of(host) for host in label.hosts]
        if len(hosts) > MAX_HOSTS_IN_TABLE:
            hosts = [*hosts[:MAX_HOSTS_IN_TABLE], f"and {len(hosts) - MAX_HOSTS_IN_TABLE} more"]
        name = _starred_name(label, starred)
        table.add_row(str(label.id), name, label.kind, ", ".join(hosts), ", ".join(label.aliases))
    return table


def _build_sizes_table(rows: list[Label], starred: Set[int], sizes: Mapping[str, SizeDistribution]) -> Table:
    from rich.table import Table

    table = Table(title="Largest lesion per patient: volume and equivalent diameter at a size percentile")
    table.add_column("id", justify="right")
    table.add_column("name")
    for percentile in SHOWN_PERCENTILES:
        table.add_column(f":{percentile:g}", justify="right")
    table.add_column("measured on")
    for label in rows:
        distribution = sizes[label.name]
        volumes = (distribution.volume_ml(percentile) for percentile in SHOWN_PERCENTILES)
        cells = (f"{_spell_ml(volume)} mL, {diameter_mm(volume):.0f} mm" for volume in volumes)
        stand_in = f"estimated from: {distribution.label}" if distribution.stand_in_for else distribution.label
        table.add_row(str(label.id), _starred_name(label, starred), *cells, stand_in)
    return table


def _spell_ml(volume_ml: float) -> str:
    return f"{volume_ml:.0f}" if volume_ml >= 10 else f"{volume_ml:.2g}"
