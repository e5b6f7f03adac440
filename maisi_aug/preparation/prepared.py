"""A folder of prepared training cases: real images and label maps on the networks' grid. Needs no torch.

``dataset.yaml`` says what all cases share, ``cases.jsonl`` lists them, a line each. Beside them lie
``images/ID.nii.gz`` (int16 HU), ``labels/ID.nii.gz`` (uint8 vocabulary ids with body), ``previews/ID.png``,
``summary.md``, ``summary.json``, ``contact_sheet.png``, and in ``latents/`` what an autoencoder made of the images.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from maisi_aug.bundle_spec.grid_limits import GridSpec
from maisi_aug.errors import PreparationError
from maisi_aug.system.content import ContentError, read_lines
from maisi_aug.system.models import StrictModel, explain_problems, read_yaml
from maisi_aug.system.whole_files import write_text_whole
from maisi_aug.vocabulary.labels import MAISI, SlotBinding, Vocabulary
from maisi_aug.vocabulary.modalities import ModalityName
from maisi_aug.vocabulary.regions import BodyRegion

SPEC_NAME = "dataset.yaml"
CASES_NAME = "cases.jsonl"
FOLDERS = ("images", "labels", "previews")
LATENTS_FOLDER = "latents"
AGAIN = "Prepare the data again."

Sha256 = Field(pattern="^[0-9a-f]{64}$")


class NewLabel(StrictModel):
    """A label that MAISI's vocabulary lacks, with its id in prepared label maps.

    Attributes:
        id: Id in the prepared label maps, a placeholder slot or a free id; fine-tuning may use another slot.
        hosts: Vocabulary ids of the organs that it grows in; empty for an organ.
    """

    id: int = Field(ge=1, le=255)
    hosts: tuple[int, ...] = ()


class PreparedSpec(StrictModel):
    """Content of ``dataset.yaml``, which describes a prepared folder.

    Attributes:
        format: Version of this layout.
        name: Name of the data set.
        grid: Grid of every case.
        labels: Name -> id of every label that occurs in some case, body included.
        new_labels: Labels that MAISI's vocabulary lacks.
        num_folds: Folds are numbered from 0.
        options: Options of the preparation; equal options and sources give equal files.
    """

    format: Literal[1] = 1
    name: str
    grid: GridSpec
    labels: dict[str, int]
    new_labels: dict[str, NewLabel] = Field(default={})
    num_folds: PositiveInt
    options: dict[str, Any] = Field(default={})


class PreparedCase(StrictModel):
    """A prepared case: one line of ``cases.jsonl``.

    Attributes:
        id: Name of the case's files.
        patient: Name of the patient, whose cases share a fold.
        fold: The fold in which the case is held out.
        modality: Modality of the image, for the diffusion U-Net.
        shape: Voxels along I, J, K.
        spacing_mm: Voxel sides along I, J, K in mm.
        voxels: Label id -> number of voxels, including the background.
        regions: Uppermost and lowest body region that the image shows; None to derive them from the label map.
        image_sha256: SHA-256 of the prepared image file.
        label_sha256: SHA-256 of the prepared label file.
        image_source: Path of the source CT.
        label_sources: Paths of the source label maps and masks.
        key: SHA-256 of the sources' content and the options; a case with the same key is not prepared again.
        notes: Sentences about what preparation changed in this case.
    """

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    patient: str
    fold: int = Field(ge=0)
    modality: ModalityName
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    voxels: dict[int, int]
    regions: tuple[BodyRegion, BodyRegion] | None = None
    image_sha256: str = Sha256
    label_sha256: str = Sha256
    image_source: str
    label_sources: tuple[str, ...]
    key: str = Sha256
    notes: tuple[str, ...] = ()

    def volume_ml(self, label_id: int) -> float:
        """Return the volume of a label in mL; 0 if the case lacks it."""
        i, j, k = self.spacing_mm
        return self.voxels.get(label_id, 0) * i * j * k / 1000.0


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared folder, or some of its cases.

    Attributes:
        path: Path of the folder.
        spec: Settings that all cases share.
        cases: The cases in the order of their ids.
    """

    path: Path
    spec: PreparedSpec
    cases: tuple[PreparedCase, ...]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """MAISI's vocabulary with the new labels bound to their ids."""
        return bind_new_labels(MAISI, self.spec.new_labels.items())

    def file_of(self, role: Literal["image", "label", "preview"], case_id: str) -> Path:
        """Return the path of a file of a case.

        Args:
            role: Kind of file.
            case_id: Id of the case.

        Returns:
            Path in the prepared folder; it is not checked whether the file exists.
        """
        suffix = ".png" if role == "preview" else ".nii.gz"
        return self.path / f"{role}s" / f"{case_id}{suffix}"

    def select(self, *, folds: Collection[int] | None = None, exclude_fold: int | None = None) -> PreparedDataset:
        """Return the dataset restricted to the cases of some folds.

        Args:
            folds: The folds to keep; None for all.
            exclude_fold: Fold to leave out, such as the one held out for validation.

        Raises:
            PreparationError: A fold does not exist, or no case is left.
        """
        for fold in (*(folds or ()), *([] if exclude_fold is None else [exclude_fold])):
            if not 0 <= fold < self.spec.num_folds:
                raise PreparationError(
                    f"{self.path}: fold must be between 0 and {self.spec.num_folds - 1}, found {fold}. Choose one of "
                    "those, or prepare with more --folds."
                )
        kept = tuple(case for case in self.cases if (folds is None or case.fold in folds) and case.fold != exclude_fold)
        if not kept:
            is_all_left_out = {case.fold for case in self.cases} == {exclude_fold}
            found = f" (all are in fold {exclude_fold}, which is held out)" if is_all_left_out else ""
            remedy = "more --folds, or cases of more patients" if is_all_left_out else "fewer --folds"
            raise PreparationError(
                f"{self.path}: the chosen folds have no cases{found}. Choose other folds, or prepare with {remedy}."
            )
        return replace(self, cases=kept)


