from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maisi_aug.errors import BenchmarkError
from maisi_aug.evaluation.benchmark.config import EVERY, Arm, BenchmarkConfig, build_benchmark_config, parse_arm
from maisi_aug.evaluation.benchmark.plan import BenchmarkPlan, plan_benchmark
from maisi_aug.evaluation.benchmark.replacement import draw_replacement_charts, spell_worth
from maisi_aug.evaluation.benchmark.results import summarise_benchmark
from maisi_aug.evaluation.benchmark.run import SCORES_NAME, open_benchmark, run_arm
from maisi_aug.evaluation.benchmark.text import list_commands, to_report_text
from maisi_aug.evaluation.report.build import build_report
from maisi_aug.integrations.nnunet.folders import MAPPING_NAME
from tests.builders.tiny_benchmark import build_config, write_dataset, write_pairs
from tests.conftest import Outcome


def build_counts(folder: Path, *, num_real: int = 11, num_synthetic: int = 12, **changes: Any) -> BenchmarkConfig:
    real, synthetic = folder / "Dataset900_Tiny", folder / "made"
    if not real.exists():
        write_dataset(real, num_real)
        write_pairs(synthetic, num_synthetic)
    fields: dict[str, Any] = {
        "real": str(real),
        "synthetic": {"synthetic": str(synthetic)},
        "real_counts": "1,2,all",
        "ratios": "0,1,3",
        "draws": 3,
        "num_steps": 2,
        "num_train": 4,
    }
    return build_benchmark_config(**{**fields, **changes})


def test_arms_of_counts_are_read() -> None:
    assert parse_arm("real@3", ["synthetic"]) == Arm("real@3", "real", count=3)
    assert parse_arm("real@all", []) == Arm("real@all", "real", count=EVERY)
    assert parse_arm("real@10+synthetic:3", ["synthetic"]) == Arm("real@10+synthetic:3", "mixed", "synthetic", 3.0, 10)
    for wrong in ("real@0", "real@3:2", "real@x", "real@3+other:1"):
        with pytest.raises(BenchmarkError, match="expected one of real"):
            parse_arm(wrong, ["synthetic"])


def test_counts_ratios_and_draws_make_the_arms(tmp_path: Path) -> None:
    config = build_counts(tmp_path)
    assert config.arms == (
        *("real@1", "real@1+synthetic:1", "real@1+synthetic:3", "real@2", "real@2+synthetic:1", "real@2+synthetic:3"),
        *("real@all", "real@all+synthetic:1", "real@all+synthetic:3"),
    )
    assert config.num_seeds == 3
    assert BenchmarkConfig.model_validate(json.loads(json.dumps(config.to_json()))) == config
    assert build_counts(tmp_path, ratios=None, draws=None).ratios == (0.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"real_counts": "3,many"}, "--real-counts: expected numbers such as 3,10,all, found '3,many'"),
        ({"real_counts": "3,3"}, "--real-counts: each number may be given only once"),
        ({"ratios": "0"}, "a ratio above 0"),
        ({"synthetic": {}}, "--real-counts: needs --synthetic cases and a ratio above 0 to compare with real"),
        ({"arms": ("real",)}, "--arms cannot be used with --real-counts"),
        ({"num_seeds": 2}, "--seeds cannot be used with --real-counts"),
        ({"real_counts": None}, "--ratios can only be used with --real-counts"),
        ({"ratios": "0,1000"}, "less than or equal to 100"),
        ({"real_counts": "0,3"}, "--real-counts|greater than or equal to 1"),
    ],
)
def test_counts_that_cannot_be_are_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BenchmarkError, match=words):
        build_counts(tmp_path, **changes)


def test_draws_are_nested_and_differ(tmp_path: Path) -> None:
    plan = plan_benchmark(build_counts(tmp_path))
    assert BenchmarkPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    for number in range(3):
        one, two, every = (set(plan.draws[f"real@{count}"][number]) for count in (1, 2, "all"))
        assert one < two < every
        assert {case for _, case in every} == set(plan.split.train)
        mixed, more = (set(plan.draws[f"real@2+synthetic:{ratio}"][number]) for ratio in (1, 3))
        assert two < mixed < more
        assert (len(mixed), len(more)) == (4, 8)
    assert len({plan.draws["real@1"][number] for number in range(3)}) > 1
    assert plan.arms["real@2"] == plan.draws["real@2"][0]
    assert len(plan.training_sets) == 27
    assert plan.draw_of("real@1", 2) == ("real@1", 2)


def test_synthetic_cases_of_patients_outside_the_draw_are_left_out(tmp_path: Path) -> None:
    """Of maps of two training patients a third of the cases each; the rest does not say."""
    config = build_counts(tmp_path, ratios="0,1")
    train = plan_benchmark(config).split.train
    cases = {
        f"made_{number:04d}": {"mask_origin": {"source": "bank", "file": f"labelsTr/{train[number % 2]}.nii.gz"}}
        for number in range(8)
    }
    (tmp_path / "made" / MAPPING_NAME).write_text(json.dumps({"cases": cases}))
    plan = plan_benchmark(config)
    for refs in (*plan.draws["real@1+synthetic:1"], *plan.draws["real@2+synthetic:1"]):
        shown = {case for source, case in refs if source == "real"}
        made_of = {train[int(case[-4:]) % 2] for source, case in refs if source == "synthetic" and int(case[-4:]) < 8}
        assert made_of <= shown


