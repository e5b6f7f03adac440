"""Mixed precision in training: bfloat16, or float16 with a scaled loss on CUDA devices without bfloat16."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from maisi_aug.errors import TrainingError
from maisi_aug.networks.building import computes_in

# A loss scaled down so far still had gradients beyond float16: the step is broken, not its scale.
LEAST_SCALE = 2.0**-14


class Precision:
    """Numerical precision of a training: autocast of forward passes, and scaling of the loss.

    Args:
        device: Device that the networks are on.
        is_mixed: Whether to use mixed precision; False computes in float32.
        dtype: Floating-point type of forward passes; None for the one that suits the device.
    """

    def __init__(self, device: str, *, is_mixed: bool, dtype: torch.dtype | None = None) -> None:
        self.device_type = device.partition(":")[0]
        self.dtype = (dtype or choose_dtype(device)) if is_mixed else torch.float32
        self.scaler = torch.amp.GradScaler(self.device_type) if self.dtype == torch.float16 else None

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which a forward pass runs."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device_type, dtype=self.dtype)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss, scaled if necessary."""
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the loss scale, so that they can be measured and clipped."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take an optimiser step; gradients that overflow a scaled loss skip the step and lower the scale.

        Raises:
            TrainingError: No scale makes the gradients finite.
        """
        if self.scaler is None:
            optimizer.step()
            return
        self.scaler.step(optimizer)
        self.scaler.update()
        if self.scaler.get_scale() < LEAST_SCALE:
            raise TrainingError(
                f"Loss scale: fell to {self.scaler.get_scale():.0e}, below {LEAST_SCALE:.0e}, because float16 "
                "gradients are not finite. Lower learning_rate, or set mixed_precision: false."
            )

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint: the loss scale, if there is one."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state that :meth:`state` returned."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(dict(state))


def choose_dtype(device: str) -> torch.dtype:
    """Return the type for mixed precision: bfloat16 where supported, else float16 on CUDA and float32 elsewhere."""
    if device.startswith("cuda") and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16 if computes_in("bfloat16", device) else torch.float32
