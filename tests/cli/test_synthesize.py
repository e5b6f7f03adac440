from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from maisi_aug.bundle_spec.decoding import DecodingConfig
from maisi_aug.cli.synthesize import CompilerName, describe_summary
from maisi_aug.cohort.folder import open_cohort
from maisi_aug.cohort.manifest import Manifest, load_manifest
from maisi_aug.cohort.request import CohortRequest, GateConfig, build_request, load_recipe, override
from maisi_aug.cohort.resolve import resolve
from maisi_aug.errors import EarlierSpelling
from maisi_aug.generate.run import CohortSummary
from maisi_aug.networks.acceleration import Compiler
from maisi_aug.vocabulary.sizes import diameter_mm
from maisi_aug.volumes.grid import Grid
from maisi_aug.volumes.image_files import save_label_map
from tests.builders.tiny_bank import build_trunk, write_case
from tests.cohort.test_manifest import build_record

Run = Callable[..., Any]
WINDOW = "--decode-window: expected 'whole' or three sides in latent voxels that are multiples of 16, such as 48x48x64"


@pytest.fixture(scope="module")
def recipe(bundle_path: Path) -> Path:
    """A recipe that accepts noise."""
    path = bundle_path / "recipe.yaml"
    content = {"labels": ["hepatic tumor:30mm"], "bundle": str(bundle_path), "num_cases": 1}
    path.write_text(json.dumps({**content, "gates": {"organ_hu": False, "visibility": False}}))
    return path


