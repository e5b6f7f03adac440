from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from maisi_aug.banks.folder_bank import FolderBank
from maisi_aug.banks.label_ids import load_mapping
from maisi_aug.bundle_spec.bundle import Bundle, load_bundle
from maisi_aug.errors import TrainingError, VolumeError
from maisi_aug.networks.weights import load_weight_file
from maisi_aug.training.cases.prepared import PreparedStore
from maisi_aug.training.finetune.checks import resolve_finetuning
from maisi_aug.training.finetune.run import FinetuneResult, Finetuning
from maisi_aug.training.finetune.settings import FinetuneConfig, FinetuneRequest
from maisi_aug.training.loop import run_files
from maisi_aug.volumes.grid import Grid
from tests.builders.tiny_prepared import NODULE, write_prepared, write_tiny_base
from tests.builders.tiny_training import SHAPE

Run = Callable[..., FinetuneResult]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("data") / "lab")


def build_config(**changes: Any) -> FinetuneConfig:
    loop = {
        "num_steps": 4,
        "learning_rate": 1e-2,
        "num_warmup_steps": 0,
        "mixed_precision": False,
        "validation_steps": 2,
        **changes.pop("loop", {}),
    }
    return FinetuneConfig(**{"labels": ("gland", "bright nodule"), "num_pictures": 1, "loop": loop, **changes})


def run(folder: Path, data: Path, base: Bundle, config: FinetuneConfig, **how: Any) -> FinetuneResult:
    return Finetuning(base, PreparedStore.from_folder(data), config, folder, "cpu").train(**how)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, data: Path, base: Bundle) -> FinetuneResult:
    return run(tmp_path_factory.mktemp("run") / "out", data, base, build_config(slots={"gland": "dummy3"}))


def test_bundle_shares_all_but_the_controlnet_with_its_base(result: FinetuneResult, base: Bundle) -> None:
    bundle = result.bundle
    assert list(bundle.spec.weights) == ["controlnet"]
    assert bundle.spec.licence == base.spec.licence
    bundle.require_intact()
    for role in ("autoencoder", "diffusion_unet"):
        assert bundle.weight_path(role) == base.weight_path(role)
    before, after = (load_weight_file(part, "controlnet") for part in (base, bundle))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key].float(), after[key]) for key in before)


def test_bundle_knows_its_labels(result: FinetuneResult) -> None:
    bundle = result.bundle
    gland, nodule = (bundle.vocabulary.label(name) for name in ("gland", "bright nodule"))
    assert (gland.id, gland.kind) == (18, "organ")
    assert (nodule.id, nodule.kind, nodule.hosts) == (NODULE, "tumor", (1,))
    assert bundle.vocabulary.id_of("kidney tumor") == 129  # what the base had bound
    voxel_ml = 12.0 * 13.0 * 14.0 / 1000
    sizes = bundle.spec.sizes["gland"].quantiles_ml
    assert sizes[0] == pytest.approx(64 * voxel_ml)
    assert sizes[-1] == pytest.approx(80 * voxel_ml)
    assert bundle.spec.sizes["bright nodule"].source == "lab, training cases, 4 patients"
    bounds = bundle.spec.hu_ranges["bright nodule"]
    assert (bounds.low_hu, bounds.high_hu, bounds.contrast_sign) == (180.0, 240.0, 1)
    assert "| gland | 18 | organ | body" in (bundle.path / "README.md").read_text()


def test_run_leaves_pictures_a_log_and_a_summary(result: FinetuneResult) -> None:
    folder = result.bundle.path.parent
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == ["step_000002.png", "step_000004.png"]
    rows = [json.loads(line) for line in (folder / "training" / "log.jsonl").read_text().splitlines()]
    validations = [row["validation"] for row in rows if "validation" in row]
    assert len(validations) == 2
    assert {"loss", "l1", "hu_shift gland", "hu_shift bright nodule"} <= set(validations[0])
    assert {"contrast", "outside"} <= set(rows[0])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best_step"] in (2, 4)
    assert summary["is_complete"] is True


def test_stopped_run_ends_with_the_same_weights(data: Path, base: Bundle, tmp_path: Path) -> None:
    config = build_config(labels=("gland",), num_pictures=0, loop={"num_steps": 3})
    once = run(tmp_path / "once", data, base, config)
    stopped = run(tmp_path / "twice", data, base, config, max_minutes=0.0)
    assert not stopped.loop.is_complete
    assert stopped.bundle.spec.provenance["is_finished"] is False
    twice = run(tmp_path / "twice", data, base, config)
    first, second = (load_weight_file(part.bundle, "controlnet") for part in (once, twice))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("tune", ["partial", "low-rank"])
def test_part_of_the_controlnet_is_tuned(data: Path, base: Bundle, tmp_path: Path, tune: str) -> None:
    config = build_config(labels=("gland",), tune=tune, rank=2, num_pictures=0, loop={"num_steps": 2})
    bundle = run(tmp_path / "run", data, base, config).bundle
    before, after = (load_weight_file(part, "controlnet") for part in (base, bundle))
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.allclose(before[key].float(), after[key], atol=1e-6)}
    is_block = {key.startswith(("controlnet_cond_embedding", "controlnet_down", "controlnet_mid")) for key in changed}
    assert changed
    assert (is_block == {True}) is (tune == "partial")


