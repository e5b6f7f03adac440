"""How many steps a run takes and by which solver: those requested, or the fewest that were proven. Needs no torch.

A proof holds for the weights that it was made with: it carries their hash, and is passed over where they have changed.
"""

from __future__ import annotations

import hashlib
import json

from maisi_aug.bundle_spec.bundle import BUNDLE_FILE, Bundle, load_bundle, reference_of
from maisi_aug.bundle_spec.schema import StepProof, with_proofs
from maisi_aug.bundle_spec.solvers import (
    AUTO,
    PLAIN_SOLVER,
    DrawingCommand,
    Sampling,
    SolverName,
    Steps,
)
from maisi_aug.errors import BundleError, RecipeError, VolumeError
from maisi_aug.system.whole_files import write_whole


def choose_sampling(
    bundle: Bundle,
    num_inference_steps: Steps | None,
    solver: SolverName | None,
    *,
    command: DrawingCommand = "synthesize",
    is_guided: bool = False,
) -> Sampling:
    """Decide on steps and solver.

    Args:
        bundle: Bundle that draws.
        num_inference_steps: A number, ``auto`` for the proven one, None for the bundle's full number.
        solver: A solver of a rectified flow; None for the usual one, or with ``auto`` the proven one.
        command: What the images are drawn for.
        is_guided: Whether guidance is used, which nothing is proven of.

    Raises:
        RecipeError: For a number of steps or a solver that the bundle cannot take, or a solver next to ``auto``.
    """
    takes_fewer = command == "synthesize"
    if num_inference_steps != AUTO:
        chosen = solver or PLAIN_SOLVER
        require_solver(bundle, chosen)
        return Sampling(bundle.choose_steps(num_inference_steps, takes_fewer=takes_fewer), chosen)
    if solver is not None:
        raise RecipeError(
            f"solver: --steps auto chooses the solver, too, found '{solver}'. Leave --solver out, or give a number of "
            "steps."
        )
    proof = None if is_guided else find_proof(bundle, command)
    if proof is None:
        return Sampling(bundle.choose_steps(None, takes_fewer=takes_fewer), is_auto=True)
    return Sampling(proof.num_inference_steps, proof.solver, is_auto=True)


def require_solver(bundle: Bundle, solver: SolverName) -> None:
    """Raise unless a solver can be used with a bundle's networks.

    Args:
        bundle: Bundle that draws.
        solver: ``euler``, which every bundle takes, or ``multistep``, which needs a rectified flow.

    Raises:
        RecipeError: The bundle is a DDPM one, which has samplers of its own.
    """
    if bundle.is_ddpm and solver != PLAIN_SOLVER:
        raise RecipeError(
            f"solver: '{solver}' can only be used with a rectified flow, and bundle '{bundle.name}' is a DDPM one. "
            "Leave --solver out."
        )


def find_proof(bundle: Bundle, command: DrawingCommand) -> StepProof | None:
    """Return the proof that fewer steps draw the same, the one with the fewest steps.

    Args:
        bundle: Bundle with the proofs of its ``bundle.yaml``.
        command: ``synthesize`` or ``insert``, for which the steps were proven.

    Returns:
        The proof; None without one for the command and the bundle's present weights.
    """
    proofs = [proof for proof in bundle.spec.proven_steps if proof.command == command]
    valid = [proof for proof in proofs if proof.weights == hash_weights(bundle)]
    return min(valid, key=lambda proof: proof.num_inference_steps, default=None)


def warn_of_auto(
    bundle: Bundle, sampling: Sampling, *, command: DrawingCommand = "synthesize", is_guided: bool = False
) -> tuple[str, ...]:
    """Return a warning if ``--steps auto`` has to take the full number of steps.

    Args:
        bundle: Bundle that draws.
        sampling: Steps and solver that were chosen, and whether ``auto`` chose them.
        command: ``synthesize`` or ``insert``.
        is_guided: Whether a guidance scale above 0 is used, for which nothing is proven.

    Returns:
        One sentence with the reason; empty if fewer steps are taken, or ``auto`` was not requested.
    """
    if not sampling.is_auto or (not is_guided and find_proof(bundle, command) is not None):
        return ()
    if is_guided:
        reason = "fewer are only proven without guidance"
    elif any(proof.command == command for proof in bundle.spec.proven_steps):
        reason = "fewer were proven with other weights"
    else:
        reason = f"no fewer are proven for '{command}'"
    advice = "" if is_guided else f" To prove fewer: maisi-aug bundles prove-steps {reference_of(bundle)}"
    return (f"--steps auto: bundle '{bundle.name}' takes its full {sampling.num_steps} steps: {reason}.{advice}",)


def hash_weights(bundle: Bundle) -> str:
    """Return a SHA-256 over what makes an image of noise: weights, definitions, scheduler, scale factor.

    Raises:
        BundleError: A network has no weights, or the base cannot be used.
    """
    spec = bundle.spec
    content = {
        "weights": {role: bundle.owner_of(role).spec.weights[role].sha256 for role in bundle.image_roles},
        "networks": {role: bundle.definition(role) for role in bundle.image_roles},
        "scheduler": spec.scheduler,
        "scale_factor": spec.scale_factor,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()


def store_proof(bundle: Bundle, proof: StepProof) -> Bundle:
    """Write a proof into ``bundle.yaml`` in place of earlier ones for the same command; the rest keeps its bytes.

    Args:
        bundle: Bundle whose file is changed, whole or not at all.
        proof: Proof to add.

    Returns:
        The bundle as it is now, with the same fingerprint.

    Raises:
        BundleError: The file cannot be written, or does not end with a line break.
    """
    path = bundle.path / BUNDLE_FILE
    kept = [earlier for earlier in bundle.spec.proven_steps if earlier.command != proof.command]
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        raise BundleError(f"{path}: must end with a line break before a proof can be added. Add one.")
    try:
        write_whole(path, with_proofs(content, [*kept, proof]))
    except VolumeError as error:
        raise BundleError(
            f"Bundle '{bundle.name}': the proof cannot be added to {path}: {error} Copy the bundle with 'maisi-aug "
            "bundles convert', or run with --no-store."
        ) from None
    return load_bundle(bundle.path)
