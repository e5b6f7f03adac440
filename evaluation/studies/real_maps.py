"""Does a bundle draw a stranger's label map? Real maps, with labels left out, and phantoms in other fields of view.

    python -m maisi_aug.evaluation.studies.real_maps --bundle phantom-ct --maps MAPS --out results

MAPS is a folder of label maps with their CTs, as ``synthesize --mask-source given`` takes it. Every map is drawn as it
is and ``--num-subsets`` times with labels left out. Held-out phantoms, from whose kind the bundle has learnt, tell what
an organ should look like. One phantom is drawn in slices of 300 to 500 mm, too.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from maisi_aug.banks.folder_bank import FolderBank
from maisi_aug.bundle_spec.bundle import Bundle, load_bundle
from maisi_aug.errors import BankError
from maisi_aug.evaluation.output.files import Cell, percent, run_command, save_results, share_of, to_markdown
from maisi_aug.evaluation.studies.train_segmenter import build_held_out_phantom, held_out_seed, print_progress
from maisi_aug.networks.pipeline import Pipeline
from maisi_aug.phantom import build_phantom, ids
from maisi_aug.phantom.intensity import Phase, draw_phase
from maisi_aug.phantom.phases import condition_seed, phase_for
from maisi_aug.pictures.preview import save_picture
from maisi_aug.pictures.slices import BACKGROUND, SOFT_TISSUE, Plane, draw_slice, write_text
from maisi_aug.sources.given import GridChoice, fit_map
from maisi_aug.system.printed_text import from_clean_document
from maisi_aug.system.progress import Report, report_nothing
from maisi_aug.system.seeds import derive_seed, numpy_generator
from maisi_aug.training.cases.label_sets import LabelSet, reduce_labels
from maisi_aug.vocabulary.labels import BODY_ID
from maisi_aug.volumes.grid import Grid

REPORT_NAME: Final = "real_maps"
ORGANS: Final[dict[str, tuple[int, ...]]] = {
    "liver": (ids.LIVER,),
    "spleen": (ids.SPLEEN,),
    "pancreas": (ids.PANCREAS,),
    "kidneys": ids.KIDNEYS,
    "gallbladder": (ids.GALLBLADDER,),
    "aorta": (ids.AORTA,),
    "heart": (ids.HEART,),
    "bladder": (ids.BLADDER,),
    "muscles": ids.MUSCLES,
    "vertebrae": ids.VERTEBRAE,
    "lungs": ids.LUNG_LOBES,
}
ORGAN_TOLERANCE_HU: Final = 15.0
FAT_HU, FAT_RANGE_HU = (-150.0, -30.0), (-120.0, -80.0)
MUSCLE_HU, MUSCLE_RANGE_HU = (0.0, 110.0), (40.0, 70.0)
BETWEEN_HU: Final = (-60.0, 10.0)
DEPTH_SHARE: Final = 0.875
# Real maps are TotalSegmentator's own or have fewer labels: its sets would change nothing.
SUBSETS: Final[tuple[LabelSet, ...]] = ("random", "organs", "one organ", "random", "coarse bones")
MIN_VOXELS: Final = 100
NOISE_SCALE_MM: Final = 12.0
PIXELS_PER_MM: Final = 0.8
FIELD_OF_VIEW_SEED: Final = 11


@dataclass(frozen=True, slots=True)
class RealMapSettings:
    """Settings of the study of real label maps.

    Attributes:
        num_subsets: Number of times that every map is drawn with labels left out.
        num_phantoms: Number of held-out phantoms to compare organs with, with or without contrast agent by the
            modality.
        seed: Seed of noise, of omitted labels, and of the phantoms.
        modality: Modality that the bundle is conditioned on, with or without contrast agent.
        widths_mm: Slice widths in mm in which one phantom is drawn.
    """

    num_subsets: int = 10
    num_phantoms: int = 12
    seed: int = 1
    modality: str = "ct_contrast"
    widths_mm: tuple[float, ...] = (300.0, 350.0, 400.0, 450.0, 500.0)


@dataclass(frozen=True, slots=True)
class ImageFigures:
    """Measurements of one image that was drawn from a real label map.

    Attributes:
        name: Name of the label map, and of the set of labels that it was drawn from.
        organs_hu: Organ -> median HU, for all organs of the full label map.
        labelled: Organs that the label map shown to the bundle labels.
        fat_hu: Median HU of unlabelled voxels that are fat; None if there are hardly any.
        muscle_hu: Median HU of unlabelled voxels that are muscle; None if there are hardly any.
        between: Fraction of unlabelled voxels with HU between fat and muscle.
        liver_noise_hu: Standard deviation in HU inside the liver, without changes over more than a centimetre.
    """

    name: str
    organs_hu: dict[str, float]
    labelled: tuple[str, ...]
    fat_hu: float | None
    muscle_hu: float | None
    between: float
    liver_noise_hu: float | None


def measure_image(
    name: str, image_hu: NDArray[np.int16], label_map: NDArray[np.uint8], shown: NDArray[np.uint8], grid: Grid
) -> ImageFigures:
    """Measure an image that was drawn from a real label map, or from a part of its labels.

    Args:
        name: Name of the image in the report.
        image_hu: ``(I, J, K)`` image in HU.
        label_map: ``(I, J, K)`` full label map.
        shown: ``(I, J, K)`` label map that the bundle was conditioned on.
        grid: Shape and affine of all arrays.
    """
    organs, labelled = {}, []
    for organ, label_ids in ORGANS.items():
        inside = np.isin(label_map, label_ids)
        if inside.sum() >= MIN_VOXELS:
            organs[organ] = float(np.median(image_hu[inside]))
            labelled += [organ] * bool(np.isin(shown, label_ids).any())
    body = image_hu[ndimage.binary_erosion(label_map > 0, iterations=2) & (label_map == BODY_ID)].astype(np.float32)
    between = (body > BETWEEN_HU[0]) & (body < BETWEEN_HU[1])
    return ImageFigures(
        name,
        organs,
        tuple(labelled),
        _median_within(body, FAT_HU),
        _median_within(body, MUSCLE_HU),
        float(between.mean()) if body.size else 0.0,
        measure_noise(image_hu, label_map == ids.LIVER, grid),
    )


def _median_within(values: NDArray[np.float32], bounds: tuple[float, float]) -> float | None:
    inside = values[(values > bounds[0]) & (values < bounds[1])]
    return float(np.median(inside)) if inside.size >= MIN_VOXELS else None


def measure_noise(image_hu: NDArray[np.int16], organ: NDArray[np.bool_], grid: Grid) -> float | None:
    """Return the standard deviation in HU inside an organ around its local mean; None if the organ is too thin."""
    sigma = [NOISE_SCALE_MM / step for step in grid.spacing_mm]
    deep = ndimage.binary_erosion(organ, iterations=2)
    if deep.sum() < MIN_VOXELS:
        return None
    weight = ndimage.gaussian_filter(deep.astype(np.float32), sigma)
    mean = ndimage.gaussian_filter(np.where(deep, image_hu, 0).astype(np.float32), sigma) / np.maximum(weight, 1e-3)
    rest = (image_hu - mean)[deep]
    low, high = np.percentile(rest, [15.87, 84.13])
    return float(high - low) / 2


def measure_real_maps(
    bundle: Bundle,
    maps: Path,
    out: Path,
    *,
    settings: RealMapSettings | None = None,
    mapping: str = "auto",
    device: str = "auto",
    report: Report = report_nothing,
) -> dict[str, Any]:
    """Draw real label maps, subsets of their labels, and phantoms in other fields of view, and measure the images.

    Args:
        bundle: Bundle that draws the images.
        maps: Label maps with their CTs.
        out: Folder for real_maps.json, real_maps.md and real_maps.png.
        settings: Number of images and sampling settings.
        mapping: Meaning of the maps' ids, as for ``--mask-labels``.
        device: Device on which the networks run.
        report: Progress callback, called with (images drawn, images in all).

    Returns:
        The content of real_maps.json.

    Raises:
        BankError: No map can be used.
    """
    settings = settings or RealMapSettings()
    bank = FolderBank(maps, vocabulary=bundle.vocabulary, grid=bundle.grid, mapping=mapping, min_cover=0.0)
    choice = GridChoice(bundle.grid_factor, None, bundle.grid.spacing_mm)
    cases = [fit_map(found, choice, lesion_ids=()) for found in map(bank.load, range(len(bank))) if found is not None]
    if not cases:
        raise BankError(f"{maps}: no label map in it can be used. Say what their ids mean with --mapping.")
    num_maps = len(cases) * (1 + settings.num_subsets)
    num_images = num_maps + settings.num_phantoms + len(settings.widths_mm)
    artist = _Artist(Pipeline.load(bundle, device), settings)
    images: list[ImageFigures] = []
    tiles: list[Image.Image] = []
    for number, (label_map, grid) in enumerate(cases):
        for turn in range(1 + settings.num_subsets):
            figures, tile = artist.draw_subset(label_map, grid, number, turn)
            images.append(figures)
            tiles.append(tile)
            report(len(images), num_images)
    phase = phase_for(settings.modality, condition_seed(artist.seed)) if bundle.spec.unlabelled == "complete" else None
    phantoms = [artist.draw_phantom(bundle, index) for index in find_phantoms(settings, phase)]
    report(num_maps + len(phantoms), num_images)
    views = [artist.draw_view(bundle, width_mm) for width_mm in settings.widths_mm]
    report(num_images, num_images)
    document = to_document(bundle, settings, images, phantoms, views)
    save_results(out, REPORT_NAME, document, to_report(document))
    save_picture(out / f"{REPORT_NAME}.png", lay_out_tiles(tiles))
    return document


def find_phantoms(settings: RealMapSettings, phase: Phase | None = None) -> list[int]:
    """Return the indices of the first held-out phantoms whose contrast phase suits the settings.

    Args:
        settings: Settings of the study.
        phase: Phase in which the bundle draws the real maps; None if it does not know one.
    """

    def is_wanted(index: int) -> bool:
        own = draw_phase(held_out_seed(settings.seed, index))
        if phase is not None:
            return own == phase
        is_plain = own == "non-contrast"
        return settings.modality == "ct" or is_plain == (settings.modality == "ct_wo_contrast")

    return list(itertools.islice(filter(is_wanted, itertools.count()), settings.num_phantoms))


def choose_labels(label_map: NDArray[np.uint8], seed: int, number: int, turn: int) -> tuple[str, NDArray[np.uint8]]:
    """Return the name and the label map for one turn of the study: all labels, then one subset after the other."""
    if turn == 0:
        return "all labels", label_map
    label_set = SUBSETS[(turn - 1) % len(SUBSETS)]
    rng = numpy_generator(derive_seed("real map", seed, number, turn), "labels")
    return f"{label_set} ({turn})", reduce_labels(label_map, label_set, rng)


@dataclass(frozen=True, eq=False)
class _Artist:
    pipeline: Pipeline
    settings: RealMapSettings

    @property
    def seed(self) -> int:
        """Seed of all images."""
        return derive_seed("real map image", self.settings.seed)

    def draw(self, label_map: NDArray[np.uint8], grid: Grid, modality: str | None = None) -> NDArray[np.int16]:
        modality = modality or self.settings.modality
        return self.pipeline.synthesize_image(label_map, grid, seed=self.seed, modality=modality)

    def draw_subset(
        self, label_map: NDArray[np.uint8], grid: Grid, number: int, turn: int
    ) -> tuple[ImageFigures, Image.Image]:
        """Figures and picture of a real map with the labels of a turn."""
        name, shown = choose_labels(label_map, self.settings.seed, number, turn)
        image_hu = self.draw(shown, grid)
        figures = measure_image(f"map {number + 1}, {name}", image_hu, label_map, shown, grid)
        return figures, _draw_tile(image_hu, grid, figures.name)

    def draw_phantom(self, bundle: Bundle, index: int) -> tuple[ImageFigures, ImageFigures]:
        """Figures of a held-out phantom and of what the bundle makes of its map."""
        phantom = build_held_out_phantom(self.settings.seed, index, bundle.grid)
        drawn = self.draw(phantom.label_map, phantom.grid, phantom.modality)
        name = f"phantom {index + 1}, {phantom.phase}"
        true, made = (
            measure_image(name, image, phantom.label_map, phantom.label_map, phantom.grid)
            for image in (phantom.image_hu, drawn)
        )
        return true, made

    def draw_view(self, bundle: Bundle, width_mm: float) -> tuple[float, float]:
        """Width of a slice, and the liver's median in one phantom of that width."""
        step, factor = bundle.grid.spacing_mm[0], bundle.grid_factor
        i, j = (max(1, round(side / step / factor)) * factor for side in (width_mm, DEPTH_SHARE * width_mm))
        grid = Grid.from_spacing((i, j, bundle.grid.shape[2]), bundle.grid.spacing_mm)
        phantom = build_phantom(seed=FIELD_OF_VIEW_SEED, grid=grid, region="abdomen", lesions=False)
        drawn = self.draw(phantom.label_map, grid, phantom.modality)
        return i * step, float(np.median(drawn[phantom.label_map == ids.LIVER]))


