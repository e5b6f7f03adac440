from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maisi_aug.bundle_spec.proven_steps import store_proof
from maisi_aug.bundle_spec.solvers import Sampling
from maisi_aug.cli.synthesize import describe_summary
from maisi_aug.cohort.manifest import load_manifest
from maisi_aug.errors import CohortError, MaisiAugWarning, RequestError
from maisi_aug.evaluation.cohort.case_sets import find_case_set
from maisi_aug.evaluation.cohort.lesion_report import measure_lesions_of
from maisi_aug.evaluation.report.build import build_report
from maisi_aug.insertion.backgrounds import Background, Backgrounds
from maisi_aug.insertion.cohort import insert_cohort
from maisi_aug.insertion.config import resolve_insertion
from maisi_aug.insertion.request import InsertConfig
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_image, load_label_map, save_image, save_label_map
from tests.builders.made_proofs import make_proof
from tests.builders.tiny_bundle import write_tiny_bundle
from tests.insertion.chest import NOISE_HU, SHAPE, SPACING_MM, build_chest

GRID = Grid.from_spacing(SHAPE, SPACING_MM)


@pytest.fixture(scope="module")
def chests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two chests, one of them with a real nodule, and its label file."""
    folder = tmp_path_factory.mktemp("chests")
    for number in range(2):
        image = build_chest(seed=number)
        nodule = np.zeros(SHAPE, dtype=np.uint8)
        if number:
            nodule[34:40, 44:50, 12:16] = 3
            image[nodule > 0] = 30
        save_image(folder / "cts" / f"p{number}.nii.gz", image, GRID)
        save_label_map(folder / "labels" / f"p{number}.nii.gz", nodule, GRID)
    return folder


def config_for(chests: Path, **changes: object) -> InsertConfig:
    return InsertConfig.model_validate(
        {
            "into": str(chests / "cts"),
            "into_labels": str(chests / "labels"),
            "map": ("3=lung tumor",),
            "labels": ("lung nodule:7-12mm",),
            "num_cases": 3,
            "seed": 5,
            "painter": "procedural",
            **changes,
        }
    )


def test_cohort_holds_the_users_cts_with_a_lesion_more(chests: Path, tmp_path: Path) -> None:
    summary = insert_cohort(resolve_insertion(config_for(chests)), tmp_path / "cohort")
    assert summary.is_complete
    backgrounds = set()
    for record in summary.manifest.accepted:
        name = str(record.mask_origin["background"])
        backgrounds.add(name)
        original = load_image(chests / "cts" / f"{name}.nii.gz")
        real = load_label_map(chests / "labels" / f"{name}.nii.gz").array == 3
        image = load_image(tmp_path / "cohort" / record.files["image"].path)
        label_map = load_label_map(tmp_path / "cohort" / record.files["label"].path).array
        (lesion,) = record.lesions
        made: Any = record.mask_origin["lesions"][0]  # type: ignore[index]
        assert image.grid.is_close(original.grid)
        assert np.count_nonzero(image.array != original.array) <= made["num_zone_voxels"]
        assert (label_map[real] == 23).all()
        assert np.count_nonzero((label_map == 23) & ~real) * GRID.voxel_ml == pytest.approx(lesion.realised_ml)
        assert lesion.realised_ml == pytest.approx(lesion.requested_ml, abs=2 * GRID.voxel_ml)
        assert all(verdict.passed for verdict in record.verdicts)
        assert record.bundle == "procedural painter"
        assert (tmp_path / "cohort" / record.files["preview"].path).is_file()
    assert backgrounds == {"p0", "p1"}
    assert (tmp_path / "cohort" / "contact_sheet.png").is_file()


def test_cohort_is_gone_on_with_and_the_same_again(chests: Path, tmp_path: Path) -> None:
    cohort = resolve_insertion(config_for(chests))
    insert_cohort(cohort, tmp_path / "whole")
    place = tmp_path / "torn"
    insert_cohort(cohort, place)
    lines = (place / "manifest.jsonl").read_bytes().split(b"\n")
    (place / "manifest.jsonl").write_bytes(b"\n".join(lines[:1]) + b"\n")
    again = insert_cohort(cohort, place)
    assert again.num_new == 2
    whole, torn = (
        {record.case_id: record.files["image"].sha256 for record in load_manifest(folder).accepted}
        for folder in (tmp_path / "whole", place)
    )
    assert whole == torn
    with pytest.raises(CohortError, match="seed: 5 -> 6"):
        insert_cohort(resolve_insertion(config_for(chests, seed=6)), place)


def test_lost_and_altered_cases_are_drawn_again_to_the_same_bytes(chests: Path, tmp_path: Path) -> None:
    cohort, place = resolve_insertion(config_for(chests)), tmp_path / "cohort"
    before = [record.files["image"] for record in insert_cohort(cohort, place).manifest.accepted]
    (place / before[0].path).unlink()
    (place / before[2].path).write_bytes(b"another program's")
    assert insert_cohort(cohort, place).num_lost == 1
    again = insert_cohort(cohort, place, verify=True)
    assert (again.num_lost, again.num_new, again.is_complete) == (1, 1, True)
    assert [sha256_of(place / file.path) for file in before] == [file.sha256 for file in before]


def test_what_fits_nowhere_is_rejected_at_once(chests: Path, tmp_path: Path) -> None:
    config = config_for(chests, labels=("lung nodule:90mm",), num_cases=1, max_attempts=5)
    summary = insert_cohort(resolve_insertion(config), tmp_path / "cohort")
    assert not summary.is_complete
    (record,) = summary.manifest.records
    assert record.status == "rejected"
    assert len({str(record.mask_origin["background"]), *record.mask_origin["passed_over"]}) == 2  # type: ignore[misc]
    assert "mm: no room left in the host, which has" in record.reason
    assert "--max-attempts" not in describe_summary(summary)  # more attempts would not help
    assert not list((tmp_path / "cohort").rglob("*.nii.gz"))


def test_ct_without_the_host_is_passed_over_and_read_once(
    chests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, image in (("a", build_chest(seed=0)), ("b", build_chest(with_lungs=False))):
        save_image(tmp_path / "cts" / f"{name}.nii.gz", image, GRID)
    read: list[int] = []
    load = Backgrounds.load

    def count_and_load(self: Backgrounds, index: int) -> Background:
        read.append(index)
        return load(self, index)

    monkeypatch.setattr(Backgrounds, "load", count_and_load)
    config = config_for(
        chests, into=str(tmp_path / "cts"), into_labels=None, map=(), labels=("lung nodule:8mm",), num_cases=4, seed=2
    )
    summary = insert_cohort(resolve_insertion(config), tmp_path / "cohort")
    assert {record.mask_origin["background"] for record in summary.manifest.accepted} == {"a"}
    assert len(summary.manifest.accepted) == 4
    assert any(record.mask_origin.get("passed_over") == ["b"] for record in summary.manifest.accepted)
    assert read.count(1) == 1
    ((name, reason),) = summary.unfit_cts
    assert name == "b"
    assert summary.to_json()["unfit_cts"] == [{"case": "b", "reason": reason}]
    assert f"No lesion could be inserted into 1 CT; others were used:\n  b: {reason}" in describe_summary(summary)
    # Nodules of a CT without labels are compared with the lung around them, which is found by HU.
    seen = measure_lesions_of(find_case_set(tmp_path / "cohort"), lambda done, total: None)["seen"]
    assert [lesion["is_visible"] for lesion in seen] == [True] * 4
    for lesion in seen:
        assert lesion["contrast_hu"] > 100
        assert lesion["noise_hu"] == pytest.approx(NOISE_HU, rel=0.5)
    page = build_report(tmp_path / "cohort").markdown
    assert "4 cases by procedural painter; licence: no weights; the CTs keep their own licences; label maps by" in page
    assert "4 of 4 cases record bundle or painter" in page
    assert "organ medians" not in page  # no organ is labelled


def test_lesions_of_other_organs_need_labels_of_them(chests: Path, tmp_path: Path) -> None:
    config = config_for(chests, labels=("hepatic tumor:12mm",), num_cases=1, max_attempts=1)
    summary = insert_cohort(resolve_insertion(config), tmp_path / "cohort")
    assert "hepatic tumor: no label map of the CT has its host organ" in summary.manifest.records[0].reason


def test_organs_are_no_lesions(chests: Path) -> None:
    with pytest.raises(RequestError, match="--labels: only lesions can be drawn into CTs, found 'liver'"):
        resolve_insertion(config_for(chests, labels=("liver",), num_cases=1))


def test_cohort_remembers_what_it_was_made_of(chests: Path, tmp_path: Path) -> None:
    cohort = resolve_insertion(config_for(chests, num_cases=1))
    document = cohort.to_document()
    assert document["mask_bank"]["num_cases"] == 2
    assert document["requested"] == [{"id": 23, "name": "lung tumor"}]
    assert json.loads(json.dumps(document)) == document
    assert "bundle" not in document


def test_embedded_bundle_draws_lung_nodules_where_nothing_is_said(chests: Path, tmp_path: Path) -> None:
    asked = config_for(chests, painter="auto", labels=("lung nodule:9mm",), num_cases=1, texture="solid")
    summary = insert_cohort(resolve_insertion(asked), tmp_path / "cohort")
    (record,) = summary.manifest.accepted
    assert record.bundle == "lung-nodule-ct"
    name = str(record.mask_origin["background"])
    made: Any = record.mask_origin["lesions"][0]  # type: ignore[index]
    before, after = (
        load_image(path).array
        for path in (chests / "cts" / f"{name}.nii.gz", tmp_path / "cohort" / record.files["image"].path)
    )
    assert 0 < np.count_nonzero(after != before) <= made["num_zone_voxels"]
    cohort = resolve_insertion(asked).to_document()
    assert cohort["bundle"]["licence"].startswith("CC BY 3.0; trained on LIDC-IDRI")


def test_auto_takes_the_steps_that_were_proven_for_insertion(chests: Path, tmp_path: Path) -> None:
    plain = write_tiny_bundle(tmp_path / "bundle")
    drawn = {"painter": "network", "bundle": str(plain.path), "num_inference_steps": "auto"}
    with pytest.warns(MaisiAugWarning, match="takes its full 2 steps: no fewer are proven for 'insert'"):
        full = resolve_insertion(config_for(chests, **drawn))
    assert full.sampling == Sampling(2, "euler", is_auto=True)
    assert full.configuration["num_inference_steps"] == 2
    assert "solver" not in full.configuration
    store_proof(plain, make_proof(plain, command="insert", num_inference_steps=1))
    fewer = resolve_insertion(config_for(chests, **drawn))
    assert fewer.sampling == Sampling(1, "multistep", is_auto=True)
    assert (fewer.configuration["num_inference_steps"], fewer.configuration["solver"]) == (1, "multistep")
    typed = resolve_insertion(config_for(chests, **drawn | {"num_inference_steps": "7"}))
    assert typed.sampling == Sampling(7)
    assert resolve_insertion(config_for(chests, num_inference_steps=7)).sampling is None, "the procedural painter"
