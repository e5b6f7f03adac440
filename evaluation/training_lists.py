"""Public datasets in the published training list of MAISI: test patients of these may be known to its networks.

The 24 datasets of CT that the diffusion model was trained on; those of the autoencoder and of the ControlNet are among
them (Project-MONAI/tutorials, generation/maisi/data/README.md, sections 1, 2 and 3.2, commit 3c891ec). The published
model cards end theirs with "and others", so that a dataset without a warning is not proven to be unseen.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_PATTERNS: Final[dict[str, str]] = {
    "MSD Task03 Liver": r"(task0?0?|dataset00)3.?liver|msd.?liver|\blits(20)?(17)?\b",
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
    "AeroPath": r"aero.?path",
    "CRLM-CT": r"\bcrlm|colorectal.?liver.?metastases",
    "CTPelvic1K-CLINIC": r"ct.?pelvic.?1k",
    "Multi-organ-Abdominal-CT": r"multi.?organ.?abdominal.?ct",
    "NLST": r"\bnlst\b|national lung screening trial",
    "StonyBrook-CT": r"stony.?brook|covid.?19.?ny.?sbu",
    "TCIA_Colon": r"tcia.?colon|ct.?colonography",
    "COVID-19": r"ct.?images.?in.?covid.?19",
    "Pancreas-CT": r"(nih|tcia).?pancreas",
}
_NAME_PATTERNS: Final[dict[str, str]] = {
    "Bone-Lesion": r"\bbone.?lesions?\b",
    "COVID-19": r"\bcovid.?19\b",
    "Pancreas-CT": r"\bpancreas.?ct\b",
}
"""Looked for in the folder's name alone: a description or its labels may well have such words of other cases."""


def find_published_training(path: Path) -> str:
    """The dataset of the training list that a folder seems to hold, or an empty text.

    Looks at the folder's name and at ``dataset.json``; a renamed copy without a description is not recognised.
    """
    description = path / "dataset.json"
    name = _to_words(path.resolve().name)
    text = name
    if description.is_file():
        text += " " + _to_words(description.read_text(encoding="utf-8", errors="replace")[:4000])
    places = ((_PATTERNS, text), (_NAME_PATTERNS, name))
    return next((d for patterns, words in places for d, pattern in patterns.items() if re.search(pattern, words)), "")


def _to_words(text: str) -> str:
    return re.sub(r"[_\s]+", " ", text.lower())
