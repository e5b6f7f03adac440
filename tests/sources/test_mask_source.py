"""The mask source ``diffusion``: what is generated, what is planted, by seed alone, and how a cohort is made of it.

Needs ``maisi_aug.sources.map_cleanup``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.cohort.manifest import load_manifest
from maisi_aug.cohort.resolve import CohortRun
from maisi_aug.errors import BankError, BundleError, GridError, LesionError, RecipeError
from maisi_aug.generate.driver import Listener
from maisi_aug.generate.run import synthesize_cohort
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.lesions.planting import measure_lesions
from maisi_aug.networks.mask_conditions import CONDITION_IDS, SIZED_TUMORS
from maisi_aug.networks.mask_generator import MaskGenerator
from maisi_aug.sources.diffusion import DiffusionSource
from maisi_aug.vocabulary.labels import BODY_ID
from maisi_aug.volumes.grid import Grid
from tests.builders.lesions import Drawn, ask_for, draw
from tests.builders.resolver import GATES_OFF, resolver
from tests.builders.tiny_bundle import write_tiny_bundle
from tests.builders.tiny_masks import write_tiny_mask_bundle

LIVER, SPLEEN, HEPATIC_TUMOR, KIDNEY_TUMOR = 1, 3, 26, 129


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_mask_bundle(tmp_path_factory.mktemp("masks")).path


@pytest.fixture(scope="module")
def resolve(folder: Path) -> Callable[..., CohortRun]:
    return resolver(
        labels=["hepatic tumor:14mm"], bundle=str(folder), mask_source="diffusion", gates=GATES_OFF, num_cases=2
    )


@pytest.fixture(scope="module")
def source(resolve: Callable[..., CohortRun]) -> DiffusionSource:
    cohort = resolve()
    return DiffusionSource(MaskGenerator.load(cohort.bundle, "cpu"), cohort.bundle.vocabulary, cohort.grid)


def wish(source: DiffusionSource, label_id: int, volume_ml: float) -> Lesion:
    vocabulary = source.vocabulary
    return ask_for(label_id, vocabulary.hosts_of(label_id), volume_ml, vocabulary.name_of(label_id))


def require_exact(drawn: Drawn, wishes: Sequence[Lesion], source: DiffusionSource) -> None:
    """The map holds these lesions and no other, as the source says it does."""
    voxel_ml = drawn.grid.voxel_ml
    assert drawn.label_map.shape == source.grid.shape
    for label_id in source.vocabulary.tumor_ids:
        wanted = sorted((one.requested_ml for one in wishes if one.label_id == label_id), reverse=True)
        found = measure_lesions(drawn.label_map, label_id, voxel_ml)
        assert len(found) == len(wanted)
        assert all(abs(a - b) <= max(0.1 * b, 2 * voxel_ml) for a, b in zip(found, wanted, strict=True))
    assert [lesion.label_id for lesion in drawn.lesions] == [one.label_id for one in wishes]
    assert json.loads(json.dumps(drawn.origin)) == drawn.origin


class Drawing:
    """Stands for mask networks that have learnt something: a body with a liver, a kidney and tumours of given radii."""

    num_inference_steps = 3

    def __init__(self, generator: MaskGenerator, *radii_mm: float, has_spleen: bool = True) -> None:
        self.size_conditions = generator.size_conditions
        self.grid = Grid.from_spacing((52, 48, 44), (4.0, 4.0, 4.0))
        self.radii_mm = list(radii_mm)
        self.has_spleen = has_spleen
        self.conditions: list[list[float]] = []

    def generate(self, condition: NDArray[np.float32], *, seed: int, report: Any = None) -> NDArray[np.uint8]:
        del seed, report
        label_map = np.zeros(self.grid.shape, dtype=np.uint8)
        label_map[4:48, 6:42, :] = BODY_ID
        label_map[10:26, 14:34, 12:32] = LIVER
        label_map[32:40, 14:24, 12:24] = 14
        if self.has_spleen:
            label_map[34:42, 28:36, 26:36] = SPLEEN
        radius_mm = self.radii_mm[min(len(self.conditions), len(self.radii_mm) - 1)]
        self.conditions.append(condition.tolist())
        centre = np.ones(self.grid.shape, dtype=bool)
        centre[18, 24, 22] = False
        label_map[ndimage.distance_transform_edt(centre, sampling=self.grid.spacing_mm) < radius_mm] = HEPATIC_TUMOR
        return label_map


def with_drawing(source: DiffusionSource, *radii_mm: float, **changes: Any) -> tuple[DiffusionSource, Drawing]:
    drawing = Drawing(source.generator, *radii_mm, **changes)
    grid = Grid.from_spacing((50, 46, 42), (4.2, 4.2, 4.2))
    return replace(source, generator=drawing, grid=grid), drawing  # type: ignore[arg-type]


@pytest.mark.parametrize("volume_ml", [6.0, 9.0, 14.0])
def test_lesion_of_the_networks_is_brought_to_its_volume(volume_ml: float, source: DiffusionSource) -> None:
    ours, drawing = with_drawing(source, 13.0)  # 9 mL
    wishes = [wish(ours, HEPATIC_TUMOR, volume_ml)]
    drawn = draw(ours, wishes, required_ids=(SPLEEN,), seed=1)
    require_exact(drawn, wishes, ours)
    assert drawn.origin["is_planted"] is False
    assert drawn.origin["num_maps"] == 1
    assert drawn.origin["generated_ml"] == pytest.approx(9.0, rel=0.1)
    assert drawn.lesions[0].host_id == LIVER
    told = dict(zip(CONDITION_IDS, drawing.conditions[0], strict=True))
    assert [label_id for label_id in SIZED_TUMORS if told[label_id] >= 0] == [HEPATIC_TUMOR]
    assert drawn.origin["condition"] == pytest.approx(drawing.conditions[0], abs=1e-4)


def test_map_with_the_wrong_lesion_is_drawn_again(source: DiffusionSource) -> None:
    ours, drawing = with_drawing(source, 30.0, 0.0, 13.0)
    drawn = draw(ours, [wish(ours, HEPATIC_TUMOR, 9.0)], seed=1)
    assert (drawn.origin["is_planted"], drawn.origin["num_maps"], len(drawing.conditions)) == (False, 3, 3)
    assert len({tuple(condition) for condition in drawing.conditions}) > 1, "and from another condition"


def test_after_a_few_maps_the_lesion_is_planted(source: DiffusionSource) -> None:
    ours, drawing = with_drawing(source, 30.0)
    wishes = [wish(ours, HEPATIC_TUMOR, 2.0)]
    drawn = draw(ours, wishes, seed=1)
    require_exact(drawn, wishes, ours)
    assert drawn.origin["is_planted"] is True
    assert len(drawing.conditions) == ours.max_maps


@pytest.mark.parametrize("kinds", [(KIDNEY_TUMOR,), (HEPATIC_TUMOR, KIDNEY_TUMOR), (HEPATIC_TUMOR, HEPATIC_TUMOR)])
def test_what_the_networks_are_not_told_is_planted_at_once(kinds: tuple[int, ...], source: DiffusionSource) -> None:
    ours, drawing = with_drawing(source, 13.0)
    wishes = [wish(ours, label_id, 4.0) for label_id in kinds]
    drawn = draw(ours, wishes, required_ids=(SPLEEN,), seed=1)
    require_exact(drawn, wishes, ours)
    assert drawn.origin["is_planted"] is True
    assert len(drawing.conditions) == 1
    assert drawing.conditions[0][5:] == [-1.0] * 5


def test_case_without_lesions_is_tumour_free(source: DiffusionSource) -> None:
    ours, _ = with_drawing(source, 13.0)
    drawn = draw(ours, [], required_ids=(LIVER,), seed=2)
    require_exact(drawn, [], ours)
    assert drawn.origin["is_planted"] is False


def test_missing_organ_and_lesion_without_room_are_told_after_bounded_tries(source: DiffusionSource) -> None:
    ours, drawing = with_drawing(source, 13.0, has_spleen=False)
    with pytest.raises(BankError, match="generated maps has a host of hepatic tumor and spleen"):
        draw(ours, [wish(ours, HEPATIC_TUMOR, 9.0)], required_ids=(SPLEEN,), seed=1)
    assert len(drawing.conditions) == ours.max_maps
    with pytest.raises(LesionError, match="kidney tumor: no room for 4000"):
        draw(ours, [wish(ours, KIDNEY_TUMOR, 4000.0)], seed=1)


def test_map_without_a_body_is_passed_over(source: DiffusionSource, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, drawing = with_drawing(source, 13.0)
    monkeypatch.setattr(drawing, "generate", lambda *_, **__: np.zeros(drawing.grid.shape, dtype=np.uint8))
    with pytest.raises(BankError, match="Mask generator: none of 3 generated maps has a body"):
        draw(ours, [], seed=1)


def test_organ_sizes_reach_the_networks(source: DiffusionSource) -> None:
    ours, drawing = with_drawing(source, 13.0)
    draw(replace(ours, organ_sizes={LIVER: 0.25, 10: -1.0}), [], seed=1)
    assert drawing.conditions[0][:2] == [-1.0, 0.25]


def test_seed_alone_decides(source: DiffusionSource) -> None:
    wishes = [wish(source, HEPATIC_TUMOR, 1.5)]
    drawn = [draw(source, wishes, seed=seed) for seed in (7, 8)]
    for one in drawn:
        require_exact(one, wishes, source)
    again = draw(source, wishes, seed=7)
    np.testing.assert_array_equal(again.label_map, drawn[0].label_map)
    assert (again.origin, again.lesions) == (drawn[0].origin, drawn[0].lesions)
    assert (drawn[1].label_map != drawn[0].label_map).any()
    assert drawn[1].origin["condition"] != drawn[0].origin["condition"]


class Noting(Listener):
    def __init__(self) -> None:
        self.maps: list[tuple[int, int, int]] = []

    def generates(self, number: int, done: int, total: int) -> None:
        self.maps.append((number, done, total))


def test_cohort_is_made_and_says_how(resolve: Callable[..., CohortRun], tmp_path: Path) -> None:
    cohort = resolve(labels=["hepatic tumor:14mm", "kidney tumor:14mm+liver"], size_of={"Liver": 0.5})
    assert cohort.mask_steps == 3
    noting = Noting()
    summary = synthesize_cohort(cohort, tmp_path / "one", device="cpu", listener=noting)
    assert summary.is_complete
    assert {(1, 1, 3), (1, 3, 3)} <= set(noting.maps)
    records = load_manifest(tmp_path / "one").accepted
    assert [record.mask_origin["source"] for record in records] == ["diffusion", "diffusion"]
    assert all(record.mask_origin["condition"][1] == 0.5 for record in records)  # type: ignore[index]
    assert "mask_networks_sha256" in (tmp_path / "one" / "cohort.yaml").read_text()
    synthesize_cohort(cohort, tmp_path / "two", device="cpu", case_indices=[1, 0])
    again = load_manifest(tmp_path / "two").accepted
    assert [one.files for one in again] == [one.files for one in records], "in any order the same bytes"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"mask_steps": 1001}, RecipeError, "mask_steps: at most 1000"),
        (
            {"size_of": {"spleen": 0.5}},
            RecipeError,
            "size_of 'spleen': the mask networks are not conditioned on its size, only on",
        ),
        ({"size_of": {"liver": -1}}, RecipeError, "size_of 'liver': cannot be -1"),
        ({"shape": [64, 48, 56]}, GridError, "cover 307 mm from feet to head, this grid 358 mm"),
        (
            {"mask_bank": "some/folder"},
            RecipeError,
            "mask_bank cannot be used with mask_source 'diffusion', found some",
        ),
        ({"mask_labels": "maisi"}, RecipeError, "mask_labels cannot be used with mask_source 'diffusion'"),
        ({"mask_source": "plant", "mask_steps": 3}, RecipeError, "mask_steps cannot be used with mask_source 'plant'"),
        (
            {"mask_source": "plant", "size_of": {"liver": 0.5}},
            RecipeError,
            "size_of cannot be used with .*'plant', found .*0.5.* 'diffusion', or",
        ),
        ({"size_of": {"liver": "big"}}, RecipeError, "size_of"),
    ],
)
def test_what_cannot_be_made_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str, resolve: Callable[..., CohortRun]
) -> None:
    with pytest.raises(error, match=message):
        resolve(**changes)


def test_bundle_without_mask_networks_is_refused_before_anything_is_made(
    resolve: Callable[..., CohortRun], tmp_path: Path
) -> None:
    plain = write_tiny_bundle(tmp_path)
    with pytest.raises(BundleError, match="'tiny': .* needs mask networks.* bundles pull rflow-ct --with-masks"):
        resolve(bundle=str(plain.path))


def test_command_line_takes_steps_and_sizes(run_cli: Callable[..., Any], folder: Path) -> None:
    words = ["synthesize", "--labels", "hepatic tumor:14mm", "--bundle", folder, "--mask-source", "diffusion"]
    outcome = run_cli(*words, "--mask-steps", "5", "--size-of", "liver:0.5", "--size-of", "gallbladder:-1", "--dry-run")
    assert outcome.code == 0, outcome.stderr
    assert "label maps: diffusion, 5 steps" in outcome.stdout
    planned = json.loads(run_cli(*words, "--size-of", "liver:0.5", "--dry-run", "--json").stdout)
    assert planned["configuration"]["size_of"] == {"liver": 0.5}
    for sizes in (["liver"], ["liver:big"], ["liver:0.5", "liver:0.6"]):
        wrong = run_cli(*words, *(word for text in sizes for word in ("--size-of", text)), "--dry-run")
        assert (wrong.code, wrong.stdout) == (2, "")
        assert "--size-of: expected" in wrong.stderr
