from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
import yaml

from maisi_aug.bundle_spec.bundle import NETWORK_ROLES, Bundle, load_bundle
from maisi_aug.errors import BundleError
from maisi_aug.networks.checkpoints.copies import convert_bundle, convert_checkpoint
from maisi_aug.networks.weights import verify_bundle, write_bundle, write_safetensors
from maisi_aug.system.whole_files import sha256_of
from tests.builders.tiny_bundle import build_header, write_tiny_bundle
from tests.builders.tiny_checkpoints import SCALE_FACTOR, draw_states, saved, wrap


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle in float32 with values that float16 cannot hold, a licence beside it and an origin."""
    tiny = write_tiny_bundle(tmp_path_factory.mktemp("tiny"))
    header = {**build_header(), "scale_factor": 1.25, "provenance": {"origin": "a hub", "steps": {"vae": 3}}}
    bundle = write_bundle(tmp_path_factory.mktemp("wide"), header, draw_states(tiny), dtype=None)
    (bundle.path / "LICENCE.txt").write_text("notice")
    return bundle


@pytest.mark.parametrize(("dtype", "ratio"), [("float16", 0.5), ("bfloat16", 0.5), ("float32", 1.0)])
def test_copy_differs_in_its_floating_type_alone(wide: Bundle, tmp_path: Path, dtype: str, ratio: float) -> None:
    done = convert_bundle(wide.path, tmp_path / "copy", dtype=dtype)
    copy = load_bundle(tmp_path / "copy")
    verify_bundle(copy)
    assert (copy.path / "LICENCE.txt").read_text() == "notice"
    assert copy.spec.provenance == {
        **wide.spec.provenance,
        "converted": [{"dtype": dtype, "from_fingerprint": wide.fingerprint}],
    }
    unlike = {"weights", "provenance"}
    assert copy.spec.model_dump(exclude=unlike) == wide.spec.model_dump(exclude=unlike)
    assert done.scale_factor == copy.spec.scale_factor == 1.25
    assert done.num_bytes == pytest.approx(ratio * done.num_bytes_before, rel=0.05)
    for role in NETWORK_ROLES:
        before, after = (safetensors.torch.load_file(one.weight_path(role)) for one in (wide, copy))
        assert {value.dtype for value in after.values()} == {getattr(torch, dtype)}
        assert all(torch.equal(value.to(getattr(torch, dtype)), after[key]) for key, value in before.items())


def test_copy_of_a_copy_tells_both_steps_and_leaves_the_first_alone(wide: Bundle, tmp_path: Path) -> None:
    convert_bundle(wide.path, tmp_path / "one", dtype="bfloat16")
    before = load_bundle(tmp_path / "one").fingerprint
    convert_bundle(tmp_path / "one", tmp_path / "two", dtype="float32")
    steps = load_bundle(tmp_path / "two").spec.provenance["converted"]
    assert [step["dtype"] for step in steps] == ["bfloat16", "float32"]
    assert steps[1]["from_fingerprint"] == before == load_bundle(tmp_path / "one").fingerprint


def test_networks_load_in_float32_from_either(wide: Bundle, tmp_path: Path) -> None:
    from maisi_aug.networks.weights import load_networks

    convert_bundle(wide.path, tmp_path / "half", dtype="float16")
    networks = load_networks(load_bundle(tmp_path / "half"))
    assert {parameter.dtype for parameter in networks.diffusion_unet.parameters()} == {torch.float32}


def test_weights_beyond_the_range_of_the_type_are_refused_and_nothing_is_left(wide: Bundle, tmp_path: Path) -> None:
    states = {role: safetensors.torch.load_file(wide.weight_path(role)) for role in NETWORK_ROLES}
    key = next(iter(states["controlnet"]))
    states["controlnet"][key][0] = 1e6
    large = write_bundle(tmp_path / "large", build_header(), states, dtype=None)
    with pytest.raises(BundleError, match=rf"controlnet.safetensors: {key} has 1e\+06, .* range of float16\."):
        convert_bundle(large.path, tmp_path / "copy", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["large"]
    convert_bundle(large.path, tmp_path / "copy", dtype="bfloat16")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_target_that_exists_is_refused(wide: Bundle, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "copy"
    if kind == "folder":
        target.mkdir()
        (target / "thesis.docx").write_text("years of work")
    else:
        target.write_text("years of work")
    with pytest.raises(BundleError, match="copy: already exists"):
        convert_bundle(wide.path, target, dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_altered_bundle_is_not_copied(wide: Bundle, tmp_path: Path) -> None:
    convert_bundle(wide.path, tmp_path / "one", dtype="float16")
    with (tmp_path / "one" / "controlnet.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=r"controlnet\.safetensors should have SHA-256"):
        convert_bundle(tmp_path / "one", tmp_path / "two", dtype="float16")
    assert not (tmp_path / "two").exists()


def write_checkpoint(path: Path, wide: Bundle, role: str = "diffusion_unet") -> dict[str, torch.Tensor]:
    states = draw_states(wide)
    path.write_bytes(saved(wrap(states)[role]))
    return states[role]


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_checkpoint_becomes_safetensors_with_its_scale_factor(wide: Bundle, tmp_path: Path, dtype: str | None) -> None:
    source = tmp_path / "unet.pt"
    state = write_checkpoint(source, wide)
    done = convert_checkpoint(source, tmp_path, dtype=dtype)
    assert done.path == tmp_path / "unet.safetensors"
    assert (done.scale_factor, done.dtype) == (SCALE_FACTOR, dtype)
    assert done.left_out == ("epoch", "loss", "num_train_timesteps", "optimizer_state_dict")
    found = safetensors.torch.load_file(done.path)
    wanted = torch.float32 if dtype is None else torch.float16
    assert all(torch.equal(value.to(wanted), found[key]) for key, value in state.items())
    with safetensors.safe_open(done.path, "pt") as file:
        metadata = file.metadata()
    assert metadata == {
        "format": "pt",
        "source": "unet.pt",
        "source_sha256": sha256_of(source),
        "key": "unet_state_dict",
        "scale_factor": repr(SCALE_FACTOR),
    }


def test_one_checkpoint_gives_the_same_bytes_each_time(wide: Bundle, tmp_path: Path) -> None:
    """The library puts metadata into a random order, a new one for every file."""
    source = tmp_path / "unet.pt"
    state = write_checkpoint(source, wide)
    paths = [convert_checkpoint(source, tmp_path / f"{number}.safetensors").path for number in range(8)]
    assert len({path.read_bytes() for path in paths}) == 1
    found = safetensors.torch.load_file(paths[0])
    assert found.keys() == state.keys()


def test_metadata_of_any_text_and_length_keeps_the_tensors_whole(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(7, dtype=torch.uint8), "b": torch.randn(3, 5)}
    path = tmp_path / "a.safetensors"
    for length in range(20):
        metadata = {"zweite": "ü" * length, "first": '"quoted" \\ {', "third": "\n"}
        written = set()
        for entries in (metadata, dict(reversed(metadata.items())), metadata):
            write_safetensors(path, safetensors.torch.save(tensors, metadata=entries))
            written.add(path.read_bytes())
        (content,) = written
        assert int.from_bytes(content[:8], "little") % 8 == 0
        found = safetensors.torch.load(content)
        assert all(torch.equal(found[name], value) for name, value in tensors.items())
        with safetensors.safe_open(path, "pt") as file:
            assert file.metadata() == metadata


@pytest.mark.parametrize(
    ("content", "scale_factor"),
    [
        ({"a.weight": torch.ones(3)}, None),
        ({"controlnet_state_dict": {"a.weight": torch.ones(3)}, "epoch": 1}, None),
        ({"state_dict": {"a.weight": torch.ones(3)}, "scale_factor": 1.5}, 1.5),
    ],
)
def test_state_dict_is_found_alone_or_under_its_key(content: Any, scale_factor: float | None, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved(content))
    done = convert_checkpoint(tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert done.scale_factor == scale_factor
    assert list(safetensors.torch.load_file(tmp_path / "b.safetensors")) == ["a.weight"]


class _Poison:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("poisoned"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "found 'state_dict'"),
        ({"epoch": 1, "loss": 0.5}, "found 'epoch', 'loss'"),
        ([1, 2], "expected a dictionary of tensors, found a list"),
        (
            {"state_dict": {"a": torch.ones(2)}, "scale_factor": -1.0},
            "scale_factor' must be a positive number, found -1.0",
        ),
        (
            {"a": torch.ones(2), "b": _Poison()},
            "must contain weights only, found a pickle that needs .*; it was neither run",
        ),
    ],
)
def test_what_is_no_checkpoint_is_refused_and_not_run(
    content: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt").write_bytes(saved(content))
    with pytest.raises(BundleError, match=message):
        convert_checkpoint(tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_target_of_a_checkpoint_must_be_new_safetensors(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved({"a": torch.ones(2)}))
    with pytest.raises(BundleError, match="b.pt: the name must end in .safetensors, or be a folder"):
        convert_checkpoint(tmp_path / "a.pt", tmp_path / "b.pt")
    convert_checkpoint(tmp_path / "a.pt", tmp_path)
    with pytest.raises(BundleError, match="a.safetensors: already exists"):
        convert_checkpoint(tmp_path / "a.pt", tmp_path)


def test_known_header_survives_the_way_through_a_copy(wide: Bundle, tmp_path: Path) -> None:
    convert_bundle(wide.path, tmp_path / "copy", dtype="float32")
    before, after = (yaml.safe_load((path / "bundle.yaml").read_text()) for path in (wide.path, tmp_path / "copy"))
    for content in (before, after):
        del content["weights"], content["provenance"]
    assert before == after
