"""Seconds and bytes of adding a cohort of many small cases to a real nnU-Net dataset.

    python -m tests.benchmarks.nnunet_export --out folder --cases 500

The cohort is made of few distinct volumes under many names, since only the export is measured; every file has bytes of
its own, as in a cohort that was drawn. Writes ``results_nnunet_export.json`` into ``--out``.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np

from maisi_aug.cohort.manifest import MANIFEST_NAME, ManifestWriter
from maisi_aug.integrations.nnunet.like import IMAGES_FOLDER, export_like
from maisi_aug.integrations.request import NnunetExport
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image, save_label_map
from tests.builders.tiny_cohort import HEPATIC_TUMOR, LIVER, build_record

NUM_REAL = 20


def build_volume(index: int, side: int) -> tuple[np.ndarray, np.ndarray, Grid]:
    """A box of liver with a tumour in it, and an image with noise."""
    grid = Grid.from_spacing((side, side, side), (2.0, 2.0, 2.0))
    anatomy = np.zeros(grid.shape, dtype=np.uint8)
    anatomy[side // 4 : side // 2, side // 4 : side // 2, side // 4 : side // 2] = LIVER
    anatomy[side // 3, side // 3, side // 3] = HEPATIC_TUMOR
    rng = np.random.default_rng(index)
    return (anatomy * 4 + rng.integers(-60, 60, grid.shape)).astype(np.int16), anatomy, grid


def write_cohort(folder: Path, num_cases: int, side: int) -> None:
    folder.mkdir(parents=True)
    with ManifestWriter(folder / MANIFEST_NAME) as writer:
        for index in range(num_cases):
            case_id = f"case_{index + 1:04d}"
            image_hu, anatomy, grid = build_volume(index, side)
            paths = {role: f"{part}/{case_id}.nii.gz" for role, part in (("image", "images"), ("anatomy", "anatomy"))}
            save_image(folder / paths["image"], image_hu, grid)
            save_label_map(folder / paths["anatomy"], anatomy, grid)
            writer.append(build_record(folder, index, paths, requested=[HEPATIC_TUMOR]))


def write_real(raw: Path, side: int) -> Path:
    folder = raw / "Dataset003_Liver"
    for index in range(NUM_REAL):
        image_hu, anatomy, grid = build_volume(10_000 + index, side)
        label_map = np.select([anatomy == LIVER, anatomy == HEPATIC_TUMOR], [1, 2], 0).astype(np.uint8)
        save_image(folder / "imagesTr" / f"liver_{index:03d}_0000.nii.gz", image_hu, grid)
        save_label_map(folder / "labelsTr" / f"liver_{index:03d}.nii.gz", label_map, grid)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumor": 2},
        "numTraining": NUM_REAL,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return folder


def count_bytes(folder: Path) -> int:
    """Bytes of all files that belong to no other folder too."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.stat().st_nlink == 1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--side", type=int, default=48, help="voxels along each axis")
    given = parser.parse_args(arguments)
    out = given.out.resolve()
    write_cohort(out / "cohort", given.cases, given.side)
    real = write_real(out / "raw", given.side)
    seconds: dict[str, float] = {}
    begun, processor_begun = perf_counter(), sum(os.times()[:4])
    stage_begun = [("read and check", begun)]

    def notify(stage: str, done: int, total: int) -> None:
        if stage != stage_begun[-1][0]:
            stage_begun.append((stage, perf_counter()))

    folders = {"like": real, "out": out / "raw", "preprocessed": out / "preprocessed"}
    request = NnunetExport(dataset_id=503, map=("tumor=hepatic tumor",), **folders)
    report = export_like([out / "cohort"], request, notify=notify)
    ends = [time for _, time in stage_begun[1:]] + [perf_counter()]
    for (stage, start), end in zip(stage_begun, ends, strict=True):
        seconds[stage] = round(end - start, 2)
    results = {
        "num_synthetic": report.num_synthetic,
        "num_real": report.num_real,
        "side": given.side,
        "num_cores": os.cpu_count(),
        "seconds": seconds | {"total": round(ends[-1] - begun, 2)},
        "processor_seconds": round(sum(os.times()[:4]) - processor_begun, 2),
        "cohort_bytes": count_bytes(out / "cohort"),
        "cohort_image_bytes": count_bytes(out / "cohort" / "images"),
        "dataset_bytes": count_bytes(report.path) + count_bytes(report.preprocessed),
        "dataset_image_bytes": count_bytes(report.path / IMAGES_FOLDER),
    }
    (out / "results_nnunet_export.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
