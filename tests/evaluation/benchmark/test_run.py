from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from maisi_aug.errors import BenchmarkError
from maisi_aug.evaluation.benchmark.arm_job import make_case
from maisi_aug.evaluation.benchmark.config import MADE_KINDS, PLAN_NAME
from maisi_aug.evaluation.benchmark.data import TrainingPlan
from maisi_aug.evaluation.benchmark.plan import compose_arms, plan_benchmark
from maisi_aug.evaluation.benchmark.results import summarise_benchmark
from maisi_aug.evaluation.benchmark.run import (
    FAILURE_NAME,
    SCORES_NAME,
    Benchmark,
    load_benchmark,
    open_benchmark,
    run_arm,
)
from maisi_aug.evaluation.benchmark.text import summarise_verdicts, to_report_text
from maisi_aug.integrations.nnunet.folders import MAPPING_NAME
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_label_map, save_image, save_label_map
from tests.builders.tiny_benchmark import SHAPE, SPACING_MM, build_config, write_dataset
from tests.conftest import Outcome

MADE_ARMS = ("copy-paste:1", "warped:1")
ALL_ARMS = (
    *("real", "real+synthetic:0.5", "real+synthetic:2", "real-duplicated", "synthetic-only"),
    *MADE_ARMS,
)


@pytest.fixture
def benchmark_of(tmp_path: Path) -> Callable[..., Benchmark]:
    def call(**changes: Any) -> Benchmark:
        return open_benchmark(tmp_path / "bench", build_config(tmp_path, **changes))

    return call


def run_all(benchmark: Benchmark) -> None:
    for state in benchmark.states:
        run_arm(benchmark, state.arm, state.seed, device="cpu")


def test_arms_hold_what_their_names_say(tmp_path: Path) -> None:
    plan = plan_benchmark(build_config(tmp_path, arms=ALL_ARMS))
    kinds = {name: [source for source, _ in refs] for name, refs in plan.arms.items()}
    assert kinds["real"] == ["real"] * 2
    assert kinds["real+synthetic:0.5"] == ["real"] * 2 + ["synthetic"]
    assert kinds["real+synthetic:2"] == ["real"] * 2 + ["synthetic"] * 4
    assert kinds["real-duplicated"] == ["real"] * 6
    assert kinds["synthetic-only"] == ["synthetic"] * 4
    assert kinds["warped:1"] == ["real"] * 2 + ["warped"] * 2
    assert kinds["copy-paste:1"] == ["real"] * 2 + ["copy-paste"] * 2
    assert set(plan.arms["real+synthetic:0.5"]) < set(plan.arms["real+synthetic:2"])
    assert len(set(plan.arms["real-duplicated"])) == 2
    used = {case for refs in plan.arms.values() for source, case in refs if source == "real"}
    assert used == set(plan.split.train)
    assert not used & set(plan.split.test)


def test_plan_rests_on_real_training_cases_alone(tmp_path: Path) -> None:
    config = build_config(tmp_path)
    with_synthetic = plan_benchmark(config)
    alone = plan_benchmark(config.model_copy(update={"arms": ("real",), "synthetic": {}}))
    assert with_synthetic.training == alone.training
    assert with_synthetic.training.spacing_mm == SPACING_MM


def test_too_few_synthetic_cases_are_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="synthetic:5': needs 10 synthetic cases, but"):
        plan_benchmark(build_config(tmp_path, arms=("real", "real+synthetic:5")))
    config = build_config(tmp_path)
    sources = plan_benchmark(config).sources
    assert len(compose_arms(config, ["a"], sources)["real+synthetic:1"]) == 2


def test_too_few_synthetic_cases_are_explained_by_those_that_were_lost(tmp_path: Path) -> None:
    config = build_config(tmp_path)
    made = Path(config.synthetic["synthetic"])
    tested = plan_benchmark(config).split.test
    cases = {
        f"made_{number:04d}": {"mask_origin": {"source": "bank", "file": f"labelsTr/{case_id}.nii.gz"}}
        for number, case_id in enumerate(tested)
    }
    (made / MAPPING_NAME).write_text(json.dumps({"cases": cases}))
    with pytest.raises(BenchmarkError, match="but only 0 of .* can be used"):
        plan_benchmark(config)
    for path in (made / "images").iterdir():
        path.write_bytes(b"torn")
    with pytest.raises(BenchmarkError, match=r"only 0 of .* can be used\. Case made_0000 \(synthetic\) was left out"):
        plan_benchmark(config)


