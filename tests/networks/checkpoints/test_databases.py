"""The label maps that come with a bundle, from a local hub: resumed, compared with what it states, used as a bank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maisi_aug.banks.files import list_bank
from maisi_aug.bundle_spec.known_bundles import KnownBundle, find_known_bundle
from maisi_aug.errors import BundleError
from maisi_aug.networks.checkpoints.databases import database_folder, pull_database
from maisi_aug.networks.checkpoints.hub import Hub
from maisi_aug.volumes.grid import Grid
from tests.builders.hub_server import HubServer
from tests.builders.tiny_database import LIST_NAME, MAPS_NAME, write_database

ZIP, LIST = f"datasets/{MAPS_NAME}.zip", f"datasets/{LIST_NAME}"


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("database")
    rng = np.random.default_rng(0)
    grid = Grid.from_spacing((40, 30, 20), (2.0, 2.0, 3.0))
    maps = {f"case_{i}.nii.gz": (rng.integers(0, 200, (40, 30, 20), dtype=np.uint8), grid) for i in range(3)}
    archive = write_database(folder, maps)
    return {ZIP: archive.read_bytes(), LIST: (folder / LIST_NAME).read_bytes()}


@pytest.fixture
def pull(server: HubServer, hub: Hub) -> Callable[..., Path]:
    server.small = (LIST,)

    def call(**arguments: Any) -> Path:
        known = find_known_bundle("rflow-ct")
        return pull_database(known, **{"accept_licence": lambda _: True, "hub": hub, **arguments})

    return call


def test_fetched_label_maps_are_a_mask_bank(
    pull: Callable[..., Path], server: HubServer, contents: dict[str, bytes]
) -> None:
    said: list[str] = []
    folder = pull(report=said.append)
    assert "Fetching 4,000 label maps and their list (11.6 GB) from nvidia/NV-Generate-CT." in said
    assert folder == database_folder("rflow-ct")
    for name in (ZIP, LIST):
        assert (folder / Path(name).name).read_bytes() == contents[name]
    assert (folder / "LICENCE.txt").read_text().count("--with-mask-database") == 1
    assert len(list_bank(folder, lambda _: False).entries) == 3
    server.requests.clear()
    assert pull(accept_licence=lambda _: pytest.fail("asked")) == folder
    assert server.requests == []


def test_broken_and_altered_downloads_go_on(
    pull: Callable[..., Path], server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 12)
    server.cut.add(ZIP)
    folder = pull()
    (wanted,) = [wanted for _, wanted in server.requests if wanted is not None]
    assert int(wanted.removeprefix("bytes=").rstrip("-")) >= 1 << 12
    (folder / Path(LIST).name).unlink()
    (folder / Path(LIST).name).write_bytes(b"[]")
    assert (pull() / Path(LIST).name).read_bytes() == server.files[LIST]
    (folder / "notes.txt").write_text("mine")
    (folder / Path(LIST).name).unlink()
    with pytest.raises(
        BundleError, match="must hold nothing but an earlier download of the label maps, found notes.txt"
    ):
        pull()


def test_file_that_is_not_what_the_hub_states_is_not_kept(pull: Callable[..., Path], server: HubServer) -> None:
    server.stated[ZIP] = ("0" * 64, len(server.files[ZIP]))
    with pytest.raises(BundleError, match=f"{ZIP}: expected SHA-256 000000000000"):
        pull()
    assert not database_folder("rflow-ct").exists()


def test_nothing_is_fetched_without_leave(pull: Callable[..., Path], server: HubServer) -> None:
    with pytest.raises(
        BundleError, match="licence must be accepted first.*bundles pull rflow-ct --with-mask-database --accept"
    ):
        pull(accept_licence=lambda _: False)
    assert server.requests == []
    server.status = HTTPStatus.UNAUTHORIZED
    with pytest.raises(BundleError, match="answer 401. .*HF_TOKEN"):
        pull()


def test_bundle_of_images_alone_has_no_label_maps(run_cli: Callable[..., Any]) -> None:
    for flag in ("--with-mask-database", "--with-masks"):
        refused = run_cli("bundles", "pull", "rflow-mr", flag, "--accept-license")
        assert refused.code == 1
        assert f"because it draws images only. Leave {flag} out." in refused.stderr
    known: KnownBundle = replace(find_known_bundle("rflow-ct"), mask_database=None)
    with pytest.raises(BundleError, match="no label maps are published with it"):
        pull_database(known, accept_licence=lambda _: True)
