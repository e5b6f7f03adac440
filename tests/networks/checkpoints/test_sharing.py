from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import maisi_aug as ma
from maisi_aug.bundle_spec.bundle import (
    BUNDLE_FILE,
    Bundle,
    list_bundles,
    load_bundle,
    pulled_bundles_folder,
    reference_of,
)
from maisi_aug.errors import BundleError
from maisi_aug.networks.checkpoints import sharing
from maisi_aug.networks.checkpoints.hub import Hub
from maisi_aug.networks.checkpoints.sharing import is_repository, pull_shared, push_bundle
from maisi_aug.networks.pipeline import Pipeline
from maisi_aug.networks.weights import load_weight_file, write_bundle
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_label_map, save_label_map
from tests.builders.hub_server import COMMIT, HubServer, serve
from tests.builders.tiny_bundle import build_header, write_tiny_bundle

# huggingface_hub 2.4 hands files to httpx in the way that httpx deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPOSITORY = "anna/kidney-ct"
SMALL = ("*.yaml", "*.json", "*.md", "*.txt")
NOTICE = "Licensed by NVIDIA Corporation under the NVIDIA Open Model License\nhttps://example.org/licence\n"


@pytest.fixture
def base(tmp_path: Path) -> Bundle:
    """A bundle as it is pulled: found by its name, with the notice of its licence."""
    bundle = write_tiny_bundle(pulled_bundles_folder() / "tiny")
    (bundle.path / "LICENCE.txt").write_text(f"{NOTICE}Accepted 2026-01-01 for 'maisi-aug --to /home/anna/x'.\n")
    return bundle


@pytest.fixture
def finetuned(base: Bundle, tmp_path: Path) -> Bundle:
    """A bundle that shares its base's networks but the ControlNet, and draws from two patients' label maps."""
    folder, patients = tmp_path / "runs" / "kidney", tmp_path / "patients"
    grid = Grid.from_spacing((64, 48, 48), (6.4, 6.4, 6.4))
    rows = []
    for number in range(2):
        label_map = np.full(grid.shape, 200, dtype=np.uint8)
        label_map[10:30, 10:30, 10 + number : 30] = 5
        save_label_map(patients / f"Mrs Smith {number}.nii.gz", label_map, grid)
        rows.append({"label": f"../../patients/Mrs Smith {number}.nii.gz", "label_list": [5, 200]})
    header = {
        **build_header(),
        "name": "kidney",
        "description": "tiny fine-tuned on kidney tumor.",
        "base": {"name": "tiny", "fingerprint": base.fingerprint, "paths": ["../../home/anna", "/home/anna/tiny"]},
        "mask_bank": {"list": "label_maps.json", "labels": "maisi", "source": "2 training cases of anna"},
        "provenance": {"data": "/home/anna/prepared", "steps": 3},
    }
    folder.mkdir(parents=True)
    (folder / "label_maps.json").write_text(json.dumps({"training": rows}))
    (folder / "README.md").write_text("# kidney\n\nWhat it was taught.\n")
    state = {name: value.float() + 0.01 for name, value in load_weight_file(base, "controlnet").items()}
    return write_bundle(folder, header, {"controlnet": state}, dtype=None)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub without the repository."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True, raising=False)
    with serve(REPOSITORY, {}) as running:
        running.small, running.is_there = SMALL, False
        yield running


@pytest.fixture
def hub(server: HubServer, tmp_path: Path) -> Hub:
    return Hub(server.endpoint, tmp_path / "cache")


def pull(hub: Hub, **arguments: Any) -> Bundle:
    return pull_shared(REPOSITORY, **{"accept_licence": lambda _: True, "hub": hub, **arguments})


def draw(bundle: Bundle) -> bytes:
    grid = Grid.from_spacing((32, 24, 16), (6.4, 6.4, 6.4))
    label_map = np.full(grid.shape, 200, dtype=np.uint8)
    return Pipeline.load(bundle, "cpu").synthesize_image(label_map, grid, seed=1).tobytes()


