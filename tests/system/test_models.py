from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, PositiveInt, ValidationError, model_validator

from maisi_aug.errors import BundleError, RecipeError
from maisi_aug.system.models import StrictModel, explain_problems


class Circle(StrictModel):
    kind: Literal["circle"] = "circle"
    radius_mm: float


class Square(StrictModel):
    kind: Literal["square"]
    sides_mm: tuple[float, float]

    @model_validator(mode="after")
    def _require_equal_sides(self) -> Square:
        if self.sides_mm[0] != self.sides_mm[1]:
            raise ValueError("sides_mm: expected equal sides")
        return self


class Drawing(StrictModel):
    shape: Annotated[Circle | Square, Field(discriminator="kind")]
    num_copies: PositiveInt = 1
    sizes: PositiveInt | dict[str, PositiveInt] = 1
    extra: dict[str, Circle] | None = None
    scheduler: Literal["ddpm", "rflow"] | None = Field(default=None, alias="class")


CIRCLE = {"kind": "circle", "radius_mm": 3}


def problems_of(content: object) -> str:
    with pytest.raises(RecipeError) as caught, explain_problems(Drawing, "drawing.yaml", RecipeError):
        Drawing.model_validate(content)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"shape": {"kind": "circle", "radius": 3, "radius_mm": 3}}, "shape.radius: unknown key '"),
        ({"shape": {"kind": "circle", "radius_m": 3, "radius_mm": 3}}, "Did you mean 'radius_mm'?"),
        ({"shape": {"kind": "cube"}}, "shape: "),
        ({"shape": {"kind": "square", "sides_mm": [1, 2]}}, "shape: sides_mm: expected equal sides."),
        ({"shape": {"kind": "square", "sides_mm": [1]}}, "shape.sides_mm[1]: a value is required. Add it."),
        ({"num_copies": 0}, "num_copies: expected greater than 0, found 0."),
        ({"sizes": "many"}, "sizes: expected a valid integer, unable to parse string as an integer, found 'many'."),
        ({"sizes": {"liver": 0}}, "sizes.liver: expected greater than 0, found 0."),
        ({"extra": {"one": {"radius_mm": "x"}}}, "extra.one.radius_mm: expected a valid number"),
        ({"class": "euler"}, "class: expected 'ddpm' or 'rflow', found 'euler'."),
        ({"zzz": 1}, "zzz: unknown key 'zzz'. Known keys: shape, num_copies, sizes, extra, class."),
    ],
)
def test_a_problem_is_named_by_its_place_in_the_file(changes: dict[str, Any], problem: str) -> None:
    assert problem in problems_of({"shape": CIRCLE, **changes})


def test_all_problems_are_listed_at_once() -> None:
    lines = problems_of({"num_copies": -1, "colour": "red"}).splitlines()
    assert lines[0] == "drawing.yaml: this file has 3 problems:"
    assert [line.partition(":")[0].strip() for line in lines[1:]] == ["shape", "num_copies", "colour"]


def test_content_that_is_no_mapping_is_said_so() -> None:
    assert problems_of([1]) == "drawing.yaml: expected a mapping of fields, found [1]."


def test_text_that_is_no_json_is_said_so() -> None:
    expected = pytest.raises(RecipeError, match="a: not valid JSON:")
    with expected, explain_problems(Circle, "a", RecipeError):
        Circle.model_validate_json('{"radius_mm": ')


def test_error_class_and_advice_are_the_callers() -> None:
    expected = pytest.raises(BundleError, match=r"^b: radius_mm: .*, found 'x'\. Pull it again\.$")
    with expected, explain_problems(Circle, "b", BundleError, advice="Pull it again."):
        Circle.model_validate({"radius_mm": "x"})


def test_a_strict_model_neither_changes_nor_takes_other_keys() -> None:
    circle = Circle(radius_mm=3)
    with pytest.raises(ValidationError, match="frozen"):
        circle.radius_mm = 4
    with pytest.raises(ValidationError, match="extra_forbidden"):
        Circle.model_validate({"radius_mm": 3, "colour": "red"})
