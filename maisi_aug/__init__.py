"""Label-balanced synthetic CT cohorts through MAISI's ControlNet.

``import maisi_aug as ma`` imports nothing else; each name below is imported when it is first used. What is listed here
is public and documented in ``maisi_aug/api/README.md``; everything else may change from one version to the next.
"""

from __future__ import annotations

__version__ = "0.2.0"

TYPE_CHECKING = False  # typing's takes longer to import than this module
if TYPE_CHECKING:
    from maisi_aug.api.cohorts import cohort_status, merge_cohort, verify_cohort
    from maisi_aug.api.exporting import export_dicom, export_monai, export_nnunet
    from maisi_aug.api.finetuning import finetune_controlnet
    from maisi_aug.api.insertion import insert
    from maisi_aug.api.labels import labels
    from maisi_aug.api.pipeline import DrawnCase, Pipeline
    from maisi_aug.api.preparing import prepare
    from maisi_aug.api.results import Case, Cohort, SavedCase, load_cohort
    from maisi_aug.api.synthesis import plan, synthesize
    from maisi_aug.api.viewing import view
    from maisi_aug.errors import MaisiAugError
    from maisi_aug.integrations.fresh.cases import FreshCases
    from maisi_aug.integrations.monai import CohortDataset

_HOMES = {
    "Case": "api.results",
    "Cohort": "api.results",
    "CohortDataset": "integrations.monai",
    "DrawnCase": "api.pipeline",
    "FreshCases": "integrations.fresh.cases",
    "MaisiAugError": "errors",
    "Pipeline": "api.pipeline",
    "SavedCase": "api.results",
    "cohort_status": "api.cohorts",
    "export_dicom": "api.exporting",
    "export_monai": "api.exporting",
    "export_nnunet": "api.exporting",
    "finetune_controlnet": "api.finetuning",
    "insert": "api.insertion",
    "labels": "api.labels",
    "load_cohort": "api.results",
    "merge_cohort": "api.cohorts",
    "plan": "api.synthesis",
    "prepare": "api.preparing",
    "synthesize": "api.synthesis",
    "verify_cohort": "api.cohorts",
    "view": "api.viewing",
}
__all__ = [
    "Case",
    "Cohort",
    "CohortDataset",
    "DrawnCase",
    "FreshCases",
    "MaisiAugError",
    "Pipeline",
    "SavedCase",
    "cohort_status",
    "export_dicom",
    "export_monai",
    "export_nnunet",
    "finetune_controlnet",
    "insert",
    "labels",
    "load_cohort",
    "merge_cohort",
    "plan",
    "prepare",
    "synthesize",
    "verify_cohort",
    "view",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'maisi_aug' has no attribute '{name}'", name=name)
    from importlib import import_module

    value = getattr(import_module(f"maisi_aug.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
