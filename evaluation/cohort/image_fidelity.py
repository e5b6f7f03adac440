"""Fidelity of an image to a CT: PSNR, SSIM, HU by label and by tissue, and the spectrum.

PSNR and SSIM are of intensities in [0, 1], which are HU clipped to -1000..1000 as MAISI's networks see them; errors in
HU are against the CT as it is, so that what lies above 1000 HU counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.vocabulary.labels import BACKGROUND_ID
from maisi_aug.volumes.components import TOUCHING
from maisi_aug.volumes.grid import Spacing

LOW_HU: Final = -1000.0
HIGH_HU: Final = 1000.0
SSIM_WINDOW: Final = 11
SSIM_SIGMA: Final = 1.5
SSIM_SLAB: Final = 64
"""Number of slices compared at once; SSIM takes eight times their memory."""
SPECTRUM_SIDE: Final = 160
"""Side in voxels of the central part of a volume whose spectrum is measured."""
NUM_BANDS: Final = 16
HALF: Final = 0.5
MIN_VOXELS: Final = 10
MIN_CONTRAST_HU: Final = 15.0
"""Smallest contrast in HU at which a label counts as visible structure."""
TISSUES: Final[tuple[tuple[str, float, float], ...]] = (
    ("air and lung, below -200 HU", -np.inf, -200),
    ("fat, -200 to -30 HU", -200, -30),
    ("soft tissue, -30 to 150 HU", -30, 150),
    ("contrast and spongy bone, 150 to 700 HU", 150, 700),
    ("cortical bone, 700 to 1000 HU", 700, 1000),
    ("dense bone and metal, above 1000 HU", 1000, np.inf),
)
"""Name, lowest and highest HU of each tissue. Tissues are found by the HU of the CT itself; no label map is needed."""

Image = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Error:
    """HU error of a group of voxels, such as a tissue or a label, after reconstruction.

    Attributes:
        num_voxels: Number of voxels.
        bias_hu: Mean of image minus CT in HU.
        mean_error_hu: Mean absolute difference in HU.
        contrast_kept: Contrast to the surrounding shell in the image, divided by that in the CT; None for tissues and
            for labels without contrast.
    """

    num_voxels: int
    bias_hu: float
    mean_error_hu: float
    contrast_kept: float | None = None


def to_unit(image_hu: Image) -> NDArray[np.float32]:
    """Map HU to the networks' intensities: -1000 to 1000 become 0 to 1, other values are clipped."""
    return (np.clip(image_hu, LOW_HU, HIGH_HU).astype(np.float32) - np.float32(LOW_HU)) / np.float32(HIGH_HU - LOW_HU)


def measure_psnr(original: NDArray[np.float32], rebuilt: NDArray[np.float32]) -> float:
    """Return the peak signal-to-noise ratio in dB of two images in [0, 1]; infinite for equal ones.

    Args:
        original: Image in [0, 1].
        rebuilt: Image of the same shape.
    """
    mean = np.mean([np.square(a - b, dtype=np.float64).mean() for a, b in zip(original, rebuilt, strict=True)])
    return float(-10 * np.log10(mean)) if mean > 0 else float("inf")


