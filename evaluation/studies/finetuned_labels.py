r"""Effect of fine-tuning on images generated from held-out patients' own label maps, before and after.

    python -m maisi_aug.evaluation.studies.finetuned_labels --bundle runs/parotid/bundle --data prepared \
        --fold 0 --out results

"Before" is the bundle that was fine-tuned, from the same label map and noise. ``--segmenter`` adds how well an
independent network, trained on real pairs alone (``train_segmenter --data``), finds each label in each image. Every
measured case is kept in OUT/cases: the same command continues from there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maisi_aug.bundle_spec.bundle import Bundle, load_bundle
from maisi_aug.errors import BundleError, TrainingError
from maisi_aug.evaluation.output.files import run_command, save_results, to_markdown
from maisi_aug.evaluation.studies.segmenter import Segmenter, load_segmenter
from maisi_aug.networks.pipeline import Pipeline, resolve_device
from maisi_aug.pictures.preview import save_picture
from maisi_aug.preparation.prepared import PreparedCase, PreparedDataset, load_prepared
from maisi_aug.system.content import read_json
from maisi_aug.system.printed_text import from_clean_document
from maisi_aug.system.progress import Report, report_nothing
from maisi_aug.system.seeds import derive_seed
from maisi_aug.system.whole_files import open_whole, write_json_whole
from maisi_aug.training.cases.prepared import PreparedStore
from maisi_aug.training.finetune.pictures import Subject, build_sheet
from maisi_aug.training.finetune.slot_choice import remap_table
from maisi_aug.training.finetune.slots import SlotStore
from maisi_aug.volumes.components import TOUCHING, bounding_box, measure_dice
from maisi_aug.volumes.grid import Grid

REPORT_NAME: Final = "finetuned_labels"
REAL, BEFORE, AFTER = "real", "before", "after"
SHELL_VOXELS: Final = 3
MAX_ROWS: Final = 6


@dataclass(frozen=True, slots=True)
class Settings:
    """Sampling settings of the study of fine-tuned labels.

    Attributes:
        num_seeds: Number of images of each label map, from different noise.
        num_inference_steps: Number of sampling steps; None for the bundle's default.
        seed: Seed of the noise.
    """

    num_seeds: int = 1
    num_inference_steps: int | None = None
    seed: int = 1


def measure_label(
    image_hu: NDArray[np.int16], label_map: NDArray[np.uint8], label_id: int, found: NDArray[np.bool_] | None
) -> dict[str, float | None]:
    """Measure the appearance of a label in an image.

    Args:
        image_hu: ``(I, J, K)`` image in HU.
        label_map: ``(I, J, K)`` vocabulary ids.
        label_id: Id of the label.
        found: ``(I, J, K)`` mask of the label that the segmenter found; None without a segmenter.

    Returns:
        ``median_hu``; ``contrast_hu`` to the body within three voxels; ``spread_hu``, the interquartile range; and
        ``dice`` of the label map against ``found``.
    """
    mask = label_map == label_id
    box = bounding_box(mask, margin=SHELL_VOXELS + 1)
    inside, values = mask[box], image_hu[box].astype(np.float64)
    near = ndimage.binary_dilation(inside, TOUCHING, iterations=SHELL_VOXELS)
    shell = near & ~inside & (label_map[box] > 0)
    low, middle, high = np.percentile(values[inside], (25, 50, 75))
    return {
        "median_hu": float(middle),
        "contrast_hu": float(middle - np.median(values[shell])) if shell.any() else None,
        "spread_hu": float(high - low),
        "dice": None if found is None else measure_dice(mask, found),
    }


def measure_finetuned(
    bundle: Bundle,
    dataset: PreparedDataset,
    out: Path,
    *,
    before: Bundle | None = None,
    segmenter: Segmenter | None = None,
    settings: Settings | None = None,
    device: str = "auto",
    report: Report = report_nothing,
) -> dict[str, Any]:
    """Draw the label maps of held-out cases with a fine-tuned bundle, and measure the taught labels.

    Args:
        bundle: Bundle that was fine-tuned.
        dataset: Prepared held-out cases.
        out: Folder for finetuned_labels.json, .md and .png, and a sub-folder of cases.
        before: Bundle to compare with (default: the bundle's base).
        segmenter: Segmenter trained on real cases of other patients; None to measure no Dice.
        settings: Sampling settings.
        device: Device on which the networks run.
        report: Progress callback, called with (cases measured, cases in all).

    Returns:
        The content of finetuned_labels.json.

    Raises:
        BundleError: There is no bundle to compare with.
        TrainingError: The data have none of the bundle's labels, or the segmenter was trained on them.
    """
    settings = settings or Settings()
    before = before or bundle.base
    if before is None:
        raise BundleError(
            f"Bundle '{bundle.name}': does not name the bundle that it was fine-tuned from. Name it with --before."
        )
    labels = _find_labels(bundle, dataset)
    if segmenter is not None:
        _require_unseen(segmenter, dataset)
    measurement = _Measurement(bundle, before, dataset, labels, segmenter, settings, out, device)
    cases = []
    for number, record in enumerate(measurement.records):
        cases.append(measurement.measure(record))
        report(number + 1, len(measurement.records))
    document = {
        "bundle": {"name": bundle.name, "fingerprint": bundle.fingerprint},
        "before": {"name": before.name, "fingerprint": before.fingerprint},
        "data": dataset.spec.name,
        "num_cases": len(cases),
        "settings": asdict(settings),
        "segmenter": None if segmenter is None else segmenter.fingerprint,
        "labels": {name: _summarise(name, cases) for name in labels},
        "cases": cases,
    }
    save_results(out, REPORT_NAME, document, to_report(document))
    title = f"{before.name} (before) and {bundle.name} (after) on held-out cases of {dataset.spec.name}"
    save_picture(
        out / f"{REPORT_NAME}.png",
        build_sheet(measurement.draw_rows(), {label_id: name for name, label_id in labels.items()}, title),
    )
    return document


@from_clean_document
def to_report(document: Mapping[str, Any]) -> str:
    """Format the figures of the study of fine-tuned labels as Markdown."""
    rows = []
    for name, found in document["labels"].items():
        for image in (REAL, BEFORE, AFTER):
            part = found[image]
            rows.append(
                [
                    f"{name}, {image}",
                    found["num_cases"],
                    *(part[key] for key in ("median_hu", "shift_hu", "mean_error_hu", "contrast_hu", "spread_hu")),
                    *([part["dice"]] if document["segmenter"] else []),
                ]
            )
    heading = ["label, image", "cases", "median, HU", "shift to real", "mean error", "contrast", "spread"]
    heading += ["Dice of the segmenter"] if document["segmenter"] else []
    return "\n".join(
        [
            f"# {document['bundle']['name']} on {document['num_cases']} held-out cases of {document['data']}\n",
            f"Before: {document['before']['name']}. Each image is drawn from the patient's own label map; the figures "
            "are medians over cases. Shift: median over cases of (median inside the label, drawn minus real). Mean "
            f"error: mean of its absolute value. Contrast: to the body within {SHELL_VOXELS} voxels. Spread: between "
            "the quartiles inside the label.\n",
            to_markdown(heading, rows),
        ]
    )


class _Measurement:
    """Held-out cases with their images, each kept on disk once it is drawn."""

    def __init__(
        self,
        bundle: Bundle,
        before: Bundle,
        dataset: PreparedDataset,
        labels: Mapping[str, int],
        segmenter: Segmenter | None,
        settings: Settings,
        out: Path,
        device: str,
    ) -> None:
        self.bundles = {BEFORE: before, AFTER: bundle}
        self.cases = dataset.cases
        self.labels = labels
        self.segmenter = segmenter
        self.settings = settings
        self.folder = out / "cases"
        self.device = device
        table, _, _ = remap_table([], dataset=dataset, base=bundle)
        self.store = SlotStore(PreparedStore(dataset), table)
        self.records = [
            record for record in dataset.cases if {int(table[i]) for i in record.voxels} & set(labels.values())
        ]
        parts = [bundle.fingerprint, before.fingerprint, segmenter and segmenter.fingerprint, asdict(settings)]
        self.key = hashlib.sha256(json.dumps([*parts, dict(labels)]).encode()).hexdigest()[:16]
        self._pipelines: dict[str, Pipeline] = {}

    def measure(self, record: PreparedCase) -> dict[str, Any]:
        """Return the figures of a case, from disk where they were measured with the same key."""
        path = self.folder / f"{record.id}.json"
        known = _read(path)
        if known is not None and known["key"] == self.key and path.with_suffix(".npz").is_file():
            return known
        index = self.cases.index(record)
        label_map = self.store.label_map(index)
        images = {REAL: [self.store.image_hu(index)], **self._draw(record, label_map)}
        figures = {name: self._measure_images(images, label_map, label_id) for name, label_id in self.labels.items()}
        with open_whole(path.with_suffix(".npz")) as file:
            real, before, after = (images[name][0] for name in (REAL, BEFORE, AFTER))
            np.savez_compressed(file, real=real, before=before, after=after)
        measured = {"id": record.id, "key": self.key, "labels": {name: row for name, row in figures.items() if row}}
        write_json_whole(path, measured)
        return measured

    def draw_rows(self) -> list[Subject]:
        """Return rows of pictures of some cases, evenly spread over all."""
        places = np.unique(np.linspace(0, len(self.records) - 1, min(MAX_ROWS, len(self.records))).round().astype(int))
        rows = []
        for place in places.tolist():
            record = self.records[place]
            with np.load(self.folder / f"{record.id}.npz", allow_pickle=False) as stored:
                images = {name: stored[name] for name in (REAL, BEFORE, AFTER)}
            grid = Grid.from_spacing(record.shape, record.spacing_mm)
            rows.append(Subject(record.id, self.store.label_map(self.cases.index(record)), grid, images))
        return rows

    def _draw(self, record: PreparedCase, label_map: NDArray[np.uint8]) -> dict[str, list[NDArray[np.int16]]]:
        grid = Grid.from_spacing(record.shape, record.spacing_mm)
        images = {}
        for name, bundle in self.bundles.items():
            if name not in self._pipelines:
                self._pipelines[name] = Pipeline.load(bundle, self.device)
            is_told = bundle.definition("diffusion_unet").get("num_class_embeds") is not None
            modality = record.modality if is_told and record.modality != "unknown" else "ct"
            images[name] = [
                self._pipelines[name].synthesize_image(
                    label_map,
                    grid,
                    seed=derive_seed("held-out image", self.settings.seed, record.id, number),
                    num_inference_steps=self.settings.num_inference_steps,
                    modality=modality,
                )
                for number in range(self.settings.num_seeds)
            ]
        return images

    def _measure_images(
        self, images: Mapping[str, Sequence[NDArray[np.int16]]], label_map: NDArray[np.uint8], label_id: int
    ) -> dict[str, dict[str, float | None]]:
        if not (label_map == label_id).any():
            return {}
        figures = {}
        for name, drawn in images.items():
            rows = [measure_label(image, label_map, label_id, self._find(image, label_id)) for image in drawn]
            figures[name] = {key: _mean([row[key] for row in rows]) for key in rows[0]}
        return figures

    def _find(self, image_hu: NDArray[np.int16], label_id: int) -> NDArray[np.bool_] | None:
        if self.segmenter is None:
            return None
        name = next(name for name, own in self.labels.items() if own == label_id)
        names = [tissue.name for tissue in self.segmenter.tissues]
        if name not in names:
            return None
        found: NDArray[np.bool_] = self.segmenter.segment(image_hu) == names.index(name) + 1
        return found


def _find_labels(bundle: Bundle, dataset: PreparedDataset) -> dict[str, int]:
    """The labels that the bundle was taught and that the cases hold, by their ids in the bundle."""
    table, _, _ = remap_table([], dataset=dataset, base=bundle)
    present = {int(table[label_id]) for case in dataset.cases for label_id, count in case.voxels.items() if count}
    taught = {name: bundle.vocabulary.id_of(name) for name in bundle.spec.sizes}
    labels = {name: label_id for name, label_id in taught.items() if label_id in present}
    if not labels:
        raise TrainingError(
            f"{dataset.path}: has none of the labels that bundle '{bundle.name}' was taught "
            f"({', '.join(taught) or 'none'}). Choose other --data or another --fold."
        )
    return labels


def _require_unseen(segmenter: Segmenter, dataset: PreparedDataset) -> None:
    known = segmenter.config.dataset
    found = "phantoms" if known is None else f"{known['name']} without fold {known['held_out_fold']}"
    held_out = {str(case.fold) for case in dataset.cases}
    if known is None or known["name"] != dataset.spec.name or held_out != {known["held_out_fold"]}:
        raise TrainingError(
            f"Segmenter: must be trained on the other folds of {dataset.spec.name}, found one trained on {found}. "
            "Train it with 'python -m maisi_aug.evaluation.studies.train_segmenter --data FOLDER --fold N'."
        )


def _summarise(name: str, cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = [case["labels"][name] for case in cases if name in case["labels"]]
    summary: dict[str, Any] = {"num_cases": len(rows)}
    for image in (REAL, BEFORE, AFTER):
        shifts = [row[image]["median_hu"] - row[REAL]["median_hu"] for row in rows]
        summary[image] = {
            **{key: _median([row[image][key] for row in rows]) for key in rows[0][image]},
            "shift_hu": float(np.median(shifts)),
            "mean_error_hu": float(np.mean(np.abs(shifts))),
        }
    return summary


def _median(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return float(np.median(found)) if found else None


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "key" in content else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this module's command line, print and write the report, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m maisi_aug.evaluation.studies.finetuned_labels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", required=True, help="fine-tuned bundle")
    parser.add_argument("--data", type=Path, required=True, help="prepared folder that it was fine-tuned on")
    parser.add_argument("--fold", type=int, default=0, help="its held-out fold")
    parser.add_argument("--before", help="bundle to compare with (default: the one that was fine-tuned)")
    parser.add_argument("--segmenter", type=Path, help="folder of train_segmenter --data")
    parser.add_argument("--num-seeds", type=int, default=Settings().num_seeds, help="images of each label map")
    parser.add_argument("--num-steps", type=int, help="of the sampler (default: the bundle's)")
    parser.add_argument("--seed", type=int, default=Settings().seed)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    options = parser.parse_args(arguments)

    def body() -> None:
        device = resolve_device(options.device)
        document = measure_finetuned(
            load_bundle(options.bundle),
            load_prepared(options.data).select(folds=[options.fold]),
            options.out,
            before=None if options.before is None else load_bundle(options.before),
            segmenter=None if options.segmenter is None else load_segmenter(options.segmenter, device=device),
            settings=Settings(options.num_seeds, options.num_steps, options.seed),
            device=device,
            report=lambda done, total: print(f"held-out case {done} of {total}", file=sys.stderr, flush=True),
        )
        print(to_report(document))

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