def test_second_label_is_taught_on_a_fine_tuned_bundle(
    result: FinetuneResult, data: Path, base: Bundle, tmp_path: Path
) -> None:
    said: list[str] = []
    first = run(tmp_path / "first", data, base, build_config(labels=("gland",), num_pictures=0, loop={"num_steps": 2}))
    config = build_config(labels=("bright nodule",), num_pictures=0, loop={"num_steps": 2})
    store = PreparedStore.from_folder(data)
    second = Finetuning(first.bundle, store, config, tmp_path / "second", "cpu", say=said.append).train()
    bundle = load_bundle(second.bundle.path)
    assert bundle.base is not None
    assert bundle.base.base is not None
    assert bundle.weight_path("autoencoder") == base.weight_path("autoencoder")
    assert {"gland", "bright nodule", "kidney tumor"} == set(bundle.spec.slots)
    assert {"gland", "bright nodule"} == set(bundle.spec.sizes)
    assert any("gland: taught earlier" in sentence and "trained as well" in sentence for sentence in said)
    bundle.require_intact()


@pytest.mark.parametrize("own_id", [133, 134])
def test_maps_of_an_earlier_label_are_drawn_from_after_a_second_one(base: Bundle, tmp_path: Path, own_id: int) -> None:
    data = write_prepared(tmp_path / "data", with_nodule=False)  # in which 133 is the gland
    config = build_config(labels=("gland",), num_pictures=0, loop={"num_steps": 1})
    first = run(tmp_path / "first", data, base, config).bundle
    changes: dict[str, Any] = {
        "labels": {"liver": 1, "duct": own_id, "body": 200},
        "new_labels": {"duct": {"id": own_id, "hosts": [200]}},
        "with_gland": own_id == 133,
        "with_nodule": own_id == 134,
    }
    other = write_prepared(tmp_path / "other", num_cases=3, **changes)
    config = build_config(labels=("duct",), slots={"duct": "dummy2"}, kinds={"duct": "organ"}, num_pictures=0)
    config = config.model_copy(update={"loop": config.loop.model_copy(update={"num_steps": 1})})
    second = run(tmp_path / "second", other, first, config).bundle
    place, labels = second.find_mask_bank() or ("", "")
    bank = FolderBank(place, vocabulary=second.vocabulary, grid=second.grid, mapping=load_mapping(labels))
    gland, duct = (second.vocabulary.id_of(name) for name in ("gland", "duct"))
    maps = [bank.load(index) for index in range(len(bank))]
    held = [[label_id for label_id in (gland, duct) if each is not None and each.counts[label_id]] for each in maps]
    assert sorted(held) == sorted([[duct]] * 2 + [[gland]] * 4)
    assert second.spec.mask_bank is not None
    assert second.spec.mask_bank.source == "2 training cases of lab and 4 label maps of first"
    assert (second.path / "label_maps").is_dir() is (own_id == 133)  # which means two things, so that copies are made


def test_maps_of_the_base_that_are_gone_are_told(data: Path, base: Bundle, tmp_path: Path) -> None:
    config = build_config(labels=("gland",), num_pictures=0, loop={"num_steps": 1})
    moved = shutil.copytree(data, tmp_path / "moved")
    first = run(tmp_path / "first", moved, base, config).bundle
    shutil.rmtree(moved)
    with pytest.warns(UserWarning, match="Label maps of base 'first': 4 of 4 files are missing, the first is"):
        again = run(tmp_path / "again", data, first, config)
    assert again.bundle.spec.mask_bank is not None
    assert again.bundle.spec.mask_bank.source == "4 training cases of lab"


def test_self_contained_bundle_needs_neither_base_nor_data(data: Path, base: Bundle, tmp_path: Path) -> None:
    config = build_config(labels=("gland",), num_pictures=0, slots={"gland": "dummy1"}, loop={"num_steps": 1})
    bundle = run(tmp_path / "run", data, base, config, self_contained=True).bundle
    assert bundle.spec.base is None
    assert set(bundle.spec.weights) == {"autoencoder", "diffusion_unet", "controlnet"}
    rows = json.loads((bundle.path / "label_maps.json").read_text())["training"]
    assert len(rows) == 4
    assert all((bundle.path / row["label"]).is_file() and 2 in row["label_list"] for row in rows)


def open_run(data: Path, base: Bundle, folder: Path, **changes: Any) -> Finetuning:
    return Finetuning(base, PreparedStore.from_folder(data), build_config(**changes), folder, "cpu")


