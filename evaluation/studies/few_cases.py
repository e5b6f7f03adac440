"""Do synthetic cases help when only 4 or 8 CTs are labelled? Head-and-neck CTs, several draws of the labelled ones.

    python -m maisi_aug.evaluation.studies.few_cases openkbp --out runs/few

OpenKBP's CTs (ababier/open-kbp, MIT licence): 14 patients are set aside for testing before anything is trained; a base
is trained once on the CTs of the others without their labels, and serves all draws. Of every draw of 4 or 8 labelled
patients a bundle is fine-tuned on that base, draws a cohort on their deformed label maps, and a benchmark compares it
with real cases alone, the same cases several times over, and real cases warped along with their label maps; all arms
are augmented strongly. To fit two hours of one core, all of it sees the jaw alone: a box of 187 x 187 x 160 mm at the
same place of every CT, found without labels, which a training patch spans almost whole.

Every step is a command of the package with a log of its own. What is finished is not done again: the same command
continues, and reports what there is. Draws come in turn, so that all counts have the same number of them. The scores of
finished draws are in ``OUT/few_cases.json``; another folder takes them over with ``--resume-from``.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from maisi_aug.errors import BenchmarkError
from maisi_aug.evaluation.benchmark.arm_scores import ArmScores
from maisi_aug.evaluation.benchmark.run import load_benchmark
from maisi_aug.evaluation.benchmark.text import spell_interval, spell_p, spell_verdict
from maisi_aug.evaluation.output.files import run_command, save_results, to_markdown
from maisi_aug.evaluation.scores.comparison import Comparison, compare_arms
from maisi_aug.evaluation.scores.statistics import find_interval
from maisi_aug.system.content import read_json
from maisi_aug.system.printed_text import spell_count
from maisi_aug.system.seeds import numpy_generator
from maisi_aug.system.whole_files import append_to_shared, write_text_whole
from maisi_aug.training.images.recipe import training_recipe_path
from maisi_aug.training.loop.stopping import TimeLimit
from maisi_aug.volumes.image_files import load_image, load_label_map, save_image, save_label_map
from maisi_aug.volumes.resampling import centre_grid_on, resample_image, resample_label_map

REPORT_NAME: Final = "few_cases"
COSTS_NAME: Final = "costs.jsonl"
TEST_IDS: Final = tuple(f"pt_{n}" for n in (100, 106, 13, 20, 27, 34, 47, 59, 65, 72, 78, 84, 92, 97))
LABELS: Final = {"3": "right parotid", "4": "left parotid", "7": "mandible"}
SHAPE: Final = (48, 48, 64)
SPACING_MM: Final = (3.9, 3.9, 2.5)
GRID: Final = ("--shape", "48x48x64", "--spacing", "3.9x3.9x2.5")
JAW_VOXEL: Final = (64, 75, 80)
"""Centre of the box around parotids and mandible, as a voxel of OpenKBP's 128^3 in RAS+, the same in all patients."""
BASE_RECIPE: Final = "train-small-base"
BASE_STEPS: Final = {"vae": 120, "diffusion": 100, "controlnet": 700}
# Bone, air and muscle by their HU. MAISI has no label for muscles of the neck; without one, fat and muscle are drawn as
# a grey mean of both, and parotids lie between the two. The label of a muscle of the back stands for all of them.
TISSUES: Final = ("skull=200:3000", "airway=-1024:-300", "left autochthon=10:150")
SIZES: Final = "left parotid:0.05-0.95+right parotid+mandible"
CONTROLS: Final = ("real", "real-duplicated")


class Step(NamedTuple):
    """A command of the package.

    Attributes:
        name: Its name in logs and costs; a slash parts the draw from the step.
        words: Its arguments.
    """

    name: str
    words: tuple[str, ...]


class Sizes(NamedTuple):
    """How much is trained.

    Attributes:
        ratio: Added cases per real one.
        finetune_steps: Steps of every fine-tuning.
        arm_steps: Steps of every arm of a benchmark.
    """

    ratio: int
    finetune_steps: int
    arm_steps: int


