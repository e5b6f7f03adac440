"""Lesions drawn into the user's own CTs: what ``insert`` does, for the command line and for Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maisi_aug.api.exporting import LabelRules, to_rules
from maisi_aug.api.keywords import require_known, takes_fields_of, to_plain, to_texts
from maisi_aug.api.progress import Progress, RunListener, listen_to_run
from maisi_aug.api.results import Cohort
from maisi_aug.errors import RecipeError
from maisi_aug.insertion.config import InsertConfig
from maisi_aug.system.models import explain_problems

if TYPE_CHECKING:
    from maisi_aug.generate.run import CohortSummary


@takes_fields_of(InsertConfig, but=("map",))
def insert(
    labels: str | Sequence[str],
    *,
    into: str | Path,
    out: str | Path,
    into_organs: str | Path | Sequence[str | Path] = (),
    label_map: LabelRules | None = None,
    device: str = "auto",
    progress: Progress = True,
    **fields: Any,
) -> Cohort:
    """Draw lesions of given sizes into CTs; every voxel away from a lesion stays as it was; ``maisi-aug insert``.

    >>> import maisi_aug as ma
    >>> ma.insert("lung nodule:8-12mm", into="cts", num_cases=1, out="nodules")
    Cohort('nodules', 1 of 1 cases accepted)

    Args:
        labels: Lesions with their sizes, ``NAME[:SIZE][@SHARE]``.
        into: A CT, a folder of CTs, or an nnU-Net dataset.
        out: Folder of the cohort: new, empty, or one that the same call began, which it goes on with.
        into_organs: Folders of organ labels, such as TotalSegmentator's, in which lesions outside of the lung find
            their hosts.
        label_map: What the labels of ``into_labels`` mean: label -> name, or ``LABEL=NAME`` each.
        device: Where the networks of ``painter="network"`` run.
        progress: True for bars on a terminal or in a notebook, False for none, or something to call with
            ``(stage, done, total)``.
        **fields: ``num_cases``, ``seed``, ``into_labels``, ``organ_labels``, ``painter``, ``bundle``, ``texture``,
            ``place``, ``max_attempts`` and so on; ``help(maisi_aug.insertion.config.InsertConfig)`` explains each.

    Raises:
        MaisiAugError: The sentence that the command prints.
    """
    require_known(insert, fields)
    values = {
        "labels": tuple(to_texts(labels)),
        "into": str(into),
        "into_organs": tuple(to_texts(into_organs if not isinstance(into_organs, Path) else [into_organs])),
        "map": tuple(to_rules(label_map)),
        **{name: value for name, value in to_plain(fields).items() if value is not None},
    }
    with listen_to_run(progress) as listener:
        summary = make_insertion(read_insertion(values, source="insert"), Path(out), device=device, listener=listener)
    return Cohort(Path(out), summary)


def read_insertion(values: Mapping[str, Any], *, source: str) -> InsertConfig:
    """Validate what is asked for.

    Raises:
        RecipeError: Listing every problem.
    """
    with explain_problems(InsertConfig, source, RecipeError, kind="request"):
        return InsertConfig.model_validate(dict(values))


def make_insertion(
    config: InsertConfig, out: Path, *, device: str = "auto", listener: RunListener | None = None
) -> CohortSummary:
    """Find the CTs, plan the lesions and draw them.

    Raises:
        MaisiAugError: What is asked for cannot be made.
    """
    from maisi_aug.insertion.cohort import insert_cohort
    from maisi_aug.insertion.config import resolve_insertion

    listener = listener or RunListener()
    cohort = resolve_insertion(config)
    for note in cohort.backgrounds.notes:
        listener.advises(note)
    return insert_cohort(cohort, out, device=device, listener=listener)
