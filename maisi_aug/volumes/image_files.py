"""The only place that opens image files: reading to RAS+, and writing so that a file appears whole or not at all.

Every returned array has axes ``I J K`` along R, A and S as closely as the file allows (axes are permuted and flipped,
so an oblique scan keeps its oblique affine) and at right angles: only a sheared file, such as a scan with a tilted
gantry, is interpolated, with a warning that says so. Every file written goes to a hidden name in the same folder first,
is flushed to the disk, and is then renamed; the same array gives the same bytes at any time.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from maisi_aug.errors import GridError, MaisiAugWarning, VolumeError
from maisi_aug.system.content import ContentError, read_bounded, reason_of
from maisi_aug.system.whole_files import open_whole
from maisi_aug.volumes.dicom_files import DICOM_SUFFIXES, is_dicom, is_label_object
from maisi_aug.volumes.grid import Grid, Shape, spell_grid
from maisi_aug.volumes.itk_files import read_itk_grid, read_with_itk, take_itk_image
from maisi_aug.volumes.nifti_files import (
    PLAUSIBLE_MM,
    parse_nifti,
    read_nifti_grid,
    read_nifti_slice,
    read_stored_geometry,
)
from maisi_aug.volumes.orientation import axis_codes, in_c_order, slabs_in_file_order, turn_to_ras

NIFTI_SUFFIXES = (".nii.gz", ".nii")
READABLE_SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".nhdr", ".mha", ".mhd", *DICOM_SUFFIXES)

# Measured on a 264x264x160 CT: level 1 takes 0.26 s, level 6 0.70 s for files 3% smaller, because noise does not
# compress. Label maps do: level 6 halves them for a few milliseconds.
IMAGE_COMPRESSION = 1
LABEL_MAP_COMPRESSION = 6

MAX_SIDE = 2**20
"""Largest number of voxels along an axis, whatever a header says."""
ROUNDING = 1e-3
"""Largest distance from an integer of labels that were stored as fractions or with a scale."""

Kind = Literal["dicom", "nifti", "itk"]
Stored = tuple[NDArray[Any], NDArray[np.float64]]
"""An array with its axes as they are stored, and its affine to RAS+ mm."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume: an ``(I, J, K)`` array with its grid.

    Attributes:
        array: ``(I, J, K)`` in RAS+.
        grid: Shape and affine of the array.
    """

    array: NDArray[Any]
    grid: Grid


def is_readable_name(path: Path | str) -> bool:
    """Whether the file name has the suffix of an image format that this module reads."""
    return str(path).lower().endswith(READABLE_SUFFIXES)


def is_readable(path: Path) -> bool:
    """Whether a file has the suffix of an image, or is DICOM by its content."""
    return is_readable_name(path) or is_dicom(path)


def load_image(path: Path | str) -> Volume:
    """Read an image: NIfTI, NRRD, MHA/MHD, a DICOM file or a folder with one DICOM series.

    Args:
        path: File, or folder for DICOM.

    Returns:
        ``(I, J, K)`` volume in RAS+ with orthogonal axes: int16 if all values are integers in its range, otherwise
        float32. A sheared image is resampled, with a warning.

    Raises:
        VolumeError: The file is missing, truncated, not three-dimensional, has values that are not finite, or the
            position of its voxels is ambiguous.
    """
    volume = _load_volume(Path(path))
    array = volume.array
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise VolumeError(f"{path}: has NaN or infinite values. Replace them; air is -1000 HU.")
    target = right_angled_grid(volume.grid)
    if target is not volume.grid:
        from maisi_aug.volumes.resampling import straighten_image

        _tell_of_shear(path, volume.grid, target)
        array = straighten_image(array, volume.grid, target)
    lowest, highest = array.min(), array.max()
    fits = lowest >= -32768 and highest <= 32767
    if fits and (array.dtype.kind in "iub" or bool((array == np.rint(array)).all())):
        return Volume(in_c_order(array, np.int16), target)
    return Volume(in_c_order(array, np.float32), target)


def load_channels(path: Path | str) -> NDArray[np.float32]:
    """Read a NIfTI file whose fourth axis counts channels, such as a latent.

    Returns:
        ``(C, I, J, K)`` float32 in RAS+.

    Raises:
        VolumeError: The file is missing or damaged, has no fourth axis, or values that are not finite.
    """
    path = Path(path)
    with _in_a_sentence(path):
        array, affine = parse_nifti(read_bounded(path), path)
        if array.ndim != 4:
            raise VolumeError(f"{path}: expected four axes, three of space and one of channels, found {array.ndim}.")
        channels = [_reorient_to_ras(array[..., number], affine, path).array for number in range(array.shape[3])]
    stacked: NDArray[np.float32] = np.stack(channels).astype(np.float32)
    if not np.isfinite(stacked).all():
        raise VolumeError(f"{path}: expected finite values, found NaN or infinity. Make the file again.")
    return stacked


def load_grid(path: Path | str) -> Grid:
    """Return the grid of the volume that :func:`load_image` returns, from headers only.

    Raises:
        VolumeError: The file cannot be read.
    """
    path = Path(path)
    return right_angled_grid(_read(lambda: _lay_out(path), path).grid)


def load_axial_slice(path: Path | str, index: int) -> Volume | None:
    """Read one axial slice of a NIfTI file without holding the volume in memory.

    Args:
        path: Path of the file.
        index: Index along S, from the feet.

    Returns:
        ``(I, J, 1)`` volume in RAS+ with the values of the file; None if its slices are not axial or it is not NIfTI.

    Raises:
        VolumeError: The file is missing or damaged, or the position of its voxels is ambiguous.
    """
    path = Path(path)
    if _kind_of(path) != "nifti":
        return None
    direction = axis_codes(_lay_out(path)[1])[2]
    if direction not in "SI":
        return None
    return _read(lambda: read_nifti_slice(path, index if direction == "S" else -1 - index), path)


def load_label_map(path: Path | str, *, image: Path | None = None) -> Volume:
    """Read a label map in any format of :func:`load_image`, a DICOM segmentation or an RT structure set.

    Args:
        path: File, or folder for DICOM.
        image: CT that the labels were drawn on. Contours need its grid, and a segmentation without empty slices is
            extended to it; other formats do not use it.

    Returns:
        ``(I, J, K)`` label map in RAS+ with orthogonal axes, in the smallest unsigned integer type for its labels. A
        sheared map is resampled to the nearest labels, with a warning.

    Raises:
        VolumeError: The file cannot be read, or has values that are fractional, negative or above 65535.
    """
    path = Path(path)
    if path.is_file() and is_label_object(path):
        from maisi_aug.volumes.dicom_labels import read_drawn_labels

        grid = None if image is None else load_grid(image)
        with _in_a_sentence(path):
            drawn = read_drawn_labels(path, grid)
        return _straighten_labels(_to_label_map(Volume(drawn.array, drawn.grid), str(path)), path)
    return _straighten_labels(_to_label_map(_load_volume(path), str(path)), path)


def load_drawn_names(path: Path) -> dict[int, str]:
    """Return id -> name of a DICOM segmentation or structure set; empty for any other file.

    Raises:
        VolumeError: The file cannot be read.
    """
    if not is_label_object(path):
        return {}
    from maisi_aug.volumes.dicom_labels import read_drawn_names

    with _in_a_sentence(path):
        return read_drawn_names(path)


def right_angled_grid(grid: Grid) -> Grid:
    """Return the grid on which a volume is returned: its own, or an orthogonal one if it is sheared."""
    if grid.has_right_angles:
        return grid
    from maisi_aug.volumes.resampling import right_angled_grid as choose

    # Turned once more: without the shear another axis may be the one closest to R, A or S.
    target = choose(grid)
    return turn_to_ras(np.broadcast_to(np.zeros((), dtype=np.uint8), target.shape), target.affine)[1]


def _straighten_labels(volume: Volume, subject: Path | str) -> Volume:
    target = right_angled_grid(volume.grid)
    if target is volume.grid:
        return volume
    from maisi_aug.volumes.resampling import straighten_label_map

    _tell_of_shear(subject, volume.grid, target)
    return Volume(straighten_label_map(volume.array, volume.grid, target), target)


def _tell_of_shear(subject: Path | str, grid: Grid, target: Grid) -> None:
    from maisi_aug.volumes.resampling import describe_shear

    warnings.warn(
        f"{subject}: voxel axes are not at right angles ({describe_shear(grid)}), as with a tilted gantry; it is "
        f"resampled to {spell_grid(target.shape, target.spacing_mm, with_extent=False)}.",
        MaisiAugWarning,
        stacklevel=3,
    )


def load_stored_grid(path: Path | str) -> Grid:
    """Return the grid of a NIfTI file with its axes as stored, not turned to RAS+; voxels are not read.

    Raises:
        VolumeError: The file cannot be read.
    """
    try:
        shape, affine = read_stored_geometry(Path(path))
        return Grid(shape, affine)
    except (OSError, ContentError, GridError) as error:
        raise VolumeError(f"{path}: not a readable NIfTI file ({reason_of(error)}). Replace the file.") from error


def decode_label_map(content: bytes, name: str, *, max_bytes: int) -> Volume:
    """Decode a NIfTI label map in memory, with the checks of :func:`load_label_map`.

    Args:
        content: Bytes of the file, compressed or not.
        name: Name of the input, used in messages.
        max_bytes: Largest unpacked size.

    Raises:
        VolumeError: The content cannot be read, unpacks to more, or has values that are not labels.
    """
    return _straighten_labels(_to_label_map(_read(lambda: parse_nifti(content, name, max_bytes), name), name), name)


def take_image(image: Any, affine: Any = None, *, subject: str) -> Volume:
    """Convert an image in memory to a volume with the closest RAS+ axes.

    Args:
        image: Array ``(I, J, K)`` or ``(1, I, J, K)``, or an image of nibabel, SimpleITK or MONAI with its own affine.
        affine: ``(4, 4)`` matrix from voxel indices to RAS+ millimetres; required for an array.
        subject: Name of the image in messages.

    Raises:
        VolumeError: The image is not a volume, or its geometry is unknown.
    """
    return _read(lambda: _take_apart(image, affine, subject), subject)


def take_label_map(image: Any, affine: Any = None, *, subject: str) -> Volume:
    """Convert a label map in memory to a volume, with the checks of :func:`load_label_map`.

    Args:
        image: Integers ``(I, J, K)``, or an image of nibabel, SimpleITK or MONAI; see :func:`take_image`.
        affine: ``(4, 4)`` matrix from voxel index to RAS+ mm, for an array only.
        subject: Name of the map in messages.

    Returns:
        ``array``, ``(I, J, K)`` ids in RAS+ in the smallest unsigned integer type for them, and ``grid``.

    Raises:
        VolumeError: The map is not a volume, has values that are not labels, or its geometry is unknown.
    """
    return _straighten_labels(_to_label_map(take_image(image, affine, subject=subject), subject), subject)


def _take_apart(image: Any, affine: Any, subject: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Array with three axes, and its voxel-to-RAS affine."""
    chosen: Any
    if hasattr(image, "GetDirection"):
        array, chosen = take_itk_image(image)
    else:
        try:
            array = np.asarray(image.dataobj if hasattr(image, "dataobj") else image)
        except ValueError as error:
            found = type(image).__name__
            raise VolumeError(
                f"{subject}: expected an array or an image of nibabel, SimpleITK or MONAI, found {found}. Pass array "
                "and affine as two arguments."
            ) from error
        chosen = getattr(image, "affine", None)
    chosen = chosen if affine is None else affine
    if chosen is None:
        raise VolumeError(f"{subject}: an array also needs its geometry. Give affine=, from voxel index to RAS+ mm.")
    if array.ndim == 4 and array.shape[0] == 1:  # a channel, as MONAI has it
        array = array[0]
    return array, np.asarray(chosen, dtype=np.float64)


