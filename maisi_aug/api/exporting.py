"""Cohorts handed on to training frameworks: what ``export`` does, for the command line and for Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from maisi_aug.api.displays import Progress, listen_to_stages
from maisi_aug.api.keywords import Model, build_model, require_known, takes_fields_of, to_fields
from maisi_aug.errors import RequestError
from maisi_aug.integrations.request import DicomExport, MonaiExport, NnunetExport

if TYPE_CHECKING:
    from maisi_aug.integrations.dicom.export import DicomReport
    from maisi_aug.integrations.monai_data_list import MonaiReport
    from maisi_aug.integrations.nnunet.dataset import ExportReport
    from maisi_aug.integrations.nnunet.report import LikeReport


@runtime_checkable
class HasFolder(Protocol):
    """Protocol of everything that has the folder of a cohort, such as :class:`Cohort`."""

    @property
    def folder(self) -> Path:
        """Folder of the cohort."""
        ...


Cohorts = HasFolder | str | Path | Sequence[HasFolder | str | Path]


@takes_fields_of(NnunetExport, but=["copy_images"])
def export_nnunet(
    cohorts: Cohorts, *, dataset_id: int, copy: bool = False, progress: Progress = True, **fields: Any
) -> ExportReport | LikeReport:
    """Write the accepted cases as an nnU-Net v2 dataset, whole or not at all; ``maisi-aug export nnunet``.

    With ``like`` they are added to a real dataset: its labels, its validation folds, plans made on its cases alone.
    Without it they are a dataset of their own, labels numbered in the order of their ids.

    The dataset is ``DatasetXXX_NAME`` in ``out`` or ``$nnUNet_raw``; :meth:`Cohort.export_nnunet` has an example.

    Args:
        cohorts: A :class:`Cohort` or its folder, or several of them.
        dataset_id: Number of the dataset, 1 to 999, not in use.
        copy: Without ``like``: copy the images instead of hard-linking them.
        progress: True for a bar, False for none, or a function called with ``(stage, done, total)``.
        **fields: The keywords listed below; ``name`` is required without ``like``.

    Returns:
        Without ``like`` an object with ``path``, ``labels`` (name -> number, with the background), ``num_cases`` and
        ``notes``. With ``like`` one with ``path``, ``preprocessed``, ``labels``, ``folds`` and ``commands``, which are
        to be run next.

    Raises:
        RecipeError: A keyword is unknown; the message names the closest.
        RequestError: An option is invalid, or cannot be combined with ``like``, or only with it.
        ExportError: The dataset would be wrong or incomplete, such as of an unfinished cohort, or the id is in use.
        CohortError: A folder is not a cohort.
    """
    from maisi_aug.integrations.nnunet.dataset import export_alone
    from maisi_aug.integrations.nnunet.like import export_like

    require_known(export_nnunet, fields)
    request = _read(NnunetExport, {"dataset_id": dataset_id, "copy_images": copy, **fields})
    with listen_to_stages(progress) as notify:
        export = export_alone if request.like is None else export_like
        return export(_folders_of(cohorts), request, notify=notify)


@takes_fields_of(MonaiExport)
def export_monai(cohorts: Cohorts, out: str | Path, *, progress: Progress = True, **fields: Any) -> MonaiReport:
    """Write images, label maps, a MONAI data list with folds and a task file for Auto3DSeg; ``maisi-aug export monai``.

    Args:
        cohorts: A :class:`Cohort` or its folder, or several of them.
        out: New or empty folder. It gets ``datalist.json`` and ``task.yaml`` next to the images and label maps, whose
            numbers are those of the report's ``labels``.
        progress: True for a bar, False for none, or a function called with ``(stage, done, total)``.
        **fields: The keywords listed below.

    Returns:
        ``path``, ``labels`` (name -> number), ``num_synthetic``, ``num_real``, ``num_folds`` and ``notes``.

    Raises:
        RecipeError: A keyword is unknown; the message names the closest.
        RequestError: An option is invalid.
        ExportError: The data list would be wrong or incomplete, or ``out`` is not empty.
        CohortError: A folder is not a cohort.
    """
    from maisi_aug.integrations.monai_data_list import export_monai as export

    require_known(export_monai, fields)
    request = _read(MonaiExport, fields)
    with listen_to_stages(progress) as notify:
        return export(
            _folders_of(cohorts),
            Path(out),
            like=request.like,
            label=request.map,
            absent=request.absent,
            labels=request.labels,
            include_anatomy=request.include_anatomy,
            notify=notify,
        )


@takes_fields_of(DicomExport)
def export_dicom(cohorts: Cohorts, out: str | Path, *, progress: Progress = True, **fields: Any) -> DicomReport:
    """Write a DICOM CT series and a DICOM segmentation per case; ``maisi-aug export dicom``. Needs the extra ``dicom``.

    Args:
        cohorts: A :class:`Cohort` or its folder, or several of them.
        out: New or empty folder; ``maisi_aug_index.json`` in it lists the files of every case.
        progress: True for a bar, False for none, or a function called with ``(stage, done, total)``.
        **fields: The keywords listed below.

    Returns:
        ``path``, ``num_cases`` (CT series), ``num_segmentations``, ``segments`` (names of the labels) and ``notes``.

    Raises:
        MissingExtraError: The extra is not installed.
        RecipeError: A keyword is unknown; the message names the closest.
        RequestError: An option is invalid.
        ExportError: The files would be wrong or incomplete, or ``out`` is not empty.
        CohortError: A folder is not a cohort.
    """
    from maisi_aug.integrations.dicom.export import export_dicom as export

    require_known(export_dicom, fields)
    request = _read(DicomExport, fields)
    with listen_to_stages(progress) as notify:
        return export(_folders_of(cohorts), Path(out), **dict(request), notify=notify)


def _read(model: type[Model], fields: Mapping[str, Any]) -> Model:
    return build_model(model, to_fields(model, fields), source="Export", error=RequestError)


def _folders_of(cohorts: Cohorts) -> list[Path]:
    several = [cohorts] if isinstance(cohorts, HasFolder | str | Path) else cohorts
    return [cohort.folder if isinstance(cohort, HasFolder) else Path(cohort) for cohort in several]
