"""Configuration and plan of a cohort of inserted lesions, read and checked before any image is."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from maisi_aug import __version__
from maisi_aug.bundle_spec.bundle import Bundle, embedded_bundles, load_bundle
from maisi_aug.bundle_spec.proven_steps import choose_sampling, warn_of_auto
from maisi_aug.bundle_spec.solvers import Sampling
from maisi_aug.cohort.grammar import label_names
from maisi_aug.cohort.plan import CasePlan, CohortPlan, plan_from_texts
from maisi_aug.cohort.request import without_unused
from maisi_aug.cohort.twins import ORIGIN_KEY, Twins, parse_twins, plan_twins
from maisi_aug.errors import BundleError, LesionError, MaisiAugWarning, RequestError, did_you_mean
from maisi_aug.insertion.backgrounds import Backgrounds, find_backgrounds
from maisi_aug.insertion.insert import LesionRequest
from maisi_aug.insertion.painting import TEXTURES, Texture
from maisi_aug.insertion.request import Attachment, InsertConfig
from maisi_aug.lesions.lesion import Lesion
from maisi_aug.preparation.mapping import parse_rule
from maisi_aug.system.seeds import case_seed, numpy_generator
from maisi_aug.vocabulary.hu import expected_contrast_sign
from maisi_aug.vocabulary.labels import LUNG_LOBE_IDS

ChosenPainter = Literal["procedural", "network"]
NODULE_BUNDLE, PLAIN_BUNDLE = "lung-nodule-ct", "phantom-ct"
NUM_LABEL_BITS = 8
"""Channels of a ControlNet's condition that is the label map alone."""
TEXTURE_SHARES: dict[Texture, float] = {"solid": 0.85, "part-solid": 0.04, "ground-glass": 0.11}
"""Shares of textures among the nodules of LIDC-IDRI, by its readers' scores."""


@dataclass(frozen=True)
class ResolvedInsertion:
    """A fully resolved cohort of inserted lesions, ready to be made.

    Attributes:
        config: Request as given.
        configuration: The request with absolute paths, as in ``cohort.yaml``.
        bundle: Bundle whose vocabulary and networks are used.
        backgrounds: CTs to draw into.
        plan: Lesions of each case.
        painter: Painter of the lesions.
        sampling: Number of steps and solver of the networks; None where they do not draw.
        twins: Factor that differs between the cases of a group; None if there are no groups.
    """

    config: InsertConfig
    configuration: Mapping[str, Any]
    bundle: Bundle
    backgrounds: Backgrounds
    plan: CohortPlan
    painter: ChosenPainter
    sampling: Sampling | None = None
    twins: Twins | None = None

    @property
    def painter_name(self) -> str:
        """Name of the painter in the manifest: the bundle that draws, or the procedural painter."""
        return self.bundle.name if self.painter == "network" else "procedural painter"

    def to_document(self) -> dict[str, Any]:
        """Return the content of ``cohort.yaml``, without times and machine names."""
        names = self.backgrounds.vocabulary.name_of
        drawn_by = {"name": self.bundle.name, "fingerprint": self.bundle.fingerprint, "licence": self.bundle.licence}
        return {
            "configuration": dict(self.configuration),
            **({"bundle": drawn_by} if self.painter == "network" else {}),
            "mask_bank": self.backgrounds.describe(),
            "requested": [{"id": label_id, "name": names(label_id)} for label_id in self.plan.requested_ids],
            "size_distributions": {},
            "maisi_aug": __version__,
        }

    @property
    def groups(self) -> list[tuple[CasePlan, ...]]:
        """Groups of cases that are accepted together or not at all, such as twins."""
        return [(case,) for case in self.plan.cases] if self.twins is None else self.twins.groups(self.plan)

    def seed_of(self, case: CasePlan, attempt: int) -> int:
        """Return the seed of everything random in an attempt; twins share that of their group.

        Args:
            case: Planned case.
            attempt: Number of the attempt, from 0.
        """
        if self.twins is None:
            return case_seed(self.config.seed, case.asked, case.index, attempt)
        return case_seed(self.config.seed, ORIGIN_KEY, self.twins.group_of(case.index), attempt)

    def order_backgrounds(self, case_index: int, attempt: int) -> list[int]:
        """Return the indices of the CTs in the order in which an attempt tries them.

        Cases use the CTs in turn, and each attempt after a failed one begins with the next CT.

        Args:
            case_index: Position of the case in the cohort, from 0.
            attempt: Number of the attempt, from 0.
        """
        case_index = case_index if self.twins is None else self.twins.group_of(case_index)
        count = len(self.backgrounds.cases)
        order = numpy_generator(self.config.seed, f"backgrounds/{case_index // count}").permutation(count)
        return [int(order[(case_index + attempt + further) % count]) for further in range(count)]

    def request_of(self, case: CasePlan, lesion: Lesion, *, is_lung: bool, seed: int) -> LesionRequest:
        """Return the drawing request for a lesion of a case.

        Args:
            case: Case of the plan.
            lesion: One of the case's lesions.
            is_lung: Whether the lesion grows in the lung, where it gets the texture of a nodule.
            seed: Seed of the lesion.

        Raises:
            LesionError: The twins vary the texture, but the lesion has none.
        """
        varied = {} if self.twins is None else {self.twins.factor: self.twins.value_of(case.index)}
        if "texture" in varied and not is_lung:
            raise LesionError(f"{lesion.label}: --twins texture=... needs a lesion in the lung.")
        texture = varied.get("texture") or self.config.texture or draw_texture(seed) if is_lung else "soft"
        sizes = [twin.lesions[lesion.index].requested_ml for twin in self._twins_of(case)]
        contrast_hu = float(varied["contrast"]) if "contrast" in varied else None
        sign = 1 if texture != "soft" else expected_contrast_sign(lesion.label)
        return LesionRequest(
            lesion.label_id,
            lesion.requested_ml,
            texture,  # type: ignore[arg-type]  # the values of twins were checked
            varied.get("place", self.config.place),  # type: ignore[arg-type]
            sign if contrast_hu is None else 0,
            contrast_hu,
            (min(sizes), max(sizes)),
        )

    def _twins_of(self, case: CasePlan) -> tuple[CasePlan, ...]:
        return (case,) if self.twins is None else self.twins.groups(self.plan)[self.twins.group_of(case.index)]


