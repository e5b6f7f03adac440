"""Patients and folds: all cases of a patient are held out together, and every fold gets its share of every label."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from maisi_aug.errors import PreparationError
from maisi_aug.preparation.sources import to_case_id
from maisi_aug.system.seeds import derive_seed

HELD_OUT_HINT = (
    "Add cases of more patients; one patient is enough with --folds 1, for 'maisi-aug train' with a recipe that "
    "holds no fold out"
)


def find_patients(case_ids: Sequence[str], rule: str | None) -> dict[str, str]:
    """Return case -> patient.

    Args:
        case_ids: Names of the cases.
        rule: Path of a CSV file with the columns ``id`` (name of a case or of its files) and ``patient``; or a regular
            expression whose first group, or whole match, in the case's name is the patient. None makes every case its
            own patient.

    Raises:
        PreparationError: The rule cannot be read, or does not match a case.
    """
    if rule is None:
        return {case_id: case_id for case_id in case_ids}
    if rule.lower().endswith(".csv"):
        patients = _read_table(Path(rule))
    else:
        try:
            pattern = re.compile(rule)
        except re.error as error:
            raise PreparationError(
                f"--patients: neither a CSV file nor a valid regular expression: '{rule}' ({error})."
            ) from error
        matches = {case_id: pattern.search(case_id) for case_id in case_ids}
        patients = {
            case_id: match.group(1 if pattern.groups else 0) or "" for case_id, match in matches.items() if match
        }
    missing = [case_id for case_id in case_ids if not patients.get(case_id)]
    if missing:
        raise PreparationError(
            f"--patients {rule}: no patient for {', '.join(missing[:5])}. Correct the expression or the table."
        )
    return {case_id: patients[case_id] for case_id in case_ids}


def require_enough_patients(patients: Mapping[str, str], num_folds: int) -> None:
    """Raise unless there are at least as many patients as folds.

    Args:
        patients: Case -> patient.
        num_folds: Number of folds.

    Raises:
        PreparationError: There are too few patients; the message states their number.
    """
    num_patients = len(set(patients.values()))
    if num_patients >= num_folds:
        return
    if num_patients == 1:
        raise PreparationError(
            "Folds: at least two patients are needed, because a fold is held out for validation; found one, "
            f"'{next(iter(patients.values()))}'. {HELD_OUT_HINT}."
        )
    raise PreparationError(
        f"Folds: {num_folds} folds need at least as many patients, found {num_patients}. Choose --folds "
        f"{num_patients} or fewer."
    )


def assign_folds(patients: Mapping[str, str], labels: Mapping[str, Collection[int]], num_folds: int) -> dict[str, int]:
    """Return case -> fold, such that all cases of a patient share a fold.

    Patients with the same labels are distributed in turn, in an order that depends only on their names, so that rare
    labels occur in as many folds as possible.

    Args:
        patients: Case -> patient.
        labels: Case -> ids of the labels to be trained.
        num_folds: Number of folds.
    """
    held: dict[str, set[int]] = {}
    for case_id, patient in patients.items():
        held.setdefault(patient, set()).update(labels[case_id])
    order = sorted(held, key=lambda patient: (sorted(held[patient]), derive_seed("fold", patient)))
    fold_of = {patient: place % num_folds for place, patient in enumerate(order)}
    return {case_id: fold_of[patient] for case_id, patient in patients.items()}


def _read_table(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PreparationError(f"--patients {path}: cannot be read as CSV: {error}.") from error
    if not rows or not {"id", "patient"} <= set(rows[0]):
        found = ", ".join(rows[0]) if rows else "no rows"
        raise PreparationError(f"--patients {path}: needs the columns id and patient, found {found}.")
    return {to_case_id(str(row["id"])): str(row["patient"] or "").strip() for row in rows}
