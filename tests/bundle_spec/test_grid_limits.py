from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from maisi_aug.bundle_spec.bundle import load_bundle
from maisi_aug.bundle_spec.grid_limits import GridLimits, find_shortfalls, nearest_grid, spell_limits
from maisi_aug.bundle_spec.known_bundles import known_bundles
from maisi_aug.training.images.recipe import load_training_recipe, training_recipe_path
from maisi_aug.volumes.grid import Grid, Shape, Spacing

RFLOW = GridLimits.model_validate(known_bundles()["rflow-ct"].header["grid_limits"])
PHANTOM = load_training_recipe(training_recipe_path("train-phantom-ct")).bundle.grid_limits or RFLOW
# Limits of networks that see the share of air, like those of the first phantom-ct.
BOUNDED = GridLimits.model_validate(
    {
        "sides": [[96], [80], [16, 32, 48, 64, 80, 96]],
        "spacing_mm": [[4.0, 4.0]] * 3,
        "extent_mm": [[350.0, 420.0], [300.0, 350.0]],
    }
)
NUM_RECOMMENDED = 9


def grid_of(shape: Shape, spacing_mm: Spacing) -> Grid:
    return Grid.from_spacing(shape, spacing_mm)


def lacks(shape: Shape, spacing_mm: Spacing, limits: GridLimits = RFLOW, **options: Any) -> list[tuple[str, bool]]:
    found = find_shortfalls(grid_of(shape, spacing_mm), limits, **options)
    return [(shortfall.expected, shortfall.is_refused) for shortfall in found]


@pytest.mark.parametrize("name", ["rflow-ct", "ddpm-ct"])
def test_published_bundles_carry_limits_that_admit_their_own_grids(name: str) -> None:
    header = known_bundles()[name].header
    limits = GridLimits.model_validate(header["grid_limits"])
    assert limits == RFLOW
    assert limits.admits(grid_of(tuple(header["grid"]["shape"]), tuple(header["grid"]["spacing_mm"])))
    assert len(limits.recommended) == NUM_RECOMMENDED
    for spec in limits.recommended.values():
        assert lacks(spec.shape, spec.spacing_mm) == []
        i, j, k = np.asarray(spec.spacing_mm, dtype=np.float32).tolist()  # as files keep them
        assert lacks(spec.shape, (i, j, k)) == []


def test_embedded_bundle_carries_the_limits_of_its_recipe() -> None:
    bundle = load_bundle("phantom-ct")
    assert bundle.spec.grid_limits == PHANTOM != RFLOW
    assert PHANTOM.admits(bundle.grid)


def test_no_grid_is_refused_by_the_embedded_bundle() -> None:
    for shape, spacing_mm in (((256, 64, 48), (1.0, 5.0, 9.0)), ((32, 32, 32), (20.0, 20.0, 20.0))):
        found = lacks(shape, spacing_mm, PHANTOM)
        assert found
        assert not any(is_refused for _, is_refused in found)


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "expected"),
    [
        ((256, 256, 256), (1.5, 1.5, 1.5), []),
        ((512, 512, 768), (0.75, 0.75, 0.66667), []),
        (
            (512, 384, 128),
            (0.75, 1.0, 3.0),
            [("as many voxels along I as along J", True), ("the same spacing along I as along J", True)],
        ),
        ((256, 256, 256), (1.5, 1.5, 5.5), [("a spacing of 0.5 to 5 mm along K", True)]),
        (
            (512, 512, 512),
            (0.4, 0.4, 1.0),
            [
                ("a spacing of 0.5 to 3 mm along I and J", True),
                ("a field of view of at least 384 mm along I and J", False),
            ],
        ),
        (
            (320, 320, 200),
            (1.2, 1.2, 1.2),
            [
                ("256, 384 or 512 voxels along I and J", False),
                ("128, 256, 384, 512, 640 or 768 voxels along K", False),
            ],
        ),
        ((256, 256, 128), (1.2, 1.2, 2.0), [("a field of view of at least 384 mm along I and J", False)]),
    ],
)
def test_what_a_grid_lacks_is_told(shape: Shape, spacing_mm: Spacing, expected: list[tuple[str, bool]]) -> None:
    assert lacks(shape, spacing_mm) == expected


