from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maisi_aug.api.balancing import BALANCE_NAME, PICTURE_NAME, parse_size_bins
from maisi_aug.cli.plan import RUN_FLAGS
from maisi_aug.cli.shared.balance import parse_lesion_map
from maisi_aug.cohort.balance import SizeBins, read_targets
from maisi_aug.errors import EarlierSpelling
from maisi_aug.vocabulary.labels import MAISI
from tests.builders.random_bundle import write_random_bundle
from tests.builders.tiny_bundle import build_header, write_tiny_bundle
from tests.cohort.test_census import write_dataset

Run = Callable[..., Any]
LABELS = {"liver": 1, "cancer": 2}
BALANCED = ("--size-bins", "5,10,20", "--labels", "liver tumor:5-20mm")


def test_plan_shows_what_a_dry_run_shows(run_cli: Run) -> None:
    words = ("--labels", "lung tumor:0.5", "-n", "3", "--json")
    assert run_cli("plan", *words).stdout == run_cli("synthesize", *words, "--dry-run").stdout != ""


def test_plan_takes_every_flag_but_those_of_a_run(run_cli: Run) -> None:
    ours, theirs = (run_cli(verb, "--help-all").stdout for verb in ("plan", "synthesize"))
    for flag in ("--labels", "--bundle", "--balance-against", "--decode-window"):
        assert flag in ours
        assert flag in theirs
    for name in RUN_FLAGS - {"compile_with"}:
        assert f"--{name.replace('_', '-')} " not in ours
    assert "Dataset003_Liver" in ours


def test_deficits_are_shown_drawn_and_planned(run_cli: Run, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "Dataset003_Liver", LABELS)
    picture = tmp_path / "balance.png"
    words = ("plan", "--balance-against", dataset, *BALANCED, "-n", "12", "--balance-picture", picture)
    outcome = run_cli(*words)
    assert outcome.code == 0
    for word in ("label 2 'cancer' next to its host organ", "3 cases, 3 lesions, 12 cases planned", "3 and more"):
        assert word in " ".join(outcome.stdout.split())
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"
    document = json.loads(run_cli(*words, "--json").stdout)
    (label,) = document["balance"]["labels"]
    assert (label["real_cases"], label["planned_cases"]) == ([2, 1, 0, 0], [0, 4, 4, 4])
    assert label["evenness_after"] > label["evenness_before"]
    assert len(document["plan"]["cases"]) == 12
    assert sum(len(case["lesions"]) for case in document["plan"]["cases"]) == 24


