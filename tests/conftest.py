"""Fixtures shared by all tests."""

from __future__ import annotations

import locale
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.bundle_spec.known_bundles import KnownBundle
from maisi_aug.networks.checkpoints.hub import Hub, pull_bundle
from tests.builders.hub_server import HubServer, serve
from tests.builders.tiny_bundle import write_tiny_bundle

REPOSITORY = Path(__file__).resolve().parent.parent


class Outcome(NamedTuple):
    """What a command line did."""

    code: int
    stdout: str
    stderr: str


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of processes of ``pytest -n auto``: each takes up to 4 GB, however many cores there are."""
    return min(4, os.cpu_count() or 1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: Sequence[object]) -> None:
    """Give each of several test processes, and the processes that they start, its share of the cores."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // len(specs))))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test for a GPU where PyTorch finds none, with its reason."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
            pytest.skip(f"needs a CUDA device: PyTorch {torch.__version__} ({built}) finds none")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder that holds pyproject.toml."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Public CT data beside the repository; the test is skipped where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real CT data: expected at {folder}, not found")
    return folder


@pytest.fixture(autouse=True)
def same_locale() -> Iterator[None]:
    """ITK, with which tests write DICOM, sets the process's locale to C; later tests read text of other programs."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(20240607)


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run ``maisi-aug`` in this process, through its error boundary."""
    from maisi_aug.cli.app import run

    def call(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        code = run([str(word) for word in arguments])
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def run_process() -> Callable[..., Outcome]:
    """Run ``maisi-aug`` as a process of its own, as a user does."""

    def call(*arguments: str | Path, cwd: Path | None = None, timeout_s: float = 300) -> Outcome:
        command = [sys.executable, "-m", "maisi_aug.cli.app", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout_s)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of narrow networks with random weights."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def bundle_path(bundle: Bundle) -> Path:
    """The folder of the bundle."""
    return bundle.path


@pytest.fixture(autouse=True)
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place of the user's own: what the person who runs the tests has fetched changes none of them."""
    folder = tmp_path / "home"
    monkeypatch.setenv("MAISI_AUG_HOME", str(folder))
    return folder


@pytest.fixture
def server(contents: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A local hub that holds what the test module calls ``contents``."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve("nvidia/NV-Generate-CT", dict(contents)) as running:
        yield running


@pytest.fixture
def hub(server: HubServer, tmp_path: Path) -> Hub:
    """Where ``pull`` fetches from, with an empty cache."""
    return Hub(server.endpoint, tmp_path / "cache")


@pytest.fixture
def pull(known: KnownBundle, hub: Hub) -> Callable[..., Bundle]:
    """Fetch what the test module calls ``known``, its licence accepted."""

    def call(**arguments: Any) -> Bundle:
        return pull_bundle(known, **{"accept_licence": lambda _: True, "hub": hub, **arguments})

    return call
