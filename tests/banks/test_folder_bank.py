"""Files of a user's bank are translated, given a body, cut around the host, and skipped by name where they are bad."""

from __future__ import annotations

import json
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from maisi_aug.banks import folder_bank
from maisi_aug.banks.folder_bank import FolderBank
from maisi_aug.banks.label_map import BaseMap
from maisi_aug.errors import BankError, CohortError
from maisi_aug.system.whole_files import sha256_of
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_label_map, save_image, save_label_map
from tests.builders.counted import counted
from tests.builders.lesions import ask_for
from tests.builders.tiny_bank import (
    BODY,
    HEPATIC_TUMOR,
    LEFT_KIDNEY,
    LIVER,
    SPLEEN,
    build_ct,
    build_trunk,
    network_grid,
    trunk_grid,
    write_case,
)

LIVER_LESION = ask_for(HEPATIC_TUMOR, (LIVER,), 5.0)


def _open(path: Path, mapping: object = "maisi", grid: Grid | None = None) -> FolderBank:
    return FolderBank(path, vocabulary=MAISI, grid=grid or network_grid(), mapping=mapping)  # type: ignore[arg-type]


def _first(bank: FolderBank, *, seed: int = 1, required_ids: tuple[int, ...] = ()) -> BaseMap:
    return next(bank.draw_bases([LIVER_LESION], required_ids=required_ids, seed=seed))


def test_cut_has_the_networks_grid_and_holds_the_whole_host(tmp_path: Path) -> None:
    write_case(tmp_path, "a", build_trunk())
    base = _first(_open(tmp_path))
    grid = network_grid()
    assert base.label_map.shape == grid.shape
    np.testing.assert_allclose(base.grid.spacing_mm, grid.spacing_mm)
    assert set(np.unique(base.label_map)) <= {0, LIVER, SPLEEN, LEFT_KIDNEY, BODY}
    expected_ml = float((build_trunk() == LIVER).sum() * trunk_grid().voxel_ml)
    assert (base.label_map == LIVER).sum() * base.grid.voxel_ml == pytest.approx(expected_ml, rel=0.05)
    assert base.origin["file"] == "a_seg.nii.gz"
    assert base.origin["sha256"] == sha256_of(tmp_path / "a_seg.nii.gz")[:16]


def test_cut_lies_where_the_scan_lay(tmp_path: Path) -> None:
    write_case(tmp_path, "a", build_trunk())
    base = _first(_open(tmp_path))
    voxels = np.argwhere(base.label_map == LIVER)
    world = voxels.mean(axis=0) @ base.grid.affine[:3, :3].T + base.grid.affine[:3, 3]
    own = np.argwhere(build_trunk() == LIVER).mean(axis=0) @ trunk_grid().affine[:3, :3].T
    np.testing.assert_allclose(world, own + trunk_grid().affine[:3, 3], atol=1.0)


def test_same_seed_gives_the_same_cuts_whatever_was_read_before(tmp_path: Path) -> None:
    for number in range(4):
        write_case(tmp_path, f"c{number}", build_trunk(seed=number))
    fresh, used = _open(tmp_path), _open(tmp_path)
    for index in (3, 1):
        used.load(index)
    _first(used, seed=99)
    for one, other in zip(
        islice(fresh.draw_bases([LIVER_LESION], required_ids=(), seed=5), 6),
        islice(used.draw_bases([LIVER_LESION], required_ids=(), seed=5), 6),
        strict=True,
    ):
        assert one.origin == other.origin
        np.testing.assert_array_equal(one.label_map, other.label_map)
    assert {str(_first(fresh, seed=seed).origin) for seed in range(8)} != {str(_first(fresh, seed=0).origin)}


