"""How near solvers of rectified flows come to the converged image, at equal numbers of evaluations of the networks.

Nodules are drawn into CTs with a bundle such as lung-nodule-ct, from the same noise by every solver, and compared with
the image at 60 steps: root mean square of the difference in HU over what is drawn. Solvers and shortcuts that the
package does not have are written out here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from maisi_aug.bundle_spec.solvers import Sampling
from maisi_aug.evaluation.output.files import save_results, to_markdown
from maisi_aug.insertion.cohort import Inserter
from maisi_aug.insertion.config import resolve_insertion
from maisi_aug.insertion.drawing import BundlePainter, open_bundle_painter
from maisi_aug.insertion.painting import PaintTask
from maisi_aug.insertion.request import build_insertion
from maisi_aug.networks import flow_solvers
from maisi_aug.networks.flow_solvers import FlowSolver, Velocity

CONVERGED_STEPS = 60


class Heun:
    """Two evaluations a step: the mean of the velocities at both ends."""

    def step(self, velocity: Velocity, latent: Tensor, start: float, stop: float) -> Tensor:
        """Evaluate the networks twice, and in the last step once, because they know no noise-free latents."""
        now = velocity(latent, start)
        then = now if stop == 0 else velocity(latent + (start - stop) * now, stop)
        return latent + (start - stop) * (now + then) / 2


class Midpoint:
    """Two evaluations a step: the velocity in its middle."""

    def step(self, velocity: Velocity, latent: Tensor, start: float, stop: float) -> Tensor:
        """Evaluate the networks twice."""
        middle = (start + stop) / 2
        return latent + (start - stop) * velocity(latent + (start - middle) * velocity(latent, start), middle)


class AdamsBashforth:
    """One evaluation a step: the predictor of ``Multistep`` without its corrector."""

    def __init__(self) -> None:
        self._before: tuple[Tensor, float] | None = None

    def step(self, velocity: Velocity, latent: Tensor, start: float, stop: float) -> Tensor:
        """Evaluate the networks once."""
        now, length = velocity(latent, start), start - stop
        before, length_before = self._before or (now, length)
        self._before = now, length
        return latent + length * (now + length / (2 * length_before) * (now - before))


@dataclass(frozen=True)
class Way:
    """A way of drawing.

    Attributes:
        title: For the table.
        num_steps: Number of steps.
        solver: One of the package, or one of those above in its place.
        shift: Times t become shift t / (1 + (shift - 1) t): above 1 more of them near the noise.
        every: The ControlNet is evaluated at every so many steps; its residuals serve those between.
    """

    title: str
    num_steps: int
    solver: str | Callable[[], FlowSolver] = "multistep"
    shift: float = 1.0
    every: int = 1

    @property
    def num_evaluations(self) -> int:
        """Evaluations of the U-Net for one image."""
        if self.solver is Heun:
            return 2 * self.num_steps - 1
        return 2 * self.num_steps if self.solver is Midpoint else self.num_steps


WAYS = (
    *(Way("euler, as MONAI steps", steps, "euler") for steps in (30, 12, 8, 6, 4)),
    *(Way("multistep", steps) for steps in (8, 6, 4, 3)),
    *(Way("Adams-Bashforth, not corrected", steps, AdamsBashforth) for steps in (8, 6, 4)),
    *(Way("midpoint, two evaluations a step", steps, Midpoint) for steps in (4, 3, 2)),
    Way("Heun, two evaluations a step", 3, Heun),
    *(Way(f"multistep, times shifted by {shift}", 4, shift=shift) for shift in (0.7, 1.25, 1.5)),
    *(Way("multistep, ControlNet at every second step", steps, every=2) for steps in (8, 6)),
)


@dataclass
class Recorder:
    """A painter that keeps what it is asked to draw."""

    painter: BundlePainter
    tasks: list[PaintTask]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.painter, name)

    def paint(self, task: PaintTask) -> NDArray[np.float32]:
        """Keep the task, and draw as the CT is."""
        self.tasks.append(task)
        return task.image_hu


def record_tasks(painter: BundlePainter, into: Path, labels: Sequence[str], num: int) -> list[PaintTask]:
    """The first tasks of a cohort of inserted lesions."""
    fields = {"labels": labels, "into": str(into), "num_cases": num, "max_attempts": 1, "painter": "network"}
    cohort = resolve_insertion(build_insertion({**fields, "bundle": str(painter.pipeline.bundle.path)}))
    recorder = Recorder(painter, [])
    inserter = Inserter(cohort, recorder)
    for case in cohort.plan.cases:
        inserter.attempt(case, 0)
    return recorder.tasks


@contextmanager
def reuse_residuals(controlnet: nn.Module, every: int) -> Iterator[None]:
    """Evaluate a ControlNet at every so many calls only."""
    whole, calls, kept = controlnet.forward, 0, None

    def forward(*arguments: Any, **named: Any) -> Any:
        nonlocal calls, kept
        kept = whole(*arguments, **named) if calls % every == 0 else kept
        calls += 1
        return kept

    with mock.patch.object(controlnet, "forward", forward):
        yield


def change_package(way: Way, controlnet: nn.Module) -> list[AbstractContextManager[Any]]:
    """What must be in force while a way draws."""
    spread = flow_solvers.spread_times

    def shifted(*arguments: Any) -> list[float]:
        return [way.shift * time / (1 + (way.shift - 1) * time) for time in spread(*arguments)]

    return [
        nullcontext()
        if isinstance(way.solver, str)
        else mock.patch.dict(flow_solvers._SOLVERS, {"multistep": way.solver}),
        nullcontext() if way.shift == 1.0 else mock.patch("maisi_aug.networks.sampling.spread_times", shifted),
        nullcontext() if way.every == 1 else reuse_residuals(controlnet, way.every),
    ]


def paint(painter: BundlePainter, task: PaintTask, way: Way) -> NDArray[np.float32]:
    """Draw a task in a way."""
    sampling = Sampling(way.num_steps, "euler" if way.solver == "euler" else "multistep")
    changes = change_package(way, painter.pipeline.networks.controlnet)
    with changes[0], changes[1], changes[2]:
        return replace(painter, sampling=sampling).paint(task)


def measure(painter: BundlePainter, tasks: Sequence[PaintTask], ways: Sequence[Way]) -> list[dict[str, Any]]:
    """Error and processor seconds of every way."""
    converged = [paint(painter, task, Way("", CONVERGED_STEPS)) for task in tasks]
    rows = []
    for way in ways:
        started = process_time()
        drawn = [paint(painter, task, way) for task in tasks]
        seconds = (process_time() - started) / len(tasks)
        errors = [
            float(np.sqrt(np.mean((image - exact)[task.hidden] ** 2)))
            for image, exact, task in zip(drawn, converged, tasks, strict=True)
        ]
        row = {"way": way.title, "num_steps": way.num_steps, "num_evaluations": way.num_evaluations}
        rows.append({**row, "error_hu": float(np.mean(errors)), "processor_seconds": seconds})
    return rows


def to_report(document: Mapping[str, Any]) -> str:
    """The table."""
    names = ("way", "num_steps", "num_evaluations", "error_hu", "processor_seconds")
    heads = ("way", "steps", "evaluations", "difference to converged, HU", "processor seconds an image")
    table = to_markdown(heads, [[row[name] for name in names] for row in document["rows"]])
    return f"# Solvers: {document['bundle']}, {document['num_tasks']} nodules\n\n{table}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.flow_solvers", description=__doc__)
    parser.add_argument("--bundle", default="lung-nodule-ct")
    parser.add_argument("--into", type=Path, required=True, help="chest CTs")
    parser.add_argument("--labels", nargs="+", default=["lung nodule:6-14mm"])
    parser.add_argument("--num", type=int, default=6, help="nodules")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    from maisi_aug.bundle_spec.bundle import load_bundle

    bundle = load_bundle(options.bundle)
    painter = replace(open_bundle_painter(bundle, "cpu"), method="replace")
    tasks = record_tasks(painter, options.into, options.labels, options.num)
    rows = measure(painter, tasks, WAYS)
    document = {"measurement": "flow_solvers", "bundle": bundle.name, "num_tasks": len(tasks), "rows": rows}
    save_results(options.out, "flow_solvers", document, to_report(document))
    sys.stdout.write(to_report(document))


if __name__ == "__main__":
    main()
