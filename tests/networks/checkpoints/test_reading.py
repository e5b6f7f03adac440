from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.utils.enums import TraceKeys

from maisi_aug.errors import BundleError
from maisi_aug.networks.checkpoints.reading import read_checkpoint


class Attribute:
    """Is written as an attribute of something, as Python 3.11.0 to 3.11.3 writes members of enumerations."""

    def __init__(self, owner: object, name: str) -> None:
        self.asked = owner, name

    def __reduce__(self) -> tuple[object, tuple[object, str]]:
        return getattr, self.asked


def test_words_of_monai_are_read_as_any_python_writes_them(tmp_path: Path) -> None:
    torch.save({"written": TraceKeys.NONE, "by name": Attribute(TraceKeys, "NONE")}, tmp_path / "c.pt")
    found = read_checkpoint(tmp_path / "c.pt", subject="c.pt")
    assert found["written"] is found["by name"] is TraceKeys.NONE


@pytest.mark.parametrize(("owner", "name"), [(MetaTensor, "tolist"), (TraceKeys, "__class__"), (TraceKeys, "mro")])
def test_other_attributes_are_refused(owner: object, name: str, tmp_path: Path) -> None:
    torch.save({"weights": Attribute(owner, name)}, tmp_path / "c.pt")
    with pytest.raises(
        BundleError, match=r"c\.pt: must contain weights only, found a pickle that needs builtins\.getattr"
    ):
        read_checkpoint(tmp_path / "c.pt", subject="c.pt")
