"""NVIDIA's training data: images that an autoencoder has encoded (``*_emb.nii.gz``) with label maps, in a JSON list.

They become a prepared folder: the latents as they are, and the images that the autoencoder decodes from them, for what
needs HU. The embeddings are draws of the autoencoder's posterior and not its means: 27.5% of their variance is noise
(measured with NVIDIA's autoencoder), which no network can predict.

Source: NV-Generate-CTMR, ``data/README.md`` and ``scripts/train_controlnet.py``: ``{"training": [{"image", "label",
"dim", "spacing", "modality", "top_region_index", "bottom_region_index", "fold"}]}``.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import Tensor

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.bundle_spec.decoding import latent_factor
from maisi_aug.bundle_spec.grid_limits import GridSpec
from maisi_aug.errors import MaisiAugWarning, PreparationError, VocabularyError
from maisi_aug.networks.conditioning import unit_to_hu
from maisi_aug.networks.decoder import Decoder
from maisi_aug.networks.weights import load_autoencoder
from maisi_aug.preparation.mapping import DROP, MapRule, parse_rule
from maisi_aug.preparation.prepared import (
    LATENTS_FOLDER,
    SPEC_NAME,
    NewLabel,
    PreparedCase,
    PreparedDataset,
    PreparedSpec,
    load_prepared,
    write_lists,
)
from maisi_aug.system.content import ContentError, read_json
from maisi_aug.system.models import PositiveFinite, StrictModel, explain_problems
from maisi_aug.system.progress import Report, Say, report_nothing
from maisi_aug.system.whole_files import open_whole, sha256_of
from maisi_aug.system.whole_folder import open_whole_folder
from maisi_aug.vocabulary.labels import BACKGROUND_ID, BODY_ID, MAISI, Vocabulary
from maisi_aug.vocabulary.modalities import ModalityName, is_mr
from maisi_aug.vocabulary.regions import BODY_REGIONS, Regions
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_channels, load_label_map, save_image, save_label_map

NOISE_SHARE = 0.275
"""Share of the variance of embeddings that is sampling noise."""
DEFAULT_FOLDS = 5
_OneHot = tuple[int, int, int, int]


class EmbeddedRow(StrictModel, extra="ignore"):
    """One row of NVIDIA's JSON list of embeddings; fields of NVIDIA's other steps are accepted and ignored.

    Attributes:
        image: Path of the embedding, relative to the folder of the list or of the data.
        label: Path of the label map with organs, body and the labels to be taught.
        spacing: Voxel sides of the image along I, J, K in mm.
        dim: Voxels of the image along I, J, K; None to take those of the label map.
        modality: Modality of the image.
        top_region_index: Uppermost body region as a one-hot of four; None to derive it from the label map.
        bottom_region_index: Lowest body region, likewise.
        fold: Fold in which the case is held out; None to assign folds automatically.
    """

    image: str
    label: str
    spacing: tuple[PositiveFinite, PositiveFinite, PositiveFinite]
    dim: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    modality: ModalityName = "ct"
    top_region_index: _OneHot | None = None
    bottom_region_index: _OneHot | None = None
    fold: int | None = Field(default=None, ge=0)

    @property
    def id(self) -> str:
        """Name for the files of the case, derived from the path of its embedding."""
        stem = str(PurePosixPath(self.image)).removesuffix(".gz").removesuffix(".nii").removesuffix("_emb")
        return re.sub(r"[^A-Za-z0-9.-]+", "_", stem).strip("_.-") or "case"

    @property
    def regions(self) -> Regions | None:
        """Uppermost and lowest body region; None unless the row states both."""
        if not (self.top_region_index and self.bottom_region_index):
            return None
        top, bottom = (BODY_REGIONS[row.index(max(row))] for row in (self.top_region_index, self.bottom_region_index))
        return top, bottom


@dataclass(frozen=True)
class EmbeddedList:
    """NVIDIA's JSON list of embeddings, whose files are known to exist.

    Attributes:
        path: Path of the list.
        root: Folder that the paths in the rows are relative to.
        rows: One row per case.
    """

    path: Path
    root: Path
    rows: tuple[EmbeddedRow, ...]


def is_embedded_list(path: Path) -> bool:
    """Whether a path is a JSON list of embeddings."""
    return path.suffix.lower() == ".json" and path.is_file()


def read_list(path: Path) -> EmbeddedList:
    """Read a list of embeddings, and find its files next to it or in the folder that has its name.

    Raises:
        PreparationError: The file is not such a list, a file is missing, or two cases would have the same name.
    """
    try:
        content = read_json(path)
    except (OSError, ContentError) as error:
        raise PreparationError(f"{path}: expected a JSON list of embeddings, found: {error}.") from error
    rows = content.get("training") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise PreparationError(f"{path}: has no rows under 'training'. Give NVIDIA's data list.")
    read = []
    for number, row in enumerate(rows):
        with explain_problems(EmbeddedRow, f"{path}, row {number}", PreparationError, one_line=True):
            read.append(EmbeddedRow.model_validate(row))
    twice = [name for name, count in Counter(row.id.casefold() for row in read).items() if count > 1]
    if twice:
        raise PreparationError(f"{path}: expected every embedding once, found '{twice[0]}' twice. Remove a row.")
    names = [name for row in read for name in (row.image, row.label)]
    roots = (path.parent, path.with_suffix(""))
    root = max(roots, key=lambda folder: sum((folder / name).is_file() for name in names))
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise PreparationError(
            f"{path}: expected {len(names)} files of embeddings and label maps in {root}, found {len(missing)} missing "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}). Get them, or remove their rows."
        )
    return EmbeddedList(path, root, tuple(read))


def prepare_embeddings(
    source: Path,
    folder: Path,
    base: Bundle,
    *,
    labels: Sequence[str] | None = None,
    rules: Sequence[str] = (),
    device: str = "cpu",
    report: Report = report_nothing,
    say: Say = lambda _: None,
) -> PreparedDataset:
    """Convert a list of embeddings to a prepared folder, whole or not at all; returns at once if it is there already.

    Args:
        source: The JSON list.
        folder: New folder, or one that was made before from the same list in the same way.
        base: Bundle whose autoencoder made the embeddings.
        labels: Labels to be taught; if one of them is new and one id has no name, they belong together. None names such
            ids by their number, such as "label 150".
        rules: Rules ``ID=NAME[@HOSTS]`` for ids that have no name in the base's vocabulary.
        device: Device on which embeddings are decoded.
        report: Progress callback, called with (cases done, cases in all).
        say: Called with a sentence about each decision.

    Raises:
        PreparationError: A file is missing, an embedding is not of this autoencoder, an id has no name, or the folder
            was made from another list or with other settings.
        VolumeError: A file cannot be read.
        BundleError: The autoencoder cannot be used.
    """
    options = {
        "embeddings": source.name,
        "list_sha256": sha256_of(source),
        "autoencoder": base.owner_of("autoencoder").spec.weights["autoencoder"].sha256,
        "labels": list(labels or ()),
        "rules": list(rules),
        "noise_share": NOISE_SHARE,
    }
    if (folder / SPEC_NAME).is_file():
        return _require_same(folder, source, options)
    listed = read_list(source)
    say(
        f"Note: the embeddings of {source.name} are random draws around the autoencoder's means: {NOISE_SHARE:.1%} of "
        "their variance is noise that no network can foretell. Where you have the images, 'maisi-aug prepare' and the "
        "command again encode them without it."
    )
    _require_kind(listed, base)
    encoder = _Encoder(base, device)
    found: set[int] = set()  # of ids, before anything is written
    for row in listed.rows:
        found |= set(np.unique(load_label_map(listed.root / row.label).array).tolist())
    read_rules = {rule.source: rule for rule in map(parse_rule, rules)}
    table, new_labels, unnamed = _name_ids(found, base.vocabulary, read_rules)
    new_labels |= _name_others(unnamed, labels, new_labels, base.vocabulary, source, say)
    with open_whole_folder(folder, require_replaceable=lambda: None) as unfinished:
        cases = []
        for number, row in enumerate(listed.rows):
            cases.append(_write_case(unfinished, listed, row, number, encoder, table))
            report(number + 1, len(listed.rows))
        vocabulary = PreparedDataset(folder, _spell(listed, cases, {}, new_labels, options), ()).vocabulary
        present = sorted({label_id for case in cases for label_id in case.voxels} - {BACKGROUND_ID})
        names = {vocabulary.name_of(label_id): label_id for label_id in present}
        spec = _spell(listed, cases, names, new_labels, options)
        write_lists(unfinished, spec, cases, command=f"maisi-aug finetune-controlnet --data {source.name}")
    return PreparedDataset(folder, spec, tuple(cases))


def _require_same(folder: Path, source: Path, options: Mapping[str, object]) -> PreparedDataset:
    """Return the cases that an earlier call prepared in the same way."""
    found = load_prepared(folder)
    if found.spec.options != options:
        other = [name.replace("_", " ") for name, value in options.items() if found.spec.options.get(name) != value]
        raise PreparationError(
            f"{folder}: was prepared from '{found.spec.options.get('embeddings')}' with different settings "
            f"({', '.join(other)}) than {source} now. Choose another --out."
        )
    return found


def _require_kind(listed: EmbeddedList, base: Bundle) -> None:
    """Raise unless the images are of the base's kind, CT or MR."""
    wrong = next((row for row in listed.rows if row.modality != "unknown" and is_mr(row.modality) != base.is_mr), None)
    if wrong is not None:
        raise PreparationError(
            f"{listed.path}, {wrong.image}: expected {'an MR' if base.is_mr else 'a CT'} modality, as bundle "
            f"'{base.name}' draws, found '{wrong.modality}'. Choose another --base."
        )


