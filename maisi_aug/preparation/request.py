"""The request for a preparation, on the command line and in Python. Nothing heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import PositiveInt

from maisi_aug.system.models import Option, PathText, StrictModel
from maisi_aug.vocabulary.modalities import CtModality
from maisi_aug.volumes.grid_words import ShapeField, SpacingField

OrganLabels = Literal["auto", "totalsegmentator-v2", "totalsegmentator-v3", "totalsegmentator-v1", "maisi"]
"""Meaning of the ids in organ label maps; ``auto`` reads it from the files next to them, or from the names of masks."""
CtModalityName = Literal["unknown", CtModality]
_FILES, _LABELS, _RESULT = "Files", "Labels", "Prepared cases"


class Sources(StrictModel, use_attribute_docstrings=True):
    """Where the user's images, label maps and organ labels are."""

    images: Annotated[Path | None, Option(panel=_FILES, everyday=True)] = None
    """Folder of CTs (NIfTI, NRRD, MHA, DICOM), or a folder per case with a DICOM series or ct.nii.gz."""
    labels: Annotated[Path | None, Option(panel=_FILES, everyday=True)] = None
    """Folder of label maps ID.nii.gz (several per case, such as ID_oar.nii.gz, are merged), or a folder per case with
    masks, DICOM SEG or RT structure set; may be the folder of --images.
    """
    nnunet: Annotated[
        PathText | None, Option(metavar="FOLDER|NAME|ID", complete="datasets", panel=_FILES, everyday=True)
    ] = None
    """nnU-Net raw dataset, instead of --images and --labels."""
    organs: Annotated[tuple[Path, ...], Option(panel=_LABELS, everyday=True)] = ()
    """Folder of TotalSegmentator's organ labels: ID.nii.gz, or a folder ID of masks; may repeat. Later folders override
    earlier ones; your own labels override all.
    """
    image_pattern: Annotated[str | None, Option(metavar="PATH", panel=_FILES)] = None
    """File name pattern of images, without suffix: '{id}_ct', '{id}/ct' (default: the usual endings)."""
    label_patterns: Annotated[tuple[str, ...], Option("--label-pattern", metavar="PATH", panel=_FILES)] = ()
    """File name pattern of label files, without suffix: '{id}_oar', '{id}/segmentations/{label}'; may repeat, later
    ones override earlier ones (default: the images' names).
    """
    excluded: Annotated[tuple[str, ...], Option("--exclude", metavar="ID", panel=_FILES)] = ()
    """Case to leave out; may repeat."""


class PrepareConfig(Sources):
    """Everything that a user can request of a preparation, before it is resolved."""

    map: Annotated[tuple[str, ...], Option(metavar="LABEL=NAME[@HOSTS]", panel=_LABELS, everyday=True)] = ()
    """Meaning of a label; may repeat. LABEL: id, name, name with *, or FILE/LABEL for one kind of file. NAME: one of
    the vocabulary, which needs no rule, or its id; a new one with its hosts ('3=left parotid@body'); '-' drops it.
    """
    organ_labels: Annotated[OrganLabels, Option(panel=_LABELS)] = "auto"
    """Meaning of the ids in --organs; auto reads labels.json or the names of masks."""
    run_totalsegmentator: Annotated[bool, Option("--run-totalsegmentator", panel=_LABELS)] = False
    """Run TotalSegmentator for organ labels; needs maisi-aug[totalsegmentator], which downloads its weights on first
    use.
    """
    fast_organs: Annotated[bool, Option("--fast-organs", panel=_LABELS)] = False
    """Use TotalSegmentator's 3 mm model, for machines without a GPU."""
    tissues: Annotated[tuple[str, ...], Option("--tissue", metavar="NAME=LOW:HIGH", panel=_LABELS)] = ()
    """Label for unlabelled body voxels with HU between LOW and HIGH, such as 'skull=150:3000' or
    'airway=-1024:-300'; may repeat. Use organ labels if there are any, because HU cannot tell a jaw from a
    vertebra.
    """
    allow_empty: Annotated[bool, Option("--allow-empty", panel=_LABELS)] = False
    """Keep cases that have none of the labels, such as healthy ones."""
    bundle: Annotated[
        PathText | None, Option(metavar="NAME|FOLDER", complete="bundles", panel=_RESULT, everyday=True)
    ] = None
    """Bundle to be trained, whose grid and slots are used; the --base of finetune-controlnet (default: phantom-ct)."""
    shape: Annotated[ShapeField | None, Option(metavar="IxJxK", takes=str, panel=_RESULT)] = None
    """Voxels along I, J, K (default: the bundle's)."""
    spacing_mm: Annotated[SpacingField | None, Option("--spacing", metavar="MM|IxJxK", takes=str, panel=_RESULT)] = None
    """Voxel spacing in mm (default: the bundle's)."""
    patients: Annotated[PathText | None, Option(metavar="REGEX|CSV", panel=_RESULT)] = None
    """How to find the patient in a case's name: a regular expression such as '^[^_]+_[0-9]+', or a CSV file with the
    columns id and patient (default: every case is its own patient).
    """
    num_folds: Annotated[PositiveInt, Option("--folds", panel=_RESULT)] = 5
    """Number of cross-validation folds; a patient is in one fold only."""
    keeps_surroundings: Annotated[bool, Option("--keep-surroundings", panel=_RESULT)] = False
    """Keep the table and the air around the patient instead of setting them to -1000 HU."""
    modality: Annotated[CtModalityName, Option(panel=_RESULT)] = "ct"
    """Image modality used as conditioning."""
    name: Annotated[str | None, Option(panel=_RESULT)] = None
    """Name of the dataset (default: that of --out)."""
