"""Fidelity of a bundle's autoencoder on real CTs: what it cannot draw, no training on its latents will draw.

Every CT is encoded and decoded on its own grid, filled up at its ends to whole latent voxels, one at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from maisi_aug.bundle_spec.bundle import Bundle
from maisi_aug.bundle_spec.decoding import ComputeType, DecodingConfig, latent_factor
from maisi_aug.errors import MaisiAugError
from maisi_aug.evaluation.cohort import image_fidelity as fidelity
from maisi_aug.evaluation.cohort.case_sets import (
    CaseSet,
    EvaluatedCase,
    describe_skipped,
    measure_each_on,
    spell_skipped,
)
from maisi_aug.evaluation.fid.lpips import MIN_SIDE, PerceptualDistance, load_perceptual_distance
from maisi_aug.evaluation.output.charts import DotRow, draw_dot_chart
from maisi_aug.evaluation.output.files import to_markdown
from maisi_aug.evaluation.scores.statistics import interval_of_mean
from maisi_aug.networks.building import compute_in
from maisi_aug.networks.decoder import Decoder
from maisi_aug.networks.encoder import Encoder
from maisi_aug.networks.pipeline import choose_image_precision, resolve_device
from maisi_aug.networks.weights import load_autoencoder
from maisi_aug.pictures.slices import BACKGROUND, DIM_TEXT, SOFT_TISSUE, Plane, Window, draw_slice, write_text
from maisi_aug.system.engine.work import Engine, WorkerPlace
from maisi_aug.system.printed_text import from_clean_document, spell_count
from maisi_aug.system.progress import Report
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.training.cases.data import encode_image
from maisi_aug.vocabulary.labels import BACKGROUND_ID, BODY_ID
from maisi_aug.volumes.grid import Grid

REPORT_NAME: Final = "reconstruction"
PICTURE_NAME: Final = "worst_slices.png"
METRICS: Final = ("psnr_db", "ssim", "lpips", "mean_error_hu", "blur_mm")
NUM_WORST: Final = 4
NUM_LPIPS_SLICES: Final = 24
PANEL_PX: Final = 230
DIFFERENCE: Final = Window("difference", 0.0, 400.0)


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """Measurements of one CT that an autoencoder encoded and decoded.

    Attributes:
        case_id: Name of the case.
        figures: Name in ``METRICS`` -> figure; None for what could not be measured.
        tissues: Tissue -> HU error.
        labels: Label id -> HU error; empty without a label map.
        spectrum: Spatial frequencies in cycles per mm, and fraction of the power preserved.
        note: Note on missing labels or an unsuitable grid; may be empty.
        worst: Axial slice with the largest mean error, ``(I, J, 1)`` each of CT and reconstruction.
        grid: Grid of that slice.
        peak_memory_gb: Peak memory in GB, see :func:`find_peak_memory_gb`, of the process that measured the case.
        device: Device of the computation.
        precision: Precision of the networks.
    """

    case_id: str
    figures: dict[str, float | None]
    tissues: dict[str, fidelity.Error]
    labels: dict[int, fidelity.Error]
    spectrum: tuple[NDArray[np.float64], NDArray[np.float64]]
    note: str
    worst: tuple[NDArray[np.float32], NDArray[np.float32]]
    grid: Grid
    peak_memory_gb: dict[str, float | None]
    device: str
    precision: str


class LpipsWeights(NamedTuple):
    """Weights of SqueezeNet 1.1, for LPIPS.

    Attributes:
        place: Path or https address of the weights.
        sha256: SHA-256 of the file; required for an address.
    """

    place: str
    sha256: str | None = None


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """The autoencoder of a bundle on a device.

    Attributes:
        bundle: Bundle of the autoencoder.
        device: Device on which it runs.
        precision: Precision to compute in.
        decoder: Holds it; takes less at once where memory is short.
        encoder: Holds it, too, and does likewise.
        memory_gb: Memory for either; None for what is free.
    """

    bundle: Bundle
    device: str
    precision: ComputeType
    decoder: Decoder
    encoder: Encoder
    memory_gb: float | None = None

    @classmethod
    def load(cls, bundle: Bundle, device: str, *, memory_gb: float | None = None) -> Autoencoder:
        """Load only the autoencoder of a bundle onto a device.

        Args:
            bundle: Bundle of the autoencoder.
            device: Name of the torch device.
            memory_gb: Memory in GB for encoding and for decoding; None for what is free.

        Raises:
            BundleError: The weight file is missing or altered.
        """
        network = load_autoencoder(bundle, device=device)
        # Latents are not scaled on their way from encoder to decoder.
        decoder = Decoder(network, bundle.definition("autoencoder"), 1.0, bundle.spec.decode_window)
        precision = choose_image_precision("auto", bundle, device)
        return cls(bundle, device, precision, decoder, Encoder(network, memory_gb), memory_gb)

    def rebuild(self, image_hu: NDArray[Any]) -> NDArray[np.float32]:
        """Encode a CT to a latent and decode it again.

        Args:
            image_hu: ``(I, J, K)`` CT in HU, of any shape; not modified.

        Returns:
            ``(I, J, K)`` reconstruction in HU, within [-1000, 1000].

        Raises:
            MemoryShortageError: The memory does not suffice for any number of parts.
        """
        factor = latent_factor(self.bundle.definition("autoencoder"))
        filled = np.pad(image_hu, [(0, -side % factor) for side in image_hu.shape], mode="edge")
        with torch.inference_mode(), compute_in(self.precision, self.device):
            latent = encode_image(filled, self.encoder, self.device)[None].float()
            decoded, _ = self.decoder.decode(latent, DecodingConfig(memory_gb=self.memory_gb))
        i, j, k = image_hu.shape
        unit: NDArray[np.float32] = decoded[0, 0, :i, :j, :k].float().cpu().numpy()
        return unit * np.float32(fidelity.HIGH_HU - fidelity.LOW_HU) + np.float32(fidelity.LOW_HU)


def measure_reconstruction(
    case_set: CaseSet,
    bundle: Bundle,
    notify: Report,
    *,
    engine: Engine,
    lpips: LpipsWeights | None = None,
    memory_gb: float | None = None,
) -> tuple[dict[str, Any], Image.Image]:
    """Encode and decode every CT, and compare the result with the CT.

    Args:
        case_set: CTs; where they have label maps, errors are given by label as well.
        bundle: Bundle of the autoencoder.
        notify: Called with cases done and cases in all.
        engine: Runs the workers, each of which loads the autoencoder once.
        lpips: Weights for LPIPS; None leaves it out.
        memory_gb: Memory for encoding and for decoding; None for what is free.

    Returns:
        The document, and a picture of the worst slices.

    Raises:
        EvaluationError: When no case can be read.
    """
    network = None if lpips is None else load_perceptual_distance(lpips.place, sha256=lpips.sha256).name
    cases, skipped = measure_each_on(
        engine,
        case_set.cases,
        lambda case: case.case_id,
        partial(_open_autoencoder, case_set, bundle, lpips, memory_gb),
        notify,
        reads=(bundle.path, case_set.path),
    )
    vocabulary = case_set.vocabulary
    by_label: dict[str, list[fidelity.Error]] = {}
    for case in cases:
        for label_id, error in case.labels.items():
            name = vocabulary.name_of(label_id) if vocabulary.contains(label_id) else f"label {label_id}"
            by_label.setdefault(name, []).append(error)
    tissues = {name: [c.tissues[name] for c in cases if name in c.tissues] for name, _, _ in fidelity.TISSUES}
    document = {
        "measurement": REPORT_NAME,
        "path": str(case_set.path),
        "bundle": {"name": bundle.name, "fingerprint": bundle.fingerprint[:16]},
        "device": ", ".join(sorted({case.device for case in cases})),
        "precision": ", ".join(sorted({case.precision for case in cases})),
        "lpips_network": network,
        "num_cases": len(cases),
        "summary": {name: _summarise([case.figures[name] for case in cases]) for name in METRICS},
        "tissues": [_describe_errors(name, errors) for name, errors in tissues.items() if errors],
        "labels": [_describe_errors(name, errors) for name, errors in sorted(by_label.items())],
        "spectrum": _average_spectra([case.spectrum for case in cases]),
        "peak_memory_gb": {
            kind: max((most for case in cases if (most := case.peak_memory_gb[kind]) is not None), default=None)
            for kind in ("host", "gpu")
        },
        "notes": [f"{case.case_id}: {case.note}" for case in cases if case.note],
        "cases": [{"case": case.case_id, **case.figures} for case in cases],
        "skipped": describe_skipped([*case_set.skipped, *skipped]),
    }
    worst = sorted(cases, key=lambda case: case.figures["psnr_db"] or 0.0)[:NUM_WORST]
    return document, draw_worst(worst)


def _open_autoencoder(
    case_set: CaseSet, bundle: Bundle, lpips: LpipsWeights | None, memory_gb: float | None, place: WorkerPlace
) -> Callable[[EvaluatedCase], Rebuilt]:
    device = resolve_device(place.device)
    perceptual = None
    if lpips is not None:
        perceptual = load_perceptual_distance(lpips.place, sha256=lpips.sha256, device=device)
    return partial(_measure_case, case_set, Autoencoder.load(bundle, device, memory_gb=memory_gb), perceptual)


def _measure_case(
    case_set: CaseSet, autoencoder: Autoencoder, perceptual: PerceptualDistance | None, case: EvaluatedCase
) -> Rebuilt:
    image, label_map, note = case.load_image(), None, ""
    if case.has_label_map:
        try:
            label_map = case_set.load_pair(case)[1]
        except MaisiAugError as error:  # the CT can be compared all the same
            note = f"its label map is ignored. {error}"
    limits = autoencoder.bundle.spec.grid_limits
    if limits is not None and not limits.admits(image.grid):
        note = f"the networks of the bundle were not trained on its grid. {note}".rstrip()
    rebuilt = autoencoder.rebuild(image.array)
    units = fidelity.to_unit(image.array), fidelity.to_unit(rebuilt)
    frequencies, kept = fidelity.measure_spectrum(*units, image.grid.spacing_mm)
    errors = np.abs(units[0] - units[1]).mean(axis=(0, 1))
    place = int(errors.argmax())
    labels = {} if label_map is None else fidelity.measure_labels(image.array, rebuilt, label_map)
    figures = {
        "psnr_db": fidelity.measure_psnr(*units),
        "ssim": fidelity.measure_ssim(*units),
        "lpips": None if perceptual is None else _measure_lpips(*units, perceptual),
        "mean_error_hu": float(np.abs(rebuilt - image.array).mean(dtype=np.float64)),
        "blur_mm": fidelity.find_blur(frequencies, kept),
    }
    return Rebuilt(
        case.case_id,
        figures,
        fidelity.measure_tissues(image.array, rebuilt),
        {label_id: error for label_id, error in labels.items() if label_id not in (BACKGROUND_ID, BODY_ID)},
        (frequencies, kept),
        note,
        (image.array[:, :, place : place + 1].astype(np.float32), rebuilt[:, :, place : place + 1]),
        Grid.from_spacing((*image.array.shape[:2], 1), image.grid.spacing_mm),
        find_peak_memory_gb(autoencoder.device),
        autoencoder.device,
        autoencoder.precision,
    )


def _measure_lpips(
    original: NDArray[np.float32], rebuilt: NDArray[np.float32], perceptual: PerceptualDistance
) -> float | None:
    """Mean over axial slices, evenly spread; None where they are too small for the network."""
    if min(original.shape[:2]) < MIN_SIDE:
        return None
    places = np.unique(np.linspace(0, original.shape[2] - 1, NUM_LPIPS_SLICES).round().astype(int))
    stacks = (np.ascontiguousarray(np.moveaxis(image[:, :, places], 2, 0)) for image in (original, rebuilt))
    return float(perceptual.measure(*stacks).mean())


def find_peak_memory_gb(device: str) -> dict[str, float | None]:
    """Return the peak memory in GB of this process and of its GPU so far; None if unknown."""
    host = None
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    return {"host": host, "gpu": torch.cuda.max_memory_allocated(device) / 1e9 if device.startswith("cuda") else None}


def _summarise(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean over cases with its interval, and the worst."""
    known = np.array([value for value in values if value is not None and np.isfinite(value)])
    if not len(known):
        return {"num_cases": 0, "mean": None, "low": None, "high": None, "least": None, "most": None}
    ends = {"mean": float(known.mean()), "low": None, "high": None}
    if len(known) > 1:
        ends = interval_of_mean(known[None], rng=numpy_generator(0, "reconstruction")).to_json()
    return {"num_cases": len(known), **ends, "least": float(known.min()), "most": float(known.max())}