def test_command_makes_a_cohort_and_says_what_comes_next(run_cli: Run, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    outcome = run_cli("synthesize", "--recipe", recipe, "--out", out, "--device", "cpu")
    assert outcome.code == 0
    assert f"{out}: 1 of 1 case accepted." in outcome.stdout
    assert "Accepted 100% of the cases at the first attempt; 1 attempt in all" in outcome.stdout
    assert f"maisi-aug export nnunet {out}" in outcome.stdout
    assert "Note: tiny has random weights: its images are noise." in outcome.stderr
    assert "[1/1] case_0001 accepted (attempt 1)" in outcome.stderr
    again = run_cli("synthesize", "--recipe", recipe, "--out", out, "--json", "--quiet")
    assert (again.code, again.stderr) == (0, "")
    summary = json.loads(again.stdout)
    assert (summary["num_accepted"], summary["num_new"], summary["first_attempt_rate"]) == (1, 0, 1.0)
    refused = run_cli("synthesize", "--recipe", recipe, "--out", out, "--no-resume")
    assert (refused.code, refused.stdout) == (1, "")
    assert "--no-resume needs a new folder, but this one holds a cohort" in refused.stderr
    other = run_cli("synthesize", "--recipe", recipe, "--out", out, "--seed", "3")
    assert other.code == 1
    assert "(seed: 0 -> 3)" in other.stderr


def test_cohort_grows_in_its_folder_and_keeps_its_cases(run_cli: Run, recipe: Path, tmp_path: Path) -> None:
    words = ["synthesize", "--recipe", recipe, "--device", "cpu", "--quiet", "--labels", "hepatic tumor:28-32mm"]
    assert run_cli(*words, "-n", "1", "--out", tmp_path / "a").code == 0
    first = {path: path.read_bytes() for path in (tmp_path / "a").glob("*/case_0001*")}
    lines = (tmp_path / "a" / "manifest.jsonl").read_text()
    for num_new in (1, 0):
        grown = run_cli(*words, "-n", "2", "--out", tmp_path / "a", "--json")
        assert grown.code == 0, grown.stderr
        assert json.loads(grown.stdout)["num_new"] == num_new
    assert all(path.read_bytes() == content for path, content in first.items())
    assert (tmp_path / "a" / "manifest.jsonl").read_text().startswith(lines)
    refused = run_cli(*words, "-n", "1", "--out", tmp_path / "a")
    assert refused.code == 1
    assert "this cohort has 2 cases, -n asks for 1. -n can only grow." in refused.stderr
    again = run_cli(
        "synthesize", "--recipe", tmp_path / "a" / "cohort.yaml", "--out", tmp_path / "b", "--device", "cpu"
    )
    assert again.code == 0
    for path in (tmp_path / "a").glob("images/*"):
        assert path.read_bytes() == (tmp_path / "b" / "images" / path.name).read_bytes()
    assert (tmp_path / "a" / "cohort.yaml").read_bytes() == (tmp_path / "b" / "cohort.yaml").read_bytes()


def test_growth_that_cannot_be_is_refused(run_cli: Run, recipe: Path, tmp_path: Path) -> None:
    content = {**json.loads(recipe.read_text()), "num_cases": 3, "grown_from": [2, 3]}
    (tmp_path / "recipe.yaml").write_text(json.dumps(content))
    outcome = run_cli("synthesize", "--recipe", tmp_path / "recipe.yaml", "--dry-run")
    assert outcome.code == 2
    assert "grown_from: expected rising numbers below num_cases, found [2, 3] for 3 cases" in outcome.stderr


@pytest.mark.parametrize(("raw_folder", "options"), [("", " --out nnUNet_raw"), ("/data/raw", "")])
def test_command_that_comes_next_can_be_pasted(
    raw_folder: str, options: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("nnUNet_raw", raw_folder)
    manifest = Manifest.from_records([build_record()])
    text = describe_summary(CohortSummary(tmp_path / "my cohort", 1, manifest, seconds=1.0, num_new=1))
    folder = f"'{tmp_path / 'my cohort'}'"
    assert text.splitlines()[-1] == f"Next: maisi-aug export nnunet {folder} --dataset-id 501 --name MyCohort{options}"


def test_rejected_cases_give_exit_code_1_and_their_reasons(run_cli: Run, bundle_path: Path, tmp_path: Path) -> None:
    words = ["--labels", "hepatic tumor:30mm", "-n", "1", "--max-attempts", "1", "--bundle", bundle_path]
    outcome = run_cli("synthesize", *words, "--out", tmp_path, "--device", "cpu")
    assert outcome.code == 1
    assert "0 of 1 case accepted" in outcome.stdout
    assert "Rejected case_0001: " in outcome.stdout
    assert "To try again: run the same command with a larger --max-attempts." in outcome.stdout
    assert "contact_sheet" not in outcome.stdout
    assert "[1/1] case_0001 rejected (attempt 1): " in outcome.stderr


def test_dry_run_shows_the_plan_and_writes_nothing(run_cli: Run, recipe: Path, tmp_path: Path) -> None:
    words = ["synthesize", "--recipe", recipe, "-n", "3", "--labels", "lung tumor:0.5x2", "--dry-run"]
    table = run_cli(*words)
    assert table.code == 0
    for word in ("case_0001", "case_0003", "lung tumor", "0.50", "64 x 48 x 48 at 6.4 x 6.4 x 6.4 mm"):
        assert word in table.stdout
    document = json.loads(run_cli(*words, "--json").stdout)
    assert len(document["plan"]["cases"]) == 3
    assert document["configuration"]["num_cases"] == 3
    assert list(tmp_path.iterdir()) == []


def test_dry_run_names_what_percentiles_refer_to(run_cli: Run, recipe: Path) -> None:
    flags = ["--labels", "bone lesion:0.5", "--labels", "lung tumor:20mm", "-n", "2", "--dry-run"]
    words = ["synthesize", "--recipe", recipe, *flags]
    notes = [line for line in run_cli(*words).stdout.splitlines() if line.startswith("Percentiles of ")]
    assert len(notes) == 1
    assert notes[0].startswith("Percentiles of bone lesion: estimated, not measured: hepatic tumor cut at 0.2-15 mL (")
    document = json.loads(run_cli(*words, "--json").stdout)
    sources = {
        lesion["label"]: lesion["size_source"] for case in document["plan"]["cases"] for lesion in case["lesions"]
    }
    assert sources["lung tumor"] is None
    assert notes[0] == f"Percentiles of bone lesion: {sources['bone lesion']}"


def test_dry_run_imports_no_torch(recipe: Path, repository: Path) -> None:
    import subprocess
    import sys

    program = (
        "import sys\nfrom maisi_aug.cli.app import run\n"
        f"code = run(['synthesize', '--recipe', {str(recipe)!r}, '--dry-run'])\n"
        "sys.exit(code or int('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--labels", "hepatic tumr"], 2, "Did you mean 'hepatic tumor'"),
        (["--labels", "hepatic tumor:1.5"], 2, "expected a percentile in [0, 1]"),
        (["--shape", "60x48x48"], 2, "expected sides that are multiples of 8, found 60x48x48. Use 64x48x48"),
        (["--shape", "60x48"], 2, "--shape: expected one or three numbers such as 128x96x80, found '60x48'"),
        (["--steps", "1001"], 2, "num_inference_steps: at most 1000 "),
        (["--steps", "few"], 2, "--steps: expected a number of steps above 0 or 'auto', found 'few'"),
        (["--steps", "auto", "--solver", "multistep"], 2, "--steps auto chooses the solver, too, found 'multistep'"),
        (["--spacing", "0"], 2, "--spacing: expected millimetres between 0 and 100"),
        (["--modality", "mr"], 2, "'mr' is not one of 'ct', 'ct_contrast', 'ct_wo_contrast'"),
        (["--body-region", "chest"], 2, "--body-region[0]: expected 'head', 'thorax', 'abdomen' or 'pelvis'"),
        (["--body-region", "thorax, abdomen"], 2, "is not conditioned on body region, found thorax to abdomen"),
        (["--size-label", "x"], 2, "--size-label: expected an id such as 2"),
        (["--size-label", "2"], 2, "size_reference is missing"),
        (["--recipe", "livr"], 2, "Did you mean 'liver'"),
        (["--bundle", "no-such-bundle"], 1, "Bundle 'no-such-bundle': expected"),
        (["--mask-bank", "no/such/folder"], 1, "Mask bank no/such/folder: not found"),
        (["-n", "0"], 2, "Invalid value for '--num-cases' / '-n'"),
    ],
)
def test_bad_input_is_one_sentence(
    run_cli: Run, recipe: Path, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    outcome = run_cli("synthesize", "--recipe", recipe, "--out", tmp_path / "cohort", "--device", "cpu", *words)
    assert outcome.code == code
    assert outcome.stdout == ""
    assert message in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert len([line for line in outcome.stderr.splitlines() if line.startswith("Error")]) == 1


def test_command_can_be_corrected_in_the_same_folder(run_cli: Run, recipe: Path, tmp_path: Path) -> None:
    words = ["synthesize", "--recipe", recipe, "--out", tmp_path / "cohort", "--device", "cpu"]
    assert run_cli(*words, "--mask-bank", "no/such/folder").code == 1
    assert run_cli(*words, "--labels", "kidney tumor:900mL").code == 1
    assert run_cli(*words).code == 0


def test_out_and_labels_are_asked_for(run_cli: Run, recipe: Path) -> None:
    assert "--out: required" in run_cli("synthesize", "--recipe", recipe).stderr
    outcome = run_cli("synthesize", "--out", "x")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "labels: a value is required. Set it in the recipe or as an option." in outcome.stderr


@pytest.mark.parametrize("options", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_foreign_folder_is_refused_before_anything_is_loaded(
    run_cli: Run, recipe: Path, tmp_path: Path, options: list[str]
) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    outcome = run_cli("synthesize", "--recipe", recipe, "--out", tmp_path, *options)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert "Nothing was changed; choose another --out." in outcome.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]


@pytest.mark.parametrize("options", [[], ["--dry-run"]], ids=["run", "dry run"])
@pytest.mark.parametrize(
    ("flags", "message"), [(["--seed", "3"], "(seed: 0 -> 3)"), (["--no-resume"], "--no-resume needs a new folder")]
)
def test_cohort_of_another_configuration_is_refused(
    run_cli: Run, recipe: Path, tmp_path: Path, options: list[str], flags: list[str], message: str
) -> None:
    cohort = resolve(load_recipe(str(recipe)))
    with open_cohort(tmp_path, cohort.to_document(), header=[]):
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "case_0001.nii.gz").write_text("an image")
    words = ["synthesize", "--recipe", recipe, "--out", tmp_path]
    assert run_cli(*words, "--dry-run").code == 0
    outcome = run_cli(*words, *flags, *options)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert message in outcome.stderr