def to_document(
    bundle: Bundle,
    settings: RealMapSettings,
    images: Sequence[ImageFigures],
    phantoms: Sequence[tuple[ImageFigures, ImageFigures]],
    views: Sequence[tuple[float, float]],
) -> dict[str, Any]:
    """Collect the figures of the study as a JSON-able dict."""
    expected = {
        organ: float(np.median([true.organs_hu[organ] for true, _ in phantoms if organ in true.organs_hu]))
        for organ in ORGANS
        if any(organ in true.organs_hu for true, _ in phantoms)
    }
    noise = [true.liver_noise_hu for true, _ in phantoms if true.liver_noise_hu is not None]
    expected_noise = float(np.median(noise)) if noise else None
    return {
        "measurement": REPORT_NAME,
        "bundle": bundle.name,
        "bundle_fingerprint": bundle.fingerprint,
        "settings": asdict(settings),
        "expected_hu": expected,
        "expected_liver_noise_hu": expected_noise,
        "criteria": list(_criteria(images, expected, expected_noise, views)),
        "images": [asdict(image) for image in images],
        "phantoms": [{"true": asdict(true), "drawn": asdict(drawn)} for true, drawn in phantoms],
        "fields_of_view": [{"width_mm": width, "liver_hu": median} for width, median in views],
    }


