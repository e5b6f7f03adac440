from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import BaseModel, BeforeValidator, Field, PositiveInt
from typer.core import TyperGroup
from typer.main import get_command

from maisi_aug.api.balancing import BalanceOptions
from maisi_aug.cli.app import VERBS, load_verb
from maisi_aug.cli.shared.boundary import guard
from maisi_aug.cli.shared.from_models import Given, list_options, with_options
from maisi_aug.cohort.request import CohortRequest
from maisi_aug.evaluation.benchmark.config import BenchmarkConfig
from maisi_aug.evaluation.request import (
    BlindPackRequest,
    DistributionRequest,
    EquivalenceRequest,
    FidRequest,
    HuRequest,
    LesionsRequest,
    MemorizationRequest,
    ReconstructionRequest,
    SegmenterRequest,
)
from maisi_aug.insertion.request import InsertConfig
from maisi_aug.integrations.request import DicomExport, MonaiExport, NnunetExport
from maisi_aug.preparation.request import PrepareConfig
from maisi_aug.system.models import Option, PathText, StrictModel, warn_of_spelling
from maisi_aug.training.finetune.settings import FinetuneRequest
from maisi_aug.training.request import MaskDiffusionRequest, MaskTrainRequest, TrainRequest

MODELS: dict[type[BaseModel], tuple[str, ...]] = {
    CohortRequest: ("synthesize", "plan"),
    BalanceOptions: ("synthesize", "plan"),
    InsertConfig: ("insert",),
    PrepareConfig: ("prepare",),
    FinetuneRequest: ("finetune-controlnet",),
    TrainRequest: ("train vae", "train diffusion", "train controlnet"),
    MaskTrainRequest: ("train mask-vae",),
    MaskDiffusionRequest: ("train mask-diffusion",),
    BenchmarkConfig: ("benchmark run",),
    NnunetExport: ("export nnunet",),
    MonaiExport: ("export monai",),
    DicomExport: ("export dicom",),
    FidRequest: ("evaluate fid",),
    DistributionRequest: ("evaluate distribution",),
    EquivalenceRequest: ("evaluate equivalence",),
    HuRequest: ("evaluate hu",),
    LesionsRequest: ("evaluate lesions",),
    SegmenterRequest: ("evaluate agreement", "evaluate detection-curve"),
    MemorizationRequest: ("evaluate memorization",),
    ReconstructionRequest: ("evaluate reconstruction",),
    BlindPackRequest: ("evaluate blind-pack",),
}
"""What users configure, and the commands that it configures. What networks are trained with stands in training recipes
alone, which are edited: no command has an option for it."""
WITHOUT_OPTION: dict[type[BaseModel], dict[str, str]] = {
    CohortRequest: {"grown_from": "a cohort that grows notes it itself, so that earlier cases stay as they are"},
}
"""Fields without an option, and why."""
RUN_ONLY = {"plan": {"max_attempts"}}
"""Fields that decide nothing of what the command does."""


def command_of(path: str) -> Any:
    verb, *rest = path.split()
    command = load_verb(verb)
    for name in rest:
        command = command.commands[name]
    return command


@pytest.mark.parametrize("model", list(MODELS), ids=lambda model: model.__name__)
def test_every_field_is_an_option_or_says_why_not(model: type[BaseModel]) -> None:
    options = list(list_options(model))
    reached = {one.path.partition(".")[0] for one in options}
    assert reached.isdisjoint(excluded := WITHOUT_OPTION.get(model, {}))
    assert reached | set(excluded) == set(model.model_fields)
    for path in MODELS[model]:
        found = {param.name: param for param in command_of(path).params}
        for one in options:
            if one.path in RUN_ONLY.get(path, ()):
                assert one.name not in found
                continue
            assert list(one.flags) == [*found[one.name].opts, *found[one.name].secondary_opts] or "/" in one.flags[0]
            assert found[one.name].help == (one.field.description or "").replace("[", r"\[")
            assert len(one.field.description or "") > 10, f"{one.path} of {path} has no help"


