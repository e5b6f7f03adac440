"""Proving that fewer sampling steps draw the same, for the command line and for Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from maisi_aug.api.displays import Progress, listen_to_run
from maisi_aug.api.engines import HERE, Where
from maisi_aug.bundle_spec.bundle import Bundle, load_bundle
from maisi_aug.bundle_spec.proven_steps import hash_weights, require_solver, store_proof
from maisi_aug.bundle_spec.schema import StepProof
from maisi_aug.bundle_spec.solvers import DEFAULT_PROOF_MAPS, PLAIN_SOLVER, DrawingCommand, Sampling, SolverName
from maisi_aug.errors import RequestError
from maisi_aug.generate.driver import Listener

if TYPE_CHECKING:
    from maisi_aug.cohort.manifest import AttemptRecord
    from maisi_aug.evaluation.cohort.step_proof import StepsReport

FLOW_SOLVER: Final[SolverName] = "multistep"
"""Solver for fewer steps of a rectified flow unless another is requested."""
TRIED_SHARES: Final = (2 / 3, 1 / 2, 1 / 3, 1 / 4)
"""Of the full number of steps."""


@dataclass(frozen=True)
class MapRequest:
    """Maps that are drawn several times.

    Attributes:
        bundle: Bundle that draws.
        labels: Lesions and organs, as for ``synthesize`` or ``insert``; those of the recipe when empty.
        into: CTs to draw lesions into; None for those of a recipe for insertion, and for images of label maps.
        recipe: A recipe, or the ``cohort.yaml`` of a cohort, to start from.
        num_maps: Number of maps.
        seed: Random seed of the maps and of the noise.
    """

    bundle: Bundle
    labels: tuple[str, ...]
    into: Path | None
    recipe: str | None
    num_maps: int
    seed: int

    @property
    def command(self) -> DrawingCommand:
        """Command that draws them."""
        from maisi_aug.cohort.recipe_files import is_for_insertion

        is_inserted = self.into is not None or (self.recipe is not None and is_for_insertion(self.recipe))
        return "insert" if is_inserted else "synthesize"

    @property
    def drawn(self) -> str:
        """The maps in a few words, without paths."""
        words = [f"{self.num_maps} maps", f"seed {self.seed}", *self.labels]
        return ", ".join([*words, *([] if self.recipe is None else [f"recipe {Path(self.recipe).name}"])])

    def draw(self, sampling: Sampling, folder: Path, where: Where, listener: Listener) -> Sequence[AttemptRecord]:
        """Draw all maps once, or continue, and return the first attempt at each with the figures of its gates.

        Args:
            sampling: Steps and solver to draw with.
            folder: Folder of the cohort, new or one that the same call began.
            where: Devices that draw.
            listener: Object whose methods are called as the run proceeds.

        Returns:
            One record per map, in the order of the maps.
        """
        from maisi_aug.cohort.manifest import load_manifest

        fields: dict[str, Any] = {
            "labels": self.labels or None,
            "bundle": str(self.bundle.path),
            "num_cases": self.num_maps,
            "seed": self.seed,
            "num_inference_steps": sampling.num_steps,
            "solver": sampling.requested_solver,
            "max_attempts": 1,
        }
        if self.command == "synthesize":
            self._synthesize(fields, folder, where, listener)
        else:
            into = None if self.into is None else str(self.into)
            self._insert({**fields, "into": into, "painter": "network"}, folder, where, listener)
        return [record for record in load_manifest(folder).records if record.attempt == 0]

    def _synthesize(self, fields: Mapping[str, Any], folder: Path, where: Where, listener: Listener) -> None:
        from maisi_aug.api.synthesis import make_cohort, read_request

        request = read_request((), self.recipe, fields, source="prove_steps")
        if request.guidance_scale:
            raise RequestError(
                f"{self.recipe}: fewer steps are proven without guidance, found guidance_scale "
                f"{request.guidance_scale:g}. Take it out."
            )
        make_cohort(request, folder, where=where, listener=listener)

    def _insert(self, fields: Mapping[str, Any], folder: Path, where: Where, listener: Listener) -> None:
        from maisi_aug.api.insertion import make_insertion
        from maisi_aug.insertion.request import build_insertion, load_insertion_recipe

        given = {name: value for name, value in fields.items() if value is not None}
        if self.recipe is None:
            config = build_insertion(given, source="prove_steps")
        else:
            config = load_insertion_recipe(self.recipe, given)
        make_insertion(config, folder, where=where, listener=listener)


def prove_steps(
    bundle: str | Path,
    labels: str | Sequence[str] = (),
    *,
    out: str | Path,
    into: str | Path | None = None,
    recipe: str | Path | None = None,
    steps: Sequence[int] | None = None,
    against: int | None = None,
    solver: SolverName | None = None,
    num_maps: int = DEFAULT_PROOF_MAPS,
    seed: int = 0,
    device: str = "auto",
    devices: str | Sequence[str] | None = None,
    store: bool = True,
    progress: Progress = True,
) -> StepsReport:
    """Prove that fewer sampling steps draw the same, and store it in the bundle; ``maisi-aug bundles prove-steps``.

    The same maps are drawn from the same noise with the bundle's full number of steps and with fewer and fewer, until
    one is not equal: gates passed, contrast and texture of lesions, and HU of organs, each within its margin by two
    one-sided tests. What is there already is not drawn again. ``num_inference_steps="auto"`` uses the proof.

    Args:
        bundle: Name or folder of the bundle; with ``store`` its ``bundle.yaml`` is changed.
        labels: Lesions and organs of the maps, as for :func:`synthesize`; those of the recipe when empty.
        out: Folder that gets a cohort per number of steps, ``prove_steps.json`` and ``prove_steps.md``; new, or of an
            earlier call.
        into: CTs to draw lesions into, to prove it for :func:`insert`; a recipe may name them instead.
        recipe: A recipe, or the ``cohort.yaml`` of a cohort, that says which maps.
        steps: Numbers of steps to try, each below the full number; 2/3, 1/2, 1/3 and 1/4 of it when not given.
        against: Another full number than the bundle's, such as MAISI's 30; what is proven of it is not stored.
        solver: Solver for fewer steps of a rectified flow, ``euler`` or ``multistep``, which is used when not given.
        num_maps: Number of maps; a proof needs images of at least 40.
        seed: Random seed of the maps and of the noise.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps`` or ``xpu``.
        devices: Several devices, such as ``"cuda:0,cuda:1"``, each with a process of its own; instead of ``device``.
        store: Whether to write a proof into ``bundle.yaml``.
        progress: True for bars on a terminal or in a notebook, False for none, or a function that is called with
            ``(stage, done, total)``.

    Returns:
        The report, with ``arms``, one per number of steps that was tried, the most steps first; and ``proven``, the arm
        with the fewest steps that draw the same, or None. Its ``sampling.num_steps`` is the number.

    Raises:
        RequestError: There is no number of steps to try, or one is not below the full number.
        RecipeError: The bundle cannot take the solver or fewer steps, or the recipe is invalid.
        BundleError: The bundle was not found, or cannot be written to.
        MaisiAugError: The request cannot be met for another reason; the message is the one that the command prints.
    """
    wanted = (labels,) if isinstance(labels, str) else tuple(labels)
    found = load_bundle(bundle)
    request = MapRequest(
        found, wanted, None if into is None else Path(into), None if recipe is None else str(recipe), num_maps, seed
    )
    with listen_to_run(progress) as listener:
        return run_proof(
            request,
            Path(out),
            steps=steps,
            against=against,
            solver=solver,
            where=Where.read(device, devices),
            store=store,
            listener=listener,
        )


def run_proof(
    request: MapRequest,
    out: Path,
    *,
    steps: Sequence[int] | None = None,
    against: int | None = None,
    solver: SolverName | None = None,
    where: Where = HERE,
    store: bool = True,
    listener: Listener | None = None,
) -> StepsReport:
    """Draw the arms, compare them, write the report, and store the proof.

    Args:
        request: The maps.
        out: Folder of the cohorts and the report.
        steps: Numbers of steps to try.
        against: Another full number than the bundle's.
        solver: Solver for fewer steps.
        where: Devices.
        store: Whether to write a proof into ``bundle.yaml``.
        listener: Is notified of progress.

    Raises:
        MaisiAugError: The request is invalid, or the bundle cannot be written to.
    """
    from maisi_aug.evaluation.cohort.step_proof import REPORT_NAME, StepsReport, compare_arm
    from maisi_aug.evaluation.output.files import require_own_folder, save_results

    bundle, listener = request.bundle, listener or Listener()
    full = Sampling(bundle.choose_steps(against, takes_fewer=request.command == "synthesize"))
    arms = choose_arms(bundle, request.command, steps, solver, full=full.num_steps)
    require_own_folder(out, REPORT_NAME)
    header = {
        "bundle": bundle.name,
        "weights": hash_weights(bundle),
        "command": request.command,
        "drawn": request.drawn,
        "full_steps": full.num_steps,
    }

    def draw(sampling: Sampling) -> Sequence[AttemptRecord]:
        return request.draw(sampling, out / f"{sampling.solver}_{sampling.num_steps:03d}", where, listener)

    reference, report = draw(full), StepsReport(header)
    for sampling in arms:
        report = StepsReport(header, (*report.arms, compare_arm(reference, draw(sampling), sampling)))
        save_results(out, REPORT_NAME, report.to_json(), report.to_markdown())
        if not report.arms[-1].is_proven:
            break
    if store and counts_for_auto(report, bundle):
        store_proof(bundle, to_proof(report))
    return report


def counts_for_auto(report: StepsReport, bundle: Bundle) -> bool:
    """Whether a report proves fewer steps than the bundle's own number, which ``--steps auto`` replaces."""
    return report.proven is not None and report.header["full_steps"] == bundle.default_steps


