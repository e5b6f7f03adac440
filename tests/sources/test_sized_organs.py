from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maisi_aug.banks.folder_bank import FolderBank
from maisi_aug.bundle_spec.bundle import load_bundle
from maisi_aug.cohort.grammar import parse_requests
from maisi_aug.cohort.manifest import load_manifest
from maisi_aug.cohort.plan import CasePlan
from maisi_aug.cohort.request import GateConfig, build_request
from maisi_aug.cohort.resolve import resolve
from maisi_aug.errors import BankError, LesionError, RequestError
from maisi_aug.gates.judgement import judge_label_map
from maisi_aug.generate.run import synthesize_cohort
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.sources.plant_and_bank import BankSource, PlantSource
from maisi_aug.sources.sized_organs import SizedOrganSource, resize_organ
from maisi_aug.training.cases.prepared import PreparedStore
from maisi_aug.training.finetune.run import Finetuning
from maisi_aug.vocabulary.labels import MAISI, SlotBinding
from maisi_aug.vocabulary.sizes import SizeDistribution
from maisi_aug.volumes.grid import Grid
from tests.builders.lesions import ask_for, draw
from tests.builders.tiny_prepared import GLAND, NODULE, write_prepared, write_tiny_base
from tests.builders.tiny_training import BODY, LIVER, tiny_grid
from tests.training.finetune.test_run import build_config as build_finetuning

VOCABULARY = MAISI.with_slots(
    {"gland": SlotBinding(GLAND, (BODY,), is_organ=True), "bright nodule": SlotBinding(NODULE, (LIVER,))}
)
VOXEL_ML = tiny_grid().voxel_ml


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("data"), num_cases=4)


@pytest.fixture
def source(data: Path) -> SizedOrganSource:
    bank = FolderBank(data / "labels", vocabulary=VOCABULARY, grid=tiny_grid(), mapping="maisi")
    return SizedOrganSource(bank, PlantSource(bank))


def wish(volume_ml: float, label_id: int = GLAND) -> Lesion:
    return ask_for(label_id, VOCABULARY.hosts_of(label_id), volume_ml, VOCABULARY.name_of(label_id))


def test_organ_is_brought_to_the_exact_volume(source: SizedOrganSource) -> None:
    drawn = draw(source, [wish(70 * VOXEL_ML)], seed=3)
    assert int((drawn.label_map == GLAND).sum()) == 70
    assert drawn.lesions[0].realised_ml == pytest.approx(70 * VOXEL_ML)
    assert drawn.origin["original_ml"][0] in (pytest.approx(64 * VOXEL_ML), pytest.approx(80 * VOXEL_ML))
    assert not (drawn.label_map == NODULE).any()  # nobody asked for one
    again = draw(source, [wish(70 * VOXEL_ML)], seed=3)
    np.testing.assert_array_equal(drawn.label_map, again.label_map)
    assert (draw(source, [wish(70 * VOXEL_ML)], seed=4).label_map != drawn.label_map).any()


def test_lesion_is_planted_beside_the_organ(source: SizedOrganSource) -> None:
    drawn = draw(source, [wish(20 * VOXEL_ML, NODULE), wish(75 * VOXEL_ML)], required_ids=[LIVER], seed=1)
    assert int((drawn.label_map == NODULE).sum()) == 20
    assert [lesion.label_id for lesion in drawn.lesions] == [NODULE, GLAND]
    assert [lesion.host_id for lesion in drawn.lesions] == [LIVER, BODY]


def test_request_without_an_organ_goes_to_the_other_source(source: SizedOrganSource) -> None:
    drawn = draw(source, [wish(20 * VOXEL_ML, NODULE)], seed=1)
    assert drawn.origin["source"] == "plant"


def test_size_that_no_patient_is_near_to_is_refused(source: SizedOrganSource) -> None:
    with pytest.raises(LesionError, match="the nearest has 174.72 mL"):
        draw(source, [wish(200 * VOXEL_ML)], seed=1)


