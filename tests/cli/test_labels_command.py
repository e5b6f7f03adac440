from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BUNDLE_YAML = """
format: 1
name: renal
description: for a test
licence: none
grid: {shape: [16, 16, 16], spacing_mm: [4, 4, 4]}
num_inference_steps: 1
scale_factor: 1.0
scheduler: {class: RFlowScheduler}
networks: {}
weights: {}
slots: {kidney tumor: {id: 129, hosts: [5, 14]}}
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "bundle.yaml").write_text(BUNDLE_YAML)
    return tmp_path


def test_table_lists_every_label_with_its_id(run_cli: Callable[..., Any]) -> None:
    outcome = run_cli("labels")
    assert outcome.code == 0
    assert "133 labels" in outcome.stdout
    for text in ("hepatic tumor", "left iliopsoas", "dummy8", "200", "liver lesion", "kidney tumor *"):
        assert text in outcome.stdout
    assert "--bundle phantom-ct" in outcome.stderr


def test_json_on_stdout_can_be_piped(run_cli: Callable[..., Any]) -> None:
    outcome = run_cli("labels", "--json")
    rows = json.loads(outcome.stdout)
    assert len(rows) == 133
    assert rows[25] == {
        "id": 26,
        "name": "hepatic tumor",
        "kind": "tumor",
        "slot": False,
        "needs_bundle": False,
        "hosts": [{"id": 1, "name": "liver"}],
        "aliases": rows[25]["aliases"],
    }
    assert "HCC" in rows[25]["aliases"]
    assert outcome.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        (["--find", "kidney"], [5, 14, 116, 117, 129]),
        (["--find", "RCC"], [129]),
        (["--find", "kidney_left"], [14, 116]),
        (["--find", "liver tumours"], [26]),
        (["--find", "HCC"], [26]),
        (["--find", "26"], [26]),
        (["--find", "tumour"], [23, 24, 26, 27, 128, 129]),
        (["--kind", "tumor"], [23, 24, 26, 27, 128, 129]),
        (["--kind", "slot"], [2, 16, 18, 20, 21, 129, 130, 131]),
        (["--kind", "tumor", "--find", "lung"], [23]),
        (["--sizes"], [23, 24, 26, 27, 128, 129]),
    ],
)
def test_options_narrow_the_list(arguments: list[str], ids: list[int], run_cli: Callable[..., Any]) -> None:
    outcome = run_cli("labels", "--json", *arguments)
    assert [row["id"] for row in json.loads(outcome.stdout)] == ids


def test_sizes_show_quantiles_and_name_stand_ins(run_cli: Callable[..., Any]) -> None:
    outcome = run_cli("labels", "--sizes")
    assert "3.7 mL, 19 mm" in outcome.stdout
    assert outcome.stdout.count("estimated, not measured: hepatic tumor cut at") == 3
    assert "bone lesion: estimated, not measured" in outcome.stdout
    sizes = {row["name"]: row["sizes"] for row in json.loads(run_cli("labels", "--sizes", "--json").stdout)}
    assert sizes["hepatic tumor"]["percentiles"][6] == 0.3
    assert sizes["hepatic tumor"]["volumes_ml"][6] == 5.92
    assert {name for name, row in sizes.items() if row["is_stand_in"]} == {
        "pancreatic tumor",
        "colon cancer primaries",
        "bone lesion",
    }


@pytest.mark.parametrize("options", [[], ["--sizes"]], ids=["labels", "sizes"])
def test_label_that_only_a_bundle_has_is_listed_and_says_so(options: list[str], run_cli: Callable[..., Any]) -> None:
    outcome = run_cli("labels", "--find", "kidney tumor", *options)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "kidney tumor *" in outcome.stdout
    assert "only in bundles that define it, such as phantom-ct" in outcome.stdout
    (row,) = json.loads(run_cli("labels", "--find", "kidney tumor", "--json", *options).stdout)
    assert (row["id"], row["kind"], row["slot"], row["needs_bundle"]) == (129, "tumor", True, True)


def test_label_that_the_named_bundle_has_needs_no_other(run_cli: Callable[..., Any], bundle: Path) -> None:
    outcome = run_cli("labels", "--find", "kidney tumor", "--bundle", bundle)
    assert "kidney tumor" in outcome.stdout
    assert "*" not in outcome.stdout


def test_bundle_names_its_slots(run_cli: Callable[..., Any], bundle: Path) -> None:
    outcome = run_cli("labels", "--json", "--sizes", "--bundle", bundle, "--find", "kidney")
    (row,) = json.loads(outcome.stdout)
    assert (row["id"], row["name"], row["kind"], row["slot"]) == (129, "kidney tumor", "tumor", True)
    assert [host["name"] for host in row["hosts"]] == ["right kidney", "left kidney"]
    slots = json.loads(run_cli("labels", "--json", "--kind", "slot", "--bundle", bundle).stdout)
    assert [row["name"] for row in slots][5] == "kidney tumor"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--find", "hepatic tumr"], "Did you mean 'hepatic tumor'"),
        (["--find", "tumour", "--kind", "organ"], "No label matches all options"),
        (["--kind", "muscle"], "'muscle' is not one of"),
    ],
)
def test_nothing_found_is_one_sentence_on_stderr(
    arguments: list[str], message: str, run_cli: Callable[..., Any]
) -> None:
    outcome = run_cli("labels", *arguments)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert message in outcome.stderr
    assert outcome.stderr.count("\n") == 1


def test_command_starts_without_heavy_imports(repository: Path) -> None:
    code = (
        "import sys; from maisi_aug.cli.app import run; code = run(['labels']);"
        "print(*{'torch', 'monai', 'numpy', 'scipy', 'nibabel', 'yaml'} & set(sys.modules), file=sys.stderr);"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == ""
