"""A case in a notebook: three planes and 3D in NiiVue; ``maisi-aug view`` shows whole cohorts, and takes decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maisi_aug.api.results import Cohort, SavedCase
from maisi_aug.errors import CohortError, MissingExtraError

OVERLAY_OPACITY = 0.45


def view(
    cohort: Cohort | SavedCase | str | Path,
    case: int | str = 0,
    *,
    window_hu: tuple[float, float] = (-150.0, 250.0),
    height: int = 480,
) -> Any:
    """Show a case of a cohort in a notebook, its lesions in red; needs the extra ``notebook``.

    Args:
        cohort: A :class:`Cohort` or its folder, or one of its cases.
        case: Accepted case to show, by position from 0 or by id, such as ``"case_0001"``; ignored if ``cohort`` is a
            case.
        window_hu: HU shown as black and as white, in this order.
        height: Height of the widget in pixels.

    Returns:
        A ``NiiVue`` widget of ipyniivue, which a notebook shows if it is the last value of a cell.

    Raises:
        MissingExtraError: ipyniivue is not installed.
        CohortError: There is no such case.
    """
    try:
        from ipyniivue import NiiVue
    except ImportError as error:
        raise MissingExtraError(
            f"view: needs the packages of the extra 'notebook' ({error.name} is missing). Install them with: pip "
            "install 'maisi-aug[notebook]'; or run maisi-aug view in a terminal."
        ) from error
    chosen = cohort if isinstance(cohort, SavedCase) else _choose(cohort, case)
    low, high = window_hu
    volumes = [{"path": chosen.files["image"], "colormap": "gray", "cal_min": low, "cal_max": high}]
    if "label" in chosen.files:
        # Every id is drawn in the same red: the scale ends at 1.
        overlay = {"colormap": "red", "cal_min": 0.0, "cal_max": 1.0, "opacity": OVERLAY_OPACITY}
        volumes.append({"path": chosen.files["label"], "colorbar_visible": False, **overlay})
    widget = NiiVue(height=height)
    widget.load_volumes(volumes)
    return widget


def _choose(cohort: Cohort | str | Path, case: int | str) -> SavedCase:
    opened = cohort if isinstance(cohort, Cohort) else Cohort(cohort)
    found = opened.cases[case : case + 1] if isinstance(case, int) else [one for one in opened.cases if one.id == case]
    if not found:
        raise CohortError(
            f"{opened.folder}: case {case!r} is not among its {len(opened.cases)} accepted cases. Choose another one."
        )
    return found[0]
