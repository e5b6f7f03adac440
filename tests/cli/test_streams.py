"""What commands print is clean, and a reader that is gone stops no command."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table

from maisi_aug.api.bars import PlainConsole, tell_warnings
from maisi_aug.cli.shared.boundary import guard
from maisi_aug.cli.shared.streams import tell
from maisi_aug.errors import CohortError, MaisiAugWarning
from tests.builders.tiny_cohort import HEPATIC_TUMOR, write_cohort

HOSTILE = "\x1b]0;owned\x07[red]:smile:\u202e\r\nError: forged"
SPELT = r"\u001b]0;owned\u0007[red]:smile:\u202e\u000d\u000aError: forged"


def test_messages_are_one_line_without_controls(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        tell(f"Note: {HOSTILE}")
        typer.echo(HOSTILE)
        sys.stderr.write(f"{HOSTILE}\n")
        raise CohortError(f"{HOSTILE}: expected a cohort.")

    assert guard(fail, debug=True) == 1
    out, err = capsys.readouterr()
    lines = SPELT.replace(r"\u000a", "\n")
    assert out == f"{lines}\n"
    assert err.startswith(f"Note: {SPELT}\n{lines}\nTraceback")
    assert err.endswith(f"\nError: {SPELT}: expected a cohort.\n")
    assert not set(err) & set("\x1b\x07\r\u202e")


def test_json_of_a_hostile_name_is_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    guard(lambda: typer.echo(json.dumps({"name": HOSTILE}, indent=1, ensure_ascii=False)), debug=False)
    out = capsys.readouterr().out
    assert json.loads(out) == {"name": HOSTILE}
    assert not set(out) & set("\x1b\x07\r\u202e")


def test_bars_of_downloads_go_back_to_their_line(capsys: pytest.CaptureFixture[str]) -> None:
    guard(lambda: sys.stderr.write("\r 10%"), debug=False)
    assert capsys.readouterr().err == "\r 10%"


def test_consoles_take_text_for_text() -> None:
    table = Table("name", "size")
    table.add_row("\x1b[2J[red]:smile:\u202e", "1")
    console = PlainConsole(file=io.StringIO(), width=100)
    console.print(table)
    console.print("\x1b[2J[bold]x")
    with Progress(TextColumn("{task.description}", markup=False), console=console) as bars:
        bars.add_task("\x1b[2J[blink]case", total=1)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert r"\u001b[2J[red]:smile:\u202e" in printed
    assert r"\u001b[2J[bold]x" in printed
    assert r"\u001b[2J[blin" in printed  # as wide as the description was
    assert "\x1b" not in printed
    lines = [line for line in printed.splitlines() if "┃" in line or "│" in line]
    assert len({len(line) for line in lines}) == 1


def test_colours_of_our_own_stay_on_a_terminal() -> None:
    console = PlainConsole(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=60)
    console.print("a\x1b[2J", style="red")
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[31m" in printed
    assert "\x1b[2J" not in printed


def test_warnings_are_clean() -> None:
    console = PlainConsole(file=io.StringIO(), width=200)
    with tell_warnings(console):
        warnings.warn(f"{HOSTILE.strip()}: expected nothing.", MaisiAugWarning, stacklevel=1)
        warnings.warn("a\nb: expected one line.", MaisiAugWarning, stacklevel=1)
    assert r"Note: a\u000ab: expected one line." in console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in console.file.getvalue()  # type: ignore[attr-defined]


def start(*words: str | Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "maisi_aug.cli.app", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, env=environment, text=True, stderr=subprocess.PIPE, check=False, **settings)


COMMANDS = [
    ["labels"],
    ["labels", "--json"],
    ["--help"],
    ["bundles", "list"],
    ["recipes", "list"],
    ["plan", "--labels", "hepatic tumor", "-n", "2"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_reader_that_is_gone_is_no_error(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = start(*words, stdout=writing)
    os.close(writing)
    assert done.returncode == 0
    assert not any(word in done.stderr for word in ("Error", "Broken", "Exception"))


def test_work_goes_on_when_the_reader_is_gone(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR], [HEPATIC_TUMOR])
    reading, writing = os.pipe()
    os.close(reading)
    done = start("export", "monai", cohort, "--out", tmp_path / "out", stdout=writing)
    os.close(writing)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "datalist.json").is_file()


def test_closed_streams_are_no_error_and_no_file_is_written_into(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort", [HEPATIC_TUMOR], [HEPATIC_TUMOR])
    program = f'{sys.executable} -m maisi_aug.cli.app "$@" <&- >&- 2>&-'
    words = [["labels"], ["export", "monai", str(cohort), "--out", str(tmp_path / "out")]]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for arguments in words:
        done = subprocess.run(["sh", "-c", program, "sh", *arguments], env=environment, check=False)
        assert done.returncode == 0
    listed = json.loads((tmp_path / "out" / "datalist.json").read_text())
    assert len(listed["training"]) == 2


def test_full_disk_behind_stdout_is_told() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full: expected, not found")
    with Path("/dev/full").open("w") as full:
        done = start("labels", "--json", stdout=full)
    assert done.returncode == 1
    assert "no space left on the disk" in done.stderr


def test_rich_writes_behind_the_clean_stream(capsys: pytest.CaptureFixture[str]) -> None:
    """Its own colours must not be spelt out."""
    guard(lambda: Console(force_terminal=True, color_system="standard").print("x", style="red"), debug=False)
    assert capsys.readouterr().out == "\x1b[31mx\x1b[0m\n"


def test_bars_move_the_cursor_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        console = PlainConsole(stderr=True, force_terminal=True, color_system="standard", width=60)
        with Progress(console=console) as bars:
            task = bars.add_task("cases", total=2)
            typer.echo(HOSTILE, err=True)  # printed above the bar
            bars.update(task, completed=2)

    assert guard(work, debug=False) == 0
    err = capsys.readouterr().err
    assert "\x1b[2K" in err
    assert r"\u001b[" not in err
    assert not {"\x07", "\u202e"} & set(err)
    assert "\x1b]0;" not in err
