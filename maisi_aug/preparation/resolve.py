"""From a preparation's request to its resolved settings: a grid, a vocabulary, rules, and the files of every case."""

from __future__ import annotations

from pathlib import Path

from maisi_aug.bundle_spec.bundle import Bundle, load_outline
from maisi_aug.errors import PreparationError
from maisi_aug.preparation.collecting import collect_cases
from maisi_aug.preparation.mapping import parse_rule
from maisi_aug.preparation.request import PrepareConfig
from maisi_aug.preparation.run import PrepareRequest
from maisi_aug.preparation.tissues import parse_tissue
from maisi_aug.volumes.grid import Grid

DEFAULT_BUNDLE = "phantom-ct"


def resolve_preparation(config: PrepareConfig, out: Path) -> tuple[PrepareRequest, tuple[str, ...]]:
    """List the cases and read the rules; no image is opened.

    Args:
        config: The request.
        out: Folder of the prepared cases, by which they are called where ``config`` gives no name.

    Returns:
        What :func:`~maisi_aug.preparation.run.plan_preparation` takes, and notes for the user, a sentence each.

    Raises:
        BundleError: There is no such bundle.
        GridError: The networks cannot work with the grid, or a bundle that is named cannot be trained on it.
        PreparationError: Sources or rules that cannot be used.
    """
    bundle = load_outline(config.bundle or DEFAULT_BUNDLE)
    grid, grid_notes = _choose_grid(config, bundle)
    rules = tuple(map(parse_rule, config.map))
    tissues = tuple(parse_tissue(text, bundle.vocabulary) for text in config.tissues)
    cases, notes = collect_cases(config)
    if not (tissues or config.run_totalsegmentator or any(case.labels or case.organs for case in cases)):
        raise PreparationError(
            "Labels: at least one of --labels, --organs, --run-totalsegmentator and --tissue is required."
        )
    request = PrepareRequest(
        cases=cases,
        vocabulary=bundle.vocabulary,
        shape=grid.shape,
        spacing_mm=config.spacing_mm or bundle.spec.grid.spacing_mm,
        name=config.name or out.resolve().name,
        rules=rules,
        tissues=tissues,
        organ_labels=config.organ_labels,
        patients=config.patients,
        num_folds=config.num_folds,
        modality=config.modality,
        keeps_surroundings=config.keeps_surroundings,
        allow_empty=config.allow_empty,
        runs_totalsegmentator=config.run_totalsegmentator,
    )
    return request, (*grid_notes, *notes)


def _choose_grid(config: PrepareConfig, bundle: Bundle) -> tuple[Grid, tuple[str, ...]]:
    """The grid requested, or the bundle's; what a bundle that the user names has not seen is told."""
    own = bundle.spec.grid
    grid = Grid.from_spacing(config.shape or own.shape, config.spacing_mm or own.spacing_mm)
    grid.require_multiple_of(bundle.grid_factor, subject="--shape")
    if config.bundle is None:
        return grid, ()
    return grid, tuple(
        bundle.check_grid(grid, remedy=", or leave --bundle out if it will not be trained on these data")
    )