def test_models_are_those_of_all_commands() -> None:
    """A command whose options are generated and that is not listed above would not be looked at."""
    generated = set()
    for verb in VERBS:
        command = load_verb(verb)
        for name, each in command.commands.items() if isinstance(command, TyperGroup) else [("", command)]:
            if hasattr(each.callback, "everyday_flags"):
                generated.add(f"{verb} {name}".strip())
    assert generated == {path for paths in MODELS.values() for path in paths}


class Section(StrictModel, use_attribute_docstrings=True):
    """Of a configuration."""

    overlap: Annotated[float, Field(ge=0, lt=1), Option("--tile-overlap", panel="Tiles")] = 0.4
    """Share of a tile."""


def read_shape(value: object) -> object:
    if value == "old":
        warn_of_spelling("--shape old", "--shape 1x1")
        return (1, 1)
    if isinstance(value, str) and not re.fullmatch(r"\d+x\d+", value):
        raise ValueError(f"expected IxJ, found '{value}'")
    return tuple(map(int, value.split("x"))) if isinstance(value, str) else value


class Settings(StrictModel, strict=True, use_attribute_docstrings=True):
    """A configuration with one field of every kind."""

    name: Annotated[str, Field(min_length=1), Option("-m", panel="What", everyday=True)]
    """Name [of it]."""
    folder: Annotated[PathText | None, Option(takes=Path)] = None
    """Where it lies."""
    count: Annotated[PositiveInt, Option("-c", panel="What")] = 4
    """Number of pieces."""
    kind: Annotated[Literal["round", "square"] | None, Option()] = None
    """Form of the pieces."""
    words: Annotated[tuple[str, ...], Option("--word", metavar="WORD")] = ()
    """Word; may repeat."""
    bundle: Annotated[str, Option(complete="bundles")] = "phantom-ct"
    """Weights."""
    shape: Annotated[tuple[PositiveInt, PositiveInt] | None, BeforeValidator(read_shape), Option(takes=str)] = None
    """Sides."""
    keep: Annotated[bool, Option("--keep/--drop")] = True
    """Keep the pieces."""
    tiles: Section = Section()
    """Cut it."""
    secret: int = 3
    """No option."""


class Call:
    """A command line that is configured by ``Settings``, and what reached the function."""

    def __init__(self, *, with_recipe: bool = False, **how: Any) -> None:
        self.got: dict[str, Any] = {}

        def whole(settings: Settings, out: Annotated[str, typer.Option()] = "here", quiet: bool = False) -> None:
            self.got.update(settings=settings, out=out, quiet=quiet)

        def given(settings: Annotated[Given, Settings]) -> None:
            self.got.update(settings)

        # typer evaluates annotations in the module of the function.
        given.__annotations__["settings"] = Annotated[Given, Settings]
        app = typer.Typer(add_completion=False)
        app.command()(with_options(given if with_recipe else whole, **how))
        self.command: Any = get_command(app)

    def __call__(self, *words: str) -> dict[str, Any]:
        self.got.clear()
        self.command.main(args=list(words), standalone_mode=False)
        return self.got

    def fails(self, *words: str) -> str:
        with pytest.raises(typer.TyperException) as caught:
            self(*words)
        return str(caught.value.format_message())


def test_a_field_is_an_option_that_reaches_the_model() -> None:
    call = Call()
    assert call("--name", "a")["settings"] == Settings(name="a")
    words = ("-m", "a", "--folder", "x/y", "-c", "7", "--kind", "round", "--word", "p", "--word", "q", "--shape", "3x4")
    got = call(*words, "--drop", "--tile-overlap", "0.5", "--bundle", "rflow-ct", "--out", "there", "--quiet")
    tiles = Section(overlap=0.5)
    expected: dict[str, Any] = {
        "folder": "x/y",
        "count": 7,
        "kind": "round",
        "words": ("p", "q"),
        "shape": (3, 4),
        "keep": False,
    }
    assert got["settings"] == Settings(name="a", bundle="rflow-ct", tiles=tiles, **expected)
    assert (got["out"], got["quiet"]) == ("there", True)


