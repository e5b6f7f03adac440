"""Fresh cases while training: drawn from a bundle by a process of their own, for MONAI and for TorchIO.

    from maisi_aug.integrations.fresh.cases import FreshCases
    cases = FreshCases({"labels": ["hepatic tumor:10-30mm"]}, num_items=250, reuse=4, transform=my_dict_transforms)
    loader = DataLoader(cases, batch_size=2, num_workers=2)          # in order: the schedule is random already
    for epoch in range(100):
        cases.set_epoch(epoch)
        for batch in loader: ...
    cases.close()

The same seed and epoch give the same cases, however fast either side is and with any number of workers.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from functools import cached_property
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any, Self

from maisi_aug import errors
from maisi_aug.cohort.request import CohortRequest, build_request
from maisi_aug.errors import CohortError, MaisiAugError, RecipeError
from maisi_aug.integrations.fresh.schedule import UseSchedule
from maisi_aug.integrations.reading.export_labels import LabelNumbering, require_numbers
from maisi_aug.integrations.reading.items import Item, Pair, to_monai_item, to_subject

CONNECT_SECONDS = 120.0
MAX_ADDRESS_BYTES = 100
"""Largest length of a socket's path in bytes; Linux takes 107, macOS 103."""
TELL_SECONDS = 10.0
ERROR_NAME = "stderr.txt"


