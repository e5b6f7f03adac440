"""The requests for exports, on the command line and in Python. Nothing heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from maisi_aug.errors import RequestError
from maisi_aug.system.models import Option, StrictModel

Link = Literal["none", "symlink", "hard"]
_ALONE, _LIKE = "Without --like", "With --like"


class DicomExport(StrictModel, use_attribute_docstrings=True):
    """Options of ``export dicom``: labels that become DICOM segmentations."""

    labels: Annotated[tuple[str, ...], Option(metavar="NAME")] = ()
    """Label to export, by name or id; may repeat (default: the labels requested for the cohort)."""
    include_anatomy: Annotated[bool, Option("--include-anatomy")] = False
    """Export every organ label as well."""


class MonaiExport(DicomExport):
    """Options of ``export monai``: labels, their numbers, and real cases to export together with the cohort."""

    like: Annotated[Path | None, Option(complete="datasets")] = None
    """nnU-Net raw dataset of real cases, which supplies the folds and the label numbers."""
    map: Annotated[tuple[str, ...], Option(metavar="LABEL=NAME")] = ()
    """A label of the real dataset, or 'background', and its name in the cohort; may repeat; join several names with
    '+'. Labels with equivalent names are matched automatically.
    """
    absent: Annotated[tuple[str, ...], Option(metavar="LABEL")] = ()
    """Label of the real dataset that no synthetic case contains; may repeat."""


class NnunetExport(StrictModel, use_attribute_docstrings=True):
    """Options of ``export nnunet``: a dataset of a cohort alone or, with ``like``, added to a real dataset."""

    dataset_id: Annotated[int, Field(ge=1, le=999), Option()]
    """Unused dataset number."""
    name: Annotated[str | None, Option(everyday=True)] = None
    """Dataset name: letters, digits, '_' and '-' (default with --like: the real dataset's name followed by
    'Synthetic').
    """
    out: Annotated[Path | None, Option("-o", everyday=True)] = None
    """Folder for raw datasets (default: the environment variable nnUNet_raw)."""
    labels: Annotated[tuple[str, ...], Option(metavar="NAME", panel=_ALONE, everyday=True)] = ()
    """Label to export, by name or id; may repeat (default: the labels requested for the cohort)."""
    include_anatomy: Annotated[bool, Option("--include-anatomy", panel=_ALONE)] = False
    """Export every organ label as well."""
    copy_images: Annotated[bool, Option("--copy", panel=_ALONE)] = False
    """Copy the images instead of hard-linking them."""
    like: Annotated[Path | None, Option(complete="datasets", panel=_LIKE, everyday=True)] = None
    """Real raw dataset to extend: nnUNet_raw/DatasetXXX_Name, its number or its name."""
    map: Annotated[tuple[str, ...], Option(metavar="LABEL=NAME", panel=_LIKE, everyday=True)] = ()
    """A label of the real dataset, or 'background', and its name in the cohort; may repeat; join several names with
    '+'. Labels with equivalent names are matched automatically.
    """
    absent: Annotated[tuple[str, ...], Option(metavar="LABEL", panel=_LIKE)] = ()
    """Label of the real dataset that no synthetic case contains; may repeat."""
    ratio: Annotated[float | None, Option(panel=_LIKE, everyday=True)] = None
    """Synthetic cases per real case (default: all)."""
    max_per_label: Annotated[int | None, Option(panel=_LIKE)] = None
    """Largest number of synthetic cases per requested label."""
    plans: Annotated[str | None, Option(panel=_LIKE)] = None
    """Plans of the real dataset to reuse (default: nnUNetPlans, or the only existing plans)."""
    preprocessed: Annotated[Path | None, Option(panel=_LIKE)] = None
    """Folder for preprocessed datasets (default: the environment variable nnUNet_preprocessed)."""
    link: Annotated[Link, Option(panel=_LIKE)] = "none"
    """How real images enter the dataset: none lists them in dataset.json where they are; the others link them into the
    dataset.
    """
    insert: Annotated[str | None, Option(metavar="LABEL=LESION:SIZE[@SHARE]", panel=_LIKE)] = None
    """Lung lesion that nnUNetTrainerSynthetic... inserts into real cases while training, such as 'nodule=lung
    nodule:6-20mm'; into half of the cases unless a share is given.
    """
    dry_run: Annotated[bool, Option("--dry-run", panel=_LIKE, everyday=True)] = False
    """Check everything, including the real cases, and write nothing."""

    @model_validator(mode="after")
    def _require_fitting_options(self) -> Self:
        wrong, place = (_LIKE, "with --like") if self.like is None else (_ALONE, "without --like")
        for name, field in type(self).model_fields.items():
            option = next(one for one in field.metadata if isinstance(one, Option))
            if option.panel == wrong and name != "like" and getattr(self, name) != field.default:
                raise RequestError(f"{option.spell_flags(name)[0]} can only be used {place}. Leave it out.")
        if self.like is None and self.name is None:
            raise RequestError("--name: required without --like. Give --name NAME.")
        return self
