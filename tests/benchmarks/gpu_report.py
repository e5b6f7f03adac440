"""What ``gpu.sh`` has left in its folder, as one table and one file: ``python -m tests.benchmarks.gpu_report FOLDER``.

NVIDIA publishes seconds and memory on an A100 of 80 GB for the same networks (NV-Generate-CTMR, docs/inference.md); the
tables of the stages name them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.pipeline import PUBLISHED, to_table


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``results.json`` and ``results.md`` from whatever parts have left something."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu_report", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args(arguments).folder
    results = collect(folder)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(to_markdown(results), encoding="utf-8")


def collect(folder: Path) -> dict[str, Any]:
    """The figures of all parts by the name of the part."""
    summary = folder / "summary.txt"
    precision = folder / "precision.log"
    lines = precision.read_text(encoding="utf-8").splitlines() if precision.is_file() else []
    return {
        "parts": summary.read_text(encoding="utf-8").splitlines() if summary.is_file() else [],
        "stages": {path.parent.name: _read(path) for path in sorted(folder.glob("*/results_pipeline.json"))},
        "decoding": {path.stem: _read(path) for path in sorted(folder.glob("decode-*.json"))},
        "batches": {path.stem: _read(path) for path in sorted(folder.glob("batches.json"))},
        "precision": [line for line in lines if line.startswith("|")],
    }


def to_markdown(results: Mapping[str, Any]) -> str:
    """All figures as tables."""
    machines = [found["machine"] for found in results["stages"].values()]
    parts = ["# What a GPU takes", "Written by `bash tests/benchmarks/gpu.sh`; random weights in NVIDIA's layout."]
    if machines:
        parts.append(
            f"Machine: {machines[0]['device']}, {machines[0]['cpu_count']} cores, torch {machines[0]['torch']}."
        )
    parts.append("```\n" + "\n".join(results["parts"]) + "\n```")
    for name, found in results["stages"].items():
        for run in found["runs"]:
            grid = run["grid"]
            published = f" Published for an A100, decode and sampling: {PUBLISHED[grid]}." if grid in PUBLISHED else ""
            about = f"{run['width']} width, {grid}, {run['steps']} steps, {run['device']}, {run['own_precision']}"
            parts += [f"## {name}", f"From a given label map to files, {about}.{published}", to_table(run)]
    for name, rows in {**results["decoding"], **results["batches"]}.items():
        parts += [f"## {name}", _to_rows(rows)]
    if results["precision"]:
        parts += ["## Half precision against float32, `phantom-ct`", "\n".join(results["precision"])]
    return "\n\n".join(parts) + "\n"


def _to_rows(rows: Mapping[str, Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(_spell(row.get(key, "-")) for key in columns) + " |" for name, row in rows.items()
    ]
    return "\n".join(lines)


def _spell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "/")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
