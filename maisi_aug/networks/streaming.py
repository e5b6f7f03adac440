"""A convolutional coder computed slab by slab: the result of the whole, in the memory of what has to be kept.

Group normalisation is the only operation of MAISI's VAE, attention apart, that is not local: it needs the mean and the
deviation of a whole group. Here a slab goes through as many layers as possible at once, with the halo that their
kernels need, and every norm takes statistics of the whole that an earlier pass over the slabs has collected. No voxel
of the result is blended, and slabs leave no seams.

What is kept between passes decides on memory and time (``Keep``). Tensors are kept as slabs along I, and each is freed
as soon as nothing needs it any more: a block's output grows while its input shrinks.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol, cast

import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import (
    MaisiConvolution,
    MaisiDownsample,
    MaisiGroupNorm3D,
    MaisiResBlock,
    MaisiUpsample,
)
from torch import Tensor, nn

from maisi_aug.bundle_spec.decoding import Keep
from maisi_aug.networks.cpu_layers import (
    CpuMaisiUpsample,
    NormedConvolution,
    is_measurable,
    measure_groups,
    to_scale_and_shift,
)
from maisi_aug.networks.devices import in_float64

MIN_THICKNESS = 8
"""Number of voxels of a slab along I; a thinner slab takes more time for its halo than it saves memory."""
CUT_MULTIPLE = 4
"""Slabs begin at multiples of that many voxels, as many as Winograd's way computes at once."""
MIN_CPU_ROWS = 20480
"""Batch x channels x I x J up to which torch computes float32 convolutions on a CPU without oneDNN: several times
slower, and with 27 copies of the slab. ``CpuConv3d`` does not leave that to torch."""
MAX_SLACK = 1.1
"""Memory that a kept slab may hold relative to its own; one that is part of a longer slab is copied."""
ANY = sys.maxsize
"""Channels of what can be computed in slabs of any size."""


class Slabs:
    """A ``(B, C, I, J, K)`` tensor in pieces along I, of which the first can be freed while later ones are added.

    With ``on_host`` the pieces are kept in the host's memory, and what is read goes to the device that they came from.
    """

    def __init__(self, whole: Tensor | None = None, *, on_host: bool = False) -> None:
        self.pieces: list[Tensor] = []
        self.first, self.on_host = 0, on_host
        self.device: torch.device | None = None
        if whole is not None:
            self.append(whole)

    @property
    def side(self) -> int:
        """Number of voxels along I up to the end of the last piece."""
        return self.first + sum(piece.shape[2] for piece in self.pieces)

    def append(self, piece: Tensor) -> None:
        """Append the next piece along I."""
        self.device = piece.device
        owned = piece.untyped_storage().nbytes() <= MAX_SLACK * piece.numel() * piece.element_size()
        piece = piece if owned else piece.clone()
        self.pieces.append(piece.cpu() if self.on_host else piece)

    def read(self, start: int, stop: int) -> Tensor:
        """Return a range of the features along I.

        Args:
            start: First voxel, counted in the whole features.
            stop: First voxel after the range.

        Returns:
            ``(B, C, stop - start, J, K)`` on the device; a view if the range lies in one piece.
        """
        found, offset = [], self.first
        for piece in self.pieces:
            first, last = max(start - offset, 0), min(stop - offset, piece.shape[2])
            if first < last:
                found.append(piece[:, :, first:last])
            offset += piece.shape[2]
        part = found[0] if len(found) == 1 else torch.cat(found, dim=2)
        return part.to(self.device)

    def drop_before(self, stop: int) -> None:
        """Free the pieces that end before a position along I."""
        while self.pieces and self.first + self.pieces[0].shape[2] <= stop:
            self.first += self.pieces.pop(0).shape[2]


