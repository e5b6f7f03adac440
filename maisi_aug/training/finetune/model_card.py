"""The README of a fine-tuned bundle: what it was taught, on what, how well, and how it is used. Needs no torch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maisi_aug.bundle_spec.schema import HuSpec, SizeSpec
from maisi_aug.system.whole_files import write_text_whole
from maisi_aug.training.cases.taught_label import TaughtLabel
from maisi_aug.vocabulary.labels import MAISI
from maisi_aug.vocabulary.sizes import diameter_mm

CARD_NAME = "README.md"


@dataclass(frozen=True, slots=True)
class LabelMeasures:
    """Measurements of a taught label on the training cases.

    Attributes:
        sizes: Distribution of its volume over patients; None if unknown.
        hu: Range of its median HU over cases.
        median_hu: Median over cases of its median HU.
        num_patients: Number of patients with the label.
    """

    sizes: SizeSpec
    hu: HuSpec
    median_hu: float
    num_patients: int


def write_model_card(
    folder: Path,
    header: Mapping[str, Any],
    taught: Sequence[TaughtLabel],
    measures: Mapping[str, LabelMeasures],
    facts: Mapping[str, Any],
) -> None:
    """Write the model card (README.md) of a fine-tuned bundle.

    Args:
        folder: Folder of the bundle.
        header: Content of ``bundle.yaml``.
        taught: Labels that it was taught.
        measures: Measurements of the labels on the training cases.
        facts: Facts about the training.
    """
    write_text_whole(folder / CARD_NAME, build_model_card(header, taught, measures, facts))


def build_model_card(
    header: Mapping[str, Any],
    taught: Sequence[TaughtLabel],
    measures: Mapping[str, LabelMeasures],
    facts: Mapping[str, Any],
) -> str:
    """Return the model card of a fine-tuned bundle as Markdown; arguments as for :func:`write_model_card`."""
    base = header["provenance"]["fine_tuned_from"]
    is_whole = "base" not in header
    request = f"{taught[0].name}:0.5"
    parts = [
        f"# {header['name']}\n",
        (
            f"{header['description']} Licence: {header['licence']}, inherited from the base; it also applies to "
            "generated images.\n"
        ),
        "## Use\n",
        f"```\nmaisi-aug synthesize --bundle FOLDER --labels {shlex.quote(request)} -n 4 --out cohort\n```\n",
        _spell_origin_of_maps(taught),
        "## Labels\n",
        "| label | id | kind | lies in | patients | volume at 5 / 50 / 95%, mL | median, HU | accepted medians, HU |",
        "| --- | ---: | --- | --- | ---: | ---: | ---: | ---: |",
        *(_row(label, measures[label.name], _spell_hosts(label, header)) for label in taught),
        "",
        *(f"- {label.name}: {label.why}." for label in taught),
        "\n## Training\n",
        f"Base: {base['name']}, fingerprint {base['fingerprint'][:16]}. "
        + ("All weights are in this folder." if is_whole else "Autoencoder and U-Net are read from it."),
        "",
        *(f"- {name.replace('_', ' ')}: {_spell(value)}" for name, value in facts.items()),
        "\n## Limits\n",
        (
            "- Synthetic images are for training and for testing methods, never for diagnosis, and never among test "
            "cases."
        ),
        (
            "- The bundle cannot draw what its training patients do not show: compare drawn images with held-out "
            "patients using `python -m maisi_aug.evaluation.studies.finetuned_labels`."
        ),
        f"- Label maps come from {header['mask_bank']['source']}; `label_maps.json` lists where they are.",
    ]
    return "\n".join(parts) + "\n"


def _spell_origin_of_maps(taught: Sequence[TaughtLabel]) -> str:
    lesions = [label.name for label in taught if label.kind == "lesion"]
    organs = [label.name for label in taught if label.kind == "organ"]
    sentences = []
    if lesions:
        sentences.append(f"{', '.join(lesions)}: planted at the requested size into the label maps of the bank.")
    if organs:
        sentences.append(
            f"{', '.join(organs)}: not planted. A patient of the bank with about the requested size is used, and the "
            "organ's surface is moved to reach it, by a factor of 2 in volume at most; if no patient is that close, "
            "the case is refused with the nearest size."
        )
    sentences.append("Other label maps: `--mask-bank FOLDER`.")
    return "\n".join(f"- {sentence}" for sentence in sentences) + "\n"


def _spell_hosts(label: TaughtLabel, header: Mapping[str, Any]) -> str:
    """Names of a label's hosts: of slots the name that the bundle gives them."""
    bound = {slot["id"]: name for name, slot in header.get("slots", {}).items()}
    return ", ".join(
        bound.get(host) or (MAISI.name_of(host) if MAISI.contains(host) else str(host)) for host in label.hosts
    )


def _row(label: TaughtLabel, found: LabelMeasures, hosts: str) -> str:
    quantiles = found.sizes.quantiles_ml
    volumes = " / ".join(f"{quantiles[place]:.3g}" for place in (1, 10, 19))
    middle = f"{volumes} ({diameter_mm(quantiles[10]):.0f} mm at 50%)"
    return (
        f"| {label.name} | {label.id} | {label.kind} | {hosts} | {found.num_patients} | {middle} | "
        f"{found.median_hu:.0f} | {found.hu.low_hu:.0f} to {found.hu.high_hu:.0f} |"
    )


def _spell(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_spell(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_spell, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
