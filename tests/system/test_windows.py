"""What Windows lacks is not needed, as far as that can be told on another system."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "maisi_aug"
POSIX_MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_NAMES = {
    "os": {
        "fork",
        "getuid",
        "geteuid",
        "killpg",
        "mkfifo",
        "pread",
        "pwrite",
        "sched_getaffinity",
        "setsid",
        "statvfs",
    },
    "signal": {"SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "alarm", "pthread_sigmask"},
}
POSIX_ONLY = {"integrations/slurm.py"}
"""Modules for what exists on Linux alone."""


@cache
def walk() -> list[tuple[str, ast.Module]]:
    found = []
    for folder, _, names in os.walk(PACKAGE, followlinks=True):
        for name in names:
            path = Path(folder, name)
            if name.endswith(".py") and "studies" not in path.parts:
                found.append((path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))))
    return found


def is_guarded(tree: ast.Module, node: ast.AST) -> bool:
    """Whether a node stands in a block, or after a return, that asks for the platform."""
    for outer in ast.walk(tree):
        if isinstance(outer, ast.If) and "platform" in ast.unparse(outer.test) and node in ast.walk(outer):
            return True
        if isinstance(outer, ast.FunctionDef) and node in ast.walk(outer):
            first = [one for one in outer.body if isinstance(one, ast.If) and "win32" in ast.unparse(one.test)]
            if first and any(isinstance(inner, ast.Return | ast.Raise) for inner in ast.walk(first[0])):
                return True
    return False


def test_modules_that_windows_lacks_are_imported_behind_a_question() -> None:
    wrong = [
        f"{name}: {alias.name}"
        for name, tree in walk()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
        if alias.name in POSIX_MODULES and not is_guarded(tree, node)
    ]
    assert wrong == []


def test_functions_that_windows_lacks_are_not_called() -> None:
    wrong = [
        f"{name}: {ast.unparse(node)}"
        for name, tree in walk()
        if name not in POSIX_ONLY
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if node.attr in POSIX_NAMES.get(node.value.id, set()) and not is_guarded(tree, node)
    ]
    assert wrong == []


PROGRAM = """
import os, signal, sys, warnings
import maisi_aug.errors, maisi_aug.system.engine.processes, maisi_aug.system.lease, maisi_aug.cohort.manifest
import numpy, pydantic, yaml, platformdirs
from pathlib import Path
for module, names in ((os, ("pread", "fork", "O_DIRECTORY", "O_NOFOLLOW")), (signal, ("SIGKILL", "pthread_sigmask"))):
    for name in names:
        delattr(module, name)
sys.platform = "win32"
from maisi_aug.system import file_lock
file_lock.fcntl = None
from maisi_aug.system.file_lock import folder_lock, is_locked
from maisi_aug.system.whole_folder import folders_that_appear_whole, open_whole_folder
from maisi_aug.system.whole_files import append_to_shared, write_text_whole
from maisi_aug.system.lease import take_lease
folder = Path(sys.argv[1])
with open_whole_folder(folder / "whole", require_replaceable=lambda: None) as unfinished:
    write_text_whole(unfinished / "a.txt", "one\\n")
with folders_that_appear_whole(folder / "more") as (building,):
    write_text_whole(building / "b.txt", "two\\n")
warnings.simplefilter("ignore")
(folder / "lines.jsonl").write_bytes(b"{}\\n{torn")
append_to_shared(folder / "lines.jsonl", "{}")
take_lease(folder / "lease", has_lock=None).end()
with folder_lock(folder) as has_lock:
    assert has_lock is None
assert is_locked(folder / "lines.jsonl") is None
print("done")
"""


def test_files_folders_lines_and_leases_work_without_what_windows_lacks(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr
    assert (tmp_path / "whole" / "a.txt").read_text() == "one\n"
    assert (tmp_path / "more" / "b.txt").read_text() == "two\n"
    assert (tmp_path / "lines.jsonl").read_bytes() == b"{}\n{}\n"
    assert not (tmp_path / "lease").exists()
