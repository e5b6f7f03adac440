"""Shell completion of labels, bundles, recipes, presets and datasets. Nothing here fails or imports anything heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import wraps

import typer

from maisi_aug.errors import MaisiAugError
from maisi_aug.vocabulary.labels import FULL_VOCABULARY, Label, Vocabulary

Offer = tuple[str, str]
"""A value and its description."""
Complete = Callable[[typer.Context, str], list[Offer]]


def _offering(find: Callable[[typer.Context, str], Iterable[Offer]]) -> Complete:
    """A completion that offers what begins with the typed text, and nothing where something is wrong."""

    @wraps(find)
    def complete(ctx: typer.Context, incomplete: str) -> list[Offer]:
        try:
            return [offer for offer in find(ctx, incomplete) if offer[0].startswith(incomplete)]
        except (MaisiAugError, OSError):
            return []

    return complete


@_offering
def complete_labels(ctx: typer.Context, incomplete: str) -> Iterator[Offer]:
    """Yield completions of ``--labels``: names without spaces; after ``+`` those of the next lesion."""
    head, plus, last = incomplete.rpartition("+")
    for name, what in _spell_labels(_vocabulary_of(ctx), last, kinds=("tumor", "organ")):
        yield f"{head}{plus}{name}", what


@_offering
def complete_anatomy(ctx: typer.Context, incomplete: str) -> Iterator[Offer]:
    """Yield completions of ``--anatomy``: label names joined by commas."""
    head, comma, last = incomplete.rpartition(",")
    for name, what in _spell_labels(_vocabulary_of(ctx), last, kinds=("organ", "tumor")):
        yield f"{head}{comma}{name}", what


@_offering
def complete_bundles(ctx: typer.Context, incomplete: str) -> Iterator[Offer]:
    """Return completions of ``--bundle``: installed bundles."""
    from maisi_aug.bundle_spec.bundle import list_bundles

    return ((bundle.name, bundle.spec.description) for bundle in list_bundles())


@_offering
def complete_known_bundles(ctx: typer.Context, incomplete: str) -> Iterator[Offer]:
    """Return completions of ``bundles pull``: bundles that can be downloaded."""
    from maisi_aug.bundle_spec.known_bundles import known_bundles

    return ((name, known.description) for name, known in known_bundles().items())


@_offering
def complete_recipes(ctx: typer.Context, incomplete: str) -> Iterator[Offer]:
    """Return completions of ``synthesize --recipe``: cohort recipes of the package."""
    from maisi_aug.cohort.recipe_files import list_recipes

    return ((info.name, info.summary) for info in list_recipes())


@_offering
def complete_training_recipes(ctx: typer.Context, incomplete: str) -> Iterator[Offer]:
    """Return completions of ``train --recipe``: training recipes of the package."""
    from maisi_aug.cohort.recipe_files import list_training_recipes

    return ((info.name, info.summary) for info in list_training_recipes())


@_offering
def complete_insertion_recipes(ctx: typer.Context, incomplete: str) -> Iterator[Offer]:
    """Return completions of ``insert --recipe``: recipes for lesions in the user's own CTs."""
    from maisi_aug.cohort.recipe_files import list_insertion_recipes

    return ((info.name, info.summary) for info in list_insertion_recipes())


@_offering
def complete_all_recipes(ctx: typer.Context, incomplete: str) -> Iterator[Offer]:
    """Yield completions of the command ``recipes``: recipes of all kinds."""
    yield from complete_recipes(ctx, incomplete)
    yield from complete_insertion_recipes(ctx, incomplete)
    yield from complete_training_recipes(ctx, incomplete)


@_offering
def complete_presets(ctx: typer.Context, incomplete: str) -> Iterator[Offer]:
    """Yield completions of ``--preset``: presets of the bundle on the command line, or of all bundles."""
    from maisi_aug.bundle_spec.bundle import load_bundle
    from maisi_aug.bundle_spec.presets import list_all_presets, list_presets

    named = _name_bundle(ctx)
    if named:
        presets = list_presets(load_bundle(named).spec.grid_limits)
    else:
        presets = tuple(preset for preset, _ in list_all_presets())
    for preset in presets:
        shape = "x".join(map(str, preset.shape))
        yield preset.name, f"{shape} at {'x'.join(f'{step:g}' for step in preset.spacing_mm)} mm"


@_offering
def complete_datasets(ctx: typer.Context, incomplete: str) -> Iterator[Offer]:
    """Yield completions of datasets: names of nnU-Net raw datasets; without a match, the shell completes paths."""
    from maisi_aug.banks.raw_datasets import RAW_VARIABLE, list_datasets

    return ((folder.name, f"raw dataset in ${RAW_VARIABLE}") for folder in list_datasets())


@_offering
def complete_steps(ctx: typer.Context, incomplete: str) -> Iterator[Offer]:
    """The proven number of steps; any other number is typed."""
    yield "auto", "the fewest steps that were proven for the bundle"


@_offering
def complete_modalities(ctx: typer.Context, incomplete: str) -> Iterator[Offer]:
    """Yield completions of ``--modality``: modalities of the bundle on the command line, or of all bundles."""
    from maisi_aug.bundle_spec.bundle import load_bundle
    from maisi_aug.vocabulary.modalities import CT_MODALITIES, MODALITY_CODES, MR_MODALITIES

    named = _name_bundle(ctx)
    names = load_bundle(named).spec.modalities if named else (*CT_MODALITIES, *MR_MODALITIES)
    return ((name, f"NVIDIA's code {MODALITY_CODES[name]}") for name in names)


def is_given(ctx: typer.Context, name: str) -> bool:
    """Whether a parameter was given on the command line, in contrast to its default."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _name_bundle(ctx: typer.Context) -> str | None:
    return ctx.params["bundle"] if is_given(ctx, "bundle") else None


def _vocabulary_of(ctx: typer.Context) -> Vocabulary:
    """The vocabulary of the bundle that the command line names; the embedded bundle's without one."""
    from maisi_aug.bundle_spec.bundle import load_bundle

    named = _name_bundle(ctx)
    return load_bundle(named).vocabulary if named else FULL_VOCABULARY


def _spell_labels(vocabulary: Vocabulary, typed: str, *, kinds: tuple[str, ...]) -> Iterator[Offer]:
    """Names that begin with what was typed, kind by kind; aliases only once something was typed."""
    mark = " " if " " in typed else "_"  # whoever types a space has opened a quotation

    def spell(label: Label) -> Iterator[Offer]:
        for name in (label.name, *(label.aliases if typed else ())):
            spelt = name.replace(" ", mark)
            if spelt.lower().startswith(typed.lower()):
                what = f"{label.kind} {label.id}" + ("" if name == label.name else f", {label.name}")
                yield typed + spelt[len(typed) :], what

    for kind in kinds:
        for label in vocabulary:
            if label.kind == kind:
                yield from spell(label)
