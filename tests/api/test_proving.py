"""Fewer steps are tried, compared, reported and stored; ``--steps auto`` draws what was proven."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import maisi_aug as ma
from maisi_aug.api.proving import MapRequest, choose_arms, to_proof
from maisi_aug.bundle_spec.bundle import Bundle, load_bundle
from maisi_aug.bundle_spec.proven_steps import store_proof
from maisi_aug.bundle_spec.solvers import MIN_PROOF_MAPS, Sampling
from maisi_aug.cohort.manifest import load_manifest
from maisi_aug.errors import CohortError, MaisiAugWarning, RecipeError, RequestError
from maisi_aug.evaluation.cohort.step_proof import StepsReport, compare_arm
from tests.builders.made_proofs import make_proof
from tests.builders.random_bundle import write_random_bundle
from tests.builders.resolver import GATES_OFF
from tests.builders.tiny_bundle import build_ddpm_header, build_header
from tests.evaluation.cohort.test_step_proof import HEADER, draw, slightly

Run = Callable[..., Any]
NUM_STEPS, NUM_MAPS = 6, 2


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of six steps, eight of whose grids are as many voxels as one of the default."""
    header = {**build_header(), "num_inference_steps": NUM_STEPS}
    header["grid"] = {"shape": [32, 24, 24], "spacing_mm": [12.8, 12.8, 12.8]}
    return write_random_bundle(tmp_path_factory.mktemp("six"), header, seed=0)


