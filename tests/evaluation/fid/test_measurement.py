from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maisi_aug.errors import BundleError, EvaluationError
from maisi_aug.evaluation.cohort.case_sets import find_case_set
from maisi_aug.evaluation.fid.extractors import ExtractorFile, find_extractor
from maisi_aug.evaluation.fid.feature_store import CaseFeatures, FeatureSet, collect_features, default_cache
from maisi_aug.evaluation.fid.frechet import frechet_distance, measure_moments
from maisi_aug.evaluation.fid.measurement import draw_chart, measure_fid, to_report
from maisi_aug.evaluation.fid.slices import SliceProtocol
from maisi_aug.system.engine.cores import count_threads
from maisi_aug.system.engine.processes import Processes
from maisi_aug.system.engine.work import InProcess
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_image
from tests.builders.made_cases import GRID, build_case, write_cohort, write_folder

PROTOCOL = SliceProtocol(every=10)


@pytest.fixture(scope="module")
def extractor() -> ExtractorFile:
    return find_extractor()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("fid")
    return {
        "real": write_folder(folder / "real", range(5), labelled=False),
        "cohort": write_cohort(folder / "cohort", [20, 21, 22]),
        "cache": folder / "cache",
    }


def write_nan(path: Path) -> None:
    import nibabel as nib

    array = np.zeros(GRID.shape, dtype=np.float32)
    array[3, 4, 5] = np.nan
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, GRID.affine), path)


def measure(
    real: Path, synthetic: Path, extractor: ExtractorFile, cache: Path | None, **changes: Any
) -> dict[str, Any]:
    return measure_fid(
        find_case_set(real),
        find_case_set(synthetic),
        extractor,
        **{"protocol": PROTOCOL, "cache": cache, "engine": InProcess("cpu")} | changes,
    )


def test_figures_are_those_of_the_features(places: dict[str, Path], extractor: ExtractorFile) -> None:
    document = measure(places["real"], places["cohort"], extractor, places["cache"])
    sets = collect_features(
        [find_case_set(places[name]) for name in ("real", "cohort")],
        extractor,
        PROTOCOL,
        cache=None,
        engine=InProcess("cpu"),
        notify=lambda *_: None,
    )
    for plane in ("xy", "yz", "zx"):
        expected = frechet_distance(*(measure_moments(found.of_plane(plane)) for found in sets))
        figures = document["planes"][plane]
        assert figures["fid"] == pytest.approx(expected, rel=1e-5)
        assert figures["interval"][0] <= figures["fid"] <= figures["interval"][1]
        assert len(figures["floor"]) == 3
        assert (figures["num_real_slices"], figures["num_synthetic_slices"]) == (20, 12)
    means = [document["planes"][plane]["fid"] for plane in ("xy", "yz", "zx")]
    assert document["planes"]["mean"]["fid"] == pytest.approx(np.mean(means))
    assert any("A plane has 12 slices for 1280 features: covariances are singular" in n for n in document["notes"])


def test_a_set_against_itself_is_at_zero(places: dict[str, Path], extractor: ExtractorFile) -> None:
    document = measure(places["real"], places["real"], extractor, places["cache"])
    scale = measure(places["real"], places["cohort"], extractor, places["cache"])["planes"]["mean"]["fid"]
    assert abs(document["planes"]["mean"]["fid"]) < 1e-4 * scale
    assert document["planes"]["mean"]["kid"] < 0


def test_features_are_kept_by_content(tmp_path: Path, places: dict[str, Path], extractor: ExtractorFile) -> None:
    cache = tmp_path / "cache"

    def num_cached(**changes: Any) -> tuple[int, int]:
        document = measure(places["real"], places["cohort"], extractor, cache, **changes)
        return document["real"]["num_cached"], document["synthetic"]["num_cached"]

    assert num_cached() == (0, 0)
    assert num_cached() == (5, 3)
    assert num_cached(protocol=SliceProtocol(every=11)) == (0, 0)
    sorted(cache.iterdir())[0].write_bytes(b"no features")
    assert sum(num_cached()) in (7, 8)  # a damaged entry is made again, whichever protocol's it was
    copies = tmp_path / "copies"
    copies.mkdir()
    (copies / "renamed.nii.gz").write_bytes((places["real"] / "images" / "real_00.nii.gz").read_bytes())
    assert measure(copies, places["cohort"], extractor, cache)["real"]["num_cached"] == 1


