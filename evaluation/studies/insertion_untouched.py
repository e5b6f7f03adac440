r"""Whether insertions leave everything outside their zone as it was: SHA-256 of the rest of the CT, over many of them.

    python -m maisi_aug.evaluation.studies.insertion_untouched CHESTS --lesions 200 --out runs/untouched

Nodules of the sizes and textures of patients go into the CTs in turn, one into a CT at a time. With the voxels of the
zone set to zero, the CT before and the CT after must have the same hash; the lesion's volume is compared with what was
asked for. Those that the gates reject count, too: they are no exception.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from time import process_time
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from maisi_aug.errors import LesionError
from maisi_aug.evaluation.output.files import run_command, save_results, to_markdown
from maisi_aug.evaluation.studies.nodule_pools import ChestCt, draw_request, load_chests, open_painter
from maisi_aug.insertion.insert import Insertion
from maisi_aug.insertion.painting import Painter
from maisi_aug.system.seeds import derive_seed, numpy_generator
from maisi_aug.volumes.grid import voxel_volume_ml

REPORT_NAME: Final = "insertion_untouched"


def insert_many(chests: Sequence[ChestCt], painter: Painter, *, num_lesions: int, seed: int) -> list[dict[str, Any]]:
    """Insert nodules into chest CTs, and return their results; positions that a CT does not have are skipped."""
    rows: list[dict[str, Any]] = []
    number = 0
    while len(rows) < num_lesions:
        chest, own = chests[number % len(chests)], derive_seed(seed, painter.name, number)
        number += 1
        rng = numpy_generator(own, "request")
        request = draw_request(rng, rng.random())
        started = process_time()
        try:
            made = chest.insert(request, painter, seed=own)
        except LesionError:
            continue
        rows.append(
            {
                "chest": chest.name,
                "seconds": process_time() - started,
                "is_accepted": not made.reason,
                "voxels_off": round(abs(made.volume_ml - request.volume_ml) / voxel_volume_ml(chest.spacing_mm)),
                "size_error": made.volume_ml / request.volume_ml - 1,
                "num_zone_voxels": int(made.zone.sum()),
                "is_same_outside": hash_outside(chest.image_hu, made) == hash_outside(_insert(chest, made), made),
            }
        )
    return rows


def _insert(chest: ChestCt, made: Insertion) -> NDArray[np.int16]:
    whole = chest.image_hu.copy()
    whole[made.box] = made.image
    return whole


def hash_outside(image: NDArray[np.int16], made: Insertion) -> str:
    """Return the SHA-256 of a CT in which the voxels of an insertion's zone are set to zero."""
    rest = image.copy()
    rest[made.box][made.zone] = 0
    return hashlib.sha256(rest.tobytes()).hexdigest()


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summarise the results of many insertions: counts and extremes."""
    accepted = [row for row in rows if row["is_accepted"]]
    return {
        "num": len(rows),
        "num_same_outside": sum(row["is_same_outside"] for row in rows),
        "num_accepted": len(accepted),
        "largest_size_error": max((abs(row["size_error"]) for row in accepted), default=None),
        "most_voxels_off": max((row["voxels_off"] for row in accepted), default=None),
        "seconds": float(np.mean([row["seconds"] for row in rows])),
        "chests": sorted({row["chest"] for row in rows}),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this module's command line; return the exit code, 1 if a voxel outside of a zone has changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chests", type=Path, help="NAME_ct.nii.gz of whole chests")
    parser.add_argument("--painter", default="procedural", help="procedural, or a bundle")
    parser.add_argument("--lesions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    all_same = []

    def body() -> None:
        found = summarise(
            insert_many(load_chests(args.chests), open_painter(args.painter), num_lesions=args.lesions, seed=args.seed)
        )
        all_same.append(found["num"] == found["num_same_outside"])
        document = {"measurement": REPORT_NAME, "painter": args.painter, **found}
        head = ["painter", "insertions", "same outside", "accepted", "largest error of size", "seconds"]
        keys = ("num", "num_same_outside", "num_accepted", "largest_size_error", "seconds")
        report = to_markdown(head, [[args.painter, *(found[key] for key in keys)]], num_digits=3)
        save_results(args.out, REPORT_NAME, document, report)
        sys.stdout.write(report)

    return run_command(body) or int(not all(all_same))


if __name__ == "__main__":
    sys.exit(main())
