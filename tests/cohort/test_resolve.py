from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import yaml

from maisi_aug.cohort.folder import open_cohort
from maisi_aug.cohort.request import build_request
from maisi_aug.cohort.resolve import CohortRun
from maisi_aug.cohort.resolve import resolve as resolve_request
from maisi_aug.errors import BankError, BundleError, CohortError, GridError, RecipeError, RequestError
from tests.builders.random_bundle import write_random_bundle
from tests.builders.tiny_bundle import TINY_SHAPE, build_ddpm_header, build_header


def resolve(bundle: Path, **changes: Any) -> CohortRun:
    return resolve_request(build_request({"labels": ["hepatic tumor:0.3"], "bundle": str(bundle), **changes}))


def test_defaults_of_the_bundle_are_filled_in(bundle_path: Path) -> None:
    cohort = resolve(bundle_path)
    assert tuple(cohort.configuration["shape"]) == cohort.grid.shape == TINY_SHAPE
    assert cohort.configuration["spacing_mm"] == pytest.approx([6.4, 6.4, 6.4])
    assert cohort.configuration["num_inference_steps"] == cohort.num_inference_steps == 2
    assert cohort.request.shape is None  # what was asked for stays as it was asked
    assert [lesion.label for case in cohort.plan.cases for lesion in case.lesions] == ["hepatic tumor"] * 4


def test_what_the_user_says_stands_above_the_bundle(bundle_path: Path) -> None:
    cohort = resolve(bundle_path, shape=[32, 40, 48], num_inference_steps=7)
    assert cohort.grid.shape == (32, 40, 48)
    assert cohort.grid.spacing_mm == pytest.approx((6.4, 6.4, 6.4))
    assert cohort.num_inference_steps == 7


def test_resolving_again_changes_nothing(bundle_path: Path) -> None:
    cohort = resolve(bundle_path)
    document = yaml.safe_load(yaml.safe_dump(cohort.to_document()))
    again = resolve_request(build_request(document["configuration"]))
    assert again.configuration == cohort.configuration
    assert again.plan == cohort.plan
    assert again.to_document() == document


def test_other_seed_plans_with_the_sizes_that_the_bundle_was_taught(tmp_path: Path) -> None:
    taught = {"quantiles_ml": [float(number) for number in range(100, 121)], "source": "lab"}
    header = {**build_header(), "sizes": {"hepatic tumor": taught}}
    bundle = write_random_bundle(tmp_path, header, seed=0).path
    cohort = resolve(bundle)
    for plan in (cohort.plan, cohort.with_seed(5).plan):
        volumes = [lesion.requested_ml for case in plan.cases for lesion in case.lesions]
        assert volumes == pytest.approx([106.0] * 4)


def test_other_seed_plans_the_same_given_maps(bundle_path: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}_seg.nii.gz").write_bytes(b"a label map")
    cohort = resolve(bundle_path, labels=[], mask_source="given", mask_bank=str(tmp_path))
    assert cohort.with_seed(5).plan == cohort.plan


