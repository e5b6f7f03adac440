from __future__ import annotations

import ast
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "maisi_aug"

# From the ground up; a part may import parts of its own layer and of those before it.
LAYERS: dict[str, tuple[str, ...]] = {
    "foundations": (
        *("cores", "errors", "grid", "seeds", "labels", "lesion_names", "sizes", "requests", "totalsegmentator_labels"),
        *("whole_files", "file_lock", "gzip_members"),
        *("regions", "source_rules", "bundle_text", "decoding_config"),
    ),
    "pure maths": (
        *("resampling", "deformation", "growth", "lesions", "lesion_editing", "body", "phantom", "quality", "pictures"),
        *("map_cleanup", "visibility", "patient", "orientation", "networks", "conditioning", "sampling", "decoding"),
        *("mask_conditions", "mask_diffusion", "mask_decoding"),
        *("split_convolution", "decoding_memory", "decoder", "acceleration"),
    ),
    "state": (
        *("metaimage", "volume_io", "bundle", "bundles", "weights", "manifest", "recipe", "recipe_files", "recipes"),
        *("cohort",),
        *("bank_labels", "bank_files", "known_bundles", "checkpoints", "checkpoint_import", "checkpoint_folders"),
        *("bank_entry", "mask_database", "bank_listing", "grid_limits", "presets", "weight_copies", "hub"),
        "mask_origin",
        *("mask_bundle", "mask_checkpoints", "prepared", "bundle_spec", "bundle_references"),
    ),
    "orchestration": (
        *("masks", "plan", "resolve", "preview", "contact_sheet", "gates", "writer", "pipeline", "generate"),
        *("bank_map", "folder_bank", "phantom_folder", "preflight", "training"),
        "preparation",
        *("anatomy", "grid_preflight", "given_maps"),
        *("mask_generator", "diffusion_source", "sized_organs", "slot_choice", "model_card"),
        *("balance", "balance_picture", "census", "attempts"),
        "insertion",
    ),
    "adapters": ("evaluation", "integrations", "nnunet_trainers"),
    "command line": ("cli",),
}
RANKS = {part: rank for rank, parts in enumerate(LAYERS.values()) for part in parts}

# Who may import what; a part, or one module of it.
HOMES = {
    "typer": {"cli"},
    "click": {"cli"},
    "nibabel": {"volume_io"},
    "SimpleITK": {"volume_io"},
    "totalsegmentator": {"integrations.totalsegmentator"},
    "nnunetv2": {
        *("integrations.nnunet_check", "integrations.nnunet_compact", "integrations.nnunet_plans"),
        *("integrations.nnunet_sampling", "integrations.nnunet_splits", "integrations.nnunet_prediction"),
        "nnunet_trainers",
    },
    "huggingface_hub": {"hub"},
    "torchio": {"integrations.items"},
    "pydicom": {"integrations.dicom", "integrations.dicom_image", "integrations.dicom_segmentation"},
    "highdicom": {"integrations.dicom", "integrations.dicom_image", "integrations.dicom_segmentation"},
}
# Parts that need torch to be imported at all; everywhere else it is imported inside functions.
TORCH_PARTS = {
    *("networks", "conditioning", "sampling", "decoding", "weights", "checkpoints", "pipeline"),
    *("split_convolution", "decoding_memory", "decoder", "acceleration"),
    "integrations.monai",
    *("weight_copies", "training", "evaluation", "mask_diffusion", "mask_decoding", "mask_generator"),
    "nnunet_trainers",
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
    def part(self) -> str:
        """The first component of the name; empty for the package itself."""
        return self.name.partition(".")[0]

    def belongs_to(self, parts: set[str]) -> bool:
        return self.part in parts or self.name in parts


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
            if child.module == "maisi_aug":
                yield from (Import(f"maisi_aug.{alias.name}", is_eager) for alias in child.names)
        is_typing_block = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports_of(child, is_eager=is_eager and not is_function and not is_typing_block)


def test_walk_sees_the_whole_package() -> None:
    names = {module.name for module in modules()}
    assert {"", "errors", "cli.app", "integrations.nnunet", "evaluation", "recipes"} <= names
    assert len(names) == len(modules()) >= 40


def test_every_part_has_a_layer() -> None:
    assert {module.part for module in modules()} - {""} == set(RANKS)


def test_imports_point_downwards() -> None:
    wrong = []
    for module in modules():
        for imported in imports_of(module.tree):
            package, _, rest = imported.module.partition(".")
            target = rest.partition(".")[0]
            if package == "maisi_aug" and module.name and RANKS.get(target, 0) > RANKS.get(module.part, len(LAYERS)):
                wrong.append(f"{module.name} imports {imported.module}")
    assert wrong == []


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


def test_layers_name_each_part_once() -> None:
    parts = [part for layer in LAYERS.values() for part in layer]
    assert len(parts) == len(set(parts))
    assert all(lower != upper for lower, upper in pairwise(LAYERS))