def choose_arms(
    bundle: Bundle, command: DrawingCommand, steps: Sequence[int] | None, solver: SolverName | None, *, full: int
) -> list[Sampling]:
    """Return what to try, the most steps first.

    Args:
        bundle: Bundle that draws.
        command: Command that draws.
        steps: Numbers of steps to try; None for shares of the full number.
        solver: Solver for them; None for the usual one.
        full: Full number of steps.

    Raises:
        RequestError: A number is not below the full number, or there is none to try.
        RecipeError: The bundle cannot take a solver, or fewer steps.
    """
    chosen: SolverName = solver or (PLAIN_SOLVER if bundle.is_ddpm else FLOW_SOLVER)
    require_solver(bundle, chosen)
    if steps is None:
        steps = [number for share in TRIED_SHARES if 1 < (number := round(full * share)) < full]
    arms = [Sampling(number, chosen) for number in sorted(set(steps), reverse=True)]
    if not arms:
        raise RequestError(f"--steps: no number to try below the full {full}. Name some.")
    for arm in arms:
        if not 0 < arm.num_steps < full:
            raise RequestError(f"--steps: expected numbers below the full {full}, found {arm.num_steps}.")
        bundle.choose_steps(arm.num_steps, takes_fewer=command == "synthesize")
    return arms


def to_proof(report: StepsReport) -> StepProof:
    """Return what is stored of a report with a proven arm."""
    import torch

    from maisi_aug import __version__

    arm, head = report.proven, report.header
    assert arm is not None
    return StepProof(
        command=head["command"],
        num_inference_steps=arm.sampling.num_steps,
        solver=arm.sampling.solver,
        full_steps=head["full_steps"],
        weights=head["weights"],
        num_maps=arm.num_maps,
        drawn=head["drawn"],
        equivalences=arm.equivalences,
        versions={"maisi-aug": __version__, "torch": torch.__version__.partition("+")[0]},
    )
