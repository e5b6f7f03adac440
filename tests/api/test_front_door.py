"""What ``import maisi_aug`` hands out, and what it costs."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import maisi_aug as ma
from maisi_aug.api.keywords import FIELDS_HEADING
from maisi_aug.errors import RecipeError, RequestError

MADE_FOR_USERS = {"Case", "DrawnCase", "SavedCase", "Pipeline"}
"""Classes whose objects functions return; nobody calls their constructors."""
SOURCE = ast.parse(Path(ma.__file__).read_text(encoding="utf-8"))


def typed_names() -> dict[str, str]:
    """Name -> module, as type checkers see them."""
    block = next(node for node in SOURCE.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def test_type_checkers_users_and_dir_see_the_same_names() -> None:
    assert typed_names() == {name: f"maisi_aug.{module}" for name, module in ma._HOMES.items()}
    assert sorted(ma.__all__) == sorted(ma._HOMES)
    assert set(ma.__all__) <= set(dir(ma))
    assert len(ma.__all__) >= 18


@pytest.mark.parametrize("name", sorted(ma.__all__))
def test_every_name_is_there_and_explained(name: str) -> None:
    value = getattr(ma, name)
    assert value.__name__.rpartition(".")[2] == name
    assert len(inspect.getdoc(value) or "") > 20


def list_callables() -> Iterator[tuple[str, Any]]:
    """Every function, constructor and method that the front door offers, by name."""
    for name in ma.__all__:
        value = getattr(ma, name)
        if inspect.isfunction(value):
            yield name, value
            continue
        if inspect.isclass(value) and name not in MADE_FOR_USERS and not issubclass(value, Exception):
            yield name, value
        home = value.__name__ if inspect.ismodule(value) else value.__module__
        for member, one in vars(value).items():
            function = one.__func__ if isinstance(one, classmethod) else one
            is_own = inspect.isfunction(function) and function.__module__ == home
            if is_own and (member == "__call__" or not member.startswith("_")):
                yield f"{name}.{member}", function


CALLABLES = dict(list_callables())


def test_callables_of_the_front_door_are_found() -> None:
    assert len(CALLABLES) >= 50
    assert {"Pipeline.from_bundle", "evaluate.fid", "FreshCases", "Cohort.export_nnunet"} <= set(CALLABLES)


@pytest.mark.parametrize("name", sorted(CALLABLES))
def test_arguments_and_result_are_documented(name: str) -> None:
    thing = CALLABLES[name]
    text, signature = inspect.getdoc(thing) or "", inspect.signature(thing)
    names = [part for part in signature.parameters if part not in ("self", "cls")]
    assert [one for one in names if not re.search(rf"^ *(\*\*|\*)?{one}(:| \()", text, re.M)] == []
    if inspect.isfunction(thing) and signature.return_annotation not in (None, "None"):
        assert "Returns:" in text


def test_names_that_are_not_there_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'maisi_aug' has no attribute 'synthesise'"):
        ma.synthesise  # noqa: B018
    from maisi_aug import volumes  # submodules still are

    assert volumes.__name__ == "maisi_aug.volumes"


def test_import_brings_no_other_module_of_the_package() -> None:
    program = "import sys, maisi_aug; print([n for n in sys.modules if n.startswith('maisi_aug.') or n == 'numpy'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_functions_are_reached_without_torch() -> None:
    program = "import sys, maisi_aug as ma; ma.synthesize, ma.labels, ma.insert, ma.prepare; print(list(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "'maisi_aug.api.synthesis'" in done.stdout
    assert "'torch'" not in done.stdout


@pytest.mark.parametrize(
    "function", [ma.synthesize, ma.plan, ma.insert, ma.prepare, ma.finetune_controlnet, ma.benchmark, ma.evaluate.fid]
)
def test_fields_of_the_command_are_keywords_that_are_shown_and_explained(function: object) -> None:
    parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
    assert all(part.kind is not inspect.Parameter.VAR_KEYWORD for part in parameters.values())
    shown = re.findall(
        r"^    ([a-z_]+) \(", (inspect.getdoc(function) or "").partition(f"\n{FIELDS_HEADING}\n")[2], re.M
    )
    assert len(shown) >= 8
    assert set(shown) <= set(parameters)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ma.synthesize("hepatic tumor:0.3", out="c", num_case=1), "synthesize: .* 'num_case'.* 'num_cases'"),
        (lambda: ma.plan("hepatic tumor:0.3", guidance=1), "plan: .* 'guidance'.* 'guidance_scale'"),
        (lambda: ma.insert("lung nodule:9mm", into="c", out="c", textur="solid"), "insert: .* 'textur'.* 'texture'"),
        (lambda: ma.prepare(out="c", image="ct"), "prepare: .* 'image'.* 'images'"),
        (
            lambda: ma.finetune_controlnet("x", data="d", base="b", out="o", step=3),
            "finetune_controlnet: .* 'step'.* The keywords|finetune_controlnet: .* 'step'.* Did you mean",
        ),
        (lambda: ma.train("vae", out="o", recip="x"), "train: .* 'recip'.* 'recipe'"),
        (lambda: ma.benchmark("d", out="o", synthetics="c"), "benchmark: .* 'synthetics'.* 'synthetic'"),
        (lambda: ma.evaluate.fid("a", "b", spacing=1), "fid: .* 'spacing'.* 'spacing_mm'"),
    ],
)
def test_misspelt_keyword_is_named_with_the_closest(call: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        call()  # type: ignore[operator]


def test_balance_is_asked_for_as_a_whole(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="map can only be used with balance_against"):
        ma.synthesize("hepatic tumor", map={2: "hepatic tumor"}, out=tmp_path / "c")
    with pytest.raises(RequestError, match="max_lesions can only be used with --balance-against"):
        ma.plan("hepatic tumor", max_lesions=2)
    assert not (tmp_path / "c").exists()


def test_labels_are_those_of_the_command(run_cli: Callable[..., Any]) -> None:
    rows = json.loads(run_cli("labels", "--find", "kidney", "--kind", "organ", "--json").stdout)
    assert [(label.id, label.name) for label in ma.labels("kidney", kind="organ")] == [
        (row["id"], row["name"]) for row in rows
    ]
    with pytest.raises(ma.MaisiAugError, match="Did you mean"):
        ma.labels("hepatik tumr")
