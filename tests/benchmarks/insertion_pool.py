r"""What a lesion costs that is drawn while one trains: the first time in a CT, drawn anew, and shown again.

    python -m tests.benchmarks.insertion_pool CT.nii.gz [--bundle lung-nodule-ct]

Processor seconds, one thread, without reading the CT.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import process_time

import numpy as np
import torch

from maisi_aug.insertion.painting import Painter, ProceduralPainter
from maisi_aug.integrations.insertion import LesionPool
from maisi_aug.volumes.image_files import load_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ct", type=Path)
    parser.add_argument("--bundle", help="draws instead of the procedural painter")
    parser.add_argument("--lesions", type=int, default=8, help="drawn anew")
    args = parser.parse_args()
    torch.set_num_threads(1)
    volume = load_image(args.ct)
    image = volume.array.astype(np.float32)
    label_map, rng = np.zeros(image.shape, dtype=np.uint8), np.random.default_rng(0)
    painter: Painter = ProceduralPainter()
    if args.bundle is not None:
        from maisi_aug.bundle_spec.bundle import load_bundle
        from maisi_aug.insertion.drawing import open_bundle_painter

        painter = open_bundle_painter(load_bundle(args.bundle), "cpu")
    pool = LesionPool("lung nodule:6-20mm", painter=painter, per_ct=args.lesions, reuse=1000)
    seconds = []
    for _ in range(2 * args.lesions):
        started = process_time()
        pool.insert(image, label_map, volume.grid.affine, name="ct", rng=rng)
        seconds.append(process_time() - started)
    first, new, again = seconds[0], seconds[1 : args.lesions], seconds[args.lesions :]
    print(f"{image.shape} voxels of {', '.join(f'{step:.2f}' for step in volume.grid.spacing_mm)} mm, {painter.name}")
    print(f"the first in a CT, lungs found: {first:.2f} s; drawn anew: {np.mean(new):.2f} s; shown again: ", end="")
    print(f"{1000 * np.mean(again):.0f} ms")


if __name__ == "__main__":
    main()
