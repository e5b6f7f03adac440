from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from maisi_aug.generate.driver import CaseItem
from maisi_aug.generate.run import _longest_first
from tests.builders.resolver import resolver


def test_large_given_maps_are_drawn_before_small_ones(bundle_path: Path, tmp_path: Path) -> None:
    for name, side in (("a", 16), ("b", 32), ("c", 24)):
        label_map = np.random.default_rng(1).integers(0, 2, (side, 16, 16), dtype=np.uint8)
        nib.save(nib.Nifti1Image(label_map, np.diag([4.0, 4, 4, 1])), tmp_path / f"{name}.nii.gz")
    values = {"mask_source": "given", "mask_bank": str(tmp_path), "mask_labels": "maisi", "bundle": str(bundle_path)}
    run = resolver(**values)(allow_unseen_grid=True)
    items = [CaseItem((case,), 0, frozenset({case.index})) for case in run.plan.cases]
    assert [item.cases[0].map_index for item in _longest_first(run, items)] == [1, 2, 0]
