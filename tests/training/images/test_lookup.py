from __future__ import annotations

import pytest
import torch

from maisi_aug.bundle_spec.bundle import load_bundle
from maisi_aug.networks.building import build_network
from maisi_aug.networks.weights import load_weight_file
from maisi_aug.training.images.label_means import LabelMeans
from maisi_aug.training.images.lookup import bits_of_ids, choose_intensities, find_lookup, teach_lookup
from maisi_aug.vocabulary.labels import SlotBinding
from tests.builders.tiny_bundle import build_header

LIVER, GLAND, NODULE = 1, 133, 134


def load_controlnet() -> torch.nn.Module:
    bundle = load_bundle("phantom-ct")
    controlnet = build_network(bundle.definition("controlnet"))
    controlnet.load_state_dict({k: v.float() for k, v in load_weight_file(bundle, "controlnet").items()})
    return controlnet


def test_embedded_bundle_looks_intensities_up() -> None:
    lookup = find_lookup(load_controlnet())
    assert lookup is not None
    with torch.no_grad():
        intensity = lookup(bits_of_ids())
    assert float(intensity[0]) == pytest.approx(0.0, abs=0.005)
    assert 0.51 < float(intensity[LIVER]) < 0.56  # 20 to 120 HU


def test_other_controlnets_do_not() -> None:
    assert find_lookup(build_network(build_header()["networks"]["controlnet"])) is None
    changed = load_controlnet()
    with torch.no_grad():
        changed.get_parameter("controlnet_cond_embedding.conv_in.conv.weight")[0, 0, 0, 0, 0] = 0.1
    assert find_lookup(changed) is None


def test_new_label_is_looked_up_and_the_others_stay() -> None:
    controlnet = load_controlnet()
    lookup = find_lookup(controlnet)
    assert lookup is not None
    known = [0, *range(1, 60), 200]
    change = teach_lookup(controlnet, lookup, {GLAND: 0.53}, known_ids=known, num_steps=700)
    assert change.new_hu[GLAND][1] == pytest.approx(60.0, abs=1e-3)
    assert change.new_hu[GLAND][2] == pytest.approx(60.0, abs=8.0)
    assert change.largest_old_hu < 8.0
    written = find_lookup(controlnet)
    assert written is not None
    with torch.no_grad():
        before, after = lookup(bits_of_ids()), written(bits_of_ids())
    assert float((after - before)[known].abs().max()) * 2000 == pytest.approx(change.largest_old_hu, abs=0.1)


def test_lesion_starts_at_its_contrast_to_what_the_bundle_draws() -> None:
    lookup = find_lookup(load_controlnet())
    assert lookup is not None
    bindings = {"gland": SlotBinding(GLAND, (200,), is_organ=True), "nodule": SlotBinding(NODULE, (LIVER,))}
    vocabulary = load_bundle("phantom-ct").vocabulary.with_slots(bindings)
    intensity, voxels = torch.zeros(256), torch.zeros(256)
    for label_id, value in ((LIVER, 0.60), (NODULE, 0.64), (GLAND, 0.52), (200, 0.5)):
        intensity[label_id], voxels[label_id] = value, 100.0
    wanted = choose_intensities(LabelMeans(intensity, voxels), lookup, [GLAND, NODULE], vocabulary)
    with torch.no_grad():
        liver = float(lookup(bits_of_ids())[LIVER])
    assert wanted[GLAND] == pytest.approx(0.52)
    assert wanted[NODULE] == pytest.approx(liver + 0.04, abs=1e-5)
