"""The same cohort on Ray: on this machine, on two nodes, without a shared disk, and with workers and nodes lost."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from maisi_aug import __version__
from maisi_aug.api.engines import Where, read_engine
from maisi_aug.cohort.resolve import CohortRun
from maisi_aug.errors import MissingExtraError, RequestError, WorkerError
from maisi_aug.evaluation.benchmark.run import open_benchmark
from maisi_aug.evaluation.benchmark.trainings import run_trainings
from maisi_aug.evaluation.cohort.case_sets import find_case_set
from maisi_aug.evaluation.fid.extractors import find_extractor
from maisi_aug.evaluation.fid.measurement import measure_fid
from maisi_aug.evaluation.fid.slices import SliceProtocol
from maisi_aug.generate.driver import Listener
from maisi_aug.generate.run import CohortSummary, synthesize_cohort
from maisi_aug.integrations.ray import actor, engine, joining
from maisi_aug.integrations.ray.actor import Assignment, Hello
from maisi_aug.integrations.ray.engine import RayEngine, Shape, shape_workers
from maisi_aug.system.engine.work import Engine, InProcess, ignore_events
from tests.builders.cohorts_compared import hash_files, sort_lines
from tests.builders.made_cases import write_folder
from tests.builders.resolver import GATES_OFF, resolver
from tests.builders.tiny_benchmark import build_config

REPOSITORY = Path(__file__).parents[2]
NUM_CASES = 6
LABELS = ["hepatic tumor:25-40mm", "lung tumor:20-40mm", "kidney tumor:25mm+spleen"]
CPU_NODE, GPU_NODE = {"CPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}
# What Ray itself warns of where it is imported and started.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning:ray", "ignore::ResourceWarning", "ignore:.* wait for a place", "ignore::DeprecationWarning"
)


@pytest.mark.parametrize(
    ("nodes", "asked", "shape"),
    [
        ([CPU_NODE, CPU_NODE], RayEngine(), Shape(16, 1, 0)),
        ([CPU_NODE, CPU_NODE], RayEngine(num_workers=4), Shape(4, 4, 0)),
        ([CPU_NODE, {"CPU": 2.0}], RayEngine(num_workers=2), Shape(2, 2, 0)),
        ([CPU_NODE, GPU_NODE], RayEngine(), Shape(4, 4, 1)),
        ([CPU_NODE, GPU_NODE], RayEngine(device="cpu"), Shape(24, 1, 0)),
        ([GPU_NODE, {"CPU": 0.0, "GPU": 1.0}], RayEngine(), Shape(5, 0, 1)),
        ([GPU_NODE], RayEngine(gpus_per_worker=0.5), Shape(8, 2, 0.5)),
        ([GPU_NODE, GPU_NODE], RayEngine(gpus_per_worker=2, num_workers=3), Shape(3, 8, 2)),
    ],
)
def test_workers_fill_the_cluster(nodes: list[dict[str, float]], asked: RayEngine, shape: Shape) -> None:
    assert shape_workers(nodes, asked) == shape


@pytest.mark.parametrize(
    ("nodes", "asked", "sentence"),
    [
        ([CPU_NODE], RayEngine(device="cuda"), "--device cuda: the Ray cluster has no GPUs"),
        (
            [CPU_NODE],
            RayEngine(gpus_per_worker=1),
            "Ray cluster: no node has 1 GPU for a worker; the cluster has 8 CPU, 0 GPU in",
        ),
        ([GPU_NODE], RayEngine(gpus_per_worker=1.5), "expected an integer, or a fraction between 0 and 1, found 1.5"),
        ([GPU_NODE], RayEngine(gpus_per_worker=1, device="cpu"), "--gpus-per-worker cannot be used with --device cpu"),
        ([{"CPU": 0.0}], RayEngine(), "Ray cluster: no node has cores for a worker; the cluster has 0 CPU, 0 GPU"),
    ],
)
def test_cluster_without_a_place_is_refused(nodes: list[dict[str, float]], asked: RayEngine, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        shape_workers(nodes, asked)


def test_options_of_ray_are_refused_where_they_do_nothing() -> None:
    with pytest.raises(RequestError, match="--num-workers can only be used with --engine ray"):
        read_engine("local", None, 2, None)
    with pytest.raises(RequestError, match="--engine ray: expected one --device of auto, cpu, cuda, found 'cpu,cpu'"):
        Where.read(devices="cpu,cpu", options=read_engine("ray", None, None, None))


def test_missing_ray_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match="--engine ray: the package ray is missing:"):
        Where.read(options=read_engine("ray", None, None, None))


@pytest.mark.parametrize("address", ["10.0.0.1", "ray://10.0.0.1:10001", "head:port"])
def test_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(RequestError, match=f"must be HOST:PORT of a Ray cluster's head, .* found '{address}'"):
        joining._require_answer(address)


def test_address_that_nothing_answers_at_is_told_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(WorkerError, match=f"^--address {address}: no Ray cluster answers at this address"):
        joining._join(None, address)


def meet(hello: Hello) -> engine._RayHand[object]:
    """A worker that has said hello, of which a cluster gives each two cores."""
    assignment = Assignment("worker 1", "cpu", Path(), Path(), (Path("token"), ""))
    hand = engine._RayHand[object](engine.Office(None, Shape(1, 2, 0), None), assignment, ignore_events)
    hand._welcome(hello)
    return hand


def test_node_with_another_version_or_without_the_package_is_told() -> None:
    hello = Hello("node7", "id", __version__, sees_folders=True, num_cores=2)
    with pytest.raises(WorkerError, match=rf"worker 1 on node7: runs maisi-aug 0.0.1, this machine {__version__}"):
        meet(hello._replace(version="0.0.1"))
    hand = meet(hello)
    hand.is_ready, hand._error = False, RuntimeError("the actor died: No module named 'maisi_aug'")
    with pytest.raises(WorkerError, match=r"worker 1: maisi-aug .* must be on every node .*: No module named 'maisi_"):
        hand.bury()


def test_cores_that_ray_counts_and_are_not_there_are_told() -> None:
    with pytest.warns(UserWarning, match="node7: Ray gives each worker 2 cores, but 1 are available. Start that"):
        meet(Hello("node7", "id", __version__, sees_folders=True, num_cores=1))


class Cluster:
    """Two nodes on this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        small = {"object_store_memory": joining.STORE_BYTES, "num_cpus": 2}
        self._cluster = RayCluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
        self._small, self.second = small, self._cluster.add_node(**small)
        self.address = self._cluster.address

    def lose_second(self) -> None:
        self._cluster.remove_node(self.second, allow_graceful=False)

    def add_second(self) -> None:
        self.second = self._cluster.add_node(**self._small)

    def end(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray", reason="needs Ray: pip install 'maisi-aug[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY), prepend=os.pathsep)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("OMP_NUM_THREADS", "1")  # as in this process, see threads()
        made = Cluster()
        yield made
        joining.require_ray().shutdown()
        made.end()


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    """As many threads in this process as in a worker: the order of sums is part of an image."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def resolve(bundle_path: Path) -> Callable[..., CohortRun]:
    return resolver(labels=LABELS, num_cases=NUM_CASES, seed=5, bundle=str(bundle_path), gates=GATES_OFF)


@pytest.fixture(scope="module")
def reference(resolve: Callable[..., CohortRun], tmp_path_factory: pytest.TempPathFactory) -> CohortSummary:
    return synthesize_cohort(resolve(), tmp_path_factory.mktemp("reference") / "cohort", device="cpu")


def require_same(folder: Path, reference: CohortSummary) -> None:
    assert hash_files(folder) == hash_files(reference.folder)
    assert sort_lines(folder) == sort_lines(reference.folder)


@pytest.mark.parametrize("num_workers", [2, 4])
def test_workers_on_two_nodes_make_the_same_cohort(
    cluster: Cluster, num_workers: int, reference: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    summary = synthesize_cohort(resolve(), tmp_path / "cohort", engine=RayEngine(cluster.address, num_workers))
    require_same(summary.folder, reference)


@pytest.mark.slow
def test_cluster_of_this_machine_has_the_cores_that_are_there(
    cluster: Cluster, reference: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    """In a process of its own, as the command runs: a process stays in the cluster that it has joined."""
    run = resolve()
    document = run.to_document()["configuration"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    command = [*("taskset", "-c", "0"), sys.executable, "-m", "maisi_aug", "synthesize", "--engine", "ray"]
    options = ["--recipe", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "cohort")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "worker 2" not in done.stderr
    require_same(tmp_path / "cohort", reference)


def test_files_are_streamed_where_no_disk_is_shared(
    cluster: Cluster,
    reference: CohortSummary,
    resolve: Callable[..., CohortRun],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "write_token", lambda folder: (folder / "elsewhere", "token"))
    summary = synthesize_cohort(resolve(), tmp_path / "cohort", engine=RayEngine(cluster.address, 2))
    require_same(summary.folder, reference)
    assert set(Path(tempfile.gettempdir()).glob(f"{actor.FOLDER_PREFIX}*")) == set()


def test_large_files_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor, "PIECE_BYTES", 3)
    for name, content in (("long", b"abcdefgh"), ("even", b"abc"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        pieces = list(actor._cut(tmp_path, name))
        assert b"".join(piece.content for piece in pieces) == content
        assert [piece.offset for piece in pieces] == list(range(0, max(1, len(content)), 3))


class Destroyer(Listener):
    """Does something once, when an image has been begun."""

    def __init__(self, destroy: Callable[[], None]) -> None:
        self.destroy, self.lost, self.is_done = destroy, list[str](), False

    def works(self, worker: str, event: str, details: tuple[Any, ...]) -> None:
        if event == "steps" and not self.is_done:
            self.is_done = True
            self.destroy()

    def loses(self, worker: str, how: str) -> None:
        self.lost.append(how)


def find_actors() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::RemoteWorker"):
            found.append(int(path.parent.name))
    return found


def test_killed_workers_cost_the_cases_in_flight_only(
    cluster: Cluster, reference: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    def kill_all() -> None:  # one alone may have nothing in flight, and nobody would miss it
        for worker in find_actors():
            os.kill(worker, signal.SIGKILL)

    destroyer = Destroyer(kill_all)
    summary = synthesize_cohort(
        resolve(), tmp_path / "cohort", engine=RayEngine(cluster.address, 2), listener=destroyer
    )
    assert set(destroyer.lost) == {f"was killed on {socket.gethostname()}, probably for lack of memory"}
    require_same(summary.folder, reference)


def test_lost_node_costs_the_cases_in_flight_only(
    cluster: Cluster, reference: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    destroyer = Destroyer(cluster.lose_second)
    try:
        summary = synthesize_cohort(
            resolve(), tmp_path / "cohort", engine=RayEngine(cluster.address, 4), listener=destroyer
        )
    finally:
        cluster.add_second()
    assert destroyer.lost
    assert set(destroyer.lost) == {f"was lost with its node {socket.gethostname()}"}
    require_same(summary.folder, reference)


@pytest.mark.slow
def test_stopped_run_is_continued(
    cluster: Cluster, reference: CohortSummary, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize_cohort(
            resolve(), tmp_path / "cohort", engine=RayEngine(cluster.address, 2), listener=Destroyer(interrupt)
        )
    assert find_actors() == []
    summary = synthesize_cohort(resolve(), tmp_path / "cohort", engine=RayEngine(cluster.address, 2))
    require_same(summary.folder, reference)


@pytest.mark.slow
def test_worker_without_the_bundle_is_told(cluster: Cluster, bundle_path: Path, tmp_path: Path) -> None:
    there, gone = tmp_path / "bundle", tmp_path / "elsewhere"
    shutil.copytree(bundle_path, there)
    run = resolver(labels=LABELS[:1], num_cases=1, bundle=str(there), gates=GATES_OFF)()
    run.to_document()
    there.rename(gone)
    with pytest.raises(
        WorkerError, match=rf"worker 1 on \S+: expected {there} exists on the driver's machine, but not here"
    ):
        synthesize_cohort(run, tmp_path / "cohort", engine=RayEngine(cluster.address, 1))


@pytest.mark.slow
def test_trainings_and_features_are_the_same(cluster: Cluster, tmp_path: Path) -> None:
    real, made = (
        find_case_set(write_folder(tmp_path / name, seeds)) for name, seeds in (("a", (1, 2)), ("b", (3, 4, 5)))
    )
    ways: dict[str, Engine] = {"alone": InProcess("cpu"), "shared": RayEngine(cluster.address, 2, device="cpu")}
    scores, figures = [], []
    for name, way in ways.items():
        bench = open_benchmark(tmp_path / name, build_config(tmp_path))
        run_trainings(bench, way)
        scores.append([bench.load_scores(arm, 0)["cases"] for arm in bench.plan.config.arms])
        figures.append(measure_fid(real, made, find_extractor(), SliceProtocol(every=10), cache=None, engine=way))
    assert scores[0] == scores[1]
    assert figures[0] == figures[1]


def test_cluster_of_another_version_is_told(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = joining.require_ray()
    ray.shutdown()
    monkeypatch.setattr(ray, "__version__", "2.0.0")
    with pytest.raises(WorkerError, match=": the cluster has other versions of Ray or Python"):
        joining.join(cluster.address)
