"""The names of labels in a label map's own header: TotalSegmentator's NIfTI files, Slicer's ``.seg.nrrd``.

Such a table may be stale. TotalSegmentator's ``save_multilabel_nifti`` appends one to those that the header has, and
its ``load_multilabel_nifti`` reads the first (2.18, ``nifti_ext_header.py``); the last is the one that was written with
the voxels.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from maisi_aug.errors import MaisiAugWarning
from maisi_aug.system.content import spells_number
from maisi_aug.volumes.image_files import NIFTI_SUFFIXES

MAX_BYTES = 2**22
"""Number of bytes of a header that are searched; larger headers have no table of labels."""
_NRRD_FIELD = re.compile(r"^(Segment\d+)_(Name|LabelValue|Layer):=(.*)$", re.MULTILINE)


def load_own_names(path: Path) -> Mapping[int, str]:
    """Return id -> name from the header of a label map file; empty if it has none.

    Warns if the header contains several tables that differ, and says which one is used.
    """
    name = path.name.lower()
    if not path.is_file():
        return {}
    tables = _read_nifti(path) if name.endswith(NIFTI_SUFFIXES) else _read_nrrd(path) if name.endswith(".nrrd") else []
    if any(table != tables[-1] for table in tables):
        changed = sorted(i for i in tables[-1] if any(table.get(i) != tables[-1][i] for table in tables))[:3]
        shown = ", ".join(f"{label_id} is '{tables[-1][label_id]}'" for label_id in changed)
        warnings.warn(
            f"{path.name}: its header has {len(tables)} different tables of label names; the last one, which was "
            f"written last, is used ({shown or 'it names fewer'}).",
            MaisiAugWarning,
            stacklevel=2,
        )
    return tables[-1] if tables else {}


def _read_nifti(path: Path) -> list[dict[int, str]]:
    """The tables in a NIfTI header's extensions, in their order; none where the file is damaged."""
    import nibabel as nib

    try:
        header = nib.load(path).header
        contents = [extension.get_content() for extension in header.extensions]
    except Exception:  # any fault of the file is reported when its voxels are read
        return []
    tables = [_parse_table(content) for content in contents if isinstance(content, bytes | str)]
    return [table for table in tables if table]


def _parse_table(content: bytes | str) -> dict[int, str]:
    """The labels of an extension that is XML as Connectome's workbench writes it; empty for every other."""
    text = content.decode("utf-8", errors="replace") if isinstance(content, bytes) else content
    text = text.strip("\x00 \n\r\t")
    if len(text) > MAX_BYTES or "<LabelTable" not in text or "<!DOCTYPE" in text or "<!ENTITY" in text:
        return {}
    try:
        labels = ElementTree.fromstring(text).iter("Label")
        return {int(label.attrib["Key"]): (label.text or "").strip() for label in labels if int(label.attrib["Key"])}
    except (ElementTree.ParseError, KeyError, ValueError):
        return {}


def _read_nrrd(path: Path) -> list[dict[int, str]]:
    """The segments of a header that Slicer wrote; none where they lie in several layers."""
    try:
        with path.open("rb") as file:
            header = file.read(MAX_BYTES).partition(b"\n\n")[0].decode("utf-8", errors="replace")
    except OSError:
        return []
    segments: dict[str, dict[str, str]] = {}
    for segment, key, value in _NRRD_FIELD.findall(header.replace("\r", "")):
        segments.setdefault(segment, {})[key] = value.strip()
    rows = [row for row in segments.values() if spells_number(row.get("LabelValue", "")) and row.get("Name")]
    if len({row.get("Layer", "0") for row in rows}) > 1:
        return []
    table = {int(row["LabelValue"]): row["Name"] for row in rows}
    return [table] if table else []
