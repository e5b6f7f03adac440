"""NVIDIA's mask database is read from its zip or its folder by its list alone, and nothing in it can do harm."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from maisi_aug.banks.entry import Needs
from maisi_aug.banks.files import digest_of, find_entries
from maisi_aug.banks.folder_bank import FolderBank
from maisi_aug.cli.app import run
from maisi_aug.cohort.manifest import load_manifest
from maisi_aug.errors import BankError
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.lesions.planting import measure_lesions
from maisi_aug.sources.plant_and_bank import BankSource, PlantSource
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.vocabulary.regions import Regions
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_label_map
from tests.builders.lesions import ask_for, draw
from tests.builders.processor_time import is_done_within
from tests.builders.random_bundle import write_random_bundle
from tests.builders.tiny_bank import (
    BODY,
    HEPATIC_TUMOR,
    LEFT_KIDNEY,
    LIVER,
    SPLEEN,
    build_trunk,
    network_grid,
    trunk_grid,
    write_case,
)
from tests.builders.tiny_bundle import build_ddpm_header, build_header
from tests.builders.tiny_database import LIST_NAME, MAPS_NAME, add_member, build_row, write_database, write_list

LUNG_TUMOR, LUNG_LOBE, BRAIN, FEMUR = 23, 28, 22, 93


def _wish(volume_ml: float) -> Lesion:
    return ask_for(HEPATIC_TUMOR, (LIVER,), volume_ml)


def _open(path: Path, *, grid: Grid | None = None, body_region: Regions | None = None) -> FolderBank:
    return FolderBank(path, vocabulary=MAISI, grid=grid or network_grid(), body_region=body_region)


def _find(path: Path) -> tuple[list[str], list[tuple[str, str]]]:
    entries, skipped = find_entries(path, lambda name: False)
    return [Path(entry.name).name for entry in entries], skipped


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write three trunks: without a tumour, with a hepatic one, and with a lung tumour as well."""

    def write(**arguments: Any) -> Path:
        both = build_trunk(tumours_mm=(16.0,), seed=2)
        both[8:12, 16:20, 30:33] = LUNG_TUMOR
        maps = {"healthy.nii.gz": build_trunk(), "liver.nii.gz": build_trunk(tumours_mm=(18.0,), seed=1)}
        return write_database(
            tmp_path, {name: (it, trunk_grid()) for name, it in {**maps, "both.nii.gz": both}.items()}, **arguments
        )

    return write


@pytest.mark.parametrize("packed", [True, False])
def test_archive_folder_list_and_the_folder_of_all_mean_the_same(
    write: Callable[..., Path], tmp_path: Path, packed: bool
) -> None:
    place = write(packed=packed)
    expected = ["both.nii.gz", "healthy.nii.gz", "liver.nii.gz"]
    for path in (place, tmp_path / LIST_NAME, tmp_path):
        assert _find(path) == (expected, [])
    entries, _ = find_entries(place, lambda name: False)
    assert entries[1].listed_ids == (LIVER, SPLEEN, LEFT_KIDNEY, BODY)
    assert entries[1].extent_mm == pytest.approx(trunk_grid().extent_mm)
    assert entries[1].regions == ("abdomen", "abdomen")
    assert len(digest_of(entries)) == 64


@pytest.mark.parametrize("packed", [True, False])
def test_map_is_read_as_it_was_written_and_nothing_is_unpacked(
    write: Callable[..., Path], tmp_path: Path, packed: bool
) -> None:
    bank = _open(write(packed=packed))
    before = sorted(tmp_path.rglob("*"))
    bank_map = bank.load(1)
    assert bank_map is not None
    np.testing.assert_array_equal(bank_map.label_map, build_trunk())
    np.testing.assert_allclose(bank_map.grid.affine, trunk_grid().affine)
    assert len(bank_map.sha256) == 64
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("packed", [True, False])
def test_plant_and_bank_draw_from_the_database(write: Callable[..., Path], packed: bool) -> None:
    bank = _open(write(packed=packed))
    planted = draw(PlantSource(bank), [_wish(8.0)], required_ids=(SPLEEN,), seed=3)
    taken = draw(BankSource(bank), [_wish(20.0)], required_ids=(SPLEEN,), seed=3)
    for drawn, volume_ml in ((planted, 8.0), (taken, 20.0)):
        (found_ml,) = measure_lesions(drawn.label_map, HEPATIC_TUMOR, drawn.grid.voxel_ml)
        assert found_ml == pytest.approx(volume_ml, rel=0.1)
        assert (drawn.label_map == SPLEEN).any()
        assert not (drawn.label_map == LUNG_TUMOR).any()
    assert Path(taken.origin["file"]).name == "liver.nii.gz"