def draw_texture(seed: int) -> Texture:
    """Draw the texture of a lung nodule, with the frequencies of LIDC-IDRI."""
    shares = [TEXTURE_SHARES[texture] for texture in TEXTURES]
    return TEXTURES[int(numpy_generator(seed, "texture").choice(len(TEXTURES), p=shares))]


def resolve_insertion(config: InsertConfig) -> ResolvedInsertion:
    """Find the CTs of an insertion request and plan its cohort.

    Raises:
        PreparationError: The CTs or their labels cannot be used.
        BundleError: There is no such bundle.
        RequestError, VocabularyError: A label request cannot be met, or names an organ.
    """
    bundle, painter = choose_painter(config)
    sampling = _choose_sampling(config, bundle, painter)
    backgrounds = find_backgrounds(
        Path(config.into),
        vocabulary=bundle.vocabulary,
        labels=None if config.into_labels is None else Path(config.into_labels),
        organs=[Path(folder) for folder in config.into_organs],
        rules=[parse_rule(text) for text in config.map],
        organ_labels=config.organ_labels,
    )
    twins = None if config.twins is None else parse_twins(config.twins)
    if twins is None:
        plan = plan_from_texts(
            config.labels, vocabulary=backgrounds.vocabulary, num_cases=config.num_cases, seed=config.seed
        )
    else:
        _require_twins(config, twins)
        plan = plan_twins(
            config.labels, twins, vocabulary=backgrounds.vocabulary, num_groups=config.num_cases, seed=config.seed
        )
    _require_lesions(plan, backgrounds)
    is_folder = config.bundle is not None and Path(config.bundle).is_dir()
    configuration = {
        **config.model_dump(mode="json"),
        "into": _absolute(config.into),
        "into_labels": config.into_labels and _absolute(config.into_labels),
        "into_organs": list(map(_absolute, config.into_organs)),
        "painter": painter,
        "bundle": _absolute(str(config.bundle)) if is_folder else bundle.name,
        **_spell_sampling(config, sampling),
    }
    return ResolvedInsertion(config, without_unused(configuration), bundle, backgrounds, plan, painter, sampling, twins)