@pytest.mark.parametrize("verb", ["synthesize", "recipes validate"])
@pytest.mark.parametrize(
    ("field", "value", "code", "message"),
    [
        ("mask_bank", "no/such/folder", 1, "Mask bank no/such/folder: not found"),
        ("mask_labels", "no/such/file.json", 1, "Mask labels no/such/file.json: file not found"),
        ("labels", ["lung tumor:4mm"], 2, "lung tumor of 0.034 mL (4.0 mm)"),
    ],
    ids=["bank", "mapping", "size"],
)
def test_plan_that_cannot_work_is_refused_before_it_is_run(
    run_cli: Run, recipe: Path, tmp_path: Path, verb: str, field: str, value: Any, code: int, message: str
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**json.loads(recipe.read_text()), field: value}))
    words = ["synthesize", "--dry-run", "--recipe"] if verb == "synthesize" else ["recipes", "validate"]
    outcome = run_cli(*words, path)
    assert (outcome.code, outcome.stdout) == (code, "")
    assert message in outcome.stderr


def test_decoding_can_be_asked_for_and_is_on_record(run_cli: Run, recipe: Path, tmp_path: Path) -> None:
    flags = ["--decode-window", "16x16x16", "--decode-overlap", "0.25", "--num-splits", "2"]
    shape = ["--shape", "96x64x64", "--device", "cpu", "--quiet"]
    assert run_cli("synthesize", "--recipe", recipe, "--out", tmp_path / "cohort", *flags, *shape).code == 0
    settings = load_manifest(tmp_path / "cohort").accepted[0].settings
    assert settings["decoding"] == {"window": [16, 16, 16], "overlap": 0.25, "num_splits": 2, "gathered_on": "device"}
    assert "compile" not in settings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--decode-window", "hole"], f"{WINDOW}, found 'hole'"),
        (["--decode-window", "48x48"], f"{WINDOW}, found '48x48'"),
        (["--decode-window", "48x-1x2"], f"{WINDOW}, found '48x-1x2'"),
        (["--decode-window", "50"], f"{WINDOW}, found '50'"),
        (["--decode-overlap", "1"], "--decode-overlap: expected less than 1, found 1.0"),
        (["--num-splits", "3"], "'3' is not one of '1', '2', '4', '8', '16'"),
    ],
)
def test_decoding_that_cannot_be_meant_is_refused(run_cli: Run, recipe: Path, words: list[str], message: str) -> None:
    outcome = run_cli("synthesize", "--recipe", recipe, "--dry-run", *words)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert message in outcome.stderr


