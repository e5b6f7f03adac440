"""The engine of a Ray cluster: an actor for each worker, made anew on whatever node has room when one is lost.

Source: Moritz et al., "Ray: A Distributed Framework for Emerging AI Applications", OSDI 2018; the package ``ray``, of
which Ray Core alone is used.
"""

from __future__ import annotations

import pickle
import secrets
import socket
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Final, Generic, NamedTuple

from maisi_aug import __version__
from maisi_aug.errors import MaisiAugWarning, RequestError, WorkerError
from maisi_aug.integrations.ray.actor import Assignment, Hello, Piece, RemoteWorker
from maisi_aug.integrations.ray.joining import join
from maisi_aug.system.engine.cores import THREAD_VARIABLES, limit_threads
from maisi_aug.system.engine.crew import Crew, Ending, Message
from maisi_aug.system.engine.work import MAX_LOSSES, Item, Result, Settle, Watch, WorkerSpec, num_ahead_of

PATIENCE_SECONDS: Final = 120.0
"""Seconds that workers may wait for a place on the cluster before the user is notified."""
NODE_SECONDS: Final = 2.0
"""Seconds to wait for a node to answer a liveness check."""
# What Ray says of an actor whose code is not there.
_IMPORT_WORDS: Final = ("failed to import", "No module named")
_THREADS_OF_ACTOR: Final = 4  # one listens, one stops, one or two take items in


class Shape(NamedTuple):
    """Number of workers on a Ray cluster, and resources of each.

    Attributes:
        num_workers: Number of workers.
        num_cpus: Cores of each worker, as Ray counts them, which is also its number of threads.
        num_gpus: GPUs of each worker; may be a fraction.
    """

    num_workers: int
    num_cpus: int
    num_gpus: float


@dataclass(frozen=True)
class RayEngine:
    """Engine with workers on a Ray cluster.

    Attributes:
        address: Address of the cluster, see :func:`~maisi_aug.integrations.ray.joining.join`.
        num_workers: Number of workers; None for one per GPU, or per core if no GPU is used.
        gpus_per_worker: GPUs of each worker, possibly a fraction; None for one if the cluster has GPUs, otherwise none.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    address: str = ""
    num_workers: int | None = None
    gpus_per_worker: float | None = None
    device: str = "auto"

    @property
    def devices(self) -> Sequence[str]:
        """Always empty, because this process does not know the workers' devices; workers report what they lack."""
        return ()

    def run(
        self,
        spec: WorkerSpec[Item, Result],
        items: Iterable[Item],
        settle: Settle[Item, Result],
        *,
        scratch: Path,
        watch: Watch,
    ) -> None:
        """Run the items on the cluster, as :class:`~maisi_aug.system.engine.work.Engine` defines.

        Raises:
            MissingExtraError: Ray is not installed.
            RequestError: The cluster has no room for such a worker.
            WorkerError: The cluster cannot be joined, or its nodes lack what workers need.
        """
        waiting, scratch, home = deque(items), scratch.resolve(), Path.cwd()
        token = write_token(scratch)
        ray = join(self.address)
        shape = shape_workers([node["Resources"] for node in ray.nodes() if node["Alive"]], self)
        device = "cuda" if shape.num_gpus else "cpu"
        office = self.open_office(ray, shape, ray.put(pickle.dumps(spec)))
        assignments = (
            Assignment(f"worker {number}", device, scratch / str(number), home, token)
            for number in range(1, min(shape.num_workers, len(waiting)) + 1)
        )
        hands = [_RayHand[Item](office, assignment, watch) for assignment in assignments]
        Crew(waiting, hands, settle, office.listen, num_ahead_of(spec)).work_off()

    def open_office(self, ray: Any, shape: Shape, spec: Any) -> Office:
        """Return the object that creates the Ray actors."""
        return Office(ray, shape, spec)


def write_token(folder: Path) -> tuple[Path, str]:
    """Write a random token to a folder, by which nodes show that they share the disk; return file and content."""
    token = folder / "token", secrets.token_hex(16)
    token[0].write_text(token[1], encoding="utf-8")
    return token