def bind_new_labels(vocabulary: Vocabulary, new_labels: Collection[tuple[str, NewLabel]]) -> Vocabulary:
    """Return a vocabulary with new labels bound to their ids.

    Args:
        vocabulary: Vocabulary without the new labels; not modified.
        new_labels: Name and label, with its id and its hosts.

    Raises:
        VocabularyError: A name is taken or an id is not free.
    """
    bindings = {name: SlotBinding(id=label.id, hosts=label.hosts) for name, label in new_labels}
    return vocabulary.with_slots(bindings) if bindings else vocabulary


def write_lists(folder: Path, spec: PreparedSpec, cases: Iterable[PreparedCase], *, command: str) -> PreparedDataset:
    """Write ``cases.jsonl``, then ``dataset.yaml``, which marks the folder as complete.

    Args:
        folder: Folder with the images and label maps.
        spec: Settings that all cases share.
        cases: Cases in any order.
        command: Command line that prepared them.

    Raises:
        VolumeError: A file cannot be written.
    """
    import yaml

    dataset = PreparedDataset(folder, spec, tuple(sorted(cases, key=lambda case: case.id)))
    unsaid = {"regions"}  # of most cases
    lines = (case.model_dump_json(exclude=unsaid if case.regions is None else None) for case in dataset.cases)
    write_text_whole(folder / CASES_NAME, "".join(f"{line}\n" for line in lines))
    head = f"# Written by '{command}'; the cases are listed in {CASES_NAME}.\n"
    text = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)
    write_text_whole(folder / SPEC_NAME, head + text)
    return dataset


def load_prepared(folder: Path | str) -> PreparedDataset:
    """Open a prepared folder by reading ``dataset.yaml`` and ``cases.jsonl``; images are read later.

    Raises:
        PreparationError: The folder is not a prepared one, unfinished, or damaged.
    """
    folder = Path(folder)
    spec_path, cases_path = folder / SPEC_NAME, folder / CASES_NAME
    if not spec_path.is_file():
        raise PreparationError(
            f"{folder}: not a prepared folder, because {SPEC_NAME} is missing. Make one with 'maisi-aug prepare "
            f"--out {folder}', or run the same command again if it was stopped."
        )
    with explain_problems(PreparedSpec, str(spec_path), PreparationError, advice=AGAIN):
        spec = PreparedSpec.model_validate(read_yaml(spec_path, str(folder), PreparationError))
    try:
        with explain_problems(PreparedCase, str(cases_path), PreparationError, advice=AGAIN):
            lines = (line for line in read_lines(cases_path) if line.strip())
            cases = tuple(PreparedCase.model_validate_json(line) for line in lines)
    except (OSError, ContentError) as error:
        raise PreparationError(f"{folder}: {CASES_NAME} cannot be read: {error}. {AGAIN}") from error
    if not cases:
        raise PreparationError(f"{cases_path}: has no cases. {AGAIN}")
    seen: set[str] = set()
    for case in cases:
        if case.id.casefold() in seen:
            raise PreparationError(f"{cases_path}: case '{case.id}' is listed twice. Prepare again.")
        seen.add(case.id.casefold())
        if case.fold >= spec.num_folds:
            raise PreparationError(
                f"{cases_path}: folds are 0 to {spec.num_folds - 1}, found {case.fold} for '{case.id}'. Prepare again."
            )
    return PreparedDataset(folder, spec, tuple(sorted(cases, key=lambda case: case.id)))
