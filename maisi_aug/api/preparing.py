"""A lab's own CTs as training cases: what ``prepare`` does, for the command line and for Python."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maisi_aug.api.displays import Progress, listen_to_stages
from maisi_aug.api.keywords import build_model, require_known, takes_fields_of
from maisi_aug.errors import PreparationError
from maisi_aug.preparation.request import PrepareConfig
from maisi_aug.system.progress import ReportStage, report_nothing

if TYPE_CHECKING:
    from maisi_aug.preparation.run import PreparePlan, PrepareResult

ORGANS_FOLDER = "organs"


@takes_fields_of(PrepareConfig)
def prepare(
    *,
    out: str | Path,
    device: str = "auto",
    update: bool = False,
    num_workers: int | None = None,
    progress: Progress = True,
    **fields: Any,
) -> PrepareResult:
    """Prepare CTs and label maps for training: one grid, one vocabulary, body, folds, pictures; ``maisi-aug prepare``.

    The sources are either ``images`` and ``labels``, or ``nnunet``; they are not changed.

    >>> import maisi_aug as ma
    >>> result = ma.prepare(images="lab/images", labels="lab/labels", map={1: "liver"}, num_folds=2, out="prepared")
    >>> sorted(result.problems), [row["name"] for row in result.summary["labels"]]
    ([], ['liver', 'body'])

    Args:
        out: The prepared folder: new, or one that an earlier call began, which is continued. It gets
            ``images/ID.nii.gz`` (int16 HU), ``labels/ID.nii.gz`` (uint8 vocabulary ids), ``previews/ID.png``,
            ``dataset.yaml``, ``summary.json`` and ``summary.md``. :func:`finetune_controlnet`, :func:`train` and
            :func:`benchmark` take it.
        device: Device on which TotalSegmentator runs, with ``run_totalsegmentator``; unused otherwise.
        update: Whether an existing folder may be changed to other options; cases that are then left out are removed.
        num_workers: Number of processes; one per core when not given.
        progress: True for bars on a terminal or in a notebook, False for none, or a function that is called with
            ``(stage, done, total)``: a text and two numbers.
        **fields: The keywords listed below.

    Returns:
        ``dataset`` (``path``, ``cases`` and ``vocabulary`` of the prepared folder), ``summary`` (content of
        ``summary.json``) and ``problems`` (case -> why it could not be prepared), which do not raise.

    Raises:
        RecipeError: A keyword is unknown.
        PreparationError: Fields are invalid (the message lists all problems), the sources cannot be used, ``out``
            holds something else or was made with other options, or no case can be prepared.
        MissingExtraError: TotalSegmentator is requested but not installed.
        MaisiAugError: The request cannot be met for another reason; the message is the one that the command prints.
    """
    require_known(prepare, fields)
    config = build_model(PrepareConfig, fields, source="prepare", error=PreparationError)
    with listen_to_stages(progress) as report:
        preparation = Preparation.open(config, Path(out), device=device, report=report, num_workers=num_workers)
        return preparation.run(update=update)


@dataclass(frozen=True)
class Preparation:
    """A preparation that has been planned and checked, and can be run.

    Attributes:
        plan: What becomes of every label and case.
        notes: Notes to the user, a sentence each.
    """

    plan: PreparePlan
    notes: tuple[str, ...]
    _config: PrepareConfig
    _out: Path
    _device: str
    _report: ReportStage
    _num_workers: int | None

    @classmethod
    def open(
        cls,
        config: PrepareConfig,
        out: Path,
        *,
        device: str = "auto",
        report: ReportStage = report_nothing,
        num_workers: int | None = None,
    ) -> Preparation:
        """Plan a preparation and check everything that can be checked beforehand; nothing is written.

        Args:
            config: Images, label maps, rules and grid.
            out: Folder of the prepared cases.
            device: Device on which TotalSegmentator runs.
            report: Progress callback, called with (stage, done, total).
            num_workers: Number of processes; one per core if None.

        Raises:
            MaisiAugError: The request cannot be met.
        """
        from maisi_aug.preparation.run import plan_preparation, resolve_preparation

        request, notes = resolve_preparation(config, out)
        plan = plan_preparation(request, report=report, num_workers=num_workers)
        return cls(plan, (*notes, *plan.notes), config, out, device, report, num_workers)

    def run(self, *, update: bool = False) -> PrepareResult:
        """Prepare every planned case that is not in the folder yet.

        Args:
            update: Whether an existing folder may be changed to other options; cases that are then left out are
                removed.

        Raises:
            MaisiAugError: The folder is used by another process or for other options, or no case can be prepared.
        """
        from maisi_aug.preparation.run import run_preparation

        plan = self._claim(update=update)
        return run_preparation(plan, self._out, report=self._report, num_workers=self._num_workers)

    def _claim(self, *, update: bool) -> PreparePlan:
        """Take the folder; where TotalSegmentator is to be run, run it and lay its labels under the others."""
        from maisi_aug.preparation.run import claim_folder, with_organs

        if not self._config.run_totalsegmentator:
            claim_folder(self.plan, self._out, update=update)
            return self.plan
        from maisi_aug.integrations.totalsegmentator import VERSION, require_totalsegmentator, segment_organs
        from maisi_aug.networks.pipeline import resolve_device

        require_totalsegmentator()  # before anything is written
        device = resolve_device(self._device)
        claim_folder(self.plan, self._out, update=update)
        segment_organs(
            {task.case.id: task.case.image for task in self.plan.tasks},
            self._out / ORGANS_FOLDER,
            device=device.replace("cuda", "gpu"),
            fast=self._config.fast_organs,
            report=partial(self._report, "TotalSegmentator"),
        )
        return with_organs(self.plan, self._out / ORGANS_FOLDER, VERSION)
