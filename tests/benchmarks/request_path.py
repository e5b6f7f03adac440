"""Which files a newcomer has to read to follow a request: those that it runs through, and those that hold it.

Run ``python -m tests.benchmarks.request_path``. It draws one case of ``"hepatic tumor:0.3"`` and lists every file of
the package in which a function is called, apart from the command line, from the generator of phantoms, and from what
modules do while they are imported. A star marks files of which a function is given the request or one of its lesions,
as an argument or within one.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from maisi_aug.cli.app import run

ROOT = Path(__file__).resolve().parents[2]
TEXT = "hepatic tumor:0.3"
LEFT_OUT = ("cli/", "maisi_aug/phantom/", "tests/")
CARRIERS = {"LesionRequest", "WrittenRequest", "CaseRequest", "SizeRange", "CasePlan", "Lesion"}
MAX_DEPTH = 3
_IS_FUNCTION = 0x2  # CO_NEWLOCALS: no module and no class body


class Trace:
    """Files that are entered, and those of them that are given the request."""

    def __init__(self) -> None:
        self.entered: set[str] = set()
        self.holding: set[str] = set()
        self._places: dict[str, str | None] = {}
        self._state = threading.local()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if code.co_name == "<module>":
            step = {"call": 1, "return": -1}.get(event, 0)
            self._state.num_imports = getattr(self._state, "num_imports", 0) + step
            return
        is_busy = getattr(self._state, "num_imports", 0) > 0 or getattr(self._state, "is_looking", False)
        if event != "call" or is_busy or not code.co_flags & _IS_FUNCTION:
            return
        place = self._place(code.co_filename)
        if place is None or place in self.holding:
            return
        self.entered.add(place)
        self._state.is_looking = True
        num_arguments = code.co_argcount + code.co_kwonlyargcount
        if any(holds(frame.f_locals.get(name)) for name in code.co_varnames[:num_arguments]):
            self.holding.add(place)
        self._state.is_looking = False

    def _place(self, file_name: str) -> str | None:
        """The file as the repository names it; None for one that is left out or not the package's."""
        if file_name not in self._places:
            path = Path(file_name).resolve()
            place = path.relative_to(ROOT).as_posix() if path.is_file() and path.is_relative_to(ROOT) else None
            self._places[file_name] = None if place is None or place.startswith(LEFT_OUT) else place
        return self._places[file_name]


def holds(value: Any, depth: int = MAX_DEPTH) -> bool:
    """Whether a value is the request, or a part of it or a lesion is found in its fields or elements."""
    kind = type(value)
    if isinstance(value, str):
        return value == TEXT
    if kind.__module__.startswith("maisi_aug"):
        names = [field.name for field in fields(value)] if is_dataclass(value) else getattr(kind, "model_fields", ())
        parts = [getattr(value, name, None) for name in names]
        return kind.__name__ in CARRIERS or (depth > 0 and any(holds(part, depth - 1) for part in parts))
    parts = list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, tuple | list) else []
    return depth > 0 and any(holds(part, depth - 1) for part in parts[:60])


def main() -> int:
    """Draw a case and print the files; the exit code is that of the command."""
    trace = Trace()
    with tempfile.TemporaryDirectory() as folder:
        command = ["synthesize", "--labels", TEXT, "-n", "1", "--steps", "2", "--gate", "organ-hu=off", "--quiet"]
        threading.setprofile(trace)
        sys.setprofile(trace)
        code = run([*command, "--out", str(Path(folder, "cohort"))])
        sys.setprofile(None)
        threading.setprofile(None)
    for place in sorted(trace.entered):
        print("*" if place in trace.holding else " ", place)
    print(f"{len(trace.entered)} files are entered, {len(trace.holding)} of them are given the request")
    return code


if __name__ == "__main__":
    sys.exit(main())
