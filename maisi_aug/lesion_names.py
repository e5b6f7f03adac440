"""Whether the name of a label says that it is a lesion."""

from __future__ import annotations

import re

_STEMS = (
    *("tumor", "tumour", "lesion", "cancer", "carcinoma", "sarcoma", "lymphoma", "metastas", "nodule", "cyst", "gtv"),
    *("haemorrhage", "hemorrhage"),
)
_BARE = re.compile(r"(tumou?r|lesion|cancer|nodule)s?|metastas[ei]s|mass(es)?")
"""What public datasets call the lesion of the organ that they are named after."""


def lesion_word(name: str) -> str | None:
    """The part of a label's name that says that it is a lesion, such as "tumor" in "KidneyTumor"; None without one."""
    lowered = name.lower()
    return next((stem for stem in _STEMS if stem in lowered), None)


def is_bare_lesion_name(name: str) -> bool:
    """Whether a name says that the label is a lesion, and not of which organ."""
    return _BARE.fullmatch(name.strip().lower()) is not None
