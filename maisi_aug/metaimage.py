"""Whether a MetaImage file (MHA, MHD) is complete; ITK reads half a file without a word."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maisi_aug.errors import VolumeError


def require_complete_metaimage(path: Path) -> None:
    """Raise when an uncompressed MetaImage has too few bytes: ITK would fill the rest with whatever it finds.

    Raises:
        VolumeError: The file is shorter than its header says.
    """
    if path.suffix.lower() not in (".mha", ".mhd"):
        return
    fields: dict[str, str] = {}
    header_bytes = 0
    with path.open("rb") as file:
        for line in file:
            header_bytes += len(line)
            name, _, value = line.decode("latin-1").partition("=")
            fields[name.strip().lower()] = value.strip()
            if name.strip().lower() == "elementdatafile":
                break
    source = fields.get("elementdatafile", "")
    if fields.get("compresseddata", "false").lower() == "true" or not source or source.startswith("LIST"):
        return
    width = {"CHAR": 1, "SHORT": 2, "INT": 4, "FLOAT": 4, "LONG": 8, "DOUBLE": 8}
    kind = fields.get("elementtype", "").removeprefix("MET_").removeprefix("U")
    if kind not in width:
        return
    expected = width[kind] * int(np.prod([int(side) for side in fields["dimsize"].split()]))
    if source.upper() == "LOCAL":
        found = path.stat().st_size - header_bytes
    else:
        found = (path.parent / source).stat().st_size if (path.parent / source).exists() else 0
    if found < expected:
        raise VolumeError(f"{path}: expected {expected} bytes of voxels, found {found}. Replace the file.")