def test_windows_are_read() -> None:
    for typed, window in (("Whole", "whole"), ("48,48,64", (48, 48, 64)), ([16, 16, 32], (16, 16, 32)), (None, None)):
        assert DecodingConfig.model_validate({"window": typed}).window == window


def test_compilers_are_those_of_the_networks(run_cli: Run, recipe: Path, tmp_path: Path) -> None:
    assert get_args(CompilerName) == get_args(Compiler)
    outcome = run_cli("synthesize", "--recipe", recipe, "--out", tmp_path / "out", "--compile", "trt", "--quiet")
    if outcome.code:  # with TensorRT and a GPU it runs
        assert outcome.code == 1
        assert "--compile trt: needs the packages" in outcome.stderr


def write_dataset(folder: Path, sides: list[int]) -> None:
    """An nnU-Net dataset in which every patient has one cubic lesion, label 2."""
    import numpy as np

    grid = Grid.from_spacing((40, 40, 40), (1.0, 1.0, 2.0))
    for number, side in enumerate(sides):
        label_map = np.zeros(grid.shape, dtype=np.uint8)
        label_map[2:38, 2:38, 2:38] = 1
        label_map[5 : 5 + side, 5 : 5 + side, 5 : 5 + side] = 2
        save_label_map(folder / "labelsTr" / f"patient_{number}.nii.gz", label_map, grid)


