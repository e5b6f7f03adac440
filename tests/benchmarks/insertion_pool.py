r"""What a lesion costs that is drawn during training: the first time in a CT, drawn anew, and shown again.

    python -m tests.benchmarks.insertion_pool CT.nii.gz [--bundle lung-nodule-ct] [--nnunet]

Processor seconds, one thread, without reading the CT. With ``--nnunet`` also what a patch of 128x128x96 costs from a
file of nnU-Net's, as it is and with a lesion in every case that is read.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from maisi_aug.insertion.painting import Painter, ProceduralPainter
from maisi_aug.integrations.insertion import LesionPool
from maisi_aug.integrations.nnunet.inserting import CtScaling, InsertingDataset, InsertSettings
from maisi_aug.volumes.grid import Spacing
from maisi_aug.volumes.image_files import load_image

PATCH: Final = (96, 128, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ct", type=Path)
    parser.add_argument("--bundle", help="draws instead of the procedural painter")
    parser.add_argument("--lesions", type=int, default=8, help="drawn anew")
    parser.add_argument("--nnunet", action="store_true", help="patches of nnU-Net's files, too")
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
    if args.nnunet:
        plain, inserted = measure_patches(image, volume.grid.spacing_mm, num_patches=10 * args.lesions, painter=painter)
        print(f"nnU-Net, a patch: {1000 * plain:.0f} ms; with lesions: {1000 * inserted:.0f} ms")


def measure_patches(
    image: NDArray[np.float32], spacing_mm: Spacing, *, num_patches: int, painter: Painter
) -> tuple[float, float]:
    """Seconds that a patch takes, as it is and with lesions; what a CT needs once is left out."""
    from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd  # type: ignore[import-untyped]
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    scaling, rng = CtScaling(-500.0, 300.0, (-1000.0, 400.0)), np.random.default_rng(1)
    scaled = np.ascontiguousarray(scaling.from_hu(image).T[None])
    with TemporaryDirectory() as folder:
        facts = {"class_locations": {1: np.empty((0, 4), dtype=int)}}
        sides = {"chunks": (1, *PATCH), "blocks": (1, *(side // 4 for side in PATCH))}
        nnUNetDatasetBlosc2.save_case(scaled, np.zeros(scaled.shape, np.int8), facts, f"{folder}/ct", **sides)
        dataset = nnUNetDatasetBlosc2(folder)
        settings = InsertSettings("lung nodule:6-20mm", 1, 1.0)
        pool = LesionPool(settings.lesion, painter=painter)
        inserting = InsertingDataset(dataset, settings, scaling, spacing_mm=spacing_mm[::-1], left_alone=(), pool=pool)
        inserting.load_case("ct")
        means = []
        for source in (dataset, inserting):
            started = process_time()
            for _ in range(num_patches):
                arrays = source.load_case("ct")[:2]
                starts = [int(rng.integers(max(1, n - side))) for n, side in zip(scaled.shape[1:], PATCH, strict=True)]
                box = [[start, start + side] for start, side in zip(starts, PATCH, strict=True)]
                for array in arrays:
                    crop_and_pad_nd(array, box, 0)
            means.append((process_time() - started) / num_patches)
    return means[0], means[1]


if __name__ == "__main__":
    main()
