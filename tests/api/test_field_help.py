"""Fields of configurations as Python users read them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BeforeValidator, Field, PositiveInt

import maisi_aug as ma
from maisi_aug.api.field_help import describe_fields, spell_type
from maisi_aug.api.keywords import FIELDS_HEADING, build_model
from maisi_aug.errors import BenchmarkError
from maisi_aug.evaluation.benchmark.config import EVERY, BenchmarkConfig
from maisi_aug.system.models import Option, PathText, StrictModel


class Section(StrictModel, use_attribute_docstrings=True):
    mode: Annotated[Literal["exact", "windows"] | None, Option("--decode")] = None
    """How to decode (default: exact, or windows with --window)."""


class Request(StrictModel, use_attribute_docstrings=True):
    names: Annotated[tuple[str, ...], Option("--name")] = ()
    """Name; may repeat."""
    rules: Annotated[tuple[str, ...], Option("--map", metavar="LABEL=NAME")] = ()
    """Meaning of a label; may repeat."""
    count: Annotated[PositiveInt | None, Option("-n")] = None
    """Number of cases."""
    num_steps: Annotated[int | Literal["auto"], BeforeValidator(int), Option("--steps")] = 30
    """Steps of each of the -n cases, or as --steps auto finds."""
    shape: Annotated[tuple[PositiveInt, PositiveInt, PositiveInt] | None, Field(), Option(takes=str)] = None
    """Voxels of the image in OUT/images, unless --keep-shape."""
    table: Annotated[PathText | None, Option(in_python="Table, as a file.", python_type="Table")] = None
    """Table that --table reads."""
    quiet: bool = False
    undescribed: int = 3
    section: Section = Section()
    """How images are decoded."""


def lines_of(*names: str) -> list[str]:
    return list(describe_fields({name: Request.model_fields[name] for name in names}, Request))


def test_flags_become_keywords_and_their_values_texts() -> None:
    assert " ".join(map(str.strip, lines_of("num_steps"))) == (
        "num_steps (int | Literal['auto']): Steps of each of the ``count`` cases, or as "
        '``num_steps="auto"`` finds (default: 30).'
    )
    assert lines_of("shape") == [
        "shape (tuple[int, int, int]): Voxels of the image in the folder ``images`` of ``out``, unless",
        "    ``keep_shape``.",
    ]


def test_what_may_repeat_is_a_sequence_and_rules_are_a_dict() -> None:
    assert lines_of("names") == ["names (str | Sequence[str]): Name; one, or a sequence of several."]
    assert lines_of("rules") == [
        "rules (str | Sequence[str] | dict[str, str]): Meaning of a label; texts LABEL=NAME, or a dict."
    ]


def test_own_text_and_type_for_python_come_first() -> None:
    assert lines_of("table") == ["table (Table): Table, as a file."]


def test_fields_without_a_docstring_are_left_out_and_sections_are_indented() -> None:
    assert lines_of("undescribed", "quiet") == []
    assert lines_of("section") == [
        "section (dict): How images are decoded. Its keys:",
        "    mode (Literal['exact', 'windows']): How to decode (default: exact, or windows with ``window``).",
    ]


@pytest.mark.parametrize(
    ("annotation", "spelt"),
    [
        (int | None, "int"),
        (PathText, "str | Path"),
        (Path | None, "str | Path"),
        (tuple[PathText, ...], "str | Path | Sequence[str | Path]"),
        (tuple[float, ...], "Sequence[float]"),
        (Annotated[tuple[int, int, int], BeforeValidator(int)], "str | tuple[int, int, int]"),
        (dict[str, int | str], "dict[str, int | str]"),
        (Literal["a", "b"], "Literal['a', 'b']"),
        (Literal["a", "b", "c", "d", "e", "f", "g", "h", "i"], "str"),
        (tuple[Literal["a", "b"], ...], "str | Sequence[str]"),
    ],
)
def test_types_are_spelt_without_validators_and_limits(annotation: object, spelt: str) -> None:
    from pydantic import create_model

    fields: dict[str, Any] = {"field": (annotation, None)}
    model = create_model("M", **fields)
    assert spell_type(model.model_fields["field"]) == spelt


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"arms": "real, copy-paste:1"}, "arms", ("real", "copy-paste:1")),
        ({"arms": ["real", "copy-paste:1"]}, "arms", ("real", "copy-paste:1")),
        ({"test_patients": "patients.txt"}, "test_patients", ("anna", "bert")),
        ({"test_patients": Path("patients.txt")}, "test_patients", ("anna", "bert")),
        ({"test_patients": ["bert", "anna"]}, "test_patients", ("anna", "bert")),
        ({"real_counts": (3, "all"), "synthetic": ["cohort"]}, "real_counts", (3, EVERY)),
        ({"real_counts": "3,all", "synthetic": ["cohort"]}, "real_counts", (3, EVERY)),
        ({"lesion_labels": "tumor"}, "lesion_labels", ("tumor",)),
    ],
)
def test_benchmarks_take_lists_as_texts_or_as_sequences(
    given: dict[str, Any], field: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("patients.txt").write_text("bert\nanna\n", encoding="utf-8")
    config = build_model(BenchmarkConfig, {"real": "real", **given}, source="benchmark", error=BenchmarkError)
    assert getattr(config, field) == value


def functions_with_fields() -> Iterator[tuple[str, Callable[..., object]]]:
    """Name and function of everything public that lists fields."""
    for name in ma.__all__:
        value = getattr(ma, name)
        members = [value, *(vars(value).values() if inspect.ismodule(value) or inspect.isclass(value) else ())]
        for one in members:
            if inspect.isfunction(one) and FIELDS_HEADING in (one.__doc__ or ""):
                yield f"{name}.{one.__name__}", one


FUNCTIONS = dict(functions_with_fields())


def test_functions_with_fields_are_found() -> None:
    assert len(FUNCTIONS) >= 21


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_help_of_a_function_is_in_the_words_of_python(name: str) -> None:
    """No flag, no ``may repeat``, no validator; every keyword that has a default of its own states it."""
    text = (FUNCTIONS[name].__doc__ or "").partition(FIELDS_HEADING)[2]
    assert re.findall(r"(?<![\w-])--?[a-z][\w-]*", text) == []
    assert "may repeat" not in text
    assert "Validator" not in str(inspect.signature(FUNCTIONS[name]))
    assert "Annotated" not in str(inspect.signature(FUNCTIONS[name]))
    assert max(map(len, text.splitlines())) <= 120
    for entry in re.split(r"\n {4,8}(?=\w+ \([^)]*\): )", text)[1:]:
        if "(bool)" in entry:
            assert "(default" in entry, entry