def _choose_sampling(config: InsertConfig, bundle: Bundle, painter: ChosenPainter) -> Sampling | None:
    """Steps and solver of the networks; None where they do not draw."""
    if painter != "network":
        return None
    sampling = choose_sampling(bundle, config.num_inference_steps, config.solver, command="insert")
    for sentence in warn_of_auto(bundle, sampling, command="insert"):
        warnings.warn(sentence, MaisiAugWarning, stacklevel=3)
    return sampling


def _spell_sampling(config: InsertConfig, sampling: Sampling | None) -> dict[str, Any]:
    """What ``auto`` stands for; what was requested otherwise stays as it is."""
    if sampling is None or not sampling.is_auto:
        return {}
    return {"num_inference_steps": sampling.num_steps, "solver": sampling.requested_solver}


def choose_painter(config: InsertConfig) -> tuple[Bundle, ChosenPainter]:
    """Return the bundle that names the lesions, and whether its networks draw them.

    By default, the embedded bundle for lung nodules draws lesions that grow in the lung only. A bundle that the user
    names draws if its ControlNet is conditioned on the image around a lesion.

    Raises:
        BundleError: There is no such bundle, it has no ControlNet to draw with, or it draws MR.
        VocabularyError: A label is unknown.
    """
    if config.bundle is not None:
        bundle = load_bundle(config.bundle)
        if config.painter != "procedural":
            bundle.require_controlnet()
            if bundle.is_mr:
                raise BundleError(
                    f"Bundle '{bundle.name}': draws MR, and lesions can only be drawn into CTs. Use a CT bundle, or "
                    "--painter procedural."
                )
        if config.painter == "network" and bundle.completes_maps:
            raise BundleError(
                f"Bundle '{bundle.name}': completes the label maps of whole patients, so it cannot draw into a crop of "
                "a CT. Use --painter procedural, or lung-nodule-ct for lung nodules."
            )
        knows_how = (
            bundle.has_controlnet
            and bundle.definition("controlnet")["conditioning_embedding_in_channels"] > NUM_LABEL_BITS
        )
        return bundle, ("network" if knows_how else "procedural") if config.painter == "auto" else config.painter
    if config.painter == "network":
        return load_bundle(NODULE_BUNDLE), "network"
    plain = load_bundle(PLAIN_BUNDLE)
    if config.painter == "auto" and NODULE_BUNDLE in embedded_bundles():
        asked = {plain.vocabulary.id_of(name) for name in label_names(config.labels)}
        if all(LUNG_LOBE_IDS.issuperset(plain.vocabulary.hosts_of(label_id) or (0,)) for label_id in asked):
            return load_bundle(NODULE_BUNDLE), "network"
    return plain, "procedural"


def _require_twins(config: InsertConfig, twins: Twins) -> None:
    """Raise where a value is none of its factor's, or the factor is set for all cases as well."""
    known = {"texture": TEXTURES, "place": get_args(Attachment)}.get(twins.factor, twins.values)
    for value in twins.values:
        if value not in known:
            hint = did_you_mean(value, known) or f" Choose one of {', '.join(known)}."
            raise RequestError(f"--twins: unknown {twins.factor} '{value}'.{hint}")
    if getattr(config, twins.factor, None) is not None:
        raise RequestError(f"--{twins.factor} cannot be used with --twins {twins.factor}=..., which varies it.")


def _require_lesions(plan: CohortPlan, backgrounds: Backgrounds) -> None:
    vocabulary = backgrounds.vocabulary
    organs = sorted({label_id for case in plan.cases for label_id in case.required_ids})
    organs += sorted({lesion.label_id for case in plan.cases for lesion in case.lesions} - set(vocabulary.tumor_ids))
    if organs:
        raise RequestError(
            f"--labels: only lesions can be drawn into CTs, found '{vocabulary.name_of(organs[0])}'. Name lesions "
            "such as 'lung nodule:6-20mm'."
        )


def _absolute(text: str) -> str:
    return str(Path(text).resolve())
