"""Layers that compute the same in less time on a CPU in float32: convolutions, and attention.

Three facts decide how long a convolution with a kernel of 3x3x3 takes (``python -m tests.benchmarks.convolutions``):

* torch hands small float32 convolutions to a kernel of its own that is up to three times slower than oneDNN's.
* oneDNN computes at the processor's peak. What is left is to compute less: Winograd's minimal filtering F(4, 3) along
  I takes 6 products for 4 voxels instead of 12 (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
  CVPR 2016), and the planes that it leaves are convolved in two dimensions.
* oneDNN fills up output channels to the width of its vectors, so that one channel costs as much as sixteen.

MAISI upsamples by trilinear interpolation and convolves then. Interpolation by 2 is zeros between the voxels, smoothed
along each side by (1, 3, 3, 1) / 4. Smoothing treats every channel alike, so that it can come after the convolution,
and of a convolution of zeros between voxels an eighth of the products is left.

The sums are the same in another order: results differ by rounding, of which Winograd's make three to five times as
much as a plain convolution. Attention goes through torch's fused kernel, which holds no matrix of all pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import product
from typing import cast

import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import MaisiUpsample
from monai.networks.blocks.crossattention import CrossAttentionBlock
from monai.networks.blocks.selfattention import SABlock
from torch import Tensor, nn
from torch.nn import functional

Triple = tuple[int, int, int]
MIN_CHANNELS = 32
"""Smallest number of input and output channels; with fewer, the additions take as long as the products they save."""
MIN_VOXELS = 1024
"""Smallest number of voxels of an image; with fewer, transforming the weights takes as long as it saves."""
FEW_VOXELS = 128
"""Number of voxels of an image below which reordering the weights of a convolution takes as long as the convolution."""
MIN_MEASURED = 1 << 15
"""Smallest number of values of a norm for which a copy takes longer than the calls that it saves."""
CACHE_NUMBERS = 1 << 17
"""Number of values whose moments are taken at once."""
CHUNK_NUMBERS = 1 << 20
"""Number of input values transformed at once: few enough for a processor's cache."""


class CpuConv3d(nn.Conv3d):
    """``torch.nn.Conv3d`` with a faster algorithm for float32 on a CPU without gradients; otherwise the same."""

    @classmethod
    def sharing(cls, plain: nn.Conv3d) -> CpuConv3d:
        """Return a convolution that shares the parameters of a plain one."""
        with torch.device("meta"):
            twin = cls(
                plain.in_channels,
                plain.out_channels,
                cast(Triple, plain.kernel_size),
                stride=cast(Triple, plain.stride),
                padding=cast(Triple, plain.padding),
                dilation=cast(Triple, plain.dilation),
                groups=plain.groups,
                bias=plain.bias is not None,
                padding_mode=plain.padding_mode,
            )
        twin.weight, twin.bias = plain.weight, plain.bias
        return twin.train(plain.training)

    def forward(self, features: Tensor) -> Tensor:
        """Return the convolution of ``(B, C, I, J, K)`` features, in channels-last memory format."""
        if not _is_for_cpu(features, self.weight) or isinstance(self.padding, str) or self.padding_mode != "zeros":
            return super().forward(features)
        if features[0, 0].numel() < FEW_VOXELS:
            return super().forward(features)
        features = features.contiguous(memory_format=torch.channels_last_3d)
        if self.looks_one_voxel_far and self.groups == 1:
            if self.out_channels == 1:
                return _convolve_into_one(features, self.weight, self.bias)
            if self.is_wide and features.shape[2] > 2 and features[0, 0].numel() >= MIN_VOXELS:
                return _convolve_by_winograd(features, _transform_kernel(self.weight), self.bias)
        return _convolve(
            features,
            self.weight,
            self.bias,
            padding=cast(Triple, self.padding),
            stride=cast(Triple, self.stride),
            dilation=cast(Triple, self.dilation),
            groups=self.groups,
        )

    @property
    def looks_one_voxel_far(self) -> bool:
        """Whether the kernel has 3x3x3 voxels and the output the size of the input."""
        return self.kernel_size == (3, 3, 3) and self.padding == self.stride == self.dilation == (1, 1, 1)

    @property
    def is_wide(self) -> bool:
        """Whether Winograd's way saves more products than it costs additions."""
        return min(self.in_channels, self.out_channels) >= MIN_CHANNELS


