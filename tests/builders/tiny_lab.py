"""A lab's files: small trunks with a mass in the liver, as a lab would have them on its disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maisi_aug.preparation.case import PrepareSettings
from maisi_aug.preparation.mapping import LabelMeanings, labels_of, parse_rule, resolve_meanings
from maisi_aug.preparation.sources import LabelFile, SourceCase
from maisi_aug.preparation.survey import survey_case
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image, save_label_map
from tests.builders.tiny_bank import HEPATIC_TUMOR, LIVER, build_ct, build_trunk, trunk_grid

SHAPE = (48, 32, 32)
SPACING_MM = (7.0, 8.0, 7.0)
GRID_WORDS = ["--shape", "48x32x32", "--spacing", "7x8x7"]
MASS, OWN_LIVER = 1, 2
"""Ids in the lab's label files."""


def build_own_labels(radius_mm: float = 22.0, seed: int = 0) -> NDArray[np.uint8]:
    """The lab's label map: the mass and the liver, nothing else."""
    trunk = build_trunk(tumours_mm=(radius_mm,) if radius_mm else (), with_body=False, seed=seed)
    own = np.zeros_like(trunk)
    own[trunk == LIVER] = OWN_LIVER
    own[trunk == HEPATIC_TUMOR] = MASS
    return own


def write_case(
    folder: Path, case_id: str, *, radius_mm: float = 22.0, seed: int = 0, grid: Grid | None = None
) -> SourceCase:
    """Write ``ID_ct.nii.gz`` and ``ID_seg.nii.gz``."""
    image, label = folder / f"{case_id}_ct.nii.gz", folder / f"{case_id}_seg.nii.gz"
    save_image(image, build_ct(build_trunk(seed=seed)), grid or trunk_grid())
    save_label_map(label, build_own_labels(radius_mm, seed), grid or trunk_grid())
    return SourceCase(case_id, image, (LabelFile(label, "seg"),))


def write_lab(folder: Path, num_cases: int) -> Path:
    """Write cases ``p1_a``, ``p2_a``, ..., each a patient's."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, num_cases + 1):
        write_case(folder, f"p{number}_a", seed=number)
    return folder


def build_meanings(case: SourceCase, *rules: str) -> LabelMeanings:
    """What the labels of a case become under some rules."""
    survey = survey_case(case)
    labels = [
        label for file, counts in zip(case.labels, survey.counts, strict=True) for label in labels_of(file, counts)
    ]
    return resolve_meanings(labels, list(map(parse_rule, rules)), MAISI)


def build_settings(meanings: LabelMeanings, **changes: object) -> PrepareSettings:
    """Settings on the tests' grid."""
    arguments = {
        "shape": SHAPE,
        "spacing_mm": SPACING_MM,
        "vocabulary": meanings.vocabulary,
        "new_labels": meanings.new_labels,
        **changes,
    }
    return PrepareSettings(**arguments)  # type: ignore[arg-type]
