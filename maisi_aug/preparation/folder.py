"""The folder of a prepared data set: taken for one set of options, and given back to nobody else."""

from __future__ import annotations

import glob
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from maisi_aug.cohort.request import differences
from maisi_aug.errors import PreparationError
from maisi_aug.preparation.prepared import FOLDERS, LATENTS_FOLDER, SPEC_NAME
from maisi_aug.preparation.writing import STATE_FOLDER
from maisi_aug.system.whole_files import remove_leftovers, write_text_whole

OPTIONS_NAME = "options.json"


def take_folder(out: Path, options: Mapping[str, Any], case_ids: Collection[str], *, update: bool) -> None:
    """Make the folder, or see that it is ours; until it is complete it has no ``dataset.yaml``.

    Args:
        out: New, empty, or a folder that was prepared with the same options.
        options: What every case is prepared with, as plain values.
        case_ids: The cases that are to be in it.
        update: Whether a folder with other options or further cases is brought to these.

    Raises:
        PreparationError: It holds something else, was prepared with other options, or has further cases.
    """
    path = out / STATE_FOLDER / OPTIONS_NAME
    if out.exists() and not out.is_dir():
        raise PreparationError(f"{out}: expected a folder, found a file. Choose another --out.")
    if path.is_file() and not update:
        _require_same(out, json.loads(path.read_text(encoding="utf-8")), options)
        _require_no_further(out, _find_further(out, case_ids))
    elif not path.is_file() and out.is_dir() and any(out.iterdir()):
        found = sorted(child.name for child in out.iterdir())[0]
        raise PreparationError(
            f"{out}: expected a new, an empty or a prepared folder, found '{found}'. Nothing was changed; choose "
            "another --out."
        )
    for name in (STATE_FOLDER, *FOLDERS):
        (out / name).mkdir(parents=True, exist_ok=True)
        remove_leftovers(out / name)
    (out / SPEC_NAME).unlink(missing_ok=True)
    _remove_cases(out, _find_further(out, case_ids))
    write_text_whole(path, json.dumps(options, indent=1) + "\n")


def _require_same(out: Path, before: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    changed = differences(before, options)
    if changed:
        raise PreparationError(
            f"{out}: expected the options that this folder was prepared with, found others ({'; '.join(changed)}). "
            "Choose another --out, or bring the folder to the new options with --update."
        )


def _require_no_further(out: Path, further: Sequence[str]) -> None:
    if further:
        named = ", ".join(further[:3]) + (", ..." if len(further) > 3 else "")
        raise PreparationError(
            f"{out}: expected all cases that this folder was prepared from, found {len(further)} left out ({named}). "
            "Choose another --out, give all of them, or remove those from the folder with --update."
        )


def _find_further(out: Path, case_ids: Collection[str]) -> list[str]:
    """The cases that an earlier run prepared and this one leaves out."""
    prepared = {record.stem for record in (out / STATE_FOLDER).glob("*.json") if record.name != OPTIONS_NAME}
    return sorted(prepared.difference(case_ids))


def _remove_cases(out: Path, case_ids: Sequence[str]) -> None:
    for case_id in case_ids:
        for name in FOLDERS:
            (out / name / f"{case_id}{'.png' if name == 'previews' else '.nii.gz'}").unlink(missing_ok=True)
        for file in (out / LATENTS_FOLDER).glob(f"*/{glob.escape(case_id)}.*"):
            file.unlink()
        (out / STATE_FOLDER / f"{case_id}.json").unlink()