def _spell(
    listed: EmbeddedList,
    cases: Sequence[PreparedCase],
    labels: Mapping[str, int],
    new_labels: Mapping[str, NewLabel],
    options: Mapping[str, object],
) -> PreparedSpec:
    """What all cases share; the grid is that of most, for lists may mix them."""
    (shape, spacing_mm), _ = Counter((case.shape, case.spacing_mm) for case in cases).most_common(1)[0]
    return PreparedSpec(
        name=listed.path.stem,
        grid=GridSpec(shape=shape, spacing_mm=spacing_mm),
        labels=dict(labels),
        new_labels=dict(new_labels),
        num_folds=max(case.fold for case in cases) + 1,
        options=dict(options),
    )


class _Encoder:
    """The autoencoder that made the embeddings, as far as it is needed to use them."""

    def __init__(self, base: Bundle, device: str) -> None:
        definition = base.definition("autoencoder")
        self.name, self.device = base.name, device
        self.num_channels, self.factor = int(definition["latent_channels"]), latent_factor(definition)
        self.weights_hash = base.owner_of("autoencoder").spec.weights["autoencoder"].sha256
        self._decoder = Decoder(load_autoencoder(base, device=device), definition, 1.0, base.spec.decode_window)

    @torch.inference_mode()
    def decode(self, latent: NDArray[np.float32]) -> NDArray[np.int16]:
        """``(I, J, K)`` HU of a ``(C, i, j, k)`` latent; of MR what the networks know as 0 and 1 is -1000 and 1000."""
        moved: Tensor = torch.from_numpy(latent)[None].to(self.device)
        image, _ = self._decoder.decode(moved)
        return unit_to_hu(image[0, 0].float().cpu().numpy(), None)