def test_percentiles_can_refer_to_the_users_own_dataset(run_cli: Run, recipe: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "Dataset001_Mine", [10, 20, 30])
    (tmp_path / "Dataset001_Mine" / "labelsTr" / "._patient_0.nii.gz").write_bytes(b"Mac OS X")
    flags = ["--size-reference", tmp_path / "Dataset001_Mine", "--size-label", "2", "--labels", "liver tumor:0.5"]
    outcome = run_cli("synthesize", "--recipe", recipe, *flags, "--dry-run", "--json")
    assert outcome.code == 0
    document = json.loads(outcome.stdout)
    (lesion,) = document["plan"]["cases"][0]["lesions"]
    assert lesion["volume_ml"] == pytest.approx(20**3 * 2 / 1000)
    assert lesion["diameter_mm"] == pytest.approx(diameter_mm(16.0))
    assert document["size_distributions"]["hepatic tumor"]["quantiles_ml"][0] == pytest.approx(2.0)


def test_measured_sizes_stay_with_the_cohort(run_cli: Run, recipe: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "mine", [16])
    flags = ["--size-reference", tmp_path / "mine", "--map", "2=liver tumor", "--labels", "hepatic tumor:0.5"]
    words = ["synthesize", "--recipe", recipe, *flags, "--out", tmp_path / "cohort", "--device", "cpu"]
    assert run_cli(*words).code == 0
    (record,) = load_manifest(tmp_path / "cohort").accepted
    assert record.lesions[0].requested_ml == pytest.approx(16**3 * 2 / 1000)
    write_dataset(tmp_path / "mine", [30])  # the dataset changes; the cohort goes on with what it measured
    assert run_cli(*words).code == 0


def test_sizes_of_a_named_label_and_the_earlier_spelling(run_cli: Run, recipe: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "mine", [16])
    (tmp_path / "mine" / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1, "cancer": 2}}')
    shown = []
    for rule in (["--map", "Cancer=liver tumor"], ["--size-label", "liver tumor=2"]):
        flags = ["--size-reference", tmp_path / "mine", *rule, "--labels", "hepatic tumor:0.5"]
        outcome = run_cli("synthesize", "--recipe", recipe, *flags, "--dry-run", "--json")
        assert outcome.code == 0, outcome.stderr
        shown.append(json.loads(outcome.stdout)["size_distributions"])
        assert ("Write --map '2=liver tumor'." in outcome.stderr) == ("--size-label" in rule)
    assert shown[0] == shown[1]


