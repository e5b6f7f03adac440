from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maisi_aug.bundle_spec.bundle import Bundle, load_bundle
from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.cohort.case_sets import find_case_set
from maisi_aug.evaluation.cohort.reconstruction import Autoencoder, measure_reconstruction, to_report
from maisi_aug.system.engine.work import InProcess
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image
from tests.builders.made_cases import write_folder

ODD: Grid = Grid.from_spacing((37, 35, 33), (3.0, 3.0, 4.0))
RunCli = Callable[..., Any]


def quiet(done: int, total: int) -> None:
    pass


def test_cts_of_any_shape_come_back_on_their_own_grid(bundle: Bundle, rng: np.random.Generator) -> None:
    image_hu = rng.integers(-1000, 1000, (21, 18, 13)).astype(np.int16)
    before = image_hu.copy()
    rebuilt = Autoencoder.load(bundle, "cpu").rebuild(image_hu)
    assert rebuilt.shape == image_hu.shape
    assert rebuilt.dtype == np.float32
    assert rebuilt.min() >= -1000
    assert rebuilt.max() <= 1000
    np.testing.assert_array_equal(image_hu, before)


def test_embedded_autoencoder_keeps_organs_and_says_so(tmp_path: Path) -> None:
    bundle = load_bundle("phantom-ct")
    real = write_folder(tmp_path / "real", [1, 2], grid=ODD)
    save_image(real / "images" / "bare.nii.gz", np.full(ODD.shape, -1000, dtype=np.int16), ODD)
    (real / "images" / "broken.nii.gz").write_bytes(b"no volume")
    case_set = find_case_set(real, vocabulary=bundle.vocabulary)
    document, picture = measure_reconstruction(case_set, bundle, quiet, engine=InProcess("cpu"))
    assert document["num_cases"] == 3
    assert [row["case"] for row in document["skipped"]] == ["broken"]
    by_label = {row["name"]: row for row in document["labels"]}
    assert {"liver", "spleen"} <= set(by_label)
    assert abs(by_label["liver"]["bias_hu"]) < 2
    assert document["summary"]["lpips"]["mean"] is None
    assert document["summary"]["psnr_db"]["mean"] > 60, "a wavelet transform loses next to nothing"
    assert document["peak_memory_gb"]["host"] > 0.1
    assert any("the networks of the bundle were not trained on its grid" in note for note in document["notes"])
    assert picture.height > 600
    report = to_report(json.loads(json.dumps(document)))
    assert "LPIPS: not measured without --lpips-weights." in report
    assert "broken" in report


def test_command_writes_figures_chart_and_worst_slices(run_cli: RunCli, bundle: Bundle, tmp_path: Path) -> None:
    real, out = write_folder(tmp_path / "real", [1], labelled=False), tmp_path / "out"
    outcome = run_cli("evaluate", "reconstruction", real, "--bundle", bundle.path, "--device", "cpu", "--out", out)
    assert outcome.code == 0, outcome.stderr
    files = ["reconstruction.json", "reconstruction.md", "reconstruction.svg", "worst_slices.png"]
    assert sorted(path.name for path in out.iterdir()) == files


def test_folder_without_cts_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no CT volumes"):
        find_case_set(tmp_path, vocabulary=bundle.vocabulary)
