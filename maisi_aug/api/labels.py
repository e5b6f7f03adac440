"""Labels that can be requested, as ``labels`` lists them for the command line and for Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from maisi_aug.errors import VocabularyError
from maisi_aug.vocabulary.labels import FULL_VOCABULARY, Label, Vocabulary, lookup_words
from maisi_aug.vocabulary.sizes import SizeDistribution, reference_distribution, reference_labels

LabelChoice = Literal["organ", "tumor", "slot"]


def labels(
    find: str | None = None, *, kind: LabelChoice | None = None, bundle: str | Path | None = None
) -> tuple[Label, ...]:
    """Return the labels that can be requested; ``maisi-aug labels``.

    >>> import maisi_aug as ma
    >>> [(label.id, label.name) for label in ma.labels("gallbladder")]
    [(10, 'gallbladder')]

    Args:
        find: Return only labels that have this text in their name or an alias, or this id.
        kind: Return only ``organ``, ``tumor`` or ``slot`` labels; slots are ids that fine-tuning may give a meaning.
        bundle: Name or folder of the bundle whose meanings of such ids are listed; ``phantom-ct`` when not given.

    Returns:
        Labels in the order of their ids, without the background, each with ``id`` (its value in label maps), ``name``,
        ``kind``, ``hosts`` (ids of the organs in which a tumour may grow) and ``aliases``.

    Raises:
        VocabularyError: No label fits; the message offers the closest names.
        BundleError: There is no such bundle.
    """
    return tuple(select_labels(load_vocabulary(bundle)[0], find=find, kind=kind))


def load_vocabulary(bundle: str | Path | None) -> tuple[Vocabulary, dict[str, SizeDistribution]]:
    """Return the vocabulary of a bundle, and label name -> size distribution that its percentiles refer to.

    Args:
        bundle: Name or folder; None for ``phantom-ct``.

    Raises:
        BundleError: There is no such bundle.
    """
    known = {name: reference_distribution(name) for name in reference_labels()}
    if bundle is None:
        return FULL_VOCABULARY, known
    # Imported here because reading a bundle needs packages that would double the start-up of a plain listing.
    from maisi_aug.bundle_spec.bundle import load_bundle

    loaded = load_bundle(bundle)
    return loaded.vocabulary, {**known, **loaded.distributions}


def select_labels(
    vocabulary: Vocabulary,
    *,
    find: str | None = None,
    kind: LabelChoice | None = None,
    sizes: Mapping[str, SizeDistribution] | None = None,
) -> list[Label]:
    """Return the labels of a vocabulary that match every option.

    Args:
        vocabulary: All labels.
        find: Part of a name or alias, or an id; None for any.
        kind: ``organ``, ``tumor`` or ``slot``; None for any.
        sizes: Label name -> size distribution, to return only labels in it; None for any.

    Returns:
        Labels in the order of the vocabulary, without the background.

    Raises:
        VocabularyError: No label matches.
    """
    found = [label for label in vocabulary if label.kind != "background"]
    if kind is not None:
        found = [label for label in found if (label.is_slot if kind == "slot" else label.kind == kind)]
    if sizes is not None:
        found = [label for label in found if label.name in sizes]
    if find is not None:
        found = [label for label in found if _matches(label, find)]
    if not found:
        if find is not None and not any(_matches(label, find) for label in vocabulary):
            vocabulary.id_of(find)  # raises with the closest names
        raise VocabularyError("No label matches all options. Leave an option out.")
    return found


def _matches(label: Label, find: str) -> bool:
    """Whether the text is the label's id, or each of its words is part of one name."""
    words = lookup_words(find)
    names = (" ".join(lookup_words(name)) for name in (label.name, *label.aliases))
    return find.strip() == str(label.id) or (bool(words) and any(all(w in name for w in words) for name in names))
