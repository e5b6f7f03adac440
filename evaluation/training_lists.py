"""Public datasets in the published training list of MAISI: test patients of these may be known to its networks.

The list of the published model cards; it ends with "and others", so that a dataset without a warning is not proven
to be unseen.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_PATTERNS: Final[dict[str, str]] = {
    "MSD Task03 Liver": r"(task0?0?|dataset00)3.?liver|msd.?liver|\blits\b",
    "MSD Task06 Lung": r"(task0?0?|dataset00)6.?lung|msd.?lung",
    "MSD Task07 Pancreas": r"(task0?0?|dataset00)7.?pancreas|msd.?pancreas",
    "MSD Task08 HepaticVessel": r"(task0?0?|dataset00)8.?hepatic.?vessel|msd.?hepatic.?vessel",
    "MSD Task09 Spleen": r"(task0?0?|dataset00)9.?spleen|msd.?spleen",
    "MSD Task10 Colon": r"(task|dataset0)10.?colon|msd.?colon",
    "LIDC-IDRI": r"lidc|\bluna(16)?\b",
    "AMOS": r"\bamos",
    "BTCV": r"btcv",
    "TotalSegmentator v2": r"total.?segmentator",
    "AbdomenCT-1K": r"abdomen.?ct.?1k",
    "CT-ORG": r"ct.?org(?![a-z])",
    "VerSe": r"\bverse",
    "autoPET 2023": r"auto.?pet",
}


def find_published_training(path: Path) -> str:
    """The dataset of the training list that a folder seems to hold, or an empty text.

    Looks at the folder's name and at ``dataset.json``; a renamed copy without a description is not recognised.
    """
    description = path / "dataset.json"
    text = path.resolve().name
    if description.is_file():
        text += " " + description.read_text(encoding="utf-8", errors="replace")[:4000]
    words = re.sub(r"[_\s]+", " ", text.lower())
    return next((name for name, pattern in _PATTERNS.items() if re.search(pattern, words)), "")
