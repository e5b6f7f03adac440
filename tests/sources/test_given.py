"""A given map is drawn as it is: same voxels, same place, and whatever changes is told."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from maisi_aug.banks.label_map import BankMap
from maisi_aug.cohort.manifest import MANIFEST_NAME, load_manifest
from maisi_aug.cohort.request import build_request
from maisi_aug.cohort.resolve import CohortRun
from maisi_aug.cohort.resolve import resolve as resolve_request
from maisi_aug.errors import BankError, CohortError, RecipeError, VocabularyError
from maisi_aug.generate.run import CohortSummary, synthesize_cohort
from maisi_aug.lesions.planting import measure_lesions
from maisi_aug.sources.given import GridChoice, find_lesions, fit_map, look_at_maps, open_given_source, part_inside
from maisi_aug.vocabulary.labels import BODY_ID
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_image, load_label_map, save_image, save_label_map
from tests.builders.lesions import ask_for
from tests.builders.resolver import GATES_OFF, resolver
from tests.generate.test_run import hash_files

# A map of two organs is small to write; what that costs an image is told in test_bank_organs.
pytestmark = pytest.mark.filterwarnings("ignore:Mask bank .* organs around the lesions")
LIVER, SPLEEN, HEPATIC_TUMOR = 1, 3, 26
SHAPE, SPACING_MM = (40, 32, 24), (6.0, 7.0, 8.0)
FACTOR = 8
OWN_NAMES = {"background": 0, "liver": 4, "spleen": 2, "hepatic tumor": 9, "body": 1}
OWN_IDS = {LIVER: 4, SPLEEN: 2, HEPATIC_TUMOR: 9, BODY_ID: 1}


def build_map(shape: Sequence[int] = SHAPE, *, num_lesions: int = 2, shift: int = 0) -> NDArray[np.uint8]:
    """A body that is not in the middle, with a liver, a spleen and lesions of different size."""
    label_map = np.zeros(shape, dtype=np.uint8)
    label_map[3 + shift : 33 + shift, 2:26] = BODY_ID
    label_map[18 + shift : 32 + shift, 6:22, 4:19] = LIVER
    label_map[5 + shift : 11 + shift, 8:16, 5:15] = SPLEEN
    for number in range(num_lesions):
        first = 20 + shift + 6 * number
        label_map[first : first + 3 - number, 10:13, 9:12] = HEPATIC_TUMOR
    return label_map


def turn(grid: Grid, degrees: float) -> Grid:
    """The grid turned about its third axis, as an oblique scan is."""
    angle = np.deg2rad(degrees)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return Grid(grid.shape, rotation @ grid.affine)


def own_grid(shape: tuple[int, int, int] = SHAPE, spacing_mm: tuple[float, float, float] = SPACING_MM) -> Grid:
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = (-31.0, 17.5, 803.25)
    return Grid(shape, affine)


def write_own(path: Path, label_map: NDArray[np.uint8], grid: Grid, *, axes: str = "RAS") -> None:
    """Write a map with ids of its own and the axes that a scanner or a tool has left it in."""
    table = np.zeros(256, dtype=np.uint8)
    for label_id, own_id in OWN_IDS.items():
        table[label_id] = own_id
    image = nib.Nifti1Image(table[label_map], grid.affine)
    turned = image.as_reoriented(ornt_transform(io_orientation(grid.affine), axcodes2ornt(axes)))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(turned, path)
    (path.parent / "labels.json").write_text(json.dumps(OWN_NAMES))


def write_maps(folder: Path, num_maps: int) -> Path:
    """Label maps of this vocabulary, each another."""
    for number in range(num_maps):
        save_label_map(folder / f"map_{number}_seg.nii.gz", build_map(shift=number), own_grid())
    return folder


@pytest.fixture(scope="module")
def resolve(bundle_path: Path) -> Callable[..., CohortRun]:
    """Resolve a cohort of given maps that accepts noise, with some fields changed."""

    of_bundle = resolver(mask_source="given", bundle=str(bundle_path), gates=GATES_OFF)
    return lambda path, **changes: of_bundle(mask_bank=str(path), **changes)


@pytest.fixture(scope="module")
def three(resolve: Callable[..., CohortRun], tmp_path_factory: pytest.TempPathFactory) -> CohortSummary:
    """A cohort of three maps, the last of them drawn twice: four cases."""
    folder = write_maps(tmp_path_factory.mktemp("three") / "maps", 3)
    return synthesize_cohort(resolve(folder, num_cases=4, seed=5), folder.parent / "cohort", device="cpu")


def test_every_map_becomes_a_case_in_the_order_of_their_names(
    three: CohortSummary, resolve: Callable[..., CohortRun]
) -> None:
    names = [f"map_{number}_seg.nii.gz" for number in range(3)]
    records = load_manifest(three.folder).accepted
    assert [record.request for record in records] == [*names, names[0]]
    assert [record.mask_origin["file"] for record in records] == [*names, names[0]]
    assert len(resolve(three.folder.parent / "maps").plan.cases) == 3
    assert len({record.seed for record in records}) == 4
    images = [load_image(three.folder / record.files["image"].path).array for record in records]
    assert not np.array_equal(images[0], images[3])  # the same map under another seed


def test_files_hold_the_map_as_it_is(three: CohortSummary) -> None:
    for number, record in enumerate(load_manifest(three.folder).accepted):
        files = {role: load_label_map(three.folder / record.files[role].path) for role in ("label", "anatomy")}
        image = load_image(three.folder / record.files["image"].path)
        expected = build_map(shift=number % 3)
        np.testing.assert_array_equal(files["anatomy"].array, expected)
        np.testing.assert_array_equal(files["label"].array, np.where(expected == BODY_ID, 0, expected))
        for volume in (image, *files.values()):
            np.testing.assert_array_equal(volume.grid.affine, own_grid().affine)
        assert (image.array[expected == 0] == -1000).all()


def test_manifest_tells_origin_lesions_and_organs(three: CohortSummary) -> None:
    record = load_manifest(three.folder).accepted[0]
    assert record.mask_origin["source"] == "given"
    assert record.mask_origin["change"] == "none"
    assert len(str(record.mask_origin["sha256"])) == 64
    assert record.required_ids == (LIVER, SPLEEN)
    volumes = measure_lesions(build_map(), HEPATIC_TUMOR, own_grid().voxel_ml)
    assert [lesion.realised_ml for lesion in record.lesions] == pytest.approx(volumes)
    assert [lesion.requested_ml for lesion in record.lesions] == pytest.approx(volumes)
    assert {lesion.host_id for lesion in record.lesions} == {LIVER}
    assert record.lesions[0].centre_ijk == (21, 11, 10)
    assert {verdict.gate for verdict in record.verdicts} == {"presence", "lesion size", "lesion place", "geometry"}


def test_cohort_goes_on_to_the_same_bytes(
    three: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    maps = three.folder.parent / "maps"
    cohort = resolve(maps, num_cases=4, seed=5)
    synthesize_cohort(cohort, tmp_path, device="cpu", case_indices=[2])
    synthesize_cohort(cohort, tmp_path, device="cpu", case_indices=[3, 1, 0])
    assert hash_files(tmp_path) == hash_files(three.folder)
    again = resolve_request(build_request(cohort.configuration))
    assert synthesize_cohort(again, tmp_path, device="no such device").num_new == 0
    with pytest.raises(CohortError, match="this cohort has 4 cases, -n asks for 3. -n can only grow."):
        synthesize_cohort(resolve(maps, seed=5), tmp_path)


def test_names_of_labels_choose_what_the_label_files_hold(resolve: Callable[..., CohortRun], tmp_path: Path) -> None:
    cohort = resolve(write_maps(tmp_path / "maps", 1), labels=["spleen", "lung tumor"])
    summary = synthesize_cohort(cohort, tmp_path / "cohort", device="cpu")
    (record,) = summary.manifest.accepted  # a map need not hold all of them
    assert (record.required_ids, record.lesions) == ((SPLEEN,), ())
    found = load_label_map(summary.folder / record.files["label"].path).array
    np.testing.assert_array_equal(found, np.where(build_map() == SPLEEN, SPLEEN, 0))
    with pytest.raises(VocabularyError, match="Did you mean"):
        resolve(tmp_path / "maps", labels=["spleeen"])


@pytest.mark.parametrize(("axes", "degrees"), [("RAS", 12.0), ("LPS", 0.0), ("PIR", 12.0)])
def test_map_in_any_orientation_keeps_every_voxel_and_its_place(
    resolve: Callable[..., CohortRun], tmp_path: Path, axes: str, degrees: float
) -> None:
    label_map, grid = build_map(), turn(own_grid(), degrees)
    path = tmp_path / "bank" / "scan.nii.gz"
    write_own(path, label_map, grid, axes=axes)
    summary = synthesize_cohort(resolve(path), tmp_path / "cohort", device="cpu")
    (record,) = summary.manifest.accepted
    given = nib.Nifti1Image.from_filename(path)
    order = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    for role in ("anatomy", "image"):
        saved = nib.Nifti1Image.from_filename(summary.folder / record.files[role].path).as_reoriented(order)
        np.testing.assert_allclose(saved.affine, given.affine, atol=1e-4)
        if role == "anatomy":
            table = np.zeros(256, dtype=np.uint8)
            table[list(OWN_IDS.values())] = list(OWN_IDS)
            np.testing.assert_array_equal(np.asarray(saved.dataobj), table[np.asarray(given.dataobj)])
    assert record.mask_origin["change"] == "none"


def test_body_is_found_in_the_ct_where_the_map_has_none(resolve: Callable[..., CohortRun], tmp_path: Path) -> None:
    label_map = build_map()
    without = np.where(label_map == BODY_ID, 0, label_map).astype(np.uint8)
    image_hu = np.where(label_map > 0, 40, -1000).astype(np.int16)
    save_label_map(tmp_path / "a_seg.nii.gz", without, own_grid())
    with pytest.raises(BankError, match="a_seg.nii.gz: needs a filled body"):
        synthesize_cohort(resolve(tmp_path, mask_labels="maisi"), tmp_path / "cohort", device="cpu")
    save_image(tmp_path / "a_ct.nii.gz", image_hu, own_grid())
    summary = synthesize_cohort(
        resolve(tmp_path / "a_seg.nii.gz", mask_labels="maisi"), tmp_path / "cohort", device="cpu"
    )
    (record,) = summary.manifest.accepted
    assert record.mask_origin["body_from"] == "a_ct.nii.gz"
    anatomy = load_label_map(summary.folder / record.files["anatomy"].path).array
    np.testing.assert_array_equal(np.where(anatomy == BODY_ID, 0, anatomy), without)
    assert (anatomy == BODY_ID).sum() == pytest.approx((label_map == BODY_ID).sum(), rel=0.1)


def test_map_that_the_networks_cannot_take_is_resampled_on_its_own_field_of_view(
    resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    shape = (42, 32, 25)
    save_label_map(tmp_path / "a_seg.nii.gz", build_map(shape), own_grid(shape))
    message = (
        "a_seg.nii.gz: expected sides that are multiples of 8, found 42x32x25 at 6x7x8 mm; the map is resampled to "
        "40x32x24 at 6.3x7x8.333 mm"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        summary = synthesize_cohort(resolve(tmp_path, num_cases=2), tmp_path / "cohort", device="cpu")
    assert (
        len([one for one in caught if message in str(one.message)]) == 1
    )  # once of each map, however often it is drawn
    record = summary.manifest.accepted[1]
    assert record.mask_origin["map_shape"] == list(shape)
    assert record.mask_origin["map_spacing_mm"] == list(SPACING_MM)
    assert record.mask_origin["change"] == "resampled"
    anatomy = load_label_map(summary.folder / record.files["anatomy"].path)
    assert anatomy.grid.extent_mm == pytest.approx(own_grid(shape).extent_mm)
    half = 0.5 * np.asarray(anatomy.grid.spacing_mm) - 0.5 * np.asarray(SPACING_MM)
    np.testing.assert_allclose(anatomy.grid.affine[:3, 3], own_grid(shape).affine[:3, 3] + half, atol=1e-4)
    for lesion in record.lesions:
        allowed = max(0.05 * lesion.requested_ml, 0.5 * anatomy.grid.voxel_ml)
        assert lesion.realised_ml == pytest.approx(lesion.requested_ml, abs=allowed * 1.01)


def to_bank_map(label_map: NDArray[np.uint8], grid: Grid) -> BankMap:
    return BankMap("a", label_map, grid, "0" * 64, None)


def test_shape_alone_crops_about_the_body_and_pads_about_the_map() -> None:
    label_map, grid = build_map(), turn(own_grid(), 20.0)
    cut, cut_grid = fit_map(to_bank_map(label_map, grid), GridChoice(FACTOR, (32, 40, 24), None), lesion_ids=())
    assert cut.shape == (32, 40, 24)
    np.testing.assert_array_equal(cut[:, 4:36], label_map[2:34])  # the body goes from 3 to 32
    assert not cut[:, :4].any()
    np.testing.assert_allclose(cut_grid.affine[:3, :3], grid.affine[:3, :3])
    np.testing.assert_allclose(cut_grid.affine @ [0, 4, 0, 1], grid.affine @ [2, 0, 0, 1])
    assert part_inside(grid, cut_grid) == (slice(2, 34), slice(0, 36), slice(0, 24))


def test_spacing_alone_keeps_about_the_field_of_view() -> None:
    choice = GridChoice(FACTOR, None, (5.0, 5.0, 5.0))
    label_map, grid = fit_map(to_bank_map(build_map(), own_grid()), choice, lesion_ids=(HEPATIC_TUMOR,))
    assert label_map.shape == grid.shape == (48, 48, 40)
    assert grid.spacing_mm == pytest.approx((5.0, 5.0, 5.0))
    found = measure_lesions(label_map, HEPATIC_TUMOR, grid.voxel_ml)
    assert found == pytest.approx(measure_lesions(build_map(), HEPATIC_TUMOR, own_grid().voxel_ml), rel=0.05)


def test_grid_that_is_the_maps_own_changes_nothing() -> None:
    own = to_bank_map(build_map(), own_grid(SHAPE, (0.78125, 0.78125, 2.9814)))
    for choice in (
        GridChoice(FACTOR, None, None),
        GridChoice(FACTOR, SHAPE, None),
        GridChoice(FACTOR, SHAPE, (0.781, 0.781, 2.981)),
        GridChoice(FACTOR, None, (0.781, 0.781, 2.981)),
    ):
        label_map, grid = fit_map(own, choice, lesion_ids=())
        assert label_map is own.label_map
        assert grid is own.grid
    whole = tuple(slice(0, side) for side in SHAPE)
    assert part_inside(own.grid, own.grid) == whole


def test_labels_outside_the_grid_that_was_asked_for_are_named(
    resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    save_label_map(tmp_path / "a_seg.nii.gz", build_map(), own_grid())
    with pytest.warns(UserWarning, match="expected 8x16x16 as requested, found 40x32x24 .* and loses spleen"):
        summary = synthesize_cohort(resolve(tmp_path, shape=[8, 16, 16]), tmp_path / "cohort", device="cpu")
    (record,) = summary.manifest.accepted
    assert record.mask_origin["lost_ids"] == [SPLEEN]
    assert record.required_ids == (LIVER,)
    assert record.mask_origin["change"] == "cropped or padded"


def test_lesions_are_described_as_in_the_whole_map() -> None:
    label_map, grid = build_map(num_lesions=1), own_grid()
    asked = [ask_for(HEPATIC_TUMOR, (LIVER,), volume_ml) for volume_ml in (9.0, 2.0)]
    lesion, lost = find_lesions(label_map, grid, asked)
    assert (lesion.num_voxels, lesion.centre_ijk, lesion.host_id) == (27, (21, 11, 10), LIVER)
    assert lesion.realised_ml == pytest.approx(27 * 0.336)
    assert (lost.requested_ml, lost.realised_ml, lost.centre_ijk) == (2.0, None, None)


def test_damaged_map_is_named_and_the_others_are_drawn(resolve: Callable[..., CohortRun], tmp_path: Path) -> None:
    folder = write_maps(tmp_path / "maps", 3)
    good = (folder / "map_0_seg.nii.gz").read_bytes()
    (folder / "map_0_seg.nii.gz").write_bytes(good[:300])
    (folder / "map_1_seg.nii.gz").write_bytes(b"")
    summary = synthesize_cohort(resolve(folder), tmp_path / "cohort", device="cpu")
    assert [record.request for record in summary.manifest.accepted] == ["map_2_seg.nii.gz"]
    (rejected,) = summary.manifest.rejected
    assert (rejected.request, rejected.attempt) == ("map_0_seg.nii.gz", 0)
    assert "map_0_seg.nii.gz: not a readable image, but damaged or empty" in rejected.reason
    reasons = dict(summary.skipped)
    assert set(reasons) == {"map_0_seg.nii.gz", "map_1_seg.nii.gz"}
    assert reasons["map_1_seg.nii.gz"] == "map_1_seg.nii.gz is empty"


def test_rejected_image_is_kept_apart_when_asked(resolve: Callable[..., CohortRun], tmp_path: Path) -> None:
    folder = write_maps(tmp_path / "maps", 1)
    strict = {**GATES_OFF, "visibility": True, "minimum_cnr": 1e6}
    for keep in (False, True):
        out = tmp_path / f"cohort_{keep}"
        cohort = resolve(folder, gates=strict, max_attempts=2, keep_rejected=keep)
        summary = synthesize_cohort(cohort, out, device="cpu")
        *_, last = summary.manifest.records
        assert (len(summary.manifest.accepted), last.status, last.attempt) == (0, "rejected", 1)
        assert last.settings["gates"] == {"organ_hu": False, "minimum_cnr": 1e6}
        assert (out / "rejected").exists() is keep
        assert set(last.files) == ({"image", "label", "anatomy", "preview"} if keep else {"preview"})
    image = load_image(out / last.files["image"].path)
    assert last.files["image"].path == "rejected/images/case_0001_a1.nii.gz"
    assert image.grid.is_close(own_grid())
    np.testing.assert_array_equal(load_label_map(out / last.files["anatomy"].path).array, build_map())
    assert not list((out / "images").glob("*"))
    again = synthesize_cohort(resolve(folder, gates=strict, max_attempts=3), out, device="cpu")  # no longer kept
    assert set(again.manifest.records[-1].files) == {"preview"}


def test_map_that_fails_a_gate_leaves_an_image_when_asked(resolve: Callable[..., CohortRun], tmp_path: Path) -> None:
    lost = build_map(num_lesions=0)
    lost[18:30:2, 6:18:2, 4:18:2] = HEPATIC_TUMOR  # joined by resampling
    save_label_map(tmp_path / "joined" / "a_seg.nii.gz", lost, own_grid())
    options = {"spacing_mm": [32.0, 32.0, 32.0], "shape": [8, 8, 8], "keep_rejected": True}
    with pytest.warns(UserWarning, match="the map is resampled"):
        summary = synthesize_cohort(resolve(tmp_path / "joined", **options), tmp_path / "cohort", device="cpu")
    (record,) = summary.manifest.records
    assert (record.status, record.attempt) == ("rejected", 0)
    assert "image" in record.files
    assert {verdict.gate for verdict in record.verdicts} >= {"lesion size", "geometry"}


def with_bounded_view(run: CohortRun) -> CohortRun:
    """The run with a bundle that refuses slices that show much more or less than 384 x 320 mm."""
    spec = run.bundle.spec
    assert spec.grid_limits is not None
    limits = spec.grid_limits.model_copy(update={"extent_mm": ((350.0, 420.0), (300.0, 350.0))})
    return replace(run, bundle=replace(run.bundle, spec=spec.model_copy(update={"grid_limits": limits})))


def test_grid_that_the_bundle_has_not_seen_is_warned_of_as_one_that_is_asked_for(tmp_path: Path) -> None:
    save_label_map(tmp_path / "a_seg.nii.gz", build_map((96, 80, 64)), Grid.from_spacing((96, 80, 64), (4, 4, 5)))
    narrow = Grid.from_spacing((48, 32, 32), (6, 7, 8))
    save_label_map(tmp_path / "b_seg.nii.gz", build_map(narrow.shape), narrow)
    values = {"mask_source": "given", "mask_bank": str(tmp_path), "mask_labels": "maisi"}
    run = with_bounded_view(resolve_request(build_request(values)))
    source, plan = open_given_source(run), run.plan
    message = (
        r"a_seg.nii.gz: Grid for bundle 'phantom-ct'.*2.2 to 4 mm along K.*poor: try --spacing 4x4x4\. Grids of all"
    )
    with pytest.warns(UserWarning, match=message):  # a shape would crop other maps
        source.draw(plan.cases[0], 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source.draw(plan.cases[0], 0)  # once is enough
    with pytest.raises(BankError, match=r"b_seg.nii.gz: Grid for bundle 'phantom-ct'.*--allow-unseen-grid"):
        source.draw(plan.cases[1], 0)
    first, second = look_at_maps(source, plan.cases, lambda done, total: None)
    assert first.warning.endswith("poor: try --spacing 4x4x4.")
    assert (first.fault, second.warning) == ("", "")
    assert second.fault.startswith("b_seg.nii.gz: Grid for bundle 'phantom-ct'")
    run = with_bounded_view(resolve_request(build_request({**values, "allow_unseen_grid": True})))
    allowed = open_given_source(run)
    with pytest.warns(UserWarning, match="b_seg.nii.gz: Grid for bundle"):
        allowed.draw(plan.cases[1], 0)


def test_bank_without_a_usable_map_ends_the_run_and_records_nothing(
    resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    folder = write_maps(tmp_path / "maps", 2)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(BankError, match="none of the 2 label maps can be used; the first is"):
        synthesize_cohort(resolve(folder, mask_labels="maisi"), tmp_path / "cohort", device="cpu")
    assert load_manifest(tmp_path / "cohort").records == ()
    (tmp_path / "empty").mkdir()
    with pytest.raises(BankError, match="no usable label map"):
        resolve(tmp_path / "empty")


def test_lesion_that_resampling_joins_is_rejected_at_once(resolve: Callable[..., CohortRun], tmp_path: Path) -> None:
    label_map = build_map(num_lesions=0)
    label_map[18:30:2, 6:18:2, 4:18:2] = HEPATIC_TUMOR
    save_label_map(tmp_path / "a_seg.nii.gz", label_map, own_grid())
    cohort = resolve(tmp_path, shape=[8, 8, 8], spacing_mm=[32.0, 32.0, 32.0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        summary = synthesize_cohort(cohort, tmp_path / "cohort", device="cpu")
    (rejected,) = summary.manifest.rejected
    assert rejected.attempt == 0  # another attempt would have the same map
    assert "lesions where 252 were requested" in rejected.reason


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "mask_source 'given': requires a mask_bank with your own label maps; give a"),
        (
            {"mask_bank": "x", "labels": ["liver", "hepatic tumor:0.3"]},
            "given' draws each map with its own lesions, found 'hepatic tumor:0.3'",
        ),
        (
            {"mask_bank": "x", "labels": ["liver+spleen"]},
            "expected a label name without a size, since mask_source 'given' draws each",
        ),
        (
            {"mask_bank": "x", "size_reference": "y", "size_label": 2},
            "size_reference cannot be used with mask_source '",
        ),
    ],
)
def test_field_that_does_not_go_with_given_maps_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_request({"mask_source": "given", **values})


def test_data_list_is_drawn_map_by_map(resolve: Callable[..., CohortRun], tmp_path: Path) -> None:
    write_maps(tmp_path / "maps", 2)
    rows = [{"label": f"maps/map_{number}_seg.nii.gz", "fold": 0} for number in (1, 0)]
    (tmp_path / "list.json").write_text(json.dumps({"training": rows}))
    cohort = resolve(tmp_path / "list.json")
    assert [case.request for case in cohort.plan.cases] == ["maps/map_0_seg.nii.gz", "maps/map_1_seg.nii.gz"]
    assert [case.map_index for case in cohort.plan.cases] == [0, 1]


@pytest.mark.filterwarnings("ignore:Mask bank")
def test_real_scan_keeps_its_field_of_view(resolve: Callable[..., CohortRun], real_data: Path, tmp_path: Path) -> None:
    bank = real_data / "totalsegmentator-example"
    with pytest.warns(UserWarning, match="expected sides that are multiples of 8, found 122x101x112"):
        summary = synthesize_cohort(resolve(bank), tmp_path, device="cpu")
    (record,) = summary.manifest.accepted
    anatomy = load_label_map(tmp_path / record.files["anatomy"].path)
    source = load_label_map(bank / "example_seg_v1_104classes.nii.gz")
    assert anatomy.array.shape == (120, 104, 112)
    assert anatomy.grid.extent_mm == pytest.approx(source.grid.extent_mm, rel=1e-5)
    own_ml = float((source.array == 5).sum()) * source.grid.voxel_ml  # the liver of TotalSegmentator's first version
    assert float((anatomy.array == LIVER).sum()) * anatomy.grid.voxel_ml == pytest.approx(own_ml, rel=0.02)
    assert record.mask_origin["body_from"] == "example_ct.nii.gz"
    assert (tmp_path / MANIFEST_NAME).is_file()
