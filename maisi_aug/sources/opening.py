"""Opens the source of a cohort's label maps; the only module that depends on its kind."""

from __future__ import annotations

from maisi_aug.banks.folder_bank import FolderBank
from maisi_aug.banks.organs import require_organs
from maisi_aug.cohort.request import GIVEN, NO_MAP
from maisi_aug.cohort.resolve import CohortRun
from maisi_aug.sources.diffusion import ReportMap, open_diffusion_source
from maisi_aug.sources.given import NoMapSource, open_given_source
from maisi_aug.sources.map_source import MapSource
from maisi_aug.sources.plant_and_bank import BankSource, PhantomBank, PlantSource
from maisi_aug.sources.sized_organs import SizedOrganSource, is_sized_organ
from maisi_aug.system.progress import report_nothing


def open_source(run: CohortRun, device: str, report: ReportMap = report_nothing) -> MapSource:
    """Open the source of a cohort's label maps.

    Args:
        run: The cohort to be made.
        device: Device on which mask networks run.
        report: Progress callback for generated maps, called with (map from 1, sampling steps done, sampling steps in
            all).

    Raises:
        BankError: The bank has no usable label map.
        BundleError: The mask networks or the device cannot be used.
    """
    kind, vocabulary = run.request.mask_source, run.bundle.vocabulary
    if kind == NO_MAP:
        return NoMapSource(run.grid)
    if kind == GIVEN:
        return open_given_source(run)
    if kind == "diffusion":
        return open_diffusion_source(run, device, report=report)
    if not run.bank.entries:
        return PlantSource(PhantomBank(vocabulary=vocabulary, grid=run.grid))
    bank = FolderBank(run.bank, vocabulary=vocabulary, grid=run.grid, mapping=run.mask_labels, body_region=run.regions)
    require_organs(bank, bundle=run.bundle, is_allowed=run.request.allow_few_organs)
    source = PlantSource(bank) if kind == "plant" else BankSource(bank)
    has_organs = any(is_sized_organ(part.label_id, vocabulary) for case in run.plan.cases for part in case.lesions)
    return SizedOrganSource(bank, source) if has_organs else source


def may_fail_as_a_whole(run: CohortRun) -> bool:
    """Whether a first failure may be due to the source, so that no case is rejected until one map could be drawn."""
    return run.request.mask_source != "diffusion"  # which draws another map at every attempt
