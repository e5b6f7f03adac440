from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.api.displays import TrainingDisplay
from maisi_aug.api.finetuning import open_data
from maisi_aug.bundle_spec.bundle import Bundle, load_bundle
from maisi_aug.errors import PreparationError
from maisi_aug.preparation.writing import STATE_FOLDER
from maisi_aug.training.cases.prepared import PreparedStore
from maisi_aug.training.finetune.settings import FinetuneRequest
from tests.builders.random_bundle import write_random_bundle
from tests.builders.tiny_bundle import build_ddpm_header
from tests.builders.tiny_lab import write_lab
from tests.builders.tiny_prepared import write_prepared, write_tiny_base
from tests.builders.tiny_training import SHAPE, SPACING_MM

COMMAND = ("finetune-controlnet", "--label", "gland")


def open_of(
    data: str,
    base: Bundle,
    out: Path,
    *,
    labels: tuple[str, ...],
    rules: tuple[str, ...],
    organs: tuple[str, ...],
    is_main: bool = True,
) -> PreparedStore:
    request = FinetuneRequest(data=data, base=base.name, labels=labels, map=rules, organs=organs)
    return open_data(request, base, out, is_main=is_main, display=TrainingDisplay())


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("finetune")
    return write_prepared(folder / "data", num_cases=3), write_tiny_base(folder / "base").path


def call(run_cli: Callable[..., Any], places: tuple[Path, Path], out: Path, *options: str) -> Any:
    data, base = places
    return run_cli(*COMMAND, "--data", data, "--base", base, "--out", out, *options)


