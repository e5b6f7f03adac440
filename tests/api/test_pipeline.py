"""A pipeline draws what the command draws, of whatever holds a label map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

import maisi_aug as ma
from maisi_aug.errors import BankError, CohortError, LesionError, RecipeError, VolumeError
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_image, load_label_map, save_image, save_label_map
from maisi_aug.volumes.orientation import turn_volume
from tests.builders.resolver import GATES_OFF
from tests.builders.tiny_bank import BODY, HEPATIC_TUMOR, LIVER, build_ct, build_trunk, trunk_grid

SHAPE = (48, 32, 40)
GRID = trunk_grid()


@pytest.fixture(scope="module")
def pipe(bundle_path: Path) -> ma.Pipeline:
    """Narrow networks on a CPU."""
    return ma.Pipeline.from_bundle(bundle_path, device="cpu")


@pytest.fixture(scope="module")
def draw(pipe: ma.Pipeline) -> Callable[..., ma.DrawnCase]:
    """Draw a case whose noise is accepted."""

    def call(*arguments: Any, **options: Any) -> ma.DrawnCase:
        return pipe(*arguments, **{"gates": GATES_OFF, "shape": SHAPE, "progress": False, **options})

    return call


@pytest.fixture
def patient(tmp_path: Path) -> Path:
    """A label map without tumours."""
    path = tmp_path / "patient_seg.nii.gz"
    save_label_map(path, build_trunk(), GRID)
    return path


pytestmark = pytest.mark.filterwarnings("ignore:.*the map is cropped or padded:UserWarning")


def map_of(case: ma.Case) -> NDArray[np.uint8]:
    """The label map of a case that has one."""
    assert case.label_map is not None
    return case.label_map


def volumes_of(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*.nii.gz"))}


@pytest.mark.parametrize("plant", ["", "hepatic tumor:40mm", "hepatic tumor:0.3-0.9"])
def test_case_of_a_given_map_has_the_bytes_of_the_command(
    draw: Callable[..., ma.DrawnCase],
    run_cli: Callable[..., Any],
    bundle_path: Path,
    patient: Path,
    tmp_path: Path,
    plant: str,
) -> None:
    words = ["--mask-source", "given", "--mask-bank", patient, "--bundle", bundle_path, "--seed", "7", "--quiet"]
    gates = ["--gate", "organ-hu=off", "--gate", "visibility=off", "--shape", "x".join(map(str, SHAPE))]
    planted = ["--plant", plant] if plant else []
    outcome = run_cli("synthesize", *words, *gates, *planted, "--out", tmp_path / "cohort", "--device", "cpu")
    assert outcome.code == 0, outcome.stderr
    case = draw(patient, plant=plant, seed=7)
    saved = case.save(tmp_path / "saved")
    expected = volumes_of(tmp_path / "cohort")
    assert len(expected) == 3
    assert volumes_of(tmp_path / "saved") == expected
    ours, record = (ma.load_cohort(tmp_path / name).cases[0].record for name in ("saved", "cohort"))
    assert ours.lesions == record.lesions
    assert ours.verdicts == saved.verdicts == case.verdicts == record.verdicts
    assert ours.mask_origin == record.mask_origin
    assert record.mask_origin["source"] == "given"


def test_case_of_a_request_has_the_bytes_of_the_command(
    draw: Callable[..., ma.DrawnCase], run_cli: Callable[..., Any], bundle_path: Path, tmp_path: Path
) -> None:
    words = ["--labels", "hepatic tumor:30mm", "-n", "1", "--bundle", bundle_path, "--seed", "7", "--quiet"]
    gates = ["--gate", "organ-hu=off", "--gate", "visibility=off"]
    outcome = run_cli("synthesize", *words, *gates, "--out", tmp_path / "cohort", "--device", "cpu")
    assert outcome.code == 0, outcome.stderr
    saved = draw(plant="hepatic tumor:30mm", seed=7, shape=None).save(tmp_path / "saved")
    assert volumes_of(tmp_path / "saved") == volumes_of(tmp_path / "cohort")
    assert saved.record.verdicts == ma.load_cohort(tmp_path / "cohort").cases[0].verdicts


def test_planted_lesion_has_its_size_and_nothing_else_moves(draw: Callable[..., ma.DrawnCase], patient: Path) -> None:
    case = draw(patient, plant="hepatic tumor:40mm", seed=7)
    before = draw(patient, seed=7)
    assert case.is_accepted
    assert case.lesions[0].realised_ml == pytest.approx(case.lesions[0].requested_ml, rel=0.1)
    assert case.grid.is_close(before.grid)
    changed = map_of(case) != map_of(before)
    assert set(np.unique(map_of(case)[changed])) == {HEPATIC_TUMOR}
    assert set(np.unique(map_of(before)[changed])) <= {LIVER, BODY}
    again = draw(patient, plant="hepatic tumor:40mm", seed=7)
    np.testing.assert_array_equal(again.image, case.image)
    other = draw(patient, plant="hepatic tumor:40mm", seed=8)
    assert (map_of(other) != map_of(case)).any()


def test_cohort_of_given_maps_gets_lesions_as_they_are_asked_for(bundle_path: Path, tmp_path: Path) -> None:
    for seed in range(2):
        save_label_map(tmp_path / "maps" / f"p{seed}_seg.nii.gz", build_trunk(seed=seed), GRID)
    cohort = ma.synthesize(
        mask_source="given",
        mask_bank=tmp_path / "maps",
        plant=["hepatic tumor:30-50mm@50%", "hepatic tumor:25mm+spleen"],
        num_cases=4,
        bundle=bundle_path,
        gates=GATES_OFF,
        shape=SHAPE,
        out=tmp_path / "cohort",
        progress=False,
    )
    assert cohort.summary.is_complete
    assert [case.record.mask_origin["file"] for case in cohort.cases] == ["p0_seg.nii.gz", "p1_seg.nii.gz"] * 2
    assert (
        sorted(case.request for case in cohort.cases)
        == ["hepatic tumor:25mm+spleen"] * 2 + ["hepatic tumor:30-50mm@50%"] * 2
    )
    for case in cohort.cases:
        assert case.lesions[0].realised_ml == pytest.approx(case.lesions[0].requested_ml, rel=0.1)
        assert {LIVER, HEPATIC_TUMOR} <= set(np.unique(load_label_map(case.files["label"]).array))
    with pytest.raises(RecipeError, match="plant cannot be used with mask_source 'plant', found hepatic tumor:9mm"):
        ma.plan("hepatic tumor:9mm", plant="hepatic tumor:9mm")


def test_own_tumours_give_way_to_planted_ones(draw: Callable[..., ma.DrawnCase], tmp_path: Path) -> None:
    save_label_map(tmp_path / "t_seg.nii.gz", build_trunk(tumours_mm=(12.0, 12.0)), GRID)
    kept, planted = draw(tmp_path / "t_seg.nii.gz"), draw(tmp_path / "t_seg.nii.gz", plant=["hepatic tumor:35mm"])
    assert len(kept.lesions) == 2
    assert [lesion.label for lesion in planted.lesions] == ["hepatic tumor"]
    assert planted.lesions[0].diameter_mm == pytest.approx(35, rel=0.05)


def in_memory(label_map: Any) -> dict[str, tuple[Any, Any]]:
    """The same map as whatever may hold one; SimpleITK's and nibabel's are stored with other axes."""
    turned, grid = turn_volume(label_map, GRID, "LPS")
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(label_map.T))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ GRID.affine
    image.SetSpacing(GRID.spacing_mm)
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / np.asarray(GRID.spacing_mm)).ravel().tolist())
    return {
        "array": (label_map, GRID.affine),
        "nibabel": (nib.Nifti1Image(turned.astype(np.float32), grid.affine), None),
        "SimpleITK": (image, None),
        "MONAI": (
            MetaTensor(torch.from_numpy(label_map[None].copy()), affine=torch.from_numpy(GRID.affine.copy())),
            None,
        ),
    }


@pytest.mark.parametrize("kind", ["array", "nibabel", "SimpleITK", "MONAI"])
def test_maps_in_memory_are_read_as_files_are(draw: Callable[..., ma.DrawnCase], patient: Path, kind: str) -> None:
    of_file = draw(patient, plant="hepatic tumor:40mm", seed=7)
    label_map, affine = in_memory(load_label_map(patient).array)[kind]
    case = draw(label_map, affine, plant="hepatic tumor:40mm", seed=7)
    assert (map_of(case) == map_of(of_file)).all()
    assert (case.image == of_file.image).all()
    np.testing.assert_allclose(case.affine, of_file.affine, atol=1e-4)


def test_body_is_found_in_a_ct_that_is_given_beside(draw: Callable[..., ma.DrawnCase], tmp_path: Path) -> None:
    label_map = build_trunk(with_body=False)
    with pytest.raises(BankError, match="or a CT to find the body in"):
        draw(label_map, GRID.affine)
    case = draw(label_map, GRID.affine, ct=build_ct(label_map))
    assert (map_of(case) == BODY).sum() > 1000
    save_image(tmp_path / "ct.nii.gz", build_ct(label_map), GRID)
    again = draw(label_map, GRID.affine, ct=tmp_path / "ct.nii.gz", mask_labels="maisi")
    assert (map_of(again) == map_of(case)).all()


def test_case_without_a_map_has_none(draw: Callable[..., ma.DrawnCase], tmp_path: Path) -> None:
    case = draw(seed=3, shape=None)
    assert case.label_map is None
    saved = case.save(tmp_path)
    assert set(saved.files) == {"image", "preview"}
    assert saved.label_map is None


def test_saved_cases_make_a_cohort(draw: Callable[..., ma.DrawnCase], patient: Path, tmp_path: Path) -> None:
    first, second = (draw(patient, plant="hepatic tumor:40mm", seed=seed).save(tmp_path / "out") for seed in (1, 2))
    assert (first.id, second.id) == ("case_0001", "case_0002")
    cohort = ma.load_cohort(tmp_path / "out")
    assert repr(cohort) == f"Cohort('{tmp_path / 'out'}', 2 of 2 cases accepted)"
    np.testing.assert_array_equal(load_image(second.files["image"]).array, cohort.cases[1].image)
    report = cohort.export_monai(tmp_path / "monai", progress=False)
    assert report.num_synthetic == 2


def test_case_that_the_gates_refuse_says_so_and_is_kept_apart(pipe: ma.Pipeline, patient: Path, tmp_path: Path) -> None:
    case = pipe(patient, plant="hepatic tumor:40mm", shape=SHAPE, max_attempts=2, progress=False)
    assert not case.is_accepted
    assert case.reason.startswith("Organ HU: found liver at")
    assert "rejected" in repr(case)
    saved = case.save(tmp_path / "out")
    assert saved.files["image"].relative_to(tmp_path / "out").as_posix() == "rejected/images/case_0001_a1.nii.gz"
    assert ma.load_cohort(tmp_path / "out").cases == ()


def test_steps_are_reported(draw: Callable[..., ma.DrawnCase], patient: Path) -> None:
    told: list[tuple[str, int, int]] = []
    draw(patient, progress=lambda *words: told.append(words))
    assert told == [("case_0001", 1, 2), ("case_0001", 2, 2)]


def test_what_cannot_be_drawn_is_refused_with_a_sentence(
    draw: Callable[..., ma.DrawnCase], patient: Path, tmp_path: Path
) -> None:
    with pytest.raises(LesionError, match="The largest that fits"):
        draw(patient, plant="hepatic tumor:150mm")
    with pytest.raises(VolumeError, match="label_map: an array also needs its geometry"):
        draw(build_trunk())
    with pytest.raises(VolumeError, match="label_map: expected three axes"):
        draw(build_trunk()[0], np.eye(4))
    with pytest.raises(VolumeError, match="label_map: expected an array or an image .* found tuple. Pass array and"):
        draw((build_trunk(), np.eye(4)))
    with pytest.raises(BankError, match="ct: requires label_map=, the label map that belongs to it"):
        draw(ct=build_ct(build_trunk()))
    with pytest.raises(RecipeError, match="Pipeline: unknown keyword 'step'"):
        draw(patient, step=3)
    save_label_map(tmp_path / "two" / "a_seg.nii.gz", build_trunk(), GRID)
    save_label_map(tmp_path / "two" / "b_seg.nii.gz", build_trunk(), GRID)
    with pytest.raises(BankError, match="expected one label map, found 2"):
        draw(tmp_path / "two")


def test_cohorts_are_not_added_to(draw: Callable[..., ma.DrawnCase], patient: Path, tmp_path: Path) -> None:
    (tmp_path / "cohort.yaml").write_text("configuration: {}")
    with pytest.raises(CohortError, match="cannot be used for saved cases, because it holds a cohort of synthesize or"):
        draw(patient).save(tmp_path)


def test_grid_of_a_case_is_the_maps_own_where_the_networks_take_it(
    draw: Callable[..., ma.DrawnCase], tmp_path: Path
) -> None:
    grid = Grid.from_spacing((48, 40, 32), (7.0, 7.5, 6.5))
    label_map = np.full(grid.shape, BODY, dtype=np.uint8)
    label_map[10:30, 10:30, 8:24] = LIVER
    label_map[34:40, 10:30, 8:24] = 3  # spleen
    label_map[34:40, 32:36, 8:24] = 14  # left kidney
    case = draw(label_map, grid.affine, shape=None, mask_labels="maisi")
    assert case.grid.is_close(grid)
    assert (map_of(case) == label_map).all()
    assert case.shape == grid.shape
    assert case.spacing_mm == pytest.approx(grid.spacing_mm)
