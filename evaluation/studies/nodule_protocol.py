r"""Do inserted nodules help a segmenter that has few real patients? Arms that differ in their training nodules alone.

    python -m maisi_aug.evaluation.studies.nodule_protocol LIDC CHESTS --out runs/nodules --patients 3 --draws 3

``LIDC`` holds crops around real nodules: ``images/``, ``labels/`` (1 = nodule) and ``index.csv`` with the columns file,
patient and split. Rows of the split "train" are drawn from; those of "val" are tested on, or every nodule of
``--test FOLDER``. ``CHESTS`` holds whole CTs that nodules go into. Every pool of nodules and every training is kept in
OUT: the same command continues from there, and with more draws, seeds, arms or patients adds to it. After every draw
``OUT/nodule_protocol_trainings.csv`` lists the Dice of all trainings so far, a row each; another folder continues from
such a table with ``--resume-from``.

Arms: ``real`` alone; real with half of every batch from ``copy-paste`` of the same patients' nodules, from the
``procedural`` painter, from a bundle's ``network``, or from the ``oracle``, nodules of other training patients, pasted;
``synthetic`` procedural ones alone; and a ``threshold``, which needs no training. All see the same number of steps, of
patches that show every nodule equally often. A bundle that has learnt from the training patients knows more than the
few real patients of its arm: the oracle does, too, and is what to compare it with.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from maisi_aug.errors import EvaluationError
from maisi_aug.evaluation.output.files import run_command, save_results, to_markdown
from maisi_aug.evaluation.scores.statistics import adjust_holm
from maisi_aug.evaluation.studies import nodule_pools as pools
from maisi_aug.evaluation.studies import nodule_slices as slices
from maisi_aug.evaluation.studies.nodule_slices import NoduleStack
from maisi_aug.system.content import read_json
from maisi_aug.system.seeds import derive_seed, numpy_generator
from maisi_aug.system.whole_files import write_json_whole, write_text_whole

REPORT_NAME: Final = "nodule_protocol"
TABLE_NAME: Final = "nodule_protocol_trainings.csv"
FACTS: Final = ("steps", "share", "nodules")
"""What a training depends on apart from its name, as columns of the table."""
NUM_DIGITS: Final = 4
"""Decimals of the Dice that are kept."""
ARMS: Final = ("real", "copy-paste", "procedural", "network", "oracle", "synthetic", "threshold")
CLASSES_MM: Final = {"all": (0.0, 1e9), "under 6 mm": (0.0, 6.0), "6-10 mm": (6.0, 10.0), "10 mm and more": (10.0, 1e9)}
NUM_RESAMPLES: Final = 10_000


@dataclass(frozen=True)
class Settings:
    """Settings of the nodule protocol's trainings.

    Attributes:
        patients: Numbers of real training patients.
        draws: Number of draws of the training patients.
        seeds: Number of trainings of each draw.
        arms: Names from ``ARMS``; the others are compared with the first.
        num_steps: Number of steps of a training.
        num_nodules: Number of nodules in a pool.
        share: Fraction of synthetic nodules in a batch.
        bundle: Bundle that draws the nodules of the arm ``network``.
    """

    patients: tuple[int, ...]
    draws: int
    seeds: int
    arms: tuple[str, ...]
    num_steps: int
    num_nodules: int
    share: float
    bundle: str


@dataclass(frozen=True)
class Protocol:
    """Data, settings and folder of a run of the nodule protocol."""

    lidc: Path
    chests: Path
    test: Path | None
    out: Path
    settings: Settings

    @cached_property
    def train(self) -> list[NoduleStack]:
        """Real nodules from which training patients are drawn."""
        return slices.load_nodules(self.lidc, "train")

    @cached_property
    def tested(self) -> list[NoduleStack]:
        """Real nodules on which is tested."""
        return slices.load_nodules(self.lidc, "val") if self.test is None else slices.load_nodules(self.test, None)

    @cached_property
    def cts(self) -> list[pools.ChestCt]:
        """Whole chest CTs into which nodules are inserted."""
        return pools.load_chests(self.chests)

    def real_nodules(self, num_patients: int, draw: int) -> tuple[list[NoduleStack], list[NoduleStack]]:
        """Return the nodules of the training patients of a draw, and those of all others."""
        patients = sorted({stack.patient for stack in self.train})
        chosen = set(numpy_generator(draw, f"patients/{num_patients}").permutation(patients)[:num_patients].tolist())
        own = [stack for stack in self.train if stack.patient in chosen]
        return own, [stack for stack in self.train if stack.patient not in chosen]

    def pool(self, arm: str, num_patients: int, draw: int) -> list[NoduleStack]:
        """Return the synthetic nodules of an arm, made once and kept; inserted ones are the same for all draws."""
        is_drawn = arm in ("procedural", "synthetic", "network")
        name = {"synthetic": "procedural"}.get(arm, arm) if is_drawn else f"{arm}-{num_patients}-{draw}"
        path = self.out / "pools" / f"{name}.npz"
        if not path.is_file():
            tell(f"Making the pool {name}")
            number, seed = self.settings.num_nodules, derive_seed("pool", name)
            if is_drawn:
                pool = pools.draw_pool(
                    self.cts,
                    pools.open_painter(self.settings.bundle if name == "network" else name),
                    num_nodules=number,
                    seed=seed,
                )
            else:
                own, others = self.real_nodules(num_patients, draw)
                donors = own if arm == "copy-paste" else others
                pool = pools.paste_pool(self.cts, donors, num_nodules=number, seed=seed)
            pools.save_pool(path, pool)
        return pools.load_pool(path)

    def scores(self, arm: str, num_patients: int, draw: int, seed: int) -> list[float]:
        """Return the Dice of every tested nodule after one training, whose result is kept."""
        if arm == "threshold":
            return [slices.dice(stack.mask, slices.find_by_threshold(stack)) for stack in self.tested]
        path = self.out / "trainings" / f"{arm}-{num_patients}-{draw}-{seed}.json"
        if path.is_file():
            held: dict[str, Any] = read_json(path)
            self._require_own(arm, held, path, "Choose another --out.")
            return [round(value, NUM_DIGITS) for value in held["dice"]]
        tell(f"Training {arm}, {num_patients} patients, draw {draw}, seed {seed}")
        facts = self._facts(arm)
        network = slices.train_segmenter(
            self.real_nodules(num_patients, draw)[0],
            self.pool(arm, num_patients, draw) if facts["nodules"] else [],
            share=facts["share"],
            num_steps=facts["steps"],
            seed=derive_seed("training", draw, seed),
        )
        dice = [slices.dice(stack.mask, slices.find_nodule(network, stack)) for stack in self.tested]
        found = [round(value, NUM_DIGITS) for value in dice]
        self._keep(path, {"names": self.tested_names, **facts, "dice": found})
        return found

    def take_table(self, table: Path) -> None:
        """Take over the trainings of a table that are not in the folder yet.

        Raises:
            EvaluationError: The file is no such table, or that of another protocol.
        """
        with table.open(encoding="utf-8", newline="") as lines:
            head, *rows = list(csv.reader(lines)) or [[]]
        if tuple(head[: 1 + len(FACTS)]) != ("training", *FACTS) or any(len(row) != len(head) for row in rows):
            raise EvaluationError(
                f"{table}: expected the columns training, {', '.join(FACTS)} and one for every nodule. "
                f"Give the {TABLE_NAME} of a run."
            )
        for row in rows:
            name, *values = row
            numbers = [float(value) for value in values]
            held = {
                "names": head[1 + len(FACTS) :],
                **dict(zip(FACTS, numbers, strict=False)),
                "dice": numbers[len(FACTS) :],
            }
            arm = name.rsplit("-", 3)[0]
            self._require_own(arm, held, table, "Give the settings that it was made with.")
            path = self.out / "trainings" / f"{name}.json"
            if not path.is_file():
                self._keep(path, held)

    def save_table(self) -> None:
        """Write the table of all trainings of the folder."""
        rows = []
        for path in sorted((self.out / "trainings").glob("*.json")):
            held = read_json(path)
            facts = [f"{held[key]:g}" for key in FACTS]
            rows.append([path.stem, *facts, *(f"{value:.{NUM_DIGITS}f}" for value in held["dice"])])
        lines = [",".join(row) for row in [["training", *FACTS, *self.tested_names], *rows]]
        write_text_whole(self.out / TABLE_NAME, "\n".join(lines) + "\n")

    @cached_property
    def tested_names(self) -> list[str]:
        """Names of the tested nodules."""
        return [stack.name for stack in self.tested]

    def _facts(self, arm: str) -> dict[str, Any]:
        share = {"real": 0.0, "synthetic": 1.0}.get(arm, self.settings.share)
        nodules = 0 if arm == "real" else self.settings.num_nodules
        return dict(zip(FACTS, (self.settings.num_steps, share, nodules), strict=True))

    def _require_own(self, arm: str, held: Mapping[str, Any], path: Path, advice: str) -> None:
        facts = self._facts(arm)
        if held["names"] != self.tested_names or any(held[key] != facts[key] for key in FACTS):
            raise EvaluationError(f"{path}: not a training of this protocol. {advice}")

    @staticmethod
    def _keep(path: Path, held: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_whole(path, held)


def run_protocol(protocol: Protocol) -> dict[str, Any]:
    """Run the missing trainings, and compare the arms; returns figures as a JSON-able dict."""
    settings = protocol.settings
    results = []
    for number in settings.patients:
        # (draws, seeds, nodules) by arm; draw by draw, so that what is there early is balanced.
        by_arm: dict[str, list[list[list[float]]]] = {arm: [] for arm in settings.arms}
        for draw in range(settings.draws):
            for arm in settings.arms:
                by_arm[arm].append([protocol.scores(arm, number, draw, seed) for seed in range(settings.seeds)])
            protocol.save_table()
        results.append(compare_arms({arm: np.array(held) for arm, held in by_arm.items()}, protocol.tested, number))
    return {
        "measurement": REPORT_NAME,
        "settings": {**vars(settings)},
        "tested_on": "the split 'val'" if protocol.test is None else "a folder of test patients",
        "num_test_nodules": len(protocol.tested),
        "num_test_patients": len({stack.patient for stack in protocol.tested}),
        "num_backgrounds": len(protocol.cts),
        "results": results,
    }


def compare_arms(
    scores: Mapping[str, NDArray[np.float64]], tested: Sequence[NoduleStack], num_patients: int
) -> dict[str, Any]:
    """Return the mean Dice of every arm and size class, and its difference to the first arm.

    Intervals are from a paired bootstrap over test patients and draws, the same in both arms. The p-value is twice the
    smaller fraction of bootstrap differences on one side of zero, with Holm's correction over the arms of a class.

    Args:
        scores: Arm -> ``(draws, seeds, nodules)`` Dice.
        tested: Tested nodules.
        num_patients: Number of real patients that were trained on.
    """
    first = next(iter(scores))
    rows = []
    for name, (low, high) in CLASSES_MM.items():
        chosen = np.array([low <= stack.diameter_mm < high for stack in tested])
        if not chosen.any():
            continue
        patients = [stack.patient for stack, is_in in zip(tested, chosen, strict=True) if is_in]
        by_patient = {arm: _mean_of_patients(held[..., chosen], patients) for arm, held in scores.items()}
        differences = {arm: by_patient[arm] - by_patient[first] for arm in scores if arm != first}
        tests = {arm: bootstrap_difference(held, seed=num_patients) for arm, held in differences.items()}
        adjusted = adjust_holm([test[2] for test in tests.values()])
        for arm, held in by_patient.items():
            row: dict[str, Any] = {
                "class": name,
                "arm": arm,
                "num_nodules": int(chosen.sum()),
                "dice": float(held.mean()),
            }
            if arm in tests:
                spread, place = tests[arm], list(tests).index(arm)
                row |= {"gain": float(differences[arm].mean()), "interval": [*spread[:2]], "p_holm": adjusted[place]}
            rows.append(row)
    return {"num_patients": num_patients, "first_arm": first, "rows": rows}


def _mean_of_patients(dice: NDArray[np.float64], patients: Sequence[str]) -> NDArray[np.float64]:
    """``(draws, patients)``: means over seeds and the nodules of a patient."""
    names = np.array(patients)
    columns = [dice[..., names == name].mean(axis=(1, 2)) for name in dict.fromkeys(patients)]
    return np.stack(columns, axis=1)


def bootstrap_difference(differences: NDArray[np.float64], *, seed: int) -> tuple[float, float, float]:
    """Return the ends of the 95% interval of a mean over draws and patients, and its two-sided p-value.

    Args:
        differences: ``(draws, patients)`` differences of Dice.
        seed: Seed of the resampling.
    """
    rng = numpy_generator(seed, "protocol")
    num_draws, num_patients = differences.shape
    weights = [
        rng.multinomial(number, np.full(number, 1 / number), size=NUM_RESAMPLES) / number
        for number in (num_draws, num_patients)
    ]
    means = np.einsum("rd,dn,rn->r", weights[0], differences, weights[1], optimize=True)
    low, high = np.percentile(means, [2.5, 97.5])
    tail = min(float((means <= 0).mean()), float((means >= 0).mean()))
    return float(low), float(high), min(1.0, 2 * max(tail, 1 / NUM_RESAMPLES))


def to_report(document: Mapping[str, Any]) -> str:
    """Format the figures of the nodule protocol as Markdown."""
    settings = document["settings"]
    parts = [
        "# Inserted nodules for segmenters with few patients\n",
        f"Dice on {document['num_test_nodules']} nodules of {document['num_test_patients']} patients "
        f"({document['tested_on']}), {settings['draws']} draws of the training patients, {settings['seeds']} trainings "
        f"of each, {settings['num_steps']} steps of a 2.5D U-Net, pools of {settings['num_nodules']} nodules in "
        f"{document['num_backgrounds']} CTs, {settings['share']:.0%} of a batch synthetic. Gains are over the first "
        "arm, with the 95% interval of a paired bootstrap over patients and draws, and p after Holm.\n",
    ]
    for result in document["results"]:
        rows = [
            [
                *(row["class"], row["arm"], row["num_nodules"], row["dice"]),
                "" if "gain" not in row else f"{row['gain']:+.3f}",
                "" if "gain" not in row else f"{row['interval'][0]:+.3f} to {row['interval'][1]:+.3f}",
                "" if "gain" not in row else f"{row['p_holm']:.3f}",
            ]
            for row in result["rows"]
        ]
        head = ["size", "arm", "nodules", "Dice", "gain", "interval", "p"]
        parts += [f"## {result['num_patients']} real patients\n", to_markdown(head, rows, num_digits=3)]
    return "\n".join(parts)


def tell(message: str) -> None:
    """Print a message about the current step on stderr."""
    sys.stderr.write(f"{message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this module's command line, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lidc", type=Path, help="crops of real nodules with their split")
    parser.add_argument("chests", type=Path, help="whole CTs that nodules go into")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--test", type=Path, help="test on every nodule of this folder instead of the split 'val'")
    parser.add_argument("--patients", type=int, nargs="+", default=[3, 10, 30])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, default=220)
    parser.add_argument("--nodules", type=int, default=200, help="of each pool")
    parser.add_argument("--share", type=float, default=0.5, help="share of synthetic nodules in a batch")
    parser.add_argument("--bundle", default="lung-nodule-ct", help="bundle that draws the nodules of the arm 'network'")
    parser.add_argument("--resume-from", type=Path, help=f"{TABLE_NAME} of a run, whose trainings are not repeated")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    settings = Settings(
        *(tuple(args.patients), args.draws, args.seeds, tuple(args.arms), args.steps, args.nodules),
        share=args.share,
        bundle=args.bundle,
    )

    def body() -> None:
        protocol = Protocol(args.lidc, args.chests, args.test, args.out, settings)
        if args.resume_from is not None:
            protocol.take_table(args.resume_from)
        document = run_protocol(protocol)
        report = to_report(document)
        save_results(args.out, REPORT_NAME, document, report)
        sys.stdout.write(report)

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
