from __future__ import annotations

from pathlib import Path

import pytest

from maisi_aug.cohort.mask_origin import RealMaps, origin_words
from maisi_aug.system.whole_files import sha256_of


@pytest.fixture
def maps(tmp_path: Path) -> dict[str, Path]:
    files = {name: tmp_path / f"{name}_label.nii.gz" for name in ("a", "b")}
    for name, path in files.items():
        path.write_bytes(name.encode())
    return files


def test_case_is_named_by_its_id_its_file_or_its_bytes(maps: dict[str, Path]) -> None:
    known = RealMaps(maps.items())
    digest = sha256_of(maps["b"])
    for word in ("a", "labelsTr/a.nii.gz", "a_0000.nii.gz", "a_label.nii.gz", "bank/a/segmentation.nii.gz"):
        assert known.named_by(("plant", word)) == {"a"}
    assert known.named_by((digest,)) == known.named_by((digest[:16],)) == {"b"}
    assert known.named_by(("plant", "c.nii.gz", "0" * 16)) == frozenset()
    assert known.same_as(maps["a"]) == {"a"}


def test_files_are_read_only_where_an_origin_has_a_hash(maps: dict[str, Path]) -> None:
    maps["a"].unlink()
    assert RealMaps(maps.items()).named_by(("plant", "b.nii.gz")) == {"b"}


def test_words_of_an_origin_are_its_texts() -> None:
    assert origin_words({"source": "plant", "seed": 4, "file": "a.nii.gz", "map_shape": [1, 2]}) == (
        "plant",
        "a.nii.gz",
    )
