r"""Ways to draw a nodule into a CT with the networks of a bundle, compared with each other and with the procedural one.

    python -m maisi_aug.evaluation.studies.insertion_ways CHESTS --bundle lung-nodule-ct --lesions 24 --out runs/ways

The same nodules, at the same places of the same CTs, are drawn in every way: ``replace``, the known latents put back at
every step; ``resampled``, the same with every step taken twice; ``difference``, two drawings with the same noise, with
the nodule and without, whose difference is added to the CT; ``procedural``, without networks. What the gates of an
insertion measure is averaged, and OUT/ways.png shows them side by side.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from time import process_time
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from maisi_aug.bundle_spec.bundle import load_bundle
from maisi_aug.bundle_spec.solvers import Sampling
from maisi_aug.errors import LesionError
from maisi_aug.evaluation.output.files import run_command, save_results, to_markdown
from maisi_aug.evaluation.studies.nodule_pools import NODULE_ID, ChestCt, load_chests
from maisi_aug.insertion.crops import cut_crop
from maisi_aug.insertion.drawing import open_bundle_painter
from maisi_aug.insertion.insert import Insertion, LesionRequest
from maisi_aug.insertion.painting import TEXTURES, Painter, ProceduralPainter
from maisi_aug.insertion.request import Attachment
from maisi_aug.pictures.preview import save_picture
from maisi_aug.system.seeds import derive_seed
from maisi_aug.vocabulary.sizes import volume_ml

REPORT_NAME: Final = "insertion_ways"
WAYS: Final = ("procedural", "replace", "resampled", "difference")
SIZES_MM: Final = (6.0, 9.0, 14.0, 25.0)
ATTACHMENTS: Final[tuple[Attachment, ...]] = ("free", "surface")
FIGURES: Final = ("contrast_hu", "edge", "noise_ratio", "inner_noise_ratio", "seam")
TILE_MM, TILE_PX, WINDOW_HU = 50.0, 150, (-1100.0, 300.0)


def draw_all(
    chests: Sequence[ChestCt], painter: Painter, *, num_lesions: int, sizes_mm: Sequence[float] = SIZES_MM
) -> list[dict[str, Any]]:
    """Draw the nodules of the comparison with one painter; textures, sizes and attachments alternate.

    A position that a CT does not have is left out, for all painters alike.
    """
    kinds = list(product(sizes_mm, ATTACHMENTS, TEXTURES))
    rows = []
    for number in range(num_lesions):
        diameter, attachment, texture = kinds[number * 7 % len(kinds)]
        chest = chests[number % len(chests)]
        request = LesionRequest(NODULE_ID, volume_ml(diameter), texture, attachment)
        started = process_time()
        try:
            made = chest.insert(request, painter, seed=derive_seed("ways", number))
        except LesionError:
            continue
        rows.append(
            {
                "diameter_mm": diameter,
                "attachment": attachment,
                "texture": texture,
                "chest": chest.name,
                "seconds": process_time() - started,
                "size_error": made.volume_ml / request.volume_ml - 1,
                "reason": made.reason,
                "failed": [v.gate for v in made.verdicts if not v.passed],
                **asdict(made.look),
                "tile": draw_tile(chest, made),
            }
        )
    return rows


def draw_tile(chest: ChestCt, made: Insertion) -> NDArray[np.uint8]:
    """Draw the slice through the middle of an inserted lesion, before and after."""
    image = chest.image_hu.copy()
    image[made.box] = made.image
    places = np.argwhere(made.lesion) + [part.start for part in made.box]
    centre = np.rint(places.mean(axis=0)).astype(int)
    sides = [round(TILE_MM / step) for step in chest.spacing_mm[:2]] + [1]
    start = [int(c - side // 2) for c, side in zip(centre, sides, strict=True)]
    tiles = []
    for shown in (chest.image_hu, image):
        crop = cut_crop(shown, start, sides, chest.spacing_mm).image_hu[:, :, 0]
        grey = np.clip((crop - WINDOW_HU[0]) / (WINDOW_HU[1] - WINDOW_HU[0]), 0, 1) * 255
        picture = Image.fromarray(grey.T[::-1].astype(np.uint8)).resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC)
        tiles.append(np.asarray(picture))
    return np.vstack(tiles)


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the means of what the gates measure, or medians for figures that a lesion may lack."""
    figures: dict[str, Any] = {"num": len(rows)}
    for name in FIGURES:
        values = np.array([row[name] for row in rows], dtype=float)
        values = values[np.isfinite(values)]
        figures[name] = float(np.median(values)) if len(values) else None
    figures["accepted"] = float(np.mean([not row["reason"] for row in rows]))
    figures["largest_size_error"] = float(np.max(np.abs([row["size_error"] for row in rows])))
    figures["seconds"] = float(np.mean([row["seconds"] for row in rows]))
    gates = sorted({gate for row in rows for gate in row["failed"]})
    figures["failed"] = {gate: sum(gate in row["failed"] for row in rows) for gate in gates}
    return figures


def to_report(document: Mapping[str, Any]) -> str:
    """Format the figures of the comparison of painters as Markdown."""
    head = ["way", "nodules", "accepted", "noise of the zone", "of the lesion", "edge", "contrast", "seam", "seconds"]
    rows = [
        [
            *(way, row["num"], row["accepted"], row["noise_ratio"], row["inner_noise_ratio"], row["edge"]),
            *(row["contrast_hu"], row["seam"], row["seconds"]),
        ]
        for way, row in document["ways"].items()
    ]
    parts = [
        f"# Ways to draw a nodule with {document['bundle']}\n",
        "Share accepted at the first attempt; medians of the noise in the zone and in the lesion over that of the lung "
        "around, of the edge as a share of the contrast, of the contrast in HU and of the seam; processor seconds a "
        "nodule, one thread.\n",
        to_markdown(head, rows),
        "Gates that failed:\n",
        *(
            f"- {way}: {', '.join(f'{gate} {count}' for gate, count in row['failed'].items()) or 'none'}\n"
            for way, row in document["ways"].items()
        ),
    ]
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this module's command line: compare ways to draw nodules, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chests", type=Path, help="NAME_ct.nii.gz of whole chests")
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--lesions", type=int, default=24)
    parser.add_argument("--sizes", type=float, nargs="+", default=list(SIZES_MM), help="diameters in mm")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--steps", type=int, help="of the sampler")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)

    def body() -> None:
        chests, bundle = load_chests(args.chests), load_bundle(args.bundle)
        painter = open_bundle_painter(bundle, "cpu", sampling=args.steps and Sampling(args.steps))
        painters: dict[str, Painter] = {
            "procedural": ProceduralPainter(),
            "replace": replace(painter, method="replace"),
            "resampled": replace(painter, method="replace", num_resamplings=2),
            "difference": painter,
        }
        rows = {}
        for way in args.ways:
            sys.stderr.write(f"Drawing {args.lesions} nodules: {way}\n")
            rows[way] = draw_all(chests, painters[way], num_lesions=args.lesions, sizes_mm=args.sizes)
        sheet = np.vstack([np.hstack([row.pop("tile") for row in held]) for held in rows.values()])
        save_picture(args.out / "ways.png", Image.fromarray(sheet))
        document = {
            "measurement": REPORT_NAME,
            "bundle": bundle.name,
            "fingerprint": bundle.fingerprint,
            "ways": {way: summarise(held) for way, held in rows.items()},
        }
        report = to_report(document)
        save_results(args.out, REPORT_NAME, document, report)
        sys.stdout.write(report)

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
