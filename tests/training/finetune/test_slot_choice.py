from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.errors import TrainingError
from maisi_aug.preparation.prepared import PreparedDataset, load_prepared
from maisi_aug.training.cases.prepared import PreparedStore
from maisi_aug.training.cases.taught_label import TaughtLabel
from maisi_aug.training.finetune.slot_choice import (
    LabelTraits,
    choose_hosts,
    choose_kind,
    choose_slots,
    count_surroundings,
    find_source,
    remap_table,
)
from maisi_aug.training.finetune.slots import plan_labels
from maisi_aug.vocabulary.labels import BODY_ID, SLOT_IDS
from tests.builders.tiny_prepared import GLAND, NODULE, write_prepared, write_tiny_base
from tests.builders.tiny_training import BODY, LIVER


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return load_prepared(write_prepared(tmp_path_factory.mktemp("data"), num_cases=3))


def choose(dataset: PreparedDataset, base: Bundle, **wanted: str) -> dict[str, int]:
    sources = [find_source(name, dataset) for name in ("gland", "bright nodule")]
    return choose_slots(
        sources, {name.replace("_", " "): slot for name, slot in wanted.items()}, dataset=dataset, base=base
    )


def test_new_label_keeps_its_id_where_that_is_free(dataset: PreparedDataset, base: Bundle) -> None:
    assert choose(dataset, base) == {"gland": GLAND, "bright nodule": NODULE}


def test_slot_is_taken_by_name_or_id(dataset: PreparedDataset, base: Bundle) -> None:
    assert choose(dataset, base, gland="dummy3", bright_nodule="255") == {"gland": 18, "bright nodule": 255}


def test_free_choice_avoids_what_another_label_asks_for(dataset: PreparedDataset, base: Bundle) -> None:
    chosen = choose(dataset, base, bright_nodule=str(GLAND))
    assert chosen["bright nodule"] == GLAND
    assert chosen["gland"] in SLOT_IDS


def test_free_choice_avoids_what_the_base_has_bound(dataset: PreparedDataset, tmp_path: Path) -> None:
    bound = write_tiny_base(tmp_path, slots={"lymph node": {"id": GLAND, "hosts": [200]}})
    assert choose(dataset, bound)["gland"] not in (GLAND, NODULE)


def test_label_that_the_base_knows_keeps_its_id(dataset: PreparedDataset, tmp_path: Path) -> None:
    bound = write_tiny_base(tmp_path, slots={"gland": {"id": 20, "hosts": [200], "kind": "organ"}})
    assert choose(dataset, bound)["gland"] == 20
    with pytest.raises(TrainingError, match="Slot of 'gland': bundle 'tiny' already knows this label as id"):
        choose(dataset, bound, gland="dummy2")


@pytest.mark.parametrize(
    ("slot", "message"),
    [
        ("129", "129 is taken by 'kidney tumor' of bundle 'tiny'"),
        ("5", "expected 'auto', a placeholder .dummy1 to dummy8. or a free id .133-199, 201-255., found '5'"),
        ("dummy9", "found 'dummy9'"),
    ],
)
def test_bad_slot_is_refused(dataset: PreparedDataset, base: Bundle, slot: str, message: str) -> None:
    with pytest.raises(TrainingError, match=f"Slot of 'gland': .*{message}"):
        choose(dataset, base, gland=slot)


def test_slot_is_given_once(dataset: PreparedDataset, base: Bundle) -> None:
    with pytest.raises(TrainingError, match="2 is taken by another --label"):
        choose(dataset, base, gland="2", bright_nodule="dummy1")


def test_label_that_the_data_lack_is_refused(dataset: PreparedDataset) -> None:
    with pytest.raises(TrainingError, match="Label 'glands': cannot be taught from"):
        find_source("glands", dataset)
    with pytest.raises(TrainingError, match="it is empty in all 3 cases"):
        find_source("spleen", dataset)
    with pytest.raises(TrainingError, match="body' stands for no structure"):
        find_source("body", dataset)


