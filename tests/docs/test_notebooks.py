from __future__ import annotations

import ast
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import REPOSITORY
from tests.docs.test_pages import write_program

FOLDER = REPOSITORY / "recipes" / "guides" / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
GUIDES = {"quick_start", "few_cases", "balance", "own_label", "own_cts", "cluster", "from_nvidia"}
MAX_BYTES = 600_000
"""Of all notebooks with their pictures."""


def read_notebook(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def code_of(name: str) -> list[str]:
    return ["".join(cell["source"]) for cell in read_notebook(name)["cells"] if cell["cell_type"] == "code"]


def test_there_is_a_notebook_for_each_guide() -> None:
    assert set(NOTEBOOKS) == GUIDES
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MAX_BYTES


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_committed_with_its_outputs_and_without_errors(name: str) -> None:
    outputs = [output for cell in read_notebook(name)["cells"] for output in cell.get("outputs", ())]
    assert outputs
    assert [output for output in outputs if output["output_type"] == "error"] == []
    assert "/tmp" not in json.dumps(outputs)
    for code in code_of(name):
        ast.parse("\n".join("pass" if line.startswith("!") else line for line in code.splitlines()))


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="needs the extra 'docs'")
    nbformat = pytest.importorskip("nbformat", reason="needs the extra 'docs'")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("PATH", f"{write_program(tmp_path)}:{os.environ['PATH']}")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    place = tmp_path / "place"
    place.mkdir()
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(place)}}).execute()
