"""MONAI without what its networks do not need, for processes that are maisi-aug's own.

``import monai`` imports all of its modules, and with them every optional package that is installed: matplotlib, pandas,
scikit-learn, torchvision, TensorBoard and others take more than half of the time until a worker draws. MONAI treats one
that cannot be imported as not installed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Final

UNNEEDED: Final = frozenset(
    (
        "clearml",
        "cucim",
        "cupy",
        "cupyx",
        "cv2",
        "gdown",
        "h5py",
        "huggingface_hub",
        "ignite",
        "itk",
        "lpips",
        "matplotlib",
        "mlflow",
        "nibabel",
        "openslide",
        "optuna",
        "pandas",
        "pyamg",
        "pydicom",
        "requests",
        "scipy.signal",
        "segment_anything",
        "skimage",
        "sklearn",
        "tensorboard",
        "tensorboardX",
        "tifffile",
        "torch.utils.tensorboard",
        "torchaudio",
        "torchio",
        "torchvision",
        "transformers",
        "zarr",
    )
)
"""Packages and modules that MONAI imports where they are installed; no network, scheduler, loss or metric of ours uses
one."""


def import_monai_lean() -> None:
    """Hide unneeded packages from MONAI while it is imported, whenever that is; other imports find them as always.

    Only for the process of a command or of a worker: what a user's own code expects of MONAI may need them.
    """
    if not any(isinstance(finder, _Hiding) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Hiding())


class _Hiding(MetaPathFinder):
    """Finds MONAI, and hides packages from the thread that is importing it."""

    def __init__(self) -> None:
        self.thread: int | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "monai":
            spec = PathFinder.find_spec(fullname, path, target)
            if spec is not None and isinstance(spec.loader, SourceFileLoader):
                spec.loader = _LeanLoader(self, spec.loader.name, spec.loader.path)
            return spec
        if threading.get_ident() == self.thread and not UNNEEDED.isdisjoint((fullname, fullname.partition(".")[0])):
            raise ModuleNotFoundError(f"No module named '{fullname}'", name=fullname)
        return None


class _LeanLoader(SourceFileLoader):
    """Loads MONAI while packages are hidden."""

    def __init__(self, hiding: _Hiding, fullname: str, path: str) -> None:
        super().__init__(fullname, path)
        self._hiding = hiding

    def exec_module(self, module: ModuleType) -> None:
        self._hiding.thread = threading.get_ident()
        try:
            super().exec_module(module)
        finally:
            self._hiding.thread = None
