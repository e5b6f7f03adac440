"""How near solvers of rectified flows come to the converged image, at equal numbers of evaluations of the networks.

Nodules are drawn into CTs with a bundle such as lung-nodule-ct, from the same noise by every solver, and compared with
the image at 60 steps: root mean square of the difference in HU over what is drawn. Solvers and shortcuts that the
package does not have are written out here.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
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
from maisi_aug.lesions.editing import remove_lesions
from maisi_aug.networks import flow_solvers, sampling
from maisi_aug.networks.flow_solvers import FlowSolver, Velocity
from maisi_aug.networks.pipeline import Pipeline
from maisi_aug.volumes.grid import Grid

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
        deep_every: The U-Net's levels below the first are evaluated at every so many steps, as in Ma et al.,
            "DeepCache: Accelerating Diffusion Models for Free", CVPR 2024.
        guidance: Scale of guidance away from the map without lesions, and the times from and to which it acts.
        times: From 1 down to 0, instead of the bundle's.
    """

    title: str
    num_steps: int
    solver: str | Callable[[], FlowSolver] = "multistep"
    shift: float = 1.0
    every: int = 1
    deep_every: int = 1
    guidance: tuple[float, float, float] | None = None
    times: tuple[float, ...] | None = None

    @property
    def num_evaluations(self) -> int:
        """Evaluations of the U-Net for one image, without those of guidance."""
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
    *(Way("multistep, deep level at every second step", steps, deep_every=2) for steps in (8, 6)),
    Way("multistep, deep level and ControlNet at every second step", 8, every=2, deep_every=2),
)
SCALE = 2.0
GUIDED = (
    Way("multistep, guidance 2", 6, guidance=(SCALE, 0.0, 1.0)),
    *(
        Way(f"multistep, guidance 2 from {high} to {low}", 6, guidance=(SCALE, low, high))
        for low, high in ((0.0, 0.5), (0.25, 0.75), (0.5, 1.0))
    ),
    Way("multistep, no guidance", 6),
)
"""Compared with guidance at all times."""


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