def test_bad_volumes_are_named_and_the_others_measured(
    tmp_path: Path, places: dict[str, Path], extractor: ExtractorFile
) -> None:
    write_folder(tmp_path / "real", [1, 2], labelled=False)
    write_nan(tmp_path / "real" / "images" / "nan.nii.gz")
    (tmp_path / "real" / "images" / "torn.nii.gz").write_bytes(b"\x1f\x8b torn")
    document = measure(tmp_path / "real", places["cohort"], extractor, places["cache"])
    assert document["real"]["num_cases"] == 2
    assert [case["case"] for case in document["real"]["skipped"]] == ["nan", "torn"]
    assert "has NaN or infinite values" in document["real"]["skipped"][0]["reason"]
    assert "2 real cases could not be read and are left out: nan, torn." in document["notes"]
    assert "- real nan: " in to_report(document)
    assert document["planes"]["xy"]["floor"] is None


def test_only_bad_volumes_are_an_error(tmp_path: Path, places: dict[str, Path], extractor: ExtractorFile) -> None:
    write_nan(tmp_path / "nan.nii.gz")
    with pytest.raises(EvaluationError, match="Cases: none of 1 can be measured; the first:"):
        measure(tmp_path, places["cohort"], extractor, None)


def test_one_case_and_other_voxels_are_pointed_out(
    tmp_path: Path, places: dict[str, Path], extractor: ExtractorFile
) -> None:
    grid = Grid.from_spacing((40, 40, 40), (2.0, 2.0, 4.0))
    save_image(tmp_path / "only.nii.gz", build_case(9, grid=grid)[0], grid)
    document = measure(tmp_path, places["cohort"], extractor, None)
    assert document["planes"]["mean"]["interval"] is None
    notes = "\n".join(document["notes"])
    assert "There is only one real case: no interval can be given." in notes
    assert "Voxel sizes differ: 2.00 x 2.00 x 4.00 mm in the real and 3.00 x 3.00 x 4.00 mm" in notes
    assert "Volumes differ in shape" in notes
    alike = measure(
        tmp_path,
        places["cohort"],
        extractor,
        None,
        protocol=SliceProtocol((3.0, 3.0, 4.0), (36, 36, 36), 1.0, 10),
    )
    assert not any("differ" in note for note in alike["notes"])
    one_slice = SliceProtocol(centre_share=0.01)
    with pytest.raises(EvaluationError, match="Plane xy: at least two slices of real cases are needed, found one"):
        measure(tmp_path, places["cohort"], extractor, None, protocol=one_slice)


def test_scans_of_one_patient_are_drawn_together() -> None:
    def features(case_id: str, patient: str) -> CaseFeatures:
        return CaseFeatures(case_id, patient, {"xy": np.full((2, 3), len(case_id), np.float32)}, (1, 1, 1), (1, 1, 1))

    found = FeatureSet([features("a", "p1"), features("bb", "p2"), features("ccc", "p1"), features("dddd", "")])
    assert [group[:, 0].tolist() for group in found.of_plane("xy")] == [[1, 1, 3, 3], [2, 2], [4, 4]]


def test_report_and_chart_say_which_extractor(places: dict[str, Path], extractor: ExtractorFile) -> None:
    document = measure(places["real"], places["cohort"], extractor, places["cache"])
    report = to_report(document)
    assert "Extractor efficientnet_lite0: ImageNet weights of the package" in report
    assert f"| mean | {document['planes']['mean']['fid']:.2f} |" in report
    json.dumps(document, allow_nan=False)
    chart = draw_chart(document)
    words = [element.text or "" for element in ElementTree.fromstring(chart).iter()]
    assert any(word.startswith("efficientnet_lite0; own spacing") for word in words)
    assert {"xy, synthetic", "xy, real halves", "mean, synthetic"} <= set(words)


def test_cache_lies_in_the_users_folder(user_folder: Path) -> None:
    assert default_cache() == user_folder / "features"


@pytest.mark.slow
def test_two_processes_find_the_same_figures(places: dict[str, Path], extractor: ExtractorFile, tmp_path: Path) -> None:
    """Cases do not divide evenly, and a bad one fails in one process only."""
    write_folder(tmp_path / "real", range(2), labelled=False)
    write_nan(tmp_path / "real" / "images" / "nan.nii.gz")
    before = torch.get_num_threads()
    torch.set_num_threads(count_threads(2))  # as many as in a worker: the order of sums is part of a figure
    try:
        expected = measure(tmp_path / "real", places["cohort"], extractor, None)
    finally:
        torch.set_num_threads(before)
    two = Processes(("cpu", "cpu"))
    assert measure(tmp_path / "real", places["cohort"], extractor, tmp_path / "cache", engine=two) == expected
    again = measure(tmp_path / "real", places["cohort"], extractor, tmp_path / "cache")
    assert (again["real"]["num_cached"], again["synthetic"]["num_cached"]) == (2, 3)


def test_weights_that_are_another_file_by_now_are_refused(extractor: ExtractorFile) -> None:
    with pytest.raises(BundleError, match="expected SHA-256 0000000000000000..., found another file"):
        replace(extractor, sha256="0" * 64).load("cpu")