def _to_label_map(volume: Volume, subject: str) -> Volume:
    array = volume.array
    if array.dtype.kind == "f":
        whole = np.rint(array)
        with np.errstate(invalid="ignore"):  # what is not finite
            is_odd = ~np.isfinite(array) | (np.abs(array - whole) > ROUNDING)
        if is_odd.any():
            raise VolumeError(
                f"{subject}: labels must be integers, found {float(array[is_odd][0])!r}. Is this an image, not a "
                "label map?"
            )
        array = whole
    labels = _to_smallest_unsigned(array, subject)
    return Volume(in_c_order(labels, labels.dtype), volume.grid)


def _load_volume(path: Path) -> Volume:
    """Read any supported file or folder and turn it to the closest RAS+ axes."""
    readers: dict[Kind, Callable[[Path], Stored]] = {
        "dicom": _read_dicom,
        "nifti": lambda path: parse_nifti(read_bounded(path), path),
        "itk": read_with_itk,
    }
    return _read(lambda: readers[_kind_of(path)](path), path)


def _lay_out(path: Path) -> Stored:
    """Shape, as an array that takes no memory, and affine of any supported file or folder."""
    readers: dict[Kind, Callable[[Path], tuple[tuple[int, ...], NDArray[np.float64]]]] = {
        "dicom": _lay_out_dicom,
        "nifti": read_nifti_grid,
        "itk": read_itk_grid,
    }
    shape, affine = readers[_kind_of(path)](path)
    _require_three_sides(shape, path)
    return np.broadcast_to(np.zeros((), dtype=np.uint8), shape), affine


