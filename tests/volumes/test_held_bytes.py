"""A header may promise any number of voxels: memory is taken for those that the file holds."""

from __future__ import annotations

import gzip
import resource
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK

from maisi_aug.errors import VolumeError
from maisi_aug.system.content import ContentError
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.held_bytes import Piece, count_unpacked, unpack_gzip
from maisi_aug.volumes.image_files import load_grid, load_image, save_label_map
from tests.builders.made_dicom import write_enhanced, write_series

GRID = Grid.from_spacing((7, 9, 11), (0.7, 0.8, 2.5))
SIDE = 1500
"""Of a cube of 6.75 GB in int16."""
MAX_MB = 200


@pytest.fixture
def peak() -> Iterator[None]:
    """The process takes less than 200 MB more than it ever did."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_MB * 1000


def write_nifti(path: Path, sides: tuple[int, int, int], *, held: bytes, packed: bool) -> Path:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(sides)
    header.set_sform(GRID.affine, code=1)
    header.set_qform(GRID.affine, code=1)
    header["vox_offset"] = 352
    content = header.binaryblock + bytes(4) + held
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


@pytest.mark.usefixtures("peak")
@pytest.mark.parametrize("packed", [False, True])
def test_nifti_that_promises_more_than_it_holds_is_refused(tmp_path: Path, packed: bool) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", (SIDE, SIDE, SIDE), held=bytes(1000), packed=packed)
    with pytest.raises(VolumeError, match=r"a\.nii\.gz: not a readable image, .*promises 6750000352 bytes"):
        load_image(path)
    assert load_grid(path).shape == (SIDE, SIDE, SIDE)  # the header alone takes no memory


@pytest.mark.usefixtures("peak")
def test_nifti_that_unpacks_to_more_than_it_promises_is_refused(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    path = write_nifti(tmp_path / "a.nii", (7, 9, 11), held=b"", packed=False)
    packed = packer.compress(path.read_bytes())
    packed += b"".join(packer.compress(bytes(10**7)) for _ in range(100)) + packer.flush()
    assert len(packed) < 2 * 10**6
    path.write_bytes(packed)
    with pytest.raises(VolumeError, match="it unpacks to more than 1 MB"):
        load_image(path)


def test_padding_and_several_members_are_no_fault(tmp_path: Path) -> None:
    save_label_map(tmp_path / "a.nii", np.ones(GRID.shape, dtype=np.uint8), GRID)
    content = (tmp_path / "a.nii").read_bytes()
    path = tmp_path / "b.nii.gz"
    path.write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:] + bytes(1000)) + bytes(512))
    assert load_image(path).array.sum() == 7 * 9 * 11


NRRD = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: {side} {side} {side}\n"
    "space directions: (1,0,0) (0,1,0) (0,0,1)\nendian: little\nencoding: {encoding}\n{more}\n"
)
META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = {packed}\n"
    "{more}TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 1\n"
    "DimSize = {side} {side} {side}\nElementType = MET_SHORT\nElementDataFile = {source}\n"
)


@pytest.mark.usefixtures("peak")
@pytest.mark.parametrize("load", [load_image, load_grid])
@pytest.mark.parametrize("encoding", ["raw", "gzip", "ascii", "hex"])
@pytest.mark.parametrize("source", ["", "data file: a.raw\n", "data file: LIST\na.raw\n", "data file: %s 1 3 1\n"])
def test_nrrd_that_promises_more_than_it_holds_is_refused(
    tmp_path: Path, encoding: str, source: str, load: Callable[[Path], object]
) -> None:
    held = gzip.compress(bytes(10**6)) if encoding == "gzip" else b"0 " * 1000
    head = NRRD.format(side=SIDE, encoding=encoding, more=source)
    (tmp_path / "a.raw").write_bytes(held)
    path = tmp_path / "a.nhdr"
    path.write_bytes(head.encode() + (b"" if source else held))
    with pytest.raises(VolumeError, match=r"a\.nhdr: expected \d+ bytes of voxels, found \d+\. Replace the file"):
        load(path)


@pytest.mark.usefixtures("peak")
@pytest.mark.parametrize("load", [load_image, load_grid])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("source", ["LOCAL", "a.raw", "LIST\na.raw", "a%d.raw 1 3 1", "missing.raw"])
def test_metaimage_that_promises_more_than_it_holds_is_refused(
    tmp_path: Path, packed: bool, source: str, load: Callable[[Path], object]
) -> None:
    held = zlib.compress(bytes(10**6)) if packed else bytes(1000)
    head = META.format(side=SIDE, packed=packed, more="", source=source)
    (tmp_path / "a.raw").write_bytes(held)
    path = tmp_path / "a.mha"
    path.write_bytes(head.encode() + (held if source == "LOCAL" else b""))
    with pytest.raises(VolumeError, match=r"a\.mha: expected 6750000000 bytes of voxels, found \d+\. Replace the file"):
        load(path)


def test_compressed_metaimage_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    """ITK reads it without a word."""
    values = np.random.default_rng(1).integers(-900, 900, 20**3, dtype=np.int16)
    packed = zlib.compress(values.tobytes())
    head = META.format(side=20, packed=True, more="CompressedDataSize = {}\n", source="LOCAL")
    path = tmp_path / "a.mha"
    path.write_bytes(head.format(len(packed)).encode() + packed)
    assert load_image(path).array.shape == (20, 20, 20)
    for length, content in ((len(packed), packed[:-500]), (len(packed) - 500, packed)):
        path.write_bytes(head.format(length).encode() + content)
        with pytest.raises(VolumeError, match=r"a\.mha: .*compressed data ends too early"):
            load_image(path)


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint32, np.float32, np.int64, np.float64])
def test_what_itk_writes_is_read_and_its_grid_from_the_header(
    tmp_path: Path, suffix: str, packed: bool, kind: type[np.generic]
) -> None:
    image = SimpleITK.GetImageFromArray(np.arange(7 * 9 * 11).reshape(11, 9, 7).astype(kind) % 200)
    image.SetSpacing(GRID.spacing_mm)
    SimpleITK.WriteImage(image, str(tmp_path / f"a{suffix}"), packed)
    volume = load_image(tmp_path / f"a{suffix}")
    assert load_grid(tmp_path / f"a{suffix}").is_close(volume.grid)
    assert volume.array.max() == 199


@pytest.mark.usefixtures("peak")
def test_dicom_that_promises_more_frames_than_it_holds_is_refused(tmp_path: Path) -> None:
    def lie(dataset: pydicom.Dataset) -> None:
        dataset.Rows, dataset.Columns = 60_000, 60_000

    path = write_enhanced(tmp_path / "ct.dcm", np.zeros((3, 9, 7)), change=lie)
    with pytest.raises(VolumeError, match=r"ct\.dcm: expected 21600000000 bytes of pixels, found 378\. Replace"):
        load_image(path)


def test_dicom_that_is_deflated_is_read_and_a_bomb_is_not(tmp_path: Path) -> None:
    def deflate(padding: int) -> Callable[[int, pydicom.Dataset], None]:
        def change(_: int, dataset: pydicom.Dataset) -> None:
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
            if padding:
                dataset.add_new((0x0009, 0x0010), "LO", "X")
                dataset.add_new((0x0009, 0x1001), "OB", bytes(padding))

        return change

    write_series(tmp_path / "good", np.zeros((3, 9, 7)), change=deflate(0))
    assert load_image(tmp_path / "good").array.shape == (7, 9, 3)
    (folder := tmp_path / "bomb").mkdir()
    write_series(folder, np.zeros((1, 9, 7)), change=deflate(120_000_000))
    (file,) = folder.iterdir()
    assert file.stat().st_size < 10**6
    with pytest.raises(VolumeError, match=".dcm: not a readable DICOM file .it unpacks to more than 73 MB"):
        load_image(folder)


def test_counting_ends_where_there_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(b"head" + gzip.compress(bytes(10**7)) + gzip.compress(bytes(10**6)))
    assert count_unpacked(Piece(path, 4), 10**8) == 11 * 10**6
    assert 10**6 <= count_unpacked(Piece(path, 4), 10**6) < 4 * 10**6
    with pytest.raises(ContentError, match="compressed data ends too early"):
        count_unpacked(Piece(path, 4, 500), 10**6)
    assert (Piece(path, 4, 500).num_bytes, Piece(tmp_path / "none").num_bytes) == (500, 0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gzip.compress(bytes(5000)), "unpacks to more than 0 MB"),
        (gzip.compress(b"x" * 10)[:-4], "compressed data ends too early"),
        (gzip.compress(b"x" * 10)[:-8] + bytes(8), "incorrect data check"),
    ],
    ids=["large", "short", "damaged"],
)
def test_gzip_is_unpacked_whole_and_no_further(content: bytes, reason: str) -> None:
    with pytest.raises(ContentError, match=reason):
        unpack_gzip(content, 4999)