def test_rules_tell_what_the_labels_of_a_bank_are(
    run_cli: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, out = tmp_path / "bank", tmp_path / "cohort"
    trunk = build_trunk()
    write_case(bank, "a", np.select([trunk == 1, trunk > 0], [7, 9], 0).astype(np.uint8), with_ct=True)
    words = ["--mask-bank", bank, "--map", "7=liver", "--map", "9=body", "--labels", "hepatic tumor:40mm", "-n", "1"]
    words += ["--allow-few-organs"]
    shown = run_cli("synthesize", "--recipe", recipe, *words, "--dry-run").stdout
    assert f"plant,bank{bank}" in "".join(shown.split())
    monkeypatch.chdir(tmp_path)
    assert "label maps: plant, bank bank" in run_cli("synthesize", "--recipe", recipe, *words, "--dry-run").stdout
    outcome = run_cli("synthesize", "--recipe", recipe, *words, "--out", out, "--device", "cpu", "--quiet")
    assert outcome.code == 0, outcome.stderr
    again = run_cli("synthesize", "--recipe", recipe, *words, "--out", out, "--device", "cpu", "--quiet", "--json")
    assert json.loads(again.stdout)["num_new"] == 0
    other = run_cli("synthesize", "--recipe", recipe, *words, "--map", "8=spleen", "--out", out, "--quiet")
    assert other.code != 0


def test_size_reference_without_label_maps_is_refused(run_cli: Run, recipe: Path, tmp_path: Path) -> None:
    flags = ["--size-reference", tmp_path, "--size-label", "2", "--dry-run"]
    outcome = run_cli("synthesize", "--recipe", recipe, *flags)
    assert outcome.code == 2
    assert "found no image files. Check --size-reference." in outcome.stderr


@pytest.mark.parametrize("name", ["1", "Mine"])
def test_size_reference_is_called_by_number_or_name(
    run_cli: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_dataset(tmp_path / "Dataset001_Mine", [10])
    (tmp_path / "Dataset001_Mine" / "dataset.json").write_text('{"labels": {"liver": 1, "tumor": 2}}')
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    flags = ["--size-reference", name, "--size-label", "2", "--labels", "liver tumor:0.5", "--dry-run", "--json"]
    outcome = run_cli("synthesize", "--recipe", recipe, *flags)
    assert outcome.code == 0
    assert json.loads(outcome.stdout)["configuration"]["size_reference"] == str(tmp_path / "Dataset001_Mine")


def test_size_reference_with_an_empty_map_or_with_masks_is_refused(run_cli: Run, recipe: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "mine", [10, 12])
    (tmp_path / "mine" / "labelsTr" / "patient_1.nii.gz").write_bytes(b"")
    for organ in ("liver", "spleen", "colon"):
        write_dataset(tmp_path / "masks", [10])
        made = tmp_path / "masks" / "labelsTr" / "patient_0.nii.gz"
        made.rename(made.with_name(f"{organ}.nii.gz"))
    for folder, words in (
        ("mine", "a label map cannot be used: labelsTr/patient_1.nii.gz: patient_1.nii.gz is empty"),
        ("masks", "or a folder of label maps, found a mask for each label (labelsTr)"),
        ("gone", "neither an nnU-Net dataset with labelsTr nor a folder of label maps"),
    ):
        flags = ["--size-reference", tmp_path / folder, "--size-label", "2", "--labels", "liver tumor:0.5", "--dry-run"]
        outcome = run_cli("synthesize", "--recipe", recipe, *flags)
        assert outcome.code == 2
        assert words in outcome.stderr


def test_size_label_without_a_name_needs_one_lesion(run_cli: Run, recipe: Path, tmp_path: Path) -> None:
    flags = ["--size-reference", tmp_path, "--size-label", "2", "--labels", "hepatic tumor", "--labels", "lung tumor"]
    outcome = run_cli("synthesize", "--recipe", recipe, *flags, "-n", "2", "--dry-run")
    assert outcome.code == 2
    assert "can stand for one lesion only, but the label requests have 2" in outcome.stderr


def test_words_of_the_command_line_are_read() -> None:
    def config_of(**fields: object) -> CohortRequest:
        return build_request({"labels": ["hepatic tumor"], **fields})

    assert config_of(shape="128x96x80").shape == config_of(shape="128, 96,80").shape == (128, 96, 80)
    assert config_of(shape="64").shape == config_of(shape=[64, 64, 64]).shape == (64, 64, 64)
    assert config_of(spacing_mm="1.5x1.5x3mm").spacing_mm == (1.5, 1.5, 3.0)
    assert config_of(anatomy="Liver, spleen", shape=None).anatomy == ("liver", "spleen")
    assert config_of(mask_source="diffusion", size_of=["liver:0.5"]).size_of == {"liver": 0.5}
    assert config_of(size_reference=Path("mine"), size_label=["2"]).size_label == 2
    with pytest.warns(EarlierSpelling, match="is an earlier spelling"):
        config = config_of(size_reference="mine", size_label=["hepatic tumor=2", "lung tumor=1"])
    assert config.size_label == {"hepatic tumor": 2, "lung tumor": 1}


def write_given(folder: Path, num_maps: int) -> Path:
    """Label maps of the vocabulary, the last of them on a grid that the networks cannot take."""
    import numpy as np

    for number in range(num_maps):
        shape = (26, 24, 16) if number + 1 == num_maps else (24, 24, 16)
        label_map = np.zeros(shape, dtype=np.uint8)
        label_map[2:22, 2:22] = 200
        label_map[8:20, 4:18, 2:14] = 1
        label_map[10:14, 8:11, 6:9] = 26
        save_label_map(folder / f"map_{number}.nii.gz", label_map, Grid.from_spacing(shape, (9.0, 9.0, 12.0)))
    return folder


@pytest.fixture(scope="module")
def no_gates(bundle_path: Path) -> Path:
    """A recipe without requests that accepts noise."""
    path = bundle_path / "no_gates.yaml"
    path.write_text(json.dumps({"bundle": str(bundle_path), "gates": {"organ_hu": False, "visibility": False}}))
    return path


def test_given_maps_are_shown_and_drawn(run_cli: Run, no_gates: Path, tmp_path: Path) -> None:
    maps = write_given(tmp_path / "maps", 2)
    (maps / "map_2.nii.gz").write_bytes((maps / "map_0.nii.gz").read_bytes()[:200])
    words = ["synthesize", "--recipe", no_gates, "--mask-source", "given", "--mask-bank", maps]
    table = run_cli(*words, "-n", "4", "--dry-run")
    assert table.code == 0
    for word in ("4 cases", "24 x 24 x 16 at 9 x 9 x 12 mm", "the same", "resampled", "hepatic tumor, liver"):
        assert word in table.stdout
    assert (
        "Not usable: 1 of 3 maps; their cases will be rejected:\n  map_2.nii.gz: not a readable image" in table.stdout
    )
    document = json.loads(run_cli(*words, "--dry-run", "--json").stdout)
    assert [row["change"] for row in document["maps"]] == ["none", "resampled", None]
    assert [row["shape"] for row in document["maps"]] == [[24, 24, 16], [24, 24, 16], None]
    assert document["maps"][1]["map_shape"] == [26, 24, 16]
    assert document["maps"][0]["labels"] == ["liver", "hepatic tumor"]
    assert "map_2.nii.gz: not a readable image, but damaged or empty" in document["maps"][2]["fault"]
    assert document["configuration"]["num_cases"] == 3
    outcome = run_cli(*words, "--out", tmp_path / "cohort", "--device", "cpu")
    assert outcome.code == 1  # one map is damaged
    assert "2 of 3 cases accepted" in outcome.stdout
    assert "Rejected case_0003: " in outcome.stdout
    assert "map_2.nii.gz: not a readable image, but damaged or empty" in outcome.stdout
    assert "Note: map_1.nii.gz: expected sides that are multiples of 8" in outcome.stderr
    assert "maisi-aug export nnunet" in outcome.stdout


def test_images_alone_are_made_without_a_next_step(
    run_cli: Run, bundle_path: Path, no_gates: Path, tmp_path: Path
) -> None:
    words = ["synthesize", "--recipe", no_gates, "--mask-source", "none", "-n", "1", "--shape", "16"]
    table = run_cli(*words, "--dry-run")
    assert "image only" in table.stdout
    assert "label maps: none" in table.stdout
    outcome = run_cli(*words, "--out", tmp_path / "cohort", "--device", "cpu")
    assert outcome.code == 0
    assert "1 of 1 case accepted" in outcome.stdout
    assert "export" not in outcome.stdout
    assert "without a label map" not in outcome.stderr
    assert run_cli(*words, "--labels", "liver", "--dry-run").code == 2


def test_bundle_says_that_it_draws_poorly_without_a_label_map(run_cli: Run, bundle_path: Path, tmp_path: Path) -> None:
    import shutil

    poor = tmp_path / "poor"
    shutil.copytree(bundle_path, poor)
    with (poor / "bundle.yaml").open("a") as file:
        file.write("advice_without_map: Nothing but noise.\n")
    words = ["synthesize", "--bundle", poor, "-n", "1", "--shape", "16", "--device", "cpu", "--out"]
    bare = run_cli(*words, tmp_path / "bare", "--mask-source", "none")
    assert (bare.code, "Note: Nothing but noise." in bare.stderr) == (0, True)
    other = run_cli(*words, tmp_path / "other", "--labels", "liver", "--max-attempts", "1")
    assert "Nothing but noise" not in other.stderr
    assert "without a label map: Nothing but noise." in run_cli("bundles", "show", poor).stdout


def test_gates_are_set_by_flags(run_cli: Run) -> None:
    words = ["organ-hu=off", "minimum_cnr=0.5", "lesion-place=on", "max-share-outside=0.2"]
    recipe = {"labels": ["liver"], "gates": {"organ_hu": True, "visibility": False}}
    config = build_request(override(recipe, {"gates": GateConfig.model_validate(words).model_dump(exclude_unset=True)}))
    gates = config.gates
    assert (gates.organ_hu, gates.minimum_cnr, gates.lesion_place, gates.max_share_outside) == (False, 0.5, True, 0.2)
    assert not gates.visibility
    for text, message in (
        ("organ_hue=off", "unknown gate 'organ_hue'; expected NAME=off or NAME=NUMBER. Did you mean 'organ-hu'"),
        ("visibility=1", "expected visibility=on or visibility=off, found 'visibility=1'"),
        ("minimum-cnr=off", "expected a number for minimum-cnr, found 'minimum-cnr=off'"),
        ("max-spread=0", "max_spread: expected greater than or equal to 1, found 0.0"),
    ):
        outcome = run_cli("plan", "--labels", "liver", "--gate", text)
        assert outcome.code == 2
        assert "--gate: " in outcome.stderr
        assert message in outcome.stderr


def test_help_names_every_gate(run_cli: Run) -> None:
    text = " ".join(run_cli("synthesize", "--help-all").stdout.replace("│", " ").split())
    assert all(field.replace("_", "-") in text.replace("- ", "-") for field in GateConfig.model_fields)


def test_gates_of_flags_are_in_the_plan_and_those_of_the_recipe_stay(run_cli: Run, recipe: Path) -> None:
    flags = ("--gate", "max-dark-hu=50", "--gate", "visibility=on", "--keep-rejected")
    document = json.loads(run_cli("synthesize", "--recipe", recipe, *flags, "--dry-run", "--json").stdout)
    gates = document["configuration"]["gates"]
    assert (gates["organ_hu"], gates["visibility"], gates["max_dark_hu"]) == (False, True, 50.0)
    assert document["configuration"]["keep_rejected"] is True


def test_dry_run_refuses_what_does_not_fit(run_cli: Run) -> None:
    outcome = run_cli("synthesize", "--labels", "kidney tumor:0.95", "-n", "1", "--dry-run", "--quiet")
    assert (outcome.code, outcome.stdout) == (1, "")
    assert "The largest that fits" in outcome.stderr
