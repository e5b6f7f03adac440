"""What exports are asked for, on the command line and in Python. Nothing heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from maisi_aug.errors import RequestError
from maisi_aug.system.models import Option, StrictModel

Link = Literal["none", "symlink", "hard"]
_ALONE, _LIKE = "Without --like", "With --like"


class DicomExport(StrictModel, use_attribute_docstrings=True):
    """Which labels become DICOM segmentations."""

    labels: Annotated[tuple[str, ...], Option()] = ()
    """Label to export, by name or id; may repeat (default: those that the cohort was asked for)."""
    include_anatomy: Annotated[bool, Option("--include-anatomy")] = False
    """Export every organ label as well."""


class MonaiExport(DicomExport):
    """Which labels become which numbers, and which real cases stand beside the cohort's."""

    like: Annotated[Path | None, Option(complete="datasets")] = None
    """nnU-Net raw dataset of real cases: they make up the folds, and its labels the numbers."""
    map: Annotated[tuple[str, ...], Option(metavar="LABEL=NAME")] = ()
    """A label of the real dataset, or 'background', and its name in the cohort; may repeat, and several names are
    joined by '+'. Labels whose names mean the same find each other."""
    absent: Annotated[tuple[str, ...], Option(metavar="LABEL")] = ()
    """Label of the real dataset that no synthetic body holds; may repeat."""


class NnunetExport(StrictModel, use_attribute_docstrings=True):
    """A dataset of a cohort alone or, with ``like``, a real one that the cohort is added to."""

    dataset_id: Annotated[int, Field(ge=1, le=999), Option()]
    """Number of the dataset, not in use."""
    name: Annotated[str | None, Option(everyday=True)] = None
    """Name of the dataset: letters, digits, '_' and '-'. With --like: the real one's and 'Synthetic'."""
    out: Annotated[Path | None, Option("-o", everyday=True)] = None
    """Folder for raw datasets; the environment variable nnUNet_raw when not given."""
    labels: Annotated[tuple[str, ...], Option(panel=_ALONE, everyday=True)] = ()
    """Label to export, by name or id; may repeat (default: those that the cohort was asked for)."""
    include_anatomy: Annotated[bool, Option("--include-anatomy", panel=_ALONE)] = False
    """Export every organ label as well."""
    copy_images: Annotated[bool, Option("--copy", panel=_ALONE)] = False
    """Copy the images instead of hard-linking them."""
    like: Annotated[Path | None, Option(complete="datasets", panel=_LIKE, everyday=True)] = None
    """Real raw dataset to add to: nnUNet_raw/DatasetXXX_Name, its number or its name."""
    map: Annotated[tuple[str, ...], Option(metavar="LABEL=NAME", panel=_LIKE, everyday=True)] = ()
    """A label of the real dataset, or 'background', and its name in the cohort; may repeat, and several names are
    joined by '+'. Labels whose names mean the same find each other."""
    absent: Annotated[tuple[str, ...], Option(metavar="LABEL", panel=_LIKE)] = ()
    """Label of the real dataset that no synthetic body holds; may repeat."""
    ratio: Annotated[float | None, Option(panel=_LIKE, everyday=True)] = None
    """Synthetic cases per real case; all without it."""
    max_per_label: Annotated[int | None, Option(panel=_LIKE)] = None
    """Most synthetic cases per requested label."""
    plans: Annotated[str | None, Option(panel=_LIKE)] = None
    """Plans of the real dataset to move; nnUNetPlans, or the only ones, without it."""
    preprocessed: Annotated[Path | None, Option(panel=_LIKE)] = None
    """Folder for preprocessed datasets; the environment variable nnUNet_preprocessed when not given."""
    link: Annotated[Link, Option(panel=_LIKE)] = "none"
    """Name existing files in dataset.json where they are (none), or link them into the dataset."""
    insert: Annotated[str | None, Option(metavar="LABEL=LESION:SIZE[@SHARE]", panel=_LIKE)] = None
    """Lesion of the lung that nnUNetTrainerSynthetic... draws into real cases as it reads them, into half of them
    without a share: nodule=lung nodule:6-20mm."""
    dry_run: Annotated[bool, Option("--dry-run", panel=_LIKE, everyday=True)] = False
    """Check everything, real cases included, and write nothing."""

    @model_validator(mode="after")
    def _require_fitting_options(self) -> Self:
        wrong, place = (_LIKE, "with --like") if self.like is None else (_ALONE, "without --like")
        for name, field in type(self).model_fields.items():
            option = next(one for one in field.metadata if isinstance(one, Option))
            if option.panel == wrong and name != "like" and getattr(self, name) != field.default:
                raise RequestError(f"{option.spell_flags(name)[0]} can only be used {place}. Leave it out.")
        if self.like is None and self.name is None:
            raise RequestError(
                "--name: expected a name, or --like for a name that follows the real dataset's, found neither. Give "
                "--name NAME."
            )
        return self
