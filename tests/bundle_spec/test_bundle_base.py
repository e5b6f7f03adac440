from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from maisi_aug.bundle_spec.bundle import Bundle, list_bundles, load_bundle, pulled_bundles_folder
from maisi_aug.bundle_spec.schema import HuSpec, MaskBankSpec
from maisi_aug.errors import BundleError
from maisi_aug.networks.checkpoints.copies import _copy_bank, convert_bundle
from maisi_aug.networks.weights import load_networks, load_weight_file, verify_bundle, write_bundle
from tests.builders.tiny_bundle import build_header, write_tiny_bundle

QUANTILES = [float(step + 1) for step in range(21)]
GLAND = 133


def write_derived(folder: Path, origin: Bundle, **changes: Any) -> Bundle:
    """A bundle that shares all but its ControlNet with a base."""
    header = build_header()
    return write_bundle(
        folder,
        {
            **header,
            "name": "taught",
            "slots": {**header["slots"], "gland": {"id": GLAND, "hosts": [200], "kind": "organ"}},
            "base": {"name": origin.name, "fingerprint": origin.fingerprint, "paths": ["../base", str(origin.path)]},
            "sizes": {"gland": {"quantiles_ml": QUANTILES, "source": "lab"}},
            "hu_ranges": {"gland": {"low_hu": 10.0, "high_hu": 60.0, "source": "lab"}},
            **changes,
        },
        {"controlnet": load_weight_file(origin, "controlnet")},
    )


@pytest.fixture
def base(tmp_path: Path) -> Bundle:
    return write_tiny_bundle(tmp_path / "lab" / "base")


@pytest.fixture
def derived(base: Bundle, tmp_path: Path) -> Bundle:
    return write_derived(tmp_path / "lab" / "taught", base)


def test_networks_come_from_both(base: Bundle, derived: Bundle) -> None:
    assert derived.owner_of("autoencoder").path.resolve() == base.path.resolve()
    assert derived.owner_of("controlnet") is derived
    networks = load_networks(derived)
    assert networks.scale_factor == base.spec.scale_factor
    rows = verify_bundle(derived)
    assert [(row["role"], row["bundle"]) for row in rows] == [
        ("autoencoder", "tiny"),
        ("diffusion_unet", "tiny"),
        ("controlnet", "taught"),
    ]


def test_both_folders_may_move_together(derived: Bundle, tmp_path: Path) -> None:
    (tmp_path / "lab").rename(tmp_path / "office")
    moved = load_bundle(tmp_path / "office" / "taught")
    assert moved.weight_path("autoencoder").is_relative_to(tmp_path / "office" / "base")


def test_bundle_alone_may_move(base: Bundle, derived: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "deep" / "taught"
    target.parent.mkdir(parents=True)
    shutil.move(derived.path, target)
    assert load_bundle(target).weight_path("autoencoder") == base.weight_path("autoencoder")


def test_base_is_found_by_name(base: Bundle, tmp_path: Path) -> None:
    derived = write_derived(tmp_path / "taught", base, base={"name": "tiny", "fingerprint": base.fingerprint})
    with pytest.raises(BundleError, match="Bundle 'taught': its base 'tiny' was not found by name or in"):
        derived.weight_path("autoencoder")
    pulled_bundles_folder().mkdir(parents=True)
    shutil.move(base.path, pulled_bundles_folder() / "tiny")
    assert load_bundle(tmp_path / "taught").weight_path("autoencoder").is_relative_to(pulled_bundles_folder())


def test_missing_base_is_told_of(base: Bundle, derived: Bundle) -> None:
    shutil.rmtree(base.path)
    with pytest.raises(BundleError, match="its base 'tiny' was not found by name or in"):
        load_bundle(derived.path).require_intact()


def test_changed_base_is_told_of(base: Bundle, derived: Bundle) -> None:
    path = base.path / "bundle.yaml"
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "scale_factor": 2.0}, sort_keys=False))
    with pytest.raises(BundleError, match="has changed since this bundle was made: fingerprint"):
        load_bundle(derived.path).weight_path("autoencoder")


def test_altered_weights_of_the_base_are_told_of(base: Bundle, derived: Bundle) -> None:
    path = base.path / "autoencoder.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(BundleError, match=r"autoencoder.safetensors should have SHA-256"):
        load_bundle(derived.path).require_intact()