def _kind_of(path: Path) -> Kind:
    """Return the reader of a file or folder.

    Raises:
        VolumeError: It is not there, or called like none that can be read.
    """
    if not path.exists():
        raise VolumeError(f"{path}: not found. Check the path.")
    if path.is_dir() or is_dicom(path):
        return "dicom"
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        return "nifti"
    if is_readable_name(path):
        return "itk"
    raise VolumeError(
        f"{path}: the name must end in one of {', '.join(READABLE_SUFFIXES)}, or be a DICOM folder. Convert or "
        "rename the file."
    )


def _read(read: Callable[[], Stored], subject: Path | str) -> Volume:
    """Turn what a reader gives to the closest RAS+ axes."""
    with _in_a_sentence(subject):
        array, affine = read()
        return _reorient_to_ras(_require_three_axes(array, subject), affine, subject)


@contextmanager
def _in_a_sentence(subject: Path | str) -> Iterator[None]:
    """Put what is wrong with a file into one sentence.

    Raises:
        VolumeError: The message names the file.
    """
    try:
        yield
    except GridError as error:
        raise VolumeError(f"{subject}: its geometry cannot be used. {error}") from error
    except MemoryError as error:
        raise VolumeError(f"{subject}: the image does not fit into memory.") from error
    except (OSError, ContentError) as error:
        raise VolumeError(
            f"{subject}: not a readable image, but damaged or empty ({reason_of(error)}). Replace the file."
        ) from error


