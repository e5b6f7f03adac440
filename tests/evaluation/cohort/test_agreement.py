from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maisi_aug.errors import EvaluationError, RequestError, VocabularyError
from maisi_aug.evaluation.cohort.agreement import (
    MatchedLabel,
    draw_chart,
    match_labels,
    measure_agreement,
    segment_from_folder,
    to_report,
)
from maisi_aug.evaluation.cohort.case_sets import find_case_set
from maisi_aug.vocabulary.labels import FULL_VOCABULARY
from maisi_aug.volumes.components import measure_dice, measure_dice_by_class
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_label_map
from tests.builders.made_cases import GRID, HEPATIC_TUMOR, LIVER, build_case, write_cohort

VALUES = {"Liver": (1,), "liver_tumor": (2,), "whole liver": (1, 2), "prostate gland zone": (3,)}


def test_labels_pair_by_name_or_as_stated() -> None:
    matched, unmatched = match_labels(VALUES, FULL_VOCABULARY, mapping=["whole liver=liver+hepatic tumor"])
    assert matched == (
        MatchedLabel("Liver", (1,), (LIVER,)),
        MatchedLabel("liver_tumor", (2,), (HEPATIC_TUMOR,)),
        MatchedLabel("whole liver", (1, 2), (LIVER, HEPATIC_TUMOR)),
    )
    assert unmatched == ("prostate gland zone",)


def test_mappings_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(
        RequestError, match="--map 'lever=liver': must be LABEL=NAME with a label of the segmenter, which has"
    ):
        match_labels(VALUES, FULL_VOCABULARY, mapping=["lever=liver"])
    with pytest.raises(VocabularyError, match="Label 'livr'"):
        match_labels(VALUES, FULL_VOCABULARY, mapping=["Liver=livr"])
    with pytest.raises(EvaluationError, match="Labels of the segmenter: none is in the vocabulary: class 1, class 2"):
        match_labels({"class 1": (1,), "class 2": (2,)}, FULL_VOCABULARY)


def test_dice_is_monais_and_counts_regions_together(rng: np.random.Generator) -> None:
    import torch
    from monai.metrics import DiceMetric

    expected = rng.choice([0, LIVER, HEPATIC_TUMOR, 200], (7, 9, 11)).astype(np.uint8)
    found = rng.integers(0, 3, (7, 9, 11)).astype(np.uint8)
    pair = [np.isin(found, (1, 2)), np.isin(expected, (LIVER, HEPATIC_TUMOR))]

    def to_batch(mask: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(mask[None, None].astype(np.float32))

    reference = DiceMetric()(*map(to_batch, pair))
    assert measure_dice(*pair) == pytest.approx(float(reference))
    assert measure_dice(np.zeros_like(pair[0]), pair[1]) is None
    by_class = measure_dice_by_class(found, expected % 3, 4)
    for number in range(3):
        masks = found == number, expected % 3 == number
        assert by_class[number] == pytest.approx(float(DiceMetric()(*(to_batch(mask) for mask in masks))))
    assert by_class[3] is None


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Of case 1 as given, of case 2 with the liver shifted, of case 3 on another grid; case 4 has none."""
    folder = tmp_path / "predictions"
    values = np.zeros(256, dtype=np.uint8)
    values[[LIVER, HEPATIC_TUMOR]] = 1, 2
    for seed in (1, 2):
        label_map = values[build_case(seed)[1]]
        save_label_map(folder / f"case_000{seed}.nii.gz", np.roll(label_map, 3 * (seed - 1), axis=0), GRID)
    other = Grid.from_spacing((7, 9, 11), (3.0, 3.0, 3.0))
    save_label_map(folder / "case_0003.nii.gz", np.ones(other.shape, dtype=np.uint8), other)
    return folder


def test_agreement_with_ready_predictions(tmp_path: Path, predictions: Path) -> None:
    cohort = find_case_set(write_cohort(tmp_path / "cohort", [1, 2, 3, 4]))
    matched, unmatched = match_labels(VALUES | {"spleen": (4,)}, FULL_VOCABULARY)
    document = measure_agreement(
        cohort, segment_from_folder(predictions), matched, segmenter="predictions", unmatched=unmatched
    )
    assert document["num_cases"] == 2
    perfect, shifted = (case["dice"] for case in document["cases"])
    assert perfect == {"Liver": 1.0, "liver_tumor": 1.0, "spleen": 0.0}
    label_map = build_case(2)[1]
    liver, moved = label_map == LIVER, np.roll(label_map, 3, axis=0) == LIVER
    assert shifted["Liver"] == pytest.approx(2 * (liver & moved).sum() / (liver.sum() + moved.sum()))
    row = document["labels"][0]
    assert row["mean"] == pytest.approx((1 + shifted["Liver"]) / 2)
    assert row["interval"] == pytest.approx([shifted["Liver"], 1.0])
    reasons = {case["case"]: case["reason"] for case in document["skipped"]}
    assert "the prediction must be on the image's grid, found" in reasons["case_0003"]
    assert "not found" in reasons["case_0004"]
    report = to_report(document)
    assert "Not compared, because the vocabulary has no such label: whole liver, prostate gland zone." in report
    assert "case_0004" in report
    assert "Liver" in draw_chart(document)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="none: folder of predicted label maps not found"):
        segment_from_folder(tmp_path / "none")
