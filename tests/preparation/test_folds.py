from __future__ import annotations

from pathlib import Path

import pytest

from maisi_aug.errors import PreparationError
from maisi_aug.preparation.folds import assign_folds, find_patients, require_enough_patients

CASES = [f"p{patient}_{visit}" for patient in range(13) for visit in ("a", "b")]


def test_cases_of_a_patient_share_a_fold_and_folds_are_balanced() -> None:
    patients = find_patients(CASES, r"^(p\d+)_")
    rare = {"p3", "p7", "p8"}
    labels = {case: {2, 16} if patient in rare else {2} for case, patient in patients.items()}
    folds = assign_folds(patients, labels, 5)
    assert all(folds[f"p{number}_a"] == folds[f"p{number}_b"] for number in range(13))
    sizes = [sum(fold == number for fold in folds.values()) // 2 for number in range(5)]
    assert sorted(sizes) == [2, 2, 3, 3, 3]
    assert len({folds[f"{patient}_a"] for patient in rare}) == 3
    again = assign_folds(dict(reversed(patients.items())), labels, 5)
    assert again == folds


def test_patients_come_from_a_table(tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("id,patient\np0_a,x\np0_b, x \n", encoding="utf-8-sig")
    assert find_patients(["p0_a", "p0_b"], str(table)) == {"p0_a": "x", "p0_b": "x"}
    table.write_text("id,patient\npat 1,x\np0_a,y\n")
    assert find_patients(["pat_1"], str(table)) == {"pat_1": "x"}
    with pytest.raises(PreparationError, match="no patient for p1_a"):
        find_patients(["p0_a", "p1_a"], str(table))
    table.write_text("case,patient\np0_a,x\n")
    with pytest.raises(PreparationError, match="needs the columns id and patient, found case, patient"):
        find_patients(["p0_a"], str(table))
    with pytest.raises(PreparationError, match="none.csv: cannot be read as CSV:"):
        find_patients(["p0_a"], str(tmp_path / "none.csv"))


def test_every_case_is_its_own_patient_without_a_rule() -> None:
    assert find_patients(["a", "b"], None) == {"a": "a", "b": "b"}
    assert find_patients(["p1_a"], "p[0-9]") == {"p1_a": "p1"}
    with pytest.raises(PreparationError, match="--patients: neither a CSV file nor a valid regular expression: '"):
        find_patients(["a"], "(")


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(
        PreparationError,
        match="at least two patients are needed, .* found one, 'x'. .* with --folds 1, for 'maisi-aug train'",
    ):
        require_enough_patients({"a": "x", "b": "x"}, 5)
    with pytest.raises(PreparationError, match="Folds: 5 folds need at least as many patients, found 2"):
        require_enough_patients({"a": "x", "b": "y"}, 5)
    require_enough_patients({"a": "x"}, 1)
