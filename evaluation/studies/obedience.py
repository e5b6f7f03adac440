"""Does the image obey its map? Held-out phantoms give maps and true images; a bundle draws its own image of each map.

    python -m maisi_aug.evaluation.studies.obedience --bundle phantom-ct --segmenter runs/segmenter --out results

Without ``--segmenter`` one is trained first, in OUT/segmenter. Every measured case is kept in OUT/cases: the same
command continues from there, and measures again only what another bundle, segmenter or setting has changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from maisi_aug.bundle_spec.bundle import Bundle, load_bundle
from maisi_aug.errors import BundleError
from maisi_aug.evaluation.output.files import run_command, save_results
from maisi_aug.evaluation.studies.obedience_report import (
    CaseFigures,
    Contrast,
    LesionFigures,
    OrganFigures,
    draw_comparison,
    draw_sheet,
    to_document,
    to_report,
)
from maisi_aug.evaluation.studies.segmenter import WEIGHTS_NAME, Segmenter, SegmenterConfig, load_segmenter
from maisi_aug.evaluation.studies.tissues import measure_dice, to_class_map
from maisi_aug.evaluation.studies.train_segmenter import (
    build_held_out_phantom,
    print_progress,
    print_steps,
    train_segmenter,
)
from maisi_aug.gates.checks import Verdict, check_label_visibility, check_organ_hu
from maisi_aug.networks.pipeline import Pipeline, resolve_device
from maisi_aug.phantom import Phantom
from maisi_aug.pictures.preview import save_picture
from maisi_aug.system.progress import Report, report_nothing
from maisi_aug.system.seeds import derive_seed
from maisi_aug.system.whole_files import write_text_whole
from maisi_aug.vocabulary.hu import expected_contrast_sign, reference_hu_ranges
from maisi_aug.vocabulary.labels import BODY_ID, Vocabulary

REPORT_NAME: Final = "obedience"
_CASE: Final[TypeAdapter[CaseFigures]] = TypeAdapter(CaseFigures)


@dataclass(frozen=True, slots=True)
class ObedienceSettings:
    """Settings of the study of whether images match their label maps.

    Attributes:
        num_cases: Number of held-out label maps.
        seed: Seed of the held-out phantoms and of the noise that the bundle starts from.
        num_inference_steps: Number of sampling steps; None for the bundle's default.
        guidance_scale: Scale of classifier-free guidance.
    """

    num_cases: int = 40
    seed: int = 1
    num_inference_steps: int | None = None
    guidance_scale: float = 0.0


def measure_obedience(
    bundle: Bundle,
    segmenter: Segmenter,
    out: Path,
    *,
    settings: ObedienceSettings | None = None,
    device: str = "auto",
    report: Report = report_nothing,
) -> dict[str, Any]:
    """Draw the label maps of held-out phantoms with a bundle, and measure whether the images match them.

    Args:
        bundle: Bundle that generates the images.
        segmenter: Segmenter trained on phantoms of the bundle's spacing.
        out: Folder for obedience.json, obedience.md, obedience.png and a sub-folder of cases.
        settings: Number of cases and sampling settings.
        device: Device on which the bundle's networks run.
        report: Progress callback, called with (cases measured, cases in all).

    Returns:
        The content of obedience.json.

    Raises:
        BundleError: The bundle cannot be used, or has another spacing than the segmenter.
    """
    settings = settings or ObedienceSettings()
    _require_same_spacing(bundle, segmenter)
    measurement = _Measurement(bundle, segmenter, settings, out, device)
    cases = []
    for index in range(settings.num_cases):
        cases.append(measurement.measure(index))
        report(index + 1, settings.num_cases)
    document = to_document(cases, bundle=bundle, segmenter=segmenter, settings=asdict(settings))
    save_results(out, REPORT_NAME, document, to_report(document))
    tiles = [measurement.picture_path(index) for index in range(settings.num_cases)]
    save_picture(out / f"{REPORT_NAME}.png", draw_sheet(tiles, f"Bundle {bundle.name}, {len(cases)} held-out maps"))
    return document


class _Measurement:
    """Cases of one bundle, segmenter and setting, each kept on disk once it is measured."""

    def __init__(
        self, bundle: Bundle, segmenter: Segmenter, settings: ObedienceSettings, out: Path, device: str
    ) -> None:
        self.bundle = bundle
        self.segmenter = segmenter
        self.settings = settings
        self.folder = out / "cases"
        self.device = device
        parts = [bundle.fingerprint, segmenter.fingerprint, {**asdict(settings), "num_cases": None}]
        self.key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        self._pipeline: Pipeline | None = None

    def picture_path(self, index: int) -> Path:
        """Return where the picture of a case lies."""
        return self.folder / f"case_{index + 1:04d}.png"

    def measure(self, index: int) -> CaseFigures:
        """Return the figures of a case, from disk where they were measured with the same key."""
        path = self.picture_path(index).with_suffix(".json")
        known = self._read(path)
        if known is not None:
            return known
        started = perf_counter()
        phantom = build_held_out_phantom(self.settings.seed, index, self.bundle.grid)
        drawing = perf_counter()
        synthetic_hu = self._synthesize(phantom, index)
        drawn = perf_counter()
        expected = to_class_map(phantom.label_map, self.segmenter.tissues)
        in_phantom = self.segmenter.segment(phantom.image_hu)
        in_synthetic = self.segmenter.segment(synthetic_hu)
        figures = CaseFigures(
            case_id=path.stem,
            key=self.key,
            phantom_seed=phantom.seed,
            region=phantom.region,
            phase=phantom.phase,
            organs=compare_organs(phantom, synthetic_hu),
            lesions=compare_lesions(phantom, synthetic_hu, self.bundle.vocabulary),
            dice_phantom=measure_dice(expected, in_phantom, self.segmenter.tissues),
            dice_synthetic=measure_dice(expected, in_synthetic, self.segmenter.tissues),
            error_hu=measure_errors(phantom, synthetic_hu, expected, [t.name for t in self.segmenter.tissues]),
            seconds={"phantom": drawing - started, "image": drawn - drawing, "figures": perf_counter() - drawn},
        )
        picture = draw_comparison(phantom, synthetic_hu, expected, in_synthetic, figures)
        save_picture(self.picture_path(index), picture)
        write_text_whole(path, _CASE.dump_json(figures, indent=1).decode() + "\n")
        return figures

    def _read(self, path: Path) -> CaseFigures | None:
        try:
            known = _CASE.validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None
        return known if known.key == self.key and path.with_suffix(".png").is_file() else None

    def _synthesize(self, phantom: Phantom, index: int) -> NDArray[np.int16]:
        if self._pipeline is None:
            self._pipeline = Pipeline.load(self.bundle, self.device)
        return self._pipeline.synthesize_image(
            phantom.label_map,
            phantom.grid,
            seed=derive_seed("obedience", self.settings.seed, index),
            num_inference_steps=self.settings.num_inference_steps,
            guidance_scale=self.settings.guidance_scale,
            modality=phantom.modality,
        )


def compare_organs(phantom: Phantom, synthetic_hu: NDArray[np.int16]) -> tuple[OrganFigures, ...]:
    """Return the median HU of organs with a reference range, bones and lung lobes in both images of a case."""
    figures = []
    for group in reference_hu_ranges():
        ranges = group.split()
        of_phantom = check_organ_hu(phantom.image_hu, phantom.label_map, ranges).figures["organs"]
        of_synthetic = check_organ_hu(synthetic_hu, phantom.label_map, ranges).figures["organs"]
        figures += [
            OrganFigures(
                organ=true["organ"],
                group=group.name,
                num_voxels=true["num_voxels"],
                is_judged=true["judged"],
                phantom_hu=true["median_hu"],
                synthetic_hu=drawn["median_hu"],
                is_phantom_inside=true["inside"],
                is_synthetic_inside=drawn["inside"],
            )
            for true, drawn in zip(of_phantom, of_synthetic, strict=True)
        ]
    return tuple(figures)


def compare_lesions(
    phantom: Phantom, synthetic_hu: NDArray[np.int16], vocabulary: Vocabulary
) -> tuple[LesionFigures, ...]:
    """Return contrast and noise of every connected lesion in phantom and synthetic image."""

    def check(image_hu: NDArray[np.int16], label_id: int) -> tuple[Verdict, ...]:
        return check_label_visibility(
            image_hu,
            phantom.label_map,
            label_id,
            host_ids=vocabulary.hosts_of(label_id),
            tumor_ids=vocabulary.tumor_ids,
            expected_sign=expected_contrast_sign(vocabulary.name_of(label_id)),
            spacing_mm=phantom.grid.spacing_mm,
        )

    return tuple(
        LesionFigures(
            label=vocabulary.name_of(label_id),
            diameter_mm=true.figures["diameter_mm"],
            phantom=_to_contrast(true),
            synthetic=_to_contrast(drawn),
        )
        for label_id in vocabulary.tumor_ids
        for true, drawn in zip(check(phantom.image_hu, label_id), check(synthetic_hu, label_id), strict=True)
    )


def _to_contrast(verdict: Verdict) -> Contrast:
    found = verdict.figures
    return Contrast(
        contrast_hu=found["contrast_hu"],
        noise_hu=found["noise_hu"],
        has_right_sign=bool(found["right_sign"]),
        exceeds_noise=bool(abs(found["contrast_hu"]) > found["noise_hu"]),
    )


def measure_errors(
    phantom: Phantom, synthetic_hu: NDArray[np.int16], classes: NDArray[np.uint8], names: Sequence[str]
) -> dict[str, float]:
    """Return the mean absolute difference in HU of phantom and synthetic image, by tissue and in the whole body."""
    difference = np.abs(synthetic_hu.astype(np.float32) - phantom.image_hu)
    body = phantom.label_map > 0
    masks = {name: classes == number for number, name in enumerate(names, start=1)}
    masks |= {"fat and walls (body)": phantom.label_map == BODY_ID, "whole body": body}
    return {name: float(difference[mask].mean()) for name, mask in masks.items() if mask.any()}


def _require_same_spacing(bundle: Bundle, segmenter: Segmenter) -> None:
    if not np.allclose(bundle.grid.spacing_mm, segmenter.config.grid.spacing_mm, rtol=0, atol=1e-3):
        raise BundleError(
            f"Bundle '{bundle.name}': its spacing {bundle.grid.spacing_mm} mm differs from the segmenter's, "
            f"{segmenter.config.grid.spacing_mm} mm. Train a segmenter for it, or leave --segmenter out."
        )


def prepare_segmenter(bundle: Bundle, folder: Path, *, device: str, num_workers: int | None) -> Segmenter:
    """Train a segmenter for a bundle's grid and slots, continue training, or load the finished one."""
    config = SegmenterConfig(grid=bundle.spec.grid, slots=bundle.spec.slots)
    if (folder / WEIGHTS_NAME).is_file():
        known = load_segmenter(folder, device=device)
        if known.config == config and known.num_steps == config.loop.num_steps:
            return known
    return train_segmenter(
        config,
        folder,
        device=device,
        num_workers=num_workers,
        report_phantoms=print_progress("phantom"),
        report_step=print_steps(50, config.loop.num_steps),
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    defaults = ObedienceSettings()
    parser = argparse.ArgumentParser(
        prog="python -m maisi_aug.evaluation.studies.obedience",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", default="phantom-ct", help="name of a bundle, or its folder")
    parser.add_argument("--segmenter", type=Path, help="folder of a trained segmenter; trained in OUT when not given")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--num-cases", type=int, default=defaults.num_cases, help="held-out maps")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--num-inference-steps", type=int, help="of the sampler; the bundle's default if not given")
    parser.add_argument("--guidance-scale", type=float, default=defaults.guidance_scale)
    parser.add_argument("--num-workers", type=int, help="processes that build phantoms; one a core by default")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this module's command line: measure, write and print the report; return the exit code."""
    options = _parse(arguments)

    def body() -> None:
        bundle, device = load_bundle(options.bundle), resolve_device(options.device)
        if options.segmenter is not None:
            segmenter = load_segmenter(options.segmenter, device=device)
        else:
            segmenter = prepare_segmenter(
                bundle, options.out / "segmenter", device=device, num_workers=options.num_workers
            )
        settings = ObedienceSettings(
            options.num_cases, options.seed, options.num_inference_steps, options.guidance_scale
        )
        document = measure_obedience(
            bundle, segmenter, options.out, settings=settings, device=device, report=print_progress("case")
        )
        print(to_report(document))

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
