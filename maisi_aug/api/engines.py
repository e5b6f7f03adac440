"""Place of a run's computations: this process, one process per device, or a Ray cluster; and its shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from maisi_aug.api.keywords import build_model
from maisi_aug.errors import RequestError
from maisi_aug.system.models import Option, StrictModel

if TYPE_CHECKING:
    from maisi_aug.cohort.shards import Shard
    from maisi_aug.system.engine.work import Engine

EngineName = Literal["local", "ray"]
_PANEL = "Ray"
_RAY_DEVICES = ("auto", "cpu", "cuda")


class ClusterOptions(StrictModel, use_attribute_docstrings=True):
    """Address of a Ray cluster, number of workers, and GPUs of each."""

    address: Annotated[str | None, Option(metavar="HOST:PORT", panel=_PANEL)] = None
    """Head of a Ray cluster to work on (pip install 'maisi-aug[ray]'), or auto for one running on this machine."""
    num_workers: Annotated[PositiveInt | None, Option(panel=_PANEL)] = None
    """Number of workers (default: one per GPU, or one per core)."""
    gpus_per_worker: Annotated[float | None, Field(ge=0), Option(panel=_PANEL)] = None
    """GPUs per worker, such as 0.5 for two workers on one GPU (default: 1 if the cluster has any)."""

    def to_engine(self) -> EngineOptions:
        """Return the options of the engine for a command where an address alone selects Ray.

        Raises:
            RequestError: The number of workers or GPUs is given without an address.
        """
        given = self.model_dump(exclude_none=True)
        if given and self.address is None:
            raise RequestError(f"--{next(iter(given)).replace('_', '-')} can only be used with --address.")
        return EngineOptions(engine="ray", **given) if given else EngineOptions()


class EngineOptions(ClusterOptions, use_attribute_docstrings=True):
    """Engine that runs the workers, ``local`` or ``ray``, with the resources of each worker on a Ray cluster."""

    engine: Annotated[EngineName, Option(panel=_PANEL)] = "local"
    """Where workers run: local (this machine) or ray (a Ray cluster; pip install 'maisi-aug[ray]')."""
    address: Annotated[str | None, Option(metavar="HOST:PORT", panel=_PANEL)] = None
    """Head of the Ray cluster, or auto for one running on this machine (default: RAY_ADDRESS, else a new cluster on
    this machine).
    """

    @model_validator(mode="after")
    def _need_no_ray(self) -> Self:
        given = [name for name in ClusterOptions.model_fields if getattr(self, name) is not None]
        if given and self.engine != "ray":
            raise ValueError(f"--{given[0].replace('_', '-')} can only be used with --engine ray.")
        return self


@dataclass(frozen=True)
class Where:
    """Where a run computes: devices or cluster workers, and the shard of the cohort.

    Attributes:
        device: Device of this process, such as ``auto``, ``cpu`` or ``cuda:0``.
        devices: Devices that each get a process of their own; empty to compute in this process.
        shard: Part of the cohort to make; None for all cases.
        options: Engine that runs the workers.
    """

    device: str = "auto"
    devices: tuple[str, ...] = ()
    shard: Shard | None = None
    options: EngineOptions = field(default_factory=EngineOptions)

    @classmethod
    def read(
        cls,
        device: str = "auto",
        devices: str | Sequence[str] | None = None,
        shard: str | Shard | None = None,
        options: EngineOptions | None = None,
    ) -> Where:
        """Build the object from the values of ``--device``, ``--devices`` and ``--shard``.

        Args:
            device: Device of this process.
            devices: Comma-separated text, or a sequence of devices; None to compute in this process.
            shard: ``"I/N"`` to make every N-th case, beginning with the I-th; None for all.
            options: Engine that runs the workers; None for the local engine.

        Raises:
            RequestError: A value is invalid, or the values exclude each other; the message names the option.
        """
        listed = devices.split(",") if isinstance(devices, str) else list(devices or ())
        names = tuple(name.strip() for name in listed)
        if devices is not None and (not names or not all(names)):
            raise RequestError(f"--devices: expected names such as cuda:0,cuda:1, found '{devices}'.")
        if names and device != "auto":
            raise RequestError("--device cannot be used with --devices, which lists all of them.")
        options = options or EngineOptions()
        if options.engine == "ray" and (names or device not in _RAY_DEVICES):
            raise RequestError(
                f"--engine ray: expected one --device of {', '.join(_RAY_DEVICES)}, found '{devices or device}'. Ray "
                "assigns the devices; use --num-workers and --gpus-per-worker."
            )
        if options.engine == "ray":
            from maisi_aug.integrations.ray.joining import require_ray

            require_ray()
        if isinstance(shard, str):
            from maisi_aug.cohort.shards import Shard

            shard = Shard.parse(shard)
        return cls(device, names, shard, options)

    def require_devices(self) -> None:
        """Raise if a device cannot be used on this machine; to be called before a folder is created.

        Raises:
            BundleError: The message names the device.
        """
        from maisi_aug.networks.pipeline import resolve_device

        for device in dict.fromkeys(self.open_engine().devices):
            resolve_device(device)

    def open_engine(self) -> Engine:
        """Return the engine that runs the workers: in this process, in one process per device, or on a Ray cluster."""
        if self.options.engine == "ray":
            from maisi_aug.integrations.ray.engine import RayEngine

            return RayEngine(
                self.options.address or "", self.options.num_workers, self.options.gpus_per_worker, self.device
            )
        from maisi_aug.system.engine.processes import Processes
        from maisi_aug.system.engine.work import InProcess

        if not self.devices:
            return InProcess(self.device)
        return Processes(self.devices)


def read_engine(
    engine: str, address: str | None, num_workers: int | None, gpus_per_worker: float | None
) -> EngineOptions:
    """Check the engine arguments of a Python call, and return them as one object.

    Args:
        engine: ``local`` or ``ray``.
        address: ``HOST:PORT`` of the Ray cluster's head, or ``auto``; None without a cluster.
        num_workers: Number of workers on the cluster; None for one per GPU or core.
        gpus_per_worker: GPUs of each worker; None for the default.

    Raises:
        RequestError: The options contradict each other.
    """
    values = {
        "engine": engine,
        "address": address,
        "num_workers": num_workers,
        "gpus_per_worker": gpus_per_worker,
    }
    return build_model(EngineOptions, values, source="engine", error=RequestError)


HERE = Where()
"""The whole cohort, in this process."""