def test_paths_are_made_absolute(bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank" / "a_seg.nii.gz").write_bytes(b"a label map")
    monkeypatch.chdir(tmp_path)
    cohort = resolve(bundle_path, mask_bank="bank")
    assert cohort.configuration["mask_bank"] == str((tmp_path / "bank").resolve())
    assert resolve(bundle_path).configuration["mask_bank"] == "phantom"


def test_mapping_file_is_made_absolute_and_a_word_stays(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "map.json").write_text('{"1": "liver"}')
    (tmp_path / "auto").mkdir()
    monkeypatch.chdir(tmp_path)
    cohorts = [resolve(bundle_path, mask_labels=text) for text in ("map.json", "./map.json", "auto")]
    texts = [cohort.configuration["mask_labels"] for cohort in cohorts]
    path = str((tmp_path / "map.json").resolve())
    assert texts == [path, path, "auto"]


def test_folder_of_a_bundle_is_made_absolute_though_it_is_named_like_the_bundle(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").symlink_to(bundle_path)
    monkeypatch.chdir(tmp_path)
    assert resolve(Path("tiny")).configuration["bundle"] == str(bundle_path.resolve())


def test_cohort_remembers_the_files_of_its_bank_without_opening_them(bundle_path: Path, tmp_path: Path) -> None:
    bank, mapping = tmp_path / "bank", tmp_path / "map.json"
    bank.mkdir()
    (bank / "a_seg.nii.gz").write_bytes(b"never read")
    mapping.write_text('{"1": "liver"}')

    def describe(**changes: Any) -> dict[str, Any]:
        cohort = resolve(bundle_path, mask_bank=str(bank), **changes)
        remembered = yaml.safe_load(yaml.safe_dump(cohort.to_document()))["mask_bank"]
        assert isinstance(remembered, dict)
        return remembered

    first, mapped = describe(), describe(mask_labels=str(mapping))
    assert describe() == first
    assert (first["num_maps"], len(first["files_sha256"])) == (1, 16)
    assert mapped == {**first, "mapping_sha256": mapped["mapping_sha256"]}
    mapping.write_text('{"1":  "spleen"}')
    assert describe(mask_labels=str(mapping))["mapping_sha256"] != mapped["mapping_sha256"]
    (bank / "b_seg.nii.gz").write_bytes(b"never read")
    assert describe()["num_maps"] == 2
    assert describe()["files_sha256"] != first["files_sha256"]
    assert "mask_bank" not in resolve(bundle_path).to_document()


def test_cohort_is_not_gone_on_with_after_its_bank_has_changed(bundle_path: Path, tmp_path: Path) -> None:
    bank, out = tmp_path / "bank", tmp_path / "cohort"
    bank.mkdir()
    (bank / "a_seg.nii.gz").write_bytes(b"never read")
    with open_cohort(out, resolve(bundle_path, mask_bank=str(bank)).to_document(), header=[]):
        (out / "images").mkdir()
        (out / "images" / "case_0001.nii.gz").write_bytes(b"an image")
    with open_cohort(out, resolve(bundle_path, mask_bank=str(bank)).to_document(), header=[]):
        pass
    (bank / "a_seg.nii.gz").write_bytes(b"another map")
    changed = resolve(bundle_path, mask_bank=str(bank)).to_document()
    with (
        pytest.raises(CohortError, match=r"\(mask_bank\.files_sha256: '[0-9a-f]{16}' -> '[0-9a-f]{16}'\)\. Choose"),
        open_cohort(out, changed, header=[]),
    ):
        pass


def test_names_of_slots_can_be_asked_for(bundle_path: Path) -> None:
    cohort = resolve(bundle_path, labels=["kidney tumor:20mm"])
    assert cohort.to_document()["requested"] == [{"id": 129, "name": "kidney tumor"}]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"shape": [60, 48, 48]}, GridError, "Shape for bundle 'tiny': expected sides that are multiples of 8"),
        (
            {"num_inference_steps": 1001},
            RecipeError,
            "found 1001.",
        ),
        ({"num_cases": 1, "labels": ["liver", "spleen"]}, RequestError, "expected at least 2"),
        ({"mask_bank": "no/such/folder"}, BankError, "Mask bank no/such/folder: not found"),
        (
            {"mask_bank": str(Path(__file__).parent), "mask_labels": "no.json"},
            BankError,
            "Mask labels no.json: not a readable JSON file:",
        ),
        ({"mask_labels": "totalsegmentator"}, BankError, "Mask labels: expected auto, .*, found 'totalsegmentator'"),
        ({"labels": ["lung tumor:5mm"]}, RequestError, "is smaller than half a voxel of the grid, 0.13 mL"),
        ({"size_reference": "no/such/folder", "size_label": 2}, RequestError, "no/such/folder: neither an nnU-Net"),
    ],
)
def test_what_cannot_be_made_is_refused(
    bundle_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        resolve(bundle_path, **changes)


def test_bank_without_label_maps_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(BankError, match=rf"Mask bank {tmp_path}: no usable label map"):
        resolve(bundle_path, mask_bank=str(tmp_path))


def test_mapping_to_a_label_that_is_none_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "a_seg.nii.gz").write_bytes(b"never read")
    (tmp_path / "map.json").write_text('{"1": "livr"}')
    with pytest.raises(BankError, match=r"map\.json, '1': Label 'livr': not a name or id .* Did you mean 'liver'"):
        resolve(bundle_path, mask_bank=str(tmp_path / "a_seg.nii.gz"), mask_labels=str(tmp_path / "map.json"))


def test_unknown_bundle_is_refused() -> None:
    with pytest.raises(BundleError, match="Bundle 'tiny-ct': expected"):
        resolve_request(build_request({"labels": ["liver"], "bundle": "tiny-ct"}))


def test_foreign_folder_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CohortError, match=r"holds no cohort: it has 'notes\.txt' but no cohort\.yaml"):
        resolve_request(build_request({"labels": ["liver"], "bundle": str(bundle_path)}), tmp_path)


def test_networks_are_told_nothing_that_they_do_not_listen_to(tmp_path: Path) -> None:
    ddpm = str(write_random_bundle(tmp_path, build_ddpm_header(), seed=0).path)
    with pytest.raises(RecipeError, match="is not conditioned on modality, so that only 'ct' can be used, found '"):
        resolve_request(build_request({"labels": ["liver"], "bundle": ddpm, "modality": "ct_contrast"}))
    asked = build_request({"labels": ["liver"], "bundle": ddpm, "body_region": ["thorax", "pelvis"]})
    assert resolve_request(asked).regions == ("thorax", "pelvis")
    with pytest.raises(RecipeError, match="is not conditioned on body region, found abdomen"):
        resolve_request(build_request({"labels": ["liver"], "body_region": ["abdomen"]}))


def test_run_is_decided_once_and_leaves_the_request_as_it_was(bundle_path: Path) -> None:
    request = build_request({"labels": ["hepatic tumor:10-30mmx2+spleen"], "bundle": str(bundle_path), "num_cases": 3})
    run = resolve_request(request)
    assert run.request is request
    assert "shape" not in request.model_fields_set
    with pytest.raises(FrozenInstanceError):
        run.seed = 3  # type: ignore[misc]
    for case in run.plan.cases:
        assert [lesion.index for lesion in case.lesions] == [0, 1]
        assert {lesion.hosts for lesion in case.lesions} == {run.bundle.vocabulary.hosts_of(26)}
        assert {lesion.rule for lesion in case.lesions} == {run.request.gates.rule_of("hepatic tumor")}
    other = run.with_seed(9)
    assert (other.seed, run.seed, other.requests) == (9, 0, run.requests)
    assert other.plan != run.plan
    assert len(other.plan.cases) == 3
