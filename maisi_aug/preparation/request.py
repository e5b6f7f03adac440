"""What prepare is asked for, on the command line and in Python. Nothing heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import PositiveInt

from maisi_aug.system.models import Option, PathText, StrictModel
from maisi_aug.volumes.grid_words import ShapeField, SpacingField

OrganLabels = Literal["auto", "totalsegmentator-v2", "totalsegmentator-v3", "totalsegmentator-v1", "maisi"]
"""What the ids of organ label maps mean; ``auto`` reads it beside the files, or off the names of masks."""
ModalityName = Literal["unknown", "ct", "ct_wo_contrast", "ct_contrast"]
_FILES, _LABELS, _RESULT = "Files", "Labels", "Prepared cases"


class Sources(StrictModel, use_attribute_docstrings=True):
    """Where a lab's files are."""

    images: Annotated[Path | None, Option(panel=_FILES, everyday=True)] = None
    """Folder of CTs: NIfTI, NRRD, MHA, DICOM; or a folder per case with a DICOM series or ct.nii.gz."""
    labels: Annotated[Path | None, Option(panel=_FILES, everyday=True)] = None
    """Folder of label maps named after the images (ID.nii.gz; several per case, such as ID_oar.nii.gz, are laid over
    each other), or a folder per case with masks, a DICOM SEG or an RT structure set. May be the images' folder."""
    nnunet: Annotated[
        PathText | None, Option(metavar="FOLDER|NAME|ID", complete="datasets", panel=_FILES, everyday=True)
    ] = None
    """nnU-Net raw dataset, instead of --images and --labels."""
    organs: Annotated[tuple[Path, ...], Option(panel=_LABELS, everyday=True)] = ()
    """Folder of organ labels as TotalSegmentator writes them: ID.nii.gz, or a folder ID of masks; may repeat, the last
    one wins. Your own labels win over them."""
    image_pattern: Annotated[str | None, Option(metavar="PATH", panel=_FILES)] = None
    """How images are named, without suffix: '{id}_ct', '{id}/ct' (default: by the usual endings)."""
    label_patterns: Annotated[tuple[str, ...], Option("--label-pattern", metavar="PATH", panel=_FILES)] = ()
    """How label files are named, without suffix: '{id}_oar', '{id}/segmentations/{label}'; may repeat, the last one
    wins (default: by the images' names)."""
    excluded: Annotated[tuple[str, ...], Option("--exclude", metavar="ID", panel=_FILES)] = ()
    """Case to leave out; may repeat."""


class PrepareConfig(Sources):
    """What the user asks for; :func:`~maisi_aug.preparation.run.resolve_preparation` reads and checks it."""

    map: Annotated[tuple[str, ...], Option(metavar="LABEL=NAME[@HOSTS]", panel=_LABELS, everyday=True)] = ()
    """What a label means; may repeat. LABEL: id, name, name with *, or FILE/LABEL for one kind of label file. NAME: one
    of the vocabulary, which needs no rule, or its id; a new one, with its hosts ('3=left parotid@body'); '-' drops."""
    organ_labels: Annotated[OrganLabels, Option(panel=_LABELS)] = "auto"
    """What the ids in --organs mean; auto reads labels.json or the names of masks."""
    run_totalsegmentator: Annotated[bool, Option("--run-totalsegmentator", panel=_LABELS)] = False
    """Make organ labels now; needs maisi-aug[totalsegmentator], which fetches its weights at first use."""
    fast_organs: Annotated[bool, Option("--fast-organs", panel=_LABELS)] = False
    """Use TotalSegmentator's 3 mm model, for computers without a GPU."""
    tissues: Annotated[tuple[str, ...], Option("--tissue", metavar="NAME=LOW:HIGH", panel=_LABELS)] = ()
    """Label of body voxels that no label claims and whose HU lies between LOW and HIGH, such as 'skull=150:3000' or
    'airway=-1024:-300'; may repeat. For data without organ labels; organ labels are better, since HU do not tell a jaw
    from a vertebra."""
    allow_empty: Annotated[bool, Option("--allow-empty", panel=_LABELS)] = False
    """Keep cases that hold none of the labels, such as healthy ones."""
    bundle: Annotated[
        PathText | None, Option(metavar="NAME|FOLDER", complete="bundles", panel=_RESULT, everyday=True)
    ] = None
    """Bundle that will be trained, with its grid and slots; the --base of finetune-controlnet (default: phantom-ct)."""
    shape: Annotated[ShapeField | None, Option(metavar="IxJxK", takes=str, panel=_RESULT)] = None
    """Voxels (default: the bundle's)."""
    spacing_mm: Annotated[SpacingField | None, Option("--spacing", metavar="MM|IxJxK", takes=str, panel=_RESULT)] = None
    """Voxel sides in mm (default: the bundle's)."""
    patients: Annotated[PathText | None, Option(metavar="REGEX|CSV", panel=_RESULT)] = None
    """How a case's name tells its patient ('^[^_]+_[0-9]+'), or a CSV file with the columns id and patient (default:
    every case is a patient of its own)."""
    num_folds: Annotated[PositiveInt, Option("--folds", panel=_RESULT)] = 5
    """Number of folds that patients are divided into."""
    keeps_surroundings: Annotated[bool, Option("--keep-surroundings", panel=_RESULT)] = False
    """Keep table and air as they are, instead of setting them to -1000 HU."""
    modality: Annotated[ModalityName, Option(panel=_RESULT)] = "ct"
    """Modality of the images that the networks are given."""
    name: Annotated[str | None, Option(panel=_RESULT)] = None
    """Name of the dataset (default: that of --out)."""