def _read_case(
    listed: EmbeddedList, row: EmbeddedRow, encoder: _Encoder, table: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Read the ``(C, i, j, k)`` embedding and the ``(I, J, K)`` label map of a case.

    Raises:
        PreparationError: They do not belong together, or to the autoencoder.
        VolumeError: A file cannot be read.
    """
    image_source, label_source = listed.root / row.image, listed.root / row.label
    latent, label_map = load_channels(image_source), table[load_label_map(label_source).array.astype(np.uint8)]
    expected = (encoder.num_channels, *(side // encoder.factor for side in label_map.shape))
    if latent.shape != expected or any(side % encoder.factor for side in label_map.shape):
        raise PreparationError(
            f"{image_source}: expected an embedding of {_cross(expected)} with a label map of "
            f"{_cross(label_map.shape)}, as the autoencoder of bundle '{encoder.name}' makes it, found "
            f"{_cross(latent.shape)}. Resample the label map to the image that was encoded."
        )
    if row.dim is not None and row.dim != label_map.shape:
        warnings.warn(
            f"{listed.path}, {row.image}: expected dim {_cross(label_map.shape)}, the size of the label map, found "
            f"{_cross(row.dim)}. The size of the label map is used.",
            MaisiAugWarning,
            stacklevel=2,
        )
    return latent, label_map


def _write_case(
    folder: Path, listed: EmbeddedList, row: EmbeddedRow, number: int, encoder: _Encoder, table: NDArray[np.uint8]
) -> PreparedCase:
    """Write image, label map and latent of a case, and describe it."""
    image_source = listed.root / row.image
    latent, label_map = _read_case(listed, row, encoder, table)
    grid = Grid.from_spacing(label_map.shape, row.spacing)
    image_path, label_path = (folder / f"{role}s" / f"{row.id}.nii.gz" for role in ("image", "label"))
    save_image(image_path, encoder.decode(latent), grid)
    save_label_map(label_path, label_map, grid)
    image_sha256 = sha256_of(image_path)
    latent_path = folder / LATENTS_FOLDER / encoder.weights_hash[:12] / f"{row.id}.{image_sha256[:12]}.npy"
    latent_path.parent.mkdir(parents=True, exist_ok=True)
    with open_whole(latent_path) as file:
        np.save(file, latent.astype(np.float16))
    counts = np.bincount(label_map.ravel(), minlength=256)
    return PreparedCase(
        id=row.id,
        patient=row.id,
        fold=number % DEFAULT_FOLDS if row.fold is None else row.fold,
        modality=row.modality,
        shape=grid.shape,
        spacing_mm=row.spacing,
        voxels={int(label_id): int(counts[label_id]) for label_id in np.flatnonzero(counts)},
        regions=row.regions,
        image_sha256=image_sha256,
        label_sha256=sha256_of(label_path),
        image_source=row.image,
        label_sources=(row.label,),
        key=sha256_of(image_source),
    )


def _cross(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))


def _name_ids(
    found: set[int], vocabulary: Vocabulary, rules: Mapping[str, MapRule]
) -> tuple[NDArray[np.uint8], dict[str, NewLabel], list[int]]:
    """What the ids of label maps mean.

    Returns:
        A table from these ids to those of the prepared label maps, the labels that MAISI's vocabulary lacks, and the
        ids without a name.
    """
    table, new_labels, unnamed = np.arange(256, dtype=np.uint8), {}, []
    for label_id in sorted(found - {BACKGROUND_ID, BODY_ID}):
        rule, own = rules.get(str(label_id)), vocabulary.label(label_id) if vocabulary.contains(label_id) else None
        target = None if rule is None else _find(vocabulary, rule.target)
        if rule is not None and rule.target == DROP:
            table[label_id] = BODY_ID
        elif target is not None:
            table[label_id] = target
        elif rule is not None:
            hosts = tuple(vocabulary.id_of(host) for host in rule.hosts)
            new_labels[rule.target] = NewLabel(id=label_id, hosts=hosts)
        elif own is None or own.kind == "slot":
            unnamed.append(label_id)
        elif not MAISI.contains(label_id) or MAISI.label(label_id).kind == "slot":
            new_labels[own.name] = NewLabel(id=label_id, hosts=own.hosts)
    return table, new_labels, unnamed


def _name_others(
    unnamed: Sequence[int],
    labels: Sequence[str] | None,
    named: Collection[str],
    vocabulary: Vocabulary,
    source: Path,
    say: Say,
) -> dict[str, NewLabel]:
    """Names of the ids without a name.

    Raises:
        PreparationError: When it is not clear what they mean.
    """
    if labels is None:
        return {f"label {label_id}": NewLabel(id=label_id) for label_id in unnamed}
    wanted = [name for name in labels if name not in named and _find(vocabulary, name) is None]
    if len(unnamed) == len(wanted) == 1:
        say(f"Note: id {unnamed[0]} of the label maps is taken for '{wanted[0]}'.")
        return {wanted[0]: NewLabel(id=unnamed[0])}
    if unnamed:
        raise PreparationError(
            f"{source}: expected names for all ids of its label maps, found none for {', '.join(map(str, unnamed))}. "
            f"Name them, such as --map '{unnamed[0]}={wanted[0] if wanted else 'kidney tumor'}', or drop them with "
            f"--map '{unnamed[0]}=-'."
        )
    return {}


def _find(vocabulary: Vocabulary, name: str) -> int | None:
    """The id of a label that is known by a name, and no placeholder."""
    try:
        label = vocabulary.label(name)
    except VocabularyError:
        return None
    return None if label.kind == "slot" else label.id