def test_bank_leaves_out_tumours_that_were_not_asked_for(write: Callable[..., Path]) -> None:
    bank = _open(write())
    names = {Path(draw(BankSource(bank), [_wish(20.0)], seed=seed).origin["file"]).name for seed in range(5)}
    assert names == {"liver.nii.gz"}
    assert bank.order(0, Needs(frozenset({HEPATIC_TUMOR, LUNG_TUMOR}), only_tumor_ids=frozenset({HEPATIC_TUMOR}))) == []
    with pytest.raises(BankError, match="no map contains pancreatic tumor"):
        draw(BankSource(bank), [ask_for(24, (4,), 3.0)], seed=1)


def test_label_that_the_list_promises_and_the_map_lacks_disqualifies_the_map(tmp_path: Path) -> None:
    poor = build_trunk(seed=1)
    poor[poor == SPLEEN] = BODY
    maps = {"a.nii.gz": (build_trunk(), trunk_grid()), "b.nii.gz": (poor, trunk_grid())}
    promised = {"b.nii.gz": {"label_list": [LIVER, SPLEEN, LEFT_KIDNEY, HEPATIC_TUMOR, BODY]}}
    bank = _open(write_database(tmp_path, maps, fields=promised))
    drawn = [draw(PlantSource(bank), [_wish(8.0)], required_ids=(SPLEEN,), seed=seed) for seed in range(4)]
    assert {Path(one.origin["file"]).name for one in drawn} == {"a.nii.gz"}
    with pytest.raises(BankError, match="no map contains hepatic tumor"):
        draw(BankSource(bank), [_wish(8.0)], seed=1)


@pytest.mark.parametrize(
    ("body_region", "expected"),
    [
        (None, {"chest", "trunk", "legs", "told"}),
        (("thorax", "thorax"), {"chest", "trunk", "told"}),
        (("abdomen", "pelvis"), {"trunk", "told"}),
        (("head", "head"), set()),
    ],
)
def test_maps_show_the_body_regions_asked_for(tmp_path: Path, body_region: Regions | None, expected: set[str]) -> None:
    ids = {"chest": [LUNG_LOBE, BODY], "trunk": [LUNG_LOBE, LIVER, FEMUR, BODY], "legs": [FEMUR, BODY], "told": [BODY]}
    regions = {"top_region_index": [0, 1, 0, 0], "bottom_region_index": [0, 0, 0, 1]}
    rows = {
        f"{name}.nii.gz": {"label_list": label_list, **(regions if name == "told" else {})}
        for name, label_list in ids.items()
    }
    maps = {name: (build_trunk(), trunk_grid()) for name in rows}
    bank = _open(write_database(tmp_path, maps, fields=rows), body_region=body_region)
    assert {Path(bank._entries[index].name).name.partition(".")[0] for index in bank.order(1, Needs())} == expected


def _write_rows(tmp_path: Path, num_rows: int, seed: int = 0) -> tuple[Path, list[dict[str, Any]]]:
    """A list of rows of any field of view, and an archive of names."""
    rng = np.random.default_rng(seed)
    label_map = build_trunk()
    rows = []
    with zipfile.ZipFile(tmp_path / f"{MAPS_NAME}.zip", "w") as archive:
        for number in range(num_rows):
            grid = Grid.from_spacing((44, 36, 40), tuple(rng.uniform(2, 12, 3)))
            organs = rng.choice(np.arange(1, 133), 30, replace=False).tolist()
            rows.append(build_row(f"m{number}.nii.gz", label_map, grid, label_list=[*organs, LIVER, BODY]))
            archive.writestr(f"{MAPS_NAME}/tiny/m{number}.nii.gz", b"never read")
    write_list(tmp_path, rows)
    return tmp_path / f"{MAPS_NAME}.zip", rows