def test_unreadable_cases_are_left_out_of_every_arm_and_named(tmp_path: Path) -> None:
    config = build_config(tmp_path)
    grid = Grid.from_spacing(SHAPE, SPACING_MM)
    other = Grid.from_spacing(SHAPE, (1.0, 1.0, 1.0))
    real, made = Path(config.real), Path(config.synthetic["synthetic"])
    import nibabel as nib

    nib.save(nib.Nifti1Image(np.full(SHAPE, np.nan, np.float32), grid.affine), real / "imagesTr/case_000_0000.nii.gz")
    (real / "labelsTr/case_001.nii.gz").write_bytes(b"torn")
    save_label_map(made / "labels/made_0002.nii.gz", np.ones(SHAPE, np.uint8), other)
    plan = plan_benchmark(config)
    assert {case.case_id for case in plan.sources["real"].cases} == {f"case_00{n}" for n in (2, 3, 4, 5)}
    text = " ".join(plan.warnings)
    assert "Case case_000 (real) was left out of every arm." in text
    assert "NaN" in text
    assert "Case case_001 (real) was left out" in text
    assert "Case made_0002 (synthetic) was left out" in text
    assert "expected the image's grid" in text


def test_cautions_are_part_of_the_plan(tmp_path: Path) -> None:
    warnings = " ".join(plan_benchmark(build_config(tmp_path)).warnings)
    assert "Too few of the 4 test patients show a label: liver by 4, tumor by 3." in warnings
    assert "corrected over 2 labels, cannot reach p < 0.05" in warnings
    assert "Every arm is trained once" in warnings
    write_dataset(tmp_path / "Dataset003_Liver", 4)
    config = build_config(tmp_path, real=str(tmp_path / "Dataset003_Liver"))
    assert "MSD Task03 Liver, which is in the published training list" in " ".join(plan_benchmark(config).warnings)


def test_exported_cohort_in_the_place_of_real_cases_is_told_of(tmp_path: Path) -> None:
    config = build_config(tmp_path)
    assert "synthetic themselves" not in " ".join(plan_benchmark(config).warnings)
    (Path(config.real) / "maisi_aug_mapping.json").write_text("{}")
    assert "synthetic themselves" in " ".join(plan_benchmark(config).warnings)


def test_label_that_no_training_case_shows_is_named(tmp_path: Path) -> None:
    config = build_config(tmp_path, num_train=1, test_patients=tuple(f"case_00{n}" for n in (0, 1, 2, 3, 5)))
    warnings = " ".join(plan_benchmark(config).warnings)
    assert "No real training case shows tumor" in warnings
    assert "test patients show a label: liver by 5, tumor by 5." in warnings


def test_benchmark_runs_scores_and_reports(benchmark_of: Callable[..., Benchmark]) -> None:
    benchmark = benchmark_of(arms=ALL_ARMS)
    run_all(benchmark)
    assert {state.status for state in benchmark.states} == {"done"}
    document = json.loads(json.dumps(summarise_benchmark(benchmark), allow_nan=False))
    assert document["failures"] == []
    assert {(row["arm"], row["baseline"]) for row in document["comparisons"]} == {
        *((arm, "real") for arm in ALL_ARMS[1:]),
        *((arm, "real-duplicated") for arm in ("real+synthetic:0.5", "real+synthetic:2", *MADE_ARMS)),
    }
    assert {row["label"] for row in document["scores"]} == {"liver", "tumor"}
    assert {row["label"] for row in document["detection"]} == {"tumor"}
    assert {row["verdict"] for row in document["comparisons"]} == {"undecided"}
    assert all(row["obstacle"].endswith("test patients with the label") for row in document["comparisons"])
    pairs = {(row["arm"], row["baseline"]) for row in document["comparisons"]}
    assert {(row["arm"], row["baseline"]) for row in document["detection_comparisons"]} == pairs
    text = to_report_text(document)
    assert text.count("real+synthetic:2") > 5
    assert all(sentence in text for sentence in summarise_verdicts(document))


def test_predictions_lie_on_the_grid_of_their_case(benchmark_of: Callable[..., Benchmark]) -> None:
    benchmark = benchmark_of(arms=("real",))
    run_all(benchmark)
    for case in benchmark.plan.split.test:
        found = load_label_map(benchmark.folder_of("real", 0) / "predictions" / f"{case}.nii.gz")
        assert found.grid.is_close(load_label_map(benchmark.plan.find_case(("real", case)).label).grid)