@dataclass
class Moments:
    """Mean and variance of the groups of a group norm, accumulated slab by slab.

    Because a group's mean may be far from 0, slabs are merged by their means and squared deviations, in float64.
    """

    num_groups: int
    count: int = 0
    mean: Tensor | None = None
    squares: Tensor | None = None

    def add(self, slab: Tensor) -> None:
        """Accumulate a slab ``(B, C, I, J, K)``."""
        added = slab[0].numel() // self.num_groups
        mean, squares = self._measure(slab, added)
        if self.mean is None or self.squares is None:
            self.count, self.mean, self.squares = added, mean, squares
            return
        total = self.count + added
        shift = mean - self.mean
        self.squares = self.squares + squares + shift.square() * (self.count * added / total)
        self.mean = self.mean + shift * (added / total)
        self.count = total

    def _measure(self, slab: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Mean and sum of squared deviations of a slab's groups of ``count`` values, ``(B, num_groups)`` float64."""
        if is_measurable(slab):
            return measure_groups(slab, self.num_groups)
        # The library's kernel, of which two small outputs are used: torch.var_mean takes ten times as long on a CPU. Of
        # channels last its sums are too coarse, see CpuGroupNorm.
        batch, channels, *sides = slab.shape
        _, means, rsqrts = torch.native_group_norm(
            slab.float().contiguous(), None, None, batch, channels, math.prod(sides), self.num_groups, 0.0
        )
        return in_float64(means), in_float64(rsqrts).square().reciprocal() * count

    def as_scale_and_shift(self, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        """Return scale and shift that a group norm amounts to, ``(B, C, 1, 1, 1)`` float32 each."""
        assert self.mean is not None
        assert self.squares is not None
        return to_scale_and_shift(norm, self.mean, self.squares / self.count)


class Step(Protocol):
    """Layers whose output can be computed range by range along I, each from a slightly longer range of the input."""

    @property
    def num_channels(self) -> int:
        """Number of input channels of the narrowest convolution, which decides how thin a slab may be on a CPU."""

    def side(self, side: int) -> int:
        """Return the number of voxels along I of the output for an input of ``side`` voxels."""

    def needs(self, start: int, stop: int, side: int) -> tuple[int, int]:
        """Return which part of the input is needed to compute a range of the output along I.

        Args:
            start: First voxel of the output's range.
            stop: First voxel after it.
            side: Number of voxels of the whole input along I.

        Returns:
            First voxel of the input's part, and the first after it.
        """

    def compute(self, part: Tensor, first: int, start: int, stop: int) -> Tensor:
        """Return a range of the output along I.

        Args:
            part: ``(B, C, I, J, K)`` part of the input.
            first: Position of the part's first voxel in the input.
            start: First voxel of the output's range.
            stop: First voxel after it.

        Returns:
            ``(B, C, stop - start, J, K)`` output.
        """


@dataclass(frozen=True)
class _Local:
    """A layer of stride 1 that looks ``halo`` voxels far."""

    layer: Callable[[Tensor], Tensor]
    halo: int
    num_channels: int = ANY

    def side(self, side: int) -> int:
        return side

    def needs(self, start: int, stop: int, side: int) -> tuple[int, int]:
        return max(start - self.halo, 0), min(stop + self.halo, side)

    def compute(self, part: Tensor, first: int, start: int, stop: int) -> Tensor:
        return self.layer(part)[:, :, start - first : stop - first]


@dataclass(frozen=True)
class _Up:
    """MAISI's upsampling by 2: a transposed convolution, or interpolation and convolution."""

    layer: nn.Module

    @property
    def num_channels(self) -> int:
        return _narrowest(self.layer)

    def side(self, side: int) -> int:
        return 2 * side

    def needs(self, start: int, stop: int, side: int) -> tuple[int, int]:
        return max(start // 2 - 1, 0), min(-(-stop // 2) + 1, side)

    def compute(self, part: Tensor, first: int, start: int, stop: int) -> Tensor:
        start, stop = start - 2 * first, stop - 2 * first
        if isinstance(self.layer, CpuMaisiUpsample):
            return self.layer.upsample(part, start, stop)
        return cast(Tensor, self.layer(part))[:, :, start:stop]


@dataclass(frozen=True)
class _Down:
    """MAISI's downsampling by 2, which fills up one voxel at the end of each side."""

    layer: nn.Module

    @property
    def num_channels(self) -> int:
        return _narrowest(self.layer)

    def side(self, side: int) -> int:
        return (side - 2) // 2 + 1

    def needs(self, start: int, stop: int, side: int) -> tuple[int, int]:
        return 2 * start, min(2 * stop + 1, side)

    def compute(self, part: Tensor, first: int, start: int, stop: int) -> Tensor:
        return cast(Tensor, self.layer(part))[:, :, : stop - start]


@dataclass(frozen=True)
class _Normed:
    """A norm whose statistics are known, the activation and the convolution."""

    layer: NormedConvolution
    num_channels: int

    def side(self, side: int) -> int:
        return side

    def needs(self, start: int, stop: int, side: int) -> tuple[int, int]:
        return max(start - 1, 0), min(stop + 1, side)

    def compute(self, part: Tensor, first: int, start: int, stop: int) -> Tensor:
        return self.layer.compute(part, start - first, stop - first)


@dataclass(frozen=True)
class _Residual:
    """A residual block whose first convolution is computed along with the second."""

    block: MaisiResBlock
    head: _Normed
    tail: NormedConvolution

    @property
    def num_channels(self) -> int:
        return _narrowest(self.block)

    def side(self, side: int) -> int:
        return side

    def needs(self, start: int, stop: int, side: int) -> tuple[int, int]:
        return max(start - 2, 0), min(stop + 2, side)

    def compute(self, part: Tensor, first: int, start: int, stop: int) -> Tensor:
        last = first + part.shape[2]
        # One voxel beyond the range, and no more than there is: beyond the ends are zeros, not features.
        inner = max(start - 1, first), min(stop + 1, last)
        hidden = self.head.compute(part, first, *inner)
        output = self.tail.compute(hidden, start - inner[0], stop - inner[0])
        return _add(output, self.block.nin_shortcut(part[:, :, start - first : stop - first]))


@dataclass(frozen=True)
class _Tail:
    """The second half of a residual block, added to what its shortcut brings; the first half's output is kept."""

    tail: NormedConvolution
    hidden: Slabs
    num_channels: int

    def side(self, side: int) -> int:
        return side

    def needs(self, start: int, stop: int, side: int) -> tuple[int, int]:
        return start, stop

    def compute(self, part: Tensor, first: int, start: int, stop: int) -> Tensor:
        inner = max(start - 1, 0), min(stop + 1, self.hidden.side)
        output = self.tail.compute(self.hidden.read(*inner), start - inner[0], stop - inner[0])
        self.hidden.drop_before(stop - 1)
        return _add(output, part)


def _add(output: Tensor, shortcut: Tensor) -> Tensor:
    """The sum, in the memory of the first if it has the type of the sum."""
    return output.add_(shortcut) if output.dtype == shortcut.dtype else output + shortcut


@dataclass
class Stream:
    """Features on their way through the blocks of an encoder or decoder, computed slab by slab.

    Attributes:
        kept: Features that are kept in memory.
        num_parts: Number of slabs into which every output is divided.
        keep: Which features to keep between passes.
        on_host: Whether features are kept in the host's memory.
        pending: Steps from the kept features to the current ones, not yet computed.
        moments: Number of groups -> moments of the current features, as far as a pass has collected them.
    """

    kept: Slabs
    num_parts: int
    keep: Keep = "all"
    on_host: bool = False
    pending: tuple[Step, ...] = ()
    moments: dict[int, Moments] = field(default_factory=dict)

    def advance(self, block: nn.Module, following: nn.Module | None) -> None:
        """Send the features through a block.

        Args:
            block: Block of the network.
            following: Next block, whose norm applies to this block's output; None for the last block.
        """
        if not self.pend(block):
            self.kept, self.moments = Slabs(block(self.finish()), on_host=self.on_host), {}
        elif not isinstance(block, nn.GroupNorm) and (self.keep == "all" or not isinstance(block, MaisiUpsample)):
            self.settle(_first_norm(following))

    def pend(self, block: nn.Module) -> bool:
        """Add a block to the pending steps; False if it needs the whole input at once."""
        if isinstance(block, MaisiResBlock):
            self.add(self._as_residual(block))
        elif isinstance(block, MaisiUpsample):
            self.add(_Up(block))
        elif isinstance(block, MaisiDownsample):
            self.add(_Down(block))
        elif isinstance(block, nn.GroupNorm):
            self.add(_Local(_Affine(*self._statistics(block)), 0))
        elif _is_convolution(block):
            self.add(_Local(block, 1, _narrowest(block)))
        else:
            return False
        return True

    def add(self, step: Step) -> None:
        """Add a step to the pending steps."""
        self.pending, self.moments = (*self.pending, step), {}

    def _as_residual(self, block: MaisiResBlock) -> Step:
        norm1, norm2 = cast(nn.GroupNorm, block.norm1), cast(nn.GroupNorm, block.norm2)
        conv1, conv2 = cast(nn.Module, block.conv1), cast(nn.Module, block.conv2)
        head = _Normed(NormedConvolution(*self._statistics(norm1), conv1), _narrowest(conv1))
        moments = Moments(norm2.num_groups)
        if self.keep == "least":
            for slab in self._pull_all((*self.pending, head)):
                moments.add(slab)
            return _Residual(block, head, NormedConvolution(*moments.as_scale_and_shift(norm2), conv2))
        hidden = self._pass_through_head(head, cast(nn.Module, block.nin_shortcut), moments)
        tail = NormedConvolution(*moments.as_scale_and_shift(norm2), conv2)
        return _Tail(tail, hidden, _narrowest(conv2))

    def _pass_through_head(self, head: Step, shortcut: nn.Module, moments: Moments) -> Slabs:
        """The output of a residual block's first half; what its shortcut brings becomes the features that are kept."""
        hidden, brought = Slabs(on_host=self.on_host), Slabs(on_host=self.on_host)
        are_features = not self.pending and isinstance(shortcut, nn.Identity)
        sides = self._sides(self.pending)
        for start, stop in pairwise(self._cuts((*self.pending, head), sides[-1])):
            first, last = head.needs(start, stop, sides[-1])
            part = self._pull(self.pending, sides, first, last)
            slab = head.compute(part, first, start, stop)
            moments.add(slab)
            hidden.append(slab)
            if not are_features:
                brought.append(shortcut(part[:, :, start - first : stop - first]))
                self._drop_before(self.pending, sides, stop - 1)
        if not are_features:
            self.kept, self.pending = brought, ()
        return hidden

    def _statistics(self, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        """Scale and shift of a norm of the features at hand."""
        if norm.num_groups not in self.moments:
            moments = Moments(norm.num_groups)
            for slab in self._pull_all(self.pending):
                moments.add(slab)
            self.moments[norm.num_groups] = moments
        return self.moments[norm.num_groups].as_scale_and_shift(norm)

    def settle(self, norm: nn.GroupNorm | None = None) -> None:
        """Compute the current features and keep them instead of their sources; also collect moments for ``norm``."""
        if not self.pending:
            return
        output, moments = Slabs(on_host=self.on_host), None if norm is None else Moments(norm.num_groups)
        for slab in self.take():
            if moments is not None:
                moments.add(slab)
            output.append(slab)
        self.kept = output
        self.moments = {} if moments is None else {moments.num_groups: moments}

    def take(self) -> Iterator[Tensor]:
        """Yield the current features slab by slab, and free their sources meanwhile.

        Yields:
            ``(B, C, i, J, K)`` slabs that follow each other along I, i being the side of a slab.
        """
        pending, self.pending = self.pending, ()
        yield from self._pull_all(pending, is_last=True)

    def finish(self) -> Tensor:
        """Return the current features as one ``(B, C, I, J, K)`` tensor."""
        self.settle()
        whole = self.kept.read(0, self.kept.side)
        self.kept = Slabs()
        return whole

    def _pull_all(self, steps: Sequence[Step], *, is_last: bool = False) -> Iterator[Tensor]:
        """The output of steps, slab by slab; with ``is_last`` what they come from is freed meanwhile."""
        sides = self._sides(steps)
        for start, stop in pairwise(self._cuts(steps, sides[-1])):
            yield self._pull(steps, sides, start, stop)
            if is_last and stop < sides[-1]:
                self._drop_before(steps, sides, stop)

    def _sides(self, steps: Sequence[Step]) -> list[int]:
        """Voxels along I of the kept features, and of the output of every step."""
        sides = [self.kept.side]
        for step in steps:
            sides.append(step.side(sides[-1]))
        return sides

    def _drop_before(self, steps: Sequence[Step], sides: Sequence[int], stop: int) -> None:
        """Free kept features that the output of steps from ``stop`` on does not need."""
        first = stop
        for step, side in zip(reversed(steps), reversed(sides[:-1]), strict=True):
            first, _ = step.needs(first, first + 1, side)
        self.kept.drop_before(first)

    def _pull(self, steps: Sequence[Step], sides: Sequence[int], start: int, stop: int) -> Tensor:
        if not steps:
            return self.kept.read(start, stop)
        first, last = steps[-1].needs(start, stop, sides[-2])
        part = self._pull(steps[:-1], sides[:-1], first, last)
        return steps[-1].compute(part, first, start, stop)

    def _cuts(self, steps: Sequence[Step], side: int) -> list[int]:
        num_parts = max(min(self.num_parts, side // MIN_THICKNESS), 1)
        features = self.kept.pieces[0]
        channels = min((step.num_channels for step in steps), default=ANY)
        if self.kept.device == torch.device("cpu") and channels < ANY:
            columns = features.shape[3] * side // self.kept.side
            rows = features.shape[0] * channels * side * columns
            num_parts = max(min(num_parts, rows // MIN_CPU_ROWS), 1)
        unit = CUT_MULTIPLE if side >= CUT_MULTIPLE * num_parts else 1
        cuts = {unit * round(side * part / num_parts / unit) for part in range(num_parts)}
        return [*sorted(cut for cut in cuts if side - cut >= unit), side]


class _Affine:
    """A norm whose statistics are known."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        self.scale, self.shift = scale, shift

    def __call__(self, features: Tensor) -> Tensor:
        return torch.addcmul(self.shift, features.float(), self.scale)


def _is_convolution(layer: nn.Module) -> bool:
    """Whether a layer is one convolution of stride 1 with three voxels a side at most, in MONAI's or our wrapper."""
    found = [each for each in layer.modules() if not list(each.children())]
    return len(found) == 1 and isinstance(found[0], nn.Conv3d) and found[0].stride == (1, 1, 1)


def _narrowest(layer: nn.Module) -> int:
    """Input channels of the narrowest convolution that torch computes as it likes."""
    plain = (each for each in layer.modules() if type(each) in (nn.Conv3d, nn.ConvTranspose3d))
    return min((cast(int, each.in_channels) for each in plain), default=ANY)


def _first_norm(block: nn.Module | None) -> nn.GroupNorm | None:
    norm = block.norm1 if isinstance(block, MaisiResBlock) else block
    return norm if isinstance(norm, nn.GroupNorm) else None


def is_streamable(coder: nn.Module) -> bool:
    """Whether an encoder or decoder has plain layers, which can be computed in slabs; MAISI's own split themselves."""
    return not any(isinstance(layer, MaisiConvolution | MaisiGroupNorm3D) for layer in coder.modules())


def stream(
    blocks: Sequence[nn.Module], features: Tensor, *, num_parts: int, keep: Keep = "all", on_host: bool = False
) -> Tensor:
    """Compute the blocks of MAISI's encoder or decoder slab by slab.

    Args:
        blocks: Blocks with plain norms and convolutions. Anything but a convolution, norm, resampling or MAISI's
            residual block, such as attention, is computed as a whole.
        features: ``(B, C, I, J, K)`` input.
        num_parts: Number of slabs along I into which every output is divided; fewer if they would be too thin for a
            CPU.
        keep: Which features to keep between passes.
        on_host: Whether features are kept in the host's memory.

    Returns:
        ``(B, D, I', J', K')`` output of the blocks for the whole input, equal up to rounding.
    """
    run = Stream(Slabs(features, on_host=on_host), num_parts, keep, on_host)
    del features
    _send(run, blocks)
    return run.finish()


def stream_slabs(
    blocks: Sequence[nn.Module],
    features: Tensor,
    last: Callable[[Tensor], Tensor],
    *,
    num_parts: int,
) -> Iterator[Tensor]:
    """Yield slabs of the output of blocks followed by a last function that needs one neighbouring voxel.

    Args:
        blocks: Blocks with plain norms and convolutions.
        features: ``(B, C, I, J, K)`` input.
        last: Function of the blocks' output, such as the last convolution.
        num_parts: Number of slabs along I.

    Yields:
        ``(B, C, i, J, K)`` slabs of the output that follow each other along I.
    """
    run = Stream(Slabs(features), num_parts)
    del features
    _send(run, blocks)
    run.add(_Local(last, 1))
    yield from run.take()


def _send(run: Stream, blocks: Sequence[nn.Module]) -> None:
    for block, following in zip(blocks, (*blocks[1:], None), strict=True):
        run.advance(block, following)
