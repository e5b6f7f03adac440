from __future__ import annotations

from typing import Any

import pytest

from maisi_aug.bundle_spec.bundle import Bundle, load_bundle
from maisi_aug.cohort.request import build_request
from maisi_aug.cohort.resolve import resolve as resolve_request
from maisi_aug.cohort.resolve import shows_head_alone
from maisi_aug.errors import GridError
from maisi_aug.volumes.grid import Grid, Shape, Spacing
from tests.builders.published_bundle import write_published_bundle


@pytest.fixture(scope="module")
def rflow(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """NVIDIA's definitions and limits without weights."""
    return write_published_bundle(tmp_path_factory.mktemp("bundles") / "rflow-ct")


def check(bundle: Bundle, shape: Shape, spacing_mm: Spacing, **options: Any) -> tuple[str, ...]:
    return bundle.check_grid(Grid.from_spacing(shape, spacing_mm), **options)


def test_good_grid_passes_in_silence(rflow: Bundle) -> None:
    assert check(rflow, (512, 512, 512), (1.0, 1.0, 1.0)) == ()
    assert check(rflow, (512, 512, 128), (0.684, 0.684, 2.422)) == ()


def test_grid_that_cannot_work_is_refused_with_the_nearest_good_one(rflow: Bundle) -> None:
    with pytest.raises(GridError) as caught:
        check(rflow, (512, 384, 128), (0.4, 0.4, 3.0))
    assert str(caught.value) == (
        "Grid for bundle 'rflow-ct': expected as many voxels along I as along J, a spacing of 0.5 to 3 mm along I and "
        "J and a field of view of at least 384 mm along I and J, found 512x384x128 at 0.4x0.4x3 mm (205x154x384 mm). "
        "Use --shape 512x512x128 --spacing 0.75x0.75x3 (384x384x384 mm); or add --allow-unseen-grid, if the weights "
        "were trained on such grids."
    )


def test_refusal_can_be_made_a_warning(rflow: Bundle) -> None:
    (sentence,) = check(rflow, (512, 384, 128), (0.8, 0.8, 3.0), allow_unseen=True)
    assert sentence.startswith("Grid for bundle 'rflow-ct': expected as many voxels along I as along J")
    assert "try --shape 512x512x128 --spacing 0.75x0.75x3" in sentence


def test_unseen_grid_is_warned_of(rflow: Bundle) -> None:
    (sentence,) = check(rflow, (320, 320, 128), (1.2, 1.2, 3.0))
    assert sentence == (
        "Grid for bundle 'rflow-ct': expected 256, 384 or 512 voxels along I and J, found 320x320x128 at 1.2x1.2x3 mm "
        "(384x384x384 mm). The networks were not trained on such grids, and images may be poor: try --shape "
        "384x384x128 --spacing 1x1x3 (384x384x384 mm)."
    )
    assert "at least 384 mm" in check(rflow, (256, 256, 128), (1.0, 1.0, 2.0))[0]
    assert check(rflow, (256, 256, 128), (1.0, 1.0, 2.0), shows_head_alone=True) == ()


def test_sides_that_the_networks_cannot_halve_are_refused_whatever_is_allowed(rflow: Bundle) -> None:
    with pytest.raises(GridError, match=r"multiples of 32, found 500x500x120 .* Use --shape 512x512x128 --spacing"):
        check(rflow, (500, 500, 120), (0.8, 0.8, 3.0), allow_unseen=True)


def test_bundle_without_limits_takes_any_grid(rflow: Bundle) -> None:
    spec = rflow.spec.model_copy(update={"grid_limits": None})
    assert check(Bundle(spec, rflow.path), (64, 32, 96), (9.0, 1.0, 1.0)) == ()
    with pytest.raises(GridError, match="multiples of 32, found 64x32x90. Use 64x32x96."):
        check(Bundle(spec, rflow.path), (64, 32, 90), (9.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"labels": ["brain"]}, True),
        ({"labels": ["skull@0.5", "brain"]}, True),
        ({"labels": ["brain+liver"]}, False),
        ({"labels": ["hepatic tumor:0.3"]}, False),
        ({"labels": ["no such label"]}, False),
        ({"labels": ["liver"], "body_region": ["head"]}, True),
        ({"labels": ["brain"], "body_region": ["head", "thorax"]}, False),
    ],
)
def test_head_is_known_by_region_or_labels(values: dict[str, Any], expected: bool) -> None:
    assert shows_head_alone(build_request(values), load_bundle("phantom-ct")) is expected


def test_cohort_warns_refuses_and_lets_the_user_insist(rflow: Bundle) -> None:
    def resolve(**changes: Any) -> Any:
        return resolve_request(build_request({"labels": ["liver"], "bundle": str(rflow.path), **changes}))

    with pytest.warns(UserWarning, match="expected a field of view of at least 384 mm along I and J, found"):
        assert resolve(spacing_mm=[1.2, 1.2, 2.0]).grid.shape == (256, 256, 256)
    with pytest.raises(GridError, match="as many voxels along I"):
        resolve(shape=[512, 256, 256])
    with pytest.warns(UserWarning, match="as many voxels along I"):
        cohort = resolve(shape=[512, 256, 256], allow_unseen_grid=True)
    assert cohort.request.allow_unseen_grid
    assert resolve(shape=[512, 512, 128], spacing_mm=[0.8, 0.8, 2.5]).grid.shape == (512, 512, 128)
