"""Functions that note when they are called, and do what they always do."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest


def counted(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> list[tuple[Any, ...]]:
    """The arguments of every further call of a module's function, in their order."""
    inner, calls = getattr(module, name), list[tuple[Any, ...]]()

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return inner(*arguments, **options)

    monkeypatch.setattr(module, name, call)
    return calls
