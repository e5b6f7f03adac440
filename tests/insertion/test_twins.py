"""Twins in real CTs: same patient, place and seed, one thing different."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maisi_aug.cohort.manifest import AttemptRecord, load_manifest
from maisi_aug.cohort.review import Decision, append_decision, now, reopen_rejected
from maisi_aug.cohort.twins import twin_of
from maisi_aug.errors import RequestError
from maisi_aug.insertion.cohort import insert_cohort
from maisi_aug.insertion.config import resolve_insertion
from maisi_aug.insertion.request import InsertConfig
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_image, save_image
from tests.insertion.chest import SHAPE, SPACING_MM, build_chest

GRID = Grid.from_spacing(SHAPE, SPACING_MM)


@pytest.fixture(scope="module")
def chests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chests")
    for number in range(2):
        save_image(folder / f"p{number}.nii.gz", build_chest(seed=number), GRID)
    return folder


def make(chests: Path, out: Path, **changes: object) -> list[AttemptRecord]:
    values = {
        "into": str(chests),
        "labels": ("lung nodule",),
        "num_cases": 2,
        "seed": 5,
        "painter": "procedural",
        **changes,
    }
    summary = insert_cohort(resolve_insertion(InsertConfig.model_validate(values)), out)
    assert summary.is_complete
    return list(summary.manifest.accepted)


def lesion_of(record: AttemptRecord) -> dict[str, Any]:
    lesions: Any = record.mask_origin["lesions"]
    (lesion,) = lesions
    return dict(lesion)


def test_sizes_differ_at_the_same_place(chests: Path, tmp_path: Path) -> None:
    records = make(chests, tmp_path / "cohort", twins="size=7mm,10mm,14mm")
    assert [record.case_id for record in records[:3]] == ["case_0001_7mm", "case_0001_10mm", "case_0001_14mm"]
    for group in (records[:3], records[3:]):
        assert len({record.mask_origin["background"] for record in group}) == 1
        assert len({record.seed for record in group}) == 1
        assert len({tuple(lesion_of(record)["centre_ijk"]) for record in group}) == 1
        assert len({lesion_of(record)["texture"] for record in group}) == 1
        assert [round(record.lesions[0].diameter_mm or 0) for record in group] == [7, 10, 14]
    assert lesion_of(records[0])["centre_ijk"] != lesion_of(records[3])["centre_ijk"]
    assert [twin_of(record) for record in records[3:]] == [(1, "size", size) for size in ("7mm", "10mm", "14mm")]


def test_contrasts_are_those_asked_for(chests: Path, tmp_path: Path) -> None:
    records = make(chests, tmp_path / "cohort", labels=("lung nodule:14mm",), num_cases=1, twins="contrast=200,500,900")
    masks = []
    for record, wanted in zip(records, (200, 500, 900), strict=True):
        verdict = next(verdict for verdict in record.verdicts if verdict.gate == "lesion contrast")
        assert verdict.figures["contrast_hu"] == pytest.approx(wanted, abs=0.25 * wanted)
        masks.append(load_image(tmp_path / "cohort" / record.files["label"].path).array)
    np.testing.assert_array_equal(masks[0], masks[2])


def test_textures_keep_the_shape(chests: Path, tmp_path: Path) -> None:
    records = make(
        chests, tmp_path / "cohort", labels=("lung nodule:12mm",), num_cases=1, twins="texture=solid,ground-glass"
    )
    assert [lesion_of(record)["texture"] for record in records] == ["solid", "ground-glass"]
    solid, glass = (tmp_path / "cohort" / record.files["label"].path for record in records)
    assert solid.read_bytes() == glass.read_bytes()


def test_group_is_gone_on_with_where_it_was_stopped(chests: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cohort"
    before = {record.case_id: record.files["image"].sha256 for record in make(chests, folder, twins="size=7mm,12mm")}
    lines = (folder / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "manifest.jsonl").write_bytes(b"".join(lines[:1]))
    make(chests, folder, twins="size=7mm,12mm")
    assert {r.case_id: r.files["image"].sha256 for r in load_manifest(folder).accepted} == before


def test_twins_of_a_rejected_case_are_drawn_again_with_it(chests: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cohort"
    first, *others = make(chests, folder, twins="size=7mm,12mm")
    append_decision(folder, Decision(first.case_id, 0, "reject", "artefact", "anna", now()))
    assert [record.case_id for record in reopen_rejected(folder)] == [first.case_id, others[0].case_id]
    after = make(chests, folder, twins="size=7mm,12mm")
    attempts = [record.attempt for record in others[1:]]
    assert [record.attempt for record in after] == [1, 1, *attempts]
    assert len({record.seed for record in after[:2]}) == 1
    twin = next(record for record in load_manifest(folder).records if record.case_id == others[0].case_id)
    assert twin.reason == f"Its twin {first.case_id} was rejected in review."


def test_twins_fail_together(chests: Path, tmp_path: Path) -> None:
    config = {
        "into": str(chests),
        "labels": ("lung nodule",),
        "num_cases": 1,
        "twins": "size=8mm,90mm",
        "painter": "procedural",
        "max_attempts": 1,
    }
    summary = insert_cohort(resolve_insertion(InsertConfig.model_validate(config)), tmp_path / "cohort")
    assert len(summary.manifest.rejected) == 2
    assert all("mm: no room left in the host, which has" in record.reason for record in summary.manifest.rejected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"twins": "texture=solid,glass"}, "unknown texture 'glass'"),
        ({"twins": "place=free,surface", "place": "free"}, "--place cannot be used with --twins place="),
    ],
)
def test_values_that_do_not_fit_are_refused(chests: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        resolve_insertion(InsertConfig.model_validate({"into": str(chests), "labels": ("lung nodule:8mm",), **changes}))
