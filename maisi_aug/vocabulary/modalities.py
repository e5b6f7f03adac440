"""Modalities and the codes by which MAISI's networks are conditioned on them. Needs no torch.

Source of names and codes: NVIDIA's NV-Generate-CTMR, ``configs/modality_mapping.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

CtModality = Literal["ct", "ct_contrast", "ct_wo_contrast"]
MrModality = Literal[
    "mri",
    "mri_t1",
    "mri_t2",
    "mri_flair",
    "mri_pd",
    "mri_dwi",
    "mri_adc",
    "mri_ssfp",
    "mri_mra",
    "mri_t1c",
    "mri_swi",
    "mri_t1_skull_stripped",
    "mri_t2_skull_stripped",
    "mri_flair_skull_stripped",
    "mri_swi_skull_stripped",
    "mri_mra_skull_stripped",
]
ImageModality = Literal[CtModality, MrModality]
"""Modalities that an image can have."""
ModalityName = Literal["unknown", CtModality, MrModality]
"""Modalities of training images; ``unknown`` stands for no condition, as in the unconditional branch of guidance."""

CT_MODALITIES: tuple[CtModality, ...] = get_args(CtModality)
MR_MODALITIES: tuple[MrModality, ...] = get_args(MrModality)
MODALITY_CODES: Mapping[str, int] = {
    "unknown": 0,
    "ct": 1,
    "ct_wo_contrast": 2,
    "ct_contrast": 3,
    "mri": 8,
    "mri_t1": 9,
    "mri_t2": 10,
    "mri_flair": 11,
    "mri_pd": 12,
    "mri_dwi": 13,
    "mri_adc": 14,
    "mri_ssfp": 15,
    "mri_mra": 16,
    "mri_t1c": 17,
    "mri_swi": 20,
    "mri_t1_skull_stripped": 29,
    "mri_t2_skull_stripped": 30,
    "mri_flair_skull_stripped": 31,
    "mri_swi_skull_stripped": 32,
    "mri_mra_skull_stripped": 33,
}


def is_mr(modality: str) -> bool:
    """Whether a modality is one of MR, whose intensities are not HU."""
    return modality in MR_MODALITIES


def generic_modality(modality: str) -> str:
    """Return the modality without details: ``mri`` for any MR sequence, otherwise ``ct``."""
    return "mri" if is_mr(modality) else "ct"
