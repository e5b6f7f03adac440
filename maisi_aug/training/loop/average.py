"""The moving average of the weights, which is what a run keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Weights = dict[str, dict[str, Tensor]]


class WeightAverage:
    """Exponential moving average of the weights of several networks; with a decay of 0, the weights themselves.

    Args:
        networks: Networks by name; their tensors stay the same objects during training.
        decay: Fraction of the old average that a step keeps, in the long run.
    """

    def __init__(self, networks: Mapping[str, nn.Module], decay: float) -> None:
        self.decay = decay
        live = {name: network.state_dict() for name, network in networks.items()}
        self._is_kept = decay > 0
        self._weights: Weights = {
            name: {key: value.detach().clone() if self._is_kept else value.detach() for key, value in state.items()}
            for name, state in live.items()
        }
        pairs = [(self._weights[name][key], live[name][key]) for name in live for key in live[name]]
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the current weights to the average, after a step counted from 0."""
        if not self._is_kept:
            return
        # A young average would remember the random start: its decay grows with the number of steps.
        decay = min(self.decay, (1 + step) / (10 + step))
        if self._floats:
            averages, live = zip(*self._floats, strict=True)
            torch._foreach_lerp_(averages, live, 1.0 - decay)
        for average, value in self._counts:
            average.copy_(value)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Context in which the networks have the averaged weights, for validation."""
        if not self._is_kept:
            yield
            return
        pairs = [*self._floats, *self._counts]
        saved = [live.detach().clone() for _, live in pairs]
        with torch.no_grad():
            for average, live in pairs:
                live.copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for (_, live), before in zip(pairs, saved, strict=True):
                    live.copy_(before)

    def copy(self, *, device: str | None = None) -> Weights:
        """Return a copy of the averaged weights, on another device if one is named."""
        return {
            name: {key: torch.clone(value).to(device or value.device) for key, value in state.items()}
            for name, state in self._weights.items()
        }

    def state(self) -> Weights:
        """Return the state for a checkpoint: the averaged weights, or nothing with a decay of 0."""
        return self._weights if self._is_kept else {}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore the state that :meth:`state` returned."""
        if not self._is_kept:
            return
        for name, weights in self._weights.items():
            for key, value in weights.items():
                value.copy_(state[name][key])
