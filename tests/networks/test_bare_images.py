"""Images without any label map: a cohort of images and pictures alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maisi_aug.cohort.manifest import load_manifest
from maisi_aug.cohort.request import build_request
from maisi_aug.cohort.resolve import CohortRun
from maisi_aug.cohort.resolve import resolve as resolve_request
from maisi_aug.errors import ExportError, RecipeError
from maisi_aug.generate.run import CohortSummary, synthesize_cohort
from maisi_aug.integrations.nnunet.dataset import export_nnunet
from maisi_aug.volumes.image_files import load_image
from tests.builders.random_bundle import write_random_bundle
from tests.builders.tiny_bundle import build_ddpm_header, build_header
from tests.generate.test_run import hash_files

SHAPE = (32, 24, 16)
POOR = {**build_header(), "advice_without_map": "tiny draws noise."}
HEADERS = {"tiny": build_header(), "tiny-ddpm": build_ddpm_header(), "tiny-poor": {**POOR, "name": "tiny-poor"}}


@pytest.fixture(scope="module")
def resolve(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., CohortRun]:
    """Resolve a small cohort without label maps, with some fields changed."""
    folder = tmp_path_factory.mktemp("bundles")
    for name, header in HEADERS.items():
        write_random_bundle(folder / name, header, seed=0)

    def call(bundle: str = "tiny", **changes: Any) -> CohortRun:
        values = {"mask_source": "none", "bundle": str(folder / bundle), "shape": SHAPE, "num_cases": 2}
        return resolve_request(build_request({**values, "gates": {"organ_hu": False}, **changes}))

    return call


@pytest.fixture(scope="module")
def two(resolve: Callable[..., CohortRun], tmp_path_factory: pytest.TempPathFactory) -> CohortSummary:
    """A cohort made in one go."""
    return synthesize_cohort(resolve(), tmp_path_factory.mktemp("two"), device="cpu")


def test_cohort_holds_images_and_pictures_alone(two: CohortSummary) -> None:
    images = {f"images/case_000{number}.nii.gz" for number in (1, 2)}
    pictures = {f"previews/case_000{number}.png" for number in (1, 2)}
    assert set(hash_files(two.folder)) == images | pictures | {"cohort.yaml", "contact_sheet.png"}
    for record in two.manifest.accepted:
        assert set(record.files) == {"image", "preview"}
        assert (record.request, record.mask_origin) == ("image only", {"source": "none"})
        assert (record.lesions, record.required_ids) == ((), ())
        assert [verdict.gate for verdict in record.verdicts] == ["geometry"]
        image = load_image(two.folder / record.files["image"].path)
        assert image.array.shape == SHAPE
        assert image.grid.spacing_mm == pytest.approx((6.4, 6.4, 6.4))
        assert (image.array[[0, -1]] != -1000).any()  # as decoded up to the border
    one, other = (load_image(two.folder / name).array for name in sorted(images))
    assert not np.array_equal(one, other)
    with (
        Image.open(two.folder / "previews" / "case_0001.png") as preview,
        Image.open(two.folder / "contact_sheet.png") as sheet,
    ):
        assert preview.width > 2 * preview.height  # one row: there are no outlines to draw
        assert sheet.width > 100


def test_cohort_goes_on_to_the_same_bytes(
    two: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    synthesize_cohort(resolve(), tmp_path, device="cpu", case_indices=[1])
    assert synthesize_cohort(resolve(), tmp_path, device="cpu").num_new == 1
    assert hash_files(tmp_path) == hash_files(two.folder)


def test_noise_is_rejected_unless_the_bundle_says_so_itself(resolve: Callable[..., CohortRun], tmp_path: Path) -> None:
    judged = synthesize_cohort(resolve(gates={}, max_attempts=2), tmp_path / "judged", device="cpu")
    assert [record.attempt for record in judged.manifest.rejected] == [1, 1]
    assert all(
        record.reason.startswith("Patient: not shown with air around it: found") for record in judged.manifest.rejected
    )
    assert set(hash_files(judged.folder)) == {"cohort.yaml"} | {
        f"previews/rejected/case_000{case}_a{attempt}.png" for case in (1, 2) for attempt in (0, 1)
    }
    poor = synthesize_cohort(resolve("tiny-poor", gates={}), tmp_path / "poor", device="cpu")
    assert poor.is_complete
    (verdict,) = (v for v in load_manifest(poor.folder).accepted[0].verdicts if v.gate == "patient")
    assert verdict.figures["is_judged"] is False
    assert "Not judged" in verdict.message


def test_body_region_and_modality_reach_the_networks(resolve: Callable[..., CohortRun], tmp_path: Path) -> None:
    def draw(name: str, *words: str, **changes: Any) -> bytes:
        summary = synthesize_cohort(resolve(*words, num_cases=1, **changes), tmp_path / name, device="cpu")
        return load_image(summary.folder / summary.manifest.accepted[0].files["image"].path).array.tobytes()

    usual = draw("usual", "tiny-ddpm")
    assert draw("named", "tiny-ddpm", body_region=["thorax", "abdomen"]) == usual
    assert draw("head", "tiny-ddpm", body_region=["head"]) != usual
    assert draw("plain", "tiny") != draw("contrast", "tiny", modality="ct_contrast")


def test_fewer_steps_of_ddpm_are_warned_of_and_drawn(resolve: Callable[..., CohortRun], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="bundle 'tiny-ddpm' is a DDPM one of 20 steps, found 8. "):
        run = resolve("tiny-ddpm", num_inference_steps=8, num_cases=1)
    summary = synthesize_cohort(run, tmp_path / "few", device="cpu")
    (record,) = summary.manifest.accepted
    assert record.settings["num_inference_steps"] == 8
    few = load_image(summary.folder / record.files["image"].path).array
    assert np.unique(few).size > 50
    whole = synthesize_cohort(resolve("tiny-ddpm", num_cases=1), tmp_path / "whole", device="cpu")
    assert not np.array_equal(few, load_image(whole.folder / record.files["image"].path).array)


def test_guidance_towards_a_modality_needs_networks_that_are_told_one(resolve: Callable[..., CohortRun]) -> None:
    assert resolve("tiny", guidance_scale=2.0).guidance_scale == 2.0
    assert resolve("tiny").guidance_scale == 0.0
    with pytest.raises(RecipeError, match="must be 0 without a label map, because bundle 'tiny-ddpm' is not"):
        resolve("tiny-ddpm", guidance_scale=2.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": ["liver"]}, "labels: expected none with mask_source 'none', .*, found liver; leave it out"),
        ({"mask_bank": "maps"}, "mask_bank: expected none with mask_source 'none', .*, found one"),
        ({"mask_labels": "maisi"}, "mask_labels: expected none with mask_source 'none', .*, found maisi"),
        ({"hu_reference": "cts"}, "hu_reference: expected none with mask_source 'none', .*, found cts"),
        ({"size_reference": "x", "size_label": 1}, "size_reference cannot be used with mask_source '"),
    ],
)
def test_field_that_does_not_go_without_label_maps_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_request({"mask_source": "none", **values})


def test_nothing_to_train_on_is_exported(two: CohortSummary, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the images were drawn without label maps"):
        export_nnunet(two.folder, dataset_id=501, name="Bare", out=tmp_path)
    assert list(tmp_path.iterdir()) == []