class NormedConvolution:
    """A norm whose statistics are known, SiLU and a convolution that looks one voxel far, for some planes at a time.

    On a CPU the norm and the activation are computed for the few planes that are convolved next, in the processor's
    cache, and no plane is convolved that is not wanted.

    Attributes:
        scale: Factor of every channel, ``(B, C, 1, 1, 1)``.
        shift: What is added afterwards, the same.
        layer: Convolution, possibly in MONAI's wrapper.
    """

    def __init__(self, scale: Tensor, shift: Tensor, layer: nn.Module) -> None:
        self.scale, self.shift, self.layer = scale, shift, layer

    def compute(self, features: Tensor, start: int, stop: int) -> Tensor:
        """Return some planes of the output.

        Args:
            features: ``(B, C, I, J, K)`` features; beyond their ends are zeros.
            start: First plane of the output along I.
            stop: First plane after them.

        Returns:
            ``(B, D, stop - start, J, K)`` features.
        """
        inner = _inner_convolution(self.layer)
        if not isinstance(inner, CpuConv3d) or not inner.looks_one_voxel_far or inner.groups > 1:
            return cast(Tensor, self.layer(self._prepare(features.float())))[:, :, start:stop]
        is_fast = _is_for_cpu(features, inner.weight) and inner.padding_mode == "zeros"
        if is_fast and inner.is_wide and stop - start > 2 and features[0, 0].numel() >= MIN_VOXELS:
            features = features.contiguous(memory_format=torch.channels_last_3d)
            norms = tuple(zip(self.scale[..., 0], self.shift[..., 0], strict=True))
            return _convolve_by_winograd(features, self._kernels, inner.bias, start, stop, norms)
        first, last = max(start - 1, 0), min(stop + 1, features.shape[2])
        output = cast(Tensor, self.layer(self._prepare(features[:, :, first:last].float())))
        return output[:, :, start - first : stop - first]

    def _prepare(self, features: Tensor) -> Tensor:
        return functional.silu(torch.addcmul(self.shift, features, self.scale), inplace=True)

    @cached_property
    def _kernels(self) -> list[Tensor]:
        return _transform_kernel(cast(CpuConv3d, _inner_convolution(self.layer)).weight)