def test_nearest_fields_of_view_come_first_and_chance_decides_among_them(tmp_path: Path) -> None:
    path, rows = _write_rows(tmp_path, 200)
    bank = _open(path)
    needs = Needs(frozenset({LIVER}), only_tumor_ids=frozenset(MAISI.tumor_ids))
    distances = {}
    for row in rows:
        extent = np.array(row["dim"]) * row["spacing"]
        if extent[2] >= 0.5 * network_grid().extent_mm[2]:
            distances[row["pseudo_label_filename"].rpartition("/")[2]] = float(
                np.abs(np.log(extent / network_grid().extent_mm)).max()
            )
    order = [Path(bank._entries[index].name).name for index in bank.order(1, needs)]
    assert set(order) == set(distances)
    nearest = sorted(distances, key=lambda name: distances[name])
    assert set(order[:32]) == set(nearest[:32]) != set(order[32:64])
    assert order[:32] != nearest[:32]
    assert order[32:] == nearest[32:]
    assert bank.order(1, needs) == bank.order(1, needs) != bank.order(2, needs)


def test_maps_without_tumours_go_first_where_tumours_are_removed_anyway(tmp_path: Path) -> None:
    path, _ = _write_rows(tmp_path, 300)
    bank = _open(path)
    order = bank.order(1, Needs())
    has_tumor = [bool(set(bank._entries[index].listed_ids or ()).intersection(MAISI.tumor_ids)) for index in order]
    assert 32 <= has_tumor.count(False) < len(order) < 300
    assert has_tumor == sorted(has_tumor)


def test_four_thousand_rows_are_ranked_in_well_under_a_second(tmp_path: Path) -> None:
    path, _ = _write_rows(tmp_path, 4000)
    bank, needs = _open(path), Needs(frozenset({LIVER, SPLEEN}), (frozenset({4}),))
    assert 100 < len(bank.order(1, needs)) < 4000
    assert is_done_within(0.3, lambda: bank.order(1, needs))
    assert is_done_within(1.5, lambda: _open(path))