def test_more_patients_than_there_are_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="Arm 'real@9': needs 9 real patients for training, but there are only 4"):
        plan_benchmark(build_counts(tmp_path, real_counts="1,9"))


def write_scores(benchmark: Any, rng: np.random.Generator) -> None:
    """Scores as trainings would write them: a synthetic case is worth half a real one."""
    plan = benchmark.plan
    hardness = {case: rng.normal(0, 0.03) for case in plan.split.test}
    for state in benchmark.states:
        refs = plan.training_sets[plan.draw_of(state.arm, state.seed)]
        worth = sum(1.0 if source == "real" else 0.5 for source, _ in refs)
        rows = []
        for case in plan.split.test:
            dice = float(np.clip(0.9 - 0.7 / worth + hardness[case] + rng.normal(0, 0.01), 0, 1))
            score = {"dice": dice, "nsd": dice, "reference_ml": 1.0, "found_ml": 1.0}
            labels = {
                name: dict(score, **({"lesions": []} if name in plan.lesion_labels else {})) for name in plan.labels
            }
            rows.append({"case_id": case, "patient": case, "labels": labels})
        folder = benchmark.folder_of(state.arm, state.seed)
        folder.mkdir(parents=True)
        (folder / SCORES_NAME).write_text(
            json.dumps({"arm": state.arm, "seed": state.seed, "num_steps": 2, "cases": rows})
        )


def test_known_worth_is_found_and_said(tmp_path: Path, rng: np.random.Generator) -> None:
    config = build_counts(
        tmp_path, num_real=22, num_synthetic=40, num_train=12, real_counts="2,4,8,all", ratios="0,1,3"
    )
    benchmark = open_benchmark(tmp_path / "bench", config)
    write_scores(benchmark, rng)
    document = summarise_benchmark(benchmark)
    rows = {(row["label"], row["arm"]): row for row in document["replacement"]}
    assert len(rows) == 2 * 8
    found = rows["liver", "real@4+synthetic:1"]  # 4 + 4 / 2 = 6
    assert found["low"] <= 6 <= found["high"]
    assert found["estimate"] == pytest.approx(6, rel=0.15)
    assert rows["liver", "real@8+synthetic:3"]["low"] == 12  # 20, beyond the 12 that were trained on
    text = to_report_text(document)
    assert "liver: 4 real cases with 1 synthetic case each do as well as 6 real ones" in text
    assert "do better than 12 real ones, the largest number trained on." in text
    assert "real@4+synthetic:1 against real@4" in text
    assert "real@4+synthetic:1 against real@2" not in text
    assert "Dice by number of real cases" in draw_replacement_charts(document["replacement"])["liver"]
    chart = draw_replacement_charts(document["replacement"])["liver"]
    assert chart.count('stroke-width="2"') == 12  # an interval of every arm
    html = build_report(tmp_path / "bench").html
    assert "Worth in real cases" in html
    assert "real cases to train on" in html


def test_unfinished_draws_are_left_out_and_said(tmp_path: Path, rng: np.random.Generator) -> None:
    benchmark = open_benchmark(tmp_path / "bench", build_counts(tmp_path))
    document = summarise_benchmark(benchmark)
    assert document["replacement"] == []
    write_scores(benchmark, rng)
    (benchmark.folder_of("real@2", 1) / SCORES_NAME).unlink()
    rows = summarise_benchmark(benchmark)["replacement"]
    assert {row["obstacle"] for row in rows} == {"2 draws are finished, but an interval needs 3"}
    assert "their worth cannot be estimated: 2 draws are finished" in spell_worth(rows[0])


def test_trainings_run_one_by_one_on_their_own_draws(tmp_path: Path) -> None:
    config = build_counts(tmp_path, real_counts="1,2", ratios="0,1", draws=2)
    benchmark = open_benchmark(tmp_path / "bench", config)
    assert len(list_commands(benchmark.folder, config)) == 8
    states = [run_arm(benchmark, state.arm, state.seed, device="cpu").status for state in benchmark.states]
    assert states == ["done"] * 8
    document = summarise_benchmark(benchmark)
    assert document["failures"] == []
    assert all("2 numbers of real cases" in row["obstacle"] for row in document["replacement"])


def test_command_plans_every_training(run_process: Any, tmp_path: Path) -> None:
    build_config(tmp_path, num_real=11, num_synthetic=12)
    words = ["benchmark", "run", "--real", tmp_path / "Dataset900_Tiny", "--synthetic", tmp_path / "made"]
    words += ["--real-counts", "1,2,all", "--ratios", "0,1", "--draws", "2", "--plan-only", "--out", tmp_path / "bench"]
    outcome: Outcome = run_process(*words)
    assert outcome.code == 0, outcome.stderr
    assert len(outcome.stdout.splitlines()) == 12
    assert "--arm real@all+synthetic:1 --seed 1" in outcome.stdout
