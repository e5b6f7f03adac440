"""HU ranges of the user's own CTs, measured or from a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from maisi_aug.cohort.hu_reference import load_hu_reference, ranges_from_json, ranges_to_json
from maisi_aug.errors import BankError, RecipeError
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.volumes.image_files import save_image, save_label_map
from tests.builders.tiny_bank import LIVER, SPLEEN, build_ct, build_trunk, network_grid, trunk_grid

LIVER_HU = (90, 100, 110, 120)


def write_cts(folder: Path, liver_hu: tuple[int, ...] = LIVER_HU, *, with_ct: bool = True) -> Path:
    """CTs whose livers have these medians; all spleens have 60 HU."""
    for number, value in enumerate(liver_hu):
        label_map = build_trunk(seed=number)
        image = build_ct(label_map)
        image[label_map == LIVER] = value
        save_label_map(folder / f"case{number}_seg.nii.gz", label_map, trunk_grid())
        if with_ct:
            save_image(folder / f"case{number}_ct.nii.gz", image, trunk_grid())
    return folder


def test_ranges_of_own_cts_are_fine(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    ranges = load_hu_reference(
        write_cts(tmp_path), MAISI, grid=network_grid(), report=lambda done, total: told.append((done, total))
    )
    found = {row.label_ids: row for row in ranges}
    assert set(found) == {(LIVER,), (SPLEEN,), (14,)}
    sigma = np.std(LIVER_HU, ddof=1)
    assert found[LIVER,].low_hu == pytest.approx(105 - 3 * sigma)
    assert found[LIVER,].high_hu == pytest.approx(105 + 3 * sigma)
    assert found[LIVER,].median_hu == 105
    assert (found[SPLEEN,].low_hu, found[SPLEEN,].high_hu) == (45, 75)  # never finer than 5 HU a sigma
    assert told[-1] == (4, 4)
    plain = ranges_to_json(ranges)
    assert ranges_to_json(ranges_from_json(json.loads(json.dumps(plain)))) == plain


def test_file_of_ranges_is_read(tmp_path: Path) -> None:
    path = tmp_path / "hu_ranges.json"
    rows = [{"name": "liver", "low_hu": 80, "high_hu": 130}, {"label_ids": [3], "low_hu": 90, "high_hu": 140}]
    path.write_text(json.dumps({"organs": rows}))
    liver, spleen = load_hu_reference(path, MAISI, grid=network_grid())
    assert (liver.name, liver.label_ids, liver.median_hu) == ("liver", (LIVER,), 105)
    assert (spleen.name, spleen.low_hu) == ("spleen", 90)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON:"),
        ('{"organs": [{"name": "liver", "low_hu": 80}]}', 'expected rows such as .* under "organs"'),
        ('{"organs": [{"name": "livr", "low_hu": 1, "high_hu": 2}]}', "Label 'livr'"),
        ('{"organs": [{"name": "liver", "low_hu": 9, "high_hu": 2}]}', "expected low_hu below high_hu, found 9 and 2"),
    ],
)
def test_file_that_is_no_reference_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(RecipeError, match=message):
        load_hu_reference(path, MAISI, grid=network_grid())


def test_too_few_cts_and_maps_without_cts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no label occurs in at least 3 CTs"):
        load_hu_reference(write_cts(tmp_path / "two", (90, 100)), MAISI, grid=network_grid())
    with pytest.raises(BankError, match="no label map has a CT next to it"):
        load_hu_reference(write_cts(tmp_path / "bare", with_ct=False), MAISI, grid=network_grid())
