"""How far two ways to compute one value may lie apart through rounding alone, on any processor.

Processor, library and number of threads choose the order of every sum, and whether a product is rounded before it is
added: the distance between two ways that was seen on one machine bounds nothing on another. What holds on all of them
is that both approximate one exact value, and that neither has a reason to be much worse at it than the other. A run in
float64, which rounds 2^29 times finer, stands for the exact value, so that the bound is measured where the test runs.

A lower precision somewhere makes one of the two err many times more, and so does a wrong constant unless it is as small
as rounding. Where our own layers take float64, two runs in it are compared as well (``require_same_formula``): there
the least wrong constant is millions of roundings, and another order of sums still a few.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import MaisiGroupNorm3D
from torch import Tensor, nn

ROUNDOFF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
"""The most that one operation changes its result by, relative to it."""
SPREAD = 3.0
"""How much larger one way's error may be than the other's: the same roundings in another order. Sums of n terms taken
one after the other err sqrt(n) roundings, in blocks or in pairs hardly any; n is a few hundred in a convolution, of
which norms, activations and the other layers' errors leave a small factor."""

WINOGRAD_SPREAD = 10.0
"""The same against convolutions with fewer products, whose terms are several times as large as what they add up to."""

Network = TypeVar("Network", bound=nn.Module)


class _ExactNorm(nn.Module):
    """MAISI's group norm by its formula, in the type of its input; MAISI's own computes in float32 whatever it gets."""

    def __init__(self, norm: MaisiGroupNorm3D) -> None:
        super().__init__()
        self.num_groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, features: Tensor) -> Tensor:
        groups = features.reshape(features.shape[0], self.num_groups, -1)
        mean = groups.mean(-1, keepdim=True)
        variance = (groups - mean).square().mean(-1, keepdim=True)
        shape = (1, -1, 1, 1, 1)
        normed = ((groups - mean) / (variance + self.eps).sqrt()).view(features.shape)
        output: Tensor = normed * self.weight.view(shape) + self.bias.view(shape)
        return output


def in_float64(network: Network) -> Network:
    """A copy of a network that computes in float64 all along."""
    copied = copy.deepcopy(network).double()
    for parent in list(copied.modules()):
        if getattr(parent, "attention_dtype", None) is torch.float32:  # upcast from float16, as MONAI means it
            vars(parent)["attention_dtype"] = torch.float64
        for name, child in list(parent.named_children()):
            if isinstance(child, MaisiGroupNorm3D):
                setattr(parent, name, _ExactNorm(child))
    return copied


def depth_of(*networks: Any) -> int:
    """Layers with parameters: how many sums a value goes through, one after the other, at most."""
    return sum(any(True for _ in layer.parameters(recurse=False)) for net in networks for layer in net.modules())


def error_of(found: Tensor, exact: Tensor) -> float:
    """Largest distance, relative to the largest exact value."""
    found, exact = found.detach().double(), exact.detach()
    assert found.isfinite().all()
    assert exact.isfinite().all()
    return float((found - exact).abs().max() / exact.abs().max())


def require_rounding_alone(
    found: Tensor, expected: Tensor, exact: Tensor, *, depth: int, spread: float = SPREAD
) -> None:
    """Two ways in float32 that differ by nothing but the order of what they compute.

    Args:
        found: By one way.
        expected: By the other.
        exact: The same in float64, of any way; rounding in it does not count.
        depth: Layers, times steps where there are several. Roundings go up as often as down, so that those of ``depth``
            layers add up to ``sqrt(depth)`` of them: what either way may err if the other happens not to at all.
        spread: How much larger one error may be than the other.
    """
    assert found.shape == expected.shape == exact.shape
    assert exact.dtype == torch.float64
    one, other = error_of(found, exact), error_of(expected, exact)
    alone = depth**0.5 * ROUNDOFF[torch.float32]
    message = f"expected rounding alone, found errors of {one:.2e} and {other:.2e} against float64"
    assert max(one, other) <= spread * (min(one, other) + alone / SPREAD), message


def require_same_formula(found: Tensor, expected: Tensor, *, depth: int) -> None:
    """Two ways in float64 that compute the same: as far apart as rounding in every one of ``depth`` layers allows."""
    assert found.dtype == expected.dtype == torch.float64
    assert found.shape == expected.shape
    assert error_of(found, expected) <= rounding(depth, torch.float64)


def require_likeliest(classes: Tensor, logits: Tensor, exact: Tensor, *, depth: int) -> None:
    """Classes that are the likeliest, or as likely as those as far as float32 can tell.

    Args:
        classes: ``(B, I, J, K)`` that were chosen.
        logits: ``(B, C, I, J, K)`` by a plain way in float32, whose error says how far float32 can tell.
        exact: The same in float64.
        depth: Layers.
    """
    gap = exact.amax(1) - exact.gather(1, classes.long()[:, None])[:, 0]
    error = SPREAD * error_of(logits, exact) + depth**0.5 * ROUNDOFF[torch.float32]
    assert float(gap.max() / exact.abs().max()) <= 2 * error  # one class too likely, the other not enough
    assert float((classes.long() != exact.argmax(1)).double().mean()) < 1e-3


def rounding(depth: int, dtype: torch.dtype = torch.float32) -> float:
    """Relative tolerance of a number, or of the largest in a tensor, that ``depth`` sums lead to one after the other.

    A loss is a mean of many values, so that it errs less than any of them; the same roundings may lead it astray in
    another order (``SPREAD``). Nothing cancels in what this is used for: losses are means of what is not negative.
    """
    return SPREAD * depth * ROUNDOFF[dtype]


def require_same_steps(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, length: float, num_steps: int = 1
) -> None:
    """Weights that Adam has moved alike in float32.

    Adam divides a gradient by its own size. Where that is nothing but rounding, the step has the full length and a
    sign that the order of sums decides: no weight can be farther off than that, and few are.

    Args:
        found: By one way, by name.
        expected: By the other.
        length: Learning rate.
        num_steps: How many steps were taken.
    """
    assert found.keys() == expected.keys()
    distances = torch.cat([(found[key] - expected[key]).abs().flatten() for key in expected])
    assert float(distances.max()) <= 2.1 * length * num_steps  # the first steps of Adam are no longer than its rate
    assert float((distances > 0.1 * length).double().mean()) < 0.01
