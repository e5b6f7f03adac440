"""Which fields of a cohort's configuration go with which mask source."""

from __future__ import annotations

DEFAULT_NUM_CASES = 4
AUTO_MAPPING = "auto"
GIVEN, NO_MAP = "given", "none"
SOURCES_WITHOUT_REQUESTS = (GIVEN, NO_MAP)
"""A given map is drawn with whatever it holds, and without a map there is nothing to ask for."""


def find_misfit(
    mask_source: str,
    *,
    labels: tuple[str, ...],
    own_bank: str | None,
    mask_labels: object,
    guidance_scale: float,
    size_reference: str | None,
    has_anatomy: bool,
    mask_steps: int | None,
    size_of: object,
) -> str:
    """The first field that does not go with the mask source, as ``subject: expected ..., found ...``; else empty.

    A field that would do nothing is refused rather than ignored.

    Args:
        mask_source: Where label maps come from.
        labels: Label requests.
        own_bank: ``mask_bank`` where it names maps of the user's own.
        mask_labels: What the bank's ids mean.
        guidance_scale: Strength of the guidance towards tumours.
        size_reference: Where percentiles come from.
        has_anatomy: Whether ``anatomy`` lists the labels to keep.
        mask_steps: Sampling steps of a generated label map.
        size_of: Sizes of organs in generated label maps.
    """
    if mask_source not in SOURCES_WITHOUT_REQUESTS:
        misfit = (
            "" if labels else "labels: expected a list of at least 1 item, found none; ask for a lesion or an organ"
        )
    elif size_reference is not None:
        misfit = f"size_reference: expected none with mask_source '{mask_source}', which asks for no sizes, found one"
    elif has_anatomy:
        misfit = (
            f"anatomy: expected none with mask_source '{mask_source}', found a list; name the labels to keep of given "
            "maps in labels"
        )
    elif mask_source == GIVEN:
        misfit = _find_misfit_of_given(labels, own_bank is not None)
    else:
        misfit = _find_misfit_of_none(labels, own_bank is not None, mask_labels, guidance_scale)
    return misfit or _find_misfit_of_masks(mask_source, own_bank, mask_labels, mask_steps, size_of)


def _find_misfit_of_none(
    labels: tuple[str, ...], has_own_bank: bool, mask_labels: object, guidance_scale: float
) -> str:
    unused = {
        "labels": ", ".join(labels),
        "mask_bank": "one" if has_own_bank else "",
        "mask_labels": "" if mask_labels == AUTO_MAPPING else str(mask_labels),
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


def _find_misfit_of_masks(
    mask_source: str, own_bank: str | None, mask_labels: object, mask_steps: int | None, size_of: object
) -> str:
    """A bank without the lesions that are to be taken from it, or a field that the mask source makes nothing of."""
    if mask_source == "bank" and own_bank is None:
        return (
            "mask_source 'bank': expected a mask_bank with lesions of its own, found the phantoms, which have none; "
            "give a folder or a data list, or use mask_source 'plant'"
        )
    idle: dict[str, object]
    if mask_source == "diffusion":
        idle = {"mask_bank": own_bank, "mask_labels": None if mask_labels == AUTO_MAPPING else mask_labels}
        advice = "leave it out"
    else:
        idle = {"mask_steps": mask_steps, "size_of": size_of}
        advice = "use mask_source 'diffusion', or leave it out"
    for name, found in idle.items():
        if found is not None:
            return f"{name}: expected none with mask_source '{mask_source}', found {found}; {advice}"
    return ""
