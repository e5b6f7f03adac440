from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maisi_aug.bundle_spec import known_bundles as table
from maisi_aug.cohort.request import CohortRequest, build_request, override
from maisi_aug.errors import MigrationError
from maisi_aug.integrations.nvidia.migration import Flags, Migration, migrate
from maisi_aug.integrations.nvidia.options import FLAGS, OPTIONS, Kind
from maisi_aug.vocabulary.labels import MAISI
from tests.builders.nvidia_configs import CONTROLNET, ENVIRONMENTS, PAIRED, VAE, images, paired, write_config

REPOSITORY = Path(__file__).resolve().parents[3]


def translate(tmp_path: Path, *contents: dict[str, Any], names: tuple[str, ...] = (), **flags: Any) -> Migration:
    named = names or tuple(f"config_{number}" for number in range(len(contents)))
    paths = [write_config(tmp_path, name, content) for name, content in zip(named, contents, strict=True)]
    return migrate(paths, Flags(is_fetched=lambda _: True, **flags))


def options_of(command: list[str]) -> dict[str, list[str]]:
    """Values of a command by option."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in command[2:]:
        if word.startswith("-"):
            name = word
            found.setdefault(name, [])
        else:
            found[name].append(word)
    return found


def read_request(command: list[str]) -> CohortRequest:
    """What the command line makes of a synthesize command, as its parser reads it."""
    from maisi_aug.cli.shared.from_models import list_options

    fields = {flag: option for option in list_options(CohortRequest) for flag in option.flags}
    values: dict[str, Any] = {}
    for flag, typed in options_of(command).items():
        if flag == "--out":
            continue
        option = fields[flag]
        taken: Any = typed if "list" in str(option.option.takes) or option.path in ("labels", "plant") else typed[0]
        if option.path in ("num_cases", "num_inference_steps", "seed", "mask_steps", "decoding.num_splits"):
            taken = int(taken)
        if option.path in ("guidance_scale", "decoding.overlap"):
            taken = float(taken)
        values[option.path] = tuple(taken) if isinstance(taken, list) and option.option.takes is None else taken
    return build_request(override({}, values))


@pytest.mark.parametrize("name", sorted(PAIRED))
def test_each_configuration_becomes_a_command_that_asks_for_the_same(name: str, tmp_path: Path) -> None:
    own = PAIRED[name]
    found = translate(tmp_path, paired(name), ENVIRONMENTS["environment_rflow-ct"], names=(name, "environment"), seed=7)
    command = found.commands[-1]
    request = read_request(command)
    assert (request.bundle, request.num_cases, request.seed) == ("rflow-ct", 1, 7)
    assert request.shape == own.size
    assert request.spacing_mm == own.spacing
    assert request.num_inference_steps == own.steps
    has_tumor = any("tumor" in name for name in own.anatomy)
    assert request.mask_source == ("diffusion" if own.sizes else "bank" if has_tumor else "plant")
    assert command[-2:] == ["--out", "output"]
    is_whole = all(side <= 4 * length for side, length in zip(own.size, own.window, strict=True))
    assert request.decoding.window == (None if is_whole else own.window)
    assert request.decoding.overlap == (0.4 if is_whole else own.overlap)
    assert request.decoding.num_splits == own.splits
    for label in own.anatomy:
        assert label in "+".join((*request.labels, *(request.anatomy or ())))
    assert {setting.key for setting in found.settings} >= set(paired(name))


def test_every_key_of_their_files_has_a_row_and_says_what_differs(tmp_path: Path) -> None:
    contents = [
        *((Kind.paired, paired(name)) for name in PAIRED),
        *((Kind.images, images(version)) for version in ("rflow-ct", "ddpm-ct", "rflow-mr", "rflow-mr-brain")),
        (Kind.controlnet, CONTROLNET),
        (Kind.vae, VAE),
        *((Kind.environment, content) for content in ENVIRONMENTS.values()),
    ]
    assert len(contents) == 22
    for kind, content in contents:
        keys = {
            key if not isinstance(value, dict) else f"{key}.{inner}"
            for key, value in content.items()
            for inner in (value if isinstance(value, dict) else [""])
        }
        assert keys <= set(OPTIONS[kind]), kind
    for rows in OPTIONS.values():
        assert all(row.ours or row.difference for row in rows.values())


def test_page_names_every_option_and_flag() -> None:
    page = (REPOSITORY / "integrations" / "nvidia" / "README.md").read_text(encoding="utf-8")
    for rows in OPTIONS.values():
        for key in rows:
            assert f"`{key.rpartition('.')[2]}`" in page, key
    for flags in FLAGS:
        for flag in flags.split(", "):
            assert f"`{flag}`" in page, flag


def test_sizes_become_generated_label_maps(tmp_path: Path) -> None:
    sizes = [["liver", 0.5], ["hepatic tumor", 0.3], ["stomach", -1]]
    found = translate(tmp_path, paired("config_infer", controllable_anatomy_size=sizes))
    assert found.commands[0] == ["maisi-aug", "bundles", "pull", "rflow-ct", "--with-masks"]
    request = read_request(found.commands[-1])
    assert request.labels == ("hepatic tumor:0.3",)
    assert request.size_of == {"liver": 0.5, "stomach": -1.0}
    assert request.mask_steps == 100
    assert request.anatomy == ("hepatic tumor", "liver")
    assert request.body_region is None


def test_what_the_second_mask_model_alone_takes_is_said(tmp_path: Path) -> None:
    config = paired(
        "config_infer", controllable_anatomy_size=[["spleen", 0.5]], controllable_demographics=[["age", 55]]
    )
    script = translate(tmp_path, config).to_script()
    assert "# controllable_anatomy_size: the size of spleen is left out" in script
    assert "# controllable_demographics is set: label maps will not follow it" in script
    assert script.splitlines()[-1].startswith("maisi-aug synthesize --bundle rflow-ct --mask-source diffusion")
    assert shlex.split(script.splitlines()[-1])[:2] == ["maisi-aug", "synthesize"]


def test_regions_are_named_as_here_and_in_order(tmp_path: Path) -> None:
    request = read_request(translate(tmp_path, paired("config_infer", body_region=["lower", "chest"])).commands[-1])
    assert request.body_region == ("thorax", "pelvis")


def test_own_label_map_is_drawn_as_it_is(tmp_path: Path) -> None:
    found = translate(tmp_path, paired("config_infer"), mask=Path("my map.nii.gz"), out=Path("drawn"))
    request = read_request(found.commands[-1])
    assert (request.mask_source, request.mask_bank, request.mask_labels) == ("given", "my map.nii.gz", "maisi")
    assert request.shape is None
    assert found.commands[-1][-2:] == ["--out", "drawn"]
    assert "'my map.nii.gz'" in found.to_script()


@pytest.mark.parametrize("version", ["rflow-ct", "ddpm-ct"])
def test_images_alone(version: str, tmp_path: Path) -> None:
    found = translate(tmp_path, images(version), names=(f"config_maisi_diff_model_{version}",))
    request = read_request(found.commands[-1])
    assert (request.bundle, request.mask_source, request.seed) == (version, "none", 0)
    assert request.num_inference_steps == (1000 if version == "ddpm-ct" else 30)
    assert request.body_region == (("thorax", "abdomen") if version == "ddpm-ct" else None)
    assert request.decoding.window is None, "80x80x80 latent voxels hold the whole"
    assert any(f"maisi-aug train diffusion --recipe train-{version}" in note for note in found.notes)


def test_fine_tuning_counts_its_steps(tmp_path: Path) -> None:
    rows = [{"image": f"{number}.nii.gz", "fold": number % 5} for number in range(10)]
    (tmp_path / "list.json").write_text(json.dumps({"training": rows}))
    environment = {"model_dir": "models", "exp_name": "kidney", "json_data_list": str(tmp_path / "list.json")}
    command = translate(tmp_path, CONTROLNET, environment).commands[-1]
    options = options_of(command)
    assert command[:2] == ["maisi-aug", "finetune-controlnet"]
    assert options["--steps"] == ["800"], "100 epochs of the 8 cases that are not held out"
    assert options["--label"] == ["label 129"]
    assert options["--slot"] == ["label 129=dummy6"]
    assert MAISI.id_of("dummy6") == 129
    assert (options["--learning-rate"], options["--label-weight"], options["--out"]) == (["1e-05"], ["100"], ["kidney"])
    unknown = translate(tmp_path, CONTROLNET)
    assert "--steps" not in options_of(unknown.commands[-1])
    assert any(note.startswith("--steps: n_epochs times") for note in unknown.notes)


def test_weights_are_fetched_first_unless_they_are_there(tmp_path: Path) -> None:
    path = write_config(tmp_path, "config_infer", paired("config_infer"))
    commands = migrate([path], Flags(is_fetched=lambda _: False)).commands
    assert commands[0] == ["maisi-aug", "bundles", "pull", "rflow-ct"]
    assert [command[1] for command in commands] == ["bundles", "synthesize"]
    assert len(migrate([path], Flags(is_fetched=lambda _: True)).commands) == 1


def test_networks_are_told_by_the_checkpoints_then_by_names(tmp_path: Path) -> None:
    environment = ENVIRONMENTS["environment_ddpm-ct"]
    found = translate(tmp_path, paired("config_infer"), environment)
    assert options_of(found.commands[-1])["--bundle"] == ["ddpm-ct"]
    assert any("ddpm-ct was trained with 1000 steps" in note for note in found.notes)
    given = translate(tmp_path, paired("config_infer"), environment, version="rflow-ct")
    assert options_of(given.commands[-1])["--bundle"] == ["rflow-ct"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "not a configuration file of NVIDIA's scripts.*its keys are a"),
        (
            paired("config_infer", anatomy_list=["livver"]),
            "anatomy_list: no label is called 'livver'. Did you mean 'liver'",
        ),
        (paired("config_infer", anatomy_list=[]), "anatomy_list: empty, and so is controllable_anatomy_size"),
        (paired("config_infer", body_region=["arm"]), "body_region: 'arm' is not one of head"),
        (paired("config_infer", modality=99), "modality: 99 is not a known code"),
        (paired("config_infer", output_size=[256, 256]), r"output_size: \[256, 256\] is not a list of three numbers"),
        (paired("config_infer", controllable_anatomy_size=[["liver"]]), "is not a name and a size between 0 and 1"),
        (paired("config_infer", cfg_guidance_scale="strong"), "a value is not as in NVIDIA's files: .*'str'"),
        ({"diffusion_unet_inference": 3}, "a value is not as in NVIDIA's files: .*'int'"),
    ],
)
def test_bad_files_are_refused_in_a_sentence(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match=message):
        translate(tmp_path, content)


def test_two_runs_at_once_and_unknown_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="was given before it. Migrate one run at a time"):
        translate(tmp_path, paired("config_infer"), paired("config_infer"))
    with pytest.raises(MigrationError, match="--version: 'rflow' is not one of .*Did you mean .*'rflow-ct'"):
        translate(tmp_path, paired("config_infer"), version="rflow")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(MigrationError, match="broken.json: cannot be read as JSON"):
        migrate([tmp_path / "broken.json"])


def test_command_prints_a_script_and_runs_it(
    run_cli: Callable[..., Any], bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maisi_aug.integrations.nvidia import migration

    config = images("rflow-ct")
    config["diffusion_unet_inference"] |= {"dim": [32, 24, 16], "spacing": [6.4, 6.4, 6.4], "num_inference_steps": 1}
    path = write_config(tmp_path, "config_maisi_diff_model", config)
    printed = run_cli("migrate", path)
    assert (printed.code, printed.stderr) == (0, "")
    lines = printed.stdout.splitlines()
    assert all(line.startswith(("# ", "maisi-aug ")) for line in lines)
    as_json = json.loads(run_cli("migrate", path, "--json").stdout)
    assert shlex.join(as_json["commands"][-1]) == lines[-1]
    monkeypatch.setattr(migration, "DEFAULT_VERSION", str(bundle_path))
    known = table.known_bundles()
    monkeypatch.setattr(migration, "known_bundles", lambda: {**known, str(bundle_path): known["rflow-ct"]})
    monkeypatch.setattr(migration, "pulled_bundles", lambda: (str(bundle_path),))
    out = tmp_path / "cohort"
    done = run_cli("migrate", path, "--out", out, "--run")
    assert done.code == 1, "random weights draw no patient, which is rejected as in any other run"
    assert "0 of 1 case accepted" in done.stdout
    assert (out / "manifest.jsonl").is_file()


def test_no_key_or_value_of_a_file_becomes_a_line_of_the_script(tmp_path: Path) -> None:
    content = paired("config_infer") | {"x\ntouch owned": 1}
    masks = {"all_mask_files_base_dir": "masks\ntouch owned"}
    script = translate(tmp_path, content, ENVIRONMENTS["environment_rflow-ct"] | masks).to_script()
    words = shlex.split(script, comments=True)
    assert "touch" not in words, "a line break stays inside a comment or a quoted word"
    assert "masks\ntouch owned" in words


def test_fewer_steps_of_ddpm_name_the_sampler(tmp_path: Path) -> None:
    config = images("ddpm-ct")
    config["diffusion_unet_inference"]["num_inference_steps"] = 50
    found = translate(tmp_path, config, version="ddpm-ct")
    assert any("50 are those of DPM-Solver++" in note for note in found.notes)


def test_script_says_what_is_felt_and_json_says_all(tmp_path: Path) -> None:
    contents = (paired("config_infer"), ENVIRONMENTS["environment_rflow-ct"])
    found = translate(tmp_path, *contents)
    keys = [line.partition(":")[0].removeprefix("# ") for line in found.to_script().splitlines()]
    assert {"body_region", "anatomy_list", "autoencoder_sliding_window_infer_size"} <= set(keys)
    assert not {"controlnet", "image_output_ext", "controllable_demographics", "label_dict_json", "modality"} & set(
        keys
    )
    told = {row["key"] for row in found.to_json()["settings"]}
    assert told == set(contents[0]) | set(contents[1])


@pytest.mark.parametrize(
    ("version", "modality"), [("rflow-mr", "mri_t1"), ("rflow-mr-brain", "mri_flair_skull_stripped")]
)
def test_mr_is_named_by_its_sequence(version: str, modality: str, tmp_path: Path) -> None:
    found = translate(tmp_path, images(version), names=(f"config_maisi_diff_model_{version}",))
    options = options_of(found.commands[-1])
    assert options["--bundle"] == [version]
    assert options["--modality"] == [modality]
    assert options["--guidance-scale"] == ["15" if version == "rflow-mr" else "10"]