def test_cohort_is_balanced_and_made_again_without_the_dataset(run_cli: Run, tmp_path: Path) -> None:
    dataset, out, recipe = write_dataset(tmp_path / "real", LABELS), tmp_path / "cohort", tmp_path / "recipe.yaml"
    write_tiny_bundle(tmp_path / "bundle")
    gates = {"organ_hu": False, "visibility": False}
    recipe.write_text(json.dumps({"bundle": str(tmp_path / "bundle"), "gates": gates}))
    words = ("--balance-against", dataset, "--labels", "liver tumor:25-40mm", "--max-lesions", "1", "-n", "1")
    outcome = run_cli("synthesize", "--recipe", recipe, *words, "--out", out, "--device", "cpu", "--quiet")
    assert outcome.code == 0, outcome.stderr
    balance = json.loads((out / BALANCE_NAME).read_text())
    assert balance["labels"][0]["planned_cases"] == [0, 1]
    assert (out / PICTURE_NAME).is_file()
    again = run_cli("synthesize", "--recipe", out / "cohort.yaml", "--out", out, "--json", "--quiet")
    assert (again.code, json.loads(again.stdout)["num_new"]) == (0, 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--map", "2=hepatic tumor"], "--map: needs --balance-against, --size-reference or --mask-bank, the dataset"),
        (["--mask-bank", ".", "--map", "2"], "--map: expected LABEL=NAME such as '2=hepatic tumor', found '2'"),
        (
            ["--mask-bank", ".", "--map", "2=liver", "--map", "2=-"],
            "--map: each label can be given only once, found '2' twice",
        ),
        (
            ["--mask-bank", ".", "--map", "2=liver", "--mask-labels", "maisi"],
            "--map and --mask-labels cannot be used together",
        ),
        (["--size-reference", ".", "--map", "canser=liver tumor"], "--map 'canser=liver tumor': "),
        (["--size-bins", "5,10"], "--size-bins can only be used with --balance-against."),
        (["--balance-picture", "x.png"], "--balance-picture can only be used with --balance-against."),
        (["--balance-against", "nowhere"], "Mask bank nowhere: not found"),
        (
            ["--balance-against", "x", "--mask-source", "given", "--mask-bank", "."],
            "--balance-against cannot be used with mask source 'given'",
        ),
        (
            ["--balance-against", "x", "--size-reference", "y", "--size-label", "2"],
            "--balance-against cannot be used with --size-reference, because planned sizes",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_named(run_cli: Run, words: list[str], message: str) -> None:
    given = [] if "given" in words else ["--labels", "hepatic tumor"]
    outcome = run_cli("plan", *given, *words)
    assert outcome.code in (1, 2)
    assert message in outcome.stderr


def test_words_are_read() -> None:
    assert parse_size_bins("5,10.5,20mm") == (5.0, 10.5, 20.0)
    assert parse_size_bins("5mm, 1cm, 2 cm") == (5.0, 10.0, 20.0)
    assert parse_size_bins("1,2,3cm") == (10.0, 20.0, 30.0)
    targets = read_targets(["hepatic tumor", "lung tumor"], vocabulary=MAISI, bins=SizeBins())
    rules = ["2 = liver tumor", "cancer=lung tumor"]
    assert parse_lesion_map(rules, targets, MAISI) == {"liver tumor": "2", "lung tumor": "cancer"}
    with pytest.raises(Exception, match="expected diameters such as 5,10,20,30,50, found '5;10'"):
        parse_size_bins("5;10")
    with pytest.raises(ValueError, match="expected LABEL=NAME such as '2=hepatic tumor', found 'x'"):
        parse_lesion_map(["x"], targets, MAISI)
    with pytest.raises(Exception, match="--map: each lesion can be given only once, found 'a' twice"):
        parse_lesion_map(["1=a", "2=a"], targets, MAISI)


def test_earlier_direction_of_a_mapping_is_read_and_told() -> None:
    targets = read_targets(["hepatic tumor"], vocabulary=MAISI, bins=SizeBins())
    for old, new, source in (("liver tumor=2", "2=liver tumor", "2"), ("26=Herd", "Herd=26", "Herd")):
        with pytest.warns(EarlierSpelling, match=rf"--map '{old}' is an earlier .* Write --map '{new}'\."):
            assert list(parse_lesion_map([old], targets, MAISI).values()) == [source]
        assert list(parse_lesion_map([new], targets, MAISI).values()) == [source]  # a warning would be an error


def test_plan_needs_no_weights_and_says_how_to_fetch_them(run_cli: Run) -> None:
    words = ("--bundle", "rflow-ct", "--labels", "hepatic tumor:0.3", "-n", "2")
    planned = run_cli("plan", *words, "--json")
    assert planned.code == 0, planned.stderr
    assert len(json.loads(planned.stdout)["plan"]["cases"]) == 2
    assert "rflow-ct is not on this machine yet. Download it first: maisi-aug bundles pull rflow-ct" in (planned.stderr)
    assert (
        "its weights have not been downloaded to this machine yet" in run_cli("synthesize", *words, "--out", "x").stderr
    )


def test_plan_says_that_unlabelled_tissue_is_completed(run_cli: Run, tmp_path: Path) -> None:
    write_random_bundle(tmp_path / "completing", {**build_header(), "unlabelled": "complete"}, seed=0)
    words = ("plan", "--labels", "hepatic tumor:0.5", "-n", "1", "--bundle")
    sentence = "Unlabelled tissue is completed from procedural anatomy"
    assert sentence in run_cli(*words, tmp_path / "completing").stdout
    assert sentence not in run_cli(*words, write_tiny_bundle(tmp_path / "plain").path).stdout
