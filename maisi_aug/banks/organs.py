"""Whether the label maps of a bank hold the organs around the lesions, without which the networks draw grey bodies."""

from __future__ import annotations

import warnings
from pathlib import Path

from maisi_aug.banks.folder_bank import FolderBank
from maisi_aug.banks.raw_datasets import DESCRIPTION_NAME
from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.errors import BankError, MaisiAugWarning
from maisi_aug.vocabulary.labels import Vocabulary

MIN_ORGANS = 3
"""Smallest number of organs that counts as an anatomy; maps of the liver and its tumours alone have fewer."""
NUM_LOOKS = 3
"""Number of usable maps to examine before concluding that a bank holds no more organs."""
HOW_TO_COMPLETE = (
    "Complete them with TotalSegmentator's organs: maisi-aug prepare {cases} "
    "--run-totalsegmentator --bundle {bundle} --out prepared (or --organs FOLDER with its results), then --mask-bank "
    "prepared"
)


def count_organs(bank: FolderBank) -> tuple[int, str, tuple[int, ...]]:
    """Return the largest number of organs in any of a bank's first maps, the name of that map, and the organs' ids.

    Args:
        bank: Bank whose maps are read, unless a data list states their ids.

    Raises:
        BankError: No map can be used.
    """
    best: tuple[int, str, tuple[int, ...]] = (0, "", ())
    looked = 0
    for index, name in enumerate(bank.names):
        ids = bank.ids_of(index)
        if ids is None:
            continue
        organs = tuple(sorted(label_id for label_id in ids if _is_organ(label_id, bank.vocabulary)))
        looked += 1
        if looked == 1 or len(organs) > best[0]:
            best = len(organs), name, organs
        if looked == NUM_LOOKS or best[0] >= MIN_ORGANS:
            break
    return best


def require_organs(bank: FolderBank, *, bundle: Bundle, is_allowed: bool = False) -> None:
    """Raise unless the maps of a bank include the organs around the lesions, which the networks expect.

    Fine-tuned bundles take any map, because they were trained on maps like the user's, and so do bundles that complete
    label maps by themselves.

    Args:
        bank: Bank of label maps.
        bundle: Bundle whose networks draw the images.
        is_allowed: Only warn if organs are missing.

    Raises:
        BankError: The message has the command that completes the maps.
    """
    if bundle.spec.base is not None or bundle.completes_maps:
        return
    num_organs, name, organs = count_organs(bank)
    if num_organs >= MIN_ORGANS:
        return
    found = ", ".join(map(bank.vocabulary.name_of, organs)) or "none"
    is_dataset = (Path(bank.path) / DESCRIPTION_NAME).is_file()
    cases = f"--nnunet {bank.path}" if is_dataset else f"--images CTS --labels {bank.path} --map 'ID=NAME'"
    complete = HOW_TO_COMPLETE.format(cases=cases, bundle=bundle.name)
    sentence = (
        f"Mask bank {bank.path}: at least {MIN_ORGANS} organs around the lesions are needed in the label maps, found "
        f"{num_organs} ({found}) in {name}. The networks draw unlabelled voxels as grey body. {complete}"
    )
    if not is_allowed:
        raise BankError(f"{sentence}; or add --allow-few-organs.")
    warnings.warn(f"{sentence}.", MaisiAugWarning, stacklevel=3)


def _is_organ(label_id: int, vocabulary: Vocabulary) -> bool:
    return vocabulary.contains(label_id) and vocabulary.label(label_id).kind == "organ"
