"""Lesions drawn into the user's own CTs: what ``insert`` does, for the command line and for Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maisi_aug.api.balancing import Balance, balance_insertion, read_balance
from maisi_aug.api.displays import Progress, listen_to_run
from maisi_aug.api.engines import HERE, EngineName, Where, read_engine
from maisi_aug.api.keywords import require_known, takes_fields_of, to_fields
from maisi_aug.api.results import Cohort
from maisi_aug.cohort.review import reopen_for_run
from maisi_aug.generate.driver import Listener
from maisi_aug.insertion.request import InsertConfig, build_insertion, load_insertion_recipe

if TYPE_CHECKING:
    from maisi_aug.api.balancing import ReadMap
    from maisi_aug.generate.run import CohortSummary


@takes_fields_of(InsertConfig)
def insert(
    labels: str | Sequence[str] = (),
    *,
    into: str | Path | None = None,
    out: str | Path,
    recipe: str | Path | None = None,
    balance_against: str | Path | None = None,
    size_bins: Sequence[float] | str | None = None,
    max_lesions: int | None = None,
    balance_picture: str | Path | None = None,
    device: str = "auto",
    devices: str | Sequence[str] | None = None,
    shard: str | None = None,
    engine: EngineName = "local",
    address: str | None = None,
    num_workers: int | None = None,
    gpus_per_worker: float | None = None,
    verify: bool = False,
    redraw_rejected: bool = False,
    progress: Progress = True,
    **fields: Any,
) -> Cohort:
    """Draw lesions of given sizes into CTs; every voxel away from a lesion stays as it was; ``maisi-aug insert``.

    >>> import maisi_aug as ma
    >>> ma.insert("lung nodule:8-12mm", into="cts", num_cases=1, texture="solid", out="nodules")
    Cohort('nodules', 1 of 1 cases accepted)

    The result is a cohort like that of :func:`synthesize`, except that its images are the CTs with lesions. The files
    in ``into`` are not changed.

    Args:
        labels: One lesion with its size or several, ``NAME[:SIZE][@SHARE]``, as for :func:`synthesize`, such as
            ``"lung nodule:8-12mm"``. May be empty with a recipe.
        into: A CT (NIfTI, NRRD, MHA or a folder of DICOM slices) in HU, a folder of CTs, or an nnU-Net dataset. May be
            left out with a recipe that names it.
        out: Folder of the cohort: new, empty, or one that the same call began, which is continued.
        recipe: Name or file of a recipe for insertion; other arguments override it.
        balance_against: Real dataset whose missing lesions are made, as for :func:`synthesize`; ``map`` then also says
            which of its labels the lesions are. The following three arguments can only be used with it.
        size_bins: Ascending edges in mm of the lesion diameters that are balanced; 5, 10, 20, 30, 50, 100 when not
            given.
        max_lesions: Largest number of lesions in a case; 3 when not given.
        balance_picture: PNG file to draw the balance into.
        device: Device on which networks draw lesions: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps`` or ``xpu``; the
            procedural painter uses none.
        devices: Several devices, such as ``"cuda:0,cuda:1"``, each with a process of its own; instead of ``device``.
            Scripts that use it need ``if __name__ == "__main__":``.
        shard: ``"I/N"``, with I from 1, to make every N-th case only; see :func:`merge_cohort`.
        engine: ``"local"``, or ``"ray"`` for workers on a Ray cluster, to which the following three arguments apply.
        address: ``"HOST:PORT"`` of that cluster's head, or ``"auto"``.
        num_workers: Number of workers on the cluster; one per GPU, or per core, when not given.
        gpus_per_worker: GPUs of each worker, such as 0.5.
        verify: Compare the bytes of finished cases with the manifest, and draw altered ones again.
        redraw_rejected: Make another attempt at cases that reviewers rejected in ``maisi-aug view``.
        progress: True for bars on a terminal or in a notebook, False for none, or a function that is called with
            ``(stage, done, total)``: a text and two numbers.
        **fields: The keywords listed below.

    Returns:
        The cohort. Cases that failed a quality gate in every attempt raise nothing; they are in ``cohort.rejected``.

    Raises:
        RecipeError: A keyword is unknown, or fields are invalid; the message lists all problems.
        CohortError: ``out`` holds something else or another cohort, is in use, or the disk is full.
        MaisiAugError: The request cannot be met for another reason, such as CTs that cannot be read (VolumeError) or
            have no host organ for the lesion (UnfitCtError). Messages are those of the command.
    """
    require_known(insert, fields)
    given = to_fields(InsertConfig, {"labels": labels or None, "into": into, **fields})
    config = build_insertion(given) if recipe is None else load_insertion_recipe(str(recipe), given)
    where, options = (
        Where.read(device, devices, shard, read_engine(engine, address, num_workers, gpus_per_worker)),
        read_balance(balance_against, size_bins, max_lesions, balance_picture),
    )
    with listen_to_run(progress) as listener:
        config, balance = balance_insertion(config, options, _read_rules, report=listener.measures)
        summary = make_insertion(
            config,
            Path(out),
            balance=balance,
            where=where,
            verify=verify,
            redraw_rejected=redraw_rejected,
            listener=listener,
        )
    return Cohort(Path(out), summary)


def make_insertion(
    config: InsertConfig,
    out: Path,
    *,
    balance: Balance | None = None,
    where: Where = HERE,
    verify: bool = False,
    redraw_rejected: bool = False,
    listener: Listener | None = None,
) -> CohortSummary:
    """Find the CTs of an insertion request, plan its lesions, and draw them into the CTs.

    Args:
        config: CTs, lesions, and how they are drawn.
        out: Folder of the cohort.
        balance: Balance against a real dataset, to be saved in the cohort's folder; None without one.
        where: Devices or workers, and the shard of cases to make.
        verify: Check the bytes of finished cases against the manifest.
        redraw_rejected: Try again for cases that reviewers rejected.
        listener: Object whose methods are called as the run proceeds.

    Raises:
        MaisiAugError: The request cannot be met.
    """
    from maisi_aug.insertion.cohort import insert_cohort
    from maisi_aug.insertion.config import resolve_insertion

    listener = listener or Listener()
    cohort = resolve_insertion(config)
    for note in cohort.backgrounds.notes:
        listener.advises(note)
    if redraw_rejected:
        reopen_for_run(out, cohort.to_document(), shard=where.shard)
    engine = where.open_engine()
    summary = insert_cohort(cohort, out, engine=engine, shard=where.shard, listener=listener, verify=verify)
    if balance is not None:
        balance.save(out)
    return summary


def _read_rules(rules: Sequence[str]) -> ReadMap:
    pairs = (rule.rpartition("=") for rule in rules)
    mapping = {name.strip(): label.strip() for label, _, name in pairs}
    return lambda targets, vocabulary: mapping
