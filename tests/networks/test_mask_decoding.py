from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from maisi_aug.networks.building import build_network, use_plain_layers
from maisi_aug.networks.mask_decoding import class_ids, decode_classes, decode_label_map
from maisi_aug.vocabulary.labels import BODY_ID, MAISI, SLOT_IDS
from tests.builders.tiny_masks import build_mask_networks
from tests.oracles.rounding import depth_of, in_float64, require_likeliest

LATENT = torch.randn(1, 4, 7, 4, 6, generator=torch.Generator().manual_seed(1))


def build(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    definition = {**build_mask_networks()["mask_autoencoder"], "use_checkpointing": False, **changes}
    return build_network(definition).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def wide() -> nn.Module:
    """The last level of NVIDIA's width."""
    network = build(num_channels=[32, 32, 32], norm_num_groups=32, num_splits=1)
    use_plain_layers(network)
    return network


def plain(network: nn.Module, latent: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = network.decode(latent)  # type: ignore[operator]
    return logits


def require_classes(found: torch.Tensor, network: nn.Module, latent: torch.Tensor) -> None:
    """Those of the plain decoder; where float32 chooses another class than float64, they are as good as equal."""
    exact = plain(in_float64(network), latent.double())
    require_likeliest(found, plain(network, latent), exact, depth=depth_of(network))


@pytest.mark.parametrize("max_logits", [1 << 17, 1 << 19, 1 << 25], ids=["thin slabs", "slabs", "whole"])
def test_slabs_give_the_classes_of_the_plain_decoder(max_logits: int, wide: nn.Module) -> None:
    found = decode_classes(wide, LATENT, max_logits=max_logits)
    assert found.dtype == torch.uint8
    require_classes(found, wide, LATENT)
    assert len(set(found.flatten().tolist())) > 50


def test_maisis_own_layers_and_batches_will_do() -> None:
    network = build()
    latent = torch.randn(2, 4, 4, 8, 4, generator=torch.Generator().manual_seed(2))
    require_classes(decode_classes(network, latent), network, latent)


def test_never_are_more_logits_held_than_allowed(wide: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    argmax = torch.Tensor.argmax

    def spy(logits: torch.Tensor, **arguments: Any) -> torch.Tensor:
        sizes.append(logits.numel())
        return argmax(logits, **arguments)

    monkeypatch.setattr(torch.Tensor, "argmax", spy)
    slice_logits = 125 * 16 * 24
    decode_classes(wide, LATENT, max_logits=4 * slice_logits)
    assert len(sizes) == 7
    assert max(sizes) <= 6 * slice_logits, "four slices and a margin of one on either side"


def test_levels_in_slabs_are_the_same_to_rounding(wide: nn.Module) -> None:
    require_classes(decode_classes(wide, LATENT, max_features=1 << 18), wide, LATENT)


def test_ids_of_the_classes_are_nvidias() -> None:
    ids = class_ids().tolist()
    assert len(ids) == len(set(ids)) == 125
    assert [ids[number] for number in (0, 1, 2, 18, 21, 22, 121, 124)] == [0, 1, 3, 23, 26, 27, 128, BODY_ID]
    assert set(range(133)) - set(ids) == (set(SLOT_IDS) - {129}) | {116, 117}
    assert all(MAISI.contains(label_id) for label_id in ids)


def test_data_name_their_source(repository: Any) -> None:
    content = json.loads((repository / "maisi_aug" / "data" / "mask_channels.json").read_text())
    assert "label_dict_124_to_132.json" in content["source"]


def test_label_map_holds_the_ids_of_the_scaled_latents_classes(wide: nn.Module) -> None:
    label_map = decode_label_map(wide, LATENT * 1.25, scale_factor=1.25)
    assert label_map.shape == (28, 16, 24)
    assert label_map.dtype == np.uint8
    classes = torch.from_numpy(np.argsort(class_ids())[np.searchsorted(np.sort(class_ids()), label_map)])
    require_classes(classes[None], wide, LATENT)