def test_done_arms_are_never_done_again(benchmark_of: Callable[..., Benchmark]) -> None:
    benchmark = benchmark_of(arms=("real",))
    run_all(benchmark)
    folder = benchmark.folder_of("real", 0)
    before = (folder / SCORES_NAME).stat().st_mtime_ns
    for image in Path(benchmark.plan.config.real).glob("imagesTr/*"):
        image.unlink()
    assert run_arm(load_benchmark(benchmark.folder), "real", 0, device="cpu").status == "done"
    assert (folder / SCORES_NAME).stat().st_mtime_ns == before
    assert not (folder / "checkpoint.pt").exists()


def test_stopped_arm_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    config = build_config(tmp_path, arms=("real",), num_steps=4)
    straight = open_benchmark(tmp_path / "straight", config)
    run_all(straight)
    stopped = open_benchmark(tmp_path / "stopped", config)
    for expected in ("begun", "begun", "begun", "done"):
        assert run_arm(stopped, "real", 0, device="cpu", max_minutes=0.0).status == expected
    scores = [bench.load_scores("real", 0)["cases"] for bench in (straight, stopped)]
    assert scores[0] == scores[1]


def test_last_arm_clears_what_killed_processes_left_in_shared_folders(tmp_path: Path) -> None:
    config = build_config(tmp_path, arms=("real", "real-duplicated"), num_steps=1)
    begun = tmp_path / "bench" / ".benchmark.json.89abcdef.part"
    begun.parent.mkdir()
    begun.write_text("{")
    benchmark = open_benchmark(tmp_path / "bench", config)
    left = benchmark.folder / "prepared" / "real" / ".case_001.npz.0123abcd.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half a case")
    run_arm(benchmark, "real", 0, device="cpu")
    assert left.exists(), "another process may be at work on the other arm"
    run_arm(benchmark, "real-duplicated", 0, device="cpu")
    assert not left.exists()
    assert not begun.exists()


def test_failed_arm_is_named_and_the_others_are_reported(benchmark_of: Callable[..., Benchmark]) -> None:
    benchmark = benchmark_of(arms=("real", "real+synthetic:1", "real-duplicated"))
    made = Path(benchmark.plan.config.synthetic["synthetic"])
    hidden = made.with_name("hidden")
    made.rename(hidden)
    run_all(benchmark)
    state = benchmark.state_of("real+synthetic:1", 0)
    assert state.status == "failed"
    assert "is missing" in state.reason
    document = summarise_benchmark(benchmark)
    assert [row["arm"] for row in document["failures"]] == ["real+synthetic:1"]
    assert {row["arm"] for row in document["comparisons"]} == {"real-duplicated"}
    assert "real+synthetic:1, seed 0, failed: " in to_report_text(document)
    hidden.rename(made)
    assert run_arm(benchmark, "real+synthetic:1", 0, device="cpu").status == "done"
    assert not (benchmark.folder_of("real+synthetic:1", 0) / FAILURE_NAME).exists()
    assert summarise_benchmark(benchmark)["failures"] == []


def test_failure_names_what_was_raised_first(
    benchmark_of: Callable[..., Benchmark], monkeypatch: pytest.MonkeyPatch
) -> None:
    def normalise(plan: TrainingPlan, image_hu: NDArray[Any]) -> NDArray[np.float32]:
        try:
            raise TypeError("Got unsupported ScalarType BFloat16")
        except TypeError as error:
            raise RuntimeError("applying transform <RandAffined>") from error

    monkeypatch.setattr(TrainingPlan, "normalise", normalise)
    state = run_arm(benchmark_of(), "real", 0, device="cpu")
    assert (state.status, state.reason) == ("failed", "TypeError: Got unsupported ScalarType BFloat16")


def test_damaged_scores_are_a_failure_of_their_arm(benchmark_of: Callable[..., Benchmark]) -> None:
    benchmark = benchmark_of()
    run_all(benchmark)
    (benchmark.folder_of("real", 0) / SCORES_NAME).write_text("{")
    failures = summarise_benchmark(benchmark)["failures"]
    assert [row["arm"] for row in failures] == ["real"]
    assert "the scores of this arm are missing" in failures[0]["reason"]


