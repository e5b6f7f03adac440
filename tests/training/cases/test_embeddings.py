"""NVIDIA's lists of embeddings: read as they are, and trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from maisi_aug.api.finetuning import finetune_controlnet
from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.errors import MaisiAugError, PreparationError, TrainingError
from maisi_aug.networks.conditioning import unit_to_hu
from maisi_aug.networks.encoder import Encoder
from maisi_aug.networks.weights import load_autoencoder
from maisi_aug.training.cases.data import encode_image
from maisi_aug.training.cases.embeddings import prepare_embeddings, read_list
from maisi_aug.training.cases.prepared import PreparedStore
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_label_map
from tests.builders.tiny_prepared import GLAND, build_labels, write_tiny_base
from tests.builders.tiny_training import BODY, LIVER, SHAPE, SPACING_MM, build_recipe_content, tiny_grid

TUMOR = 129
HU = {0: -1000, BODY: 20, LIVER: 110, TUMOR: 60}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def write(tmp_path: Path, base: Bundle) -> Callable[..., Path]:
    """Writes embeddings, label maps and their list as NVIDIA's scripts do; rows may be changed by their number."""

    def call(num_cases: int = 4, rows: dict[int, dict[str, Any]] | None = None, label_id: int = TUMOR) -> Path:
        autoencoder, listed = load_autoencoder(base), []
        for number in range(num_cases):
            label_map = build_labels(number, with_nodule=False)
            label_map[label_map == GLAND] = label_id
            image_hu = np.vectorize(lambda i: HU.get(i, 60), otypes=[np.int16])(label_map)
            with torch.no_grad():
                mean = encode_image(image_hu, Encoder(autoencoder), "cpu").numpy()
            folder = tmp_path / "kits" / f"KiTS-00{number}"
            folder.mkdir(parents=True, exist_ok=True)
            affine = np.diag([*SPACING_MM, 1.0])
            nib.save(nib.Nifti1Image(mean.transpose(1, 2, 3, 0), affine), folder / "image_emb.nii.gz")
            save_label_map(folder / "mask_combined_label.nii.gz", label_map, tiny_grid())
            row = {
                "image": f"KiTS-00{number}/image_emb.nii.gz",
                "label": f"KiTS-00{number}/mask_combined_label.nii.gz",
                "dim": list(SHAPE),
                "spacing": list(SPACING_MM),
                "top_region_index": [0, 1, 0, 0],
                "bottom_region_index": [0, 0, 1, 0],
                "modality": "ct_contrast",
                "fold": number % 2,
                "pseudo_label": "not read",
            }
            listed.append({**row, **(rows or {}).get(number, {})})
        path = tmp_path / "kits.json"
        path.write_text(json.dumps({"training": listed}), encoding="utf-8")
        return path

    return call


def test_list_becomes_a_prepared_folder_with_its_embeddings(
    write: Callable[..., Path], base: Bundle, tmp_path: Path
) -> None:
    said: list[str] = []
    prepare_embeddings(write(), tmp_path / "prepared", base, labels=["kidney tumor"], say=said.append)
    assert "27.5% of their variance is noise" in said[0]
    store = PreparedStore.from_folder(tmp_path / "prepared")
    assert [case.fold for case in store.cases] == [0, 1, 0, 1]
    assert [case.id for case in store.cases][:2] == ["KiTS-000_image", "KiTS-001_image"]
    facts = store.facts(0)
    assert (facts.shape, facts.spacing_mm, facts.modality) == (SHAPE, SPACING_MM, "ct_contrast")
    assert facts.regions == ("thorax", "abdomen")
    assert store.label_map(0).dtype == np.uint8
    autoencoder = load_autoencoder(base)
    sha256 = base.owner_of("autoencoder").spec.weights["autoencoder"].sha256
    latents = store.encode(autoencoder, weights_hash=sha256, device="cpu", scale_factor=1.0)
    stored = nib.load(tmp_path / "kits" / "KiTS-001" / "image_emb.nii.gz").get_fdata(dtype=np.float32)
    assert np.array_equal(latents.latents[1].numpy(), stored.transpose(3, 0, 1, 2).astype(np.float16))
    with torch.no_grad():
        decoded = autoencoder.decode(torch.from_numpy(stored.transpose(3, 0, 1, 2))[None])  # type: ignore[operator]
    expected = unit_to_hu(decoded[0, 0].float().numpy(), None)
    assert np.abs(store.image_hu(1).astype(int) - expected).max() <= 1


def test_controlnet_is_taught_from_a_list(write: Callable[..., Path], base: Bundle, tmp_path: Path) -> None:
    source, out = write(label_id=150), tmp_path / "run"

    def run(**changes: Any) -> Any:
        fields = {"num_steps": 2, "validation_steps": 2, "num_pictures": 1, "start": "base", **changes}
        return finetune_controlnet(
            ["kidney cortex"], data=source, base=base.path, out=out, device="cpu", progress=False, **fields
        )

    result = run()
    assert result is not None
    assert result.loop.is_complete
    assert result.bundle.vocabulary.id_of("kidney cortex") == 150
    assert (out / "prepared" / "dataset.yaml").is_file()
    again = run()
    assert again.bundle.fingerprint == result.bundle.fingerprint
    source.write_text(source.read_text().replace("ct_contrast", "ct_wo_contrast"))
    with pytest.raises(PreparationError, match=r"prepared: was prepared from 'kits.json' with .* \(list sha256\) than"):
        run()


