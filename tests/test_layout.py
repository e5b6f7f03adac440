from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
LINKED = ("cli", "evaluation", "integrations", "recipes")
NOT_PACKAGED = {"__pycache__", "studies", "guides"}
"""Folders of the package that stay in the repository: the experiments behind the documentation's figures, which run
from there, and the guides."""


@pytest.fixture(scope="module")
def setuptools_table() -> Any:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]


def package_files() -> set[str]:
    """Paths of all files that belong to the package, as they lie in site-packages."""
    found = set()
    for folder, subfolders, names in os.walk(REPOSITORY / "maisi_aug", followlinks=True):
        subfolders[:] = [name for name in subfolders if name not in NOT_PACKAGED]
        found |= {Path(folder, name).relative_to(REPOSITORY).as_posix() for name in names if name[0] != "."}
    return found


def test_every_package_is_listed(setuptools_table: Any) -> None:
    packages = {path.removesuffix("/__init__.py").replace("/", ".") for path in package_files() if "__init__" in path}
    assert packages == set(setuptools_table["packages"])


@pytest.mark.parametrize("name", LINKED)
def test_link_leads_to_the_folder_that_the_build_maps(name: str, setuptools_table: Any) -> None:
    link = REPOSITORY / "maisi_aug" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..", name)
    assert setuptools_table["package-dir"][f"maisi_aug.{name}"] == name


def test_every_python_folder_is_a_package() -> None:
    files = package_files()
    folders = {str(Path(path).parent) for path in files if path.endswith(".py")}
    assert {folder for folder in folders if f"{folder}/__init__.py" not in files} == set()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy, so that no build folder is left in the repository or used from it."""
    source = tmp_path_factory.mktemp("source") / "repository"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source / name)
    for name in ("maisi_aug", *LINKED):
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (source / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_the_package_and_nothing_beside_it(wheel: zipfile.ZipFile) -> None:
    top = {name.partition("/")[0] for name in wheel.namelist()}
    (metadata,) = top - {"maisi_aug"}
    assert metadata.startswith("maisi_aug-")
    assert metadata.endswith(".dist-info")
    assert f"{metadata}/licenses/LICENSE" in wheel.namelist()


def test_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if name.startswith("maisi_aug/")}
    assert packed == package_files()
    assert not [name for name in packed if "/studies/" in name or "/guides/" in name]
    assert {"maisi_aug/py.typed", "maisi_aug/data/labels.json", "maisi_aug/recipes/liver.yaml"} <= packed


def test_installed_wheel_runs_from_another_folder(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    wheel.extractall(site)
    elsewhere.mkdir()
    program = (
        "import importlib.util, pathlib, sys\n"
        "import maisi_aug\n"
        f"assert pathlib.Path(maisi_aug.__file__).is_relative_to({str(site)!r}), maisi_aug.__file__\n"
        f"assert not [name for name in {LINKED!r} if importlib.util.find_spec(name)]\n"
        "from maisi_aug.cli.app import run\n"
        "sys.exit(max(run(words.split()) for words in "
        "('labels', 'recipes list', 'bundles list', 'nnunet-trainer-path')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    module = [sys.executable, "-m", "maisi_aug", "--version"]
    told = subprocess.run(
        module, cwd=elsewhere, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=True
    )
    assert told.stdout.startswith("maisi-aug ")
    assert "hepatic tumor" in done.stdout
    assert list(elsewhere.iterdir()) == []
    trainers = Path(done.stdout.splitlines()[-1])
    assert trainers.is_relative_to(site)
    assert (trainers / "maisi_aug_trainers.py").is_file()


@pytest.mark.slow
def test_nnunet_finds_the_trainers_of_an_installed_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    site = tmp_path / "site"
    wheel.extractall(site)
    program = (
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name\n"
        "trainer = recursive_find_trainer_class_by_name('nnUNetTrainerSynthetic50Fade_20epochs')\n"
        "print(trainer.settings)\n"
    )
    environment = {
        "PYTHONPATH": str(site),
        "nnUNet_extTrainer": str(site / "maisi_aug" / "integrations" / "nnunet" / "trainers"),
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "TrainerSettings(share=0.5, fades=True" in done.stdout