@pytest.mark.parametrize(
    ("name", "is_link", "fault"),
    [
        ("../outside.nii.gz", False, "a path that leaves it"),
        (f"{MAPS_NAME}/../../outside.txt", False, "a path that leaves it"),
        ("..\\outside.nii.gz", False, "a path that leaves it"),
        ("/etc/outside.nii.gz", False, "an absolute path"),
        ("C:\\outside.nii.gz", False, "an absolute path"),
        (f"{MAPS_NAME}/tiny/link.nii.gz", True, "a link"),
    ],
)
def test_archive_with_a_member_that_leaves_its_folder_is_refused(
    write: Callable[..., Path], tmp_path: Path, name: str, is_link: bool, fault: str
) -> None:
    archive = write()
    add_member(archive, name, b"/etc/passwd", is_link=is_link)
    before = sorted(tmp_path.parent.rglob("*"))
    with pytest.raises(BankError, match=f"member '.*' would be written outside the folder: {fault}. Nothing"):
        _open(archive)
    assert sorted(tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize("path", ["../../healthy.nii.gz", "/etc/healthy.nii.gz", "tiny/..\\..\\healthy.nii.gz"])
@pytest.mark.parametrize("packed", [True, False])
def test_list_that_leaves_the_folder_is_refused(write: Callable[..., Path], packed: bool, path: str) -> None:
    fields = {"liver.nii.gz": {"pseudo_label_filename": path}}
    with pytest.raises(BankError, match="row 1: the path must stay inside the database, found '"):
        _open(write(packed=packed, fields=fields))


def test_link_out_of_the_folder_is_skipped_and_named(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = write(packed=False)
    write_case(tmp_path / "elsewhere", "x", build_trunk())
    (folder / "tiny" / "liver.nii.gz").unlink()
    (folder / "tiny" / "liver.nii.gz").symlink_to(tmp_path / "elsewhere" / "x_seg.nii.gz")
    (folder / "tiny" / "same.nii.gz").symlink_to(folder / "tiny" / "healthy.nii.gz")
    names, skipped = _find(folder)
    assert names == ["both.nii.gz", "healthy.nii.gz"]
    assert [reason for _, reason in skipped] == ["liver.nii.gz is a link that leaves the folder"]


def test_missing_torn_and_empty_members_are_skipped_named_and_counted(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    archive = write()
    rows = json.loads((tmp_path / LIST_NAME).read_text())
    names = ("gone.nii.gz", "empty.nii.gz", "torn.nii.gz", "noise.nii.gz")
    write_list(tmp_path, [*rows, *(build_row(name, build_trunk(), trunk_grid()) for name in names)])
    with zipfile.ZipFile(archive) as opened:
        good = opened.read(f"{MAPS_NAME}/tiny/healthy.nii.gz")
    add_member(archive, f"{MAPS_NAME}/tiny/empty.nii.gz", b"")
    add_member(archive, f"{MAPS_NAME}/tiny/torn.nii.gz", good[:300])
    add_member(archive, f"{MAPS_NAME}/tiny/noise.nii.gz", b"\0" * 5000)
    add_member(archive, f"{MAPS_NAME}/tiny/unlisted.nii.gz", b"never read")
    content = bytearray(archive.read_bytes())
    content[content.index(good) + len(good) // 2] ^= 0xFF  # the archive's own checksum tells
    archive.write_bytes(content)
    bank = _open(archive)
    assert len(bank) == 5
    for index in range(5):
        bank.load(index)
    reasons = {Path(name).name: reason for name, reason in bank.skipped}
    assert set(reasons) == {*names, "healthy.nii.gz"}
    assert reasons["gone.nii.gz"] == "gone.nii.gz is missing"
    assert reasons["empty.nii.gz"] == "empty.nii.gz is empty"
    assert "compressed data ends too early" in reasons["torn.nii.gz"]
    assert "but damaged or empty" in reasons["noise.nii.gz"]
    assert "this member of" in reasons["healthy.nii.gz"]
    assert "Bad CRC-32" in reasons["healthy.nii.gz"]
    assert len(bank) == 2
    assert draw(PlantSource(bank), [_wish(8.0)], seed=1).lesions


def test_bombs_are_refused_before_they_go_off(write: Callable[..., Path], tmp_path: Path) -> None:
    archive = write()
    tiny = Grid((4, 4, 4), np.eye(4))
    rows = [build_row(f"{name}.nii.gz", np.ones((4, 4, 4), np.uint8), tiny) for name in ("outer", "inner")]
    write_list(tmp_path, [*json.loads((tmp_path / LIST_NAME).read_text()), *rows])
    add_member(archive, f"{MAPS_NAME}/tiny/outer.nii.gz", b"\0" * 2**24)
    large = nib.Nifti1Image(np.zeros((256, 256, 256), np.uint8), np.eye(4))
    add_member(archive, f"{MAPS_NAME}/tiny/inner.nii.gz", gzip.compress(large.to_bytes()))
    bank = _open(archive)
    index = next(index for index, entry in enumerate(bank._entries) if entry.name.endswith("inner.nii.gz"))
    assert bank.load(index) is None
    reasons = {Path(name).name: reason for name, reason in bank.skipped}
    assert "larger than the 1 MB that the archive's list states" in reasons["outer.nii.gz"]
    assert "it unpacks to more than 1 MB" in reasons["inner.nii.gz"]


def test_damaged_archive_is_told_in_one_sentence(write: Callable[..., Path]) -> None:
    archive = write()
    archive.write_bytes(archive.read_bytes()[:-400])
    with pytest.raises(BankError, match=".zip: not a readable zip archive"):
        _open(archive)


def test_archive_needs_one_list_that_belongs_to_it(write: Callable[..., Path], tmp_path: Path) -> None:
    archive = write()
    ddpm = tmp_path / LIST_NAME.replace("4000", "3000")
    ddpm.write_text(json.dumps(json.loads((tmp_path / LIST_NAME).read_text())[:1]))
    assert len(_find(archive)[0]) == 3
    assert len(_find(ddpm)[0]) == 1
    (tmp_path / LIST_NAME).rename(tmp_path / LIST_NAME.replace("4000", "2000"))
    with pytest.raises(BankError, match="the list of its maps must be next to it, found"):
        _find(archive)
    for path in tmp_path.glob("*.json"):
        path.unlink()
    with pytest.raises(BankError, match=r"found no candidate_masks\*\.json. Download the list as well"):
        _find(archive)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": [44, 36]}, r"row 0: expected 3 numbers as 'dim', found \[44, 36\]"),
        ({"spacing": [1.0, 0.0, 2.0]}, r"expected ids up to 255, whole sides and a spacing in mm"),
        ({"label_list": [1, 999]}, r"found \[999\]"),
        ({"label_list": "1, 3"}, "expected numbers as 'label_list', found '1, 3'"),
        ({"top_region_index": [0, 1, 1, 0]}, r"expected one region as 'top_region_index', found \[0, 1, 1, 0\]"),
        ({"pseudo_label_filename": 3}, "'pseudo_label_filename' is missing or not text"),
    ],
)
def test_row_that_cannot_be_read_is_named(write: Callable[..., Path], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BankError, match=message):
        _find(write(fields={"healthy.nii.gz": fields}))


def test_files_that_end_alike_are_not_mistaken_for_each_other(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = write(packed=False)
    save = folder / "tiny" / "liver.nii.gz"
    for place in ("other", "other/tiny"):
        (folder / place).mkdir()
        (folder / place / save.name).write_bytes(save.read_bytes())
    assert _find(folder)[1] == []  # all of the path is known
    rows = json.loads((tmp_path / LIST_NAME).read_text())
    rows[1]["pseudo_label_filename"] = "gone/liver.nii.gz"
    write_list(tmp_path, rows)
    ((name, reason),) = _find(folder)[1]
    assert name == "gone/liver.nii.gz"
    assert reason.startswith("liver.nii.gz has 3 files")


@pytest.mark.parametrize(
    ("source", "build"),
    [("plant", build_ddpm_header), ("bank", build_ddpm_header), ("bank", build_header)],
    ids=["plant", "bank", "bank for networks that are not told regions"],
)
def test_cohort_from_the_zip(
    write: Callable[..., Path],
    tmp_path: Path,
    source: str,
    build: Callable[[], dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_random_bundle(tmp_path / "bundle", build(), seed=0)
    (tmp_path / "recipe.yaml").write_text(
        "labels: ['hepatic tumor:20mL']\nbody_region: [abdomen]\ngates: {organ_hu: false, visibility: false}\n"
    )
    options = {
        "--recipe": tmp_path / "recipe.yaml",
        "--bundle": tmp_path / "bundle",
        "--mask-bank": write(),
        "--mask-source": source,
        "-n": 2,
        "--device": "cpu",
        "--out": tmp_path / "out",
    }
    code = run(["synthesize", *(str(word) for option in options.items() for word in option)])
    assert code == 0, capsys.readouterr().err
    records = load_manifest(tmp_path / "out").accepted
    assert len(records) == 2
    for record in records:
        anatomy = load_label_map(tmp_path / "out" / record.files["anatomy"].path)
        assert {LIVER, HEPATIC_TUMOR, BODY} <= set(np.unique(anatomy.array))
        assert record.mask_origin["bank"] == f"{MAPS_NAME}.zip"
        assert source == "plant" or str(record.mask_origin["file"]).endswith("liver.nii.gz")