def _criteria(
    images: Sequence[ImageFigures],
    expected: Mapping[str, float],
    expected_noise: float | None,
    views: Sequence[tuple[float, float]],
) -> list[dict[str, Any]]:
    organs = [
        abs(image.organs_hu[organ] - expected[organ]) <= ORGAN_TOLERANCE_HU
        for image in images
        for organ in image.labelled
        if organ in expected
    ]
    fat, muscle = ([value for image in images if (value := getattr(image, name)) is not None] for name in _TISSUES)
    noise = [image.liver_noise_hu for image in images if image.liver_noise_hu is not None]
    livers = [median for _, median in views]
    rows = (
        (f"labelled organs within {ORGAN_TOLERANCE_HU:.0f} HU of phantoms'", organs),
        (f"unlabelled fat from {FAT_RANGE_HU[0]:.0f} to {FAT_RANGE_HU[1]:.0f} HU", [_in(v, FAT_RANGE_HU) for v in fat]),
        (
            f"unlabelled muscle from {MUSCLE_RANGE_HU[0]:.0f} to {MUSCLE_RANGE_HU[1]:.0f} HU",
            [_in(v, MUSCLE_RANGE_HU) for v in muscle],
        ),
        ("liver noise within 20% of phantoms'", [abs(v / expected_noise - 1) <= 0.2 for v in noise if expected_noise]),
        (
            f"liver within {ORGAN_TOLERANCE_HU:.0f} HU over all widths of a slice",
            [max(livers) - min(livers) <= ORGAN_TOLERANCE_HU] if livers else [],
        ),
    )
    return [{"name": name, "found": share_of(flags), "num": len(flags)} for name, flags in rows]


