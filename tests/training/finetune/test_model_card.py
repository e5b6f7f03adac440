from __future__ import annotations

from maisi_aug.bundle_spec.schema import HuSpec, SizeSpec
from maisi_aug.training.cases.taught_label import TaughtLabel
from maisi_aug.training.finetune.model_card import LabelMeasures, build_model_card

SIZES = SizeSpec(quantiles_ml=tuple(float(n + 1) for n in range(21)), source="lab")
MEASURES = LabelMeasures(SIZES, HuSpec(low_hu=-10.0, high_hu=60.0, contrast_sign=0, source="lab"), 25.0, 9)
HEADER = {
    "name": "neck",
    "description": "tiny fine-tuned on node.",
    "licence": "Apache-2.0",
    "slots": {
        "gland": {"id": 16, "hosts": [200], "kind": "organ"},
        "node": {"id": 17, "hosts": [16, 1], "kind": "lesion"},
    },
    "mask_bank": {"source": "9 training cases of lab"},
    "base": {"name": "tiny"},
    "provenance": {"fine_tuned_from": {"name": "tiny", "fingerprint": "0" * 64}},
}


def test_hosts_are_called_as_the_bundle_calls_them() -> None:
    node = TaughtLabel("node", 134, 17, (16, 1), "lesion")
    card = build_model_card(HEADER, [node], {"node": MEASURES}, {"steps": 3})
    assert "| node | 17 | lesion | gland, liver | 9 |" in card