def shape_workers(nodes: Sequence[dict[str, float]], engine: RayEngine) -> Shape:
    """Choose the number of workers on a cluster, and the resources of each.

    Args:
        nodes: Resources that Ray counts on every node: ``CPU``, ``GPU``.
        engine: Engine with the requested numbers.

    Raises:
        RequestError: The cluster has no room for a single worker.
    """
    gpus = engine.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if engine.device != "cpu" and any(node.get("GPU") for node in nodes) else 0.0
    if gpus > 0 and engine.device == "cpu":
        raise RequestError("--gpus-per-worker cannot be used with --device cpu.")
    if gpus > 1 and gpus != int(gpus):
        raise RequestError(f"--gpus-per-worker: expected an integer, or a fraction between 0 and 1, found {gpus:g}.")
    if gpus == 0 and engine.device == "cuda":
        raise RequestError("--device cuda: the Ray cluster has no GPUs. Use --device cpu.")
    if gpus:
        places = [(node, int(node.get("GPU", 0) / gpus + 1e-6)) for node in nodes]
        usable = [(int(node.get("CPU", 0)), number) for node, number in places if number]
    else:
        usable = [(cores, cores) for node in nodes if (cores := int(node.get("CPU", 0)))]
    if not usable:
        kind = f"{gpus:g} GPU" if gpus else "cores"
        found = ", ".join(f"{sum(node.get(name, 0) for node in nodes):g} {name}" for name in ("CPU", "GPU"))
        raise RequestError(f"Ray cluster: no node has {kind} for a worker; the cluster has {found} in all.")
    num_workers = engine.num_workers or sum(number for _, number in usable)
    if gpus:
        return Shape(num_workers, min(cores // number for cores, number in usable), gpus)
    share = sum(cores for cores, _ in usable) // num_workers
    return Shape(num_workers, max(1, min(share, *(cores for cores, _ in usable))), 0.0)


@dataclass
class Office:
    """Creates Ray actors and listens to them.

    Attributes:
        ray: Module ``ray``.
        shape: Resources of each actor.
        spec: Ray reference to the pickled specification of workers.
    """

    ray: Any
    shape: Shape
    spec: Any
    _began: float = field(default_factory=monotonic)
    _has_warned: bool = False

    def hire(self, assignment: Assignment) -> Any:
        """Create a Ray actor for a worker and return its handle; the actor starts once its resources are free."""
        shape, threads = self.shape, limit_threads(self.shape.num_cpus)
        made = self.ray.remote(RemoteWorker).options(
            num_cpus=shape.num_cpus,
            num_gpus=shape.num_gpus,
            max_concurrency=_THREADS_OF_ACTOR,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": {name: str(threads) for name in THREAD_VARIABLES}},
        )
        return made.remote(assignment, self.spec)

    def dismiss(self, actor: Any) -> None:
        """End an actor immediately."""
        self.ray.kill(actor)

    def listen(self, hands: Sequence[_RayHand[Any]], seconds: float) -> Iterator[tuple[_RayHand[Any], Message | None]]:
        """Yield messages of workers, as :data:`~maisi_aug.system.engine.crew.Listen` defines."""
        for hand in hands:
            hand.start_if_due()
        answers = {hand.answer: hand for hand in hands if hand.answer is not None}
        ready, _ = self.ray.wait(list(answers), num_returns=1, timeout=seconds)
        if ready:
            ready, _ = self.ray.wait(list(answers), num_returns=len(answers), timeout=0)
        for answer in ready:
            yield from answers[answer].take_answer()
        if not self._has_warned and monotonic() - self._began > PATIENCE_SECONDS:
            self._has_warned = True
            self._warn_of_waiting(hands)

    def has_lost(self, node_id: str) -> bool:
        """Whether a node of the cluster is lost; Ray itself notices some seconds later."""
        node = next((node for node in self.ray.nodes() if node["NodeID"] == node_id), None)
        if node is None or not node["Alive"]:
            return True
        try:
            socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), NODE_SECONDS).close()
        except OSError:
            return True
        return False

    def _warn_of_waiting(self, hands: Sequence[_RayHand[Any]]) -> None:
        if num_waiting := sum(not hand.is_ready for hand in hands if hand.is_open):
            warnings.warn(
                f"{num_waiting} of {len(hands)} workers are waiting for resources of the Ray cluster: each needs "
                f"{self.shape.num_cpus} cores and {self.shape.num_gpus:g} GPU. The others are already working.",
                MaisiAugWarning,
                stacklevel=2,
            )


