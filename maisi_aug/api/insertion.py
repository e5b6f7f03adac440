"""Lesions drawn into the user's own CTs: what ``insert`` does, for the command line and for Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maisi_aug.api.displays import listen_to_run
from maisi_aug.api.keywords import build_model, require_known, takes_fields_of
from maisi_aug.api.listener import Progress, RunListener
from maisi_aug.api.results import Cohort
from maisi_aug.errors import RecipeError
from maisi_aug.insertion.request import InsertConfig

if TYPE_CHECKING:
    from maisi_aug.generate.run import CohortSummary


@takes_fields_of(InsertConfig)
def insert(
    labels: str | Sequence[str],
    *,
    into: str | Path,
    out: str | Path,
    device: str = "auto",
    progress: Progress = True,
    **fields: Any,
) -> Cohort:
    """Draw lesions of given sizes into CTs; every voxel away from a lesion stays as it was; ``maisi-aug insert``.

    >>> import maisi_aug as ma
    >>> ma.insert("lung nodule:8-12mm", into="cts", num_cases=1, texture="solid", out="nodules")
    Cohort('nodules', 1 of 1 cases accepted)

    Args:
        labels: Lesions with their sizes, ``NAME[:SIZE][@SHARE]``.
        into: A CT, a folder of CTs, or an nnU-Net dataset.
        out: Folder of the cohort: new, empty, or one that the same call began, which is continued.
        device: Where the networks of ``painter="network"`` run.
        progress: True for bars on a terminal or in a notebook, False for none, or something to call with
            ``(stage, done, total)``.
        **fields: See below.

    Raises:
        MaisiAugError: The sentence that the command prints.
    """
    require_known(insert, fields)
    config = build_model(InsertConfig, {"labels": labels, "into": into, **fields}, source="insert", error=RecipeError)
    with listen_to_run(progress) as listener:
        summary = make_insertion(config, Path(out), device=device, listener=listener)
    return Cohort(Path(out), summary)


def make_insertion(
    config: InsertConfig, out: Path, *, device: str = "auto", listener: RunListener | None = None
) -> CohortSummary:
    """Find the CTs, plan the lesions and draw them.

    Args:
        config: What is asked for.
        out: Folder of the cohort.
        device: Of the networks, where they draw.
        listener: Is told how the run goes.

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
