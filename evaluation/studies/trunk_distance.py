"""How far are drawn trunks from those of patients? FID of bundles' images and of phantoms, and a page to look at.

    python -m maisi_aug.evaluation.studies.trunk_distance CTS [CTS ...] --bundle phantom-ct --bundle OTHER --out results

CTS are folders of CTs of trunks. Held-out phantoms give maps and images; every bundle draws its own image of the map of
each phantom, built on the bundle's grid. All volumes are resampled to one spacing and cut to one shape. The images are
kept in OUT, so that the same command only measures again. ``trunk_distance.png`` shows real, drawn and phantom trunks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from maisi_aug.bundle_spec.bundle import Bundle, load_bundle
from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.cohort.case_sets import CaseSet, EvaluatedCase, find_case_set
from maisi_aug.evaluation.fid.extractors import find_extractor
from maisi_aug.evaluation.fid.measurement import MEAN, measure_fid
from maisi_aug.evaluation.fid.slices import PLANES, SliceProtocol, prepare_volume
from maisi_aug.evaluation.output.files import Cell, run_command, save_results, to_markdown
from maisi_aug.evaluation.studies.real_maps import lay_out_tiles
from maisi_aug.evaluation.studies.train_segmenter import build_held_out_phantom, print_progress
from maisi_aug.networks.pipeline import Pipeline, resolve_device
from maisi_aug.pictures.preview import save_picture
from maisi_aug.pictures.slices import BACKGROUND, SOFT_TISSUE, Plane, draw_slice, write_text
from maisi_aug.system.engine.work import InProcess
from maisi_aug.system.printed_text import from_clean_document
from maisi_aug.system.progress import Report, report_nothing
from maisi_aug.system.seeds import derive_seed
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_grid, save_image

REPORT_NAME: Final = "trunk_distance"
SPACING_MM: Final = (4.0, 4.0, 4.0)
SHAPE: Final = (96, 80, 40)
MIN_HEIGHT_MM: Final = SHAPE[2] * SPACING_MM[2]
"""Least height of a CT along the body: others would be padded with air."""
NUM_CASES: Final = 24
SEED: Final = 1
NUM_SHOWN: Final = 5
PIXELS_PER_MM: Final = 0.6
PHANTOMS: Final = "phantoms"


def write_images(
    bundle: Bundle, out: Path, *, num_cases: int, device: str, report: Report = report_nothing
) -> dict[str, Path]:
    """Write held-out phantoms on a bundle's grid, and the bundle's images of their maps, unless they are there.

    Returns:
        ``phantoms`` and ``drawn`` -> folder of ``(I, J, K)`` int16 images in HU, in RAS+.
    """
    folders = {name: out / name / bundle.fingerprint[:12] for name in (PHANTOMS, "drawn")}
    pipeline: Pipeline | None = None
    for index in range(num_cases):
        paths = {name: folder / f"trunk_{index:03d}_ct.nii.gz" for name, folder in folders.items()}
        if not all(path.is_file() for path in paths.values()):
            pipeline = pipeline or Pipeline.load(bundle, resolve_device(device))
            phantom = build_held_out_phantom(SEED, index, bundle.grid)
            drawn = pipeline.synthesize_image(
                phantom.label_map,
                phantom.grid,
                seed=derive_seed("drawn trunk", SEED, index),
                modality=phantom.modality,
            )
            save_image(paths[PHANTOMS], phantom.image_hu, phantom.grid)
            save_image(paths["drawn"], drawn, phantom.grid)
        report(index + 1, num_cases)
    return folders


def measure_trunks(
    cts: Sequence[Path], bundles: Sequence[Bundle], out: Path, *, num_cases: int = NUM_CASES, device: str = "auto"
) -> dict[str, Any]:
    """Measure how far images of bundles and phantoms are from real trunks.

    Args:
        cts: Folders of real CTs.
        bundles: Bundles to measure; phantoms are built on the grid of the first.
        out: Folder of images and results.
        num_cases: Number of maps that every bundle draws.
        device: Device that the bundles draw on.

    Returns:
        Figures as a JSON-able dict.

    Raises:
        EvaluationError: A folder has no CT, none is as high as a trunk, or they cannot be read.
    """
    sets = [find_case_set(folder) for folder in cts]
    real = replace(sets[0], cases=tuple(case for found in sets for case in found.cases if _is_high(case)))
    if not real.cases:
        raise EvaluationError(
            f"CTs: no CT is at least {MIN_HEIGHT_MM:g} mm high, as a trunk is; the first is "
            f"{sets[0].cases[0].case_id} in {sets[0].path}. Give CTs of whole chests or abdomens."
        )
    folders: dict[str, Path] = {}
    for number, bundle in enumerate(bundles):
        held = write_images(
            bundle, out, num_cases=num_cases, device=device, report=print_progress(f"{bundle.name}: trunk")
        )
        folders[f"{bundle.name} {bundle.fingerprint[:12]}"] = held["drawn"]
        if number == 0:
            folders[PHANTOMS] = held[PHANTOMS]
    protocol = SliceProtocol(spacing_mm=SPACING_MM, shape=SHAPE)
    extractor = find_extractor("efficientnet_lite0")
    rows = []
    for name, folder in folders.items():
        document = measure_fid(
            real,
            find_case_set(folder),
            extractor,
            protocol,
            cache=out / "features",
            engine=InProcess(device),
        )
        rows.append({"images": name, **{plane: document["planes"][plane] for plane in (*PLANES, MEAN)}})
    document = {
        "measurement": REPORT_NAME,
        "num_real": len(real.cases),
        "num_drawn": num_cases,
        "protocol": protocol.describe(),
        "rows": rows,
    }
    save_results(out, REPORT_NAME, document, to_report(document))
    shown = {"real": real, **{name: find_case_set(folder) for name, folder in folders.items()}}
    save_picture(out / f"{REPORT_NAME}.png", _draw_page(shown, protocol))
    return document


def _is_high(case: EvaluatedCase) -> bool:
    """Whether a CT is a trunk and no slab of it."""
    grid = load_grid(case.image_path)
    return grid.shape[2] * grid.spacing_mm[2] >= MIN_HEIGHT_MM


@from_clean_document
def to_report(document: Mapping[str, Any]) -> str:
    """Format the distances of trunks as Markdown."""

    def row(held: Mapping[str, Any]) -> list[Cell]:
        mean = held[MEAN]
        low, high = mean["interval"] or (None, None)
        spread = "" if low is None else f"{low:.1f} to {high:.1f}"
        return [held["images"], *(held[plane]["fid"] for plane in PLANES), mean["fid"], spread]

    floors = [value for held in document["rows"][:1] for value in held[MEAN]["floor"] or ()]
    floor = f" Halves of the real ones differ by {min(floors):.1f} to {max(floors):.1f}." if floors else ""
    return "\n".join(
        [
            "# How far drawn trunks are from patients'\n",
            f"2.5D FID, {document['num_real']} CTs against {document['num_drawn']} images: {document['protocol']}."
            f"{floor}\n",
            to_markdown(
                ["images", "axial", "sagittal", "coronal", "mean", "95% interval"],
                [row(held) for held in document["rows"]],
                num_digits=1,
            ),
        ]
    )


def _draw_page(sets: Mapping[str, CaseSet], protocol: SliceProtocol) -> Image.Image:
    """A row of trunks for each set, as they are compared."""
    tiles = []
    for name, found in sets.items():
        # Evenly spread, but not a multiple of the number of body regions, which alternate.
        for index in np.unique(np.linspace(0, len(found.cases) - 1, NUM_SHOWN).astype(int)):
            case = found.cases[index]
            volume = prepare_volume(case.load_image(), protocol, subject=case.case_id)
            tiles.append(_draw_tile(volume, f"{name}, {case.case_id}" if name == "real" else name))
    return lay_out_tiles(tiles, num_columns=NUM_SHOWN)


def _draw_tile(image_hu: np.ndarray[Any, Any], title: str) -> Image.Image:
    grid = Grid.from_spacing(SHAPE, SPACING_MM)
    panels = [
        draw_slice(image_hu.astype(np.int16), plane, plane.size_px(grid, PIXELS_PER_MM), SOFT_TISSUE)
        for plane in (Plane("axial", SHAPE[2] // 2), Plane("coronal", SHAPE[1] // 2))
    ]
    tile = Image.new("RGB", (max(p.width for p in panels), 18 + sum(p.height for p in panels)), BACKGROUND)
    write_text(tile, (3, 2), title, size_px=11)
    top = 18
    for panel in panels:
        tile.paste(panel, (0, top))
        top += panel.height
    return tile


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this module's command line: measure, write and print the report; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m maisi_aug.evaluation.studies.trunk_distance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cts", type=Path, nargs="+", help="folders of CTs of trunks")
    parser.add_argument("--bundle", action="append", help="name of a bundle, or its folder; can be repeated")
    parser.add_argument("--out", type=Path, required=True, help="folder of images and results")
    parser.add_argument("--num-cases", type=int, default=NUM_CASES, help="maps that every bundle draws")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options = parser.parse_args(arguments)

    def body() -> None:
        bundles = [load_bundle(name) for name in options.bundle or ["phantom-ct"]]
        document = measure_trunks(options.cts, bundles, options.out, num_cases=options.num_cases, device=options.device)
        print(to_report(document))

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
