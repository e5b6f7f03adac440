r"""Memory and time that an insertion takes beyond reading and writing a large CT.

    python -m tests.benchmarks.insertion_volume CT.nii.gz [--shape 512x512x300] [--painter procedural lung-nodule-ct]

The CT is brought to the shape by interpolation. Each figure is that of a process of its own: one that reads the volume
and writes it again, and ``maisi-aug insert`` of one and of four nodules. Peak resident memory is the process's, less
the volume in int16; seconds are processor time, one thread, and a nodule's are a third of the difference of four and
one, so that what every process needs once is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy import ndimage

from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import load_image, save_image

NUM_FEW, NUM_MORE = 1, 4
_COPY = """
import sys
from pathlib import Path
from maisi_aug.volumes.image_files import load_image, save_image
image = load_image(Path(sys.argv[1]))
save_image(Path(sys.argv[2]), image.array, image.grid)
"""


def enlarge(path: Path, shape: tuple[int, ...], target: Path) -> None:
    """Write a CT with another number of voxels over the same extent."""
    volume = load_image(path)
    factors = [side / own for side, own in zip(shape, volume.array.shape, strict=True)]
    image = ndimage.zoom(volume.array.astype(np.float32), factors, order=1, mode="nearest", grid_mode=True)
    spacing_mm = [step / factor for step, factor in zip(volume.grid.spacing_mm, factors, strict=True)]
    save_image(target, np.rint(image).astype(np.int16), Grid.from_spacing(image.shape, spacing_mm))  # type: ignore[arg-type]


def measure(arguments: list[str]) -> tuple[float, int]:
    """Processor seconds and peak bytes of a process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)}: ended with {process.returncode}")
    return _seconds_of(usage), usage.ru_maxrss * 1024


def _seconds_of(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ct", type=Path)
    parser.add_argument("--shape", default="512x512x300")
    parser.add_argument("--painter", nargs="+", default=["procedural", "lung-nodule-ct"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "cts" / "large.nii.gz"
        path.parent.mkdir()
        enlarge(args.ct, tuple(map(int, args.shape.split("x"))), path)
        volume_bytes = 2 * int(np.prod(load_image(path).array.shape))
        copied = measure(["-c", _COPY, str(path), str(folder / "copy.nii.gz")])
        found = {"volume_bytes": volume_bytes, "read and write": _describe(copied, volume_bytes)}
        for painter in args.painter:
            few, more = (
                measure(_insert(path.parent, folder / f"{painter}-{number}", painter, number))
                for number in (NUM_FEW, NUM_MORE)
            )
            found[painter] = {
                **_describe(more, volume_bytes),
                "seconds_a_case": (more[0] - few[0]) / (NUM_MORE - NUM_FEW),
                "seconds_a_lesion_beyond_files": (more[0] - few[0]) / (NUM_MORE - NUM_FEW) - copied[0],
            }
    print(json.dumps(found, indent=2))


def _insert(cts: Path, out: Path, painter: str, number: int) -> list[str]:
    command = ["-m", "maisi_aug", "insert", "--into", str(cts), "--labels", "lung nodule:10mm", "-n", str(number)]
    chosen = ["procedural"] if painter == "procedural" else ["network", "--bundle", painter]
    return [*command, "--painter", *chosen, "--out", str(out)]


def _describe(measured: tuple[float, int], volume_bytes: int) -> dict[str, float]:
    seconds, peak = measured
    return {"seconds": round(seconds, 2), "gb_above_the_volume": round((peak - volume_bytes) / 1e9, 2)}


if __name__ == "__main__":
    main()
