"""The request for a cohort of inserted lesions, on the command line and in Python. Nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from maisi_aug.bundle_spec.solvers import SolverName, Steps
from maisi_aug.cohort.recipe_files import read_insertion_recipe
from maisi_aug.errors import RecipeError
from maisi_aug.preparation.request import OrganLabels
from maisi_aug.system.models import Option, PathText, StrictModel, explain_problems

Attachment = Literal["free", "surface"]
"""Whether a lesion lies inside of its host, or touches its surface: juxta-pleural, in the lung."""
_WHAT, _INTO, _RUN = "What to insert", "Into what", "Run"


class InsertConfig(StrictModel, strict=True, use_attribute_docstrings=True):
    """Everything that a user can request of a cohort of inserted lesions; it determines the cohort's bytes."""

    into: Annotated[PathText, Field(min_length=1), Option(takes=Path, complete="datasets", panel=_INTO, everyday=True)]
    """A CT, a folder of CTs, or an nnU-Net dataset."""
    into_labels: Annotated[PathText | None, Option(takes=Path, panel=_INTO, everyday=True)] = None
    """Folder of label files named after the CTs, with host organs and real lesions; real lesions are kept."""
    into_organs: Annotated[tuple[PathText, ...], Option(takes=list[Path], panel=_INTO, everyday=True)] = ()
    """Folder of organ labels, such as TotalSegmentator's; may repeat."""
    organ_labels: Annotated[OrganLabels, Option(panel=_INTO)] = "auto"
    """Meaning of the ids in organ label maps."""
    map: Annotated[tuple[str, ...], Option(metavar="LABEL=NAME", panel=_INTO)] = ()
    """Meaning of a label, as in 'maisi-aug prepare'; may repeat."""
    labels: Annotated[
        tuple[str, ...],
        Field(min_length=1),
        Option(metavar="NAME[:SIZE][@SHARE]", complete="labels", panel=_WHAT, everyday=True),
    ]
    """Lesion with a size: 6-20mm, 4mL, 0.3 (percentile), 8-12mmx2; may repeat; '+' puts several into one case."""
    num_cases: Annotated[PositiveInt, Option("-n", panel=_WHAT, everyday=True)] = 4
    """Number of cases; the CTs are used in turn."""
    seed: Annotated[int, Field(ge=0), Option(panel=_WHAT, everyday=True)] = 0
    """Random seed of the cohort."""
    texture: Annotated[Literal["solid", "part-solid", "ground-glass"] | None, Option(panel=_WHAT, everyday=True)] = None
    """Texture of lung lesions (default: mixed as in patients)."""
    place: Annotated[Attachment | None, Option(panel=_WHAT, everyday=True)] = None
    """Position of the lesion: inside the host organ, or at its surface (juxta-pleural in the lung) (default: mixed)."""
    twins: Annotated[str | None, Option(metavar="FACTOR=VALUE,...", panel=_WHAT)] = None
    """One case per value for each of the -n places, all else equal: size=6mm,10mm,20mm, texture=, place=, or
    contrast=100,300 (HU); for 'evaluate detection-curve'.
    """
    painter: Annotated[Literal["auto", "procedural", "network"], Option(panel=_WHAT, everyday=True)] = "auto"
    """How lesions are drawn: by the networks of a bundle that knows them, or without weights (procedural). auto prefers
    networks.
    """
    bundle: Annotated[
        PathText | None, Field(min_length=1), Option(metavar="NAME|FOLDER", complete="bundles", panel=_WHAT)
    ] = None
    """Bundle whose networks draw the lesions and whose vocabulary names them (default: the embedded one for lung
    nodules).
    """
    num_inference_steps: Annotated[
        Steps | None, Option("--steps", metavar="N|auto", takes=str, complete="steps", panel=_WHAT)
    ] = None
    """Sampling steps of the networks (default: the bundle's); auto takes the fewest that were proven for the bundle by
    'maisi-aug bundles prove-steps'.
    """
    solver: Annotated[SolverName | None, Option(panel=_WHAT)] = None
    """Solver of a rectified flow: euler draws as MONAI does, multistep needs fewer steps (default: euler; with --steps
    auto the proven one).
    """
    max_attempts: Annotated[PositiveInt, Option(panel=_RUN)] = 5
    """Attempts per case before it is rejected; an existing cohort can be continued with more."""
    size_tolerance: Annotated[float, Field(gt=0, le=1), Option(panel=_RUN)] = 0.10
    """Largest relative error of a lesion's volume; two voxels are always allowed."""


def build_insertion(values: Mapping[str, Any], *, source: str = "insert") -> InsertConfig:
    """Validate the fields of an insertion request.

    Args:
        values: Field -> value, as in YAML.
        source: Name of the recipe or function in messages.

    Raises:
        RecipeError: The message lists every problem with its place.
    """
    # YAML has lists where the fields hold tuples.
    held = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    advice = "Set it in the recipe or as an option."
    with explain_problems(InsertConfig, source, RecipeError, kind="recipe", if_missing=advice):
        return InsertConfig.model_validate(held)


def load_insertion_recipe(name_or_path: str, flags: Mapping[str, Any]) -> InsertConfig:
    """Read a recipe for ``insert``, override it with options, and validate the result.

    Args:
        name_or_path: Name of a packaged recipe, or a YAML file.
        flags: Field -> value of the option.

    Raises:
        RecipeError: The message lists every problem with its place.
    """
    return build_insertion({**read_insertion_recipe(name_or_path), **flags}, source=name_or_path)
