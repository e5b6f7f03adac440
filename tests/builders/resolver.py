"""Cohorts resolved from a configuration with some fields changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from maisi_aug.cohort.recipe import build_config
from maisi_aug.cohort.resolve import ResolvedCohort, resolve_cohort

GATES_OFF = {"organ_hu": False, "visibility": False}


def resolver(**defaults: Any) -> Callable[..., ResolvedCohort]:
    """A function that resolves these fields, with those that it is called with on top."""

    def call(**changes: Any) -> ResolvedCohort:
        return resolve_cohort(build_config({**defaults, **changes}))

    return call
