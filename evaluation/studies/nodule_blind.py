r"""Can inserted nodules be distinguished from real ones? Pictures for a blind test, and a small classifier.

    python -m maisi_aug.evaluation.studies.nodule_blind LIDC CHESTS --painter procedural --out runs/blind

OUT gets ``blind.png``, real and inserted nodules in random order and numbered, and ``key.csv``, which says which is
which and is not to be opened before ``answers.csv`` is filled in (columns number and kind, real or inserted); with
``--answers`` the share of right answers is printed. The classifier is a logistic regression on figures of the middle
slice (gradients, edge, noise, roundness, surroundings), trained on half of the nodules; its AUC is over the other half.
Real nodules are those of the split "val" of LIDC. Every one is paired with the inserted one of the nearest size, and
both are brought to the coarser voxels of the two and end at the same distance, so that neither size nor resolution nor
the end of a crop tells them apart; then all slices are brought to the same voxels and smoothed alike.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage, optimize, special, stats
from skimage.measure import regionprops

from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.output.files import run_command
from maisi_aug.evaluation.studies.nodule_pools import draw_pool, load_chests, load_pool, open_painter
from maisi_aug.evaluation.studies.nodule_slices import NoduleStack, coarsen_stack, load_nodules
from maisi_aug.pictures.preview import save_picture
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.system.whole_files import write_json_whole, write_text_whole

REPORT_NAME: Final = "nodule_blind"
SIDE: Final = 40
SMOOTHING: Final = 1.0
"""Width in pixels of the smoothing that makes CTs of different voxel sizes alike."""
TILE_PX, COLUMNS, WINDOW_HU = 160, 10, (-1100.0, 300.0)
RIDGE: Final = 1.5
SIZE_STEP: Final = 0.15
"""Largest difference of the logarithms of the diameters of a pair."""
NUM_HALVES: Final = 20
"""Number of random halves over which the AUC is averaged."""


def pair_alike(
    real: Sequence[NoduleStack], inserted: Sequence[NoduleStack]
) -> tuple[list[NoduleStack], list[NoduleStack]]:
    """Pair nodules of similar size and equal resolution, the largest first; nodules without a partner are left out."""
    left, pairs = list(inserted), list[tuple[NoduleStack, NoduleStack]]()
    for stack in sorted(real, key=lambda one: -one.diameter_mm):
        partner = min(left, key=lambda one: abs(np.log(one.diameter_mm / stack.diameter_mm)), default=None)
        if partner is not None and abs(np.log(partner.diameter_mm / stack.diameter_mm)) <= SIZE_STEP:
            left.remove(partner)
            coarser = tuple(max(steps) for steps in zip(stack.spacing_mm, partner.spacing_mm, strict=True))
            pairs.append((coarsen_stack(stack, coarser), coarsen_stack(partner, coarser)))
    if not pairs:
        raise EvaluationError("Nodules: there are no real and inserted ones of the same sizes.")
    return [one for one, _ in pairs], [other for _, other in pairs]


def cut_tiles(pair: Sequence[NoduleStack]) -> list[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Return, for both nodules of a pair, the ``(I, J)`` slice with the largest section, and its mask.

    Crops of patients are small and whole CTs are large, so all are cut to the smallest extent and padded with their
    edge.
    """
    slices = [(stack, int(np.argmax(stack.mask.sum(axis=(1, 2))))) for stack in pair]
    centres = [np.rint(np.argwhere(stack.mask[middle]).mean(axis=0)).astype(int) for stack, middle in slices]
    sides = np.array([stack.mask.shape[1:] for stack in pair])
    before, after = np.min(centres, axis=0), np.min(sides - 1 - centres, axis=0)
    tiles = []
    for (stack, middle), centre in zip(slices, centres, strict=True):
        image, mask = ndimage.gaussian_filter(stack.image_hu[middle], SMOOTHING), stack.mask[middle]
        places = np.ix_(
            *(
                np.clip(np.arange(c - SIDE // 2, c + SIDE // 2), c - b, c + a)
                for c, b, a in zip(centre, before, after, strict=True)
            )
        )
        tiles.append((image[places], mask[places]))
    return tiles


def measure_tile(image: NDArray[np.float32], mask: NDArray[np.bool_]) -> list[float]:
    """Return figures of a picture by which a classifier may distinguish an inserted nodule from a real one."""
    gradient = ndimage.gaussian_gradient_magnitude(image, 1.0)
    inner = mask & (ndimage.distance_transform_edt(mask) >= min(2.0, float(ndimage.distance_transform_edt(mask).max())))
    near = ndimage.binary_dilation(mask, iterations=3) & ~mask
    far = ~ndimage.binary_dilation(mask, iterations=4)
    rim = ndimage.binary_dilation(mask) & ~ndimage.binary_erosion(mask)
    fine = image - ndimage.gaussian_filter(image, 2.0)
    shape = regionprops(mask.astype(np.uint8))[0]
    return [
        *(float(values[where].mean()) for values, where in ((image, inner), (image, near), (image, far))),
        *(float(values[where].std()) for values, where in ((image, inner), (image, near), (image, far), (fine, far))),
        *(float(gradient[where].mean()) for where in (rim, inner, far)),
        float(np.percentile(gradient[rim], 90)),
        float(fine[mask].std()),
        float(shape.solidity),
        float(shape.eccentricity),
    ]


def find_auc(figures: NDArray[np.float64], is_real: NDArray[np.bool_], *, seed: int) -> float:
    """Return the area under the ROC curve of classifiers trained on one random half and applied to the other.

    Args:
        figures: ``(pictures, figures)`` results of :func:`measure_tile`.
        is_real: ``(pictures,)`` whether each nodule is real.
        seed: Seed of the halves.
    """
    rng, found = numpy_generator(seed, "halves"), []
    kinds = [np.flatnonzero(is_real == kind) for kind in (True, False)]
    for _ in range(NUM_HALVES):
        drawn = [rng.permutation(kind) for kind in kinds]
        halves = [np.concatenate([kind[part::2] for kind in drawn]) for part in (0, 1)]
        for trained, tested in (halves, halves[::-1]):
            odds = figures[tested] @ fit_classifier(figures[trained], is_real[trained])
            real, inserted = odds[is_real[tested]], odds[~is_real[tested]]
            found.append(stats.mannwhitneyu(real, inserted).statistic / (len(real) * len(inserted)))
    return float(np.mean(found))


def fit_classifier(figures: NDArray[np.float64], is_real: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Fit a ridge-penalised logistic regression, and return its ``(figures,)`` weights without the intercept."""
    means, deviations = figures.mean(axis=0), figures.std(axis=0) + 1e-9
    scaled, signs = (figures - means) / deviations, np.where(is_real, 1.0, -1.0)

    def lose(weights: NDArray[np.float64]) -> float:
        odds = scaled @ weights[1:] + weights[0]
        return float(-special.log_expit(signs * odds).sum() + RIDGE * weights[1:] @ weights[1:])

    weights: NDArray[np.float64] = optimize.minimize(lose, np.zeros(scaled.shape[1] + 1), method="L-BFGS-B").x
    return np.asarray(weights[1:] / deviations)


def draw_sheet(tiles: Sequence[NDArray[np.float32]]) -> Image.Image:
    """Draw numbered pictures in rows as one sheet."""
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("L", (COLUMNS * TILE_PX, rows * TILE_PX))
    for number, tile in enumerate(tiles):
        grey = np.clip((tile - WINDOW_HU[0]) / (WINDOW_HU[1] - WINDOW_HU[0]), 0, 1) * 255
        picture = Image.fromarray(grey.T[::-1].astype(np.uint8)).resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC)
        ImageDraw.Draw(picture).text((4, 2), str(number + 1), fill=255)
        sheet.paste(picture, (number % COLUMNS * TILE_PX, number // COLUMNS * TILE_PX))
    return sheet


def score_answers(answers: Path, key: Path) -> float:
    """Return the fraction of pictures that a reader classified correctly.

    Raises:
        EvaluationError: The answers do not belong to the key.
    """
    told, true = (
        {row["number"]: row["kind"] for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))}
        for path in (answers, key)
    )
    if told.keys() != true.keys() or not set(told.values()) <= {"real", "inserted"}:
        raise EvaluationError(f"{answers}: expected 'real' or 'inserted' for each of {len(true)} numbers.")
    return float(np.mean([told[number] == kind for number, kind in true.items()]))


def make_test(
    real: Sequence[NoduleStack], inserted: Sequence[NoduleStack], out: Path, *, num_each: int, seed: int
) -> dict[str, Any]:
    """Write the pictures of a reader test and their key, and measure a classifier on all pairs."""
    pairs = [cut_tiles(pair) for pair in zip(*pair_alike(real, inserted), strict=True)]
    rng = numpy_generator(seed, "blind")
    pictures = {"real": [tile for tile, _ in pairs], "inserted": [tile for _, tile in pairs]}
    shown = [
        (kind, held[int(place)][0])
        for kind, held in pictures.items()
        for place in rng.permutation(len(held))[:num_each]
    ]
    order = rng.permutation(len(shown))
    save_picture(out / "blind.png", draw_sheet([shown[place][1] for place in order]))
    key = "".join(f"{number + 1},{shown[place][0]}\n" for number, place in enumerate(order))
    write_text_whole(out / "key.csv", f"number,kind\n{key}")
    figures = np.array([measure_tile(*tile) for held in pictures.values() for tile in held])
    is_real = np.repeat([True, False], [len(held) for held in pictures.values()])
    return {
        "measurement": REPORT_NAME,
        "num_pairs": len(pairs),
        "num_shown": len(shown),
        "auc": find_auc(figures, is_real, seed=seed),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this module's command line: make a reader test or score its answers; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lidc", type=Path)
    parser.add_argument("chests", type=Path)
    parser.add_argument("--painter", default="procedural", help="procedural, or a bundle")
    parser.add_argument("--pool", type=Path, help="inserted nodules of nodule_protocol instead of new ones")
    parser.add_argument("--pictures", type=int, default=40, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--answers", type=Path, help="score these instead")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)

    def body() -> None:
        if args.answers is not None:
            sys.stdout.write(f"{score_answers(args.answers, args.out / 'key.csv'):.0%} answered correctly\n")
            return
        real = [stack for stack in load_nodules(args.lidc, "val") if stack.mask.any()]
        inserted = (
            load_pool(args.pool)
            if args.pool is not None
            else draw_pool(
                load_chests(args.chests), open_painter(args.painter), num_nodules=2 * args.pictures, seed=args.seed
            )
        )
        document = make_test(real, inserted, args.out, num_each=args.pictures, seed=args.seed)
        write_json_whole(args.out / f"{REPORT_NAME}.json", document)
        sys.stdout.write(f"AUC of the classifier: {document['auc']:.2f}\n")

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
