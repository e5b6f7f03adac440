"""What a list tells of a bank's maps decides which may serve a case, and in which order they are tried."""

from __future__ import annotations

from collections.abc import Sequence

from maisi_aug.banks.entry import MIN_NEAR, BankEntry, BankListing, Needs
from maisi_aug.volumes.grid import Grid, Spacing

GRID = Grid.from_spacing((64, 48, 40), (4.0, 5.0, 6.0))
LIVER, SPLEEN, KIDNEYS, BODY, HEPATIC_TUMOR, LUNG_TUMOR = 1, 3, frozenset({5, 14}), 200, 26, 23


def _entry(*ids: int, scale: float | Sequence[float] = 1.0) -> BankEntry:
    scales = [scale] * 3 if isinstance(scale, float) else scale
    x, y, z = (side * part for side, part in zip(GRID.extent_mm, scales, strict=True))
    extent_mm: Spacing = (x, y, z)
    return BankEntry("m.nii.gz", (), listed_ids=(*ids, BODY), extent_mm=extent_mm)


def _choose(entries: Sequence[BankEntry], needs: Needs | None = None) -> list[int]:
    listing = BankListing(entries, grid=GRID, tumor_ids=(LUNG_TUMOR, HEPATIC_TUMOR), body_region=None)
    return listing.choose(range(len(entries)), needs or Needs())


def test_maps_hold_all_that_is_required_a_host_and_no_other_tumour() -> None:
    entries = [
        _entry(LIVER),
        _entry(LIVER, 14),
        _entry(LIVER, SPLEEN, 5),
        _entry(LIVER, SPLEEN, 5, 14, HEPATIC_TUMOR),
        _entry(LIVER, SPLEEN, 5, HEPATIC_TUMOR, LUNG_TUMOR),
    ]
    needs = Needs(frozenset({LIVER, SPLEEN}), (KIDNEYS,))
    assert _choose(entries, needs) == [2, 3, 4]
    assert _choose(entries, Needs(needs.required_ids, needs.host_ids, frozenset({HEPATIC_TUMOR}))) == [2, 3]
    assert not needs.are_met_by(None)


def test_maps_of_which_nothing_is_told_keep_their_order() -> None:
    entries = [BankEntry("a", ()), BankEntry("b", (), listed_ids=(SPLEEN,)), BankEntry("c", ())]
    assert _choose(entries, Needs(frozenset({LIVER}))) == [0, 1, 2]


def test_maps_too_short_for_the_grid_are_left_out() -> None:
    assert _choose([_entry(LIVER, scale=(1.0, 1.0, 0.4)), _entry(LIVER, scale=(0.4, 1.0, 1.0))]) == [1]


def test_near_maps_keep_their_order_and_far_ones_follow_by_distance() -> None:
    far = [_entry(LIVER, scale=scale) for scale in (3.0, 2.0, 0.6)]
    near = [_entry(LIVER, scale=1.0 + 0.1 * (-1.0) ** n) for n in range(MIN_NEAR)]
    assert _choose([*far, *near]) == [*range(3, 3 + MIN_NEAR), 2, 1, 0]


def test_maps_of_the_same_view_come_before_near_ones_if_there_are_many() -> None:
    near, same = [_entry(LIVER, scale=1.1)], [_entry(LIVER)] * MIN_NEAR
    assert _choose([*near, *same]) == [*range(1, MIN_NEAR + 1), 0]
    assert _choose([*near, *same[1:]]) == list(range(MIN_NEAR))


def test_maps_without_tumours_come_first_if_there_are_many() -> None:
    with_tumor, without = [_entry(LIVER, HEPATIC_TUMOR)], [_entry(LIVER)] * MIN_NEAR
    assert _choose([*with_tumor, *without]) == [*range(1, MIN_NEAR + 1), 0]
    assert _choose([*with_tumor, *without[1:]]) == list(range(MIN_NEAR))
