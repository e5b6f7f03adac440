"""What must be the same in two drawings of one cohort: all files, and all lines but for their times."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from maisi_aug.cohort.manifest import MANIFEST_NAME


def hash_files(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The manifest's lines without their times, which alone may differ."""
    lines = (folder / MANIFEST_NAME).read_text().splitlines()
    return [{**json.loads(line), "seconds": None} for line in lines]


def sort_lines(folder: Path) -> list[dict[str, Any]]:
    return sorted(read_lines(folder), key=lambda line: (line["case_index"], line["attempt"]))