def write_crops(cts: Path, crops: Path, patients: Sequence[str]) -> None:
    """Write the jaws of CTs and of their label maps on the grid of the networks, unless they are there.

    Label maps keep ``LABELS`` alone: whether a box shows the upper end of the larynx, too, differs between patients.
    """
    wanted = [int(number) for number in LABELS]
    for patient in patients:
        names = [f"{patient}_{kind}.nii.gz" for kind in ("ct", "oar")]
        if all((crops / name).is_file() for name in names):
            continue
        image, labels = load_image(cts / names[0]), load_label_map(cts / names[1])
        centre_mm = (image.grid.affine @ [*JAW_VOXEL, 1])[:3]
        target = centre_grid_on(centre_mm.tolist(), shape=SHAPE, spacing_mm=SPACING_MM, like=image.grid)
        save_image(crops / names[0], resample_image(image.array, image.grid, target), target)
        kept = np.where(np.isin(labels.array, wanted), labels.array, 0).astype(np.uint8)
        save_label_map(crops / names[1], resample_label_map(kept, labels.grid, target), target)


def write_base_recipe(path: Path) -> None:
    """Write the recipe of the base: that of the package, on the grid of the jaw and with fewer steps."""
    recipe = yaml.safe_load(training_recipe_path(BASE_RECIPE).read_text(encoding="utf-8"))
    recipe["bundle"]["grid"] = {"shape": [*SHAPE], "spacing_mm": [*SPACING_MM]}
    recipe["vae"]["loss"]["patch_shape"] = [*SHAPE[:2], 32]
    for stage, num_steps in BASE_STEPS.items():
        recipe[stage]["loop"]["num_steps"] = num_steps
    for stage in ("diffusion", "controlnet"):
        recipe[stage]["loss"]["crop_shape"] = [SHAPE[0] // 2, SHAPE[1] // 2, 8]
    recipe["controlnet"]["loss"]["whole_start_step"] = BASE_STEPS["controlnet"] - 100
    write_text_whole(path, yaml.safe_dump(recipe, sort_keys=False))


def list_patients(cts: Path) -> list[str]:
    """Return the ids of all CTs of a folder, in order.

    Raises:
        BenchmarkError: The CTs of the test patients are not there, or too few others.
    """
    patients = sorted(path.name.removesuffix("_ct.nii.gz") for path in cts.glob("*_ct.nii.gz"))
    missing = [name for name in TEST_IDS if name not in patients]
    if missing or len(patients) < len(TEST_IDS) + 8:
        raise BenchmarkError(
            f"{cts}: expected the CTs of OpenKBP as pt_N_ct.nii.gz, found {len(patients)}; "
            f"{spell_count(len(missing), 'test patient')} missing. Check the folder."
        )
    return patients


def draw_patients(patients: Sequence[str], count: int, draw: int) -> list[str]:
    """Return the labelled patients of a draw; those of a smaller count are among those of a larger one."""
    others = sorted(set(patients) - set(TEST_IDS))
    order = numpy_generator(draw, "labelled patients").permutation(len(others))
    return sorted(others[int(index)] for index in order[:count])


def list_steps(
    cts: Path,
    out: Path,
    patients: Sequence[str],
    counts: Sequence[int],
    num_draws: int,
    sizes: Sizes,
    scored: Collection[tuple[int, int]] = (),
) -> Iterator[Step]:
    """Yield all commands in the order in which they run.

    Args:
        cts: Folder of the CTs and label maps.
        out: Folder of the study.
        patients: Patients of the folder.
        counts: Numbers of labelled patients.
        num_draws: Number of draws of the labelled patients.
        sizes: How much is trained.
        scored: Draws as (count, draw) whose scores are known from elsewhere.
    """
    wanted = [(count, draw) for draw in range(num_draws) for count in counts if (count, draw) not in scored]
    if not wanted:
        return
    others = sorted(set(patients) - set(TEST_IDS))
    yield _prepare("base/prepare", cts, out / "base" / "prepared", patients, others, labelled=False)
    for stage in ("vae", "diffusion", "controlnet"):
        words = ("train", stage, "--recipe", f"{out}/base/recipe.yaml", "--data", f"{out}/base/prepared")
        yield Step(f"base/{stage}", (*words, "--out", f"{out}/base/run"))
    for count, draw in wanted:
        yield from _list_draw_steps(cts, out, patients, count, draw, sizes)


def _list_draw_steps(
    cts: Path, out: Path, patients: Sequence[str], count: int, draw: int, sizes: Sizes
) -> Iterator[Step]:
    name = name_of(count, draw)
    place, chosen = out / name, draw_patients(patients, count, draw)
    labels = [word for label in LABELS.values() for word in ("--label", label)]
    # Three patients leave open what is an organ: a box that misses one of their parotids would make it a lesion.
    kinds = [word for label in LABELS.values() for word in ("--kind", f"{label}=organ")]
    # One patient is a fold, so that fine-tuning gives up no more than one to choose the best step.
    yield _prepare(f"{name}/prepare", cts, place / "prepared", patients, chosen, folds=count)
    yield Step(
        f"{name}/finetune",
        (
            *("finetune-controlnet", "--data", f"{place}/prepared", *labels, *kinds),
            *("--base", f"{out}/base/run/bundle"),
            *("--steps", f"{sizes.finetune_steps}", "--learning-rate", "5e-5", "--crop", "48x48x16"),
            *("--batch-size", "2", "--out", f"{place}/run"),
        ),
    )
    yield Step(
        f"{name}/synthesize",
        (
            *("synthesize", "--bundle", f"{place}/run/bundle", "--labels", SIZES, "-n", f"{sizes.ratio * count}"),
            *("--seed", f"{draw}", "--out", f"{place}/cohort"),
        ),
    )
    yield _prepare(f"{name}/prepare-real", cts, place / "real", patients, [*chosen, *TEST_IDS])
    yield Step(
        f"{name}/benchmark",
        (
            *("benchmark", "run", "--real", f"{place}/real", "--synthetic", f"{place}/cohort", *labels),
            *("--test-list", f"{out}/test.txt", "--arms", ",".join(list_arms(sizes.ratio)), "--seeds", "1"),
            *("--seed", f"{draw}", "--augmentation", "strong", "--steps", f"{sizes.arm_steps}"),
            *("--out", f"{place}/bench"),
        ),
    )


def _prepare(
    name: str,
    cts: Path,
    target: Path,
    patients: Sequence[str],
    kept: Sequence[str],
    *,
    labelled: bool = True,
    folds: int = 5,
) -> Step:
    words = ["prepare", "--images", str(cts), "--image-pattern", "{id}_ct", *GRID, "--folds", str(folds)]
    for tissue in TISSUES:
        words += ["--tissue", tissue]
    if labelled:
        words += ["--labels", str(cts), "--label-pattern", "{id}_oar"]
        for number, label in LABELS.items():
            words += ["--map", f"{number}={label}"]
    for patient in sorted(set(patients) - set(kept)):
        words += ["--exclude", patient]
    return Step(name, (*words, "--out", str(target)))


def list_arms(ratio: int) -> tuple[str, ...]:
    """Return the arms of a benchmark, real cases alone first."""
    return (*CONTROLS, f"warped:{ratio}", f"real+synthetic:{ratio}")


def name_of(count: int, draw: int) -> str:
    """Return the folder of a draw."""
    return f"labelled{count}-draw{draw}"


def run_step(step: Step, out: Path) -> bool:
    """Run a command unless it is finished; its seconds of processor time go to ``costs.jsonl``.

    Returns:
        Whether it was run.

    Raises:
        BenchmarkError: The command failed.
    """
    mark = out / "finished" / step.name.replace("/", "-")
    if mark.is_file():
        return False
    log = out / "logs" / f"{mark.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "maisi_aug", *step.words]
    print(f"{step.name}: {log}", flush=True)
    before = _children_seconds()
    with log.open("a", encoding="utf-8") as file:
        file.write(shlex.join(["maisi-aug", *step.words]) + "\n")
        file.flush()
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    row = {"step": step.name, "processor_seconds": round(_children_seconds() - before, 1), "exit_code": code}
    append_to_shared(out / COSTS_NAME, json.dumps(row))
    if code:
        raise BenchmarkError(f"Step {step.name}: exit code {code}. See {log}, and repeat the command.")
    write_text_whole(mark, "")
    return True


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def collect_draws(out: Path, counts: Sequence[int], num_draws: int, ratio: int) -> list[dict[str, Any]]:
    """Return the Dice of the finished draws of a folder; a draw counts once all of its arms are trained.

    Returns:
        A dict for every draw: ``count``, ``draw`` and ``dice``, by arm, label and test patient.
    """
    draws = []
    for count, draw in ((count, draw) for draw in range(num_draws) for count in counts):
        if not (out / "finished" / f"{name_of(count, draw)}-benchmark").is_file():
            continue
        benchmark = load_benchmark(out / name_of(count, draw) / "bench")
        dice: dict[str, dict[str, dict[str, float]]] = {}
        for arm in benchmark.plan.config.parsed_arms:
            scores = ArmScores(arm, {0: benchmark.load_scores(arm.name, 0)})
            by_label = {label: scores.collect(label, "dice") for label in LABELS.values()}
            dice[arm.name] = {
                label: {patient: round(float(value), 4) for patient, value in zip(patients, values[0], strict=True)}
                for label, (patients, values) in by_label.items()
            }
        draws.append({"count": count, "draw": draw, "ratio": ratio, "dice": dice})
    return draws


def load_draws(path: Path, counts: Sequence[int], num_draws: int, sizes: Sizes) -> list[dict[str, Any]]:
    """Return the draws of an earlier result that belong to this study.

    Raises:
        BenchmarkError: The file is no result of this study, or one of other sizes.
    """
    document = read_json(path)
    if document.get("measurement") != REPORT_NAME or document.get("sizes") != sizes._asdict():
        raise BenchmarkError(f"{path}: expected {REPORT_NAME}.json of a study with {sizes}. Give the same sizes.")
    return [row for row in document["draws"] if row["count"] in counts and row["draw"] < num_draws]


def compare_counts(draws: Sequence[Mapping[str, Any]], ratio: int) -> list[dict[str, Any]]:
    """Return Dice of every arm and label, and comparisons of synthetic cases with every other arm, count by count."""
    rows = []
    synthetic = list_arms(ratio)[-1]
    for count in sorted({row["count"] for row in draws}):
        held = sorted((row for row in draws if row["count"] == count), key=lambda row: int(row["draw"]))
        values = {
            arm: {label: _stack(row["dice"][arm][label] for row in held) for label in LABELS.values()}
            for arm in list_arms(ratio)
        }
        row: dict[str, Any] = {"count": count, "num_draws": len(held), "dice": [], "comparisons": []}
        for arm, by_label in values.items():
            for label, found in by_label.items():
                interval = find_interval(found, rng=numpy_generator(0, "interval"))
                row["dice"].append({"arm": arm, "label": label, **interval.to_json()})
        for arm in list_arms(ratio)[:-1]:
            for label, comparison in _compare(values[synthetic], values[arm]).items():
                row["comparisons"].append({"arm": synthetic, "baseline": arm, "label": label, **comparison.to_json()})
        rows.append(row)
    return rows


def _stack(by_patient: Iterable[Mapping[str, float]]) -> NDArray[np.float64]:
    """``(draws, patients)``, the patients in order."""
    return np.array([[row[patient] for patient in sorted(row)] for row in by_patient])


def _compare(arm: dict[str, NDArray[np.float64]], other: dict[str, NDArray[np.float64]]) -> dict[str, Comparison]:
    return compare_arms({label: (arm[label], other[label]) for label in arm}, rng=numpy_generator(0, "comparison"))


def to_report(document: dict[str, Any]) -> str:
    """Return the document as Markdown."""
    parts = [
        "# Synthetic cases when few CTs are labelled\n",
        f"OpenKBP, {len(TEST_IDS)} patients to test on, {document['num_unlabelled']} whose CTs train the base without "
        f"labels. Differences of Dice with 95% intervals over patients and draws, and Wilcoxon's test with Holm's "
        "correction over the labels, as in `maisi-aug benchmark`.\n",
    ]
    for row in document["counts"]:
        parts.append(f"## {row['count']} labelled, {spell_count(row['num_draws'], 'draw')}\n")
        arms = list(dict.fromkeys(entry["arm"] for entry in row["dice"]))
        cells = {(entry["arm"], entry["label"]): spell_interval(entry) for entry in row["dice"]}
        table = [[label, *(cells[arm, label] for arm in arms)] for label in LABELS.values()]
        parts.append(to_markdown(["Dice", *arms], table))
        lines = [
            [
                r["label"],
                r["baseline"],
                spell_interval(r["difference"], signed=True),
                spell_p(r["p_holm"]),
                spell_verdict(r),
            ]
            for r in row["comparisons"]
        ]
        parts.append(to_markdown(["label", "synthetic against", "difference", "p, Holm", "verdict"], lines))
    if not document["counts"]:
        parts.append("No draw is finished yet.\n")
    parts.append("## Processor seconds\n")
    seconds = [[row["step"], row["processor_seconds"]] for row in document["costs"]]
    parts.append(to_markdown(["step", "seconds"], seconds, num_digits=0))
    return "\n".join(parts)


def _read_costs(out: Path) -> list[dict[str, Any]]:
    """Seconds by step, with those of interrupted runs."""
    path = out / COSTS_NAME
    totals: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        row = json.loads(line)
        totals[row["step"]] = totals.get(row["step"], 0.0) + row["processor_seconds"]
    return [{"step": step, "processor_seconds": seconds} for step, seconds in totals.items()]


def main(words: Sequence[str] | None = None) -> int:
    """Run the study, or as much of it as the time allows, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cts", type=Path, help="folder of OpenKBP's pt_N_ct.nii.gz and pt_N_oar.nii.gz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--counts", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--ratio", type=int, default=3, help="added cases per real one")
    parser.add_argument("--finetune-steps", type=int, default=250)
    parser.add_argument("--steps", type=int, default=400, help="steps of every arm")
    parser.add_argument("--resume-from", type=Path, help="few_cases.json of a run, whose draws are not repeated")
    parser.add_argument("--max-minutes", type=float, help="begin no further step after this time")
    parser.add_argument("--report-only", action="store_true")
    arguments = parser.parse_args(words)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    cts, out = arguments.cts.resolve(), arguments.out.resolve()
    sizes = Sizes(arguments.ratio, arguments.finetune_steps, arguments.steps)
    limit = TimeLimit(arguments.max_minutes)
    patients = list_patients(cts)
    held = []
    if arguments.resume_from is not None:
        held = load_draws(arguments.resume_from, arguments.counts, arguments.draws, sizes)
    scored = {(row["count"], row["draw"]) for row in held}
    write_text_whole(out / "test.txt", "\n".join(TEST_IDS) + "\n")
    steps = (
        ()
        if arguments.report_only
        else list_steps(out / "crops", out, patients, arguments.counts, arguments.draws, sizes, scored)
    )
    if not arguments.report_only:
        write_crops(cts, out / "crops", patients)
        write_base_recipe(out / "base" / "recipe.yaml")
    for step in steps:
        if limit.minutes_left == 0.0:
            break
        run_step(step, out)
    own = collect_draws(out, arguments.counts, arguments.draws, sizes.ratio)
    draws = held + [row for row in own if (row["count"], row["draw"]) not in scored]
    document = {
        "measurement": REPORT_NAME,
        "num_unlabelled": len(patients) - len(TEST_IDS),
        "sizes": sizes._asdict(),
        "counts": compare_counts(draws, sizes.ratio),
        "draws": draws,
        "costs": _read_costs(out),
    }
    report = to_report(document)
    save_results(out, REPORT_NAME, document, report)
    print(report)


if __name__ == "__main__":
    sys.exit(main())
