"""Which fields of a cohort's configuration go with which mask source."""

from __future__ import annotations

DEFAULT_NUM_CASES = 4
GIVEN, NO_MAP = "given", "none"
SOURCES_WITHOUT_REQUESTS = (GIVEN, NO_MAP)
"""A given map is drawn with whatever it holds, and without a map there is nothing to ask for."""


def find_misfit(
    mask_source: str,
    *,
    labels: tuple[str, ...],
    has_own_bank: bool,
    mask_labels: str,
    guidance_scale: float,
    size_reference: str | None,
    has_anatomy: bool = False,
) -> str:
    """The first field that does not go with the mask source, as ``subject: expected ..., found ...``; else empty.

    A field that would do nothing is refused rather than ignored.

    Args:
        mask_source: Where label maps come from.
        labels: Label requests.
        has_own_bank: Whether ``mask_bank`` names maps of the user's own.
        mask_labels: What the bank's ids mean.
        guidance_scale: Strength of the guidance towards tumours.
        size_reference: Where percentiles come from.
        has_anatomy: Whether ``anatomy`` lists the labels to keep.
    """
    if mask_source not in SOURCES_WITHOUT_REQUESTS:
        return "" if labels else "labels: expected a list of at least 1 item, found none; ask for a lesion or an organ"
    if size_reference is not None:
        return f"size_reference: expected none with mask_source '{mask_source}', which asks for no sizes, found one"
    if has_anatomy:
        return (
            f"anatomy: expected none with mask_source '{mask_source}', found a list; name the labels to keep of given "
            "maps in labels"
        )
    if mask_source == GIVEN:
        return _find_misfit_of_given(labels, has_own_bank)
    unused = {
        "labels": ", ".join(labels),
        "mask_bank": "one" if has_own_bank else "",
        "mask_labels": "" if mask_labels == "auto" else mask_labels,
        "guidance_scale": f"{guidance_scale:g}" if guidance_scale else "",
    }
    field, found = next(((field, found) for field, found in unused.items() if found), ("", ""))
    if not field:
        return ""
    wanted = "0" if field == "guidance_scale" else "none"
    return (
        f"{field}: expected {wanted} with mask_source 'none', for images are drawn without any label map, found "
        f"{found}; leave it out, or choose another mask_source"
    )


def _find_misfit_of_given(labels: tuple[str, ...], has_own_bank: bool) -> str:
    if not has_own_bank:
        return (
            "mask_source 'given': expected a mask_bank with label maps of your own, found the phantoms; give a file, a "
            "folder or a data list"
        )
    for place, text in enumerate(labels):
        if any(mark in text for mark in ":@+"):
            return (
                f"labels[{place}]: expected the name of a label and nothing else with mask_source 'given', which draws "
                f"each map with the lesions that it has, found '{text}'; leave labels out to keep every label, or use "
                "mask_source 'plant' to choose sizes"
            )
    return ""