def test_bundle_is_made_and_told_of(run_cli: Callable[..., Any], places: tuple[Path, Path], tmp_path: Path) -> None:
    options = ("--slot", "dummy3", "--kind", "gland=organ", "--host", "gland=body,liver", "--json")
    fast = ("--steps", "1", "--pictures", "0", "--crop", "16x16x16", "--tune", "low-rank", "--rank", "2")
    done = call(run_cli, places, tmp_path / "my run", *options, *fast)
    assert done.code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["labels"][0] | {"why": ""} == {
        "name": "gland",
        "source_id": 133,
        "id": 18,
        "hosts": [200, 1],
        "kind": "organ",
        "why": "",
    }
    assert told["is_complete"] is True
    assert "gland: organ in slot 18, lies in body, liver (as given; hosts as given)" in done.stderr
    assert run_cli("bundles", "verify", told["bundle"]).code == 0
    again = call(run_cli, places, tmp_path / "my run", *options[:-1], *fast, "--pictures", "1")
    assert again.code == 0, again.stderr
    (line,) = (line for line in again.stdout.splitlines() if line.startswith("Try: "))
    bundle = ["--bundle", told["bundle"], "--labels", "gland:0.5"]
    assert shlex.split(line)[1:7] == ["maisi-aug", "synthesize", *bundle]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--slot", "dummy3", "--label", "bright nodule"), "with several labels, use 'NAME=dummy3', found 'dummy3'"),
        (("--slot", "glands=dummy3"), "--slot: unknown label 'glands'; expected one of gland"),
        (("--host", "body"), "--host: expected NAME=VALUE such as 'left parotid=body', found 'body'"),
        (("--host", "glnd=body"), "--host: unknown label 'glnd'; expected one of gland. Did you mean 'gland'?"),
        (("--kind", "Gland=organ"), "--kind: unknown label 'Gland'; expected one of gland. Did you mean 'gland'?"),
        (("--rank", "8"), "--rank can only be used with tune low-rank, found full."),
        (("--kind", "gland=thing"), "--kind.gland: expected 'lesion' or 'organ', found 'thing'"),
        (("--crop", "10x16x16"), "Crop for bundle 'tiny'"),
        (("--slot", "gland=liver"), "Slot of 'gland': expected 'auto', a placeholder"),
        (("--map", "1=gland"), "--map cannot be used with"),
        (("--learning-rate", "0"), "--learning-rate: expected greater than 0, found 0.0."),
    ],
)
def test_bad_words_are_told_of(
    run_cli: Callable[..., Any], places: tuple[Path, Path], tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    done = call(run_cli, places, tmp_path / "run", *options)
    assert done.code != 0
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()


def test_warnings_are_shown(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    limits = {"sides": [[32], [24], [24, 32]], "spacing_mm": [[12, 12], [13, 13], [20, 30]]}
    base = write_tiny_base(tmp_path / "base", grid_limits=limits)
    data = write_prepared(tmp_path / "data", num_cases=3)
    lines = (data / "cases.jsonl").read_text().splitlines()
    empty = json.loads(lines[0])
    empty["voxels"].pop("133")
    (data / "cases.jsonl").write_text("\n".join([json.dumps(empty), *lines[1:]]) + "\n")
    fast = ("--steps", "1", "--pictures", "0", "--crop", "16x16x16", "--tune", "low-rank")
    done = call(run_cli, (data, base.path), tmp_path / "run", *fast)
    assert done.code == 0, done.stderr
    assert "Label 'gland': does not occur in a held-out case, so that validation says" in done.stderr
    assert "The networks were not trained on such grids, and images may be poor: try" in done.stderr


def test_grid_that_the_named_bundle_refuses_is_refused_before_any_case(
    run_cli: Callable[..., Any], tmp_path: Path
) -> None:
    spans = {"sides": [[32], [24], [24]], "spacing_mm": [[12, 12], [13, 13], [14, 14]]}
    base = write_tiny_base(tmp_path / "base", grid_limits={**spans, "refuses_other_spacing": True})
    lab = write_lab(tmp_path / "lab", 2)
    sources = ("--images", lab, "--labels", lab, "--map", "1=gland@liver", "--map", "2=liver", "--folds", "2")
    refused = run_cli("prepare", *sources, "--out", tmp_path / "a", "--bundle", base.path, "--spacing", "9")
    assert refused.code == 2
    assert "Use --shape 32x24x24 --spacing 12x13x14" in refused.stderr
    assert "or leave --bundle out if it will not be trained on these data" in refused.stderr
    assert not (tmp_path / "a").exists()
    done = run_cli("prepare", *sources, "--out", tmp_path / "a", "--bundle", base.path, "--workers", "1")
    assert done.code == 0, done.stderr
    assert run_cli("prepare", *sources, "--out", tmp_path / "b", "--workers", "1").code == 0
    fast = ("--steps", "1", "--pictures", "0", "--crop", "16x16x16", "--tune", "low-rank")
    assert call(run_cli, (tmp_path / "a", base.path), tmp_path / "run", *fast).code == 0
    other = call(run_cli, (tmp_path / "b", base.path), tmp_path / "other", *fast)
    assert "Prepare the data again with this base as --bundle." in other.stderr
    assert "allow-unseen-grid" not in other.stderr


def test_data_are_prepared_for_the_base_in_the_readme(repository: Path) -> None:
    lines = (repository / "README.md").read_text(encoding="utf-8").splitlines()
    prepare, finetune = (
        next(line.split() for line in lines if line.startswith(f"maisi-aug {verb} "))
        for verb in ("prepare", "finetune-controlnet")
    )
    assert prepare[prepare.index("--bundle") + 1] == finetune[finetune.index("--base") + 1]


def test_nothing_is_prepared_into_a_folder_of_something_else(
    run_cli: Callable[..., Any], places: tuple[Path, Path], tmp_path: Path
) -> None:
    lab = write_lab(tmp_path / "lab", 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    done = run_cli(*COMMAND, "--data", lab, "--base", places[1], "--out", tmp_path / "out", "--map", "1=gland@liver")
    assert "must be new, empty or the folder of an earlier run, found" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_two_patients_are_enough_and_one_process_prepares(
    places: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab, base = write_lab(tmp_path / "lab", 2), load_bundle(places[1])
    rules = ("1=gland@liver", "2=liver")
    with pytest.raises(PreparationError, match="not a prepared folder, because dataset.yaml"):
        open_of(str(lab), base, tmp_path / "out", labels=("gland",), rules=rules, organs=(), is_main=False)
    store = open_of(str(lab), base, tmp_path / "out", labels=("gland",), rules=rules, organs=())
    assert sorted(case.fold for case in store.cases) == [0, 1]
    assert "every case counts as a patient of its own" in capsys.readouterr().err
    written = (tmp_path / "out" / "prepared" / "dataset.yaml").stat().st_mtime_ns
    other = open_of(str(lab), base, tmp_path / "out", labels=("gland",), rules=rules, organs=(), is_main=False)
    assert other.cases == store.cases
    assert (tmp_path / "out" / "prepared" / "dataset.yaml").stat().st_mtime_ns == written


def test_stopped_preparation_is_not_taken_for_a_labs_folder(places: tuple[Path, Path], tmp_path: Path) -> None:
    for name in (STATE_FOLDER, "images", "labels"):
        (tmp_path / "data" / name).mkdir(parents=True)
    with pytest.raises(PreparationError, match="not a prepared folder, because"):
        open_of(
            str(tmp_path / "data"), load_bundle(places[1]), tmp_path / "out", labels=("gland",), rules=(), organs=()
        )


def test_faults_of_unprepared_data_name_this_commands_options(places: tuple[Path, Path], tmp_path: Path) -> None:
    base = load_bundle(places[1])
    with pytest.raises(PreparationError, match="--data nowhere: no raw dataset with dataset.json at this path"):
        open_of("nowhere", base, tmp_path / "out", labels=("gland",), rules=(), organs=())
    (tmp_path / "lab").mkdir()
    with pytest.raises(PreparationError, match=r"--image-pattern .* It is an option of 'maisi-aug prepare'"):
        open_of(str(tmp_path / "lab"), base, tmp_path / "out", labels=("gland",), rules=(), organs=())


def test_label_named_in_the_data_needs_no_rule(places: tuple[Path, Path], tmp_path: Path) -> None:
    lab, base = write_lab(tmp_path / "lab", 2), load_bundle(places[1])
    (lab / "labels.json").write_text(json.dumps({"1": "node", "2": "liver"}))
    with pytest.raises(PreparationError, match=r"missing for seg/1 \(node\)"):
        open_of(str(lab), base, tmp_path / "out", labels=("liver",), rules=(), organs=())
    store = open_of(str(lab), base, tmp_path / "out", labels=("node",), rules=(), organs=())
    assert set(store.dataset.spec.new_labels) == {"node"}
    others = open_of(str(lab), base, tmp_path / "others", labels=("node",), rules=("*=-",), organs=())
    assert set(others.dataset.spec.labels) == {"node", "body"}
    again: dict[str, Any] = {
        "labels": ("gland",),
        "rules": ("1=gland@liver",),
        "organs": (),
    }  # the user's rule goes first
    assert "gland" in open_of(str(lab), base, tmp_path / "out", **again).dataset.spec.labels  # nothing depends on it
    (tmp_path / "out" / "finetune.yaml").touch()
    with pytest.raises(PreparationError, match="was prepared with other options"):
        open_of(str(lab), base, tmp_path / "out", labels=("node",), rules=(), organs=())


def test_label_that_the_data_will_not_hold_is_told_before_any_case_is_prepared(
    places: tuple[Path, Path], tmp_path: Path
) -> None:
    lab, base = write_lab(tmp_path / "lab", 2), load_bundle(places[1])
    words: dict[str, Any] = {"rules": ("1=gland@liver", "2=liver"), "organs": ()}
    with pytest.raises(
        PreparationError, match="--label 'galnd': the data have no label of that name.* Did you mean 'gland'"
    ):
        open_of(str(lab), base, tmp_path / "out", labels=("liver", "galnd"), **words)
    with pytest.raises(PreparationError, match="--label 'spleen': .* They contain liver, gland"):
        open_of(str(lab), base, tmp_path / "out", labels=("spleen",), **words)
    assert not (tmp_path / "out").exists()


def test_one_case_is_refused_without_advice_that_leads_nowhere(places: tuple[Path, Path], tmp_path: Path) -> None:
    lab, base = write_lab(tmp_path / "lab", 1), load_bundle(places[1])
    with pytest.raises(
        PreparationError, match="--data: needs at least two cases, one of them to validate on, found only p1_a\\."
    ):
        open_of(str(lab), base, tmp_path / "out", labels=("liver",), rules=("1=-", "2=liver"), organs=())


def test_contrastive_loss_is_for_rectified_flow_alone(
    run_cli: Callable[..., Any], places: tuple[Path, Path], tmp_path: Path
) -> None:
    base = write_random_bundle(
        tmp_path / "base", {**build_ddpm_header(), "grid": {"shape": SHAPE, "spacing_mm": SPACING_MM}}, seed=3
    )
    fast = ("--steps", "1", "--pictures", "0", "--crop", "16x16x16")
    command = (*COMMAND, "--data", places[0], "--base", base.path, "--out", tmp_path / "run", *fast)
    refused = run_cli(*command, "--contrastive-weight", "0.1")
    assert "--contrastive-weight 0.1: must be 0 for base '" in " ".join(refused.stderr.split())
    assert not (tmp_path / "run").exists()
    done = run_cli(*command)
    assert done.code == 0, done.stderr
    assert "contrastive_weight: 0.0" in (tmp_path / "run" / "finetune.yaml").read_text()