@pytest.mark.parametrize("kind", MADE_KINDS)
def test_cases_made_of_real_ones_are_made_once(benchmark_of: Callable[..., Benchmark], kind: str) -> None:
    benchmark = benchmark_of(arms=("real", kind))
    ref = (kind, f"{MADE_KINDS[kind]}-0001")
    files = make_case(benchmark.folder, benchmark.plan, ref)
    first = (files.image.read_bytes(), files.image.stat().st_mtime_ns)
    assert make_case(benchmark.folder, benchmark.plan, ref) == files
    assert files.image.stat().st_mtime_ns == first[1]
    files.image.unlink()
    assert make_case(benchmark.folder, benchmark.plan, ref).image.read_bytes() == first[0]


def test_folder_keeps_to_its_configuration(benchmark_of: Callable[..., Benchmark], tmp_path: Path) -> None:
    benchmark = benchmark_of()
    assert open_benchmark(benchmark.folder, benchmark.plan.config).plan == benchmark.plan
    with pytest.raises(BenchmarkError, match="this benchmark was begun with another configuration"):
        benchmark_of(seed=1)
    with pytest.raises(BenchmarkError, match="neither new, empty nor a benchmark's folder"):
        open_benchmark(tmp_path / "made", benchmark.plan.config)
    (benchmark.folder / PLAN_NAME).write_text("{}")
    with pytest.raises(BenchmarkError, match="not the plan of a benchmark: KeyError"):
        load_benchmark(benchmark.folder)
    (benchmark.folder / PLAN_NAME).write_text('{"format": 1}')
    with pytest.raises(
        BenchmarkError, match="Benchmark: its plan has format 1, this version needs 2, whose arms are trained"
    ):
        load_benchmark(benchmark.folder)
    with pytest.raises(BenchmarkError, match="not a benchmark, because benchmark.json is missing"):
        load_benchmark(tmp_path / "made")


def test_unknown_arm_and_seed_are_refused(benchmark_of: Callable[..., Benchmark]) -> None:
    benchmark = benchmark_of()
    with pytest.raises(
        BenchmarkError, match=r"Arm 'reel': unknown arm; expected one of real, real\+synthetic:1. Did you mean"
    ):
        run_arm(benchmark, "reel", 0, device="cpu")
    with pytest.raises(BenchmarkError, match="Seed 1: must be 0 to 0"):
        run_arm(benchmark, "real", 1, device="cpu")


def test_two_processes_do_not_run_the_same_arm(benchmark_of: Callable[..., Benchmark]) -> None:
    import fcntl

    benchmark = benchmark_of()
    folder = benchmark.folder_of("real", 0)
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BenchmarkError, match="another process is working on this arm"):
            run_arm(benchmark, "real", 0, device="cpu")


def test_command_line_plans_runs_and_reports(tmp_path: Path, run_cli: Callable[..., Outcome]) -> None:
    config = build_config(tmp_path)
    words = ["--real", config.real, "--synthetic", config.synthetic["synthetic"], "--num-train", "2", "--steps", "2"]
    words += ["--arms", "real,real+synthetic:1", "--seeds", "1", "--out", str(tmp_path / "bench")]
    shown = run_cli("benchmark", "run", *words, "--dry-run")
    assert shown.code == 0, shown.stderr
    assert "2 trainings, about" in shown.stdout
    assert not (tmp_path / "bench").exists()
    planned = run_cli("benchmark", "run", *words, "--plan-only")
    commands = planned.stdout.splitlines()
    assert commands == [
        f"maisi-aug benchmark arm {tmp_path / 'bench'} --arm {arm} --seed 0" for arm in ("real", "real+synthetic:1")
    ]
    alone = run_cli(*commands[1].split()[1:])
    assert alone.stdout == "real+synthetic:1, seed 0: done\n"
    done = run_cli("benchmark", "run", *words, "--json")
    assert done.code == 0, done.stderr
    assert [arm["num_seeds_done"] for arm in json.loads(done.stdout)["arms"]] == [1, 1]
    assert "--arm real --seed 0" in done.stderr
    assert "--arm real+synthetic:1" not in done.stderr


