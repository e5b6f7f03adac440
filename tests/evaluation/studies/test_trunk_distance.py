from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.studies.trunk_distance import REPORT_NAME, measure_trunks, write_images
from maisi_aug.phantom import build_phantom
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_image, save_image


def write_ct(path: Path, num_slices: int, seed: int) -> None:
    grid = Grid.from_spacing((64, 56, num_slices), (6.0, 6.0, 6.0))
    save_image(path, build_phantom(seed=seed, grid=grid, region="abdomen", lesions=False).image_hu, grid)


def test_slabs_are_left_out_and_images_are_kept(bundle: Bundle, tmp_path: Path) -> None:
    for number in range(2):
        write_ct(tmp_path / "cts" / f"patient{number}_ct.nii.gz", 36, seed=number)
    write_ct(tmp_path / "more" / "patient3_ct.nii.gz", 28, seed=3)
    write_ct(tmp_path / "more" / "slab_ct.nii.gz", 10, seed=4)
    document = measure_trunks(
        [tmp_path / "cts", tmp_path / "more"], [bundle], tmp_path / "out", num_cases=2, device="cpu"
    )
    assert (document["num_real"], document["num_drawn"]) == (3, 2)
    names = [row["images"] for row in document["rows"]]
    assert names == [f"{bundle.name} {bundle.fingerprint[:12]}", "phantoms"]
    assert all(row["mean"]["fid"] > 0 for row in document["rows"])
    assert json.loads((tmp_path / "out" / f"{REPORT_NAME}.json").read_text())["num_real"] == 3
    assert "3 CTs against 2 images" in (tmp_path / "out" / f"{REPORT_NAME}.md").read_text()
    with Image.open(tmp_path / "out" / f"{REPORT_NAME}.png") as page:
        assert page.width > 300
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("trunk_*.nii.gz")}
    folders = write_images(bundle, tmp_path / "out", num_cases=2, device="cpu")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    images = [load_image(folder / "trunk_001_ct.nii.gz") for folder in folders.values()]
    assert images[0].array.shape == images[1].array.shape == bundle.grid.shape
    assert not np.array_equal(images[0].array, images[1].array)


def test_only_slabs_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    write_ct(tmp_path / "cts" / "slab_ct.nii.gz", 10, seed=1)
    with pytest.raises(EvaluationError, match="no CT is at least 160 mm high"):
        measure_trunks([tmp_path / "cts"], [bundle], tmp_path / "out", device="cpu")