def test_help_says_what_the_field_says(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    Call()("--help")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for part in (
        "* --name -m <str> Name [of it]. [required]",
        "--count -c <int range> [x>=1] Number of pieces. [default: 4]",
        "--kind <round|square> Form of the pieces.",
        "--word WORD Word; may repeat.",
        "--keep --drop",
        "Keep the pieces. [default: keep]",
        "--bundle <str> Weights. [default: phantom-ct]",
        "Share of a tile. [default: 0.4]",
    ):
        assert part in text
    assert "secret" not in text
    assert text.index("What") < text.index("--count") < text.index("Tiles") < text.index("--tile-overlap")


def test_only_what_was_typed_stands_above_a_recipe() -> None:
    call = Call(with_recipe=True)
    assert call() == {}
    assert call("--count", "4", "--tile-overlap", "0.4", "--keep", "--shape", "2x2") == {
        "count": 4,
        "tiles.overlap": 0.4,
        "keep": True,
        "shape": (2, 2),
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "Missing option '--name' / '-m'"),
        (("-m", "a", "-c", "0"), "Invalid value for '--count' / '-c'"),
        (("-m", "a", "--kind", "flat"), "'flat' is not one of 'round', 'square'"),
        (("-m", "a", "--shape", "3"), "--shape: expected IxJ, found '3'."),
        (("-m", "a", "--shape", "3x0"), "--shape[1]: expected greater than 0, found 0."),
        (("-m", "a", "--tile-overlap", "1"), "--tile-overlap: expected less than 1, found 1.0."),
        (("-m", "", "--shape", "3"), "--name: expected a text of at least 1 character, found ''. --shape"),
    ],
)
def test_what_is_wrong_is_named_by_its_option(words: tuple[str, ...], message: str) -> None:
    assert message in Call().fails(*words)
    if "--shape" in words and "3x0" not in words:
        assert "--shape: expected IxJ, found '3'." in Call(with_recipe=True).fails("--shape", "3")


@pytest.mark.parametrize("with_recipe", [False, True])
def test_earlier_spelling_is_told_once_and_taken(with_recipe: bool, capsys: pytest.CaptureFixture[str]) -> None:
    call = Call(with_recipe=with_recipe)
    assert guard(lambda: call("-m", "a", "--shape", "old"), debug=False) == 0
    assert (call.got["shape"] if with_recipe else call.got["settings"].shape) == (1, 1)
    said = capsys.readouterr().err
    assert said.count("Note: --shape old is an earlier spelling") == said.count("Write --shape 1x1.") == 1


def test_parameters_can_be_left_out_or_decided() -> None:
    call = Call(without=("count",), out="fixed")
    assert {"count", "out"}.isdisjoint(param.name for param in call.command.params)
    got = call("-m", "a")
    assert (got["settings"].count, got["out"]) == (4, "fixed")


def test_completion_is_that_of_the_field() -> None:
    params: dict[str, Any] = {param.name: param for param in Call().command.params}
    context = typer.Context(Call().command)
    assert "phantom-ct" in [item.value for item in params["bundle"].shell_complete(context, "phan")]


def test_paths_are_taken_as_paths_and_as_text() -> None:
    assert Settings.model_validate({"name": "a", "folder": Path("x") / "y"}).folder == "x/y"


def test_everyday_options_are_those_of_fields_that_say_so(run_cli: Callable[..., Any]) -> None:
    command = with_options(lambda: None)
    assert getattr(command, "everyday_flags") == frozenset()  # noqa: B009
    assert "--painter" in run_cli("insert", "--help").stdout
    assert "--max-attempts" not in run_cli("insert", "--help").stdout
