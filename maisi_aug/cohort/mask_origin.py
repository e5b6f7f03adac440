"""Real cases from which a synthetic case was made, by the origin of its label map in the manifest.

Such a case shows a real patient's anatomy: it must not train where that patient is validated or tested on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from maisi_aug.banks.case_files import stem_of
from maisi_aug.system.whole_files import sha256_of

HASH_LENGTH = 16
"""Number of digits of a hash that every origin records; some record all."""


def origin_words(mask_origin: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the words of a manifest's ``mask_origin`` that may name the label map that a case was made from."""
    return tuple(str(value) for value in mask_origin.values() if isinstance(value, str))


class RealMaps:
    """Index of the label maps of real cases, which are found by the names of their files and by SHA-256."""

    def __init__(self, cases: Iterable[tuple[str, Path]]) -> None:
        """Take the cases down; files are read when a hash is looked for.

        Args:
            cases: Name of each case and the file of its label map.
        """
        self._cases = tuple(cases)

    def named_by(self, words: Iterable[str]) -> frozenset[str]:
        """Return the real cases that the words of an origin name, by case name, file name or SHA-256."""
        found: set[str] = set()
        for word in words:
            for part in PurePosixPath(word).parts:
                stem = stem_of(Path(part))
                for name in {stem, re.sub(r"_0000$", "", stem)}:
                    found |= self._by_stem.get(name, frozenset())
            if re.fullmatch(rf"[0-9a-f]{{{HASH_LENGTH},64}}", word):
                found |= self._by_hash.get(word[:HASH_LENGTH], frozenset())
        return frozenset(found)

    def same_as(self, label_map: Path) -> frozenset[str]:
        """Return the real cases whose label map is identical to a file, byte by byte."""
        return self._by_hash.get(sha256_of(label_map)[:HASH_LENGTH], frozenset())

    @cached_property
    def _by_stem(self) -> dict[str, frozenset[str]]:
        return _group((stem, case_id) for case_id, path in self._cases for stem in (case_id, stem_of(path)))

    @cached_property
    def _by_hash(self) -> dict[str, frozenset[str]]:
        return _group((sha256_of(path)[:HASH_LENGTH], case_id) for case_id, path in self._cases)


def _group(pairs: Iterable[tuple[str, str]]) -> dict[str, frozenset[str]]:
    groups: dict[str, set[str]] = {}
    for key, case_id in pairs:
        groups.setdefault(key, set()).add(case_id)
    return {key: frozenset(group) for key, group in groups.items()}