def test_pushed_and_pulled_bundle_draws_the_same_bytes(finetuned: Bundle, server: HubServer, hub: Hub) -> None:
    said: list[str] = []
    files, address = push_bundle(finetuned.path, REPOSITORY, is_private=True, hub=hub, report=said.append)
    assert address == f"{server.endpoint}/{REPOSITORY}"
    assert server.is_private
    assert server.commits == ["kidney, written by maisi-aug"]
    assert {file.name for file in files} == set(server.files)
    assert set(server.files) == {"bundle.yaml", "controlnet.safetensors", "README.md", "LICENCE.txt"}
    bundle = pull(hub)
    assert bundle.path == pulled_bundles_folder() / "anna" / "kidney-ct"
    assert load_bundle(REPOSITORY) == bundle
    assert reference_of(bundle) == REPOSITORY
    assert REPOSITORY in [reference_of(listed) for listed in list_bundles()]
    assert bundle.base is not None
    assert bundle.base.name == "tiny"
    assert draw(bundle) == draw(finetuned)


def test_nothing_of_the_machine_or_the_patients_is_shared(finetuned: Bundle, tmp_path: Path) -> None:
    said: list[str] = []
    _, address = push_bundle(finetuned.path, REPOSITORY, folder=tmp_path / "shared", uploads=False, report=said.append)
    assert address is None
    assert said == ["The label maps are left out (2 training cases of anna); --with-label-maps includes them."]
    texts = [path.read_text() for path in (tmp_path / "shared").iterdir() if path.suffix in (".yaml", ".md", ".txt")]
    assert len(texts) == 3
    assert not any("/home/anna" in text or "Smith" in text or "Accepted" in text for text in texts)
    content = yaml.safe_load((tmp_path / "shared" / BUNDLE_FILE).read_text())
    assert content["base"] == {"name": "tiny", "fingerprint": finetuned.spec.base.fingerprint}  # type: ignore[union-attr]
    assert content["provenance"] == {"data": "prepared", "steps": 3}
    assert "mask_bank" not in content
    assert (tmp_path / "shared" / "LICENCE.txt").read_text() == NOTICE


def test_label_maps_are_shared_on_request_without_names_and_headers(
    finetuned: Bundle, server: HubServer, hub: Hub, tmp_path: Path
) -> None:
    push_bundle(finetuned.path, REPOSITORY, with_label_maps=True, hub=hub)
    assert {name for name in server.files if name.startswith("label_maps/")} == {
        "label_maps/0001.nii.gz",
        "label_maps/0002.nii.gz",
    }
    bundle = pull(hub)
    place, _ = bundle.find_mask_bank() or ("", "")
    rows = json.loads(Path(place).read_text())["training"]
    pulled = [load_label_map(bundle.path / row["label"]).array for row in rows]
    own = [load_label_map(tmp_path / "patients" / f"Mrs Smith {number}.nii.gz").array for number in range(2)]
    assert all(np.array_equal(a, b) for a, b in zip(pulled, own, strict=True))
    push_bundle(finetuned.path, REPOSITORY, hub=hub)
    assert not any("label_maps" in name for name in server.files), "an earlier upload's do not stay"


def test_bundle_that_says_nothing_private_keeps_its_fingerprint(base: Bundle, server: HubServer, hub: Hub) -> None:
    push_bundle("tiny", REPOSITORY, hub=hub)
    assert pull(hub).fingerprint == base.fingerprint


def test_self_contained_bundle_needs_no_base(finetuned: Bundle, base: Bundle, server: HubServer, hub: Hub) -> None:
    drawn = draw(finetuned)
    push_bundle(finetuned.path, REPOSITORY, self_contained=True, hub=hub)
    shutil.rmtree(base.path)
    bundle = pull(hub)
    assert bundle.spec.base is None
    assert set(bundle.spec.weights) == {"autoencoder", "diffusion_unet", "controlnet"}
    assert draw(bundle) == drawn