def test_bank_without_the_organ_is_refused(tmp_path: Path) -> None:
    data = write_prepared(tmp_path, num_cases=2, with_gland=False)
    bank = FolderBank(data / "labels", vocabulary=VOCABULARY, grid=tiny_grid(), mapping="maisi")
    with pytest.raises(BankError, match="no map contains gland"):
        draw(SizedOrganSource(bank, BankSource(bank)), [wish(70 * VOXEL_ML)], seed=1)


def test_organ_in_parts_keeps_its_parts() -> None:
    label_map = np.full((12, 14, 16), BODY, dtype=np.uint8)
    label_map[2:5, 2:5, 2:5] = GLAND
    label_map[8:10, 9:12, 10:13] = GLAND
    for num_voxels in (30, 45, 70):
        resized = resize_organ(label_map, GLAND, num_voxels=num_voxels, hosts=(BODY,), spacing_mm=(0.7, 0.8, 2.5))
        assert int((resized == GLAND).sum()) == num_voxels
        assert (resized[:6] == GLAND).any()
        assert (resized[7:] == GLAND).any()
        assert set(np.unique(resized)) == {BODY, GLAND}


def test_size_gate_takes_all_parts_of_an_organ_together() -> None:
    label_map = np.zeros((8, 9, 10), dtype=np.uint8)
    label_map[1:3, 1:3, 1:3] = label_map[5:7, 5:7, 5:7] = GLAND
    grid = Grid.from_spacing((8, 9, 10), (10.0, 10.0, 10.0))
    case = CasePlan("case_0001", 0, "gland:16mL", (Lesion(GLAND, "gland", 16.0),), ())
    judged = judge_label_map(case, label_map, grid, vocabulary=VOCABULARY, gates=GateConfig())
    assert judged.reason == ""
    assert [lesion.realised_ml for lesion in judged.lesions] == [pytest.approx(16.0)]


SIZES = {"gland": SizeDistribution("gland", tuple(float(n + 1) for n in range(21)), "lab")}


def test_percentile_of_an_organ_means_what_was_measured() -> None:
    ((request,), (plain,)) = (
        parse_requests([text], vocabulary=VOCABULARY, distributions=SIZES) for text in ("gland:0.5", "gland")
    )
    size = request.lesions[0].size
    assert size is not None
    assert size.low_ml == 11.0
    assert plain.lesions[0].size is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gland:0.5x2", "gland' is an organ and cannot have a count, found x2"),
        ("liver:0.5", "liver' cannot have a size, found '"),
    ],
)
def test_organs_are_asked_for_once_and_with_sizes_that_are_known(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_requests([text], vocabulary=VOCABULARY, distributions=SIZES)


def test_fine_tuned_bundle_draws_at_once(data: Path, tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base")
    config = build_finetuning(num_pictures=0, slots={"gland": "dummy3"}, loop={"num_steps": 1})
    bundle = Finetuning(base, PreparedStore.from_folder(data), config, tmp_path / "run", "cpu").train().bundle
    assert load_bundle(bundle.path).vocabulary.id_of("gland") == 18
    values = {
        "labels": ["gland:0.5", "bright nodule:0.5"],
        "num_cases": 2,
        "bundle": str(bundle.path),
        "gates": {"organ_hu": False, "visibility": False},
    }
    summary = synthesize_cohort(resolve(build_request(values)), tmp_path / "cohort", device="cpu")
    assert summary.is_complete
    origins = {record.request: record.mask_origin for record in load_manifest(tmp_path / "cohort").accepted}
    assert {origin["source"] for origin in origins.values()} == {"bank", "plant"}
    # Validation cases never serve: fold 0 holds p0 and p3.
    assert {Path(str(origin["file"])).name for origin in origins.values()} <= {"p1.nii.gz", "p2.nii.gz"}
    with pytest.raises(
        RequestError, match="'gland' is not planted, so that label maps must contain it; the phantoms do not"
    ):
        resolve(build_request({**values, "mask_bank": "phantom"}))
    with pytest.raises(RequestError, match="lesions together with 'gland' need mask_source 'plant', found 'bank'"):
        resolve(
            build_request(
                {
                    **values,
                    "labels": ["gland:0.5+bright nodule:0.5"],
                    "mask_source": "bank",
                    "mask_bank": str(data / "labels"),
                }
            )
        )