def test_bad_files_are_skipped_named_and_counted(tmp_path: Path) -> None:
    write_case(tmp_path, "good", build_trunk())
    (tmp_path / "empty_seg.nii.gz").write_bytes(b"")
    (tmp_path / "torn_seg.nii.gz").write_bytes((tmp_path / "good_seg.nii.gz").read_bytes()[:200])
    save_label_map(tmp_path / "blank_seg.nii.gz", np.zeros(trunk_grid().shape, np.uint8), trunk_grid())
    bank = _open(tmp_path)
    files = {base.origin["file"] for base in islice(bank.draw_bases([LIVER_LESION], required_ids=(), seed=1), 4)}
    assert files == {"good_seg.nii.gz"}
    reasons = dict(bank.skipped)
    assert set(reasons) == {"empty_seg.nii.gz", "torn_seg.nii.gz", "blank_seg.nii.gz"}
    assert reasons["empty_seg.nii.gz"] == "empty_seg.nii.gz is empty"
    assert "damaged or empty" in reasons["torn_seg.nii.gz"]
    assert "has no labels, only background" in reasons["blank_seg.nii.gz"]
    assert len(bank) == 1


def test_bank_without_a_usable_file_is_an_error_that_names_one(tmp_path: Path) -> None:
    with pytest.raises(BankError, match="no label maps found"):
        _open(tmp_path)
    (tmp_path / "a_seg.nii.gz").write_bytes(b"")
    with pytest.raises(BankError, match="none of the 1 label maps can be used; the first is"):
        _open(tmp_path)
    (tmp_path / "a_seg.nii.gz").write_bytes(b"no image")
    bank = _open(tmp_path)
    with pytest.raises(BankError, match="none of the 1 label maps can be used; the first is"):
        _first(bank)


def test_body_comes_from_the_ct_without_its_table(tmp_path: Path) -> None:
    write_case(tmp_path, "a", build_trunk(with_body=False), with_ct=True)
    bank = _open(tmp_path)
    bank_map = bank.load(0)
    assert bank_map is not None
    truth = build_trunk() > 0
    found = bank_map.label_map > 0
    assert 2 * (truth & found).sum() / (truth.sum() + found.sum()) > 0.98
    assert not found[:, 2].any()
    assert _first(bank).origin["body_from"] == "a_ct.nii.gz"


def test_ct_on_another_grid_is_resampled_to_the_map(tmp_path: Path) -> None:
    label_map = build_trunk(with_body=False)
    write_case(tmp_path, "a", label_map)
    affine = trunk_grid().affine @ np.diag([2, 1, 1, 1.0])
    save_image(tmp_path / "a_ct.nii.gz", build_ct(label_map)[::2], Grid((22, 36, 40), affine))
    bank_map = _open(tmp_path).load(0)
    assert bank_map is not None
    assert 0.9 < (bank_map.label_map > 0).sum() / (build_trunk() > 0).sum() < 1.1


def test_map_without_body_and_without_ct_is_told_what_it_lacks(tmp_path: Path) -> None:
    write_case(tmp_path, "a", build_trunk(with_body=False))
    with pytest.raises(BankError, match="a_seg.nii.gz: needs a filled body"):
        _first(_open(tmp_path))
    with pytest.raises(BankError, match="or a CT to find the body in"):
        _open(tmp_path, "totalsegmentator-v1")  # known without reading, as these numbers never have a body


@pytest.mark.parametrize("first_row", [0, 15], ids=["closed", "cut"])
def test_skin_alone_is_no_envelope(tmp_path: Path, first_row: int) -> None:
    label_map = build_trunk()
    organs = np.isin(label_map, (LIVER, SPLEEN, LEFT_KIDNEY))
    skin = (label_map > 0) & ~ndimage.binary_erosion(label_map > 0, border_value=1)
    source = np.where(skin, 2, organs).astype(np.uint8)[first_row:]
    grid = Grid(source.shape, trunk_grid().affine)
    save_label_map(tmp_path / "a_seg.nii.gz", source, grid)
    (tmp_path / "labels.json").write_text(json.dumps({"1": "liver", "2": "skin"}))
    with pytest.raises(BankError, match="or a CT to find the body in"):
        _first(_open(tmp_path, {"skin": "body"}))
    save_image(tmp_path / "a_ct.nii.gz", build_ct(label_map)[first_row:], grid)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the skin, which the vocabulary lacks
        bank_map = _open(tmp_path, "auto").load(0)
    assert bank_map is not None
    assert bank_map.image_name == "a_ct.nii.gz"
    assert (bank_map.label_map[label_map[first_row:] > 0] > 0).mean() > 0.98