@contextmanager
def reuse_deep_features(unet: Any, every: int) -> Iterator[None]:
    """Evaluate a U-Net's levels below the first at every so many calls only; its last level takes what they gave."""
    whole, last, calls, kept = unet.forward, unet.up_blocks[-1], 0, None

    def keep(_: nn.Module, __: Any, named: dict[str, Any]) -> None:
        nonlocal kept
        kept = named["hidden_states"]

    def shallow(x: Tensor, timesteps: Tensor, **named: Any) -> Tensor:
        emb = unet._get_time_and_class_embedding(x, timesteps, named.get("class_labels"))
        emb = unet._get_input_embeddings(emb, None, None, named.get("spacing_tensor"))
        first = unet.conv_in(x)
        _, skips = unet.down_blocks[0](hidden_states=first, temb=emb, context=None)
        skips = [first, *skips][: len(last.resnets)]
        residuals = named.get("down_block_additional_residuals") or ()
        skips = [skip + residual for skip, residual in zip(skips, residuals, strict=False)]
        found: Tensor = unet.out(last(hidden_states=kept, res_hidden_states_list=skips, temb=emb, context=None))
        return found

    def forward(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return whole(*arguments, **named) if (calls - 1) % every == 0 else shallow(*arguments, **named)

    hook = last.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with mock.patch.object(unet, "forward", forward):
            yield
    finally:
        hook.remove()


@contextmanager
def guide(pipeline: Pipeline, scale: float, low: float, high: float) -> Iterator[None]:
    """Guide away from the map without lesions from time ``high`` to ``low``; the networks are evaluated twice then."""
    predictor, conditions_of, healthy = sampling._predictor, Pipeline._conditions_of, None

    def remember(self: Pipeline, label_maps: Any, grid: Grid) -> Any:
        nonlocal healthy
        without = [
            remove_lesions(label_map, self.bundle.vocabulary, spacing_mm=grid.spacing_mm) for label_map in label_maps
        ]
        healthy = conditions_of(self, np.stack(without), grid)
        return conditions_of(self, label_maps, grid)

    def guided(networks: Any, conditions: Any, embed_once: bool) -> Any:
        assert healthy is not None
        drawn = predictor(networks, conditions, embed_once)
        plain = predictor(networks, replace(conditions, label_bits=healthy.label_bits), embed_once)

        def predict(latent: Tensor, timesteps: Tensor) -> Tensor:
            wanted = drawn(latent, timesteps)
            if not low <= float(timesteps[0]) / networks.scheduler.num_train_timesteps <= high:
                return wanted
            base = plain(latent, timesteps)
            return base + scale * (wanted - base)

        return predict

    with mock.patch.object(sampling, "_predictor", guided), mock.patch.object(Pipeline, "_conditions_of", remember):
        yield


def change_package(way: Way, pipeline: Pipeline) -> list[AbstractContextManager[Any]]:
    """What must be in force while a way draws."""
    spread, networks = flow_solvers.spread_times, pipeline.networks

    def moved(*arguments: Any) -> list[float]:
        if way.times is not None:
            return list(way.times)
        return [way.shift * time / (1 + (way.shift - 1) * time) for time in spread(*arguments)]

    is_moved = way.shift != 1.0 or way.times is not None
    return [
        nullcontext()
        if isinstance(way.solver, str)
        else mock.patch.dict(flow_solvers._SOLVERS, {"multistep": way.solver}),
        mock.patch.object(sampling, "spread_times", moved) if is_moved else nullcontext(),
        nullcontext() if way.every == 1 else reuse_residuals(networks.controlnet, way.every),
        nullcontext() if way.deep_every == 1 else reuse_deep_features(networks.diffusion_unet, way.deep_every),
        nullcontext() if way.guidance is None else guide(pipeline, *way.guidance),
    ]


def paint(painter: BundlePainter, task: PaintTask, way: Way) -> NDArray[np.float32]:
    """Draw a task in a way."""
    steps = Sampling(way.num_steps, "euler" if way.solver == "euler" else "multistep")
    with ExitStack() as changes:
        for change in change_package(way, painter.pipeline):
            changes.enter_context(change)
        return replace(painter, sampling=steps).paint(task)


def measure(
    painter: BundlePainter, tasks: Sequence[PaintTask], ways: Sequence[Way], converged: Way
) -> list[dict[str, Any]]:
    """Difference to the converged image and processor seconds of every way."""
    goals = [paint(painter, task, converged) for task in tasks]
    rows = []
    for way in ways:
        started = process_time()
        drawn = [paint(painter, task, way) for task in tasks]
        seconds = (process_time() - started) / len(tasks)
        error = float(np.mean([differ(*each) for each in zip(drawn, goals, tasks, strict=True)]))
        row = {"way": way.title, "num_steps": way.num_steps, "num_evaluations": way.num_evaluations}
        rows.append({**row, "error_hu": error, "processor_seconds": seconds})
    return rows


def differ(image: NDArray[np.float32], goal: NDArray[np.float32], task: PaintTask) -> float:
    """Root mean square of the difference over what is drawn, HU."""
    return float(np.sqrt(np.mean((image - goal)[task.hidden] ** 2)))


def search_times(painter: BundlePainter, tasks: Sequence[PaintTask], converged: Way, *, num_steps: int = 4) -> Way:
    """Move the times of so many steps, one after the other, as long as images of the tasks come nearer."""
    goals = [paint(painter, task, converged) for task in tasks]

    def error_of(times: Sequence[float]) -> float:
        way = Way("", num_steps, times=tuple(times))
        return sum(differ(paint(painter, task, way), goal, task) for task, goal in zip(tasks, goals, strict=True))

    seen: list[list[float]] = []
    spread = flow_solvers.spread_times

    def see(*arguments: Any) -> list[float]:
        seen.append(spread(*arguments))
        return seen[-1]

    with mock.patch.object(sampling, "spread_times", see):
        paint(painter, tasks[0], Way("", num_steps))
    best, length = seen[0], 0.06
    least = error_of(best)
    while length > 0.02:
        has_moved = False
        for place in range(1, num_steps):
            for moved in (best[place] - length, best[place] + length):
                tried = [*best[:place], moved, *best[place + 1 :]]
                if tried == sorted(tried, reverse=True) and (error := error_of(tried)) < least:
                    best, least, has_moved = tried, error, True
        length = length if has_moved else length / 2
    title = f"multistep, times {' '.join(f'{time:.2f}' for time in best)}, searched"
    return Way(title, num_steps, times=tuple(best))


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
    parser.add_argument("--only", default="", metavar="REGEX", help="ways by their titles")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    from maisi_aug.bundle_spec.bundle import load_bundle

    bundle = load_bundle(options.bundle)
    painter = replace(open_bundle_painter(bundle, "cpu"), method="replace")
    tasks = record_tasks(painter, options.into, options.labels, options.num)
    ways = [way for way in WAYS if re.search(options.only, way.title)]
    converged = Way("", CONVERGED_STEPS)
    half = len(tasks) // 2
    searched = [search_times(painter, tasks[:half], converged)] if half and re.search(options.only, "searched") else []
    rows = measure(painter, tasks, ways, converged)
    # searched on the first half, judged by the second
    rows += measure(painter, tasks[half:], [Way("multistep, second half", 4), *searched], converged) if searched else []
    guided = [way for way in GUIDED if re.search(options.only, way.title)]
    rows += measure(painter, tasks, guided, replace(GUIDED[0], num_steps=CONVERGED_STEPS)) if guided else []
    document = {"measurement": "flow_solvers", "bundle": bundle.name, "num_tasks": len(tasks), "rows": rows}
    save_results(options.out, "flow_solvers", document, to_report(document))
    sys.stdout.write(to_report(document))


if __name__ == "__main__":
    main()
