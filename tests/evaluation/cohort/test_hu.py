from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from maisi_aug.errors import EvaluationError, VocabularyError
from maisi_aug.evaluation.cohort.case_sets import find_case_set
from maisi_aug.evaluation.cohort.hu import (
    Bounds,
    Reference,
    count_hu,
    draw_chart,
    load_reference,
    measure_hu,
    measure_label_hu,
    measure_reference,
    published_reference,
    to_ranges,
    to_report,
)
from maisi_aug.vocabulary.labels import FULL_VOCABULARY
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image
from tests.builders.made_cases import GRID, HEPATIC_TUMOR, LIVER, SPLEEN, build_case, write_cohort, write_folder


def quiet(done: int, total: int) -> None:
    pass


def test_medians_and_percentiles_are_numpys(tmp_path: Path) -> None:
    rows, _ = measure_label_hu(find_case_set(write_cohort(tmp_path / "cohort", [1, 2])), quiet)
    assert {row.label_id for row in rows} == {LIVER, SPLEEN, HEPATIC_TUMOR}  # no background, no body envelope
    for row in rows:
        image, label_map = build_case({"case_0001": 1, "case_0002": 2}[row.case_id])
        values = image[label_map == row.label_id]
        assert row.num_voxels == values.size
        assert row[3:] == pytest.approx(tuple(np.percentile(values, [50, 5, 95])))


def test_counts_hold_every_voxel_and_clip_the_extremes(rng: np.random.Generator) -> None:
    image = rng.normal(0, 2000, (20, 7, 9))
    label_map = rng.integers(0, 3, image.shape).astype(np.uint8)
    counts = count_hu(image, label_map)
    assert counts.sum() == image.size
    assert counts[:3].sum(axis=1).tolist() == np.bincount(label_map.ravel()).tolist()
    assert counts[:, 0].sum() == (np.rint(image) <= -1200).sum()
    assert counts[1, 1200 + 40] == ((np.rint(image) == 40) & (label_map == 1)).sum()


def test_outliers_are_named_and_labels_without_range_are_not_judged(tmp_path: Path) -> None:
    cohort = find_case_set(write_cohort(tmp_path / "cohort", [1, 2, 3]))
    reference = Reference("test ranges", {LIVER: Bounds(60, 120), SPLEEN: Bounds(-50, 60)})
    document = measure_hu(cohort, reference, quiet)
    assert document["num_judged"] == 6
    assert document["inside"] == 0.5
    assert [(o["case"], o["label"]) for o in document["outliers"]] == [(f"case_000{n}", "spleen") for n in (1, 2, 3)]
    by_name = {row["label"]: row for row in document["labels"]}
    assert (by_name["liver"]["inside"], by_name["spleen"]["inside"]) == (1.0, 0.0)
    assert by_name["hepatic tumor"]["is_lesion"]
    assert by_name["hepatic tumor"]["inside"] is None
    report = to_report(document)
    assert "50% of 6 medians inside test ranges, 3 outside" in report
    assert "| case_0001 | spleen |" in report
    assert "spleen" in draw_chart(document)
    unknown = to_report(measure_hu(cohort, Reference("test ranges", {}), quiet))
    assert "\nNone of the labels can be compared with test ranges. Organs of fewer than 30 voxels" in unknown


def test_published_ranges_judge_each_label_by_itself() -> None:
    bounds = published_reference().bounds
    assert bounds[LIVER] == Bounds(-21.6, 162.0)
    assert bounds[28] == bounds[32]  # lung lobes share the range of the lungs
    assert HEPATIC_TUMOR not in bounds
    assert len(bounds) > 60


def test_reference_cases_give_ranges_by_the_published_rule(tmp_path: Path) -> None:
    real = find_case_set(write_folder(tmp_path / "real", [1, 2, 3, 4]))
    reference, skipped = measure_reference(real, quiet)
    medians = []
    for seed in (1, 2, 3, 4):
        image, label_map = build_case(seed)
        medians.append(np.median(image[label_map == LIVER]))
    reach = 6 * max(float(np.std(medians, ddof=1)), 1.0)
    assert reference.bounds[LIVER] == pytest.approx((np.mean(medians) - reach, np.mean(medians) + reach, 4))
    assert skipped == []
    path = tmp_path / "hu_ranges.json"
    path.write_text(json.dumps(to_ranges(reference, FULL_VOCABULARY)))
    assert load_reference(path, FULL_VOCABULARY).bounds == reference.bounds


def test_too_few_reference_cases_are_refused(tmp_path: Path) -> None:
    real = find_case_set(write_folder(tmp_path / "real", [1, 2]))
    with pytest.raises(EvaluationError, match="no label occurs in at least 3 reference cases"):
        measure_reference(real, quiet)


def test_ranges_may_be_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    path.write_text('{"organs": [{"name": "Liver", "low_hu": 20, "high_hu": 160}]}')
    assert load_reference(path, FULL_VOCABULARY).bounds == {LIVER: Bounds(20.0, 160.0)}
    path.write_text('{"organs": [{"name": "livr", "low_hu": 20, "high_hu": 160}]}')
    with pytest.raises(VocabularyError, match="Did you mean 'liver'"):
        load_reference(path, FULL_VOCABULARY)
    path.write_text('{"organs": [{"name": "liver", "low_hu": 200, "high_hu": 160}]}')
    with pytest.raises(EvaluationError, match="expected low_hu below high_hu, found 200 and 160 for 'liver'"):
        load_reference(path, FULL_VOCABULARY)
    path.write_text('{"organs": [{"name": "liver"}]}')
    with pytest.raises(EvaluationError, match="found: KeyError 'low_hu'. Correct the file"):
        load_reference(path, FULL_VOCABULARY)


def test_bad_case_is_left_out_with_its_reason(tmp_path: Path) -> None:
    write_folder(tmp_path, [1, 2])
    save_image(tmp_path / "images" / "real_02.nii.gz", build_case(2)[0][:30], Grid((30, *GRID.shape[1:]), GRID.affine))
    document = measure_hu(find_case_set(tmp_path), published_reference(), quiet)
    assert document["num_cases"] == 1
    assert document["skipped"][0]["case"] == "real_02"
    assert "expected the image's grid" in to_report(document)
