"""What a step of fine-tuning waits for before its networks: cases read, cut and translated; against another build.

    python -m tests.benchmarks.training_input --baseline ../earlier-build --out tests/benchmarks

Cases of 256x256x256 voxels that lie in a few files (the others are hard links), and a run's order: the labels are
looked at, then steps are made without the networks. Both builds do the same in processes of their own, one after the
other.
Processor seconds, since other work on the machine does not count in them; wall-clock seconds stand beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from time import perf_counter, process_time
from typing import Any, Final

SIDE: Final = 256
LABEL_ID: Final = 2
RESULTS_NAME: Final = "results_training_input"
PARTS: Final = ("planning, a case", "a step", "a step of two accumulated batches")


def write_cases(folder: Path, *, num_cases: int, num_files: int, side: int) -> None:
    """A prepared folder of phantoms with a new label in each, a few files under many names."""
    import numpy as np

    from maisi_aug.phantom import build_phantom
    from maisi_aug.preparation.prepared import PreparedCase
    from maisi_aug.system.whole_files import sha256_of
    from maisi_aug.volumes.grid import Grid
    from maisi_aug.volumes.image_files import save_image, save_label_map
    from tests.preparation.test_prepared import build_case, write_folder

    spacing_mm = 400.0 / side
    grid = Grid.from_spacing((side,) * 3, (spacing_mm,) * 3)
    cases: list[PreparedCase] = []
    known: list[tuple[dict[int, int], str, str]] = []
    for number in range(num_cases):
        paths = [folder / role / f"p{number}.nii.gz" for role in ("images", "labels")]
        if number < num_files:
            phantom = build_phantom(seed=number, grid=grid, region="abdomen")
            label_map = phantom.label_map.copy()
            middle = side // 2
            label_map[middle : middle + 8, middle : middle + 8, middle : middle + 8] = LABEL_ID
            save_image(paths[0], phantom.image_hu, grid)
            save_label_map(paths[1], label_map, grid)
            ids, counts = np.unique(label_map, return_counts=True)
            voxels = dict(zip(ids.tolist(), counts.tolist(), strict=True))
            known.append((voxels, sha256_of(paths[0]), sha256_of(paths[1])))
        else:
            for path in paths:
                path.hardlink_to(path.with_name(f"p{number % num_files}.nii.gz"))
        voxels, image_sha256, label_sha256 = known[number % num_files]
        hashes = {"image_sha256": image_sha256, "label_sha256": label_sha256}
        cases.append(build_case(number, shape=grid.shape, spacing_mm=grid.spacing_mm, voxels=voxels, **hashes))
    described = {"shape": list(grid.shape), "spacing_mm": list(grid.spacing_mm)}
    write_folder(folder, cases, grid=described, labels={"node": LABEL_ID, "body": 200})


def measure(folder: Path, num_steps: int) -> dict[str, list[list[float]]]:
    """Processor and wall-clock seconds of each part in the build that is imported, one row a case or step."""
    import torch
    from monai.networks.schedulers.rectified_flow import RFlowScheduler
    from torch import Tensor, nn

    from maisi_aug.training.cases.data import LatentSet
    from maisi_aug.training.cases.prepared import PreparedStore
    from maisi_aug.training.finetune.slots import SlotStore, measure_traits
    from maisi_aug.training.images.flow import FlowObjective
    from maisi_aug.training.loop.processes import WHOLE, Share
    from maisi_aug.training.loop.settings import FlowLossConfig

    class InputAlone(FlowObjective):
        """All that comes before the networks of a step."""

        def compare(self, *_: Any, **__: Any) -> tuple[Tensor, dict[str, Tensor]]:
            return torch.zeros(()), {}

    def time(call: Any) -> list[float]:
        started = process_time(), perf_counter()
        call()
        return [process_time() - started[0], perf_counter() - started[1]]

    torch.set_num_threads(1)
    store = PreparedStore.from_folder(folder)
    # Before stores shared what was read, each phase of a run had one of its own.
    shared = hasattr(store, "part")
    side = store.spec.grid.shape[0] // 4
    latents = LatentSet([torch.zeros(4, side, side, side, dtype=torch.float16)] * len(store), 1.0)
    planning = time(lambda: measure_traits(store if shared else PreparedStore(store.dataset), [LABEL_ID]))
    table = torch.arange(256, dtype=torch.uint8).numpy()
    table[5] = 200
    objective = InputAlone(
        nn.Conv3d(4, 4, 1),
        nn.Conv3d(8, 4, 1),
        RFlowScheduler(num_train_timesteps=1000, use_discrete_timesteps=False),
        SlotStore(store, table),
        latents,
        FlowLossConfig(lesion_weight=100.0),
        lesion_ids=[LABEL_ID],
        seed=0,
        device="cpu",
    )
    steps = [time(lambda step=step: objective.loss(step, WHOLE)) for step in range(num_steps)]
    shares = [Share(index, 2) for index in range(2)]
    accumulated = [
        time(lambda step=step: [objective.loss(step, share) for share in shares])
        for step in range(num_steps, num_steps + max(1, num_steps // 4))
    ]
    return {PARTS[0]: [[seconds / len(store) for seconds in planning]], PARTS[1]: steps, PARTS[2]: accumulated}


def to_markdown(results: dict[str, Any]) -> str:
    """The results as a table."""
    rows = []
    for part in PARTS:
        means = {
            build: [fmean(column) for column in zip(*results["seconds"][build][part], strict=True)]
            for build in ("earlier", "this")
        }
        before, now = means["earlier"], means["this"]
        rows.append(
            f"| {part} | {before[0]:.3f} | {now[0]:.3f} | {before[0] / now[0]:.1f} | {before[1]:.3f} | {now[1]:.3f} |"
        )
    return "\n".join(
        [
            "# Input of a fine-tuning step\n",
            f"Written by `python -m tests.benchmarks.training_input`: {results['num_cases']} cases of "
            f"{'x'.join([str(results['side'])] * 3)} voxels, {results['num_steps']} steps on whole cases of one each, "
            "from the first; without the networks. Mean seconds of one thread of "
            f"{results['cpu_count']} cores.\n",
            "| part | earlier build, processor | this build | times less | earlier build, wall clock | this build |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both builds and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, help="folder of the earlier build")
    parser.add_argument("--out", type=Path, default=Path.cwd(), help="folder of the results")
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--files", type=int, default=3, help="files that the cases lie in")
    parser.add_argument("--side", type=int, default=SIDE, help="voxels along each axis")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.measure is not None:
        print(json.dumps(measure(given.measure, given.steps)))
        return
    builds = {"earlier": given.baseline.resolve(), "this": Path(__file__).resolve().parents[2]}
    seconds = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_cases(folder, num_cases=given.cases, num_files=given.files, side=given.side)
        for build, path in builds.items():
            command = [sys.executable, str(Path(__file__).resolve()), "--measure", scratch, "--steps", str(given.steps)]
            environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, cwd=path, env=environment, stdout=subprocess.PIPE, check=True)
            seconds[build] = json.loads(done.stdout)
    about = {"num_cases": given.cases, "num_steps": given.steps, "side": given.side, "cpu_count": os.cpu_count()}
    results = {**about, "seconds": seconds}
    (given.out / f"{RESULTS_NAME}.json").write_text(json.dumps(results) + "\n", encoding="utf-8")
    text = to_markdown(results)
    (given.out / f"{RESULTS_NAME}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
