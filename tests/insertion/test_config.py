"""What draws, where nothing or something is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from maisi_aug.bundle_spec.bundle import embedded_bundles
from maisi_aug.errors import BundleError
from maisi_aug.insertion.config import NODULE_BUNDLE, choose_painter
from maisi_aug.insertion.request import InsertConfig
from tests.builders.random_bundle import write_random_bundle
from tests.builders.tiny_bundle import build_header

NODULE_PAINTER = (NODULE_BUNDLE, "network") if NODULE_BUNDLE in embedded_bundles() else ("phantom-ct", "procedural")


def choose(**values: object) -> tuple[str, str]:
    bundle, painter = choose_painter(InsertConfig.model_validate({"into": "cts", **values}))
    return bundle.name, painter


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("lung nodule:8mm",), NODULE_PAINTER),
        (("hepatic tumor:8mm",), ("phantom-ct", "procedural")),
        (("lung nodule:8mm+hepatic tumor:8mm",), ("phantom-ct", "procedural")),
    ],
)
def test_networks_draw_what_grows_in_the_lung_alone(labels: tuple[str, ...], expected: tuple[str, str]) -> None:
    assert choose(labels=labels) == expected
    assert choose(labels=labels, painter="procedural") == ("phantom-ct", "procedural")


@pytest.mark.parametrize(("num_channels", "expected"), [(8, "procedural"), (10, "network")])
def test_bundle_draws_where_it_is_shown_the_surroundings(num_channels: int, expected: str, tmp_path: Path) -> None:
    header = build_header()
    header["networks"]["controlnet"]["conditioning_embedding_in_channels"] = num_channels
    write_random_bundle(tmp_path / "tiny", header, seed=0)
    asked = {"labels": ("lung nodule:8mm",), "bundle": str(tmp_path / "tiny")}
    assert choose(**asked) == ("tiny", expected)
    assert choose(**asked, painter="network") == ("tiny", "network")


def test_networks_of_mr_do_not_draw_into_cts(tmp_path: Path) -> None:
    write_random_bundle(tmp_path / "tiny", {**build_header(), "modalities": ["mri_t1"]}, seed=0)
    asked = {"labels": ("lung nodule:8mm",), "bundle": str(tmp_path / "tiny")}
    with pytest.raises(BundleError, match="Bundle 'tiny': draws MR.*--painter procedural"):
        choose(**asked)
    assert choose(**asked, painter="procedural") == ("tiny", "procedural")


def test_networks_that_complete_whole_patients_do_not_draw_into_crops(tmp_path: Path) -> None:
    write_random_bundle(tmp_path / "tiny", {**build_header(), "unlabelled": "complete"}, seed=0)
    asked = {"labels": ("lung nodule:8mm",), "bundle": str(tmp_path / "tiny")}
    with pytest.raises(BundleError, match="Bundle 'tiny': completes the label maps of whole patients"):
        choose(**asked, painter="network")
    assert choose(**asked) == ("tiny", "procedural")
