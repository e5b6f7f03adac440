"""Cohorts from requests: what ``synthesize`` and ``plan`` do, for the command line and for Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maisi_aug.api.balancing import Balance, BalanceOptions, balance_cohort, read_balance
from maisi_aug.api.displays import Progress, listen_to_run
from maisi_aug.api.engines import HERE, EngineName, Where, read_engine
from maisi_aug.api.keywords import require_known, takes_fields_of, to_fields
from maisi_aug.api.results import Cohort
from maisi_aug.cohort.folder import find_cohort
from maisi_aug.cohort.plan import CohortPlan
from maisi_aug.cohort.request import GIVEN, CohortRequest, build_request, load_recipe, override
from maisi_aug.cohort.resolve import CohortRun, resolve
from maisi_aug.cohort.review import reopen_for_run
from maisi_aug.errors import RequestError
from maisi_aug.generate.driver import Listener

if TYPE_CHECKING:
    from maisi_aug.api.balancing import ReadMap
    from maisi_aug.generate.run import CohortSummary
    from maisi_aug.networks.acceleration import Compiler
    from maisi_aug.sources.given import MapOutlook


@takes_fields_of(CohortRequest, but=("grown_from",))
def synthesize(
    labels: str | Sequence[str] = (),
    *,
    out: str | Path,
    recipe: str | Path | None = None,
    balance_against: str | Path | None = None,
    map: Mapping[str | int, str] | None = None,  # noqa: A002 - what every command calls it
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
    compile_with: Compiler = "none",
    resume: bool = True,
    verify: bool = False,
    redraw_rejected: bool = False,
    progress: Progress = True,
    **fields: Any,
) -> Cohort:
    """Make a label-balanced cohort of CT images and label maps, checked and resumable; ``maisi-aug synthesize``.

    >>> import maisi_aug as ma
    >>> cohort = ma.synthesize("hepatic tumor:0.3", num_cases=1, out="livers")
    >>> cohort
    Cohort('livers', 1 of 1 cases accepted)
    >>> cohort.cases[0].lesions[0].diameter_mm > 20
    True

    Args:
        labels: One request or several, ``NAME[:SIZE][@SHARE]``, such as ``"lung nodule:8-20mm"``. The size is an
            equivalent diameter (``mm``, ``cm``), a volume (``mL``) or, without a unit, a percentile of patients in
            [0, 1]; a range is drawn from. ``x2`` after it gives two lesions, and ``+`` joins what one case holds. The
            share, such as ``@0.4``, is the fraction of the cases. May be empty with a recipe or with given label maps.
        out: Folder of the cohort: new, empty, or one that the same call began, which it continues. It gets
            ``images/``, ``labels/`` (requested labels), ``anatomy/`` (all labels), ``previews/``, ``manifest.jsonl``,
            ``cohort.yaml`` and ``contact_sheet.png``.
        recipe: Name or file of a recipe, or a ``cohort.yaml``; other arguments override it.
        balance_against: Real dataset whose missing lesions are made: an nnU-Net raw dataset by path, number or name, or
            a folder of label maps. ``labels`` then names the lesions alone, without sizes. The following four arguments
            can only be used with it.
        map: Label of that dataset, by id or name -> the lesion's name here; found by name when not given.
        size_bins: Ascending edges in mm of the lesion diameters that are balanced; 5, 10, 20, 30, 50, 100 when not
            given.
        max_lesions: Largest number of lesions in a case that is made; 3 when not given.
        balance_picture: PNG file to draw the balance into, before anything is made.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps`` or ``xpu``.
        devices: Several devices, such as ``"cuda:0,cuda:1"``, each with a process of its own; instead of ``device``.
            Scripts that use it need ``if __name__ == "__main__":``.
        shard: ``"I/N"``, with I from 1, to make every N-th case only, while other calls make the rest; see
            :func:`merge_cohort`.
        engine: ``"local"``, or ``"ray"`` for workers on a Ray cluster, to which the following three arguments apply.
        address: ``"HOST:PORT"`` of that cluster's head, or ``"auto"`` for one that runs on this machine; when not
            given, that of ``RAY_ADDRESS``, else a cluster of this machine alone.
        num_workers: Number of workers on the cluster; one per GPU, or per core, when not given.
        gpus_per_worker: GPUs of each worker, such as 0.5.
        compile_with: Compiler of the networks: ``none``, ``inductor`` (torch.compile) or ``trt`` (TensorRT).
        resume: Whether ``out`` may hold this cohort already; if False, an existing cohort is an error.
        verify: Compare the bytes of finished cases with the manifest, and draw altered ones again.
        redraw_rejected: Make another attempt at cases that reviewers rejected in ``maisi-aug view``.
        progress: True for bars on a terminal or in a notebook, False for none, or a function that is called with
            ``(stage, done, total)``: a text and two numbers.
        **fields: The keywords listed below, fields of a recipe; sections as ``gates={"organ_hu": False}``.

    Returns:
        The cohort. ``cohort.cases`` are the accepted ones. Cases that failed a quality gate in every attempt raise
        nothing: they are in ``cohort.rejected``, and ``cohort.summary.is_complete`` is False.

    Raises:
        RecipeError: A keyword is unknown, or fields are invalid; the message lists all problems.
        CohortError: ``out`` holds something else or another cohort, is in use, or the disk is full.
        MaisiAugError: The request cannot be met for another reason, such as an unknown label (VocabularyError), a
            missing bundle (BundleError) or lesions that fit nowhere (LesionError). Messages are those of the command.
    """
    require_known(synthesize, fields)
    request = read_request(labels, recipe, fields, source="synthesize")
    options = read_balance(balance_against, size_bins, max_lesions, balance_picture)
    with listen_to_run(progress) as listener:
        request, balance = balance_cohort(request, options, _read_map(map, options), report=listener.measures)
        summary = make_cohort(
            request,
            Path(out),
            balance=balance,
            where=Where.read(device, devices, shard, read_engine(engine, address, num_workers, gpus_per_worker)),
            compiler=compile_with,
            may_resume=resume,
            verify=verify,
            redraw_rejected=redraw_rejected,
            listener=listener,
        )
    return Cohort(Path(out), summary)


@takes_fields_of(CohortRequest, but=("grown_from",))
def plan(
    labels: str | Sequence[str] = (),
    *,
    out: str | Path | None = None,
    recipe: str | Path | None = None,
    balance_against: str | Path | None = None,
    map: Mapping[str | int, str] | None = None,  # noqa: A002 - what every command calls it
    size_bins: Sequence[float] | str | None = None,
    max_lesions: int | None = None,
    balance_picture: str | Path | None = None,
    progress: Progress = True,
    **fields: Any,
) -> CohortPlan:
    """Return the cases that :func:`synthesize` would make, without making them; ``maisi-aug plan``.

    The mask bank is opened, and the hardest label map of every kind is tried, so that a lesion without room is found
    here. No weights are needed.

    >>> import maisi_aug as ma
    >>> planned = ma.plan(["lung nodule:10mm", "spleen"], num_cases=4)
    >>> [(case.case_id, case.request) for case in planned.cases][:2]
    [('case_0001', 'lung nodule:10mm'), ('case_0002', 'spleen')]
    >>> ma.plan("hepatic tumor:15mm", num_case=4)
    Traceback (most recent call last):
    maisi_aug.errors.RecipeError: plan: unknown keyword 'num_case'. Did you mean 'num_cases'?

    Args:
        labels: One request or several, ``NAME[:SIZE][@SHARE]``; see :func:`synthesize`.
        out: Folder that the cohort would be written to: checked as in a run, but not created. None checks none.
        recipe: Name or file of a recipe, or a ``cohort.yaml``; other arguments override it.
        balance_against: Real dataset whose missing lesions are planned: an nnU-Net raw dataset or a folder of label
            maps. The following four arguments can only be used with it.
        map: Label of that dataset, by id or name -> the lesion's name here.
        size_bins: Ascending edges in mm of the lesion diameters that are balanced.
        max_lesions: Largest number of lesions in a case.
        balance_picture: PNG file to draw the balance into; the only file that is written.
        progress: True for bars, False for none, or a function that is called with ``(stage, done, total)``.
        **fields: The keywords listed below, which are the fields of a recipe.

    Returns:
        The plan. ``plan.cases`` are the cases in the order in which they would be made, each with ``case_id``,
        ``request``, ``lesions`` (``label``, ``requested_ml``, ``requested_mm``) and ``required_ids`` of organs;
        ``plan.requested_ids`` are the label ids that the files in ``labels/`` would contain.

    Raises:
        RecipeError: A keyword is unknown, or fields are invalid; the message lists all problems.
        LesionError: A lesion has no room in any label map that was tried.
        MaisiAugError: The request cannot be met for another reason; the message is the one that the command prints.
    """
    require_known(plan, fields)
    request = read_request(labels, recipe, fields, source="plan")
    options = read_balance(balance_against, size_bins, max_lesions, balance_picture)
    with listen_to_run(progress) as listener:
        request, _ = balance_cohort(
            request, options, _read_map(map, options), needs_weights=False, report=listener.measures
        )
        return look_ahead(request, None if out is None else Path(out), listener=listener).cohort.plan


def read_request(
    labels: str | Sequence[str], recipe: str | Path | None, fields: Mapping[str, Any], *, source: str
) -> CohortRequest:
    """Check the labels, recipe and fields of a Python call, and return the resolved request.

    Args:
        labels: Label requests.
        recipe: Name or file of a recipe; None to start from the defaults.
        fields: Field -> value; these override the recipe.
        source: Name of the function, for messages.

    Raises:
        RecipeError: The message lists every problem with its place.
    """
    flags = to_fields(CohortRequest, {"labels": labels or None, **fields})
    if recipe is not None:
        return load_recipe(str(recipe), flags)
    return build_request(override({}, flags), source=source)


def make_cohort(
    request: CohortRequest,
    out: Path,
    *,
    balance: Balance | None = None,
    where: Where = HERE,
    compiler: Compiler = "none",
    may_resume: bool = True,
    verify: bool = False,
    redraw_rejected: bool = False,
    listener: Listener | None = None,
) -> CohortSummary:
    """Resolve a cohort request, and make the cohort or continue it.

    Args:
        request: What to make: label requests, bundle, grid, gates and seed.
        out: Folder of the cohort.
        balance: Balance against a real dataset, to be saved in the cohort's folder; None without one.
        where: Devices or workers, and the shard of cases to make.
        compiler: Compiler for the networks.
        may_resume: Whether the folder may already contain the cohort.
        verify: Compare the bytes of finished cases with the manifest, and draw altered ones again.
        redraw_rejected: Make another attempt at cases that reviewers rejected.
        listener: Object whose methods are called as the run proceeds.

    Raises:
        MaisiAugError: The request cannot be met.
    """
    from maisi_aug.generate.run import synthesize_cohort

    listener = listener or Listener()
    cohort = resolve(request, out, may_resume=may_resume, report_file=listener.measures)
    for sentence in _find_advice(cohort):
        listener.advises(sentence)
    if redraw_rejected:
        reopen_for_run(out, cohort.to_document(), begun=cohort.begun, shard=where.shard)
    summary = synthesize_cohort(
        cohort,
        out,
        engine=where.open_engine(),
        shard=where.shard,
        compiler=compiler,
        listener=listener,
        verify=verify,
    )
    if balance is not None:
        balance.save(out)
    return summary


@dataclass(frozen=True)
class Outlook:
    """What a run would do: the plan of a cohort, found without making anything.

    Attributes:
        cohort: The cohort with its plan.
        maps: What will be done with each given label map; empty for other mask sources.
    """

    cohort: CohortRun
    maps: Sequence[MapOutlook]


def look_ahead(
    request: CohortRequest, out: Path | None = None, *, may_resume: bool = True, listener: Listener | None = None
) -> Outlook:
    """Resolve and check a cohort request without making anything.

    Args:
        request: What to make: label requests, bundle, grid, gates and seed.
        out: Folder of the cohort, to check it as well; None to skip this check.
        may_resume: Whether the folder may already contain the cohort.
        listener: Object whose methods are called for measured files and tried label maps.

    Raises:
        MaisiAugError: The request is invalid.
    """
    from maisi_aug.generate.rehearsal import rehearse
    from maisi_aug.sources.given import look_at_maps, open_given_source

    listener = listener or Listener()
    cohort = resolve(request, out, may_resume=may_resume, report_file=listener.measures, needs_weights=False)
    if out is not None:
        find_cohort(out, cohort.to_document(), cohort.begun)  # raises where the run would be refused
    maps: Sequence[MapOutlook] = ()
    if request.mask_source == GIVEN:
        maps = look_at_maps(open_given_source(cohort), cohort.plan.cases, listener.tries)
    rehearse(cohort, listener.tries)
    return Outlook(cohort, maps)


def _find_advice(cohort: CohortRun) -> list[str]:
    """Return the bundle's advice to its user."""
    bundle = cohort.bundle
    found = [bundle.advice, "" if cohort.request.has_maps else bundle.advice_without_map]
    return [" ".join(text.split()) for text in found if text]


def _read_map(labels: Mapping[str | int, str] | None, options: BalanceOptions) -> ReadMap:
    """Invert the user's mapping of the dataset's labels.

    Raises:
        RequestError: There is no dataset.
    """
    if labels and options.against is None:
        raise RequestError(
            "map can only be used with balance_against. For the labels of a mask bank use mask_labels, for a size "
            "reference size_label."
        )
    mapping = {name: str(label) for label, name in (labels or {}).items()}
    return lambda targets, vocabulary: mapping
