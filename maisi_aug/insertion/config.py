"""What a cohort of inserted lesions is made of, and its plan; read and checked before any image is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maisi_aug import __version__
from maisi_aug.bundle_spec.bundle import Bundle, load_bundle
from maisi_aug.cohort.plan import CohortPlan, plan_from_texts
from maisi_aug.errors import RequestError
from maisi_aug.insertion.backgrounds import Backgrounds, find_backgrounds
from maisi_aug.insertion.painting import TEXTURES, Texture
from maisi_aug.insertion.request import InsertConfig
from maisi_aug.preparation.mapping import parse_rule
from maisi_aug.system.seeds import numpy_generator

TEXTURE_SHARES: dict[Texture, float] = {"solid": 0.85, "part-solid": 0.04, "ground-glass": 0.11}
"""Of the nodules of LIDC-IDRI, by its readers' scores."""


@dataclass(frozen=True)
class ResolvedInsertion:
    """A cohort of inserted lesions ready to be made.

    Attributes:
        config: As it was asked for.
        configuration: The same with paths made absolute, as ``cohort.yaml`` has it.
        bundle: Whose vocabulary and networks are used.
        backgrounds: The CTs.
        plan: Which lesions each case gets.
    """

    config: InsertConfig
    configuration: Mapping[str, Any]
    bundle: Bundle
    backgrounds: Backgrounds
    plan: CohortPlan

    @property
    def painter_name(self) -> str:
        """For the manifest: the bundle that draws, or the procedural painter."""
        return self.bundle.name if self.config.painter == "network" else "procedural painter"

    def to_document(self) -> dict[str, Any]:
        """The content of ``cohort.yaml``: no times, no machine."""
        names = self.backgrounds.vocabulary.name_of
        drawn_by = {"name": self.bundle.name, "fingerprint": self.bundle.fingerprint, "licence": self.bundle.licence}
        return {
            "configuration": dict(self.configuration),
            **({"bundle": drawn_by} if self.config.painter == "network" else {}),
            "mask_bank": self.backgrounds.describe(),
            "requested": [{"id": label_id, "name": names(label_id)} for label_id in self.plan.requested_ids],
            "size_distributions": {},
            "maisi_aug": __version__,
        }

    def choose_background(self, case_index: int, attempt: int) -> int:
        """Which CT an attempt goes into: they take turns in a random order, and a failed attempt takes the next."""
        count = len(self.backgrounds.cases)
        order = numpy_generator(self.config.seed, f"backgrounds/{case_index // count}").permutation(count)
        return int(order[(case_index + attempt) % count])

    def draw_texture(self, seed: int) -> Texture:
        """The texture of a lesion: the one asked for, or one by LIDC-IDRI's shares."""
        if self.config.texture is not None:
            return self.config.texture
        shares = [TEXTURE_SHARES[texture] for texture in TEXTURES]
        return TEXTURES[int(numpy_generator(seed, "texture").choice(len(TEXTURES), p=shares))]


def resolve_insertion(config: InsertConfig) -> ResolvedInsertion:
    """List the CTs and plan the cohort.

    Raises:
        PreparationError: The CTs or their labels cannot be used.
        BundleError: There is no such bundle.
        RequestError, VocabularyError: A request cannot be met, or asks for an organ.
    """
    bundle = load_bundle(config.bundle)
    backgrounds = find_backgrounds(
        Path(config.into),
        vocabulary=bundle.vocabulary,
        labels=None if config.into_labels is None else Path(config.into_labels),
        organs=[Path(folder) for folder in config.into_organs],
        rules=[parse_rule(text) for text in config.map],
        organ_labels=config.organ_labels,
    )
    plan = plan_from_texts(
        config.labels, vocabulary=backgrounds.vocabulary, num_cases=config.num_cases, seed=config.seed
    )
    _require_lesions(plan, backgrounds)
    configuration = {
        **config.model_dump(mode="json"),
        "into": _absolute(config.into),
        "into_labels": config.into_labels and _absolute(config.into_labels),
        "into_organs": list(map(_absolute, config.into_organs)),
        "bundle": _absolute(config.bundle) if Path(config.bundle).is_dir() else config.bundle,
    }
    return ResolvedInsertion(config, configuration, bundle, backgrounds, plan)


def _require_lesions(plan: CohortPlan, backgrounds: Backgrounds) -> None:
    vocabulary = backgrounds.vocabulary
    organs = sorted({label_id for case in plan.cases for label_id in case.required_ids})
    organs += sorted({lesion.label_id for case in plan.cases for lesion in case.lesions} - set(vocabulary.tumor_ids))
    if organs:
        raise RequestError(
            f"--labels: expected lesions, which are drawn into the CTs, found '{vocabulary.name_of(organs[0])}'. "
            f"Name lesions such as 'lung nodule:6-20mm'."
        )


def _absolute(text: str) -> str:
    return str(Path(text).resolve())
