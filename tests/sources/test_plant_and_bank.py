"""Both mask sources give the lesions asked for and no other, by seed alone, or say why they cannot."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from maisi_aug.banks.folder_bank import FolderBank
from maisi_aug.banks.label_map import BankMap, BaseMap
from maisi_aug.errors import BankError, LesionError
from maisi_aug.lesions.lesion import Lesion, growth_rule_of
from maisi_aug.lesions.planting import measure_lesions
from maisi_aug.sources.map_source import MaskBank
from maisi_aug.sources.plant_and_bank import BankSource, PhantomBank, PlantSource
from maisi_aug.vocabulary.labels import MAISI, SlotBinding
from maisi_aug.volumes.grid import Grid
from tests.builders.lesions import Drawn, ask_for, draw
from tests.builders.tiny_bank import (
    BODY,
    HEPATIC_TUMOR,
    LEFT_KIDNEY,
    LIVER,
    SPLEEN,
    build_trunk,
    network_grid,
    write_case,
)

KIDNEY_TUMOR = 129
VOCABULARY = MAISI.with_slots({"kidney tumor": SlotBinding(KIDNEY_TUMOR, (5, LEFT_KIDNEY))})


def _bank(path: Path) -> FolderBank:
    return FolderBank(path, vocabulary=VOCABULARY, grid=network_grid(), mapping="maisi")


def _wish(label_id: int, volume_ml: float) -> Lesion:
    return ask_for(label_id, VOCABULARY.hosts_of(label_id), volume_ml, VOCABULARY.name_of(label_id))


def _require_exact(drawn: Drawn, wishes: list[Lesion]) -> None:
    """The map holds these lesions to a voxel or 10%, and no other tumour."""
    voxel_ml = drawn.grid.voxel_ml
    for label_id in VOCABULARY.tumor_ids:
        wanted = sorted((wish.requested_ml for wish in wishes if wish.label_id == label_id), reverse=True)
        found = measure_lesions(drawn.label_map, label_id, voxel_ml)
        assert len(found) == len(wanted)
        for have, want in zip(found, wanted, strict=True):
            assert abs(have - want) <= max(0.1 * want, 2 * voxel_ml)
    assert [lesion.label_id for lesion in drawn.lesions] == [wish.label_id for wish in wishes]
    for lesion in drawn.lesions:
        assert drawn.label_map[lesion.centre_ijk] == lesion.label_id
        assert (drawn.label_map == lesion.label_id).sum() >= lesion.num_voxels > 0


@pytest.fixture
def healthy_bank(tmp_path: Path) -> FolderBank:
    for number in range(3):
        write_case(tmp_path, f"c{number}", build_trunk(seed=number))
    return _bank(tmp_path)


@pytest.fixture
def tumour_bank(tmp_path: Path) -> FolderBank:
    for number, tumours in enumerate([(17.0, 12.0), (22.0,), (), (13.0, 14.5, 20.0)]):
        write_case(tmp_path, f"t{number}", build_trunk(tumours_mm=tumours, seed=number))
    return _bank(tmp_path)


@pytest.mark.parametrize("seed", range(4))
def test_planted_lesions_are_the_ones_asked_for(healthy_bank: FolderBank, seed: int) -> None:
    wishes = [_wish(HEPATIC_TUMOR, 25.0), _wish(KIDNEY_TUMOR, 6.0), _wish(HEPATIC_TUMOR, 8.0)]
    drawn = draw(PlantSource(healthy_bank), wishes, required_ids=(SPLEEN,), seed=seed)
    _require_exact(drawn, wishes)
    assert drawn.label_map.shape == network_grid().shape
    assert [lesion.host_id for lesion in drawn.lesions] == [LIVER, LEFT_KIDNEY, LIVER]
    assert (drawn.label_map == SPLEEN).any()


def test_planting_replaces_the_tumours_a_map_brings(tumour_bank: FolderBank) -> None:
    wishes = [_wish(KIDNEY_TUMOR, 6.0)]
    for seed in range(4):
        _require_exact(draw(PlantSource(tumour_bank), wishes, seed=seed), wishes)


def test_case_without_a_lesion_is_tumour_free(tumour_bank: FolderBank) -> None:
    _require_exact(draw(PlantSource(tumour_bank), [], required_ids=(LIVER,), seed=2), [])


@pytest.mark.parametrize("source", [PlantSource, BankSource])
def test_seed_alone_decides(tumour_bank: FolderBank, source: type[PlantSource | BankSource]) -> None:
    wishes = [_wish(HEPATIC_TUMOR, 20.0)]
    first = source(tumour_bank)
    drawn = [draw(first, wishes, seed=seed) for seed in (7, 8, 9)]
    again = source(FolderBank(tumour_bank._path, vocabulary=VOCABULARY, grid=network_grid(), mapping="maisi"))
    for seed, expected in reversed(list(zip((7, 8, 9), drawn, strict=True))):
        repeated = draw(again, wishes, seed=seed)
        np.testing.assert_array_equal(repeated.label_map, expected.label_map)
        assert repeated.origin == expected.origin
        assert repeated.lesions == expected.lesions
        assert repeated.grid.is_close(expected.grid, tolerance_mm=0)
    assert len({one.label_map.tobytes() for one in drawn}) == 3
    assert json.loads(json.dumps(drawn[0].origin)) == drawn[0].origin


def test_maps_of_a_folder_are_deformed_and_say_by_how_much(healthy_bank: FolderBank) -> None:
    drawn = draw(PlantSource(healthy_bank), [_wish(HEPATIC_TUMOR, 8.0)], seed=1)
    plain = draw(PlantSource(healthy_bank, deform_strength=0.0), [_wish(HEPATIC_TUMOR, 8.0)], seed=1)
    assert 0.5 <= drawn.origin["deform_strength"] <= 1.0
    assert plain.origin["deform_strength"] == 0.0
    assert drawn.origin["file"] == plain.origin["file"]
    assert 0.005 < (drawn.label_map != plain.label_map).mean() < 0.2


def test_host_that_is_too_small_is_told_after_bounded_tries(healthy_bank: FolderBank) -> None:
    with pytest.raises(LesionError, match=r"kidney tumor: no room for 400.*left kidney"):
        draw(PlantSource(healthy_bank, max_bases=3), [_wish(KIDNEY_TUMOR, 400.0)], seed=1)


class CountingBank(MaskBank):
    """A new patient at every draw, with a kidney of a given edge; counts the draws."""

    name = "counting"
    varies = True
    vocabulary = VOCABULARY

    def __init__(self, edges: Iterable[int]) -> None:
        self.grid = Grid.from_spacing((24, 22, 20), (5.0, 5.0, 5.0))
        self.edges = edges
        self.num_drawn = 0

    def draw_bases(self, lesions: Sequence[Lesion], *, required_ids: Sequence[int], seed: int) -> Iterator[BaseMap]:
        for edge in self.edges:
            self.num_drawn += 1
            label_map = np.full(self.grid.shape, BODY, dtype=np.uint8)
            label_map[4 : 4 + edge, 4 : 4 + edge, 4 : 4 + edge] = LEFT_KIDNEY
            yield BaseMap(label_map, self.grid, {})


@pytest.mark.parametrize(
    ("edges", "wishes_ml", "num_drawn"),
    [
        ([8] * 20, [64.0 * 1.6], 3),  # a kidney of 64 mL
        ([8] * 20, [64.0 * 1.4], 12),  # the next patient may have a larger one
        ([8] * 20, [40.0, 40.0, 40.0], 3),
        ([0, 0, 0, 0, 8, 8, 8], [200.0], 5),  # a window without the host says nothing
        ([6, 6, 8, 10], [90.0], 4),
    ],
)
def test_lesions_far_too_large_are_given_up_soon_and_others_are_not(
    edges: list[int], wishes_ml: list[float], num_drawn: int
) -> None:
    bank = CountingBank(edges)
    wishes = [_wish(KIDNEY_TUMOR, volume_ml) for volume_ml in wishes_ml]
    if edges[-1] == 10:
        _require_exact(draw(PlantSource(bank), wishes, seed=1), wishes)
    else:
        with pytest.raises(LesionError, match=r"kidney tumor: no room for .*\(left kidney\): .* mL are free"):
            draw(PlantSource(bank), wishes, seed=1)
    assert bank.num_drawn == num_drawn


def test_all_maps_of_a_small_bank_are_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        write_case(tmp_path, f"c{number}", build_trunk(seed=number))
    bank, drawn = _bank(tmp_path), list[int]()
    load = bank.load

    def load_and_note(index: int) -> BankMap | None:
        drawn.append(index)
        return load(index)

    monkeypatch.setattr(bank, "load", load_and_note)
    with pytest.raises(LesionError, match="no room for 400"):
        draw(PlantSource(bank), [_wish(KIDNEY_TUMOR, 400.0)], seed=1)
    assert sorted(drawn) == list(range(5))


def test_missing_host_and_missing_organ_are_named(healthy_bank: FolderBank) -> None:
    lung_tumor, pancreas = 23, 4
    with pytest.raises(BankError, match=r"no map has a host of lung tumor \(left lung upper lobe"):
        draw(PlantSource(healthy_bank), [_wish(lung_tumor, 2.0)], seed=1)
    with pytest.raises(BankError, match=" and pancreas"):
        draw(PlantSource(healthy_bank), [_wish(HEPATIC_TUMOR, 2.0)], required_ids=(pancreas,), seed=1)


@pytest.mark.parametrize("volume_ml", [8.0, 20.0, 35.0])
def test_bank_lesion_is_brought_to_the_volume_asked_for(tumour_bank: FolderBank, volume_ml: float) -> None:
    wishes = [_wish(HEPATIC_TUMOR, volume_ml)]
    for seed in range(3):
        drawn = draw(BankSource(tumour_bank), wishes, required_ids=(SPLEEN,), seed=seed)
        _require_exact(drawn, wishes)
        assert 0.5 <= volume_ml / drawn.origin["original_ml"][0] <= 2.0
        assert drawn.lesions[0].host_id == LIVER
        assert (drawn.label_map == BODY).any()


def test_several_lesions_come_from_one_map_that_has_them(tumour_bank: FolderBank) -> None:
    wishes = [_wish(HEPATIC_TUMOR, 8.0), _wish(HEPATIC_TUMOR, 18.0)]
    drawn = draw(BankSource(tumour_bank), wishes, seed=3)
    _require_exact(drawn, wishes)
    assert (drawn.lesions[0].realised_ml or 0.0) < (drawn.lesions[1].realised_ml or 0.0)
    assert drawn.origin["file"] in ("t0_seg.nii.gz", "t3_seg.nii.gz")


def test_bank_without_such_a_lesion_points_to_plant(tumour_bank: FolderBank) -> None:
    with pytest.raises(BankError, match="no map contains kidney tumor"):
        draw(BankSource(tumour_bank), [_wish(KIDNEY_TUMOR, 5.0)], seed=1)


def test_volume_far_from_all_lesions_of_the_bank_is_refused(tumour_bank: FolderBank) -> None:
    with pytest.raises(
        LesionError, match=r"no lesion within a factor of 2 of hepatic tumor of 0.20 mL; the nearest is"
    ):
        draw(BankSource(tumour_bank), [_wish(HEPATIC_TUMOR, 0.2)], seed=1)


@pytest.mark.parametrize("name", ["hepatic tumor", "lung tumor", "colon cancer primaries"])
def test_phantoms_host_the_lesions(name: str) -> None:
    grid = Grid.from_spacing((64, 48, 40), (6.4, 6.4, 6.4))
    wish = _wish(VOCABULARY.id_of(name), 6.0)
    source = PlantSource(PhantomBank(vocabulary=VOCABULARY, grid=grid))
    drawn = draw(source, [wish], seed=4)
    _require_exact(drawn, [wish])
    assert drawn.lesions[0].host_id in wish.hosts
    assert "deform_strength" not in drawn.origin
    np.testing.assert_array_equal(draw(source, [wish], seed=4).label_map, drawn.label_map)


@pytest.mark.parametrize("label_id", VOCABULARY.tumor_ids, ids=VOCABULARY.name_of)
def test_phantoms_host_every_tumour_of_50_mm_at_the_first_anatomy(label_id: int) -> None:
    grid = Grid.from_spacing((96, 80, 64), (4.0, 4.0, 4.0))
    wish = ask_for(label_id, VOCABULARY.hosts_of(label_id), 65.45, rule=growth_rule_of(VOCABULARY.name_of(label_id)))
    drawn = draw(PlantSource(PhantomBank(vocabulary=VOCABULARY, grid=grid)), [wish], seed=3)
    _require_exact(drawn, [wish])
    assert drawn.origin["base"] == 0
    assert drawn.lesions[0].host_id in wish.hosts
    points_mm = np.argwhere(drawn.label_map == label_id) * grid.spacing_mm
    spread_mm = np.sqrt(points_mm.var(axis=0).sum())
    assert spread_mm < 1.5 * 25 * np.sqrt(0.6)  # a ball of that diameter has 25 mm times the root of 0.6


def test_real_scan_hosts_six_kinds_of_lesions(real_data: Path) -> None:
    grid = Grid.from_spacing((128, 96, 80), (3.2, 3.2, 3.2))
    bank = FolderBank(real_data / "totalsegmentator-example", vocabulary=VOCABULARY, grid=grid)
    source = PlantSource(bank)
    volumes_ml = {23: 0.5, 24: 2.0, 26: 6.0, 27: 8.0, 128: 3.0, KIDNEY_TUMOR: 4.0}
    for seed, (label_id, volume_ml) in enumerate(volumes_ml.items()):
        drawn = draw(source, [_wish(label_id, volume_ml)], seed=seed)
        _require_exact(drawn, [_wish(label_id, volume_ml)])
        assert 0.2 < (drawn.label_map > 0).mean() < 0.8
