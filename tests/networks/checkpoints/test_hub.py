from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

import maisi_aug as ma
from maisi_aug.bundle_spec import known_bundles as table
from maisi_aug.bundle_spec.bundle import Bundle, list_bundles, load_bundle, pulled_bundles_folder
from maisi_aug.bundle_spec.known_bundles import KnownBundle
from maisi_aug.errors import BundleError, RequestError
from maisi_aug.networks.checkpoints import databases
from maisi_aug.networks.checkpoints import hub as hub_module
from maisi_aug.networks.checkpoints import importing as checkpoint_import
from maisi_aug.networks.checkpoints.hub import Hub, fetch_files
from maisi_aug.networks.checkpoints.reading import read_checkpoint, take_scale_factor, take_state_dict
from maisi_aug.networks.weights import load_networks
from tests.builders.hub_server import COMMIT, HubServer
from tests.builders.tiny_bundle import write_tiny_bundle
from tests.builders.tiny_checkpoints import FILES, SCALE_FACTOR, States, draw_states, narrow, saved, wrap

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def states(tiny: Bundle) -> States:
    return draw_states(tiny)


@pytest.fixture(scope="module")
def contents(states: States) -> dict[str, bytes]:
    return {FILES[role]: saved(content) for role, content in wrap(states).items()}


@pytest.fixture
def known(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> KnownBundle:
    """The entry of rflow-ct with networks of tiny width, in place of the real one."""
    real = table.find_known_bundle("rflow-ct")
    assert real.files == FILES
    fake = narrow(real, tiny)
    monkeypatch.setattr(table, "known_bundles", lambda: {"rflow-ct": fake})
    return fake


def left_behind() -> list[Path]:
    folder = pulled_bundles_folder()
    return sorted(folder.iterdir()) if folder.exists() else []


def test_pulled_bundle_is_found_by_name_with_the_weights_as_they_came(
    pull: Callable[..., Bundle], states: States, known: KnownBundle
) -> None:
    with pytest.raises(BundleError, match="not been downloaded to this machine yet.*maisi-aug bundles pull rflow-ct"):
        load_bundle("rflow-ct")
    bundle = pull()
    assert load_bundle("rflow-ct") == bundle
    assert bundle.path == pulled_bundles_folder() / "rflow-ct"
    assert left_behind() == [bundle.path]
    assert "rflow-ct" in [listed.name for listed in list_bundles()]
    assert bundle.spec.decode_window == (48, 48, 64)
    assert bundle.spec.scale_factor == SCALE_FACTOR
    assert bundle.spec.provenance["revision"] == COMMIT
    assert bundle.spec.provenance["licence"] == {
        "name": "NVIDIA Open Model License",
        "url": known.licence_url,
        "is_accepted": True,
    }
    assert (bundle.path / "LICENCE.txt").read_text().startswith(f"{known.notice}\n{known.licence_url}\nAccepted 20")
    for role, state in states.items():
        written = safetensors.torch.load_file(bundle.weight_path(role))
        assert {key: value.dtype for key, value in written.items()} == dict.fromkeys(state, torch.float32)
        assert all(torch.equal(written[key], state[key]) for key in state)
    networks = load_networks(bundle, plain_layers=False)
    assert all(torch.equal(value, states["controlnet"][key]) for key, value in networks.controlnet.state_dict().items())


def test_same_files_give_the_same_bundle_anywhere(pull: Callable[..., Bundle], tmp_path: Path) -> None:
    first, second = pull(), pull(folder=tmp_path / "elsewhere")
    assert second.path == tmp_path / "elsewhere"
    assert first.fingerprint == second.fingerprint


def test_second_pull_asks_neither_hub_nor_user(pull: Callable[..., Bundle], server: HubServer) -> None:
    bundle = pull()
    server.requests.clear()
    assert pull(accept_licence=lambda _: pytest.fail("asked")) == bundle
    assert server.requests == []


def test_altered_bundle_is_pulled_again(pull: Callable[..., Bundle]) -> None:
    bundle = pull()
    bundle.weight_path("controlnet").write_bytes(b"altered")
    pull().require_intact()
    assert left_behind() == [bundle.path]


def test_all_files_come_from_one_revision(pull: Callable[..., Bundle], server: HubServer) -> None:
    pull()
    revisions = [line.split("/resolve/")[1].split("/")[0] for line, _ in server.requests if line.startswith("GET")]
    assert revisions == ["main", COMMIT, COMMIT]


def test_nothing_is_fetched_before_the_licence_is_accepted(pull: Callable[..., Bundle], server: HubServer) -> None:
    with pytest.raises(BundleError, match="NVIDIA Open Model License .https://www.nvidia.com.*--accept-license"):
        pull(accept_licence=lambda _: False)
    assert server.requests == []
    assert left_behind() == []


@pytest.mark.parametrize("stated", [("0" * 64, None), (None, 7)], ids=["hash", "size"])
def test_file_that_is_not_what_the_hub_states_leaves_the_cache(
    stated: tuple[str | None, int | None], pull: Callable[..., Bundle], server: HubServer, hub: Hub
) -> None:
    name = FILES["autoencoder"]
    content = server.files[name]
    sha256, num_bytes = stated[0] or hashlib.sha256(content).hexdigest(), stated[1] or len(content)
    server.stated[name] = (sha256, num_bytes)
    wrong = "expected" if stated[0] else f"the hub did not send the file: .* size 7 but has size {len(content)} "
    with pytest.raises(BundleError, match=f"{name}: {wrong}"):
        pull()
    assert left_behind() == []
    assert hub.cache_folder is not None
    assert not [path for path in hub.cache_folder.rglob("blobs/*") if path.suffix != ".incomplete"]
    server.stated.clear()
    pull().require_intact()


def test_broken_download_goes_on_where_it_stopped(
    pull: Callable[..., Bundle], server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client keeps whole pieces only, of 10 MB, which no file of this test is long enough for.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 14)
    server.cut.add(FILES["controlnet"])
    pull().require_intact()
    (wanted,) = [wanted for _, wanted in server.requests if wanted is not None]
    assert int(wanted.removeprefix("bytes=").rstrip("-")) >= 1 << 14


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (HTTPStatus.UNAUTHORIZED, "answer 401. .*HF_TOKEN"),
        (HTTPStatus.FORBIDDEN, "answer 403. .*HF_TOKEN"),
        (HTTPStatus.NOT_FOUND, "answer 404. .*newer version"),
        (HTTPStatus.TOO_MANY_REQUESTS, "answer 429. .*wait some minutes"),
    ],
)
def test_refusal_of_the_hub_is_one_sentence(
    status: HTTPStatus, advice: str, pull: Callable[..., Bundle], server: HubServer
) -> None:
    server.status = status
    with pytest.raises(BundleError, match=f"{FILES['autoencoder']}: the hub did not send the file: {advice}"):
        pull()
    assert left_behind() == []


