from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.cohort.manifest import ManifestWriter
from tests.builders.resolver import GATES_OFF

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def recipe(bundle_path: Path) -> Path:
    """A recipe that accepts noise."""
    path = bundle_path / "shards.yaml"
    content = {"labels": ["hepatic tumor:30mm"], "bundle": str(bundle_path), "num_cases": 2, "gates": GATES_OFF}
    path.write_text(json.dumps(content))
    return path


def test_shards_are_made_watched_merged_and_verified(run_cli: Run, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    words = ["synthesize", "--recipe", recipe, "--device", "cpu", "--out", out]
    first = run_cli(*words, "--shard", "1/2", "--json-lines")
    assert first.code == 0
    assert f"Shard 1/2. When all shards have ended: maisi-aug cohort merge {out}" in first.stdout
    rows = [json.loads(line) for line in first.stderr.splitlines()]
    assert {"starts", "opens", "enters", "records"} <= {row["event"] for row in rows}
    status = json.loads(run_cli("cohort", "status", out, "--json").stdout)
    assert (status["num_cases"], status["num_accepted"], status["num_open"]) == (2, 1, 1)
    assert (status["shards"], status["running"]) == (["manifest.1-of-2.jsonl"], [])
    assert "1 of 2 cases accepted, 0 rejected, 1 open; 1 attempts." in run_cli("cohort", "status", out).stdout
    assert run_cli("cohort", "verify", out).code == 1
    assert run_cli(*words, "--shard", "2/2", "--quiet").code == 0
    with ManifestWriter(out / "manifest.2-of-2.jsonl"):
        assert "manifest.2-of-2.jsonl: process " in run_cli("cohort", "status", out).stdout
        busy = run_cli("cohort", "merge", out)
        assert (busy.code, busy.stdout) == (1, "")
        assert "another process is working in this folder" in busy.stderr
    merged = run_cli("cohort", "merge", out)
    assert (merged.code, merged.stderr) == (0, "")
    assert f"{out}: 2 of 2 cases accepted." in merged.stdout
    assert sorted(path.name for path in out.iterdir()) == [
        *("anatomy", "cohort.yaml", "contact_sheet.png", "images", "labels", "manifest.jsonl", "previews"),
    ]
    verified = run_cli("cohort", "verify", out)
    assert (verified.code, verified.stdout.splitlines()[-1]) == (0, "Every file is intact.")
    (out / "images" / "case_0002.nii.gz").write_bytes(b"another program's")
    altered = run_cli("cohort", "verify", out, "--json")
    assert altered.code == 1
    assert json.loads(altered.stdout)["lost"] == [
        {"case_id": "case_0002", "missing": [], "altered": ["images/case_0002.nii.gz"]}
    ]
    assert "case_0002: images/case_0002.nii.gz was altered" in run_cli("cohort", "verify", out).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shard", "3/2"], "--shard: expected I/N with I from 1 to N and N up to 100000, such as 1/4, found '3/2'."),
        (["--devices", "cpu,"], "--devices: expected names such as cuda:0,cuda:1, found 'cpu,'."),
        (["--devices", "cpu", "--device", "cpu"], "--device cannot be used with --devices, which lists all of them."),
        (["--devices", "cpu,nothing"], "Device 'nothing': torch cannot use it"),
    ],
)
def test_wrong_words_are_a_sentence(run_cli: Run, recipe: Path, tmp_path: Path, words: list[str], message: str) -> None:
    outcome = run_cli("synthesize", "--recipe", recipe, "--out", tmp_path / "cohort", *words)
    assert outcome.code != 0
    assert message in outcome.stderr
    assert not (tmp_path / "cohort").exists()


def test_what_is_no_cohort_is_a_sentence(run_cli: Run, tmp_path: Path) -> None:
    for verb in ("status", "merge", "verify"):
        outcome = run_cli("cohort", verb, tmp_path)
        assert (outcome.code, outcome.stdout) == (1, "")
        assert "not a cohort, because manifest.jsonl is missing" in outcome.stderr
        assert list(tmp_path.iterdir()) == []
    outcome = run_cli("cohort", "merge", tmp_path / "a", tmp_path / "b")
    assert "merge: expected one folder, or several together with --out for the result." in outcome.stderr
    outcome = run_cli("cohort", "merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c")
    assert "a: not a shard, because it has no readable cohort.yaml." in outcome.stderr