class CpuUpsampling(nn.ConvTranspose3d):
    """MAISI's transposed convolution, which doubles every side, with a faster algorithm under the same conditions.

    Output voxels at even positions along a side depend on the middle of the kernel, others on its two ends. This makes
    eight convolutions of the input, which together compute every product once.
    """

    @classmethod
    def sharing(cls, plain: nn.ConvTranspose3d) -> CpuUpsampling:
        """Return a transposed convolution that shares the parameters of a plain one, see :func:`doubles_sides`."""
        with torch.device("meta"):
            twin = cls(plain.in_channels, plain.out_channels, 3, stride=2, padding=1, output_padding=1)
        twin.weight, twin.bias = plain.weight, plain.bias
        return twin.train(plain.training)

    def forward(self, features: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Upsample features by two along every axis.

        Args:
            features: ``(B, C, I, J, K)`` features.
            output_size: As of ``torch.nn.ConvTranspose3d``; with it torch's own implementation computes.

        Returns:
            ``(B, D, 2 I, 2 J, 2 K)`` features, in channels-last memory format.
        """
        if output_size is not None or not _is_for_cpu(features, self.weight):
            return super().forward(features, output_size)
        # A convolution of an upsampling looks one voxel ahead, and beyond the end are zeros.
        padded = functional.pad(features, (0, 1) * 3).contiguous(memory_format=torch.channels_last_3d)
        sides = [2 * side for side in features.shape[2:]]
        shape = (features.shape[0], self.out_channels, *sides)
        output = torch.empty(shape, memory_format=torch.channels_last_3d)
        for odd in product((0, 1), repeat=3):
            kernel, part = self.weight.transpose(0, 1), padded
            for axis, is_odd in enumerate(odd, start=2):
                kernel = kernel.index_select(axis, torch.tensor((2, 0) if is_odd else (1,)))
                part = part if is_odd else part.narrow(axis, 0, part.shape[axis] - 1)
            places = tuple(slice(is_odd, None, 2) for is_odd in odd)
            output[:, :, *places] = _convolve(part, kernel, self.bias)
        return output


class CpuMaisiUpsample(MaisiUpsample):  # type: ignore[misc]
    """MAISI's upsampling; by interpolation and convolution it takes an eighth of the products."""

    @classmethod
    def sharing(cls, plain: MaisiUpsample) -> CpuMaisiUpsample:
        """Return an upsampling with the convolution of a plain one."""
        with torch.device("meta"):
            twin: CpuMaisiUpsample = cls(3, 1, plain.use_convtranspose, 1, 0, False, plain.save_mem)
        twin.conv = plain.conv
        twin.train(plain.training)
        return twin

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, C, I, J, K)`` upsampled to ``(B, D, 2 I, 2 J, 2 K)``, in the memory format channels last."""
        return self.upsample(x, 0, 2 * x.shape[2])

    def upsample(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Return some planes of the upsampled features.

        Args:
            x: ``(B, C, I, J, K)`` features.
            start: First plane of the output along its first axis of ``2 I`` planes.
            stop: First plane after them.

        Returns:
            ``(B, D, stop - start, 2 J, 2 K)`` features.
        """
        if self.use_convtranspose:
            return cast(Tensor, self.conv(x))[:, :, start:stop]  # MAISI's copies it into another memory format
        inner = _inner_convolution(self.conv)
        assert isinstance(inner, CpuConv3d)
        if not _is_for_cpu(x, inner.weight) or min(x.shape[2:]) < 2 or not inner.looks_one_voxel_far:
            return cast(Tensor, super().forward(x))[:, :, start:stop]
        first, last = start // 2, -(-stop // 2)
        shape = (x.shape[0], inner.out_channels, 2 * (last - first), *(2 * side for side in x.shape[3:]))
        output = torch.empty(shape, memory_format=torch.channels_last_3d)
        padded = functional.pad(x, (1,) * 6, mode="replicate").contiguous(memory_format=torch.channels_last_3d)
        for image, found in zip(padded, output, strict=True):
            _upsample(image[None, :, first : last + 2], inner.weight, inner.bias, found[None])
        _correct_faces(x, inner.weight, output, 2 * first)
        return output[:, :, start - 2 * first : stop - 2 * first]


def _inner_convolution(layer: nn.Module) -> nn.Module | None:
    """The only layer in MONAI's wrapper, which is named like a block of several; None of a block."""
    found = [each for each in layer.modules() if not list(each.children())]
    return found[0] if len(found) == 1 else None


class CpuGroupNorm(nn.GroupNorm):
    """``torch.nn.GroupNorm`` of features in channels last.

    torch's own kernel for these on a CPU sums in float32 one after the other: of 10^6 numbers a group, the deviation is
    wrong in the fourth digit. Its kernel for contiguous features is right in the seventh, as is ``measure_groups``,
    which needs no copy.
    """

    @classmethod
    def sharing(cls, plain: nn.GroupNorm) -> CpuGroupNorm:
        """Return a norm that shares the parameters of a plain one."""
        with torch.device("meta"):
            twin = cls(plain.num_groups, plain.num_channels, plain.eps, plain.affine)
        twin.weight, twin.bias = plain.weight, plain.bias
        return twin.train(plain.training)

    def forward(self, features: Tensor) -> Tensor:
        """Return ``(B, C, I, J, K)`` normed."""
        if not (self.affine and _is_for_cpu(features, self.weight) and is_measurable(features)):
            return super().forward(features.contiguous())
        mean, squares = measure_groups(features, self.num_groups)
        scale, shift = to_scale_and_shift(self, mean, squares * (self.num_groups / features[0].numel()))
        return torch.addcmul(shift, features, scale)


