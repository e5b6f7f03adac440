"""Label maps that a trained nnU-Net model predicts, one image at a time.

nnU-Net reads its own checkpoints with pickle, which can run code: predict only with models whose origin you trust.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from maisi_aug.banks.raw_datasets import label_values
from maisi_aug.errors import EvaluationError, RequestError
from maisi_aug.system.content import read_json
from maisi_aug.volumes.image_files import Volume

DEFAULT_CHECKPOINT: Final = "checkpoint_final.pth"


class NnUNetModel:
    """A trained nnU-Net model in a folder such as ``DatasetXXX_Name/nnUNetTrainer__nnUNetPlans__3d_fullres``.

    Attributes:
        folder: Folder of the model.
        label_values: Label name -> ids in a prediction; several for a region.
    """

    def __init__(
        self,
        folder: Path,
        *,
        folds: Sequence[int | str] = (),
        checkpoint: str = DEFAULT_CHECKPOINT,
        orientation: str = "RAS",
        device: str = "cpu",
    ) -> None:
        """Open a model; its networks are loaded at once.

        Args:
            folder: The trained model, or a dataset's folder with one model in it.
            folds: Folds to average; all that are there when empty.
            checkpoint: File of each fold.
            orientation: Where the voxel axes of the training images run to, such as ``LPS``. Nothing in the model
                tells: nnU-Net's usual readers take arrays as they lie in the file.
            device: A torch device.

        Raises:
            EvaluationError: When the folder is not a trained model, or a fold lacks its checkpoint.
            RequestError: When the orientation is none.
        """
        if len(orientation) != 3 or any(
            end not in ends for end, ends in zip(orientation, ("RL", "AP", "SI"), strict=True)
        ):
            raise RequestError(
                f"Orientation '{orientation}': must be three letters such as RAS or LPS, the first R or L, the "
                "second A or P, the third S or I. nnU-Net's plans handle other orders of axes."
            )
        self._flips = tuple(slice(None, None, 1 if end in "RAS" else -1) for end in orientation)
        self.folder = _find_model(folder)
        self.label_values = read_label_values(self.folder / "dataset.json")
        used = tuple(folds) or _find_folds(self.folder, checkpoint)
        for fold in used:
            path = self.folder / f"fold_{fold}" / checkpoint
            if not path.is_file():
                raise EvaluationError(f"{path}: this fold is not trained. Choose others with --folds.")
        self._predictor = _load_predictor(self.folder, used, checkpoint, device)

    def predict(self, image: Volume) -> NDArray[np.uint8]:
        """Segment a CT with the model.

        Args:
            image: ``(I, J, K)`` CT in HU, RAS+.

        Returns:
            ``(I, J, K)`` ids as in ``label_values``.
        """
        # nnU-Net's readers hand arrays on as (C, K, J, I) with the spacing in that order.
        array = np.ascontiguousarray(image.array[self._flips].astype(np.float32).T)[None]
        with _quiet():
            found = self._predictor.predict_single_npy_array(
                array, {"spacing": [float(side) for side in image.grid.spacing_mm[::-1]]}, None, None, False
            )
        label_map: NDArray[np.uint8] = np.ascontiguousarray(np.asarray(found).T[self._flips]).astype(np.uint8)
        return label_map


def read_label_values(path: Path) -> dict[str, tuple[int, ...]]:
    """Return label name -> ids from nnU-Net's ``dataset.json``, without the background; regions have several ids.

    Args:
        path: The ``dataset.json`` of a dataset, a model or a folder of predictions.

    Raises:
        EvaluationError: The file is missing or has no labels.
    """
    try:
        document = read_json(path)
        values = label_values(document["labels"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(
            f"{path}: nnU-Net's description with 'labels' cannot be read: {type(error).__name__} {error}. Give a "
            "folder that nnU-Net wrote."
        ) from error
    return {name: value for name, value in values.items() if name not in ("background", "ignore")}


def _find_model(folder: Path) -> Path:
    if (folder / "plans.json").is_file() and (folder / "dataset.json").is_file():
        return folder
    found = sorted(path.parent for path in folder.glob("*__*__*/plans.json")) if folder.is_dir() else []
    if len(found) == 1:
        return found[0]
    listed = ", ".join(path.name for path in found) or "none"
    raise EvaluationError(
        f"{folder}: expected one trained nnU-Net model, a folder with plans.json and dataset.json, found {listed}. "
        "Give nnUNet_results/DatasetXXX_Name/TRAINER__PLANS__CONFIGURATION."
    )


def _find_folds(folder: Path, checkpoint: str) -> tuple[str, ...]:
    folds = tuple(sorted(path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}")))
    numbered = tuple(fold for fold in folds if fold != "all") or folds
    if not numbered:
        raise EvaluationError(f"{folder}: no fold has {checkpoint}. Finish the training first.")
    return numbered


def _load_predictor(folder: Path, folds: Sequence[int | str], checkpoint: str, device: str) -> Any:
    import torch

    with _quiet():
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(
            use_mirroring=True,
            device=torch.device(device),
            verbose=False,
            verbose_preprocessing=False,
            allow_tqdm=False,
        )
        try:
            predictor.initialize_from_trained_model_folder(str(folder), tuple(folds), checkpoint)
        # What a folder lacks shows in many ways: a trainer or a network that is not installed, another version's plans.
        except Exception as error:
            lines = str(error).splitlines() or [type(error).__name__]
            reason = lines[0].partition(" If the trainer")[0].rstrip(".")
            raise EvaluationError(
                f"{folder}: this nnU-Net cannot open the model: {reason}. Name the folder of its trainer in "
                "nnUNet_extTrainer, or install the version that it was trained with."
            ) from error
    return predictor


@contextlib.contextmanager
def _quiet() -> Any:
    """nnU-Net prints and warns as it goes; stdout is for results."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
