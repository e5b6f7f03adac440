"""MONAI is imported without what its networks do not need, and everything else as always."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def run(program: str) -> None:
    """Run a program in a fresh process, where nothing is imported yet."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, env=environment)


def test_networks_are_loaded_without_what_they_do_not_need() -> None:
    run(
        "import sys\n"
        "from maisi_aug.system.lean_monai import UNNEEDED, import_monai_lean\n"
        "import_monai_lean(), import_monai_lean()\n"
        "from maisi_aug.bundle_spec.bundle import load_bundle\n"
        "from maisi_aug.networks.pipeline import Pipeline\n"
        "pipeline = Pipeline.load(load_bundle('phantom-ct'), 'cpu')\n"
        "found = {name.partition('.')[0] for name in sys.modules} & {*UNNEEDED, 'sympy', 'triton'}\n"
        "assert found <= {'skimage'}, found  # of label maps\n"
        "assert not pipeline.networks.controlnet.use_checkpointing\n"
        "assert 'torch._dynamo' not in sys.modules, 'the compiler is imported for nothing'\n"
        "import monai, pydicom, nibabel, scipy.signal, torchvision, importlib.resources\n"
        "assert importlib.resources.files(monai).joinpath('README.md').parent.is_dir()\n"
        "assert monai.losses.DiceLoss and monai.__version__\n"
    )


def test_users_of_the_library_get_the_whole_of_monai() -> None:
    run(
        "import sys\n"
        "import maisi_aug.api.synthesis, maisi_aug.generate.case_worker, maisi_aug.system.engine.processes\n"
        "assert not [finder for finder in sys.meta_path if type(finder).__module__.endswith('lean_monai')]\n"
    )