def test_one_patient_is_refused(base: Bundle, tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", num_cases=1)
    with pytest.raises(TrainingError, match="needs at least two patients, one of them to validate on, found 1"):
        open_run(data, base, tmp_path / "run")


def test_label_in_the_held_out_cases_alone_is_refused(base: Bundle, tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", num_cases=3, with_gland=False)
    cases = [json.loads(line) for line in (data / "cases.jsonl").read_text().splitlines()]
    cases[0]["voxels"]["133"] = 8
    (data / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    with pytest.raises(TrainingError, match="Label 'gland': cannot be taught from"):
        open_run(data, base, tmp_path / "run", labels=("gland",), fold=0)


def test_grid_that_the_base_cannot_take_is_refused(base: Bundle, tmp_path: Path) -> None:
    limits = {"sides": [[32], [24], [24]], "spacing_mm": [[1.0, 1.0]] * 3, "refuses_other_spacing": True, "source": "x"}
    picky = write_tiny_base(tmp_path / "picky", grid_limits={**limits, "needs_square_slices": False})
    data = write_prepared(tmp_path / "data", num_cases=2)
    with pytest.raises(
        TrainingError, match="bundle 'tiny' was not trained on the grid of these cases; it knows for instance 32x24x24"
    ):
        open_run(data, picky, tmp_path / "run")


def test_grid_that_is_not_that_of_a_base_without_limits_is_refused(base: Bundle, tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", num_cases=2, grid=Grid.from_spacing(SHAPE, (9.0, 9.0, 9.0)))
    with pytest.raises(TrainingError, match=r"on the grid of bundle 'tiny', .* found 32x24x24 at 9x9x9"):
        open_run(data, base, tmp_path / "run")


def test_base_without_controlnet_is_refused(data: Path, base: Bundle, tmp_path: Path) -> None:
    networks = {role: base.spec.networks[role] for role in ("autoencoder", "diffusion_unet")}
    bare = Bundle(base.spec.model_copy(update={"networks": networks}), base.path)
    with pytest.raises(TrainingError, match="Base 'tiny': needs a ControlNet to start from, found autoencoder"):
        open_run(data, bare, tmp_path / "run")


def test_start_from_label_means_needs_a_lookup(data: Path, base: Bundle, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="has no ControlNet with a lookup of intensities, as phantom-ct has"):
        open_run(data, base, tmp_path / "run", start="label-means").train()


def test_folder_of_something_else_is_left_alone(data: Path, base: Bundle, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(TrainingError, match="must be new, empty or the folder of an earlier run, found"):
        open_run(data, base, tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "finetune.yaml").write_text("{")
    with pytest.raises(TrainingError, match="settings of the fine-tuning run cannot be read:"):
        open_run(data, base, tmp_path / "run")


def test_mixed_precision_needs_a_base_that_bears_it_and_a_gpu(base: Bundle) -> None:
    request = FinetuneRequest(data="prepared", base="tiny", labels=("gland",))
    picky = Bundle(base.spec.model_copy(update={"mixed_precision": False}), base.path)
    assert resolve_finetuning(request, base, "cuda:1").loop.mixed_precision
    assert not resolve_finetuning(request, base, "cpu").loop.mixed_precision
    assert not resolve_finetuning(request, picky, "cuda").loop.mixed_precision


def leave_checkpoint(folder: Path) -> None:
    (folder / "training").mkdir()
    (folder / "training" / "checkpoint.pt").touch()


def test_run_is_gone_on_with_under_the_same_settings_alone(data: Path, base: Bundle, tmp_path: Path) -> None:
    open_run(data, base, tmp_path / "run", seed=9)
    open_run(data, base, tmp_path / "run")  # nothing has been trained yet
    leave_checkpoint(tmp_path / "run")
    open_run(data, base, tmp_path / "run", num_pictures=0)  # which decides no weights
    with pytest.raises(TrainingError, match="configuration.seed: 0 -> 7"):
        open_run(data, base, tmp_path / "run", seed=7)


def test_patients_that_were_trained_on_are_never_held_out_later(base: Bundle, tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", num_cases=3)
    open_run(data, base, tmp_path / "run")
    leave_checkpoint(tmp_path / "run")
    cases = [json.loads(line) for line in (data / "cases.jsonl").read_text().splitlines()]
    for case in cases:
        case["fold"] = (case["fold"] + 1) % 3
    (data / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    with pytest.raises(TrainingError, match=r"data.held_out: \['p0'\] -> \['p2'\]"):
        open_run(data, base, tmp_path / "run")


def test_loss_that_is_no_number_ends_the_run(
    data: Path, base: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingError, match="expected a finite loss, found"):
        run(tmp_path / "run", data, base, build_config(num_pictures=0, loop={"learning_rate": 1e30, "num_steps": 6}))
    assert not (tmp_path / "run" / "bundle").exists()


def test_full_disk_keeps_the_last_checkpoint(
    data: Path, base: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build_config(labels=("gland",), num_pictures=0)
    run(tmp_path / "run", data, base, config, max_minutes=0.0)
    before = (tmp_path / "run" / "training" / "checkpoint.pt").read_bytes()

    def fail(path: Path) -> Any:
        raise VolumeError(f"{path}: No space left on device")

    monkeypatch.setattr(run_files, "open_whole", fail)
    with pytest.raises(TrainingError, match="is intact. Free"):
        run(tmp_path / "run", data, base, config)
    assert (tmp_path / "run" / "training" / "checkpoint.pt").read_bytes() == before