def test_few_voxels_called_body_are_no_envelope(tmp_path: Path) -> None:
    label_map = build_trunk(with_body=False)
    label_map[20, 18, 18:22] = BODY
    write_case(tmp_path, "a", label_map)
    with pytest.raises(BankError, match="or a CT to find the body in"):
        _first(_open(tmp_path, "maisi"))
    write_case(tmp_path, "a", label_map, with_ct=True)
    bank_map = _open(tmp_path, "maisi").load(0)
    assert bank_map is not None
    assert (bank_map.label_map[build_trunk() > 0] > 0).mean() > 0.98


def test_names_are_translated_and_unknown_ones_reported_once(tmp_path: Path) -> None:
    label_map = build_trunk(with_body=False)
    source = np.select([label_map == LIVER, label_map == SPLEEN, label_map == LEFT_KIDNEY], [5, 6, 7], 0)
    write_case(tmp_path, "a", source.astype(np.uint8), with_ct=True)
    write_case(tmp_path, "b", source.astype(np.uint8), with_ct=True)
    (tmp_path / "labels.json").write_text(json.dumps({"5": "liver", "6": "milt", "7": "kidney_left"}))
    with pytest.warns(UserWarning, match="labels not in the vocabulary: milt; they become body") as caught:
        bank = _open(tmp_path, "auto")
    bank_map = bank.load(0)
    bank.load(1)
    assert len(caught) == 1
    assert bank_map is not None
    np.testing.assert_array_equal(bank_map.label_map == LIVER, label_map == LIVER)
    assert (bank_map.label_map[label_map == SPLEEN] == BODY).all()


def test_ids_without_meaning_are_refused_at_once(tmp_path: Path) -> None:
    write_case(tmp_path, "a", build_trunk(with_body=False), with_ct=True)
    with pytest.raises(BankError, match="a_seg.nii.gz: the meaning of its labels is unknown: it has ids up to 14"):
        _open(tmp_path, "auto")


def test_map_whose_ids_have_no_meaning_is_skipped_and_named(tmp_path: Path) -> None:
    for name in ("c1", "c3"):
        write_case(tmp_path, name, build_trunk(with_body=False), with_ct=True)
    for name in ("c2", "c4"):
        write_case(tmp_path, name, build_trunk())
    bank = _open(tmp_path, "auto")
    bases = list(islice(bank.draw_bases([LIVER_LESION], required_ids=(), seed=1), 6))
    assert {base.origin["file"] for base in bases} == {"c2_seg.nii.gz", "c4_seg.nii.gz"}
    assert [name for name, _ in bank.skipped] == ["c1_seg.nii.gz", "c3_seg.nii.gz"]
    assert all("the meaning of its labels is unknown: it has ids up to 14" in reason for _, reason in bank.skipped)
    assert len(bank) == 2


def test_maisi_ids_need_no_word_where_the_map_has_a_body(tmp_path: Path) -> None:
    write_case(tmp_path, "a", build_trunk())
    assert _first(_open(tmp_path, "auto")).label_map.max() == BODY


def test_masks_of_single_organs_become_one_map(tmp_path: Path) -> None:
    label_map = build_trunk(tumours_mm=(16.0,), with_body=False)
    names = {LIVER: "liver", SPLEEN: "spleen", LEFT_KIDNEY: "kidney_left", HEPATIC_TUMOR: "liver_tumor"}
    for label_id, name in names.items():
        inside = np.isin(label_map, (LIVER, HEPATIC_TUMOR)) if label_id == LIVER else label_map == label_id
        save_label_map(tmp_path / "s1" / "segmentations" / f"{name}.nii.gz", inside, trunk_grid())
    save_image(tmp_path / "s1" / "ct.nii.gz", build_ct(label_map), trunk_grid())
    bank_map = _open(tmp_path, "auto").load(0)
    assert bank_map is not None
    for label_id in names:
        np.testing.assert_array_equal(bank_map.label_map == label_id, label_map == label_id)
    assert len(bank_map.sha256) == 64


