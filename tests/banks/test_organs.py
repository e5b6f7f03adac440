"""A bank of maps without organs is refused with the command that completes it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from maisi_aug.banks.folder_bank import FolderBank
from maisi_aug.banks.organs import count_organs, require_organs
from maisi_aug.errors import BankError
from maisi_aug.vocabulary.labels import MAISI
from tests.builders.tiny_bank import BODY, HEPATIC_TUMOR, LIVER, build_trunk, network_grid, write_case

ORIGINAL: Any = SimpleNamespace(name="rflow-ct", spec=SimpleNamespace(base=None), completes_maps=False)
FINE_TUNED: Any = SimpleNamespace(name="kidney", spec=SimpleNamespace(base=object()), completes_maps=False)
COMPLETING: Any = SimpleNamespace(name="phantom-ct", spec=SimpleNamespace(base=None), completes_maps=True)


def open_bank(folder: Path, *, num_bare: int, num_whole: int = 0) -> FolderBank:
    """Maps with body, liver and tumour alone, as after a look at the CT, and maps with more organs."""
    for number in range(num_bare):
        label_map = build_trunk(tumours_mm=(18.0,), seed=number)
        label_map[~np.isin(label_map, (0, LIVER, HEPATIC_TUMOR))] = BODY
        write_case(folder, f"a{number}", label_map)
    for number in range(num_whole):
        write_case(folder, f"b{number}", build_trunk(seed=number))
    return FolderBank(folder, vocabulary=MAISI, grid=network_grid(), mapping="maisi")


def test_bank_of_livers_and_tumours_is_refused_with_the_command_to_type(tmp_path: Path) -> None:
    bank = open_bank(tmp_path, num_bare=4)
    assert count_organs(bank) == (1, "a0_seg.nii.gz", (LIVER,))
    with pytest.raises(
        BankError, match=r"at least 3 organs .*, found 1 \(liver\) in a0_seg.*maisi-aug prepare .*"
    ) as caught:
        require_organs(bank, bundle=ORIGINAL)
    for words in (f"--labels {tmp_path}", "--run-totalsegmentator", "--bundle rflow-ct", "--allow-few-organs"):
        assert words in str(caught.value)
    with pytest.warns(UserWarning, match="organs around the lesions are needed in the label maps, found"):
        require_organs(bank, bundle=ORIGINAL, is_allowed=True)


@pytest.mark.parametrize("bundle", [FINE_TUNED, COMPLETING], ids=lambda bundle: str(bundle.name))
def test_bundle_that_learnt_from_such_maps_or_completes_them_takes_them(tmp_path: Path, bundle: Any) -> None:
    require_organs(open_bank(tmp_path, num_bare=1), bundle=bundle)


def test_one_whole_map_among_the_first_is_enough(tmp_path: Path) -> None:
    require_organs(open_bank(tmp_path, num_bare=2, num_whole=1), bundle=ORIGINAL)