def test_list_leaves_a_bundle_without_its_base_out(base: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    write_derived(pulled_bundles_folder() / "taught", base)
    assert "taught" in [bundle.name for bundle in list_bundles()]
    shutil.rmtree(base.path)
    assert "taught" not in [bundle.name for bundle in list_bundles()]
    assert "its base 'tiny'" in caplog.text


def test_copy_in_another_type_has_all_weights(derived: Bundle, tmp_path: Path) -> None:
    done = convert_bundle(derived.path, tmp_path / "copy", dtype="float32")
    copy = load_bundle(done.path)
    assert copy.spec.base is None
    assert set(copy.spec.weights) == {"autoencoder", "diffusion_unet", "controlnet"}
    copy.require_intact()


def test_shown_and_listed_with_its_base(derived: Bundle, run_cli: Any) -> None:
    shown = run_cli("bundles", "show", derived.path).stdout
    assert "base: tiny, in" in shown
    assert "slot 133: gland, an organ in body; median 11 mL; 10 to 60 HU" in shown
    assert "of tiny" in shown
    assert "gland" in run_cli("labels", "--sizes", "--bundle", derived.path).stdout


def test_measured_figures_are_references(derived: Bundle, base: Bundle) -> None:
    assert derived.distributions["gland"].volume_ml(0.5) == 11.0
    assert derived.hu_ranges[-1].label_ids == (GLAND,)
    assert len(base.hu_ranges) == len(derived.hu_ranges) - 1
    assert derived.contrast_sign_of(26) == -1  # the package's own
    assert derived.contrast_sign_of(GLAND) == 0


def test_bounds_have_an_order() -> None:
    with pytest.raises(ValueError, match="expected low_hu below high_hu, found 60 and 10"):
        HuSpec(low_hu=60, high_hu=10, source="lab")


def test_list_of_label_maps_is_found_and_copied(base: Bundle, tmp_path: Path) -> None:
    bank = {"list": "label_maps.json", "labels": "maisi", "source": "2 training cases"}
    derived = write_derived(tmp_path / "lab" / "taught", base, mask_bank=bank)
    with pytest.raises(BundleError, match="the list of its label maps is missing at"):
        derived.find_mask_bank()
    (derived.path / "own").mkdir()
    (derived.path / "own" / "a.nii.gz").write_bytes(b"map")
    (derived.path / "label_maps.json").write_text(
        '{"training": [{"label": "../../data/b.nii.gz"}, {"label": "own/a.nii.gz"}]}'
    )
    assert derived.find_mask_bank() == (str((derived.path / "label_maps.json").resolve()), "maisi")
    assert base.find_mask_bank() is None
    _copy_bank(derived, tmp_path / "copy")
    assert not (tmp_path / "copy" / "maisi").exists()
    listed = yaml.safe_load((tmp_path / "copy" / "label_maps.json").read_text())["training"]
    assert listed == [{"label": (tmp_path / "data" / "b.nii.gz").as_posix()}, {"label": "own/a.nii.gz"}]
    assert (tmp_path / "copy" / "own" / "a.nii.gz").read_bytes() == b"map"


def test_copy_writes_nothing_outside_its_folder(base: Bundle, tmp_path: Path) -> None:
    bank = {"list": "label_maps.json", "labels": "maisi", "source": "a stranger"}
    derived = write_derived(tmp_path / "taught", base, mask_bank=bank)
    (derived.path / "a.nii.gz").write_bytes(b"map")
    (derived.path / "label_maps.json").write_text('{"training": [{"label": "../taught/a.nii.gz"}]}')
    _copy_bank(derived, tmp_path / "deep" / "copy")
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["copy"]
    assert sorted(path.name for path in (tmp_path / "deep" / "copy").iterdir()) == ["a.nii.gz", "label_maps.json"]


@pytest.mark.parametrize("field", ["list", "labels"])
@pytest.mark.parametrize("name", ["../x.json", "/x.json", "a/../../x", ""])
def test_list_of_label_maps_lies_in_the_bundle(field: str, name: str) -> None:
    with pytest.raises(ValueError, match="String should match pattern"):
        MaskBankSpec(**({"list": "x.json", "labels": "maisi", "source": "lab"} | {field: name}))