@pytest.mark.parametrize("envelope", ["body", "outline"])
def test_masks_of_organs_win_over_the_envelope_and_over_unknown_names(tmp_path: Path, envelope: str) -> None:
    label_map = build_trunk(tumours_mm=(16.0,))
    masks = {LIVER: "Liver", SPLEEN: "aorta", LEFT_KIDNEY: "kidney_left", HEPATIC_TUMOR: "Liver_Tumor"}
    for label_id, name in masks.items():
        inside = np.isin(label_map, (LIVER, HEPATIC_TUMOR)) if label_id == LIVER else label_map == label_id
        save_label_map(tmp_path / f"{name}.nii.gz", inside, trunk_grid())
    save_label_map(tmp_path / f"{envelope}.nii.gz", label_map > 0, trunk_grid())
    save_label_map(tmp_path / "viscera.nii.gz", np.isin(label_map, list(masks)), trunk_grid())
    save_image(tmp_path / "ct.nii.gz", build_ct(label_map), trunk_grid())
    with pytest.warns(UserWarning, match="labels not in the vocabulary: .*viscera; they become body"):
        bank_map = _open(tmp_path, "auto").load(0)
    assert bank_map is not None
    for label_id, name in masks.items():
        np.testing.assert_array_equal(bank_map.label_map == MAISI.id_of(name), label_map == label_id)
    assert (bank_map.label_map[label_map == BODY] == BODY).all()
    assert bank_map.image_name == (None if envelope == "body" else "ct.nii.gz")


def test_only_maps_with_host_and_required_organs_are_drawn(tmp_path: Path) -> None:
    write_case(tmp_path, "full", build_trunk())
    without_spleen = build_trunk()
    without_spleen[without_spleen == SPLEEN] = BODY
    write_case(tmp_path, "nospleen", without_spleen)
    bank = _open(tmp_path)
    bases = islice(bank.draw_bases([LIVER_LESION], required_ids=(SPLEEN,), seed=1), 5)
    assert {base.origin["file"] for base in bases} == {"full_seg.nii.gz"}
    assert list(bank.draw_bases([LIVER_LESION], required_ids=(10,), seed=1)) == []


def test_data_list_ids_save_reading_the_file(tmp_path: Path) -> None:
    write_case(tmp_path, "a", build_trunk())
    (tmp_path / "b_seg.nii.gz").write_bytes(b"never read")
    rows = [
        {"label": "a_seg.nii.gz"},
        {"pseudo_label_filename": "b_seg.nii.gz", "label_list": [LEFT_KIDNEY, BODY]},
    ]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    bank = _open(tmp_path / "list.json")
    assert _first(bank).origin["file"] == "a_seg.nii.gz"
    assert bank.skipped == []


def test_slab_too_thin_for_the_grid_is_skipped(tmp_path: Path) -> None:
    save_label_map(tmp_path / "a_seg.nii.gz", build_trunk()[:, :, 14:26], Grid((44, 36, 12), trunk_grid().affine))
    with pytest.raises(BankError, match="covers 78 mm from feet to head, at least 96 mm"):
        _first(_open(tmp_path))


def test_cache_keeps_to_its_budget(tmp_path: Path) -> None:
    for number in range(3):
        write_case(tmp_path, f"c{number}", build_trunk(seed=number))
    bank = FolderBank(tmp_path, vocabulary=MAISI, grid=network_grid(), mapping="maisi", cache_bytes=1)
    first = bank.load(0)
    assert bank.load(0) is first
    bank.load(1)
    assert bank.load(0) is not first


