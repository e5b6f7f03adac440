"""Cohorts resolved from a configuration with some fields changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from maisi_aug.cohort.request import build_request
from maisi_aug.cohort.resolve import CohortRun, resolve

GATES_OFF = {"organ_hu": False, "visibility": False}


def resolver(**defaults: Any) -> Callable[..., CohortRun]:
    """A function that resolves these fields, with those that it is called with on top."""

    def call(**changes: Any) -> CohortRun:
        return resolve(build_request({**defaults, **changes}))

    return call