def _read_dicom(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    from maisi_aug.volumes.dicom_image import read_dicom_image

    return read_dicom_image(path)


def _lay_out_dicom(path: Path) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    from maisi_aug.volumes.dicom_image import read_dicom_grid

    return read_dicom_grid(path)


def _require_three_axes(array: NDArray[Any], path: Path | str) -> NDArray[Any]:
    """The array without trailing axes of length one."""
    _require_three_sides(array.shape, path)
    array = array.reshape(array.shape[:3])
    if array.dtype.kind not in "iubf":
        raise VolumeError(f"{path}: expected one number per voxel, found {array.dtype}. Convert the file.")
    return array


def _require_three_sides(shape: Sequence[int], path: Path | str) -> None:
    """Raise unless there are three axes, further ones of length one apart, of a length that scans have."""
    if len(shape) < 3 or any(side != 1 for side in shape[3:]) or min(shape) < 1:
        sides = "x".join(map(str, shape))
        raise VolumeError(f"{path}: expected three axes, found {sides}. Split it into three-dimensional files.")
    if max(shape) > MAX_SIDE:
        raise VolumeError(f"{path}: expected at most {MAX_SIDE} voxels along an axis, found {max(shape)}. Replace it.")


def _reorient_to_ras(array: NDArray[Any], affine: NDArray[np.float64], path: Path | str) -> Volume:
    """Permute and flip axes to the closest RAS+; nothing is interpolated."""
    turned, grid = turn_to_ras(array, affine)
    if min(grid.spacing_mm) < PLAUSIBLE_MM[0] or max(grid.spacing_mm) > PLAUSIBLE_MM[1]:
        raise VolumeError(
            f"{path}: voxels of {spell_grid(grid.shape, grid.spacing_mm, with_extent=False)} are not those of a CT. "
            "Is the header's unit something else than millimetres?"
        )
    return Volume(turned, grid)


def save_image(path: Path | str, image_hu: NDArray[Any], grid: Grid, *, is_new: bool = False) -> None:
    """Write an image as int16 NIfTI, whole or not at all.

    Args:
        path: File to write, ``.nii.gz`` or ``.nii``; parent folders are created.
        image_hu: ``(I, J, K)`` image in HU; fractions are rounded, values beyond int16 are clipped.
        grid: Shape and affine of the array.
        is_new: Refuse to replace a file.

    Raises:
        VolumeError: Values are not finite, shapes differ, or the file cannot be written.
    """
    if image_hu.dtype != np.int16:
        if image_hu.dtype.kind == "f" and not np.isfinite(image_hu).all():
            raise VolumeError(f"{path}: has NaN or infinite HU. Reject this case.")
        image_hu = np.clip(np.rint(image_hu), -32768, 32767).astype(np.int16)
    _save_nifti(Path(path), image_hu, grid, IMAGE_COMPRESSION, is_new=is_new)


def save_label_map(path: Path | str, label_map: NDArray[Any], grid: Grid, *, is_new: bool = False) -> None:
    """Write a label map as NIfTI in the smallest unsigned integer type, whole or not at all.

    Args:
        path: File to write, ``.nii.gz`` or ``.nii``; parent folders are created.
        label_map: ``(I, J, K)`` non-negative integers or booleans.
        grid: Shape and affine of the array.
        is_new: Refuse to replace a file.

    Raises:
        VolumeError: Labels are negative or not integers, shapes differ, or the file cannot be written.
    """
    if label_map.dtype.kind not in "iub":
        raise VolumeError(f"{path}: expected integer labels, found {label_map.dtype}. Convert the label map first.")
    array = _to_smallest_unsigned(label_map, str(path))
    _save_nifti(Path(path), array, grid, LABEL_MAP_COMPRESSION, is_new=is_new)


def _to_smallest_unsigned(array: NDArray[Any], subject: str) -> NDArray[Any]:
    """The labels as uint8 or uint16."""
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or highest > 65535:
        wrong = lowest if lowest < 0 else highest
        raise VolumeError(f"{subject}: expected labels between 0 and 65535, found {wrong}. Is this an image?")
    return array.astype(np.uint8 if highest < 256 else np.uint16, copy=False)


def _save_nifti(path: Path, array: NDArray[Any], grid: Grid, level: int, *, is_new: bool) -> None:
    """Write a header and the voxels, a few slices at a time so that no second copy of the volume is held."""
    if array.shape != grid.shape:
        raise VolumeError(
            f"{path}: expected the grid's shape {grid.shape}, found {array.shape}. Pass the array's grid."
        )
    if not grid.has_right_angles:
        raise VolumeError(
            f"{path}: voxel axes are not at right angles: affine {np.round(grid.affine[:3, :3], 4).tolist()}, which "
            "a qform, ITK and DICOM cannot represent. Read the volume with load_image or load_label_map, which "
            "resample it."
        )
    if not path.name.endswith(NIFTI_SUFFIXES):
        raise VolumeError(f"{path}: the name must end in .nii.gz or .nii. Rename the target.")
    header = _build_nifti_header(array.dtype.str, grid.shape, grid.affine.tobytes())
    # A fixed gzip header (no name, no time) is what wbits=31 writes: same array, same bytes.
    packer = zlib.compressobj(level, zlib.DEFLATED, 31) if path.name.endswith(".gz") else None
    with open_whole(path, is_new=is_new) as file:

        def put(block: bytes) -> None:
            file.write(block if packer is None else packer.compress(block))

        put(header)
        little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
        for slab in slabs_in_file_order(little_endian):
            put(slab)
        if packer is not None:
            file.write(packer.flush())


@lru_cache(maxsize=64)
def _build_nifti_header(dtype: str, shape: Shape, affine: bytes) -> bytes:
    """Everything before the voxels; the files of a cohort mostly share it.

    Args:
        dtype: Floating-point type of the voxels, as NumPy spells it.
        shape: Shape of the array.
        affine: The bytes of its affine, ``(4, 4)`` float64.
    """
    import nibabel as nib

    to_ras = np.frombuffer(affine).reshape(4, 4)
    header: Any = nib.Nifti1Header()
    header.set_data_dtype(np.dtype(dtype))
    header.set_data_shape(shape)
    header.set_sform(to_ras, code=1)
    header.set_qform(to_ras, code=1)
    header.set_xyzt_units("mm")
    header["vox_offset"] = 352
    content: bytes = header.binaryblock + b"\0\0\0\0"
    return content