def test_real_scan_with_totalsegmentators_numbers(real_data: Path) -> None:
    grid = Grid.from_spacing((128, 96, 80), (3.2, 3.2, 3.2))
    folder = real_data / "totalsegmentator-example"
    by_name = FolderBank(folder, vocabulary=MAISI, grid=grid)
    by_version = FolderBank(folder, vocabulary=MAISI, grid=grid, mapping="totalsegmentator-v1")
    one, other = by_name.load(0), by_version.load(0)
    assert one is not None
    assert other is not None
    np.testing.assert_array_equal(one.label_map, other.label_map)
    source = load_label_map(folder / "example_seg_v1_104classes.nii.gz").array
    np.testing.assert_array_equal(one.label_map == LIVER, source == 5)
    assert 0.3 < (one.label_map == BODY).mean() < 0.7
    assert (one.label_map[:, :3] > 0).mean() < 0.02
    base = _first(by_name, required_ids=(SPLEEN,))
    assert base.label_map.shape == grid.shape
    assert len(np.unique(base.label_map)) > 30


def test_mask_of_several_ids_in_a_folder_of_masks_is_refused_with_the_ids(tmp_path: Path) -> None:
    trunk = build_trunk(tumours_mm=(20.0,))
    for label_id, name in ((LIVER, "liver"), (SPLEEN, "spleen"), (LEFT_KIDNEY, "kidney_left")):
        save_label_map(tmp_path / "a" / f"{name}.nii.gz", (trunk == label_id).astype(np.uint8), trunk_grid())
    save_image(tmp_path / "a" / "ct.nii.gz", build_ct(trunk), trunk_grid())
    two = np.select([trunk == LIVER, trunk == HEPATIC_TUMOR], [1, 2], 0).astype(np.uint8)
    save_label_map(tmp_path / "a" / "liver.nii.gz", two, trunk_grid())
    bank = _open(tmp_path, "auto")
    with pytest.raises(BankError, match=r"liver.nii.gz: expected a mask of one label, 'liver', found 2 ids: 1 \(\d+"):
        bank.load(0)


def test_lesion_that_the_vocabulary_lacks_is_healed_and_told(tmp_path: Path) -> None:
    trunk = build_trunk(tumours_mm=(20.0,))
    write_case(
        tmp_path, "a", np.select([trunk == LIVER, trunk == HEPATIC_TUMOR], [1, 2], 0).astype(np.uint8), with_ct=True
    )
    (tmp_path / "labels.json").write_text(json.dumps({"1": "liver", "2": "liver cyst"}))
    with pytest.warns(UserWarning, match="these lesions are replaced by the organ around them"):
        bank = _open(tmp_path, "auto")
    found = bank.load(0)
    assert found is not None
    np.testing.assert_array_equal(found.label_map == LIVER, np.isin(trunk, (LIVER, HEPATIC_TUMOR)))


def test_map_that_is_looked_at_and_then_drawn_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_case(tmp_path, "a", build_trunk(with_body=False), with_ct=True)
    read = [counted(monkeypatch, folder_bank, name) for name in ("load_entry", "hash_of", "hash_of_image")]
    bank = _open(tmp_path)
    ids, bank_map, grid = bank.ids_of(0), bank.load(0), bank.grid_of(0)
    assert bank_map is not None
    assert (ids, grid) == (frozenset({0, LIVER, SPLEEN, LEFT_KIDNEY, BODY}), bank_map.grid)
    assert bank.load(0) is bank_map
    bank.require_unchanged([{"file": "a_seg.nii.gz", "sha256": bank_map.sha256, **bank_map.body_origin}])
    assert [len(calls) for calls in read] == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "message"),
    [("a_ct.nii.gz", "the CT of a_seg.nii.gz"), ("a_seg.nii.gz", "the label map a_seg.nii.gz")],
)
def test_file_that_holds_something_else_than_when_it_was_drawn_from_is_told(
    tmp_path: Path, name: str, message: str
) -> None:
    write_case(tmp_path, "a", build_trunk(with_body=False), with_ct=True)
    origin = _first(_open(tmp_path)).origin
    assert (len(origin["sha256"]), len(origin["body_sha256"])) == (16, 16)
    _open(tmp_path).require_unchanged([origin, {"file": "of another bank", "sha256": "0" * 16}])
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CohortError, match=f"{message} has changed since this cohort was begun"):
        _open(tmp_path).require_unchanged([origin])
