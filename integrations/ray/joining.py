"""Joining a Ray cluster: one that runs, or one of this machine that is started for as long as it is needed."""

from __future__ import annotations

import os
import socket
from typing import Any, Final

from maisi_aug.errors import MissingExtraError, RequestError, WorkerError
from maisi_aug.system.engine.cores import count_cores

ADDRESS_VARIABLE: Final = "RAY_ADDRESS"
"""Environment variable with the cluster's address, set by ``ray job submit``, for instance."""
CONNECT_SECONDS: Final = 10.0
STORE_BYTES: Final = 200 << 20
"""Size in bytes of the object store of a cluster of our own, which only carries records and pieces of files."""
_QUIET: Final = {"log_to_driver": False, "logging_level": "ERROR"}


def require_ray() -> Any:
    """Return the module ``ray``.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            f"--engine ray: the package ray is missing: {error}. Install it with: pip install 'maisi-aug[ray]'"
        ) from error
    return ray


def join(address: str) -> Any:
    """Connect this process to a Ray cluster until it ends, because Ray does not allow to change clusters.

    Does nothing if this process is already connected.

    Args:
        address: ``HOST:PORT``; ``auto`` for the cluster that runs on this machine; or empty for that of ``RAY_ADDRESS``
            or, if this is not set, a cluster of this machine alone that ends with this process.

    Returns:
        Module ``ray``.

    Raises:
        MissingExtraError: Ray is not installed.
        RequestError: The address is not of a Ray cluster.
        WorkerError: There is no such cluster, or it runs another version.
    """
    ray = require_ray()
    if not ray.is_initialized():
        _join(ray, address or os.environ.get(ADDRESS_VARIABLE, ""))
    return ray


def _join(ray: Any, address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address:
        _require_answer(address)
    try:
        if address:
            ray.init(address=address, **_QUIET)
        else:
            # Ray would count all cores of the machine, whatever a scheduler or taskset gave to this process, and have
            # its workers give way to every other process.
            os.environ.setdefault("RAY_worker_niceness", "0")
            ray.init(
                address="local",
                num_cpus=count_cores(),
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                **_QUIET,
            )
    except (RuntimeError, ConnectionError, ValueError, OSError) as error:
        raise _explain(address, error) from error


def _require_answer(address: str) -> None:
    """Raise at once where Ray would try for minutes and end the process."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise RequestError(
            "--address: must be HOST:PORT of a Ray cluster's head, such as 10.0.0.1:6379, or auto, found "
            f"'{address}'. From outside the cluster: ray job submit -- maisi-aug ... --engine ray"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise WorkerError(
            f"--address {address}: no Ray cluster answers at this address ({error}). Start one with ray start "
            "--head, or leave "
            "--address out to use this machine alone."
        ) from error


def _explain(address: str, error: Exception) -> WorkerError:
    text = " ".join(str(error).split())
    place = f"--address {address}" if address else "Ray on this machine"
    if "ersion mismatch" in text:
        return WorkerError(
            f"{place}: the cluster has other versions of Ray or Python. {text} Install the same versions here, or "
            "use ray job submit."
        )
    if "Could not find any running Ray instance" in text:
        return WorkerError(
            f"{place}: no Ray cluster runs on this machine. Start one with ray start --head, or leave --address out."
        )
    return WorkerError(
        f"{place}: this machine must be a node of the Ray cluster and have its access token (RAY_AUTH_MODE=token, with "
        f"RAY_AUTH_TOKEN or ~/.ray/auth_token; ray start --head requires it if that file exists): "
        f"{text or type(error).__name__} Run ray status there for details."
    )
