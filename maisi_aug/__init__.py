"""Label-balanced synthetic CT cohorts through MAISI's ControlNet.

``import maisi_aug as ma`` imports nothing else; each name below is imported when it is first used. What is listed here
is public and documented in ``maisi_aug/api/README.md``; everything else may change from one version to the next.
"""

from __future__ import annotations

__version__ = "0.2.0"

TYPE_CHECKING = False  # typing's takes longer to import than this module
if TYPE_CHECKING:
    from maisi_aug.api import evaluate
    from maisi_aug.api.benchmarking import benchmark, plan_benchmark, report, run_arm
    from maisi_aug.api.bundles import (
        convert_bundle,
        export_bundle,
        import_bundle,
        list_bundles,
        pull_bundle,
        push_bundle,
        show_bundle,
        verify_bundle,
    )
    from maisi_aug.api.cohorts import cohort_status, merge_cohort, verify_cohort
    from maisi_aug.api.exporting import export_dicom, export_monai, export_nnunet
    from maisi_aug.api.finetuning import finetune_controlnet
    from maisi_aug.api.insertion import insert
    from maisi_aug.api.labels import labels
    from maisi_aug.api.migrating import migrate
    from maisi_aug.api.pipeline import DrawnCase, Pipeline
    from maisi_aug.api.preparing import prepare
    from maisi_aug.api.proving import prove_steps
    from maisi_aug.api.results import Case, Cohort, SavedCase, load_cohort
    from maisi_aug.api.synthesis import plan, synthesize
    from maisi_aug.api.training import train
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
    "benchmark": "api.benchmarking",
    "cohort_status": "api.cohorts",
    "convert_bundle": "api.bundles",
    "evaluate": "api",
    "export_bundle": "api.bundles",
    "export_dicom": "api.exporting",
    "export_monai": "api.exporting",
    "export_nnunet": "api.exporting",
    "finetune_controlnet": "api.finetuning",
    "import_bundle": "api.bundles",
    "insert": "api.insertion",
    "labels": "api.labels",
    "list_bundles": "api.bundles",
    "load_cohort": "api.results",
    "merge_cohort": "api.cohorts",
    "migrate": "api.migrating",
    "plan": "api.synthesis",
    "plan_benchmark": "api.benchmarking",
    "prepare": "api.preparing",
    "prove_steps": "api.proving",
    "pull_bundle": "api.bundles",
    "push_bundle": "api.bundles",
    "report": "api.benchmarking",
    "run_arm": "api.benchmarking",
    "show_bundle": "api.bundles",
    "synthesize": "api.synthesis",
    "train": "api.training",
    "verify_bundle": "api.bundles",
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
    "benchmark",
    "cohort_status",
    "convert_bundle",
    "evaluate",
    "export_bundle",
    "export_dicom",
    "export_monai",
    "export_nnunet",
    "finetune_controlnet",
    "import_bundle",
    "insert",
    "labels",
    "list_bundles",
    "load_cohort",
    "merge_cohort",
    "migrate",
    "plan",
    "plan_benchmark",
    "prepare",
    "prove_steps",
    "pull_bundle",
    "push_bundle",
    "report",
    "run_arm",
    "show_bundle",
    "synthesize",
    "train",
    "verify_bundle",
    "verify_cohort",
    "view",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'maisi_aug' has no attribute '{name}'", name=name)
    from importlib import import_module

    home = import_module(f"maisi_aug.{_HOMES[name]}")
    # ``evaluate`` is a module: it becomes an attribute of its package only when it is imported.
    value = getattr(home, name, None) or import_module(f"{home.__name__}.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
