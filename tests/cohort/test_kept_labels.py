from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maisi_aug.bundle_spec.bundle import load_bundle
from maisi_aug.cohort.manifest import load_manifest
from maisi_aug.cohort.plan import CohortPlan, plan_from_texts, spell_labels
from maisi_aug.errors import RequestError, VocabularyError
from maisi_aug.integrations.nnunet import dataset as nnunet
from maisi_aug.integrations.nnunet.dataset import export_nnunet
from maisi_aug.integrations.nnunet.folders import MAPPING_NAME
from maisi_aug.volumes.image_files import load_label_map

VOCABULARY = load_bundle("phantom-ct").vocabulary
LIVER, SPLEEN, RIGHT_KIDNEY, STOMACH, LUNG_TUMOR, HEPATIC_TUMOR = 1, 3, 5, 12, 23, 26


def plan(*texts: str) -> CohortPlan:
    return plan_from_texts(texts, vocabulary=VOCABULARY, num_cases=4, seed=1)


def test_output_keeps_the_list_and_its_organs_are_required() -> None:
    before = plan("hepatic tumor:20mm", "liver")
    kept = before.keep_anatomy(["stomach", "Liver", "kidney_right", "hepatic tumour", "liver"], VOCABULARY)
    assert kept.requested_ids == (LIVER, RIGHT_KIDNEY, STOMACH, HEPATIC_TUMOR)
    assert [case.required_ids for case in kept.cases] == [(LIVER, RIGHT_KIDNEY, STOMACH)] * 4
    assert [case.lesions for case in kept.cases] == [case.lesions for case in before.cases]


def test_lesions_are_required_where_they_are_requested_and_nowhere_else() -> None:
    kept = plan("hepatic tumor:20mm", "lung tumor:9mm").keep_anatomy(["26", "23", "spleen"], VOCABULARY)
    assert kept.requested_ids == (SPLEEN, LUNG_TUMOR, HEPATIC_TUMOR)
    assert {case.required_ids for case in kept.cases} == {(SPLEEN,)}
    assert [len(case.lesions) for case in kept.cases] == [1, 1, 1, 1]


def test_organs_that_a_request_names_stay_first() -> None:
    (case, *_) = plan("stomach+spleen").keep_anatomy(["liver", "spleen", "stomach"], VOCABULARY).cases
    assert case.required_ids == (STOMACH, SPLEEN, LIVER)


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["livr"], VocabularyError, "Label 'livr': .* Did you mean 'liver'"),
        (["liver"], RequestError, "anatomy: every requested label must be listed;"),
        (
            ["hepatic tumor", "lung tumor"],
            RequestError,
            "anatomy: lung tumor is not requested, so that no label map would contain it",
        ),
        (["hepatic tumor", "body"], RequestError, "'body' is the body; only organs and lesions"),
        (["hepatic tumor", "0"], RequestError, "'0' is the background"),
        (["hepatic tumor", "dummy1"], RequestError, "'dummy1' is a placeholder slot without a meaning"),
    ],
)
def test_list_that_cannot_be_met_is_refused(names: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plan("hepatic tumor:20mm").keep_anatomy(names, VOCABULARY)


def test_organ_that_is_requested_must_be_in_the_list() -> None:
    with pytest.raises(RequestError, match="spleen is missing"):
        plan("spleen").keep_anatomy(["liver"], VOCABULARY)


def test_many_names_are_cut_short_with_the_lesions_first() -> None:
    assert spell_labels([LIVER, SPLEEN, HEPATIC_TUMOR], VOCABULARY) == "liver, spleen, hepatic tumor"
    many = [LIVER, SPLEEN, 4, RIGHT_KIDNEY, 6, 7, 8, HEPATIC_TUMOR]
    assert spell_labels(many, VOCABULARY) == "hepatic tumor, liver, spleen, pancreas, right kidney, aorta and 2 more"


def test_cohort_and_export_hold_exactly_the_list(
    bundle_path: Path, run_cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "mine.yaml"
    content = {"labels": ["hepatic tumor:30mm"], "bundle": str(bundle_path), "num_cases": 1}
    recipe.write_text(json.dumps({**content, "gates": {"organ_hu": False, "visibility": False}}))
    out = tmp_path / "cohort"
    words = ["--recipe", recipe, "--out", out, "--device", "cpu", "--anatomy", "Liver, spleen,liver tumour"]
    outcome = run_cli("synthesize", *words)
    assert outcome.code == 0, outcome.stderr
    (case,) = load_manifest(out).accepted
    assert case.required_ids == (LIVER, SPLEEN)
    kept = load_label_map(out / case.files["label"].path).array
    full = load_label_map(out / case.files["anatomy"].path).array
    assert set(np.unique(kept)) == {0, LIVER, SPLEEN, HEPATIC_TUMOR}
    assert (kept == np.where(np.isin(full, [LIVER, SPLEEN, HEPATIC_TUMOR]), full, 0)).all()
    assert "spleen" in (out / "cohort.yaml").read_text()
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 0

    monkeypatch.setattr(nnunet, "verify_integrity", lambda dataset, num_processes: None)
    report = export_nnunet(out, dataset_id=501, name="Anatomy", out=tmp_path / "raw")
    assert report.labels == {"background": 0, "liver": 1, "spleen": 2, "hepatic tumor": 3}
    exported = load_label_map(report.path / "labelsTr" / f"{case.case_id}.nii.gz").array
    assert (exported == np.select([kept == LIVER, kept == SPLEEN, kept == HEPATIC_TUMOR], [1, 2, 3], 0)).all()
    assert [row["vocabulary_id"] for row in json.loads((report.path / MAPPING_NAME).read_text())["labels"]] == [
        1,
        3,
        26,
    ]

    other = run_cli("synthesize", *words[:-1], "liver,hepatic tumor")
    assert (other.code, "anatomy" in other.stderr) == (1, True)


def test_dry_run_tells_what_is_kept(bundle_path: Path, run_cli: Callable[..., Any]) -> None:
    words = ["synthesize", "--labels", "hepatic tumor:30mm", "--bundle", bundle_path, "--dry-run"]
    assert "keep liver, hepatic tumor" in run_cli(*words, "--anatomy", "hepatic tumor,liver").stdout
    assert "keep" not in run_cli(*words).stdout
    document = json.loads(run_cli(*words, "--anatomy", "hepatic tumor,liver", "--json").stdout)
    assert [row["id"] for row in document["requested"]] == [LIVER, HEPATIC_TUMOR]
    refused = run_cli(*words, "--anatomy", "liver")
    assert (refused.code, refused.stdout) == (2, "")
    assert "Add it to --anatomy, or take it out of --labels." in refused.stderr
    empty = run_cli(*words, "--anatomy", "liver,,hepatic tumor")
    assert (empty.code, "anatomy[1]: expected" in empty.stderr) == (2, True)