def to_scale_and_shift(norm: nn.GroupNorm, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and shift of every channel that a group norm amounts to.

    Args:
        norm: With weight and bias.
        mean: Of the groups, ``(B, num_groups)``; on another device than the norm where that one lacks float64.
        variance: The same of their squared deviations.

    Returns:
        ``(B, C, 1, 1, 1)`` float32 each, on the norm's device.
    """
    per_channel = norm.num_channels // norm.num_groups
    deviation = (variance + norm.eps).sqrt()
    mean, deviation = (each.repeat_interleave(per_channel, dim=1) for each in (mean, deviation))
    weight, bias = (each.to(deviation.device) for each in (norm.weight, norm.bias))
    scale = weight / deviation
    shift = bias - mean * scale
    shape, device = (*scale.shape, 1, 1, 1), norm.weight.device
    return scale.float().view(shape).to(device), shift.float().view(shape).to(device)


def is_measurable(features: Tensor) -> bool:
    """Whether ``measure_groups`` is faster than a copy and torch's norm: large features in channels last."""
    return (
        features.dtype == torch.float32
        and features.device.type == "cpu"
        and features.dim() == 5
        and features.numel() >= MIN_MEASURED
        and features.is_contiguous(memory_format=torch.channels_last_3d)
        and not features.is_contiguous()
    )


def measure_groups(features: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Return mean and sum of squared deviations of groups of channels.

    Sums are taken of what is left when a value near the mean is subtracted, in blocks that fit a processor's cache.

    Args:
        features: ``(B, C, I, J, K)`` in channels last.
        num_groups: Groups of equally many channels.

    Returns:
        ``(B, num_groups)`` float64 each.
    """
    batch, channels = features.shape[:2]
    rows = features.permute(0, 2, 3, 4, 1).flatten(1, 3)  # (B, V, C)
    number = rows.shape[1]
    near = rows[:, :64].mean(dim=1, keepdim=True)
    total, squares = (torch.zeros(batch, channels, dtype=torch.float64) for _ in range(2))
    for part in torch.split(rows, max(CACHE_NUMBERS // channels, 1), dim=1):
        offset = part - near
        total += offset.sum(dim=1)
        squares += offset.mul_(offset).sum(dim=1)
    means = near[:, 0] + total / number  # (B, C)
    within = squares - total.square() / number
    means, within = (each.view(batch, num_groups, -1) for each in (means, within))
    mean = means.mean(dim=2)
    return mean, within.sum(dim=2) + number * (means - mean[:, :, None]).square().sum(dim=2)


def doubles_sides(layer: nn.Module) -> bool:
    """Whether a layer is a transposed convolution like MAISI's, with a 3x3x3 kernel that doubles every side."""
    return (
        isinstance(layer, nn.ConvTranspose3d)
        and layer.kernel_size == (3, 3, 3)
        and layer.stride == (2, 2, 2)
        and layer.padding == layer.output_padding == layer.dilation == (1, 1, 1)
        and layer.groups == 1
        and layer.bias is not None
    )


def _is_for_cpu(features: Tensor, weight: Tensor) -> bool:
    has_gradient = torch.is_grad_enabled() and (features.requires_grad or weight.requires_grad)
    return (
        features.device.type == "cpu"
        and features.dtype == weight.dtype == torch.float32
        and features.dim() == 5
        and not has_gradient
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


def _convolve(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    padding: Triple = (0, 0, 0),
    stride: Triple = (1, 1, 1),
    dilation: Triple = (1, 1, 1),
    groups: int = 1,
) -> Tensor:
    """oneDNN's convolution, whatever torch would choose."""
    settings = (padding, stride, dilation, groups)
    return torch.mkldnn_convolution(features, weight, bias, *settings)


def _convolve_into_one(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One output channel: the kernel's nine rows along K as nine channels, moved along I and J and added up."""
    # (1, C, 3, 3, 3) -> (9, C, 1, 1, 3)
    rows = weight[0].flatten(1, 2).transpose(0, 1)[:, :, None, None].contiguous()
    parts = _convolve(features, rows, None, padding=(0, 0, 1))
    output = features.new_zeros((features.shape[0], 1, *features.shape[2:]))
    for row, (part_i, part_j) in enumerate((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
        to_i, from_i = _moved(part_i, features.shape[2])
        to_j, from_j = _moved(part_j, features.shape[3])
        output[:, 0, to_i, to_j] += parts[:, row, from_i, from_j]
    return output if bias is None else output.add_(bias.view(1, -1, 1, 1, 1))


def _moved(offset: int, side: int) -> tuple[slice, slice]:
    """Return the target and the source slices of a shift by ``offset`` voxels."""
    return slice(max(-offset, 0), side - max(offset, 0)), slice(max(offset, 0), side - max(-offset, 0))


Norm = tuple[Tensor, Tensor]
"""Scale and shift of an image's channels, ``(C, 1, 1)`` each."""


def _convolve_by_winograd(
    features: Tensor,
    kernels: list[Tensor],
    bias: Tensor | None,
    start: int = 0,
    stop: int | None = None,
    norms: Sequence[Norm] | None = None,
) -> Tensor:
    """F(4, 3) along I, with the interpolation points 0, 1, -1, 2, -2 and infinity.

    Args:
        features: ``(B, C, I, J, K)`` in channels last.
        kernels: What ``_transform_kernel`` makes of the weights.
        bias: ``(D,)``.
        start: First plane of the output along I.
        stop: First plane after them; None for the end.
        norms: Of every image, for features that are scaled, shifted and activated before.
    """
    batch, channels, side, *plane = features.shape
    num_planes = (side if stop is None else stop) - start
    num_groups, num_outputs = -(-num_planes // 4), kernels[0].shape[0]
    # (B, I / 4, 4, J, K, D)
    output = features.new_empty((batch, num_groups, 4, *plane, num_outputs))
    step = min(max(CHUNK_NUMBERS // (4 * features[0, :, 0].numel()), 1), num_groups)
    for number, (image, found) in enumerate(zip(features, output, strict=True)):
        planes = image.transpose(0, 1)  # (I, C, J, K)
        chunk = torch.empty((4 * step + 2, channels, *plane), memory_format=torch.channels_last)
        for first in range(0, num_groups, step):
            last = min(first + step, num_groups)
            begin, end = start + 4 * first - 1, start + 4 * last + 1
            if norms is None and begin >= 0 and end <= side:
                part = planes[begin:end]
            else:
                part = chunk[: end - begin]
                num_known = 0 if first == 0 or norms is None else 2
                part[:num_known] = chunk[4 * step : 4 * step + num_known]
                _fill(part, num_known, planes, begin, None if norms is None else norms[number])
            _convolve_groups(part, kernels, bias, found[first:last])
    whole = output.view(batch, 4 * num_groups, *plane, num_outputs)[:, :num_planes]
    return whole.permute(0, 4, 1, 2, 3)


def _fill(part: Tensor, known: int, planes: Tensor, begin: int, norm: Norm | None) -> None:
    """Fill the planes of a part from ``known`` on; it begins at plane ``begin``, and beyond the ends are zeros."""
    low = min(max(begin + known, 0), len(planes))
    high = min(begin + len(part), len(planes))
    high = max(low, high)
    part[known : low - begin].zero_()
    part[high - begin :].zero_()
    inner = part[low - begin : high - begin]
    if norm is None:
        inner.copy_(planes[low:high])
    else:
        torch.addcmul(norm[1], planes[low:high], norm[0], out=inner)
        functional.silu(inner, inplace=True)


def _transform_kernel(weight: Tensor) -> list[Tensor]:
    """``(D, C, 3, 3, 3)`` to six ``(D, C, 3, 3)``."""
    first, middle, last = weight.unbind(2)
    outer, outer_twice = first + last, first + 4 * last
    kernels = (
        first / 4,
        (outer + middle) / -6,
        (outer - middle) / -6,
        (outer_twice + 2 * middle) / 24,
        (outer_twice - 2 * middle) / 24,
        last,
    )
    return [kernel.contiguous(memory_format=torch.channels_last) for kernel in kernels]


def _convolve_groups(part: Tensor, kernels: list[Tensor], bias: Tensor | None, output: Tensor) -> None:
    """Fill ``(n, 4, J, K, D)`` from ``(4 n + 2, C, J, K)``."""
    num_groups = output.shape[0]
    d = [part[start : start + 4 * num_groups - 3 : 4] for start in range(6)]
    even, odd = torch.add(d[4], d[2], alpha=-4), torch.add(d[3], d[1], alpha=-4)
    even_2, odd_2 = d[4] - d[2], (d[3] - d[1]).mul_(2)
    inputs = (
        torch.add(d[4], d[2], alpha=-5).add_(d[0], alpha=4),
        even + odd,
        even.sub_(odd),
        even_2 + odd_2,
        even_2.sub_(odd_2),
        torch.add(d[5], d[3], alpha=-5).add_(d[1], alpha=4),
    )
    # A bias in the second product reaches all four voxels once.
    m = [
        functional.conv2d(each, kernel, bias if number == 1 else None, padding=1)
        for number, (each, kernel) in enumerate(zip(inputs, kernels, strict=True))
    ]
    voxels = [output[:, place].permute(0, 3, 1, 2) for place in range(4)]
    total, difference = m[1] + m[2], m[1].sub_(m[2])
    total_2, difference_2 = m[3] + m[4], m[3].sub_(m[4])
    torch.add(m[0].add_(total), total_2, out=voxels[0])
    torch.add(difference, difference_2, alpha=2, out=voxels[1])
    torch.add(total, total_2, alpha=4, out=voxels[2])
    torch.add(m[5].add_(difference), difference_2, alpha=8, out=voxels[3])


def _upsample(padded: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor) -> None:
    """Fill ``(1, D, 2 I, 2 J, 2 K)`` from ``(1, C, I + 2, J + 2, K + 2)``, plane by plane; wrong at the six faces.

    Of a convolution of zeros between voxels, places that are even take the middle of the kernel and odd ones its two
    ends, along each side alike. Smoothing along J and K is a convolution of each channel alone.
    """
    taps = {0: torch.tensor((1,)), 1: torch.tensor((0, 2))}
    kernels = {}
    for odd in product((0, 1), repeat=3):
        kernel = weight
        for axis, is_odd in enumerate(odd, start=2):
            kernel = kernel.index_select(axis, taps[is_odd])
        kernels[odd] = kernel.contiguous(memory_format=torch.channels_last_3d)
    channels, j, k = weight.shape[0], *(side - 2 for side in padded.shape[3:])
    row = torch.tensor((1.0, 3.0, 3.0, 1.0))
    smoothing = (torch.outer(row, row) / 64).expand(channels, 1, 4, 4).contiguous()  # / 4 along each of three sides
    share = None if bias is None else bias / 8  # the factors along I add up to 8
    shape = (1, channels, 2 * j + 3, 2 * k + 3)

    def plane(number: int, is_odd: int) -> Tensor:
        """A plane ``(1, D, 2 J, 2 K)``, smoothed along J and K."""
        part = padded[:, :, number : number + 1 + is_odd]
        spread = torch.empty(shape, memory_format=torch.channels_last)
        for odd_j, odd_k in product((0, 1), repeat=2):
            spread[:, :, odd_j::2, odd_k::2] = _convolve(part, kernels[is_odd, odd_j, odd_k], None).squeeze(2)
        return functional.conv2d(spread, smoothing, share, groups=channels)

    even, odds = [plane(0, 0), plane(1, 0)], [plane(0, 1)]
    for number in range(padded.shape[2] - 2):
        even, odds = [*even[-2:], plane(number + 2, 0)], [odds[-1], plane(number + 1, 1)]
        torch.add(odds[1] + even[0], even[1] + odds[0], alpha=3, out=output[:, :, 2 * number])
        torch.add(even[2] + odds[0], odds[1] + even[1], alpha=3, out=output[:, :, 2 * number + 1])


def _correct_faces(features: Tensor, weight: Tensor, output: Tensor, first: int) -> None:
    """Take away what lies beyond the faces: zeros to MAISI's convolution, and to ``_upsample`` copies of the outermost.

    One side after the other, so that edges are not taken twice: sides that are done end with zeros, others go on. Of
    the whole output, ``output`` has the planes along I from ``first`` on.
    """
    stop = first + output.shape[2]
    for axis, is_end in product((2, 3, 4), (False, True)):
        side = features.shape[axis]
        if axis == 2 and (stop < 2 * side if is_end else first > 0):
            continue
        beyond = features.narrow(axis, side - 1 if is_end else 0, 1)
        # (left, right) from the last side on, as functional.pad takes them; of those that go on
        goes_on = [number for each in (4, 3, 2) for number in ((1, 1) if each > axis else (0, 0))]
        beyond = functional.interpolate(
            functional.pad(beyond, goes_on, mode="replicate"),
            scale_factor=tuple(1.0 if each == axis else 2.0 for each in (2, 3, 4)),
            mode="trilinear",
        )
        for each in range(axis + 1, 5):  # of four voxels that padding has become, one is seen on either side
            beyond = beyond.narrow(each, 1, beyond.shape[each] - 2)
        kernel = weight.narrow(axis, 2 if is_end else 0, 1)
        padding = cast(Triple, tuple(int(each < axis) for each in (2, 3, 4)))
        seen = _convolve(beyond.contiguous(memory_format=torch.channels_last_3d), kernel, None, padding=padding)
        face = output.narrow(axis, output.shape[axis] - 1 if is_end else 0, 1)
        face.sub_(seen if axis == 2 else seen[:, :, first:stop])


def use_cpu_layers(network: nn.Module) -> int:
    """Replace convolutions by :class:`CpuConv3d` with the same weights and names, and fuse attention, in place.

    MONAI enables fused attention only for networks that are built on a CUDA device, although its blocks work on a CPU.

    Returns:
        Number of layers replaced.
    """
    num_changed = 0
    for parent in list(network.modules()):
        if isinstance(parent, SABlock | CrossAttentionBlock) and _may_be_fused(parent):
            parent.use_flash_attention = True
            num_changed += 1
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv3d:
                setattr(parent, name, CpuConv3d.sharing(child))
                num_changed += 1
            elif type(child) is nn.GroupNorm:
                setattr(parent, name, CpuGroupNorm.sharing(child))
                num_changed += 1
            elif type(child) is nn.ConvTranspose3d and doubles_sides(child):
                setattr(parent, name, CpuUpsampling.sharing(child))
                num_changed += 1
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            inner = _inner_convolution(cast(nn.Module, child.conv)) if type(child) is MaisiUpsample else None
            if isinstance(inner, CpuConv3d | CpuUpsampling):
                setattr(parent, name, CpuMaisiUpsample.sharing(child))
                num_changed += 1
    return num_changed


def _may_be_fused(attention: SABlock | CrossAttentionBlock) -> bool:
    """Whether the fused kernel does all that a block does; one that upcasts holds two types, which it does not take."""
    does_more = attention.save_attn or attention.rel_positional_embedding is not None or attention.causal
    return not (attention.use_flash_attention or does_more or attention.attention_dtype is not None)