class FreshCases:
    """Map-style dataset for a PyTorch loader whose cases are drawn by the networks during training.

    An item is a dict: ``image`` (float32, in HU) and ``label`` (uint8, numbers of the labels) are MetaTensors
    ``(1, I, J, K)`` in RAS+; ``case_id``, ``request``, ``seed`` and ``epoch`` identify the case.

    An epoch has ``num_items`` items of ``ceil(num_items / reuse)`` fresh cases. Networks run in a separate process on
    one device; the training process and the workers of its loader request cases over a local socket.

    Use a loader that does not shuffle: the schedule is random already. In another order, cases would wait for each
    other, or be drawn twice if the buffer is smaller than an epoch. Call :meth:`set_epoch` before every epoch, and
    :meth:`close` at the end, or use it as a context manager::

        with FreshCases({"labels": ["hepatic tumor:10-30mm"]}, num_items=250, reuse=4) as cases:
            for epoch in range(100):
                cases.set_epoch(epoch)
                for batch in DataLoader(cases, batch_size=2, num_workers=2): ...

    Args:
        configuration: Dict with the fields of a recipe, as :func:`maisi_aug.synthesize` takes them; its ``num_cases``
            and ``seed`` are ignored in favour of those below.
        num_items: Number of items of an epoch.
        reuse: Largest number of items of an epoch that show the same case, each varied by the transform.
        buffer: Largest number of cases held in the memory of the drawing process; half of them are in use at a time.
        seed: Random seed that determines every case of every epoch.
        device: Device on which the networks run: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps`` or ``xpu``.
        transform: Function or transform of an item, called in the process that indexes the dataset; the dataset returns
            its result. None returns items as they are.
        as_subjects: Whether items are TorchIO subjects instead of dicts of MetaTensors; needs the extra ``torchio``.
        numbers: Label name -> number, such as a real dataset's, 0 for background; when None, the labels of the
            configuration are numbered 1, 2, ... in the order of their ids, see :attr:`numbering`.
        is_quiet: Whether to suppress the messages on stderr while a case is waited for.

    Raises:
        RecipeError: The configuration is invalid, or draws images without label maps.
        RequestError: A number is too small, or ``numbers`` contains one that a uint8 label map cannot hold.
        CohortError: The system is Windows, which lacks the sockets that are used.
    """

    _process: subprocess.Popen[str] | None  # None in the workers of a loader

    def __init__(
        self,
        configuration: CohortRequest | Mapping[str, Any],
        *,
        num_items: int,
        reuse: int = 4,
        buffer: int = 8,
        seed: int = 0,
        device: str = "auto",
        transform: Callable[[Item], Any] | None = None,
        as_subjects: bool = False,
        numbers: Mapping[str, int] | None = None,
        is_quiet: bool = False,
    ) -> None:
        # Only starts the process: the weights are loaded while the training prepares.
        if not isinstance(configuration, CohortRequest):
            configuration = build_request(configuration, source="FreshCases")
        if not configuration.has_maps:
            raise RecipeError(
                "FreshCases: needs a mask source with label maps to train on; mask_source 'none' has none. Choose "
                "another."
            )
        require_numbers(numbers or {})
        self._configuration, self._numbers = configuration, None if numbers is None else dict(numbers)
        self.transform, self._convert = transform, to_subject if as_subjects else to_monai_item
        self.schedule = UseSchedule(num_items, reuse, max(1, buffer // 2), seed)
        # Seen by the workers of a loader that live on from epoch to epoch.
        self._epoch = multiprocessing.get_context("spawn").Value("q", 0)
        self._is_quiet, self._told, self._tells_at = is_quiet, "", 0.0
        self._folder = Path(tempfile.mkdtemp(prefix="maisi-aug-"))
        self._address = _choose_address(self._folder)
        self._authkey = secrets.token_bytes(32)
        self._connections: dict[tuple[int, int], Connection] = {}
        self._process = process = self._start(configuration, device, buffer)
        self._owner, self._server_pid = os.getpid(), process.pid
        self._finalizer: Callable[[], object] = weakref.finalize(self, _stop, process, self._folder, os.getpid())

    def _start(self, configuration: CohortRequest, device: str, buffer: int) -> subprocess.Popen[str]:
        task = {
            "configuration": configuration.to_dict(),
            "device": device,
            "capacity": buffer,
            "address": self._address,
            "authkey": self._authkey.hex(),
            "num_items": self.schedule.num_items,
            "reuse": self.schedule.reuse,
            "window": self.schedule.window,
            "seed": self.schedule.seed,
            "numbers": self._numbers,
        }
        with (self._folder / ERROR_NAME).open("w") as errors_file:
            process = subprocess.Popen(
                [sys.executable, "-m", "maisi_aug.integrations.fresh.server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors_file,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        assert process.stdin is not None
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        return process

    @cached_property
    def numbering(self) -> LabelNumbering:
        """Numbers of the labels in the drawn label maps; ``numbering.to_dict()`` returns name -> number.

        Raises:
            MaisiAugError: The request cannot be met.
        """
        from maisi_aug.cohort.resolve import resolve
        from maisi_aug.integrations.fresh.maker import number_requested

        asked = {**self._configuration.to_dict(), "num_cases": self.schedule.num_cases}
        return number_requested(resolve(CohortRequest.model_validate(asked)), self._numbers)

    def __len__(self) -> int:
        return self.schedule.num_items

    @property
    def epoch(self) -> int:
        """Epoch whose items are returned."""
        return int(self._epoch.value)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch before iterating over a loader; otherwise every epoch repeats the first one.

        Args:
            epoch: Number of the epoch, from 0; workers of a loader that live on see it as well.
        """
        self._epoch.value = epoch

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends a plain for loop
        item = self._convert(self.fetch(self.epoch, index))
        return item if self.transform is None else self.transform(item)

    def fetch(self, epoch: int, index: int) -> Pair:
        """Return the case of an item of an epoch as arrays, drawn first if it is not ready; ``transform`` is not used.

        Args:
            epoch: Number of the epoch, from 0.
            index: Number of the item in the epoch, from 0.

        Returns:
            ``image_hu`` (``(I, J, K)`` int16), ``label_map`` (``(I, J, K)`` uint8 numbers of the labels), ``grid`` and
            ``metadata`` (``case_id``, ``request``, ``seed``, ``epoch``).

        Raises:
            CohortError: The drawing process has ended or cannot be reached.
            MaisiAugError: The error that ended the drawing of cases.
        """
        try:
            connection = self._connect()
            connection.send((epoch, index))
            while (answer := connection.recv())[0] == "waiting":
                self._tell(str(answer[1]))
        except (EOFError, ConnectionError, FileNotFoundError) as error:  # the other end is gone
            raise self._explain_end() from error
        except OSError as error:
            raise CohortError(
                f"Fresh cases: the process that makes them cannot be reached: {error}. Check the limits of this "
                "process, such as the number of open files."
            ) from error
        if answer[0] == "case":
            pair: Pair = answer[1]
            return pair
        _, kind, message = answer
        known = getattr(errors, kind, None)
        if isinstance(known, type) and issubclass(known, MaisiAugError):
            raise known(message)
        raise CohortError(f"Fresh cases: drawing a case failed: {kind}: {message}")

    def _tell(self, state: str) -> None:
        """Say on stderr what a case is waited for: at once where it is something else, and then every ten seconds."""
        what, now = state.partition(": step")[0], time.monotonic()
        if self._is_quiet or not _is_first_worker() or (what == self._told and now < self._tells_at):
            return
        self._told, self._tells_at = what, now + TELL_SECONDS
        sys.stderr.write(f"Fresh cases: {state}\n")

    def _connect(self) -> Connection:
        """This thread's own connection; the workers of a loader have inherited those of another process."""
        key = os.getpid(), threading.get_ident()
        if key not in self._connections:
            ends_at = time.monotonic() + CONNECT_SECONDS
            while True:
                try:
                    self._connections[key] = Client(self._address, "AF_UNIX", authkey=self._authkey)
                    break
                except (FileNotFoundError, ConnectionRefusedError):
                    if time.monotonic() > ends_at or not self._is_alive():
                        raise
                    time.sleep(0.05)
        return self._connections[key]

    def _is_alive(self) -> bool:
        if self._process is not None and os.getpid() == self._owner:
            return self._process.poll() is None
        try:
            os.kill(self._server_pid, 0)
        except OSError:
            return False
        return True

    def _explain_end(self) -> CohortError:
        path = self._folder / ERROR_NAME
        lines = path.read_text(errors="replace").strip().splitlines() if path.is_file() else []
        last = lines[-1] if lines else "no message"
        return CohortError(
            f"Fresh cases: the process that makes them has ended ({last}). If it was killed for lack of memory, use "
            "a smaller buffer or grid."
        )

    def close(self) -> None:
        """End the drawing process; also done when the dataset is garbage-collected, and when training ends."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # For workers that are spawned: they ask the same process, and do not end it.
        return {**self.__dict__, "_process": None, "_connections": {}, "_finalizer": _do_nothing}


def _choose_address(folder: Path) -> str:
    """Choose the address that the process listens on: in the folder, unless its path is too long for an address."""
    if sys.platform == "win32":
        raise CohortError(
            "Fresh cases: the process that draws them is reached by a Unix socket, which Windows does not have. Draw a "
            "cohort with 'maisi-aug synthesize' instead."
        )
    path = str(folder / "socket")
    if len(os.fsencode(path)) <= MAX_ADDRESS_BYTES:
        return path
    if platform.system() == "Linux":
        return f"\0maisi-aug-{secrets.token_hex(16)}"  # no file: of the kernel's own names, gone with the process
    return str(Path("/tmp", f"maisi-aug-{secrets.token_hex(16)}"))


def _is_first_worker() -> bool:
    """Whether this process is not a worker of a loader, or the first of them: one voice is enough."""
    if "torch.utils.data" not in sys.modules:
        return True
    from torch.utils.data import get_worker_info

    worker = get_worker_info()
    return worker is None or worker.id == 0


def _do_nothing() -> None:
    """The end of a copy."""


def _stop(process: subprocess.Popen[str], folder: Path, owner: int) -> None:
    """End the process that makes cases; not from a copy of the dataset in a worker."""
    if os.getpid() != owner:
        return
    if process.stdin is not None:
        process.stdin.close()
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)