def test_base_that_is_missing_or_another_is_said_with_what_to_do(
    finetuned: Bundle, base: Bundle, server: HubServer, hub: Hub
) -> None:
    push_bundle(finetuned.path, REPOSITORY, hub=hub)
    shutil.rmtree(base.path)
    said: list[str] = []
    pull(hub, report=said.append)
    assert "Fetch it: maisi-aug bundles pull tiny" in said[-1]
    write_tiny_bundle(base.path, seed=9)
    with pytest.raises(BundleError, match="its base 'tiny' has changed since this bundle was made"):
        draw(load_bundle(REPOSITORY))


def test_base_that_was_shared_itself_is_found_by_its_hash(base: Bundle, finetuned: Bundle, tmp_path: Path) -> None:
    base.path.rename(base.path.with_name("moved"))
    (pulled_bundles_folder() / "ben").mkdir()
    base.path.with_name("moved").rename(pulled_bundles_folder() / "ben" / "tiny")
    assert load_bundle(finetuned.path).base == load_bundle("ben/tiny")


def test_card_tells_the_hub_what_it_reads(finetuned: Bundle, tmp_path: Path) -> None:
    push_bundle(finetuned.path, REPOSITORY, folder=tmp_path / "shared", uploads=False)
    card = (tmp_path / "shared" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "maisi-aug"
    assert "kidney tumor" in front["tags"]
    for text in (
        "What it was taught.",
        f"maisi-aug bundles pull {REPOSITORY}",
        "It needs its base, tiny (fingerprint ",
    ):
        assert text in card


def test_licence_without_a_name_on_the_hub_is_named_in_full() -> None:
    known = load_bundle("phantom-ct")
    licence = {"name": "NVIDIA Open Model License", "url": "https://example.org/licence"}
    spec = known.spec.model_copy(
        update={
            "licence": "NVIDIA Open Model License",
            "provenance": {"licence": licence, "origin": "nvidia/NV-Generate-CT"},
        }
    )
    front = sharing._front_matter(Bundle(spec, known.path))
    assert front["license"] == "other"
    assert front["license_name"] == "nvidia-open-model-license"
    assert front["license_link"] == "https://example.org/licence"
    assert front["base_model"] == "nvidia/NV-Generate-CT"


def test_public_repository_does_not_take_a_private_bundle(finetuned: Bundle, server: HubServer, hub: Hub) -> None:
    server.is_there = True
    with pytest.raises(BundleError, match="anna/kidney-ct: is already public; nothing was uploaded"):
        push_bundle(finetuned.path, REPOSITORY, is_private=True, hub=hub)
    assert server.files == {}
    assert server.commits == []


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (HTTPStatus.FORBIDDEN, r"\(answer 403\). Set HF_TOKEN"),
        (HTTPStatus.TOO_MANY_REQUESTS, r"\(answer 429\). The hub limits requests"),
    ],
)
def test_refused_upload_is_one_sentence(
    status: HTTPStatus, advice: str, finetuned: Bundle, server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    server.status = status
    with pytest.raises(BundleError, match=f"anna/kidney-ct: the hub did not take the bundle {advice}"):
        push_bundle(finetuned.path, REPOSITORY, hub=hub)


def test_upload_without_a_token_is_refused(
    finetuned: Bundle, server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = "hf_secret"
    with pytest.raises(BundleError, match=r"\(answer 401\). Set HF_TOKEN to a token that may write"):
        push_bundle(finetuned.path, REPOSITORY, hub=hub)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    push_bundle(finetuned.path, REPOSITORY, hub=hub)
    assert "controlnet.safetensors" in server.files


def test_altered_bundle_is_not_uploaded(finetuned: Bundle, server: HubServer, hub: Hub) -> None:
    finetuned.weight_path("controlnet").write_bytes(b"altered")
    with pytest.raises(BundleError, match="controlnet.safetensors should have SHA-256"):
        push_bundle(finetuned.path, REPOSITORY, hub=hub)
    assert server.requests == []


def test_nothing_but_what_bundle_yaml_names_is_fetched(finetuned: Bundle, server: HubServer, hub: Hub) -> None:
    push_bundle(finetuned.path, REPOSITORY, hub=hub)
    server.files["modeling.py"] = b"import os"
    server.requests.clear()
    bundle = pull(hub)
    assert not (bundle.path / "modeling.py").exists()
    assert not any("modeling.py" in line for line, _ in server.requests)


def test_second_pull_fetches_nothing_unless_the_bundle_is_newer(finetuned: Bundle, server: HubServer, hub: Hub) -> None:
    push_bundle(finetuned.path, REPOSITORY, hub=hub)
    first = pull(hub)
    server.requests.clear()
    assert pull(hub, accept_licence=lambda _: pytest.fail("asked")) == first
    assert all("bundle.yaml" in line for line, _ in server.requests)
    server.status = HTTPStatus.SERVICE_UNAVAILABLE
    assert pull(hub, accept_licence=lambda _: pytest.fail("asked")) == first


def test_licence_is_asked_for_before_weights_are_fetched(finetuned: Bundle, server: HubServer, hub: Hub) -> None:
    push_bundle(finetuned.path, REPOSITORY, hub=hub)
    server.requests.clear()
    with pytest.raises(BundleError, match="its licence was not accepted, Apache-2.0.*--accept-license"):
        pull(hub, accept_licence=lambda _: False)
    assert not any("safetensors" in line for line, _ in server.requests)
    assert not (pulled_bundles_folder() / "anna").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content["weights"]["controlnet"].update(file="../evil.safetensors"),
            "is outside its folder",
        ),
        (lambda content: content["weights"]["controlnet"].update(file="controlnet.pt"), "weights are not safetensors"),
        (lambda content: content["weights"]["controlnet"].update(sha256="0" * 64), "should have SHA-256 000000000000"),
        (lambda content: content.pop("networks"), "networks"),
    ],
    ids=["path", "pickle", "hash", "schema"],
)
def test_strangers_bundle_is_judged_before_it_is_used(
    change: Callable[[dict[str, Any]], object], message: str, finetuned: Bundle, server: HubServer, hub: Hub
) -> None:
    push_bundle(finetuned.path, REPOSITORY, hub=hub)
    content = yaml.safe_load(server.files[BUNDLE_FILE])
    change(content)
    server.files[BUNDLE_FILE] = yaml.safe_dump(content).encode()
    with pytest.raises(BundleError, match=message):
        pull(hub)
    assert not (pulled_bundles_folder() / "anna" / "kidney-ct").exists()