def measure_ssim(original: NDArray[np.float32], rebuilt: NDArray[np.float32]) -> float | None:
    """Return the 3D structural similarity of two ``(I, J, K)`` images in [0, 1]; None for a side below 11 voxels.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004; with a
    Gaussian window of 1.5 voxels, in slabs of at most 64 slices.

    Args:
        original: ``(I, J, K)`` image in [0, 1].
        rebuilt: ``(I, J, K)`` image of the same shape.

    Returns:
        Mean similarity, 1 for equal images; None if a side has fewer than 11 voxels.
    """
    from skimage.metrics import structural_similarity

    if min(original.shape) < SSIM_WINDOW:
        return None
    parts = np.array_split(np.arange(original.shape[2]), -(-original.shape[2] // SSIM_SLAB))
    values = [
        structural_similarity(
            original[:, :, part[0] : part[-1] + 1],
            rebuilt[:, :, part[0] : part[-1] + 1],
            data_range=1.0,
            gaussian_weights=True,
            sigma=SSIM_SIGMA,
            use_sample_covariance=False,
        )
        for part in parts
    ]
    return float(np.average(values, weights=[len(part) for part in parts]))


def measure_tissues(original_hu: Image, rebuilt_hu: Image) -> dict[str, Error]:
    """Return tissue -> HU error of a reconstruction, where tissues are ranges of the CT's HU.

    Args:
        original_hu: ``(I, J, K)`` image in HU, which decides on the tissue of a voxel.
        rebuilt_hu: ``(I, J, K)`` reconstruction in HU.
    """
    edges = np.array([high for _, _, high in TISSUES[:-1]])
    groups = np.searchsorted(edges, original_hu.ravel(), side="right")
    return _sum_up(groups, original_hu, rebuilt_hu, [name for name, _, _ in TISSUES])


def measure_labels(original_hu: Image, rebuilt_hu: Image, label_map: NDArray[np.uint8]) -> dict[int, Error]:
    """Return label id -> HU error of a reconstruction and preserved contrast, for labels of at least ten voxels.

    Args:
        original_hu: ``(I, J, K)`` image in HU.
        rebuilt_hu: ``(I, J, K)`` reconstruction in HU.
        label_map: ``(I, J, K)`` vocabulary ids.
    """
    sums = _sum_up(label_map.ravel(), original_hu, rebuilt_hu, [str(number) for number in range(256)])
    found = {}
    for number, box in enumerate(ndimage.find_objects(label_map), start=1):
        error = sums.get(str(number))
        if box is None or error is None or error.num_voxels < MIN_VOXELS or number == BACKGROUND_ID:
            continue
        wide = tuple(
            slice(max(0, part.start - 2), min(side, part.stop + 2))
            for part, side in zip(box, label_map.shape, strict=True)
        )
        mask = label_map[wide] == number
        shell = ndimage.binary_dilation(mask, TOUCHING, iterations=2) & ~mask
        kept = None
        if shell.any():
            before, after = (
                float(image[wide][mask].mean() - image[wide][shell].mean()) for image in (original_hu, rebuilt_hu)
            )
            kept = after / before if abs(before) >= MIN_CONTRAST_HU else None
        found[number] = Error(error.num_voxels, error.bias_hu, error.mean_error_hu, kept)
    return found


def _sum_up(groups: NDArray[Any], original_hu: Image, rebuilt_hu: Image, names: Sequence[str]) -> dict[str, Error]:
    difference = (rebuilt_hu.astype(np.float32) - original_hu.astype(np.float32)).ravel()
    counts = np.bincount(groups, minlength=len(names))
    sums = np.bincount(groups, weights=difference, minlength=len(names))
    absolute = np.bincount(groups, weights=np.abs(difference), minlength=len(names))
    return {
        name: Error(int(counts[n]), float(sums[n] / counts[n]), float(absolute[n] / counts[n]))
        for n, name in enumerate(names)
        if counts[n]
    }


def measure_spectrum(
    original: NDArray[np.float32], rebuilt: NDArray[np.float32], spacing_mm: Spacing
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the fraction of spectral power that a reconstruction preserves in each band of spatial frequencies.

    The middle of the volume, at most 160 voxels per side, is multiplied with a Hann window, which excludes the edges of
    the field of view. Bands are equal steps of the length of the wave vector, up to the Nyquist frequency of the
    coarsest axis.

    Args:
        original: ``(I, J, K)`` CT in [0, 1].
        rebuilt: ``(I, J, K)`` reconstruction in [0, 1].
        spacing_mm: Voxel sides along I, J, K in mm.

    Returns:
        Centres of the bands in cycles per mm, and power of the reconstruction divided by that of the CT, for non-empty
        bands.
    """
    cut = tuple(
        slice((side - min(side, SPECTRUM_SIDE)) // 2, (side + min(side, SPECTRUM_SIDE)) // 2) for side in original.shape
    )
    shape = original[cut].shape
    window = np.ones(shape, dtype=np.float32)
    for axis, side in enumerate(shape):
        window *= np.hanning(side + 2)[1:-1].astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    powers = []
    for image in (original, rebuilt):
        part = image[cut]
        powers.append(np.abs(np.fft.rfftn((part - part.mean()) * window)) ** 2)
    axes = [np.fft.fftfreq(side, step) for side, step in zip(shape[:2], spacing_mm[:2], strict=True)]
    axes.append(np.fft.rfftfreq(shape[2], spacing_mm[2]))
    length = np.sqrt(
        sum(np.square(f).reshape([-1 if a == axis else 1 for a in range(3)]) for axis, f in enumerate(axes))
    )
    edges = np.linspace(0, 0.5 / max(spacing_mm), NUM_BANDS + 1)
    bands = np.digitize(length.ravel(), edges) - 1
    before, after = (np.bincount(bands, weights=power.ravel(), minlength=NUM_BANDS + 1)[:NUM_BANDS] for power in powers)
    has_power = before > 0
    return ((edges[:-1] + edges[1:]) / 2)[has_power], after[has_power] / before[has_power]


def find_blur(frequencies: NDArray[np.float64], kept: NDArray[np.float64]) -> float | None:
    """Return the width in mm (half a wavelength) of the widest structures that lost half of their power, or None.

    Args:
        frequencies: ``(N,)`` ascending spatial frequencies in cycles per mm.
        kept: ``(N,)`` share of the power at each frequency that is left.

    Returns:
        Width in mm; None if no frequency lost half of its power.
    """
    lost = np.flatnonzero(kept < HALF)
    return None if not len(lost) else float(0.5 / frequencies[lost[0]])
