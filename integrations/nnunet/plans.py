"""Plans made on real cases alone, moved to a dataset that holds synthetic cases too, by nnU-Net's own functions.

nnU-Net plans spacing, patch and, for CT, the HU statistics that every image is normalised with, on all training cases.
Planned on the mixture, a network trained with synthetic cases would differ from one trained without in more than its
training cases, so plans and fingerprint are the real dataset's.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maisi_aug.errors import ExportError
from maisi_aug.integrations.nnunet.check import count_processes, last_words, run_nnunet
from maisi_aug.integrations.nnunet.folders import choose_same, tell_places
from maisi_aug.integrations.nnunet.real import RealDataset
from maisi_aug.system.content import read_json
from maisi_aug.system.whole_files import write_json_whole
from maisi_aug.system.whole_folder import copy_new

DEFAULT_PLANS = "nnUNetPlans"
FINGERPRINT_NAME = "dataset_fingerprint.json"
# A name of its own: nnUNetv2_plan_and_preprocess, run by mistake, writes nnUNetPlans and must not replace these.
MOVED_SUFFIX = "_real"

_PROGRAM = """
import sys
from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import move_plans_between_datasets

real, target, plans, moved, missing, num_processes = sys.argv[1:]
if missing in ("fingerprint", "plans"):
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    DatasetFingerprintExtractor(real, int(num_processes)).run(overwrite_existing=True)
if missing == "plans":
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    ExperimentPlanner(real).plan_experiment()
move_plans_between_datasets(real, target, plans, moved)
"""


@dataclass(frozen=True, slots=True)
class RealPlans:
    """nnU-Net plans of a real dataset, which may not exist yet.

    Attributes:
        name: Name of the plans, such as ``nnUNetPlans``.
        path: File of the plans; None if nnU-Net has not planned the real dataset yet.
        reason: Why there is no file, as text.
    """

    name: str
    path: Path | None
    reason: str = ""

    @property
    def moved_name(self) -> str:
        """Name of the plans in the new dataset."""
        return self.name + MOVED_SUFFIX

    @property
    def source(self) -> str:
        """Origin of the plans, as text."""
        return (
            str(self.path) if self.path else f"nnU-Net's default planner, run on the real cases, because {self.reason}"
        )


def find_real_plans(places: Sequence[Path], wanted: str | None) -> RealPlans:
    """Find the plans of a real dataset: those of a given name, otherwise ``nnUNetPlans``, otherwise the only ones.

    Args:
        places: Folders in which the dataset may be preprocessed; none of them needs to exist.
        wanted: Name of the plans; None if the user names none.

    Raises:
        ExportError: There are no plans of that name, several to choose from, or different ones of the same name.
    """
    names = sorted({path.stem for place in places for path in place.glob("*.json") if is_plans(path)})
    if wanted is not None and wanted not in names:
        raise ExportError(
            f"--plans {wanted}: there is no {wanted}.json in {tell_places(places)}, found "
            f"{', '.join(names) or 'no plans there'}. Run nnU-Net's planner on the real dataset, or leave out "
            "--plans."
        )
    if wanted is None and not names:
        return RealPlans(DEFAULT_PLANS, None, f"none were found in {tell_places(places)}")
    if wanted is None and DEFAULT_PLANS not in names and len(names) > 1:
        raise ExportError(
            f"{tell_places(places)}: has several files of plans, {', '.join(names)}. Choose with --plans NAME."
        )
    name = wanted or (DEFAULT_PLANS if DEFAULT_PLANS in names else names[0])
    return RealPlans(name, choose_same([place / f"{name}.json" for place in places], f"Plans {name}"))


def move_real_plans(
    real: RealDataset, plans: RealPlans, target: Path, building: Path, example: dict[str, Any]
) -> dict[str, Any]:
    """Write the plans and fingerprint of a real dataset for a new dataset; if there are none, make them first.

    Args:
        real: Real dataset.
        plans: Plans of the real dataset.
        target: New raw dataset, for its name.
        building: Folder that becomes the new preprocessed dataset, in which both files are written.
        example: Content of the new ``dataset.json``.

    Returns:
        The plans for the new dataset.

    Raises:
        ExportError: nnU-Net fails; the message contains its last line of output.
    """
    return plan_on_cases({**example, "dataset": refer_to(real)}, real.name, target.name, plans=plans, building=building)


def plan_on_cases(
    description: Mapping[str, Any], name: str, target: str, *, plans: RealPlans, building: Path
) -> dict[str, Any]:
    """Make plans on some cases as a dataset of their own, and move them to the dataset with more cases.

    nnU-Net works in a scratch folder, so that no other folder is changed.

    Args:
        description: ``dataset.json`` with the entry ``dataset``, which names the cases to plan on by absolute paths.
        name: Name of the dataset of these cases alone.
        target: Name of the dataset that the plans are moved to.
        plans: Existing plans.
        building: Folder for the moved plans, without cascades, and the fingerprint of the cases.

    Returns:
        The moved plans.

    Raises:
        ExportError: nnU-Net fails; the message contains its last line of output.
    """
    num_cases = len(description["dataset"])
    with tempfile.TemporaryDirectory(prefix="maisi-aug-") as scratch:
        raw, preprocessed = Path(scratch, "raw"), Path(scratch, "preprocessed")
        environment = {"nnUNet_raw": str(raw), "nnUNet_preprocessed": str(preprocessed), "nnUNet_results": ""}
        for dataset in (name, target):
            write_json_whole(raw / dataset / "dataset.json", {**description, "numTraining": num_cases}, indent=2)
            (preprocessed / dataset).mkdir(parents=True)
        missing = _copy_known(plans, preprocessed / name)
        arguments = [name, target, plans.name, plans.moved_name, missing, str(count_processes(num_cases))]
        done = run_nnunet(_PROGRAM, arguments, environment=environment)
        if done.returncode != 0:
            raise ExportError(
                f"{name}: nnU-Net cannot plan on its cases: {last_words(done)} Repair the case that it names; "
                "nnUNetv2_plan_and_preprocess --verify_dataset_integrity names it if this message does not."
            )
        content: dict[str, Any] = read_json(preprocessed / target / f"{plans.moved_name}.json")
        drop_cascades(content)
        write_json_whole(building / f"{plans.moved_name}.json", content, indent=2, allow_nan=True)
        copy_new(preprocessed / name / FINGERPRINT_NAME, building / FINGERPRINT_NAME)
    return content


def drop_cascades(plans: dict[str, Any]) -> None:
    """Remove cascade configurations from plans, in place.

    nnU-Net makes the predictions that cascades train on only in validation, where synthetic cases never are, so that a
    cascade would stop at the first one. The earlier stage does not name the next one any more, because its validation
    would predict for it.
    """
    configurations = plans["configurations"]
    for name in [name for name in configurations if _is_cascade(configurations, name)]:
        del configurations[name]
    for configuration in configurations.values():
        configuration.pop("next_stage", None)


def _is_cascade(configurations: Mapping[str, Any], name: str) -> bool:
    """Whether a configuration, or one that it inherits from, has a previous stage."""
    seen: set[str] = set()
    while name in configurations and name not in seen:
        if configurations[name].get("previous_stage"):
            return True
        seen.add(name)
        name = str(configurations[name].get("inherits_from"))
    return False


def choose_configuration(plans: Mapping[str, Any]) -> str:
    """Return the configuration to use in commands: ``3d_fullres`` if the plans have it, otherwise their first."""
    names = list(plans["configurations"])
    return "3d_fullres" if "3d_fullres" in names else str(names[0])


def is_plans(path: Path) -> bool:
    """Whether a file contains nnU-Net plans."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"configurations", "plans_name"} <= content.keys()


def refer_to(real: RealDataset) -> dict[str, Any]:
    """Return the entry ``dataset`` of ``dataset.json`` that names a real dataset's files by absolute paths."""
    return {case.case_id: {"images": [str(case.image)], "label": str(case.label)} for case in real.cases}


def _copy_known(plans: RealPlans, scratch: Path) -> str:
    """Copy what nnU-Net has found out about the real dataset already.

    Returns:
        What is left to be made: ``plans`` (with their fingerprint), ``fingerprint`` or ``nothing``.
    """
    if plans.path is None:
        return "plans"
    shutil.copyfile(plans.path, scratch / plans.path.name)
    fingerprint = plans.path.with_name(FINGERPRINT_NAME)
    if not fingerprint.is_file():
        return "fingerprint"
    shutil.copyfile(fingerprint, scratch / FINGERPRINT_NAME)
    return "nothing"