def test_head_needs_less_field_of_view() -> None:
    assert lacks((256, 256, 128), (1.0, 1.0, 2.0), shows_head_alone=True) == []
    assert lacks((256, 256, 128), (0.9, 0.9, 2.0), shows_head_alone=True) == [
        ("a field of view of at least 256 mm along I and J", False)
    ]


def test_field_of_view_may_be_bounded_both_ways() -> None:
    assert lacks((112, 96, 64), (3.2, 3.2, 3.2), BOUNDED) == [
        ("96 voxels along I", False),
        ("80 voxels along J", False),
        ("a spacing of 4 mm along I, J and K", False),
    ]
    small = ("a field of view of 350 to 420 mm along I", True), ("a field of view of 300 to 350 mm along J", True)
    assert [*small] == [item for item in lacks((64, 64, 64), (4.0, 4.0, 4.0), BOUNDED) if item[1]]
    assert [*small] == [item for item in lacks((128, 96, 64), (4.0, 4.0, 4.0), BOUNDED) if item[1]]


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "nearest_shape", "nearest_spacing_mm"),
    [
        ((320, 320, 200), (1.2, 1.2, 1.2), (384, 384, 256), (1.0, 1.0, 0.938)),
        ((512, 384, 128), (0.8, 0.8, 3.0), (512, 512, 128), (0.75, 0.75, 3.0)),
        ((512, 512, 512), (0.4, 0.4, 1.0), (512, 512, 512), (0.75, 0.75, 1.0)),
        ((256, 256, 256), (1.5, 1.5, 6.0), (256, 256, 256), (1.5, 1.5, 5.0)),
        ((256, 256, 128), (1.0, 1.0, 2.0), (256, 256, 128), (1.5, 1.5, 2.0)),
        ((1024, 1024, 2000), (0.4, 0.4, 0.4), (512, 512, 768), (0.8, 0.8, 1.042)),
        ((32, 32, 32), (20.0, 20.0, 20.0), (256, 256, 128), (2.5, 2.5, 5.0)),
    ],
)
def test_nearest_grid_changes_as_little_as_it_can(
    shape: Shape, spacing_mm: Spacing, nearest_shape: Shape, nearest_spacing_mm: Spacing
) -> None:
    nearest = nearest_grid(grid_of(shape, spacing_mm), RFLOW)
    assert nearest.shape == nearest_shape
    assert nearest.spacing_mm == pytest.approx(nearest_spacing_mm)


@pytest.mark.parametrize("limits", [RFLOW, PHANTOM, BOUNDED], ids=["rflow-ct", "phantom-ct", "bounded"])
@pytest.mark.parametrize("is_head", [False, True])
def test_nearest_grid_lacks_nothing_whatever_was_asked_for(
    limits: GridLimits, is_head: bool, rng: np.random.Generator
) -> None:
    for _ in range(300):
        i, j, k = (int(side) for side in np.exp(rng.uniform(np.log(8), np.log(2000), 3)))
        di, dj, dk = np.exp(rng.uniform(np.log(0.1), np.log(20), 3))
        nearest = nearest_grid(grid_of((i, j, k), (di, dj, dk)), limits, shows_head_alone=is_head)
        assert find_shortfalls(nearest, limits, shows_head_alone=is_head) == []
        again = nearest_grid(nearest, limits, shows_head_alone=is_head)
        assert again.shape == nearest.shape
        assert again.spacing_mm == pytest.approx(nearest.spacing_mm)


@pytest.mark.parametrize(
    "changes",
    [
        {"sides": [[512, 256], [512, 256], [128]]},
        {"spacing_mm": [[3.0, 0.5], [3.0, 0.5], [0.5, 5.0]]},
        {"extent_mm": [[400, 300], [300, 400]]},
        {"sides": [[256], [512], [128]]},
        {"sides": [[], [256], [128]]},
        {"colour": "red"},
    ],
)
def test_limits_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GridLimits.model_validate({**RFLOW.model_dump(mode="json"), **changes})


def test_limits_are_told_in_a_line() -> None:
    assert spell_limits(RFLOW) == (
        "256, 384 or 512 voxels of 0.5 to 3 mm along I and J; "
        "128, 256, 384, 512, 640 or 768 voxels of 0.5 to 5 mm along K"
    )
    assert spell_limits(BOUNDED).startswith("96 voxels of 4 mm along I; 80 voxels of 4 mm along J; 16, 32, ")
