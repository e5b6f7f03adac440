"""Phantoms on disk: images, full label maps, pictures and an index, resumable and the same bytes for the same seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from maisi_aug.cohort.folder import CONTACT_SHEET_NAME
from maisi_aug.cohort.request import differences
from maisi_aug.errors import CohortError
from maisi_aug.phantom import Phantom, build_phantom
from maisi_aug.pictures.preview import Caption, build_preview, save_contact_sheet, save_picture
from maisi_aug.system.content import read_json
from maisi_aug.system.progress import Report, report_nothing
from maisi_aug.system.seeds import derive_seed
from maisi_aug.system.whole_files import remove_leftovers, sha256_of, write_json_whole
from maisi_aug.vocabulary.labels import FULL_VOCABULARY
from maisi_aug.volumes.grid import Grid, Shape, Spacing
from maisi_aug.volumes.image_files import save_image, save_label_map

INDEX_NAME = "phantoms.json"
FOLDERS = ("images", "labels", "previews")

RegionName = Literal["chest", "abdomen", "pelvis", "any"]


@dataclass(frozen=True, slots=True)
class PhantomSettings:
    """Settings that determine the bytes of procedural phantoms, whatever their number.

    Attributes:
        seed: Seed from which, with its number, every phantom's own seed derives.
        region: Body region that is shown; ``any`` draws a position along the trunk.
        shape: Voxels along I, J, K.
        spacing_mm: Voxel sides along I, J, K in mm.
        has_lesions: Whether lesions are planted.
    """

    seed: int = 0
    region: RegionName = "any"
    shape: Shape = (128, 96, 80)
    spacing_mm: Spacing = (3.2, 3.2, 3.2)
    has_lesions: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON types."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def write_phantoms(
    folder: Path,
    settings: PhantomSettings,
    num_phantoms: int,
    *,
    report: Report = report_nothing,
) -> dict[str, Any]:
    """Write procedural phantoms with label maps, or continue where an earlier call stopped.

    Requesting more phantoms later keeps the existing ones.

    Args:
        folder: New or empty folder, or one with phantoms of the same settings.
        settings: Settings of the phantoms.
        num_phantoms: Total number of phantoms, including existing ones.
        report: Progress callback, called with (phantoms written, phantoms in all).

    Returns:
        The index of all phantoms, as in ``phantoms.json``.

    Raises:
        CohortError: The folder contains something else, or phantoms with other settings.
        VolumeError: A file cannot be written.
    """
    rows = _read_rows(folder, settings)
    for subfolder in (".", *FOLDERS):
        remove_leftovers(folder / subfolder)
    grid = Grid.from_spacing(settings.shape, settings.spacing_mm)
    for number in range(len(rows), num_phantoms):
        report(number, num_phantoms)
        seed = derive_seed("phantom", settings.seed, number)
        phantom = build_phantom(seed=seed, grid=grid, region=settings.region, lesions=settings.has_lesions)
        rows.append(_write(folder, f"phantom_{number + 1:04d}", phantom))
        _write_index(folder, settings, rows)
    report(len(rows), num_phantoms)
    previews = [folder / row["files"]["preview"]["path"] for row in rows]
    if previews:
        save_contact_sheet(folder / CONTACT_SHEET_NAME, previews, f"{len(rows)} phantoms, seed {settings.seed}")
    return _build_index(settings, rows)


def _build_index(settings: PhantomSettings, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"settings": settings.to_dict(), "phantoms": rows}


def _write_index(folder: Path, settings: PhantomSettings, rows: list[dict[str, Any]]) -> None:
    write_json_whole(folder / INDEX_NAME, _build_index(settings, rows))


def _read_rows(folder: Path, settings: PhantomSettings) -> list[dict[str, Any]]:
    """The phantoms that are there already."""
    if folder.exists() and not folder.is_dir():
        raise CohortError(f"{folder}: this is a file, not a folder. Choose another --out.")
    path = folder / INDEX_NAME
    if not path.is_file():
        # A run killed before its first index leaves these folders with files of phantom 1.
        found = [p for p in sorted(folder.iterdir()) if p.name not in FOLDERS] if folder.is_dir() else []
        strange = [p for name in FOLDERS for p in sorted((folder / name).glob("*")) if "phantom_0001" not in p.name]
        if found or strange:
            raise CohortError(
                f"{folder}: the folder is not empty and holds no phantoms: it has '{[*found, *strange][0].name}' but "
                f"no {INDEX_NAME}. Nothing was changed; choose another --out."
            )
        return []
    try:
        index = read_json(path)
        written, rows = dict(index["settings"]), list(index["phantoms"])
    except (OSError, ValueError, TypeError, KeyError):
        raise CohortError(f"{path}: not an index of phantoms. Choose another --out.") from None
    changed = differences(written, settings.to_dict())
    if changed:
        raise CohortError(
            f"{folder}: these phantoms were made with other settings ({'; '.join(changed)}). Choose another --out, "
            "or continue with the original options."
        )
    return rows


def _write(folder: Path, name: str, phantom: Phantom) -> dict[str, Any]:
    """Write one phantom's files and describe it."""
    vocabulary = FULL_VOCABULARY
    files = {
        "image": folder / "images" / f"{name}.nii.gz",
        "label": folder / "labels" / f"{name}.nii.gz",
        "preview": folder / "previews" / f"{name}.png",
    }
    lesions = [
        {
            "label_id": lesion.label_id,
            "label": lesion.label,
            "volume_ml": lesion.realised_ml,
            "diameter_mm": lesion.diameter_mm,
            "centre_ijk": list(lesion.centre_ijk or ()),
            "host_id": lesion.host_id,
        }
        for lesion in phantom.lesions
    ]
    save_image(files["image"], phantom.image_hu, phantom.grid)
    save_label_map(files["label"], phantom.label_map, phantom.grid)
    picture = build_preview(
        phantom.image_hu,
        phantom.label_map,
        phantom.grid,
        Caption(name, tuple(_describe(phantom, lesions))),
        lesion_ids=vocabulary.tumor_ids,
        names={label.id: label.name for label in vocabulary},
    )
    save_picture(files["preview"], picture)
    return {
        "id": name,
        "seed": phantom.seed,
        "region": phantom.region,
        "phase": phantom.phase,
        "lesions": lesions,
        "files": {
            role: {"path": path.relative_to(folder).as_posix(), "sha256": sha256_of(path)}
            for role, path in files.items()
        },
    }


def _describe(phantom: Phantom, lesions: Sequence[Mapping[str, Any]]) -> list[str]:
    largest_first = sorted(lesions, key=lambda lesion: -lesion["volume_ml"])
    sizes = [f"{row['label']}: {row['volume_ml']:.2f} mL ({row['diameter_mm']:.1f} mm)" for row in largest_first]
    return [*sizes, f"{phantom.region}, {phantom.phase}, seed {phantom.seed}"]