@dataclass
class _RayHand(Generic[Item]):
    """An actor, seen from the driver; see :class:`~maisi_aug.system.engine.crew.Hand`.

    Attributes:
        answer: Reference to what it says next.
    """

    office: Office
    assignment: Assignment
    watch: Watch
    items: dict[int, Item] = field(default_factory=dict)
    num_at_hand: int = 0
    is_ready: bool = False
    answer: Any = None
    place: str = "the Ray cluster"
    node_id: str = ""
    has_own_folder: bool = False
    _actor: Any = None
    _error: Exception | None = None
    _is_over: bool = False
    _num_false_starts: int = 0

    @property
    def name(self) -> str:
        return self.assignment.name

    @property
    def scratch(self) -> Path:
        return self.assignment.scratch

    @property
    def is_open(self) -> bool:
        return self._actor is not None

    def start_if_due(self) -> None:
        if self._actor is None and not self._is_over:
            self.scratch.mkdir(exist_ok=True)
            self._actor = self.office.hire(self.assignment)
            self.answer = self._actor.listen.remote()

    def hand_out(self, key: int, item: Item) -> None:
        self._actor.hand_in.remote(key, item)

    def take_answer(self) -> Iterator[tuple[_RayHand[Item], Message | None]]:
        """Yield the messages of the driver's kinds; what concerns the actor itself is done here."""
        ray = self.office.ray
        try:
            messages = ray.get(self.answer)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            self._error = error
            yield self, None
            return
        self.answer = self._actor.listen.remote()
        for kind, content in messages:
            if kind == "hello":
                self._welcome(content)
            elif kind == "piece":
                self._write(content)
            elif kind == "closed":
                self.kill()
            else:
                yield self, (kind, content)

    def _welcome(self, hello: Hello) -> None:
        self.place, self.node_id, self.has_own_folder = hello.host, hello.node_id, not hello.sees_folders
        if hello.version != __version__:
            raise WorkerError(
                f"{self.name} on {hello.host}: runs maisi-aug {hello.version}, this machine {__version__}. Install "
                "the same version on every node."
            )
        if self.office.shape.num_cpus > hello.num_cores:
            warnings.warn(
                f"{hello.host}: Ray gives each worker {self.office.shape.num_cpus} cores, but {hello.num_cores} are "
                "available. Start that node with ray start --num-cpus and the available number.",
                MaisiAugWarning,
                stacklevel=2,
            )
        self.is_ready, self._num_false_starts = True, 0
        self.watch(self.name, "opens", ())

    def _write(self, piece: Piece) -> None:
        path = self.scratch / piece.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if piece.offset else "wb") as file:
            file.seek(piece.offset)
            file.write(piece.content)

    def bury(self) -> Ending:
        error, text = self._error, str(self._error)
        was_ready, self.is_ready = self.is_ready, False
        self._forget()
        if getattr(error, "preempted", False) or (was_ready and self.office.has_lost(self.node_id)):
            return Ending(f"was lost with its node {self.place}", may_be_items=False)
        self._num_false_starts += not was_ready
        if self._num_false_starts >= MAX_LOSSES or (not was_ready and any(words in text for words in _IMPORT_WORDS)):
            self._is_over = True
            raise WorkerError(
                f"{self.name}: maisi-aug {__version__} and its dependencies must be on every node of the Ray "
                f"cluster: {text.strip().splitlines()[-1]} Install them there, or see the logs of Ray."
            ) from error
        return Ending(f"was killed on {self.place}, probably for lack of memory")

    def ask_to_stop(self) -> None:
        self._is_over = True
        if self._actor is not None and self.is_ready:
            self._actor.stop.remote()
        else:
            self.kill()

    def kill(self) -> None:
        self._is_over = True
        if self._actor is not None and self.has_own_folder:
            with suppress(self.office.ray.exceptions.RayError):
                self.office.ray.get(self._actor.leave_nothing.remote(), timeout=NODE_SECONDS)
        self._forget()

    def _forget(self) -> None:
        if self._actor is not None:
            self.office.dismiss(self._actor)
        self._actor = self.answer = None