def _describe_errors(name: str, errors: Sequence[fidelity.Error]) -> dict[str, Any]:
    """Means over cases, each counting once."""
    kept = [error.contrast_kept for error in errors if error.contrast_kept is not None]
    rows = [asdict(error) for error in errors]
    return {
        "name": name,
        "num_cases": len(errors),
        "num_voxels": sum(error.num_voxels for error in errors),
        "bias_hu": float(np.mean([row["bias_hu"] for row in rows])),
        "mean_error_hu": float(np.mean([row["mean_error_hu"] for row in rows])),
        "contrast_kept": float(np.median(kept)) if kept else None,
    }


def _average_spectra(spectra: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> list[dict[str, float]]:
    """Median over cases of the power kept, by half the wave's length in mm; cases of other voxels have other bands."""
    longest = max(spectra, key=lambda spectrum: len(spectrum[0]))[0]
    rows = []
    for place, frequency in enumerate(longest):
        kept = [k[place] for f, k in spectra if len(f) > place and np.isclose(f[place], frequency, rtol=0.1)]
        if kept:
            rows.append({"width_mm": float(0.5 / frequency), "power_kept": float(np.median(kept))})
    return rows


@from_clean_document
def to_report(document: Mapping[str, Any]) -> str:
    """Format the figures of reconstruction as Markdown."""
    words = {
        "psnr_db": "PSNR, dB",
        "ssim": "SSIM",
        "lpips": "LPIPS",
        "mean_error_hu": "mean absolute error, HU",
        "blur_mm": "width of structures that lose half of their power, mm",
    }
    lpips, bundle = document["lpips_network"], document["bundle"]["name"]
    rows = [
        [words[name], row["num_cases"], row["mean"], row["low"], row["high"], row["least"], row["most"]]
        for name, row in document["summary"].items()
        if name != "lpips" or lpips
    ]
    parts = [
        f"# What the autoencoder of {bundle} preserves of {spell_count(document['num_cases'], 'CT')}\n",
        f"Encoded and decoded on their own grids in {document['precision']} on {document['device']}. PSNR and SSIM are "
        "of HU clipped to -1000..1000, in three dimensions. "
        + (f"LPIPS: {lpips}, of axial slices." if lpips else "LPIPS: not measured without --lpips-weights.")
        + f" Most memory held: {_spell_memory(document['peak_memory_gb'])}.\n",
        to_markdown(["", "cases", "mean", "95% from", "to", "least", "most"], rows, num_digits=3),
        "## HU error by tissue, by the HU of the CT\n",
        _error_table(document["tissues"]),
    ]
    if document["labels"]:
        parts += [
            "## HU error by label\n",
            (
                "Contrast kept: of the label to a shell of two voxels around it; 1 means all of it, below 0.5 the "
                "label is hardly drawn.\n"
            ),
            _error_table(document["labels"]),
        ]
    parts += [
        "## Power kept, by width of structures\n",
        "Noise has power as well: losses below the grain of the noise need not be structure.\n",
        to_markdown(["width, mm", "power kept"], ([r["width_mm"], r["power_kept"]] for r in document["spectrum"])),
        *(f"- {note}\n" for note in document["notes"]),
    ]
    return "\n".join([*parts, *spell_skipped(document["skipped"])])


def _error_table(rows: Sequence[Mapping[str, Any]]) -> str:
    keys = ("name", "num_cases", "num_voxels", "bias_hu", "mean_error_hu", "contrast_kept")
    header = ["", "cases", "voxels", "bias, HU", "mean absolute error, HU", "contrast kept"]
    return to_markdown(header, ([row[key] for key in keys] for row in rows))


def _spell_memory(peak: Mapping[str, float | None]) -> str:
    said = [f"{value:.1f} GB of the {name}" for name, value in (("host", peak["host"]), ("GPU", peak["gpu"])) if value]
    return ", ".join(said) or "not known"


def draw_chart(document: Mapping[str, Any]) -> str:
    """Draw bias and mean absolute error by tissue and label as an SVG chart."""
    rows = [
        DotRow(
            row["name"],
            centre=row["bias_hu"],
            interval=(row["bias_hu"] - row["mean_error_hu"], row["bias_hu"] + row["mean_error_hu"]),
            is_marked=row["contrast_kept"] is not None and row["contrast_kept"] < fidelity.HALF,
            note="" if row["contrast_kept"] is None else f"{row['contrast_kept']:.2f}",
        )
        for row in (*document["tissues"], *document["labels"])
    ]
    subtitle = (
        f"{document['bundle']['name']}, {spell_count(document['num_cases'], 'CT')}; line: mean "
        "absolute error; right: contrast kept"
    )
    return draw_dot_chart("HU error of the autoencoder", rows, axis="bias, HU", subtitle=subtitle)


def draw_worst(cases: Sequence[Rebuilt]) -> Image.Image:
    """Draw the slices with the largest errors: CT, reconstruction, and difference from -200 to 200 HU."""
    gap, head = 6, 22
    sheet = Image.new("RGB", (3 * (PANEL_PX + gap) + gap, len(cases) * (PANEL_PX + head + gap) + gap), BACKGROUND)
    for number, case in enumerate(cases):
        top = gap + number * (PANEL_PX + head + gap)
        words = f"{case.case_id}: CT, rebuilt, difference; PSNR {case.figures['psnr_db']:.1f} dB"
        write_text(sheet, (gap, top + 4), words, size_px=13, colour=DIM_TEXT)
        plane = Plane("axial", 0)
        size_px = plane.size_px(case.grid, PANEL_PX / max(case.grid.extent_mm[:2]))
        original, rebuilt = case.worst
        shown = ((original, SOFT_TISSUE), (rebuilt, SOFT_TISSUE), (rebuilt - original, DIFFERENCE))
        for place, (image_hu, window) in enumerate(shown):
            sheet.paste(draw_slice(image_hu, plane, size_px, window), (gap + place * (PANEL_PX + gap), top + head))
    return sheet