@pytest.fixture(scope="module")
def proof(six: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a proof of too few maps."""
    out = tmp_path_factory.mktemp("proof") / "out"
    ma.prove_steps(six.path, "liver", out=out, steps=[2, 3], num_maps=NUM_MAPS, device="cpu", progress=False)
    return out


def test_arms_hold_the_same_maps_drawn_with_other_steps(proof: Path) -> None:
    full, fewer = (load_manifest(proof / name).records for name in ("euler_006", "multistep_003"))
    assert [record.seed for record in full] == [record.seed for record in fewer]
    assert [record.mask_origin for record in full] == [record.mask_origin for record in fewer]
    assert [record.attempt for record in full] == [0] * NUM_MAPS
    assert [one.settings["num_inference_steps"] for one in (full[0], fewer[0])] == [NUM_STEPS, 3]
    assert fewer[0].settings["solver"] == "multistep"
    assert "solver" not in full[0].settings
    assert full[0].verdicts != fewer[0].verdicts, "another image"


def test_report_says_what_is_missing_and_nothing_is_stored(proof: Path, six: Bundle) -> None:
    document = json.loads((proof / "prove_steps.json").read_text())
    assert document["proven"] is None
    assert [arm["num_inference_steps"] for arm in document["arms"]] == [3], "the first arm is not proven, so no second"
    assert (document["full_steps"], document["command"], document["bundle"]) == (NUM_STEPS, "synthesize", "tiny")
    assert f"{NUM_MAPS} maps have an image, and 40 are needed" in (proof / "prove_steps.md").read_text()
    assert load_bundle(six.path).spec.proven_steps == ()


def test_same_command_draws_nothing_again(run_cli: Run, proof: Path, six: Bundle) -> None:
    files = sorted(path for path in proof.rglob("*") if path.name.startswith("manifest"))
    before = [path.read_bytes() for path in files if path.is_file()]
    words = ["--labels", "liver", "--steps", "2,3", "--num-maps", NUM_MAPS, "--device", "cpu", "--quiet", "--json"]
    outcome = run_cli("bundles", "prove-steps", six.path, *words, "--out", proof)
    assert outcome.code == 0, outcome.stderr
    assert json.loads(outcome.stdout) == json.loads((proof / "prove_steps.json").read_text())
    assert [path.read_bytes() for path in files if path.is_file()] == before


def test_proven_arm_becomes_the_proof(six: Bundle, tmp_path: Path) -> None:
    arm = compare_arm(draw(), draw(change=slightly), Sampling(3, "multistep"))
    found = to_proof(StepsReport(HEADER, (arm,)))
    assert (found.num_inference_steps, found.solver, found.full_steps, found.num_maps) == (3, "multistep", 30, 44)
    assert found.equivalences == arm.equivalences
    assert set(found.versions) == {"maisi-aug", "torch"}


def test_numbers_to_try_are_shares_of_all_most_first(six: Bundle, tmp_path: Path) -> None:
    assert choose_arms(six, "synthesize", None, None, full=6) == [Sampling(steps, "multistep") for steps in (4, 3, 2)]
    assert choose_arms(six, "insert", [2, 5, 2], "euler", full=6) == [Sampling(5), Sampling(2)]
    for steps in ([6], [0, 3]):
        with pytest.raises(RequestError, match=f"numbers below the full 6, found {steps[0]}"):
            choose_arms(six, "synthesize", steps, None, full=6)
    assert choose_arms(six, "synthesize", None, None, full=30)[0] == Sampling(20, "multistep")
    with pytest.raises(RequestError, match="no number to try below the full 1"):
        choose_arms(six, "synthesize", None, None, full=1)
    ddpm = write_random_bundle(tmp_path / "ddpm", build_ddpm_header(), seed=0)
    assert choose_arms(ddpm, "synthesize", None, None, full=20)[0] == Sampling(13)
    with pytest.raises(RecipeError, match="'multistep' can only be used with a rectified flow"):
        choose_arms(ddpm, "synthesize", None, "multistep", full=20)


def test_recipe_says_what_is_drawn(six: Bundle, tmp_path: Path) -> None:
    recipe = tmp_path / "nodules.yaml"
    recipe.write_text("kind: insertion\ninto: cts\nlabels: ['lung nodule']\n")
    assert MapRequest(six, (), None, str(recipe), 44, 0).command == "insert"
    assert MapRequest(six, ("liver",), None, None, 44, 0).command == "synthesize"
    assert MapRequest(six, ("liver",), tmp_path, None, 44, 7).drawn == "44 maps, seed 7, liver"
    guided = tmp_path / "guided.yaml"
    guided.write_text("labels: [liver]\nguidance_scale: 2.0\n")
    with pytest.raises(RequestError, match="proven without guidance, found guidance_scale 2"):
        ma.prove_steps(six.path, recipe=guided, out=tmp_path / "out", device="cpu", progress=False)


def test_folder_with_other_results_is_refused(six: Bundle, tmp_path: Path) -> None:
    (tmp_path / "prove_steps.json").write_text("[]")
    with pytest.raises(CohortError, match="not an earlier result of this measurement"):
        ma.prove_steps(six.path, "liver", out=tmp_path, device="cpu", progress=False)


@pytest.fixture(scope="module")
def proven(six: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same weights with a proof of three steps."""
    header = yaml.safe_load((six.path / "bundle.yaml").read_text())
    bundle = write_random_bundle(tmp_path_factory.mktemp("proven"), header | {"name": "proven"}, seed=0)
    return store_proof(bundle, make_proof(bundle, num_inference_steps=3))


def synthesize(bundle: Bundle, out: Path, **fields: Any) -> ma.Cohort:
    return ma.synthesize(
        "liver", bundle=bundle.path, num_cases=1, gates=GATES_OFF, device="cpu", out=out, progress=False, **fields
    )


def test_auto_draws_what_was_proven_and_says_so(proven: Bundle, tmp_path: Path) -> None:
    auto = synthesize(proven, tmp_path / "auto", num_inference_steps="auto")
    settings = auto.cases[0].record.settings
    assert (settings["num_inference_steps"], settings["solver"], settings["steps"]) == (3, "multistep", "auto")
    configuration = yaml.safe_load((tmp_path / "auto" / "cohort.yaml").read_text())["configuration"]
    assert (configuration["num_inference_steps"], configuration["solver"]) == (3, "multistep")
    again = ma.synthesize(
        recipe=tmp_path / "auto" / "cohort.yaml", out=tmp_path / "again", device="cpu", progress=False
    )
    assert (again.cases[0].image == auto.cases[0].image).all(), "cohort.yaml is a recipe for the same images"
    assert "steps" not in again.cases[0].record.settings
    full = synthesize(proven, tmp_path / "full")
    assert full.cases[0].record.settings["num_inference_steps"] == NUM_STEPS
    assert "solver" not in yaml.safe_load((tmp_path / "full" / "cohort.yaml").read_text())["configuration"]
    assert (full.cases[0].image != auto.cases[0].image).any()


def test_auto_without_a_proof_takes_all_steps_and_warns_once(run_cli: Run, six: Bundle, tmp_path: Path) -> None:
    with pytest.warns(MaisiAugWarning, match="takes its full 6 steps: no fewer are proven") as warned:
        synthesize(six, tmp_path / "cohort", num_inference_steps="auto")
    assert len([one for one in warned if "full 6 steps" in str(one.message)]) == 1
    words = ["--labels", "liver", "--bundle", six.path, "--steps", "auto", "--dry-run"]
    outcome = run_cli("synthesize", *words)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stderr.count("takes its full 6 steps") == 1


def test_pipeline_takes_auto(proven: Bundle, tmp_path: Path) -> None:
    pipe = ma.Pipeline.from_bundle(proven.path, device="cpu")
    case = pipe(plant="hepatic tumor:60mm", seed=3, num_inference_steps="auto", gates=GATES_OFF, progress=False)
    assert case.save(tmp_path).record.settings["solver"] == "multistep"


def test_proof_is_shown(run_cli: Run, proven: Bundle) -> None:
    assert "fewer steps: 3 (multistep) for synthesize, in 40 maps" in run_cli("bundles", "show", proven.path).stdout
    (shown,) = ma.show_bundle(proven.path)["proven_steps"]
    assert shown["is_valid"]
    assert shown["num_maps"] == MIN_PROOF_MAPS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "four"], "--steps: expected numbers such as 4,6,8, found 'four'"),
        (["--steps", "6"], "numbers below the full 6"),
        (["--solver", "heun"], "'heun' is not one of 'euler', 'multistep'"),
    ],
)
def test_bad_input_is_one_sentence(run_cli: Run, six: Bundle, tmp_path: Path, words: list[str], message: str) -> None:
    outcome = run_cli("bundles", "prove-steps", six.path, "--labels", "liver", "--out", tmp_path / "out", *words)
    assert outcome.code == 2
    assert message in outcome.stderr
    assert not (tmp_path / "out").exists()
