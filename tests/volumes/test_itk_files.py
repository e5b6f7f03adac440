"""An NRRD or MetaImage file says where it lies in the patient, in millimetres, or it is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maisi_aug.errors import VolumeError
from maisi_aug.volumes.image_files import load_image

VALUES = np.arange(7 * 9 * 11, dtype=np.int16)
DIRECTIONS = "space directions: (0.7,0,0) (0,0.8,0) (0,0,2.5)\n"
FRAME = "space: left-posterior-superior\n" + DIRECTIONS


def write_nrrd(path: Path, fields: str) -> Path:
    head = f"NRRD0004\ntype: int16\ndimension: 3\nsizes: 7 9 11\nendian: little\nencoding: raw\n{fields}\n"
    path.write_bytes(head.encode() + VALUES.tobytes())
    return path


@pytest.mark.parametrize("space", ["left-posterior-superior", "LPS", "RAS", "right-anterior-superior"])
def test_patient_frame_is_read(tmp_path: Path, space: str) -> None:
    path = write_nrrd(tmp_path / "a.nrrd", f'space: {space}\n{DIRECTIONS}space units: "mm" "mm" "mm"\n')
    volume = load_image(path)
    np.testing.assert_allclose(volume.grid.spacing_mm, (0.7, 0.8, 2.5))
    is_lps = space.lower().startswith("l")
    assert volume.array[0, 0, 0] == (6 + 8 * 7 if is_lps else 0)


@pytest.mark.parametrize(
    ("fields", "missing"), [("", "space"), (DIRECTIONS, "space"), ("space: LPS\n", "space directions")]
)
def test_file_without_a_patient_frame_is_refused(tmp_path: Path, fields: str, missing: str) -> None:
    path = write_nrrd(tmp_path / "a.nrrd", fields)
    with pytest.raises(VolumeError, match=f"a.nrrd: the header has no '{missing}', so left"):
        load_image(path)


def test_other_units_are_refused(tmp_path: Path) -> None:
    path = write_nrrd(tmp_path / "a.nrrd", FRAME + 'space units: "um" "um" "um"\n')
    with pytest.raises(VolumeError, match="a.nrrd: the unit must be mm, found 'space units' \"um\""):
        load_image(path)


@pytest.mark.parametrize("steps", ["700 800 2500", "0.0007 0.0008 0.0025"])
def test_voxels_that_no_ct_has_are_refused_in_any_format(tmp_path: Path, steps: str) -> None:
    head = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
        f"TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 1 2 3\nElementSpacing = {steps}\nDimSize = 7 9 11\n"
        "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    (tmp_path / "a.mha").write_bytes(head.encode() + VALUES.tobytes())
    with pytest.raises(VolumeError, match="a.mha: voxels of"):
        load_image(tmp_path / "a.mha")