def test_arm_that_runs_elsewhere_does_not_stop_the_others(tmp_path: Path, run_cli: Callable[..., Outcome]) -> None:
    import fcntl

    config = build_config(tmp_path, arms=("real", "real+synthetic:1", "real-duplicated"))
    benchmark = open_benchmark(tmp_path / "bench", config)
    words = ["--real", config.real, "--synthetic", config.synthetic["synthetic"], "--num-train", "2", "--steps", "2"]
    words += ["--arms", ",".join(config.arms), "--seeds", "1", "--out", str(benchmark.folder), "--json"]
    folder = benchmark.folder_of("real+synthetic:1", 0)
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run_cli("benchmark", "run", *words)
    assert "real+synthetic:1, seed 0: running elsewhere" in done.stderr
    document = json.loads(done.stdout)
    assert [arm["num_seeds_done"] for arm in document["arms"]] == [1, 0, 1]
    assert {(row["arm"], row["baseline"]) for row in document["comparisons"]} == {("real-duplicated", "real")}
    assert done.code == 1


def test_command_line_names_what_is_wrong(tmp_path: Path, run_cli: Callable[..., Outcome]) -> None:
    config = build_config(tmp_path)
    words = ["benchmark", "run", "--real", config.real, "--out", str(tmp_path / "b")]
    for flags, message in (
        (
            ["--label", "liver="],
            "--label liver=: takes a name only, found '=' with ''; give its ids with --map ID+ID=NAME",
        ),
        (["--label", "lever"], "Label 'lever': "),
        (["--map", "=x"], "--map: expected LABEL=NAME such as 'tumor=hepatic tumor', found '=x'"),
        (["--map", "a=x+"], "--map a=x+: expected LABEL=NAME or LABEL=NAME+NAME, found 'x+'"),
        (
            ["--synthetic", "a", "--synthetic", "b"],
            "the name 'synthetic' is given twice; give each its own, as NAME=FOLDER",
        ),
        (["--arms", "reel"], "Arm 'reel': unknown arm; expected one of real"),
        (["--lesion-label", "bone"], "Lesion label 'bone': not one of liver, tumor"),
    ):
        failed = run_cli(*words, *flags)
        assert failed.code in (1, 2)
        assert message in failed.stderr


def test_failed_arm_sets_the_exit_code(tmp_path: Path, run_cli: Callable[..., Outcome]) -> None:
    config = build_config(tmp_path, arms=("real", "copy-paste"))
    benchmark = open_benchmark(tmp_path / "bench", config)
    for number in range(6):
        label = Path(config.real) / "labelsTr" / f"case_{number:03d}.nii.gz"
        label_map = load_label_map(label)
        save_label_map(label, np.minimum(label_map.array, 1), label_map.grid)
    failed = run_cli("benchmark", "arm", benchmark.folder, "--arm", "copy-paste")
    assert failed.code == 1
    assert "Copy-paste: no other training case has a lesion" in failed.stdout


def test_labels_of_no_voxel_are_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="Real training cases: no voxel is labelled"):
        plan_benchmark(build_config(tmp_path, labels={"liver": (7,)}, arms=("real",)))


def test_cases_of_other_spacings_meet_on_one_grid(tmp_path: Path) -> None:
    config = build_config(tmp_path)
    made = Path(config.synthetic["synthetic"])
    grid = Grid.from_spacing((30, 30, 30), (1.0, 1.0, 1.0))
    label_map = np.ones(grid.shape, np.uint8)
    for path in sorted((made / "images").iterdir()):
        save_image(path, np.where(np.indices(grid.shape)[0] < 3, -1000, 50), grid)
        save_label_map(made / "labels" / path.name, label_map, grid)
    benchmark = open_benchmark(tmp_path / "bench", config)
    assert run_arm(benchmark, "real+synthetic:1", 0, device="cpu").status == "done"


@pytest.mark.slow
def test_nnunet_runs_an_arm_with_plans_of_the_real_cases(tmp_path: Path) -> None:
    config = build_config(tmp_path, engine="nnunet", num_steps=2)
    benchmark = open_benchmark(tmp_path / "bench", config)
    run_all(benchmark)
    assert [state.reason for state in benchmark.states] == ["", ""]
    document = summarise_benchmark(benchmark)
    assert {row["arm"] for row in document["comparisons"]} == {"real+synthetic:1"}
    splits = json.loads((tmp_path / "bench/nnunet/preprocessed/Dataset001_Benchmark/splits_final.json").read_text())
    assert [len(split["train"]) for split in splits] == [2, 4]
    tested = set(benchmark.plan.split.test)
    assert not any(name.partition("__")[2] in tested for split in splits for name in (*split["train"], *split["val"]))
