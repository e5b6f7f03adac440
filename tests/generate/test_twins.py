"""Twins that are drawn whole: one patient, the same noise, a lesion of other sizes or in another host."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from maisi_aug.cohort.manifest import AttemptRecord, load_manifest
from maisi_aug.cohort.resolve import CohortRun
from maisi_aug.cohort.resolve import resolve as resolve_folder
from maisi_aug.cohort.twins import twin_of
from maisi_aug.errors import RecipeError, RequestError
from maisi_aug.evaluation.cohort.agreement import MatchedLabel, segment_from_folder
from maisi_aug.evaluation.cohort.case_sets import find_case_set
from maisi_aug.evaluation.cohort.detection_curve import measure_detection_curve
from maisi_aug.generate.run import synthesize_cohort
from maisi_aug.integrations.reading.cohort_source import find_num_planned
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.volumes.image_files import load_image, load_label_map, save_label_map
from tests.builders.resolver import GATES_OFF, resolver

SIZES = "size=16mm,24mm,36mm"
PLACES = "place=left lung upper lobe,right lung lower lobe"


@pytest.fixture(scope="module")
def resolve(bundle_path: Path) -> Callable[..., CohortRun]:
    return resolver(labels=["lung tumor"], num_cases=2, seed=3, bundle=str(bundle_path), gates=GATES_OFF, twins=SIZES)


@pytest.fixture(scope="module")
def folder(resolve: Callable[..., CohortRun], tmp_path_factory: pytest.TempPathFactory) -> Path:
    summary = synthesize_cohort(resolve(), tmp_path_factory.mktemp("twins") / "cohort", device="cpu")
    assert summary.is_complete
    return summary.folder


def load_map(folder: Path, record: AttemptRecord) -> np.ndarray:
    return load_label_map(folder / record.files["anatomy"].path).array


def hashes_of(folder: Path) -> dict[str, str]:
    records = load_manifest(folder).accepted
    return {f"{record.case_id} {role}": file.sha256 for record in records for role, file in record.files.items()}


def test_smaller_twins_are_the_inner_part_of_the_largest(folder: Path) -> None:
    records = load_manifest(folder).accepted
    assert [record.case_id for record in records[:3]] == ["case_0001_16mm", "case_0001_24mm", "case_0001_36mm"]
    assert [twin_of(record) for record in records[3:]] == [(1, "size", size) for size in ("16mm", "24mm", "36mm")]
    for group in (records[:3], records[3:]):
        assert len({record.seed for record in group}) == 1
        maps = [load_map(folder, record) for record in group]
        lesions = [label_map == 23 for label_map in maps]
        assert (lesions[0] <= lesions[1]).all()
        assert (lesions[1] <= lesions[2]).all()
        for label_map in maps[:2]:
            np.testing.assert_array_equal(label_map[~lesions[2]], maps[2][~lesions[2]])
        for record in group:
            (lesion,) = record.lesions
            assert lesion.realised_ml == pytest.approx(lesion.requested_ml, rel=0.1)


def test_images_of_a_group_begin_with_the_same_noise(folder: Path) -> None:
    small, _, large, other, *_ = (
        load_image(folder / record.files["image"].path).array.astype(float) for record in load_manifest(folder).accepted
    )
    assert 0 < np.abs(small - large).mean() < 0.5 * np.abs(small - other).mean()


def test_places_are_hosts_in_the_same_patient(resolve: Callable[..., CohortRun], tmp_path: Path) -> None:
    run = resolve(labels=["lung tumor:20mm"], twins=PLACES, num_cases=1)
    summary = synthesize_cohort(run, tmp_path / "cohort", device="cpu")
    records = summary.manifest.accepted
    assert [record.case_id for record in records] == [
        "case_0001_left-lung-upper-lobe",
        "case_0001_right-lung-lower-lobe",
    ]
    hosts = [record.lesions[0].host_id for record in records]
    assert hosts == [MAISI.id_of("left lung upper lobe"), MAISI.id_of("right lung lower lobe")]
    first, second = (load_map(summary.folder, record) for record in records)
    neither = (first != 23) & (second != 23)
    np.testing.assert_array_equal(first[neither], second[neither])


def test_parts_of_groups_make_the_same_bytes(folder: Path, resolve: Callable[..., CohortRun], tmp_path: Path) -> None:
    for indices in ([1, 5], [4, 0], [2, 3]):
        synthesize_cohort(resolve(), tmp_path / "cohort", device="cpu", case_indices=indices)
    assert hashes_of(tmp_path / "cohort") == hashes_of(folder)


def test_more_groups_leave_those_that_are_there(
    folder: Path, resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    begun = synthesize_cohort(resolve(num_cases=1), tmp_path / "cohort", device="cpu")
    before = hashes_of(begun.folder)
    run = resolve_folder(resolve(num_cases=2).request, begun.folder)
    assert synthesize_cohort(run, begun.folder, device="cpu").is_complete
    after = hashes_of(begun.folder)
    assert len(after) == 2 * len(before)
    assert before.items() <= after.items()
    assert find_num_planned(begun.folder) == find_num_planned(folder) == 6


def test_twins_are_rejected_together(resolve: Callable[..., CohortRun], tmp_path: Path) -> None:
    summary = synthesize_cohort(resolve(twins="size=16mm,300mm", num_cases=1), tmp_path / "cohort", device="cpu")
    assert not summary.manifest.accepted
    assert [record.status for record in summary.manifest.rejected] == ["rejected"] * 2
    assert all("lung tumor: " in record.reason for record in summary.manifest.rejected)


def test_detection_curve_counts_the_twins(folder: Path, tmp_path: Path) -> None:
    for record in load_manifest(folder).accepted:
        label_map = load_label_map(folder / record.files["label"].path)
        found = (label_map.array == 23) & (not record.case_id.endswith("_16mm"))
        save_label_map(tmp_path / f"{record.case_id}.nii.gz", found.astype(np.uint8), label_map.grid)
    (tmp_path / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "tumor": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"})
    )
    label = MatchedLabel("tumor", (1,), (23,))
    document = measure_detection_curve(
        find_case_set(folder), segment_from_folder(tmp_path), [label], segmenter="a made one"
    )
    assert [(row["name"], row["num_found"], row["num"]) for row in document["groups"]] == [
        ("16mm", 0, 2),
        ("24mm", 2, 2),
        ("36mm", 2, 2),
    ]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"twins": "contrast=100,300"},
            RequestError,
            "cannot be varied in cases that are drawn whole; only size and place can",
        ),
        ({"twins": "place=liver,spleen", "labels": ["lung tumor:20mm"]}, RequestError, "cannot contain lung tumor"),
        (
            {"twins": SIZES, "labels": ["lung tumor:20mm"]},
            RequestError,
            "needs one lesion without a size, because --twins sets it, found '",
        ),
        ({"twins": PLACES, "labels": ["lung tumor:20mmx2"]}, RequestError, "--twins needs exactly one lesion, found 2"),
        ({"mask_source": "diffusion"}, RecipeError, "twins cannot be used with mask_source 'diffusion'"),
    ],
)
def test_what_label_maps_cannot_show_is_refused(
    resolve: Callable[..., CohortRun], changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        resolve(**changes)
