"""Files appear whole or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.errors import VolumeError
from maisi_aug.system.whole_files import (
    flush_all,
    open_whole,
    remove_leftovers,
    sha256_of,
    write_json_whole,
    write_text_whole,
    write_whole,
)


def test_interrupt_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def write_half() -> None:
        with open_whole(tmp_path / "a.bin") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_killed_writer_leaves_only_a_hidden_file_that_can_be_removed(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib; from maisi_aug.system.whole_files import open_whole\n"
        "with open_whole(pathlib.Path(sys.argv[1])) as file:\n"
        "    file.write(b'half' * 1000000); file.flush(); print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "a.bin")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".a.bin.")
    assert remove_leftovers(tmp_path) == [left]
    assert list(tmp_path.iterdir()) == []


def test_text_and_hash(tmp_path: Path) -> None:
    write_text_whole(tmp_path / "a.txt", "Größe\n")
    assert (tmp_path / "a.txt").read_bytes() == "Größe\n".encode()
    write_whole(tmp_path / "b.txt", b"abc")
    assert sha256_of(tmp_path / "b.txt").startswith("ba7816bf8f01cfea")
    with pytest.raises(VolumeError, match="cannot be read:"):
        sha256_of(tmp_path / "gone")


def test_folder_that_is_a_file_cannot_be_written_into(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(VolumeError, match="cannot be written:"):
        write_whole(tmp_path / "a" / "b.txt", b"x")


def test_new_file_replaces_none(tmp_path: Path) -> None:
    write_text_whole(tmp_path / "file", "first", is_new=True)
    with pytest.raises(VolumeError, match="cannot be written: File exists"):
        write_text_whole(tmp_path / "file", "second", is_new=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "first")]
    write_text_whole(tmp_path / "file", "third")
    assert (tmp_path / "file").read_text() == "third"


def test_new_file_that_fails_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_whole(tmp_path / "new.json", [*range(20_000), float("nan")], is_new=True)
    assert list(tmp_path.iterdir()) == []


class _Libc:
    """The C library of a system without syncfs, such as macOS."""

    def __init__(self, *_: Any, **__: Any) -> None: ...


@pytest.mark.parametrize("has_syncfs", [True, False])
def test_everything_in_a_folder_is_flushed(has_syncfs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    flush = os.fsync

    def note(descriptor: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        flush(descriptor)

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch(0o444)
    (tmp_path / "link").symlink_to("nothing")
    monkeypatch.setattr(os, "fsync", note)
    if not has_syncfs:
        monkeypatch.setattr(ctypes, "CDLL", _Libc)
    flush_all(tmp_path)
    files = [] if has_syncfs else [tmp_path / "folder", tmp_path / "folder" / "file"]
    assert sorted(flushed) == list(map(str, files))


def test_json_is_written_whole_in_utf8_and_without_numbers_that_it_lacks(tmp_path: Path) -> None:
    write_json_whole(tmp_path / "a.json", {"name": "Größe", "sizes": [1.5]})
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n "name": "Größe",\n "sizes": [\n  1.5\n ]\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_whole(tmp_path / "b.json", float("nan"))
    write_json_whole(tmp_path / "b.json", float("nan"), allow_nan=True)
    assert (tmp_path / "b.json").read_text("utf-8") == "NaN\n"