def test_weights_of_another_network_are_refused(finetuned: Bundle, server: HubServer, hub: Hub, tmp_path: Path) -> None:
    state = {name: value for name, value in load_weight_file(finetuned, "controlnet").items() if "mid" not in name}
    header = finetuned.spec.model_dump(mode="json", exclude={"weights", "mask_bank"}, exclude_unset=True)
    odd = write_bundle(tmp_path / "odd", header, {"controlnet": {**state, "surplus": torch.ones(1)}}, dtype=None)
    server.is_there = True
    server.files |= {name: (odd.path / name).read_bytes() for name in (BUNDLE_FILE, "controlnet.safetensors")}
    with pytest.raises(BundleError, match=r"tensors differ from the definition: .* missing .*surplus"):
        pull(hub)


def test_folder_in_other_use_is_left_alone(finetuned: Bundle, server: HubServer, hub: Hub, tmp_path: Path) -> None:
    push_bundle(finetuned.path, REPOSITORY, hub=hub)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="contains something other than a bundle"):
        pull(hub, folder=tmp_path / "mine")
    with pytest.raises(BundleError, match="already exists and is not empty. Choose a new folder"):
        push_bundle(finetuned.path, REPOSITORY, folder=tmp_path / "mine", uploads=False)
    bundle = pull(hub, folder=tmp_path / "pulled")
    (bundle.path / "notes.txt").write_text("mine")
    bundle.weight_path("controlnet").unlink()
    with pytest.raises(BundleError, match="holds notes.txt as well"):
        pull(hub, folder=tmp_path / "pulled")