_TISSUES: Final = ("fat_hu", "muscle_hu")


def _in(value: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= value <= bounds[1]


@from_clean_document
def to_report(document: Mapping[str, Any]) -> str:
    """Format the figures of the study real maps as Markdown."""
    expected = document["expected_hu"]
    organs = list(expected)

    def row(image: Mapping[str, Any]) -> list[Cell]:
        cells: list[Cell] = [image["name"]]
        cells += [image["organs_hu"].get(organ) for organ in organs]
        return [*cells, image["fat_hu"], image["muscle_hu"], percent(image["between"]), image["liver_noise_hu"]]

    header = ["image", *organs, "fat", "muscle", "between", "liver noise"]
    drawn = [row(pair["drawn"]) for pair in document["phantoms"]]
    true = [row(pair["true"]) for pair in document["phantoms"]]
    parts = [
        f"# Does the bundle draw a stranger's map? Bundle {document['bundle']}\n",
        f"Bundle {document['bundle_fingerprint'][:12]}, seed {document['settings']['seed']}.\n",
        to_markdown(
            ["criterion", "met by", "of"],
            [[row["name"], percent(row["found"]), row["num"]] for row in document["criteria"]],
        ),
        "## Real maps, medians in HU of all organs of the full map, labelled or left out\n",
        to_markdown(
            header,
            [["phantoms", *expected.values(), None, None, None, document["expected_liver_noise_hu"]]]
            + [row(image) for image in document["images"]],
            num_digits=0,
        ),
        "## Held-out phantoms, and what the bundle makes of their maps\n",
        to_markdown(header, [cells for pair in zip(true, drawn, strict=True) for cells in pair], num_digits=0),
        "## One phantom in other fields of view\n",
        to_markdown(
            ["width of a slice, mm", "liver, HU"],
            [[f"{view['width_mm']:.0f}", view["liver_hu"]] for view in document["fields_of_view"]],
            num_digits=0,
        ),
    ]
    return "\n".join(parts)


def _draw_tile(image_hu: NDArray[np.int16], grid: Grid, title: str) -> Image.Image:
    """The middle axial and the middle coronal slice."""
    panels = [
        draw_slice(image_hu, plane, plane.size_px(grid, PIXELS_PER_MM), SOFT_TISSUE)
        for plane in (Plane("axial", grid.shape[2] // 2), Plane("coronal", grid.shape[1] // 2))
    ]
    tile = Image.new("RGB", (sum(p.width for p in panels), 20 + max(p.height for p in panels)), BACKGROUND)
    left = 0
    for panel in panels:
        tile.paste(panel, (left, 20))
        left += panel.width
    write_text(tile, (4, 2), title, size_px=12)
    return tile


def lay_out_tiles(tiles: Sequence[Image.Image], num_columns: int = 3) -> Image.Image:
    """Return a picture of tiles, row after row."""
    num_columns = min(num_columns, len(tiles))
    width, height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    sheet = Image.new("RGB", (num_columns * width, -(-len(tiles) // num_columns) * height), BACKGROUND)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, num_columns)
        sheet.paste(tile, (column * width, row * height))
    return sheet


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    defaults = RealMapSettings()
    parser = argparse.ArgumentParser(
        prog="python -m maisi_aug.evaluation.studies.real_maps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", default="phantom-ct", help="name of a bundle, or its folder")
    parser.add_argument("--maps", type=Path, required=True, help="folder of label maps with their CTs")
    parser.add_argument("--mapping", default="auto", help="what their ids mean, as synthesize --mask-labels takes it")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--num-subsets", type=int, default=defaults.num_subsets, help="turns with labels left out")
    parser.add_argument("--num-phantoms", type=int, default=defaults.num_phantoms, help="held-out phantoms")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument(
        "--modality",
        default=defaults.modality,
        choices=("ct", "ct_contrast", "ct_wo_contrast"),
        help="contrast agent that the bundle is conditioned on",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this module's command line: measure, write and print the report; return the exit code."""
    options = _parse(arguments)

    def body() -> None:
        settings = RealMapSettings(options.num_subsets, options.num_phantoms, options.seed, options.modality)
        document = measure_real_maps(
            load_bundle(options.bundle),
            options.maps,
            options.out,
            settings=settings,
            mapping=options.mapping,
            device=options.device,
            report=print_progress("image"),
        )
        print(to_report(document))

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
