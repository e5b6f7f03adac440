"""What an NRRD header says of its place; ITK reads one without a patient frame as if it had one."""

from __future__ import annotations

from pathlib import Path

from maisi_aug.errors import VolumeError

_MAX_HEADER_BYTES = 1_000_000
_MILLIMETRES = ("", "mm", "millimeter", "millimeters", "millimetre", "millimetres")


def require_nrrd_frame(path: Path) -> None:
    """Raise for an NRRD file that does not say where its voxels are in the patient, or counts in another unit.

    Raises:
        VolumeError: It has neither ``space`` nor ``space directions``, so that left and right are not known, or its
            ``space units`` are not millimetres, which ITK ignores.
    """
    if path.suffix.lower() not in (".nrrd", ".nhdr"):
        return
    with path.open("rb") as file:
        start = file.read(_MAX_HEADER_BYTES)
    head = start.split(b"\n\n", 1)[0].split(b"\r\n\r\n", 1)[0].decode("latin-1")
    if not head.startswith("NRRD"):
        return  # ITK says what is wrong with it
    fields = {
        name.strip().lower(): value.strip()
        for line in head.splitlines()[1:]
        if not line.startswith("#") and ":=" not in line
        for name, found, value in [line.partition(":")]
        if found
    }
    if not fields.get("space") or "space directions" not in fields:
        missing = "space" if not fields.get("space") else "space directions"
        raise VolumeError(
            f"{path}: expected 'space' and 'space directions' in the header, found no '{missing}', so that left and "
            "right are not known. Write the file with its patient frame, such as left-posterior-superior."
        )
    units = [part.strip().lower() for part in fields.get("space units", "").split('"') if part.strip()]
    if any(unit not in _MILLIMETRES for unit in units):
        raise VolumeError(
            f"{path}: expected millimetres, found 'space units' {fields['space units']}, which ITK does not convert. "
            "Write the file in mm."
        )