def test_surroundings_leave_background_and_other_labels_out() -> None:
    label_map = np.zeros((5, 6, 7), dtype=np.uint8)
    label_map[1:, 1:, 1:] = BODY
    label_map[1:4, 2:4, 3] = LIVER
    label_map[2, 3, 3:5] = GLAND
    found = count_surroundings(label_map, GLAND, [NODULE])
    assert set(found) == {BODY, LIVER}
    assert set(count_surroundings(label_map, GLAND, [LIVER])) == {BODY}


def test_hosts_are_what_surrounds_a_good_part_of_a_label() -> None:
    assert choose_hosts(LabelTraits((1.0,), 1, {5: 40, 14: 45, 1: 15, 3: 2})) == (14, 5)
    assert choose_hosts(LabelTraits((1.0,), 1, {})) == (BODY_ID,)


def test_kind_is_told_by_name_then_by_sizes() -> None:
    even = LabelTraits((20.0, 24.0, 30.0, 26.0), 4, {})
    assert choose_kind("left parotid", even)[0] == "organ"
    assert choose_kind("adrenal metastases", even)[0] == "lesion"
    assert choose_kind("bleeding", LabelTraits((0.5, 8.0, 120.0, 3.0), 4, {}))[0] == "lesion"
    kind, reason = choose_kind("cuff", LabelTraits((20.0, 24.0), 4, {}))
    assert kind == "lesion"
    assert "unless --kind 'cuff=organ' says otherwise" in reason  # two of four patients leave it open


def test_ids_are_moved_and_what_is_not_taught_becomes_its_host(dataset: PreparedDataset, base: Bundle) -> None:
    taught = TaughtLabel("gland", GLAND, 18, (BODY_ID,), "organ")
    table, replayed, dropped = remap_table([taught], dataset=dataset, base=base)
    assert (table[GLAND], table[NODULE], table[LIVER], table[BODY]) == (18, LIVER, LIVER, BODY)
    assert replayed == {}
    assert dropped == {"bright nodule": "liver"}


def test_label_taught_earlier_is_moved_to_its_slot(dataset: PreparedDataset, tmp_path: Path) -> None:
    bound = write_tiny_base(tmp_path, slots={"bright nodule": {"id": 21, "hosts": [1]}})
    table, replayed, _ = remap_table(
        [TaughtLabel("gland", GLAND, GLAND, (BODY_ID,), "organ")], dataset=dataset, base=bound
    )
    assert table[NODULE] == 21
    assert replayed == {"bright nodule": 21}


def test_hosts_that_are_new_labels_get_the_bundles_ids(base: Bundle, tmp_path: Path) -> None:
    labels = {"gland": {"id": GLAND, "hosts": []}, "bright nodule": {"id": NODULE, "hosts": [GLAND]}}
    data = load_prepared(write_prepared(tmp_path, num_cases=3, new_labels=labels))

    def plan(*names: str) -> dict[str, tuple[int, ...]]:
        planned = plan_labels(
            names, PreparedStore(data), base, slots={"gland": "dummy3"}, hosts={}, kinds={"bright nodule": "lesion"}
        )
        return {label.name: label.hosts for label in planned}

    assert plan("gland", "bright nodule")["bright nodule"] == (18,)
    assert plan("bright nodule")["bright nodule"] == (BODY,)
    gland = TaughtLabel("gland", GLAND, 18, (BODY,), "organ")
    table, _, dropped = remap_table([gland], dataset=data, base=base)
    assert table[NODULE] == 18
    assert dropped == {"bright nodule": "gland"}


def test_ids_of_hidden_structure_are_no_slots(dataset: PreparedDataset, tmp_path: Path) -> None:
    completing = write_tiny_base(tmp_path, unlabelled="complete")
    assert set(choose(dataset, completing).values()) <= set(SLOT_IDS)
    with pytest.raises(TrainingError, match="255"):
        choose(dataset, completing, bright_nodule="255")
