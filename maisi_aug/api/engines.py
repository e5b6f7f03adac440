"""Where a run computes: in this process, in one for each of several devices, and which part of the cohort."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from maisi_aug.cohort.shards import Shard
from maisi_aug.errors import RequestError
from maisi_aug.system.engine.work import Engine, InProcess


@dataclass(frozen=True)
class Where:
    """Where a run computes.

    Attributes:
        device: Of this process.
        devices: A process for each; none to stay in this one.
        shard: The part of the cohort that is made; None for all of it.
    """

    device: str = "auto"
    devices: tuple[str, ...] = ()
    shard: Shard | None = None

    @classmethod
    def read(
        cls, device: str = "auto", devices: str | Sequence[str] | None = None, shard: str | Shard | None = None
    ) -> Where:
        """Read what the user has typed.

        Raises:
            RequestError: Naming the option.
        """
        listed = devices.split(",") if isinstance(devices, str) else list(devices or ())
        names = tuple(name.strip() for name in listed)
        if devices is not None and (not names or not all(names)):
            raise RequestError(f"--devices: expected names such as cuda:0,cuda:1, found '{devices}'.")
        if names and device != "auto":
            raise RequestError("--device cannot be used with --devices, which names them all.")
        return cls(device, names, Shard.parse(shard) if isinstance(shard, str) else shard)

    def open_engine(self) -> Engine:
        """What runs the workers."""
        if not self.devices:
            return InProcess(self.device)
        from maisi_aug.system.engine.processes import Processes

        return Processes(self.devices)


HERE = Where()
"""In this process, all of the cohort."""
