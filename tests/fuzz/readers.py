"""Every reader of what others wrote, with valid input for it: what the fuzz tests and the fuzz benchmark try."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from maisi_aug.volumes.grid import Grid
from tests.fuzz.mutations import mutate

GRID = Grid.from_spacing((5, 6, 7), (1.5, 1.25, 2.5))
Files = dict[str, bytes]


@dataclass(frozen=True)
class Reader:
    """A reader under test.

    Attributes:
        name: Of what it reads.
        write: Writes valid input into an empty folder.
        read: Reads what lies in a folder, as the commands do.
        damaged: Endings of the files that are damaged, one of them at a time; the others stay as they are.
        is_alone: Whether the damaged file is read without the others that could be damaged.
    """

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    damaged: tuple[str, ...]
    is_alone: bool = False

    def build(self) -> Files:
        """Valid input by relative path."""
        with TemporaryDirectory() as folder:
            self.write(Path(folder))
            paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    def damage(self, files: Mapping[str, bytes], random: Random) -> Files:
        """The input with one of its files damaged."""
        names = sorted(name for name in files if name.endswith(self.damaged))
        name = names[random.randrange(len(names))]
        kept = {other: content for other, content in files.items() if not (self.is_alone and other in names)}
        return {**kept, name: mutate(name, files[name], random)}

    def try_on(self, files: Mapping[str, bytes], folder: Path) -> object:
        """Write input into a folder and read it, warnings kept quiet as the command line keeps them."""
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.read(folder)


def _image() -> Any:
    return (np.arange(np.prod(GRID.shape), dtype=np.int16).reshape(GRID.shape) * 7) - 1000


def _label_map() -> Any:
    label_map = np.full(GRID.shape, 200, dtype=np.uint8)
    label_map[1:4, 1:4, 1:6], label_map[2, 2, 3] = 1, 26
    return label_map


def _call_all(*calls: Callable[[], object]) -> None:
    """Call each of several; that the first fails must not hide what the others do.

    Raises:
        MaisiAugError: The first that was raised.
    """
    from maisi_aug.errors import MaisiAugError
    from maisi_aug.system.content import ContentError

    errors: list[MaisiAugError] = []
    for call in calls:
        try:
            call()
        except ContentError:
            raise
        except MaisiAugError as error:
            errors.append(error)
    if errors:
        raise errors[0]


# Requests and recipes.


def _write_requests(folder: Path) -> None:
    texts = ("hepatic tumor:0.1-0.6@40%", "lung tumor:8-20mmx3+liver", "liver", "kidney tumor:4mL@2/5", "colon cancer")
    (folder / "requests.txt").write_text("\n".join(texts))


def _read_requests(folder: Path) -> None:
    from maisi_aug.cohort.grammar import allot_cases, label_names, parse_requests
    from maisi_aug.vocabulary.labels import FULL_VOCABULARY

    text = (folder / "requests.txt").read_bytes().decode("utf-8", "surrogateescape")
    label_names(text.split("\n"))

    def read(texts: list[str]) -> None:
        requests = parse_requests(texts, vocabulary=FULL_VOCABULARY)
        allot_cases(requests, 1000)
        for size in (lesion.size for request in requests for lesion in request.lesions):
            assert size is None or size.at(0.5) > 0

    _call_all(*(partial(read, [line, "spleen"]) for line in text.split("\n")), partial(read, text.split("\n")))


def _write_recipe(folder: Path) -> None:
    document = {
        "labels": ["hepatic tumor:0.3", "liver"],
        "num_cases": 3,
        "seed": 4,
        "anatomy": ["liver", "spleen"],
        "body_region": ["thorax", "abdomen"],
        "shape": [64, 64, 64],
        "spacing_mm": [2.0, 2.0, 2.0],
        "mask_source": "bank",
        "mask_bank": "maps",
        "mask_labels": {"1": "liver", "2": "hepatic tumor"},
        "gates": {"size_tolerance": 0.2, "organ_hu": False},
        "decoding": {"window": [32, 32, 32], "overlap": 0.4},
    }
    (folder / "recipe.yaml").write_text(json.dumps(document))


def _read_recipe(folder: Path) -> None:
    from maisi_aug.cohort.grammar import allot_cases, parse_requests
    from maisi_aug.cohort.recipe_files import training_kind
    from maisi_aug.cohort.request import load_recipe
    from maisi_aug.vocabulary.labels import FULL_VOCABULARY

    training_kind(folder / "recipe.yaml")
    config = load_recipe(str(folder / "recipe.yaml"), {"seed": 5, "gates.hu_bias": False})
    config.to_dict()
    if config.labels:
        allot_cases(parse_requests(config.labels, vocabulary=FULL_VOCABULARY), config.num_cases or 4)


def _write_training_recipes(folder: Path) -> None:
    from maisi_aug.cohort.recipe_files import find_recipe

    for name, target in (("train-phantom-ct", "images"), ("train-phantom-ct-masks", "masks")):
        (folder / f"{target}.yaml").write_bytes(find_recipe(name).read_bytes())


def _read_training_recipes(folder: Path) -> None:
    from maisi_aug.training.images.recipe import load_training_recipe
    from maisi_aug.training.masks.recipe import load_mask_recipe

    loads = {"images.yaml": load_training_recipe, "masks.yaml": load_mask_recipe}
    _call_all(*(partial(load, folder / name) for name, load in loads.items() if (folder / name).is_file()))


# Cohorts, bundles and prepared folders.


def _write_cohort(folder: Path) -> None:
    import yaml

    from maisi_aug.cohort.request import COHORT_NAME
    from tests.builders.tiny_cohort import write_cohort

    write_cohort(folder, (26,), (23,), (26, 23))
    (folder / COHORT_NAME).write_text(yaml.safe_dump(_cohort_document(), sort_keys=False))


def _cohort_document() -> dict[str, Any]:
    from maisi_aug.cohort.request import build_request

    configuration = build_request({"labels": ["hepatic tumor:0.3"], "num_cases": 3}).to_dict()
    return {"configuration": configuration, "bundle": {"name": "gone", "fingerprint": "ab"}, "mask_bank": {"maps": 3}}


def _read_manifest(folder: Path) -> None:
    from maisi_aug.cohort.folder import find_lost
    from maisi_aug.cohort.manifest import load_manifest

    manifest = load_manifest(folder)
    find_lost(folder, manifest, verify=True)
    load_manifest(folder, gates=()).reopen(3).first_attempt_rate()
    for record in manifest.records:
        record.to_json()


def _read_cohort(folder: Path) -> None:
    from maisi_aug.cohort.folder import BegunCohort, find_cohort
    from maisi_aug.cohort.request import build_request, load_recipe
    from maisi_aug.integrations.reading.cohort_source import find_num_planned, load_cohort_source

    begun = BegunCohort.read(folder)
    steps = begun.steps_to(4, ())
    config = build_request({"labels": ["hepatic tumor:0.3"], "num_cases": 4, "grown_from": list(steps)})
    find_num_planned(folder)
    load_cohort_source(folder)
    find_cohort(folder, {**_cohort_document(), "configuration": config.to_dict()}, begun)
    load_recipe(str(folder / "cohort.yaml"))


def _write_bundle(folder: Path) -> None:
    from tests.builders.tiny_bundle import write_tiny_bundle

    write_tiny_bundle(folder)


def _read_bundle(folder: Path) -> None:
    from maisi_aug.bundle_spec.bundle import load_bundle
    from maisi_aug.networks.building import build_scheduler, describe_tensors

    bundle = load_bundle(folder)
    _ = bundle.vocabulary, bundle.grid, bundle.grid_factor, bundle.fingerprint, bundle.base
    bundle.choose_steps(None)
    build_scheduler(bundle.spec.scheduler)
    for role in bundle.roles:
        bundle.weight_path(role)
        describe_tensors(bundle.definition(role))


def _write_weights(folder: Path) -> None:
    import torch

    from maisi_aug.networks.weights import write_weights

    write_weights(folder, {"autoencoder": {"a": torch.ones(3, 4), "b.c": torch.zeros(5, dtype=torch.int64)}})


def _read_weights(folder: Path) -> None:
    from maisi_aug.errors import BundleError
    from maisi_aug.networks.weights import describe_safetensors, load_safetensors
    from maisi_aug.system.content import ContentError

    try:
        describe_safetensors(folder / "autoencoder.safetensors")
        for tensor in load_safetensors(folder / "autoencoder.safetensors").values():
            tensor.float().sum()
    except ContentError as error:  # as load_weight_file does
        raise BundleError(str(error)) from error


def _write_checkpoint(folder: Path) -> None:
    import torch

    state = {"conv.weight": torch.ones(2, 3), "conv.bias": torch.zeros(2)}
    torch.save({"unet_state_dict": state, "scale_factor": torch.tensor(0.9), "epoch": 3}, folder / "new.pt")
    content = {"unet_state_dict": state, "scale_factor": np.float64(0.9)}
    torch.save(content, folder / "old.bin", _use_new_zipfile_serialization=False)


def _read_checkpoint(folder: Path) -> None:
    from maisi_aug.networks.checkpoints.reading import (
        find_state_dict,
        read_checkpoint,
        take_scale_factor,
        take_state_dict,
    )

    for path in folder.iterdir():
        checkpoint = read_checkpoint(path, subject=path.name)
        find_state_dict(checkpoint, subject=path.name)
        for tensor in take_state_dict(checkpoint, "diffusion_unet", subject=path.name).values():
            tensor.float().sum()
        take_scale_factor(checkpoint, subject=path.name)


def _write_prepared(folder: Path) -> None:
    from tests.builders.tiny_prepared import write_prepared

    write_prepared(folder, num_cases=2)


def _read_prepared(folder: Path) -> None:
    from maisi_aug.preparation.prepared import load_prepared

    dataset = load_prepared(folder)
    _ = dataset.vocabulary
    dataset.select(exclude_fold=0)
    for case in dataset.cases:
        dataset.file_of("image", case.id), case.volume_ml(1)


# Descriptions and lists.


def _write_dataset(folder: Path) -> None:
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": [1, 2], "hepatic tumor": 2, "spleen": 3, "ignore": 4},
        "numTraining": 2,
        "file_ending": ".nii.gz",
        "dataset": {f"case_{n}": {"images": [f"imagesTr/{n}.nii.gz"], "label": f"l/{n}.nii.gz"} for n in range(2)},
        "maisi_aug": {"synthetic_cases": ["case_1"]},
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    for number in range(2):
        for name in ("imagesTr", "l"):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / f"{number}.nii.gz").write_bytes(b"not opened")
    mapping = {"cases": {"case_1": {"mask_origin": {"source": "bank", "name": "x"}}}}
    (folder / "maisi_aug_mapping.json").write_text(json.dumps(mapping))


def _read_dataset(folder: Path) -> None:
    from maisi_aug.banks.files import load_labels
    from maisi_aug.banks.raw_datasets import RawDataset, label_values
    from maisi_aug.evaluation.benchmark.cases import find_synthetic_cases
    from maisi_aug.integrations.nnunet.prediction import read_label_values
    from maisi_aug.integrations.nnunet.real import read_description

    path = folder / "dataset.json"

    def list_cases() -> None:
        dataset = RawDataset.read(folder)
        dataset.list_cases()
        without = {key: value for key, value in dataset.document.items() if key != "dataset"}
        RawDataset(folder, without).list_cases()

    _call_all(
        lambda: label_values(read_description(path)["labels"]),
        lambda: read_label_values(path),
        lambda: load_labels(path),
        list_cases,
        lambda: find_synthetic_cases("own", folder, ("hepatic tumor",), {}),
    )


def _write_splits(folder: Path) -> None:
    ids = [f"case_{n}" for n in range(5)]
    folds = [{"train": [other for other in ids if other != held], "val": [held]} for held in ids]
    (folder / "splits_final.json").write_text(json.dumps(folds))


def _read_splits(folder: Path) -> None:
    from maisi_aug.integrations.nnunet.splits import load_real_folds

    folds = load_real_folds([folder], [f"case_{n}" for n in range(5)], raw=folder)
    folds.with_synthetic({"synthetic_1": ["case_1"]})


def _write_data_list(folder: Path) -> None:
    from maisi_aug.volumes.image_files import save_image, save_label_map

    for number in range(2):
        save_image(folder / f"image_{number}.nii", _image(), GRID)
        save_label_map(folder / f"label_{number}.nii", _label_map(), GRID)
    rows = [{"image": f"image_{n}.nii", "label": f"label_{n}.nii", "label_list": [1, 26, 200]} for n in range(2)]
    (folder / "list.json").write_text(json.dumps({"training": rows, "labels": {"1": "liver"}}))
    (folder / "labels.json").write_text(json.dumps({"0": "background", "1": "liver", "26": "hepatic tumor"}))


def _read_data_list(folder: Path) -> None:
    from maisi_aug.banks.files import digest_of, find_entries

    entries, _ = find_entries(folder / "list.json", lambda _: False)
    for entry in entries:
        _ = entry.ids_by_name
    digest_of(entries)


def _write_mapping(folder: Path) -> None:
    (folder / "mapping.json").write_text(json.dumps({"0": 0, "1": "liver", "2": "hepatic tumor", "spleen": 3}))
    names = {"background": 0, "liver": 1, "tumor": 2, "spleen": 3, "masses": [2, 3]}
    (folder / "labels.json").write_text(json.dumps({"labels": names}))


def _read_mapping(folder: Path) -> None:
    from maisi_aug.banks.files import load_label_names
    from maisi_aug.banks.label_ids import build_translation, load_mapping
    from maisi_aug.vocabulary.labels import FULL_VOCABULARY

    names = load_label_names(folder / "labels.json").get("")
    mapping = load_mapping(str(folder / "mapping.json"))
    for choice in ("auto", mapping):
        translation = build_translation(choice, names, FULL_VOCABULARY, has_vocabulary_ids=False, subject="bank")
        if translation is not None:
            translation.apply(np.arange(5, dtype=np.uint8).reshape(1, 1, 5))


def _write_ranges(folder: Path) -> None:
    rows = [
        {"name": "liver", "low_hu": 20, "high_hu": 160, "median_hu": 90},
        {"name": "spleen", "low_hu": 0, "high_hu": 9},
    ]
    (folder / "hu.json").write_text(json.dumps({"organs": rows}))
    (folder / "sizes.json").write_text(json.dumps([{"organ_size": [0.5] * 9 + [-1]}] * 2))


def _read_ranges(folder: Path) -> None:
    from maisi_aug.cohort.hu_reference import load_hu_reference, ranges_to_json
    from maisi_aug.evaluation.cohort.hu import load_reference
    from maisi_aug.networks.mask_conditions import load_size_conditions
    from maisi_aug.vocabulary.labels import FULL_VOCABULARY

    path = folder / "hu.json"
    _call_all(
        lambda: load_size_conditions(folder / "sizes.json"),
        lambda: load_reference(path, FULL_VOCABULARY),
        lambda: ranges_to_json(load_hu_reference(path, FULL_VOCABULARY, grid=GRID)),
    )


def _write_database(folder: Path) -> None:
    from tests.builders.tiny_database import write_database

    regions = {"top_region_index": [0, 1, 0, 0], "bottom_region_index": [0, 0, 1, 0]}
    maps = {f"map_{number}.nii.gz": (_label_map(), GRID) for number in range(2)}
    write_database(folder, maps, fields={"map_0.nii.gz": regions})


def _read_database(folder: Path) -> None:
    from maisi_aug.banks.mask_database import find_database, list_database
    from maisi_aug.errors import VolumeError
    from maisi_aug.volumes.image_files import decode_label_map

    (archive,) = folder.glob("*.zip")
    database = find_database(archive)
    assert database is not None
    entries, _ = list_database(database)
    for entry in entries:
        assert entry.member is not None
        try:
            decode_label_map(entry.member.read(), entry.name, max_bytes=entry.member.max_bytes)
        except VolumeError:
            continue  # the bank leaves it out


# Images.


def _read_volumes(folder: Path) -> None:
    """Every way to read each image."""
    from maisi_aug.volumes.image_files import is_readable_name, load_grid, load_image, load_label_map
    from maisi_aug.volumes.own_names import load_own_names

    paths = sorted(path for path in folder.rglob("*") if path.is_file() and is_readable_name(path))
    loads: tuple[Callable[[Path], object], ...] = (load_own_names, load_grid, load_image, load_label_map)
    _call_all(*(partial(load, path) for path in paths for load in loads))


def _write_nifti(folder: Path) -> None:
    import nibabel as nib

    from maisi_aug.volumes.image_files import save_label_map

    save_label_map(folder / "map.nii.gz", _label_map(), GRID)
    image = nib.Nifti2Image(_label_map().astype(np.int16), GRID.affine)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"made for tests"))
    nib.save(image, folder / "image.nii")


def _read_nifti(folder: Path) -> None:
    from maisi_aug.volumes.image_files import load_stored_grid

    _call_all(*(partial(load_stored_grid, path) for path in folder.iterdir()), partial(_read_volumes, folder))


def _write_itk(folder: Path, suffix: str, *, is_packed: bool) -> None:
    import SimpleITK

    image = SimpleITK.GetImageFromArray(_label_map().T)
    image.SetSpacing(GRID.spacing_mm)
    SimpleITK.WriteImage(image, str(folder / f"map{suffix}"), is_packed)


def _write_nrrd(folder: Path) -> None:
    _write_itk(folder, ".nrrd", is_packed=True)
    (folder / "plain").mkdir()
    _write_itk(folder / "plain", ".nrrd", is_packed=False)
    _write_itk(folder, ".nhdr", is_packed=True)


def _write_metaimage(folder: Path) -> None:
    _write_itk(folder, ".mha", is_packed=True)
    (folder / "plain").mkdir()
    _write_itk(folder / "plain", ".mha", is_packed=False)
    _write_itk(folder, ".mhd", is_packed=False)


def _write_series(folder: Path) -> None:
    from tests.builders.made_dicom import write_series

    write_series(folder / "ct", _image().T[:3])


def _read_series(folder: Path) -> None:
    from maisi_aug.volumes.dicom_files import find_label_objects, find_volumes
    from maisi_aug.volumes.image_files import load_grid, load_image

    find_label_objects(folder)
    loads: tuple[Callable[[Path], object], ...] = (load_grid, load_image)
    _call_all(*(partial(load, path) for path in find_volumes(folder) for load in loads))


def _write_enhanced(folder: Path) -> None:
    from pydicom.uid import RLELossless

    from tests.builders.made_dicom import write_enhanced

    write_enhanced(folder / "plain" / "ct.dcm", _image().T[:3])
    write_enhanced(folder / "rle" / "ct.dcm", _image().T[:3], change=lambda dataset: dataset.compress(RLELossless))


def _write_drawn(folder: Path) -> None:
    from tests.builders.made_dicom import write_segmentation, write_series, write_structures

    series = write_series(folder / "ct", _image().T[:3])
    masks = {"liver": _label_map().T[:3] == 1, "tumor": _label_map().T[:3] == 26}
    write_segmentation(folder / "binary.dcm", series, masks)
    write_segmentation(folder / "map.dcm", series, masks, kind="LABELMAP")
    square = np.array([[0.5, 0.5, 2.5], [2.5, 0.5, 2.5], [2.5, 2.5, 2.5], [0.5, 2.5, 2.5]])
    write_structures(folder / "structures.dcm", {"liver": [square], "tumor": [square - [0.4, 0.4, 0.0]]})


def _read_drawn(folder: Path) -> None:
    from maisi_aug.volumes.image_files import load_drawn_names, load_label_map

    paths = sorted(folder.glob("*.dcm"))
    _call_all(
        *(partial(load_drawn_names, path) for path in paths),
        *(partial(load_label_map, path, image=folder / "ct") for path in paths),
    )


def _write_network_file(folder: Path) -> None:
    from tests.builders.tiny_bundle import build_header
    from tests.networks.checkpoints.test_own_networks import write_network_file

    write_network_file(folder / "config_network.json", build_header()["networks"])


def _read_network_file(folder: Path) -> None:
    from maisi_aug.networks.building import build_scheduler, describe_tensors
    from maisi_aug.networks.checkpoints.own_networks import read_network_file

    network = read_network_file(folder / "config_network.json")
    build_scheduler(network.scheduler)
    _call_all(*(partial(describe_tensors, definition) for definition in network.networks.values()))


def _write_embeddings(folder: Path) -> None:
    import nibabel as nib

    nib.save(nib.Nifti1Image(np.zeros((2, 3, 4, 4), dtype=np.float32), np.eye(4)), folder / "a_emb.nii.gz")
    (folder / "a_label.nii.gz").write_bytes(b"not read")
    row: dict[str, Any] = {
        "image": "a_emb.nii.gz",
        "label": "a_label.nii.gz",
        "dim": [8, 12, 16],
        "spacing": [1.0, 1.0, 2.0],
    }
    row |= {"modality": "ct", "top_region_index": [0, 1, 0, 0], "bottom_region_index": [0, 0, 1, 0], "fold": 0}
    (folder / "list.json").write_text(json.dumps({"training": [row]}), encoding="utf-8")


def _read_embeddings(folder: Path) -> None:
    from maisi_aug.training.cases.embeddings import read_list
    from maisi_aug.volumes.image_files import load_channels

    listed = read_list(folder / "list.json")
    names = [(row.id, row.regions, row.image) for row in listed.rows]
    _call_all(*(partial(load_channels, listed.root / name) for _, _, name in names))


READERS = (
    Reader("label requests", _write_requests, _read_requests, (".txt",)),
    Reader("recipe", _write_recipe, _read_recipe, (".yaml",)),
    Reader("training recipes", _write_training_recipes, _read_training_recipes, (".yaml",), is_alone=True),
    Reader("manifest", _write_cohort, _read_manifest, (".jsonl",)),
    Reader("cohort folder", _write_cohort, _read_cohort, (".yaml", ".jsonl")),
    Reader("bundle", _write_bundle, _read_bundle, (".yaml",)),
    Reader("safetensors", _write_weights, _read_weights, (".safetensors",)),
    Reader("checkpoints", _write_checkpoint, _read_checkpoint, (".pt", ".bin"), is_alone=True),
    Reader("prepared folder", _write_prepared, _read_prepared, (".yaml", ".jsonl")),
    Reader("dataset.json", _write_dataset, _read_dataset, (".json",)),
    Reader("splits", _write_splits, _read_splits, (".json",)),
    Reader("data list", _write_data_list, _read_data_list, (".json",)),
    Reader("label mapping", _write_mapping, _read_mapping, (".json",)),
    Reader("ranges and sizes", _write_ranges, _read_ranges, (".json",)),
    Reader("mask database", _write_database, _read_database, (".json", ".zip")),
    Reader("network file", _write_network_file, _read_network_file, (".json",)),
    Reader("embeddings", _write_embeddings, _read_embeddings, (".json", "emb.nii.gz")),
    Reader("NIfTI", _write_nifti, _read_nifti, (".nii", ".gz"), is_alone=True),
    Reader("NRRD", _write_nrrd, _read_volumes, (".nrrd", ".nhdr"), is_alone=True),
    Reader("MetaImage", _write_metaimage, _read_volumes, (".mha", ".mhd"), is_alone=True),
    Reader("DICOM series", _write_series, _read_series, (".dcm",)),
    Reader("enhanced DICOM", _write_enhanced, _read_series, (".dcm",), is_alone=True),
    Reader("DICOM labels", _write_drawn, _read_drawn, ("y.dcm", "map.dcm", "structures.dcm"), is_alone=True),
)