def test_bundle_of_ones_own_is_not_replaced(finetuned: Bundle, server: HubServer, hub: Hub, tmp_path: Path) -> None:
    push_bundle(finetuned.path, REPOSITORY, hub=hub)
    before = sorted(path.name for path in finetuned.path.iterdir())
    with pytest.raises(BundleError, match=f"holds a bundle of your own already, and {REPOSITORY} does not replace it"):
        pull(hub, folder=finetuned.path)
    assert sorted(path.name for path in finetuned.path.iterdir()) == before
    pulled = pull(hub, folder=tmp_path / "pulled")
    (pulled.path / "origin.json").write_text('{"repository": "bob/other", "revision": "main"}')
    with pytest.raises(BundleError, match="holds a bundle of bob/other already"):
        pull(hub, folder=tmp_path / "pulled")


def test_revision_is_fetched_and_recorded(finetuned: Bundle, server: HubServer, hub: Hub, tmp_path: Path) -> None:
    push_bundle(finetuned.path, REPOSITORY, hub=hub)
    server.requests.clear()
    bundle = pull(hub, revision=COMMIT)
    assert json.loads((bundle.path / "origin.json").read_text()) == {"repository": REPOSITORY, "revision": COMMIT}
    assert not any("/resolve/main/" in line for line, _ in server.requests)
    with pytest.raises(BundleError, match="bundle.yaml: the hub did not send the file: answer 404. Check its name"):
        pull(hub, revision="v2")


def test_repository_with_other_weights_is_left_alone(finetuned: Bundle, server: HubServer, hub: Hub) -> None:
    server.is_there = True
    server.files |= {"model.safetensors": b"theirs", "README.md": b"# theirs"}
    before = dict(server.files)
    with pytest.raises(BundleError, match=r"holds other files than a bundle's \(model.safetensors\), and nothing was"):
        push_bundle(finetuned.path, REPOSITORY, hub=hub)
    assert server.files == before


def test_python_has_the_commands(finetuned: Bundle, tmp_path: Path) -> None:
    files, address = ma.push_bundle(finetuned.path, REPOSITORY, to=tmp_path / "shared", dry_run=True)
    assert address is None
    assert {file.name for file in files} == {path.name for path in (tmp_path / "shared").iterdir()}


@pytest.mark.parametrize(
    ("text", "is_one"), [("a/b", True), ("rflow-ct", False), ("a/b/c", False), ("../b", False), ("a/", False)]
)
def test_repository_is_owner_and_name(text: str, is_one: bool) -> None:
    assert is_repository(text) == is_one


def test_commands_push_and_pull(
    run_cli: Callable[..., Any],
    finetuned: Bundle,
    server: HubServer,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sharing, "Hub", lambda: hub)
    monkeypatch.setattr("maisi_aug.networks.checkpoints.hub.Hub", lambda: hub)
    dry = run_cli("bundles", "push", finetuned.path, REPOSITORY, "--dry-run", "--to", tmp_path / "shared")
    assert dry.code == 0, dry.stderr
    assert dry.stdout.endswith(f"{REPOSITORY}: nothing uploaded.\n")
    assert (tmp_path / "shared" / BUNDLE_FILE).is_file()
    assert server.requests == []
    pushed = run_cli("bundles", "push", finetuned.path, REPOSITORY, "--private", "--json")
    assert json.loads(pushed.stdout)["address"] == f"{server.endpoint}/{REPOSITORY}"
    refused = run_cli("bundles", "pull", REPOSITORY)
    assert (refused.code, refused.stdout) == (1, "")
    pulled = run_cli("bundles", "pull", REPOSITORY, "--accept-license")
    assert pulled.code == 0, pulled.stderr
    assert pulled.stdout.endswith(f"Use it with: --bundle {REPOSITORY}\n")
    assert REPOSITORY in run_cli("bundles", "list").stdout
    wrong = run_cli("bundles", "push", finetuned.path, "kidney")
    assert (wrong.code, "kidney: not the name of a repository" in wrong.stderr) == (1, True)