def test_networks_are_trained_from_a_list(
    write: Callable[..., Path], base: Bundle, tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(build_recipe_content()), encoding="utf-8")
    words = ["train", "vae", "--recipe", recipe, "--data", write(label_id=150), "--out", tmp_path / "run"]
    refused = run_cli(*words)
    assert refused.code == 2
    assert "--embedded-by: expected the bundle whose autoencoder made the embeddings" in refused.stderr
    done = run_cli(*words, "--embedded-by", base.path, "--device", "cpu")
    assert done.code == 0, done.stderr
    assert "27.5% of their variance is noise" in done.stderr
    assert len(PreparedStore.from_folder(tmp_path / "run" / "prepared")) == 4
    misplaced = run_cli("train", "vae", "--out", tmp_path / "other", "--embedded-by", base.path)
    assert misplaced.code == 2
    assert "--embedded-by can only be used with a JSON list of embeddings as --data." in misplaced.stderr


def test_ids_without_a_name_are_asked_for(write: Callable[..., Path], base: Bundle, tmp_path: Path) -> None:
    source = write(2, label_id=150)
    with pytest.raises(
        PreparationError, match="names for all ids .*, found none for 150. Name them, such as --map '150"
    ):
        prepare_embeddings(source, tmp_path / "out", base, labels=["fibroid", "myoma"])
    assert not (tmp_path / "out").exists()
    numbered = prepare_embeddings(source, tmp_path / "numbered", base)
    assert numbered.spec.labels["label 150"] == 150
    named = prepare_embeddings(source, tmp_path / "named", base, labels=["fibroid"], rules=["150=fibroid@liver"])
    assert named.spec.new_labels["fibroid"].model_dump() == {"id": 150, "hosts": (LIVER,)}
    known = prepare_embeddings(source, tmp_path / "known", base, labels=["spleen"], rules=["150=spleen"])
    assert known.spec.labels["spleen"] == 3
    dropped = prepare_embeddings(source, tmp_path / "dropped", base, labels=["liver"], rules=["150=-"])
    assert set(dropped.spec.labels) == {"liver", "body"}


def test_half_a_list_is_refused(write: Callable[..., Path], base: Bundle, tmp_path: Path) -> None:
    source = write(3)
    (tmp_path / "kits" / "KiTS-001" / "image_emb.nii.gz").unlink()
    (tmp_path / "kits" / "KiTS-002" / "mask_combined_label.nii.gz").unlink()
    missing = r"expected 6 files of embeddings .*, found 2 missing \(KiTS-001/image_emb.nii.gz, KiTS-002/mask_comb"
    with pytest.raises(PreparationError, match=missing):
        prepare_embeddings(source, tmp_path / "out", base, labels=["kidney tumor"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({1: {"modality": "mri_t1"}}, "expected a CT modality, as bundle 'tiny' draws, found 'mri_t1'"),
        ({1: {"modality": "t1"}}, "row 1: modality: expected 'unknown', 'ct', .*, found 't1'"),
        ({1: {"spacing": [1, 1]}}, "row 1: spacing"),
        ({1: {"image": "KiTS-000/image_emb.nii.gz"}}, "expected every embedding once, found 'kits-000_image' twice"),
        (
            {1: {"image": "KiTS-001/mask_combined_label.nii.gz"}},
            "expected four axes, three of space and one of channels",
        ),
    ],
)
def test_row_that_cannot_be_used_is_named(
    rows: dict[int, Any], message: str, write: Callable[..., Path], base: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(MaisiAugError, match=message):
        prepare_embeddings(write(2, rows), tmp_path / "out", base, labels=["kidney tumor"])
    assert not (tmp_path / "out").exists()


def test_label_map_of_another_grid_is_refused(write: Callable[..., Path], base: Bundle, tmp_path: Path) -> None:
    source = write(2)
    path = tmp_path / "kits" / "KiTS-001" / "mask_combined_label.nii.gz"
    save_label_map(path, np.ones((16, 16, 16), dtype=np.uint8), Grid.from_spacing((16, 16, 16), SPACING_MM))
    with pytest.raises(
        PreparationError, match="expected an embedding of 4x4x4x4 with a label map of 16x16x16, .*Resample"
    ):
        prepare_embeddings(source, tmp_path / "out", base, labels=["kidney tumor"])


def test_dim_that_is_not_that_of_the_label_map_is_warned_of(
    write: Callable[..., Path], base: Bundle, tmp_path: Path
) -> None:
    source = write(2, {0: {"dim": [512, 512, 512]}})
    with pytest.warns(UserWarning, match="expected dim .*, the size of the label map, found 512x512x512"):
        prepare_embeddings(source, tmp_path / "out", base, labels=["kidney tumor"])


def test_file_that_is_no_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(PreparationError, match="has no rows under 'training'"):
        read_list(tmp_path / "other.json")


def test_cases_of_several_shapes_are_trained_on_one_by_one(base: Bundle, tmp_path: Path) -> None:
    from maisi_aug.training.finetune.checks import require_one_shape
    from maisi_aug.training.finetune.settings import FinetuneConfig
    from tests.builders.tiny_prepared import write_prepared

    dataset = PreparedStore.from_folder(write_prepared(tmp_path)).dataset
    other = dataset.cases[0].model_copy(update={"shape": (16, 16, 16)})
    mixed = type(dataset)(dataset.path, dataset.spec, (other, *dataset.cases[1:]))
    config = FinetuneConfig.model_validate(
        {"labels": ["gland"], "loss": {"batch_count": 2}, "loop": {"num_steps": 1, "learning_rate": 1e-4}}
    )
    require_one_shape(dataset, config)
    with pytest.raises(TrainingError, match="--batch-size: expected 1, .* have several shapes"):
        require_one_shape(mixed, config)
