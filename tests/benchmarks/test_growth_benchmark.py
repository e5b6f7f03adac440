from __future__ import annotations

from pathlib import Path

from maisi_aug.cohort.folder import find_lost
from maisi_aug.cohort.manifest import load_manifest
from maisi_aug.cohort.request import build_request
from maisi_aug.cohort.resolve import resolve
from maisi_aug.generate.run import synthesize_cohort
from tests.benchmarks.growth import LABELS, to_markdown, write_cohort


def test_cohort_of_links_is_one_that_synthesize_finds_finished(tmp_path: Path) -> None:
    write_cohort(tmp_path / "cohort", 5)
    assert find_lost(tmp_path / "cohort", load_manifest(tmp_path / "cohort"), verify=True) == []
    config = build_request({"labels": list(LABELS), "num_cases": 5}, source="test")
    summary = synthesize_cohort(resolve(config, tmp_path / "cohort"), tmp_path / "cohort", device="none")
    assert (summary.is_complete, summary.num_new) == (True, 0)


def test_table_holds_versions_side_by_side() -> None:
    rows = [
        {"command": "resume", "num_cases": 1000, "version": version, "seconds": seconds, "peak_mb": 95}
        for version, seconds in (("now", 1.2), ("before", 1.6))
    ]
    text = to_markdown({"start_seconds": 0.1, "rows": rows})
    assert text.endswith("| resume | 1,000 | 1.6 | 1.2 | 95 | 95 |\n")
