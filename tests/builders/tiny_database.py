"""NVIDIA's mask database in small: its list, and its maps in a zip or a folder; bad archives, too."""

from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_label_map

MAPS_NAME = "all_masks_flexible_size_and_spacing_4000"
LIST_NAME = "candidate_masks_flexible_size_and_spacing_4000.json"


def build_row(name: str, label_map: NDArray[np.uint8], grid: Grid, **fields: Any) -> dict[str, Any]:
    """The row of a map, with a folder before its name that archives do not have, as NVIDIA's lists do."""
    return {
        "pseudo_label_filename": f"./datasets/{MAPS_NAME}/tiny/{name}",
        "label_list": [int(label_id) for label_id in np.unique(label_map) if label_id],
        "dim": list(grid.shape),
        "spacing": list(grid.spacing_mm),
        **fields,
    }


def write_database(
    folder: Path,
    maps: Mapping[str, tuple[NDArray[np.uint8], Grid]],
    *,
    fields: Mapping[str, Mapping[str, Any]] | None = None,
    packed: bool = True,
) -> Path:
    """Write the list and the maps.

    Args:
        folder: Where to.
        maps: File name -> map and grid.
        fields: File name -> fields that its row has besides or instead.
        packed: Whether the maps go into a zip archive and not into a folder.

    Returns:
        The archive or the folder of the maps.
    """
    unpacked = folder / MAPS_NAME
    rows = []
    for name, (label_map, grid) in maps.items():
        save_label_map(unpacked / "tiny" / name, label_map, grid)
        rows.append(build_row(name, label_map, grid, **(fields or {}).get(name, {})))
    write_list(folder, rows)
    if not packed:
        return unpacked
    archive = folder / f"{MAPS_NAME}.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted((unpacked / "tiny").iterdir()):
            opened.write(path, f"{MAPS_NAME}/tiny/{path.name}")
            path.unlink()
    (unpacked / "tiny").rmdir()
    unpacked.rmdir()
    return archive


def write_list(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write the JSON list."""
    path = folder / LIST_NAME
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def add_member(archive: Path, name: str, content: bytes, *, is_link: bool = False) -> None:
    """Add a member under any name, as no honest tool would."""
    info = zipfile.ZipInfo("x")
    info.filename = name
    info.external_attr = ((stat.S_IFLNK | 0o777) if is_link else 0o644) << 16
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr(info, content)
