from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import maisi_aug as ma
from maisi_aug.cohort.manifest import load_manifest
from maisi_aug.cohort.review import CaseKey, Decision, append_decision, load_review, now
from maisi_aug.errors import CohortError
from maisi_aug.evaluation.review import serving
from tests.builders.tiny_cohort import HEPATIC_TUMOR, write_cohort

Run = Callable[..., Any]
REPOSITORY = Path(__file__).resolve().parent.parent.parent


def reject(folder: Path, case_id: str, attempt: int = 0) -> None:
    append_decision(folder, Decision(case_id, attempt, "reject", "artefact", "anna", now()))


def test_rejected_case_is_left_out_and_redrawn_with_another_seed(
    run_cli: Run, bundle_path: Path, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "cohort"
    content = {"labels": ["hepatic tumor:30mm"], "bundle": str(bundle_path), "num_cases": 2}
    recipe.write_text(json.dumps({**content, "gates": {"organ_hu": False, "visibility": False}}))
    words = ["synthesize", "--recipe", recipe, "--out", out, "--device", "cpu", "--quiet"]
    assert run_cli(*words).code == 0
    before = {name: (out / "images" / name).read_bytes() for name in ("case_0001.nii.gz", "case_0002.nii.gz")}
    reject(out, "case_0002")

    exported = run_cli("export", "nnunet", out, "--dataset-id", "501", "--name", "Syn", "--out", tmp_path / "raw")
    assert exported.code == 0
    assert "Left out because rejected in review: 1 case." in exported.stdout + exported.stderr
    assert [case.id for case in ma.load_cohort(out).cases] == ["case_0001"]
    told = run_cli("evaluate", "hu", out, "--quiet")
    assert "Note: Left out because rejected in review: 1 case." in told.stderr
    run_cli("report", out, "--out", tmp_path / "report.html")
    assert "Rejected in review by anna: artefact." in (tmp_path / "report.html").read_text()

    unasked = run_cli(*words)
    assert "Rejected in review and left out of exports: 1." in unasked.stdout
    assert (out / "images" / "case_0002.nii.gz").read_bytes() == before["case_0002.nii.gz"]
    lines = (out / "manifest.jsonl").read_text()
    assert run_cli(*words, "--seed", "3", "--redraw-rejected").code == 1  # another configuration gives nothing up
    assert (out / "manifest.jsonl").read_text() == lines
    redrawn = run_cli(*words, "--redraw-rejected")
    assert redrawn.code == 0, redrawn.stderr
    assert "Rejected in review" not in redrawn.stdout
    last = load_manifest(out).accepted
    assert [(record.case_id, record.attempt) for record in last] == [("case_0001", 0), ("case_0002", 1)]
    assert (out / "images" / "case_0001.nii.gz").read_bytes() == before["case_0001.nii.gz"]
    assert (out / "images" / "case_0002.nii.gz").read_bytes() != before["case_0002.nii.gz"]
    assert list(load_review(out).rejections()) == [CaseKey("case_0002", 0)]
    assert (out / "previews/rejected/case_0002_a0.png").is_file()


def test_blind_needs_real_images(run_cli: Run, tmp_path: Path) -> None:
    outcome = run_cli("view", write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR]), "--blind")
    assert outcome.code == 2
    assert "--blind can only be used with --beside" in outcome.stderr


def test_reader_of_the_blinded_test_sees_no_report(run_cli: Run, tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR])
    outcome = run_cli("view", cohort, "--blind", "--beside", cohort, "--report", tmp_path / "report.html")
    assert outcome.code == 2
    assert "--report can only be used without --blind" in outcome.stderr


def test_folder_that_is_not_there_is_refused(run_cli: Run, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="needs the extra 'view'")
    outcome = run_cli("view", tmp_path / "nothing", "--no-browser")
    assert outcome.code == 1
    assert "nothing: not found" in outcome.stderr


def test_missing_extra_is_named(run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "starlette", None)
    outcome = run_cli("view", write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR]), "--no-browser")
    assert outcome.code == 1
    assert "pip install 'maisi-aug[view]'" in outcome.stderr


def test_port_in_use_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="needs the extra 'view'")
    folder = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR])
    with serving.serve_in_background(serving.ViewOptions(path=folder)) as address:
        port = int(address.split(":")[2].split("/")[0])
        taken = serving.open_server(serving.ViewOptions(path=folder, port=port))
        with pytest.raises(ValueError, match=f"port {port} is in use"):
            taken.__enter__()


def test_command_serves_until_ctrl_c_with_little_memory(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="needs the extra 'view'")
    folder = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR])
    command = [sys.executable, "-m", "maisi_aug.cli.app", "view", str(folder), "--no-browser"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(f"{address}api/state", timeout=60) as answer:
                assert len(json.load(answer)["rows"]) == 1
            status = Path(f"/proc/{process.pid}/status")
            if status.is_file():
                words = next(line.split() for line in status.read_text().splitlines() if line.startswith("VmHWM"))
                assert int(words[1]) < 300_000  # kB
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert process.stderr is not None
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def test_case_is_shown_in_a_notebook(tmp_path: Path) -> None:
    pytest.importorskip("ipyniivue", reason="needs the extra 'notebook'")
    folder = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR], [HEPATIC_TUMOR])
    widget = ma.view(folder, "case_0002", window_hu=(-200.0, 300.0))
    image, labels = widget.volumes
    assert (image.cal_min, image.cal_max, labels.colormap) == (-200.0, 300.0, "red")
    with pytest.raises(CohortError, match="case 'case_0009' is not among its 2 accepted cases"):
        ma.view(folder, "case_0009")


def test_notebook_without_its_extra_is_told_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipyniivue", None)
    with pytest.raises(ImportError, match=r"pip install 'maisi-aug\[notebook\]'"):
        ma.view(tmp_path)
