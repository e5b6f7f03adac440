"""Cohorts handed on to training frameworks: what ``export`` does, for the command line and for Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from maisi_aug.api.displays import listen_to_stages
from maisi_aug.api.listener import Progress
from maisi_aug.errors import RequestError

if TYPE_CHECKING:
    from maisi_aug.integrations.dicom.export import DicomReport
    from maisi_aug.integrations.monai_data_list import MonaiReport
    from maisi_aug.integrations.nnunet.dataset import ExportReport
    from maisi_aug.integrations.nnunet.report import LikeReport


@runtime_checkable
class HasFolder(Protocol):
    """A cohort."""

    @property
    def folder(self) -> Path:
        """Where it is."""
        ...


Cohorts = HasFolder | str | Path | Sequence[HasFolder | str | Path]
LabelRules = Mapping[str | int, str] | Sequence[str]
"""Label of the real dataset, or ``background`` -> its name in the cohort, or ``LABEL=NAME`` each."""

_PLACES = {True: "with --like", False: "without --like"}


def export_nnunet(
    cohorts: Cohorts,
    *,
    dataset_id: int,
    name: str | None = None,
    out: str | Path | None = None,
    labels: Sequence[str] | None = None,
    include_anatomy: bool = False,
    copy: bool = False,
    like: str | Path | None = None,
    map: LabelRules | None = None,  # noqa: A002 - what the command calls it
    absent: Sequence[str] | None = None,
    ratio: float | None = None,
    max_per_label: int | None = None,
    plans: str | None = None,
    preprocessed: str | Path | None = None,
    link: Literal["none", "symlink", "hard"] = "none",
    insert: str | None = None,
    dry_run: bool = False,
    progress: Progress = True,
) -> ExportReport | LikeReport:
    """Write the accepted cases as an nnU-Net v2 dataset, whole or not at all; ``maisi-aug export nnunet``.

    With ``like`` they are added to a real dataset: its labels, its validation folds, plans made on its cases alone.
    Without it they are a dataset of their own, labels numbered in the order of their ids.

    Args:
        cohorts: A cohort or its folder, or several.
        dataset_id: Number of the dataset, 1 to 999, not in use.
        name: Of the dataset; with ``like`` the real one's and "Synthetic" when not given.
        out: Folder for raw datasets; the variable ``nnUNet_raw`` when not given.
        labels: Without ``like``: names or ids to export; those that the cohort was asked for when not given.
        include_anatomy: Without ``like``: every organ as well.
        copy: Without ``like``: copy the images instead of hard-linking them.
        like: Real raw dataset, by folder, number or name.
        map: With ``like``: label of the real dataset -> its name in the cohort; by name when not given.
        absent: With ``like``: labels of the real dataset that no synthetic body holds.
        ratio: With ``like``: synthetic cases per real case.
        max_per_label: With ``like``: most synthetic cases of a label.
        plans: With ``like``: plans of the real dataset to move.
        preprocessed: With ``like``: folder for preprocessed datasets; the variable ``nnUNet_preprocessed`` when not
            given.
        link: With ``like``: name existing files where they are, or link them into the dataset.
        insert: With ``like``: a lesion that the trainer draws into the real cases as it reads them, such as
            ``"nodule=lung nodule:6-20mm@0.5"``: label of the real dataset, lesion, size, share of the cases.
        dry_run: With ``like``: check everything and write nothing.
        progress: True for a bar, False for none, or something to call with ``(stage, done, total)``.

    Raises:
        RequestError: An option has no meaning with, or without, ``like``.
        MaisiAugError: The dataset would be wrong or incomplete.
    """
    alone: dict[str, Any] = {"labels": labels, "include_anatomy": include_anatomy, "copy": copy}
    beside: dict[str, Any] = {
        "map": map,
        "absent": absent,
        "ratio": ratio,
        "max_per_label": max_per_label,
        "plans": plans,
        "preprocessed": preprocessed,
        "link": None if link == "none" else link,
        "insert": insert,
        "dry_run": dry_run,
    }
    _require_none(alone if like is not None else beside, is_like=like is None)
    folders = _folders_of(cohorts)
    target = None if out is None else Path(out)
    if like is None:
        alone["labels"] = labels or ()
        return _export_alone(folders, dataset_id, name, target, alone, progress)
    from maisi_aug.integrations.nnunet.like import export_like
    from maisi_aug.integrations.nnunet.request import LikeRequest

    request = LikeRequest(
        cohort_dir=folders,
        like=Path(like),
        dataset_id=dataset_id,
        name=name,
        out=target,
        preprocessed=None if preprocessed is None else Path(preprocessed),
        labels=_to_rules(map),
        absent=absent or (),
        ratio=ratio,
        max_per_label=max_per_label,
        plans=plans,
        link=link,
        insert=insert,
    )
    with listen_to_stages(progress) as notify:
        return export_like(request, dry_run=dry_run, notify=notify)


def _export_alone(
    folders: list[Path],
    dataset_id: int,
    name: str | None,
    out: Path | None,
    options: Mapping[str, Any],
    progress: Progress,
) -> ExportReport:
    """A dataset of synthetic cases alone."""
    from maisi_aug.integrations.nnunet.dataset import export_nnunet as export

    if name is None:
        raise RequestError(
            "--name: expected a name, or --like for a name that follows the real dataset's, found neither. Give "
            "--name NAME."
        )
    with listen_to_stages(progress) as notify:
        return export(folders, dataset_id=dataset_id, name=name, out=out, notify=notify, **options)


def export_monai(
    cohorts: Cohorts,
    out: str | Path,
    *,
    like: str | Path | None = None,
    map: LabelRules | None = None,  # noqa: A002 - what the command calls it
    absent: Sequence[str] = (),
    labels: Sequence[str] = (),
    include_anatomy: bool = False,
    progress: Progress = True,
) -> MonaiReport:
    """Write images, label maps, a MONAI data list with folds and a task file for Auto3DSeg; ``maisi-aug export monai``.

    Args:
        cohorts: A cohort or its folder, or several.
        out: New or empty folder.
        like: nnU-Net raw dataset of real cases: they make up the folds, and its labels the numbers.
        map: With ``like``: label of the real dataset -> its name in the cohort; by name when not given.
        absent: With ``like``: labels of the real dataset that no synthetic case holds.
        labels: Names or ids to export; those that the cohort was asked for when empty.
        include_anatomy: Every organ as well.
        progress: True for a bar, False for none, or something to call with ``(stage, done, total)``.

    Raises:
        MaisiAugError: The data list would be wrong or incomplete.
    """
    from maisi_aug.integrations.monai_data_list import export_monai as export

    with listen_to_stages(progress) as notify:
        return export(
            _folders_of(cohorts),
            Path(out),
            like=None if like is None else Path(like),
            label=_to_rules(map),
            absent=absent,
            labels=labels,
            include_anatomy=include_anatomy,
            notify=notify,
        )


def export_dicom(
    cohorts: Cohorts,
    out: str | Path,
    *,
    labels: Sequence[str] = (),
    include_anatomy: bool = False,
    progress: Progress = True,
) -> DicomReport:
    """Write a DICOM CT series and a DICOM segmentation per case; ``maisi-aug export dicom``. Needs the extra ``dicom``.

    Args:
        cohorts: A cohort or its folder, or several.
        out: New or empty folder.
        labels: Names or ids to export; those that the cohort was asked for when empty.
        include_anatomy: Every organ as well.
        progress: True for a bar, False for none, or something to call with ``(stage, done, total)``.

    Raises:
        MissingExtraError: The extra is not installed.
        MaisiAugError: The files would be wrong or incomplete.
    """
    from maisi_aug.integrations.dicom.export import export_dicom as export

    with listen_to_stages(progress) as notify:
        return export(_folders_of(cohorts), Path(out), labels=labels, include_anatomy=include_anatomy, notify=notify)


def _folders_of(cohorts: Cohorts) -> list[Path]:
    several = [cohorts] if isinstance(cohorts, HasFolder | str | Path) else cohorts
    return [cohort.folder if isinstance(cohort, HasFolder) else Path(cohort) for cohort in several]


def _to_rules(label_map: LabelRules | None) -> list[str]:
    """``LABEL=NAME`` each."""
    if isinstance(label_map, Mapping):
        return [f"{label}={name}" for label, name in label_map.items()]
    return list(label_map or ())


def _require_none(given: Mapping[str, Any], *, is_like: bool) -> None:
    """Raise for an option that has no meaning here."""
    for option, value in given.items():
        if value is not None and value is not False:
            flag = "--" + option.replace("_", "-")
            raise RequestError(f"{flag} can only be used {_PLACES[is_like]}. Leave it out.")
