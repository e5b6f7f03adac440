"""What was proven of a bundle's weights, and who may rely on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from maisi_aug.bundle_spec.bundle import Bundle, load_bundle
from maisi_aug.bundle_spec.proven_steps import choose_sampling, find_proof, hash_weights, store_proof, warn_of_auto
from maisi_aug.bundle_spec.schema import StepProof
from maisi_aug.bundle_spec.solvers import Sampling
from maisi_aug.errors import BundleError, RecipeError
from tests.builders.made_proofs import make_proof
from tests.builders.random_bundle import write_random_bundle
from tests.builders.tiny_bundle import build_ddpm_header, build_header


@pytest.fixture
def thirty(tmp_path: Path) -> Bundle:
    """A bundle of thirty steps."""
    return write_random_bundle(tmp_path, {**build_header(), "num_inference_steps": 30}, seed=0)


def edit(bundle: Bundle, **changes: Any) -> Bundle:
    path = bundle.path / "bundle.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}, sort_keys=False))
    return load_bundle(bundle.path)


def test_storing_keeps_every_other_byte_and_the_fingerprint(thirty: Bundle) -> None:
    path = thirty.path / "bundle.yaml"
    before = path.read_bytes()
    proven = store_proof(thirty, make_proof(thirty))
    assert path.read_bytes().startswith(before + b"proven_steps:\n")
    assert proven.fingerprint == thirty.fingerprint
    assert proven.spec.proven_steps == (make_proof(thirty),)
    other = store_proof(proven, make_proof(thirty, command="insert", num_inference_steps=9))
    assert [proof.command for proof in other.spec.proven_steps] == ["synthesize", "insert"]
    again = store_proof(other, make_proof(thirty, num_inference_steps=6))
    assert sorted(proof.num_inference_steps for proof in again.spec.proven_steps) == [6, 9]
    assert again.fingerprint == thirty.fingerprint
    assert path.read_bytes().startswith(before)


def test_section_that_stands_in_the_middle_is_taken_out_alone(thirty: Bundle) -> None:
    path = thirty.path / "bundle.yaml"
    before = path.read_text()
    store_proof(thirty, make_proof(thirty))
    section = path.read_text().removeprefix(before)
    middle = before.index("networks:")
    path.write_text(before[:middle] + section + before[middle:])
    moved = load_bundle(thirty.path)
    assert moved.spec.proven_steps
    assert moved.fingerprint == thirty.fingerprint


def test_auto_takes_what_was_proven_for_the_command(thirty: Bundle) -> None:
    proven = store_proof(thirty, make_proof(thirty))
    chosen = choose_sampling(proven, "auto", None)
    assert chosen == Sampling(8, "multistep", is_auto=True)
    assert chosen.to_settings() == {"num_inference_steps": 8, "solver": "multistep", "steps": "auto"}
    assert warn_of_auto(proven, chosen) == ()
    for refused, reason in (
        ({"command": "insert"}, "no fewer are proven for 'insert'"),
        ({"is_guided": True}, "fewer are only proven without guidance"),
    ):
        full = choose_sampling(proven, "auto", None, **refused)
        assert full == Sampling(30, "euler", is_auto=True)
        assert reason in warn_of_auto(proven, full, **refused)[0]


def test_number_is_taken_as_it_is(thirty: Bundle) -> None:
    proven = store_proof(thirty, make_proof(thirty))
    assert choose_sampling(proven, None, None) == Sampling(30)
    assert choose_sampling(proven, 7, None).to_settings() == {"num_inference_steps": 7}
    assert choose_sampling(proven, 7, "multistep").to_settings() == {"num_inference_steps": 7, "solver": "multistep"}
    with pytest.raises(RecipeError, match="auto chooses the solver, too, found 'multistep'"):
        choose_sampling(proven, "auto", "multistep")


@pytest.mark.parametrize("change", [{"scale_factor": 2.0}, {"scheduler": {"class": "RFlowScheduler"}}])
def test_proof_of_other_weights_is_passed_over(thirty: Bundle, change: dict[str, Any]) -> None:
    altered = edit(store_proof(thirty, make_proof(thirty)), **change)
    assert altered.spec.proven_steps
    assert find_proof(altered, "synthesize") is None
    chosen = choose_sampling(altered, "auto", None)
    assert chosen == Sampling(30, "euler", is_auto=True)
    assert "fewer were proven with other weights" in warn_of_auto(altered, chosen)[0]


def test_hash_follows_the_weights_and_not_the_words(thirty: Bundle, tmp_path: Path) -> None:
    other = write_random_bundle(tmp_path / "other", {**build_header(), "num_inference_steps": 30}, seed=1)
    assert hash_weights(other) != hash_weights(thirty)
    assert hash_weights(edit(thirty, description="Renamed.")) == hash_weights(thirty)


def test_ddpm_has_solvers_of_its_own(tmp_path: Path) -> None:
    bundle = write_random_bundle(tmp_path, build_ddpm_header(), seed=0)
    with pytest.raises(RecipeError, match=r"'multistep' can only be used with a rectified flow.*'tiny-ddpm'"):
        choose_sampling(bundle, 5, "multistep")
    assert choose_sampling(bundle, 5, None) == Sampling(5)
    with pytest.raises(RecipeError, match="must be 20"):
        choose_sampling(bundle, 5, None, command="insert")


def test_proof_that_proves_nothing_is_not_read(thirty: Bundle) -> None:
    content = make_proof(thirty).model_dump(mode="json")
    content["equivalences"][0] |= {"high": 6.0, "margin": 5.0}
    with pytest.raises(ValidationError, match=r"found -1 to 6 HU as 'HU of liver' with a margin of 5"):
        StepProof.model_validate(content)
    with pytest.raises(ValidationError, match="greater than or equal to 40"):
        StepProof.model_validate({**make_proof(thirty).model_dump(mode="json"), "num_maps": 39})


def test_file_that_cannot_be_added_to_is_named(thirty: Bundle) -> None:
    path = thirty.path / "bundle.yaml"
    path.write_bytes(path.read_bytes().rstrip())
    with pytest.raises(BundleError, match="must end with a line break"):
        store_proof(load_bundle(thirty.path), make_proof(thirty))
