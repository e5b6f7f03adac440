from __future__ import annotations

import ast
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "maisi_aug"

# From the ground up: a room may import itself and the rooms before it.
ROOMS = (
    *("errors", "system", "vocabulary", "volumes", "lesions", "pictures", "phantom"),
    *("bundle_spec", "bundles", "networks", "banks", "recipes", "cohort", "gates", "sources"),
    *("generate", "preparation", "insertion", "training", "integrations", "evaluation", "api", "cli", "__main__"),
)
RANKS = {room: rank for rank, room in enumerate(ROOMS)}
MAX_ENTRIES = 20
"""Of the folder of the package, apart from data and the links to what lies beside it."""
DATA_ENTRIES = {"py.typed", "data", "bundles", "cli", "evaluation", "integrations", "recipes"}

# Who may import what; a room, or one module of it.
HOMES = {
    "typer": {"cli"},
    "click": {"cli"},
    "nibabel": {"volumes"},
    "SimpleITK": {"volumes"},
    "totalsegmentator": {"integrations.totalsegmentator"},
    "nnunetv2": {"integrations.nnunet"},
    "huggingface_hub": {"networks.checkpoints.hub"},
    "torchio": {"integrations.reading.items"},
    "ray": {"integrations.ray"},
    "submitit": {"integrations.slurm"},
    "pydicom": {"volumes", "integrations.dicom"},
    "highdicom": {"volumes", "integrations.dicom"},
}
# What needs torch to be imported at all; everywhere else it is imported inside functions.
TORCH_PARTS = {
    *("networks", "training", "evaluation"),
    *("integrations.insertion", "integrations.monai", "integrations.nnunet.sampling", "integrations.nnunet.trainers"),
    "integrations.monai_bundle.sampler",
}
HEAVY = {
    "torch",
    "monai",
    "nnunetv2",
    "totalsegmentator",
    "scipy",
    "skimage",
    "cc3d",
    "SimpleITK",
    "nibabel",
    "matplotlib",
    "safetensors",
}
LISTINGS = [
    ["--help"],
    ["--version"],
    ["labels"],
    ["recipes", "list"],
    ["bundles", "list"],
    ["bundles", "presets"],
    ["prepare", "--help"],
]

MAX_FUNCTION_LINES = 40
MAX_MODULE_LINES = 700


class Import(NamedTuple):
    """One import statement: the module it names, and whether it runs when the file is imported."""

    module: str
    is_eager: bool


class Module(NamedTuple):
    """A module of the package: its name without ``maisi_aug.`` and its syntax tree."""

    name: str
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The first component of the name; empty for the package itself."""
        return self.name.partition(".")[0]

    def belongs_to(self, parts: set[str]) -> bool:
        return any(f"{self.name}.".startswith(f"{part}.") for part in parts)


@cache
def modules() -> tuple[Module, ...]:
    found = []
    for folder, _, names in os.walk(PACKAGE, followlinks=True):
        for name in sorted(names):
            if name.endswith(".py"):
                path = Path(folder, name)
                parts = path.relative_to(PACKAGE).with_suffix("").parts
                dotted = ".".join(parts).removesuffix("__init__").removesuffix(".")
                text = path.read_text(encoding="utf-8")
                found.append(Module(dotted, text, ast.parse(text, str(path))))
    return tuple(found)


def imports_of(node: ast.AST, *, is_eager: bool = True) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, is_eager) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"relative import in line {child.lineno}"
            assert child.module is not None
            yield Import(child.module, is_eager)
            if child.module.partition(".")[0] == "maisi_aug":  # what is imported may be a module
                yield from (Import(f"{child.module}.{alias.name}", is_eager) for alias in child.names)
        is_typing_block = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports_of(child, is_eager=is_eager and not is_function and not is_typing_block)


def test_walk_sees_the_whole_package() -> None:
    names = {module.name for module in modules()}
    assert {"", "errors", "cli.app", "integrations.nnunet", "evaluation", "recipes"} <= names
    assert len(names) == len(modules()) >= 40


def test_every_room_has_its_place_and_says_what_belongs_there() -> None:
    assert {module.room for module in modules()} - {""} == set(ROOMS)
    assert len(ROOMS) == len(RANKS)
    rooms = [module for module in modules() if (PACKAGE / module.name.replace(".", "/")).is_dir()]
    assert len(rooms) >= 30
    assert [module.name for module in rooms if not ast.get_docstring(module.tree)] == []


def test_package_is_a_house_of_few_rooms() -> None:
    entries = {path.name for path in PACKAGE.iterdir()} - DATA_ENTRIES - {"__pycache__"}
    assert len(entries) <= MAX_ENTRIES, sorted(entries)


def test_imports_point_downwards() -> None:
    wrong = []
    for module in modules():
        for imported in imports_of(module.tree):
            package, _, rest = imported.module.partition(".")
            target = rest.partition(".")[0]
            if package == "maisi_aug" and module.name and RANKS.get(target, 0) > RANKS[module.room]:
                wrong.append(f"{module.name} imports {imported.module}")
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    names = {module.name for module in modules() if not (PACKAGE / module.name.replace(".", "/")).is_dir()}
    arrows = {
        module.name: {
            target
            for imported in imports_of(module.tree)
            if (target := imported.module.removeprefix("maisi_aug.")) in names and target != module.name
        }
        for module in modules()
    }
    while leaves := {name for name, targets in arrows.items() if not targets}:
        arrows = {name: targets - leaves for name, targets in arrows.items() if name not in leaves}
    assert arrows == {}


@pytest.mark.parametrize("library", sorted(HOMES))
def test_library_is_used_in_its_home_only(library: str) -> None:
    users = {
        module.name
        for module in modules()
        for imported in imports_of(module.tree)
        if imported.module.partition(".")[0] == library and not module.belongs_to(HOMES[library])
    }
    assert users == set()


def test_torch_is_imported_lazily_outside_its_parts() -> None:
    eager = {
        module.name
        for module in modules()
        for imported in imports_of(module.tree)
        if imported.is_eager
        and imported.module.partition(".")[0] in {"torch", "monai"}
        and not module.belongs_to(TORCH_PARTS)
    }
    assert eager == set()


@pytest.mark.parametrize("arguments", LISTINGS, ids=" ".join)
def test_listing_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from maisi_aug.cli.app import run\n"
        f"code = run({arguments!r})\n"
        f"heavy = sorted({HEAVY!r} & set(sys.modules))\n"
        "sys.exit(f'code {code}, imported {heavy}' if code or heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_labels_start_in_half_a_second() -> None:
    command = [sys.executable, "-m", "maisi_aug.cli.app", "labels"]
    seconds = [float("inf")]
    # Processor time of the child, the least of several: what it takes on a machine that is not busy with something
    # else. A busy one lends it half a core and cold caches now and then, but not ten times in a row.
    while min(seconds) >= 0.5 and len(seconds) <= 10:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5


def test_modules_and_functions_stay_short() -> None:
    long = [f"{m.name}: {n} lines" for m in modules() if (n := len(m.text.splitlines())) > MAX_MODULE_LINES]
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _num_lines(node) > MAX_FUNCTION_LINES:
                long.append(f"{module.name}.{node.name}: {_num_lines(node)} lines")
    assert long == []


def _num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body without its docstring; signatures of commands are as long as their options."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