def test_missing_file_of_the_repository_is_named(pull: Callable[..., Bundle], server: HubServer) -> None:
    del server.files[FILES["diffusion_unet"]]
    with pytest.raises(BundleError, match=f"{FILES['diffusion_unet']}: .*answer 404"):
        pull()


def run_fetch(server: HubServer, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Fetch the files in a process whose only settings are those of the environment."""
    program = (
        "import json, sys\n"
        "from maisi_aug.errors import BundleError\n"
        "from maisi_aug.networks.checkpoints.hub import Hub, fetch_files\n"
        "try:\n"
        f"    files = fetch_files({server.repository!r}, {FILES!r}, Hub())\n"
        "except BundleError as error:\n"
        "    sys.exit(str(error))\n"
        "assert 'torch' not in sys.modules\n"
        "print(json.dumps({role: [str(file.path), file.sha256, file.revision] for role, file in files.items()}))\n"
    )
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": server.endpoint, "NO_PROXY": "127.0.0.1", **environment}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env={**inherited, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def test_settings_of_the_hub_come_from_the_environment(server: HubServer, tmp_path: Path) -> None:
    offline = run_fetch(server, tmp_path, HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert "the Hugging Face hub cannot be reached, and the file is not in its cache" in offline.stderr
    assert server.requests == []
    online = run_fetch(server, tmp_path)
    assert online.returncode == 0, online.stderr
    files = json.loads(online.stdout)
    assert all(Path(path).is_relative_to(tmp_path) for path, _, _ in files.values())
    server.requests.clear()
    assert json.loads(run_fetch(server, tmp_path, HF_HUB_OFFLINE="1").stdout) == files
    assert server.requests == []


def test_altered_file_in_the_cache_is_found_offline(server: HubServer, hub: Hub) -> None:
    files = fetch_files(server.repository, FILES, hub)
    path = files["controlnet"].path
    path.resolve().write_bytes(b"altered")
    server.status = HTTPStatus.SERVICE_UNAVAILABLE
    with pytest.raises(BundleError, match=f"{FILES['controlnet']}: expected SHA-256"):
        fetch_files(server.repository, FILES, hub)
    assert not path.exists()


class Poison:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("write", "read"),
    [
        (saved, lambda content: torch.load(io.BytesIO(content), weights_only=False)),
        (partial(pickle.dumps, protocol=2), pickle.loads),
    ],
    ids=["archive", "bare pickle"],
)
def test_poisoned_checkpoint_is_refused_by_name_and_not_run(
    write: Callable[[object], bytes],
    read: Callable[[bytes], object],
    pull: Callable[..., Bundle],
    server: HubServer,
    tmp_path: Path,
) -> None:
    marker = tmp_path / "it ran"
    poisoned = write({"controlnet_state_dict": {}, "loss": Poison(marker)})
    server.files[FILES["controlnet"]] = poisoned
    name = Path(FILES["controlnet"]).name
    with pytest.raises(
        BundleError, match=f"{name}: must contain weights only, found .*mkdir; it was neither run nor used"
    ):
        pull()
    assert not marker.exists()
    assert left_behind() == []
    read(poisoned)
    assert marker.exists(), "the poison works where it is let in"


def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"<html>not here</html>", saved({"a": torch.ones(3)})[:-40]):
        (tmp_path / "weights.pt").write_bytes(content)
        with pytest.raises(
            BundleError, match="weights.pt: must contain weights only, found a file that cannot be read"
        ):
            read_checkpoint(tmp_path / "weights.pt", subject="weights.pt")
    (tmp_path / "weights.pt").write_bytes(saved([torch.ones(1)]))
    with pytest.raises(BundleError, match="expected a dictionary of tensors, found a list"):
        read_checkpoint(tmp_path / "weights.pt", subject="weights.pt")


def test_state_dict_is_taken_from_its_wrapper_or_as_it_is() -> None:
    state = {"a": torch.ones(2)}
    assert take_state_dict(state, "autoencoder", subject="file").keys() == {"a"}
    for role, key in (("autoencoder", "unet_state_dict"), ("controlnet", "controlnet_state_dict")):
        assert take_state_dict({"epoch": 1, key: state}, role, subject="file").keys() == {"a"}
    with pytest.raises(BundleError, match="under 'controlnet_state_dict'; found 'epoch', 'unet_state_dict'"):
        take_state_dict({"epoch": 1, "unet_state_dict": state}, "controlnet", subject="file")


@pytest.mark.parametrize("found", [None, 0.0, -1.0, float("nan"), "1.0", True, torch.ones(2)])
def test_scale_factor_must_be_a_positive_number(found: object) -> None:
    with pytest.raises(BundleError, match="file: 'scale_factor' must be a positive number, found"):
        take_scale_factor({"scale_factor": found}, subject="file")


def test_weights_of_another_architecture_are_explained(
    pull: Callable[..., Bundle], server: HubServer, states: States
) -> None:
    odd = {"surplus": torch.ones(1), **dict(list(states["controlnet"].items())[1:])}
    server.files[FILES["controlnet"]] = saved({"controlnet_state_dict": odd})
    missing = next(iter(states["controlnet"]))
    with pytest.raises(BundleError, match=rf"1 missing \({missing}\); 1 surplus \(surplus\)"):
        pull()
    assert left_behind() == []


def test_interrupted_pull_leaves_nothing_half_written(
    pull: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        assert [path.suffix for path in left_behind()] == [".part"]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_import, "write_licence", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pull()
    assert left_behind() == []
    bundle = pull()
    bundle.path.with_name(".rflow-ct.12345678.part").mkdir()
    bundle.weight_path("controlnet").unlink()
    pull()
    assert left_behind() == [bundle.path], "what a killed pull left is gone"


def test_folder_in_other_use_is_left_alone(pull: Callable[..., Bundle], tiny: Bundle, tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    shutil.copytree(tiny.path, other)
    for folder in (mine, other):
        with pytest.raises(BundleError, match="an earlier copy of 'rflow-ct' from nvidia/"):
            pull(folder=folder)
    assert (mine / "notes.txt").read_text() == "mine"
    load_bundle(other).require_intact()
    pulled = pull(folder=tmp_path / "pulled")
    pulled.weight_path("controlnet").unlink()
    (pulled.path / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="found notes.txt. Choose another folder with --to"):
        pull(folder=pulled.path)
    assert (pulled.path / "notes.txt").read_text() == "mine"


def test_unknown_name_offers_the_closest() -> None:
    with pytest.raises(BundleError, match="'rflow': cannot be downloaded; .*Did you mean .*'rflow-ct'"):
        table.find_known_bundle("rflow")


def test_definitions_have_the_published_numbers_of_parameters() -> None:
    from maisi_aug.networks.building import describe_tensors

    assert list(table.known_bundles()) == ["rflow-ct", "ddpm-ct", "rflow-mr", "rflow-mr-brain"]
    numbers = {
        name: {
            role: sum(tensor.numel() for tensor in describe_tensors(definition).values())
            for role, definition in known.header["networks"].items()
        }
        for name, known in table.known_bundles().items()
    }
    assert numbers["rflow-ct"] == {"autoencoder": 20_944_897, "diffusion_unet": 180_500_868, "controlnet": 72_037_072}
    for name in ("rflow-mr", "rflow-mr-brain"):
        assert numbers[name] == {role: numbers["rflow-ct"][role] for role in ("autoencoder", "diffusion_unet")}
    assert numbers["ddpm-ct"] == {"autoencoder": 20_944_897, "diffusion_unet": 169_370_884, "controlnet": 68_644_944}


def test_command_pulls_lists_and_shows(
    run_cli: Callable[..., Any], known: KnownBundle, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "Hub", lambda: hub)
    assert known.pull_command in run_cli("bundles", "list").stdout
    refused = run_cli("bundles", "pull", "rflow-ct")
    assert refused.code == 1
    assert refused.stdout == ""
    assert known.licence_url in refused.stderr
    outcome = run_cli("bundles", "pull", "rflow-ct", "--accept-license")
    assert outcome.code == 0, outcome.stderr
    assert f"NVIDIA Open Model License: {known.licence_url}" in outcome.stderr
    assert outcome.stdout.endswith("Use it with: --bundle rflow-ct\n")
    path = pulled_bundles_folder() / "rflow-ct"
    again = run_cli("bundles", "pull", "rflow-ct", "--json")
    assert json.loads(again.stdout) == {"name": "rflow-ct", "path": str(path), "licence": "NVIDIA Open Model License"}
    listed = run_cli("bundles", "list", "--json").stdout
    assert str(path) in listed
    assert known.pull_command not in run_cli("bundles", "list").stdout
    assert yaml.safe_load((path / "bundle.yaml").read_text())["name"] in run_cli("bundles", "show", "rflow-ct").stdout
    wrong = run_cli("bundles", "pull", "rflow")
    assert (wrong.code, wrong.stdout) == (1, "")
    assert "Did you mean 'rflow-ct'?" in wrong.stderr


@pytest.fixture
def hub_with_maps(known: KnownBundle, server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> KnownBundle:
    """The bundle and its label maps are on the hub that all commands ask."""
    assert known.mask_database is not None
    server.files |= dict.fromkeys(known.mask_database.files.values(), b"[]")
    for module in (hub_module, databases):
        monkeypatch.setattr(module, "Hub", lambda: hub)
    return known


def test_one_question_is_for_a_bundle_and_its_label_maps(hub_with_maps: KnownBundle) -> None:
    said: list[str] = []
    with pytest.raises(BundleError, match="licence must be accepted first"):
        ma.pull_bundle("rflow-ct", with_mask_database=True)
    assert left_behind() == []

    def accept() -> bool:
        said.append("asked")
        return True

    bundle = ma.pull_bundle("rflow-ct", accept_license=accept, with_mask_database=True, say=said.append)
    assert bundle == load_bundle("rflow-ct")
    assert said.count("asked") == 1
    assert hub_with_maps.licence_url in said[said.index("asked") - 1], "the licence is shown before the question"
    maps = databases.database_folder("rflow-ct")
    assert said[-1] == f"The label maps are in {maps}."
    shutil.rmtree(maps)
    ma.pull_bundle("rflow-ct", accept_license=lambda: pytest.fail("asked"), with_mask_database=True)
    assert maps.is_dir()


def test_command_asks_once_on_a_terminal(
    run_cli: Callable[..., Any], hub_with_maps: KnownBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[bool] = []

    def ask() -> bool:
        questions.append(True)
        return len(questions) > 1

    monkeypatch.setattr("maisi_aug.cli.bundles.ask_for_licence", ask)
    words = ("bundles", "pull", "rflow-ct", "--with-mask-database", "--json")
    refused = run_cli(*words)
    assert (refused.code, refused.stdout, left_behind()) == (1, "", [])
    found = json.loads(run_cli(*words).stdout)
    assert found["mask_database"] == str(databases.database_folder("rflow-ct"))
    assert len(questions) == 2
    shown = run_cli("bundles", "pull", "rflow-ct", "--with-mask-database")
    assert f"Use the label maps with: --mask-bank {found['mask_database']}\n" in shown.stdout
    assert len(questions) == 2


@pytest.mark.parametrize(
    ("words", "keywords", "message"),
    [
        (["anna/kidney", "--with-masks"], {"with_masks": True}, "--with-masks can only be used with a bundle"),
        (
            ["anna/kidney", "--with-mask-database"],
            {"with_mask_database": True},
            "--with-mask-database can only be used with a bundle of NVIDIA's.",
        ),
        (["rflow-ct", "--revision", "v2"], {"revision": "v2"}, "--revision can only be used with a shared bundle"),
    ],
)
def test_options_of_another_kind_of_bundle_are_refused(
    run_cli: Callable[..., Any], words: list[str], keywords: dict[str, Any], message: str
) -> None:
    refused = run_cli("bundles", "pull", *words, "--accept-license")
    assert (refused.code, refused.stdout) == (2, "")
    assert message in refused.stderr
    with pytest.raises(RequestError, match=message):
        ma.pull_bundle(words[0], accept_license=True, **keywords)
