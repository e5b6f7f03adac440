"""Every way in is read right by every command, or refused; nothing goes through wrong."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tests.ways_in import (
    COMMANDS,
    LABEL_WAYS,
    NOT_APPLICABLE,
    READS_IMAGES,
    REFUSED,
    RIGHT,
    WAYS,
    balance_against,
    benchmark,
    evaluate_pairs,
    judge,
    patient,
    prepare_images,
    prepare_labels,
    spell_table,
    synthesize_bank,
    write_dataset,
    write_volume,
)

EXCEPTIONS = {
    **{(way, command): NOT_APPLICABLE for way in LABEL_WAYS for command in READS_IMAGES},
    ("masks folder", "--size-reference"): REFUSED,  # label maps alone
    ("masks folder", "benchmark"): REFUSED,  # nothing names the labels of masks
    ("RTSTRUCT", "--size-reference"): REFUSED,  # contours without their CT
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_command_reads_it_right_or_refuses(tmp_path: Path, way: str) -> None:
    root = write_dataset(tmp_path / "P", way)
    found = {command: judge(way, command, root) for command in COMMANDS}
    assert found == {command: EXCEPTIONS.get((way, command), RIGHT) for command in COMMANDS}


def test_table_has_a_cell_for_each() -> None:
    table = {way: dict.fromkeys(COMMANDS, RIGHT) for way in WAYS}
    lines = spell_table(table).splitlines()
    assert len(lines) == 2 + len(COMMANDS) == 12
    assert all(line.count("|") == len(WAYS) + 2 == 11 for line in lines)


@pytest.mark.parametrize("way", ["DICOM SEG", "RTSTRUCT"])
def test_patient_folders_with_series_and_labels_below_are_cases(tmp_path: Path, way: str) -> None:
    made = write_dataset(tmp_path / "made", way)
    root = tmp_path / "tcia"
    (root / "P1" / "study" / "seg").mkdir(parents=True)
    (made / "images" / "P1").rename(root / "P1" / "study" / "ct")
    (made / "labels" / "P1.dcm").rename(root / "P1" / "study" / "seg" / "1-1")  # no suffix either
    for command in (prepare_images, prepare_labels, synthesize_bank, evaluate_pairs, benchmark, balance_against):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            COMMANDS["under test"] = command
            try:
                assert judge("DICOM series", "under test", root) == RIGHT, command
            finally:
                del COMMANDS["under test"]


def test_shifted_files_are_told_from_right_ones(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "P", "NIfTI-1")
    write_volume(root / "images" / "P1", patient()[0][:, :, ::-1].copy(), "NIfTI-1")
    assert judge("NIfTI-1", "prepare --images", root).startswith("WRONG: CT")
